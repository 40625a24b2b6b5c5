"""On S3, night after night: a new partition is computed, an old one found; a new version stands beside the old one."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from lvd.flows.inquiry import directories, fates_of, last_run
from lvd.infra.shards import StageDir
from lvd.infra.storage import Storage
from lvd.tests.drawing import CLASSES, draw
from lvd.tests.running import lvd


def draw_night(folder: Path, night: int) -> None:
    folder.mkdir(parents=True)
    for number, visual_class in enumerate(CLASSES):
        draw(visual_class, np.random.default_rng([night, number]), (160, 120)).save(
            folder / f"{number:02d}.jpg", quality=90
        )


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    draw_night(tmp_path / "crawl/night-1", 1)
    draw_night(tmp_path / "queries/a", 0)
    draw_night(tmp_path / "queries/b", 3)
    tree = {
        "name": "nights",
        "pool": [{"kind": "images", "path": str(tmp_path / "crawl/night-*")}],
        "curated": [
            {
                "name": "queries",
                "kind": "images",
                "path": str(tmp_path / "queries/*"),
                "include": False,
                "retrieve": {"kind": "sample", "neighbors": 1},
            }
        ],
        "copies": {"model": "builtin:dct"},
        "embed": {"model": "builtin:color_texture"},
        "cluster": {"num_clusters": 3},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "recipe.yaml"


def test_a_new_partition_is_computed_and_the_old_one_found(recipe: Path, s3_root: str, tmp_path: Path) -> None:
    first = lvd("run", str(recipe), "--root", s3_root, home=tmp_path / "prefect")
    assert first.returncode == 0, first.stderr[-4000:]
    storage = Storage(s3_root)
    assert last_run(storage)["version"] == "v1"
    assert last_run(storage)["ledger"] == {"kept": 12, "dropped": 0, "failed": 0}

    draw_night(tmp_path / "crawl/night-2", 2)
    (tmp_path / "crawl/night-2/broken.jpg").write_bytes(b"no image")
    second = lvd("run", str(recipe), "--root", s3_root, home=tmp_path / "prefect")
    assert second.returncode == 0, second.stderr[-4000:]
    last = last_run(storage)
    per_image = ("crawl", "download", "screen", "fingerprint", "descriptors", "embed")
    computed = {stage: last["computed"][stage] for stage in per_image}
    assert computed == dict.fromkeys(computed, 1)  # the new partition's only shard, and nothing of the old one
    assert last["computed"]["hash-fit"] == 0
    (fit,) = storage.names("hash-fit")
    about = storage.read_json(f"hash-fit/{fit}/fit.json")
    assert about["thumbnails"] == 12 and len(about["measures"]) == 1  # of the first night
    hashed = [StageDir(root=s3_root, stage="fingerprint", fingerprint=name) for name in storage.names("fingerprint")]
    assert [d.account()["config"] for d in hashed] == [{"fit": about["sha256"]}] * 2
    assert sorted(d.account()["rows"] for d in hashed) == [12, 12]
    assert {found.state for found in directories(s3_root)} == {"complete"}
    assert last["version"] == "v2"
    assert last["candidates"] == 25
    assert last["ledger"]["failed"] == 1
    assert storage.exists("curated/v1/stage.json")
    settled = [StageDir(root=s3_root, stage="retrieve", fingerprint=name) for name in storage.names("retrieve")]
    assert all(d.account()["notes"]["queries"] == 24 for d in settled)  # of both partitions of the queries
    assert any(not found.used for found in directories(s3_root) if found.stage == "curated")

    (row,) = fates_of(s3_root, "night-2/broken.jpg")
    assert (row["state"], row["stage"], row["reason"]) == ("failed", "download", "not_an_image")
    kept = next(row for row in fates_of(s3_root, "night-1/00.jpg"))
    assert kept["stage"] in ("publish", "retrieve")
