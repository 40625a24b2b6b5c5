"""A pool that is smaller than what its queries want, through `lvd run` and the search in cells."""

from collections import Counter
from pathlib import Path

import numpy as np
import yaml

from lvd.flows.inquiry import last_run
from lvd.infra.shards import StageDir, read_table
from lvd.infra.storage import Storage
from lvd.tasks import tallies
from lvd.tests.drawing import CLASSES, draw
from lvd.tests.running import lvd


def test_a_saturated_pool_goes_whole_to_its_queries(tmp_path: Path) -> None:
    """Through `lvd run`, with cells: 24 images of the pool, 12 queries that want 3 each."""
    for folder, numbers in (("pool", range(2)), ("queries", range(2, 3))):
        (tmp_path / folder).mkdir()
        for number in numbers:
            for place, visual_class in enumerate(CLASSES):
                image = draw(visual_class, np.random.default_rng([number, place]), (160, 120))
                image.save(tmp_path / folder / f"{number}-{place:02d}.jpg", quality=90)
    policy = {"kind": "sample", "neighbors": 3}
    birds = {"name": "birds", "kind": "images", "path": str(tmp_path / "queries"), "include": False}
    tree = {
        "name": "saturated",
        "pool": [{"kind": "images", "path": str(tmp_path / "pool")}],
        "curated": [{**birds, "retrieve": policy}],
        "copies": {"model": "builtin:dct"},
        "embed": {"model": "builtin:color_texture"},
        "cluster": {"num_clusters": 3},
        "compute": {"cpu_workers": 1, "gpus": 0},
        "retrieve": {"depth_per_neighbor": 1, "search": {"engine": "cells", "max_probes": 3}},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    root = tmp_path / "root"
    process = lvd("run", str(tmp_path / "recipe.yaml"), "--root", str(root), home=tmp_path / "prefect")
    assert process.returncode == 0, process.stderr[-4000:]
    last = last_run(Storage(str(root)))
    left = sum(
        StageDir(root=str(root), stage="cluster", fingerprint=d.split("/")[1]).account()["rows"]
        for d in last["directories"]["cluster"]
    )
    (name,) = last["directories"]["retrieve"]
    target = StageDir(root=str(root), stage="retrieve", fingerprint=name.split("/")[1])
    notes = target.account()["notes"]
    assert 20 < left <= 24 and notes["recall"]["recall"] >= 0.99 and notes["rounds"] > 1
    assert (notes["queries"], notes["asked"], notes["found"], notes["images"]) == (12, 36, left, left)
    assert notes["ended"] > 0 == notes["wanting"]
    assert max(Counter(row["query_id"] for ref in target.shards() for row in read_table(ref).to_pylist()).values()) == 3
    published = StageDir(root=str(root), stage="curated", fingerprint=last["version"])
    assert tallies.published_counts(published.shards()) == ({"retrieved": left}, {"birds": left})
