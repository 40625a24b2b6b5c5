"""How a shard is written: rows that are kept, rows that are rejected, and the account of both."""

import json
import logging
import os
import resource
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from lvd.infra import metering
from lvd.infra.logs import fields
from lvd.infra.shards import SCHEMA_VERSION, ShardRef
from lvd.infra.storage import Storage

logger = logging.getLogger("lvd")

BATCH_ROWS = 256
BATCH_BYTES = 32 << 20
REJECT_BYTES = 64 << 10
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


def node_name() -> str:
    """This machine's name, with that of its node where a cluster may have several on it."""
    node = os.environ.get(NODE_VARIABLE)
    return f"{socket.gethostname()}/{node}" if node else socket.gethostname()


def peak_memory_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
