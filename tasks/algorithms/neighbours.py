"""Exact nearest neighbours by cosine similarity: every query against every row, in tiles, on any device.

A float32 product of a tile screens the pairs; those that can still matter are scored again in float64, and every
comparison is made on that second score, rounded to 5 decimals. The products of float16 numbers, and the sums of such
products over unit rows, are exact in float64 (multiples of 2^-48, below 2), so the answer is a property of the vectors
alone: tile sizes, block cuts, thread counts, processors and devices cannot change a bit of it. With float32 vectors the
last bits of the float64 sums may differ; after the rounding about one similarity in 10^10 could.

Cost: 2 x q x n x d operations, the database read once per call. Against a plain Faiss flat search of 10^5 rows: 0.8 to
1.0 of its speed for k = 1, 0.7 to 0.8 for k = 64 with a threshold, 0.4 to 0.5 for k = 64 without one.
"""

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from lvd.tasks.algorithms.scoring import above, dots

if TYPE_CHECKING:
    import torch

QUERY_TILE = 256
DATABASE_TILE = 4096
# Similarities are kept as integers, in units of 1e-5.
DECIMALS = 5
SCALE = 10**DECIMALS
# Above the error of the screening product of unit rows: 2^-8 in bfloat16, the coarsest that torch may be set to use.
SCREEN_MARGIN = 0.005
# A tile with more than one pair in this many left to score is scored by a float64 product, with fewer pair by pair.
SPARSE = 256
# Unit rows in float16 are up to 1.0005 long.
MAX_NORM = 1.01
# A neighbour is one integer that sorts by descending similarity, then row: (KEY_ZERO - similarity) << ROW_BITS | row.
ROW_BITS = 40
KEY_ZERO = 1 << 18
NOTHING = np.iinfo(np.int64).max


def nearest(
    queries: np.ndarray,
    database: Iterable[tuple[int, np.ndarray]],
    *,
    k: int,
    min_similarity: float = -1.0,
    exclude: np.ndarray | None = None,
    device: str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar database rows of each query: similarity (q, k) float32, rows (q, k) int64.

    Descending similarity, rounded to 5 decimals; equal ones by ascending row; padded with -inf and row -1.

    queries: (q, d) float16 or float32, rows of unit length (or zero).
    database: blocks (first_row, (b, d) array), in any order and of any sizes, no row twice; read once.
    k: neighbours kept; PAPER.md 1: 64 for the copy graph, 4 or 32 for retrieval. Memory grows by 8 bytes x q x k.
    min_similarity: pairs below it are left out; those equal to it after the rounding are kept.
    exclude: (q,) int64, a row that is no neighbour of that query (itself), or -1.
    Raises ValueError for k < 1, for rows of unlike widths, and for a row that is not finite or longer than a unit row.
    """
    import torch

    if exclude is not None and exclude.shape != (len(queries),):
        raise ValueError(f"exclude must have one row per query, ({len(queries)},), had the shape {exclude.shape}")
    best = Best(on_device(queries, device, of="query "), k, min_similarity=min_similarity, exclude=exclude)
    for first_row, tile in _tiles(database, queries.shape[1], device):
        best.offer(tile, torch.arange(first_row, first_row + len(tile), device=device))
    return best.found()


class Best:
    """The k most similar rows of each query, of all that it was offered so far. Memory: 8 bytes x q x k."""

    def __init__(
        self, queries: "torch.Tensor", k: int, *, min_similarity: float = -1.0, exclude: np.ndarray | None = None
    ) -> None:
        """queries: (q, d) float32 unit rows, as `on_device` gives them; else as in `nearest`."""
        import torch

        if k < 1:
            raise ValueError(f"k must be at least 1, was {k}")
        self._queries, self._floor, device = queries, lowest_kept(min_similarity), queries.device
        self._excluded = None if exclude is None else torch.as_tensor(exclude, dtype=torch.int64, device=device)
        self._keys = torch.full((len(queries), k), NOTHING, dtype=torch.int64, device=device)

    def offer(
        self,
        tile: "torch.Tensor",
        rows: "torch.Tensor",
        *,
        asked: "torch.Tensor | None" = None,
        floors: "torch.Tensor | None" = None,
    ) -> None:
        """More rows of the database, none of which the same query was offered before.

        tile: (b, d) float32 unit rows, b at most DATABASE_TILE. rows: (b,) int64, their numbers, below 2^40.
        asked: (a,) int64, the queries that they are offered to; all of them if left out.
        floors: (b,) int64, for each row the lowest similarity that counts, in units of 1e-5.
        """
        for start in range(0, len(self._queries) if asked is None else len(asked), QUERY_TILE):
            part = slice(start, start + QUERY_TILE)
            some = part if asked is None else asked[part]
            excluded = None if self._excluded is None else self._excluded[some]
            self._keys[some] = _merge_tile(
                self._keys[some], self._queries[some], tile, rows, self._floor, excluded, floors
            )

    def found(self) -> tuple[np.ndarray, np.ndarray]:
        """similarity (q, k) float32 and rows (q, k) int64, as `nearest` returns them."""
        return _decode(self._keys)


def edges(similarity: np.ndarray, rows: np.ndarray, first_row: int) -> tuple[np.ndarray, np.ndarray]:
    """Undirected edges of a nearest-neighbour result: (m, 2) int64, left < right, sorted and unique, and (m,) float32.

    similarity, rows: (q, k), as `nearest` returns them, for the queries that are the rows first_row + i; -1 is padding.
    A pair found from both sides is one edge; a row is not joined to itself.
    """
    query = np.repeat(np.arange(first_row, first_row + len(rows), dtype=np.int64), rows.shape[1])
    other = rows.ravel()
    keep = (other >= 0) & (other != query)
    pairs = np.sort(np.column_stack([query[keep], other[keep]]), axis=1)
    score = similarity.ravel()[keep]
    order = np.lexsort((-score, pairs[:, 1], pairs[:, 0]))
    pairs, score = pairs[order], score[order]
    first = np.ones(len(pairs), dtype=bool)
    first[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    return pairs[first], score[first].astype(np.float32)


def lowest_kept(min_similarity: float) -> int:
    """The lowest similarity that is kept, in units of 1e-5; -1 bounds nothing, as float16 rows are not quite unit."""
    return -KEY_ZERO if min_similarity <= -1.0 else math.ceil(min_similarity * SCALE - 1e-3)


def _tiles(
    database: Iterable[tuple[int, np.ndarray]], dimension: int, device: str
) -> Iterator[tuple[int, "torch.Tensor"]]:
    """The database in pieces of at most DATABASE_TILE checked rows: (first_row, (b, d) float32 on the device)."""
    for first_row, block in database:
        if block.shape[1] != dimension:
            raise ValueError(f"database rows must be as wide as the queries, {dimension}, were {block.shape[1]} wide")
        for start in range(0, len(block), DATABASE_TILE):
            part = block[start : start + DATABASE_TILE]
            yield first_row + start, on_device(part, device, of="database ", first_row=first_row + start)


def on_device(vectors: np.ndarray, device: str, *, of: str = "", first_row: int = 0) -> "torch.Tensor":
    """The rows as (n, d) float32 on the device. Raises ValueError that names the first row that is no unit row.

    of, first_row: what an error calls the row.
    """
    import torch

    rows = torch.from_numpy(np.array(vectors, order="C")).to(device).float()
    norm = torch.linalg.vector_norm(rows, dim=1)
    wrong = torch.nonzero(~(norm <= MAX_NORM))
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"{of}row {first_row + row} must be finite and of unit length, its length was {float(norm[row]):.4g}"
        )
    return rows


def _merge_tile(
    best: "torch.Tensor",
    queries: "torch.Tensor",
    tile: "torch.Tensor",
    rows: "torch.Tensor",
    floor: int,
    excluded: "torch.Tensor | None",
    floors: "torch.Tensor | None",
) -> "torch.Tensor":
    """The best keys (q, k) after one more tile.

    rows: (b,) numbers of the tile's rows. floor: lowest similarity kept, in units of 1e-5; floors: (b,) of each row.
    excluded: (q,) numbers of rows that are no neighbours.
    """
    import torch

    k = best.shape[1]
    query, column = _candidates(best[:, -1], queries, tile, floor, k, floors)
    if excluded is not None:
        keep = rows[column] != excluded[query]
        query, column = query[keep], column[keep]
    score = _units(queries, tile, query, column)
    keep = score >= (floor if floors is None else floors[column].clamp(min=floor))
    query, key = query[keep], ((KEY_ZERO - score[keep]) << ROW_BITS) | rows[column[keep]]
    if not len(query):
        return best
    found = torch.bincount(query, minlength=len(queries))
    place = torch.arange(len(query), device=query.device) - (found.cumsum(0) - found)[query]
    keys = torch.full((len(queries), k + int(found.max())), NOTHING, dtype=torch.int64, device=query.device)
    keys[:, :k] = best
    keys[query, k + place] = key
    return keys.sort(dim=1).values[:, :k]


def _candidates(
    worst_key: "torch.Tensor",
    queries: "torch.Tensor",
    tile: "torch.Tensor",
    floor: int,
    k: int,
    floors: "torch.Tensor | None",
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Every (query, column) of the tile that can be among the k best, and a few more, sorted: two (m,) int64."""
    import torch

    worst = torch.where(worst_key == NOTHING, floor, KEY_ZERO - (worst_key >> ROW_BITS))
    bound = worst.clamp(min=floor).to(torch.float32) / SCALE - SCREEN_MARGIN
    screen = queries @ tile.T
    sure = screen
    if floors is not None:
        lowest = floors.to(torch.float32) / SCALE
        screen.masked_fill_(screen < lowest - SCREEN_MARGIN, -math.inf)
        sure = screen.masked_fill(screen < lowest + SCREEN_MARGIN, -math.inf)  # the others may yet be refused
    if screen.device.type == "cpu":
        row, place, number = above()(screen.numpy(), bound.numpy(), screen.numel() // SPARSE + k)
        if number < len(row):
            return torch.from_numpy(row[:number]), torch.from_numpy(place[:number])
    possible = screen >= bound[:, None]
    if k + 1 < len(tile) and int(possible.sum()) * SPARSE > possible.numel():
        # One more than k, as the row that is left out can be among them.
        kth = sure.topk(k + 1, dim=1, sorted=False).values.amin(dim=1) - 2 * SCREEN_MARGIN
        possible = screen >= torch.maximum(bound, kth)[:, None]
    return torch.nonzero(possible, as_tuple=True)


def _units(
    queries: "torch.Tensor", tile: "torch.Tensor", query: "torch.Tensor", column: "torch.Tensor"
) -> "torch.Tensor":
    """Inner products of the pairs (query[i], column[i]) in units of 1e-5: (m,) int64, by float64 sums."""
    import torch

    if len(query) * SPARSE > len(queries) * len(tile):
        products = (queries.double() @ tile.double().T)[query, column]
    elif queries.device.type == "cpu":
        return torch.from_numpy(dots()(queries.numpy(), tile.numpy(), query.numpy(), column.numpy(), SCALE))
    else:
        products = (queries[query].double() * tile[column].double()).sum(dim=1)
    return torch.round(products * SCALE).to(torch.int64)


def _decode(best: "torch.Tensor") -> tuple[np.ndarray, np.ndarray]:
    """Similarity (q, k) float32 and rows (q, k) int64 of the keys."""
    keys = best.cpu().numpy()
    empty = keys == NOTHING
    similarity = (KEY_ZERO - (keys >> ROW_BITS)) / SCALE
    rows = keys & ((1 << ROW_BITS) - 1)
    return np.where(empty, -np.inf, similarity).astype(np.float32), np.where(empty, -1, rows)
