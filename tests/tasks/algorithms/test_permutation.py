"""The random order: every place once, the same for any part of it, another for another seed, and well mixed."""

import numpy as np
import pytest

from lvd.tasks.algorithms.permutation import permuted


def test_every_number_has_a_place_of_its_own_whatever_the_total() -> None:
    for total in (*range(1, 200), 1023, 1024, 1025, 65_537, 300_000):
        places = permuted(np.arange(total), total, seed=total % 3)
        assert np.array_equal(np.sort(places), np.arange(total)), total


def test_a_part_of_it_is_computed_alone() -> None:
    whole = permuted(np.arange(10_007), 10_007, seed=5)
    some = np.random.default_rng(0).permutation(10_007)[:500]
    assert np.array_equal(permuted(some, 10_007, seed=5), whole[some])
    assert permuted(np.zeros(0, dtype=np.int64), 10_007, seed=5).tolist() == []


def test_places_of_a_very_large_range_stay_inside_it() -> None:
    total = 142_109_386_000
    numbers = np.array([0, 1, 2, total - 1])
    places = permuted(numbers, total, seed=0)
    assert len(set(places.tolist())) == 4 and places.min() >= 0 and places.max() < total


def test_seeds_give_orders_that_have_nothing_in_common() -> None:
    total, numbers = 10_000, np.arange(10_000)
    first, second = (permuted(numbers, total, seed=seed) for seed in (0, 1))
    assert (first == second).sum() < 10  # one is expected
    for places in (first, second):
        assert abs(np.corrcoef(numbers, places)[0, 1]) < 0.04  # four times the deviation of a random order
        assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.04
        of_a_tenth = np.bincount(places[:1000] // 1000, minlength=10)  # where the first thousand go
        assert of_a_tenth.min() > 60 and of_a_tenth.max() < 140  # 100 each, deviation 9


def test_orders_of_a_few_things_are_all_there_and_about_as_frequent() -> None:
    found = {}
    for seed in range(2400):
        order = tuple(permuted(np.arange(4), 4, seed=seed).tolist())
        found[order] = found.get(order, 0) + 1
    assert len(found) == 24
    assert min(found.values()) > 50 and max(found.values()) < 160  # 100 each


@pytest.mark.parametrize("number", [-1, 5])
def test_what_is_not_in_the_range_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match=r"in \[0, 5\)"):
        permuted(np.array([0, number]), 5, seed=0)
