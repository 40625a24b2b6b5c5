"""Deduplication alone: no curated collection, a folder named twice, a benchmark that shares images with the pool."""

import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import load_from_disk

from lvd.infra.storage import Storage
from lvd.tests.drawing import CLASSES, draw
from lvd.tests.running import data_files, killed_runs, lvd

KILLS = 4


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp_path = tmp_path_factory.mktemp("survivors")
    for folder, numbers in (("pool", range(4)), ("test", range(3, 4))):
        (tmp_path / folder).mkdir()
        for number in numbers:
            image = draw(list(CLASSES)[number], np.random.default_rng(number), (200, 150))
            image.save(tmp_path / folder / f"{number}.png")
    tree = {
        "name": "survivors",
        "pool": [{"kind": "images", "path": str(tmp_path / "pool")}] * 2,
        "benchmarks": [
            {"name": "test", "kind": "images", "path": str(tmp_path / "test")},
            {"name": "test-again", "kind": "images", "path": str(tmp_path / "test")},
        ],
        "copies": {"model": "builtin:dct"},
        "embed": {"model": "builtin:color_texture"},
        "cluster": {"num_clusters": 1},
        "publish": {"images": "survivors"},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "recipe.yaml"


@pytest.fixture(scope="module")
def root(recipe: Path) -> Path:
    root = recipe.parent / "root"
    process = lvd("run", str(recipe), "--root", str(root), home=recipe.parent / "prefect")
    assert process.returncode == 0, process.stderr[-4000:]
    return root


def test_everything_that_is_left_is_published_once(root: Path) -> None:
    ledger = load_from_disk(str(root / "curated/v1/ledger")).to_list()
    first, second = ledger[:4], ledger[4:]
    assert [row["reason"] for row in first] == ["survivor", "survivor", "survivor", "benchmark_copy"]
    assert {row["reason"] for row in second} == {"exact_duplicate"}
    assert [row["because_of"] for row in second] == [row["image_id"] for row in first]
    dataset = load_from_disk(str(root / "curated/v1"))
    assert dataset["image_id"][:] == [row["image_id"] for row in first[:3]]
    assert set(dataset["role"]) == {"survivor"}


def test_killed_again_and_again_on_s3_it_ends_with_the_same_bytes(root: Path, recipe: Path, s3_root: str) -> None:
    args, home = ("run", str(recipe), "--root", s3_root), recipe.parent / "prefect"
    lived = killed_runs(*args, home=home, kills=KILLS, longest_s=10, rng=random.Random(4))
    assert len(lived) == KILLS
    process = lvd(*args, home=home)
    assert process.returncode == 0, process.stderr[-4000:]
    storage, files = Storage(s3_root), data_files(root)
    assert {name: hashlib.sha256(storage.read_bytes(name)).hexdigest() for name in files} == files
    names = {path.removeprefix(f"{storage.path}/") for path in storage.fs.find(storage.path)}
    assert {name for name in names if name.endswith(".arrow")} == {name for name in files if name.endswith(".arrow")}
    assert storage.names("leases") == []
    assert not storage.fs.call_s3("list_multipart_uploads", Bucket=s3_root.split("/")[2]).get("Uploads")
