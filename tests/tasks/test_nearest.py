"""Nearest: both searches against brute force, however pool, queries and cells are cut; and certified recall."""

import numpy as np
import pyarrow as pa
import pytest

from lvd.infra.committing import commit
from lvd.infra.errors import ShardError
from lvd.infra.runs import SortedRun
from lvd.infra.shards import ShardRef, StageDir, read_table
from lvd.infra.writing import write_shard
from lvd.tasks import cluster, lists, nearest, neighbours, settling
from lvd.tasks.algorithms import cells as cell_groups
from lvd.tasks.recall import Search
from lvd.tests.tasks import planted

ROWS, QUERIES, DIM, NUM = 240, 37, 6, 12
GONE, QUERIES_GONE = (0, 3, *range(100, 130), 239), (1, 20, 21)
UNPLACED = (5, 6, 150)  # have a vector and no cell: no candidates
POOL = planted.around(np.random.default_rng(0), ROWS, DIM, 20)
ASKED = np.delete(planted.around(np.random.default_rng(1), QUERIES, DIM, 8), QUERIES_GONE, axis=0)
CENTROIDS = planted.random_units(np.random.default_rng(2), NUM, DIM).astype(np.float32)
THERE = np.setdiff1d(np.arange(ROWS), (*GONE, *UNPLACED))
SIMILARITY = planted.cosine(ASKED, POOL)
HOME = planted.cosine(POOL, CENTROIDS).argmax(axis=1)
PROBES = np.argsort(-planted.cosine(ASKED, CENTROIDS), axis=1, kind="stable")
SHARDS = (1, 6)


class Pool:
    """The pool, its cells and lists, the queries and their probes, below a root."""

    def __init__(self, root: str, num_shards: int = 6) -> None:
        self.root, layout = root, planted.cut(ROWS, num_shards)
        vectors, middle = (
            planted.vectors(root, "embed", POOL, layout, left_out=GONE),
            planted.centroids(root, CENTROIDS),
        )
        found = planted.computed(
            root, "all-cells", len(vectors), lambda ref: cluster.assign_shard.fn(vectors[ref.index], middle, ref)
        )
        placed = planted.computed(root, "cluster", len(vectors), lambda ref: self._placed(found[ref.index], ref))
        self.vectors, self.placed = planted.series(vectors), planted.series(placed)
        (self.sizes,) = planted.computed(root, "sizes", 1, lambda ref: cluster.count_cells.fn(self.placed, NUM, ref))
        count = lists.num_runs(self.vectors, DIM)
        self.lists = planted.series(
            planted.computed(root, "lists", count, lambda ref: lists.lists_run.fn(self.vectors, self.placed, ref, DIM))
        )
        queries = planted.vectors(root, "queries", ASKED, planted.cut(len(ASKED), num_shards))
        near = planted.computed(
            root,
            "probes",
            len(queries),
            lambda ref: neighbours.probe_shard.fn(queries[ref.index], middle, ref, max_probes=NUM, device="cpu"),
        )
        self.queries, self.probes = planted.series(queries), planted.series(near)
        self.middle, self.near = middle, tuple(near)

    def _placed(self, found: ShardRef, target: ShardRef) -> ShardRef:
        table = read_table(found)
        with write_shard(target, table.schema, {}) as shard:
            shard.keep_table(table.filter(pa.array(~np.isin(table["row"].to_numpy(), UNPLACED))))
        return target.model_copy(update={"rows": shard.kept.rows})

    def through_cells(self, num: int, depth: int, groups: int) -> list[ShardRef]:
        options = {"num": num, "depth": depth, "device": "cpu"}
        return planted.computed(
            self.root,
            "nearest",
            groups,
            lambda ref: nearest.search_cells.fn(self.lists, self.sizes, self.queries, self.probes, ref, **options),
            called=f"{num}-{depth}-{groups}",
        )

    def through_all(self, depth: int, **more: ShardRef) -> list[ShardRef]:
        return planted.computed(
            self.root,
            "nearest",
            len(nearest.spans(self.vectors)),
            lambda ref: nearest.search_all.fn(
                self.vectors, self.placed, self.queries, ref, depth=depth, device="cpu", **more
            ),
            called=f"all-{depth}-{len(more)}",
        )

    def merged(self, found: list[ShardRef], depth: int) -> list[tuple[int, int, float]]:
        """(query, row, similarity) of all candidates, as they lie."""
        count = max(1, -(-len(ASKED) // nearest.MERGED_QUERIES))
        refs = planted.computed(
            self.root,
            "candidates",
            count,
            lambda ref: nearest.merge_candidates.fn(planted.series(found), ref, depth=depth),
            called=found[0].directory.replace("/", "-"),
        )
        return rows_of(refs)


def rows_of(refs: list[ShardRef]) -> list[tuple[int, int, float]]:
    return [tuple(row.values()) for ref in refs for row in read_table(ref).to_pylist()]


@pytest.fixture(autouse=True)
def in_small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda file: None)
    monkeypatch.setattr(nearest, "QUERY_ROWS", 8)
    monkeypatch.setattr(nearest, "MERGED_QUERIES", 10)
    monkeypatch.setattr(lists, "rows_per_run", lambda dim: 50)
    monkeypatch.setattr("lvd.infra.runs.BATCH_ROWS", 16)
    monkeypatch.setattr(cell_groups, "num_groups", lambda num_rows: 5)


def expected(depth: int, allowed: np.ndarray) -> list[tuple[int, int, float]]:
    """The nearest of each query among what it may find. allowed: (queries, rows) bool."""
    found = []
    for query in range(len(ASKED)):
        rows = [row for row in THERE.tolist() if allowed[query, row]]
        best = sorted(rows, key=lambda row: (-SIMILARITY[query, row], row))[:depth]
        found += [(query, row, np.float32(SIMILARITY[query, row])) for row in best]
    return found


EVERYTHING = np.ones(SIMILARITY.shape, dtype=bool)


@pytest.mark.parametrize("num_shards", SHARDS)
def test_what_is_found_through_cells_is_the_nearest_of_those_probed(local_root: str, num_shards: int) -> None:
    pool = Pool(local_root, num_shards)
    for depth in (1, 7, 500):
        for num in (1, 3, NUM):
            probed = (HOME[None, :, None] == PROBES[:, None, :num]).any(axis=2)
            for groups in (1, 4, 40) if depth == 7 else (3,):  # also more groups than cells
                found = pool.through_cells(num, depth, groups)
                assert pool.merged(found, depth) == expected(depth, probed), (num, depth, groups)
        assert probed.all() and expected(depth, probed) == expected(depth, EVERYTHING), "all cells: nothing is missed"


def test_every_group_has_its_own_nearest_by_query(local_root: str) -> None:
    for ref in Pool(local_root).through_cells(NUM, 3, 4):
        rows = rows_of([ref])
        assert [row[0] for row in rows] == sorted(row[0] for row in rows)
        assert {sum(row[0] == query for row in rows) for query in range(len(ASKED))} == {3}


@pytest.mark.parametrize("num_shards", SHARDS)
def test_what_is_found_in_all_of_the_pool_is_the_nearest(local_root: str, num_shards: int) -> None:
    pool = Pool(local_root, num_shards)
    assert len(nearest.spans(pool.vectors)) == (1 if num_shards == 1 else 3)
    for depth in (1, 7, 500):
        assert pool.merged(pool.through_all(depth), depth) == expected(depth, EVERYTHING)


def written(root: str, name: str, schema: pa.Schema, keyed: str, **columns: np.ndarray) -> ShardRef:
    """A sorted run by hand."""
    target = StageDir(root=root, stage=name, fingerprint="a")
    (ref,) = target.planned(1)
    with write_shard(ref, schema, {}) as shard, SortedRun(ref, shard, keyed) as run:
        run.keep(pa.table(columns).cast(schema))
    commit(target, 1, config={}, inputs={})
    return target.shards()[0]


@pytest.mark.parametrize("num_shards", SHARDS)
def test_a_further_search_finds_what_is_free_or_held_by_a_lesser_claim(local_root: str, num_shards: int) -> None:
    pool, rng = Pool(local_root, num_shards), np.random.default_rng(7)
    asks = np.array([0, 2, 3, 17, 18, len(ASKED) - 1])
    rows = np.sort(rng.choice(THERE, 150, replace=False))
    holder = rng.integers(0, len(ASKED), 150)
    similarity = SIMILARITY[holder, rows].astype(np.float32)  # some are held by those who ask, at their own claim
    held = {"query": holder, "row": rows, "similarity": similarity, "rank": np.zeros(150, np.int32)}
    taken = written(local_root, "taken", settling.TAKEN, "row", **held)
    wanting = written(local_root, "wanting", settling.WANTING, "query", query=asks)
    lowest = np.full(ROWS, -9.0)
    lowest[rows] = SIMILARITY[holder, rows]
    allowed = (lowest <= SIMILARITY) & np.isin(np.arange(len(ASKED)), asks)[:, None]
    for depth in (1, 7, 500):
        found = pool.through_all(depth, wanting=wanting, taken=taken)
        assert pool.merged(found, depth) == expected(depth, allowed)
    own = {(int(q), int(r)) for q, r in zip(holder, rows, strict=True) if q in asks}
    assert own <= {(query, row) for query, row, _ in expected(500, allowed)}, "what a query holds it finds again"
    nobody = written(local_root, "nobody", settling.WANTING, "query", query=np.zeros(0, dtype=np.int64))
    assert pool.merged(pool.through_all(6, wanting=nobody), 6) == []


def test_merged_candidates_are_the_first_of_all() -> None:
    query, row = np.array([3, 1, 3, 3, 1]), np.array([9, 4, 2, 5, 8])
    similarity = np.array([0.5, 0.1, 0.5, 0.9, 0.7])
    order = nearest.first_of_each_query(query, row, similarity, 2)
    assert [(int(query[i]), int(row[i])) for i in order] == [(1, 8), (1, 4), (3, 5), (3, 2)]  # equal ones by row
    assert nearest.first_of_each_query(query[:0], row[:0], similarity[:0], 2).tolist() == []


def truth_of(pool: Pool, neighbors: int) -> tuple[ShardRef, list[ShardRef]]:
    near = planted.series(list(pool.near))
    of = neighbours.Cells(centroids=pool.middle, descriptors=pool.queries, probes=near, is_pool=False)
    (drawn,) = planted.computed(pool.root, "drawn", 1, lambda ref: neighbours.draw_queries.fn(of, ref, 30, 0))
    truth = planted.computed(
        pool.root,
        "truth",
        len(nearest.spans(pool.vectors)),
        lambda ref: nearest.true_nearest.fn(drawn, pool.vectors, pool.placed, ref, neighbors=neighbors, device="cpu"),
    )
    return drawn, truth


@pytest.mark.parametrize("num_shards", SHARDS)
def test_recall_is_what_the_probes_find_of_the_nearest(local_root: str, num_shards: int) -> None:
    pool, neighbors = Pool(local_root, num_shards), 4
    drawn, truth = truth_of(pool, neighbors)
    numbers = read_table(drawn)["row"].to_numpy() - neighbours.REFERENCE
    assert len({*numbers.tolist()}) == 30
    best = expected(neighbors, EVERYTHING)
    told = numbers[15:].tolist()
    for probes in (2, 3, 6, NUM):
        search = Search(max_probes=probes, min_recall=0.0)
        found = nearest.certified_recall(truth, 30, neighbors, search, seed=0)
        share = {p: [HOME[row] in PROBES[q, :p] for q, row, _ in best if q in told] for p in (2, probes)}
        assert found.probes == 2 and found.recall == pytest.approx(np.mean(share[2])), "the fewest are enough for 0"
        asked = Search(max_probes=probes, min_recall=1.0)
        if np.mean(share[probes]) == 1:
            assert nearest.certified_recall(truth, 30, neighbors, asked, seed=0).recall == 1
            continue
        numbers_said = f"found {np.mean(share[probes]):.4f} .*15 queries. with {probes} probes"
        with pytest.raises(ShardError, match=f"must find 1.0000 of the 4 nearest, {numbers_said}"):
            nearest.certified_recall(truth, 30, neighbors, asked, seed=0)
    assert np.mean(share[2]) < 0.99, "two probes are too few"
    certified = nearest.certified_recall(truth, 30, neighbors, Search(max_probes=NUM), seed=0)
    assert certified.recall >= 0.99 and 2 < certified.probes <= NUM
    assert certified.pairs == 15 * neighbors


def test_a_pool_that_is_smaller_than_what_is_asked_for(local_root: str) -> None:
    pool = Pool(local_root)
    _, truth = truth_of(pool, 1000)
    found = nearest.certified_recall(truth, 30, 1000, Search(max_probes=NUM), seed=0)
    assert found.pairs == 15 * len(THERE)
