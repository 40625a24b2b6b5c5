"""What work costs: bytes and seconds, counted for the shard that is being made."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_METER: ContextVar[Counter[str] | None] = ContextVar("lvd_meter", default=None)


@contextmanager
def metered(into: Counter[str] | None = None) -> Iterator[Counter[str]]:
    """The counts of what is read inside, by this thread and those that were handed its context: `read_bytes`.

    What an outer meter has counted until then goes over to this one: it was read for what is written now.
    """
    counter, outer = Counter() if into is None else into, _METER.get()
    if outer:
        counter.update(outer)
        outer.clear()
    token = _METER.set(counter)
    try:
        yield counter
    finally:
        _METER.reset(token)


def count(name: str, amount: float) -> None:
    """Adds to the counts of the work that is under way here, if any is counted."""
    if (counter := _METER.get()) is not None:
        counter[name] += amount
