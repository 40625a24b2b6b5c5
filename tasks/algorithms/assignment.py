"""The nearest centroid of every row, and the sums of the rows by centroid: the inner loop of k-means, on any device.

A float32 product of a tile screens; whatever may be the nearest within the error of that product is scored again in
float64, and the comparison is made on that second score, rounded to 5 decimals, as in `neighbours.nearest`. The screen
is therefore free to come from any kernel. For float16 rows and centroids that `on_grid` has rounded, the second score
has no error at all: its terms are multiples of 2^-52 and all their sums below 2. Nor have the sums of the rows,
multiples of 2^-24 in float64, as long as none of their values exceeds 2^29: more than 5 x 10^8 rows of one cluster. So
neither tiles nor blocks, threads, processors or devices can change a bit of what comes back. With float32 rows the last
bits of the sums follow the order of the rows.

Cost: 2 x n x k x d operations; what comes on top took 13 to 20% of the CPU time (d = 1,280 and 256).
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from lvd.tasks.algorithms.neighbours import KEY_ZERO, NOTHING, ROW_BITS, SCALE, SCREEN_MARGIN, on_device
from lvd.tasks.algorithms.scoring import CHUNK, highest

if TYPE_CHECKING:
    import torch

# Of a screen that fits in a processor's last cache, or nearly, or in 256 MB of a GPU's memory. Smaller ones slow the
# product down.
ROW_TILE, CENTROID_TILE = 2048, 4096
GPU_ROW_TILE, GPU_CENTROID_TILE = 8192, 8192
# Centroids are multiples of 2^-28, which moves them by no more than float32 does.
GRID = float(1 << 28)
# Rows are stored in float16, which keeps a unit row's length within 0.0005.
NORM_TOLERANCE = 0.01


class Assigned(NamedTuple):
    """What was found for some rows: three (n,) int64 arrays; similarities are in units of 1e-5."""

    cluster_id: np.ndarray
    product: np.ndarray  # the inner product with the centroid
    cosine: np.ndarray  # that divided by the row's length, which float16 leaves within 0.0005 of 1


def on_grid(centroids: np.ndarray) -> np.ndarray:
    """Centroids rounded to multiples of 2^-28, so that float64 products with float16 rows are exact: (k, d) float32."""
    return (np.rint(centroids * GRID) / GRID).astype(np.float32)


class Assigner:
    """Centroids ready to be compared with rows, on one device; it keeps sums and counts of the rows that were added.

    A context manager, which ends its threads.
    """

    def __init__(self, centroids: np.ndarray, *, device: str = "cpu", with_sums: bool = False) -> None:
        """centroids: (k, d) float32 unit rows. Raises ValueError for a centroid that is not finite or too long."""
        import torch

        self._centroids = on_device(centroids, device, of="centroid ")
        self._device, self._is_host = device, self._centroids.device.type == "cpu"
        self._error = _screen_error(centroids.shape[1])
        self._row_tile = ROW_TILE if self._is_host else GPU_ROW_TILE
        self._centroid_tile = CENTROID_TILE if self._is_host else GPU_CENTROID_TILE
        self._num_threads = torch.get_num_threads() if self._is_host else 1
        self._threads = ThreadPoolExecutor(self._num_threads)
        # One buffer each: fresh memory for every tile would cost as much as its pages take to come.
        self._tile = torch.empty((self._row_tile, centroids.shape[1]), device=device)
        self._screen = torch.empty(self._row_tile * min(self._centroid_tile, len(centroids)), device=device)
        shape = centroids.shape if with_sums else (0, centroids.shape[1])
        self._sums = torch.zeros(shape, dtype=torch.float64, device=device)
        self._counts = torch.zeros(shape[0], dtype=torch.int64, device=device)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()

    @property
    def sums(self) -> tuple[np.ndarray, np.ndarray]:
        """The sums (k, d) float64 and counts (k,) int64 of all rows so far."""
        return self._sums.cpu().numpy(), self._counts.cpu().numpy()

    def nearest(self, vectors: np.ndarray, rows: np.ndarray | None = None) -> Assigned:
        """The nearest centroid of each row, the lowest of equal ones. With sums, the rows are added to theirs.

        vectors: (n, d) float16 or float32 unit rows. rows: (n,) their numbers in a collection, for errors.
        Raises ValueError for rows of another width than the centroids', and for one that is not of unit length.
        """
        if vectors.shape[1] != self._centroids.shape[1]:
            wide = self._centroids.shape[1]
            raise ValueError(f"centroids must be as wide as the vectors, {vectors.shape[1]}, were {wide} wide")
        found = np.empty((3, len(vectors)), dtype=np.int64)
        for start in range(0, len(vectors), self._row_tile):
            part = slice(start, start + self._row_tile)
            tile = self._rows(vectors[part])
            key, length, cosine = (self._nearest_by_numba if self._is_host else self._nearest_by_torch)(tile)
            wrong = np.flatnonzero(~(np.abs(length - 1.0) <= NORM_TOLERANCE))
            if len(wrong):
                row = start + wrong[0] if rows is None else rows[start + wrong[0]]
                raise ValueError(f"row {row} must be finite and of unit length, its length was {length[wrong[0]]:.4g}")
            found[:, part] = key & ((1 << ROW_BITS) - 1), KEY_ZERO - (key >> ROW_BITS), cosine
            if len(self._sums):
                self._add(tile, found[0, part])
        return Assigned(*found)

    def _rows(self, vectors: np.ndarray) -> "torch.Tensor":
        import torch

        return self._tile[: len(vectors)].copy_(torch.from_numpy(np.array(vectors, order="C")))

    def _screens(self, tile: "torch.Tensor") -> Iterator[tuple[int, "torch.Tensor", "torch.Tensor"]]:
        """(number of the first centroid, some centroids (c, d), their float32 products with the tile (n, c))."""
        import torch

        for first in range(0, len(self._centroids), self._centroid_tile):
            centroids = self._centroids[first : first + self._centroid_tile]
            screen = self._screen[: len(tile) * len(centroids)].view(len(tile), len(centroids))
            yield first, centroids, torch.mm(tile, centroids.T, out=screen)

    def _nearest_by_numba(self, tile: "torch.Tensor") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each row of the tile: its best key, its length, and its cosine in units of 1e-5."""
        key = np.full(len(tile), NOTHING, dtype=np.int64)
        product = np.full(len(tile), -2.0)
        for first, centroids, screen in self._screens(tile):
            self._in_parts(
                len(tile),
                _compiled().settle,
                screen.numpy(), tile.numpy(), centroids.numpy(), first, self._error, key, product,
            )  # fmt: skip
        length = np.empty(len(tile))
        self._in_parts(len(tile), _compiled().lengths, tile.numpy(), length)
        with np.errstate(divide="ignore", invalid="ignore"):
            cosine = np.rint(np.nan_to_num(product / length) * SCALE).astype(np.int64)
        return key, length, cosine

    def _nearest_by_torch(self, tile: "torch.Tensor") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `_nearest_by_numba`, on a GPU."""
        import torch

        key = torch.full((len(tile),), NOTHING, dtype=torch.int64, device=tile.device)
        length = torch.linalg.vector_norm(tile.double(), dim=1)
        for first, centroids, screen in self._screens(tile):
            settled = torch.where(key == NOTHING, -2.0, (KEY_ZERO - (key >> ROW_BITS)) / SCALE)
            bound = torch.maximum(screen.amax(dim=1) - self._error, settled - 1 / SCALE) - self._error - 1 / SCALE
            row, column = torch.nonzero(screen >= bound[:, None], as_tuple=True)
            for part in torch.arange(len(row), device=tile.device).split(self._row_tile):
                own, other = row[part], column[part]
                units = torch.round((tile[own].double() * centroids[other].double()).sum(dim=1) * SCALE)
                found = ((KEY_ZERO - units.to(torch.int64)) << ROW_BITS) | (other + first)
                key.scatter_reduce_(0, own, found, "amin")
        nearest = self._centroids[(key & ((1 << ROW_BITS) - 1)).clamp(max=len(self._centroids) - 1)]
        product = (tile.double() * nearest.double()).sum(dim=1)
        cosine = torch.round(torch.nan_to_num(product / length) * SCALE).to(torch.int64)
        return key.cpu().numpy(), length.cpu().numpy(), cosine.cpu().numpy()

    def _add(self, tile: "torch.Tensor", cluster_id: np.ndarray) -> None:
        import torch

        ids = torch.from_numpy(np.ascontiguousarray(cluster_id)).to(self._device)
        self._counts += torch.bincount(ids, minlength=len(self._counts))
        if self._is_host:
            order = np.argsort(cluster_id, kind="stable")
            self._in_parts(tile.shape[1], _compiled().add, tile.numpy(), order, cluster_id, self._sums.numpy())
        else:
            self._sums.index_add_(0, ids, tile.double())

    def _in_parts(self, size: int, compiled: Callable[..., None], *arrays: Any) -> None:
        """Runs a compiled loop over [0, size), a part on each thread."""
        ends = np.linspace(0, size, self._num_threads + 1).astype(int).tolist()
        list(self._threads.map(lambda begin, end: compiled(*arrays, begin, end), ends, ends[1:]))


def _screen_error(dimension: int) -> float:
    """Above the error of a float32 product of unit rows, whatever the order of its sum: d roundings of 2^-24 each.

    Where torch is set to use a coarser format, above the error of that.
    """
    import torch

    exact = torch.get_float32_matmul_precision() == "highest"
    return (dimension + 16) * 2.0**-24 * 1.02 if exact else SCREEN_MARGIN


class _Loops(NamedTuple):
    settle: Callable[..., None]
    lengths: Callable[..., None]
    add: Callable[..., None]


@cache
def _compiled() -> _Loops:
    """Compiled once in a process. The float64 sums of float16 rows are exact, so their order may change."""
    import numba

    @numba.njit(nogil=True, fastmath={"reassoc", "contract", "nsz"})
    def dot(a, b):
        total = 0.0
        for d in range(len(a)):
            total += np.float64(a[d]) * np.float64(b[d])
        return total

    top_of = highest()

    @numba.njit(nogil=True)
    def settle(screen, rows, centroids, first, error, key, product, begin, end):
        size = screen.shape[1]
        tops = np.empty((size + CHUNK - 1) // CHUNK, dtype=np.float32)
        for i in range(begin, end):
            for chunk in range(len(tops)):
                tops[chunk] = top_of(screen[i, chunk * CHUNK : min(size, (chunk + 1) * CHUNK)])
            bound = max(top_of(tops) - error, product[i]) - error - 1.0 / SCALE
            for chunk in range(len(tops)):
                if tops[chunk] >= bound:
                    near = screen[i, chunk * CHUNK : min(size, (chunk + 1) * CHUNK)]
                    for j in range(len(near)):
                        if near[j] >= bound:
                            column = chunk * CHUNK + j
                            score = dot(rows[i], centroids[column])
                            found = ((KEY_ZERO - np.int64(np.rint(score * SCALE))) << ROW_BITS) | (first + column)
                            if found < key[i]:
                                key[i], product[i] = found, score

    @numba.njit(nogil=True)
    def lengths(rows, length, begin, end):
        for i in range(begin, end):
            length[i] = np.sqrt(dot(rows[i], rows[i]))

    @numba.njit(nogil=True)
    def add(rows, order, cluster_id, sums, begin, end):
        for i in order:
            row, total = rows[i, begin:end], sums[cluster_id[i], begin:end]
            for d in range(len(row)):  # of slices, so that LLVM sees no index below 0 and makes it wide
                total[d] += row[d]

    return _Loops(settle, lengths, add)
