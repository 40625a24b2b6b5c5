"""What is shown of a run: the tallies by table, and each screen with what it is given."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import httpx
import pyarrow as pa
import pytest
from rich.console import Console

from lvd.flows import progress
from lvd.flows.accounts import timings
from lvd.flows.artifacts import counts
from lvd.flows.group import Outcome
from lvd.flows.progress import Drawn, Logged, Reported, Tally, Watched, about
from lvd.flows.recipe import parse
from lvd.flows.run import Run
from lvd.infra.committing import commit
from lvd.infra.writing import write_shard
from lvd.tasks import wording


class Clock:
    """Seconds that a test moves on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def done(images: int | None = 100, busy: float | None = None, waited: float = 0.0, seconds: float = 10.0) -> Outcome:
    """A shard that is done. images: None for a call that writes no shard; busy: seconds of a device."""
    if images is None:
        return Outcome()
    cost = {"read_bytes": 5, "written_bytes": 7}
    if busy is not None:
        cost |= {"device_seconds": busy, "waited_seconds": waited}
    return Outcome(account={"rows_in": images, "rows": images, "seconds": seconds, "cost": cost})


def failed() -> Outcome:
    return Outcome(error=ValueError("no"))


def tallied(*outcomes: Outcome, shards: int) -> Tally:
    tally = Tally("embed")
    tally.begin(shards, 100.0)
    for outcome in outcomes:
        tally.add(outcome)
    return tally


LINES = {
    "nothing yet": ([], 4, 100.0, "embed: 0 of 4 shards"),
    "no time has gone by": ([done()], 4, 100.0, "embed: 1 of 4 shards, 100 images, about 0 s left"),
    "no models": ([done()] * 2, 4, 110.0, "embed: 2 of 4 shards, 200 images, 20 images/s, about 10 s left"),
    "slow": ([done(1)], 2, 110.0, "embed: 1 of 2 shards, 1 images, 0.1 images/s, about 10 s left"),
    "models": (
        [done(300_000, busy=9.3, waited=0.2)] * 4,
        400,
        100.0 + 60 * 24,
        "embed: 4 of 400 shards, 1,200,000 images, 833 images/s, device busy 93%, waiting for data 2%, "
        "about 39.6 h left",
    ),
    # a device is never more than always busy, although a shard's batches may run in the time of the one before
    "busier than there": ([done(busy=12.0)], 1, 110.0, "embed: 1 of 1 shards, 100 images, 10 images/s, "),
    "a model among others": (
        [done(busy=5.0), done(seconds=1000.0)],
        2,
        110.0,
        "embed: 2 of 2 shards, 100 images, 10 images/s, device busy 50%, waiting for data 0%",
    ),
    "failures": ([failed(), done()], 4, 110.0, "embed: 2 of 4 shards, 1 failed, 100 images, 10 images/s, about 10 s"),
    "no accounts": ([done(None)], 2, 110.0, "embed: 1 of 2 shards, about 10 s left"),
}


@pytest.mark.parametrize("case", LINES)
def test_a_tally_in_words(case: str) -> None:
    outcomes, shards, now, line = LINES[case]
    assert tallied(*outcomes, shards=shards).line(now).startswith(line)
    if case == "busier than there":
        assert "device busy 100%" in tallied(*outcomes, shards=shards).line(now)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (2460, "41 min"), (7200, "2.0 h")]
)
def test_times_to_wait(seconds: float, words: str) -> None:
    assert about(seconds) == words


def test_a_stage_that_comes_again_goes_on_with_its_sums_and_a_pace_of_its_own() -> None:
    tally = tallied(done(), done(), shards=2)
    tally.begin(10, 1000.0)  # the pause and the shards before it say nothing of these
    assert (tally.done, tally.shards, tally.images, tally.left_s(1000.0)) == (2, 12, 200, None)
    tally.add(done(50))
    assert (tally.images_per_second(1005.0), tally.left_s(1005.0)) == (10.0, 45.0)
    assert tally.share_done == pytest.approx(3 / 12)


def test_searches_among_vectors_are_no_images_of_a_stage_that_has_a_model() -> None:
    tally = tallied(done(30), shards=1)  # such as what decides the size of a batch
    for outcome, images, per_second in ((done(200, busy=5.0), 200, 20.0), (done(500), 200, 0.0)):
        tally.begin(1, 1000.0)
        tally.add(outcome)
        assert (tally.images, tally.images_per_second(1010.0)) == (images, per_second)


@pytest.mark.parametrize("width", [80, 160])
def test_bars_show_shards_pace_device_and_the_time_left(width: int) -> None:
    clock, console = Clock(), Console(file=io.StringIO(), width=width, force_terminal=True)
    with Drawn.bars(console, auto_refresh=False) as bars:
        watched = Watched([Drawn(bars)], clock)
        for outcome in (done(10_000, busy=9.0), failed()):  # the second time in the same bar
            with watched.stage("descriptors", 65_000) as show:
                show(done(None))
                clock.now += 10
                show(outcome)
            bars.refresh()
        assert [(task.description, task.total, task.completed) for task in bars.tasks] == [("descriptors", 130_000, 4)]
    text = console.file.getvalue()
    assert "4/130000" in text
    assert "1,000 images/s  busy 90%  90.3 h left" in text
    assert "busy 90%  1 failed  180.6 h left" in text


def test_a_line_is_logged_now_and_then_and_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    watched = Watched([Logged()], clock)
    with caught(caplog), watched.stage("screen", 10) as show:
        for _ in range(10):
            clock.now += 7  # so that 35 and 70 s are the first times 30 s after the last line
            show(done())
    said = [record.getMessage().split(",")[0] for record in caplog.records]
    assert said == ["screen: 5 of 10 shards", "screen: 10 of 10 shards"]


def test_a_stage_that_ends_early_says_how_far_it_came(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched([Logged()], Clock())
    with caught(caplog), pytest.raises(KeyboardInterrupt), watched.stage("screen", 10) as show:
        show(failed())
        raise KeyboardInterrupt
    assert [record.getMessage() for record in caplog.records] == ["screen: 1 of 10 shards, 1 failed, about 0 s left"]


@contextmanager
def caught(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Lines of lvd's logger reach caplog, whatever was set up before."""
    logger = logging.getLogger("lvd")
    logger.addHandler(caplog.handler)
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(caplog.handler)
        logger.setLevel(level)
        logger.propagate = propagate


class Client:
    """Prefect's client as far as artifacts go: keeps what it is given, and may be down."""

    def __init__(self) -> None:
        self.artifacts, self.calls, self.is_down = {}, [], False

    def create_artifact(self, artifact):
        return self._kept(uuid4(), artifact, artifact.key)

    def update_artifact(self, artifact_id, artifact):
        return self._kept(artifact_id, artifact, None)

    def _kept(self, artifact_id, artifact, key):
        self.calls.append(key)
        if self.is_down:
            raise httpx.ConnectError("Connection refused")
        self.artifacts[artifact_id] = (artifact.data, artifact.description)
        return SimpleNamespace(id=artifact_id)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    """A client that Prefect's artifacts go to, inside a flow run."""
    from prefect import artifacts
    from prefect.context import FlowRunContext

    fake = Client()
    monkeypatch.setattr(artifacts, "get_client", lambda sync_client: fake)
    monkeypatch.setattr(artifacts, "get_task_and_flow_run_ids", lambda: (None, uuid4()))
    monkeypatch.setattr(artifacts, "get_run_context", lambda: None)
    run = SimpleNamespace(flow=SimpleNamespace(isasync=False))
    monkeypatch.setattr(FlowRunContext, "get", lambda: run)
    return fake


def test_one_progress_artifact_of_a_stage_is_kept_up_to_date(client: Client) -> None:
    clock = Clock()
    watched = Watched([Reported()], clock)
    for _ in range(2):
        with watched.stage("hash_fit", 4) as show:
            for _ in range(4):
                clock.now += 1  # every second one is left out
                show(done())
    assert client.calls == ["hash-fit-progress", *[None] * 7]
    assert list(client.artifacts.values()) == [(100.0, "hash_fit: 8 of 8 shards, 800 images, 100 images/s")]


def test_an_api_that_does_not_answer_ends_no_run(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    watched = Watched([Reported()], clock)
    client.is_down = True
    with caught(caplog):
        for name in ("embed", "copies"):
            with watched.stage(name, 4) as show:
                for _ in range(4):
                    clock.now += 10
                    show(done())
        client.is_down = False
        with watched.stage("embed", 1) as show:  # tried anew when a stage is begun
            show(done())
    warnings = [record.getMessage() for record in caplog.records]
    said = "is not on Prefect's screen, the run goes on: ConnectError: Connection refused"
    assert warnings == [f"the progress of embed {said}", f"the progress of copies {said}"]  # once for a stage
    assert client.calls[:3] == ["embed-progress", "copies-progress", "embed-progress"]
    assert [data for data, _ in client.artifacts.values()] == [100.0]


def test_outside_a_flow_nothing_is_left(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.context import FlowRunContext

    monkeypatch.setattr(FlowRunContext, "get", lambda: None)
    with Watched([Reported()], Clock()).stage("embed", 1) as show:
        show(done())
    assert client.calls == []


@pytest.mark.parametrize(("is_terminal", "screens"), [(True, [Drawn, Reported]), (False, [Logged, Reported])])
def test_a_terminal_gets_bars_and_a_log_gets_lines(
    is_terminal: bool, screens: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress.sys, "stderr", SimpleNamespace(isatty=lambda: is_terminal, write=len, flush=int))
    with progress.shown() as shown:
        assert [type(screen) for screen in shown._screens] == screens


@pytest.fixture
def embedded(local_root: str) -> tuple[Run, str]:
    """A run with one stage of two shards, each of which held a GPU for 1.8 s. The directory's name."""
    run = Run(parse({"name": "x", "root": local_root}))
    target = run.target("embed", "x")
    for ref in target.planned(2):
        with write_shard(ref, pa.schema([("row", pa.int64())]), {}) as shard:
            shard.keep({"row": ref.index})
            shard.cost.update(read_bytes=1_000_000, gpu_seconds=1.8)
    commit(target, 2, config={}, inputs={})
    return run, target.directory


def test_the_table_on_prefect_s_screen_says_what_a_stage_cost(embedded: tuple[Run, str]) -> None:
    run, directory = embedded
    row = counts(run, directory)
    assert (row["rows in"], row["GPU hours"], row["read"]) == (2, 0.001, "2 MB")
    assert row["images/s"] is None or row["images/s"] > 0
    assert row["written"].endswith(" kB") and row["written"] != "0 kB"


def test_the_report_says_what_a_stage_cost(embedded: tuple[Run, str]) -> None:
    run, directory = embedded
    (timing,) = timings(run, {"directories": {"embed": [directory]}, "computed": {"embed": 2}})
    files = sum(path.stat().st_size for path in Path(run.storage.root, directory).glob("*.arrow"))
    assert (timing.read_bytes, timing.gpu_seconds) == (2_000_000, 3.6)
    assert 0 < timing.written_bytes <= files


@pytest.mark.parametrize(("seconds", "text"), [(0, "–"), (3.6, "0.001"), (5400, "1.5"), (3.6e6, "1,000.0")])
def test_gpu_hours(seconds: float, text: str) -> None:
    assert wording.gpu_hours(seconds) == text
