"""How shards become Prefect tasks: in groups worth tens of seconds, as many at once as the pool has room for.

A Prefect task costs some tens of milliseconds whatever it does, so small shards travel together: the first ones alone,
the later ones as many as make `GROUP_S` at the pace seen so far. Twice as many groups are in flight as can run at once,
so that memory follows the machines and not the shards. A shard that fails leaves its group alone; a group whose process
died for good goes out again shard by shard.
"""

import logging
import queue
import statistics
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from lvd.flows import pool
from lvd.flows.group import Call, Group, Outcome, SomeFailed, compute
from lvd.flows.recipe import Compute
from lvd.infra.errors import InputError, ShardError
from lvd.infra.writing import log_account

logger = logging.getLogger("lvd")

GROUP_S = 30.0  # of work in one Prefect task, at the pace seen so far
LARGEST_GROUP = 1000  # shards
QUEUED_GROUPS = 512  # beyond those that can run at once; each holds its arguments in memory
FAILURES_IN_A_ROW = 50  # then the rest is not tried: a full disk, a store that refuses
WAKE_S = 1.0  # the main thread looks up so often, to be interruptible
SILENCE_S = 60.0  # without a result and without a worker, and the log says what is missing


def outcomes(calls: Iterable[Call], compute_: Compute, stage: str, device: str, number: int) -> Iterator[Outcome]:
    """What became of every call, as they are done. Call it inside a flow that has the recipe's task runner.

    device: the kind that these calls ask for; number: how many there are. After an error that the user must act on, or
    too many failures in a row, no more is begun: what has not been is left out.
    """
    line = _Queue(calls, compute_, stage, device, number)
    try:
        with pool.asking(compute_, stage, device):
            yield from line.outcomes()
    finally:
        line.stop.set()


class _Queue:
    """The calls of one stage on their way: waiting, in flight, finished."""

    def __init__(self, calls: Iterable[Call], compute_: Compute, stage: str, device: str, number: int) -> None:
        self._waiting, self._left = iter(calls), number
        self._compute, self._stage, self._device = compute_, stage, device
        self._in_flight: dict[Any, list[Call]] = {}
        self._finished: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._recent: deque[float] = deque(maxlen=256)  # seconds of a shard
        self._alone: deque[Call] = deque()  # of groups that died
        self._size, self._failed = 1, 0
        self._heard, self._has_warned = time.monotonic(), False
        self.stop = threading.Event()
        self._given: dict[str, Any]  # to every group of the stage
        if compute_.runner == "local":
            self._given = {"stop": self.stop, "gpus": pool.gpus(compute_) if device != "cpu" else 0}
        else:
            self._given = {"share": pool.resources(compute_, stage, device).gpus}

    def outcomes(self) -> Iterator[Outcome]:
        while self._left or self._alone or self._in_flight:
            slots = pool.slots(self._compute, self._stage, self._device)
            while (self._left or self._alone) and len(self._in_flight) < most_in_flight(slots):
                self._submit(slots)
            try:
                future = self._finished.get(timeout=WAKE_S)
            except queue.Empty:
                self._warn(slots)
                continue
            self._heard = time.monotonic()
            for outcome in self._settled(future, self._in_flight.pop(future)):
                self._note(outcome)
                yield outcome

    def _submit(self, slots: int) -> None:
        if self._alone:
            group = [self._alone.popleft()]
        else:
            self._size = min(group_size(self._recent, self._left, slots), 2 * self._size)
            group = list(islice(self._waiting, self._size))
            self._left -= len(group)
        future = _submitted(Group(group, self._device, **self._given), self._stage)
        self._in_flight[future] = group
        future.add_done_callback(self._finished.put)

    def _settled(self, future: Any, group: list[Call]) -> list[Outcome]:
        """The outcomes of a group. One whose process died goes out again, each shard alone; alone it has failed."""
        try:
            found = future.result(raise_on_failure=False)
        except Exception as error:  # noqa: BLE001 - Ray's own, of a worker that was lost too often
            found = error
        if isinstance(found, SomeFailed):
            found = found.outcomes
        elif isinstance(found, BaseException) and len(group) > 1:
            logger.warning("%s: a task of %d shards was lost, each is tried alone: %s", self._stage, len(group), found)
            self._alone.extend(group)
            return []
        elif isinstance(found, BaseException):
            found = [Outcome(error=ShardError(f"its process died again and again: {found}"))]
        for outcome, one in zip(found, group, strict=True):
            outcome.call = one
        return found

    def _note(self, outcome: Outcome) -> None:
        if outcome.error is None:
            self._failed = 0
            if outcome.seconds:
                self._recent.append(outcome.seconds)
            if self._compute.runner == "ray" and outcome.account is not None:
                log_account(outcome.call.ref, outcome.account)  # its own process logs elsewhere
            return
        self._failed += 1
        if isinstance(outcome.error, InputError) or self._failed >= FAILURES_IN_A_ROW:
            self._left = 0
            self._alone.clear()

    def _warn(self, slots: int) -> None:
        """Says once what is asked for if no node has it."""
        if slots or self._has_warned or time.monotonic() - self._heard < SILENCE_S:
            return
        self._has_warned = True
        asked = pool.resources(self._compute, self._stage, self._device)
        logger.warning(
            "%s waits: no node of the cluster has what recipe.compute.resources asks for: %s CPUs, %s GPUs, %s GB",
            *(self._stage, asked.cpus, asked.gpus, asked.memory_gb or 0),
        )


def most_in_flight(slots: int) -> int:
    """Groups in flight: two for every worker, and on a large pool one for each and some more."""
    return max(2, min(2 * slots, slots + QUEUED_GROUPS))


def group_size(recent: Iterable[float], left: int, slots: int) -> int:
    """Shards of the next group: one until a pace is known, then `GROUP_S` of work, and ever fewer towards the end."""
    recent = list(recent)
    if not recent:
        return 1
    wanted = GROUP_S / max(statistics.fmean(recent), GROUP_S / LARGEST_GROUP)
    return max(1, int(min(wanted, left / (2 * max(slots, 1)))))


def _submitted(group: Group, stage: str) -> Any:
    ends = group.calls[0], group.calls[-1]
    first, last = (one.ref.name().split("/", 1)[-1] if one.ref else one.function for one in ends)
    name = first if len(group.calls) == 1 else f"{first} to {last}"
    return compute.with_options(name=stage, task_run_name=name).submit(group)
