"""Pairs above a similarity against brute force, and the edges that stay of many."""

import numpy as np
import pytest
import torch

from lvd.tasks.algorithms import pairs
from lvd.tasks.algorithms.graph import connected_components
from lvd.tasks.algorithms.neighbours import on_device
from lvd.tasks.algorithms.pairs import Edges, pairs_above
from lvd.tests.tasks.planted import cosine, random_units


def found(left: np.ndarray, right: np.ndarray, floor: float) -> dict[tuple[int, int], float]:
    pieces = list(pairs_above(on_device(left, "cpu"), on_device(right, "cpu"), floor))
    result = {(int(i), int(j)): s for piece in pieces for i, j, s in zip(*piece, strict=True)}
    assert len(result) == sum(len(piece.left) for piece in pieces)
    return result


@pytest.mark.parametrize("floor", [-0.2, 0.0, 0.5, 0.95])
@pytest.mark.parametrize("tiles", [(2048, 4096), (7, 5)])
def test_pairs_are_those_of_brute_force(floor: float, tiles: tuple[int, int], monkeypatch) -> None:
    monkeypatch.setattr(pairs, "LEFT_TILE", tiles[0])
    monkeypatch.setattr(pairs, "RIGHT_TILE", tiles[1])
    rng = np.random.default_rng(0)
    left, right = random_units(rng, 40, 6), random_units(rng, 33, 6)
    expected = cosine(left, right)
    assert found(left, right, floor) == {
        (i, j): np.float32(expected[i, j]) for i, j in zip(*np.nonzero(expected >= floor), strict=True)
    }


def test_a_similarity_at_the_bound_counts() -> None:
    left, right = random_units(np.random.default_rng(1), 2, 8)[:, None]
    similarity = float(cosine(left, right)[0, 0])
    assert len(found(left, right, similarity)) == 1
    assert len(found(left, right, similarity + 1e-5)) == 0


def test_no_pairs_of_no_rows() -> None:
    rows = random_units(np.random.default_rng(2), 3, 8)
    assert found(rows[:0], rows, 0.0) == found(rows, rows[:0], 0.0) == {}


def test_both_ways_of_scoring_give_the_same() -> None:
    a, b = (on_device(random_units(np.random.default_rng(seed), 50, 512), "cpu") for seed in (3, 4))
    row, column = (torch.from_numpy(values) for values in np.divmod(np.arange(2500), 50))
    np.testing.assert_array_equal(pairs._units(a, b, row, column), pairs.units_on_device(a, b, row, column))


@pytest.mark.parametrize("wrong", [np.nan, 2.0])
def test_a_row_that_is_no_unit_row_is_refused(wrong: float) -> None:
    rows = random_units(np.random.default_rng(5), 3, 8)
    rows[1, 0] = wrong
    with pytest.raises(ValueError, match="row 1 must be finite and of unit length"):
        on_device(rows, "cpu")


def test_thinned_in_parts_the_edges_are_those_thinned_at_once(monkeypatch) -> None:
    rng = np.random.default_rng(6)
    left, right = np.triu_indices(60, 1)
    similarity = rng.integers(0, 50, len(left)).astype(np.float32) / 50
    whole = Edges(3)
    whole.add(left, right, similarity)
    monkeypatch.setattr(pairs, "PENDING_EDGES", 100)
    parts = Edges(3)
    for part in np.array_split(rng.permutation(len(left)), 40):
        parts.add(right[part], left[part], similarity[part])  # either way round
    for one, other in zip(whole.found(), parts.found(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert 59 <= len(whole.found().left) <= 60 * 5
    assert (whole.found().left < whole.found().right).all()


def test_thinned_edges_join_the_rows_up_to_any_as_all_of_them_do() -> None:
    rng = np.random.default_rng(4)
    left, right = np.triu_indices(40, 1)
    some = rng.permutation(len(left))[:300]
    left, right, similarity = left[some], right[some], rng.random(300).astype(np.float32)
    edges = Edges(1)
    edges.add(left, right, similarity)
    thinned = edges.found()
    assert len(thinned.left) < 120
    for end in range(41):
        labels = [
            connected_components(np.column_stack([a, b])[b < end], 40)
            for a, b in ((left, right), (thinned.left, thinned.right))
        ]
        np.testing.assert_array_equal(*labels)
