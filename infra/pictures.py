"""A shard read without its pictures, and the pictures read by where they lie.

An Arrow stream is a row of messages: a head that says how long each buffer of the body is, then the body. The one
buffer that holds the bytes of the images is not read, so that of a shard of 1.1 GB some megabytes travel; with the
place of every image in the file, any of them is one read of its own later, in any order.
"""

import struct
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pyarrow as pa

from lvd.infra import metering
from lvd.infra.errors import ShardError
from lvd.infra.shards import ShardRef
from lvd.infra.storage import Storage

IMAGE, BYTES = "image", "bytes"
OFFSET, SIZE = "offset", "size"  # of an image's bytes in the file of its shard
READERS = 16
SPANS_AHEAD = 2 * READERS  # memory: so many spans
SPAN_BYTES = 4 << 20  # of neighbouring images that are read at once


def without_pictures(ref: ShardRef) -> Iterator[pa.Table]:
    """Batch by batch, the columns of a shard without `image`, and in its place `offset` and `size` of its bytes.

    A batch holds views: take or copy what is to stay. Memory: the small columns of one batch.
    Raises ShardError if the file ends before its last row.
    """
    rows = 0
    with Storage(ref.root).open(ref.name()) as file:
        schema = pa.ipc.read_schema(file).remove_metadata()
        while (table := _next_batch(file, schema)) is not None:
            rows += len(table)
            yield table
    if ref.rows not in (-1, rows):
        raise ShardError(f"{ref.root}/{ref.name()} must hold {ref.rows} rows, held {rows}")


def _next_batch(file: pa.NativeFile, schema: pa.Schema) -> pa.Table | None:
    """The batch that begins where the file stands, or None at the end.

    The body is laid out in zeroed memory, of which the operating system backs only what is written to.
    """
    start, prefix = file.tell(), file.read(8)
    length = struct.unpack("<i", prefix[4:])[0] if len(prefix) == 8 else 0
    if not length:
        return None
    head = prefix + file.read(length)
    body = start + len(head)
    memory = np.zeros(len(head) + file.size() - body, dtype=np.uint8)
    memory[: len(head)] = np.frombuffer(head, dtype=np.uint8)
    message = pa.ipc.read_message(pa.BufferReader(pa.py_buffer(memory)))
    batch = pa.ipc.read_record_batch(message, schema)
    _, offsets, data = batch.column(schema.get_field_index(IMAGE)).field(BYTES).buffers()
    begin = data.address - message.body.address if data else message.body.size
    for first, stop in ((0, begin), (begin + (data.size if data else 0), message.body.size)):
        file.seek(body + first)
        part = np.frombuffer(file.read(stop - first), dtype=np.uint8)
        if len(part) != stop - first:
            return None  # the file ends here
        memory[len(head) + first : len(head) + stop] = part
        metering.count("read_bytes", len(part))
    file.seek(body + message.body.size)
    ends = np.frombuffer(offsets, dtype=np.int32)[: batch.num_rows + 1].astype(np.int64)
    table = pa.Table.from_batches([batch]).drop_columns([IMAGE])
    return table.append_column(OFFSET, pa.array(body + begin + ends[:-1])).append_column(SIZE, pa.array(np.diff(ends)))


def pictures(refs: list[ShardRef], shard: np.ndarray, offset: np.ndarray, size: np.ndarray) -> Iterator[bytes]:
    """The bytes of images in the order asked, read by several threads ahead of it; neighbours in a file at once.

    refs: shards of one root; shard: (n,) which of them; offset, size: (n,) as `without_pictures` gives them.
    Memory: SPANS_AHEAD spans of SPAN_BYTES, or of one image where that is larger.
    """
    storage = Storage(refs[0].root) if refs else None
    bounds = [*spans(shard, offset, size).tolist(), len(shard)]

    def read(begin: int, end: int) -> bytes:
        length = int(offset[end - 1] + size[end - 1] - offset[begin])
        name = refs[shard[begin]].name()
        return bytes(memoryview(storage.read_span(name, int(offset[begin]), length))) if length else b""

    waiting: deque[tuple[int, int, Future[bytes]]] = deque()
    left = pairwise(bounds)
    with ThreadPoolExecutor(READERS) as readers:
        try:
            while True:
                while len(waiting) < SPANS_AHEAD and (span := next(left, None)) is not None:
                    waiting.append((*span, readers.submit(read, *span)))
                if not waiting:
                    return
                begin, end, future = waiting.popleft()
                data = future.result()
                metering.count("read_bytes", len(data))
                for row in range(begin, end):
                    first = int(offset[row] - offset[begin])
                    yield data[first : first + int(size[row])]
        finally:
            readers.shutdown(wait=False, cancel_futures=True)


def spans(shard: np.ndarray, offset: np.ndarray, size: np.ndarray) -> np.ndarray:
    """(m,) int64: the first image of every run that follows one another in a file and has SPAN_BYTES at most."""
    begins, total = [], 0
    end = np.concatenate([[-1], (offset + size)[:-1]])
    follows = (offset == end) & (shard == np.concatenate([[-1], shard[:-1]]))
    for row, (is_next, length) in enumerate(zip(follows.tolist(), size.tolist(), strict=True)):
        if not is_next or total + length > SPAN_BYTES:
            begins.append(row)
            total = 0
        total += length
    return np.array(begins, dtype=np.int64)
