"""A bad night on a real Prefect server: the events that a run sends, and the automations that act on them."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import flow
from prefect.events.schemas.automations import AutomationCore
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL, temporary_settings

from lvd.flows import metrics
from lvd.flows.alerts import DOWNLOADS, LEDGER
from lvd.flows.assets import asset_key
from lvd.flows.metrics import samples
from lvd.flows.observing import metrics_text, told_before
from lvd.flows.recipe import parse
from lvd.flows.run import Run
from lvd.infra.committing import commit
from lvd.infra.errors import InputError
from lvd.infra.shards import StageDir
from lvd.infra.storage import Storage
from lvd.infra.writing import write_shard
from lvd.tasks import schemas
from lvd.tests.running import environment, wait_until
from lvd.tests.serving import PREFECT, events, serving

INFRA = Path(__file__).parents[2] / "infra"


def planted(root: str, name: str = "planted", **alerts: float) -> tuple[Run, dict[str, Any]]:
    """A run whose ledger has 200 candidates of which 150 were dropped, with the record that it would write."""
    run = Run(parse({"name": name, "root": root, "alerts": alerts}))
    (ref,) = (ledger := run.named("curated/v2", "ledger")).planned(1)
    fates = [("kept", "publish", "retrieved")] * 50 + [("dropped", "copies", "copy")] * 150
    with write_shard(ref, schemas.LEDGER, {}) as shard:
        for number, (state, stage, reason) in enumerate(fates):
            row = {"key": str(number), "role": "pool", "state": state, "stage": stage, "reason": reason}
            shard.keep({**dict.fromkeys(schemas.LEDGER.names), **row})
    commit(ledger, 1, config={}, inputs={})
    filled(run, "links/a", schemas.SIZES, 0, {"files": ["list.csv"], "digest": "d"})
    filled(run, "crawl/a", schemas.SIZES, 0, {"files": ["list.csv"], "digest": "d"})
    filled(run, "download/a", schemas.SIZES, 160, {"manifest": "crawl/a"})
    filled(run, "curated/v2", schemas.SIZES, 0, {})
    record = {
        "run_id": f"{run.stamp}-v2",
        "version": "v2",
        "root": root,
        "curated": "curated/v2",
        "report": "report.html",
        "ledger": {"kept": 50, "dropped": 150},
        "candidates": 200,
        "computed": {},
        "seconds": 1.0,
        "recipe": run.recipe.model_dump(mode="json"),
    }
    return run, record


def filled(run: Run, directory: str, schema: Any, rejects: int, inputs: dict[str, Any]) -> StageDir:
    target = run.named(*directory.rsplit("/", 1))
    (ref,) = target.planned(1)
    with write_shard(ref, schema, {}) as shard:
        for _ in range(rejects):
            shard.reject("key", "timeout")
    commit(target, 1, config={}, inputs=inputs)
    return target


def earlier(root: str, name: str = "planted") -> None:
    """Two runs before: half of the candidates dropped."""
    for hour in (1, 2):
        states = {"kept": 50 * hour, "dropped": 50 * hour}
        run_id = f"20260101T0{hour}0000Z-v1"
        record = {"run_id": run_id, "version": "v1", "seconds": 1.0, "recipe": {"name": name}}
        record |= {"candidates": 100 * hour, "ledger": states}
        Storage(root).write_json(f"runs/{run_id}.json", record)
    Storage(root).write_json("runs/20260101T030000Z-v1.json", {**record, "recipe": {"name": "another"}})


def automations() -> list[AutomationCore]:
    return [
        AutomationCore.model_validate(one)
        for one in yaml.safe_load((INFRA / "automations.yaml").read_text())["automations"]
    ]


def test_a_bad_night_is_told_to_prefect_and_its_automations_act(tmp_path: Path, local_root: str) -> None:
    with serving(tmp_path / "prefect") as url:
        command = [PREFECT, "automation", "create", "--from-file", str(INFRA / "automations.yaml")]
        subprocess.run(command, env={**environment(tmp_path / "prefect"), "PREFECT_API_URL": url}, check=True)
        earlier(local_root)

        @flow(name="night", persist_result=False)
        def night() -> None:
            run, record = planted(local_root)
            with run.observer.watching():
                run.observer.stage_ended("publish", {})
                run.observer.run_ended(record)
            assert [alert["event"] for alert in record["alerts"]] == [DOWNLOADS, LEDGER]

        @flow(name="nightly", persist_result=False)
        def nightly() -> None:
            raise InputError("recipe.pool[0].path must exist")

        EventsWorker.drain_all()  # of another server that a test before this one may have had
        with temporary_settings(updates={PREFECT_API_URL: url}):
            night()
            with pytest.raises(InputError):
                nightly()
            EventsWorker.drain_all()
        wanted = {"lvd-downloads-low", "lvd-ledger-unusual", "lvd-nightly-failed"}
        wait_until(lambda: wanted <= triggered(url), 60, "the automations must be triggered")
        low, unusual = sorted(events(url, DOWNLOADS, LEDGER), key=lambda event: event["event"])
        assert low["payload"]["asked"] == 160 and low["payload"]["success"] == 0.0
        assert unusual["payload"]["share"] == 0.75 and unusual["payload"]["usual_share"] == 0.5
        assert unusual["resource"]["prefect.resource.id"] == "lvd.recipe.planted"
        assert unusual["resource"]["lvd.root"] == asset_key(local_root)
        assert "flow" in {related["prefect.resource.role"] for related in unusual["related"]}
        assert "lvd-nightly-missing" not in triggered(url)
    active = {labels["alert"]: value for name, labels, value in samples(metrics_text(local_root)) if "alert" in labels}
    assert active == {DOWNLOADS: 1, LEDGER: 1}


def triggered(url: str) -> set[str]:
    """The names of the automations that were triggered."""
    found = events(url, "prefect.automation.triggered", "prefect.automation.action.executed")
    return {event["resource"].get("prefect.resource.name", "") for event in found}


def test_only_the_last_runs_of_the_recipe_are_compared_with(root: str) -> None:
    earlier(root)
    Storage(root).write_json("runs/notes.txt", {})
    assert [told.candidates for told in told_before(Storage(root), "planted", 7)] == [100, 200]
    assert [told.candidates for told in told_before(Storage(root), "planted", 1)] == [200]
    assert told_before(Storage(root), "none", 7) == []


def test_the_automations_are_prefect_s_and_of_our_events() -> None:
    found = automations()
    expected = {name for one in found for name in one.trigger.expect}
    assert {DOWNLOADS, LEDGER, "prefect.flow-run.Failed", "prefect.flow-run.Crashed"} <= expected
    assert len({one.name for one in found}) == len(found) == 4
    assert all(action.type == "do-nothing" for one in found for action in one.actions)


def test_the_rules_of_prometheus_are_of_our_metrics() -> None:
    source = Path(metrics.__file__).read_text()
    rules = [
        rule for group in yaml.safe_load((INFRA / "alerts.rules.yaml").read_text())["groups"] for rule in group["rules"]
    ]
    for rule in rules:
        names = [word for word in rule["expr"].replace("(", " ").replace("{", " ").split() if word.startswith("lvd_")]
        assert names and all(f'"{name}"' in source for name in names), rule["alert"]
