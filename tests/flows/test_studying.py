"""The study of a folder, of a root and of labelled pairs: what it finds, what it writes, what it refuses."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from lvd.flows.recipe import parse
from lvd.flows.studying import place_of as place_named
from lvd.flows.studying import read_pairs, sampled, study_copies
from lvd.infra.committing import commit
from lvd.infra.errors import InputError
from lvd.infra.shards import StageDir
from lvd.infra.storage import Storage
from lvd.infra.writing import write_shard
from lvd.tasks import schemas
from lvd.tasks.transforms import TRANSFORMS
from lvd.tests.drawing import CLASSES, draw

NUM_PICTURES = 8


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of different pictures, one file that is none, and one that is there twice."""
    folder = tmp_path_factory.mktemp("drawn")
    for number in range(NUM_PICTURES):
        picture = draw(list(CLASSES)[number], np.random.default_rng(number), (120, 90))
        picture.save(folder / f"{number}.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("not an image")
    shutil.copy(folder / "0.png", folder / "again.png")
    return folder


def test_the_study_of_a_folder(drawn: Path, tmp_path: Path) -> None:
    summary = study_copies(str(drawn), out=str(tmp_path / "sub" / "study.html"))
    assert (summary.images, summary.undecodable, summary.set_aside) == (NUM_PICTURES, 1, 0)
    assert summary.pool_images == NUM_PICTURES + 2
    assert summary.question.pool_images == summary.pool_images
    model, hashed = summary.methods
    assert (model.name, model.threshold) == ("builtin:dct", 0.52)
    assert set(model.shares) == {*(t.name for t in TRANSFORMS), "mild", "medium", "hard"}
    assert model.shares["png"] == (1.0, 1.0) and model.shares["mild"][0] > 0.9 > model.shares["hard"][0]
    assert hashed.shares["png"][0] == 1.0
    assert model.recommended.recall == model.recall[1]
    assert json.loads((tmp_path / "sub" / "study.json").read_text()) == summary.model_dump(mode="json")
    page = (tmp_path / "sub" / "study.html").read_text()
    assert page.count("data:image/webp;base64,") >= 16
    assert not re.search(r'(src|href)="(?!data:)', page) and "<script" not in page
    assert all(f">{t.name}</th>" in page for t in TRANSFORMS)
    assert "1 images cannot be decoded" in page


def test_the_same_seed_gives_the_same_figures_and_another_one_does_not(drawn: Path, tmp_path: Path) -> None:
    pages = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        study_copies(str(drawn), out=str(tmp_path / name / "s.html"), sample=2, seed=seed)
        pages.append(re.sub(r"study/\w", "", (tmp_path / name / "s.html").read_text()).replace(str(tmp_path), ""))
    assert pages[0].replace("/a/", "/b/") == pages[1] != pages[2].replace("/c/", "/b/")


def test_copies_within_the_sample_are_set_aside_and_told(drawn: Path, tmp_path: Path) -> None:
    folder = tmp_path / "with-copies"
    shutil.copytree(drawn, folder)
    for number in (1, 2):
        ImageOps.grayscale(Image.open(folder / f"{number}.png")).save(folder / f"{number}-grey.jpg", quality=60)
    summary = study_copies(str(folder), out=str(tmp_path / "s.html"))
    assert (summary.images, summary.set_aside) == (NUM_PICTURES, 2)
    assert summary.with_them.threshold > summary.methods[0].recommended.threshold
    assert "1-grey.jpg" in (tmp_path / "s.html").read_text()


def root_of(drawn: Path, root: Path, dropped: tuple[str, ...] = ()) -> dict[str, str]:
    """A root with a finished run as `curate` leaves it, in two shards. Returns name → image id."""
    images = StageDir(root=str(root), stage="download", fingerprint="p")
    names = sorted(path.name for path in drawn.glob("*.png"))
    ids = {name: f"{number:032x}" for number, name in enumerate(names)}
    parts = names[:4], names[4:]
    for ref, part in zip(images.planned(2), parts, strict=True):
        with write_shard(ref, schemas.IMAGES, {}) as shard:
            for name in part:
                row = dict.fromkeys(schemas.IMAGES.names)
                data = (drawn / name).read_bytes()
                facts = {"width": 120, "height": 90, "frames": 1, "format": "PNG", "num_bytes": len(data)}
                image = {"bytes": data, "path": name}
                shard.keep({**row, **facts, "image_id": ids[name], "key": f"http://a.example/{name}", "image": image})
    commit(images, 2, config={}, inputs={})
    fates = StageDir(root=str(root), stage="copies", fingerprint="a")
    for ref, part in zip(fates.planned(2), parts, strict=True):
        with write_shard(ref, schemas.FATES, {}) as shard:
            for name in part:
                shard.keep({"image_id": ids[name], "state": "dropped" if name in dropped else "kept"})
    commit(fates, 2, config={}, inputs={})
    recipe = parse(
        {
            "name": "t",
            "root": str(root),
            "copies": {"model": "builtin:dct", "min_similarity": 0.6},
            "compute": {"gpus": 0},
        }
    )
    storage = Storage(str(root))
    collections = [{"role": "pool", "name": "pool", "images": [images.directory]}]
    said = {"collections": collections, "directories": {"copies": [fates.directory]}}
    storage.write_json("runs/r.json", {"recipe": recipe.model_dump(mode="json"), **said})
    storage.write_json("curated/latest.json", {"version": "v1", "directory": "curated/v1", "run": "runs/r.json"})
    return ids


def test_the_study_of_a_root_takes_its_pool_and_its_recipe(drawn: Path, tmp_path: Path) -> None:
    root_of(drawn, tmp_path / "root")
    summary = study_copies(str(tmp_path / "root"), out=str(tmp_path / "s.html"), sample=4)
    assert summary.methods[0].threshold == 0.6
    assert (
        summary.pool_images == NUM_PICTURES + 1 and 3 <= summary.images <= 4
    )  # a file that is there twice counts once
    (tmp_path / "own.yaml").write_text(
        "name: own\ncopies: {model: 'builtin:dct', min_similarity: 0.7}\ncompute: {gpus: 0}\n"
    )
    own = study_copies(
        str(tmp_path / "root"), recipe=str(tmp_path / "own.yaml"), out=str(tmp_path / "s.html"), sample=2
    )
    assert own.methods[0].threshold == 0.7


def test_a_sample_of_a_root_is_drawn_from_all_shards(drawn: Path, tmp_path: Path) -> None:
    root_of(drawn, tmp_path / "root")
    place = place_named(str(tmp_path / "root"), None)
    whole = sampled(place, 99, 0)[0]
    assert [p.key for p in whole] == [f"http://a.example/{n}.png" for n in range(NUM_PICTURES)]
    assert whole[3].data == (drawn / "3.png").read_bytes()
    some = [{p.key for p in sampled(place, 3, seed)[0]} for seed in range(8)]
    assert len(set().union(*some)) > 6


def test_a_sample_of_a_root_holds_what_deduplication_left(drawn: Path, tmp_path: Path) -> None:
    root_of(drawn, tmp_path / "root", dropped=("1.png", "5.png"))
    found, total = sampled(place_named(str(tmp_path / "root"), None), 99, 0)
    assert {p.key for p in found} == {f"http://a.example/{n}.png" for n in range(NUM_PICTURES) if n not in (1, 5)}
    assert total == NUM_PICTURES + 1


def write_pairs(path: Path, rows: list[tuple]) -> Path:
    columns = ("left", "right", "is_copy", "kind")
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([dict(zip(columns, row, strict=True)) for row in rows]), path)
    else:
        path.write_text("\n".join(",".join(map(str, row)) for row in [columns, *rows]) + "\n")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_labelled_pairs_of_a_folder(suffix: str, drawn: Path, tmp_path: Path) -> None:
    shutil.copytree(drawn, tmp_path / "folder")
    grey = ImageOps.grayscale(Image.open(drawn / "1.png"))
    grey.save(tmp_path / "folder" / "grey.jpg")
    ImageOps.mirror(Image.open(drawn / "2.png")).save(tmp_path / "folder" / "mirror.png")
    rows = [("1.png", "grey.jpg", 1, "grey"), ("2.png", "mirror.png", 1, "mirror"), ("broken.jpg", "1.png", 0, "")]
    rows += [(f"{n}.png", f"{n + 1}.png", 0, "") for n in range(6)]
    pairs = write_pairs(tmp_path / f"pairs{suffix}", rows)
    summary = study_copies(str(tmp_path / "folder"), pairs=str(pairs), out=str(tmp_path / "s.html"))
    model = summary.methods[0]
    assert model.shares["grey"][0] == 1.0 and model.shares["mirror"][0] == 0.0
    assert model.recall[0] == 0.5 and model.precision_now == 1.0
    assert summary.undecodable == 1 and model.trials == {"pairs of copies": 2, "other pairs": 6}
    assert "as they were given" in (tmp_path / "s.html").read_text()


def test_labelled_pairs_of_a_root_by_image_id(drawn: Path, tmp_path: Path) -> None:
    ids = root_of(drawn, tmp_path / "root")
    pairs = write_pairs(
        tmp_path / "p.csv",
        [(ids["0.png"], ids["again.png"], 1, "same"), (ids["1.png"], "http://a.example/2.png", 0, "")],
    )
    summary = study_copies(str(tmp_path / "root"), pairs=str(pairs), out=str(tmp_path / "s.html"))
    assert summary.methods[0].shares == {"same": (1.0, 1.0)}


BAD_PAIRS = {
    "no column": ("left,right\na,b\n", "had no is_copy"),
    "no rows": ("", "had no is_copy, left, right"),
    "label": ("left,right,is_copy\na,b,maybe\n", "pair 1: is_copy must be 0 or 1, was 'maybe'"),
    "no such image": ("left,right,is_copy\n0.png,nowhere.png,1\n", "found no 'nowhere.png'"),
    "one label": ("left,right,is_copy\n0.png,1.png,1\n", "both labels"),
}


@pytest.mark.parametrize("case", BAD_PAIRS)
def test_pairs_that_cannot_be_used(case: str, drawn: Path, tmp_path: Path) -> None:
    text, message = BAD_PAIRS[case]
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        study_copies(str(drawn), pairs=str(tmp_path / "p.csv"), out=str(tmp_path / "s.html"))
    assert not (tmp_path / "s.html").exists()


def test_pairs_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pairs must be a CSV or Parquet file"):
        read_pairs(str(tmp_path / "none.csv"))
    (tmp_path / "p.parquet").write_text("no parquet")
    with pytest.raises(InputError, match="pairs must be a CSV or Parquet file"):
        read_pairs(str(tmp_path / "p.parquet"))


def test_places_that_cannot_be_studied(drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="where must be a root with a finished run or a folder"):
        study_copies(str(tmp_path / "nothing"), out=str(tmp_path / "s.html"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="at least 2 different images"):
        study_copies(str(tmp_path / "empty"), out=str(tmp_path / "s.html"))
    with pytest.raises(InputError, match="sample must be at least 2"):
        study_copies(str(drawn), sample=1)
    with pytest.raises(InputError, match="out must be the name of an HTML file"):
        study_copies(str(drawn), out=str(tmp_path / "page"))
