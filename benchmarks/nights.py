"""A night beside what is there already: seconds of a run that adds images, with 1, 4 and 16 times as many old ones.

    python benchmarks/nights.py [--new 400] [--old 400] [--times 1 4 16] [--quick]

Ours: the night, a whole `lvd run`; peer: a run from nothing over the same images. What the night computes of single
images is counted: it must be the new ones alone.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from chain_rerun import timed
from measuring import expect

from lvd.flows.inquiry import last_run
from lvd.infra.shards import StageDir
from lvd.infra.storage import Storage
from lvd.tests.drawing import CLASSES, draw

SIZE = (320, 240)
PER_IMAGE = ("download", "screen", "fingerprint", "descriptors", "embed")
ROWS_PER_SHARD = 100


def draw_night(folder: Path, num_images: int, seed: int) -> None:
    folder.mkdir(parents=True)
    for number in range(num_images):
        visual_class = list(CLASSES)[number % len(CLASSES)]
        image = draw(visual_class, np.random.default_rng([seed, number]), SIZE)
        image.save(folder / f"{number:05d}.jpg", quality=90)


def recipe(base: Path) -> Path:
    curated = {"name": "queries", "kind": "images", "path": str(base / "queries"), "include": False}
    tree = {
        "name": "nights",
        "pool": [{"kind": "images", "path": str(base / "crawl/night-*")}],
        "curated": [{**curated, "retrieve": {"kind": "sample", "neighbors": 4}}],
        "crawl": {"rows_per_shard": ROWS_PER_SHARD},
        "fingerprint": {"representative": "oldest"},
        "copies": {"model": "builtin:dct", "representative": "oldest"},
        "embed": {"model": "builtin:color_texture"},
        "cluster": {"num_clusters": 20, "refit": "never"},
    }
    (base / "recipe.yaml").write_text(yaml.safe_dump(tree))
    return base / "recipe.yaml"


def images_of(root: Path, record: dict[str, Any], shards: dict[str, int]) -> int:
    """Images in the shards of the newest partition. Every stage that looks at single images computed those alone."""
    (pool,) = (collection for collection in record["collections"] if collection["role"] == "pool")
    stage, name = pool["images"][-1].split("/")
    newest = StageDir(root=str(root), stage=stage, fingerprint=name).shards()
    expect(
        all(shards[stage] == len(newest) for stage in PER_IMAGE),
        f"a night must compute {len(newest)} shards of every stage, computed {shards}",
    )
    return sum(ref.rows for ref in newest)


def measured(base: Path, old: int, new: int) -> dict[str, Any]:
    """Seconds of the night, and of one run over everything."""
    path, home = recipe(base), base / "prefect"
    draw_night(base / "queries", 20, 1)
    draw_night(base / "crawl/night-1", old, 2)
    timed("run", str(path), "--root", str(base / "root"), home=home)
    draw_night(base / "crawl/night-2", new, 3)
    night_s, _ = timed("run", str(path), "--root", str(base / "root"), home=home)
    record = last_run(Storage(str(base / "root")))
    expect(images_of(base / "root", record, record["computed"]) == new, f"the newest partition must have {new} images")
    whole_s, _ = timed("run", str(path), "--root", str(base / "whole"), home=home)
    return {"old": old, "new": new, "night_s": round(night_s, 2), "whole_s": round(whole_s, 2)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--new", type=int, default=400, help="images of the night")
    parser.add_argument("--old", type=int, default=400, help="images that are there, once")
    parser.add_argument("--times", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--quick", action="store_true", help="100 images, 1 and 4 times")
    options = parser.parse_args()
    if options.quick:
        options.new, options.old, options.times = 100, 100, [1, 4]
    found = []
    for times in options.times:
        with tempfile.TemporaryDirectory(prefix="lvd-nights-") as folder:
            found.append(measured(Path(folder), times * options.old, options.new))
    growth = found[-1]["night_s"] / found[0]["night_s"]
    target = 1 + 0.1 * (options.times[-1] / options.times[0] - 1)  # a tenth of the growth of what is there, at most
    line = {
        "name": "nights", "ours": found[-1]["night_s"], "peer": found[-1]["whole_s"], "unit": "s",
        "ratio": round(found[-1]["whole_s"] / found[-1]["night_s"], 2), "target": 1.0,
        "met": growth <= target and found[-1]["whole_s"] > found[-1]["night_s"],
        "quality": {"nights": found, "growth": round(growth, 2), "growth_target": round(target, 2)},
        "counted": f"whole processes; {options.new} new images beside {options.old} times {options.times} old ones",
    }  # fmt: skip
    sys.stdout.write(json.dumps(line) + "\n")
    return 0 if line["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
