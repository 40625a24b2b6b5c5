"""Inverted lists with exact scoring: which pairs of rows are looked at when not all of them can be.

Every row lies in the cell of its nearest centroid and probes its `probes` nearest cells. A pair is scored, exactly, if
one of its rows probes the cell of the other. In the manner of `faiss.contrib.big_batch_search`: all rows that probe a
cell against all rows in it are one matrix product; here the cells of a group stay in memory and the rows pass by.
Cost for n rows of d values in c cells: 2 n c d operations to find the probes, 2 n p (n / c) d to score p probes.
"""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from lvd.tasks.algorithms import kmeans, pairs
from lvd.tasks.algorithms.neighbours import Best, on_device

ITERATIONS = 5
TILE = 4096
MAX_GROUPS = 160  # 8 million rows each of 1.3 x 10^9: 8 GB of a GPU's memory at 512 values


class Block(NamedTuple):
    """Rows of vectors with their cells."""

    rows: np.ndarray  # (n,) int64, ascending: their numbers in the collection
    vectors: np.ndarray  # (n, d) float16 unit rows
    probes: np.ndarray  # (n, p) int32: their nearest cells, their own first

    @property
    def cell(self) -> np.ndarray:
        return self.probes[:, 0]


def joined(parts: list[Block]) -> Block:
    return Block(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def batched(blocks: Iterable[Block], rows: int) -> Iterator[Block]:
    """Neighbouring blocks as one, which has so many rows at least; the last may have fewer, and none is empty."""
    parts: list[Block] = []
    for block in blocks:
        parts.append(block)
        if sum(len(part.rows) for part in parts) >= rows:
            yield joined(parts)
            parts = []
    if any(len(part.rows) for part in parts):
        yield joined(parts)


def usual_number(num_rows: int) -> int:
    """A power of two near 4 sqrt(n): 4,096 cells for a million rows, 16,384 for ten million."""
    return 1 << max(0, round(np.log2(4 * max(num_rows, 1) ** 0.5)))


def fit(sample: np.ndarray, num_cells: int, *, seed: int) -> np.ndarray:
    """The centroids (c, d) float32, from rows of the sample at random: cells need not be good clusters.

    sample: (n, d) unit rows; 32 a cell are enough. Raises ValueError for fewer rows than cells, and as `kmeans.lloyd`.
    """
    rng = np.random.default_rng(seed)
    start = sample[kmeans.sample_rows(len(sample), num_cells, rng=rng)].astype(np.float32)
    if len(start) < num_cells:
        raise ValueError(f"num_cells must be in [1, {len(sample)}], the rows of the sample, was {num_cells}")
    start /= np.linalg.norm(start, axis=1, keepdims=True)
    return kmeans.lloyd(sample, start, iterations=ITERATIONS)[0]


def nearest_cells(vectors: np.ndarray, centroids: np.ndarray, *, probes: int, device: str = "cpu") -> np.ndarray:
    """The nearest cells of each row, the nearest first: (n, probes) int32.

    In tiles of one size, filled up with zeros, so that a row's cells do not depend on the rows beside it.
    probes: at most the number of centroids.
    """
    import torch

    cells = on_device(centroids, device).T.contiguous()
    found = np.empty((len(vectors), probes), dtype=np.int32)
    tile = torch.zeros((TILE, centroids.shape[1]), device=device)
    for begin in range(0, len(vectors), TILE):
        rows = on_device(vectors[begin : begin + TILE], device)
        tile[: len(rows)] = rows
        nearest = (tile @ cells)[: len(rows)].topk(probes, dim=1).indices
        found[begin : begin + len(rows)] = nearest.to(torch.int32).cpu().numpy()
    return found


def num_groups(num_rows: int) -> int:
    """How many groups the cells are dealt into. Every group reads all rows, so there are at most MAX_GROUPS.

    A group holds 50,000 rows at least, a million as a rule, and as many as it must above that: 2 x d bytes each.
    """
    rows = max(num_rows / MAX_GROUPS, min(num_rows / 16, 1_000_000), 50_000)
    return max(1, math.ceil(num_rows / rows))


def group_of(cells: np.ndarray, sizes: np.ndarray, rows_per_group: int) -> np.ndarray:
    """The group of each of these cells: groups hold about so many rows, and cells of neighbouring numbers.

    sizes: (c,) rows in every cell. There are at most ceil(rows / rows_per_group) groups; a cell that is larger than one
    lies in one nevertheless, as its product is cut into tiles.
    """
    return ((np.cumsum(sizes) - sizes) // rows_per_group)[cells]


class Group:
    """Rows of some cells, kept ready to be compared with rows that pass by: 2 bytes a value, and 4 for one cell."""

    def __init__(self, members: Block, num_cells: int, *, device: str) -> None:
        import torch

        order = np.argsort(members.cell, kind="stable")
        self.members = Block(*(values[order] for values in members))
        for start in range(0, len(order), TILE):
            on_device(self.members.vectors[start : start + TILE], device)  # which refuses what is no unit row
        self._vectors = torch.from_numpy(self.members.vectors).to(device)
        self._cells, self._begins = np.unique(self.members.cell, return_index=True)
        self._ends = np.append(self._begins, len(order))[1:]
        self._device = device
        self._is_here = np.zeros(num_cells, dtype=bool)
        self._is_here[self._cells] = True

    def is_probed(self, probes: np.ndarray) -> np.ndarray:
        """(n,) bool: rows with these probes (n, p) that probe a cell of the group."""
        return self._is_here[probes].any(axis=1)

    def pairs(self, queries: Block, min_similarity: float) -> Iterator[pairs.Pairs]:
        """(index into the queries, index into the members) of the pairs above a similarity, cell by cell."""
        vectors = on_device(queries.vectors, self._device)
        for asked, first, last in self._visits(queries):
            held = self._vectors[first:last].float()
            for found in pairs.pairs_above(vectors[asked], held, min_similarity):
                yield pairs.Pairs(asked[found.left], found.right + first, found.similarity)

    def nearest(self, queries: Block, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k most similar members of each query among the cells that it probes, as `neighbours.nearest`.

        Similarity (q, k) float32 and row (q, k) int64; the rows are the members' own numbers.
        """
        import torch

        best = Best(on_device(queries.vectors, self._device), k)
        numbers = torch.from_numpy(self.members.rows).to(self._device)
        for asked, first, last in self._visits(queries):
            chosen = torch.from_numpy(asked).to(self._device)
            for start in range(first, last, TILE):
                part = slice(start, min(start + TILE, last))
                best.offer(self._vectors[part].float(), numbers[part], asked=chosen)
        return best.found()

    def _visits(self, queries: Block) -> Iterator[tuple[np.ndarray, int, int]]:
        """(index into the queries, first and last member) of every cell of the group that is probed."""
        query, probe = np.nonzero(self._is_here[queries.probes])
        cell = queries.probes[query, probe]
        query = query[np.argsort(cell, kind="stable")]
        ends = np.searchsorted(np.sort(cell), self._cells, side="right")
        for begin, end, first, last in zip(np.append(0, ends)[:-1], ends, self._begins, self._ends, strict=True):
            if begin < end:
                yield query[begin:end], int(first), int(last)


def is_found_at_other(queries: Block, members: Block, found: pairs.Pairs) -> np.ndarray:
    """(m,) bool: pairs that are found at the query's cell too, as the member probes that."""
    return (members.probes[found.right] == queries.cell[found.left][:, None]).any(axis=1)


def ranks(probes: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """(m,) int64: the place of a cell among a row's probes, from 0; their number if it is not there.

    probes: (m, p) int32. cell: (m,) int32.
    """
    is_there = probes == cell[:, None]
    return np.where(is_there.any(axis=1), is_there.argmax(axis=1), probes.shape[1])
