"""Clusters of clusters, and how many rows each gives so that all levels are balanced.

Level 1 clusters the rows, level L + 1 the centroids of level L, each of which counts once however many rows it has: so
each level is more even over the space than the one below, and a sample that takes alike from the clusters of the top,
then alike from the clusters inside each, evens out what the web has too much of.
Source: Vo et al. 2024, arXiv 2405.15613; theirs is Euclidean, ours spherical, as the whole chain compares by cosine.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lvd.tasks.algorithms import kmeans
from lvd.tasks.algorithms.row_hash import row_hash


@dataclass(frozen=True)
class Level:
    """One level above the first.

    centroids: (c, d) float32, unit rows. parent: (c_lower,) int32, the cluster of each centroid of the level below.
    """

    centroids: np.ndarray
    parent: np.ndarray


def upper_levels(
    centroids: np.ndarray,
    sizes: Sequence[int],
    *,
    seed: int,
    iterations: int = 20,
    resample_steps: int = 0,
    resample_per_cluster: int | None = None,
    devices: tuple[str, ...] = ("cpu",),
) -> list[Level]:
    """The levels above the first, from the lowest up; a level is fitted on the centroids of the level below.

    centroids: (c1, d) float32, unit rows, of level 1. sizes: clusters of each level above; 500 k, 50 k and 10 k above
    10 M in the paper. iterations: 50 in the paper, 20 lose 0.5% of the objective.
    resample_steps, resample_per_cluster: as `resampled`; 10 steps in the paper.
    Raises ValueError for a level with no cluster, or with more clusters than the level below.
    """
    levels: list[Level] = []
    for number, size in enumerate(sizes, 2):
        below = levels[-1].centroids if levels else centroids
        if not 1 <= size <= len(below):
            raise ValueError(
                f"level {number} must have 1 to {len(below)} clusters, those of the level below, was {size}"
            )
        fit = kmeans.fit(below, num_clusters=size, iterations=iterations, seed=_drawn(seed, number, 0), devices=devices)
        found = resampled(
            below,
            fit.centroids,
            per_cluster=resample_per_cluster,
            steps=resample_steps,
            iterations=iterations,
            seed=_drawn(seed, number, 1),
            devices=devices,
        )
        levels.append(Level(found, kmeans.assign(below, found, device=devices[0])[0][:, 0]))
    return levels


def resampled(
    points: np.ndarray,
    centroids: np.ndarray,
    *,
    per_cluster: int | None,
    steps: int,
    iterations: int,
    seed: int,
    devices: tuple[str, ...] = ("cpu",),
) -> np.ndarray:
    """Centroids fitted again and again on the points nearest to the last ones: (k, d) float32, unit rows.

    A dense region holds many points of a plain fit and draws many centroids; of a fit on as many points from each
    cluster it draws fewer, step by step, and the centroids even out over the space. An empty cluster gives no points.

    points: (n, d) float16 or float32, unit rows; a sample for level 1. centroids: (k, d), those of a plain fit.
    per_cluster: points of each cluster; None is half the mean size of a cluster, the paper's. Where all clusters
    together give fewer points than centroids, it is doubled until they do not.
    steps: 10 in the paper, 0 changes nothing. Each costs a fit on k x per_cluster points and one assignment of all.
    Raises ValueError for a negative number of steps and for per_cluster < 1.
    """
    if steps < 0:
        raise ValueError(f"steps must be at least 0, was {steps}")
    if per_cluster is None:
        per_cluster = max(1, len(points) // (2 * len(centroids)))
    if per_cluster < 1:
        raise ValueError(f"per_cluster must be at least 1, was {per_cluster}")
    for step in range(steps):
        cluster_id, similarity = (column[:, 0] for column in kmeans.assign(points, centroids, device=devices[0]))
        rows = _nearest_of_each(cluster_id, similarity, per_cluster, at_least=len(centroids))
        centroids = kmeans.fit(
            points[rows], num_clusters=len(centroids), iterations=iterations, seed=_drawn(seed, step), devices=devices
        ).centroids
    return centroids


def balanced_quotas(
    sizes: np.ndarray, parents: Sequence[np.ndarray], target: int, *, seed: int, keys: np.ndarray | None = None
) -> np.ndarray:
    """Rows to take from each cluster of level 1: (c1,) int64, never above its size; they sum to min(target, all rows).

    At the top every cluster gives min(x, its rows), with the largest x for which these do not exceed the target; what
    is left goes, a row each, to clusters above the cut, drawn by the seed. A cluster shares out what it was given among
    its own in the same way, level by level. Empty clusters, at any level, give nothing.

    The cuts do not depend on how clusters are numbered, nor does the draw on the numbers above level 1. On those of
    level 1 it does, unless `keys` name the clusters by something that stays when they are numbered anew.
    A second and 90 MB for each million clusters of level 1.

    sizes: (c1,) int64. parents: from the lowest level up, (c1,) int32 cluster of level 2 of each cluster, and so on;
    none: level 1 is the top. keys: (c1,) integers, none twice.
    Raises ValueError for a negative size or target, and for parents that do not fit one another.
    """
    sizes = np.asarray(sizes, dtype=np.int64)
    if target < 0 or (sizes < 0).any():
        raise ValueError(f"sizes and target must be at least 0, were {sizes.min(initial=0)} and {target}")
    counts = [len(sizes), *_counts_above(len(sizes), parents)]
    held, names = [sizes], [np.arange(len(sizes)) if keys is None else keys]
    for parent, count in zip(parents, counts[1:], strict=True):
        held.append(_sums(held[-1], parent, count))
        names.append(_sums(row_hash(names[-1], seed), parent, count))
    given = np.array([min(target, int(sizes.sum()))], dtype=np.int64)
    parents = [*parents, np.zeros(counts[-1], dtype=np.int32)]
    for level in reversed(range(len(counts))):
        given = _shared_out(given, held[level], parents[level], row_hash(names[level], seed, level))
    return given


def _drawn(seed: int, *keys: int) -> int:
    """A seed for one fit: an integer in [0, 2^31)."""
    return int(np.random.SeedSequence([seed, *keys]).generate_state(1)[0] >> 1)


def _nearest_of_each(cluster_id: np.ndarray, similarity: np.ndarray, per_cluster: int, *, at_least: int) -> np.ndarray:
    """The rows nearest to the centroid of each cluster: (m,) int64, sorted; equal ones by the lower row."""
    order = np.lexsort((-similarity, cluster_id))
    counts = np.bincount(cluster_id)
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    while np.minimum(counts, per_cluster).sum() < at_least:
        per_cluster *= 2
    return np.sort(order[rank < per_cluster])


def _counts_above(num_clusters: int, parents: Sequence[np.ndarray]) -> list[int]:
    """How many clusters each level above the first has. Raises ValueError for parents that do not fit one another."""
    counts = []
    for level, parent in enumerate(parents, 1):
        if len(parent) != num_clusters:
            raise ValueError(
                f"each of {num_clusters} clusters of level {level} must have one parent, had {len(parent)}"
            )
        above = len(parents[level]) if level < len(parents) else int(parent.max(initial=-1)) + 1
        if len(parent) and not 0 <= parent.min() <= parent.max() < above:
            raise ValueError(
                f"parents of level {level} must be in [0, {above}), were from {parent.min()} to {parent.max()}"
            )
        counts.append(above)
        num_clusters = above
    return counts


def _sums(values: np.ndarray, parent: np.ndarray, count: int) -> np.ndarray:
    """The sum of the values of each parent: (count,) of the values' dtype; hashes wrap around."""
    sums = np.zeros(count, dtype=values.dtype)
    np.add.at(sums, parent, values)
    return sums


def _shared_out(given: np.ndarray, sizes: np.ndarray, parent: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """What each child gets of what its parent was given: (c,) int64.

    given: (p,) int64, at most the sum of the children's sizes. sizes: (c,) int64. draw: (c,) uint64; where a parent has
    a remainder, its children above the cut with the smallest of them get one row more.
    """
    order = np.lexsort((sizes, parent))
    size, group = sizes[order], parent[order]
    counts = np.bincount(parent, minlength=len(given))
    starts = np.cumsum(counts) - counts
    before = np.cumsum(size) - size  # rows of all smaller children, those of other parents too
    before -= np.repeat(before[starts[counts > 0]], counts[counts > 0])
    beside = np.repeat(counts, counts) - (
        np.arange(len(size)) - np.repeat(starts, counts)
    )  # itself and the larger ones
    whole = before + size * beside <= given[group]
    # The smallest children, which give all that they have, and the rest, which share what these leave.
    num_whole = np.bincount(group[whole], minlength=len(given))
    left, sharers = given - _sums(size[whole], group[whole], len(given)), counts - num_whole
    cut, remainder = np.divmod(left, np.maximum(sharers, 1))
    found = np.where(whole, size, cut[group])
    rest = np.flatnonzero(~whole)
    rest = rest[np.lexsort((draw[order[rest]], group[rest]))]
    rank = np.arange(len(rest)) - np.repeat(np.cumsum(sharers) - sharers, sharers)
    found[rest[rank < remainder[group[rest]]]] += 1
    shares = np.empty_like(found)
    shares[order] = found
    return shares
