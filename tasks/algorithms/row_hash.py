"""A random-looking number for every row, by a seed and keys: draws that neither order nor sharding can change."""

import numpy as np

# Constants of SplitMix64: Steele, Lea and Flood, OOPSLA 2014; the mixer is Stafford's variant 13.
STEP = np.uint64(0x9E3779B97F4A7C15)
MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
LOW_64_BITS = (1 << 64) - 1


def row_hash(rows: np.ndarray, seed: int, *keys: int | np.ndarray) -> np.ndarray:
    """A number of each row, as good as drawn uniformly: (n,) uint64; the same on every machine.

    With one seed and the same keys two rows never have the same number. Other seeds, other keys, other orders of the
    keys and other counts of them give unrelated numbers. 10 to 20 million rows a second for each key that is an array;
    keys that are integers cost nothing.

    rows: (n,) integers. seed: any integer, of which the low 64 bits count. keys: what the numbers are for, such as a
    part or a stage: integers, or (n,) integers with one for each row.
    """
    state = np.array([STEP])
    for values in (seed, *keys, rows):
        state = _mixed(_mixed(_bits(values) + STEP) ^ state)
    return state


def _bits(values: int | np.ndarray) -> np.ndarray:
    """The values' low 64 bits: (n,) or (1,) uint64. One value is an array too, as numpy warns where a scalar wraps."""
    if isinstance(values, np.ndarray):
        return np.atleast_1d(values).astype(np.int64 if values.dtype.kind == "i" else np.uint64).view(np.uint64)
    return np.array([int(values) & LOW_64_BITS], dtype=np.uint64)


def _mixed(values: np.ndarray) -> np.ndarray:
    """(n,) uint64, one for one: each bit of a value changes each bit of its result about half the time."""
    values = (values ^ (values >> np.uint64(30))) * MULTIPLIERS[0]
    values = (values ^ (values >> np.uint64(27))) * MULTIPLIERS[1]
    return values ^ (values >> np.uint64(31))
