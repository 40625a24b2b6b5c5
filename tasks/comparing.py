"""Published rows of two versions beside each other: which are in one only, and which columns of the others differ."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash
from pydantic import BaseModel

from lvd.infra.shards import ShardRef, read_table

DIGEST = np.dtype("S16")
NOT_COMPARED = ("image_id", "image", "row")  # row: where a run over vectors has it, no property of the image
EXACT_DUPLICATE = "exact_duplicate"
ABSENT, REPLACED = "absent", "replaced"
NOTHING = 9  # the rank of what no candidate was found for


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


def compared(names: list[str]) -> list[str]:
    """The columns of published shards that are compared: all that say something of the image but its bytes."""
    return [name for name in names if name not in NOT_COMPARED]


def read_rows(refs: list[ShardRef], columns: list[str]) -> Rows:
    """The images of these published shards."""
    names, values = [np.zeros(0, DIGEST)], [np.zeros((0, len(columns)), np.uint64)]
    for ref in refs:
        table = read_table(ref, ["image_id", *columns])
        names.append(digests(texts(table["image_id"])))
        values.append(value_hashes(table.select(columns)))
    images, first = np.unique(np.concatenate(names), return_index=True)
    return Rows(images, np.concatenate(values)[first])


class Fate(BaseModel, frozen=True):
    """What became of an image in the version that does not have it.

    state: dropped or failed, as the ledger has it; absent: it is no candidate there; replaced: the candidate of its
    name has other bytes, those of `because_of`.
    """

    state: str
    stage: str | None = None
    reason: str | None = None
    because_of: str | None = None

    @property
    def words(self) -> str:
        """The state and the reason, without the image that is the cause."""
        if self.state == ABSENT:
            return "no candidate"
        if self.state == REPLACED:
            return "other bytes under its name"
        return f"{self.state} at {self.stage}: {self.reason}"


class Wanted:
    """Images whose fates are looked up in a ledger: by their bytes, or else by the candidate's source and key.

    Of several candidates with its bytes the one tells that got furthest: published, or else dropped for another reason
    than the bytes of an equal one. Memory: 75 bytes for each image; with causes some 150 more for each that has one.
    """

    def __init__(self, images: pa.Table, *, has_causes: bool = False) -> None:
        """images: image_id, source and key. has_causes: `because_of` is kept."""
        self._by_bytes, self._by_name = _Said(digests(texts(images["image_id"]))), _Said(digests(_names(images)))
        self._has_causes = has_causes
        self.kinds = [Fate(state=ABSENT)]  # the different fates, without their causes
        self._numbers = {self.kinds[0]: 0}

    def look(self, ledger: pa.Table) -> None:
        """Some rows of a ledger, with at least image_id, source, key, state, stage, reason and because_of."""
        for number, row in self._by_bytes.among(ledger, digests(texts(ledger["image_id"]))):
            fate = Fate(state=row["state"], stage=row["stage"], reason=row["reason"])
            rank = (row["state"] != "kept") + (row["reason"] == EXACT_DUPLICATE)
            self._note(self._by_bytes, number, rank, fate, row["because_of"])
        for number, row in self._by_name.among(ledger, digests(_names(ledger))):
            if row["image_id"] is None:
                fate = Fate(state=row["state"], stage=row["stage"], reason=row["reason"])
                self._note(self._by_name, number, 0, fate, row["because_of"])
            else:
                self._note(self._by_name, number, 0, Fate(state=REPLACED), row["image_id"])

    def _note(self, said: "_Said", number: int, rank: int, fate: Fate, cause: str | None) -> None:
        if rank < said.ranks[number]:
            if fate not in self._numbers:
                self._numbers[fate] = len(self.kinds)
                self.kinds.append(fate)
            said.ranks[number], said.fates[number] = rank, self._numbers[fate]
            if self._has_causes:
                said.causes[number] = cause

    def fates(self) -> np.ndarray:
        """(n,) int32: which of the kinds each image's is."""
        own, named = self._by_bytes, self._by_name
        is_known = own.ranks[own.places] < NOTHING
        return np.where(is_known, own.fates[own.places], named.fates[named.places])

    def fate(self, image: int) -> Fate:
        """That of one image, by its number, with its cause."""
        said = self._by_bytes
        if said.ranks[said.places[image]] == NOTHING:
            said = self._by_name
        number = int(said.places[image])
        return self.kinds[said.fates[number]].model_copy(update={"because_of": said.causes.get(number)})


class _Said:
    """What a ledger says of some names, of which several can be equal."""

    def __init__(self, names: np.ndarray) -> None:
        self._names, self.places = np.unique(names, return_inverse=True)
        self.fates, self.ranks = np.zeros(len(self._names), np.int32), np.full(len(self._names), NOTHING, np.int8)
        self.causes: dict[int, str | None] = {}

    def among(self, ledger: pa.Table, names: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        """The rows whose names are among these, each with the number of its name."""
        found = place(self._names, names)
        hits = np.flatnonzero(found >= 0)
        return zip(found[hits].tolist(), ledger.take(pa.array(hits)).to_pylist(), strict=True)


def texts(column: pa.ChunkedArray) -> Iterator[str | None]:
    """The values of a column, one chunk of them in memory at a time."""
    return (text for chunk in column.chunks for text in chunk.to_pylist())


def _names(rows: pa.Table) -> Iterator[str | None]:
    """The source and the key of each as one name; null for one without a key."""
    pairs = zip(texts(rows["source"]), texts(rows["key"]), strict=True)
    return (None if key is None else f"{source or ''}\0{key}" for source, key in pairs)
