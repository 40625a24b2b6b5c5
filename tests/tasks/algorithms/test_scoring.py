"""The compiled loops against NumPy."""

import numpy as np
import pytest

from lvd.tasks.algorithms.scoring import CHUNK, above, dots


@pytest.mark.parametrize("columns", [1, CHUNK - 1, CHUNK, 3 * CHUNK + 5])
def test_what_reaches_its_row_s_bound(columns: int) -> None:
    rng = np.random.default_rng(columns)
    screen = rng.normal(size=(40, columns)).astype(np.float32)
    bound = np.quantile(screen, 0.9, axis=1).astype(np.float32)  # which some values equal
    bound[3], bound[4], screen[5] = np.inf, -np.inf, -np.inf
    expected = np.nonzero(screen >= bound[:, None])
    row, column, number = above()(screen, bound, screen.size)
    assert number == len(expected[0])
    assert row[:number].tolist() == expected[0].tolist() and column[:number].tolist() == expected[1].tolist()


@pytest.mark.parametrize("short", [0, 1, 7])
def test_a_limit_that_is_passed_is_told(short: int) -> None:
    screen, bound = np.ones((3, 5), dtype=np.float32), np.zeros(3, dtype=np.float32)
    row, column, number = above()(screen, bound, 15 - short)
    assert (number > len(row)) == (short > 0) and len(row) == len(column) == 15 - short


def test_products_are_exact_and_rounded_half_to_even() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(n, 33)).astype(np.float16).astype(np.float32) for n in (20, 30))
    row, column = rng.integers(0, 20, 100), rng.integers(0, 30, 100)
    exact = (a[row].astype(np.float64) * b[column].astype(np.float64)).sum(axis=1)
    assert dots()(a, b, row, column, 100_000).tolist() == np.rint(exact * 100_000).astype(np.int64).tolist()
    halves = np.array([[0.5], [1.5], [2.5]], dtype=np.float32)
    assert dots()(halves, np.ones((1, 1), np.float32), np.arange(3), np.zeros(3, np.int64), 1).tolist() == [0, 2, 2]
