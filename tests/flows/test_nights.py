"""Night by night: what is found is what one search of everything finds, and nothing old is compared with old again."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from lvd.flows import clustering, forgetting, neighbours, retrieval
from lvd.flows.collected import Embedded
from lvd.flows.recipe import parse
from lvd.infra.errors import InputError
from lvd.infra.series import Series
from lvd.infra.shards import StageDir, read_table
from lvd.infra.storage import Storage
from lvd.tasks import neighbours as search_stage
from lvd.tasks.algorithms import cells as cell_groups
from lvd.tasks.copies import Thresholds
from lvd.tests.plain import Plain, without_prefect
from lvd.tests.tasks import planted

DIM, FLOOR = 4, 0.6
LAYOUT = ((20, 0, 11), (7, 16), (9,), (12, 5))  # four partitions of 31, 23, 9 and 17 rows
ROWS = sum(map(sum, LAYOUT))
POOL = planted.random_units(np.random.default_rng(0), ROWS, DIM)
QUERIES = planted.random_units(np.random.default_rng(1), 14, DIM)
NIGHTS = [(2, 1, 1), (1, 1, 1, 1), (3, 1)]


@pytest.fixture(autouse=True)
def plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    without_prefect(monkeypatch)
    monkeypatch.setattr(cell_groups, "num_groups", lambda num_rows: 3)
    monkeypatch.setattr(search_stage, "HELD_ROWS", 6)
    monkeypatch.setattr(search_stage, "QUERY_ROWS", 5)


def run_of(root: str, **sections: Any) -> Plain:
    source = {"kind": "images", "path": "/data"}
    curated = [{"name": "curated", **source, "include": False, "retrieve": {"kind": "sample", "neighbors": 3}}]
    tree = {"name": "nights", "root": root, "pool": [source], "curated": curated, "compute": {"gpus": 0}}
    return Plain(parse({**tree, "cluster": {"num_clusters": 5}, **sections}))


def vectors(root: str, generations: tuple[int, ...], until: int = len(LAYOUT)) -> Series:
    """The pool, or its first partitions, in so many generations."""
    layout = LAYOUT[:until]
    refs = planted.vectors(root, "descriptors", POOL[: sum(map(sum, layout))], layout)
    return planted.series(refs).model_copy(update={"generations": generations})


def edges(found: Series) -> dict[tuple[int, int], float]:
    rows = [row for ref in found.shards() for row in read_table(ref).to_pylist()]
    pairs = {(row["left"], row["right"]): row["similarity"] for row in rows}
    assert len(pairs) == len(rows), "no pair comes twice"
    return pairs


def searching(root: str, engine: str, **search: Any) -> Plain:
    options = {"engine": engine, "num_cells": 6, "recall_queries": 40, "min_recall": 0, **search}
    return run_of(root, copies={"model": "builtin:dct", "search": options})


THRESHOLDS = Thresholds(min_similarity=FLOOR, benchmark_min_similarity=FLOOR, edge_min_similarity=FLOOR)


@pytest.mark.parametrize("nights", NIGHTS)
def test_exact_edges_are_those_of_one_search(local_root: str, nights: tuple[int, ...]) -> None:
    similarity, across = planted.cosine(POOL, POOL), planted.cosine(POOL, QUERIES)
    run, pool = searching(local_root, "exact"), vectors(local_root, nights)
    assert edges(neighbours.pool_edges(run, pool, THRESHOLDS)) == {
        (a, b): np.float32(similarity[a, b])
        for a in range(ROWS)
        for b in range(a + 1, ROWS)
        if similarity[a, b] >= FLOOR
    }
    references = planted.series(planted.vectors(local_root, "references", QUERIES, ((9, 0, 5),)))
    assert edges(neighbours.reference_edges(run, pool, references, THRESHOLDS)) == {
        (a, b): np.float32(across[a, b]) for a in range(ROWS) for b in range(len(QUERIES)) if across[a, b] >= FLOOR
    }


@pytest.mark.parametrize("nights", NIGHTS)
def test_edges_through_cells_are_those_of_which_one_probes_the_other(local_root: str, nights: tuple[int, ...]) -> None:
    run, pool = searching(local_root, "cells"), vectors(local_root, nights)
    found = neighbours.pool_edges(run, pool, THRESHOLDS)
    references = planted.series(planted.vectors(local_root, "references", QUERIES, ((9, 0, 5),)))
    found_across = neighbours.reference_edges(run, pool, references, THRESHOLDS)
    assert len(run.directories["cells"]) == 1
    probes = {d: [] for d in (*pool.directories, *references.directories)}
    for name in run.directories["probes"]:
        (target,) = Series(root=local_root, directories=(name,), bases=(0,)).stage_dirs()
        (of,) = target.account()["inputs"]["descriptors"]
        probes[of] = [row["probes"] for ref in target.shards() for row in read_table(ref).to_pylist()]
    near = np.array([row for name in pool.directories for row in probes[name]])
    near_others = np.array([row for name in references.directories for row in probes[name]])
    for series, right, values in ((found, near, POOL), (found_across, near_others, QUERIES)):
        counts = {d.account()["notes"]["recall"]["probes"] for d in series.stage_dirs()}
        (num,) = counts  # as many every night
        similarity = planted.cosine(POOL, values)
        pairs = {
            (a, b): np.float32(similarity[a, b])
            for a in range(ROWS)
            for b in range(a + 1 if values is POOL else 0, len(values))
            if similarity[a, b] >= FLOOR and (near[a, 0] in right[b, :num] or right[b, 0] in near[a, :num])
        }
        assert edges(series) == pairs
        assert len(pairs) > 0


def test_copies_of_what_is_forgotten_are_looked_for_in_the_edges_of_all_nights(local_root: str) -> None:
    references = planted.series(planted.vectors(local_root, "references", QUERIES, ((9,), (5,))))
    pool, run = vectors(local_root, (2, 1, 1)), searching(local_root, "exact")
    found = neighbours.reference_edges(run, pool, references, THRESHOLDS)
    survivors = StageDir(root=local_root, stage="copies", fingerprint="a")
    inputs, notes = {"directories": [*found.directories, "unique/a"]}, {"thresholds": THRESHOLDS.model_dump()}
    survivors.storage.write_json("copies/a/stage.json", {"inputs": inputs, "notes": notes})
    known = forgetting.across(survivors)
    assert list(known.edges) == found.shards() and len(found.directories) == 3
    assert [ref.name() for ref in known.references] == [ref.name() for ref in references.shards()]
    assert known.min_similarity == FLOOR


@pytest.mark.parametrize("engine", ["exact", "cells"])
def test_a_further_night_compares_nothing_again(local_root: str, engine: str) -> None:
    before = searching(local_root, engine)
    first = neighbours.pool_edges(before, vectors(local_root, (2,), until=2), THRESHOLDS)
    again = searching(local_root, engine)
    found = neighbours.pool_edges(again, vectors(local_root, (2, 1), until=3), THRESHOLDS)
    assert found.directories[: len(first.directories)] == first.directories
    new = set(found.directories) - set(first.directories)
    assert len(new) == 2  # the night in itself, and with those before
    shards = sum(len(directory.shards()) for directory in found.stage_dirs() if directory.directory in new)
    assert again.computed["neighbours"] == shards
    assert again.computed.get("cells", 0) == 0


@pytest.mark.parametrize("engine", ["exact", "cells"])
def test_what_is_there_is_looked_up_as_often_however_many_nights_there_were(
    local_root: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A night asks storage for each directory a few times, and not once for every night that came after it."""
    layout = ((5,),) * 16
    pool = planted.series(planted.vectors(local_root, "descriptors", POOL, layout))
    pool = pool.model_copy(update={"generations": (1,) * 16})
    neighbours.pool_edges(searching(local_root, engine), pool, THRESHOLDS)
    asked = Counter()

    def counted(function: Any) -> Any:
        def counting(directory: StageDir) -> Any:
            asked[directory.directory] += 1
            return function(directory)

        return counting

    for name in ("is_complete", "account"):
        monkeypatch.setattr(StageDir, name, counted(getattr(StageDir, name)))
    run = searching(local_root, engine)
    neighbours.pool_edges(run, pool, THRESHOLDS)
    assert not sum(run.computed.values())
    assert set(asked) >= set(pool.directories)
    assert max(asked.values()) < 10 and sum(asked.values()) < 15 * 16


def test_a_pool_that_has_become_much_larger_gets_more_cells(local_root: str) -> None:
    layout = ((6,), (8,), (9,), (30,), (20,))
    pool = planted.series(planted.vectors(local_root, "descriptors", POOL, layout))
    pool = pool.model_copy(update={"generations": (1,) * 5})
    run = searching(local_root, "cells", num_cells=None)
    found = neighbours.pool_edges(run, pool, THRESHOLDS)
    of_night = [d.account()["inputs"]["pool"][0][0] for d in found.stage_dirs()]
    cells = [Series(root=local_root, directories=(d,), bases=(0,)).stage_dirs()[0] for d in run.directories["cells"]]
    assert [len(d.account()["inputs"]["descriptors"]) for d in cells] == [1, 4], "when it was 4 times as large"
    assert len(of_night) == 9
    similarity = planted.cosine(POOL, POOL)
    for (a, b), value in edges(found).items():
        assert value == np.float32(similarity[a, b])


@pytest.mark.parametrize("nights", NIGHTS)
@pytest.mark.parametrize("engine", ["exact", "cells"])
def test_what_is_retrieved_night_by_night_is_what_is_retrieved_at_once(
    local_root: str, tmp_path: Any, engine: str, nights: tuple[int, ...]
) -> None:
    def matched(root: str, generations: tuple[int, ...], fit: str | None) -> tuple[list[dict[str, Any]], str]:
        search = {"engine": engine, "recall_queries": 10, "max_probes": 5}
        run = run_of(root, cluster={"num_clusters": 5, "fit": fit}, retrieve={"search": search})
        queries = planted.series(planted.vectors(root, "curated", QUERIES, ((14,),)))
        embedded = Embedded(pool=vectors(root, generations), curated={"curated": queries})
        cells = clustering.cluster(run, embedded)
        matches = retrieval.retrieve(run, embedded, cells).by_collection["curated"]
        rows = [row for ref in matches.shards() for row in read_table(ref).to_pylist()]
        return rows, f"{root}/{cells.centroids.directory}"

    at_once, fit = matched(local_root, (), None)
    by_night, _ = matched(str(tmp_path / "nights"), nights, fit)
    assert by_night == at_once
    assert len(at_once) == 3 * len(QUERIES)


def test_a_further_night_reads_what_the_nights_before_found_as_one(local_root: str) -> None:
    queries = planted.series(planted.vectors(local_root, "curated", QUERIES, ((14,),)))

    def found(*generations: int) -> tuple[int, bool]:
        run = run_of(local_root, cluster={"num_clusters": 5, "refit": "never"})
        pool = vectors(local_root, generations, until=sum(generations))
        embedded = Embedded(pool=pool, curated={"curated": queries})
        retrieval.retrieve(run, embedded, clustering.cluster(run, embedded))
        first = Series(root=local_root, directories=(run.directories["candidates"][0],), bases=(0,)).stage_dirs()[0]
        inputs = first.account()["inputs"]
        return len(inputs["found"]), inputs["before"] is not None

    assert found(1) == (1, False)
    assert found(1, 1) == (1, True)
    assert found(1, 1, 1, 1) == (2, True)


class Clustered:
    """A pool that grows, clustered night after night; the first night lies about one direction, the others anywhere."""

    def __init__(self, root: str, name: str = "pool", **cluster: Any) -> None:
        self.root, self.name, self.settings = root, name, {"num_clusters": 5, "max_drift": 0.1, **cluster}
        first = sum(LAYOUT[0])
        self.values = POOL.copy()
        self.values[:first] = planted.unit(np.eye(1, DIM) + 0.2 * POOL[:first])

    def after(self, *generations: int) -> tuple[Any, Plain]:
        """The cells after these nights, and the run that found them."""
        layout = LAYOUT[: sum(generations)]
        refs = planted.vectors(self.root, self.name, self.values[: sum(map(sum, layout))], layout)
        pool = planted.series(refs).model_copy(update={"generations": generations})
        run = run_of(self.root, cluster=self.settings)
        return clustering.cluster(run, Embedded(pool=pool, curated={})), run


def test_kept_centroids_stay_and_drift_is_told(local_root: str) -> None:
    clustered = Clustered(local_root, refit="never")
    (first, _), (second, run) = clustered.after(1), clustered.after(1, 1)
    assert second.centroids == first.centroids
    assert second.cells.directories[0] == first.cells.directories[0]
    assert run.computed["cluster"] == len(LAYOUT[1])
    (remark,) = run.remarks
    assert "similar to their centroids" in remark and "recipe.cluster.refit" in remark
    assert not Clustered(local_root, refit="never", max_drift=2).after(1, 1)[1].remarks


def test_drifted_centroids_are_fitted_anew_once(local_root: str) -> None:
    clustered = Clustered(local_root, refit="on_drift", max_drift=0.3)
    (first, _), (second, run) = clustered.after(1), clustered.after(1, 1)
    assert second.centroids != first.centroids and len(run.remarks) == 1
    third, again = clustered.after(1, 1)
    assert third == second and not again.remarks and not sum(again.computed.values())
    fourth, later = clustered.after(1, 1, 1)
    assert fourth.centroids == second.centroids and not later.remarks


def test_the_last_kept_centroids_are_found_when_those_before_are_gone(local_root: str) -> None:
    clustered = Clustered(local_root, refit="on_drift", max_drift=0.3)
    (first, _), (second, _) = clustered.after(1), clustered.after(1, 1)
    Storage(local_root).remove(first.centroids.directory)
    for generations in ((1, 1), (1, 1, 1)):
        found, run = clustered.after(*generations)
        assert found.centroids == second.centroids and "fit" not in run.computed


def test_another_pool_of_the_root_is_looked_at_although_it_has_no_more_nights(local_root: str) -> None:
    Clustered(local_root, refit="never").after(1)
    other = Clustered(local_root, "other", refit="never")
    other.values = POOL
    (remark,) = other.after(1)[1].remarks
    assert "similar to their centroids" in remark


def test_given_centroids_are_never_fitted_anew() -> None:
    with pytest.raises(InputError, match="refit must be always or never where fit names centroids, was on_drift"):
        run_of("root", cluster={"num_clusters": 5, "fit": "s3://bucket/root/centroids/a", "refit": "on_drift"})


def test_a_pool_that_grows_is_fitted_anew_by_default(local_root: str) -> None:
    clustered = Clustered(local_root)
    assert clustered.after(1)[0].centroids != clustered.after(1, 1)[0].centroids
