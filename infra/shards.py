"""Arrow shards: where a stage's rows lie on storage, and how they are read."""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from lvd.infra import metering
from lvd.infra.errors import InputError, ShardError
from lvd.infra.storage import Storage

SCHEMA_VERSION = "1"
READERS = 16  # small requests to storage that are on their way at once


class ShardRef(BaseModel, frozen=True):
    """Where one shard lies. References cross Prefect; arrays and images never do."""

    root: str
    directory: str  # below the root: stage/fingerprint
    index: int
    count: int
    first_row: int = 0  # rows of the same dataset in the shards before this one
    base: int = 0  # what makes a row of its partition a row of the pool
    rows: int = -1  # -1 until it is written

    def name(self, kind: str = "data", suffix: str = "arrow") -> str:
        return f"{self.directory}/{kind}-{self.index:05d}-of-{self.count:05d}.{suffix}"


class StageDir(BaseModel, frozen=True):
    """One stage's output: `{root}/{stage}/{fingerprint}`."""

    root: str
    stage: str
    fingerprint: str

    @property
    def directory(self) -> str:
        return f"{self.stage}/{self.fingerprint}"

    @property
    def storage(self) -> Storage:
        return Storage(self.root)

    def is_complete(self) -> bool:
        return self.storage.exists(f"{self.directory}/stage.json")

    def account(self) -> dict[str, Any]:
        """stage.json: configuration, inputs, rows in, kept and dropped by reason, seconds, peak memory."""
        return self.storage.read_json(f"{self.directory}/stage.json")

    def planned(self, count: int) -> list[ShardRef]:
        return [ShardRef(root=self.root, directory=self.directory, index=i, count=count) for i in range(count)]

    def shards(self, base: int = 0) -> list[ShardRef]:
        """The shards of a complete stage, with their rows, wherever they lie."""
        account = self.account()
        rows, first_row, refs = account["shard_rows"], 0, []
        lent = [ShardRef(root=self.root, **one) for one in account.get("shards", ())]
        for ref, count in zip(lent or self.planned(len(rows)), rows, strict=True):
            refs.append(ref.model_copy(update={"first_row": first_row, "rows": count, "base": base}))
            first_row += count
        return refs

    def missing(self, count: int) -> list[ShardRef]:
        """The planned shards that are not on storage yet."""
        there = set(self.storage.names(self.directory))
        return [ref for ref in self.planned(count) if ref.name().rsplit("/", 1)[-1] not in there]


def is_written(ref: ShardRef) -> bool:
    """Whether the shard is on storage, and so done."""
    return Storage(ref.root).exists(ref.name())


def unwritten(refs: list[ShardRef]) -> list[ShardRef]:
    """Those of these shards, whatever their directories, that are not on storage yet."""
    with ThreadPoolExecutor(READERS) as readers:
        return [ref for ref, there in zip(refs, readers.map(is_written, refs), strict=True) if not there]


def read_batches(ref: ShardRef, columns: list[str] | None = None, kind: str = "data") -> Iterator[pa.RecordBatch]:
    """The shard's record batches, one in memory at a time.

    Raises InputError if the file was written with another schema version, ShardError if it ends before its last row.
    """
    rows, storage = 0, Storage(ref.root)
    with storage.open(ref.name(kind)) as file, pa.ipc.open_stream(file) as stream:
        version = (stream.schema.metadata or {}).get(b"lvd_schema_version", b"none").decode()
        if version != SCHEMA_VERSION:
            raise InputError(
                f"{ref.root}/{ref.name(kind)}: schema version must be {SCHEMA_VERSION}, was {version}: "
                "read it with the lvd that wrote it, or use another root"
            )
        for batch in stream:
            chosen = batch if columns is None else batch.select(columns)
            metering.count("read_bytes", chosen.nbytes)
            rows += batch.num_rows
            yield chosen if storage.is_local or 2 * chosen.nbytes > batch.nbytes else _on_its_own(chosen)
    if kind == "data" and ref.rows not in (-1, rows):  # Arrow takes a stream that is cut between two messages as whole
        raise ShardError(
            f"{ref.root}/{ref.name()} must hold {ref.rows} rows, held {rows}: remove it, and it is computed anew"
        )


def _on_its_own(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch in memory of its own: streamed columns are parts of one buffer, which stays as long as one of them."""
    return pa.ipc.read_record_batch(batch.serialize(), batch.schema)


def read_table(ref: ShardRef, columns: list[str] | None = None, kind: str = "data") -> pa.Table:
    """The named columns of a whole shard. Not for the column `image`."""
    if batches := [batch.replace_schema_metadata(None) for batch in read_batches(ref, columns, kind)]:
        return pa.Table.from_batches(batches)
    schema = read_schema(ref, kind)
    return (schema if columns is None else pa.schema([schema.field(name) for name in columns])).empty_table()


def read_schema(ref: ShardRef, kind: str = "data") -> pa.Schema:
    """The columns of a shard; reads its head only."""
    with Storage(ref.root).open(ref.name(kind)) as file, pa.ipc.open_stream(file) as stream:
        return stream.schema.remove_metadata()


def read_column(refs: list[ShardRef], name: str, kind: str = "data") -> pa.ChunkedArray:
    """One small column over all shards. Memory: that column."""
    tables = [read_table(ref, [name], kind) for ref in refs]
    return pa.concat_tables(tables).column(name) if tables else pa.chunked_array([], type=pa.null())


def with_large_texts(table: pa.Table) -> pa.Table:
    """The table with texts that may be more than 2 GB together, which Arrow cannot put into another order else."""
    large = {pa.string(): pa.large_string(), pa.list_(pa.string()): pa.list_(pa.large_string())}
    return table.cast(pa.schema([field.with_type(large.get(field.type, field.type)) for field in table.schema]))


def gather_rows(refs: list[ShardRef], positions: np.ndarray, columns: list[str]) -> pa.Table:
    """The rows at these positions of all shards together, in the order asked, texts as `with_large_texts` has them.

    Memory: one shard, and the result.
    """
    order = np.argsort(positions, kind="stable")
    wanted, first, parts = positions[order], 0, []
    for ref in refs:
        inside = wanted[np.searchsorted(wanted, first) : np.searchsorted(wanted, first + ref.rows)]
        if len(inside):
            parts.append(read_table(ref, columns).take(pa.array(inside - first)))
        first += ref.rows
    if not parts:
        return read_table(refs[0], columns).slice(0, 0)
    back = np.empty(len(order), dtype=np.int64)
    back[order] = np.arange(len(order))
    return with_large_texts(pa.concat_tables(parts)).take(pa.array(back))


def pool_rows(refs: list[ShardRef]) -> np.ndarray:
    """(n,) int64: the pool row of every row of a sidecar, ascending."""
    parts = [read_table(ref, ["row"])["row"].to_numpy() + ref.base for ref in refs]
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts])


def fingerprint(*parts: Any) -> str:
    """32 hex characters that change when any part changes. Parts are JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]
