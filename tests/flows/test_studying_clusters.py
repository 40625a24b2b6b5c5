"""The study of how many clusters a root needs: what it says, writes and refuses; and of the miniature root."""

import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lvd.flows.studying_clusters import Summary, cluster_study, listed
from lvd.infra.committing import commit
from lvd.infra.errors import InputError
from lvd.infra.shards import StageDir
from lvd.infra.storage import Storage
from lvd.infra.writing import write_shard
from lvd.tasks import schemas
from lvd.tests.running import Curated, lvd

GROUPS, DIM, POOL, IMAGES = 8, 16, 600, 48
MIDDLES = np.eye(DIM)[:GROUPS]


def vectors_around(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    rows = MIDDLES[groups] + rng.normal(size=(len(groups), DIM)) * 0.1
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def embedded(root: Path, name: str, vectors: np.ndarray, labels: list[str | None]) -> tuple[str, str]:
    """The images and the embeddings of a collection, in two shards: their directories."""
    images = StageDir(root=str(root), stage="download", fingerprint=name)
    halves = np.array_split(np.arange(len(vectors)), 2)
    for ref, rows in zip(images.planned(2), halves, strict=True):
        with write_shard(ref, schemas.IMAGES, {}) as shard:
            for row in rows:
                values = {"image_id": f"{name}-{row}", "key": f"{row}.jpg", "label": labels[row]}
                shard.keep(dict.fromkeys(schemas.IMAGES.names) | values)
    commit(images, 2, config={}, inputs={})
    measured = StageDir(root=str(root), stage="embed", fingerprint=f"{name}-{'some' if name == 'pool' else 'all'}")
    for ref, rows in zip(measured.planned(2), halves, strict=True):
        with write_shard(ref, schemas.vectors(DIM), {}) as shard:
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors[rows].ravel()), DIM)
            ids = pa.array([f"{name}-{row}" for row in rows], pa.string())
            shard.keep_table(pa.Table.from_arrays([pa.array(rows), ids, column], schema=schemas.vectors(DIM)))
    commit(measured, 2, config={}, inputs={"images": images.directory})
    return images.directory, measured.directory


def root_of(root: Path, curated: dict[str, list[str | None]], *, pool: int = POOL) -> str:
    """A root as a finished run leaves it: a pool of GROUPS groups, and collections of the same with these labels."""
    rng = np.random.default_rng(0)
    groups = rng.integers(GROUPS, size=pool)
    pool_images, pool_vectors = embedded(root, "pool", vectors_around(groups, rng), [None] * pool)
    collections = [{"role": "pool", "name": "pool", "images": [pool_images]}]
    directories = {"embed": [pool_vectors]}
    for name, labels in curated.items():
        own = np.arange(len(labels)) % GROUPS
        images, vectors = embedded(root, name, vectors_around(own, rng), labels)
        collections.append({"role": "curated", "name": name, "images": [images]})
        directories["embed"].append(vectors)
    copies = StageDir(root=str(root), stage="copies", fingerprint="a")
    with write_shard(copies.planned(1)[0], schemas.FATES, {}):
        pass
    thresholds = {"min_similarity": 0.6, "benchmark_min_similarity": 0.45, "edge_min_similarity": 0.45}
    commit(copies, 1, config={}, inputs={}, notes={"thresholds": thresholds})
    directories["copies"] = [copies.directory]
    retrieve = {"kind": "cluster", "min_queries": 2, "per_cluster": 20, "max_images": 200}
    recipe = {
        "curated": [{"name": name, "retrieve": retrieve} for name in curated],
        "cluster": {"num_clusters": 30, "iterations": 5},
        "compute": {"gpus": 0},
    }
    record = {"recipe": recipe, "collections": collections, "directories": directories, "curated": "curated/v1"}
    storage = Storage(str(root))
    storage.write_json("runs/r.json", record)
    storage.write_json("curated/latest.json", {"version": "v1", "directory": "curated/v1", "run": "runs/r.json"})
    return str(root)


CLASSES = [f"class {n % GROUPS}" for n in range(IMAGES)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return root_of(tmp_path_factory.mktemp("planted"), {"things": CLASSES, "others": [None] * 24})


@pytest.fixture(scope="module")
def summary(root: str, tmp_path_factory: pytest.TempPathFactory) -> Summary:
    page = tmp_path_factory.mktemp("page") / "sub" / "study.html"
    return cluster_study(root, clusters=(32, 2, 4, 8, 16, 8), out=str(page))


def test_labels_find_the_planted_groups(summary: Summary) -> None:
    assert [level.num_clusters for level in summary.levels] == [2, 4, 8, 16, 32]
    assert summary.choice.rule == "labels"
    assert GROUPS / 2 <= summary.recommended <= GROUPS * 2
    assert summary.recommended == summary.choice.num_clusters
    assert [other.rule for other in summary.others] == ["retrieval", "objective"]
    assert (summary.pool_images, summary.sample, summary.held_out, summary.clusters_now) == (POOL, POOL, 120, 30)
    assert summary.carried is None  # the sample is the whole pool
    things, others = summary.collections
    assert (things.name, things.images, things.queries, things.labels) == ("things", IMAGES, IMAGES, GROUPS)
    assert (others.name, others.labels) == ("others", 0)
    assert things.scaled.neighbors == 5 and others.scaled.neighbors == 9  # 200 images wanted, of 48 and of 24


def test_the_figures_of_each_number(summary: Summary) -> None:
    levels = {level.num_clusters: level for level in summary.levels}
    for few, more in pairwise(summary.levels[:3]):
        assert more.objective > few.objective + 0.05
        assert more.purity > few.purity
    assert levels[2].recall == 1.0 and levels[2].precision < 0.5  # every group, near or not
    assert levels[32].by_collection["things"].eligible < 32
    of_eight = levels[8].by_collection["things"]
    assert of_eight.retrieved <= min(of_eight.reached, 20 * of_eight.eligible)
    for level in summary.levels:
        assert level.sample_rows_per_cluster == level.pool_rows_per_cluster == POOL / level.num_clusters
        assert 1 <= level.imbalance <= level.num_clusters
        low, middle, high = level.sizes
        assert low <= middle <= high
        assert level.objective_fitted >= level.objective - 0.02
    assert summary.levels[-1].overlap_next is None and summary.levels[0].overlap_next > 0.5


def test_the_page_and_the_figures_beside_it(summary: Summary, root: str) -> None:
    page = Path(summary.page).read_text()
    assert json.loads(Path(summary.figures).read_text()) == summary.model_dump(mode="json")
    assert not re.search(r'(src|href)="(?!data:)', page) and "<script" not in page
    assert page.count("<polyline") == 9
    assert root in page and "The sample is the whole pool" in page and "How it is chosen" in page
    assert page.count('class="chosen"') == 4  # in the tables: clusters, the mean, two collections


def test_a_sample_is_carried_over_to_the_pool(root: str, tmp_path: Path) -> None:
    found = [
        cluster_study(root, clusters=(2, 4, 8, 16), sample=300, seed=seed, out=str(tmp_path / f"{name}.html"))
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    ]
    first, again, other = (one.model_dump(exclude={"page", "figures"}) for one in found)
    assert first == again != other
    summary = found[0]
    assert (summary.sample, summary.held_out) == (300, 60)
    assert not summary.carried.by_rows and summary.carried.at_same_k < summary.carried.at_same_rows
    assert summary.recommended == summary.choice.num_clusters
    assert summary.same_rows_clusters == 2 * summary.recommended
    assert summary.levels[0].pool_rows_per_cluster == 2 * summary.levels[0].sample_rows_per_cluster
    assert summary.collections[0].scaled.per_cluster == 10
    assert "the number itself carries over" in (tmp_path / "a.html").read_text()


def test_without_labels_retrieval_decides_and_without_collections_the_objective(tmp_path: Path) -> None:
    """A collection of one image of the first groups alone, then none."""
    root = root_of(tmp_path / "unlabelled", {"things": [None] * IMAGES}, pool=300)
    assert cluster_study(root, clusters=(4, 8), out=str(tmp_path / "s.html")).choice.rule == "retrieval"
    summary = cluster_study(root_of(tmp_path / "alone", {}, pool=300), out=str(tmp_path / "s.html"))
    assert [level.num_clusters for level in summary.levels] == [2, 4, 8]
    assert summary.choice.rule == "objective" and summary.others == ()
    assert summary.recommended is None  # no number beyond the groups: no knee can be seen
    assert summary.levels[0].recall is None and summary.levels[0].purity is None
    page = (tmp_path / "s.html").read_text()
    assert "it cannot tell" in page and "Curated collections</h2>" not in page
    summary = cluster_study(str(tmp_path / "alone"), clusters=(2, 4, 8, 16, 32), out=str(tmp_path / "s.html"))
    assert GROUPS / 2 <= summary.recommended <= GROUPS * 2


def test_what_is_refused_and_how(root: str, tmp_path: Path) -> None:
    out = str(tmp_path / "s.html")
    with pytest.raises(InputError, match=r"root must hold a published version, .*`lvd run"):
        cluster_study(str(tmp_path / "none"), out=out)
    with pytest.raises(InputError, match=r"clusters must be in \[2, 480\], .* of 600, was 481: .* the whole pool"):
        cluster_study(root, clusters=(4, 481), out=out)
    with pytest.raises(InputError, match=r"clusters must be in \[2, 80\], .* was 81: give fewer, or a larger --sample"):
        cluster_study(root, clusters=(4, 81), sample=100, out=out)
    with pytest.raises(InputError, match=r"clusters must be in \[2, 480\], .* was 1:"):
        cluster_study(root, clusters=(1, 4), out=out)
    with pytest.raises(InputError, match="clusters must be at least 2 different numbers, was 4: add one"):
        cluster_study(root, clusters=(4, 4), out=out)
    with pytest.raises(InputError, match="the sample must hold at least 4 embeddings of the pool, had 3 of 600"):
        cluster_study(root, sample=3, out=out)
    with pytest.raises(InputError, match="out must be the name of an HTML file, was 'page'"):
        cluster_study(root, out="page")
    assert not Path(out).exists()


@pytest.mark.parametrize("text", ["", "many", "4,", "1.5"])
def test_numbers_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match=r"clusters must be whole numbers with commas between, was '.*': 100,200,400"):
        listed(text)


def test_numbers_of_a_text() -> None:
    assert listed("100, 200,400") == (100, 200, 400)


@pytest.mark.parametrize("is_removed", [True, False])
def test_a_root_without_embeddings(is_removed: bool, tmp_path: Path) -> None:
    root = root_of(tmp_path, {}, pool=8)
    if is_removed:
        Storage(root).remove("embed")
    else:
        record = Storage(root).read_json("runs/r.json")
        Storage(root).write_json("runs/r.json", {**record, "directories": {"copies": ["copies/a"]}})
    said = "embed/pool-some" if is_removed else "embed"
    with pytest.raises(InputError, match=f"must hold the embeddings of its last run, .* has no {said}: run the recipe"):
        cluster_study(root, out=str(tmp_path / "s.html"))


def test_a_pool_of_which_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"at least 4 embeddings of the pool, had 0 of 0: .* a pool of more images"):
        cluster_study(root_of(tmp_path, {"things": CLASSES}, pool=0), out=str(tmp_path / "s.html"))


def test_the_miniature_root_from_the_command_line(curated: Curated, tmp_path: Path) -> None:
    page = tmp_path / "study.html"
    process = lvd("study", "clusters", str(curated.root), "--out", str(page), home=curated.home)
    assert process.returncode == 0, process.stderr[-2000:]
    said = json.loads(page.with_suffix(".json").read_text())
    assert [level["num_clusters"] for level in said["levels"]] == [2, 4, 8, 16]
    assert {one["name"] for one in said["collections"]} == {"textures", "emblems"}
    assert said["choice"]["rule"] == "labels" and said["clusters_now"] == 24
    assert 4 <= said["recommended"] <= 16  # four textures; other classes besides
    assert f"recommended for the pool: {said['recommended']}; the recipe has 24" in process.stdout
    assert str(page) in process.stdout and "agreement" in process.stdout
    refused = lvd("study", "clusters", str(curated.root), "--clusters", "4,9999", home=curated.home)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "was 9999" in refused.stderr
