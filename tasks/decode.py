"""From bytes to pixels, in one place: what the header says, and the picture as 8-bit RGB.

Pillow only, so that one recipe sees one set of pixels. At 10^9 images of 110 kB: about 0.2 ms of one core for a header
and 2 to 4 ms for a decode, nothing written, one picture in memory at a time (at most 4 bytes x `max_pixels`).
"""

import functools
import io
import re
import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""What is decoded. Everything else that Pillow could open (PSD, EPS, fonts, …) is `not_an_image`."""

MAX_PIXELS = 178_956_970
"""Pillow's own hard limit, twice `Image.MAX_IMAGE_PIXELS`. A `max_pixels` above it changes nothing."""

Reason = Literal["not_an_image", "truncated", "undecodable", "too_many_pixels"]

_PIL_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError),
    *(AssertionError, EOFError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError),
)
"""What Pillow raises on bytes that are not what they claim to be."""

_PIL_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)

TIFF_TYPE_BYTES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8)

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


class DecodeError(Exception):
    """These bytes give no picture. `reason` is one word for the ledger, the message says what was seen."""

    def __init__(self, reason: Reason, message: str):
        super().__init__(message)
        self.reason: Reason = reason

    def __reduce__(self):
        return DecodeError, (self.reason, str(self))


@dataclass(frozen=True)
class Header:
    """What a file says of itself. width, height: pixels as displayed, after the EXIF orientation; frames: >= 1."""

    format: str
    width: int
    height: int
    frames: int


def read_header(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Header:
    """The header of the image in `data`, without decoding a pixel.

    max_pixels: upper bound of width x height; raising it admits larger decompressions (usual: 10^7 to `MAX_PIXELS`).
    Raises DecodeError: `not_an_image`, `truncated`, `undecodable` or `too_many_pixels`.
    """
    image = _open(data, max_pixels)
    width, height = image.size
    if _orientation(image) >= 5:
        width, height = height, width
    try:
        frames = getattr(image, "n_frames", 1)
    except _PIL_ERRORS as error:
        raise _decode_error(data, error) from error
    return Header(_format(image), width, height, max(frames, 1))


def decode_rgb(data: bytes, *, min_short_edge_px: int | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The first frame as displayed: mode RGB, 8 bits a channel, EXIF orientation applied, transparency over white.

    min_short_edge_px: a JPEG is decoded at its smallest DCT scale (1/8, 1/4, 1/2, 1) whose short edge still has that
        many pixels; None decodes every pixel. Other formats are always decoded whole.
    max_pixels: as in `read_header`.
    Raises DecodeError: `not_an_image`, `truncated`, `undecodable` or `too_many_pixels`.
    """
    image = _open(data, max_pixels)
    orientation = _orientation(image)
    try:
        if min_short_edge_px and _format(image) == "JPEG":
            _reduce(image, min_short_edge_px)
        image.load()
        rgb = _to_rgb(image)
    except _PIL_ERRORS as error:
        raise _decode_error(data, error) from error
    return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """The unloaded Pillow image. Raises DecodeError."""
    if _PIL_WARNINGS not in warnings.filters:  # `catch_warnings` is not safe in threads; this is, and stays narrow
        warnings.filterwarnings("ignore", module=_PIL_WARNINGS[3].pattern)
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
    except _PIL_ERRORS as error:
        raise _decode_error(data, error) from error
    width, height = image.size
    if width * height > max_pixels:
        raise DecodeError("too_many_pixels", f"{width} x {height} pixels, more than max_pixels = {max_pixels}")
    return image


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
    if image.format == "TIFF":
        return 1
    try:
        # The base method: PNG's own one decodes the pixels to look for EXIF behind them.
        return int(Image.Image.getexif(image).get(0x0112, 1))
    except _PIL_ERRORS:
        return 1


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
    rgba = image.convert("RGBA")
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
    values = grey.astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    scales = (1.0, 255.0) if np.issubdtype(grey.dtype, np.floating) else (65535.0,)
    full = next((scale for scale in scales if low >= 0 and high <= scale), None)
    if full is None:
        values, full = values - low, max(high - low, 1e-12)
    return np.nan_to_num(np.rint(np.clip(values / full, 0.0, 1.0) * 255.0), nan=0.0).astype(np.uint8)


def _decode_error(data: bytes, error: Exception) -> DecodeError:
    """The one error for whatever Pillow raised."""
    if isinstance(error, Image.DecompressionBombError):
        return DecodeError("too_many_pixels", str(error))
    name = _claimed_format(data)
    if name is None:
        message = f"{len(data)} bytes that begin with {data[:16]!r}: none of {', '.join(FORMATS)}"
        return DecodeError("not_an_image", message)
    seen = "no readable header" if isinstance(error, Image.UnidentifiedImageError) else str(error) or repr(error)
    if "truncated" in seen.lower() or isinstance(error, EOFError) or _ends_early(data, name):
        return DecodeError("truncated", f"{name} of {len(data)} bytes ends early: {seen}")
    return DecodeError("undecodable", f"{name} of {len(data)} bytes: {seen}")


def _claimed_format(data: bytes) -> str | None:
    """The format whose signature the bytes bear, or None."""
    for name in _formats():
        accept = Image.OPEN[name][1]
        if accept is not None and accept(data[:16]):
            return name
    return None


def _ends_early(data: bytes, name: str) -> bool:
    """Whether bytes that could not be decoded are shorter than their format says they should be."""
    if name == "JPEG":
        return b"\xff\xd9" not in data
    if name == "PNG":
        return b"IEND" not in data
    if name == "GIF":
        return not data.rstrip(b"\0").endswith(b";")
    try:
        if name == "WEBP":
            return int.from_bytes(data[4:8], "little") + 8 > len(data)
        if name == "BMP":
            return int.from_bytes(data[2:6], "little") > len(data)
        if name == "TIFF":
            return _tiff_end(data) > len(data)
        return _boxes_end(data) > len(data)
    except struct.error:
        return True


def _tiff_end(data: bytes) -> int:
    """The last byte that the first directory of a TIFF refers to, pixels aside. Source: TIFF 6.0, section 2."""
    order = "<" if data[:2] == b"II" else ">"
    (directory,) = struct.unpack_from(f"{order}I", data, 4)
    (entries,) = struct.unpack_from(f"{order}H", data, directory)
    end = directory + 2 + 12 * entries
    for place in range(directory + 2, end, 12):
        _tag, kind, count, offset = struct.unpack_from(f"{order}HHII", data, place)
        size = count * (TIFF_TYPE_BYTES[kind] if kind < len(TIFF_TYPE_BYTES) else 0)
        end = max(end, offset + size if size > 4 else 0)
    return end


def _boxes_end(data: bytes) -> int:
    """Where the last top-level box of an ISO media file (AVIF) says it ends. Source: ISO 14496-12, section 4.2."""
    position = 0
    while position < len(data):
        size = struct.unpack_from(">I", data, position)[0]
        if size == 1:
            size = struct.unpack_from(">Q", data, position + 8)[0]
        if size < 8:  # 0: the box runs to the end of the file
            return len(data)
        position += size
    return position
