"""Retrieval by sample and by cluster, against plain Python over the same vectors, on two partitions of many shards."""

from collections import Counter

import numpy as np
import pytest

from lvd.infra.shards import ShardRef, StageDir, commit, read_table
from lvd.tasks import cluster, retrieve, schemas
from lvd.tests.tasks import planted

LAYOUT = ((30, 0, 25), (5, 40))
LEFT_OUT = (0, 3, 55, 56, 57, 58, 59, 99)  # a whole shard among them
KEPT = np.delete(np.arange(100), LEFT_OUT).tolist()
QUERY_LAYOUT = ((3, 0, 4), (5, 2))
QUERIES_LEFT_OUT = (1, 13)
QUERIES_KEPT = np.delete(np.arange(14), QUERIES_LEFT_OUT).tolist()
POOL = planted.random_units(np.random.default_rng(1), 100, 4)
QUERIES = planted.random_units(np.random.default_rng(23), 14, 4)
SIMILARITY = planted.cosine(QUERIES, POOL)


@pytest.fixture
def pool(local_root: str) -> list[ShardRef]:
    return planted.vectors(local_root, "embed", POOL, LAYOUT, left_out=LEFT_OUT)


@pytest.fixture
def queries(local_root: str) -> list[ShardRef]:
    return planted.vectors(local_root, "queries", QUERIES, QUERY_LAYOUT, left_out=QUERIES_LEFT_OUT)


def searched(queries: list[ShardRef], pool: list[ShardRef], depth: int) -> list[ShardRef]:
    planned = StageDir(root=pool[0].root, stage="candidates", fingerprint=str(depth)).planned(len(queries))
    return [
        retrieve.search_shard.fn(q, pool, ref, depth=depth, device="cpu")
        for q, ref in zip(queries, planned, strict=True)
    ]


def target_of(root: str) -> StageDir:
    return StageDir(root=root, stage="retrieve", fingerprint="a")


def rows_and_notes(target: StageDir) -> tuple[list[dict], dict]:
    account = commit(target, 1, config={}, inputs={})
    rows = read_table(target.shards()[0]).to_pylist()
    assert {row["dataset"] for row in rows} <= {"birds"}
    assert all(row["image_id"] == planted.identity(row["row"]) for row in rows)
    return rows, account["shard_notes"][0]


def nearest(query: int, depth: int) -> list[int]:
    return sorted(KEPT, key=lambda row: (-SIMILARITY[query, row], row))[:depth]


@pytest.mark.parametrize("depth", [1, 7, 500])
def test_candidates_are_the_nearest_of_every_query(pool, queries, depth: int) -> None:
    rows = [row for ref in searched(queries, pool, depth) for row in read_table(ref).to_pylist()]
    expected = [
        {
            "query": query,
            "query_id": planted.identity(query),
            "row": row,
            "rank": rank,
            "similarity": np.float32(SIMILARITY[query, row]),
        }
        for query in QUERIES_KEPT
        for rank, row in enumerate(nearest(query, depth))
    ]
    assert rows == expected


def settled(policy: str, neighbors: int, depth: int) -> tuple[set[tuple[int, int]], int]:
    """(query, row) pairs by the words of the policy, and the collisions among the nearest `neighbors`."""
    first = {query: nearest(query, neighbors) for query in QUERIES_KEPT}
    wanted = Counter(row for rows in first.values() for row in rows)
    collided = sum(count - 1 for count in wanted.values())
    if policy == "count":
        return {(query, row) for query, rows in first.items() for row in rows}, collided
    if policy == "keep_once":
        best = {row: min((-SIMILARITY[q, row], q) for q, rows in first.items() if row in rows)[1] for row in wanted}
        return {(query, row) for row, query in best.items()}, collided
    taken: set[tuple[int, int]] = set()
    pairs = [(-SIMILARITY[q, row], q, row) for q in QUERIES_KEPT for row in nearest(q, depth)]
    for _, query, row in sorted(pairs):
        if row not in {r for _, r in taken} and sum(q == query for q, _ in taken) < neighbors:
            taken.add((query, row))
    return taken, collided


@pytest.mark.parametrize("policy", ["refill", "keep_once", "count"])
@pytest.mark.parametrize(("neighbors", "depth"), [(1, 1), (4, 8), (4, 40), (20, 92), (3, 500)])
def test_sample_equals_brute_force(local_root: str, pool, queries, policy: str, neighbors: int, depth: int) -> None:
    candidates = searched(queries, pool, depth)
    target, sample = target_of(local_root), retrieve.Sample(kind="sample", neighbors=neighbors)
    config = retrieve.Config(collisions=policy)
    done = retrieve.retrieve_sample.fn("birds", candidates, pool, target.planned(1)[0], sample, config)
    rows, notes = rows_and_notes(target)
    expected, collided = settled(policy, neighbors, depth)
    assert {(int(row["query_id"], 16), row["row"]) for row in rows} == expected
    assert len(rows) == len(expected) == done.rows
    for row in rows:
        query = int(row["query_id"], 16)
        assert row["similarity"] == np.float32(SIMILARITY[query, row["row"]])
        assert nearest(query, depth)[row["rank"]] == row["row"]
        assert (row["kind"], row["cluster_id"]) == ("sample", None)
    images = len({row for _, row in expected})
    assert notes == {
        "kind": "sample",
        "queries": 12,
        "asked": 12 * neighbors,
        "found": len(rows),
        "images": images,
        "collided": collided,
    }


def test_queries_of_equal_content_each_retrieve(local_root: str, pool) -> None:
    rows = {n: {"image_id": planted.identity(5), "vector": QUERIES[5]} for n in (0, 1)}
    twins = planted.stage(local_root, "twins", schemas.vectors(4), rows, ((1,), (1,)))
    target, sample = target_of(local_root), retrieve.Sample(kind="sample", neighbors=2)
    candidates = searched(twins, pool, 8)
    retrieve.retrieve_sample.fn("birds", candidates, pool, target.planned(1)[0], sample, retrieve.Config())
    assert sorted(row["row"] for row in rows_and_notes(target)[0]) == sorted(nearest(5, 4))


# Six clusters, which hold 0, 1, 2, 2, 3 and 4 of the queries.
CENTROIDS = np.concatenate([np.eye(4), -np.eye(4)[:1], planted.unit(np.ones((1, 4)) * -1)]).astype(np.float32)
HOME = planted.cosine(POOL, CENTROIDS).argmax(axis=1)
QUERY_SIMILARITY = planted.cosine(QUERIES, CENTROIDS)
QUERY_HOME = QUERY_SIMILARITY.argmax(axis=1)
MEMBERS = {c: [n for n in KEPT if HOME[n] == c] for c in range(len(CENTROIDS))}
REACHED = {c: [q for q in QUERIES_KEPT if QUERY_HOME[q] == c] for c in range(len(CENTROIDS))}


@pytest.fixture
def centroids(local_root: str) -> ShardRef:
    rows = [{"cluster_id": n, "size": 1, "vector": vector} for n, vector in enumerate(CENTROIDS)]
    return planted.stage(local_root, "centroids", schemas.centroids(4), rows, ((len(rows),),))[0]


@pytest.fixture
def cells(local_root: str, pool, centroids) -> list[ShardRef]:
    target = StageDir(root=local_root, stage="cluster", fingerprint="a")
    for vectors, ref in zip(pool, target.planned(len(pool)), strict=True):
        cluster.assign_shard.fn(vectors, centroids, ref)
    commit(target, len(pool), config={}, inputs={})
    return target.shards()


def by_cluster(queries, centroids, cells, *, seed: int = 0, **policy) -> tuple[list[dict], dict]:
    target = target_of(cells[0].root)
    policy = retrieve.Cluster(kind="cluster", **policy)
    retrieve.retrieve_cluster.fn("birds", queries, centroids, cells, target.planned(1)[0], policy, seed)
    return rows_and_notes(target)


@pytest.mark.parametrize("min_queries", [1, 2, 3, 4, 15])
@pytest.mark.parametrize("per_cluster", [1, 12, 10_000])
def test_clusters_that_are_reached_often_enough_give_their_share(
    queries, centroids, cells, min_queries: int, per_cluster: int
) -> None:
    rows, notes = by_cluster(queries, centroids, cells, min_queries=min_queries, per_cluster=per_cluster)
    eligible = [c for c, reached in REACHED.items() if len(reached) >= min_queries]
    expected = {c: min(len(MEMBERS[c]), per_cluster) for c in eligible}
    assert Counter(row["cluster_id"] for row in rows) == +Counter(expected)
    assert len({row["row"] for row in rows}) == len(rows)
    similarity = planted.cosine(POOL, CENTROIDS)
    for row in rows:
        home = row["cluster_id"]
        assert row["row"] in MEMBERS[home] and row["kind"] == "cluster"
        assert row["similarity"] == pytest.approx(similarity[row["row"], home], abs=1.1e-5)
        assert row["query_id"] == planted.identity(max(REACHED[home], key=lambda q: QUERY_SIMILARITY[q, home]))
    for home in eligible:
        assert [row["rank"] for row in rows if row["cluster_id"] == home] == list(range(expected[home]))
    whole = sum(len(MEMBERS[c]) <= per_cluster for c in eligible)
    total = sum(expected.values())
    counts = {"queries": 12, "clusters": len(eligible), "taken_whole": whole, "asked": total}
    assert notes == {"kind": "cluster", **counts, "found": total, "images": total}


def test_the_planted_clusters_tell_the_rules_apart() -> None:
    assert sorted(map(len, REACHED.values())) == [0, 1, 2, 2, 3, 4]
    assert min(map(len, MEMBERS.values())) > 9
    assert settled("count", 4, 8)[1] > 0  # queries want the same images


def test_a_sample_follows_its_seed(queries, centroids, cells) -> None:
    policy = {"min_queries": 1, "per_cluster": 6}
    samples = [[r["row"] for r in by_cluster(queries, centroids, cells, seed=s, **policy)[0]] for s in (0, 0, 1, 2)]
    assert samples[0] == samples[1]
    assert len({tuple(sample) for sample in samples}) == 3


def test_every_member_of_a_cluster_has_its_turn(queries, centroids, cells) -> None:
    policy = {"min_queries": 4, "per_cluster": 3}
    drawn = {r["row"] for seed in range(60) for r in by_cluster(queries, centroids, cells, seed=seed, **policy)[0]}
    assert drawn == {row for c, reached in REACHED.items() if len(reached) >= 4 for row in MEMBERS[c]}


def test_the_cap_is_shared_by_largest_remainder(queries, centroids, cells) -> None:
    rows, notes = by_cluster(queries, centroids, cells, min_queries=1, per_cluster=20, max_images=11)
    sizes = {c: min(len(MEMBERS[c]), 20) for c, reached in REACHED.items() if reached}
    exact = {c: 11 * size / sum(sizes.values()) for c, size in sizes.items()}
    quotas = {c: int(share) for c, share in exact.items()}
    for c in sorted(exact, key=lambda c: (quotas[c] - exact[c], c))[: 11 - sum(quotas.values())]:
        quotas[c] += 1
    assert Counter(row["cluster_id"] for row in rows) == +Counter(quotas)
    assert (notes["asked"], notes["found"], notes["images"]) == (sum(sizes.values()), 11, 11)


def test_nothing_eligible_gives_an_empty_shard(queries, centroids, cells) -> None:
    rows, notes = by_cluster(queries, centroids, cells, min_queries=15)
    assert rows == [] and (notes["clusters"], notes["found"]) == (0, 0)


def test_a_collection_without_vectors_retrieves_nothing(local_root: str, pool, centroids, cells) -> None:
    none = planted.vectors(local_root, "none", QUERIES, QUERY_LAYOUT, left_out=range(14))
    assert by_cluster(none, centroids, cells)[0] == []
    target, sample = target_of(local_root), retrieve.Sample(kind="sample")
    candidates = searched(none, pool, 8)
    retrieve.retrieve_sample.fn("birds", candidates, pool, target.planned(1)[0], sample, retrieve.Config())
    assert rows_and_notes(target)[0] == []
