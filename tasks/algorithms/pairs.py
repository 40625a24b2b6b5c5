"""All pairs of unit rows above a similarity: the matrix product of two blocks, in tiles, on any device.

A float32 product screens the pairs; those that may be above the bound are scored again in float64 and rounded to 5
decimals, as in `neighbours.nearest`: a pair's similarity is a property of its two vectors alone.
Cost: 2 x a x b x d operations, at 0.75 to 0.9 of the machine's matrix product where few pairs are found; 0.1 to 0.2 us
for each pair that is scored again.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lvd.tasks.algorithms.graph import strongest
from lvd.tasks.algorithms.neighbours import SCALE, SCREEN_MARGIN, lowest_kept
from lvd.tasks.algorithms.scoring import dots

if TYPE_CHECKING:
    import torch

LEFT_TILE, RIGHT_TILE = 2048, 4096
SCORED_AT_ONCE = 1 << 18  # pairs on a GPU
PENDING_EDGES = 1 << 22  # of a collection before it is thinned


class Pairs(NamedTuple):
    """Indices into two blocks and the similarity of each pair: three (m,) arrays, int64, int64 and float32."""

    left: np.ndarray
    right: np.ndarray
    similarity: np.ndarray


def pairs_above(left: "torch.Tensor", right: "torch.Tensor", min_similarity: float) -> Iterator[Pairs]:
    """Every pair of a left and a right row with at least this similarity, tile by tile.

    left: (a, d), right: (b, d) float32 unit rows (or zero) on one device, as `on_device` gives them.
    """
    import torch

    floor = lowest_kept(min_similarity)
    bound = floor / SCALE - SCREEN_MARGIN
    for i in range(0, len(left), LEFT_TILE):
        a = left[i : i + LEFT_TILE]
        for j in range(0, len(right), RIGHT_TILE):
            b = right[j : j + RIGHT_TILE]
            row, column = torch.nonzero(a @ b.T >= bound, as_tuple=True)
            units = _units(a, b, row, column)
            keep = units >= floor
            if keep.any():
                row, column = row.cpu().numpy()[keep] + i, column.cpu().numpy()[keep] + j
                yield Pairs(row, column, (units[keep] / SCALE).astype(np.float32))


def _units(a: "torch.Tensor", b: "torch.Tensor", row: "torch.Tensor", column: "torch.Tensor") -> np.ndarray:
    """(m,) int64 similarity of a[row] and b[column] in units of 1e-5, by float64 sums."""
    if a.device.type == "cpu":
        return dots()(a.numpy(), b.numpy(), row.numpy(), column.numpy(), SCALE)
    return units_on_device(a, b, row, column)


def units_on_device(a: "torch.Tensor", b: "torch.Tensor", row: "torch.Tensor", column: "torch.Tensor") -> np.ndarray:
    """As `_units`, by torch: on a CPU ten times as slow."""
    import torch

    parts = [
        torch.round((a[row[part]].double() * b[column[part]].double()).sum(dim=1) * SCALE).to(torch.int64)
        for part in (slice(s, s + SCORED_AT_ONCE) for s in range(0, len(row), SCORED_AT_ONCE))
    ]
    return torch.cat([torch.zeros(0, dtype=torch.int64, device=a.device), *parts]).cpu().numpy()


class Edges:
    """Undirected edges as they are found, thinned whenever they become many.

    What stays: of every node the k strongest edges, and those without which a component would fall apart at any
    threshold (`graph.strongest`), or if the nodes from any number on were left out, as of rows that came later. So
    5,000 copies of one image stay one component, and take 5,000 x (k + 2) edges.
    """

    def __init__(self, k: int) -> None:
        self._k, self._limit, self._pending = k, PENDING_EDGES, 0
        self._parts: list[Pairs] = []

    def add(self, left: np.ndarray, right: np.ndarray, similarity: np.ndarray) -> None:
        """left, right: (m,) int64 nodes, no pair twice in all calls together; similarity: (m,) float32."""
        self._parts.append(Pairs(left, right, similarity))
        self._pending += len(left)
        if self._pending >= self._limit:
            self._parts = [self.found()]
            self._pending = len(self._parts[0].left)
            self._limit = max(PENDING_EDGES, 2 * self._pending)

    def found(self) -> Pairs:
        """The edges that stay, by left and right node: left < right."""
        empty = Pairs(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32))
        a, b, similarity = (np.concatenate(columns) for columns in zip(empty, *self._parts, strict=True))
        left, right = np.minimum(a, b), np.maximum(a, b)
        order = np.lexsort((right, left))
        left, right, similarity = left[order], right[order], similarity[order]
        nodes = np.column_stack([left, right])
        keep = strongest(nodes, similarity, k=self._k)
        if not keep.all():
            keep |= strongest(nodes, -right, k=0)
        return Pairs(left[keep], right[keep], similarity[keep])
