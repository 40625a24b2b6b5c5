"""Five nights, each killed and started again: in the end the same bytes as one run over everything."""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from lvd.infra.shards import StageDir
from lvd.tests.copying import jpeg
from lvd.tests.drawing import CLASSES, draw
from lvd.tests.running import killed_runs, lvd

NIGHTS, OWN = 5, 10
SMALL = (160, 120)
PER_IMAGE = ("crawl", "download", "screen", "fingerprint", "descriptors", "embed")


def drawn(number: int) -> Image.Image:
    return draw(list(CLASSES)[number % len(CLASSES)], np.random.default_rng([3, number]), SMALL)


def photographs(folder: Path, number: int) -> Image.Image:
    image = Image.open(sorted(folder.glob("**/*.jpg"))[number]).convert("RGB")
    image.thumbnail((200, 200))
    return image


def lay_out(folder: Path, night: int, picture: Any) -> None:
    """The images of one night: some of its own; of earlier ones the very bytes, a worse copy and a larger one."""
    folder.mkdir(parents=True)
    for number in range(OWN):
        (folder / f"{number:02d}.jpg").write_bytes(jpeg(picture(night * OWN + number), 90)[1])
    (folder / "broken.jpg").write_bytes(b"no image")
    if night:
        before = (night - 1) * OWN
        (folder / "same.jpg").write_bytes(jpeg(picture(before), 90)[1])
        (folder / "worse.jpg").write_bytes(jpeg(picture(before + 1), 40)[1])
        image = picture(before + 2)
        (folder / "larger.jpg").write_bytes(jpeg(image.resize((image.width * 2, image.height * 2)), 95)[1])


def recipe_of(base: Path, name: str, **sections: Any) -> Path:
    curated = {"kind": "images", "path": str(base / "queries"), "include": False}
    tree = {
        "name": "nights",
        "pool": [{"kind": "images", "path": str(base / "crawl/night-*")}],
        "curated": [{"name": "queries", **curated, "retrieve": {"kind": "sample", "neighbors": 4}}],
        "fingerprint": {"representative": "oldest"},
        "copies": {"model": "builtin:dct", "representative": "oldest", "search": {"engine": "exact"}},
        "embed": {"model": "builtin:color_texture"},
        "cluster": {"num_clusters": 3, "refit": "never"},
        **sections,
    }
    path = base / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def published(root: Path) -> tuple[dict[str, str], dict[str, str], dict[str, Any]]:
    """The digests of the newest version's images and ledger, shard by shard, and the record of its run."""
    latest = json.loads((root / "curated/latest.json").read_text())
    files = []
    for stage, name in (("curated", latest["version"]), (f"curated/{latest['version']}", "ledger")):
        refs = StageDir(root=str(root), stage=stage, fingerprint=name).shards()
        files.append({ref.name().rpartition("/")[2]: (root / ref.name()).read_bytes() for ref in refs})
    digests = [{name: hashlib.sha256(data).hexdigest() for name, data in each.items()} for each in files]
    return digests[0], digests[1], json.loads((root / latest["run"]).read_text())


@pytest.mark.parametrize("kind", ["drawn", "photographs"])
def test_five_nights_with_kills_end_as_one_run(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if kind == "photographs":
        folder = request.getfixturevalue("shared") / "data/photos"

        def picture(number: int) -> Image.Image:
            return photographs(folder, number)
    else:
        picture = drawn
    lay_out(tmp_path / "queries", 0, lambda number: picture(number + NIGHTS * OWN))
    recipe, root, home = recipe_of(tmp_path, "nightly"), tmp_path / "nightly", tmp_path / "prefect"
    rng, old = random.Random(5), 0
    for night in range(NIGHTS):
        lay_out(tmp_path / f"crawl/night-{night}", night, picture)
        command = ("run", str(recipe), "--root", str(root))
        killed_runs(*command, home=home, kills=1, longest_s=12, rng=rng)
        process = lvd(*command, home=home)
        assert process.returncode == 0, process.stderr[-4000:]
        _, _, record = published(root)
        assert record["version"] == f"v{night + 1}"
        assert all(len(record["directories"][stage]) > night for stage in PER_IMAGE)
        assert record["candidates"] > old
        old = record["candidates"]
    images, ledger, record = published(root)
    (centroids,) = record["directories"]["centroids"]
    (fit,) = record["directories"]["hash-fit"]
    given = {
        "fingerprint": {"representative": "oldest", "fit": f"{root}/{fit}/fit.npz"},
        "cluster": {"num_clusters": 3, "fit": f"{root}/{centroids}"},
    }
    whole = recipe_of(tmp_path, "whole", **given)
    process = lvd("run", str(whole), "--root", str(tmp_path / "whole"), home=home)
    assert process.returncode == 0, process.stderr[-4000:]
    at_once = published(tmp_path / "whole")
    assert (images, ledger) == at_once[:2]
    assert (
        len(at_once[2]["directories"]["neighbours"]) == 1 and len(record["directories"]["neighbours"]) == 2 * NIGHTS - 1
    )
    assert record["ledger"]["failed"] == NIGHTS


def test_old_representatives_stay(tmp_path: Path) -> None:
    """A larger copy that comes later does not take the place of what was published."""
    lay_out(tmp_path / "queries", 0, lambda number: drawn(number + NIGHTS * OWN))
    recipe, root, home = recipe_of(tmp_path, "nightly"), tmp_path / "root", tmp_path / "prefect"
    kept = []
    for night in range(2):
        lay_out(tmp_path / f"crawl/night-{night}", night, drawn)
        process = lvd("run", str(recipe), "--root", str(root), home=home)
        assert process.returncode == 0, process.stderr[-4000:]
        record = published(root)[2]
        kept.append(record["directories"])
    assert kept[1]["descriptors"][: len(kept[0]["descriptors"])] == kept[0]["descriptors"]
    assert set(kept[0]["embed"]) <= set(kept[1]["embed"])
