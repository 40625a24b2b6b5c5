"""Arrow shards: how a stage's rows, its rejects and its accounts lie on storage."""

import hashlib
import json
import logging
import os
import resource
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from lvd.infra import metering
from lvd.infra.errors import InputError, ShardError
from lvd.infra.logs import fields
from lvd.infra.storage import Storage

logger = logging.getLogger("lvd")

SCHEMA_VERSION = "1"
BATCH_ROWS = 256
BATCH_BYTES = 32 << 20
REJECT_BYTES = 64 << 10
READERS = 16  # small requests to storage that are on their way at once
NODE_VARIABLE = "LVD_NODE"
FEATURES = b"huggingface"

REJECTS = pa.schema(
    [
        pa.field("key", pa.string()),  # the URL or source path of the candidate
        pa.field(
            "row", pa.int64()
        ),  # its row in the input, counted over all shards of the partition; -1 if it has none
        pa.field("image_id", pa.string()),
        pa.field("state", pa.string()),  # dropped or failed
        pa.field("reason", pa.string()),
        pa.field("error", pa.string()),
        pa.field("bytes", pa.binary()),  # the first 64 KiB of what came
    ]
)


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


class ShardWriter:
    """Rows in, batches out: flushed by count and by bytes, so that memory does not follow the shard."""

    def __init__(self, sink: pa.ipc.RecordBatchStreamWriter, schema: pa.Schema, file: pa.OSFile) -> None:
        self._sink, self._file, self.schema = sink, file, schema
        self._pending: list[dict[str, Any]] = []
        self._pending_bytes = 0
        self.rows = 0

    def write(self, row: dict[str, Any], num_bytes: int = 0) -> None:
        self._pending.append(row)
        self._pending_bytes += num_bytes
        self.rows += 1
        if len(self._pending) >= BATCH_ROWS or self._pending_bytes >= BATCH_BYTES:
            self.flush()

    def write_table(self, table: pa.Table) -> None:
        """A whole table of the shard's columns, cut into batches of a fixed number of rows."""
        self.flush()
        self.rows += table.num_rows
        chosen = table.select(self.schema.names)
        for start in range(0, len(chosen), BATCH_ROWS * 16):
            some = chosen.slice(start, BATCH_ROWS * 16).cast(self.schema).combine_chunks()
            for batch in some.to_batches():
                self._sink.write_batch(batch)

    def write_batch(self, table: pa.Table) -> None:
        """Some rows of the shard's columns as one batch of their own."""
        self.flush()
        self.rows += table.num_rows
        for batch in table.select(self.schema.names).cast(self.schema).combine_chunks().to_batches():
            self._sink.write_batch(batch)

    @property
    def position(self) -> int:
        """Where in the file the next batch begins."""
        self.flush()
        return self._file.tell()

    def flush(self) -> None:
        if self._pending:
            self._sink.write_batch(pa.RecordBatch.from_pylist(self._pending, schema=self.schema))
            self._pending, self._pending_bytes = [], 0


class Shard:
    """One shard being written: rows that are kept, rows that are rejected, and the account of both."""

    def __init__(self, kept: ShardWriter, rejected: ShardWriter) -> None:
        self.kept, self._rejected = kept, rejected
        self.rows_in = 0
        self.reasons: Counter[str] = Counter()
        self.cost: Counter[str] = Counter()  # read_bytes, written_bytes; of models also seconds
        self.is_on_gpu = False  # a GPU was held for it all the time
        self.notes: dict[str, Any] = {}

    def keep(self, row: dict[str, Any], num_bytes: int = 0) -> None:
        self.rows_in += 1
        self.kept.write(row, num_bytes)

    def keep_table(self, table: pa.Table) -> None:
        self.rows_in += table.num_rows
        self.kept.write_table(table)

    def keep_batch(self, table: pa.Table) -> None:
        self.rows_in += table.num_rows
        self.kept.write_batch(table)

    def reject(
        self,
        key: str,
        reason: str,
        *,
        state: str = "failed",
        row: int = -1,
        image_id: str | None = None,
        error: str = "",
        data: bytes = b"",
    ) -> None:
        self.rows_in += 1
        self.reasons[reason] += 1
        values = {
            "key": key,
            "row": row,
            "image_id": image_id,
            "state": state,
            "reason": reason,
            "error": error[:1000],
            "bytes": data[:REJECT_BYTES],
        }
        self._rejected.write(values, len(data))


@contextmanager
def write_shard(ref: ShardRef, schema: pa.Schema, config: dict[str, Any]) -> Iterator[Shard]:
    """A shard to fill. Rejects and account are moved into place first, the data last: a shard that exists is done."""
    storage, started = Storage(ref.root), time.time()
    schema, rejects = identified(with_features(schema), config), identified(REJECTS, config)
    with storage.whole_file(ref.name()) as data_path:
        with storage.whole_file(ref.name("rejects")) as rejects_path:
            with (
                pa.OSFile(str(data_path), "wb") as data_file,
                pa.ipc.new_stream(data_file, schema) as data_sink,
                pa.OSFile(str(rejects_path), "wb") as rejects_file,
                pa.ipc.new_stream(rejects_file, rejects) as rejects_sink,
            ):
                kept, rejected = (
                    ShardWriter(data_sink, schema, data_file),
                    ShardWriter(rejects_sink, rejects, rejects_file),
                )
                shard = Shard(kept, rejected)
                with metering.metered(shard.cost):
                    yield shard
                shard.kept.flush()
                shard._rejected.flush()
            shard.cost["written_bytes"] += data_path.stat().st_size + rejects_path.stat().st_size
        seconds = time.time() - started
        if shard.is_on_gpu:
            shard.cost["gpu_seconds"] += seconds
        account = {
            "rows_in": shard.rows_in,
            "rows": shard.kept.rows,
            "reasons": dict(sorted(shard.reasons.items())),
            "notes": shard.notes,
            "cost": {name: round(amount, 3) for name, amount in sorted(shard.cost.items())},
            "seconds": round(seconds, 3),
            "started_at": round(started, 3),
            "peak_memory_mb": peak_memory_mb(),
            "node": node_name(),
        }
        storage.write_json(ref.name("account", "json"), account)
    log_account(ref, account)


def log_account(ref: ShardRef, account: dict[str, Any]) -> None:
    """One line for one shard that is written."""
    said = {name: account[name] for name in ("rows_in", "rows", "reasons", "seconds", "node")}
    known = {"stage": ref.directory.rsplit("/", 1)[0], "directory": ref.directory, "shard": ref.index}
    logger.info("%s: %s", ref.name(), json.dumps(said), extra=fields(**known, shards=ref.count, **said))


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


def identified(schema: pa.Schema, config: dict[str, Any]) -> pa.Schema:
    """The schema with what identifies its file: the version of the schemas, and the configuration."""
    own = {"lvd_schema_version": SCHEMA_VERSION, "lvd_config": json.dumps(config, sort_keys=True)}
    return schema.with_metadata({**(schema.metadata or {}), **own})


def with_features(schema: pa.Schema) -> pa.Schema:
    """The schema with its features as `datasets` writes them. A schema that has them is returned as it is, so that a
    process which is to start quickly can be handed one, and need not import `datasets`."""
    if schema.metadata and FEATURES in schema.metadata:
        return schema
    from datasets import Features, Image

    features = Features.from_arrow_schema(schema.remove_metadata())
    if "image" in schema.names:
        features["image"] = Image()
    return schema.with_metadata({FEATURES: json.dumps({"info": {"features": features.to_dict()}}, sort_keys=True)})


def fingerprint(*parts: Any) -> str:
    """32 hex characters that change when any part changes. Parts are JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def commit(
    target: StageDir, count: int, *, config: dict[str, Any], inputs: dict[str, Any], notes: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Closes a stage and returns its stage.json, which is written last; the files before it make it a dataset."""
    refs = target.planned(count)
    files = [ref.name().rsplit("/", 1)[-1] for ref in refs]
    account = _accounted(target, refs, files, {"config": config, "inputs": inputs, "notes": notes or {}})
    target.storage.write_json(f"{target.directory}/stage.json", account)
    return account


def commit_lent(
    target: StageDir, refs: list[ShardRef], *, config: dict[str, Any], inputs: dict[str, Any]
) -> dict[str, Any]:
    """Closes a stage that has no shards of its own: it consists of these, which lie in other directories of its root.

    stage.json names them, so that `shards` finds them; so does state.json, by relative names, which
    `datasets.load_from_disk` follows on a local folder. From elsewhere that copies the folder alone: for there
    data_files.json lists the files by their names below the root. A root that is moved or copied whole stays whole.
    """
    back = "../" * len(target.directory.split("/"))
    account = _accounted(target, refs, [back + ref.name() for ref in refs], {"config": config, "inputs": inputs})
    account["shards"] = [ref.model_dump(include={"directory", "index", "count"}) for ref in refs]
    target.storage.write_json(f"{target.directory}/data_files.json", [ref.name() for ref in refs])
    target.storage.write_json(f"{target.directory}/stage.json", account)
    return account


def _accounted(target: StageDir, refs: list[ShardRef], files: list[str], said: dict[str, Any]) -> dict[str, Any]:
    """What stage.json says of a stage that has these shards; writes what makes it a dataset."""
    storage = target.storage
    with ThreadPoolExecutor(READERS) as readers:
        accounts = list(readers.map(lambda ref: storage.read_json(ref.name("account", "json")), refs))
    with storage.open(refs[0].name()) as file, pa.ipc.open_stream(file) as stream:
        features = json.loads(stream.schema.metadata[FEATURES])["info"]["features"]
    write_dataset_files(storage, target.directory, features, files, target.fingerprint)
    reasons, cost = Counter(), Counter()
    for account in accounts:
        reasons.update(account["reasons"])
        cost.update(account["cost"])
    return {
        "stage": target.stage,
        "fingerprint": target.fingerprint,
        "schema_version": SCHEMA_VERSION,
        "notes": {},
        **said,
        "versions": versions(),
        "rows_in": sum(a["rows_in"] for a in accounts),
        "rows": sum(a["rows"] for a in accounts),
        "shard_rows": [a["rows"] for a in accounts],
        "reasons": dict(sorted(reasons.items())),
        "cost": {name: round(amount, 3) for name, amount in sorted(cost.items())},
        "seconds": round(sum(a["seconds"] for a in accounts), 3),
        "started_at": min((a["started_at"] for a in accounts), default=time.time()),
        "ended_at": round(time.time(), 3),
        "peak_memory_mb": max((a["peak_memory_mb"] for a in accounts), default=0),
        "shard_notes": [a["notes"] for a in accounts] if any(a["notes"] for a in accounts) else [],
    }


def write_dataset_files(
    storage: Storage, directory: str, features: dict[str, Any], files: list[str], identity: str
) -> None:
    """The two files that make a folder of Arrow streams a dataset for `datasets.load_from_disk`."""
    storage.write_json(
        f"{directory}/dataset_info.json",
        {"citation": "", "description": "", "features": features, "homepage": "", "license": ""},
    )
    state = {
        "_data_files": [{"filename": name} for name in files],
        "_fingerprint": identity[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    storage.write_json(f"{directory}/state.json", state)


def versions() -> dict[str, str]:
    """What computed a result, for the record; not part of a fingerprint."""
    from importlib.metadata import version
    from platform import machine, python_version

    names = ("lvd", "torch", "timm", "pyarrow", "datasets", "pillow", "numpy", "prefect")
    return {"python": python_version(), "machine": machine(), **{name: version(name) for name in names}}


def node_name() -> str:
    """This machine's name, with that of its node where a cluster may have several on it."""
    node = os.environ.get(NODE_VARIABLE)
    return f"{socket.gethostname()}/{node}" if node else socket.gethostname()


def peak_memory_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
