"""The first rows of every key."""

import numpy as np


def first_of_each(keys: np.ndarray, limit: int = 1) -> np.ndarray:
    """(n,) bool: whether a row is among the first `limit` rows that have its key.

    keys: (n,) of any integer dtype. limit: at least 1. Memory: about 24 bytes a row.
    """
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=ordered[:1]) != 0) if len(keys) else np.zeros(0, dtype=np.int64)
    starts = np.concatenate([np.zeros(1, dtype=np.int64), starts])
    position = np.arange(len(keys))
    rank = position - starts[np.searchsorted(starts, position, side="right") - 1]
    first = np.empty(len(keys), dtype=bool)
    first[order] = rank < limit
    return first
