"""Vectors on a plane: components against numpy's own, neighbours that stay neighbours, the same plane every time."""

import numpy as np
import pytest

from lvd.tasks.algorithms.projection import affinities, on_a_plane, principal


def heaps(num: int, each: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors about `num` centres, and which centre each belongs to."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(num, dim))
    label = rng.permutation(np.repeat(np.arange(num), each))
    vectors = centre[label] + 0.25 * rng.normal(size=(num * each, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16), label


def test_components_are_those_of_the_singular_value_decomposition() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 8)) * np.arange(8, 0, -1)
    centred = rows - rows.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(principal(rows, 3)), np.abs(left * values)[:, :3], atol=1e-9)
    assert principal(rows, 99).shape == (50, 8)


def test_the_sign_of_a_component_is_settled() -> None:
    rows = np.random.default_rng(0).normal(size=(30, 4))
    np.testing.assert_allclose(principal(rows, 2), principal(rows[::-1], 2)[::-1], atol=1e-9)


def test_neighbours_have_the_perplexity_that_is_asked_for() -> None:
    rows = np.random.default_rng(1).normal(size=(200, 5))
    near, share = affinities(rows, 10)
    assert near.shape == (200, 30) and not (near == np.arange(200)[:, None]).any()
    np.testing.assert_allclose(np.exp(-(share * np.log(share)).sum(axis=1)), 10, rtol=1e-3)
    distance = np.linalg.norm(rows[:, None] - rows[None], axis=2) + np.diag(np.full(200, np.inf))
    assert (near[:, 0] == distance.argmin(axis=1)).all()


def test_images_of_one_kind_lie_together() -> None:
    vectors, label = heaps(6, 40, 32)
    points = on_a_plane(vectors)
    assert points.shape == (240, 2) and points.min() >= 0 and points.max() <= 1
    distance = np.linalg.norm(points[:, None] - points[None], axis=2) + np.diag(np.full(len(points), np.inf))
    assert (label[distance.argmin(axis=1)] == label).mean() > 0.98


def test_the_same_vectors_give_the_same_plane() -> None:
    vectors, _ = heaps(3, 20, 16)
    np.testing.assert_array_equal(on_a_plane(vectors), on_a_plane(vectors.copy()))


@pytest.mark.parametrize("num", [0, 1, 2, 4, 5, 9])
def test_few_vectors_have_places_too(num: int) -> None:
    points = on_a_plane(np.random.default_rng(0).normal(size=(num, 3)).astype(np.float16))
    assert points.shape == (num, 2) and np.isfinite(points).all() and (points >= 0).all() and (points <= 1).all()


def test_equal_vectors_and_vectors_of_one_number_do_no_harm() -> None:
    for rows in (np.ones((40, 8), dtype=np.float16), np.linspace(0, 1, 12, dtype=np.float16)[:, None]):
        assert np.isfinite(on_a_plane(rows)).all()
