"""A random order of numbered things that is computed for any of them alone, and held nowhere."""

import numpy as np

ROUNDS = 12  # four are enough for large domains (Luby and Rackoff); small ones need more to look random


def permuted(numbers: np.ndarray, total: int, *, seed: int) -> np.ndarray:
    """(n,) int64: the place of each number in a random order of [0, total), a bijection of that range.

    numbers: (n,) integers in [0, total); total: at most 2^62. Memory: 40 bytes for each number asked for; 1 µs each.
    Raises ValueError if a number leaves the range.
    Source: Black and Rogaway, Ciphers with Arbitrary Finite Domains (CT-RSA 2002): a Feistel network over the smallest
    domain of 2^2h numbers that holds the range, applied again to what falls outside of it.
    """
    numbers = np.asarray(numbers, dtype=np.int64)
    if len(numbers) and not (numbers.min() >= 0 and numbers.max() < total):
        raise ValueError(f"numbers must be in [0, {total}), were {numbers.min()} to {numbers.max()}")
    half = max(1, (max(total - 1, 1).bit_length() + 1) // 2)
    keys = np.random.SeedSequence([seed, 0x0EDE]).generate_state(ROUNDS, np.uint64)
    places = numbers.astype(np.uint64)
    outside = np.arange(len(places))
    while len(outside):
        places[outside] = _feistel(places[outside], half, keys)
        outside = outside[places[outside] >= total]
    return places.astype(np.int64)


def _feistel(values: np.ndarray, half: int, keys: np.ndarray) -> np.ndarray:
    """(n,) uint64: a bijection of [0, 2^(2 half)), a round for each key."""
    width, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> width, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right + key) & mask)
    return (left << width) | right


def _mixed(values: np.ndarray) -> np.ndarray:
    """(n,) uint64, every bit of which depends on all of the value's. Source: splitmix64 (Steele and others, 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
