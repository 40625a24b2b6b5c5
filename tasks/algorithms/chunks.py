"""Where a list of rows is cut, by what the rows are and not by their number: a row more or less moves few cuts."""

import numpy as np

BORDER_LEAST, LEAST, MOST = 1 / 8, 1 / 2, 2  # times the size: the shortest chunk at a border, elsewhere, the longest
GAP = 5 / 8  # times the size: rows between two that may end a chunk; with LEAST and MOST, chunks have `size` on average


def chunk_ends(hashes: np.ndarray, is_border: np.ndarray, size: int) -> np.ndarray:
    """Where each chunk ends: (k,) int64, ascending, the last one n; none of no rows.

    A chunk ends at the first border after size/8 rows, or after the first row whose hash is low once it has size/2;
    if there is none before it has 2 × size, after that one of these rows whose hash is the lowest. Two lists that
    differ in one place are cut alike before it, and again from the next end that they have in common, which comes
    after a few chunks. Only the last chunk can be shorter than size/8.

    hashes: (n,) uint64, of each row, as good as drawn uniformly. is_border: (n,) bool, True for the last row of what
    belongs together. size: rows of a chunk on average where there are no borders, at least 1.
    Source: content-defined chunking, Muthitacharoen, Chen and Mazières, SOSP 2001.
    """
    low = np.uint64(min(2**64 - 1, round(2**64 / max(1.0, GAP * size))))
    after_low, after_border = (np.flatnonzero(chosen) + 1 for chosen in (hashes < low, is_border))
    least, border_least, most = (max(1, int(share * size)) for share in (LEAST, BORDER_LEAST, MOST))
    ends, begin = [], 0
    while begin < len(hashes):
        stop = min(begin + most, len(hashes))
        found = [_first(after_low, begin + least, stop), _first(after_border, begin + border_least, stop)]
        end = min((end for end in found if end is not None), default=None)
        if end is None and stop < len(hashes):
            end = begin + least + int(np.argmin(hashes[begin + least - 1 : stop]))
        ends.append(begin := stop if end is None else end)
    return np.array(ends, dtype=np.int64)


def _first(ends: np.ndarray, least: int, most: int) -> int | None:
    """The first of ascending ends in [least, most]."""
    place = int(np.searchsorted(ends, least))
    return int(ends[place]) if place < len(ends) and ends[place] <= most else None
