"""Exact neighbours: against brute force, and the same bits however queries and database are cut."""

import numpy as np
import pytest

from lvd.tasks.algorithms import neighbours


def unit_rows(n, d, seed=0, dtype=np.float16, groups=None):
    """Random unit rows; with groups, around that many centres, so that there are near neighbours."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, d))
    if groups:
        rows = rng.standard_normal((groups, d))[rng.integers(groups, size=n)] + 0.5 * rows
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(dtype)


def blocks(rows, size, first_row=0):
    return [(first_row + start, rows[start : start + size]) for start in range(0, len(rows), size)]


def brute_force(queries, database, k, min_similarity=-np.inf, exclude=None):
    """One query at a time, in float64, every row sorted."""
    scores = np.round(queries.astype(np.float64) @ database.astype(np.float64).T, 5)
    similarity = np.full((len(queries), k), -np.inf, dtype=np.float32)
    rows = np.full((len(queries), k), -1)
    for i, score in enumerate(scores):
        order = np.lexsort((np.arange(len(score)), -score))
        best = [j for j in order if score[j] >= min_similarity and (exclude is None or j != exclude[i])][:k]
        similarity[i, : len(best)], rows[i, : len(best)] = score[best], best
    return similarity, rows


def assert_same(found, expected):
    assert found[0].dtype == np.float32 and found[1].dtype == np.int64
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(found[0], expected[0])


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(
    ("n", "k", "min_similarity", "groups"),
    [
        (5000, 8, -1.0, 40),  # more than one tile of the database
        (4200, 1, -1.0, None),
        (5000, 64, 0.6, 300),  # few above the threshold: padded
        (300, 299, -1.0, None),
        (20, 64, -1.0, 3),  # k > n
        (1, 3, -1.0, None),
        (600, 4, 0.99, None),  # nobody but the row itself
    ],
)
def test_equals_brute_force(dtype, n, k, min_similarity, groups):
    database = unit_rows(n, 24, dtype=dtype, groups=groups)
    queries, itself = database[: min(n, 300)], np.arange(min(n, 300))
    for exclude in (None, itself):
        found = neighbours.nearest(queries, blocks(database, 777), k=k, min_similarity=min_similarity, exclude=exclude)
        floor = -np.inf if min_similarity == -1.0 else min_similarity
        assert_same(found, brute_force(queries, database, k, floor, exclude))


def test_ties_go_to_the_smaller_row_and_all_equal_vectors_are_found(monkeypatch):
    monkeypatch.setattr(neighbours, "DATABASE_TILE", 256)
    database = np.repeat(unit_rows(1, 16), 1000, axis=0)
    similarity, rows = neighbours.nearest(database[:300], blocks(database, 600), k=3, exclude=np.arange(300))
    assert rows[0].tolist() == [1, 2, 3] and rows[1].tolist() == [0, 2, 3] and rows[299].tolist() == [0, 1, 2]
    assert len(np.unique(similarity)) == 1 and similarity[0, 0] == pytest.approx(1.0, abs=1e-3)


def test_similarities_that_round_alike_are_ties():
    angles = np.array([1e-4, 0.0, 2e-4, 0.1])
    database = np.column_stack([np.cos(angles), np.sin(angles)]).astype(np.float32)
    similarity, rows = neighbours.nearest(database[1:2], [(0, database)], k=4)
    assert rows.tolist() == [[0, 1, 2, 3]]
    assert similarity[0].tolist() == [1.0, 1.0, 1.0, np.float32(0.995)]


def test_the_threshold_itself_is_kept():
    database = np.array([[1, 0], [0.6, 0.8], [0.59998, 0.80001], [-1, 0]], dtype=np.float32)
    for min_similarity, expected in [(0.6, [0, 1]), (0.60001, [0]), (0.59998, [0, 1, 2]), (-1.0, [0, 1, 2, 3])]:
        rows = neighbours.nearest(database[:1], [(0, database)], k=4, min_similarity=min_similarity)[1]
        assert rows[rows >= 0].tolist() == expected


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_same_bits_however_the_database_and_the_queries_are_cut(dtype):
    database = unit_rows(6000, 96, dtype=dtype, groups=200)
    queries = database[:700]
    whole = neighbours.nearest(queries, [(0, database)], k=20, min_similarity=0.2)
    for size in (1, 333, 4096, 5999) if dtype == np.float16 else (500,):
        part = database if size > 1 else database[:400]
        expected = whole if size > 1 else neighbours.nearest(queries, [(0, part)], k=20, min_similarity=0.2)
        for order in (blocks(part, size), blocks(part, size)[::-1]):
            assert_same(neighbours.nearest(queries, order, k=20, min_similarity=0.2), expected)
    for size in (1, 100, 511):
        cut = [
            neighbours.nearest(queries[start : start + size], [(0, database)], k=20, min_similarity=0.2)
            for start in range(0, 700, size)[:5]
        ]
        rows = min(700, 5 * size)
        assert_same([np.concatenate(parts) for parts in zip(*cut, strict=True)], [whole[0][:rows], whole[1][:rows]])


def test_the_same_bits_with_any_tiles_and_any_number_of_threads(monkeypatch):
    import torch

    database = unit_rows(3000, 64, groups=50)
    expected = neighbours.nearest(database[:200], [(0, database)], k=10)
    threads = torch.get_num_threads()
    try:
        for tile, count in ((64, 1), (1000, 2), (3000, 1)):
            monkeypatch.setattr(neighbours, "DATABASE_TILE", tile)
            monkeypatch.setattr(neighbours, "QUERY_TILE", tile // 8)
            torch.set_num_threads(count)
            assert_same(neighbours.nearest(database[:200], [(0, database)], k=10), expected)
    finally:
        torch.set_num_threads(threads)


def test_a_coarse_screening_product_changes_nothing():
    import torch

    database = unit_rows(3000, 256, groups=50)
    expected = brute_force(database[:50], database, 10)
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert_same(neighbours.nearest(database[:50], [(0, database)], k=10), expected)
    finally:
        torch.set_float32_matmul_precision(precision)


def test_rows_keep_their_global_numbers_and_large_ones_fit():
    database = unit_rows(10, 8)
    first_row = 2**39
    rows = neighbours.nearest(database, blocks(database, 3, first_row), k=1)[1]
    assert rows[:, 0].tolist() == list(range(first_row, first_row + 10))


def test_nothing_in_nothing_out():
    rows = unit_rows(5, 8)
    similarity, found = neighbours.nearest(rows[:0], [(0, rows)], k=3)
    assert similarity.shape == found.shape == (0, 3)
    for database in ([], [(0, rows[:0])]):
        similarity, found = neighbours.nearest(rows, database, k=2)
        assert (found == -1).all() and (similarity == -np.inf).all() and found.shape == (5, 2)


def test_zero_rows_have_similarity_zero():
    rows = np.zeros((2, 4), dtype=np.float16)
    similarity, found = neighbours.nearest(rows, [(0, rows)], k=2)
    assert similarity.tolist() == [[0.0, 0.0]] * 2 and found.tolist() == [[0, 1]] * 2


def test_refuses_what_it_cannot_compare():
    rows = unit_rows(6000, 8)
    bad = rows.copy()
    bad[5000, 3] = np.nan
    long = rows.astype(np.float32) * 3
    with pytest.raises(ValueError, match=r"as wide as the queries, 8, were 5 wide"):
        neighbours.nearest(rows[:1], [(0, rows[:, :5])], k=1)
    with pytest.raises(ValueError, match=r"database row 5100 must be finite"):
        neighbours.nearest(rows[:1], [(100, bad)], k=1)
    with pytest.raises(ValueError, match=r"query row 1 must be finite"):
        neighbours.nearest(bad[4999:5002], [(0, rows)], k=1)
    with pytest.raises(ValueError, match=r"of unit length, its length was 3"):
        neighbours.nearest(rows[:1], [(0, long)], k=1)
    with pytest.raises(ValueError, match="k must be at least 1, was 0"):
        neighbours.nearest(rows[:1], [(0, rows)], k=0)
    with pytest.raises(ValueError, match=r"exclude must have one row per query, \(2,\)"):
        neighbours.nearest(rows[:2], [(0, rows)], k=1, exclude=np.arange(3))


def test_edges_are_unique_sorted_and_join_both_sides():
    similarity = np.array([[0.9, 0.7, -np.inf], [0.9, 0.8, 0.5]], dtype=np.float32)
    rows = np.array([[11, 3, -1], [10, 11, 20]])
    pairs, score = neighbours.edges(similarity, rows, first_row=10)
    # (10, 11) is found from both sides; (11, 11) is a loop.
    assert pairs.tolist() == [[3, 10], [10, 11], [11, 20]]
    assert score.tolist() == [np.float32(0.7), np.float32(0.9), np.float32(0.5)]
    assert pairs.dtype == np.int64 and score.dtype == np.float32


def test_edges_of_all_rows_are_the_pairs_above_the_threshold():
    vectors = unit_rows(400, 16, groups=30)
    similarity, rows = neighbours.nearest(vectors, [(0, vectors)], k=399, min_similarity=0.7, exclude=np.arange(400))
    pairs, score = neighbours.edges(similarity, rows, 0)
    products = np.round(vectors.astype(np.float64) @ vectors.astype(np.float64).T, 5)
    expected = np.argwhere(np.triu(products >= 0.7, 1))
    assert len(expected) > 500
    np.testing.assert_array_equal(pairs, expected)
    np.testing.assert_array_equal(score, products[tuple(expected.T)].astype(np.float32))


def test_no_edges():
    pairs, score = neighbours.edges(np.zeros((0, 4), np.float32), np.zeros((0, 4), np.int64), 7)
    assert pairs.shape == (0, 2) and score.shape == (0,)


def test_rows_are_offered_to_some_of_the_queries_only():
    """Tile by tile, each to other queries: what a query was not offered it does not find."""
    import torch

    rng = np.random.default_rng(3)
    database, queries = unit_rows(900, 16, groups=30), unit_rows(600, 16, seed=1, groups=30)
    scores = np.round(queries.astype(np.float64) @ database.astype(np.float64).T, 5)
    seen = np.zeros(scores.shape, dtype=bool)
    best = neighbours.Best(neighbours.on_device(queries, "cpu"), 6)
    for start in range(0, 900, 90):
        asked = np.sort(rng.choice(600, int(rng.integers(1, 500)), replace=False))
        rows = np.arange(start, start + 90)
        best.offer(neighbours.on_device(database[rows], "cpu"), torch.from_numpy(rows), asked=torch.from_numpy(asked))
        seen[np.ix_(asked, rows)] = True
    similarity, rows = best.found()
    for query in range(600):
        order = [j for j in np.lexsort((np.arange(900), -scores[query])) if seen[query, j]][:6]
        assert rows[query][rows[query] >= 0].tolist() == order
        np.testing.assert_array_equal(similarity[query, : len(order)], scores[query, order].astype(np.float32))


@pytest.mark.parametrize("k", [1, 5, 300])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])  # of the rows that nobody holds
def test_a_row_counts_only_from_its_own_floor_on(k, share):
    """At the floor itself a row is found; the floors are similarities to some of the queries."""
    import torch

    rng = np.random.default_rng(int(10 * share) + k)
    database, queries = unit_rows(5000, 12, groups=60), unit_rows(80, 12, seed=1, groups=60)
    scores = np.round(queries.astype(np.float64) @ database.astype(np.float64).T, 5)
    floors = np.where(rng.random(5000) < share, -9.0, scores[rng.integers(0, 80, 5000), np.arange(5000)])
    units = torch.from_numpy(np.rint(np.maximum(floors, -2) * neighbours.SCALE).astype(np.int64))
    best = neighbours.Best(neighbours.on_device(queries, "cpu"), k)
    for start in range(0, 5000, neighbours.DATABASE_TILE):
        part = slice(start, start + neighbours.DATABASE_TILE)
        numbers = torch.arange(5000)[part]
        best.offer(neighbours.on_device(database[part], "cpu"), numbers, floors=units[part])
    similarity, rows = best.found()
    for query in range(80):
        order = [j for j in np.lexsort((np.arange(5000), -scores[query])) if scores[query, j] >= floors[j]][:k]
        assert rows[query][rows[query] >= 0].tolist() == order
        np.testing.assert_array_equal(similarity[query, : len(order)], scores[query, order].astype(np.float32))
