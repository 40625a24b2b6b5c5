"""Decoding against files of every format and mode, cut files, and bytes that are no image."""

import io
import pickle
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from lvd.tasks.decode import MAX_PIXELS, DecodeError, Header, decode_rgb, read_header

FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]


def picture(width: int = 96, height: int = 64) -> Image.Image:
    """A picture whose corners all differ: red grows to the right, green downwards, with a blue disc at the top left."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    blue = 255.0 * (np.hypot(x - 60, y - 60) < 50)
    return Image.fromarray(np.stack([x, y, blue], axis=2).astype(np.uint8))


def encoded(image: Image.Image, file_format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def mean_difference(image: Image.Image, expected: Image.Image) -> float:
    assert (image.mode, image.size) == ("RGB", expected.size)
    return float(np.abs(np.asarray(image, dtype=float) - np.asarray(expected, dtype=float)).mean())


@pytest.mark.parametrize("file_format", FORMATS)
def test_every_format_gives_its_header_and_its_pixels(file_format):
    data = encoded(picture(), file_format)
    assert read_header(data) == Header(file_format, 96, 64, 1)
    assert mean_difference(decode_rgb(data), picture()) < (12 if file_format == "GIF" else 6)  # 256 colours


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_of_an_animation_the_first_frame_is_taken(file_format):
    rest = [Image.new("RGB", (96, 64), colour) for colour in ("red", "blue")]
    data = encoded(picture(), file_format, save_all=True, append_images=rest)
    assert read_header(data) == Header(file_format, 96, 64, 3)
    assert mean_difference(decode_rgb(data), picture()) < 12


def test_a_multi_picture_jpeg_is_a_jpeg():
    data = encoded(picture(), "MPO", save_all=True, append_images=[picture()])
    assert read_header(data) == Header("JPEG", 96, 64, 2)
    assert decode_rgb(data, min_short_edge_px=32).size == (48, 32)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied_as_pillow_does(file_format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(), file_format, exif=exif.tobytes())
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert mean_difference(decode_rgb(data), expected) == 0
    header = read_header(data)
    assert (header.width, header.height) == expected.size == ((64, 96) if orientation >= 5 else (96, 64))


@pytest.mark.parametrize("orientation", [0, 9, 4711])
def test_an_orientation_that_does_not_exist_changes_nothing(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(), "PNG", exif=exif.tobytes())
    assert mean_difference(decode_rgb(data), picture()) == 0


def test_a_broken_exif_block_changes_nothing():
    data = encoded(picture(), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    assert read_header(data) == Header("PNG", 96, 64, 1)
    assert mean_difference(decode_rgb(data), picture()) == 0


def half_clear(mode: str) -> Image.Image:
    """The picture with its left half transparent."""
    alpha = Image.new("L", (96, 64), 255)
    alpha.paste(0, (0, 0, 48, 64))
    image = picture().convert(mode)
    image.putalpha(alpha)
    return image


@pytest.mark.parametrize(("mode", "file_format"), [("RGB", "PNG"), ("L", "PNG"), ("RGB", "WEBP"), ("L", "TIFF")])
def test_transparency_lies_over_white(mode, file_format):
    options = {"lossless": True} if file_format == "WEBP" else {}
    decoded = decode_rgb(encoded(half_clear(mode), file_format, **options))
    expected = picture().convert(mode).convert("RGB")
    expected.paste("white", (0, 0, 48, 64))
    assert mean_difference(decoded, expected) == 0


def test_half_transparency_is_blended():
    image = Image.new("RGBA", (4, 4), (0, 100, 200, 51))
    expected = Image.new("RGB", (4, 4), (204, 224, 244))  # 80% white
    assert mean_difference(decode_rgb(encoded(image, "PNG")), expected) <= 1


@pytest.mark.parametrize("file_format", ["PNG", "GIF"])
def test_a_transparent_palette_entry_lies_over_white(file_format):
    image = Image.new("P", (8, 4), 0)
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.paste(1, (4, 0, 8, 4))
    pixels = np.asarray(decode_rgb(encoded(image, file_format, transparency=0)))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[0, 7].tolist() == [200, 0, 0]


def test_palette_bytes_of_transparency_raise_no_warning():
    image = picture().quantize(16)
    data = encoded(image, "PNG", transparency=bytes([0] * 16))
    assert mean_difference(decode_rgb(data), Image.new("RGB", (96, 64), "white")) == 0


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_grey_and_palette_are_converted(mode):
    image = picture().convert(mode)
    assert mean_difference(decode_rgb(encoded(image, "PNG")), image.convert("RGB")) == 0


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_cmyk_is_not_a_negative(file_format):
    assert mean_difference(decode_rgb(encoded(picture().convert("CMYK"), file_format)), picture()) < 6


def grey16(dtype: str) -> np.ndarray:
    return (np.linspace(0, 65535, 64).astype(np.uint16)[:, None] * np.ones((1, 48), dtype=np.uint16)).astype(dtype)


GREY = {
    "16 bits, PNG": (Image.fromarray(grey16("<u2")), "PNG", grey16("<u2") / 257),
    "16 bits, dark": (Image.fromarray(grey16("<u2") // 4), "PNG", grey16("<u2") // 4 / 257),
    "16 bits, TIFF": (Image.fromarray(grey16("<u2")), "TIFF", grey16("<u2") / 257),
    "16 bits big-endian, TIFF": (Image.fromarray(grey16(">u2")), "TIFF", grey16("<u2") / 257),
    "32 bits within 16, TIFF": (Image.fromarray(grey16("<i4")), "TIFF", grey16("<u2") / 257),
    "32 bits beyond 16, TIFF": (Image.fromarray(grey16("<i4") * 3 - 500), "TIFF", grey16("<u2") / 257),
    "float to 1, TIFF": (Image.fromarray(grey16("<f4") / 65535), "TIFF", grey16("<u2") / 257),
    "float to 255, TIFF": (Image.fromarray(grey16("<f4") / 257), "TIFF", grey16("<u2") / 257),
    "float below 0, TIFF": (Image.fromarray(grey16("<f4") * 7 - 9), "TIFF", grey16("<u2") / 257),
}


@pytest.mark.parametrize("name", GREY)
def test_deep_grey_is_scaled_not_cut(name):
    image, file_format, expected = GREY[name]
    pixels = np.asarray(decode_rgb(encoded(image, file_format)))
    assert np.abs(pixels - expected[:, :, None]).max() <= 1


def test_not_a_number_is_black():
    values = np.array([[np.nan, 0.5], [1.0, 0.0]], dtype=np.float32)
    pixels = np.asarray(decode_rgb(encoded(Image.fromarray(values), "TIFF")))
    assert pixels[:, :, 0].tolist() == [[0, 128], [255, 0]]


REDUCED = [  # short edge asked for, size of the 400 x 240 picture
    (None, (400, 240)),
    (241, (400, 240)),
    (121, (400, 240)),
    (120, (200, 120)),
    (60, (100, 60)),
    (31, (100, 60)),
    (30, (50, 30)),
    (1, (50, 30)),
]


@pytest.mark.parametrize(("min_short_edge_px", "size"), REDUCED)
def test_a_jpeg_is_decoded_at_the_smallest_scale_that_is_large_enough(min_short_edge_px, size):
    decoded = decode_rgb(encoded(picture(400, 240), "JPEG"), min_short_edge_px=min_short_edge_px)
    assert mean_difference(decoded, picture(400, 240).resize(size, Image.Resampling.BOX)) < 4


@pytest.mark.parametrize("size", [(65, 65), (71, 9), (9, 71), (3, 2), (1, 1)])
@pytest.mark.parametrize("min_short_edge_px", [1, 2, 9])
def test_a_reduced_jpeg_is_never_smaller_than_asked_for(size, min_short_edge_px):
    short = min(decode_rgb(encoded(picture(*size), "JPEG"), min_short_edge_px=min_short_edge_px).size)
    smallest = min(
        -(-min(size) // scale) for scale in (8, 4, 2, 1) if -(-min(size) // scale) >= min(min_short_edge_px, *size)
    )
    assert short >= min(min_short_edge_px, *size)
    assert short == smallest or min(size) < 8


def test_only_jpeg_is_reduced():
    assert decode_rgb(encoded(picture(), "PNG"), min_short_edge_px=8).size == (96, 64)


CUT = {
    **{name: encoded(picture(), name) for name in FORMATS},
    "progressive JPEG": encoded(picture(), "JPEG", progressive=True),
    "lossless WEBP": encoded(picture(), "WEBP", lossless=True),
    "TIFF with LZW": encoded(picture(), "TIFF", compression="tiff_lzw"),
    "TIFF with JPEG": encoded(picture(), "TIFF", compression="jpeg"),
}


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("name", CUT)
def test_a_cut_file_is_truncated(name, share):
    with pytest.raises(DecodeError) as caught:
        decode_rgb(CUT[name][: int(len(CUT[name]) * share)])
    assert caught.value.reason == "truncated"


NO_IMAGE = {
    "nothing": b"",
    "text": b"<!DOCTYPE html><title>404</title>",
    "one byte": b"\xff",
    "zeros": bytes(1000),
    "a format that is left out": encoded(picture(), "PPM"),
    "an icon": encoded(picture(), "ICO"),
}


@pytest.mark.parametrize("read", [read_header, decode_rgb])
@pytest.mark.parametrize("name", NO_IMAGE)
def test_other_bytes_are_no_image(read, name):
    with pytest.raises(DecodeError) as caught:
        read(NO_IMAGE[name])
    assert caught.value.reason == "not_an_image"


@pytest.mark.parametrize(("name", "start"), [("PNG", 40), ("WEBP", 20), ("BMP", 14), ("TIFF with LZW", 8)])
def test_damage_in_a_whole_file_is_undecodable(name, start):
    data = bytearray(CUT[name])
    data[start : start + 200] = bytes(200)
    with pytest.raises(DecodeError) as caught:
        decode_rgb(bytes(data))
    assert caught.value.reason == "undecodable"


def test_random_damage_gives_a_picture_or_a_decode_error():
    rng = np.random.default_rng(0)
    failures = 0
    for name, data in CUT.items():
        for _ in range(25):
            damaged = np.frombuffer(data, dtype=np.uint8).copy()
            where = rng.integers(4 if rng.random() < 0.5 else 0, len(damaged), 8)
            damaged[where] = rng.integers(0, 256, len(where))
            for read in (read_header, decode_rgb):
                try:
                    read(damaged.tobytes(), max_pixels=10**6)
                except DecodeError as error:
                    failures += 1
                    assert str(error) and error.reason in (
                        "truncated",
                        "undecodable",
                        "not_an_image",
                        "too_many_pixels",
                    ), name
    assert failures > 50


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it has that size, and holds one row."""
    data = bytearray(encoded(Image.new("L", (1, 1)), "PNG"))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize("read", [read_header, decode_rgb])
@pytest.mark.parametrize(
    ("width", "height", "max_pixels"),
    [
        (100, 100, 9_999),
        (9_500, 9_500, 90_000_000),  # Pillow warns from here on
        (14_000, 14_000, MAX_PIXELS),  # and refuses from here on
        (2**31 - 1, 2**31 - 1, MAX_PIXELS),
        (14_000, 14_000, 10**12),  # a higher limit than Pillow's changes nothing
    ],
)
def test_too_many_pixels_are_refused_from_the_header(read, width, height, max_pixels):
    with pytest.raises(DecodeError) as caught:
        read(png_header(width, height), max_pixels=max_pixels)
    assert caught.value.reason == "too_many_pixels"


def test_a_large_header_within_the_limit_raises_no_warning():
    assert read_header(png_header(9_500, 9_500)) == Header("PNG", 9_500, 9_500, 1)


@pytest.mark.parametrize("name", CUT)
def test_the_header_decodes_no_pixel(name, monkeypatch):
    loads = []
    monkeypatch.setattr(Image.Image, "load", lambda image: loads.append(image))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: loads.append(image))
    read_header(CUT[name])
    assert not loads
    if name != "GIF":  # whose frames are counted by going through the file
        share = 0.6 if name in ("JPEG", "PNG", "BMP", "TIFF") else 1
        assert read_header(CUT[name][: int(len(CUT[name]) * share)]).width == 96


def test_threads_raise_no_warning():
    # Pillow warns of such a size; `catch_warnings` in each thread would let some of the warnings through.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ThreadPoolExecutor(4) as pool:
            headers = list(pool.map(read_header, [png_header(9_500, 9_500)] * 200))
    assert len(set(headers)) == 1


def test_the_error_survives_pickling():
    error = pickle.loads(pickle.dumps(DecodeError("truncated", "JPEG of 7 bytes ends early")))
    assert (error.reason, str(error)) == ("truncated", "JPEG of 7 bytes ends early")
