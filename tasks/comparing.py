"""Published rows of two versions beside each other: which are in one only, and which columns of the others differ."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash

from lvd.infra.shards import ShardRef, read_schema, read_table

DIGEST = np.dtype("S16")
NOT_COMPARED = ("image_id", "image", "row")  # row: where a run over vectors has it, no property of the image
EXACT_DUPLICATE = "exact_duplicate"
BY_NAME = 3  # the rank of a candidate with another image's bytes, or none: the last


class Rows(NamedTuple):
    """Images in ascending order of their digests. Memory: 16 bytes for each, and 8 for each of its columns.

    images: (n,) S16. values: (n, c) uint64, a hash of every value that is compared.
    """

    images: np.ndarray
    values: np.ndarray


def place(names: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(m,) int64: where each of these names is among ascending ones, -1 if it is not."""
    if not len(names):
        return np.full(len(wanted), -1)
    found = np.minimum(np.searchsorted(names, wanted), len(names) - 1)
    return np.where(names[found] == wanted, found, -1)


def digests(names: Iterable[str | None]) -> np.ndarray:
    """(n,) S16: XXH3 of each name in 128 bits; null has that of no text."""
    joined = b"".join(xxhash.xxh3_128_digest(b"\xff" if name is None else name.encode()) for name in names)
    return np.frombuffer(joined, dtype=DIGEST)


def value_hashes(table: pa.Table) -> np.ndarray:
    """(n, c) uint64: XXH3 of each value, one column for each of the table's."""
    columns = [
        [xxhash.xxh3_64_intdigest(repr(value).encode()) for value in column.to_pylist()] for column in table.columns
    ]
    return np.array(columns, dtype=np.uint64).reshape(table.num_columns, table.num_rows).T


def compared_columns(ref: ShardRef) -> list[str]:
    """The columns of a published shard that are compared: all that say something of the image but its bytes."""
    return [name for name in read_schema(ref).names if name not in NOT_COMPARED]


def read_rows(refs: list[ShardRef], columns: list[str]) -> Rows:
    """The images of these published shards."""
    names, values = [np.zeros(0, DIGEST)], [np.zeros((0, len(columns)), np.uint64)]
    for ref in refs:
        table = read_table(ref, ["image_id", *columns])
        names.append(digests(table["image_id"].to_pylist()))
        values.append(value_hashes(table.select(columns)))
    images, first = np.unique(np.concatenate(names), return_index=True)
    return Rows(images, np.concatenate(values)[first])


class Wanted:
    """Images whose fates are looked up in a ledger: by their bytes, or else by the candidate's source and key.

    Memory: 50 bytes for each image, and some 500 for each that is found.
    """

    def __init__(self, images: list[dict[str, Any]]) -> None:
        """images: their image_id, and source and key where these are known."""
        self._by_bytes = _Index(image["image_id"] for image in images)
        self._by_name = _Index(_name(image.get("source"), image.get("key")) for image in images)
        self._found: dict[int, tuple[int, dict[str, Any]]] = {}

    def look(self, ledger: pa.Table) -> None:
        """Some rows of a ledger, with at least image_id, source, key, state and reason."""
        ids, sources, keys = (ledger[name].to_pylist() for name in ("image_id", "source", "key"))
        self._note(ledger, self._by_bytes.places(ids), is_bytes=True)
        self._note(ledger, self._by_name.places(map(_name, sources, keys)), is_bytes=False)

    def _note(self, ledger: pa.Table, images: np.ndarray, *, is_bytes: bool) -> None:
        hits = np.flatnonzero(images >= 0)
        for image, row in zip(images[hits].tolist(), ledger.take(pa.array(hits)).to_pylist(), strict=True):
            rank = (row["state"] != "kept") + (row["reason"] == EXACT_DUPLICATE) if is_bytes else BY_NAME
            if image not in self._found or rank < self._found[image][0]:
                self._found[image] = (rank, row)

    def fate(self, image: int) -> dict[str, Any] | None:
        """What the ledger says of an image, by its number; of several candidates with its bytes, what it says of the
        one that got furthest: published, or else dropped for another reason than the bytes of an equal one."""
        return self._found[image][1] if image in self._found else None


class _Index:
    """The number of each of some names; of equal names that of the first."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names, self._numbers = np.unique(digests(names), return_index=True)

    def places(self, names: Iterable[str | None]) -> np.ndarray:
        """(m,) int64: the number of each of these names, -1 if it has none."""
        found = place(self._names, digests(names))
        return np.where(found >= 0, np.append(self._numbers, -1)[found], -1)


def _name(source: str | None, key: str | None) -> str | None:
    return None if key is None else f"{source or ''}\0{key}"
