"""Cluster: spherical k-means of the pool, and the cell of every image.

Trained on a seeded sample of 256 vectors per centroid, then every vector is assigned. Source: DINOv2 appendix A.4.
Cost at 10^9 × 1,280: reads 2.6 TB and writes 60 bytes a row; the fit holds sample × 1,280 × 4 bytes in one process.
"""

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, Field

from lvd.infra.errors import InputError
from lvd.infra.shards import ShardRef, gather_rows, read_table, write_shard
from lvd.tasks import schemas
from lvd.tasks.algorithms import kmeans
from lvd.tasks.models import engine

SCHEMA = schemas.CELLS
VERSION = 1


class Config(BaseModel, frozen=True, extra="forbid"):
    num_clusters: int = Field(100_000, ge=1, le=10_000_000)  # the paper's; more gives finer concepts
    iterations: int = Field(20, ge=1, le=1000)
    sample_per_cluster: int = Field(256, ge=1)


@task(name="fit-centroids", persist_result=False, cache_policy=NO_CACHE)
def fit_centroids(vectors: list[ShardRef], target: ShardRef, config: Config, seed: int) -> ShardRef:
    """The centroids, fitted on a seeded sample of the vectors. `size` counts the sample's vectors.

    Raises InputError if there are more clusters than vectors.
    """
    total = sum(ref.rows for ref in vectors)
    if total == 0:
        raise InputError(
            "recipe.pool must leave at least 1 image to cluster, left 0: loosen the rules that dropped them"
        )
    if config.num_clusters > total:
        raise InputError(
            f"recipe.cluster.num_clusters must be in [1, {total}], the images that are left to cluster, "
            f"was {config.num_clusters}: set it lower"
        )
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0xC1]))
    chosen = kmeans.sample_rows(total, min(total, config.sample_per_cluster * config.num_clusters), rng=rng)
    sample = engine.vector_column(gather_rows(vectors, chosen, ["vector"]))
    fit = kmeans.fit(sample, num_clusters=config.num_clusters, iterations=config.iterations, seed=seed)
    nearest, _ = kmeans.assign(sample, fit.centroids)
    sizes = np.bincount(nearest[:, 0], minlength=len(fit.centroids)).astype(np.int64)
    with write_shard(
        target, schemas.centroids(fit.centroids.shape[1]), {"version": VERSION, "seed": seed, **config.model_dump()}
    ) as shard:
        for cluster_id, (size, centroid) in enumerate(zip(sizes.tolist(), fit.centroids, strict=True)):
            shard.keep({"cluster_id": cluster_id, "size": size, "vector": centroid})
        shard.notes.update(
            objective=[round(float(value), 6) for value in fit.objective], num_effective=int(fit.num_effective)
        )
    return target.model_copy(update={"rows": shard.kept.rows})


@task(name="assign-cells", persist_result=False, cache_policy=NO_CACHE)
def assign_shard(vectors: ShardRef, centroids: ShardRef, target: ShardRef) -> ShardRef:
    """The nearest centroid of every vector of one shard, and the similarity to it; `row` is the pool row."""
    table = read_table(vectors)
    with write_shard(target, SCHEMA, {"version": VERSION}) as shard:
        if len(table):
            cluster_id, similarity = kmeans.assign(engine.vector_column(table), engine.read_vectors(centroids))
            rows = table["row"].to_numpy() + vectors.base
            columns = [pa.array(rows), table["image_id"], pa.array(cluster_id[:, 0]), pa.array(similarity[:, 0])]
            shard.keep_table(pa.Table.from_arrays(columns, schema=SCHEMA))
    return target.model_copy(update={"rows": shard.kept.rows})
