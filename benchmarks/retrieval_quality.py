"""Do retrieved images have their query's class? Seeded draws of queries from labelled images.

    python benchmarks/retrieval_quality.py --images CIFAR10 --torchscript FILE [--distractors PHOTOS] [--quick]

Each draw takes 5 images of each of 3 classes as the curated set; the pool is all other images and the distractors.
N = 4, collisions refilled. Ours: share of retrieved images with the query's class; peer: what chance gives.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from lvd.tasks import models
from lvd.tasks.algorithms import allocation, neighbours
from lvd.tasks.decode import decode_rgb

CLASSES, QUERIES_PER_CLASS, NEIGHBORS, DEPTH = 3, 5, 4, 32


def embedded(files: list[Path], spec: models.ModelSpec, batch_size: int = 32) -> np.ndarray:
    """(n, d) float16 unit vectors."""
    model, parts = models.load(spec), []
    for start in range(0, len(files), batch_size):
        images = [decode_rgb(file.read_bytes()) for file in files[start : start + batch_size]]
        parts.append(model.embed(np.stack([np.asarray(model.preprocess(image)) for image in images])))
    return np.concatenate(parts).astype(np.float16)


def precision(vectors: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> float:
    """The share of retrieved images whose label is their query's, for one draw of queries."""
    classes = rng.choice(sorted(set(labels) - {""}), CLASSES, replace=False)
    queries = np.concatenate(
        [rng.choice(np.flatnonzero(labels == name), QUERIES_PER_CLASS, replace=False) for name in classes]
    )
    pool = np.setdiff1d(np.arange(len(labels)), queries)
    similarity, rows = neighbours.nearest(vectors[queries], [(0, vectors[pool])], k=DEPTH)
    query = np.repeat(np.arange(len(queries)), DEPTH)
    taken = allocation.settle_collisions(query, rows.ravel(), similarity.ravel(), neighbors=NEIGHBORS, policy="refill")
    return float((labels[pool[rows.ravel()[taken]]] == labels[queries[query[taken]]]).mean())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="a folder with one subfolder per class")
    parser.add_argument("--distractors", type=Path, help="a folder of images of no class")
    parser.add_argument("--torchscript", required=True, help="the embedding model")
    parser.add_argument("--input-px", type=int, default=32)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="20 draws")
    options = parser.parse_args()
    imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    spec = models.ModelSpec(
        model="torchscript", path=options.torchscript, input_px=options.input_px, resize="square", **imagenet
    )
    files = sorted(file for file in options.images.rglob("*") if file.is_file())
    others = sorted(file for file in options.distractors.rglob("*") if file.is_file()) if options.distractors else []
    labels = np.array([file.parent.name for file in files] + [""] * len(others))
    vectors = embedded([*files, *others], spec)
    draws = 20 if options.quick else options.draws
    found = [precision(vectors, labels, np.random.default_rng([0, draw])) for draw in range(draws)]
    chance = float(np.mean([(labels == name).mean() for name in set(labels) - {""}]))
    line = {
        "name": "retrieval_quality", "ours": round(float(np.mean(found)), 3), "peer": round(chance, 3),
        "unit": "share with the query's class", "ratio": round(float(np.mean(found)) / chance, 2), "target": 0.7,
        "met": float(np.mean(found)) >= 0.7,
        "quality": {"percentiles_5_50_95": np.percentile(found, [5, 50, 95]).round(3).tolist(), "draws": draws},
        "counted": f"{len(files)} labelled images, {len(others)} distractors; queries are not in the pool",
    }  # fmt: skip
    sys.stdout.write(json.dumps(line) + "\n")
    return 0 if line["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
