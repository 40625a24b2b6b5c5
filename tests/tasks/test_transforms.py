"""Every transformation gives a file that decodes, the same one for a seed, and of what its name says."""

import io

import numpy as np
import pytest
from PIL import Image

from lvd.tasks.decode import decode_rgb
from lvd.tasks.transforms import GROUPS, TRANSFORMS, copy_of
from lvd.tests.drawing import CLASSES, draw

BY_NAME = {transform.name: transform for transform in TRANSFORMS}


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return draw(next(iter(CLASSES)), np.random.default_rng(0), (120, 90))


def copied(picture: Image.Image, name: str, number: int = 0, seed: int = 0) -> np.ndarray:
    return np.asarray(decode_rgb(copy_of(picture, BY_NAME[name], seed=seed, number=number))).astype(np.float32)


def test_names_differ_and_every_group_has_some() -> None:
    assert len(BY_NAME) == len(TRANSFORMS)
    assert {transform.group for transform in TRANSFORMS} == set(GROUPS)


@pytest.mark.parametrize("name", BY_NAME)
def test_a_copy_decodes_and_is_the_same_for_a_seed(name: str, picture: Image.Image) -> None:
    first, again = (copy_of(picture, BY_NAME[name], seed=3, number=7) for _ in range(2))
    assert first == again
    assert min(decode_rgb(first).size) >= 45


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (32, 32)])  # a pixel of a tracker, a line, a picture of CIFAR-10
def test_the_smallest_pictures_have_copies(name: str, size: tuple[int, int]) -> None:
    first, again = (copy_of(Image.new("RGB", size, (200, 90, 30)), BY_NAME[name], seed=0, number=0) for _ in range(2))
    assert first == again
    decode_rgb(first)


@pytest.mark.parametrize("name", ["crop_5", "crop_50", "noise", "text", "collage", "screenshot", "colour_cast"])
def test_random_ones_differ_between_pictures_and_seeds(name: str, picture: Image.Image) -> None:
    files = {copy_of(picture, BY_NAME[name], seed=seed, number=n) for seed, n in [(0, n) for n in range(4)] + [(1, 0)]}
    assert len(files) > 1


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("half_size", (60, 45)),
        ("double_size", (240, 180)),
        ("squeezed", (120, 68)),
        ("rotate_90", (90, 120)),
        ("border_black", (130, 100)),
        ("letterbox", (120, 120)),
        ("collage", (240, 90)),
    ],
)
def test_sizes(name: str, size: tuple[int, int], picture: Image.Image) -> None:
    assert copied(picture, name).shape == (size[1], size[0], 3)


@pytest.mark.parametrize(("name", "left"), [("crop_5", 0.95), ("crop_20", 0.8), ("crop_50", 0.5)])
def test_a_crop_leaves_out_that_area(name: str, left: float, picture: Image.Image) -> None:
    height, width, _ = copied(picture, name).shape
    assert abs(height * width / (120 * 90) - left) < 0.03


def test_pixels_are_what_the_names_say(picture: Image.Image) -> None:
    pixels = np.asarray(picture).astype(np.float32)
    assert (copied(picture, "png") == pixels).all()
    assert np.abs(copied(picture, "mirror")[:, ::-1] - pixels).mean() < 14
    assert np.abs(copied(picture, "rotate_90").swapaxes(0, 1)[:, ::-1] - pixels).mean() < 14
    grey = copied(picture, "grey")
    assert (grey[..., 0] == grey[..., 1]).all()
    assert copied(picture, "border_black")[0].max() < 40 and copied(picture, "border_white")[0].min() > 215
    assert np.abs(copied(picture, "border_white")[5:-5, 5:-5] - pixels).mean() < 14
    assert np.abs(np.diff(copied(picture, "blur"), axis=1)).mean() < 0.8 * np.abs(np.diff(pixels, axis=1)).mean()
    assert copied(picture, "collage").shape[1] == 2 * pixels.shape[1]


def test_lower_quality_is_a_smaller_file(picture: Image.Image) -> None:
    sizes = [len(copy_of(picture, BY_NAME[f"jpeg_{quality}"], seed=0, number=0)) for quality in (80, 50, 30)]
    assert sizes == sorted(sizes, reverse=True)
    assert Image.open(io.BytesIO(copy_of(picture, BY_NAME["webp"], seed=0, number=0))).format == "WEBP"
