"""Bad recipes: one line that names the field, the value and the remedy."""

from pathlib import Path
from typing import Any

import pytest

from lvd.flows.recipe import bundled, load, parse
from lvd.infra.errors import InputError

GOOD = {"name": "a", "pool": [{"kind": "images", "path": "photos"}]}
VECTORS = {"kind": "vectors", "path": "embeddings"}


def levels(*numbers: int, **settings: int) -> dict[str, Any]:
    return {"cluster": {"kind": "hierarchical", "levels": [*numbers], **settings}}


def mixture(**weights: float) -> dict[str, Any]:
    return {"retrieve": {"kind": "mixture", "target_images": 9, "weights": weights}}


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
        ({"benchmarks": [{"name": "pool"}]}, r"none may be 'pool' or 'balanced': 'pool' stands"),
        ({"compute": {"cpu_workers": 0}}, r"cpu_workers must be 'auto' or at least 1, was 0"),
        ({"name": None}, r"recipe\.name must be a valid string, was None"),
        ({"cluster": {"kind": "tree"}}, r"recipe\.cluster\.kind must be 'kmeans' or 'hierarchical', was 'tree'"),
        (
            {"cluster": {"kind": "hierarchical"}},
            r"recipe\.cluster: levels must be given for the kind hierarchical .*was \[\]",
        ),
        (
            {"cluster": {"levels": [9, 3]}},
            r"recipe\.cluster: levels must be given for the kind hierarchical and no other",
        ),
        (levels(9), r"recipe\.cluster: levels must be two or more numbers, .* was \[9\]"),
        (levels(3, 9), r"recipe\.cluster: levels must be descending numbers of at least 1, was \[3, 9\]"),
        (levels(9, 9), r"recipe\.cluster: levels must be descending numbers of at least 1, was \[9, 9\]"),
        (levels(9, 0), r"recipe\.cluster: levels must be descending numbers of at least 1, was \[9, 0\]"),
        (
            levels(9, 3, num_clusters=5),
            r"recipe\.cluster: levels must be .*num_clusters \(5\) first, .*: leave num_clusters",
        ),
        (levels(9, 3, full_passes=1), r"recipe\.cluster: full_passes must be 0 where resample_steps is above 0, was 1"),
        ({"semdedup": {"min_similarity": 0}}, r"recipe\.semdedup\.min_similarity must be greater than 0, was 0"),
        ({"semdedup": {"keep": "all"}}, r"recipe\.semdedup\.keep must be 'far' or 'near', was 'all'"),
        ({"semdedup": {"similarity": 0.9}}, r"recipe\.semdedup\.similarity: unknown key"),
        (
            {"retrieve": {"kind": "all"}},
            r"recipe\.retrieve\.kind must be 'collections', 'balanced' or 'mixture', was 'all'",
        ),
        (
            {"retrieve": {"kind": "balanced"}},
            r"recipe\.retrieve: target_images must be given for the kinds balanced .*None",
        ),
        ({"retrieve": {"target_images": 9}}, r"recipe\.retrieve: target_images must be given for .* no other, was 9"),
        (
            {"retrieve": {"kind": "balanced", "target_images": 0}},
            r"recipe\.retrieve\.target_images must be greater than or equal to 1, was 0",
        ),
        (
            {"retrieve": {"kind": "mixture", "target_images": 9}},
            r"recipe\.retrieve: weights must be given for the kind mixture and no other, was \{\}",
        ),
        (
            {"retrieve": {"weights": {"balanced": 1}}},
            r"recipe\.retrieve: weights must be given for the kind mixture and no",
        ),
        (mixture(balanced=0), r"recipe\.retrieve: weights must be at least 0, and one above it, was .*0\.0"),
        (mixture(balanced=-1), r"recipe\.retrieve: weights must be at least 0, and one above it, was .*-1\.0"),
        (mixture(balanced=float("inf")), r"recipe\.retrieve: weights must be at least 0, and one above it, was .*inf"),
        (
            mixture(balanced=1, birds=2),
            r"retrieve\.weights must name collections that retrieve, or balanced, was 'birds'",
        ),
        (  # it is there, and retrieves nothing
            {**mixture(birds=2), "curated": [{"name": "birds", "kind": "images", "path": "x"}]},
            r"retrieve\.weights must name .* was 'birds': known are balanced$",
        ),
        ({"curated": [{"name": "balanced"}]}, r"none may be 'pool' or 'balanced': 'balanced' stands"),
        (
            {"pool": [VECTORS, {"kind": "images", "path": "x"}]},
            r"sources must be all of vectors or all of images, were both",
        ),
        (
            {"curated": [{"name": "c", **VECTORS}]},
            r"sources must be all of vectors or all of images, were both: make two",
        ),
        (
            {"pool": [VECTORS], "benchmarks": [{"name": "b"}]},
            r"benchmarks must be left out where the sources are vectors",
        ),
        ({"pool": [{"kind": "vectors"}]}, r"recipe\.pool\[0\]\.path must be given"),
        ({"pool": [{**VECTORS, "column": "v"}]}, r"recipe\.pool\[0\]\.column: unknown key"),
        (
            {"pool": [{"kind": "synthetic", "rows": 0, "dim": 8}]},
            r"recipe\.pool\[0\]\.rows must be greater than or equal to 1, was 0",
        ),
        (
            {"pool": [{"kind": "synthetic", "rows": 9, "dim": 1}]},
            r"recipe\.pool\[0\]\.dim must be greater than or equal to 2, was 1",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse({**GOOD, **change})
    assert "\n" not in str(caught.value)


def test_every_bundled_recipe_is_valid(tmp_path: Path) -> None:
    assert {"lvd", "mini", "lvd142m-plan", "hierarchical", "dinov3-mix", "vectors"} <= set(bundled())
    for name in bundled():
        assert load(name, root=str(tmp_path)).name == name


def test_a_hierarchy_has_the_clusters_of_its_finest_level() -> None:
    cluster = parse({**GOOD, **levels(9, 3, 2)}).cluster
    assert (cluster.num_clusters, cluster.levels, cluster.full_passes) == (9, (9, 3, 2), 0)
    assert parse({**GOOD, **levels(9, 3, resample_steps=0, full_passes=2)}).cluster.full_passes == 2
    assert parse(GOOD).cluster.full_passes == 1


def test_what_is_asked_of_a_mixture() -> None:
    birds = {"name": "birds", "kind": "images", "path": "x", "retrieve": {"kind": "sample"}}
    asked = {**GOOD, "curated": [birds]}
    assert parse({**asked, **mixture(balanced=0.8, birds=0.2)}).retrieve.has_balanced
    assert not parse({**asked, **mixture(birds=1)}).retrieve.has_balanced
    assert parse({**GOOD, "retrieve": {"kind": "balanced", "target_images": 9}}).retrieve.has_balanced
    assert not parse(asked).retrieve.has_balanced


def test_own_vectors_are_told_from_images() -> None:
    drawn = {"kind": "synthetic", "rows": 9, "dim": 8}
    assert parse({**GOOD, "pool": [VECTORS, drawn], "curated": [{"name": "c", **drawn}]}).has_own_vectors
    assert not parse(GOOD).has_own_vectors
    assert parse({**GOOD, "semdedup": {}}).semdedup.min_similarity == 0.95
    assert parse(GOOD).semdedup is None


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
