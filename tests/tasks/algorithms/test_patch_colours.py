"""Patch features in colours, on features in which an object is planted."""

import numpy as np

from lvd.tasks.algorithms.patch_colours import coloured


def planted(sign: float = 1.0) -> np.ndarray:
    """(2, 8, 8, 12): noise, and in the middle a square whose left and right half differ."""
    features = 0.05 * np.random.default_rng(0).normal(size=(2, 8, 8, 12))
    features[:, 2:6, 2:6, 0] += 3 * sign
    features[:, 2:6, 2:4, 1] += 1
    features[:, 2:6, 4:6, 2] += 1
    return features.astype(np.float32)


def test_the_object_is_told_from_the_background() -> None:
    expected = np.zeros((2, 8, 8), dtype=bool)
    expected[:, 2:6, 2:6] = True
    for sign in (1.0, -1.0):  # whatever the sign of the component is
        colours, is_object = coloured(planted(sign))
        np.testing.assert_array_equal(is_object, expected)
        assert not colours[~is_object].any() and colours.dtype == np.uint8


def test_the_same_part_has_the_same_colour_in_every_image() -> None:
    colours = coloured(planted())[0].astype(int)
    left, right = colours[:, 2:6, 2:4, 0], colours[:, 2:6, 4:6, 0]
    assert max(np.ptp(left), np.ptp(right)) < 60
    assert abs(left.mean() - right.mean()) > 150
    assert abs(left[0].mean() - left[1].mean()) < 20


def test_features_that_are_all_the_same_are_background() -> None:
    colours, is_object = coloured(np.ones((1, 4, 4, 6), dtype=np.float32))
    assert not colours.any() and not is_object.any()
