"""How many images each query and each cluster gives: the retrieval of DINOv2 appendix A.4, PAPER.md 1.1 to 1.3."""

from collections.abc import Callable
from functools import cache
from typing import Literal

import numpy as np

from lvd.tasks.algorithms.firsts import first_of_each

# Products of int64 above this are made with Python's integers.
INT64_SAFE = 1 << 62


def largest_remainder(sizes: np.ndarray, total: int) -> np.ndarray:
    """Shares of `total` in proportion to the sizes: (m,) int64, never above the sizes, summing to min(total, sum).

    Rounded down, and what is left goes to the largest remainders, equal ones by the lower index (Hamilton's method);
    in whole numbers throughout.

    sizes: (m,) int64, at least 0.
    Raises ValueError for a negative size or total.
    """
    sizes = np.asarray(sizes, dtype=np.int64)
    if total < 0 or (sizes < 0).any():
        raise ValueError(f"sizes and total must be at least 0, were {sizes.min(initial=0)} and {total}")
    available = int(sizes.sum())
    if total >= available:
        return sizes.copy()
    products = (sizes if int(sizes.max()) * total < INT64_SAFE else sizes.astype(object)) * total
    shares, remainders = (products // available).astype(np.int64), (products % available).astype(np.int64)
    left_over = total - int(shares.sum())
    shares[np.argsort(-remainders, kind="stable")[:left_over]] += 1
    return shares


def settle_collisions(
    query: np.ndarray,
    row: np.ndarray,
    similarity: np.ndarray,
    *,
    neighbors: int,
    policy: Literal["refill", "keep_once", "count"],
) -> np.ndarray:
    """The candidates that are retrieved: (j,) int64 indices into the input, sorted.

    refill: pairs are taken by descending similarity (equal ones: smaller query, then smaller row), each pool row once,
    each query up to `neighbors` rows: a row that two queries want goes to the nearer, the other goes on to its next.
    keep_once: each query's first `neighbors`; a row that several want goes to the nearest, and nothing takes its place.
    count: each query's first `neighbors`, repeats and all, as Table 15 counts them.
    The order of the input does not matter.

    query, row: (m,) int64, no pair twice; similarity: (m,) float. Every query comes with its nearest candidates, for
    `refill` more of them than `neighbors` (the search depth).
    Raises ValueError for neighbors < 1 or an unknown policy.
    """
    if neighbors < 1:
        raise ValueError(f"neighbors must be at least 1, was {neighbors}")
    order = np.lexsort((row, query, -similarity))
    if policy == "refill":
        return np.sort(order[_taken_in_turn(query[order], row[order], neighbors)])
    if policy not in ("keep_once", "count"):
        raise ValueError(f"policy must be 'refill', 'keep_once' or 'count', was {policy!r}")
    chosen = order[first_of_each(query[order], neighbors)]
    if policy == "keep_once":
        chosen = chosen[np.unique(row[chosen], return_index=True)[1]]
    return np.sort(chosen)


def cluster_sample(cluster_ids: np.ndarray, sizes: np.ndarray, *, per_cluster: int, max_images: int) -> np.ndarray:
    """Images to draw from each cluster: (c,) int64.

    min(size, per_cluster); where these sum to more than max_images, their largest-remainder shares of max_images, which
    they then sum to; equal remainders by the lower cluster id. The order of the clusters does not matter.

    cluster_ids: (c,) int64, the eligible clusters, none twice. sizes: (c,) int64, pool images in each.
    per_cluster, max_images: 10,000 and 1,000,000 in the paper.
    """
    order = np.argsort(cluster_ids, kind="stable")
    quotas = np.zeros(len(order), dtype=np.int64)
    quotas[order] = largest_remainder(np.minimum(sizes, per_cluster)[order], max_images)
    return quotas


def eligible_clusters(query_cluster_ids: np.ndarray, *, min_queries: int) -> np.ndarray:
    """The clusters that hold at least min_queries of the queries: (c,) int64, sorted.

    query_cluster_ids: (q,) integers. min_queries: the paper's "more than 3" is 4.
    """
    clusters, counts = np.unique(query_cluster_ids, return_counts=True)
    return clusters[counts >= min_queries].astype(np.int64)


def draw(size: int, quota: int, *, rng: np.random.Generator) -> np.ndarray:
    """Positions in [0, size) drawn uniformly without replacement: (quota,) int64, sorted.

    Memory grows with the quota, not with the size.
    Raises ValueError unless 0 <= quota <= size.
    """
    if not 0 <= quota <= size:
        raise ValueError(f"quota must be in [0, {size}], was {quota}")
    if quota > size // 2:
        return np.delete(np.arange(size, dtype=np.int64), draw(size, size - quota, rng=rng))
    drawn = np.zeros(0, dtype=np.int64)
    while len(drawn) < quota:
        more = rng.integers(size, size=quota - len(drawn) + 16, dtype=np.int64)
        # Sorted by hand: np.unique alone hashes, which takes a hundred times as long.
        drawn = np.sort(np.concatenate([drawn, more]))
        drawn = drawn[np.append(True, drawn[1:] != drawn[:-1])]
    return np.delete(drawn, rng.choice(len(drawn), size=len(drawn) - quota, replace=False))


def _taken_in_turn(query: np.ndarray, row: np.ndarray, neighbors: int) -> np.ndarray:
    """Which pairs are taken when each row goes once and each query takes up to `neighbors`, in order: (m,) bool."""
    query, row = (np.unique(ids, return_inverse=True)[1] for ids in (query, row))
    wanted = np.full(int(query.max(initial=-1)) + 1, neighbors, dtype=np.int64)
    is_free = np.ones(int(row.max(initial=-1)) + 1, dtype=np.bool_)
    return _turns()(query, row, wanted, is_free)


@cache
def _turns() -> Callable[..., np.ndarray]:
    """Compiled once in a process."""
    import numba

    @numba.njit(nogil=True)
    def turns(query, row, wanted, is_free):
        taken = np.zeros(len(row), dtype=np.bool_)
        for pair in range(len(row)):
            q, r = query[pair], row[pair]
            if is_free[r] and wanted[q] > 0:
                is_free[r] = False
                wanted[q] -= 1
                taken[pair] = True
        return taken

    return turns
