"""The chain of vectors from end to end: what it says of every row, against a calculation by brute force."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from datasets import load_from_disk

from lvd.flows import from_vectors
from lvd.flows.inquiry import last_run
from lvd.flows.preflight import check
from lvd.flows.recipe import parse
from lvd.flows.run import Run, Work
from lvd.flows.show import show_status, show_why
from lvd.infra.errors import InputError
from lvd.infra.shards import StageDir
from lvd.infra.storage import Storage
from lvd.tasks.models.engine import read_vectors
from lvd.tests.running import data_files, lvd
from lvd.tests.tasks import planted

DIM, NUM, MIN_SIMILARITY = 16, 20, 0.95
NEIGHBORS, SHARES = 3, {"min_queries": 3, "per_cluster": 15, "max_images": 100}
BAD = (7, 1700, 1801, 2999)  # rows of the pool without a direction
POOL = {"a.npy": 1800, "b.npy": 1200}


class Vectors:
    """The files of a pool and of three collections, and the recipe that chooses by them."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(0)
        middle = rng.normal(size=(30, DIM))

        def drawn(rows: int) -> np.ndarray:
            return (middle[rng.integers(30, size=rows)] + 0.35 * rng.normal(size=(rows, DIM))).astype(np.float32)

        self.folder = folder
        self.pool, self.near, self.shares, self.asis = (drawn(rows) for rows in (sum(POOL.values()), 100, 60, 50))
        self.pool[list(BAD)] = np.array([[0.0], [np.nan], [np.inf], [0.0]])
        self.asis[11] = np.nan
        (folder / "pool").mkdir()
        np.save(folder / "pool/a.npy", self.pool[:1800])
        np.save(folder / "pool/b.npy", self.pool[1800:])
        for name in ("near", "shares", "asis"):
            np.save(folder / f"{name}.npy", getattr(self, name))
        self.names = [f"{folder}/pool/{file}/{n:010d}" for file, rows in POOL.items() for n in range(rows)]
        self.recipe = folder / "recipe.yaml"
        self.recipe.write_text(yaml.safe_dump(self.tree()))

    def tree(self) -> dict[str, Any]:
        def source(path: str) -> dict[str, Any]:
            return {"kind": "vectors", "path": str(self.folder / path), "source": path.removesuffix(".npy")}

        sample, cluster = {"kind": "sample", "neighbors": NEIGHBORS}, {"kind": "cluster", **SHARES}
        return {
            "name": "own",
            "root": str(self.folder / "root"),
            "pool": [source("pool")],
            "curated": [
                {"name": "near", **source("near.npy"), "include": False, "retrieve": sample},
                {"name": "shares", **source("shares.npy"), "include": False, "retrieve": cluster},
                {"name": "asis", **source("asis.npy")},
            ],
            "cluster": {"num_clusters": NUM, "iterations": 5},
            "semdedup": {"min_similarity": MIN_SIMILARITY},
            "compute": {"gpus": 0},
        }

    def run(self, *settings: str, root: str = "root") -> Any:
        return lvd("run", str(self.recipe), "--root", str(self.folder / root), *settings, home=self.folder / "prefect")


class Truth:
    """What must become of every row of the pool, from the vectors and the centroids that were found."""

    def __init__(self, vectors: Vectors, root: Path) -> None:
        used = last_run(Storage(str(root)))["directories"]
        (centroids,) = (self._shards(root, name) for name in used["centroids"])
        self.middle = read_vectors(centroids[0])
        self.left = np.setdiff1d(np.arange(len(vectors.pool)), BAD)
        self.unit = np.zeros((len(vectors.pool), DIM), np.float16)
        self.unit[self.left] = planted.unit(vectors.pool[self.left])
        self.cell = np.full(len(vectors.pool), -1)
        self.cell[self.left] = (self.unit[self.left].astype(np.float64) @ self.middle.T).argmax(axis=1)
        self.because = {row: kept for cell in range(NUM) for row, kept in self._alike(cell).items()}
        self.stay = np.setdiff1d(self.left, [*self.because])
        self.near = self._near(planted.unit(vectors.near))
        self.quotas = self._quotas(planted.unit(vectors.shares))

    @staticmethod
    def _shards(root: Path, name: str) -> list[Any]:
        stage, fingerprint = name.rsplit("/", 1)
        return StageDir(root=str(root), stage=stage, fingerprint=fingerprint).shards()

    def _alike(self, cell: int) -> dict[int, int]:
        """Row that goes → the one that stays, one by one from the least typical of the cluster."""
        rows = np.flatnonzero(self.cell == cell)
        closeness = (self.unit[rows].astype(np.float32) @ self.middle[cell]).round(5)
        similarity = planted.cosine(self.unit[rows], self.unit[rows])
        kept: list[int] = []
        gone = {}
        for one in np.lexsort((rows, closeness)):
            like = [(-similarity[one, other], order, other) for order, other in enumerate(kept)]
            best = min(like, default=(0, 0, 0))
            if -best[0] >= MIN_SIMILARITY:
                gone[int(rows[one])] = int(rows[best[2]])
            else:
                kept.append(one)
        return gone

    def _near(self, queries: np.ndarray) -> dict[int, int]:
        """Row → the query that takes it: pairs by similarity, each row once, each query up to N."""
        similarity = planted.cosine(queries, self.unit[self.stay])
        query, place = (column.ravel() for column in np.indices(similarity.shape))
        taken: dict[int, int] = {}
        has = Counter()
        for pair in np.lexsort((place, query, -similarity.ravel())):
            row, asks = int(self.stay[place[pair]]), int(query[pair])
            if row not in taken and has[asks] < NEIGHBORS:
                taken[row] = asks
                has[asks] += 1
        return taken

    def _quotas(self, queries: np.ndarray) -> dict[int, int]:
        """Cluster → how many images it gives."""
        homes = Counter((queries.astype(np.float64) @ self.middle.T).argmax(axis=1).tolist())
        sizes = Counter(self.cell[self.stay].tolist())
        wanted = {
            cell: min(sizes[cell], SHARES["per_cluster"]) for cell, n in homes.items() if n >= SHARES["min_queries"]
        }
        assert sum(wanted.values()) > SHARES["max_images"], "the cap decides too"
        return wanted


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Vectors:
    return Vectors(tmp_path_factory.mktemp("vectors"))


@pytest.fixture(scope="module")
def root(vectors: Vectors) -> Path:
    process = vectors.run("--set", "compute.cpu_workers=2")
    assert process.returncode == 0, process.stderr[-4000:]
    assert f"candidates       {len(vectors.pool) + 50:,}  balanced" in process.stdout
    return vectors.folder / "root"


@pytest.fixture(scope="module")
def truth(vectors: Vectors, root: Path) -> Truth:
    return Truth(vectors, root)


@pytest.fixture(scope="module")
def ledger(root: Path) -> dict[tuple[str, str], dict[str, Any]]:
    rows = load_from_disk(str(root / "curated/v1/ledger")).to_list()
    found = {(row["role"], row["key"]): row for row in rows}
    assert len(found) == len(rows) == sum(POOL.values()) + 50
    return found


def test_every_row_of_the_pool_has_the_fate_that_it_must_have(
    vectors: Vectors, truth: Truth, ledger: dict[tuple[str, str], dict[str, Any]]
) -> None:
    rows = [ledger["pool", name] for name in vectors.names]
    assert {row["source"] for row in rows} == {"pool"}
    ended = [(row["state"], row["stage"], row["reason"]) for row in rows]
    assert [n for n, end in enumerate(ended) if end == ("failed", "embed", "not_finite")] == [*BAD]
    same = [n for n, end in enumerate(ended) if end == ("dropped", "cluster", "semantic_duplicate")]
    assert same == sorted(truth.because) and 100 < len(same) < 2000
    for n in same:
        kept = truth.because[n]
        assert rows[n]["because_of"] == vectors.names[kept]
        assert rows[n]["score"] == pytest.approx(planted.cosine(truth.unit[[n]], truth.unit[[kept]]).item(), abs=1e-4)
    kept = {n for n, end in enumerate(ended) if end == ("kept", "publish", "retrieved")}
    assert set(truth.near) <= kept
    rest = {("failed", "embed", "not_finite"), ("dropped", "cluster", "semantic_duplicate")}
    rest |= {("kept", "publish", "retrieved"), ("dropped", "retrieve", "not_retrieved")}
    assert set(ended) == rest


def test_what_is_published_is_what_was_retrieved(
    vectors: Vectors, truth: Truth, root: Path, ledger: dict[tuple[str, str], dict[str, Any]]
) -> None:
    published = load_from_disk(str(root / "curated/v1")).to_list()
    asis, chosen = published[:49], published[49:]
    assert [row["image_id"] for row in asis] == [f"{vectors.folder}/asis.npy/{n:010d}" for n in range(50) if n != 11]
    assert {row["role"] for row in asis} == {"curated"} and {row["role"] for row in chosen} == {"retrieved"}
    assert [vectors.names[row["row"]] for row in chosen] == [row["image_id"] for row in chosen]
    assert [row["row"] for row in chosen] == sorted({row["row"] for row in chosen})
    near = {row["row"]: row for row in chosen if "near" in row["retrieved_for"]}
    assert set(near) == set(truth.near)
    for n, query in truth.near.items():
        if near[n]["retrieved_for"] == ["near"]:
            assert near[n]["query_id"] == f"{vectors.folder}/near.npy/{query:010d}"
    given = Counter(int(truth.cell[row["row"]]) for row in chosen if "shares" in row["retrieved_for"])
    assert given.total() == SHARES["max_images"] and set(given) <= set(truth.quotas)
    assert all(given[cell] <= wanted for cell, wanted in truth.quotas.items())
    for row in chosen:
        said = ledger["pool", row["image_id"]]
        assert (said["score"], said["because_of"]) == (row["similarity"], row["query_id"])
    kept = {name for (_, name), row in ledger.items() if row["state"] == "kept"}
    assert kept == {row["image_id"] for row in published} and len(kept) == len(published)


def test_an_included_collection_is_in_the_ledger(
    vectors: Vectors, ledger: dict[tuple[str, str], dict[str, Any]]
) -> None:
    mine = {name: row for (role, name), row in ledger.items() if role == "curated"}
    assert [*mine] == sorted(mine, key=lambda name: (mine[name]["state"] == "kept", name))
    assert {(row["source"], row["stage"], row["reason"]) for row in mine.values() if row["state"] == "kept"} == {
        ("asis", "publish", "curated")
    }
    (failed,) = [name for name, row in mine.items() if row["state"] == "failed"]
    assert failed == f"{vectors.folder}/asis.npy/{11:010d}" and len(mine) == 50


def test_the_card_has_the_figures(
    vectors: Vectors, truth: Truth, root: Path, ledger: dict[tuple[str, str], dict[str, Any]]
) -> None:
    card = (root / "curated/v1/README.md").read_text()
    states = Counter(row["state"] for row in ledger.values())
    assert f"# own\n\n{states['kept']:,} vectors, chosen from {len(ledger):,} by `lvd`." in card
    for state, number in states.items():
        assert f"| {state} | {number:,} |" in card
    rows = load_from_disk(str(root / "curated/v1")).to_list()
    for name, kind, queries, asked in (("near", "sample", 100, 300), ("shares", "cluster", 60, None)):
        found = sum(name in row["retrieved_for"] for row in rows)
        asked = asked or sum(truth.quotas.values())
        assert f"| {name} | {kind} | {queries} | {asked} | {found} | {found} |" in card
    assert f"{len(truth.quotas)} clusters, " in card and f"{sum(truth.quotas.values()) - 100} beyond the cap" in card
    both = sum(len(row["retrieved_for"]) == 2 for row in rows)
    assert f"| near | {len(truth.near)} | {both} |" in card


def test_again_nothing_is_computed(vectors: Vectors, root: Path) -> None:
    files = data_files(root)
    process = vectors.run("--set", "compute.cpu_workers=2")
    assert process.returncode == 0, process.stderr[-4000:]
    assert "nothing was computed: every stage was found complete" in process.stdout
    assert data_files(root) == files


def test_the_root_answers(
    vectors: Vectors, root: Path, ledger: dict[tuple[str, str], dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    show_status(str(root))
    status = capsys.readouterr().out
    assert "imported" in status and "duplicates" in status and "unfinished" not in status and "stale" not in status
    name = next(name for (_, name), row in ledger.items() if row["reason"] == "semantic_duplicate")
    show_why(str(root), name)
    said = "".join(capsys.readouterr().out.split())  # a long name may be broken over lines
    assert "droppedatcluster:semantic_duplicate,score0.9" in said
    assert f"becauseof{ledger['pool', name]['because_of']}:" in said
    with pytest.raises(InputError, match=r"^key must be .*, was 'nobody'"):
        show_why(str(root), "nobody")


def test_one_worker_gives_the_same_bytes(vectors: Vectors, root: Path) -> None:
    process = vectors.run("--set", "compute.cpu_workers=1", root="other")
    assert process.returncode == 0, process.stderr[-4000:]
    assert data_files(vectors.folder / "other") == data_files(root)


class Planned(Run):
    """A run that computes nothing and keeps what it was asked to."""

    def __init__(self, recipe: Any) -> None:
        super().__init__(recipe, looking=True)
        self.works: list[Work] = []

    def complete(self, stage: str, works: list[Work]) -> None:
        self.works += works


def asked(tree: dict[str, Any]) -> list[str]:
    """The directories into which the pool and the collections are imported."""
    run = Planned(parse(tree))
    from_vectors.embed(run, from_vectors.listed(run.recipe))
    return [work.target.directory for work in run.works]


def test_a_changed_file_is_imported_anew_and_no_other(tmp_path: Path) -> None:
    mine = Vectors(tmp_path)
    before = asked(mine.tree())
    assert asked(mine.tree()) == before and len({*before}) == 4
    np.save(tmp_path / "near.npy", mine.near[::-1].copy())  # as many rows, and other ones
    os.utime(tmp_path / "near.npy", (1, 1))
    changed = [a != b for a, b in zip(before, asked(mine.tree()), strict=True)]
    assert changed == [False, True, False, False]
    (tmp_path / "pool/c.npy").write_bytes((tmp_path / "asis.npy").read_bytes())  # one more file
    changed = [a != b for a, b in zip(before, asked(mine.tree()), strict=True)]
    assert changed == [True, True, False, False]


def test_pieces_of_several_sources_are_one_pool(tmp_path: Path) -> None:
    mine = Vectors(tmp_path)
    tree = mine.tree()
    first, second = ({"kind": "vectors", "path": f"{tmp_path}/pool/{name}"} for name in POOL)
    found = from_vectors.listed(parse({**tree, "pool": [first, second]}))
    assert [(piece.start, piece.rows) for piece in found["pool"]] == [(0, 1800), (1800, 1200)]
    assert [*found] == ["pool", "near", "shares", "asis"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pool": [{"kind": "vectors", "path": "/none.npy"}]}, r"^recipe\.pool\[0\]\.path must lead to files that"),
        ({"curated": [{"name": "c"}]}, r"^recipe\.curated\[0\] must have a source to be run: give its kind and path$"),
        (
            {"curated": [{"name": "c", "kind": "synthetic", "rows": 3, "dim": 5}]},
            r"^recipe\.curated\[0\] must have vectors of 16 values, as recipe\.pool\[0\], has 5$",
        ),
        ({"cluster": {"num_clusters": 3001}}, r"^recipe\.cluster\.num_clusters must be in \[1, 3000\], .* was 3001"),
        ({"curated": []}, r"^recipe\.curated must name a collection that is included or retrieves, was none"),
    ],
)
def test_what_cannot_be_run_is_said_before(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    mine = Vectors(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        check(Run(parse({**mine.tree(), **change})))
    assert "\n" not in str(caught.value)
