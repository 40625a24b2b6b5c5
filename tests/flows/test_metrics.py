"""Metrics as Prometheus reads them: the text by its own parser, counters that go on, files that are whole."""

import re
from pathlib import Path

import pytest

from lvd.flows import metrics
from lvd.flows.figures import Books, Downloads
from lvd.flows.metrics import (
    FILE_VARIABLE,
    Moment,
    Totals,
    families,
    local_file,
    samples,
    text_of,
    write_local,
)
from lvd.infra.committing import commit
from lvd.infra.errors import InputError
from lvd.infra.shards import StageDir
from lvd.infra.storage import Storage
from lvd.infra.writing import write_shard
from lvd.tasks import schemas

MOMENT = {"recipe": "mine", "started": 1000.0, "seconds": 60.0}
UNITS = ("_seconds", "_bytes", "_ratio", "_total", "_info")


def written(root: str, directory: str, rows: int = 0, inputs: dict | None = None, notes: dict | None = None, **said):
    """A complete directory of one shard. said: reason → rejects."""
    stage, name = directory.rsplit("/", 1)
    target = StageDir(root=root, stage=stage, fingerprint=name)
    (ref,) = target.planned(1)
    with write_shard(ref, schemas.SIZES, {}) as shard:
        for number in range(rows):
            shard.keep({"cluster_id": number, "size": 1})
        for reason, count in said.items():
            for _ in range(count):
                shard.reject("key", reason)
        shard.cost["gpu_seconds"] += 2.0
    commit(target, 1, config={}, inputs=inputs or {}, notes=notes)
    return directory


@pytest.fixture
def books(local_root: str) -> Books:
    """A root with a source of URLs, one of files, a search and its decision."""
    found = Books(local_root)
    directories = [
        written(local_root, "links/l", 4, {"files": ["list.csv"], "digest": "0" * 32}),
        written(local_root, "crawl/urls", 4, {"files": ["list.csv"], "digest": "0" * 32}),
        written(local_root, "crawl/folder", 5, {"files": ["photos"], "digest": "1" * 32}),
        written(local_root, "download/urls", 3, {"manifest": "crawl/urls"}, timeout=1),
        written(local_root, "download/folder", 5, {"manifest": "crawl/folder"}),
        written(local_root, "neighbours/n", 1, notes={"recall": {"recall": 0.995}}),
        written(local_root, "references/r", 1, notes={"recall": None}),
        written(local_root, "copies/c", 8, notes={"reasons": {"copy": 2}}),
    ]
    found.enter(directories)
    return found


def read(text: str) -> dict[tuple, float]:
    return {
        (name, *sorted(v for k, v in labels.items() if k != "root")): value for name, labels, value in samples(text)
    }


def test_figures_come_out_as_they_went_in(books: Books) -> None:
    moment = Moment(
        **MOMENT,
        downloads=Downloads(asked=4, fetched=3),
        candidates=10,
        states={"kept": 6, "dropped": 3, "failed": 1},
        endings=(("pool", "copies", "dropped", "copy", 2), ("pool", "download", "failed", "timeout", 1)),
        published=6,
        version="v2",
        last_success=900.0,
        alerts={"lvd.downloads.low": False, "lvd.ledger.unusual": True},
    )
    found = read(text_of(families(books, Totals(), moment)))
    expected = {
        ("lvd_stage_rows", "mine", "download"): 8,
        ("lvd_stage_input_rows", "download", "mine"): 9,
        ("lvd_stage_directories", "download", "mine"): 2,
        ("lvd_stage_rejects", "download", "mine", "timeout"): 1,
        ("lvd_stage_rejects", "copies", "copy", "mine"): 2,
        ("lvd_stage_gpu_seconds", "copies", "mine"): 2.0,
        ("lvd_search_recall_ratio", "mine", "neighbours"): 0.995,
        ("lvd_search_recall_ratio", "mine", "references"): 1.0,
        ("lvd_download_success_ratio", "mine", "new"): 0.75,
        ("lvd_download_success_ratio", "all", "mine"): 0.75,  # of URLs: what a folder gives hides nothing
        ("lvd_candidates", "mine"): 10,
        ("lvd_ledger_share_ratio", "dropped", "mine"): 0.3,
        ("lvd_ledger_candidates", "copies", "copy", "dropped", "mine", "pool"): 2,
        ("lvd_published_images", "mine"): 6,
        ("lvd_published_info", "mine", "v2"): 1,
        ("lvd_last_success_timestamp_seconds", "mine"): 900.0,
        ("lvd_run_duration_seconds", "mine"): 60.0,
        ("lvd_run_in_progress", "mine"): 1,
        ("lvd_run_failed", "mine"): 0,
        ("lvd_alert_active", "lvd.ledger.unusual", "mine"): 1,
        ("lvd_alert_active", "lvd.downloads.low", "mine"): 0,
    }
    keys = {tuple([key[0], *sorted(key[1:])]): value for key, value in expected.items()}
    assert {key: found.get(key) for key in keys} == keys
    assert not [key for key in found if key[0].endswith("_total")]  # nothing was computed now


def test_every_family_has_help_type_and_a_unit_in_its_name(books: Books) -> None:
    totals = Totals()
    for account in books:
        totals.count(account)
    text = text_of(families(books, totals, Moment(**MOMENT)))
    names = re.findall(r"(?m)^# TYPE (\S+) (\S+)$", text)
    assert names and [name for name, _ in names] == re.findall(r"(?m)^# HELP (\S+) \S", text)
    assert len(dict(names)) == len(names)
    for name, kind in names:
        assert re.fullmatch(r"lvd_[a-z_]+", name) and kind in ("gauge", "counter")
        assert (kind == "counter") == name.endswith("_total")
        assert ("seconds" in name) == name.endswith(("_seconds", "_seconds_total"))
        assert ("bytes" in name) == name.endswith(("_bytes", "_bytes_total"))
    assert all(labels["recipe"] == "mine" and labels["root"] == books.root for _, labels, _ in samples(text))


def test_what_is_not_known_has_no_sample(local_root: str) -> None:
    names = {name for name, _, _ in samples(text_of(families(Books(local_root), Totals(), Moment(**MOMENT))))}
    assert names == {
        "lvd_run_in_progress",
        "lvd_run_failed",
        "lvd_run_start_timestamp_seconds",
        "lvd_run_duration_seconds",
        "lvd_run_heartbeat_timestamp_seconds",
    }


def test_a_run_that_was_killed_has_failed(local_root: str) -> None:
    def read_as(text: str) -> tuple[float, float]:
        found = read(text)
        return found["lvd_run_in_progress", "mine"], found["lvd_run_failed", "mine"]

    text = text_of(families(Books(local_root), Totals(), Moment(**MOMENT)))
    assert (read_as(text), read_as(metrics.ended(text))) == ((1, 0), (0, 1))
    assert metrics.began(text) == MOMENT["started"] and metrics.began("") == 0
    assert read(text)["lvd_run_heartbeat_timestamp_seconds", "mine"] == 1060.0
    done = text_of(families(Books(local_root), Totals(), Moment(**MOMENT, is_done=True)))
    assert metrics.ended(done) == done  # it ended by itself


def test_counters_go_on_from_the_file_before(books: Books) -> None:
    def next_run(text: str) -> str:
        totals = Totals(text)
        totals.count(books["download/urls"])
        totals.add("lvd_runs_total", 1)
        return text_of(families(books, totals, Moment(**MOMENT)))

    found = read(next_run(next_run("")))
    assert found["lvd_runs_total", "mine"] == 2
    assert found["lvd_computed_rows_total", "download", "mine"] == 8
    assert found["lvd_downloads_total", "fetched", "mine"] == 6
    assert found["lvd_downloads_total", "mine", "timeout"] == 2
    assert found["lvd_gpu_seconds_total", "download", "mine"] == 4.0


def test_labels_are_escaped_and_hold_no_password(local_root: str) -> None:
    moment = Moment(**MOMENT, endings=(("pool", "x", "failed", 'odd "reason"\\\nwith a line', 1),))
    text = text_of(families(Books("s3://key:word@bucket/lvd"), Totals(), moment))
    ((_, labels, _),) = [one for one in samples(text) if one[0] == "lvd_ledger_candidates"]
    assert labels["reason"] == 'odd "reason"\\\nwith a line' and labels["root"] == "s3://bucket/lvd"


@pytest.mark.parametrize("text", ["", "no metrics {", "\xff\x00"])
def test_a_file_that_cannot_be_read_begins_anew(root: str, text: str) -> None:
    storage = Storage(root)
    if text:
        storage.write_bytes(metrics.name_of("mine"), text.encode("latin1"))
    assert Totals(metrics.left(storage, "mine")).values == {}


def test_the_local_file_is_replaced_whole(tmp_path: Path, local_root: str) -> None:
    file, found = tmp_path / "lvd.prom", families(Books(local_root), Totals(), Moment(**MOMENT))
    file.write_text("old")
    write_local(found, file)
    assert file.read_text() == text_of(found)
    assert [path.name for path in tmp_path.iterdir()] == ["lvd.prom"]


def test_where_the_local_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FILE_VARIABLE, raising=False)
    assert local_file(None) is None
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "a.prom"))
    assert local_file(None) == tmp_path / "a.prom"
    assert local_file(str(tmp_path / "b.prom")) == tmp_path / "b.prom"  # the recipe goes before the environment
    for wrong, message in (
        (str(tmp_path / "a.txt"), r"must be a path that ends in \.prom, was '.*a\.txt'"),
        (str(tmp_path / "none" / "a.prom"), r"must be a file in a folder that can be written"),
        (str(tmp_path), r"ends in \.prom"),
    ):
        with pytest.raises(InputError, match=message):
            local_file(wrong)
