"""Components of the copy graph: who stands for whom, how alike they are, and how far a chain may reach.

Source: DINOv2 appendix A.3; PAPER.md 1.4 and 1.6.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from lvd.infra.shards import ShardRef, gather_rows, read_table
from lvd.tasks import adjusting
from lvd.tasks.algorithms import graph
from lvd.tasks.algorithms.pairs import Edges as Thinned
from lvd.tasks.models import engine

PAIR_BLOCK = 4096
GATHERED_PAIRS = 1 << 17  # whose descriptors are read in one pass over the shards: 2 kB each at 512 values

Similarity = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of pool rows, pair by pair


class Edges:
    """The edges of some shards at or above a similarity; read shard by shard as often as asked."""

    def __init__(self, refs: list[ShardRef], min_similarity: float) -> None:
        self._refs, self._min_similarity = refs, np.float32(min_similarity)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """((m, 2) int64 pairs, (m,) float32 similarities) of one shard after another."""
        for ref in self._refs:
            table = read_table(ref)
            keep = table["similarity"].to_numpy() >= self._min_similarity
            pairs = np.column_stack([table["left"].to_numpy()[keep], table["right"].to_numpy()[keep]])
            yield pairs, table["similarity"].to_numpy()[keep]

    def all(self) -> tuple[np.ndarray, np.ndarray]:
        """All of them in memory."""
        return self.among(lambda pairs: np.ones(len(pairs), dtype=bool))

    def among(self, wanted: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Those in memory whose pairs are wanted."""
        found = [(pairs[keep], similarity[keep]) for pairs, similarity in self for keep in [wanted(pairs)]]
        pairs = np.concatenate([np.zeros((0, 2), dtype=np.int64), *(p for p, _ in found)])
        return pairs, np.concatenate([np.zeros(0, dtype=np.float32), *(s for _, s in found)])


class Groups(NamedTuple):
    """chosen: (n,) int64, the row that stands for each row, itself for most; similarity: (n,) float32 to it, else 1."""

    chosen: np.ndarray
    similarity: np.ndarray

    def summary(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The representatives of two and more, how many each stands for with itself, and the lowest similarity."""
        others = np.flatnonzero(self.chosen != np.arange(len(self.chosen)))
        rows, group = np.unique(self.chosen[others], return_inverse=True)
        lowest = np.ones(len(rows), dtype=np.float32)
        np.minimum.at(lowest, group, self.similarity[others])
        return rows, np.bincount(group, minlength=len(rows)) + 1, lowest


def grouped(
    edges: Edges,
    num_rows: int,
    ranked: tuple[np.ndarray, np.ndarray, np.ndarray] | None,
    similarity: Similarity,
    *,
    max_size: int | None,
    min_similarity: float | None,
    age: np.ndarray | None = None,
) -> Groups:
    """Who stands for whom.

    ranked: area, file size and image id of every row, by which a representative is chosen (`graph.representatives`);
    None for the first row. age: of every row; what came later changes nothing then (`graph.eldest`), but for what
    max_size cuts. max_size: a component that is larger is joined again, the strongest edges first, up to that
    size. min_similarity: to the representative; rows below it leave, join among themselves, and choose one of their
    own, again and again until nobody is left below.
    """
    labels = graph.connected_components((pairs for pairs, _ in edges), num_rows).astype(np.int64)
    if max_size is not None:
        labels = _bounded(edges, labels, max_size)
    own = np.arange(num_rows)
    if age is None:
        chosen = _representatives(labels, ranked)
    else:
        chosen = graph.eldest(spanning(edges, labels, age), age, *ranked)
    alike = np.ones(num_rows, dtype=np.float32)
    others = np.flatnonzero(chosen != own)
    while len(others):
        alike[others] = similarity(others, chosen[others])
        if min_similarity is None:
            break
        strays = others[alike[others] < np.float32(min_similarity)]
        apart = np.zeros(num_rows, dtype=bool)
        apart[strays] = True
        pairs, _ = edges.among(lambda p, apart=apart: apart[p].all(axis=1) & (labels[p[:, 0]] == labels[p[:, 1]]))
        labels[strays] = graph.connected_components(pairs, num_rows)[strays]
        if age is None:
            chosen[strays] = _representatives(np.where(apart, labels, own), ranked)[strays]
        else:
            chosen[strays] = graph.eldest(pairs, age, *ranked)[strays]
        alike[strays] = 1.0
        others = strays[chosen[strays] != strays]
    return Groups(chosen, alike)


def _bounded(edges: Edges, labels: np.ndarray, max_size: int) -> np.ndarray:
    """The labels with the components that have more than max_size rows cut."""
    size = np.bincount(labels, minlength=len(labels))
    is_large = size[labels] > max_size
    pairs, similarity = edges.among(lambda p: is_large[p[:, 0]])
    nodes, compact = np.unique(pairs, return_inverse=True)
    cut = graph.bounded_components(compact.reshape(pairs.shape), similarity, len(nodes), max_size=max_size)
    labels[nodes] = nodes[cut]
    return labels


def spanning(edges: Edges, labels: np.ndarray, age: np.ndarray) -> np.ndarray:
    """(m, 2) int64: the edges within the labels that join whatever all of them join, up to any age. 50 bytes a row."""
    spanning = Thinned(0)
    for pairs, _ in edges:
        pairs = pairs[labels[pairs[:, 0]] == labels[pairs[:, 1]]]
        spanning.add(pairs[:, 0], pairs[:, 1], -age[pairs].max(axis=1, initial=0).astype(np.float32))
    found = spanning.found()
    return np.column_stack([found.left, found.right])


def _representatives(labels: np.ndarray, ranked: tuple[np.ndarray, np.ndarray, np.ndarray] | None) -> np.ndarray:
    return graph.first_seen(labels) if ranked is None else graph.representatives(labels, *ranked)


def cosines(left: list[ShardRef], left_at: np.ndarray, right: list[ShardRef], right_at: np.ndarray) -> np.ndarray:
    """(m,) float32 similarity of pairs of descriptors at positions of two datasets.

    By a float64 product and rounded to 5 decimals, less the biases if there are any, as the search does it: the same
    as of the pair's edge.
    """
    parts = [np.zeros(0, dtype=np.float32)]
    for start in range(0, len(left_at), GATHERED_PAIRS):
        block = slice(start, start + GATHERED_PAIRS)
        tables = [
            gather_rows(refs, at[block], adjusting.columns(refs[0]))
            for refs, at in ((left, left_at), (right, right_at))
        ]
        a, b = (engine.vector_column(table) for table in tables)
        biases, found = [adjusting.bias_column(table) for table in tables], []
        for first in range(0, len(a), PAIR_BLOCK):
            part = slice(first, first + PAIR_BLOCK)
            product = np.einsum("nd,nd->n", a[part].astype(np.float64), b[part].astype(np.float64))
            found.append(product.round(5).astype(np.float32))
        similarity = np.concatenate(found)
        parts.append(similarity if biases[0] is None else adjusting.less_biases(similarity, *biases))
    return np.concatenate(parts)
