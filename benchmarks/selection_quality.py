"""What is selected: do retrieved images have the class of the curated ones, and is a balanced sample even by class?

    python benchmarks/selection_quality.py --images CIFAR10 --torchscript FILE [--distractors PHOTOS] [--quick]

Retrieval: each draw takes 20 images of 3 classes as the curated set; the pool is all other images and the distractors.
By sample (N = 4, collisions refilled) and by cluster (those with at least 4 curated images, as many images in all).
Peer: as many pool images at random in the place of those retrieved.
Balance: each draw makes the pool uneven, from all images of one class down to a tenth of them of another, and takes a
balanced sample of a quarter. Peer: a random sample of equal size. The entropy of classes is log2 of their number where
all have as many images.
A model that was trained on these classes tells them apart better than a model does those of the web.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lvd.tasks import models
from lvd.tasks.algorithms import allocation, hierarchy, kmeans, mixture, neighbours
from lvd.tasks.decode import decode_rgb

CLASSES, CURATED, NEIGHBORS, DEPTH = 3, 20, 4, 32
POOL_CLUSTERS, MIN_QUERIES = 16, 4
UNEVEN, LEVEL_SIZES, RESAMPLE_STEPS = 10, (60, 20, 10), 3
MIN_PRECISION = 0.7
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def embedded(files: list[Path], spec: models.ModelSpec, batch_size: int = 32) -> np.ndarray:
    """(n, d) float16 unit vectors."""
    model, parts = models.load(spec), []
    for start in range(0, len(files), batch_size):
        images = [decode_rgb(file.read_bytes()) for file in files[start : start + batch_size]]
        parts.append(model.embed(np.stack([np.asarray(model.preprocess(image)) for image in images])))
    return np.concatenate(parts).astype(np.float16)


def by_sample(queries: np.ndarray, pool: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The query and the pool row of each image retrieved, as `retrieve.retrieve_sample` finds them: two (m,) int64."""
    similarity, rows = neighbours.nearest(queries, [(0, pool)], k=DEPTH)
    query = np.repeat(np.arange(len(queries)), DEPTH)
    taken = allocation.settle_collisions(query, rows.ravel(), similarity.ravel(), neighbors=NEIGHBORS, policy="refill")
    return query[taken], rows.ravel()[taken]


def by_cluster(
    queries: np.ndarray, pool: np.ndarray, rng: np.random.Generator, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The same as `retrieve.retrieve_cluster` finds them."""
    centroids = kmeans.fit(pool, num_clusters=POOL_CLUSTERS, seed=seed).centroids
    (home, closeness), (cell, _) = ([part[:, 0] for part in kmeans.assign(rows, centroids)] for rows in (queries, pool))
    clusters = allocation.eligible_clusters(home, min_queries=MIN_QUERIES)
    sizes = np.bincount(cell, minlength=len(centroids))[clusters]
    quotas = allocation.cluster_sample(clusters, sizes, per_cluster=10_000, max_images=NEIGHBORS * len(queries))
    query, rows = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for cluster, size, quota in zip(clusters, sizes, quotas, strict=True):
        rows.append(np.flatnonzero(cell == cluster)[allocation.draw(int(size), int(quota), rng=rng)])
        inside = np.flatnonzero(home == cluster)
        query.append(np.full(quota, inside[np.argmax(closeness[inside])]))
    return np.concatenate(query), np.concatenate(rows)


def precision(vectors: np.ndarray, labels: np.ndarray, draw: int) -> dict[tuple[str, str], tuple[float, float]]:
    """(way, of what) → the share of retrieved, and of random images that have its class; of one draw.

    query: the query for which the image was retrieved; curated: any of the curated set.
    """
    rng = np.random.default_rng([0, draw])
    classes = rng.choice(sorted(set(labels) - {""}), CLASSES, replace=False)
    per_class = np.bincount(np.arange(CURATED) % CLASSES)
    queries = np.concatenate(
        [
            rng.choice(np.flatnonzero(labels == name), num, replace=False)
            for name, num in zip(classes, per_class, strict=True)
        ]
    )
    pool = np.setdiff1d(np.arange(len(labels)), queries)
    found = {
        "sample": by_sample(vectors[queries], vectors[pool]),
        "cluster": by_cluster(vectors[queries], vectors[pool], rng, draw),
    }
    shares = {}
    for way, (query, rows) in found.items():
        if not len(rows) or len(np.unique(rows)) != len(rows):
            raise SystemExit(f"{way} must retrieve images, none of them twice, had {len(rows)} in draw {draw}")
        sides = [labels[pool[rows]], labels[rng.choice(pool, len(rows), replace=False)]]
        shares[way, "query"] = tuple(float((side == labels[queries[query]]).mean()) for side in sides)
        shares[way, "curated"] = tuple(float(np.isin(side, classes).mean()) for side in sides)
    return shares


def entropy(labels: np.ndarray) -> float:
    """Bits."""
    share = np.unique(labels, return_counts=True)[1] / len(labels)
    return float(-(share * np.log2(share)).sum())


def balance(vectors: np.ndarray, labels: np.ndarray, draw: int) -> dict[str, float]:
    """The entropy of the classes of an uneven pool, and of samples of it, in bits; of one draw."""
    rng = np.random.default_rng([1, draw])
    names, counts = np.unique(labels, return_counts=True)
    sizes = np.round(counts.min() * UNEVEN ** -np.linspace(0, 1, len(names))).astype(int)
    chosen = [
        rng.choice(np.flatnonzero(labels == name), size, replace=False)
        for name, size in zip(rng.permutation(names), sizes, strict=True)
    ]
    pool = np.concatenate(chosen)
    fit = kmeans.fit(vectors[pool], num_clusters=LEVEL_SIZES[0], seed=draw)
    centroids = hierarchy.resampled(
        vectors[pool], fit.centroids, per_cluster=None, steps=RESAMPLE_STEPS, iterations=20, seed=draw
    )
    levels = hierarchy.upper_levels(centroids, LEVEL_SIZES[1:], seed=draw, resample_steps=RESAMPLE_STEPS)
    cell = kmeans.assign(vectors[pool], centroids)[0][:, 0]
    in_cell, target = np.bincount(cell, minlength=len(centroids)), len(pool) // 4
    found = {"pool": entropy(labels[pool]), "random": entropy(labels[rng.choice(pool, target, replace=False)])}
    for name, parents in {"one level": [], "hierarchical": [level.parent for level in levels]}.items():
        quotas = hierarchy.balanced_quotas(in_cell, parents, target, seed=draw)
        drawn = [mixture.thinned(np.flatnonzero(cell == c), int(q), seed=draw, part=c) for c, q in enumerate(quotas)]
        rows = np.concatenate(drawn)
        if len(rows) != target:
            raise SystemExit(f"a sample must have {target} images, as its peer, had {len(rows)}")
        found[name] = entropy(labels[pool[rows]])
    return found


def line(name: str, ours: list[float], peer: list[float], unit: str, target: float) -> dict[str, Any]:
    """One line of the results, as DESIGN.md section 8 says, of the means over the draws; `counted` is to be added."""
    mean, other = float(np.mean(ours)), float(np.mean(peer))
    quality = {
        "percentiles_5_50_95": np.percentile(ours, [5, 50, 95]).round(3).tolist(),
        "percentiles_5_50_95_of_peer": np.percentile(peer, [5, 50, 95]).round(3).tolist(),
        "draws": len(ours),
        "draws_ahead": int((np.array(ours) > np.array(peer)).sum()),
    }
    values = {"ours": round(mean, 3), "peer": round(other, 3), "unit": unit, "ratio": round(mean / other, 2)}
    return {"name": name, **values, "target": round(target, 3), "met": mean >= target, "quality": quality}


def retrieval_lines(pool: str, vectors: np.ndarray, labels: np.ndarray, draws: int) -> list[dict[str, Any]]:
    """Both ways of retrieval, by the query's own class and by the classes of the whole curated set."""
    shares = [precision(vectors, labels, draw) for draw in range(draws)]
    others = int((labels == "").sum())
    counted = f"{len(labels) - others} labelled images, {others} distractors; curated images are not in the pool"
    lines = []
    for way, of in shares[0]:
        ours, peer = ([found[way, of][side] for found in shares] for side in (0, 1))
        found = line(f"retrieval/{pool}/{way}/{of}", ours, peer, "share with the class", MIN_PRECISION)
        lines.append({**found, "counted": counted})
    return lines


def balance_line(vectors: np.ndarray, labels: np.ndarray, draws: int) -> dict[str, Any]:
    """Entropy of a balanced sample; it should be above that of a random one."""
    bits = [balance(vectors, labels, draw) for draw in range(draws)]
    mean = {name: float(np.mean([found[name] for found in bits])) for name in bits[0]}
    even = float(np.log2(len(np.unique(labels))))
    ours, peer = ([found[name] for found in bits] for name in ("hierarchical", "random"))
    found = line("balance/hierarchical", ours, peer, "bits", mean["random"])
    found["quality"] |= {
        "bits": {name: round(value, 3) for name, value in mean.items()},
        "share_of_even": {name: round(value / even, 3) for name, value in mean.items()},
        "gap_to_even_closed": round((mean["hierarchical"] - mean["random"]) / (even - mean["random"]), 3),
    }
    return {**found, "counted": f"{len(labels)} labelled images; {UNEVEN} : 1 by class; a quarter is taken"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="a folder with one subfolder per class")
    parser.add_argument("--distractors", type=Path, help="a folder of images of no class")
    parser.add_argument("--torchscript", required=True, help="the embedding model")
    parser.add_argument("--input-px", type=int, default=32)
    parser.add_argument("--draws", type=int, default=100, help="of curated sets; of uneven pools a quarter as many")
    parser.add_argument("--quick", action="store_true", help="20 draws")
    options = parser.parse_args()
    draws = 20 if options.quick else options.draws
    spec = models.ModelSpec(
        model="torchscript", path=options.torchscript, input_px=options.input_px, resize="square", **IMAGENET
    )
    files = sorted(file for file in options.images.rglob("*") if file.is_file())
    others = sorted(file for file in options.distractors.rglob("*") if file.is_file()) if options.distractors else []
    labels = np.array([file.parent.name for file in files] + [""] * len(others))
    vectors = embedded([*files, *others], spec)

    labelled = slice(len(files))
    lines = retrieval_lines("classes", vectors[labelled], labels[labelled], draws)
    if others:
        lines += retrieval_lines("distractors", vectors, labels, draws)
    lines.append(balance_line(vectors[labelled], labels[labelled], draws // 4))
    sys.stdout.writelines(json.dumps(found) + "\n" for found in lines)
    return 0 if all(found["met"] for found in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
