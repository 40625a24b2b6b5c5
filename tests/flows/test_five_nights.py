"""Five nights, each of them dying and started again: in the end the same bytes as one run over everything."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lvd.flows import generations
from lvd.flows.recipe import Recipe, parse
from lvd.flows.run import Snapshot
from lvd.infra.shards import StageDir
from lvd.infra.storage import Storage
from lvd.tests.copying import jpeg
from lvd.tests.drawing import CLASSES, draw
from lvd.tests.plain import Died, published_plainly, without_prefect
from lvd.tests.web import MiniatureWeb

NIGHTS, OWN = 5, 6
SMALL = (160, 120)
PER_IMAGE = ("crawl", "download", "screen", "fingerprint", "descriptors", "embed")
# What is being written when each night dies, before it is there, one after the other.
DEATHS = (
    ("crawl/", "hash-fit/", "centroids/"),
    ("download/", "descriptors/"),
    ("neighbours/", "curated/v3/version.json"),
    ("taken/", "generations/pool.json"),
    ("published/", "runs/", "curated/latest.json"),
)


@pytest.fixture(autouse=True)
def plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    without_prefect(monkeypatch)


def drawn(number: int) -> Image.Image:
    return draw(list(CLASSES)[number % len(CLASSES)], np.random.default_rng([3, number]), SMALL)


def photograph(folder: Path, number: int) -> Image.Image:
    image = Image.open(sorted(folder.glob("**/*.jpg"))[number]).convert("RGB")
    image.thumbnail((200, 200))
    return image


Picture = Callable[[int], Image.Image]


def lay_out(folder: Path, night: int, picture: Picture) -> None:
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


class Crawl:
    """The nights of a crawl, and a collection of queries. web: the pool is lists of what a server has, else folders."""

    def __init__(self, base: Path, picture: Picture, web: MiniatureWeb | None = None) -> None:
        self._base, self._picture, self._web = base, picture, web
        lay_out(base / "queries", 0, lambda number: picture(number + NIGHTS * OWN))

    def bring(self, night: int) -> None:
        if self._web is None:
            lay_out(Path(self.path(night)), night, self._picture)
            return
        lay_out(self._base / f"web/night-{night}", night, self._picture)
        names = sorted(path.name for path in (self._base / f"web/night-{night}").iterdir())
        urls = [f"{self._web.url}/night-{night}/{name}" for name in (*names, "gone.jpg")]
        (self._base / "crawl").mkdir(exist_ok=True)
        Path(self.path(night)).write_text("\n".join(urls))

    def path(self, night: int) -> str:
        return str(self._base / f"crawl/night-{night}") + (".txt" if self._web else "")

    def recipe(self, root: str, **sections: Any) -> Recipe:
        pool = {"kind": "images", "path": str(self._base / "crawl/night-*")}
        if self._web:
            pool = {"kind": "urls", "path": str(self._base / "crawl/night-*.txt")}
        queries = {"name": "queries", "kind": "images", "path": str(self._base / "queries"), "include": False}
        tree = {
            "name": "nights",
            "root": str(self._base / root),
            "pool": [pool],
            "curated": [{**queries, "retrieve": {"kind": "sample", "neighbors": 4}}],
            "download": {"timeout_s": 3, "retries": 1, "backoff_s": 0.01, "allow_loopback": True},
            "fingerprint": {"representative": "oldest"},
            "copies": {"model": "builtin:dct", "representative": "oldest", "search": {"engine": "exact"}},
            "embed": {"model": "builtin:color_texture"},
            "cluster": {"num_clusters": 3, "refit": "never"},
            "publish": {"rows_per_shard": 4},
            "compute": {"gpus": 0},
        }
        return parse({**tree, **sections})


@pytest.fixture(params=["drawn", "photographs", "web"])
def crawl(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "web":
        with MiniatureWeb(tmp_path) as web:
            yield Crawl(tmp_path, drawn, web)
        return
    picture: Picture = drawn
    if request.param == "photographs":
        folder = request.getfixturevalue("shared") / "data/photos"

        def picture(number: int) -> Image.Image:
            return photograph(folder, number)

    yield Crawl(tmp_path, picture)


def digests(root: str, version: str) -> list[dict[str, str]]:
    """Of the images and of the ledger of a version, shard by shard."""
    found = []
    for stage, name in (("curated", version), (f"curated/{version}", "ledger")):
        refs = StageDir(root=root, stage=stage, fingerprint=name).shards()
        files = {ref.name().removeprefix(f"curated/{version}/"): Storage(root).read_bytes(ref.name()) for ref in refs}
        found.append({file: hashlib.sha256(data).hexdigest() for file, data in files.items()})
    return found


def record_of(snapshot: Snapshot) -> dict[str, Any]:
    storage = Storage(snapshot.root)
    return storage.read_json(storage.read_json("curated/latest.json")["run"])


def test_five_nights_that_die_end_as_one_run(crawl: Crawl) -> None:
    recipe, before = crawl.recipe("nightly"), 0
    for night, deaths in enumerate(DEATHS):
        crawl.bring(night)
        for part in deaths:
            with pytest.raises(Died, match=part):
                published_plainly(recipe, dying_at=part)
            if part == deaths[0]:
                assert [one.files for one in generations.seen(recipe).begun] == [(crawl.path(night),)]
        last = published_plainly(recipe)
        assert [len(one) for one in generations.seen(recipe).nights] == [1] * (night + 1)
        assert last.version == f"v{night + 1}" and last.candidates > before
        before = last.candidates
        record = record_of(last)
        assert all(len(record["directories"][stage]) > night for stage in PER_IMAGE)
    again = published_plainly(recipe)
    assert again.version == last.version and not sum(again.computed.values())
    assert len(record["directories"]["neighbours"]) == 2 * NIGHTS - 1
    assert len(record["directories"]["centroids"]) == len(record["directories"]["hash-fit"]) == 1
    (centroids,), (fit,) = record["directories"]["centroids"], record["directories"]["hash-fit"]
    given = {
        "fingerprint": {"representative": "oldest", "fit": f"{recipe.root}/{fit}/fit.npz"},
        "cluster": {"num_clusters": 3, "fit": f"{recipe.root}/{centroids}"},
    }
    whole = published_plainly(crawl.recipe("whole", **given))
    assert len(record_of(whole)["directories"]["neighbours"]) == 1
    images, ledger = digests(recipe.root, last.version)
    assert [images, ledger] == digests(whole.root, whole.version)
    assert len(images) > 1 and len(ledger) == NIGHTS
    assert last.ledger == whole.ledger and last.ledger["kept"] and last.ledger["dropped"]
    assert last.ledger["failed"] >= NIGHTS


def test_old_representatives_stay(tmp_path: Path) -> None:
    """A larger copy that comes later does not take the place of what was published; unless the recipe wants it to."""
    crawl, kept = Crawl(tmp_path, drawn), {}
    for night in range(2):
        crawl.bring(night)
        for chosen in ("oldest", "largest_area"):
            sections = {"fingerprint": {"representative": chosen}}
            sections["copies"] = {"model": "builtin:dct", "representative": chosen, "search": {"engine": "exact"}}
            record = record_of(published_plainly(crawl.recipe(chosen, **sections)))
            kept.setdefault(chosen, []).append(record["directories"])
    for chosen, stays in (("oldest", True), ("largest_area", False)):
        first, second = (set(one["embed"]) for one in kept[chosen])
        assert (first <= second) == stays
