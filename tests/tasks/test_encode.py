"""Images written anew against Pillow's pixels, on drawn and real pictures; nothing but pixels comes out of them."""

import io
import struct
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from PIL import Image

from lvd.tasks.decode import DecodeError, decode_rgb, read_header
from lvd.tasks.encode import BLUR_CELLS, ELLIPSE, blurred, shrunk, shrunk_pixels, with_blurred
from lvd.tests import copying
from lvd.tests.drawing import CLASSES, draw

MAX_PIXELS = 10**8
PICTURE = draw("patchwork", np.random.default_rng(5), (600, 400))

small = partial(shrunk, short_edge_px=100, quality=95, max_pixels=MAX_PIXELS)
pixels_of = partial(shrunk_pixels, short_edge_px=100, max_pixels=MAX_PIXELS)
covered = partial(with_blurred, quality=95, max_pixels=MAX_PIXELS)


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def psnr(left: np.ndarray, right: np.ndarray) -> float:
    """Decibels; 99 for equal pixels."""
    assert left.shape == right.shape
    error = np.mean((left.astype(float) - right.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else 99.0


def reference(data: bytes, short_edge_px: int) -> np.ndarray:
    """Every pixel decoded, then Lanczos."""
    image = decode_rgb(data)
    scale = short_edge_px / min(image.size)
    size = tuple(max(1, round(edge * scale)) for edge in image.size)
    return np.asarray(image if scale >= 1 else image.resize(size, Image.Resampling.LANCZOS))


SIZES = [  # stored, written with a short edge of 100
    ((600, 400), (150, 100)),
    ((400, 600), (100, 150)),
    ((201, 100), (201, 100)),
    ((99, 300), (99, 300)),
    ((101, 101), (100, 100)),
    ((3000, 2000), (150, 100)),
    ((1, 1), (1, 1)),
    ((1, 2000), (1, 2000)),
    ((2000, 150), (1333, 100)),
    ((750, 505), (149, 100)),  # halved to 253 rows by the decoder, which alone would give 148 columns
]


@pytest.mark.parametrize(("stored", "written"), SIZES)
@pytest.mark.parametrize("save", [copying.jpeg, copying.png])
def test_the_short_edge_is_as_asked_and_no_image_grows(stored, written, save) -> None:
    image = opened(small(save(PICTURE.resize(stored))[1]))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", written)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("size", [(300, 220), (800, 600), (813, 503)])  # the latter two are halved by the decoder
def test_drawn_pictures_look_like_the_reference(name, size) -> None:
    data = copying.jpeg(draw(name, np.random.default_rng(1), size))[1]
    assert psnr(pixels_of(data), reference(data, 100)) >= 35


def test_photographs_look_like_the_reference(shared) -> None:
    photographs = [file.read_bytes() for file in sorted((shared / "data" / "photos").iterdir())]
    written = [shrunk_pixels(data, short_edge_px=256, max_pixels=MAX_PIXELS) for data in photographs]
    decibels = np.array(
        [psnr(*pair) for pair in zip(written, (reference(data, 256) for data in photographs), strict=True)]
    )
    assert decibels.mean() >= 45 and (decibels >= 35).mean() >= 0.99


def test_large_photographs_look_like_the_reference(shared) -> None:
    """Photographs side by side, so that there is detail of every pixel's size."""
    photographs = [opened(file.read_bytes()) for file in sorted((shared / "data" / "photos").iterdir())[:60]]
    pieces = [
        photo.convert("RGB").crop((0, 0, 400, 300)) for photo in photographs if photo.width >= 400 <= photo.height
    ]
    wall = Image.new("RGB", (2000, 900))
    for place in range(15):
        wall.paste(pieces[place % len(pieces)], (place % 5 * 400, place // 5 * 300))
    data = copying.jpeg(wall, 90)[1]
    for edge_px in (100, 150, 224, 256, 440, 512):
        assert psnr(shrunk_pixels(data, short_edge_px=edge_px, max_pixels=MAX_PIXELS), reference(data, edge_px)) >= 35


@pytest.mark.parametrize("name", copying.SPECIAL_FORMATS)
def test_what_is_not_shrunk_has_the_pixels_of_decode_rgb(name) -> None:
    data = copying.SPECIAL_FORMATS[name](PICTURE)[1]
    pixels = shrunk_pixels(data, short_edge_px=400, max_pixels=MAX_PIXELS)
    assert (pixels == np.asarray(decode_rgb(data))).all()


@pytest.mark.parametrize("name", copying.SPECIAL_FORMATS)
def test_every_format_is_shrunk_and_written_as_rgb(name) -> None:
    data = copying.SPECIAL_FORMATS[name](PICTURE)[1]
    image = opened(small(data))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (150, 100))
    pillow = opened(copying.jpeg(Image.fromarray(reference(data, 100)), 95)[1])  # as coarse in its colours
    assert psnr(np.asarray(image), reference(data, 100)) >= min(psnr(np.asarray(pillow), reference(data, 100)) - 1, 35)


@pytest.mark.parametrize("save", [copying.jpeg, copying.png, copying.webp])
@pytest.mark.parametrize("orientation", range(10))
def test_the_orientation_is_applied(save, orientation) -> None:
    exif = Image.Exif()
    exif[copying.EXIF_ORIENTATION] = orientation
    data = save(PICTURE, exif=exif)[1] if save is not copying.png else copying.saved(PICTURE, "PNG", exif=exif)
    turned = pixels_of(data)
    assert turned.shape == ((150, 100, 3) if 5 <= orientation <= 8 else (100, 150, 3))
    assert psnr(turned, reference(data, 100)) >= 35
    whole = shrunk_pixels(data, short_edge_px=400, max_pixels=MAX_PIXELS)
    assert (whole == np.asarray(decode_rgb(data))).all()


def test_the_same_bytes_every_time_and_in_threads() -> None:
    files = [copying.jpeg(PICTURE)[1], copying.png(PICTURE)[1], copying.webp(PICTURE)[1]] * 8
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(small, files)) == [small(data) for data in files]


def test_a_higher_quality_is_larger_and_closer() -> None:
    data = copying.png(PICTURE)[1]
    files = [shrunk(data, short_edge_px=100, quality=quality, max_pixels=MAX_PIXELS) for quality in (30, 75, 95)]
    assert sorted(map(len, files)) == [len(file) for file in files]
    decibels = [psnr(np.asarray(opened(file)), pixels_of(data)) for file in files]
    assert sorted(decibels) == decibels


SECRETS = (b"a-camera", b"a-comment", b"a-profile", b"a-packet", b"a-thumbnail")


def with_metadata(save: str) -> bytes:
    """A file with EXIF and a thumbnail in it, a comment, an XMP packet and a colour profile."""
    directory = struct.pack("<HHHII", 1, 0x010F, 2, 9, 60) + bytes(4)
    exif = (b"Exif\0\0II*\0" + struct.pack("<I", 8) + directory).ljust(66, b"\0") + b"a-camera\0" + b"a-thumbnail" * 20
    options = {"exif": exif, "icc_profile": b"a-profile" * 20}
    if save != "PNG":
        options["xmp"] = b"<x:xmpmeta>a-packet</x:xmpmeta>"
    if save == "JPEG":
        options["comment"] = b"a-comment"
    return copying.saved(PICTURE, save, **options)


@pytest.mark.parametrize("save", ["JPEG", "PNG", "WEBP"])
def test_no_metadata_comes_out(save) -> None:
    data = with_metadata(save)
    assert sum(secret in data for secret in SECRETS) >= 2
    for written in (small(data), covered(data, np.empty((0, 4)))):
        assert not [secret for secret in SECRETS if secret in written]
        assert opened(written).info.keys() <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
        assert not opened(written).getexif()


@pytest.mark.parametrize("write", [small, partial(covered, boxes=np.empty((0, 4)))])
def test_what_cannot_be_decoded_says_why(write) -> None:
    jpeg, grey = copying.jpeg(PICTURE)[1], copying.png(Image.new("L", (70_000, 2)))[1]
    cases = [
        (jpeg[: len(jpeg) // 2], "truncated"),
        (b"<html>", "not_an_image"),
        (copying.bomb_png(), "too_many_pixels"),
    ]
    for data, reason in [*cases, (grey, "too_many_pixels")]:  # no JPEG has an edge of 70,000 pixels
        with pytest.raises(DecodeError) as caught:
            write(data)
        assert caught.value.reason == reason
    with pytest.raises(DecodeError, match="max_pixels = 1000"):
        shrunk(jpeg, short_edge_px=100, quality=95, max_pixels=1000)


def test_damage_that_pillow_forgives_is_forgiven() -> None:
    """libjpeg-turbo alone would refuse it."""
    jpeg = copying.jpeg(PICTURE)[1]
    scan = jpeg.index(b"\xff\xda")
    data = jpeg[:scan] + b"\0\0" + jpeg[scan:]
    assert (shrunk_pixels(data, short_edge_px=400, max_pixels=MAX_PIXELS) == np.asarray(decode_rgb(data))).all()
    assert small(data) == small(jpeg)


# Blurring

NOISE = Image.fromarray(np.random.default_rng(2).integers(0, 256, (300, 400, 3), dtype=np.uint8))


def inside(image: Image.Image, box, *, share: float = 1.0) -> np.ndarray:
    """(h, w) bool: the ellipse around the box, or a smaller one with this share of its axes."""
    x, y = (np.arange(image.width) + 0.5) / image.width, (np.arange(image.height) + 0.5) / image.height
    middle, axes = np.add(box[:2], box[2:4]) / 2, np.subtract(box[2:4], box[:2]) / 2 * ELLIPSE * share
    return ((x - middle[0]) / axes[0]) ** 2 + ((y[:, None] - middle[1]) / axes[1]) ** 2 <= 1


def roughness(image: Image.Image, box) -> float:
    """Variance of the second differences of the luminance (0 to 1) within the box."""
    grey = np.asarray(image.convert("L"), dtype=float) / 255
    second = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    return float(second[inside(image, box, share=0.9)[1:-1, 1:-1]].var())


BOXES = [
    (0.3, 0.2, 0.6, 0.7),
    (0.0, 0.0, 0.2, 0.3),
    (0.85, 0.9, 1.0, 1.0),
    (0.5, 0.1, 0.55, 0.16),
    (0.0, 0.0, 1.0, 1.0),
]


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("image", [NOISE, PICTURE], ids=["noise", "picture"])
def test_nothing_is_left_inside_and_nothing_changes_outside(image, box) -> None:
    result = blurred(image, np.array([box]))
    assert result.mode == "RGB" and result.size == image.size
    changed = (np.asarray(result) != np.asarray(image)).any(axis=2)
    assert not changed[~inside(image, box)].any()
    if image is NOISE:
        assert changed[inside(image, box)].mean() > 0.99
    assert roughness(result, box) < 1e-4
    assert roughness(result, box) < roughness(image, box) / 100


def test_the_whole_box_is_inside() -> None:
    left, top, right, bottom = 100, 60, 240, 210
    result = np.asarray(blurred(NOISE, np.array([[left / 400, top / 300, right / 400, bottom / 300]])))
    assert (result != np.asarray(NOISE)).any(axis=2)[top:bottom, left:right].mean() > 0.999


def test_only_a_few_means_decide_what_is_seen() -> None:
    """Faces that agree in the mean of each cell give the same blur, whatever their features."""
    box = np.array([[0.25, 0.25, 0.75, 0.75]])
    image = np.full((160, 160, 3), 90, dtype=np.uint8)
    edge = 160 * 0.5 * ELLIPSE / BLUR_CELLS
    rng, other = np.random.default_rng(3), image.copy()
    for row in range(BLUR_CELLS):
        for column in range(BLUR_CELLS):
            y, x = (round(80 + (place - BLUR_CELLS / 2) * edge) + 2 for place in (row, column))
            features = rng.integers(0, 180, (24, 24, 3))
            other[y : y + 24, x : x + 24] = np.clip(features - features.mean(axis=(0, 1)).round() + 90, 0, 255)
    plain, faces = (np.asarray(blurred(Image.fromarray(part), box), dtype=int) for part in (image, other))
    mask = inside(Image.fromarray(image), box[0])
    assert np.abs(other.astype(int) - image)[mask].mean() > 20
    assert np.abs(faces - plain)[mask].max() <= 3


def test_a_larger_face_is_blurred_more() -> None:
    rough = [roughness(blurred(NOISE, np.array([box])), box) for box in ((0.45, 0.4, 0.55, 0.5), (0.3, 0.2, 0.7, 0.8))]
    assert rough[1] < rough[0] / 2


def test_several_boxes_and_further_columns() -> None:
    boxes = np.array([[0.1, 0.1, 0.3, 0.3, 0.9], [0.6, 0.5, 0.8, 0.9, 0.2]], dtype=np.float32)
    result = np.asarray(blurred(NOISE, boxes))
    expected = np.asarray(blurred(blurred(NOISE, boxes[:1, :4]), boxes[1:, :4]))
    assert (result == expected).all()


def test_no_box_changes_nothing_and_the_image_given_stays_as_it_is() -> None:
    before = NOISE.tobytes()
    assert blurred(NOISE, np.empty((0, 5))).tobytes() == before
    blurred(NOISE, np.array([BOXES[0]]))
    assert NOISE.tobytes() == before


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_a_box_without_an_area_is_a_dot(place) -> None:
    result = np.asarray(blurred(NOISE, np.full((1, 4), place)))
    assert (result != np.asarray(NOISE)).any(axis=2).sum() <= 4
    assert blurred(Image.new("RGB", (1, 1)), np.full((1, 4), place)).size == (1, 1)


@pytest.mark.parametrize("box", [(10, 20, 30, 40), (0.1, 0.1, np.nan, 0.5), (0.5, 0.1, 0.2, 0.4), (-0.1, 0, 0.5, 0.5)])
def test_boxes_that_are_none_are_refused(box) -> None:
    with pytest.raises(ValueError, match=r"boxes must be left, top, right, bottom in \[0, 1\]"):
        blurred(NOISE, np.array([BOXES[0], box]))


@pytest.mark.parametrize("save", [copying.jpeg, copying.webp])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_are_of_the_upright_image(save, orientation) -> None:
    exif = Image.Exif()
    exif[copying.EXIF_ORIENTATION] = orientation
    data = save(draw("bricks", np.random.default_rng(4), (320, 240)), exif=exif)[1]
    image, box = decode_rgb(data), BOXES[0]
    result = opened(covered(data, np.array([box])))
    assert (result.format, result.mode, result.size) == ("JPEG", "RGB", image.size)
    assert roughness(result, box) < roughness(image, box) / 50
    outside = ~inside(image, box, share=1.2)
    assert psnr(np.asarray(result)[outside], np.asarray(image)[outside]) >= 30


@pytest.mark.parametrize("name", copying.SPECIAL_FORMATS)
def test_every_format_is_blurred_at_its_whole_size(name) -> None:
    data = copying.SPECIAL_FORMATS[name](PICTURE)[1]
    result, header = opened(covered(data, np.array([BOXES[0]]))), read_header(data)
    assert (result.format, result.size) == ("JPEG", (header.width, header.height))
    assert roughness(result, BOXES[0]) < 1e-3
