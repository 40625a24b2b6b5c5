"""Shares of a mixture and the rows that fill them: planted answers, brute force, and what must hold for any input."""

from fractions import Fraction

import numpy as np
import pytest

from lvd.tasks.algorithms.mixture import shares, thinned
from lvd.tasks.algorithms.row_hash import row_hash

PLENTY = 10**12


@pytest.mark.parametrize(
    ("target", "weights", "available", "refill", "rows", "short"),
    [
        (10, [1, 1], [PLENTY, PLENTY], False, [5, 5], [0, 0]),
        (5, [0.3, 0.1, 0.6], [PLENTY] * 3, False, [2, 0, 3], [0, 0, 0]),  # equal halves: 0.1 is a tenth, not the float
        (3, [1, 1], [PLENTY] * 2, False, [2, 1], [0, 0]),  # equal remainders: the earlier part
        (7, [5, 3, 2], [PLENTY] * 3, False, [4, 2, 1], [0, 0, 0]),  # 3.5, 2.1, 1.4
        (0, [1, 2], [5, 5], False, [0, 0], [0, 0]),
        (10, [1, 1], [2, PLENTY], False, [2, 5], [3, 0]),  # what is missing is missing
        (10, [1, 1], [2, PLENTY], True, [2, 8], [3, 0]),
        (10, [1, 1], [2, 6], True, [2, 6], [3, 0]),  # less than the target in all
        (10, [1, 0], [2, 6], True, [2, 0], [8, 0]),  # a part of weight 0 stands in for none
        (100, [1, 1, 2], [10, 30, PLENTY], True, [10, 30, 60], [15, 0, 0]),
        (100, [3, 1, 1, 0], [10, 40, PLENTY, 9], True, [10, 40, 50, 0], [50, 0, 0, 0]),  # the 50 fill the second too
        (4 * 10**17, [1e-300, 1e300], [PLENTY * PLENTY // 10**6] * 2, False, [0, 4 * 10**17], [0, 0]),
        (5, [2], [3], True, [3], [2]),
    ],
)
def test_shares(target, weights, available, refill, rows, short):
    found = shares(target, weights, np.array(available, dtype=np.int64), refill=refill)
    assert found.rows.dtype == found.short.dtype == np.int64
    assert (found.rows.tolist(), found.short.tolist()) == (rows, short)


def test_shares_of_any_input():
    rng = np.random.default_rng(0)
    for _ in range(300):
        parts = int(rng.integers(1, 7))
        weights = rng.integers(0, 5, size=parts) / 4
        weights[rng.integers(parts)] += 0.25
        available, target = rng.integers(0, 60, size=parts), int(rng.integers(0, 150))
        plain, refilled = (shares(target, weights, available, refill=refill) for refill in (False, True))
        wanted = plain.rows + plain.short
        assert wanted.sum() == target
        assert all(
            abs(int(w) - Fraction(target) * Fraction(weight) / Fraction(weights.sum())) < 1
            for w, weight in zip(wanted, weights, strict=True)
        )
        assert (plain.short == refilled.short).all()
        assert (plain.rows == np.minimum(wanted, available)).all() and (refilled.rows <= available).all()
        assert refilled.rows.sum() == min(target, available[weights > 0].sum())
        assert (refilled.rows[weights == 0] == 0).all()
        # Whoever could have given more got its share by weight of all that the others did not give: no part that is
        # not full lies, for its weight, a row or more behind another.
        open_parts = np.flatnonzero((refilled.rows < available) & (weights > 0))
        for part in open_parts:
            assert (
                (refilled.rows - 1) / np.where(weights > 0, weights, 1) < (refilled.rows[part] + 1) / weights[part]
            )[weights > 0].all()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((5, [1.0], [3, 4]), "each of 2 parts must have one weight, there were 1"),
        ((-1, [1, 1], [3, 4]), "were -1 and 3"),
        ((5, [1, 1], [3, -4]), "were 5 and -4"),
        ((5, [1, -0.5], [3, 4]), "that of part 1 was -0.5"),
        ((5, [float("nan"), 1], [3, 4]), "that of part 0 was nan"),
        ((5, [1, float("inf")], [3, 4]), "that of part 1 was inf"),
        ((5, [0, 0], [3, 4]), "at least one weight must be above 0"),
        ((5, [], []), "at least one weight must be above 0"),
    ],
)
def test_shares_refuses(arguments, match):
    with pytest.raises(ValueError, match=match):
        shares(*arguments)


def test_thinned_keeps_the_smallest_hashes_whatever_the_order_and_the_shards():
    rng = np.random.default_rng(1)
    for _ in range(50):
        rows = rng.choice(10**12, size=int(rng.integers(0, 200)), replace=False)
        keep = int(rng.integers(0, 220))
        found = thinned(rows, keep, seed=3, part=2)
        assert found.dtype == np.int64 and found.tolist() == sorted(found.tolist())
        by_hash = rows[np.argsort(row_hash(rows, 3, 2))]
        assert set(found.tolist()) == set(by_hash[:keep].tolist())
        np.testing.assert_array_equal(thinned(rng.permutation(rows), keep, seed=3, part=2), found)
        shards = np.array_split(rng.permutation(rows), 4)
        left = np.concatenate([thinned(shard, keep, seed=3, part=2) for shard in shards])
        np.testing.assert_array_equal(thinned(left, keep, seed=3, part=2), found)
        assert set(thinned(rows, keep // 2, seed=3, part=2)) <= set(found)


def test_thinned_draws_every_row_alike_often():
    rows = np.arange(1000)
    counts = np.zeros(1000)
    for seed in range(200):
        counts[thinned(rows, 300, seed=seed, part=0)] += 1
    # Each row: 60 times, give or take 6.5.
    assert counts.sum() == 60_000 and abs(counts - 60).max() < 5 * 6.5 and 5.5 < counts.std() < 7.5


def test_thinned_follows_seed_and_part():
    rows = np.arange(500)
    choices = {thinned(rows, 100, seed=seed, part=part).tobytes() for seed in range(3) for part in range(3)}
    assert len(choices) == 9


@pytest.mark.parametrize("keep", [0, 5, 6])
def test_thinned_at_its_bounds(keep):
    rows = np.array([9, 3, 7, 1, 5], dtype=np.int32)
    assert thinned(rows, keep, seed=0, part=0).tolist() == ([1, 3, 5, 7, 9] if keep else [])
    assert thinned(rows[:0], keep, seed=0, part=0).tolist() == []


def test_thinned_refuses_a_negative_number():
    with pytest.raises(ValueError, match="keep must be at least 0, was -1"):
        thinned(np.arange(3), -1, seed=0, part=0)
