"""The evaluation of a root: what it reads, planted selections told apart, what it refuses, the command."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lvd.flows.evaluating import evaluate
from lvd.flows.evaluation_summary import Summary
from lvd.flows.labelled_folders import SIDES, folder_images
from lvd.flows.recipe import parse
from lvd.flows.references import halves_of
from lvd.infra.committing import commit
from lvd.infra.errors import InputError
from lvd.infra.shards import StageDir
from lvd.infra.storage import Storage
from lvd.infra.writing import write_shard
from lvd.tasks import models, schemas
from lvd.tests.drawing import CLASSES, draw
from lvd.tests.running import Curated, lvd

DIM, CONCEPTS, IMAGES_EACH = 16, 4, 12
INFERENCE = models.Inference(model="builtin:color_texture", batch_size=8, precision="float32")


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def coloured(number: int, concept: int) -> bytes:
    """A small picture of its own whose colour tells its concept."""
    colours = [(220, 30, 30), (30, 200, 40), (40, 60, 220), (210, 200, 30), (128, 128, 128)]
    noise = np.random.default_rng(number).normal(0, 12, (32, 32, 3))
    file = io.BytesIO()
    Image.fromarray((np.array(colours[concept]) + noise).clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def written(root: Path, stage: str, name: str, schema: object, parts: list[list[dict]], **said: dict) -> StageDir:
    """A complete stage directory, a shard for each part."""
    target = StageDir(root=str(root), stage=stage, fingerprint=name)
    for ref, rows in zip(target.planned(len(parts)), parts, strict=True):
        with write_shard(ref, schema, {}) as shard:
            for row in rows:
                shard.keep({**dict.fromkeys(schema.names), **row})
    commit(target, len(parts), **{"config": {}, "inputs": {}, **said})
    return target


def images_and_vectors(
    root: Path,
    name: str,
    concepts: list[int],
    vectors: np.ndarray,
    *,
    labels: bool,
    dropped: frozenset[int] = frozenset(),
) -> tuple[list[str], StageDir, StageDir]:
    """(ids, images, vectors) of one partition in two shards; dropped: rows that are not embedded."""
    first = {"pool": 0, "more": 5000, "things": 10_000, "signs": 20_000}[name]
    files = [coloured(first + number, concept) for number, concept in enumerate(concepts)]
    ids, cut = [f"{first + number:032x}" for number in range(len(files))], len(files) // 2
    rows = [
        {"image_id": i, "key": i, "image": {"bytes": f, "path": None}, "label": f"c{c}" if labels else None}
        for i, f, c in zip(ids, files, concepts, strict=True)
    ]
    images = written(root, "download", name, schemas.IMAGES, [rows[:cut], rows[cut:]])
    kept = [
        {"row": n, "image_id": ids[n], "vector": vectors[n].astype(np.float16)}
        for n in range(len(ids))
        if n not in dropped
    ]
    split = sum(row["row"] < cut for row in kept)
    config, inputs = {**INFERENCE.model_dump(), "weights": "builtin:color_texture:1"}, {"images": images.directory}
    embed = written(
        root, "embed", name, schemas.vectors(DIM), [kept[:split], kept[split:]], config=config, inputs=inputs
    )
    return ids, images, embed


def planted_root(root: Path, *, is_good: bool = True, labels: bool = True, kind: str = "sample") -> Path:
    """A root as `curate` leaves it: a collection of four concepts, and a pool of two partitions with few of them.

    is_good: what was retrieved is of the concepts; else it is anything.
    """
    rng = np.random.default_rng(0)
    centres = np.eye(DIM)[:CONCEPTS]
    concepts = np.repeat(np.arange(CONCEPTS), IMAGES_EACH)
    queries = unit(centres[concepts] + 0.15 * rng.normal(size=(len(concepts), DIM)))
    pool_concepts = np.concatenate([concepts, np.full(352, CONCEPTS)])
    anything = unit(rng.normal(size=(352, DIM)))
    pool = np.concatenate([unit(centres[concepts] + 0.15 * rng.normal(size=(len(concepts), DIM))), anything])
    mixed = rng.permutation(len(pool))
    pool, pool_concepts = pool[mixed], pool_concepts[mixed]
    cut, dropped = 250, frozenset(np.flatnonzero(pool_concepts == CONCEPTS)[:20].tolist())
    first = images_and_vectors(
        root, "pool", pool_concepts[:cut].tolist(), pool[:cut], labels=False, dropped=dropped & {*range(cut)}
    )
    more = images_and_vectors(root, "more", pool_concepts[cut:].tolist(), pool[cut:], labels=False)
    things = images_and_vectors(root, "things", concepts.tolist(), queries, labels=labels)
    ids = first[0] + more[0]
    is_concept = pool_concepts < CONCEPTS
    chosen = np.flatnonzero(is_concept) if is_good else np.flatnonzero(~is_concept)[30:78]
    similarity = queries @ pool[chosen].T
    alive = [n for n in range(len(pool)) if n not in dropped]
    home = (pool @ centres.T).argmax(axis=1)
    shards = [[n for n in alive if n < 125], [n for n in alive if 125 <= n < cut]]
    shards += [[n for n in alive if cut <= n < cut + 75], [n for n in alive if n >= cut + 75]]
    cells = [[{"row": n - cut * (n >= cut), "image_id": ids[n], "cluster_id": int(home[n])} for n in s] for s in shards]
    centroids = [[{"cluster_id": i, "size": 1, "vector": centres[i].astype(np.float32)} for i in range(CONCEPTS)]]
    matches = [
        {
            "dataset": "things",
            "query_id": things[0][int(similarity[:, place].argmax())] if kind != "balanced" else None,
            "row": int(n),
            "image_id": ids[n],
            "kind": kind,
            "cluster_id": int(home[n]) if kind == "cluster" else None,
        }
        for place, n in enumerate(chosen)
    ]
    parts = [{"part": 0, "row": n, "role": "curated", "retrieved_for": []} for n in range(len(queries))]
    parts += [
        {
            "part": 1 + int(n >= cut),
            "row": int(n) - cut * int(n >= cut),
            "role": "retrieved",
            "retrieved_for": ["things"],
        }
        for n in chosen
    ]
    pool_vectors = [one[2].directory for one in (first, more)]
    images = [things[1].directory, first[1].directory, more[1].directory]
    made = {
        "embed": [one[2] for one in (first, more, things)],
        "copies": [
            written(
                root,
                "copies",
                "a",
                schemas.FATES,
                [[{"image_id": ids[0], "state": "kept"}]],
                notes={
                    "thresholds": {"min_similarity": 0.5, "benchmark_min_similarity": 0.4, "edge_min_similarity": 0.3}
                },
            )
        ],
        "centroids": [written(root, "centroids", "a", schemas.centroids(DIM), centroids)],
        "cluster": [
            written(root, "cluster", "homes", schemas.CELLS, cells, inputs={"vectors": [things[2].directory]}),
            written(root, "cluster", "a", schemas.CELLS, cells, inputs={"vectors": pool_vectors}),
        ],
        "retrieve": [
            written(
                root,
                "retrieve",
                "a",
                schemas.MATCHES,
                [matches[:20], matches[20:]],
                config={"collection": "things", "min_queries": 4},
            )
        ],
        "selection": [
            written(
                root,
                "selection",
                "a",
                schemas.SELECTION,
                [parts[:60], parts[60:]],
                inputs={"images": images, "matches": ["retrieve/a"]},
            )
        ],
    }
    recipe = parse({"name": "t", "root": str(root), "embed": {"model": INFERENCE.model}, "compute": {"gpus": 0}})
    collections = [
        {"role": "pool", "name": "pool", "images": images[1:]},
        {"role": "curated", "name": "things", "images": images[:1]},
    ]
    directories = {stage: [one.directory for one in found] for stage, found in made.items()}
    said = {"recipe": recipe.model_dump(mode="json"), "collections": collections, "directories": directories}
    storage = Storage(str(root))
    storage.write_json("runs/r.json", {**said, "version": "v1", "curated": "curated/v1"})
    storage.write_json("curated/latest.json", {"version": "v1", "directory": "curated/v1", "run": "runs/r.json"})
    return root


def differences(summary: Summary, kind: str) -> dict[str, int]:
    """Measure → 1 where the selection is higher than random ones, -1 where it is lower, 0 where neither is shown."""
    (case,) = (one for one in summary.coverage if one.kind == kind)
    return {
        name: int((np.sign(one.difference.low) + np.sign(one.difference.high)) / 2)
        for name, one in case.measures.items()
    }


def test_a_selection_of_the_concepts_is_told_from_one_of_anything(tmp_path: Path) -> None:
    good = evaluate(str(planted_root(tmp_path / "good")), out=str(tmp_path / "g" / "page.html"))
    bad = evaluate(str(planted_root(tmp_path / "bad", is_good=False)), out=str(tmp_path / "b.html"))
    assert (good.version, good.selected, good.compared, good.survivors, good.clusters) == ("v1", 48, 48, 380, 4)
    assert good.drawn_from == 5 * 48
    for kind in ("biased", "held out"):
        assert set(differences(good, kind).values()) == {1}, kind
        assert differences(bad, kind)["coverage"] == -1, kind
    assert {one.label for one in good.concepts} == {"c0", "c1", "c2", "c3"}
    assert all(one.selection > one.random and one.images == IMAGES_EACH for one in good.concepts)
    (told,) = good.labelled
    assert (told.classes, told.train, told.test, told.left_out) == (4, 36, 12, 0)
    assert told.told[0].knn[1].value == told.told[0].probe.value == 1.0 and told.most_frequent == 0.25
    assert good.spread["entropy"].selection.value == pytest.approx(2.0)
    assert json.loads((tmp_path / "g" / "page.json").read_text()) == good.model_dump(mode="json")
    page = (tmp_path / "g" / "page.html").read_text()
    assert "Held out" in page and "by construction" in page and "selection higher" in page
    assert not re.search(r'(src|href)="(?!data:)', page) and "<script" not in page
    assert "random higher" in (tmp_path / "b.html").read_text()


def test_the_same_seed_gives_the_same_figures_and_another_one_does_not(tmp_path: Path) -> None:
    root = str(planted_root(tmp_path / "root"))
    first, again, other = (evaluate(root, seed=seed, sample=30, out=str(tmp_path / "p.html")) for seed in (0, 0, 1))
    assert first == again != other
    assert first.compared == 30 and first.drawn_from == 150


@pytest.mark.parametrize("kind", ["cluster", "balanced"])
def test_what_was_not_retrieved_for_one_query_is_credited_to_the_halves_that_would_have_it(
    kind: str, tmp_path: Path
) -> None:
    found = evaluate(str(planted_root(tmp_path / "root", kind=kind)), out=str(tmp_path / "p.html"))
    assert set(differences(found, "held out").values()) == {1}
    (case,) = (one for one in found.coverage if one.kind == "held out")
    # 12 queries of a concept: a half has at least 4 of them in 93 of 100 cuts; what no query asked for counts for both
    assert case.selected == 48 if kind == "balanced" else 38 < case.selected < 48


def test_other_features_are_compared_on_the_same_images(tmp_path: Path) -> None:
    root = str(planted_root(tmp_path / "root"))
    found = evaluate(root, model="builtin:color_texture", sample=40, out=str(tmp_path / "p.html"))
    assert [one.features for one in found.labelled[0].told] == [
        "builtin:color_texture (the root's own)",
        "builtin:color_texture",
    ]
    assert set(found.labelled[0].differences) == {"1-NN", "5-NN", "20-NN", "probe"}
    by_other = [one for one in found.coverage if one.features == "builtin:color_texture"]
    assert [one.kind for one in by_other] == ["biased", "held out"]
    assert all(one.measures["nearest"].difference.low > 0 for one in by_other)  # colours tell the concepts too
    (tmp_path / "own.yaml").write_text("name: own\nembed: {model: 'builtin:color_texture'}\n")
    assert evaluate(root, recipe=str(tmp_path / "own.yaml"), sample=40, out=str(tmp_path / "p.html")) == found


def labelled_folder(folder: Path, sides: tuple[str, ...] = ("",)) -> Path:
    """Drawn images of two classes, a file that is none, and one that is there twice."""
    for side_number, side in enumerate(sides):
        for class_number, name in enumerate(list(CLASSES)[:2]):
            (folder / side / name).mkdir(parents=True)
            for number in range(6):
                rng = np.random.default_rng([side_number, class_number, number])
                draw(name, rng, (80, 60)).save(folder / side / name / f"{number}.png")
    first = folder / sides[0] / next(iter(CLASSES))
    (first / "again.png").write_bytes((first / "0.png").read_bytes())
    (first / "broken.png").write_bytes(b"no picture")
    return folder


def test_labelled_folders_are_references_that_nothing_was_retrieved_for(curated: Curated, tmp_path: Path) -> None:
    folder, sided = labelled_folder(tmp_path / "a"), labelled_folder(tmp_path / "b", ("train", "test"))
    summary = evaluate(str(curated.root), labelled=(str(folder), str(sided)), out=str(tmp_path / "p.html"))
    assert [one.name for one in summary.labelled] == ["textures", str(folder), str(sided)]
    one, two = summary.labelled[1:]
    assert (one.classes, one.train + one.test, one.left_out) == (2, 12, 1)
    assert (two.train, two.test, two.split) == (12, 12, "as the folders are named")
    given = [case for case in summary.coverage if case.kind == "given"]
    assert [(case.references, case.images) for case in given] == [(str(folder), 12), (str(sided), 24)]
    assert {case.references for case in summary.coverage if case.kind == "held out"} >= {"textures"}


def test_the_command_on_the_miniature_root(curated: Curated, tmp_path: Path) -> None:
    page = tmp_path / "evaluation.html"
    done = lvd("evaluate", str(curated.root), "--out", str(page), home=curated.home)
    assert done.returncode == 0, done.stderr
    assert "136 selected images beside random selections of 342" in done.stdout
    assert all(said in done.stdout for said in ("held out", "biased", "textures", "probe", str(page)))
    assert page.is_file() and json.loads(page.with_suffix(".json").read_text())["version"] == "v1"
    refused = lvd("evaluate", str(tmp_path / "nothing"), home=curated.home)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1, refused.stderr
    assert "must hold a published version" in refused.stderr


def test_a_root_without_labels_says_so_in_one_line(tmp_path: Path) -> None:
    summary = evaluate(str(planted_root(tmp_path / "root", labels=False)), out=str(tmp_path / "p.html"))
    assert summary.labelled == () and summary.concepts == () and len(summary.coverage) == 2
    assert [note for note in summary.notes if "--labelled" in note and "\n" not in note] == [*summary.notes]


def test_a_run_without_clusters_of_the_pool_says_so(tmp_path: Path) -> None:
    root = planted_root(tmp_path / "root")
    storage = Storage(str(root))
    run = storage.read_json("runs/r.json")
    del run["directories"]["cluster"]
    storage.write_json("runs/r.json", run)
    summary = evaluate(str(root), out=str(tmp_path / "p.html"))
    assert (summary.spread, summary.clusters) == ({}, 0) and "no clusters" in summary.notes[0]
    (chosen,) = run["directories"]["selection"]
    account = storage.read_json(f"{chosen}/stage.json")
    account["inputs"]["matches"] = []
    storage.write_json(f"{chosen}/stage.json", account)
    summary = evaluate(str(root), out=str(tmp_path / "p.html"))
    assert [one.kind for one in summary.coverage] == ["biased"] and "no halves" in summary.notes[0]


def test_a_run_over_vectors_is_refused(tmp_path: Path) -> None:
    root = planted_root(tmp_path / "root")
    storage = Storage(str(root))
    run = storage.read_json("runs/r.json")
    storage.write_json("runs/r.json", {**run, "directories": {"imported": ["imported/a"]}})
    with pytest.raises(InputError, match="must hold a run over images"):
        evaluate(str(root), out=str(tmp_path / "p.html"))


def test_what_cannot_be_evaluated(tmp_path: Path) -> None:
    root, empty = str(planted_root(tmp_path / "root")), tmp_path / "empty"
    empty.mkdir()
    cases = [
        ({"sample": 1}, "sample must be at least 2"),
        ({"out": str(tmp_path / "page")}, "out must be the name of an HTML file"),
        ({"labelled": (str(tmp_path / "none"),)}, "--labelled must be a folder"),
        ({"labelled": (str(empty),)}, "at least two classes"),
        ({"model": "builtin:color_textur"}, "did you mean"),
        ({"model": "a", "recipe": "b"}, "give one of them"),
        ({"weights": "w.pt"}, "--weights needs --model"),
    ]
    for arguments, message in cases:
        with pytest.raises(InputError, match=message):
            evaluate(root, **{"out": str(tmp_path / "p.html"), **arguments})
    assert not (tmp_path / "p.html").exists()


def test_halves_go_with_the_image_and_are_even() -> None:
    ids = [f"{n:032x}" for n in range(2000)]
    halves = halves_of(ids, 0)
    assert halves.shape == (2000, 20) and (np.abs(halves.mean(axis=0) - 0.5) < 0.05).all()
    np.testing.assert_array_equal(halves_of(ids[::-1], 0), halves[::-1])
    assert (halves_of(ids, 1) != halves).mean() > 0.4


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("cub-train", ("cub", "train")),
        ("cub test", ("cub", "test")),
        ("val", ("", "val")),
        ("imagenet.training", ("imagenet", "training")),
        ("trains", None),
    ],
)
def test_names_of_sides(name: str, parts: tuple[str, str] | None) -> None:
    found = SIDES.match(name)
    assert (found and (found["stem"], found["side"])) == parts


def test_a_folder_beside_train_and_test_makes_all_of_them_classes(tmp_path: Path) -> None:
    labelled_folder(tmp_path / "a", ("train", "other"))
    found = folder_images(str(tmp_path / "a"), np.random.default_rng(0))
    assert found.is_test is None and set(found.labels) == {"train", "other"}
