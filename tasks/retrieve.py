"""Retrieve: the pool images nearest to the curated ones, or a share of the clusters that they fall into.

Source: DINOv2 section 3 and appendix A.4. Sample-based: N nearest pool images of every query. Cluster-based: from every
cluster that holds more than 3 images of the collection, up to 10,000 pool images, at most 1 M per collection.
Cost at 14 M queries × 744 M vectors of 1,280 values, exact: 2.7e19 operations. Memory: a search holds one shard of
queries, one of the pool and 8 bytes for each pool image; settling a collection holds its candidates, 60 bytes each.
"""

from typing import Annotated, Any, Literal
from zlib import crc32

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, Field

from lvd.infra.shards import ShardRef, gather_rows, pool_rows, read_column, read_table, write_shard
from lvd.tasks import schemas
from lvd.tasks.algorithms import allocation, kmeans, neighbours
from lvd.tasks.models import engine

SCHEMA = schemas.MATCHES
VERSION = 1


class Sample(BaseModel, frozen=True, extra="forbid"):
    """N nearest pool images of every image of the collection; for collections above a million images."""

    kind: Literal["sample"]
    neighbors: int = Field(4, ge=1, le=1024)


class Cluster(BaseModel, frozen=True, extra="forbid"):
    """A share of every cluster that the collection reaches; for smaller collections."""

    kind: Literal["cluster"]
    min_queries: int = Field(4, ge=1)  # images of the collection that a cluster must hold; the paper's "more than 3"
    per_cluster: int = Field(10_000, ge=1)
    max_images: int = Field(1_000_000, ge=1)


Policy = Annotated[Sample | Cluster, Field(discriminator="kind")]


class Config(BaseModel, frozen=True, extra="forbid"):
    collisions: Literal["refill", "keep_once", "count"] = "refill"  # what happens when two queries want one image
    depth_per_neighbor: int = Field(
        8, ge=1, le=256
    )  # refill: a query looks at most this × neighbors images down its list


@task(name="search", persist_result=False, cache_policy=NO_CACHE)
def search_shard(queries: ShardRef, pool: list[ShardRef], target: ShardRef, *, depth: int, device: str) -> ShardRef:
    """The `depth` nearest pool images of every query of one shard."""
    table, rows = read_table(queries), pool_rows(pool)
    with write_shard(target, schemas.CANDIDATES, {"version": VERSION, "depth": depth}) as shard:
        if len(table) and len(rows):
            similarity, found = neighbours.nearest(
                engine.vector_column(table), engine.vector_blocks(pool), k=min(depth, len(rows)), device=device
            )
            query, rank = np.nonzero(found >= 0)
            columns = [
                pa.array(table["row"].to_numpy()[query] + queries.base),
                table["image_id"].take(pa.array(query)),
                pa.array(rows[found[query, rank]]),
                pa.array(rank.astype(np.int32)),
                pa.array(similarity[query, rank]),
            ]
            shard.keep_table(pa.Table.from_arrays(columns, schema=schemas.CANDIDATES))
    return target.model_copy(update={"rows": shard.kept.rows})


@task(name="retrieve-sample", persist_result=False, cache_policy=NO_CACHE)
def retrieve_sample(
    name: str, candidates: list[ShardRef], pool: list[ShardRef], target: ShardRef, policy: Sample, config: Config
) -> ShardRef:
    """The matches of one collection by the policy for collisions, settled over the whole collection."""
    table = pa.concat_tables([read_table(ref) for ref in candidates])
    query, row, similarity = (table[column].to_numpy() for column in ("query", "row", "similarity"))
    taken = allocation.settle_collisions(query, row, similarity, neighbors=policy.neighbors, policy=config.collisions)
    queries = len(np.unique(query))
    asked = allocation.settle_collisions(query, row, similarity, neighbors=policy.neighbors, policy="count")
    with write_shard(target, SCHEMA, {"version": VERSION, **policy.model_dump(), **config.model_dump()}) as shard:
        chosen = table.take(pa.array(taken))
        images = _image_ids(pool, chosen["row"].to_numpy())
        columns = {column: chosen[column] for column in ("query_id", "row", "rank", "similarity")}
        shard.keep_table(_matches(name, "sample", image_id=images, **columns))
        shard.notes["kind"] = "sample"
        shard.notes["queries"] = queries
        shard.notes["asked"] = queries * policy.neighbors
        shard.notes["found"] = len(taken)
        shard.notes["images"] = len(np.unique(row[taken]))
        shard.notes["collided"] = len(asked) - len(np.unique(row[asked]))  # of the nearest `neighbors`, wanted twice
    return target.model_copy(update={"rows": shard.kept.rows})


def _image_ids(pool: list[ShardRef], rows: np.ndarray) -> pa.ChunkedArray:
    """Image ids of pool rows, read from the vectors."""
    return gather_rows(pool, np.searchsorted(pool_rows(pool), rows), ["image_id"])["image_id"]


def _matches(name: str, kind: str, **columns: Any) -> pa.Table:
    """A table of matches; a column that is not given is null."""
    num = len(columns["row"])
    columns = {"dataset": pa.repeat(name, num), "kind": pa.repeat(kind, num), **columns}
    arrays = [columns[f.name] if f.name in columns else pa.nulls(num, f.type) for f in SCHEMA]
    return pa.table(arrays, names=SCHEMA.names).cast(SCHEMA)


@task(name="retrieve-cluster", persist_result=False, cache_policy=NO_CACHE)
def retrieve_cluster(
    name: str,
    queries: list[ShardRef],
    centroids: ShardRef,
    cells: list[ShardRef],
    target: ShardRef,
    policy: Cluster,
    seed: int,
) -> ShardRef:
    """The matches of one collection: a seeded uniform sample of every cluster that it reaches often enough."""
    middle = engine.read_vectors(centroids)
    table = pa.concat_tables([read_table(ref) for ref in queries])
    home, closeness = (part[:, 0] for part in kmeans.assign(engine.vector_column(table), middle))
    clusters = allocation.eligible_clusters(home, min_queries=policy.min_queries)
    cell, rows = read_column(cells, "cluster_id").to_numpy(), pool_rows(cells)
    sizes = np.bincount(cell, minlength=len(middle))[clusters]
    quotas = allocation.cluster_sample(clusters, sizes, per_cluster=policy.per_cluster, max_images=policy.max_images)
    by_cell = np.argsort(cell, kind="stable")
    starts = np.searchsorted(cell[by_cell], clusters)
    ids, similarity = table["image_id"].to_pylist(), read_column(cells, "similarity").to_numpy()
    with write_shard(target, SCHEMA, {"version": VERSION, "seed": seed, **policy.model_dump()}) as shard:
        members, query_ids = [np.zeros(0, dtype=np.int64)], []
        for cluster_id, start, size, quota in zip(clusters, starts, sizes, quotas, strict=True):
            rng = np.random.default_rng(np.random.SeedSequence([seed, int(cluster_id), crc32(name.encode())]))
            members.append(by_cell[start + allocation.draw(int(size), int(quota), rng=rng)])
            inside = np.flatnonzero(home == cluster_id)
            query_ids.append(ids[inside[np.argmax(closeness[inside])]])
        chosen = np.concatenate(members)
        columns = {
            "query_id": pa.array(np.repeat(np.array(query_ids, dtype=object), quotas), type=pa.string()),
            "image_id": gather_rows(cells, chosen, ["image_id"])["image_id"],
            "row": pa.array(rows[chosen]),
            "rank": pa.array(np.concatenate([np.zeros(0, np.int32), *(np.arange(q, dtype=np.int32) for q in quotas)])),
            "similarity": pa.array(similarity[chosen]),
            "cluster_id": pa.array(np.repeat(clusters, quotas).astype(np.int32)),
        }
        shard.keep_table(_matches(name, "cluster", **columns))
        shard.notes["kind"] = "cluster"
        shard.notes["queries"] = len(ids)
        shard.notes["clusters"] = len(clusters)
        shard.notes["taken_whole"] = int((sizes <= policy.per_cluster).sum())  # smaller than their share
        shard.notes["asked"] = int(np.minimum(sizes, policy.per_cluster).sum())
        shard.notes["found"] = shard.notes["images"] = int(quotas.sum())
    return target.model_copy(update={"rows": shard.kept.rows})
