"""Cluster shares: how many images each cluster gives, and that every one of its images has the same chance."""

from collections import Counter
from zlib import crc32

import numpy as np
import pyarrow as pa
import pytest

from lvd.infra.errors import ShardError
from lvd.infra.shards import ShardRef, StageDir, read_table
from lvd.tasks import cluster_shares, schemas
from lvd.tasks.algorithms.row_hash import row_hash
from lvd.tests.tasks import planted

ROWS, NUM = 300, 8
LEFT_OUT = (0, 3, *range(100, 112))
KEPT = np.setdiff1d(np.arange(ROWS), LEFT_OUT)
HOME = np.random.default_rng(0).choice(NUM, ROWS, p=np.array([30, 20, 20, 10, 10, 8, 2, 0]) / 100)  # 7 is empty
MEMBERS = {cluster: [n for n in KEPT.tolist() if HOME[n] == cluster] for cluster in range(NUM)}
SIZES = np.array([len(members) for members in MEMBERS.values()])
# Which cluster each query of a collection falls into: none, 1, 2, 3 and many.
HOMES = {"birds": [0] * 9 + [1] * 3 + [2] * 2 + [4] + [5] * 4 + [7] * 3, "cars": [1] * 4 + [3] * 7 + [6] * 4}
SHARDS = (1, 8, 37)


@pytest.fixture(autouse=True)
def no_file_waits_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda file: None)


def placed(root: str, num_shards: int = 8) -> list[ShardRef]:
    of = {
        n: {"row": n, "image_id": planted.identity(n), "cluster_id": int(HOME[n]), "similarity": n / ROWS}
        for n in KEPT.tolist()
    }
    return planted.stage(root, "cluster", schemas.CELLS, of, planted.cut(ROWS, num_shards))


def sizes_of(root: str) -> ShardRef:
    rows = [{"cluster_id": n, "size": int(size)} for n, size in enumerate(SIZES)]
    return planted.stage(root, "sizes", schemas.SIZES, rows, ((NUM,),))[0]


def closeness(query: int) -> float:
    return [0.5, 0.9, 0.7][query % 3]


def quotas(root: str, name: str, **rules: int) -> ShardRef:
    homes = [
        {"row": q, "image_id": f"{name}-{q}", "cluster_id": home, "similarity": closeness(q)}
        for q, home in enumerate(HOMES[name])
    ]
    refs = planted.stage(root, f"homes-{name}", schemas.CELLS, homes, planted.cut(len(homes), 3))
    rules = {"min_queries": 3, "per_cluster": 20, "max_images": 10**6, **rules}
    sizes = sizes_of(root)
    return planted.computed(
        root,
        f"quotas-{name}",
        1,
        lambda ref: cluster_shares.share_clusters.fn(planted.series(refs), sizes, ref, **rules),
    )[0]


def drawn(root: str, cells: list[ShardRef], collections: dict[str, ShardRef], seed: int = 0) -> dict[str, list[dict]]:
    """What each collection draws, by cluster and row."""
    names, of = [*collections], planted.series(cells)
    who = [cluster_shares.Drawn(name=name, quotas=ref) for name, ref in collections.items()]
    refs = planted.computed(
        root,
        "drawn",
        cluster_shares.num_groups(of),
        lambda ref: cluster_shares.draw_group.fn(of, who, ref, seed),
        called=f"{'-'.join(names)}-{seed}",
    )
    table = pa.concat_tables([read_table(ref) for ref in refs])
    found = {}
    for number, name in enumerate(names):
        mine = table.filter(pa.array(table["collection"].to_numpy() == number))
        chosen = cluster_shares.lowest_of_each(mine, read_table(collections[name]))
        found[name] = mine.take(pa.array(chosen)).to_pylist()
    return found


def shares(sizes: dict[int, int], total: int) -> dict[int, int]:
    """By largest remainder, in plain words."""
    if sum(sizes.values()) <= total:
        return sizes
    exact = {c: total * size / sum(sizes.values()) for c, size in sizes.items()}
    found = {c: int(share) for c, share in exact.items()}
    for c in sorted(exact, key=lambda c: (found[c] - exact[c], c))[: total - sum(found.values())]:
        found[c] += 1
    return found


@pytest.mark.parametrize("min_queries", [1, 2, 3, 4, 9, 10])
@pytest.mark.parametrize("per_cluster", [1, 12, 10_000])
@pytest.mark.parametrize("max_images", [1, 17, 10**6])
def test_clusters_that_are_reached_often_enough_give_their_share(
    local_root: str, min_queries: int, per_cluster: int, max_images: int
) -> None:
    ref = quotas(local_root, "birds", min_queries=min_queries, per_cluster=per_cluster, max_images=max_images)
    reached = Counter(HOMES["birds"])
    eligible = sorted(c for c, count in reached.items() if count >= min_queries)
    asked = {c: min(int(SIZES[c]), per_cluster) for c in eligible}
    expected = shares(asked, max_images)
    table = read_table(ref)
    assert table["cluster_id"].to_pylist() == eligible
    assert table["queries"].to_pylist() == [reached[c] for c in eligible]
    assert table["size"].to_pylist() == [SIZES[c] for c in eligible]
    assert table["quota"].to_pylist() == [expected[c] for c in eligible]
    nearest = [
        min((-closeness(q), q) for q, home in enumerate(HOMES["birds"]) if home == cluster)[1] for cluster in eligible
    ]
    assert table["query_id"].to_pylist() == [f"birds-{q}" for q in nearest]
    (notes,) = StageDir(root=local_root, stage="quotas-birds", fingerprint="a").account()["shard_notes"]
    assert notes == {
        "queries": len(HOMES["birds"]),
        "clusters": len(eligible),
        "taken_whole": sum(SIZES[c] <= per_cluster for c in eligible),
        "asked": sum(asked.values()),
        "capped": sum(asked.values()) - sum(expected.values()),
    }
    assert sum(expected.values()) == min(max_images, sum(asked.values()))


RULES = [
    {"per_cluster": 1},
    {"per_cluster": 20},
    {"per_cluster": 10_000},  # all of them
    {"per_cluster": 20, "max_images": 25},
    {"per_cluster": 20, "max_images": 1},  # most clusters give none
    {"min_queries": 10},  # no cluster at all
]


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("rows_per_group", [30, 1000])
def test_the_sample_is_the_same_however_the_cells_are_cut(
    tmp_path, monkeypatch: pytest.MonkeyPatch, rules: dict[str, int], rows_per_group: int
) -> None:
    monkeypatch.setattr(cluster_shares, "ROWS_PER_GROUP", rows_per_group)
    samples = []
    for num_shards in SHARDS:
        root = str(tmp_path / str(num_shards))
        ref = quotas(root, "birds", **rules)
        samples.append(drawn(root, placed(root, num_shards), {"birds": ref})["birds"])
    assert samples[0] == samples[1] == samples[2]
    table = read_table(ref)
    quota = dict(zip(table["cluster_id"].to_pylist(), table["quota"].to_pylist(), strict=True))
    sample = samples[0]
    assert Counter(row["cluster_id"] for row in sample) == +Counter(quota)
    assert len({row["row"] for row in sample}) == len(sample)
    assert [(row["cluster_id"], row["row"]) for row in sample] == sorted(
        (HOME[row["row"]], row["row"]) for row in sample
    )
    for row in sample:
        assert row["row"] in MEMBERS[row["cluster_id"]]
        assert row["image_id"] == planted.identity(row["row"])
        assert row["similarity"] == np.float32(row["row"] / ROWS)


def test_collections_drawn_in_one_pass_are_each_drawn_alone(local_root: str) -> None:
    cells = placed(local_root)
    both = {name: quotas(local_root, name, per_cluster=9) for name in HOMES}
    together, other_way = drawn(local_root, cells, both), drawn(local_root, cells, dict(reversed(both.items())))
    for name, ref in both.items():
        alone = drawn(local_root, cells, {name: ref})[name]
        for found in (together[name], other_way[name]):
            assert [{**row, "collection": 0} for row in found] == alone
    rows = {name: {row["row"] for row in found if row["cluster_id"] == 1} for name, found in together.items()}
    assert len(rows["birds"]) == len(rows["cars"]) == 9 and rows["birds"] != rows["cars"], "each has its own draw"


def test_every_member_of_a_cluster_has_its_turn(local_root: str) -> None:
    """Over 300 seeds each of a cluster's n images is drawn quota / n of the times, within the limits of chance."""
    cells, rounds = placed(local_root, 1), 300
    ref = quotas(local_root, "birds", per_cluster=12)
    table, of = read_table(ref), read_table(cells[0])
    rows, home = of["row"].to_numpy(), of["cluster_id"].to_numpy()
    times = np.zeros(ROWS)
    for seed in range(rounds):
        hashes = row_hash(rows, seed, cluster_shares.DRAWING, crc32(b"birds"))
        chosen = np.flatnonzero(hashes <= cluster_shares.limits(table, home))
        some = pa.table({"cluster_id": home[chosen], "hash": hashes[chosen], "row": rows[chosen]})
        taken = cluster_shares.lowest_of_each(some, table)
        times[some["row"].to_numpy()[taken]] += 1
        if seed < 2:
            sample = drawn(local_root, cells, {"birds": ref}, seed)["birds"]
            assert sorted(row["row"] for row in sample) == sorted(some["row"].to_numpy()[taken].tolist())
    for cluster, quota in zip(table["cluster_id"].to_pylist(), table["quota"].to_pylist(), strict=True):
        members, share = MEMBERS[cluster], quota / max(1, SIZES[cluster])
        if share == 1 or not members:
            assert (times[members] == rounds * share).all()
            continue
        assert times[members].min() > 0
        chi_square = ((times[members] - rounds * share) ** 2 / (rounds * share * (1 - share))).sum()
        assert abs(chi_square - len(members)) < 5 * np.sqrt(2 * len(members))


def test_a_sample_follows_its_seed(local_root: str) -> None:
    cells, ref = placed(local_root), quotas(local_root, "birds", per_cluster=6)
    samples = [[row["row"] for row in drawn(local_root, cells, {"birds": ref}, seed)["birds"]] for seed in (0, 1, 2, 0)]
    assert samples[0] == samples[3] and len({tuple(sample) for sample in samples}) == 3


def test_only_a_few_more_are_drawn_than_are_wanted() -> None:
    quota, size = 1000, 1_000_000
    rules = pa.table({"cluster_id": [3], "size": [size], "quota": [quota]})
    limit = cluster_shares.limits(rules, np.array([3, 2, 4], dtype=np.int32))
    assert 1.2 * quota < size * float(limit[0]) / 2**64 < 1.5 * quota
    assert limit[1:].tolist() == [0, 0], "clusters that give nothing"
    whole = pa.table({"cluster_id": [3], "size": [5], "quota": [5]})
    assert cluster_shares.limits(whole, np.array([3])).tolist() == [2**64 - 1]


def test_fewer_than_the_quota_is_no_sample(local_root: str) -> None:
    rules = pa.table({"cluster_id": [3], "quota": [2]})
    few = pa.table({"cluster_id": [3], "hash": [7], "row": [1]})
    with pytest.raises(ShardError, match="2 images must be drawn of the clusters, there were 1"):
        cluster_shares.lowest_of_each(few, rules)
