"""Pictures that are asked for after a small run: published ones, duplicates, copies, benchmark images, new ones."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from lvd.flows.finding import find
from lvd.flows.found import Finding
from lvd.flows.verdict import two_decimals
from lvd.infra.errors import InputError
from lvd.infra.shards import StageDir, read_table
from lvd.tasks import models
from lvd.tests.drawing import CLASSES, draw
from lvd.tests.running import lvd

POOL, NEW, TEST, QUERIES, UNLISTED = range(5)  # the first words of the seeds of the pictures


def picture(kind: int, number: int) -> Image.Image:
    return draw(list(CLASSES)[number], np.random.default_rng([kind, number]), (320, 240))


def altered(image: Image.Image, factor: float = 0.6) -> Image.Image:
    return image.resize((round(image.width * factor), round(image.height * factor)))


@dataclass
class Curated:
    """A finished run and the folders that it was made of."""

    root: str
    base: Path

    def ask(self, *images: Path | str, **options: int) -> list[Finding]:
        return find(self.root, [str(image) for image in images], **options)

    def verdict(self, image: Path) -> str:
        (found,) = self.ask(image)
        return found.verdict


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> Curated:
    """Ten pictures in the pool, one of them twice, one smaller once more, one that a rule drops, a benchmark copy."""
    base = tmp_path_factory.mktemp("finding")
    for name, kind, numbers in (
        ("pool", POOL, range(10)),
        ("test", TEST, range(1)),
        ("queries", QUERIES, range(10, 12)),
        ("unlisted", UNLISTED, range(1, 2)),
    ):
        (base / name).mkdir()
        for number in numbers:
            picture(kind, number).save(base / name / f"{number}.jpg", quality=92)
    shutil.copy(base / "pool/0.jpg", base / "pool/again.jpg")
    altered(picture(POOL, 1)).save(base / "pool/smaller.jpg", quality=50)
    picture(NEW, 11).resize((480, 60)).save(base / "pool/wide.jpg")
    altered(picture(TEST, 0)).save(base / "pool/tested.jpg", quality=70)
    curated = {"kind": "images", "retrieve": {"kind": "sample", "neighbors": 1}}
    tree = {
        "name": "finding",
        "pool": [{"kind": "images", "path": str(base / "pool")}],
        "benchmarks": [{"name": "my-test-set", "kind": "images", "path": str(base / "test")}],
        "curated": [
            {"name": "queries", "path": str(base / "queries"), **curated},
            {"name": "unlisted", "path": str(base / "unlisted"), "include": False, **curated},
        ],
        "crawl": {"rows_per_shard": 5},
        "copies": {"model": "builtin:dct"},
        "embed": {"model": "builtin:color_texture"},
        "cluster": {"num_clusters": 3},
        "compute": {"cpu_workers": 1},
        "publish": {"images": "survivors"},
    }
    (base / "recipe.yaml").write_text(yaml.safe_dump(tree))
    process = lvd("run", str(base / "recipe.yaml"), "--root", str(base / "root"), home=base / "prefect")
    assert process.returncode == 0, process.stderr[-4000:]
    return Curated(root=str(base / "root"), base=base)


def test_an_image_of_the_pool_is_found_with_every_row_of_the_ledger(curated: Curated) -> None:
    for name in ("0.jpg", "again.jpg"):
        (found,) = curated.ask(curated.base / "pool" / name)
        assert (found.verdict, found.published, found.copies) == ("published", True, ())
        assert {(Path(row["key"]).name, row["state"], row["reason"]) for row in found.candidates} == {
            ("0.jpg", "kept", "survivor"),
            ("again.jpg", "dropped", "exact_duplicate"),
        }
        assert all("0.jpg (kept at publish" in row["cause"] for row in found.candidates if row["because_of"])


def test_an_image_that_was_dropped_says_because_of_which(curated: Curated) -> None:
    (found,) = curated.ask(curated.base / "pool/smaller.jpg")
    assert found.verdict.startswith("in the pool, dropped at ")
    assert found.verdict.endswith("pool/1.jpg, which is published")
    assert found.published
    (found,) = curated.ask(curated.base / "pool/tested.jpg")
    assert found.verdict.startswith("in the pool, dropped at copies: benchmark_copy, because of ")
    assert found.verdict.endswith("test/0.jpg (benchmark my-test-set)")
    assert not found.published


def test_a_copy_is_found_with_what_became_of_the_image(curated: Curated, tmp_path: Path) -> None:
    altered(picture(POOL, 2), 0.7).save(tmp_path / "pool.jpg", quality=60)
    altered(picture(TEST, 0), 0.9).save(tmp_path / "test.webp", quality=60)
    altered(picture(QUERIES, 10), 0.8).save(tmp_path / "queries.png")
    in_pool, in_queries, in_test = curated.ask(tmp_path)
    assert (in_pool.candidates, in_pool.published) == ((), True)
    assert in_pool.verdict == (
        f"a copy of {in_pool.copies[0].key} ({two_decimals(in_pool.copies[0].similarity)}), which is published"
    )
    assert [Path(copy.key).name for copy in in_pool.copies] == ["2.jpg"]
    assert in_queries.verdict.startswith("a copy of curated queries: ")
    assert in_queries.verdict.endswith("), which is published")
    assert in_queries.published
    assert {(copy.role, Path(copy.key).name) for copy in in_test.copies} == {
        ("benchmark", "0.jpg"),
        ("pool", "tested.jpg"),
    }
    assert "a copy of benchmark my-test-set: " in in_test.verdict
    assert not in_test.published


def test_a_copy_of_what_has_no_descriptor_is_found_by_its_hash(curated: Curated, tmp_path: Path) -> None:
    """The same pixels in another file: of a pool this small the hash is too coarse for more."""
    (tmp_path / "wide.jpg").write_bytes((curated.base / "pool/wide.jpg").read_bytes() + b"\0")
    (found,) = curated.ask(tmp_path / "wide.jpg")
    (copy,) = found.copies
    assert (Path(copy.key).name, copy.by, copy.published) == ("wide.jpg", "hash", False)
    assert found.verdict == f"a copy of {copy.key} (1.00), which was dropped at screen: aspect_ratio"
    assert not found.published


def test_images_of_the_references_are_named(curated: Curated) -> None:
    verdict = curated.verdict(curated.base / "test/0.jpg")
    assert verdict.startswith("benchmark my-test-set: ")
    assert verdict.endswith("test/0.jpg, byte for byte")
    assert curated.verdict(curated.base / "queries/11.jpg") == "published"
    (found,) = curated.ask(curated.base / "unlisted/1.jpg")
    assert found.verdict.endswith("unlisted/1.jpg, byte for byte")
    assert (found.candidates, found.published) == ((), False)


def test_a_new_picture_is_not_in_the_pool(curated: Curated, tmp_path: Path) -> None:
    picture(NEW, 5).save(tmp_path / "new.png")
    (found,) = curated.ask(tmp_path / "new.png", neighbours=4)
    nearest = two_decimals(found.nearest.similarity)
    assert found.verdict == f"not in the pool: nearest {nearest} ({found.nearest.key}), threshold 0.52"
    assert (found.candidates, found.copies, found.published) == ((), (), False)
    assert found.nearest.similarity < 0.52
    similarities = [image.similarity for image in found.neighbours]
    assert len(similarities) == 4
    assert similarities == sorted(similarities, reverse=True)
    assert len({image.image_id for image in found.neighbours}) == 4


def test_neighbours_and_cluster_are_those_of_the_stored_vectors(curated: Curated) -> None:
    (found,) = curated.ask(curated.base / "pool/3.jpg", neighbours=50)
    names = {(image.role, Path(image.key).name, image.published) for image in found.neighbours}
    survivors = {("pool", f"{number}.jpg", True) for number in range(10) if number != 3}
    references = {("curated", "10.jpg", True), ("curated", "11.jpg", True), ("curated", "1.jpg", False)}
    assert names == survivors | references
    (cells,) = (Path(curated.root) / "cluster").iterdir()
    rows = [
        row
        for ref in StageDir(root=curated.root, stage="cluster", fingerprint=cells.name).shards()
        for row in read_table(ref).to_pylist()
    ]
    (cell,) = [row for row in rows if row["image_id"] == found.image_id]
    assert found.cluster.cluster_id == cell["cluster_id"]
    assert found.cluster.similarity == pytest.approx(cell["similarity"], abs=1e-3)


def test_what_is_no_picture_is_said_and_the_others_go_on(curated: Curated, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "empty").mkdir()
    found = curated.ask(tmp_path / "broken.jpg", tmp_path / "none.jpg", tmp_path / "empty", curated.base / "pool/0.jpg")
    assert [bool(each.error) for each in found] == [True, True, True, False]
    assert found[0].error.startswith("not_an_image: ")
    assert found[1].error == "cannot be read: No such file or directory"
    assert found[2].error == "a folder without image files"
    assert found[3].verdict == "published"
    assert [each.error for each in curated.ask(tmp_path / "none.jpg")] == [found[1].error]


def test_a_picture_without_any_content_is_no_copy(curated: Curated, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "white").save(tmp_path / "white.png")
    (found,) = curated.ask(tmp_path / "white.png")
    assert found.verdict.startswith("not in the pool: ")


def test_all_pictures_together_are_told_the_same_as_each_alone(curated: Curated) -> None:
    images = sorted((curated.base / "pool").iterdir())
    together = curated.ask(curated.base / "pool")
    assert together == [found for image in images for found in curated.ask(image)]
    assert json.loads(json.dumps([found.model_dump(mode="json") for found in together], allow_nan=False))


def test_it_needs_a_published_version_and_the_same_models(
    curated: Curated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="must hold a published version"):
        find(str(tmp_path), [str(curated.base / "pool/0.jpg")])
    monkeypatch.setattr(models, "weights_digest", lambda spec: "sha256:other")
    with pytest.raises(InputError, match=r"was sha256:other: put its weights back, or run the recipe again"):
        curated.ask(curated.base / "pool/0.jpg")


@pytest.mark.parametrize(
    ("similarity", "said"),
    [(0.93, "0.93"), (0.59999, "0.59"), (0.6, "0.60"), (1.0, "1.00"), (0.29, "0.29"), (-0.001, "-0.01")],
)
def test_similarities_are_rounded_down(similarity: float, said: str) -> None:
    assert two_decimals(float(np.float32(similarity))) == said
