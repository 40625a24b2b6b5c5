"""How long a pool takes for the chain, simulated: shards over nodes, with stragglers and nodes that fail.

An event queue of the groups that `dispatch` makes: a group is on its way as soon as there is room, a free slot takes
the one that waits longest, and what a dead node had not finished goes out again once that was noticed, while the node
comes back later. The steps come one after the other. What is simplified:
- every shard of a step takes as long as another, but for the groups that straggle;
- far from the end of a step several groups are one event, one after the other on one slot (`BUNDLES`); each of them
  straggles, and is lost, by itself;
- starting processes, loading models and Prefect's share of a task (some 20 ms of 30 s) cost nothing;
- nodes share nothing but the work: a store that is slow for all of them, and a step that fails, are not in it.
"""

import heapq
from collections import deque
from statistics import median
from typing import Any

import numpy as np
from pydantic import BaseModel

from lvd.flows.dispatch import group_size, most_in_flight
from lvd.flows.loads import Load
from lvd.flows.recipe import Expectations
from lvd.infra.errors import InputError

BUNDLES = 2  # for each slot, at least, of what is left of a step: more is nearer to the truth, and slower
PACES = 16  # shards whose seconds are remembered
MOST_FAILURES = 5.0  # expected while one shard is computed; beyond, hardly any would ever be finished


class Step(BaseModel, frozen=True):
    """Shards that are computed before the next step begins."""

    name: str
    shards: int
    shard_s: float
    slots: tuple[int, ...]  # of every node


class Trial(BaseModel, frozen=True):
    """One simulated run of the steps."""

    seconds: tuple[float, ...]  # of every step, in their order
    busy_node_s: float  # slots that computed, by the slots that a node has in that step
    lost_node_s: float  # the part of it that was computed again
    computed: tuple[int, ...]  # shards of every step that came out
    failures: int  # of nodes

    @property
    def makespan_s(self) -> float:
        return sum(self.seconds)


class Spread(BaseModel, frozen=True):
    """The middle of some numbers, and the bounds of nine tenths of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        low, high = np.quantile(values, [0.05, 0.95])
        return cls(median=median(values), low=float(low), high=float(high))


class Schedule(BaseModel, frozen=True):
    """What the simulations say together."""

    hours: Spread  # from the first step to the end of the last
    hours_of: dict[str, Spread]  # stage of the chain → hours
    busy: float  # share of the nodes' time in which their slots computed, median
    lost: float  # share of it that was computed again, median
    failures: float  # of nodes in a run, mean
    trials: int


class Nodes:
    """Which nodes are up, and when each fails next. One that is down comes back, and does not fail before."""

    def __init__(self, expect: Expectations, rng: np.random.Generator) -> None:
        self._rate, self._rng = expect.node_failures_per_hour / 3600, rng
        self.fails_at = [self._next(0.0) for _ in range(expect.nodes)]
        self.back_at: list[float | None] = [None] * expect.nodes
        self.failures = 0

    def _next(self, now: float) -> float:
        drawn = self._rng.standard_exponential()
        return now + drawn / self._rate if self._rate else np.inf

    def fail(self, node: int, back_at: float) -> None:
        self.back_at[node], self.fails_at[node] = back_at, np.inf
        self.failures += 1

    def come_back(self, node: int, now: float) -> None:
        self.back_at[node], self.fails_at[node] = None, self._next(now)


def schedule(loads: list[Load], expect: Expectations, *, seed: int) -> Schedule:
    """The simulated schedule of these loads. A step whose pace is not known takes as long as its bytes do.

    Raises InputError if nodes fail faster than a shard is computed.
    """
    steps = [step for load in loads for step in [step_of(load, expect)] * load.rounds if step.shards]
    flows = [load.flow for load in loads for _ in range(load.rounds) if load.shards]
    check_failures(steps, expect)
    trials = [simulate(steps, expect, np.random.SeedSequence([seed, n])) for n in range(expect.simulations)]
    by_flow: dict[str, list[float]] = {}
    for flow in dict.fromkeys(flows):
        parts = [[s for s, of in zip(trial.seconds, flows, strict=True) if of == flow] for trial in trials]
        by_flow[flow] = [sum(part) / 3600 for part in parts]
    spans = [max(trial.makespan_s, 1e-9) for trial in trials]
    return Schedule(
        hours=Spread.of([trial.makespan_s / 3600 for trial in trials]),
        hours_of={flow: Spread.of(hours) for flow, hours in by_flow.items()},
        busy=median(t.busy_node_s / (span * expect.nodes) for t, span in zip(trials, spans, strict=True)),
        lost=median(t.lost_node_s / (span * expect.nodes) for t, span in zip(trials, spans, strict=True)),
        failures=sum(trial.failures for trial in trials) / len(trials),
        trials=len(trials),
    )


def check_failures(steps: list[Step], expect: Expectations) -> None:
    """Raises InputError if nodes fail so often that the longest shard would hardly ever be finished."""
    longest = max(steps, key=lambda step: step.shard_s)
    hours = longest.shard_s * expect.straggler_slowdown / 3600
    if expect.node_failures_per_hour * hours > MOST_FAILURES:
        raise InputError(
            f"recipe.plan.node_failures_per_hour must be at most {MOST_FAILURES / hours:.2g}, as one shard of "
            f"{longest.name!r} takes up to {hours:.2g} h, was {expect.node_failures_per_hour:g}: "
            "set it lower, or look at what that step is bound by"
        )


def step_of(load: Load, expect: Expectations) -> Step:
    """A load as the simulation takes it. One process, and one on all of a node, may run on any node."""
    total = {"gpu": expect.gpus, "core": expect.cores}.get(load.place, expect.nodes)
    each, more = divmod(total, expect.nodes)
    slots = tuple(each + (node < more) for node in range(expect.nodes))
    return Step(name=load.stage, shards=load.shards, shard_s=load.shard_s, slots=slots)


def simulate(steps: list[Step], expect: Expectations, seed: np.random.SeedSequence) -> Trial:
    """One run of the steps, one after the other."""
    for_nodes, for_groups = (np.random.default_rng(child) for child in seed.spawn(2))
    nodes, now, runs = Nodes(expect, for_nodes), 0.0, []
    for step in steps:
        runs.append(_Run(step, expect, nodes, now, for_groups))
        now = runs[-1].end
    return Trial(
        seconds=tuple(run.end - run.start for run in runs),
        busy_node_s=sum(run.busy for run in runs),
        lost_node_s=sum(run.lost for run in runs),
        computed=tuple(run.computed for run in runs),
        failures=nodes.failures,
    )


class _Run:
    """One step on its way: the line of groups, the slots, the events. `end` is when its last shard is there."""

    def __init__(self, step: Step, expect: Expectations, nodes: Nodes, start: float, rng: np.random.Generator) -> None:
        self._step, self._expect, self._nodes, self._rng = step, expect, nodes, rng
        self._left, self._size = step.shards, 1
        self._recent: deque[float] = deque(maxlen=PACES)
        self._pace: list[float] = []  # their mean, which is all that `group_size` looks at; empty before the first
        self._line: deque[tuple[int, int]] = deque()  # (shards of a group, groups): submitted, not begun
        self._running: dict[int, tuple[int, float, float, int, int]] = {}  # node, begun, seconds, shards, groups
        self._on_their_way = 0  # groups in flight, those among them that a dead node had
        self._events: list[tuple[float, int, str, Any]] = []
        self._count = 0
        self.start, self.end, self.busy, self.lost, self.computed = start, start, 0.0, 0.0, 0
        self._free: list[int] = []
        self._has(0)
        for node, back_at in enumerate(nodes.back_at):
            self._up(node, start) if back_at is None or back_at <= start else self._at(back_at, "back", node)
        self._free = [node for turn in range(max(step.slots)) for node in set(self._free) if turn < step.slots[node]]
        self._go()

    def _go(self) -> None:
        self._submit(self.start)
        while self.computed < self._step.shards:
            now, number, kind, what = heapq.heappop(self._events)
            if kind == "done":
                if number not in self._running:  # its node died
                    continue
                self._done(number, now)
            elif kind == "again":
                self._line.appendleft(what)
            elif kind == "fails":
                self._dies(what, now)
            else:
                self._up(what, now)
            self._submit(now)

    def _has(self, slots: int) -> None:
        self._slots, self._most = slots, most_in_flight(slots)

    def _at(self, when: float, kind: str, what: Any) -> int:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, kind, what))
        return self._count

    def _up(self, node: int, now: float) -> None:
        if self._nodes.back_at[node] is not None:
            self._nodes.come_back(node, now)
        self._free += [node] * self._step.slots[node]
        self._has(self._slots + self._step.slots[node])
        if self._nodes.fails_at[node] < np.inf:
            self._at(self._nodes.fails_at[node], "fails", node)

    def _dies(self, node: int, now: float) -> None:
        """What the node had finished of a bundle stays; the rest goes out again when somebody has noticed."""
        back_at = now + self._expect.node_back_s
        self._nodes.fail(node, back_at)
        self._at(back_at, "back", node)
        self._free = [other for other in self._free if other != node]
        self._has(self._slots - self._step.slots[node])
        for number in [number for number, found in self._running.items() if found[0] == node]:
            _, begun, seconds, shards, groups = self._running.pop(number)
            finished = min(groups - 1, int((now - begun) / seconds * groups)) if seconds else 0
            self._came_out(node, now, now - begun, shards * finished)
            self.lost += (now - begun - seconds * finished / groups) / self._step.slots[node]
            self._at(now + self._expect.failure_noticed_s, "again", (shards, groups - finished))

    def _done(self, number: int, now: float) -> None:
        node, _, seconds, shards, groups = self._running.pop(number)
        self._came_out(node, now, seconds, shards * groups)
        self._recent.append(seconds / (shards * groups))
        self._pace = [sum(self._recent) / len(self._recent)]
        self._on_their_way -= 1
        self._free.append(node)

    def _came_out(self, node: int, now: float, seconds: float, shards: int) -> None:
        self.busy += seconds / self._step.slots[node]
        self.computed += shards
        self.end = now

    def _submit(self, now: float) -> None:
        while self._left and self._on_their_way < self._most:
            self._size = min(group_size(self._pace, self._left, self._slots), 2 * self._size)
            groups = max(1, self._left // (self._size * BUNDLES * max(self._slots, 1))) if self._pace else 1
            self._left -= self._size * groups
            self._line.append((self._size, groups))
            self._on_their_way += 1
        while self._line and self._free:
            self._begin(self._free.pop(), *self._line.popleft(), now)

    def _begin(self, node: int, shards: int, groups: int, now: float) -> None:
        share, slowdown = self._expect.straggler_share, self._expect.straggler_slowdown
        slow = self._rng.random() < share if groups == 1 else self._rng.binomial(groups, share)
        seconds = self._step.shard_s * shards * (groups + slow * (slowdown - 1))
        number = self._at(now + seconds, "done", None)
        self._running[number] = (node, now, seconds, shards, groups)
