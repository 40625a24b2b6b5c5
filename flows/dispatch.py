"""How shards become Prefect tasks: in groups worth tens of seconds, as many at once as the pool has room for.

A Prefect task costs some tens of milliseconds whatever it does, so small shards travel together: the first ones alone,
the later ones as many as make `GROUP_S` at the pace seen so far. Twice as many groups are in flight as can run at once,
so that memory follows the machines and not the shards. A shard that fails leaves its group alone.
"""

import queue
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from itertools import groupby, islice
from typing import Any

import cloudpickle
from prefect import Task, task
from prefect.cache_policies import NO_CACHE

from lvd.flows import pool
from lvd.flows.recipe import Compute
from lvd.infra.errors import RetryableError, ShardError
from lvd.infra.metering import metered
from lvd.infra.shards import ShardRef, is_written, log_account
from lvd.infra.storage import Storage

GROUP_S = 30.0  # of work in one Prefect task, at the pace seen so far
LARGEST_GROUP = 1000  # shards
ATTEMPTS = 3  # of a shard whose failure can pass
BACKOFF_S = 2.0  # before the second attempt; twice as long before the next
WAKE_S = 1.0  # the main thread looks up so often, to be interruptible


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
    return Call(f"{function.fn.__module__}:{function.fn.__name__}", arguments, options)


def joint_call(function: Task, job: Any, options: dict[str, Any]) -> Call:
    """The call of a stage's task that takes a list of jobs; those that are given the same options are done together."""
    return Call(f"{function.fn.__module__}:{function.fn.__name__}", (job,), options, together=True)


@dataclass
class Outcome:
    """What became of one call. account: of the shard that it wrote."""

    call: Call
    value: Any = None
    error: BaseException | None = None
    seconds: float = 0.0
    account: dict[str, Any] | None = None


class Group:
    """Calls that make one Prefect task. No dataclass: Prefect would look for futures in every argument."""

    def __init__(self, calls: list[Call], device: str) -> None:
        self.calls, self.device = calls, device


class SomeFailed(Exception):
    """A task of which at least one shard failed; `outcomes` has all of them."""

    def __init__(self, outcomes: list[Outcome]) -> None:
        super().__init__(outcomes)
        self.outcomes = outcomes

    def __str__(self) -> str:
        failed = [outcome for outcome in self.outcomes if outcome.error]
        return f"{len(failed)} of {len(self.outcomes)} shards failed, first: {failed[0].error}"


@task(persist_result=False, cache_policy=NO_CACHE)
def compute(group: Group) -> list[Outcome]:
    """What became of the calls of a group, computed here one after the other, or together where their task can.

    Raises SomeFailed if any failed, so that Prefect shows it.
    """
    outcomes: list[Outcome] = []
    pool.name_node()
    with pool.own_device(group.device) as device:
        for _, same in groupby(group.calls, key=lambda c: (c.function, c.together, id(c.options) if c.together else 0)):
            calls = list(same)
            outcomes += _together(calls, device) if calls[0].together else [_alone(one, device) for one in calls]
    if any(outcome.error for outcome in outcomes):
        raise SomeFailed(outcomes)
    return outcomes


def _alone(one: Call, device: str) -> Outcome:
    began, outcome = time.perf_counter(), Outcome(one)
    for attempt in range(ATTEMPTS):
        try:
            if one.ref is None or not is_written(one.ref):
                with metered():
                    outcome.value = _function(one)(*one.arguments, **_placed(one.options, device))
            return _finished(outcome, began)
        except RetryableError as error:
            outcome.error = error
            if attempt + 1 < ATTEMPTS:
                time.sleep(BACKOFF_S * 2**attempt)
                outcome.error = None
        except Exception as error:  # noqa: BLE001 - the shard fails, the others go on
            outcome.error = portable(error)
            break
    return outcome


def _together(calls: list[Call], device: str) -> list[Outcome]:
    began = time.perf_counter()
    missing = [one for one in calls if not is_written(one.ref)]
    try:
        jobs = [one.arguments[0] for one in missing]
        values = _function(calls[0])(jobs, **_placed(calls[0].options, device)) if jobs else []
    except Exception as error:  # noqa: BLE001 - what is written is done, the rest fails
        values = [None if is_written(one.ref) else portable(error) for one in missing]
    found = dict(zip(map(id, missing), values, strict=True))
    began = time.perf_counter() - (time.perf_counter() - began) / len(calls)
    outcomes = []
    for one in calls:
        value = found.get(id(one))
        failed = isinstance(value, Exception)
        outcome = Outcome(one, None if failed else value, portable(value) if failed else None)
        outcomes.append(outcome if failed else _finished(outcome, began))
    return outcomes


def _function(one: Call) -> Callable[..., Any]:
    module, name = one.function.split(":")
    return getattr(import_module(module), name).fn


def _placed(options: dict[str, Any], device: str) -> dict[str, Any]:
    """The options, with the device that this task was given in place of the kind that it asked for."""
    return {**options, "device": device} if "device" in options else options


def _finished(outcome: Outcome, began: float) -> Outcome:
    outcome.seconds = time.perf_counter() - began
    if (ref := outcome.call.ref) is not None:
        outcome.account = Storage(ref.root).read_json(ref.name("account", "json"))
    return outcome


def portable(error: BaseException) -> BaseException:
    """The error, or a ShardError that says the same if it cannot travel from one process to another."""
    try:
        cloudpickle.loads(cloudpickle.dumps(error))
    except Exception:  # noqa: BLE001 - whatever its own pickling raises
        return ShardError(f"{type(error).__name__}: {error}")
    return error


def outcomes(calls: Iterable[Call], compute_: Compute, stage: str, device: str, number: int) -> Iterator[Outcome]:
    """What became of every call, as they are done. Call it inside a flow that has the recipe's task runner.

    device: the kind that these calls ask for; number: how many there are.
    """
    waiting, left, in_flight = iter(calls), number, {}
    finished: queue.SimpleQueue[Any] = queue.SimpleQueue()
    recent: deque[float] = deque(maxlen=256)  # seconds of a shard
    with pool.asking(compute_, stage, device):
        while left or in_flight:
            slots = pool.slots(compute_, stage, device)
            while left and len(in_flight) < max(2, 2 * slots):
                size = min(left, group_size(recent, left, slots))
                group = list(islice(waiting, size))
                left -= size
                future = _submitted(group, device, stage)
                in_flight[future] = group
                future.add_done_callback(finished.put)
            try:
                future = finished.get(timeout=WAKE_S)
            except queue.Empty:
                continue
            for outcome in _settled(future, in_flight.pop(future)):
                recent.append(outcome.seconds)
                if compute_.runner == "ray" and outcome.account is not None and outcome.call.ref is not None:
                    log_account(outcome.call.ref, outcome.account)  # its own process logs elsewhere
                yield outcome


def group_size(recent: Iterable[float], left: int, slots: int) -> int:
    """Shards of the next group: one until a pace is known, then `GROUP_S` of work, and ever fewer towards the end."""
    recent = list(recent)
    if not recent:
        return 1
    wanted = GROUP_S / max(statistics.fmean(recent), GROUP_S / LARGEST_GROUP)
    return max(1, int(min(wanted, left / (2 * max(slots, 1)))))


def _submitted(group: list[Call], device: str, stage: str) -> Any:
    first, last = (one.ref.name().split("/", 1)[-1] if one.ref else one.function for one in (group[0], group[-1]))
    name = first if len(group) == 1 else f"{first} to {last}"
    return compute.with_options(name=stage, task_run_name=name).submit(Group(group, device))


def _settled(future: Any, group: list[Call]) -> list[Outcome]:
    """The outcomes of a group; one error for all of it if no node could finish it."""
    found = future.result(raise_on_failure=False)
    if isinstance(found, SomeFailed):
        return found.outcomes
    return [Outcome(one, error=found) for one in group] if isinstance(found, BaseException) else found
