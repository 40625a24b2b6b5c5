"""Spherical k-means: centroids of unit rows by cosine similarity, with Faiss's start and search.

The update is ours: Faiss's own adds up counts and objective in float32, where both stop growing at 2^24, and splits
empty clusters in silence. Here counts are int64 and sums float64 (exact for float16 rows), blocks have a fixed size,
and a fit repeats bit for bit on one machine with one number of threads.
Sources: DINOv2 appendix A.4; k-means++: Arthur and Vassilvitskii 2007; AFK-MC2: Bachem et al., NeurIPS 2016.
"""

from dataclasses import dataclass

import numpy as np

from lvd.tasks.algorithms.allocation import draw
from lvd.tasks.algorithms.neighbours import nearest

# Rows per search; fixed, as Faiss takes other kernels for other sizes.
BLOCK = 8192
# Rows per step of the sums: they stay in the cache.
UPDATE_BLOCK = 1024
# The start is chosen among at most so many rows per cluster, as it needs them in float32.
START_ROWS_PER_CLUSTER = 32
# Up to so many clusters the start is k-means++ (seconds), beyond them AFK-MC2, nearly as good at a fifth of its cost.
KMEANS_PLUS_PLUS_CLUSTERS = 256
# Rows are stored in float16, which keeps a unit row's length within 0.0005.
NORM_TOLERANCE = 0.01
# A row that is nearer than this to its centroid is a copy of it: it starts no cluster of its own.
SAME_SIMILARITY = 1.0 - 1e-5


@dataclass(frozen=True)
class KMeansFit:
    """A fitted clustering.

    centroids: (k, d) float32, unit rows.
    objective: (iterations,) float64, mean similarity of the rows to their centroids, before each update.
    num_effective: clusters that hold a row of the sample; below k where it has fewer distinct rows than that.
    """

    centroids: np.ndarray
    objective: np.ndarray
    num_effective: int


def fit(sample: np.ndarray, *, num_clusters: int, iterations: int = 20, seed: int) -> KMeansFit:
    """The centroids of the sample, and how the fit went.

    sample: (n, d) float16 or float32, unit rows; with 256 per cluster, 0.6% of the objective is lost against all rows.
    num_clusters: 100,000 in the paper. iterations: 10 lose 0.5% of the objective against 50; 20 is usual.
    Raises ValueError for fewer rows than clusters, no cluster, no iteration, and a row that is not of unit length.
    """
    if not 1 <= num_clusters <= len(sample):
        raise ValueError(f"num_clusters must be in [1, {len(sample)}], the rows of the sample, was {num_clusters}")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, was {iterations}")
    _unit_norms(sample)
    centroids, objective = lloyd(sample, _start(sample, num_clusters, seed), iterations=iterations)
    cluster_id, _ = assign(sample, centroids)
    return KMeansFit(centroids, objective, num_effective=np.count_nonzero(np.bincount(cluster_id[:, 0])))


def lloyd(sample: np.ndarray, centroids: np.ndarray, *, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """The centroids (k, d) after so many updates, and the objective of each: (iterations,), as in `KMeansFit`.

    sample: (n, d), centroids: (k, d) float32, unit rows. Raises ValueError as `fit`.
    """
    norm, objective = _unit_norms(sample), np.zeros(iterations)
    for iteration in range(iterations):
        cluster_id, similarity = _search(sample, centroids)
        similarity /= norm
        objective[iteration] = similarity.mean(dtype=np.float64)
        centroids = _updated(sample, centroids, cluster_id, similarity)
    return centroids, objective


def assign(
    vectors: np.ndarray, centroids: np.ndarray, *, probes: int = 1, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest clusters of each vector: cluster_id (n, probes) int32, similarity (n, probes) float32, descending.

    Exact and rounded to 5 decimals, as in `neighbours.nearest`; ties go to the lowest id; past the last cluster come -1
    and -inf. How the vectors are cut into calls does not change the result.

    vectors: (n, d) float16 or float32, unit rows. centroids: (k, d) float32, unit rows.
    Raises ValueError for unlike widths and for a row that is not of unit length.
    """
    _unit_norms(vectors)
    similarity, cluster_id = nearest(vectors, [(0, centroids)], k=probes, device=device)
    return cluster_id.astype(np.int32), similarity


def sample_rows(num_rows: int, size: int, *, rng: np.random.Generator) -> np.ndarray:
    """Rows to fit on, drawn uniformly without replacement: (min(size, num_rows),) int64, sorted."""
    return draw(num_rows, min(size, num_rows), rng=rng)


def _unit_norms(vectors: np.ndarray) -> np.ndarray:
    """The lengths of the rows: (n,) float32. Raises ValueError that names the first row which is no finite unit row."""
    norm = np.empty(len(vectors), dtype=np.float32)
    for start in range(0, len(vectors), BLOCK):
        part = slice(start, start + BLOCK)
        norm[part] = np.linalg.norm(vectors[part].astype(np.float32), axis=1)
    wrong = np.flatnonzero(~(np.abs(norm - 1.0) <= NORM_TOLERANCE))
    if len(wrong):
        raise ValueError(f"row {wrong[0]} must be finite and of unit length, its length was {norm[wrong[0]]:.4g}")
    return norm


def _start(sample: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    """Rows of the sample far from one another, by k-means++ or its approximation AFK-MC2: (k, d) float32, unit rows."""
    import faiss

    rng = np.random.default_rng(seed)
    rows = np.ascontiguousarray(
        sample[sample_rows(len(sample), START_ROWS_PER_CLUSTER * num_clusters, rng=rng)], dtype=np.float32
    )
    start = faiss.ClusteringInitialization(rows.shape[1], num_clusters)
    small = num_clusters <= KMEANS_PLUS_PLUS_CLUSTERS
    start.method = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS if small else faiss.ClusteringInitMethod_AFK_MC2
    start.seed = int(rng.integers(2**31))
    centroids = np.empty((num_clusters, rows.shape[1]), dtype=np.float32)
    start.init_centroids(len(rows), faiss.swig_ptr(rows), faiss.swig_ptr(centroids))
    return centroids / np.linalg.norm(centroids, axis=1, keepdims=True)


def _search(sample: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centroid of each row: cluster_id (n,) int64, similarity (n,) float32."""
    import faiss

    index = faiss.IndexFlatIP(centroids.shape[1])
    index.add(centroids)
    cluster_id, similarity = np.empty(len(sample), dtype=np.int64), np.empty(len(sample), dtype=np.float32)
    for start in range(0, len(sample), BLOCK):
        part = slice(start, start + BLOCK)
        found, ids = index.search(np.ascontiguousarray(sample[part], dtype=np.float32), 1)
        cluster_id[part], similarity[part] = ids[:, 0], found[:, 0]
    return cluster_id, similarity


def _updated(sample: np.ndarray, centroids: np.ndarray, cluster_id: np.ndarray, similarity: np.ndarray) -> np.ndarray:
    """The unit means of the clusters: (k, d) float32.

    An empty cluster starts again at one of the rows that are furthest from their centroids, one row for each similarity
    so that no two start at copies of one another. It stays as it was when all rows are at their centroids, as does a
    cluster whose rows cancel out.
    """
    import torch

    sums = np.zeros(centroids.shape, dtype=np.float64)
    for start in range(0, len(sample), UPDATE_BLOCK):
        part = slice(start, start + UPDATE_BLOCK)
        rows = torch.from_numpy(sample[part].astype(np.float64))
        torch.from_numpy(sums).index_add_(0, torch.from_numpy(cluster_id[part]), rows)
    empty = np.flatnonzero(np.bincount(cluster_id, minlength=len(centroids)) == 0)
    if len(empty):
        distinct, rows = np.unique(similarity.round(5), return_index=True)
        rows = rows[distinct < SAME_SIMILARITY][: len(empty)]
        sums[empty[: len(rows)]] = sample[rows]
    norm = np.linalg.norm(sums, axis=1, keepdims=True)
    means = np.divide(sums, norm, out=centroids.astype(np.float64), where=norm > 1e-6)
    return means.astype(np.float32)
