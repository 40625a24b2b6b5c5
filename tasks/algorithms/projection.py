"""Vectors on a plane, so that those which are alike lie together: principal components, then exact t-SNE.

No library of the lock has t-SNE or UMAP, and 2,000 points need no tree: every pair is looked at every time, in
a compiled loop (4 s of one core for 2,000 points, and 3 s to compile it). The same vectors give the same plane: it
starts at the principal components, nothing is drawn at random. Sources: van der Maaten and Hinton 2008; the start and
the learning rate: Kobak and Berens 2019, Belkina et al. 2019.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np

PERPLEXITY = 30.0  # neighbours that count; raising it shows coarser structure, usual 5 to 50
EXAGGERATION = 12.0  # of the attraction, in the first iterations
EXAGGERATED, ITERATIONS = 200, 500  # the first of them exaggerated
DIM = 50  # principal components that neighbours are looked up by


def principal(vectors: np.ndarray, dim: int) -> np.ndarray:
    """(n, min(dim, d)) float64: the first principal components of the rows, the one of largest variance first.

    vectors: (n, d), any float. The largest loading of every component is positive, so that its sign is settled.
    """
    from scipy.linalg import eigh

    centred = vectors.astype(np.float64) - (vectors.mean(axis=0, dtype=np.float64) if len(vectors) else 0.0)
    d = centred.shape[1]
    axes = eigh(centred.T @ centred, subset_by_index=[max(0, d - dim), d - 1])[1][:, ::-1]
    largest = axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])]
    return centred @ (axes * np.where(largest < 0, -1.0, 1.0))


def on_a_plane(vectors: np.ndarray) -> np.ndarray:
    """(n, 2) float32 in [0, 1]: where each row lies; rows that are alike lie together, far distances mean nothing.

    vectors: (n, d), any float. Below five rows they are the principal components.
    """
    reduced = principal(vectors, DIM)
    reduced = np.pad(reduced, ((0, 0), (0, max(0, 2 - reduced.shape[1]))))
    points = reduced[:, :2] if len(reduced) < 5 else _tsne(reduced)
    low, high = (points.min(axis=0), points.max(axis=0)) if len(points) else (np.zeros(2), np.ones(2))
    span = max(float((high - low).max()), 1e-12)
    return (0.5 + (points - (low + high) / 2) / span).astype(np.float32)


def affinities(rows: np.ndarray, perplexity: float) -> tuple[np.ndarray, np.ndarray]:
    """((n, k) int64, (n, k) float64): the nearest rows of every row, and how much each counts; every row sums to 1.

    A Gaussian whose width gives each row that perplexity, over its 3 × perplexity nearest rows.
    """
    n = len(rows)
    count = min(n - 1, max(1, round(3 * perplexity)))
    square = (rows**2).sum(axis=1)
    distance = np.maximum(square[:, None] + square[None, :] - 2 * rows @ rows.T, 0.0)
    np.fill_diagonal(distance, np.inf)
    near = np.argsort(distance, axis=1, kind="stable")[:, :count]
    distance = np.take_along_axis(distance, near, axis=1)
    distance -= distance[:, :1]
    low, high = np.zeros(n), np.full(n, np.inf)
    beta = 1.0 / np.maximum(distance.mean(axis=1), 1e-12)
    for _ in range(60):
        weight = np.exp(-distance * beta[:, None])
        share = weight / weight.sum(axis=1, keepdims=True)
        is_wide = np.exp(-(share * np.log(np.maximum(share, 1e-300))).sum(axis=1)) > perplexity
        low, high = np.where(is_wide, beta, low), np.where(is_wide, high, beta)
        beta = np.where(np.isinf(high), 2 * low, (low + high) / 2)
    return near, share


def _tsne(rows: np.ndarray) -> np.ndarray:
    """(n, 2) float64. rows: (n, p) float64, principal components in their order."""
    from scipy.sparse import csr_matrix

    n = len(rows)
    near, share = affinities(rows, min(PERPLEXITY, (n - 1) / 3))
    directed = csr_matrix((share.ravel(), near.ravel(), np.arange(0, near.size + 1, near.shape[1])), shape=(n, n))
    joint = ((directed + directed.T) / (2 * n)).tocsr()
    starts = rows[:, :2] / max(rows[:, 0].std(), 1e-12) * 1e-4
    points, velocity, gains = starts.copy(), np.zeros((n, 2)), np.ones((n, 2))
    rate, loops = max(n / EXAGGERATION / 4, 50.0), _loops()
    for iteration in range(ITERATIONS):
        is_early = iteration < EXAGGERATED
        away, total = loops.away(points[:, 0].astype(np.float32), points[:, 1].astype(np.float32))
        towards = loops.towards(joint.indptr, joint.indices, joint.data, points)
        gradient = 4 * ((EXAGGERATION if is_early else 1.0) * towards - away / total)
        gains = np.maximum(np.where(np.sign(gradient) != np.sign(velocity), gains + 0.2, gains * 0.8), 0.01)
        velocity = (0.5 if is_early else 0.8) * velocity - rate * gains * gradient
        points += velocity
        points -= points.mean(axis=0)
    return points


class _Loops(NamedTuple):
    """The compiled loops over pairs of points; forces are (n, 2) float64."""

    away: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, float]]  # x, y (n,) float32 → forces, sum of the weights
    towards: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # a CSR matrix, points → forces


@cache
def _loops() -> _Loops:
    from numba import njit

    @njit(nogil=True, fastmath={"reassoc", "contract", "nsz"})
    def one(x, y, i):
        px, py = x[i], y[i]
        total, fx, fy = np.float32(0), np.float32(0), np.float32(0)
        for j in range(len(x)):
            dx, dy = px - x[j], py - y[j]
            q = np.float32(1) / (np.float32(1) + dx * dx + dy * dy)
            total += q
            fx += q * q * dx
            fy += q * q * dy
        return total, fx, fy

    @njit(nogil=True)
    def away(x, y):
        forces, total = np.empty((len(x), 2)), 0.0
        for i in range(len(x)):
            weight, forces[i, 0], forces[i, 1] = one(x, y, i)
            total += weight - 1.0
        return forces, max(total, 1e-12)

    @njit(nogil=True)
    def towards(starts, others, weights, points):
        forces = np.zeros_like(points)
        for i in range(len(points)):
            for place in range(starts[i], starts[i + 1]):
                j = others[place]
                dx, dy = points[i, 0] - points[j, 0], points[i, 1] - points[j, 1]
                pull = weights[place] / (1.0 + dx * dx + dy * dy)
                forces[i, 0] += pull * dx
                forces[i, 1] += pull * dy
        return forces

    return _Loops(away, towards)
