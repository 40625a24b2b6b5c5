"""SemDeDup: of the rows of one cell that are alike, one stays (Abbas et al. 2023, arXiv 2303.09540; PAPER.md 5).

Duplicates that fall into different cells are not found; the fewer and larger the cells, the fewer these are.
"""

from typing import TYPE_CHECKING, Literal

import numpy as np

from lvd.tasks.algorithms.neighbours import on_device
from lvd.tasks.algorithms.pairs import Pairs, pairs_above

if TYPE_CHECKING:
    import torch

# Rows that are decided together: their pairs, at most its square, are held at once.
BLOCK = 1024


def duplicates_within(
    vectors: np.ndarray,
    rank_by: np.ndarray,
    rows: np.ndarray,
    *,
    min_similarity: float,
    keep: Literal["far", "near"] = "far",
    device: str = "cpu",
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What goes of one cell: dropped (m,) int64, sorted, because_of (m,) int64, similarity (m,) float32.

    Rows are taken by rank. One is dropped if a row that was kept before it is at least min_similarity alike; because_of
    is the most similar of these (equal ones: the first). Both are indices into the input. So what stays covers what
    goes, and no two that stay are alike. The original drops a row for any row before it, kept or not: in a chain where
    each is like the next it keeps the first alone, which may be unlike the last; what it keeps, we keep too.

    Exact, and the order of the input does not matter. Memory: up to 10 bytes a value beside the input, and 40 MB of
    pairs. Cost: at most d x n x (n kept) operations, 10^13 for a cell of 100,000 x 1,024.

    vectors: (n, d) float16 or float32, unit rows. rank_by: (n,) float, the similarity to the cell's centroid.
    rows: (n,) int64, none twice; equal ranks go by the lower row. keep: "far": the least similar to the centroid stay,
    the original's choice; "near": the most similar do.
    min_similarity: raising it keeps more; 1 - epsilon of the original.
    Raises ValueError for an unknown `keep`, for columns of unlike lengths, and for a row that is no unit row.
    """
    import torch

    if keep not in ("far", "near"):
        raise ValueError(f"keep must be 'far' or 'near', was {keep!r}")
    if not len(vectors) == len(rank_by) == len(rows):
        raise ValueError(f"{len(vectors)} vectors must have as many ranks and rows, had {len(rank_by)} and {len(rows)}")
    order = np.lexsort((rows, rank_by if keep == "far" else -rank_by))
    values = on_device(vectors, device)
    covers = torch.empty_like(values)  # of the rows that stay; on a CPU what is not written takes no memory
    kept, best, reason = np.zeros(0, dtype=np.int64), np.full(len(order), -np.inf, np.float32), np.full(len(order), -1)
    for start in range(0, len(order), BLOCK):
        block = values[torch.as_tensor(order[start : start + BLOCK], device=device)]
        own_best, own_reason = best[start : start + BLOCK], reason[start : start + BLOCK]
        for pairs in pairs_above(covers[: len(kept)], block, min_similarity):
            _note(own_best, own_reason, pairs, kept[pairs.left])
        new = _kept_among(block, own_best, own_reason, start, min_similarity)
        covers[len(kept) : len(kept) + len(new)] = block[torch.as_tensor(new, device=device)]
        kept = np.concatenate([kept, new + start])
    places = np.flatnonzero(reason >= 0)
    places = places[np.argsort(order[places])]
    return order[places], order[reason[places]], best[places]


def _kept_among(
    block: "torch.Tensor", best: np.ndarray, reason: np.ndarray, start: int, min_similarity: float
) -> np.ndarray:
    """The rows of a block that stay: (m,) int64, sorted. Notes what the others are dropped for."""
    import torch

    candidates = np.flatnonzero(reason < 0)
    found = list(pairs_above(block[torch.as_tensor(candidates, device=block.device)], block, min_similarity))
    if not found:
        return candidates
    left, right, similarity = (np.concatenate(columns) for columns in zip(*found, strict=True))
    earlier = candidates[left] < right
    left, right, similarity = candidates[left[earlier]], right[earlier], similarity[earlier]
    by_right = np.argsort(right, kind="stable")
    bounds = np.searchsorted(right[by_right], np.arange(len(block) + 1))
    stays = reason < 0
    for row in candidates:
        stays[row] = not stays[left[by_right[bounds[row] : bounds[row + 1]]]].any()
    counts = stays[left]
    _note(best, reason, Pairs(left[counts], right[counts], similarity[counts]), left[counts] + start)
    return np.flatnonzero(stays)


def _note(best: np.ndarray, reason: np.ndarray, pairs: Pairs, places: np.ndarray) -> None:
    """Each pair's right row notes the most similar left one: its similarity and place; equal ones: the first place.

    Pairs come by ascending place from call to call, as tiles do.
    """
    order = np.lexsort((places, -pairs.similarity, pairs.right))
    first = order[np.unique(pairs.right[order], return_index=True)[1]]
    right, similarity = pairs.right[first], pairs.similarity[first]
    nearer = similarity > best[right]
    best[right[nearer]], reason[right[nearer]] = similarity[nearer], places[first][nearer]
