"""The whole chain on the miniature web, in processes of its own, against the planted answers."""

import random
import shutil
from pathlib import Path

from lvd.flows.inquiry import fates_of, last_run
from lvd.infra.shards import StageDir, read_table
from lvd.infra.storage import TEMPORARY, Storage
from lvd.tests.miniature import Miniature, check
from lvd.tests.running import Curated, data_files, killed_runs, lvd

KILLS = 3


def test_what_was_planted_is_found(curated: Curated) -> None:
    score = check(Miniature.load(curated.folder), [row for row in curated.ledger() if row["role"] == "pool"])
    assert score.exact_recall == 1.0
    assert score.near_recall >= 0.95, score.per_transform
    assert score.unrelated_dropped <= 0.01, score.unrelated_lost
    assert score.benchmark_survivors == 0
    assert (score.faults_wrong, score.wrong_because_of, score.missing, score.surplus) == ([], [], [], [])


def test_the_ledger_balances(curated: Curated) -> None:
    rows = curated.ledger()
    states = [row["state"] for row in rows]
    pool = Miniature.load(curated.folder).answers
    assert {"kept", "dropped", "failed"} == set(states)
    assert len([row for row in rows if row["role"] == "pool"]) == len(pool)
    assert all(row["stage"] and row["reason"] for row in rows)
    snapshot = last_run(Storage(str(curated.root)))
    assert snapshot["candidates"] == len(rows) == sum(snapshot["ledger"].values())
    assert snapshot["ledger"]["kept"] == states.count("kept")


def test_the_cause_of_a_drop_is_named(curated: Curated) -> None:
    rows = curated.ledger()
    ids = {row["image_id"]: row["key"] for row in rows}
    for reason, named in (
        ("benchmark_copy", "(benchmark miniature-test)"),
        ("near_duplicate", " at "),
        ("copy", " at "),
    ):
        row = next(row for row in rows if row["reason"] == reason)
        (fate,) = fates_of(str(curated.root), row["key"])
        assert named in fate["cause"]
        assert fate["cause"].startswith(ids.get(row["because_of"], "benchmark/"))


def test_the_published_dataset_opens_and_its_images_decode(curated: Curated) -> None:
    from datasets import load_from_disk

    dataset = load_from_disk(str(curated.root / "curated/v1"))
    assert len(dataset) == len([row for row in curated.ledger() if row["state"] == "kept"])
    assert set(dataset["role"]) == {"curated", "retrieved"}
    assert len(set(dataset["image_id"])) == len(dataset)
    for row in dataset.select(range(0, len(dataset), 10)):
        assert min(row["image"].convert("RGB").size) > 0
        assert bool(row["retrieved_for"]) == (row["role"] == "retrieved")


def test_the_stages_open_as_datasets(curated: Curated) -> None:
    from datasets import load_from_disk

    for stage in ("crawl", "download", "screen", "fingerprint", "descriptors", "embed", "cluster", "retrieve"):
        directory = next((curated.root / stage).iterdir())
        assert load_from_disk(str(directory)).num_rows >= 0


def test_a_second_run_computes_nothing(curated: Curated) -> None:
    before = data_files(curated.root)
    process = curated.run(curated.root)
    assert process.returncode == 0
    assert "nothing was computed: every stage was found complete" in process.stdout
    assert data_files(curated.root) == before


def test_killed_again_and_again_it_ends_with_the_same_bytes(curated: Curated, tmp_path: Path) -> None:
    """In another root, with one worker and SIGKILL at random moments: the bytes of a run that was left alone."""

    args = ("run", "mini", "--root", str(tmp_path), *curated.settings, "--set", "compute.cpu_workers=1")
    lived = killed_runs(*args, home=curated.home, kills=KILLS, longest_s=30, rng=random.Random(7))
    assert len(lived) == KILLS
    process = lvd(*args, home=curated.home)
    assert process.returncode == 0, process.stderr[-4000:]
    assert data_files(tmp_path) == data_files(curated.root)
    assert Storage(str(tmp_path)).names(TEMPORARY) == []
    assert Storage(str(tmp_path)).names("leases") == []


def test_a_threshold_runs_decisions_again_and_measures_nothing(curated: Curated, tmp_path: Path) -> None:
    import shutil

    root = tmp_path / "root"
    shutil.copytree(curated.root, root)
    before = data_files(root)
    process = curated.run(root, "--set", "copies.min_similarity=0.9")
    assert process.returncode == 0, process.stderr[-4000:]
    computed = last_run(Storage(str(root)))["computed"]
    measured = (
        "crawl",
        "download",
        "screen",
        "screened",
        "fingerprint",
        "unique",
        "descriptors",
        "neighbours",
        "references",
    )
    assert {stage: computed[stage] for stage in measured} == dict.fromkeys(measured, 0)
    assert computed["copies"] == 1
    after = data_files(root)
    assert {name: after[name] for name in before} == before
    embedded = [StageDir(root=str(root), stage="embed", fingerprint=name) for name in Storage(str(root)).names("embed")]
    fresh = [d for d in embedded if f"{d.directory}/data-00000-of-{len(d.shards()):05d}.arrow" not in before]
    taken_over = sum(notes.get("taken_over", 0) for d in fresh for notes in d.account()["shard_notes"])
    assert fresh
    assert 0 < sum(d.account()["rows"] for d in fresh) - taken_over <= 40  # only images that were dropped before


def test_through_cells_the_same_images_are_kept(curated: Curated, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(curated.root, root)
    cells = ("engine=cells", "num_cells=16", "recall_queries=400")
    process = curated.run(root, *(word for setting in cells for word in ("--set", f"copies.search.{setting}")))
    assert process.returncode == 0, process.stderr[-4000:]
    last = last_run(Storage(str(root)))
    assert last["computed"]["descriptors"] == 0 and last["computed"]["neighbours"] > 0
    stage, name = last["directories"]["neighbours"][0].split("/")
    notes = StageDir(root=str(root), stage=stage, fingerprint=name).account()["notes"]
    assert notes["engine"] == "cells" and notes["recall"]["recall"] >= 0.99 and notes["recall"]["pairs"] > 0
    exact, found = (decided(r) for r in (curated.root, root))
    assert found == exact


def decided(root: Path) -> list[dict]:
    """The fates after deduplication of the last run."""
    stage, name = last_run(Storage(str(root)))["directories"]["copies"][0].split("/")
    target = StageDir(root=str(root), stage=stage, fingerprint=name)
    return [row for ref in target.shards() for row in read_table(ref).drop_columns("score").to_pylist()]
