"""Which vectors are on the map, and what it tells of them."""

import numpy as np
import pytest

from lvd.infra.committing import commit
from lvd.infra.shards import ShardRef, StageDir
from lvd.infra.writing import write_shard
from lvd.tasks import cluster_map, schemas
from lvd.tasks.cluster_map import GRID, drawn, mapped
from lvd.tasks.reached import Rows

NONE = np.zeros(0, dtype=np.int64)
# of two shards of ten images each, those that have a vector
ALIVE = ([0, 1, 4, 9], [0, 2, 3, 5, 6, 8])
BASE = 100
POOL_ROWS = [BASE + row for row in (0, 1, 4, 9, 10, 12, 13, 15, 16, 18)]
PICKED = Rows("birds", np.array([101, 109, 110, 112]))


def stage(root: str, name: str, schema, shards: list[list[dict]]) -> list[ShardRef]:
    target = StageDir(root=root, stage=name, fingerprint="a")
    for ref, rows in zip(target.planned(len(shards)), shards, strict=True):
        with write_shard(ref, schema, {}) as shard:
            for row in rows:
                shard.keep({**dict.fromkeys(schema.names), **row})
    commit(target, len(shards), config={}, inputs={})
    return target.shards(base=BASE)


@pytest.fixture
def refs(local_root: str) -> tuple[list[ShardRef], list[ShardRef]]:
    """Vectors and images of a partition whose rows begin at BASE."""
    images = stage(local_root, "download", schemas.IMAGES, [[{"image_id": "x"}] * 10] * 2)
    rows = [[10 * shard + row for row in alive] for shard, alive in enumerate(ALIVE)]
    vectors = [
        [{"row": r, "image_id": f"id-{BASE + r}", "vector": np.array([1.0, r], np.float16)} for r in some]
        for some in rows
    ]
    return stage(local_root, "embed", schemas.vectors(2), vectors), images


def test_of_a_small_pool_every_vector_is_on_the_map(refs) -> None:
    found = drawn(*refs, PICKED, NONE, np.random.default_rng(0))
    assert found.rows.tolist() == POOL_ROWS
    assert found.image_ids == [f"id-{row}" for row in POOL_ROWS]
    assert found.vectors[:, 1].tolist() == [row - BASE for row in POOL_ROWS]


def test_of_a_large_one_as_many_published_ones_as_others(refs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_map, "EACH", 2)
    found = drawn(*refs, PICKED, NONE, np.random.default_rng(1))
    assert len(found.rows) == 4 and PICKED.has(found.rows).sum() == 2
    assert found.rows.tolist() == sorted(found.rows)
    again = drawn(*refs, PICKED, NONE, np.random.default_rng(1))
    np.testing.assert_array_equal(again.rows, found.rows)


def test_what_has_a_picture_is_on_the_map_whatever_is_drawn(refs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_map, "EACH", 1)
    monkeypatch.setattr(cluster_map, "MAX_SHARDS", 1)
    wanted = np.array([100, 105, 118])  # 105 has no vector
    found = drawn(*refs, PICKED, wanted, np.random.default_rng(0))
    assert {100, 118} <= set(found.rows.tolist()) and 105 not in found.rows
    assert len(found.rows) == 4
    others = set(found.rows.tolist()) - {100, 118}
    assert max(others) < BASE + 10 or min(others) >= BASE + 10  # of one shard


def test_the_map_says_what_each_point_is(refs) -> None:
    found = drawn(*refs, PICKED, NONE, np.random.default_rng(0))
    made = mapped(
        found,
        {row: row % 3 for row in POOL_ROWS[1:]},
        PICKED,
        [Rows("birds", PICKED.rows[:3]), Rows("old", np.array([101]))],
        10,
    )
    assert (made.names, made.total, made.published) == (("birds", "old"), 10, 4)
    assert [dot.cluster for dot in made.dots] == [-1] + [row % 3 for row in POOL_ROWS[1:]]
    assert [dot.selections for dot in made.dots[:4]] == [(), (0, 1), (), (0,)]
    last = next(dot for dot in made.dots if dot.image_id == "id-112")
    assert last.is_published and last.selections == ()  # published, though nothing retrieved it
    assert all(0 <= dot.x <= GRID and 0 <= dot.y <= GRID for dot in made.dots)
    assert next(made.lines())[0] == "id-100"
    assert made.path(published=True).count("h0") == 4 and made.path(published=False).count("h0") == 6
    assert sum(line.dots for line in made.table()) == 10 and sum(line.published for line in made.table()) == 4


def test_a_pool_without_vectors_has_an_empty_map(local_root: str) -> None:
    images = stage(local_root, "download", schemas.IMAGES, [[{"image_id": "x"}]])
    vectors = stage(local_root, "embed", schemas.vectors(2), [[]])
    found = drawn(vectors, images, Rows("", NONE), NONE, np.random.default_rng(0))
    assert mapped(found, {}, Rows("", NONE), [], 0).dots == ()
