"""Levels: parents as they lie on storage, against the algorithm and against the nearest centroid."""

from pathlib import Path

import numpy as np
import pytest

from lvd.infra.committing import commit
from lvd.infra.shards import ShardRef, StageDir, read_table
from lvd.tasks import levels, schemas
from lvd.tasks.algorithms import hierarchy
from lvd.tasks.cluster import Config
from lvd.tests.tasks import planted

DIM, SIZES = 8, (40, 12, 5)
CENTROIDS = planted.around(np.random.default_rng(0), SIZES[0], DIM, 6, spread=0.3).astype(np.float32)


def fitted(root: str, seed: int = 0, **changes: int) -> list[ShardRef]:
    """The shards of the parents."""
    rows = [{"cluster_id": n, "size": 1, "vector": row} for n, row in enumerate(CENTROIDS)]
    (middle,) = planted.stage(root, "centroids", schemas.centroids(DIM), rows, ((SIZES[0],),))
    config = Config.model_validate({"kind": "hierarchical", "levels": SIZES, "resample_steps": 2, **changes})
    parents = StageDir(root=root, stage="parents", fingerprint="a")
    count = levels.fit_levels.fn(middle, parents, config, seed, ("cpu",))
    assert count == len(SIZES) - 1
    commit(parents, count, config={}, inputs={})
    return parents.shards()


@pytest.mark.parametrize("steps", [0, 2])
def test_the_parent_of_a_cluster_is_the_nearest_centroid_above(local_root: str, steps: int) -> None:
    options = {"iterations": 20, "resample_steps": steps, "resample_per_cluster": None}
    levels_above = hierarchy.upper_levels(CENTROIDS, SIZES[1:], seed=0, **options)
    below = CENTROIDS
    for parent, level, lower, upper in zip(
        fitted(local_root, resample_steps=steps), levels_above, SIZES[:-1], SIZES[1:], strict=True
    ):
        table = read_table(parent)
        assert level.centroids.shape == (upper, DIM) and table["cluster_id"].to_pylist() == [*range(lower)]
        similarity, found = planted.cosine(below, level.centroids), table["parent"].to_numpy()
        assert (similarity[np.arange(lower), found] >= similarity.max(axis=1) - 1e-4).all()
        below = level.centroids


def test_a_level_is_what_the_algorithm_finds(local_root: str, tmp_path: Path) -> None:
    options = {"iterations": 7, "resample_steps": 3, "resample_per_cluster": 2}
    parents = fitted(local_root, seed=3, **options)
    expected = hierarchy.upper_levels(CENTROIDS, SIZES[1:], seed=3, **options)
    for parent, level in zip(parents, expected, strict=True):
        np.testing.assert_array_equal(read_table(parent)["parent"].to_numpy(), level.parent)
    others = fitted(str(tmp_path / "other"), seed=4, **options)
    assert read_table(others[0])["parent"].to_pylist() != expected[0].parent.tolist(), "the seed decides"
