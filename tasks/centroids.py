"""Centroids: spherical k-means, fitted on a sample of the pool, then by full passes over all of it.

A pass: every group of shards adds up its vectors by the centroid that each is nearest to, groups are added up eight at
a time, and the last of these sums gives the new centroids. Sums are exact, so the centroids do not depend on how the
shards were cut, grouped or spread over workers. Source: DINOv2 appendix A.4, "distributed k-means".
Cost at 10^9 x 1,280 with k = 100,000: the fit holds the sample, 256 k rows of 2,560 bytes, in one process: 66 GB, and
takes 6.6 x 10^15 operations an iteration; a pass reads 2.6 TB, takes 2.6 x 10^17 operations, and writes k x 1,280 x 8
bytes, 1 GB, for each of 156 groups.
"""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from lvd.infra.errors import InputError, ShardError
from lvd.infra.series import Series, first_positions, grouped
from lvd.infra.shards import ShardRef, read_schema, read_table
from lvd.infra.storage import Storage
from lvd.infra.writing import Shard, write_shard
from lvd.tasks import schemas
from lvd.tasks.algorithms import hierarchy, kmeans
from lvd.tasks.algorithms.row_hash import row_hash
from lvd.tasks.cluster import Config
from lvd.tasks.models.engine import read_vectors, vector_column

VERSION = 2
FAN_IN = 8  # sums that are added up at once
SPARES = 1024  # rows of a pass that may start an empty cluster again
SAMPLE = 0x5A  # what the sample's hash is keyed with
RESAMPLING = 0x4E
SLACK = 6  # standard deviations of a sample's size: so many more rows are drawn than are wanted


def rows_per_group(num_clusters: int) -> int:
    """Rows whose sums are worth a shard: their vectors are some 30 times as many bytes as the sums."""
    return max(1_000_000, 64 * num_clusters)


def num_groups(vectors: Series, num_clusters: int) -> int:
    return len(grouped(vectors.shards(), rows_per_group(num_clusters)))


def blocks(refs: list[ShardRef], starts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(row numbers (n,) int64, vectors (n, d) float16) of one shard after another.

    starts: of each shard the number of its first row, over all shards of the pool.
    """
    for ref, start in zip(refs, starts, strict=True):
        vectors = read_vectors(ref)
        if len(vectors):
            yield np.arange(start, start + len(vectors)), vectors


def group_of(vectors: Series, num_clusters: int, index: int) -> tuple[list[ShardRef], np.ndarray]:
    """The shards of one group, and the number of the first row of each."""
    refs = vectors.shards()
    part = grouped(refs, rows_per_group(num_clusters))[index]
    return refs[part], first_positions(refs)[part]


def sample_size(total: int, config: Config) -> int:
    """Rows to fit on. Raises InputError if there are more clusters than rows."""
    if total == 0:
        raise InputError(
            "recipe.pool must leave at least 1 image to cluster, left 0: loosen the rules that dropped them"
        )
    if config.num_clusters > total:
        raise InputError(
            f"recipe.cluster.num_clusters must be in [1, {total}], the images that are left to cluster, "
            f"was {config.num_clusters}: set it lower"
        )
    return min(total, config.sample_per_cluster * config.num_clusters)


def sample_schema(dim: int) -> pa.Schema:
    return pa.schema([("hash", pa.uint64()), ("vector", pa.list_(pa.float16(), dim))])


@task(name="draw-sample", persist_result=False, cache_policy=NO_CACHE)
def sample_group(vectors: Series, target: ShardRef, config: Config, seed: int) -> ShardRef:
    """The rows of one group whose seeded hashes are among the lowest: a few more than the sample needs of them."""
    refs, starts = group_of(vectors, config.num_clusters, target.index)
    total = sum(ref.rows for ref in vectors.shards())
    size = sample_size(total, config)
    share = min(1.0, (size + SLACK * size**0.5 + SLACK) / total)
    limit = np.uint64(min(int(share * 2**64), 2**64 - 1))
    dim = read_schema(refs[0]).field("vector").type.list_size
    with write_shard(target, sample_schema(dim), {"version": VERSION, "seed": seed, "size": size}) as shard:
        for rows, values in blocks(refs, starts):
            hashes = row_hash(rows, seed, SAMPLE)
            chosen = hashes <= limit
            column = pa.FixedSizeListArray.from_arrays(pa.array(values[chosen].ravel()), dim)
            table = pa.Table.from_arrays([pa.array(hashes[chosen]), column], schema=sample_schema(dim))
            shard.keep_table(table)
    return target.model_copy(update={"rows": shard.kept.rows})


def read_sample(refs: list[ShardRef], size: int) -> np.ndarray:
    """(size, d) float16: the rows of the lowest hashes, in their order in the pool. Memory: the sample, twice.

    Raises ShardError if fewer were drawn, which happens once in 10^9 times.
    """
    hashes = np.concatenate([read_table(ref, ["hash"])["hash"].to_numpy() for ref in refs])
    if len(hashes) < size:
        raise ShardError(f"cluster: {size} vectors must be drawn to fit on, were {len(hashes)}: set another seed")
    bound = np.partition(hashes, size - 1)[size - 1] if size < len(hashes) else np.uint64(2**64 - 1)
    parts = []
    for ref in refs:
        table = read_table(ref)
        parts.append(vector_column(table)[table["hash"].to_numpy() <= bound])
    return np.concatenate(parts)


@task(name="fit-centroids", persist_result=False, cache_policy=NO_CACHE)
def fit_centroids(
    sample: Series,
    total: int,
    target: ShardRef,
    config: Config,
    seed: int,
    *,
    device: str,
    devices: tuple[str, ...] = (),
) -> ShardRef:
    """The centroids, fitted on the sample. `size` counts the sample's vectors. Goes on where it was interrupted.

    total: rows of the pool. devices: several that share the work, in place of the one.
    Raises InputError if there are more clusters than rows.
    """
    rows = read_sample(sample.shards(), sample_size(total, config))
    checkpoint = Checkpoint(target)
    everywhere = devices or (device,)
    progress, steps = checkpoint.read()
    if not steps:
        fit = kmeans.fit(
            rows,
            num_clusters=config.num_clusters,
            iterations=config.iterations,
            seed=seed,
            start_method=config.start,
            min_gain=config.min_gain,
            devices=everywhere,
            progress=progress,
            on_iteration=checkpoint.write,
        )
        progress, counts = kmeans.Progress(fit.centroids, fit.iterations), fit.counts
    noted_iterations = [noted(one, "sample") for one in progress.iterations]
    if config.kind == "hierarchical" and config.resample_steps:
        for step in range(steps, config.resample_steps):
            found = hierarchy.resampled(
                rows,
                progress.centroids,
                per_cluster=config.resample_per_cluster,
                steps=1,
                iterations=config.iterations,
                seed=int(np.random.SeedSequence([seed, RESAMPLING, step]).generate_state(1)[0]),
                devices=everywhere,
            )
            progress = progress._replace(centroids=found)
            checkpoint.write(progress, steps=step + 1)
        sums = kmeans.pass_over([(np.arange(len(rows)), rows)], progress.centroids, spares=0, device=device)
        counts = sums.counts
        noted_iterations.append(noted(kmeans.iteration_of(sums, progress.centroids), "sample, resampled"))
    with write_shard(target, schemas.centroids(rows.shape[1]), said(config, seed)) as shard:
        keep_centroids(shard, progress.centroids, counts)
        shard.notes["iterations"] = noted_iterations
    return target.model_copy(update={"rows": shard.kept.rows})


class Checkpoint:
    """The centroids after each iteration of a fit, and each resampling, beside the shard that is to hold the last ones.

    Whoever completes the shard's directory removes it.
    """

    def __init__(self, target: ShardRef) -> None:
        self._storage, self._name = Storage(target.root), target.name("progress", "npz")

    def read(self) -> tuple[kmeans.Progress | None, int]:
        """What is there, and how many resamplings it has behind it."""
        if not self._storage.exists(self._name):
            return None, 0
        with np.load(io.BytesIO(self._storage.read_bytes(self._name))) as saved:
            iterations = zip(saved["figures"], saved["sizes"], strict=True)
            done = tuple(
                kmeans.Iteration(float(f[0]), float(f[1]), int(f[2]), tuple(map(int, sizes))) for f, sizes in iterations
            )
            return kmeans.Progress(saved["centroids"], done), int(saved["steps"])

    def write(self, progress: kmeans.Progress, *, steps: int = 0) -> None:
        file, done = io.BytesIO(), progress.iterations
        np.savez(
            file,
            centroids=progress.centroids,
            steps=steps,
            figures=np.array([(one.objective, one.imbalance, one.num_empty) for one in done], dtype=np.float64),
            sizes=np.array([one.sizes for one in done], dtype=np.int64),
        )
        self._storage.write_bytes(self._name, file.getvalue())

    def remove(self) -> None:
        self._storage.remove(self._name)


def said(config: Config, seed: int) -> dict[str, Any]:
    return {"version": VERSION, "seed": seed, **config.fitting()}


def noted(iteration: kmeans.Iteration, over: str) -> dict[str, Any]:
    """An iteration as the account keeps it. over: sample or pool; or sample, resampled: what came of that."""
    return {
        "over": over,
        "objective": round(iteration.objective, 6),
        "imbalance": round(iteration.imbalance, 4),
        "num_empty": iteration.num_empty,
        "sizes": list(iteration.sizes),
    }


def keep_centroids(shard: Shard, centroids: np.ndarray, sizes: np.ndarray) -> None:
    """Writes centroids with the number of vectors of each."""
    dim = centroids.shape[1]
    column = pa.FixedSizeListArray.from_arrays(pa.array(centroids.ravel()), dim)
    numbers = pa.array(np.arange(len(centroids), dtype=np.int32))
    shard.keep_table(pa.Table.from_arrays([numbers, pa.array(sizes), column], schema=schemas.centroids(dim)))


def sums_schema(dim: int) -> pa.Schema:
    return pa.schema(
        [
            ("cluster_id", pa.int32()),  # -1: a row that may start an empty cluster again
            ("count", pa.int64()),
            ("row", pa.int64()),
            ("similarity", pa.float32()),
            ("sum", pa.list_(pa.float64(), dim)),
        ]
    )


def keep_sums(shard: Shard, sums: kmeans.Sums) -> None:
    num, dim = sums.sums.shape
    spares = len(sums.spare_rows)
    values = np.concatenate([sums.sums.ravel(), sums.spare_vectors.astype(np.float64).ravel()])
    columns = [
        np.concatenate([np.arange(num), np.full(spares, -1)]).astype(np.int32),
        np.concatenate([sums.counts, np.zeros(spares, dtype=np.int64)]),
        np.concatenate([np.full(num, -1, dtype=np.int64), sums.spare_rows]),
        np.concatenate([np.zeros(num, dtype=np.float32), sums.spare_similarity]),
    ]
    arrays = [*map(pa.array, columns), pa.FixedSizeListArray.from_arrays(pa.array(values), dim)]
    shard.keep_table(pa.Table.from_arrays(arrays, schema=sums_schema(dim)))


def read_sums(ref: ShardRef) -> kmeans.Sums:
    table = read_table(ref)
    is_sum, values = table["cluster_id"].to_numpy() >= 0, vector_column(table, "sum")
    row, similarity = (table[name].to_numpy()[~is_sum] for name in ("row", "similarity"))
    counts = table["count"].to_numpy()[is_sum]
    return kmeans.Sums(values[is_sum], counts, row, similarity, values[~is_sum].astype(np.float16))


@task(name="add-up", persist_result=False, cache_policy=NO_CACHE)
def sums_group(vectors: Series, centroids: ShardRef, target: ShardRef, *, device: str) -> ShardRef:
    """The sums of one group of shards, by the centroid that each vector is nearest to."""
    middle = read_vectors(centroids)
    refs, starts = group_of(vectors, len(middle), target.index)
    sums = kmeans.pass_over(blocks(refs, starts), middle, spares=SPARES, device=device)
    with write_shard(target, sums_schema(middle.shape[1]), {"version": VERSION}) as shard:
        keep_sums(shard, sums)
    return target.model_copy(update={"rows": shard.kept.rows})


@task(name="add-up-sums", persist_result=False, cache_policy=NO_CACHE)
def reduce_sums(parts: list[ShardRef], target: ShardRef) -> ShardRef:
    """FAN_IN sums as one. Memory: two of them."""
    sums = kmeans.merged(map(read_sums, parts), spares=SPARES)
    with write_shard(target, sums_schema(sums.sums.shape[1]), {"version": VERSION}) as shard:
        keep_sums(shard, sums)
    return target.model_copy(update={"rows": shard.kept.rows})


@task(name="move-centroids", persist_result=False, cache_policy=NO_CACHE)
def move_centroids(parts: list[ShardRef], before: ShardRef, done: list[dict[str, Any]], target: ShardRef) -> ShardRef:
    """The centroids after one more pass. done: what the account of those before says of their iterations."""
    sums, centroids = kmeans.merged(map(read_sums, parts), spares=SPARES), read_vectors(before)
    iteration = noted(kmeans.iteration_of(sums, centroids), "pool")
    with write_shard(target, schemas.centroids(centroids.shape[1]), {"version": VERSION}) as shard:
        keep_centroids(shard, kmeans.updated(sums, centroids), sums.counts)
        shard.notes["iterations"] = [*done, iteration]
    return target.model_copy(update={"rows": shard.kept.rows})


@task(name="keep-centroids", persist_result=False, cache_policy=NO_CACHE)
def last_centroids(
    found: ShardRef, done: list[dict[str, Any]], target: ShardRef, config: Config, seed: int
) -> ShardRef:
    """The centroids of the last pass, under the name of the whole fit."""
    table = read_table(found)
    with write_shard(target, table.schema, said(config, seed)) as shard:
        shard.keep_table(table)
        shard.notes.update(iterations=done, dim=len(table["vector"][0]))
    return target.model_copy(update={"rows": shard.kept.rows})
