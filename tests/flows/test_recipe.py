"""Bad recipes: one line that names the field, the value and the remedy."""

from pathlib import Path

import pytest

from lvd.flows.recipe import bundled, load, parse
from lvd.infra.errors import InputError

GOOD = {"name": "a", "pool": [{"kind": "images", "path": "photos"}]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"retrive": {}}, r"recipe\.retrive: unknown key: did you mean 'retrieve'\?"),
        (
            {"copies": {"min_similarty": 0.5}},
            r"recipe\.copies\.min_similarty: unknown key: did you mean 'min_similarity'\?",
        ),
        ({"pool": [{"kind": "images", "path": "x", "colour": 1}]}, r"recipe\.pool\[0\]\.colour: unknown key"),
        (
            {"pool": [{"kind": "folder", "path": "x"}]},
            r"recipe\.pool\[0\]\.kind must be one of .*'images'.*, was 'folder'",
        ),
        ({"pool": [{"path": "x"}]}, r"recipe\.pool\[0\]\.kind must be given"),
        ({"pool": [{"kind": "images"}]}, r"recipe\.pool\[0\]\.path must be given"),
        ({"cluster": {"num_clusters": 0}}, r"recipe\.cluster\.num_clusters must be greater than or equal to 1, was 0"),
        ({"cluster": {"num_clusters": "many"}}, r"recipe\.cluster\.num_clusters must be a valid integer.*, was 'many'"),
        (
            {"copies": {"min_similarity": 1.5}},
            r"recipe\.copies\.min_similarity must be less than or equal to 1, was 1\.5",
        ),
        (
            {"curated": [{"name": "c", "kind": "images", "path": "x", "retrieve": {"kind": "sample", "neighbors": 0}}]},
            r"recipe\.curated\[0\]\.retrieve\.neighbors must be greater than or equal to 1, was 0",
        ),
        (
            {"curated": [{"name": "c", "kind": "images", "path": "x", "retrive": {}}]},
            r"recipe\.curated\[0\]\.retrive: unknown key",
        ),
        ({"benchmarks": [{"name": "b"}, {"name": "b"}]}, r"'b' stands twice"),
        ({"benchmarks": [{"name": "pool"}]}, r"none may be 'pool': 'pool' stands twice"),
        ({"compute": {"cpu_workers": 0}}, r"cpu_workers must be 'auto' or at least 1, was 0"),
        ({"name": None}, r"recipe\.name must be a valid string, was None"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse({**GOOD, **change})
    assert "\n" not in str(caught.value)


def test_every_bundled_recipe_is_valid(tmp_path: Path) -> None:
    assert {"lvd", "mini", "lvd142m-plan"} <= set(bundled())
    for name in bundled():
        assert load(name, root=str(tmp_path)).name == name


def test_the_lvd_recipe_has_the_papers_numbers() -> None:
    recipe = load("lvd")
    assert (recipe.copies.min_similarity, recipe.copies.benchmark_min_similarity, recipe.copies.neighbors) == (
        0.6,
        0.45,
        64,
    )
    assert recipe.cluster.num_clusters == 100_000
    cluster = recipe.curated[2].retrieve
    assert (cluster.min_queries, cluster.per_cluster, cluster.max_images) == (4, 10_000, 1_000_000)


def test_settings_override_fields(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("name: a\ncopies: {min_similarity: 0.6}\n")
    recipe = load(str(path), root="elsewhere", settings=["copies.min_similarity=0.65", "cluster.num_clusters=7"])
    assert (recipe.root, recipe.copies.min_similarity, recipe.cluster.num_clusters) == ("elsewhere", 0.65, 7)


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("name: [", [], "must be YAML"),
        ("- a", [], "must hold one YAML mapping, was list"),
        ("name: a", ["name=["], "--set name=.: the value must be YAML"),
        ("name: a", ["seed"], "--set must be FIELD=VALUE, was 'seed'"),
        ("name: a", ["name.x=1"], "name is not a mapping"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str, settings: list[str], message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load(str(path), settings=settings)


def test_a_recipe_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"recipe must be a YAML file or one of .*mini.*, was 'minni'"):
        load("minni")
