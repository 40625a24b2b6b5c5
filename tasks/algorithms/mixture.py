"""How many rows each part of a mixture gives, and which: shares by weight, draws by a hash of the row.

DINOv3 mixes a balanced sample with a retrieved one (PAPER.md 5).
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from lvd.tasks.algorithms.row_hash import row_hash


class Shares(NamedTuple):
    """What each part of a mixture gives: two (parts,) int64.

    rows: how many to take, never above what is available. short: how many of its share by weight a part cannot give,
    whether or not others stand in for them. What the whole mixture lacks is the target less the sum of the rows.
    """

    rows: np.ndarray
    short: np.ndarray


def shares(target: int, weights: Sequence[float], available: np.ndarray, *, refill: bool = False) -> Shares:
    """The parts' shares of `target` in proportion to their weights, in whole rows by the largest remainder.

    Equal remainders go to the earlier part. Weights count as they are written: 0.1 is a tenth. What a part cannot give
    is missing from the mixture; with `refill` the others give it, again by weight, but never a part of weight 0.

    target: at least 0. weights: (parts,) of at least 0, not all 0. available: (parts,) int64, at least 0.
    Raises ValueError for a figure out of its range, and for lists of unlike lengths.
    """
    exact, supply = _exact(weights), np.asarray(available, dtype=np.int64)
    if len(exact) != len(supply):
        raise ValueError(f"each of {len(supply)} parts must have one weight, there were {len(exact)} weights")
    if target < 0 or (supply < 0).any():
        raise ValueError(f"target and available must be at least 0, were {target} and {supply.min()}")
    wanted = _largest_remainder(exact, target)
    rows = np.minimum(wanted, supply)
    if refill and rows.sum() < target:
        rows = _refilled(exact, target, supply)
    return Shares(rows, np.maximum(wanted - supply, 0))


def thinned(rows: np.ndarray, keep: int, *, seed: int, part: int) -> np.ndarray:
    """`keep` of the rows, uniformly without replacement: (min(keep, n),) int64, sorted.

    Those with the smallest hashes of (seed, part, row): the order of the rows does not matter, a smaller `keep` takes a
    subset of a larger one, and rows may be thinned in shards: thinning what is left of all shards gives the same.

    rows: (n,) int64, none twice. seed, part: other ones give an unrelated choice.
    Raises ValueError for a negative `keep`.
    """
    if keep < 0:
        raise ValueError(f"keep must be at least 0, was {keep}")
    rows = np.asarray(rows, dtype=np.int64)
    if keep == 0:
        return rows[:0]
    if keep < len(rows):
        rows = rows[np.argpartition(row_hash(rows, seed, part), keep - 1)[:keep]]
    return np.sort(rows)


def _exact(weights: Sequence[float]) -> list[Fraction]:
    """The weights as they are written. Raises ValueError for one below 0, one that is no number, and none above 0."""
    for part, weight in enumerate(weights):
        if not 0 <= weight < float("inf"):
            raise ValueError(f"weights must be finite and at least 0, that of part {part} was {weight}")
    exact = [Fraction(str(weight)) for weight in weights]
    if not any(exact):
        raise ValueError(f"at least one weight must be above 0, were {list(weights)}")
    return exact


def _largest_remainder(weights: Sequence[Fraction], target: int) -> np.ndarray:
    """(parts,) int64 that sum to the target."""
    quotas = [weight * target / sum(weights) for weight in weights]
    found = np.array([int(quota) for quota in quotas], dtype=np.int64)
    by_remainder = sorted(range(len(quotas)), key=lambda part: -(quotas[part] % 1))
    found[by_remainder[: target - int(found.sum())]] += 1
    return found


def _refilled(weights: Sequence[Fraction], target: int, supply: np.ndarray) -> np.ndarray:
    """(parts,) int64: the shares where a part that cannot give its own gives all, and the others the rest by weight."""
    rows, open_parts = np.zeros(len(weights), dtype=np.int64), [part for part, weight in enumerate(weights) if weight]
    while open_parts:
        left, total = target - int(rows.sum()), sum(weights[part] for part in open_parts)
        full = [part for part in open_parts if weights[part] * left >= supply[part].item() * total]
        if not full:
            rows[open_parts] = _largest_remainder([weights[part] for part in open_parts], left)
            break
        rows[full] = supply[full]
        open_parts = [part for part in open_parts if part not in full]
    return rows
