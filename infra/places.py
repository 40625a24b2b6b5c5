"""Where the batches of a shard and their columns lie in its file, so that some are read without the others.

A shard is an Arrow stream: messages one after another, each with its length in its head. To find them, only the heads
are read: a request to an object store for each batch, once. Source: the Arrow columnar format, "encapsulated message
format"; flatbuffers' tables.
"""

import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from lvd.infra import metering
from lvd.infra.shards import READERS, ShardRef, read_schema, read_table
from lvd.infra.storage import Storage

HEAD_BYTES = 8 << 10  # read for a head; one that is longer is read again
KEPT_BATCHES, KEPT_SHARDS = 3, 256  # of an object store; a batch of images has up to 32 MiB
NEAR_BYTES = 64 << 10  # what lies between two columns is read with them if it is less
CONTINUATION = 0xFFFFFFFF
BODY_LENGTH, HEADER, LENGTH, BUFFERS = 3, 2, 0, 2  # fields of Message and of RecordBatch, by their numbers there


class Place(NamedTuple):
    """Where a batch is in the file, and which rows of the shard it has."""

    start: int
    length: int
    first_row: int
    rows: int


class Batches:
    """Single batches of shards. Of an object store the last few, and where those of their shards lie, are kept."""

    def __init__(self) -> None:
        self._places: OrderedDict[ShardRef, list[Place]] = OrderedDict()
        self._read: OrderedDict[tuple[ShardRef, Place], pa.RecordBatch] = OrderedDict()
        self._reading = threading.Lock()

    def holding(self, ref: ShardRef, row: int) -> tuple[pa.RecordBatch, int]:
        """The batch with that row of the shard, and the row's place in it. Raises IndexError if there is none."""
        if Storage(ref.root).is_local:
            place = holding(places_of(ref), row)
            return read_batch(ref, place), row - place.first_row
        with self._reading:  # who waits here mostly asks for what is being read
            if ref not in self._places:
                self._places[ref] = places_of(ref)
            place = holding(self._places[ref], row)
            if (ref, place) not in self._read:
                self._read[ref, place] = read_batch(ref, place)
            batch = self._read[ref, place]
            for kept, most in ((self._places, KEPT_SHARDS), (self._read, KEPT_BATCHES)):
                while len(kept) > most:
                    kept.popitem(last=False)
            return batch, row - place.first_row


def holding(places: list[Place], row: int) -> Place:
    """The place of the batch with that row. Raises IndexError if there is none."""
    found = next((place for place in places if place.first_row <= row < place.first_row + place.rows), None)
    if found is None:
        raise IndexError(f"row must be in [0, {sum(place.rows for place in places)}), was {row}")
    return found


def read_batch(ref: ShardRef, place: Place) -> pa.RecordBatch:
    """The batch there."""
    span = Storage(ref.root).read_span(ref.name(), place.start, place.length)
    metering.count("read_bytes", place.length)
    return pa.ipc.read_record_batch(pa.ipc.read_message(span), read_schema(ref))


def places_of(ref: ShardRef) -> list[Place]:
    """Every batch of a shard that has some, in order."""
    return [place for place, _ in heads_of(ref)]


def heads_of(ref: ShardRef) -> Iterator[tuple[Place, bytes]]:
    """Every batch of a shard with its message, which is what says where its columns are."""
    storage, start, first_row = Storage(ref.root), 0, 0
    while first_row < ref.rows:
        head = span_from(storage, ref, start, 8)
        continued, size = struct.unpack_from("<II", head)
        if continued != CONTINUATION or size == 0:
            raise IndexError(f"{ref.name()} must hold {ref.rows} rows, its batches end after {first_row}")
        if len(head) < 8 + size:
            head = span_from(storage, ref, start, 8 + size)
        rows, body = measures_of(head[8 : 8 + size])
        length = 8 + size + body
        if rows is not None:
            yield Place(start, length, first_row, rows), head[: 8 + size]
            first_row += rows
        start += length


def read_columns(ref: ShardRef, names: list[str]) -> pa.Table:
    """The named columns of a whole shard, as `read_table`; an object store is not asked for large ones beside them.

    Memory: the named columns. Cost: three requests for each batch instead of all of its bytes.
    """
    schema = None if Storage(ref.root).is_local else read_schema(ref)
    if schema is None or not any(is_large(field.type) for field in schema if field.name not in names):
        return read_table(ref, names)
    with ThreadPoolExecutor(READERS) as readers:
        batches = list(readers.map(lambda found: _columns_at(ref, schema, names, *found), heads_of(ref)))
    return pa.Table.from_batches(batches, schema=pa.schema([schema.field(name) for name in names]))


def is_large(kind: pa.DataType) -> bool:
    """Whether a value of this type may have kilobytes: bytes, images, vectors."""
    return pa.types.is_binary(kind) or pa.types.is_struct(kind) or pa.types.is_fixed_size_list(kind)


def _columns_at(ref: ShardRef, schema: pa.Schema, names: list[str], place: Place, head: bytes) -> pa.RecordBatch:
    """These columns of one batch; where the others are, there is nothing but room that is never touched."""
    storage, whole = Storage(ref.root), np.zeros(place.length, dtype=np.uint8)
    whole[: len(head)] = np.frombuffer(head, dtype=np.uint8)
    for start, end in spans_of(schema, names, buffers_of(head[8:])):
        span = storage.read_span(ref.name(), place.start + len(head) + start, end - start)
        whole[len(head) + start : len(head) + end] = np.frombuffer(span, dtype=np.uint8)
        metering.count("read_bytes", end - start)
    batch = pa.ipc.read_record_batch(pa.ipc.read_message(pa.py_buffer(whole)), schema)
    return batch.select(names).take(pa.array(np.arange(place.rows)))


def spans_of(schema: pa.Schema, names: list[str], buffers: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """(start, end) in the body of a batch of the named columns; those that are near one another are one."""
    spans, places = [], iter(buffers)
    for field in schema:
        own = [next(places) for _ in pa.array([], field.type).buffers()]
        for start, length in own if field.name in names else ():
            if spans and start - spans[-1][1] < NEAR_BYTES:
                spans[-1] = (spans[-1][0], start + length)
            elif length:
                spans.append((start, start + length))
    return spans


def span_from(storage: Storage, ref: ShardRef, start: int, least: int) -> bytes:
    """Bytes from a place on: HEAD_BYTES or as many as asked for, fewer where the file ends."""
    return storage.read_span(ref.name(), start, max(HEAD_BYTES, least)).to_pybytes()


def measures_of(message: bytes) -> tuple[int | None, int]:
    """(rows, bytes of the body) of a message by its flatbuffer; rows is None for what is no batch, as the schema."""
    root = struct.unpack_from("<I", message)[0]
    at = field(message, root, BODY_LENGTH)
    body = struct.unpack_from("<q", message, at)[0] if at else 0
    kind = field(message, root, 1)
    if kind is None or message[kind] != 3:  # MessageHeader.RecordBatch
        return None, body
    batch = batch_in(message)
    at = field(message, batch, LENGTH)
    return (struct.unpack_from("<q", message, at)[0] if at else 0), body


def buffers_of(message: bytes) -> list[tuple[int, int]]:
    """(start in the body, length) of every buffer of a batch, in the order of the columns and of what is in them."""
    at = field(message, batch_in(message), BUFFERS)
    start = at + struct.unpack_from("<I", message, at)[0]
    count = struct.unpack_from("<I", message, start)[0]
    return [struct.unpack_from("<qq", message, start + 4 + 16 * number) for number in range(count)]


def batch_in(message: bytes) -> int:
    """Where the table of a batch is in its message."""
    header = field(message, struct.unpack_from("<I", message)[0], HEADER)
    return header + struct.unpack_from("<I", message, header)[0]


def field(buffer: bytes, table: int, number: int) -> int | None:
    """Where a field of a flatbuffer's table lies; None if it is left out."""
    vtable = table - struct.unpack_from("<i", buffer, table)[0]
    if 4 + 2 * number >= struct.unpack_from("<H", buffer, vtable)[0]:
        return None
    offset = struct.unpack_from("<H", buffer, vtable + 4 + 2 * number)[0]
    return table + offset if offset else None
