"""Clustering and retrieval of vectors that are drawn, in one `lvd run`: seconds by stage, memory, certified recall.

    python benchmarks/selection_scale.py [--rows 10000000] [--queries 100000] [--quick]

The whole process with its children is measured: proportional set sizes of all that live at one time. Recall is what the
run certifies of its own search, against exact answers to queries that did not choose the probes.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import yaml
from measuring import expect, run_whole

MOST_GB, MIN_RECALL, NEIGHBORS = 8.0, 0.99, 4
GROUP = 500  # rows of a group: a cosine of about 0.61 to one another, 0 to all others
BIN = Path(sys.executable).parent


def recipe(rows: int, queries: int, clusters: int, root: str) -> dict:
    drawn = {"kind": "synthetic", "dim": 128, "groups": rows // GROUP, "spread": 0.8}
    retrieve = {"kind": "sample", "neighbors": NEIGHBORS}
    return {
        "name": "vectors",
        "root": root,
        "pool": [{**drawn, "rows": rows, "draw": 0}],
        "curated": [{"name": "queries", **drawn, "rows": queries, "draw": 1, "include": False, "retrieve": retrieve}],
        "cluster": {"num_clusters": clusters},
        "retrieve": {"search": {"engine": "cells"}},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("--clusters", type=int, default=2000)
    parser.add_argument("--quick", action="store_true", help="300,000 rows, 10,000 queries, 300 clusters")
    options = parser.parse_args()
    if options.quick:
        options.rows, options.queries, options.clusters = 300_000, 10_000, 300
    with tempfile.TemporaryDirectory(prefix="lvd-scale-") as folder:
        base = Path(folder)
        root, path = base / "root", base / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe(options.rows, options.queries, options.clusters, str(root))))
        (base / "tmp").mkdir()
        run = run_whole([str(BIN / "lvd"), "run", str(path)], base / "tmp", options.rows)
        record = json.loads(next((root / "runs").iterdir()).read_text())
        (matches,) = record["directories"]["retrieve"]
        notes = json.loads((root / matches / "stage.json").read_text())["notes"]
        passes = json.loads((root / record["directories"]["centroids"][0] / "stage.json").read_text())["shard_notes"][0]
    expect(notes["found"] == options.queries * NEIGHBORS == notes["images"], f"every query must get its {NEIGHBORS}")
    counted = f"{options.rows:,} x 128, {options.clusters:,} clusters, {options.queries:,} queries x {NEIGHBORS}"
    seconds = {one["stage"]: one["seconds"] for one in record["cost"] if one["seconds"] >= 1}
    recall = notes["recall"]["recall"]
    quality = {
        "recall": notes["recall"],
        "rounds": notes["rounds"],
        "collided": notes["collided"],
        "iterations": len(passes["iterations"]),
        "objective": passes["iterations"][-1]["objective"],
        "busy_seconds": seconds,
        "wall_s": round(run.wall_s, 1),
        "cpu_s": round(run.cpu_s, 1),
    }
    shared = {"counted": counted, "quality": quality}
    rows = [
        {"name": "selection_scale/memory", "ours": round(run.peak_mb / 1024, 2), "peer": None, "unit": "GiB",
         "ratio": None, "target": MOST_GB, "met": run.peak_mb / 1024 <= MOST_GB, **shared},
        {"name": "selection_scale/recall", "ours": round(recall, 4), "peer": 1.0, "unit": "of the true nearest",
         "ratio": round(recall, 4), "target": MIN_RECALL, "met": recall >= MIN_RECALL, **shared},
    ]  # fmt: skip
    sys.stdout.writelines(json.dumps(row) + "\n" for row in rows)
    return 0 if all(row["met"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
