"""What a chart shows: its bars or its line, its ends, and what each point says. The template draws it as inline SVG."""

from itertools import pairwise
from typing import Any

import numpy as np
from pydantic import BaseModel

MAX_POINTS = 120


class Chart(BaseModel, frozen=True):
    """A column chart, or a line; `values` are drawn from zero (columns) or from the smallest (line)."""

    label: str
    values: tuple[float, ...]
    says: tuple[str, ...]  # of each value, shown on pointing at it
    ticks: tuple[str, ...]  # spread below the chart from its left end to its right end
    is_line: bool = False

    @property
    def heights(self) -> tuple[float, ...]:
        """Each value as 0 to 100, the largest being 100; a value that is not zero is at least 1."""
        low = min(self.values, default=0.0) if self.is_line else 0.0
        span = max(self.values, default=0.0) - low
        if span <= 0:
            return tuple(50.0 if self.is_line else 0.0 for _ in self.values)
        scaled = (100 * (value - low) / span for value in self.values)
        return tuple(round(h if self.is_line or not h else max(h, 1.0), 2) for h in scaled)


class Paired(BaseModel, frozen=True):
    """Two distributions over the same bins, each as shares of its own whole."""

    label: str
    before: tuple[float, ...]
    after: tuple[float, ...]
    says: tuple[str, ...]  # of each bin
    ticks: tuple[str, ...]

    def heights(self, values: tuple[float, ...]) -> tuple[float, ...]:
        """Each of `before` or `after` as 0 to 100, on one scale."""
        top = max((*self.before, *self.after), default=0.0)
        return tuple(round(100 * value / top, 2) if top else 0.0 for value in values)


def paired(label: str, before: np.ndarray, after: np.ndarray, names: list[str], ticks: tuple[str, ...]) -> Paired:
    """Both counts as shares; nothing is drawn where there was nothing before.

    before, after: (b,) int64. names: of the bins.
    """
    shares = [counts / max(counts.sum(), 1) for counts in (before, after)]
    each = zip(names, *shares, strict=True)
    says = [f"{name}: {100 * b:.3g}% before, {100 * a:.3g}% after" for name, b, a in each]
    if not before.sum():
        return Paired(label=label, before=(), after=(), says=(), ticks=())
    return Paired(
        label=label, before=tuple(shares[0].tolist()), after=tuple(shares[1].tolist()), says=tuple(says), ticks=ticks
    )


def paired_similarities(label: str, counts: np.ndarray, edges: np.ndarray) -> Paired:
    """Similarities before and after, between the first and the last bin that is not empty.

    counts: (2, b) int64; edges: (b + 1,) float64, ascending.
    """
    filled = np.flatnonzero(counts.any(axis=0))
    first, stop = (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, 0)
    ends = edges[first : stop + 1].tolist()
    names = [f"{left:.2f} to {right:.2f}" for left, right in pairwise(ends)]
    return paired(label, counts[0, first:stop], counts[1, first:stop], names, (f"{ends[0]:.2f}", f"{ends[-1]:.2f}"))


def paired_clusters(label: str, sizes: np.ndarray, kept: np.ndarray) -> Paired:
    """Clusters from the largest to the smallest, in groups of neighbours above 60 of them.

    sizes, kept: (k,) int64: images of each cluster, and of them those that were chosen.
    """
    order = np.argsort(-sizes, kind="stable")[: int((sizes > 0).sum())]
    parts = np.array_split(order, min(len(order), MAX_POINTS // 2)) if len(order) else []
    ranks = np.cumsum([0, *map(len, parts)]).tolist()
    names = [
        f"cluster {part[0]}" if len(part) == 1 else f"clusters ranked {first + 1:,} to {first + len(part):,} by size"
        for first, part in zip(ranks, parts, strict=False)
    ]
    sums = [np.array([counts[part].sum() for part in parts], dtype=np.int64) for counts in (sizes, kept)]
    return paired(label, *sums, names, ("largest", f"{len(order):,} clusters", "smallest"))


def histogram(label: str, counts: np.ndarray, edges: np.ndarray) -> Chart:
    """A column for each bin between the first and the last that is not empty.

    counts: (b,) int64; edges: (b + 1,) float64, ascending.
    """
    filled = np.flatnonzero(counts)
    if not len(filled):
        return Chart(label=label, values=(), says=(), ticks=())
    first, stop = int(filled[0]), int(filled[-1]) + 1
    shown, ends = counts[first:stop].tolist(), edges[first : stop + 1].tolist()
    says = [f"{left:.2f} to {right:.2f}: {count:,}" for left, right, count in zip(ends, ends[1:], shown, strict=False)]
    middle = [f"{ends[len(ends) // 2]:.2f}"] if len(ends) > 2 else []
    return Chart(
        label=label, values=tuple(shown), says=tuple(says), ticks=(f"{ends[0]:.2f}", *middle, f"{ends[-1]:.2f}")
    )


def ranked_sizes(label: str, sizes: np.ndarray) -> Chart:
    """Sizes from the largest to the smallest; above 120 of them a column is the mean of neighbours in that order.

    sizes: (n,) int64.
    """
    descending = np.sort(sizes)[::-1]
    parts = np.array_split(descending, min(len(descending), MAX_POINTS)) if len(descending) else []
    ranks = np.cumsum([0, *map(len, parts)])
    says = [
        f"{first + 1:,}: {part[0]:,}"
        if len(part) == 1
        else f"{first + 1:,} to {first + len(part):,}: {part.mean():,.1f}"
        for first, part in zip(ranks, parts, strict=False)
    ]
    ticks = ("largest", f"{len(descending):,} clusters", "smallest") if len(descending) else ()
    return Chart(label=label, values=tuple(float(p.mean()) for p in parts), says=tuple(says), ticks=ticks)


def line(label: str, values: list[float], unit: str) -> Chart:
    """A line through values at 1, 2, 3, … of a unit."""
    says = [f"{unit} {index}: {value:.4f}" for index, value in enumerate(values, 1)]
    ticks = (f"{unit} 1", f"{unit} {len(values)}") if len(values) > 1 else ()
    return Chart(label=label, values=tuple(values), says=tuple(says), ticks=ticks, is_line=True)


def of_a_fit(iterations: list[dict[str, Any]]) -> tuple[Chart, Chart]:
    """How k-means went: the objective and the imbalance of every iteration, on the sample and then on the pool.

    iterations: with the keys over, objective, imbalance, num_empty and sizes.
    """

    def drawn(label: str, key: str) -> Chart:
        values = [float(one[key]) for one in iterations]
        says = [
            f"{number}, on the {one['over']}: {one[key]:.4f}; {one['num_empty']:,} empty, "
            f"median {one['sizes'][len(one['sizes']) // 2]:,}, largest {one['sizes'][-1]:,}"
            for number, one in enumerate(iterations, 1)
        ]
        ticks = ("iteration 1", f"iteration {len(values)}") if len(values) > 1 else ()
        return Chart(label=label, values=tuple(values), says=tuple(says), ticks=ticks, is_line=True)

    return (
        drawn("Mean similarity to the centroid, by iteration", "objective"),
        drawn("Imbalance of the clusters, by iteration", "imbalance"),
    )
