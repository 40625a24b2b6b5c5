"""The order of the pool's partitions: as finished runs saw them, what is new last, together."""

from pathlib import Path

import pytest

from lvd.flows import generations
from lvd.flows.collected import Gathered, Part
from lvd.flows.recipe import Recipe, parse
from lvd.infra.shards import StageDir
from lvd.tasks.sources import Images, Partition


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return parse({"name": "n", "root": str(tmp_path / "root"), "pool": [{"kind": "images", "path": "/data/*"}]})


def parts(recipe: Recipe, *names: str) -> list[Part]:
    source = Images(path="/data/*")
    return [
        Part(
            partition=Partition(source=source, files=(f"/data/{name}",), digest=name),
            manifest=StageDir(root=recipe.root, stage="crawl", fingerprint=name),
        )
        for name in names
    ]


def seen(gathered: Gathered) -> list[list[str]]:
    found, waiting = [], iter(gathered.parts)
    for count in gathered.generations:
        found.append([next(waiting).manifest.fingerprint for _ in range(count)])
    assert not list(waiting)
    return found


def night(recipe: Recipe, *names: str) -> list[list[str]]:
    gathered = generations.ordered(recipe, parts(recipe, *names))
    generations.keep(recipe, gathered)
    return seen(gathered)


def test_what_is_new_comes_last_and_together(recipe: Recipe) -> None:
    assert night(recipe, "b", "d") == [["b", "d"]]
    assert night(recipe, "b", "d") == [["b", "d"]]
    assert night(recipe, "a", "b", "c", "d") == [["b", "d"], ["a", "c"]]
    assert night(recipe, "a", "b", "c", "d", "e") == [["b", "d"], ["a", "c"], ["e"]]


def test_what_is_gone_leaves_its_generation(recipe: Recipe) -> None:
    night(recipe, "a", "b")
    night(recipe, "a", "b", "c")
    assert night(recipe, "b", "c") == [["b"], ["c"]]
    assert night(recipe, "c") == [["c"]]
    assert night(recipe, "a", "c") == [["c"], ["a"]]


def test_a_run_that_did_not_finish_leaves_no_generation(recipe: Recipe) -> None:
    night(recipe, "a")
    assert seen(generations.ordered(recipe, parts(recipe, "a", "b"))) == [["a"], ["b"]]
    assert seen(generations.ordered(recipe, parts(recipe, "a", "b", "c"))) == [["a"], ["b", "c"]]


def test_other_sources_have_generations_of_their_own(recipe: Recipe) -> None:
    night(recipe, "b")
    other = recipe.model_copy(update={"pool": (Images(path="/other/*"),)})
    assert seen(generations.ordered(other, parts(other, "a", "b"))) == [["a", "b"]]
