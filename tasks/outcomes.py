"""What became of the candidates of every domain on the way in: how many were fetched, and why the others were not."""

import io
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lvd.infra.shards import ShardRef, read_table
from lvd.tasks.source_rows import domain

FETCHED = "fetched"
KEYS = ["domain", "stage", "state", "reason"]
OUTCOMES = pa.schema([*((name, pa.string()) for name in KEYS), ("candidates", pa.int64())])
MAX_ROWS = 200_000  # that are counted; of more, the rarest are let go


def outcomes(shards: Iterable[tuple[ShardRef, ShardRef]]) -> pa.Table:
    """Candidates by domain, stage, state and reason, the most frequent first.

    shards: of the manifest, each with its shard of images. Memory: one shard's small columns and MAX_ROWS rows.
    """
    known = OUTCOMES.empty_table()
    for manifest, images in shards:
        known = pa.concat_tables([known, _of_crawl(manifest), _of_download(manifest, images)])
        if len(known) > 2 * MAX_ROWS:
            known = _summed(known).slice(0, MAX_ROWS)
    return _summed(known)


def _of_crawl(manifest: ShardRef) -> pa.Table:
    """What the crawl left out; a key that is no URL has no domain."""
    rejects = read_table(manifest, ["key", "state", "reason"], kind="rejects")
    domains = pa.array([domain(key) for key in rejects["key"].to_pylist()], pa.string())
    stages = pa.array(["crawl"] * len(domains), pa.string())
    return _counted(domains, stages, rejects["state"], rejects["reason"])


def _of_download(manifest: ShardRef, images: ShardRef) -> pa.Table:
    """What was asked of a server is of the stage `download`; what was read from a tar or a folder, of `read`."""
    listed = read_table(manifest, ["domain", "location"])
    domains = listed["domain"]
    stages = pc.if_else(pc.is_null(listed["location"]), "download", "read")
    state, reason = (np.full(len(domains), name, dtype=object) for name in ("kept", FETCHED))
    rejects = read_table(images, ["row", "state", "reason"], kind="rejects")
    rows = rejects["row"].to_numpy() - manifest.first_row
    state[rows], reason[rows] = rejects["state"].to_numpy(), rejects["reason"].to_numpy()
    return _counted(domains, stages, pa.array(state, pa.string()), pa.array(reason, pa.string()))


def _counted(domains: pa.Array, stages: pa.Array, state: pa.Array, reason: pa.Array) -> pa.Table:
    ones = pa.array(np.ones(len(domains), dtype=np.int64))
    return _summed(pa.table([domains, stages, state, reason, ones], schema=OUTCOMES))


def _summed(table: pa.Table) -> pa.Table:
    summed = table.group_by(KEYS).aggregate([("candidates", "sum")]).rename_columns([*KEYS, "candidates"])
    order = [("candidates", "descending"), *((key, "ascending") for key in KEYS)]
    return summed.select(OUTCOMES.names).sort_by(order)


def parquet(table: pa.Table) -> bytes:
    """The table as a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def per_domain(table: pa.Table) -> dict[str, Counter[str]]:
    """Domain → reason → candidates, the domains with most candidates first; what has no domain is left out."""
    found: dict[str, Counter[str]] = {}
    for row in table.filter(pc.is_valid(table["domain"])).to_pylist():
        found.setdefault(row["domain"], Counter())[row["reason"]] += row["candidates"]
    return dict(sorted(found.items(), key=lambda pair: (-pair[1].total(), pair[0])))


def per_error(table: pa.Table) -> list[tuple[str, int, int]]:
    """(reason, candidates, domains) of what the download of URLs came to, the most frequent first."""
    asked = table.filter(pc.and_(pc.equal(table["stage"], "download"), pc.is_valid(table["domain"])))
    found = asked.group_by("reason").aggregate([("candidates", "sum"), ("domain", "count_distinct")])
    columns = [found[name].to_pylist() for name in ("reason", "candidates_sum", "domain_count_distinct")]
    return sorted(zip(*columns, strict=True), key=lambda row: (-row[1], row[0]))
