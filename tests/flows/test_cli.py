"""The command line: exit codes, one line for what the user must mend, and the commands that only look."""

import sys
from pathlib import Path

import pytest
import yaml

from lvd.flows import cli
from lvd.tests.drawing import CLASSES, draw


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    import numpy as np

    folder = tmp_path / "photos"
    folder.mkdir()
    for number, visual_class in enumerate(list(CLASSES)[:6]):
        draw(visual_class, np.random.default_rng(number), (96, 80)).save(folder / f"{number}.png")
    return folder


def lvd(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of `lvd …` in this process."""
    monkeypatch.setattr(sys, "argv", ["lvd", *args])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def recipe_of(photos: Path, **changes) -> dict:
    return {
        "name": "trial",
        "pool": [{"kind": "images", "path": str(photos)}],
        "copies": {"model": "builtin:dct"},
        "embed": {"model": "builtin:color_texture"},
        "cluster": {"num_clusters": 2},
        "publish": {"images": "survivors"},
        **changes,
    }


BAD = {
    "unknown key": ({"colour": 1}, r"recipe.colour: unknown key"),
    "wrong type": ({"seed": "x"}, r"recipe.seed must be a valid integer"),
    "missing path": (
        {"pool": [{"kind": "images", "path": "/not/there"}]},
        r"recipe.pool\[0\].path must exist, was '/not/there'",
    ),
    "missing column": (None, r"recipe.pool\[0\].url_column must be one of 'link', was 'url'"),
    "empty pool": ({"pool": []}, r"recipe.pool must name at least one source"),
    "unknown model": ({"embed": {"model": "vit_hug"}}, r"recipe.embed.model: unknown model 'vit_hug'"),
    "model without file": ({"copies": {"model": "sscd_disc_mixup"}}, r"recipe.copies.path"),
    "no threshold": ({"copies": {"model": "builtin:color_texture"}}, r"recipe.copies.min_similarity must be given"),
    "zero clusters": (
        {"cluster": {"num_clusters": 0}},
        r"recipe.cluster.num_clusters must be greater than or equal to 1, was 0",
    ),
    "too many clusters": (
        {"cluster": {"num_clusters": 7}},
        r"recipe.cluster.num_clusters must be in \[1, 6\].*, was 7",
    ),
    "nothing comes out": ({"publish": {}}, r"recipe.curated must name a collection .*, was none: .*survivors"),
    "gpus": ({"compute": {"gpus": 99}}, r"recipe.compute.gpus must be"),
    "benchmark without source": ({"benchmarks": [{"name": "b"}]}, r"recipe.benchmarks\[0\] must have a source"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_recipe_exits_with_2_and_one_line_and_writes_nothing(
    case: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    changes, message = BAD[case]
    if changes is None:
        (tmp_path / "urls.csv").write_text("link\nhttp://a.example/x.jpg\n")
        changes = {"pool": [{"kind": "urls", "path": str(tmp_path / "urls.csv")}]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_of(photos, **changes)))
    root = tmp_path / "root"
    code, out, err = lvd(monkeypatch, capsys, "run", str(tmp_path / "recipe.yaml"), "--root", str(root))
    assert code == 2
    assert err.count("\n") == 1
    assert re.search(message, err), err
    assert out == ""
    assert not root.exists()


def test_a_root_of_no_known_filesystem(photos, tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_of(photos)))
    code, _, err = lvd(monkeypatch, capsys, "run", str(tmp_path / "recipe.yaml"), "--root", "foo://x")
    assert code == 2
    assert err.startswith("lvd: recipe.root must be a folder or a URI that fsspec knows, was 'foo://x'")
    assert err.count("\n") == 1


@pytest.mark.parametrize("root", ["/proc/lvd", "{file}/lvd"])
def test_a_root_that_cannot_be_written(
    root: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_of(photos)))
    (tmp_path / "file").write_text("")
    root = root.format(file=tmp_path / "file")
    code, _, err = lvd(monkeypatch, capsys, "run", str(tmp_path / "recipe.yaml"), "--root", root)
    assert code == 2
    assert err.startswith(f"lvd: recipe.root must be a place that can be written, was '{root}'")
    assert err.count("\n") == 1


def test_a_bucket_that_is_not_there(photos, tmp_path, s3_root, monkeypatch, capsys) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_of(photos)))
    code, _, err = lvd(monkeypatch, capsys, "run", str(tmp_path / "recipe.yaml"), "--root", "s3://no-such-bucket/lvd")
    assert code == 2
    assert err.startswith("lvd: recipe.root must be a place that can be written, was 's3://no-such-bucket/lvd'")
    assert err.count("\n") == 1


def test_the_plan_of_lvd142m_is_printed(monkeypatch, capsys) -> None:
    code, out, _ = lvd(monkeypatch, capsys, "plan", "lvd142m-plan")
    assert code == 0
    assert "142,109,386" in out
    assert "62,860,000" in out


def test_models_are_listed(monkeypatch, capsys) -> None:
    code, out, _ = lvd(monkeypatch, capsys, "models")
    assert code == 0
    for name in ("builtin:dct", "builtin:color_texture", "sscd_disc_mixup", "torchscript"):
        assert name in out


@pytest.mark.parametrize("args", [("status", "{root}"), ("why", "x", "--root", "{root}")])
def test_a_root_without_a_run_is_named(args, tmp_path, monkeypatch, capsys) -> None:
    code, _, err = lvd(monkeypatch, capsys, *(arg.format(root=tmp_path) for arg in args))
    assert code == 2
    assert str(tmp_path) in err
    assert "lvd run RECIPE" in err


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full() -> None:
        Path("/dev/full").write_bytes(b"one byte too many")

    monkeypatch.setattr(cli, "command_line", lambda: full)
    code, _, err = lvd(monkeypatch, capsys)
    assert code == 2 and err.startswith("lvd: the disk must have room ([Errno 28]") and err.count("\n") == 1


def test_the_help_lists_every_command_in_its_group(monkeypatch, capsys) -> None:
    code, out, _ = lvd(monkeypatch, capsys, "--help")
    assert code == 0
    places = [out.index(f" {group} ") for group in cli.GROUPS]
    assert places == sorted(places)
    for module, start, end in zip(cli.GROUPS.values(), places, [*places[1:], len(out)], strict=True):
        functions = [value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__]
        written = {value.__name__ for value in functions if "root" in value.__annotations__ or value.__doc__}
        listed = {command.__name__ for command in module.COMMANDS}
        assert written - listed <= {"run_recipe", "studies", "study_copies", "study_clusters"}, "a command left out"
        assert all(f"│ {name} " in out[start:end] for name in listed)
    for command in ("copies", "clusters"):
        assert lvd(monkeypatch, capsys, "study", command, "--help")[0] == 0
