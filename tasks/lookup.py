"""Looking up: the rows of a dataset that have an image id, without looking at all of them.

Ids are put into order by a hash of 8 bytes. Cost: one pass over them, then 12 bytes of memory a row, 28 while they are
put into order; measured with 4 x 10^6 on one core: 1.1 s, then 0.1 ms for an id.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

DIGITS = 32  # of the image id of a picture
FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93], np.uint64)


class Ids:
    """Where the rows of every image id are. tables: (position of the first row, table) of all rows, in their order."""

    def __init__(self, rows: int, tables: Iterable[tuple[int, pa.Table]]) -> None:
        keys, places = np.empty(rows, np.uint64), np.empty(rows, np.int64 if rows >> 32 else np.uint32)
        end = 0
        for first, table in tables:
            column = table["image_id"].combine_chunks()
            known = pc.indices_nonzero(column.is_valid()).to_numpy()
            keys[end : end + len(known)] = keys_of(column.drop_null())
            places[end : end + len(known)] = known + first
            end += len(known)
        order = np.argsort(keys[:end], kind="stable")
        self._keys, self._places = keys[:end][order], places[:end][order]

    def positions(self, image_id: str, most: int) -> list[int]:
        """Ascending positions that may have this id; all that have it, up to `most`."""
        (key,) = keys_of(pa.array([image_id]))
        start = int(np.searchsorted(self._keys, key, side="left"))
        end = int(np.searchsorted(self._keys[start : start + most], key, side="right"))
        return self._places[start : start + end].tolist()


def keys_of(ids: pa.Array) -> np.ndarray:
    """(n,) uint64 of n ids without null: the same for the same id, and hardly ever for another."""
    is_usual = pc.equal(pc.binary_length(ids), DIGITS)
    usual = ids.filter(is_usual).cast(pa.binary()).cast(pa.binary(DIGITS))
    keys, mask = np.empty(len(ids), np.uint64), is_usual.to_numpy(zero_copy_only=False)
    words = np.frombuffer(usual.buffers()[1], "<u8")[4 * usual.offset :][: 4 * len(usual)].reshape(-1, 4)
    keys[mask] = np.bitwise_xor.reduce(words * FACTORS, axis=1)
    others = ids.filter(pc.invert(is_usual)).to_pylist()  # as a root over vectors can have them
    keys[~mask] = [int.from_bytes(hashlib.blake2b(one.encode(), digest_size=8).digest(), "little") for one in others]
    return keys
