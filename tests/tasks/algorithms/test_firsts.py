"""The place of every row among those of its key, against counting by hand."""

import numpy as np
import pytest

from lvd.tasks.algorithms.firsts import first_of_each, places, places_in_order


def counted(keys: list[int]) -> list[int]:
    return [keys[:place].count(key) for place, key in enumerate(keys)]


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint64])
@pytest.mark.parametrize("size", [0, 1, 2, 300])
def test_places_are_counted_from_the_first(size: int, dtype: type) -> None:
    keys = np.random.default_rng(size).integers(0, 40, size).astype(dtype)
    assert places(keys).tolist() == counted(keys.tolist())
    assert places_in_order(np.sort(keys)).tolist() == counted(sorted(keys.tolist()))


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_the_first_of_each_key(limit: int) -> None:
    keys = np.random.default_rng(limit).integers(0, 20, 200)
    assert first_of_each(keys, limit).tolist() == [place < limit for place in counted(keys.tolist())]
