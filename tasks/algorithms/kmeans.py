"""Spherical k-means: centroids of unit rows by cosine similarity, on a sample in memory or by full passes over shards.

A pass over some of the rows gives their sums by nearest centroid (`pass_over`); those of all parts are merged, in any
order and in any tree, and the centroids follow from them (`updated`). Rows are stored in half precision, products made
in single precision, sums kept in float64 and counts in int64, both exact (see `assignment`): the number of shards,
threads, workers and devices cannot change a bit of the result. Faiss's own update adds up counts and objective in
float32, where both stop growing at 2^24, and splits empty clusters in silence; only its starts are used.
Sources: DINOv2 appendix A.4; k-means++: Arthur and Vassilvitskii 2007; AFK-MC2: Bachem et al., NeurIPS 2016.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Literal, NamedTuple

import numpy as np

from lvd.tasks.algorithms.allocation import draw
from lvd.tasks.algorithms.assignment import NORM_TOLERANCE, Assigner, on_grid
from lvd.tasks.algorithms.neighbours import KEY_ZERO, NOTHING, SCALE, nearest

# Rows that go to a device at a time.
BLOCK = 8192
# The start is chosen among at most so many rows per cluster, as it needs them in float32.
START_ROWS_PER_CLUSTER = 32
# Up to so many clusters the start is k-means++ (seconds), beyond them AFK-MC2, nearly as good at a fifth of its cost.
KMEANS_PLUS_PLUS_CLUSTERS = 256
# A row that is nearer than this to its centroid is a copy of it: it starts no cluster of its own.
SAME_SIMILARITY = 1.0 - 1e-5
# Of the cluster sizes, in `Iteration`.
QUANTILES = (0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0)

StartMethod = Literal["auto", "k-means++", "afk-mc2", "random"]


@dataclass(frozen=True)
class Sums:
    """What one pass over some rows found, under the same centroids for all rows.

    The spares are the rows furthest from their centroids, where empty clusters start again: by ascending cosine and one
    row (the lowest) for each, as rows of one cosine may be copies of one another; none that is a copy of its centroid.
    """

    sums: np.ndarray  # (k, d) float64
    counts: np.ndarray  # (k,) int64
    spare_rows: np.ndarray  # (s,) int64
    spare_similarity: np.ndarray  # (s,) float32: cosine, rounded to 5 decimals
    spare_vectors: np.ndarray  # (s, d) float16


@dataclass(frozen=True)
class Iteration:
    """How the rows lay about the centroids before an update."""

    objective: float  # mean inner product of the rows with their centroids
    imbalance: float  # k x (sum of squared sizes) / n^2: 1 where all clusters are equal, k where one holds all rows
    num_empty: int
    sizes: tuple[int, ...]  # the QUANTILES of the cluster sizes


class Progress(NamedTuple):
    """A fit after so many updates: all that it takes to go on from there."""

    centroids: np.ndarray  # (k, d) float32, unit rows
    iterations: tuple[Iteration, ...]


@dataclass(frozen=True)
class KMeansFit:
    """A fitted clustering. counts: rows of the sample that are nearest to each centroid."""

    centroids: np.ndarray  # (k, d) float32, unit rows
    iterations: tuple[Iteration, ...]
    counts: np.ndarray  # (k,) int64

    @property
    def num_effective(self) -> int:
        """Clusters that hold a row of the sample: k, unless it has few distinct rows."""
        return int(np.count_nonzero(self.counts))

    @property
    def objective(self) -> np.ndarray:
        """Mean similarity of the rows to their centroids before each update: (iterations,) float64."""
        return np.array([iteration.objective for iteration in self.iterations])


def fit(
    sample: np.ndarray,
    *,
    num_clusters: int,
    iterations: int = 20,
    seed: int,
    start_method: StartMethod = "auto",
    min_gain: float = 0.0,
    devices: tuple[str, ...] = ("cpu",),
    progress: Progress | None = None,
    on_iteration: Callable[[Progress], None] | None = None,
) -> KMeansFit:
    """The centroids of the sample, and how the fit went.

    sample: (n, d) float16 or float32, unit rows; with 256 per cluster, 0.6% of the objective is lost against all rows.
    num_clusters: 100,000 in the paper. iterations: 10 lose 0.5% of the objective against 50; 20 is usual.
    progress: goes on from there, to the end that the uninterrupted fit has. The rest as in `start` and `lloyd`.
    Raises ValueError for fewer rows than clusters, no cluster, no iteration, progress of other clusters, and a row that
    is not of unit length.
    """
    _check_number(num_clusters, sample)
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, was {iterations}")
    if progress is None:
        progress = Progress(start(sample, num_clusters, method=start_method, seed=seed), ())
    elif progress.centroids.shape != (num_clusters, sample.shape[1]):
        raise ValueError(
            f"progress must be of {num_clusters} centroids of {sample.shape[1]} values, "
            f"was of the shape {progress.centroids.shape}: start anew without it"
        )
    done = lloyd(
        sample,
        progress.centroids,
        iterations=iterations,
        min_gain=min_gain,
        devices=devices,
        before=progress.iterations,
        on_iteration=on_iteration,
    )
    counts = _pass_over_sample(sample, done.centroids, devices, spares=0).counts
    return KMeansFit(done.centroids, done.iterations, counts)


def lloyd(
    sample: np.ndarray,
    centroids: np.ndarray,
    *,
    iterations: int,
    min_gain: float = 0.0,
    devices: tuple[str, ...] = ("cpu",),
    before: tuple[Iteration, ...] = (),
    on_iteration: Callable[[Progress], None] | None = None,
) -> Progress:
    """The centroids after so many updates, those `before` counted.

    sample: (n, d), centroids: (k, d) float32, unit rows.
    min_gain: stops once the objective grew by less than this part of itself; 0 never stops. 1e-4 to 1e-3 is usual.
    devices: they share the blocks of the sample. on_iteration: called after every update.
    Raises ValueError for unlike widths and for a row that is not of unit length.
    """
    progress = Progress(centroids, before)
    while len(progress.iterations) < iterations and not has_settled(
        [one.objective for one in progress.iterations], min_gain
    ):
        sums = _pass_over_sample(sample, progress.centroids, devices, spares=len(centroids))
        done = (*progress.iterations, iteration_of(sums, progress.centroids))
        progress = Progress(updated(sums, progress.centroids), done)
        if on_iteration is not None:
            on_iteration(progress)
    return progress


def pass_over(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]], centroids: np.ndarray, *, spares: int, device: str = "cpu"
) -> Sums:
    """The sums of the rows of these blocks by nearest centroid.

    blocks: (row numbers (n,) int64, vectors (n, d) float16), no row twice in all blocks that are merged.
    centroids: (k, d) float32 unit rows; results are exact for those of `start` and `updated`, which lie on a grid.
    spares: rows kept to start empty clusters again, at most; as many as clusters may turn out empty.
    Raises ValueError for unlike widths and for a row that is not of unit length.
    """
    furthest = _Furthest(spares, centroids.shape[1])
    with Assigner(centroids, device=device, with_sums=True) as assigner:
        for rows, vectors in blocks:
            found = assigner.nearest(vectors, rows)
            furthest.add(rows, found.cosine, vectors)
        sums, counts = assigner.sums
    return Sums(sums, counts, *furthest.kept())


def merged(parts: Iterable[Sums], *, spares: int) -> Sums:
    """The sums of all parts, the same for any order and any tree of them. Raises ValueError for no part."""
    remaining = iter(parts)
    first = next(remaining, None)
    if first is None:
        raise ValueError("parts must hold at least 1 part, held 0")
    sums, counts = first.sums.copy(), first.counts.copy()
    furthest = _Furthest(spares, sums.shape[1])
    furthest.add_spares(first)
    for part in remaining:
        sums += part.sums
        counts += part.counts
        furthest.add_spares(part)
    return Sums(sums, counts, *furthest.kept())


def updated(sums: Sums, centroids: np.ndarray) -> np.ndarray:
    """The unit means of the clusters: (k, d) float32, on the grid of `assignment.on_grid`.

    Empty clusters start again at the spares, in order. Without one, a cluster stays as it was, as does one whose rows
    cancel out.

    centroids: (k, d) float32, those of the pass.
    """
    totals = sums.sums.copy()
    again = np.flatnonzero(sums.counts == 0)[: len(sums.spare_rows)]
    totals[again] = sums.spare_vectors[: len(again)]
    length = np.sqrt(_inner_products()(totals, totals))[:, None]
    return on_grid(np.divide(totals, length, out=centroids.astype(np.float64), where=length > 1e-6))


def iteration_of(sums: Sums, centroids: np.ndarray) -> Iteration:
    """How the rows of the sums lie about the centroids, those of the pass. Raises ValueError for sums of no row."""
    num_rows = int(sums.counts.sum())
    if num_rows == 0:
        raise ValueError("sums must be of at least 1 row, were of 0")
    products = _inner_products()(sums.sums, centroids)
    squares = sum(size * size for size in sums.counts.tolist())
    return Iteration(
        objective=float(np.cumsum(products)[-1]) / num_rows,
        imbalance=len(centroids) * squares / num_rows**2,
        num_empty=int(np.count_nonzero(sums.counts == 0)),
        sizes=tuple(np.quantile(sums.counts, QUANTILES, method="inverted_cdf").tolist()),
    )


def start(sample: np.ndarray, num_clusters: int, *, method: StartMethod = "auto", seed: int) -> np.ndarray:
    """Where a fit begins: (k, d) float32, unit rows.

    k-means++: rows of the sample far from one another; afk-mc2: an approximation of that by a Markov chain; auto: the
    first for few clusters, the second for many; random: distinct rows.
    Raises ValueError as `fit`, and for an unknown method.
    """
    _check_number(num_clusters, sample)
    _unit_norms(sample)
    rng = np.random.default_rng(seed)
    if method == "random":
        rows = sample[sample_rows(len(sample), num_clusters, rng=rng)].astype(np.float64)
    elif method in ("auto", "k-means++", "afk-mc2"):
        rows = _far_apart(sample, num_clusters, method, rng).astype(np.float64)
    else:
        raise ValueError(f"method must be 'auto', 'k-means++', 'afk-mc2' or 'random', was {method!r}")
    return on_grid(rows / np.sqrt(_inner_products()(rows, rows))[:, None])


def assign(
    vectors: np.ndarray, centroids: np.ndarray, *, probes: int = 1, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest clusters of each vector: cluster_id (n, probes) int32, similarity (n, probes) float32, descending.

    Exact and rounded to 5 decimals, as in `neighbours.nearest`; ties go to the lowest id; past the last cluster come -1
    and -inf. How the vectors are cut into calls does not change the result.

    vectors: (n, d) float16 or float32, unit rows. centroids: (k, d) float32, unit rows.
    Raises ValueError for unlike widths and for a row that is not of unit length.
    """
    if probes == 1 and len(centroids):
        with Assigner(centroids, device=device) as assigner:
            found = assigner.nearest(vectors)
        return found.cluster_id[:, None].astype(np.int32), (found.product[:, None] / SCALE).astype(np.float32)
    _unit_norms(vectors)
    similarity, cluster_id = nearest(vectors, [(0, centroids)], k=probes, device=device)
    return cluster_id.astype(np.int32), similarity


def sample_rows(num_rows: int, size: int, *, rng: np.random.Generator) -> np.ndarray:
    """Rows to fit on, drawn uniformly without replacement: (min(size, num_rows),) int64, sorted."""
    return draw(num_rows, min(size, num_rows), rng=rng)


class _Furthest:
    """The spares among the rows that were added, in any order: see `Sums`."""

    def __init__(self, size: int, dimension: int) -> None:
        self._size = size
        self._lowest = np.full(2 * KEY_ZERO, NOTHING, dtype=np.int64)  # row, by cosine in units of 1e-5 + KEY_ZERO
        self._end = round(SAME_SIMILARITY * SCALE) + 1  # from it on, no row can be a spare any more
        self._parts = [(np.zeros((2, 0), dtype=np.int64), np.zeros((0, dimension), dtype=np.float16))]
        self._pending = 0

    def add(self, rows: np.ndarray, units: np.ndarray, vectors: np.ndarray) -> None:
        """rows: (n,) int64; units: (n,) int64 cosines in units of 1e-5; vectors: (n, d)."""
        some = np.flatnonzero((units < self._end) & (rows < self._lowest[units + KEY_ZERO])) if self._size else []
        if not len(some):
            return
        some = some[_first_of_each(units[some], rows[some])]
        self._lowest[units[some] + KEY_ZERO] = rows[some]
        self._parts.append((np.stack([units[some], rows[some]]), vectors[some].astype(np.float16)))
        self._pending += len(some)
        if self._pending > 2 * self._size:
            self._thin()

    def add_spares(self, part: Sums) -> None:
        units = np.rint(part.spare_similarity.astype(np.float64) * SCALE).astype(np.int64)
        self.add(part.spare_rows, units, part.spare_vectors)

    def kept(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(rows, similarity, vectors), as `Sums` has them."""
        self._thin()
        ((units, rows), vectors) = self._parts[0]
        return rows, (units / SCALE).astype(np.float32), vectors

    def _thin(self) -> None:
        keys = np.concatenate([part[0] for part in self._parts], axis=1)
        keep = _first_of_each(*keys)[: self._size]
        vectors = np.concatenate([part[1] for part in self._parts])[keep]
        self._parts, self._pending = [(keys[:, keep], vectors)], len(keep)
        if len(keep) == self._size > 0:
            self._end = int(keys[0, keep[-1]]) + 1


def _first_of_each(units: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Indices of the lowest row of each value, by ascending value: (m,) int64."""
    order = np.lexsort((rows, units))
    return order[np.unique(units[order], return_index=True)[1]]


def _pass_over_sample(sample: np.ndarray, centroids: np.ndarray, devices: tuple[str, ...], *, spares: int) -> Sums:
    """The sums of all rows: each device takes the next block as soon as it is done with its last."""
    waiting, taking = iter(range(0, len(sample), BLOCK)), Lock()

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        while True:
            with taking:
                begin = next(waiting, None)
            if begin is None:
                return
            vectors = sample[begin : begin + BLOCK]
            yield np.arange(begin, begin + len(vectors)), vectors

    def one(device: str) -> Sums:
        return pass_over(blocks(), centroids, spares=spares, device=device)

    if len(devices) == 1:
        return one(devices[0])
    with ThreadPoolExecutor(len(devices)) as threads:
        return merged(threads.map(one, devices), spares=spares)


def has_settled(objectives: list[float], min_gain: float) -> bool:
    """Whether the last iteration raised the objective by less than this share of it; never, if that is 0."""
    if min_gain <= 0 or len(objectives) < 2:
        return False
    return objectives[-1] - objectives[-2] < min_gain * abs(objectives[-2])


def _check_number(num_clusters: int, sample: np.ndarray) -> None:
    if not 1 <= num_clusters <= len(sample):
        raise ValueError(f"num_clusters must be in [1, {len(sample)}], the rows of the sample, was {num_clusters}")


def _unit_norms(vectors: np.ndarray) -> None:
    """Raises ValueError that names the first row which is no finite unit row."""
    for start in range(0, len(vectors), BLOCK):
        norm = np.linalg.norm(vectors[start : start + BLOCK].astype(np.float32), axis=1)
        wrong = np.flatnonzero(~(np.abs(norm - 1.0) <= NORM_TOLERANCE))
        if len(wrong):
            raise ValueError(
                f"row {start + wrong[0]} must be finite and of unit length, its length was {norm[wrong[0]]:.4g}"
            )


def _far_apart(sample: np.ndarray, num_clusters: int, method: str, rng: np.random.Generator) -> np.ndarray:
    """Rows of the sample, by k-means++ or AFK-MC2: (k, d) float32."""
    import faiss

    rows = np.ascontiguousarray(
        sample[sample_rows(len(sample), START_ROWS_PER_CLUSTER * num_clusters, rng=rng)], dtype=np.float32
    )
    initial = faiss.ClusteringInitialization(rows.shape[1], num_clusters)
    exact = method == "k-means++" or (method == "auto" and num_clusters <= KMEANS_PLUS_PLUS_CLUSTERS)
    initial.method = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS if exact else faiss.ClusteringInitMethod_AFK_MC2
    initial.seed = int(rng.integers(2**31))
    centroids = np.empty((num_clusters, rows.shape[1]), dtype=np.float32)
    initial.init_centroids(len(rows), faiss.swig_ptr(rows), faiss.swig_ptr(centroids))
    return centroids


@cache
def _inner_products() -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Inner products of the rows of two (k, d) arrays, one by one: (k,) float64.

    Compiled once in a process, and summed from the first value to the last, as NumPy's own order depends on the
    processor.
    """
    import numba

    @numba.njit(nogil=True)
    def products(a, b):
        found = np.zeros(len(a))
        for i in range(len(a)):
            for d in range(a.shape[1]):
                found[i] += np.float64(a[i, d]) * np.float64(b[i, d])
        return found

    return products
