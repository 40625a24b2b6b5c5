"""Cluster: the cell of every image.

The centroids are fitted by `centroids`; here every vector goes to the nearest of them. Source: DINOv2 appendix A.4.
Cost at 10^9 x 1,280 with k = 100,000: reads 2.6 TB, takes 2.6 x 10^17 operations and writes 60 bytes a row. Memory: the
centroids (512 MB), and one shard.
"""

from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, Field, model_validator

from lvd.infra.series import Series
from lvd.infra.shards import ShardRef, read_table
from lvd.infra.writing import write_shard
from lvd.tasks import schemas
from lvd.tasks.algorithms import kmeans
from lvd.tasks.models.engine import read_vectors, vector_column

SCHEMA = schemas.CELLS
VERSION = 2
FITTING = (
    *("kind", "num_clusters", "iterations", "sample_per_cluster", "full_passes", "min_gain", "start"),
    *("levels", "resample_steps", "resample_per_cluster"),
)


class Config(BaseModel, frozen=True, extra="forbid"):
    kind: Literal["kmeans", "hierarchical"] = "kmeans"  # hierarchical: clusters of clusters, for balanced sampling
    num_clusters: int = Field(100_000, ge=1, le=10_000_000)  # the paper's; more gives finer concepts
    levels: tuple[int, ...] = ()  # hierarchical: clusters of every level, the finest (num_clusters) first
    sample_per_cluster: int = Field(256, ge=1)  # vectors to fit on; all of them instead gain 0.6 % of similarity
    start: Literal["auto", "k-means++", "afk-mc2", "random"] = "auto"
    iterations: int = Field(20, ge=1, le=1000)  # on the sample; 10 lose 0.5 % of the similarity against 50
    # over the whole pool after that; two gain another 0.1 %. 0 where levels are fitted anew, which passes would undo
    full_passes: int = Field(1, ge=0, le=1000)
    min_gain: float = Field(0.0, ge=0, lt=1)  # ends either early when the similarity grew by less than this share
    resample_steps: int = Field(10, ge=0, le=100)  # hierarchical: fits anew on what is nearest to the centroids
    # vectors or centroids that such a fit takes of each cluster; null: half of what it has on average
    resample_per_cluster: int | None = Field(None, ge=1)
    # when the pool grows: fitted on all of it anew; kept; or kept until new images drift away from the centroids
    refit: Literal["always", "never", "on_drift"] = Field("always", exclude_if=lambda chosen: chosen == "always")
    # by which new images may be less similar to their centroids than those of the fit
    max_drift: float = Field(0.02, gt=0, le=2, exclude_if=lambda bound: bound == 0.02)
    # URI of a directory of centroids, e.g. of another root; null: the root's own
    fit: str | None = Field(None, exclude_if=lambda uri: uri is None)
    next_cells: int = Field(0, ge=0, le=64)  # further cells that are written of every vector, 4 bytes each

    @model_validator(mode="before")
    @classmethod
    def _of_levels(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("kind") != "hierarchical":
            return value
        levels = value.get("levels")
        finest = {"num_clusters": levels[0]} if isinstance(levels, list | tuple) and levels else {}
        return {"full_passes": 0, **finest, **value}

    @model_validator(mode="after")
    def _descending(self) -> "Config":
        if (self.kind == "hierarchical") != bool(self.levels):
            raise ValueError(f"levels must be given for the kind hierarchical and no other, was {list(self.levels)}")
        if self.levels and (len(self.levels) < 2 or self.levels[0] != self.num_clusters):
            raise ValueError(
                f"levels must be two or more numbers, num_clusters ({self.num_clusters}) first, "
                f"was {list(self.levels)}: leave num_clusters out"
            )
        if any(upper >= lower or upper < 1 for lower, upper in pairwise(self.levels)):
            raise ValueError(f"levels must be descending numbers of at least 1, was {list(self.levels)}")
        if self.levels and self.resample_steps and self.full_passes:
            raise ValueError(f"full_passes must be 0 where resample_steps is above 0, was {self.full_passes}")
        return self

    @model_validator(mode="after")
    def _given_or_fitted(self) -> "Config":
        if self.fit and self.refit == "on_drift":
            raise ValueError("refit must be always or never where fit names centroids, was on_drift: leave one out")
        return self

    def fitting(self) -> dict[str, Any]:
        """What decides the centroids."""
        return self.model_dump(mode="json", include=set(FITTING))


@task(name="assign-cells", persist_result=False, cache_policy=NO_CACHE)
def assign_shard(
    vectors: ShardRef, centroids: ShardRef, target: ShardRef, *, next_cells: int = 0, device: str = "cpu"
) -> ShardRef:
    """The nearest centroid of every vector of one shard, the similarity to it, and the next ones if they are asked for.

    `row` is the pool row.
    """
    table, middle = read_table(vectors), read_vectors(centroids)
    following = min(next_cells, len(middle) - 1)
    schema = schemas.cells(following)
    with write_shard(target, schema, {"version": VERSION}) as shard:
        if len(table):
            cluster_id, similarity = kmeans.assign(vector_column(table), middle, probes=1 + following, device=device)
            rows = table["row"].to_numpy() + vectors.base
            columns = [pa.array(rows), table["image_id"], pa.array(cluster_id[:, 0]), pa.array(similarity[:, 0])]
            if following:
                columns.append(pa.FixedSizeListArray.from_arrays(pa.array(cluster_id[:, 1:].ravel()), following))
            shard.keep_table(pa.table(columns, schema=schema))
    return target.model_copy(update={"rows": shard.kept.rows})


def mean_similarity(cells: list[ShardRef]) -> float:
    """Of the vectors to their centroids; not a number without any. Reads 4 bytes a row."""
    sums, rows = 0.0, 0
    for ref in cells:
        similarity = read_table(ref, ["similarity"])["similarity"].to_numpy()
        sums, rows = sums + float(similarity.sum(dtype=np.float64)), rows + len(similarity)
    return sums / rows if rows else float("nan")


def sizes_of(cells: list[ShardRef], num_clusters: int) -> np.ndarray:
    """(k,) int64: images of every cluster."""
    sizes = np.zeros(num_clusters, dtype=np.int64)
    for ref in cells:
        sizes += np.bincount(read_table(ref, ["cluster_id"])["cluster_id"].to_numpy(), minlength=num_clusters)
    return sizes


@task(name="count-cells", persist_result=False, cache_policy=NO_CACHE)
def count_cells(cells: Series, num_clusters: int, target: ShardRef) -> ShardRef:
    """The images of every cluster. Reads 4 bytes a row."""
    sizes = sizes_of(cells.shards(), num_clusters)
    with write_shard(target, schemas.SIZES, {"version": VERSION}) as shard:
        numbers = pa.array(np.arange(num_clusters, dtype=np.int32))
        shard.keep_table(pa.Table.from_arrays([numbers, pa.array(sizes)], schema=schemas.SIZES))
    return target.model_copy(update={"rows": shard.kept.rows})
