"""Cuts by content: within their bounds, of the size that was asked for, and the same again after a row more or less."""

import numpy as np
import pytest

from lvd.tasks.algorithms.chunks import chunk_ends

NUM = 20_000
NO_BORDER = np.zeros(NUM, dtype=bool)


def hashes(num: int = NUM, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, num, dtype=np.uint64, endpoint=False)


def chunks(values: np.ndarray, size: int, is_border: np.ndarray = NO_BORDER) -> list[bytes]:
    """The chunks themselves."""
    ends = chunk_ends(values, is_border[: len(values)], size).tolist()
    return [values[begin:end].tobytes() for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


@pytest.mark.parametrize("size", [1, 2, 3, 10, 100, 1000])
def test_chunks_have_every_row_and_are_within_their_bounds(size: int) -> None:
    ends = chunk_ends(hashes(), NO_BORDER, size)
    sizes = np.diff(ends, prepend=0)
    assert ends[-1] == NUM
    assert sizes.max() <= 2 * size
    assert sizes[:-1].min() >= max(1, size // 2)


@pytest.mark.parametrize("size", [20, 50, 100])
def test_the_average_is_what_was_asked_for(size: int) -> None:
    sizes = np.diff(chunk_ends(hashes(), NO_BORDER, size), prepend=0)
    assert 0.93 * size <= sizes.mean() <= 1.07 * size


def test_a_size_of_one_cuts_after_every_row() -> None:
    assert chunk_ends(hashes(50), NO_BORDER[:50], 1).tolist() == list(range(1, 51))


@pytest.mark.parametrize(("num", "ends"), [(0, []), (1, [1])])
def test_few_rows(num: int, ends: list[int]) -> None:
    assert chunk_ends(hashes(num), NO_BORDER[:num], 10).tolist() == ends


def test_a_border_ends_a_chunk_that_is_not_too_small() -> None:
    is_border = NO_BORDER.copy()
    is_border[[4, 12, 13, 199]] = True  # the first and the third would leave less than an eighth of the size
    ends = chunk_ends(hashes(), is_border, 100).tolist()
    assert ends[0] == 13 and 14 not in ends and 5 not in ends
    assert 200 in ends or any(200 - 12 < end < 200 for end in ends)


@pytest.mark.parametrize("change", ["insert", "remove", "replace"])
def test_one_row_changes_few_chunks(change: str) -> None:
    values, size, fresh = hashes(), 50, []
    before = set(chunks(values, size))
    for place in range(100, NUM, 400):
        if change == "insert":
            other = np.insert(values, place, hashes(1, seed=place))
        elif change == "remove":
            other = np.delete(values, place)
        else:
            other = values.copy()
            other[place] = hashes(1, seed=place)[0]
        fresh.append(len(set(chunks(other, size, np.zeros(len(other), dtype=bool))) - before))
    assert min(fresh) >= 1
    assert np.mean(fresh) <= 4 and max(fresh) <= 25, "of 400 chunks"


def test_a_partition_more_changes_only_chunks_beside_it() -> None:
    values, more, size = hashes(4000), hashes(1000, seed=1), 50
    is_border = np.zeros(4000, dtype=bool)
    is_border[999::1000] = True
    before = set(chunks(values, size, is_border))
    both = np.insert(values, 2000, more)
    borders = np.zeros(5000, dtype=bool)
    borders[999::1000] = True
    assert len(before - set(chunks(both, size, borders))) <= 1, "of 80"


def test_rows_that_never_end_a_chunk_are_cut_at_the_lowest() -> None:
    high = np.full(1000, 2**64 - 1, dtype=np.uint64)
    high[[150, 330]] -= np.uint64(1)
    assert chunk_ends(high, NO_BORDER[:1000], 100).tolist()[:2] == [151, 331]
