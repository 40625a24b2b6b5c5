"""Compiled loops of the searches on a processor: what of a screen may count, and the exact similarities of that.

Each is compiled once in a process, and does not hold up other threads.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

CHUNK = 64  # columns that are looked at together


@cache
def dots() -> Callable[..., np.ndarray]:
    """(a, b, row, column, scale) → (p,) int64: the products a[row] · b[column], times the scale, rounded.

    a: (n, d), b: (m, d) float32; row, column: (p,) int64. The float64 sums of float16 rows are exact, so their order
    may change.
    """
    import numba

    @numba.njit(nogil=True, fastmath={"reassoc", "contract", "nsz"})
    def units(a, b, row, column, scale):
        found = np.empty(len(row), dtype=np.int64)
        for pair in range(len(row)):
            i, j, total = row[pair], column[pair], 0.0
            for d in range(a.shape[1]):
                total += np.float64(a[i, d]) * np.float64(b[j, d])
            found[pair] = np.int64(np.rint(total * scale))
        return found

    return units


@cache
def highest() -> Callable[..., Any]:
    """(values) → the highest of them, none of which is NaN; at least one. For other compiled loops."""
    import numba

    @numba.njit(nogil=True, fastmath={"nnan", "reassoc", "nsz"})
    def top_of(values):
        top = values[0]
        for value in values:
            top = value if value > top else top  # which LLVM makes wide, unlike max()
        return top

    return top_of


@cache
def above() -> Callable[..., Any]:
    """(screen, bound, limit) → (row, column, number): where a screen reaches the bound of its row, row by row.

    screen: (n, m) float32; bound: (n,) float32. row, column: (limit,) int64, of which `number` count; where there are
    more than the limit, the number is above it and the rest is left out.
    """
    import numba

    top_of = highest()

    @numba.njit(nogil=True)
    def places(screen, bound, limit):
        row, column, number = np.empty(limit, dtype=np.int64), np.empty(limit, dtype=np.int64), 0
        for i in range(screen.shape[0]):
            for start in range(0, screen.shape[1], CHUNK):
                some = screen[i, start : min(start + CHUNK, screen.shape[1])]
                if top_of(some) >= bound[i]:
                    for j in range(len(some)):
                        if some[j] >= bound[i]:
                            if number == limit:
                                return row, column, number + 1
                            row[number], column[number] = i, start + j
                            number += 1
        return row, column, number

    return places
