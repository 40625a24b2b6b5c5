"""Where retrieved images come from, against counting by hand."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from lvd.infra.committing import commit
from lvd.infra.shards import ShardRef, StageDir
from lvd.infra.writing import write_shard
from lvd.tasks import schemas
from lvd.tasks.reached import Domains, Rows, Spread, overlaps

CLUSTERS = 4
RNG = np.random.default_rng(0)
CLUSTER_OF = RNG.integers(0, CLUSTERS - 1, 100)  # the last one is empty
SIMILARITY = RNG.random(100).astype(np.float32)
BIRDS, PLANES = Rows("birds", np.array([3, 4, 50, 99])), Rows("planes", np.array([4, 60]))
PUBLISHED = Rows("published", np.array([3, 4, 50, 60, 77, 99]))  # one that nothing retrieved
NONE = np.zeros(0, np.int64)


@pytest.fixture
def cells(local_root: str) -> list[ShardRef]:
    target = StageDir(root=local_root, stage="cluster", fingerprint="a")
    for ref, rows in zip(target.planned(3), np.split(np.arange(100), [30, 30]), strict=True):
        with write_shard(ref, schemas.CELLS, {}) as shard:
            for row in rows.tolist():
                cell = {"cluster_id": int(CLUSTER_OF[row]), "similarity": float(SIMILARITY[row])}
                shard.keep({"row": row, "image_id": f"{row}", **cell})
    commit(target, 3, config={}, inputs={})
    return target.shards()


def test_rows_are_those_of_all_shards_each_once(local_root: str) -> None:
    target = StageDir(root=local_root, stage="retrieve", fingerprint="a")
    for ref, rows in zip(target.planned(2), ([9, 2], [2, 5]), strict=True):
        with write_shard(ref, schemas.MATCHES, {}) as shard:
            for row in rows:
                shard.keep({**dict.fromkeys(schemas.MATCHES.names), "row": row})
    commit(target, 2, config={}, inputs={})
    found = Rows.of("x", target.shards())
    assert found.rows.tolist() == [2, 5, 9]
    assert found.has(np.array([0, 2, 5, 6, 9, 10])).tolist() == [False, True, True, False, True, False]
    assert found.among(2, 9).tolist() == [2, 5]
    assert Rows.of("none", []).has(np.array([1])).tolist() == [False]


def test_overlaps() -> None:
    assert overlaps([BIRDS, PLANES]) == {"birds": {"birds": 4, "planes": 1}, "planes": {"birds": 1, "planes": 2}}


def test_clusters_and_similarities_are_counted(cells: list[ShardRef]) -> None:
    spread = Spread(cells, PUBLISHED, [BIRDS, PLANES], CLUSTERS, np.array([7, 98, 1000]))
    for one in (BIRDS, PLANES):
        np.testing.assert_array_equal(spread.counts[one.name], np.bincount(CLUSTER_OF[one.rows], minlength=CLUSTERS))
    np.testing.assert_array_equal(spread.kept, np.bincount(CLUSTER_OF[PUBLISHED.rows], minlength=CLUSTERS))
    assert spread.similarities.sum(axis=1).tolist() == [100, 6]
    assert spread.cluster_of == {7: CLUSTER_OF[7], 98: CLUSTER_OF[98], 1000: -1}


def test_what_a_collection_reached(cells: list[ShardRef]) -> None:
    spread, sizes = Spread(cells, BIRDS, [BIRDS], CLUSTERS, NONE), np.bincount(CLUSTER_OF, minlength=CLUSTERS)
    found = spread.reached("birds", sizes, Counter({"b": 2, "a": 2, "c": 5}))
    counts = Counter(CLUSTER_OF[BIRDS.rows].tolist())
    assert (found.clusters, found.of_clusters) == (len(counts), 3)
    assert [(one.cluster, one.images) for one in found.top_clusters] == sorted(
        counts.items(), key=lambda pair: (-pair[1], pair[0])
    )
    assert all(one.size == sizes[one.cluster] for one in found.top_clusters)
    assert (found.domains, found.top_domains) == (3, (("c", 5), ("a", 2), ("b", 2)))


def test_domains_of_tables_that_pass_by() -> None:
    domains = Domains([BIRDS, PLANES])
    names = [None if row == 50 else f"d{row % 2}" for row in range(100)]
    for start, stop in ((0, 40), (40, 40), (40, 100)):
        rows, some = pa.array(np.arange(start, stop)), pa.array(names[start:stop], pa.string())
        domains.add(pa.table({"row": rows, "domain": some}))
    assert domains.counts == {"birds": {"d1": 2, "d0": 1}, "planes": {"d0": 2}}
