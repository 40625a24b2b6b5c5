"""Cells of a pool: the nearest centroid of every image, the next ones, and how many images a cell has."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from lvd.infra.shards import pool_rows, read_column, read_table
from lvd.tasks import cluster, schemas
from lvd.tests.tasks import planted

ROWS, NUM, DIM = 100, 9, 6
LEFT_OUT = (0, 3, 55, 56, 57, 58, 59, 99)  # a whole shard among them
KEPT = np.delete(np.arange(ROWS), LEFT_OUT)
LAYOUTS: list[planted.Layout] = [((30, 0, 25), (5, 40)), ((ROWS,),), planted.cut(ROWS, 8)]
POOL = planted.around(np.random.default_rng(0), ROWS, DIM, 5)
CENTROIDS = planted.random_units(np.random.default_rng(1), NUM, DIM).astype(np.float32)
CENTROIDS[7] = CENTROIDS[2]  # equally near to all: the lower number is first
SIMILARITY = planted.cosine(POOL, CENTROIDS)[KEPT]


def assigned(root: str, layout: planted.Layout, next_cells: int = 0, centroids: np.ndarray = CENTROIDS):
    vectors, middle = (
        planted.vectors(root, "embed", POOL, layout, left_out=LEFT_OUT),
        planted.centroids(root, centroids),
    )
    cells = planted.computed(
        root,
        "cluster",
        len(vectors),
        lambda ref: cluster.assign_shard.fn(vectors[ref.index], middle, ref, next_cells=next_cells),
    )
    return vectors, cells


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("next_cells", [0, 1, 3, 60])  # more than there are further cells: all of them
def test_every_image_goes_to_its_nearest_centroid(local_root: str, layout: planted.Layout, next_cells: int) -> None:
    vectors, cells = assigned(local_root, layout, next_cells)
    assert [ref.rows for ref in cells] == [ref.rows for ref in vectors]
    assert read_column(cells, "row").to_pylist() == pool_rows(vectors).tolist() == KEPT.tolist()
    assert read_column(cells, "image_id").to_pylist() == [planted.identity(n) for n in KEPT]
    nearest = np.lexsort((np.broadcast_to(np.arange(NUM), SIMILARITY.shape), -SIMILARITY))
    np.testing.assert_array_equal(read_column(cells, "cluster_id").to_numpy(), nearest[:, 0])
    np.testing.assert_array_equal(read_column(cells, "similarity").to_numpy(), SIMILARITY.max(1).astype(np.float32))
    if next_cells:
        others = np.stack(read_column(cells, "others").to_numpy())
        np.testing.assert_array_equal(others, nearest[:, 1 : 1 + next_cells])
        assert others.shape[1] == min(next_cells, NUM - 1)
    else:
        assert read_table(cells[0]).schema.equals(schemas.CELLS)


def test_a_single_centroid_has_no_next_cell(local_root: str) -> None:
    _, cells = assigned(local_root, LAYOUTS[0], 3, CENTROIDS[:1])
    assert read_table(cells[0]).schema.equals(schemas.CELLS)
    assert {*read_column(cells, "cluster_id").to_pylist()} == {0}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sizes_count_the_images_of_every_cell(local_root: str, layout: planted.Layout) -> None:
    _, cells = assigned(local_root, layout)
    (sizes,) = planted.computed(
        local_root, "sizes", 1, lambda ref: cluster.count_cells.fn(planted.series(cells), NUM + 2, ref)
    )
    table = read_table(sizes)
    assert table["cluster_id"].to_pylist() == list(range(NUM + 2))
    expected = np.bincount(SIMILARITY.argmax(axis=1), minlength=NUM + 2)
    assert table["size"].to_pylist() == expected.tolist() == cluster.sizes_of(cells, NUM + 2).tolist()
    assert expected[7] == 0 == expected[-1]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    files = []
    for name in "ab":
        _, cells = assigned(str(tmp_path / name), LAYOUTS[0], 2)
        files.append([(tmp_path / name / ref.name()).read_bytes() for ref in cells])
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_clusters": 0}, "greater than or equal to 1"),
        ({"num_cluster": 5}, "num_cluster\n  Extra inputs"),
        ({"next_cells": 65}, "less than or equal to 64"),
        ({"kind": "hierarchical"}, r"levels must be given for the kind hierarchical and no other, was \[\]"),
        ({"levels": (9, 3)}, r"levels must be given for the kind hierarchical and no other, was \[9, 3\]"),
        ({"kind": "hierarchical", "levels": (9,)}, "levels must be two or more numbers"),
        ({"kind": "hierarchical", "levels": (9, 3), "num_clusters": 8}, r"num_clusters \(8\) first, was \[9, 3\]"),
        ({"kind": "hierarchical", "levels": (9, 9)}, r"levels must be descending .* was \[9, 9\]"),
        ({"kind": "hierarchical", "levels": (9, 0)}, r"levels must be descending .* was \[9, 0\]"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        cluster.Config(**settings)


def test_the_finest_level_is_the_number_of_clusters() -> None:
    config = cluster.Config(kind="hierarchical", levels=(90, 9, 3))
    assert config.num_clusters == config.fitting()["num_clusters"] == 90


def test_what_is_only_written_does_not_decide_the_centroids() -> None:
    assert cluster.Config(next_cells=5).fitting() == cluster.Config().fitting()
    for name, value in {"num_clusters": 7, "iterations": 7, "full_passes": 7, "min_gain": 0.5}.items():
        assert cluster.Config(**{name: value}).fitting() != cluster.Config().fitting()
