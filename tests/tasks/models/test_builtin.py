"""The models without weights on drawn pictures, and on real photographs where they are."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from lvd.tasks import models
from lvd.tasks.decode import decode_rgb
from lvd.tasks.models import ModelSpec, builtin
from lvd.tests import drawing

NAMES = ["builtin:dct", "builtin:color_texture"]
PER_CLASS = 6


def encoded(image: Image.Image, quality: int = 85, file_format: str = "JPEG") -> Image.Image:
    file = io.BytesIO()
    image.save(file, file_format, quality=quality)
    return decode_rgb(file.getvalue())


def captioned(image: Image.Image) -> Image.Image:
    image = image.copy()
    ImageDraw.Draw(image).text((10, 10), "a caption", fill="white", stroke_width=2, stroke_fill="black", font_size=24)
    return image


def cropped(image: Image.Image) -> Image.Image:
    width, height = image.size
    return image.crop((round(width * 0.05), round(height * 0.03), round(width * 0.96), round(height * 0.95)))


COPIES = {
    "low quality": lambda image: encoded(image, 40),
    "another format": lambda image: encoded(image, 70, "WEBP"),
    "half the size": lambda image: encoded(image.reduce(2)),
    "squeezed": lambda image: encoded(image.resize((image.width, image.height * 3 // 4))),
    "cropped": lambda image: encoded(cropped(image)),
    "black frame": lambda image: encoded(ImageOps.expand(image, 14, "black")),
    "white frame": lambda image: encoded(ImageOps.expand(image, 24, "white")),
    "bars": lambda image: encoded(ImageOps.pad(image, (max(image.size),) * 2)),
    "caption": lambda image: encoded(captioned(image)),
    "brighter": lambda image: encoded(ImageEnhance.Brightness(image).enhance(1.3)),
    "darker": lambda image: encoded(ImageEnhance.Brightness(image).enhance(0.6)),
    "contrast": lambda image: encoded(ImageEnhance.Contrast(image).enhance(1.5)),
    "greyscale": lambda image: encoded(image.convert("L")),
}


def vectors(name: str, images: list[Image.Image]) -> np.ndarray:
    model = models.load(ModelSpec(model=name))
    return model.embed(np.stack([model.preprocess(image) for image in images]))


@pytest.fixture(scope="module")
def drawn() -> tuple[list[Image.Image], np.ndarray]:
    """Pictures of every class, and the numbers of the classes."""
    sizes = [(320, 240), (240, 320), (256, 256)]
    pictures = [
        drawing.draw(name, np.random.default_rng([7, number, i]), sizes[i % 3])
        for number, name in enumerate(drawing.CLASSES)
        for i in range(PER_CLASS)
    ]
    return pictures, np.repeat(np.arange(len(drawing.CLASSES)), PER_CLASS)


@pytest.fixture(scope="module")
def photos(shared) -> list[Image.Image]:
    paths = sorted((shared / "data" / "photos").iterdir())[::3]
    return [decode_rgb(path.read_bytes()) for path in paths]


@pytest.mark.parametrize("name", NAMES)
def test_vectors_are_unit_rows_of_the_dimension_that_is_listed(name, drawn):
    found, model = vectors(name, drawn[0]), models.load(ModelSpec(model=name))
    assert (found.shape, found.dtype) == ((len(drawn[0]), model.dim), np.float32)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert (name, "builtin", model.dim) in {row[:3] for row in models.available()}
    assert (model.dim <= 256) if name == "builtin:dct" else (model.dim <= 512)


@pytest.mark.parametrize("name", NAMES)
def test_a_vector_is_the_same_alone_and_in_any_batch(name, drawn):
    model = models.load(ModelSpec(model=name))
    rasters = np.stack([model.preprocess(image) for image in drawn[0][::5]])
    together = model.embed(rasters)
    np.testing.assert_array_equal(model.embed(rasters[::-1])[::-1], together)
    np.testing.assert_array_equal(np.concatenate([model.embed(raster[None]) for raster in rasters]), together)
    np.testing.assert_array_equal(model.embed(np.asfortranarray(rasters)), together)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_that_is_begun_ahead_is_the_same(name, drawn):
    model = models.load(ModelSpec(model=name))
    batch = model.buffer((5, *model.input_shape))
    assert (batch.dtype, batch.any(), model.halved) == (np.uint8, False, 0)
    batch[:4] = [model.preprocess(image) for image in drawn[0][:4]]
    found, seconds = model.start(batch)()
    np.testing.assert_array_equal(found, model.embed(batch))
    assert np.isfinite(found).all() and seconds > 0  # padding has a vector as well


def check_copies(images: list[Image.Image], min_recall: float) -> None:
    """Unrelated images are below every threshold; so many of the copies are above the one for self-deduplication."""
    thresholds = models.copy_thresholds(ModelSpec(model="builtin:dct"))
    originals = vectors("builtin:dct", images)
    assert (originals @ originals.T)[np.triu_indices(len(images), 1)].max() < thresholds.benchmark_min_similarity
    for name, change in COPIES.items():
        similarity = np.einsum("nd,nd->n", originals, vectors("builtin:dct", [change(image) for image in images]))
        assert (similarity >= thresholds.min_similarity).mean() >= min_recall, name


def test_copies_of_drawn_pictures_are_found_and_no_others(drawn):
    check_copies(drawn[0][::2], min_recall=0.97)


def test_copies_of_photographs_are_found_and_no_others(photos):
    check_copies(photos[:40], min_recall=0.95)  # 38 of 40


def test_a_greyscale_copy_keeps_the_share_that_the_colour_leaves(drawn):
    image = drawn[0][0]
    colour, grey = vectors("builtin:dct", [image, image.convert("L").convert("RGB")])
    assert float(colour @ grey) == pytest.approx(1 / np.hypot(1, builtin.CHROMA_WEIGHT), abs=0.01)


@pytest.mark.parametrize("colour", ["black", "white", "#808080", "red"])
def test_flat_images_match_nothing_but_themselves(colour, drawn):
    flat = Image.new("RGB", (200, 100), colour)
    others = [Image.new("RGB", (200, 100), name) for name in ("#010101", "#fefefe", "#7f8081", "#fd0102")]
    found = vectors("builtin:dct", [flat, flat.resize((64, 64)), *others, *drawn[0]])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[2:] @ found[0]).max() < 0.35


def test_what_jpeg_leaves_of_a_flat_image_is_flat(drawn):
    rng = np.random.default_rng(0)
    noisy = [Image.fromarray((128 + rng.integers(-3, 4, (240, 320, 3))).astype(np.uint8)) for _ in range(8)]
    found = vectors("builtin:dct", [*noisy, *drawn[0][::6]])
    assert (found @ found.T - np.eye(len(found)))[:8].max() < 0.4


FRAMES = [  # (top, right, bottom, left) lines added to 200 x 160, what is left of a side at 256
    ((0, 0, 0, 0), (256, 256)),
    ((20, 20, 20, 20), (205, 213)),
    ((40, 0, 40, 0), (171, 256)),
    ((0, 50, 0, 0), (256, 205)),
    ((0, 330, 0, 330), (256, 256)),  # thicker than three eighths of the picture: not a frame
]


@pytest.mark.parametrize("colour", ["black", "white", (200, 40, 90)])
@pytest.mark.parametrize(("lines", "left"), FRAMES)
def test_a_frame_is_cut_off(lines, left, colour):
    rng = np.random.default_rng(0)
    inner = Image.fromarray(rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)).resize((200, 160))
    top, right, bottom, left_lines = lines
    image = Image.new("RGB", (200 + left_lines + right, 160 + top + bottom), colour)
    image.paste(inner, (left_lines, top))
    pixels = builtin.without_frame(np.asarray(image.resize((256, 256), Image.Resampling.BILINEAR)))
    assert np.abs(np.subtract(pixels.shape[:2], left)).max() <= 3


def test_a_frame_within_a_frame_is_cut_off():
    rng = np.random.default_rng(0)
    inner = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((192, 192))
    image = ImageOps.expand(ImageOps.expand(inner, 12, "white"), 20, "red")
    assert image.size == (256, 256)
    np.testing.assert_array_equal(builtin.without_frame(np.asarray(image)), np.asarray(inner))


def test_a_plain_ground_is_no_frame():
    image = Image.new("RGB", (256, 256), "white")
    ImageDraw.Draw(image).ellipse((60, 60, 190, 190), fill="navy")
    assert builtin.without_frame(np.asarray(image)).shape == (256, 256, 3)


def test_an_image_of_one_colour_has_no_frame():
    assert builtin.without_frame(np.zeros((256, 256, 3), dtype=np.uint8)).shape == (256, 256, 3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3000, 2), (32, 32)])
def test_odd_sizes_have_vectors(name, size):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    assert np.isfinite(vectors(name, [image])).all()


def nearest_classes(name: str, images: list[Image.Image], labels: np.ndarray) -> float:
    """Share of the images whose nearest other image has their class."""
    found = vectors(name, images)
    similarity = found @ found.T - 2 * np.eye(len(found))
    return float((labels[similarity.argmax(axis=1)] == labels).mean())


def test_colour_and_texture_find_the_class_of_drawn_pictures(drawn):
    assert nearest_classes("builtin:color_texture", *drawn) > 0.85  # chance: 0.08


def test_colour_and_texture_beat_chance_on_real_classes(shared):
    paths = [
        path for folder in sorted((shared / "data" / "cifar10").iterdir()) for path in sorted(folder.iterdir())[:30]
    ]
    images = [decode_rgb(path.read_bytes()) for path in paths]
    labels = np.unique([path.parent.name for path in paths], return_inverse=True)[1]
    assert nearest_classes("builtin:color_texture", images, labels) > 0.25  # chance: 0.1


def test_the_embedding_ignores_the_encoding(drawn):
    images = drawn[0][::4]
    found, again = (
        vectors("builtin:color_texture", images),
        vectors("builtin:color_texture", [encoded(i, 80) for i in images]),
    )
    assert np.einsum("nd,nd->n", found, again).min() > 0.9
