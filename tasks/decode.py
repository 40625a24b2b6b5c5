"""From bytes to pixels, in one place: what the header says, and the picture as 8-bit RGB.

Pillow only, so that one recipe sees one set of pixels. At 10^9 images of 110 kB: about 0.1 ms of one core for a header
and 2 to 4 ms for a decode, nothing written, one picture in memory at a time: 4 bytes a pixel of a photograph, at most
16 x `max_pixels` (WebP, which keeps three canvases). Before Pillow sees a file, its container is walked through.
"""

import functools
import io
import re
import struct
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lvd.tasks.containers import MAX_FRAMES, MAX_PARTS, WALKS, DecodeError, ends_early, num_values

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""What is decoded. Everything else that Pillow could open (PSD, EPS, fonts, …) is `not_an_image`."""

MAX_PIXELS = 178_956_970
"""Pillow's own hard limit, twice `Image.MAX_IMAGE_PIXELS`. A `max_pixels` above it changes nothing."""


MAX_RUN_LENGTH_BMP = 1 << 23
"""Pixels and bytes of a run-length encoded BMP, which Pillow decodes in Python, at up to 0.2 µs each."""


_PIL_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError),
    *(AssertionError, EOFError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError),
)
"""What Pillow raises on bytes that are not what they claim to be."""

_PIL_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


_BLOCK_VALUES = 1 << 22  # grey values that are scaled at once

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation to the turn that undoes it (EXIF 2.32, tag 0x0112)."""


@dataclass(frozen=True)
class Header:
    """What a file says of itself. width, height: pixels as displayed, after the EXIF orientation; frames: >= 1.

    orientation: the EXIF orientation that displaying undoes, 1 to 8; 1 where there is none, or the decoder undoes it.
    """

    format: str
    width: int
    height: int
    frames: int
    orientation: int = 1


def read_header(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Header:
    """The header of the image in `data`, without decoding a pixel.

    max_pixels: upper bound of width x height; raising it admits larger decompressions (usual: 10^7 to `MAX_PIXELS`).
    Raises DecodeError: `not_an_image`, `truncated`, `undecodable`, `too_many_pixels` or `too_many_frames`.
    """
    image, frames = _open(data, max_pixels)
    width, height = image.size
    orientation = _orientation(image)
    if orientation >= 5:
        width, height = height, width
    return Header(_format(image), width, height, frames, orientation)


def decode_rgb(data: bytes, *, min_short_edge_px: int | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The first frame as displayed: mode RGB, 8 bits a channel, EXIF orientation applied, transparency over white.

    min_short_edge_px: a JPEG is decoded at its smallest DCT scale (1/8, 1/4, 1/2, 1) whose short edge still has that
        many pixels; None decodes every pixel. Other formats are always decoded whole.
    max_pixels: as in `read_header`.
    Raises DecodeError: `not_an_image`, `truncated`, `undecodable`, `too_many_pixels` or `too_many_frames`.
    """
    image, _ = _open(data, max_pixels)
    orientation = _orientation(image)
    try:
        if min_short_edge_px and _format(image) == "JPEG":
            _reduce(image, min_short_edge_px)
        image.load()
        rgb = _to_rgb(image)
        return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb
    except _PIL_ERRORS as error:
        raise _decode_error(data, error) from error


def _open(data: bytes, max_pixels: int) -> tuple[Image.Image, int]:
    """The unloaded Pillow image and its number of frames. Raises DecodeError."""
    name = claimed_format(data)
    counted = WALKS[name](data) if name in WALKS else None
    if _PIL_WARNINGS not in warnings.filters:  # `catch_warnings` is not safe in threads; this is, and stays narrow
        warnings.filterwarnings("ignore", module=_PIL_WARNINGS[3].pattern)
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
    except _PIL_ERRORS as error:
        raise _decode_error(data, error) from error
    width, height = image.size
    if width * height > max_pixels:
        raise DecodeError("too_many_pixels", f"{width} x {height} pixels, more than max_pixels = {max_pixels}")
    _check_work(data, image, max_pixels)
    frames = getattr(image, "n_frames", 1) if counted is None else counted
    if frames > MAX_FRAMES:
        raise DecodeError("too_many_frames", f"{name} of {len(data)} bytes: more than {MAX_FRAMES} frames")
    return image, max(frames, 1)


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow has been built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _format(image: Image.Image) -> str:
    """The format by name; a multi-picture JPEG counts as a JPEG."""
    return "JPEG" if image.format == "MPO" else image.format


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation still to be undone, 1 to 8; 1 where there is none, it is broken, or Pillow undoes it."""
    exif = image.info.get("exif", b"")
    if image.format == "TIFF" or num_values(exif, exif.startswith(b"Exif\0\0") * 6) > MAX_PARTS:
        return 1
    if len(image.info.get("Raw profile type exif", "")) > MAX_PARTS:  # EXIF as hexadecimal text, in a PNG
        return 1
    try:
        # The base method: PNG's own one decodes the pixels to look for EXIF behind them.
        orientation = int(Image.Image.getexif(image).get(0x0112, 1))
    except _PIL_ERRORS:
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _reduce(image: Image.Image, min_short_edge_px: int) -> None:
    """Set an unloaded JPEG to its smallest DCT scale whose short edge is at least that long."""
    width, height = image.size
    for scale in (8, 4, 2):
        if -(-min(width, height) // scale) >= min_short_edge_px and min(width, height) >= scale:
            image.draft(None, (width // scale, height // scale))
            return


def _to_rgb(image: Image.Image) -> Image.Image:
    """A loaded image of any mode as 8-bit RGB, transparency over white."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    rgb = Image.new("RGB", image.size, "white")
    rgb.paste(rgba, mask=rgba.getchannel("A"))
    return rgb


def _to_8_bits(grey: np.ndarray) -> np.ndarray:
    """(h, w) uint8 from (h, w) 16-bit, 32-bit or float grey values.

    The full scale is 65535 for integers and 1 or 255 for floats, whichever holds the values; values that no such scale
    holds (negative, larger) go from their smallest to their largest. NaN becomes the smallest.
    """
    if not grey.size:
        raise ValueError("an image of no pixels")
    rows = max(1, _BLOCK_VALUES // grey.shape[1])
    blocks = [slice(row, row + rows) for row in range(0, len(grey), rows)]
    low, high = _range(grey, blocks)
    scales = (1.0, 255.0) if np.issubdtype(grey.dtype, np.floating) else (65535.0,)
    full = next((scale for scale in scales if low >= 0 and high <= scale), None)
    low, full = (0.0, full) if full is not None else (low, max(high - low, 1e-12))
    scaled = np.empty(grey.shape, dtype=np.uint8)
    for block in blocks:
        values = np.clip((grey[block].astype(np.float64) - low) / full, 0.0, 1.0)
        scaled[block] = np.nan_to_num(np.rint(values * 255.0), nan=0.0)
    return scaled


def _range(grey: np.ndarray, blocks: list[slice]) -> tuple[float, float]:
    """The smallest and the largest finite value; 0 and 0 if there is none."""
    low, high = np.inf, -np.inf
    for block in blocks:
        values = grey[block][np.isfinite(grey[block])].astype(np.float64)
        if values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    return (low, high) if low <= high else (0.0, 0.0)


def _check_work(data: bytes, image: Image.Image, max_pixels: int) -> None:
    """Raises DecodeError if decoding the opened image would cost far more than its size says."""
    width, height = image.size
    if image.format == "BMP" and image.tile[0].codec_name == "bmp_rle":
        if width * height + len(data) > MAX_RUN_LENGTH_BMP:
            error = f"{width} x {height} run-length encoded pixels in {len(data)} bytes, more than {MAX_RUN_LENGTH_BMP}"
            raise DecodeError("too_many_pixels", error)
    elif image.format == "TIFF":
        across, down = (image.tag_v2.get(tag, 0) for tag in (322, 323))  # of a tile, which is decoded whole
        if isinstance(across, int) and isinstance(down, int) and across * down > max(max_pixels, _BLOCK_VALUES):
            raise DecodeError("too_many_pixels", f"a tile of {across} x {down} pixels, more than {max_pixels}")


def _decode_error(data: bytes, error: Exception) -> DecodeError:
    """The one error for whatever Pillow raised."""
    if isinstance(error, Image.DecompressionBombError):
        return DecodeError("too_many_pixels", str(error))
    name = claimed_format(data)
    if name is None:
        message = f"{len(data)} bytes that begin with {data[:16]!r}: none of {', '.join(FORMATS)}"
        return DecodeError("not_an_image", message)
    seen = "no readable header" if isinstance(error, Image.UnidentifiedImageError) else str(error) or repr(error)
    if "truncated" in seen.lower() or isinstance(error, EOFError) or ends_early(data, name):
        return DecodeError("truncated", f"{name} of {len(data)} bytes ends early: {seen}")
    return DecodeError("undecodable", f"{name} of {len(data)} bytes: {seen}")


def claimed_format(data: bytes) -> str | None:
    """The format whose signature the bytes bear, or None."""
    for name in _formats():
        accept = Image.OPEN[name][1]
        if accept is not None and accept(data[:16]):
            return name
    return None
