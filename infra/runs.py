"""Sorted runs: shards whose rows are in the order of a key, so that a range of keys is read without the rest.

Such a shard is an ordinary Arrow stream. Its batches end where a key ends, and beside it lies where each of them begins
in the file: a range of keys is one read of that index, and one of neighbouring bytes.
"""

import io
from typing import Self

import numpy as np
import pyarrow as pa

from lvd.infra import metering
from lvd.infra.shards import ShardRef
from lvd.infra.storage import Storage
from lvd.infra.writing import Shard

BATCH_ROWS = 1024  # or more, where a key has more


class SortedRun:
    """The rows of a shard that is being written, in the order of a column of integers, and its index.

    A context manager, inside that of the shard: it ends by writing the index.
    """

    def __init__(self, ref: ShardRef, shard: Shard, key: str) -> None:
        self._ref, self._shard, self._key = ref, shard, key
        self._keys: list[int] = []
        self._offsets = [shard.kept.position]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._write_index()

    def keep(self, table: pa.Table) -> None:
        """More rows. Their keys: ascending, and all above those of the call before."""
        if not len(table):
            return
        keys, rows = table[self._key].to_numpy(), table.combine_chunks()
        begins = cuts(keys)
        for begin, end in zip(begins, np.append(begins, len(keys))[1:], strict=True):
            self._shard.keep_batch(rows.slice(int(begin), int(end - begin)))
            self._offsets.append(self._shard.kept.position)
        self._keys += keys[begins].tolist()

    def _write_index(self) -> None:
        file = io.BytesIO()
        keys, offsets = (np.array(values, dtype=np.int64) for values in (self._keys, self._offsets))
        schema = np.frombuffer(self._shard.kept.schema.remove_metadata().serialize(), dtype=np.uint8)
        np.savez(file, key=self._key, keys=keys, offsets=offsets, schema=schema)
        Storage(self._ref.root).write_bytes(self._ref.name("index", "npz"), file.getvalue())


def cuts(keys: np.ndarray) -> np.ndarray:
    """(b,) int64: the first row of each batch, which has BATCH_ROWS at least and ends where a key ends.

    keys: (n,), at least one.
    """
    ends = np.append(np.flatnonzero(np.diff(keys)) + 1, len(keys))
    begins = [0]
    while begins[-1] + BATCH_ROWS < len(keys):
        begins.append(int(ends[np.searchsorted(ends, begins[-1] + BATCH_ROWS)]))
    return np.array([begin for begin in begins if begin < len(keys)], dtype=np.int64)


def read_range(ref: ShardRef, first: int, stop: int) -> pa.Table:
    """The rows whose keys are in [first, stop), in their order. Cost: their batches are read whole."""
    storage = Storage(ref.root)
    with np.load(io.BytesIO(storage.read_bytes(ref.name("index", "npz")))) as index:
        key, keys, offsets = str(index["key"]), index["keys"], index["offsets"]
        schema = pa.ipc.read_schema(pa.py_buffer(index["schema"]))
    # A batch that begins at a key holds all of it, so the one before the first key above `first` is the earliest.
    begin = max(0, int(np.searchsorted(keys, first, side="right")) - 1)
    end = int(np.searchsorted(keys, stop, side="left"))
    if begin >= end or first >= stop:
        return schema.empty_table()
    start, length = int(offsets[begin]), int(offsets[end] - offsets[begin])
    reader, batches = pa.BufferReader(storage.read_span(ref.name(), start, length)), []
    while reader.tell() < reader.size():
        message = pa.ipc.read_message(reader)
        if message.type == "record batch":  # the stream's head comes with the first of them
            batches.append(pa.ipc.read_record_batch(message, schema))
    metering.count("read_bytes", sum(batch.nbytes for batch in batches))
    table = pa.Table.from_batches(batches, schema=schema)
    begin, end = np.searchsorted(table[key].to_numpy(), (first, stop))
    return table.slice(begin, end - begin)
