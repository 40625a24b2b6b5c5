"""The chain on real photographs and CIFAR-10 images with real features: have retrieved images their query's class?"""

import shutil
from pathlib import Path

import numpy as np
import yaml
from datasets import load_from_disk

from lvd.tests.running import lvd

COLLECTIONS, CLASSES, QUERIES, NEIGHBORS = 3, 3, 5, 4
MIN_PRECISION = 0.7


def copy_queries(cifar: Path, folder: Path, rng: np.random.Generator) -> list[str]:
    """Collections of 5 images each of three classes, drawn without replacement. Returns their names."""
    classes = rng.permutation(sorted(path.name for path in cifar.iterdir()))
    names = []
    for number in range(COLLECTIONS):
        names.append(f"draw-{number}")
        for name in classes[number * CLASSES : (number + 1) * CLASSES].tolist():
            (folder / names[-1] / name).mkdir(parents=True)
            for file in rng.choice(sorted((cifar / name).iterdir()), QUERIES, replace=False).tolist():
                shutil.copy(file, folder / names[-1] / name)
    return names


def test_retrieved_images_have_the_class_of_their_query(shared: Path, tmp_path: Path) -> None:
    """One draw; `benchmarks/selection_quality.py` measures many."""
    cifar = shared / "data/cifar10"
    names = copy_queries(cifar, tmp_path / "queries", np.random.default_rng(0))
    tree = {
        "name": "real",
        "pool": [{"kind": "images", "path": str(shared / "data/photos")}, {"kind": "images", "path": str(cifar)}],
        "curated": [
            {
                "name": name,
                "kind": "images",
                "path": str(tmp_path / "queries" / name),
                "retrieve": {"kind": "sample", "neighbors": NEIGHBORS},
            }
            for name in names
        ],
        "crawl": {"rows_per_shard": 200},
        "copies": {"model": "builtin:dct"},
        "embed": {
            "model": "torchscript",
            "path": str(shared / "models/cifar10_resnet56.torchscript.pt"),
            "input_px": 32,
            "resize": "square",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
        "cluster": {"num_clusters": 20},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    root = tmp_path / "root"
    process = lvd("run", str(tmp_path / "recipe.yaml"), "--root", str(root), home=tmp_path / "prefect")
    assert process.returncode == 0, process.stderr[-4000:]

    label = {row["image_id"]: row["label"] for row in rows(root / "curated/v1") if row["role"] == "curated"}
    assert len(label) == COLLECTIONS * CLASSES * QUERIES
    ledger = rows(root / "curated/v1/ledger")
    assert len(ledger) == 160 + 600 + len(label)
    copies = [row for row in ledger if row["reason"] == "curated_copy"]
    assert {row["because_of"] for row in copies} == set(label)  # the queries stand in the pool as well
    assert len(copies) == len(label)
    assert not [row for row in ledger if row["reason"] in ("copy", "near_duplicate")]  # all photographs are different

    matches = [row for folder in (root / "retrieve").iterdir() for row in rows(folder)]
    pool_label = {row["image_id"]: row["label"] for folder in (root / "download").iterdir() for row in rows(folder)}
    assert len(matches) == NEIGHBORS * len(label)
    right = [label[row["query_id"]] == pool_label[row["image_id"]] for row in matches]
    assert np.mean(right) >= MIN_PRECISION, np.mean(right)


def rows(folder: Path) -> list[dict]:
    dataset = load_from_disk(str(folder))
    return dataset.remove_columns([name for name in dataset.column_names if name == "image"]).to_list()
