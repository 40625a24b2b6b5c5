"""The simulated schedule against what can be said without simulating it."""

from statistics import median

import numpy as np
import pytest

from lvd.flows import schedule as module
from lvd.flows.loads import loads
from lvd.flows.recipe import Expectations, load
from lvd.flows.schedule import Spread, Step, Trial, schedule, simulate
from lvd.infra.errors import InputError

CALM = {"straggler_share": 0.0, "node_failures_per_hour": 0.0}


def pool(nodes: int = 20, **changes) -> Expectations:
    return Expectations(**{"nodes": nodes, "cores": 40 * nodes, **CALM, **changes})


def step(shards: int, shard_s: float, slots: int = 8, nodes: int = 20) -> Step:
    return Step(name="embed", shards=shards, shard_s=shard_s, slots=(slots,) * nodes)


def run(steps: list[Step], expect: Expectations, seed: int = 0) -> Trial:
    return simulate(steps, expect, np.random.SeedSequence(seed))


@pytest.mark.parametrize(
    ("shards", "shard_s", "slots"),
    [
        (130_000, 60.0, 8),  # a shard alone is a group
        (130_000, 0.02, 8),  # hundreds of shards are one
        (130_000, 30.0, 40),
        (16_000, 45.0, 8),
    ],
)
def test_without_stragglers_and_failures_all_slots_are_busy(shards: int, shard_s: float, slots: int) -> None:
    trial = run([step(shards, shard_s, slots)], pool())
    bound = shards * shard_s / (20 * slots)
    assert bound <= trial.makespan_s * (1 + 1e-9)
    assert trial.makespan_s < 1.04 * bound


@pytest.mark.parametrize(
    ("shards", "waves"),
    [(1, 1), (8, 1), (9, 2), (16, 2), (17, 3)],  # on eight slots
)
def test_few_shards_go_in_waves(shards: int, waves: int) -> None:
    assert run([step(shards, 100.0, 4, 2)], pool(2)).makespan_s == pytest.approx(100.0 * waves)


def test_steps_come_one_after_the_other() -> None:
    steps = [step(16, 10.0, 4, 2), Step(name="unique", shards=1, shard_s=7.0, slots=(1, 1)), step(8, 5.0, 4, 2)]
    assert run(steps, pool(2)).seconds == pytest.approx((20.0, 7.0, 5.0))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"straggler_share": 0.3, "straggler_slowdown": 5.0},
        {"node_failures_per_hour": 1.0, "node_back_s": 900.0},
        {"node_failures_per_hour": 20.0, "node_back_s": 0.0, "straggler_share": 0.1, "failure_noticed_s": 0.0},
        {"node_failures_per_hour": 5.0, "node_back_s": 1e5, "failure_noticed_s": 100.0},  # hardly any node is up
    ],
)
def test_every_shard_is_computed_once_and_the_work_is_conserved(changes: dict, seed: int) -> None:
    steps = [
        step(3000, 40.0, 8, 5),
        step(5, 300.0, 1, 5),
        Step(name="odd", shards=700, shard_s=9.0, slots=(3, 0, 2, 1, 9)),
    ]
    expect = pool(5, **changes)
    trial = run(steps, expect, seed)
    assert trial.computed == tuple(one.shards for one in steps)
    assert trial.busy_node_s <= 5 * trial.makespan_s * (1 + 1e-9)
    assert 0 <= trial.lost_node_s <= trial.busy_node_s
    even = steps[:2]  # where all nodes have as many slots, what is not lost is what the shards take
    told = run(even, expect, seed)
    useful = sum(one.shards * one.shard_s / one.slots[0] for one in even)
    slow = 1 + expect.straggler_share * (expect.straggler_slowdown - 1)
    assert told.busy_node_s - told.lost_node_s == pytest.approx(useful * slow, rel=0.1 if slow > 1 else 1e-9)
    assert (trial.failures > 0) == (expect.node_failures_per_hour > 0)


def test_rounds_of_a_step_come_one_after_the_other() -> None:
    calm = ["plan.simulations=1", "plan.straggler_share=0", "plan.node_failures_per_hour=0"]
    hours = []
    for passes in (1, 3):
        recipe = load("lvd142m-plan", settings=[*calm, f"cluster.full_passes={passes}"])
        rows = [row for row in loads(recipe) if row.stage in ("passes", "sums")]
        hours.append(schedule(rows, recipe.plan, seed=0).hours.median)
        assert hours[-1] == pytest.approx(sum(row.hours for row in rows))
    assert hours[1] == pytest.approx(3 * hours[0])


def test_stragglers_cost_their_share() -> None:
    steps = [step(50_000, 40.0)]
    calm, slow = run(steps, pool()), run(steps, pool(straggler_share=0.1, straggler_slowdown=3.0))
    assert slow.makespan_s / calm.makespan_s == pytest.approx(1.2, rel=0.02)


def test_more_failures_never_shorten() -> None:
    steps = [step(4000, 100.0, 8, 5), Step(name="unique", shards=1, shard_s=600.0, slots=(1,) * 5)]
    rates = (0.0, 0.1, 0.5, 2.0, 6.0)
    middle = [
        median(run(steps, pool(5, node_failures_per_hour=rate), seed).makespan_s for seed in range(15))
        for rate in rates
    ]
    assert middle == sorted(middle)
    assert middle[-1] > 1.3 * middle[0]


def test_a_group_of_a_dead_node_is_computed_again_after_it_was_missed() -> None:
    """One node of two dies in the middle of the only shard: noticed, then all of it again on the other node."""
    one = [Step(name="unique", shards=1, shard_s=3600.0, slots=(1, 1))]
    for seed in range(50):
        trial = run(one, pool(2, node_failures_per_hour=0.5, failure_noticed_s=100.0, node_back_s=1e6), seed)
        if trial.lost_node_s:
            assert trial.makespan_s == pytest.approx(trial.lost_node_s + 100.0 + 3600.0)
            return
    raise AssertionError("no node failed under the shard in 50 runs")


def test_bundles_of_groups_change_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Far from the end several groups are one event: every group as an event of its own gives the same hours."""
    steps = [step(8000, 45.0, 8, 5)]
    expect = pool(5, straggler_share=0.02, node_failures_per_hour=0.05)
    few = [run(steps, expect, seed).makespan_s for seed in range(10)]
    monkeypatch.setattr(module, "BUNDLES", 10**9)
    single = [run(steps, expect, seed).makespan_s for seed in range(10)]
    assert median(few) == pytest.approx(median(single), rel=0.01)


def test_a_seed_gives_the_same_schedule() -> None:
    recipe = load("lvd142m-plan", settings=["plan.simulations=2", "plan.node_failures_per_hour=0.02"])
    chosen = [one for one in loads(recipe) if one.flow in ("embed", "fingerprint")]
    first, again, other = (schedule(chosen, recipe.plan, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_the_schedule_of_lvd142m() -> None:
    recipe = load("lvd142m-plan", settings=["plan.simulations=3"])
    rows = loads(recipe)
    found = schedule(rows, recipe.plan, seed=0)
    assert found.trials == 3
    assert [*found.hours_of] == list(dict.fromkeys(row.flow for row in rows))
    assert found.hours.low <= found.hours.median <= found.hours.high
    assert found.hours.median > sum(row.hours for row in rows)
    assert found.hours.median == pytest.approx(sum(of.median for of in found.hours_of.values()), rel=0.2)
    assert 0.5 < found.busy <= 1
    assert found.lost < 0.05


def test_nodes_that_fail_before_a_shard_is_done_are_refused() -> None:
    recipe = load("lvd142m-plan", settings=["plan.node_failures_per_hour=3"])
    with pytest.raises(
        InputError,
        match=r"node_failures_per_hour must be at most 0.5.*one shard of 'neighbours' takes up to 8.9 h, was 3",
    ):
        schedule(loads(recipe), recipe.plan, seed=0)


def test_a_spread_is_the_middle_and_nine_tenths() -> None:
    found = Spread.of([float(value) for value in range(101)])
    assert (found.median, found.low, found.high) == (50.0, 5.0, 95.0)
