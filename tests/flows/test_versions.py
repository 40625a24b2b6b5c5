"""Versions of one root, by whole runs: shards that stay are shared, what changed is told, what is old goes."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from datasets import load_from_disk

from lvd.flows.difference import difference
from lvd.flows.erasing import erase
from lvd.flows.inquiry import directories, last_run
from lvd.flows.leftovers import leftovers, remove_leftovers
from lvd.flows.versions import identities, published_versions, version_of
from lvd.infra.shards import read_column
from lvd.infra.storage import Storage
from lvd.tasks.takedowns import Takedowns
from lvd.tests.drawing import CLASSES, draw
from lvd.tests.flows.shelf import Shelf, image_id, published
from lvd.tests.running import data_files, lvd

EACH = 24  # images of a night


def draw_night(folder: Path, night: int) -> None:
    folder.mkdir(parents=True)
    for number in range(EACH):
        visual_class = list(CLASSES)[number % len(CLASSES)]
        image = draw(visual_class, np.random.default_rng([night, number]), (96, 80))
        image.save(folder / f"{number:02d}.png")


class Nights:
    """A root after two runs: one night; then two, with a benchmark that has one of the first night's images."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root, self.home = folder, folder / "root", folder / "prefect"
        draw_night(folder / "crawl/night-1", 1)
        self.tree = {
            "name": "nights",
            "pool": [{"kind": "images", "path": str(folder / "crawl/night-*")}],
            "copies": {"model": "builtin:dct"},
            "embed": {"model": "builtin:color_texture"},
            "cluster": {"num_clusters": 1},
            "publish": {"images": "survivors", "rows_per_shard": 6},
        }
        self.run()
        self.first = shards(self.root)
        draw_night(folder / "crawl/night-2", 2)
        (folder / "test").mkdir()
        (folder / "test/20.png").write_bytes((folder / "crawl/night-1/20.png").read_bytes())
        self.tree["benchmarks"] = [{"name": "test", "kind": "images", "path": str(folder / "test")}]
        self.run()

    def run(self) -> str:
        (self.folder / "recipe.yaml").write_text(yaml.safe_dump(self.tree))
        process = lvd("run", str(self.folder / "recipe.yaml"), "--root", str(self.root), home=self.home)
        assert process.returncode == 0, process.stderr[-4000:]
        return process.stdout


def shards(root: Path) -> dict[str, tuple[int, int]]:
    """Every shard of images that is published: its name → its inode and when it was written."""
    found = {path: path.stat() for path in (root / "published").glob("*/data-*.arrow")}
    return {str(path.relative_to(root)): (about.st_ino, about.st_mtime_ns) for path, about in found.items()}


def test_runs_at_once_get_versions_of_their_own(root: str) -> None:
    """Only one should be: a lease that was lost must not make two things one version."""
    run, begin = SimpleNamespace(storage=Storage(root), looking=False), threading.Barrier(6)

    def claim(identity: str) -> str:
        begin.wait()
        return version_of(run, identity)

    with ThreadPoolExecutor(6) as publishers:
        found = dict(zip("abcdef", publishers.map(claim, "abcdef"), strict=True))
    assert sorted(found.values()) == [f"v{number}" for number in range(1, 7)]
    assert {f"v{number}": identity for number, identity in identities(run.storage).items()} == {
        version: identity for identity, version in found.items()
    }
    assert {identity: version_of(run, identity) for identity in "abcdef"} == found


@pytest.mark.parametrize("step", [0, 3, 6])
def test_what_is_erased_leaves_every_version_that_shares_its_shard(
    root: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted anywhere, and done again: each version says of itself what its shards hold."""
    shelf, gone = Shelf(root), image_id("x.org/gone")
    shared = shelf.shard("shared", published("x.org/gone"), published("x.org/stays"))
    alone = shelf.shard("alone", published("x.org/other"))
    for number, shards_ in ((1, [shared]), (2, [alone, shared]), (3, [alone])):
        shelf.version(number, shards_)
    untouched = {name: shelf.storage.read_bytes(name) for name, _ in shelf.storage.files("curated/v3")}
    plain, left = Storage.write_bytes, [step]

    def dying(storage: Storage, name: str, data: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        plain(storage, name, data)

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(Storage, "write_bytes", dying)
        erase(shelf.storage, Takedowns([]), {gone}, {})
    erase(shelf.storage, Takedowns([]), {gone}, {})
    versions = published_versions(root)
    assert [version.images for version in versions] == [1, 2, 1]
    for version in versions:
        refs, account = version.dataset(root).shards(), version.dataset(root).account()
        ids = read_column(refs, "image_id").to_pylist()
        assert gone not in ids and len(ids) == version.images == account["rows"] == sum(account["shard_rows"])
        assert all(shelf.storage.read_json(ref.name("account", "json"))["rows"] == ref.rows for ref in refs)
    assert versions[0].shards[0] == versions[1].shards[1] == shared.name()
    assert {name: shelf.storage.read_bytes(name) for name in untouched} == untouched
    found = difference(root, "v1", "v2")
    assert (found.kept, sum(group.images for group in found.added), found.removed) == (1, 1, ())
    assert leftovers(root).directories == ()


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    return Nights(tmp_path_factory.mktemp("nights"))


def test_shards_that_did_not_change_are_shared_and_not_written_again(nights: Nights) -> None:
    first, second = published_versions(str(nights.root))
    assert [version.images for version in (first, second)] == [EACH, 2 * EACH - 1]
    assert len(first.shards) >= 5 and len({*first.shards} - {*second.shards}) in (1, 2)
    there = shards(nights.root)
    assert there.keys() == {*first.shards, *second.shards}
    assert {name: there[name] for name in nights.first} == nights.first
    computed = last_run(Storage(str(nights.root)))["computed"]
    assert computed["curated"] == len({*second.shards} - {*first.shards})
    assert not list((nights.root / "curated").glob("v*/data-*.arrow"))


def test_every_version_opens_and_has_each_image_once(nights: Nights) -> None:
    for version in published_versions(str(nights.root)):
        dataset = load_from_disk(str(nights.root / "curated" / version.name))
        assert len(set(dataset["image_id"])) == len(dataset) == version.images
        assert dataset[0]["image"].size == (96, 80)


def test_what_two_versions_differ_in_is_told(nights: Nights) -> None:
    found = difference(str(nights.root), "v1", "v2", all_images=True)
    assert (found.kept, found.changed) == (EACH - 1, 0)
    assert {image.key.split("/")[0] for image in found.added_images} == {"night-2"}
    assert [(group.why, group.images) for group in found.added] == [("no candidate", EACH)]
    (gone,) = found.removed_images
    assert gone.key.endswith("20.png") and gone.fate.words == "dropped at copies: benchmark_copy"


def test_status_tells_the_shards_together(nights: Nights) -> None:
    first, second = published_versions(str(nights.root))
    lines = [found for found in directories(str(nights.root)) if found.stage == "published"]
    used, others = len(second.shards), len({*first.shards} - {*second.shards})
    told = {(line.name, line.state, line.used): line.rows for line in lines}
    assert told.keys() == {(f"{used} shards", "complete", True), (f"{others} shards", "complete", False)}
    assert told[f"{used} shards", "complete", True] == 2 * EACH - 1


def test_a_run_computes_nothing_once_what_it_does_not_need_is_gone(nights: Nights) -> None:
    """The last of this file: the first version is gone after it."""
    root = str(nights.root)
    nothing = leftovers(root)
    assert (nothing.directories, nothing.unknown) == ((), ()), "gc knows every stage"
    before = data_files(nights.root)
    found = remove_leftovers(root, 1)
    assert {one.stage for one in found.directories} >= {"curated", "published", "copies", "selection"}
    after = data_files(nights.root)
    assert after.items() < before.items()
    assert "nothing was computed" in nights.run()
    assert data_files(nights.root) == after
    assert [version.name for version in published_versions(root)] == ["v2"]
    assert len(load_from_disk(f"{root}/curated/v2")) == 2 * EACH - 1
    assert {line.state for line in directories(root)} == {"complete"} and all(d.used for d in directories(root))
