"""A small run with whitening and score normalisation, and what find and study make of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from lvd.flows.adjusting import own_background
from lvd.flows.finding import find
from lvd.flows.recipe import load
from lvd.flows.run import NotComplete, Run
from lvd.flows.studying import study_copies
from lvd.infra.shards import StageDir, read_table
from lvd.infra.storage import Storage
from lvd.tests.drawing import CLASSES, draw
from lvd.tests.running import lvd

NUM_PICTURES = 16


def picture(number: int) -> Image.Image:
    return draw(list(CLASSES)[number % len(CLASSES)], np.random.default_rng([11, number]), (200, 150))


class Curated:
    """A finished run and the folders that it was made of."""

    def __init__(self, base: Path) -> None:
        self.base, self.root, self.recipe = base, str(base / "root"), str(base / "recipe.yaml")
        for name, numbers in (("pool", range(NUM_PICTURES)), ("test", range(90, 92))):
            (base / name).mkdir()
            for number in numbers:
                picture(number).save(base / name / f"{number}.png")
        picture(90).resize((160, 120)).save(base / "pool/tested.jpg", quality=80)
        picture(3).resize((150, 112)).save(base / "pool/small.jpg", quality=75)
        self.last = self.run()

    def run(self) -> dict:
        tree = {
            "name": "adjusted",
            "pool": [{"kind": "images", "path": str(self.base / "pool")}],
            "benchmarks": [{"name": "test", "kind": "images", "path": str(self.base / "test")}],
            "curated": [],
            "fingerprint": {"max_distance": 0},
            "copies": {
                "model": "builtin:dct",
                "whitening": {"sample_size": 40, "dim": 6},
                "score_normalisation": {"sample_size": 30, "neighbours": 4},
                "min_similarity": 0.5,
                "benchmark_min_similarity": 0.45,
            },
            "embed": {"model": "builtin:color_texture"},
            "cluster": {"num_clusters": 2},
            "compute": {"cpu_workers": 1},
            "publish": {"images": "survivors"},
        }
        Path(self.recipe).write_text(yaml.safe_dump(tree))
        process = lvd("run", self.recipe, "--root", self.root, home=self.base / "prefect")
        assert process.returncode == 0, process.stderr[-4000:]
        storage = Storage(self.root)
        return storage.read_json(storage.read_json("curated/latest.json")["run"])


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> Curated:
    return Curated(tmp_path_factory.mktemp("adjusting"))


def test_the_background_is_drawn_once(curated: Curated) -> None:
    directories = curated.last["directories"]
    assert (len(directories["background"]), len(directories["adjusted"])) == (1, 2)
    run = Run(load(curated.recipe, root=curated.root), looking=True)
    assert [own_background(run, []).directory] == directories["background"], "another pool changes nothing"
    for setting in ("whitening.dim=5", "whitening.sample_size=39", "score_normalisation.sample_size=29"):
        other = Run(load(curated.recipe, root=curated.root, settings=[f"copies.{setting}"]), looking=True)
        with pytest.raises(NotComplete):
            own_background(other, [])
    same = load(curated.recipe, root=curated.root, settings=["copies.score_normalisation.weight=2"])
    assert [own_background(Run(same, looking=True), []).directory] == directories["background"]


def test_find_gives_the_similarity_of_the_edge(curated: Curated, tmp_path: Path) -> None:
    rows = {
        Path(row["key"]).name: row
        for ref in StageDir(root=curated.root, stage=curated.last["curated"], fingerprint="ledger").shards()
        for row in read_table(ref).to_pylist()
    }
    assert (rows["small.jpg"]["reason"], rows["tested.jpg"]["reason"]) == ("copy", "benchmark_copy")
    small, tested, new = find(
        curated.root,
        [str(curated.base / "pool/small.jpg"), str(curated.base / "pool/tested.jpg"), str(curated.base / "pool/5.png")],
    )
    (copy,) = (c for c in small.copies if Path(c.key).name == "3.png")
    assert copy.similarity == pytest.approx(rows["small.jpg"]["score"], abs=1e-3)
    (copy,) = (c for c in tested.copies if c.role == "benchmark")
    assert copy.similarity == pytest.approx(rows["tested.jpg"]["score"], abs=1e-3)
    assert new.copies == () and new.verdict == "published"
    changed = tmp_path / "new.jpg"
    picture(7).resize((120, 90)).save(changed)
    (found,) = find(curated.root, [str(changed)])
    assert [Path(c.key).name for c in found.copies] == ["7.png"]


def test_the_study_takes_the_stored_background_else_the_sample(curated: Curated, tmp_path: Path) -> None:
    ours = study_copies(curated.root, sample=12, out=str(tmp_path / "root.html"))
    assert ours.background == f"{curated.last['directories']['background'][0]}, which the root keeps"
    assert ours.methods[0].name == "builtin:dct, whitened, scores normalised"
    assert ours.methods[0].shares["png"][0] > 0.9
    page = (tmp_path / "root.html").read_text()
    assert f"Descriptors are adjusted by {ours.background}." in page
    theirs = study_copies(
        str(curated.base / "pool"), recipe=curated.recipe, sample=12, out=str(tmp_path / "folder.html")
    )
    assert theirs.background.startswith("the 12 originals of this sample")
    assert json.loads((tmp_path / "folder.json").read_text())["background"] == theirs.background
    assert load(curated.recipe).copies.is_adjusted
