"""Retrieve: the pool images nearest to the curated ones, or a share of the clusters that they fall into.

Source: DINOv2 section 3 and appendix A.4. Sample-based: N nearest pool images of every query. Cluster-based: from every
cluster that holds more than 3 images of the collection, up to 10,000 pool images, at most 1 M per collection. What is
nearest is found by `nearest`, who gets it is settled by `settling`, clusters are drawn from by `cluster_shares`; here
both become matches. Cost at 10^9 images: the ids of the pool are read once for each collection, 44 bytes a row.
"""

from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, Field, model_validator

from lvd.infra.series import Series
from lvd.infra.shards import ShardRef, StageDir, gather_rows, read_table, with_large_texts
from lvd.infra.writing import write_shard
from lvd.tasks import cluster_shares, schemas
from lvd.tasks.algorithms import mixture
from lvd.tasks.algorithms.firsts import places_in_order
from lvd.tasks.pool_ids import image_ids
from lvd.tasks.recall import Search

SCHEMA = schemas.MATCHES
VERSION = 2
ROWS_PER_SHARD = 1_000_000
BALANCED = "balanced"  # the name of the balanced selection among the collections


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


class QuerySearch(Search, frozen=True, extra="forbid"):
    """The search for the nearest images of queries: they are few beside the pool, so that many probes cost little."""

    max_probes: int = Field(256, ge=1, le=4096)


class Config(BaseModel, frozen=True, extra="forbid"):
    # collections: what the curated collections retrieve; balanced: evenly over the clusters, whatever is curated;
    # mixture: both, or some of them, by weight
    kind: Literal["collections", "balanced", "mixture"] = "collections"
    target_images: int | None = Field(None, ge=1)  # of balanced and mixture
    weights: dict[str, float] = {}  # of a mixture: `balanced`, or the name of a collection that retrieves → its weight
    refill: bool = False  # of a mixture: what a part cannot give, the others give
    collisions: Literal["refill", "keep_once", "count"] = "refill"  # what happens when two queries want one image
    depth_per_neighbor: int = Field(8, ge=1, le=256)  # refill: so many times N images are found for a query at first
    search: QuerySearch = QuerySearch()

    @model_validator(mode="after")
    def _whole(self) -> "Config":
        if (self.kind == "collections") != (self.target_images is None):
            raise ValueError(
                f"target_images must be given for the kinds balanced and mixture and no other, was {self.target_images}"
            )
        if (self.kind == "mixture") != bool(self.weights):
            raise ValueError(f"weights must be given for the kind mixture and no other, was {self.weights}")
        if self.weights and not (min(self.weights.values()) >= 0 and 0 < sum(self.weights.values()) < float("inf")):
            raise ValueError(f"weights must be at least 0, and one above it, was {self.weights}")
        return self

    @property
    def has_balanced(self) -> bool:
        return self.kind == BALANCED or bool(self.weights.get(BALANCED))

    def depth(self, neighbors: int) -> int:
        """Images that are found for a query at first."""
        return neighbors * (self.depth_per_neighbor if self.collisions == "refill" else 1)


def matches(name: str, kind: str, **columns: Any) -> pa.Table:
    """A table of matches; a column that is not given is null. Types are those that the columns come with."""
    num = len(columns["row"])
    columns = {"dataset": pa.repeat(name, num), "kind": pa.repeat(kind, num), **columns}
    arrays = [columns[f.name] if f.name in columns else pa.nulls(num, f.type) for f in SCHEMA]
    return pa.table(arrays, names=SCHEMA.names)


class Written(BaseModel, frozen=True):
    """What was written of a selection."""

    shards: int  # at least 1
    matches: int
    images: int  # different ones

    def notes(self) -> dict[str, int]:
        """As the account and the report have it."""
        return {"found": self.matches, "images": self.images}


def write_matches(target: StageDir, table: pa.Table, config: dict[str, Any]) -> Written:
    """Writes the table in shards of ROWS_PER_SHARD."""
    count = max(1, -(-len(table) // ROWS_PER_SHARD))
    for ref in target.planned(count):
        with write_shard(ref, SCHEMA, config) as shard:
            shard.keep_table(table.slice(ref.index * ROWS_PER_SHARD, ROWS_PER_SHARD))
    return Written(shards=count, matches=len(table), images=len(np.unique(table["row"].to_numpy())))


@task(name="retrieve-sample", persist_result=False, cache_policy=NO_CACHE)
def retrieve_sample(name: str, taken: ShardRef, queries: Series, pool: Series, target: StageDir) -> Written:
    """Writes what one collection took as its matches, by query and rank."""
    table = read_table(taken)
    table = table.sort_by([("query", "ascending"), ("rank", "ascending"), ("row", "ascending")])
    asked = queries.shards()
    ids = gather_rows(asked, table["query"].to_numpy(), ["image_id"])["image_id"] if len(table) else pa.nulls(0)
    columns = {column: table[column] for column in ("row", "rank", "similarity")}
    images = image_ids(pool.shards(), table["row"].to_numpy())
    found = matches(name, "sample", query_id=ids, image_id=images, **columns)
    return write_matches(target, found, {"version": VERSION, "kind": "sample"})


@task(name="retrieve-cluster", persist_result=False, cache_policy=NO_CACHE)
def retrieve_cluster(name: str, number: int, drawn: Series, quotas: ShardRef, target: StageDir, kind: str) -> Written:
    """Writes what was drawn for one collection as its matches, by cluster and row.

    number: of the collection among those that draw. kind: cluster or balanced. Memory: 60 bytes an image.
    """
    rules = read_table(quotas)
    parts = (read_table(ref) for ref in drawn.shards())
    table = pa.concat_tables([part.filter(pa.array(part["collection"].to_numpy() == number)) for part in parts])
    table = with_large_texts(table).take(pa.array(cluster_shares.lowest_of_each(table, rules)))
    cell = table["cluster_id"].to_numpy()
    place = np.searchsorted(rules["cluster_id"].to_numpy(), cell)
    columns = {column: table[column] for column in ("row", "image_id", "similarity", "cluster_id")}
    found = matches(
        name,
        kind,
        query_id=rules["query_id"].cast(pa.large_string()).take(pa.array(place)),
        rank=pa.array(places_in_order(cell)),
        **columns,
    )
    return write_matches(target, found, {"version": VERSION, "kind": kind})


@task(name="thin-matches", persist_result=False, cache_policy=NO_CACHE)
def thin_matches(found: Series, target: StageDir, keep: int, seed: int, part: int) -> Written:
    """Writes the matches of `keep` images of one selection, drawn by the hashes of their rows."""
    table = pa.concat_tables([read_table(ref) for ref in found.shards()])
    rows = table["row"].to_numpy()
    chosen = mixture.thinned(np.unique(rows), keep, seed=seed, part=part)
    return write_matches(target, table.filter(pa.array(np.isin(rows, chosen))), {"version": VERSION, "keep": keep})
