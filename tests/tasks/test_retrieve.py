"""Matches: what was taken and what was drawn become rows that name query, image, rank and similarity."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from lvd.infra.committing import commit
from lvd.infra.shards import ShardRef, StageDir, read_table
from lvd.tasks import cluster_shares, retrieve, schemas, settling
from lvd.tests.tasks import planted
from lvd.tests.tasks.planted import identity

ROWS, QUERIES, NUM = 100, 14, 6
LAYOUT = ((30, 0, 25), (5, 40))
LEFT_OUT = (0, 3, 55, 56, 57, 58, 59, 99)  # a whole shard among them
KEPT = np.delete(np.arange(ROWS), LEFT_OUT).tolist()
QUERY_LAYOUT = ((3, 0, 4), (5, 2))
QUERIES_GONE = (1, 13)
QUERIES_KEPT = np.delete(np.arange(QUERIES), QUERIES_GONE).tolist()  # their places: 0 to 11


@pytest.fixture
def pool(local_root: str) -> list[ShardRef]:
    return planted.vectors(local_root, "embed", np.ones((ROWS, 1), np.float16), LAYOUT, left_out=LEFT_OUT)


@pytest.fixture
def queries(local_root: str) -> list[ShardRef]:
    ones = np.ones((QUERIES, 1), np.float16)
    return planted.vectors(local_root, "queries", ones, QUERY_LAYOUT, left_out=QUERIES_GONE)


def closed(root: str, count: int) -> list[ShardRef]:
    target = StageDir(root=root, stage="retrieve", fingerprint="a")
    commit(target, count, config={}, inputs={})
    assert {ref.count for ref in target.shards()} == {count}
    return target.shards()


def matches_of(root: str, write: Callable[[StageDir], retrieve.Written]) -> list[dict]:
    written = write(StageDir(root=root, stage="retrieve", fingerprint="a"))
    refs = closed(root, written.shards)
    assert all(read_table(ref).schema.equals(schemas.MATCHES) for ref in refs)
    rows = [row for ref in refs for row in read_table(ref).to_pylist()]
    assert (written.matches, written.images) == (len(rows), len({row["row"] for row in rows}))
    return rows


def taken_of(root: str, pairs: list[tuple[int, int, int]]) -> ShardRef:
    """pairs: (place of the query, pool row, rank)."""
    rows = [{"query": q, "row": r, "rank": rank, "similarity": r / ROWS} for q, r, rank in pairs]
    return planted.stage(root, "taken", settling.TAKEN, rows, ((len(rows),),))[0]


def random_pairs() -> list[tuple[int, int, int]]:
    """Up to five images of each of some queries, by pool row, as they are taken."""
    rng = np.random.default_rng(0)
    rows = rng.permutation(KEPT)[:50].tolist()
    askers = rng.integers(2, len(QUERIES_KEPT), 50).tolist()  # the first two get nothing
    pairs = [(query, row, askers[:n].count(query)) for n, (query, row) in enumerate(zip(askers, rows, strict=True))]
    return sorted(pairs, key=lambda pair: pair[1])


@pytest.mark.parametrize(("rows_per_shard", "shards"), [(7, 8), (50, 1), (25, 2), (1_000_000, 1)])
def test_what_was_taken_is_written_by_query_and_rank(
    local_root: str, pool, queries, monkeypatch: pytest.MonkeyPatch, rows_per_shard: int, shards: int
) -> None:
    monkeypatch.setattr(retrieve, "ROWS_PER_SHARD", rows_per_shard)
    taken, pairs = taken_of(local_root, random_pairs()), random_pairs()
    series = planted.series(queries), planted.series(pool)
    rows = matches_of(local_root, lambda target: retrieve.retrieve_sample.fn("birds", taken, *series, target))
    assert rows == [
        {
            "dataset": "birds",
            "query_id": identity(QUERIES_KEPT[query]),
            "row": row,
            "image_id": identity(row),
            "rank": rank,
            "similarity": np.float32(row / ROWS),
            "kind": "sample",
            "cluster_id": None,
        }
        for query, row, rank in sorted(pairs, key=lambda pair: (pair[0], pair[2]))
    ]
    sizes = [ref.rows for ref in StageDir(root=local_root, stage="retrieve", fingerprint="a").shards()]
    assert len(sizes) == shards and {*sizes[:-1]} <= {rows_per_shard} and sum(sizes) == 50


def test_nothing_taken_is_an_empty_shard(local_root: str, pool, queries) -> None:
    taken, series = taken_of(local_root, []), (planted.series(queries), planted.series(pool))
    assert matches_of(local_root, lambda target: retrieve.retrieve_sample.fn("birds", taken, *series, target)) == []


QUOTAS = {1: (9, 3), 2: (5, 5), 4: (8, 0)}  # cluster → its size and its quota


@pytest.fixture
def quotas(local_root: str) -> ShardRef:
    rows = [
        {"cluster_id": c, "queries": 4, "size": size, "quota": quota, "query_id": f"query-{c}"}
        for c, (size, quota) in QUOTAS.items()
    ]
    return planted.stage(local_root, "quotas", cluster_shares.QUOTAS, rows, ((len(rows),),))[0]


def drawn_of(root: str) -> list[tuple[int, int, int, int]]:
    """(collection, cluster, hash, pool row) of what may be drawn: of collection 1, and others of 0 and 2."""
    rng = np.random.default_rng(1)
    rows = rng.permutation(KEPT)[:30].tolist()
    cluster = [1] * 9 + [2] * 5 + [4] * 8 + [1] * 8
    who = [1] * 22 + [0, 2] * 4
    return list(zip(who, cluster, rng.permutation(10**6)[:30].tolist(), rows, strict=True))


@pytest.mark.parametrize("kind", ["cluster", "balanced"])
def test_what_was_drawn_is_written_by_cluster_and_row(local_root: str, quotas, kind: str) -> None:
    drawn = drawn_of(local_root)
    rows = [
        {"collection": n, "cluster_id": c, "hash": h, "row": r, "image_id": identity(r), "similarity": r / ROWS}
        for n, c, h, r in drawn
    ]
    refs = planted.stage(local_root, "drawn", cluster_shares.DRAWN, rows, ((11, 0), (19,)))
    found = matches_of(
        local_root,
        lambda target: retrieve.retrieve_cluster.fn("cars", 1, planted.series(refs), quotas, target, kind),
    )
    expected = []
    for cluster, (_, quota) in QUOTAS.items():
        of = sorted((h, r) for n, c, h, r in drawn if (n, c) == (1, cluster))[:quota]
        expected += [(cluster, rank, row) for rank, row in enumerate(sorted(row for _, row in of))]
    assert [(row["cluster_id"], row["rank"], row["row"]) for row in found] == expected
    for row in found:
        assert (row["dataset"], row["kind"]) == ("cars", kind)
        assert row["query_id"] == f"query-{row['cluster_id']}" and row["image_id"] == identity(row["row"])
        assert row["similarity"] == np.float32(row["row"] / ROWS)


def test_a_collection_that_draws_nothing_has_an_empty_shard(local_root: str) -> None:
    none = planted.stage(local_root, "quotas", cluster_shares.QUOTAS, [], ((0,),))[0]
    drawn = planted.series(planted.stage(local_root, "drawn", cluster_shares.DRAWN, [], ((0, 0),)))
    write = retrieve.retrieve_cluster.fn
    assert matches_of(local_root, lambda target: write("cars", 0, drawn, none, target, "cluster")) == []


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    files = []
    for name in "ab":
        root = str(tmp_path / name)
        ones = np.ones((ROWS, 1), np.float16)
        pool = planted.series(planted.vectors(root, "embed", ones, LAYOUT, left_out=LEFT_OUT))
        queries = planted.series(planted.vectors(root, "queries", ones[:QUERIES], QUERY_LAYOUT, left_out=QUERIES_GONE))
        target = StageDir(root=root, stage="retrieve", fingerprint="a")
        retrieve.retrieve_sample.fn("birds", taken_of(root, random_pairs()), queries, pool, target)
        files.append((tmp_path / name / target.planned(1)[0].name()).read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("collisions", "depth"),
    [("refill", 12), ("keep_once", 4), ("count", 4)],  # only refill looks for more than it wants
)
def test_the_depth_of_the_first_search(collisions: str, depth: int) -> None:
    assert retrieve.Config(collisions=collisions, depth_per_neighbor=3).depth(4) == depth


@pytest.mark.parametrize(
    "settings", [{"collisions": "first"}, {"depth_per_neighbor": 0}, {"depth": 4}, {"search": {"engine": "faiss"}}]
)
def test_what_cannot_be_is_refused(settings: dict) -> None:
    with pytest.raises(ValidationError):
        retrieve.Config(**settings)
