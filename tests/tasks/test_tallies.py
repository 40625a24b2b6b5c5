"""What is counted, against plain Python over the same rows."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lvd.infra.committing import commit
from lvd.infra.shards import ShardRef, StageDir
from lvd.infra.writing import write_shard
from lvd.tasks import schemas, tallies


def written(root: str, stage: str, schema: pa.Schema, shards: list[list[dict[str, Any]]]) -> list[ShardRef]:
    target = StageDir(root=root, stage=stage, fingerprint="a")
    for ref, rows in zip(target.planned(len(shards)), shards, strict=True):
        with write_shard(ref, schema, {}) as shard:
            for row in rows:
                shard.keep({name: row.get(name) for name in schema.names})
    commit(target, len(shards), config={}, inputs={})
    return target.shards()


def test_endings_are_counted(local_root: str) -> None:
    rows = [
        {"role": "pool", "stage": s, "state": "dropped", "reason": r} for s, r in zip("aabba", "xxyyz", strict=True)
    ]
    found = tallies.endings(written(local_root, "ledger", schemas.LEDGER, [rows[:2], [], rows[2:]]))
    assert found == Counter(
        {("pool", stage, "dropped", reason): n for stage, reason, n in [("a", "x", 2), ("b", "y", 2), ("a", "z", 1)]}
    )


def test_images_meet_their_fates_behind_the_rejects(local_root: str) -> None:
    shards = [[{"image_id": "a", "domain": "x"}, {"image_id": "b"}], [{"image_id": "c"}]]
    images = written(local_root, "download", schemas.IMAGES, shards)
    fates = [{"image_id": None, "state": "failed"}, {"image_id": "a", "state": "kept"}, {"image_id": "b"}]
    ledger = written(local_root, "ledger", schemas.LEDGER, [fates, [{"image_id": "c"}]])
    found = [table.to_pylist() for _, table in tallies.with_fates(images, ledger)]
    assert [[(row["image_id"], row["row"], row["state"]) for row in rows] for rows in found] == [
        [("a", 0, "kept"), ("b", 1, None)],
        [("c", 2, None)],
    ]
    with pytest.raises(ValueError, match="must end with the images of"):
        list(tallies.with_fates(images, [ledger[1], ledger[0]]))


def test_profile_compares_the_pool_with_what_is_published() -> None:
    def table(rows: list[tuple[int, int, str, str, str | None]]) -> pa.Table:
        names = ("width", "height", "format", "state", "domain")
        columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
        return pa.table({**columns, "num_bytes": [10] * len(rows)}).set_column(
            4, "domain", pa.array(columns["domain"], type=pa.string())
        )

    profile = tallies.Profile()
    profile.add(table([(31, 90, "PNG", "kept", "a"), (90, 32, "GIF", "dropped", None)]), is_pool=True)
    profile.add(table([(5000, 4000, "PNG", "kept", None)]), is_pool=False)
    assert profile.fetched["format"] == {"PNG": 1, "GIF": 1} and profile.kept["format"] == {"PNG": 2}
    assert profile.fetched["domain"] == {"a": 1} and profile.kept["domain"] == {"a": 1}
    assert profile.with_domain == {"fetched": 1, "kept": 1}
    names = tallies.short_edge_names()
    assert {names[i]: n for i, n in profile.fetched["short_edge"].items()} == {"below 32": 1, "32 to 63": 1}
    assert {names[i]: n for i, n in profile.kept["short_edge"].items()} == {"below 32": 1, "2,048 and more": 1}
    assert (profile.bytes_fetched, profile.bytes_kept) == (20, 20)


def test_rare_domains_are_let_go_once_there_are_too_many() -> None:
    counts = Counter({"a": 5, "b": 4, "c": 3, "d": 2, "e": 1})
    assert tallies.most_common(counts, limit=3) == counts
    assert tallies.most_common(counts, limit=2) == {"a": 5, "b": 4}


def matches(seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [
        {"query_id": f"q{query:02d}", "row": int(rng.integers(1000)), "rank": rank, "similarity": float(similarity)}
        for query in range(50)
        for rank, similarity in enumerate(np.sort(rng.uniform(-1, 1, 5).astype(np.float32))[::-1])
    ]


def test_matches_are_overviewed_in_any_order(local_root: str) -> None:
    rows = matches(0)
    shuffled = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]
    refs = written(local_root, "retrieve", schemas.MATCHES, [shuffled[:99], shuffled[99:]])
    counts, queries = tallies.match_overview(refs, 8)
    assert counts.tolist() == np.histogram([row["similarity"] for row in rows], tallies.SIMILARITY_EDGES)[0].tolist()
    worst = {f"q{q:02d}": min(r["similarity"] for r in rows if r["query_id"] == f"q{q:02d}") for q in range(50)}
    lowest = sorted(worst, key=lambda name: (worst[name], name))[:4]
    assert queries[4:] == lowest
    assert queries[:4] == sorted(set(worst) - set(lowest))[:4]
    found = tallies.matches_of(refs, queries, 3)
    assert list(found) == queries
    for query, match in found.items():
        expected = [row for row in rows if row["query_id"] == query]
        assert match["size"] == 5
        assert [row["row"] for row in match["rows"]] == [row["row"] for row in expected[:3]]


def test_no_matches_and_no_queries(local_root: str) -> None:
    refs = written(local_root, "retrieve", schemas.MATCHES, [[]])
    counts, queries = tallies.match_overview(refs, 8)
    assert counts.sum() == 0 and queries == [] and tallies.matches_of(refs, queries, 3) == {}
    assert tallies.match_overview(written(local_root, "more", schemas.MATCHES, [matches(0)]), 0)[1] == []


def test_a_balanced_selection_has_similarities_and_no_queries(local_root: str) -> None:
    rows = [{**row, "query_id": None, "kind": "balanced"} for row in matches(4)]
    refs = written(local_root, "retrieve", schemas.MATCHES, [rows])
    counts, queries = tallies.match_overview(refs, 8)
    assert counts.sum() == len(rows) > 0 and queries == []


def test_clusters_are_spread_and_their_nearest_found(local_root: str) -> None:
    rng = np.random.default_rng(3)
    rows = [
        {"row": row, "image_id": str(row), "cluster_id": int(c), "similarity": float(s)}
        for row, (c, s) in enumerate(zip(rng.integers(0, 9, 200), rng.random(200).astype(np.float32), strict=True))
    ]
    refs = written(local_root, "cluster", schemas.CELLS, [rows[:70], [], rows[70:]])
    sizes = np.bincount([row["cluster_id"] for row in rows], minlength=12)
    chosen = tallies.spread_clusters(sizes, 4)
    assert sizes[chosen].tolist() == sorted(sizes[chosen], reverse=True)
    assert (sizes[chosen[0]], sizes[chosen[-1]]) == (sizes.max(), sizes[sizes > 0].min())
    nearest = tallies.nearest_to_centroids(refs, chosen, 5)
    for cluster in chosen:
        mine = sorted((r for r in rows if r["cluster_id"] == cluster), key=lambda r: -r["similarity"])[:5]
        assert [row["row"] for row in nearest[cluster]] == [row["row"] for row in mine]
    assert tallies.spread_clusters(np.zeros(3, dtype=np.int64), 4) == []


def test_published_images_are_counted_for_every_collection_that_retrieved_them(local_root: str) -> None:
    rows = [{"role": "curated", "retrieved_for": []}, {"role": "retrieved", "retrieved_for": ["a", "b"]}]
    rows.append({"role": "retrieved", "retrieved_for": ["b"]})
    roles, collections = tallies.published_counts(written(local_root, "curated", schemas.CURATED, [rows[:1], rows[1:]]))
    assert roles == {"curated": 1, "retrieved": 2} and collections == {"a": 1, "b": 2}


def test_licences_of_published_images_are_counted_as_they_were_found(local_root: str) -> None:
    rows = [{"license": name} for name in ("cc0", None, "cc-by-4.0", "cc0", "")]
    found = tallies.licenses(written(local_root, "curated", schemas.CURATED, [rows[:2], [], rows[2:]]))
    assert found == {"cc0": 2, "": 2, "cc-by-4.0": 1}


def test_rejects_are_sampled_by_reason(local_root: str) -> None:
    target = StageDir(root=local_root, stage="download", fingerprint="a")
    with write_shard(target.planned(1)[0], schemas.IMAGES, {}) as shard:
        for number in range(20):
            shard.reject(f"key-{number}", f"http_{404 + number % 2}", error="gone")
    commit(target, 1, config={}, inputs={})
    sample = tallies.rejected_examples(target.shards(), 3, np.random.default_rng(0))
    assert sample.names() == ["http_404", "http_405"]
    for reason in sample.names():
        assert len(sample.rows(reason)) == 3 and {row["reason"] for row in sample.rows(reason)} == {reason}


def test_domains_of_the_published_images_are_kept_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"state": ["kept", "dropped", "kept", "kept"], "domain": ["a", "b", None, "c"]})
    domains: set[str] = set()
    tallies.add_domains(domains, table)
    tallies.add_domains(domains, table)
    assert domains == {"a", "c"}
    monkeypatch.setattr(tallies, "MAX_DOMAINS", 3)
    tallies.add_domains(domains, pa.table({"state": ["kept"] * 3, "domain": ["d", "e", "f"]}))
    assert len(domains) == 3
