"""The order of the pool's partitions: as finished runs saw them, what is new last, together."""

from pathlib import Path

import pytest

from lvd.flows import crawling, generations, preflight
from lvd.flows.collected import Gathered, Part
from lvd.flows.recipe import Recipe, parse
from lvd.flows.run import Run
from lvd.infra.shards import StageDir
from lvd.tasks.sources import Images, Partition


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return parse({"name": "n", "root": str(tmp_path / "root"), "pool": [{"kind": "images", "path": "/data/*"}]})


CLUSTER = {"num_clusters": 1}
DATA, OTHER = Images(path="/data/*"), Images(path="/other/*")


def parts(recipe: Recipe, *names: str, source: Images = DATA) -> list[Part]:
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
    other = recipe.model_copy(update={"pool": (OTHER,)})
    assert seen(generations.ordered(other, parts(other, "a", "b", source=OTHER))) == [["a", "b"]]


def test_a_further_source_leaves_those_before_it_where_they_were(recipe: Recipe) -> None:
    night(recipe, "b")
    night(recipe, "b", "a")
    both = recipe.model_copy(update={"pool": (OTHER, *recipe.pool)})

    def found(*names: str) -> list[list[str]]:
        listed = [*parts(both, "x", "y", source=OTHER), *parts(both, *names)]
        gathered = generations.ordered(both, listed)
        generations.keep(both, gathered)
        return seen(gathered)

    assert found("a", "b") == [["b"], ["a"], ["x", "y"]]
    assert night(recipe, "a", "b", "c") == [["b"], ["a"], ["c"]], "a recipe without it is as it was"
    assert found("a", "b", "c", "d") == [["b"], ["a"], ["x", "y"], ["c"], ["d"]]
    assert [one.digest for one in generations.new_among(both, (p.partition for p in parts(both, "d", "e")))] == ["e"]


def test_what_a_run_began_with_is_known_before_it_ends(recipe: Recipe) -> None:
    night(recipe, "a")
    begun = [part.partition for part in parts(recipe, "a", "b")]
    generations.begin(recipe, begun)
    known = generations.seen(recipe)
    assert [one.digest for one in known.begun] == ["b"] and [len(one) for one in known.nights] == [1]
    assert generations.num_new(recipe, generations.ordered(recipe, parts(recipe, "a", "b"))) == 1
    assert not generations.seen(recipe.model_copy(update={"pool": (OTHER,)})).begun
    night(recipe, "a", "b")
    assert not generations.seen(recipe).begun


def test_before_a_run_only_what_is_new_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bring(name: str) -> None:
        (tmp_path / f"{name}.txt").write_text(f"http://example.org/{name}.jpg")

    pool = [{"kind": "urls", "path": str(tmp_path / "*.txt")}]
    recipe, opened = parse({"name": "n", "root": str(tmp_path / "root"), "pool": pool, "cluster": CLUSTER}), []
    monkeypatch.setattr(preflight, "check_columns", lambda one: opened.append(Path(one.files[0]).name))
    bring("a")
    preflight.check_sources(Run(recipe))
    found = [one for _, _, _, partitions in crawling.listed(Run(recipe)) for one in partitions]
    manifests = [StageDir(root=recipe.root, stage="crawl", fingerprint=one.digest) for one in found]
    known = [Part(partition=one, manifest=manifest) for one, manifest in zip(found, manifests, strict=True)]
    generations.keep(recipe, generations.ordered(recipe, known))
    bring("b")
    preflight.check_sources(Run(recipe))
    assert opened == ["a.txt", "b.txt"]
