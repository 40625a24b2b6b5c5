"""What a plan has to be told, measured on drawn images with models that need no weights."""

import tarfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import yaml

from lvd.flows import cli, profile
from lvd.flows.plan import loads
from lvd.flows.profile import ModelPace, Profile, sampled
from lvd.flows.recipe import Expectations, Recipe, load, parse
from lvd.infra.errors import InputError
from lvd.tests.drawing import CLASSES, draw


def drawn(folder: Path, number: int) -> Path:
    """A folder of small pictures."""
    folder.mkdir(parents=True)
    classes = list(CLASSES)
    for index in range(number):
        picture = draw(classes[index % len(classes)], np.random.default_rng(index), (96, 80))
        picture.save(folder / f"{index:03d}.jpg", quality=90)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn(tmp_path_factory.mktemp("profile") / "photos", 30)


def recipe_of(root: Path, pool: list[dict], **changes) -> Recipe:
    tree = {"name": "trial", "root": str(root), "pool": pool, "compute": {"gpus": 0, "cpu_workers": 3}}
    return parse({**tree, "copies": {"model": "builtin:dct"}, "embed": {"model": "builtin:color_texture"}, **changes})


@pytest.fixture(scope="module")
def measured(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Profile:
    """Thirty images of a folder of which one is broken, measured once."""
    folder = tmp_path_factory.mktemp("measured")
    (folder / "photos").mkdir()
    for path in photos.iterdir():
        (folder / "photos" / path.name).symlink_to(path)
    (folder / "photos" / "broken.jpg").write_bytes(b"no picture")
    recipe = recipe_of(folder / "root", [{"kind": "images", "path": str(folder / "photos")}])
    found = profile.profile(recipe, 1000)
    assert sorted(path.name for path in folder.iterdir()) == ["photos"]  # the root is not there
    return found


def test_what_is_measured_is_positive_and_says_of_what(measured: Profile, photos: Path) -> None:
    sizes = [path.stat().st_size for path in photos.iterdir()]
    assert measured.images == 30
    assert measured.mean_image_bytes == round(np.mean(sizes))
    assert measured.sources == ("recipe.pool[0]",)
    assert measured.notes[0] == "1 of 31 images could not be read"
    assert "CPU-hours" in measured.notes[1]
    assert (measured.has_gpu, measured.cores) == (False, 3)
    assert measured.screened_per_core_second > 1
    for model, name, values in ((measured.descriptors, "dct", 173), (measured.embeddings, "color_texture", 345)):
        assert (model.model, model.values) == (f"builtin:{name}", values)
        assert (model.images, model.batch_size, model.precision) == (30 - profile.WARM_UP_ROWS, 32, "float32")
        assert 1 < model.per_second < 100_000
        assert 0 < model.busy <= 1
        assert 0 <= model.waiting <= 1


def test_the_plan_uses_what_was_measured(measured: Profile) -> None:
    recipe = recipe_of(Path("root"), [], plan={"pool_images": 36_000_000, "kept_after_copies": 0.5})
    plan = measured.expectations(recipe.plan)
    assert (plan.mean_image_bytes, plan.descriptor_values, plan.vector_values) == (measured.mean_image_bytes, 173, 345)
    assert (plan.gpus, plan.cores, plan.kept_after_copies) == (0, 3, 0.5)
    by_stage = {row.stage: row for row in loads(recipe.model_copy(update={"plan": plan}))}
    assert all(row.gpu_hours is None for row in by_stage.values())
    assert by_stage["screen"].cpu_hours == pytest.approx(10_000 / measured.screened_per_core_second, rel=1e-3)
    assert by_stage["copies"].cpu_hours == pytest.approx(10_000 / measured.descriptors.per_second, rel=1e-3)
    assert by_stage["embed"].cpu_hours == pytest.approx(5_000 / measured.embeddings.per_second, rel=1e-3)
    assert by_stage["embed"].hours == pytest.approx(by_stage["embed"].cpu_hours / 3)
    assert by_stage["download"].written_bytes == 36_000_000 * measured.mean_image_bytes
    assert by_stage["embed"].written_bytes == 18_000_000 * 345 * 2
    assert by_stage["neighbours"].cpu_hours > 0


def test_what_is_kept_can_be_pasted_below_plan(measured: Profile) -> None:
    before = Expectations(pool_images=5, cores=64)
    kept = measured.as_yaml(before)
    pasted = parse({"name": "x", **yaml.safe_load(f"plan:\n  pool_images: 5\n{kept}")}).plan
    assert pasted == measured.expectations(before)
    assert pasted.cores == 64  # the recipe says how many there are


@pytest.mark.parametrize(
    ("on_gpu", "said", "expected"),
    [
        # a model that runs on no GPU, on a machine that has one
        ((False, True), {"gpus": 16}, {"gpus": 16, "cores": 3 * 16, "embeddings_per_gpu_second": 50.0}),
        ((False, True), {}, {"gpus": 1, "cores": 3, "descriptors_per_core_second": 50.0}),
        # what an earlier profile said of a machine without GPUs is of no use here
        (
            (True, True),
            {"gpus": 0, "descriptors_per_core_second": 1.0, "embeddings_per_core_second": 2.0, "cores": 7},
            {"gpus": 1, "cores": 7, "descriptors_per_core_second": None, "embeddings_per_core_second": None},
        ),
    ],
)
def test_expectations_of_a_machine_with_a_gpu(
    on_gpu: tuple[bool, bool], said: dict, expected: dict, measured: Profile
) -> None:
    models = [
        ModelPace(**{**measured.descriptors.model_dump(), "is_on_gpu": is_on_gpu, "per_second": 50.0})
        for is_on_gpu in on_gpu
    ]
    found = measured.model_copy(update={"has_gpu": True, "descriptors": models[0], "embeddings": models[1]})
    plan = found.expectations(Expectations(**said))
    assert {name: getattr(plan, name) for name in expected} == expected


def test_on_a_gpu_the_images_are_taken_until_there_are_batches_enough(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of a GPU on a processor: the size of a batch found by trial, the pace by the clock on the wall."""
    recipe = recipe_of(tmp_path, [{"kind": "images", "path": str(photos)}])
    config = recipe.embed.model_copy(update={"batch_size": "auto", "precision": "float32"})
    monkeypatch.setattr(profile, "settled", lambda run, stage, fixed, weights: (fixed, "cuda"))
    monkeypatch.setattr(profile.pool, "own_device", lambda kind: nullcontext("cuda:0"))
    monkeypatch.setattr(profile.batch_size, "trials", lambda model, inference: [(8, 1.0), (16, 9.0), (32, 9.1)])
    shards, num_bytes = profile.as_images(sampled(recipe, 30)[0], recipe, str(tmp_path / "folder"))
    assert [ref.rows for ref in shards] == [profile.WARM_UP_ROWS, 30 - profile.WARM_UP_ROWS]
    assert num_bytes == sum(path.stat().st_size for path in photos.iterdir())
    found = profile.model_pace(recipe, "embed", config, shards, str(tmp_path / "folder"))
    assert (found.is_on_gpu, found.batch_size) == (True, 16)
    assert found.images == 22 * 6  # the least that makes 8 batches of 16
    assert 1 < found.per_second < 100_000


def names(rows: list[dict]) -> list[str]:
    return sorted(row["key"].rpartition("/")[2] for row in rows)


def test_images_are_drawn_of_the_pool_first_and_of_all_its_sources(photos: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for path in sorted(photos.iterdir())[:4]:
            archive.add(path, arcname=f"tar-{path.name}")
    pool = [{"kind": "webdataset", "path": str(tmp_path / "a.tar")}, {"kind": "images", "path": str(photos)}]
    curated = [{"name": "c", "kind": "images", "path": str(photos)}]
    recipe = recipe_of(tmp_path / "root", pool, curated=curated)
    found, sources, notes = sampled(recipe, 12)  # four of the tar, then eight of the folder
    assert len([name for name in names(found) if name.startswith("tar-")]) == 4
    assert (len(found), sources, notes) == (12, ["recipe.pool[0]", "recipe.pool[1]"], [])
    assert names(found) == names(sampled(recipe, 12)[0])  # by the seed
    assert names(found) != names(sampled(recipe.model_copy(update={"seed": 1}), 12)[0])
    found, sources, _ = sampled(recipe, 50)  # the pool has 34
    assert (len(found), sources[-1]) == (50, "recipe.curated[0]")


@pytest.fixture
def urls(tmp_path: Path) -> list[dict]:
    """A pool whose one host does not exist."""
    (tmp_path / "urls.txt").write_text("http://nowhere.invalid/1.jpg\nhttp://nowhere.invalid/2.jpg\n")
    return [{"kind": "urls", "path": str(tmp_path / "urls.txt")}]


def test_of_urls_nothing_is_downloaded(urls: list[dict], photos: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path / "root", urls, curated=[{"name": "c", "kind": "images", "path": str(photos)}])
    found, sources, (note,) = sampled(recipe, 5)
    assert (len(found), sources) == (5, ["recipe.curated[0]"])
    assert all(row["url"] is None for row in found)
    assert note.startswith("recipe.pool[0]: candidates on the web, of which nothing was downloaded; images of")


REFUSED: dict[str, tuple[Callable[[Path], dict], str]] = {
    "urls only": (lambda folder: {}, r"recipe must have a source of kind images, .* had none .*: add one to pool"),
    "not there": (
        lambda folder: {"curated": [{"name": "c", "kind": "images", "path": str(folder / "no")}]},
        r"recipe.curated\[0\].path must exist",
    ),
    "no pictures": (
        lambda folder: {"curated": [{"name": "c", "kind": "images", "path": str(folder / "text")}]},
        r"must hold images that can be read, was none of 1, the first 'text/a.jpg'",
    ),
    "model without file": (lambda folder: {"copies": {"model": "sscd_disc_mixup"}}, r"recipe.copies.path"),
    "not drawn": (lambda folder: {"miniature": {"folder": str(folder / "web")}}, r"recipe.miniature is drawn by its"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_measured_is_named(case: str, urls: list[dict], tmp_path: Path) -> None:
    changes, message = REFUSED[case]
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.jpg").write_text("no picture")
    with pytest.raises(InputError, match=message):
        profile.profile(recipe_of(tmp_path / "root", urls, **changes(tmp_path)), 10)


def test_the_command_prints_what_was_measured_then_the_plan(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = recipe_of(tmp_path / "root", [{"kind": "images", "path": str(photos)}]).model_dump(
        mode="json", exclude_unset=True
    )
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    arguments = ["--profile", "--images", "12", "--profile-out", str(tmp_path / "kept.yaml")]
    monkeypatch.setattr("sys.argv", ["lvd", "plan", str(tmp_path / "recipe.yaml"), *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert (ended.value.code, err) == (0, "")
    assert out.index("measured on 12 images") < out.index("load, with 3 cores")
    assert "CPU-hours" in out and "GPU-hours" not in out
    kept = yaml.safe_load((tmp_path / "kept.yaml").read_text())
    assert (kept["gpus"], kept["vector_values"]) == (0, 345)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile-out", "kept.yaml"], "lvd: --profile-out needs --profile"),
        (["--profile", "--profile-out", "no/kept.yaml"], "lvd: --profile-out must be a file in a folder that exists"),
    ],
)
def test_a_file_that_cannot_be_kept_is_refused_at_once(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lvd", "plan", "lvd142m-plan", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(message)


def test_without_gpus_the_paces_of_cores_must_be_known() -> None:
    with pytest.raises(InputError, match=r"recipe.plan: descriptors_per_core_second must be given where gpus is 0"):
        load("lvd142m-plan", settings=["plan.gpus=0"])
