"""How calls become tasks: in groups, a bounded number at once, each failure its own."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lvd.flows import dispatch, group, pool
from lvd.flows.dispatch import group_size, outcomes
from lvd.flows.group import Call, Group, SomeFailed, call, compute, joint_call, portable
from lvd.flows.recipe import Compute
from lvd.infra.errors import InputError, RetryableError, ShardError
from lvd.infra.shards import ShardRef, StageDir, read_table
from lvd.tasks import schemas
from lvd.tests.sleeping import fail, flaky, sleep, write_together
from lvd.tests.tasks import planted

LOCAL = Compute(cpu_workers=2, gpus=0)

SIZES = [
    # recent seconds of a shard, shards left, slots → shards of the next group
    ((), 100, 2, 1),  # no pace is known
    ((1.0,), 10_000, 2, 30),
    ((10.0, 20.0), 10_000, 2, 2),
    ((45.0,), 10_000, 2, 1),  # one shard is more than a group's worth
    ((0.0,), 10_000_000, 2, 1000),  # never more than the largest
    ((1.0,), 40, 2, 10),  # towards the end ever fewer, so that no worker waits for another
    ((1.0,), 3, 2, 1),
    ((1.0,), 100, 0, 30),  # a cluster that has no node yet
]


@pytest.mark.parametrize(("recent", "left", "slots", "size"), SIZES)
def test_a_group_is_worth_half_a_minute_and_smaller_at_the_end(recent, left, slots, size) -> None:
    assert group_size(recent, left, slots) == size


class Pool:
    """Stands in for Prefect's task runner: groups are computed by two threads, and the most at once is recorded."""

    def __init__(self) -> None:
        self.groups: list[list[Call]] = []
        self.at_once = self.most = 0
        self._lock = threading.Lock()
        self.threads = ThreadPoolExecutor(2)

    def submit(self, own: Group, stage: str) -> "Submitted":
        self.groups.append(own.calls)
        with self._lock:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        future = self.threads.submit(self._compute, own)
        return Submitted(future)

    def _compute(self, own: Group) -> Any:
        try:
            return compute.fn(own)
        except SomeFailed as error:
            return error
        finally:
            with self._lock:
                self.at_once -= 1


class Submitted:
    """A future as Prefect's."""

    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def add_done_callback(self, done: Any) -> None:
        self._future.add_done_callback(lambda _: done(self))

    def result(self, raise_on_failure: bool) -> Any:
        assert raise_on_failure is False
        return self._future.result()


@pytest.fixture
def pool_of_two(monkeypatch: pytest.MonkeyPatch) -> Pool:
    own = Pool()
    monkeypatch.setattr(dispatch, "_submitted", own.submit)
    yield own
    own.threads.shutdown()


def test_every_call_has_its_outcome_and_few_are_in_flight(pool_of_two: Pool) -> None:
    drawn, found = [], []

    def calls():
        for number in range(500):
            drawn.append(number)
            yield call(sleep, number, 0.01)

    for outcome in outcomes(calls(), LOCAL, "screen", "cpu", 500):
        found.append(outcome.value[0])
        assert len(drawn) < 500 or len(found) > 100  # calls are made when their turn comes
    assert sorted(found) == drawn == list(range(500))
    assert pool_of_two.most <= 4
    assert len(pool_of_two.groups[0]) == 1 and 4 < len(pool_of_two.groups) < 100


def test_a_failure_leaves_its_group_alone(pool_of_two: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "group_size", lambda recent, left, slots: 5)
    errors = {3: ValueError("no"), 4: InputError("act"), 11: ShardError("this one")}
    calls = (call(fail, errors[n]) if n in errors else call(sleep, n, 0.0) for n in range(12))
    found = list(outcomes(calls, LOCAL, "screen", "cpu", 12))
    assert [len(group) for group in pool_of_two.groups] == [2, 4, 5, 1]  # growing
    assert sorted(o.value[0] for o in found if o.error is None) == [n for n in range(12) if n not in errors]
    assert sorted((type(o.error).__name__, str(o.error)) for o in found if o.error) == [
        ("InputError", "act"), ("ShardError", "this one"), ("ValueError", "no"),
    ]  # fmt: skip


def test_what_can_pass_is_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    waited: list[float] = []
    monkeypatch.setattr(group.time, "sleep", waited.append)
    (outcome,) = compute.fn(Group([call(flaky, str(tmp_path / "a"), 2)], "cpu"))
    assert (outcome.value, outcome.error, waited) == (3, None, [2.0, 4.0])
    assert outcome.call is None  # arguments do not travel back
    with pytest.raises(SomeFailed) as failed:
        compute.fn(Group([call(flaky, str(tmp_path / "b"), 3)], "cpu"))
    (outcome,) = failed.value.outcomes
    assert isinstance(outcome.error, RetryableError) and waited == [2.0, 4.0, 2.0, 4.0]
    assert "1 of 1 shards failed, first: busy" in str(failed.value)


def written(root: str, index: int) -> ShardRef:
    (ref, *_) = planted.stage(root, f"done{index}", schemas.FATES, [{"state": "kept"}], ((1,),))
    return ref


def test_what_is_on_storage_is_not_computed_again(local_root: str) -> None:
    ref = written(local_root, 0)
    (outcome,) = compute.fn(Group([Call("lvd.tests.sleeping:fail", (ValueError("computed"),), ref=ref)], "cpu"))
    assert (outcome.error, outcome.seconds) == (None, 0) and outcome.account["rows"] == len(read_table(ref)) == 1


def test_jobs_with_the_same_options_are_computed_together(local_root: str) -> None:
    done, log = written(local_root, 0), Path(local_root) / "log"
    missing = StageDir(root=local_root, stage="x", fingerprint="y").planned(4)
    mine, other = {"log": str(log)}, {"log": str(log)}
    refs, shared = [missing[0], done, *missing[1:]], [mine, mine, mine, other, other]
    jobs = zip([0, 1, 2, 3, -1], refs, shared, strict=True)
    calls = [replace(joint_call(write_together, (number, ref), options), ref=ref) for number, ref, options in jobs]
    with pytest.raises(SomeFailed) as failed:
        compute.fn(Group(calls, "cpu"))
    assert log.read_text().splitlines() == ["[0, 2]", "[3, -1]"]
    assert [str(o.error) if o.error else o.value for o in failed.value.outcomes] == [0, None, 2, 3, "negative"]


def test_after_what_the_user_must_act_on_nothing_more_is_begun(pool_of_two: Pool) -> None:
    calls = (call(fail, InputError("act")) if n == 20 else call(sleep, n, 0.01) for n in range(5000))
    found = list(outcomes(calls, LOCAL, "screen", "cpu", 5000))
    assert [str(o.error) for o in found if o.error] == ["act"]
    assert len(found) < 1000


def test_after_many_failures_in_a_row_nothing_more_is_begun(pool_of_two: Pool) -> None:
    calls = (call(fail, ShardError(str(n))) for n in range(5000))
    found = list(outcomes(calls, LOCAL, "screen", "cpu", 5000))
    assert dispatch.FAILURES_IN_A_ROW <= len(found) < 100  # groups stay small: failures say nothing of the pace
    assert all(o.error for o in found)


def test_a_group_whose_process_died_goes_out_again_shard_by_shard(
    pool_of_two: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "group_size", lambda recent, left, slots: 4)

    def dying(own: Group) -> Any:
        if any(one.arguments[0] == 9 for one in own.calls):
            raise MemoryError("killed")
        return compute.fn(own)

    monkeypatch.setattr(pool_of_two, "_compute", dying)
    found = list(outcomes((call(sleep, n, 0.0) for n in range(16)), LOCAL, "screen", "cpu", 16))
    assert sorted(o.value[0] for o in found if o.error is None) == [n for n in range(16) if n != 9]
    (died,) = [o for o in found if o.error]
    assert died.call.arguments[0] == 9 and "its process died again and again: killed" in str(died.error)
    assert [9 in [one.arguments[0] for one in group] for group in pool_of_two.groups].count(True) == 2


def test_what_is_in_flight_stops_when_nobody_waits_for_it(pool_of_two: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "group_size", lambda recent, left, slots: 1000)
    monkeypatch.setattr(pool_of_two, "_compute", slow := SlowStart(pool_of_two._compute))
    stream = outcomes((call(sleep, n, 0.001) for n in range(4000)), LOCAL, "screen", "cpu", 4000)
    next(stream)
    stream.close()
    slow.go.set()
    pool_of_two.threads.shutdown()
    assert slow.computed == 0


class SlowStart:
    """Computes the first group at once, the others when they are let go, and counts what they did."""

    def __init__(self, computed: Any) -> None:
        self._compute, self.go, self.computed, self._first = computed, threading.Event(), 0, True

    def __call__(self, own: Group) -> Any:
        is_first, self._first = self._first, False
        if not is_first:
            self.go.wait(10)
        found = self._compute(own)
        if not is_first:
            done = found.outcomes if isinstance(found, SomeFailed) else found
            self.computed += sum(outcome.error is None for outcome in done)
        return found


def test_a_joint_call_that_can_pass_is_tried_again_without_what_is_done(
    local_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group.time, "sleep", lambda seconds: None)
    log, refs = Path(local_root) / "log", StageDir(root=local_root, stage="x", fingerprint="y").planned(3)
    log.parent.mkdir(parents=True)
    options = {"log": str(log), "busy": 1}
    calls = [replace(joint_call(write_together, (n, ref), options), ref=ref) for n, ref in enumerate(refs)]
    found = compute.fn(Group(calls, "cpu"))
    assert [outcome.value for outcome in found] == [0, 1, 2]
    assert log.read_text().splitlines() == ["[0, 1, 2]", "[1]"]


class Unpicklable(Exception):
    def __init__(self, left: int, right: int) -> None:
        super().__init__(f"{left} and {right}")


def test_an_error_that_cannot_travel_is_told_by_one_that_can() -> None:
    assert str(portable(error := InputError("act"))) == "act" and portable(error) is error
    told = portable(Unpicklable(1, 2))
    assert type(told) is ShardError and str(told) == "Unpicklable: 1 and 2"


def test_each_gpu_of_a_machine_is_lent_to_one_task_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    compute_ = Compute(cpu_workers=8)
    assert pool.device(compute_) == "cuda" and pool.gpus(compute_) == 2
    assert (pool.slots(compute_, "embed", "cuda"), pool.slots(compute_, "embed", "cpu")) == (2, 8)
    assert (pool.decoders(compute_, "embed", "cuda"), pool.decoders(compute_, "embed", "cpu")) == (4, 1)
    few = Compute(cpu_workers=8, gpus=1)
    assert (pool.gpus(few), pool.slots(few, "embed", "cuda"), pool.decoders(few, "embed", "cuda")) == (1, 1, 8)
    lent, both, third = [], threading.Barrier(2, timeout=10), threading.Event()

    def hold(wait: bool) -> None:
        with pool.own_device("cuda", gpus=2) as device:
            lent.append(device)
            if wait:
                both.wait()
            else:
                third.set()

    with ThreadPoolExecutor(3) as threads:
        holders = [threads.submit(hold, True) for _ in range(2)]
        [holder.result() for holder in holders]
        threads.submit(hold, False).result()
    assert sorted(lent[:2]) == ["cuda:0", "cuda:1"] and lent[2] == "cuda:0" and third.is_set()
    with pool.own_device("cpu") as device:
        assert device == "cpu"
