"""The one line that says what a picture is to what was curated."""

import math

from lvd.flows.found import Row, Similar
from lvd.flows.register import Register

PLACES = {"pool": "pool", "curated": "curated collections"}  # the role in the ledger, in words


def verdict(
    row: Row | None,
    register: Register,
    copies: tuple[Similar, ...],
    nearest: Similar | None,
    min_similarity: float,
) -> str:
    """One line: what the picture itself became, or what it is a copy of, or that it is new.

    row: of the ledger, with the very bytes of the picture.
    """
    benchmarks = [copy for copy in copies if copy.role == "benchmark"]
    first = max(copies, key=lambda c: (c.by == "bytes", c.role != "benchmark", c.published, c.similarity), default=None)
    parts = []
    if row is not None:
        first = None
        place = "" if row["state"] == "kept" else f"in the {PLACES[row['role']]}, "
        parts.append(place + register.fate(row))
    elif first:
        parts.append(copy_of(first))
    if benchmarks and first not in benchmarks and not (row and row["reason"] == "benchmark_copy"):
        parts.append(copy_of(benchmarks[0]))
    if parts:
        return "; ".join(parts)
    if nearest is None:
        return f"not in the pool: nothing there is like it, threshold {two_decimals(min_similarity)}"
    best = f"nearest {two_decimals(nearest.similarity)} ({nearest.name})"
    return f"not in the pool: {best}, threshold {two_decimals(min_similarity)}"


def copy_of(image: Similar) -> str:
    """What a copy is a copy of, and what became of that image."""
    if image.by == "bytes":
        return f"{image.name}, byte for byte"
    same = f"a copy of {image.name} ({two_decimals(image.similarity)})"
    if image.role == "benchmark" or not image.fate:
        return same
    return f"{same}, which is published" if image.published else f"{same}, which was {image.fate}"


def two_decimals(similarity: float) -> str:
    """Rounded down, so that what is below a threshold is never shown as if it reached it."""
    return f"{math.floor(round(similarity * 100, 3)) / 100:.2f}"
