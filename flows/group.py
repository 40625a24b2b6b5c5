"""What one Prefect task computes: a group of calls, each for one shard, and what became of each.

Runs where the work is. A shard that is on storage is not computed again; one that fails leaves the others alone.
"""

import logging
import threading
import time
from dataclasses import dataclass, field
from importlib import import_module
from itertools import groupby
from typing import Any

import cloudpickle
from prefect import Task, task
from prefect.cache_policies import NO_CACHE

from lvd.flows import pool
from lvd.infra.errors import RetryableError, ShardError
from lvd.infra.metering import metered
from lvd.infra.shards import ShardRef, is_written
from lvd.infra.storage import Storage

logger = logging.getLogger("lvd")

ATTEMPTS = 3  # of a shard whose failure can pass
BACKOFF_S = 2.0  # before the second attempt; twice as long before the next


@dataclass(frozen=True)
class Call:
    """What one shard takes to be computed: the name of a stage's task, and its arguments.

    ref: what it writes; if that is there when its turn comes, nothing is computed.
    together: the task takes a list of first arguments, and so several shards at once; it returns what became of each.
    """

    function: str
    arguments: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)
    ref: ShardRef | None = None
    together: bool = False


def call(function: Task, *arguments: Any, **options: Any) -> Call:
    """The call of a stage's task."""
    return Call(_name(function), arguments, options)


def joint_call(function: Task, job: Any, options: dict[str, Any]) -> Call:
    """The call of a stage's task that takes a list of jobs; those that are given the same options are done together."""
    return Call(_name(function), (job,), options, together=True)


def _name(function: Task) -> str:
    return f"{function.fn.__module__}:{function.fn.__name__}"


@dataclass
class Outcome:
    """What became of one call. account: of the shard that it wrote; seconds: 0 if it was there already.

    call: set by the run itself, so that arguments do not travel back.
    """

    value: Any = None
    error: BaseException | None = None
    seconds: float = 0.0
    account: dict[str, Any] | None = None
    call: Call | None = None


class Group:
    """Calls that make one Prefect task. No dataclass: Prefect would look for futures in every argument.

    device: the kind that they ask for; gpus: of this machine that may be lent, share: of a GPU that the task was given;
    stop: set when the run ends early, where that can be told.
    """

    def __init__(
        self, calls: list[Call], device: str, *, gpus: int = 0, share: float = 1.0, stop: threading.Event | None = None
    ) -> None:
        self.calls, self.device, self.gpus, self.share, self.stop = calls, device, gpus, share, stop

    @property
    def is_stopped(self) -> bool:
        return self.stop is not None and self.stop.is_set()


class SomeFailed(Exception):
    """A task of which at least one shard failed; `outcomes` has all of them, in the order of its calls."""

    def __init__(self, outcomes: list[Outcome]) -> None:
        super().__init__(outcomes)
        self.outcomes = outcomes

    def __str__(self) -> str:
        failed = [outcome for outcome in self.outcomes if outcome.error]
        return f"{len(failed)} of {len(self.outcomes)} shards failed, first: {failed[0].error}"


class Stopped(Exception):
    """The run ended before this shard's turn."""


@task(persist_result=False, cache_policy=NO_CACHE)
def compute(group: Group) -> list[Outcome]:
    """What became of the calls of a group, computed here one after the other, or together where their task can.

    Raises SomeFailed if any failed, so that Prefect shows it.
    """
    outcomes: list[Outcome] = []
    pool.name_node()
    with pool.own_device(group.device, gpus=group.gpus, share=group.share) as device:
        for _, same in groupby(group.calls, key=lambda c: (c.function, c.together, id(c.options) if c.together else 0)):
            calls = list(same)
            for part in [calls] if calls[0].together else [[one] for one in calls]:
                outcomes += [Outcome(error=Stopped()) for _ in part] if group.is_stopped else _computed(part, device)
    pool.end_if_broken(outcome.error for outcome in outcomes)
    if any(outcome.error for outcome in outcomes):
        raise SomeFailed(outcomes)
    return outcomes


def _computed(calls: list[Call], device: str) -> list[Outcome]:
    """The outcomes of one call, or of several that are computed together; what can pass is tried again."""
    outcomes = [Outcome() for _ in calls]
    left = list(zip(calls, outcomes, strict=True))
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(BACKOFF_S * 2 ** (attempt - 1))
        left = _attempted(left, device)
        if not left:
            break
    return outcomes


def _attempted(left: list[tuple[Call, Outcome]], device: str) -> list[tuple[Call, Outcome]]:
    """Computes what is not on storage; returns what failed and may be tried again."""
    began, missing = time.perf_counter(), left
    try:
        missing = [(one, outcome) for one, outcome in left if one.ref is None or not is_written(one.ref)]
        values = _values([one for one, _ in missing], device)
    except Exception as error:  # noqa: BLE001 - the shards fail, the others go on
        values = [error] * len(missing)
    share = (time.perf_counter() - began) / max(len(missing), 1)
    for (_, outcome), value in zip(missing, values, strict=True):
        failed = isinstance(value, Exception)
        outcome.value, outcome.error, outcome.seconds = (None, value, 0.0) if failed else (value, None, share)
    again = [(one, outcome) for one, outcome in left if isinstance(outcome.error, RetryableError)]
    for one, outcome in left:
        if outcome.error is None:
            outcome.account = _account(one)
        else:
            outcome.error = portable(outcome.error)
    return again


def _values(calls: list[Call], device: str) -> list[Any]:
    """What the task gives for each of the calls, of which there is one if it takes no list; errors among them."""
    if not calls:
        return []
    module, name = calls[0].function.split(":")
    function, options = getattr(import_module(module), name).fn, calls[0].options
    if "device" in options:  # the device that this task was given in place of the kind that it asked for
        options = {**options, "device": device}
    with metered():
        if calls[0].together:
            return function([one.arguments[0] for one in calls], **options)
        return [function(*one.arguments, **options) for one in calls]


def _account(one: Call) -> dict[str, Any] | None:
    """What a written shard says of itself, for the screen; None if storage does not tell now."""
    if one.ref is None:
        return None
    storage = Storage(one.ref.root)
    try:
        return storage.read_json(one.ref.name("account", "json"))
    except storage.errors as error:
        logger.warning("%s: its account cannot be read now: %s", one.ref.name(), error)
        return None


def portable(error: BaseException) -> BaseException:
    """The error without its traceback, which holds the shard in memory, or a ShardError that says the same.

    The latter if it cannot travel from one process to another.
    """
    logger.debug("a shard failed", exc_info=error)
    cause: BaseException | None = error
    while cause is not None:
        cause.__traceback__, cause = None, cause.__cause__ or cause.__context__
    try:
        cloudpickle.loads(cloudpickle.dumps(error))
    except Exception:  # noqa: BLE001 - whatever its own pickling raises
        return ShardError(f"{type(error).__name__}: {error}")
    return error
