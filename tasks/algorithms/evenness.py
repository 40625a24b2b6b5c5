"""How evenly things are spread over clusters or classes."""

import numpy as np


def entropy_bits(counts: np.ndarray) -> float:
    """Of the part that a thing is in, in bits: 0 if all are in one part, log2 of the parts if these are equal.

    counts: (m,) of at least 0.
    """
    shares = counts[counts > 0] / max(1, counts.sum())
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def imbalance(sizes: np.ndarray) -> float:
    """k x sum of n^2 / (sum of n)^2: 1 for equal clusters, k if one holds everything; 0 if all are empty.

    sizes: (k,) of at least 0.
    """
    total = sizes.sum()
    return float(len(sizes) * np.square(sizes / total).sum()) if total else 0.0
