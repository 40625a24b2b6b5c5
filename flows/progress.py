"""What a run shows while it goes: a bar per stage for a person, a line per shard for a machine."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

logger = logging.getLogger("lvd")


@contextmanager
def shown() -> Iterator[Callable[[str, int, int], None]]:
    """A function to call with (stage, shards done, shards in all). Draws bars if standard error is a terminal."""
    if not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    columns = TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if total and stage not in tasks:
                tasks[stage] = bars.add_task(stage)
            if total:
                bars.update(tasks[stage], completed=done, total=total)

        yield show


def log_lines() -> None:
    """Sends the line of every shard to standard error, unless that is a terminal and shows bars."""
    logger.setLevel(logging.INFO)
    logger.propagate = False  # Prefect's handler would print it again
    if not sys.stderr.isatty():
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger.addHandler(handler)
