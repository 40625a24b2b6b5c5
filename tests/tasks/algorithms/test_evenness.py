"""Entropy and imbalance of counts."""

import numpy as np
import pytest

from lvd.tasks.algorithms.evenness import entropy_bits, imbalance


@pytest.mark.parametrize(
    ("counts", "expected"),
    [([5, 0], 0.0), ([2, 2], 1.0), ([1, 1, 1, 1, 0], 2.0), ([3, 1], 0.8112781), ([0, 0], 0.0), ([], 0.0)],
)
def test_entropy_counts_bits(counts: list[int], expected: float) -> None:
    assert entropy_bits(np.array(counts, dtype=np.int64)) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(
    ("sizes", "expected"), [([5, 5, 5], 1.0), ([9, 0, 0], 3.0), ([3, 1], 1.25), ([0, 0], 0.0), ([10**9, 10**9], 1.0)]
)
def test_imbalance(sizes: list[int], expected: float) -> None:
    assert imbalance(np.array(sizes, dtype=np.int64)) == pytest.approx(expected)
