"""Cells: their numbers, how they are dealt into groups, and which rows a row probes."""

import numpy as np
import pytest

from lvd.tasks.algorithms import cells
from lvd.tests.tasks.planted import cosine, random_units


def test_the_usual_number_grows_with_the_root() -> None:
    assert [cells.usual_number(n) for n in (10**6, 10**7, 13 * 10**8)] == [4096, 16_384, 131_072]
    assert cells.usual_number(0) == 4


def test_groups_hold_a_million_rows_as_a_rule() -> None:
    assert [cells.num_groups(n) for n in (0, 1, 50_000, 50_001, 10**6, 10**7, 13 * 10**8)] == [1, 1, 1, 2, 16, 16, 160]


@pytest.mark.parametrize("rows_per_group", [1, 7, 30, 1000])
def test_every_cell_is_in_one_group_of_about_that_size(rows_per_group: int) -> None:
    sizes = np.random.default_rng(0).integers(0, 9, 50)
    sizes[20] = 100
    group = cells.group_of(np.arange(50), sizes, rows_per_group)
    assert (np.diff(group) >= 0).all() and group.max() < -(-sizes.sum() // rows_per_group)
    for number in np.unique(group):
        inside = sizes[group == number]
        assert inside.sum() - inside[-1] <= rows_per_group, "no more than the last cell makes it"


def test_the_nearest_cells_come_first() -> None:
    rng = np.random.default_rng(1)
    rows, centroids = random_units(rng, 5000, 16), random_units(rng, 30, 16).astype(np.float32)
    near = cells.nearest_cells(rows, centroids, probes=30)
    similarity = np.take_along_axis(rows.astype(np.float32) @ centroids.T, near, axis=1)
    assert (np.sort(near, axis=1) == np.arange(30)).all()
    assert (np.diff(similarity, axis=1) <= 1e-6).all()


def test_cells_are_fitted_to_the_rows() -> None:
    rng = np.random.default_rng(2)
    centres = random_units(rng, 8, 32)
    rows = centres[rng.integers(0, 8, 400)].astype(np.float32) + 0.05 * rng.normal(size=(400, 32))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    centroids = cells.fit(rows, 16, seed=0)
    assert np.allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-5)
    assert (rows.astype(np.float32) @ centroids.T).max(axis=1).mean() > 0.95
    np.testing.assert_array_equal(centroids, cells.fit(rows, 16, seed=0))
    with pytest.raises(ValueError, match=r"num_cells must be in \[1, 10\]"):
        cells.fit(rows[:10], 16, seed=0)


def test_ranks() -> None:
    probes = np.array([[4, 2, 9], [1, 0, 3]], dtype=np.int32)
    assert cells.ranks(probes, np.array([9, 7], dtype=np.int32)).tolist() == [2, 3]


def dealt(rng: np.random.Generator, num_rows: int, num_cells: int, probes: int) -> cells.Block:
    """Rows with random cells, their own first."""
    near = np.stack([rng.permutation(num_cells)[:probes] for _ in range(num_rows)]).astype(np.int32)
    rows = np.sort(rng.choice(10 * num_rows, num_rows, replace=False))
    return cells.Block(rows, random_units(rng, num_rows, 8), near)


@pytest.mark.parametrize("tile", [3, 4096])  # cells that are cut into tiles, and whole ones
@pytest.mark.parametrize(("k", "probes"), [(1, 1), (4, 3), (200, 3), (7, 12)])
def test_the_nearest_of_a_group_are_those_of_the_cells_that_are_probed(
    monkeypatch: pytest.MonkeyPatch, tile: int, k: int, probes: int
) -> None:
    monkeypatch.setattr(cells, "TILE", tile)
    rng = np.random.default_rng(k)
    members, queries = dealt(rng, 90, 12, 1), dealt(rng, 40, 12, probes)
    members = cells.Block(*(values[members.cell >= 4] for values in members))  # the other cells are of other groups
    group = cells.Group(members, 12, device="cpu")
    assert group.is_probed(queries.probes).tolist() == (queries.probes >= 4).any(axis=1).tolist()
    similarity, rows = group.nearest(queries, k)
    assert similarity.shape == rows.shape == (40, k)
    products = cosine(queries.vectors, members.vectors)
    for query in range(40):
        seen = [n for n in range(len(members.rows)) if members.cell[n] in queries.probes[query]]
        best = sorted(seen, key=lambda n: (-products[query, n], members.rows[n]))[:k]
        found = rows[query] >= 0
        assert rows[query][found].tolist() == members.rows[best].tolist()
        np.testing.assert_array_equal(similarity[query][found], products[query, best].astype(np.float32))
        assert np.isneginf(similarity[query][~found]).all()


def test_the_nearest_of_a_group_do_not_depend_on_the_queries_beside_them() -> None:
    rng = np.random.default_rng(5)
    members, queries = dealt(rng, 60, 6, 1), dealt(rng, 20, 6, 2)
    group = cells.Group(members, 6, device="cpu")
    whole = group.nearest(queries, 5)
    for start in range(0, 20, 7):
        part = cells.Block(*(values[start : start + 7] for values in queries))
        for found, expected in zip(group.nearest(part, 5), whole, strict=True):
            np.testing.assert_array_equal(found, expected[start : start + 7])


@pytest.mark.parametrize("rows", [1, 4, 9, 1000])
def test_blocks_pass_by_in_batches(rows: int) -> None:
    sizes = (3, 0, 5, 1, 2, 0)
    blocks = [
        cells.Block(np.arange(n), np.full((n, 2), place, np.float16), np.full((n, 3), place, np.int32))
        for place, n in enumerate(sizes)
    ]
    found = list(cells.batched(blocks, rows))
    for given, together in zip(cells.joined(blocks), cells.joined(found), strict=True):
        np.testing.assert_array_equal(given, together)
    assert all(len(block.rows) >= rows for block in found[:-1]) and len(found[-1].rows) > 0
    assert list(cells.batched([block for block in blocks if not len(block.rows)], rows)) == []
