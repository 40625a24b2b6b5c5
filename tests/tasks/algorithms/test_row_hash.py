"""The hash of rows: pinned values, uniformity, and that every bit of every input counts."""

import numpy as np
import pytest

from lvd.tasks.algorithms.row_hash import LOW_64_BITS, row_hash

ROWS = np.arange(200_000)


def by_definition(row, seed, *keys):
    """The same in Python's integers."""

    def mixed(value):
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & LOW_64_BITS
        value = (value ^ value >> 27) * 0x94D049BB133111EB & LOW_64_BITS
        return value ^ value >> 31

    state = 0x9E3779B97F4A7C15
    for value in (seed, *keys, row):
        state = mixed(mixed((value + 0x9E3779B97F4A7C15) & LOW_64_BITS) ^ state)
    return state


def test_values_never_change():
    # What lies on storage was drawn by them.
    assert row_hash(np.array([0, 1, 2**40]), 0).tolist() == [
        8374052749663755816,
        13107292478208349655,
        4483666641661342198,
    ]
    assert row_hash(np.array([0, 1, 2**40]), 7, 3, 2**63).tolist() == [
        18136231339309048045,
        3559003845290983777,
        13360401447085820412,
    ]


@pytest.mark.parametrize("keys", [(), (0,), (5, -1), (2**64 - 1, 1, 2)])
@pytest.mark.parametrize("seed", [0, 1, -1, 2**64 + 5])
def test_equals_the_definition(seed, keys):
    rows = [0, 1, 2, 2**31, 2**62, -1, -(2**63)]
    found = row_hash(np.array(rows), seed, *keys)
    assert found.dtype == np.uint64 and found.tolist() == [by_definition(row, seed, *keys) for row in rows]


def test_types_and_shapes_of_rows_do_not_matter():
    rows = np.array([3, 1, 2])
    for dtype in (np.int8, np.uint8, np.int32, np.uint64):
        assert row_hash(rows.astype(dtype), 1, 2).tolist() == row_hash(rows, 1, 2).tolist()
    assert row_hash(rows[:0], 1, rows[:0]).shape == (0,)
    assert row_hash(rows[:1], 1).tolist() == row_hash(rows, 1)[:1].tolist()


def test_a_key_of_each_row_is_that_key():
    rows, keys = np.arange(50), np.arange(50) % 7
    found = row_hash(rows, 4, keys, 9)
    assert found.tolist() == [int(row_hash(rows[i : i + 1], 4, int(keys[i]), 9)[0]) for i in range(50)]


def test_no_two_rows_have_one_number():
    assert len(np.unique(row_hash(ROWS, 3, 1))) == len(ROWS)
    assert len(np.unique(row_hash(ROWS << 44, 3, 1))) == len(np.unique(ROWS << 44))


def test_order_and_count_of_the_keys_matter():
    calls = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 2), (2, 0), (2**32,), (0, 2**32)]
    hashes = np.stack([row_hash(ROWS[:1000], *call) for call in calls])
    assert len(np.unique(hashes)) == hashes.size


@pytest.mark.parametrize("rows", [ROWS, ROWS * 10_000, ROWS << 40, ROWS + 2**62], ids=["1", "10^4", "2^40", "high"])
@pytest.mark.parametrize("shift", [56, 28, 0])
def test_numbers_are_uniform(rows, shift):
    # Chi-squared over 256 equal ranges of the high, middle and low bits: mean 255, standard deviation 22.6.
    counts = np.bincount(((row_hash(np.unique(rows), 11, 5) >> np.uint64(shift)) & np.uint64(255)).astype(np.int64))
    expected = len(np.unique(rows)) / 256
    assert len(counts) == 256
    assert 255 - 5 * 22.6 < ((counts - expected) ** 2 / expected).sum() < 255 + 5 * 22.6


@pytest.mark.parametrize("of", ["row", "seed", "key"])
def test_every_bit_of_an_input_changes_half_of_the_bits(of):
    rows = np.arange(4000)
    plain = row_hash(rows, 1, 2)
    for bit in range(63):
        row, seed, key = (1 << bit if name == of else 0 for name in ("row", "seed", "key"))
        changed = plain ^ row_hash(rows ^ row, 1 ^ seed, 2 ^ key)
        share = np.bitwise_count(changed).mean() / 64
        assert abs(share - 0.5) < 0.01, bit
        # And each bit of the result about as often as the others.
        each = [((changed >> np.uint64(place)) & np.uint64(1)).mean() for place in range(0, 64, 9)]
        assert max(abs(value - 0.5) for value in each) < 0.05, bit


def test_neighbouring_seeds_and_keys_choose_unrelated_rows():
    # Of 200,000 rows a tenth is chosen; two unrelated choices share 2,000, give or take 42.
    def chosen(seed, key):
        return set(np.flatnonzero(row_hash(ROWS, seed, key) < np.uint64(2**64 // 10)).tolist())

    first = chosen(0, 0)
    assert abs(len(first) - 20_000) < 5 * 134
    for seed, key in [(1, 0), (0, 1), (1, 1), (2, 0), (0, 2**40)]:
        assert abs(len(first & chosen(seed, key)) - 2000) < 5 * 42


def test_a_row_that_equals_its_seed_or_key_is_as_any_other():
    # Folded in alike they would cancel out: the number would be 0 whatever the seed.
    same = np.concatenate([row_hash(ROWS[row : row + 1], *call) for row in range(999) for call in [(row,), (0, row)]])
    assert len(np.unique(same)) == len(same) and abs(same.astype(float).mean() / 2**64 - 0.5) < 5 * 0.29 / 1998**0.5
