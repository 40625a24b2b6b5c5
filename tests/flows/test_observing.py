"""What a run tells: metrics on storage and on this machine, assets and events on a real Prefect server."""

import calendar
import sys
import threading
import time
from pathlib import Path

import cloudpickle
import pytest

from lvd.flows import cli, metrics, observing
from lvd.flows.assets import asset_key
from lvd.flows.inquiry import directories, last_run
from lvd.flows.metrics import samples
from lvd.flows.observing import finished, metrics_text
from lvd.flows.recipe import parse
from lvd.flows.run import Run
from lvd.infra.errors import InputError
from lvd.infra.lease import lease
from lvd.infra.logs import FORMAT_VARIABLE
from lvd.infra.storage import Storage
from lvd.tests.running import Curated, wait_until
from lvd.tests.serving import events, serving


def named(root: str) -> dict[tuple, float]:
    """(name, label values) → value, but for the label `root`."""
    text = metrics_text(root)
    return {
        (name, *sorted(v for k, v in labels.items() if k != "root")): value for name, labels, value in samples(text)
    }


def test_the_metrics_of_a_run_are_its_record(curated: Curated) -> None:
    last, found = last_run(Storage(str(curated.root))), named(str(curated.root))
    assert found["lvd_candidates", "mini"] == last["candidates"] == sum(last["ledger"].values())
    ended = {key: value for key, value in found.items() if key[0] == "lvd_ledger_candidates"}
    assert sum(ended.values()) == last["candidates"] and len(ended) == len(last["endings"]) > 10
    shares = {key: value for key, value in found.items() if key[0] == "lvd_ledger_share_ratio"}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert found["lvd_published_images", "mini"] == last["published"] == last["ledger"]["kept"]
    assert found["lvd_last_success_timestamp_seconds", "mini"] == pytest.approx(finished(last)["last_success"], abs=2)
    assert (found["lvd_run_in_progress", "mini"], found["lvd_run_failed", "mini"]) == (0, 0)
    assert found["lvd_search_recall_ratio", "mini", "neighbours"] == 1.0
    assert 0 < found["lvd_cluster_objective", "mini"] <= 1
    new = last["downloads"]["new"]
    assert 0 < found["lvd_download_success_ratio", "mini", "new"] == new["fetched"] / new["asked"] < 1
    assert last["alerts"] == [] and found["lvd_alert_active", "lvd.downloads.low", "mini"] == 0
    for timing in last["cost"]:
        stage = timing["stage"]
        if stage != "curated":
            assert found["lvd_stage_rows", *sorted(("mini", stage))] == timing["rows"]
            assert found["lvd_stage_written_bytes", *sorted(("mini", stage))] == timing["written_bytes"]


def test_the_command_prints_them_also_where_the_file_is_gone(
    curated: Curated, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def printed(root: Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lvd", "metrics", str(root)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    file = (curated.root / "metrics" / "mini.prom").read_text()
    assert printed(curated.root) == (0, file, "")
    monkeypatch.setattr(metrics, "left", lambda storage, recipe: "")
    code, out, _ = printed(curated.root)
    known, found = ({name for name, _, _ in samples(text)} for text in (file, out))
    assert code == 0 and known - found == set(metrics.COUNTERS) & known  # what all runs did together is in the file
    code, _, err = printed(tmp_path / "none")
    assert code == 2 and "root must be one that a run has begun on" in err


def test_metrics_are_no_stage(curated: Curated) -> None:
    assert "metrics" not in {found.stage for found in directories(str(curated.root))}


def test_a_run_that_finds_all_complete_tells_node_exporter(curated: Curated, tmp_path: Path) -> None:
    file, before = tmp_path / "lvd.prom", (curated.root / "metrics" / "mini.prom").read_text()
    done = curated.run(curated.root, "--metrics", str(file), "--log-format", "json")
    assert done.returncode == 0 and "nothing was computed" in done.stdout, done.stderr
    found = {name: value for name, labels, value in samples(file.read_text()) if name.startswith("lvd_l")}
    assert found["lvd_last_success_timestamp_seconds"] == pytest.approx(time.time(), abs=60)
    assert (curated.root / "metrics" / "mini.prom").read_text() == before


def test_another_log_format_is_refused_before_anything_is_done(
    local_root: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(FORMAT_VARIABLE, "text")  # the command sets it: what it was comes back
    monkeypatch.setattr(sys, "argv", ["lvd", "run", "mini", "--root", local_root, "--log-format", "xml"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2 and "must be one of text, json, was 'xml'" in capsys.readouterr().err
    assert not Path(local_root).exists()


def test_every_directory_of_a_run_is_an_asset_from_the_sources_to_the_version(curated: Curated) -> None:
    root, last = str(curated.root), last_run(Storage(str(curated.root)))
    with serving(curated.home) as url:  # on the database that the run has left
        made = [e for e in events(url, "prefect.asset.") if e["event"].startswith("prefect.asset.materialization")]
    upstream = {
        event["resource"]["prefect.resource.id"]: {
            related["prefect.resource.id"]
            for related in event["related"]
            if related["prefect.resource.role"] == "asset"
        }
        for event in made
        if event["event"].endswith("succeeded") and root in event["resource"]["prefect.resource.id"]
    }
    expected = {asset_key(f"{root}/{name}") for names in last["directories"].values() for name in names}
    assert expected <= set(upstream)
    (version,) = (e for e in made if e["resource"]["prefect.resource.id"] == asset_key(f"{root}/curated/v1"))
    assert version["resource"]["prefect.asset.url"] == f"file://{root}/curated/v1/report.html"
    assert version["payload"]["rows"] == last["published"]
    reached, left = set(), [asset_key(f"{root}/curated/v1")]
    while left:
        if (key := left.pop()) not in reached:
            reached.add(key)
            left += upstream.get(key, ())
    sources = {asset_key(str(path)) for path in (curated.folder / "lists").iterdir()}
    assert sources and sources <= reached


def test_a_run_that_fails_says_so(local_root: str) -> None:
    run = Run(parse({"name": "a", "root": local_root}))
    with pytest.raises(InputError), lease(run.storage), run.observer.watching():
        assert named(local_root)["lvd_run_in_progress", "a"] == 1
        raise InputError("no")
    found = named(local_root)
    assert (found["lvd_run_in_progress", "a"], found["lvd_run_failed", "a"]) == (0, 1)
    assert ("lvd_last_success_timestamp_seconds", "a") not in found


def test_a_run_that_is_alive_says_so_again_and_again(local_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observing, "BEAT_S", 0.02)
    run, alive = Run(parse({"name": "a", "root": local_root})), ("lvd_run_heartbeat_timestamp_seconds", "a")
    with lease(run.storage), run.observer.watching():
        before = named(local_root)[alive]
        wait_until(lambda: named(local_root)[alive] > before, 10, "the heart must beat")
    assert "lvd-metrics" not in {thread.name for thread in threading.enumerate()}


def test_a_run_can_be_sent_to_the_nodes_of_a_pool(local_root: str) -> None:
    run = Run(parse({"name": "n", "root": local_root, "cluster": {"num_clusters": 1}}))
    run.observer.watching()
    sent = cloudpickle.loads(cloudpickle.dumps(run))
    assert sent.recipe == run.recipe and vars(sent.observer).keys() == vars(run.observer).keys() - {"_lock"}


def test_a_run_that_was_killed_is_under_way_no_more(local_root: str) -> None:
    storage = Storage(local_root)
    with lease(storage), Run(parse({"name": "a", "root": local_root})).observer.watching():
        left = storage.read_bytes(metrics.name_of("a"))
    storage.write_bytes(metrics.name_of("a"), left)  # as it is where nothing could be said any more
    found = named(local_root)
    assert (found["lvd_run_in_progress", "a"], found["lvd_run_failed", "a"]) == (0, 1)


def test_of_several_recipes_on_a_root_each_knows_its_own_last_success(local_root: str) -> None:
    storage = Storage(local_root)
    for hour, name in enumerate("ab", 1):
        stamp, ledger = f"20260101T0{hour}0000Z-v{hour}", {"kept": 3}
        record = {"run_id": stamp, "version": f"v{hour}", "seconds": 9.0, "candidates": 3, "ledger": ledger}
        storage.write_json(f"runs/{stamp}.json", {**record, "recipe": {"name": name}})
    with lease(storage), Run(parse({"name": "a", "root": local_root})).observer.watching():
        found = named(local_root)  # of the run that began last
    assert found["lvd_last_success_timestamp_seconds", "a"] == calendar.timegm((2026, 1, 1, 1, 0, 9))
    assert found["lvd_published_info", "a", "v1"] == 1


def test_a_local_file_that_cannot_be_written_ends_no_run(
    local_root: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "textfile"
    folder.mkdir()
    run = Run(parse({"name": "a", "root": local_root, "metrics_file": str(folder / "a.prom")}))
    with pytest.raises(InputError, match="no"), run.observer.watching():
        assert (folder / "a.prom").is_file()
        (folder / "a.prom").unlink()
        folder.rmdir()
        raise InputError("no")
    assert "cannot be written, the run goes on" in caplog.text
