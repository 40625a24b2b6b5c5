"""Deduplication alone: no curated collection, a folder named twice, a benchmark that shares images with the pool."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import load_from_disk

from lvd.tests.drawing import CLASSES, draw
from lvd.tests.running import lvd


@pytest.fixture
def root(tmp_path: Path) -> Path:
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
    process = lvd("run", str(tmp_path / "recipe.yaml"), "--root", str(tmp_path / "root"), home=tmp_path / "prefect")
    assert process.returncode == 0, process.stderr[-4000:]
    return tmp_path / "root"


def test_everything_that_is_left_is_published_once(root: Path) -> None:
    ledger = load_from_disk(str(root / "curated/v1/ledger")).to_list()
    first, second = ledger[:4], ledger[4:]
    assert [row["reason"] for row in first] == ["survivor", "survivor", "survivor", "benchmark_copy"]
    assert {row["reason"] for row in second} == {"exact_duplicate"}
    assert [row["because_of"] for row in second] == [row["image_id"] for row in first]
    dataset = load_from_disk(str(root / "curated/v1"))
    assert dataset["image_id"][:] == [row["image_id"] for row in first[:3]]
    assert set(dataset["role"]) == {"survivor"}
