"""What a run shows while it goes: of every stage how far it is, how fast, and how busy the device.

A person at a terminal sees bars, a log gets a line now and then, and Prefect's screen has a progress artifact.
"""

import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars

from lvd.flows.server import dispensable
from lvd.infra.logs import fields, log_format

logger = logging.getLogger("lvd")

LINE_EVERY_S = 30.0
UPDATE_EVERY_S = 2.0  # of a progress artifact

Show = Callable[[Any], None]  # takes a `group.Outcome`


class Tally:
    """What became of a stage's shards so far, and what that says of the rest.

    A stage may be begun several times: what it does is summed, while the pace and the estimate are of the last time,
    since its other shards may be of another kind. now: seconds of any one clock.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.shards = self.done = self.failed = 0  # done: the failed ones too
        self._rows, self._seen = 0, 0  # of all shards; of those that a model saw
        self._seconds: Counter[str] = Counter()  # of the shards that a model saw
        self._begun, self._before = 0.0, (0, 0, 0)

    def begin(self, shards: int, now: float) -> None:
        """Adds shards that are to come."""
        self.shards += shards
        self._begun, self._before = now, (self.done, self._rows, self._seen)

    def add(self, outcome: Any) -> None:
        """outcome: a `group.Outcome`."""
        self.done += 1
        self.failed += outcome.error is not None
        account = outcome.account or {}
        rows, cost = account.get("rows_in", 0), account.get("cost", {})
        self._rows += rows
        if "device_seconds" in cost:
            self._seen += rows
            self._seconds.update(
                all=account["seconds"], busy=cost["device_seconds"], waited=cost.get("waited_seconds", 0.0)
            )

    @property
    def images(self) -> int:
        """Rows that went through; where a model runs those that it saw, and none of the searches among its vectors."""
        return self._seen or self._rows

    @property
    def share_done(self) -> float:
        """In [0, 1]."""
        return self.done / self.shards if self.shards else 0.0

    @property
    def busy(self) -> float | None:
        """Share of the time in which the device was busy; None if no model ran."""
        return self._share("busy")

    @property
    def waiting(self) -> float | None:
        """Share of the time in which a model waited for decoded images; None if none ran."""
        return self._share("waited")

    def _share(self, what: str) -> float | None:
        return min(1.0, self._seconds[what] / self._seconds["all"]) if self._seconds["all"] > 0 else None

    def images_per_second(self, now: float) -> float:
        """By the clock on the wall; 0 if none has gone by."""
        fresh = self._seen - self._before[2] if self._seen else self._rows - self._before[1]
        return fresh / (now - self._begun) if now > self._begun else 0.0

    def left_s(self, now: float) -> float | None:
        """Seconds until the last shard is done, if it goes on like this; None before one is done."""
        done = self.done - self._before[0]
        return (now - self._begun) / done * (self.shards - self.done) if done else None

    def facts(self, now: float) -> list[str]:
        """What is known now, in words, the number of shards left out."""
        found = []
        if self.failed:
            found.append(f"{self.failed:,} failed")
        if self.images:
            found.append(f"{self.images:,} images")
        if per_second := self.images_per_second(now):
            found.append(f"{pace(per_second)} images/s")
        if self.busy is not None and self.waiting is not None:
            found += [f"device busy {self.busy:.0%}", f"waiting for data {self.waiting:.0%}"]
        if self.done < self.shards and (left := self.left_s(now)) is not None:
            found.append(f"about {about(left)} left")
        return found

    def figures(self, now: float) -> dict[str, Any]:
        """What is known now, for machines; what is not known is left out."""
        known = {"device_busy": self.busy, "left_s": self.left_s(now) if self.done < self.shards else None}
        counts = {"shards_done": self.done, "shards": self.shards, "shards_failed": self.failed, "rows": self.images}
        return {"stage": self.name, **counts, **{name: round(v, 3) for name, v in known.items() if v is not None}}

    def brief(self, now: float) -> str:
        """The pace, the share in which the device is busy, and the time left: what has room beside a bar."""
        found = [f"{pace(per_second)} images/s"] if (per_second := self.images_per_second(now)) else []
        found += [f"busy {self.busy:.0%}"] if self.busy is not None else []
        found += [f"{self.failed:,} failed"] if self.failed else []
        if self.done < self.shards and (left := self.left_s(now)) is not None:
            found.append(f"{about(left)} left")
        return "  ".join(found)

    def line(self, now: float) -> str:
        """All of it in one line."""
        head = f"{self.name}: {self.done:,} of {self.shards:,} shards"
        return ", ".join([head, *self.facts(now)])


def pace(per_second: float) -> str:
    """A number of things in a second, with a digit after the point where it says something."""
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.1f}"


def about(seconds: float) -> str:
    """A time to wait, in the unit that a person thinks in."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"


class Progress(Protocol):
    """Watches the stages of a run."""

    def stage(self, name: str, shards: int) -> AbstractContextManager[Show]:
        """While the shards of a stage are computed: a function to call with what became of each.

        A name may come again: that stage goes on, with more shards.
        """
        ...


class Unseen:
    """Shows nothing."""

    @contextmanager
    def stage(self, name: str, shards: int) -> Iterator[Show]:
        yield lambda outcome: None


class Screen(Protocol):
    """One way to show the tallies."""

    def show(self, tally: Tally, now: float, *, is_begun: bool = False, is_ended: bool = False) -> None:
        """Shows how a stage stands. is_begun: its shards are to come now; is_ended: no more of them will."""
        ...


class Watched:
    """Keeps a tally of every stage and shows it on some screens. clock: seconds that only grow."""

    def __init__(self, screens: list[Screen], clock: Callable[[], float] = time.monotonic) -> None:
        self._screens, self._clock = screens, clock
        self._tallies: dict[str, Tally] = {}

    @contextmanager
    def stage(self, name: str, shards: int) -> Iterator[Show]:
        tally = self._tallies.setdefault(name, Tally(name))
        tally.begin(shards, self._clock())

        def shown(**moment: bool) -> None:
            now = self._clock()
            for screen in self._screens:
                screen.show(tally, now, **moment)

        def show(outcome: Any) -> None:
            tally.add(outcome)
            shown()

        shown(is_begun=True)
        try:
            yield show
        finally:
            shown(is_ended=True)


class Often:
    """Lets through what comes at least so many seconds after the last that it let through, by name."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._last: dict[str, float] = {}

    def is_due(self, name: str, now: float, *, anyway: bool) -> bool:
        due = anyway or now - self._last.get(name, float("-inf")) >= self._every_s
        if due:
            self._last[name] = now
        return due


class Drawn:
    """Draws a bar for every stage."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._bar_of: dict[str, Any] = {}

    @staticmethod
    def bars(console: Console, **options: Any) -> Bars:
        """As wide as the console, whatever stands beside the bars."""
        texts = TextColumn("{task.description:<12}"), MofNCompleteColumn(), TextColumn("{task.fields[said]}")
        return Bars(texts[0], BarColumn(bar_width=None), *texts[1:], console=console, expand=True, **options)

    def show(self, tally: Tally, now: float, *, is_begun: bool = False, is_ended: bool = False) -> None:
        if tally.name not in self._bar_of:
            self._bar_of[tally.name] = self._bars.add_task(tally.name, total=0, said="")
        stands = {"total": tally.shards, "completed": tally.done, "said": tally.brief(now)}
        self._bars.update(self._bar_of[tally.name], **stands)


class Logged:
    """Logs a line for every stage now and then, and at its end."""

    def __init__(self) -> None:
        self._often = Often(LINE_EVERY_S)

    def show(self, tally: Tally, now: float, *, is_begun: bool = False, is_ended: bool = False) -> None:
        if tally.done == tally.shards and not is_ended:
            return  # its last line comes at once
        if self._often.is_due(tally.name, now, anyway=is_begun or is_ended) and not is_begun:
            logger.info("%s", tally.line(now), extra=fields(**tally.figures(now)))


class Reported:
    """Leaves a progress artifact for every stage on Prefect's screen, where the run is a flow run.

    If Prefect does not answer, nothing more is left of that stage, and the log says so once.
    """

    def __init__(self) -> None:
        self._often = Often(UPDATE_EVERY_S)
        self._ids: dict[str, Any] = {}
        self._given_up: set[str] = set()

    def show(self, tally: Tally, now: float, *, is_begun: bool = False, is_ended: bool = False) -> None:
        from prefect.context import FlowRunContext

        if is_begun:
            self._given_up.discard(tally.name)
        is_due = self._often.is_due(tally.name, now, anyway=is_begun or is_ended)
        if is_due and tally.name not in self._given_up and FlowRunContext.get() is not None:
            self._leave(tally, now)

    def _leave(self, tally: Tally, now: float) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        said = {"progress": round(100 * tally.share_done, 1), "description": tally.line(now)}
        self._given_up.add(tally.name)
        with dispensable(f"the progress of {tally.name}"):  # the shards do not wait for it
            if tally.name in self._ids:
                update_progress_artifact(self._ids[tally.name], **said)
            else:
                self._ids[tally.name] = create_progress_artifact(key=artifact_key(tally.name), **said)
            self._given_up.discard(tally.name)


def artifact_key(stage: str) -> str:
    """A key of an artifact: lower-case letters, numbers and dashes."""
    return f"{stage.lower().replace('_', '-')}-progress"


@contextmanager
def shown() -> Iterator[Progress]:
    """What shows a run: bars if standard error is a terminal, else lines; and artifacts.

    The lines of shards are logged too: a worker's run shows them on Prefect's screen (PREFECT_LOGGING_EXTRA_LOGGERS).
    """
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if not sys.stderr.isatty() or log_format() == "json":
        yield Watched([Logged(), Reported()])
        return
    with Drawn.bars(Console(stderr=True)) as bars:
        yield Watched([Drawn(bars), Reported()])
