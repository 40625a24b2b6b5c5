"""SemDeDup within a cell, against a loop over rows, and what must hold for any cell."""

import numpy as np
import pytest

from lvd.tasks.algorithms import semantic_duplicates
from lvd.tasks.algorithms.semantic_duplicates import duplicates_within
from lvd.tests.tasks.planted import cosine, random_units, unit


def cell(rng, num_rows, dim=6, num_copies=0):
    """Vectors, some of them near copies of others; similarities to the middle; rows in no order."""
    vectors = random_units(rng, num_rows, dim)
    copies = rng.integers(0, num_rows, size=(2, num_copies))
    vectors[copies[0]] = unit(vectors[copies[1]] + 0.01 * rng.normal(size=(num_copies, dim)))
    middle = unit(vectors.astype(np.float64).sum(axis=0)[None])
    return vectors, cosine(vectors, middle)[:, 0].round(2), rng.permutation(num_rows * 10)[:num_rows]


def one_at_a_time(vectors, rank_by, rows, min_similarity, keep, *, original=False):
    """{dropped: (because of, similarity)}; of the original: by any row before, kept or not."""
    similarity, sign = cosine(vectors, vectors), 1 if keep == "far" else -1
    order = sorted(range(len(rows)), key=lambda i: (sign * rank_by[i], rows[i]))
    kept, dropped = [], {}
    for place, i in enumerate(order):
        covers = [j for j in (order[:place] if original else kept) if similarity[i, j] >= min_similarity]
        if covers:
            best = max(covers, key=lambda j: (similarity[i, j], -order.index(j)))
            dropped[i] = (best, similarity[i, best])
        else:
            kept.append(i)
    return dropped


def found(vectors, rank_by, rows, min_similarity, **options):
    dropped, because_of, similarity = duplicates_within(
        vectors, rank_by, rows, min_similarity=min_similarity, **options
    )
    assert (dropped.dtype, because_of.dtype, similarity.dtype) == (np.int64, np.int64, np.float32)
    assert (np.diff(dropped) > 0).all()
    columns = zip(dropped.tolist(), because_of.tolist(), similarity.tolist(), strict=True)
    return {i: (j, round(s, 5)) for i, j, s in columns}


@pytest.mark.parametrize("keep", ["far", "near"])
@pytest.mark.parametrize("block", [1024, 7, 1])
def test_equals_a_loop_over_rows(keep, block, monkeypatch):
    monkeypatch.setattr(semantic_duplicates, "BLOCK", block)
    rng = np.random.default_rng(0)
    for min_similarity in (-1.0, 0.0, 0.3, 0.6, 0.9, 0.99, 1.0):
        for num_rows in (1, 2, 30, 60):
            values = cell(rng, num_rows, num_copies=num_rows // 3)
            assert found(*values, min_similarity, keep=keep) == one_at_a_time(*values, min_similarity, keep)


def test_what_stays_covers_what_goes_and_holds_all_that_the_original_keeps():
    rng, fewer = np.random.default_rng(1), 0
    for _ in range(20):
        vectors, rank_by, rows = cell(rng, 200, dim=4)
        ours = found(vectors, rank_by, rows, 0.9)
        theirs = one_at_a_time(vectors, rank_by, rows, 0.9, "far", original=True)
        kept = np.setdiff1d(np.arange(200), [*ours])
        similarity = cosine(vectors, vectors)
        assert (similarity[np.ix_([*ours], kept)].max(axis=1) >= 0.9).all()
        assert {j for j, _ in ours.values()} <= set(kept.tolist())
        between = similarity[np.ix_(kept, kept)]
        assert between[~np.eye(len(kept), dtype=bool)].max() < 0.9
        assert {*ours} <= {*theirs}
        fewer += len(theirs) - len(ours)
    assert fewer > 0


def test_a_chain_keeps_every_other_row():
    # Each is like the next, at 0.95, and none like the next but one, at 0.81.
    angle = np.arccos(0.95) * np.arange(5)
    chain = np.column_stack([np.cos(angle), np.sin(angle)]).astype(np.float32)
    rank_by = np.linspace(0.1, 0.5, 5)
    assert found(chain, rank_by, np.arange(5), 0.9) == {1: (0, 0.95), 3: (2, 0.95)}
    assert found(chain, -rank_by, np.arange(5), 0.9, keep="near") == {1: (0, 0.95), 3: (2, 0.95)}
    assert {*one_at_a_time(chain, rank_by, np.arange(5), 0.9, "far", original=True)} == {1, 2, 3, 4}


def test_keep_says_which_of_two_stays_and_ties_go_by_row():
    twins, rows = unit(np.ones((2, 3))), np.array([8, 3])
    assert [*found(twins, np.array([0.2, 0.7]), rows, 0.9, keep="far")] == [1]
    assert [*found(twins, np.array([0.2, 0.7]), rows, 0.9, keep="near")] == [0]
    assert [*found(twins, np.array([0.5, 0.5]), rows, 0.9, keep="far")] == [0]
    assert [*found(twins, np.array([0.5, 0.5]), rows, 0.9, keep="near")] == [0]


@pytest.mark.parametrize("block", [1024, 2, 1])
def test_of_reasons_that_are_as_similar_the_first_counts(block, monkeypatch):
    monkeypatch.setattr(semantic_duplicates, "BLOCK", block)
    either_side = np.array([[0.8, 0.6], [0.8, -0.6], [1.0, 0.0]], dtype=np.float32)
    assert found(either_side, np.array([0.1, 0.2, 0.3]), np.arange(3), 0.7) == {2: (0, 0.8)}
    assert found(either_side, np.array([0.2, 0.1, 0.3]), np.arange(3), 0.7) == {2: (1, 0.8)}


def test_the_order_of_the_input_does_not_matter(monkeypatch):
    monkeypatch.setattr(semantic_duplicates, "BLOCK", 16)
    rng = np.random.default_rng(2)
    vectors, rank_by, rows = cell(rng, 150, num_copies=60)
    plain = found(vectors, rank_by, rows, 0.8)
    by_row = {rows[i]: (rows[j], s) for i, (j, s) in plain.items()}
    for _ in range(3):
        order = rng.permutation(150)
        again = found(vectors[order], rank_by[order], rows[order], 0.8)
        assert {rows[order][i]: (rows[order][j], s) for i, (j, s) in again.items()} == by_row


def test_a_similarity_at_the_bound_drops():
    vectors, rank_by, rows = cell(np.random.default_rng(3), 2)
    similarity = float(cosine(vectors[:1], vectors[1:])[0, 0])
    assert len(found(vectors, rank_by, rows, similarity)) == 1
    assert len(found(vectors, rank_by, rows, similarity + 1e-5)) == 0


def test_copies_of_one_image_leave_one(monkeypatch):
    # More rows than a block: only the first block meets itself in full.
    vectors, rng = np.repeat(unit(np.ones((1, 8))), 5000, axis=0), np.random.default_rng(4)
    tiles = []
    real = semantic_duplicates.pairs_above

    def counted(left, right, floor):
        tiles.append(len(left) * len(right))
        return real(left, right, floor)

    monkeypatch.setattr(semantic_duplicates, "pairs_above", counted)
    rows = rng.permutation(5000)
    dropped, because_of, similarity = duplicates_within(vectors, np.ones(5000), rows, min_similarity=0.99)
    assert len(dropped) == 4999 and set(rows[because_of]) == {0} and (similarity > 0.999).all()
    assert sum(tiles) < 2 * semantic_duplicates.BLOCK**2


def test_an_empty_cell_and_wrong_input():
    vectors, rank_by, rows = cell(np.random.default_rng(5), 4)
    assert found(vectors[:0], rank_by[:0], rows[:0], 0.5) == {}
    with pytest.raises(ValueError, match="keep must be 'far' or 'near', was 'hard'"):
        found(vectors, rank_by, rows, 0.5, keep="hard")
    with pytest.raises(ValueError, match="4 vectors must have as many ranks and rows, had 3 and 4"):
        found(vectors, rank_by[:3], rows, 0.5)
    vectors[2, 0] = np.nan
    with pytest.raises(ValueError, match="row 2 must be finite and of unit length"):
        found(vectors, rank_by, rows, 0.5)
