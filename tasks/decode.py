"""From bytes to pixels, in one place: what the header says, and the picture as 8-bit RGB.

Pillow only, so that one recipe sees one set of pixels. At 10^9 images of 110 kB: about 0.1 ms of one core for a header
and 2 to 4 ms for a decode, nothing written, one picture in memory at a time: 4 bytes a pixel of a photograph, at most
16 x `max_pixels` (WebP, which keeps three canvases). Before Pillow sees a file, its container is walked through, so
that no file costs more than a few seconds, however its blocks, directories, scans or frames repeat.
"""

import functools
import io
import re
import struct
import warnings
import zlib
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""What is decoded. Everything else that Pillow could open (PSD, EPS, fonts, …) is `not_an_image`."""

MAX_PIXELS = 178_956_970
"""Pillow's own hard limit, twice `Image.MAX_IMAGE_PIXELS`. A `max_pixels` above it changes nothing."""

MAX_FRAMES = 10_000
"""Of an animation or a file of many pages; 10,000 are seven minutes of video. Raising it admits longer ones."""

MAX_PARTS = 1 << 18
"""Chunks of a PNG, segments of a JPEG or blocks of a GIF that are no pixels, values in the directories of a TIFF.

A quarter of a million costs Pillow up to a second; a file of 50 MB would have room for twelve million.
"""

MAX_SCANS = 100
"""Of a JPEG; a progressive one has about ten. Each scan goes through all blocks again, and may be 20 bytes long.
libtiff refuses more than 100 as well."""

MAX_EXIF_SEGMENTS = 64
"""Of a JPEG. One is usual; Pillow joins them one by one, in quadratic time."""

MAX_PROFILES = 16
"""iCCP chunks of a PNG. One is allowed; each may unpack to 1 MiB."""

MAX_RUN_LENGTH_BMP = 1 << 23
"""Pixels and bytes of a run-length encoded BMP, which Pillow decodes in Python, at up to 0.2 µs each."""

Reason = Literal["not_an_image", "truncated", "undecodable", "too_many_pixels", "too_many_frames"]

_PIL_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError),
    *(AssertionError, EOFError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError),
)
"""What Pillow raises on bytes that are not what they claim to be."""

_PIL_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)

TIFF_TYPE_BYTES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8)
TIFF_BYTE_TYPES = (1, 2, 6, 7)
TIFF_PLACES = (273, 324)  # StripOffsets, TileOffsets: Pillow makes an object of each, whatever their type
TIFF_SUB_DIRECTORIES = (34665, 34853, 40965)  # Exif, GPS, interoperability

_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff])", re.DOTALL)
_JPEG_SEGMENT = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])", re.DOTALL)  # between pixels
_JPEG_SCAN = re.compile(rb"\xff\xda")
_JPEG_BARE = frozenset((0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)))  # markers without a length, as Pillow reads them
_EXIF = re.compile(rb"Exif")
_TIFF_HEADER = re.compile(rb"(?:II|MM)(?:\*\0|\0\*)")

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


class DecodeError(Exception):
    """These bytes give no picture. `reason` is one word for the ledger, the message says what was seen."""

    def __init__(self, reason: Reason, message: str):
        super().__init__(message)
        self.reason: Reason = reason

    def __reduce__(self):
        return DecodeError, (self.reason, str(self))


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
    name = _claimed_format(data)
    counted = _PARTS[name](data) if name in _PARTS else None
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
    if image.format == "TIFF" or _num_values(exif, exif.startswith(b"Exif\0\0") * 6) > MAX_PARTS:
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


def _too_much(data: bytes, name: str, what: str) -> DecodeError:
    """The error for a file whose parts would cost more than its picture."""
    return DecodeError("undecodable", f"{name} of {len(data)} bytes: {what}")


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


def _check_jpeg(data: bytes) -> None:
    """Raises DecodeError for a JPEG of too many segments, fill bytes or scans."""
    position, parts, exif, components = 2, 0, 0, b""
    while found := _JPEG_MARKER.search(data, position):
        marker = found[1][0]
        parts += 1 + found.start() - position
        position = found.end()
        if marker == 0xDA:
            break
        if marker in (0xC0, 0xC1):  # sequential: a first scan of all components is the only one that is decoded
            components = data[position + 7 : position + 8]
        if marker not in _JPEG_BARE:
            exif += marker == 0xE1 and data.startswith(b"Exif\0\0", position + 2)
            position += max(2, int.from_bytes(data[position : position + 2], "big"))
        if parts > MAX_PARTS or exif > MAX_EXIF_SEGMENTS:
            raise _too_much(data, "JPEG", f"{parts} segments and fill bytes, {exif} segments of EXIF")
    if data[position + 2 : position + 3] != components:
        _check_scans(data, position)


def _check_scans(data: bytes, position: int) -> None:
    """Raises DecodeError if more than MAX_SCANS scans of a JPEG begin from there to its end, or too many segments."""
    if len(_JPEG_SCAN.findall(data, position)) < MAX_SCANS:  # behind the end, in a film, there may be more
        return
    scans = segments = 1
    while (found := _JPEG_SEGMENT.search(data, position)) and found[1] != b"\xd9":
        position = found.end()
        position += max(2, int.from_bytes(data[position : position + 2], "big"))
        segments += 1
        scans += found[1] == b"\xda"
        if scans > MAX_SCANS or segments > MAX_PARTS:
            raise _too_much(data, "JPEG", f"{scans} scans in {segments} segments")


def _check_png(data: bytes) -> None:
    """Raises DecodeError for a PNG of too many chunks or colour profiles."""
    position, chunks, profiles = 8, 0, 0
    while position + 8 <= len(data):
        chunks += 1
        profiles += data.startswith(b"iCCP", position + 4)
        if chunks > MAX_PARTS or profiles > MAX_PROFILES:
            raise _too_much(data, "PNG", f"{chunks} chunks, {profiles} colour profiles")
        position += 12 + int.from_bytes(data[position : position + 4], "big")


def _check_avif(data: bytes) -> None:
    """Raises DecodeError for an AVIF whose EXIF block, which may lie anywhere, holds too many values."""
    if not _EXIF.search(data):
        return
    found = list(islice(_TIFF_HEADER.finditer(data), MAX_PROFILES))
    if len(found) == MAX_PROFILES or any(_num_values(data, header.start()) > MAX_PARTS for header in found):
        raise _too_much(data, "AVIF", f"too many EXIF blocks, or more than {MAX_PARTS} values in one")


def _gif_frames(data: bytes) -> int:
    """The number of frames of a GIF, counted no further than MAX_FRAMES + 1. Source: GIF89a, appendix A.

    Raises DecodeError for a GIF of too many blocks that are no frame.
    """
    frames = parts = 0
    position = 13 + _gif_palette_bytes(data, 10)
    try:
        while frames <= MAX_FRAMES and parts <= MAX_PARTS and (kind := data[position]) != 0x3B:
            if kind == 0x2C:
                position, _ = _after_blocks(data, position + 11 + _gif_palette_bytes(data, position + 9))
                frames += 1
            elif kind == 0x21:
                position, blocks = _after_blocks(data, position + 2)
                parts += blocks
            else:
                position += 1
                parts += 1
    except IndexError:  # the file ends early
        pass
    if parts > MAX_PARTS:
        raise _too_much(data, "GIF", f"more than {MAX_PARTS} blocks that are no pixels")
    return frames


def _gif_palette_bytes(data: bytes, flags: int) -> int:
    return 3 << (data[flags] & 7) + 1 if data[flags : flags + 1] and data[flags] & 0x80 else 0


def _after_blocks(data: bytes, position: int) -> tuple[int, int]:
    """Where a chain of GIF sub-blocks ends, and how many there are. Raises IndexError if it does not."""
    blocks = 1
    while size := data[position]:
        position += size + 1
        blocks += 1
    return position + 1, blocks


def _tiff_frames(data: bytes) -> int:
    """The number of directories of a TIFF, each once, counted no further than MAX_FRAMES + 1.

    Raises DecodeError for a first directory of too many values.
    """
    if _num_values(data, 0) > MAX_PARTS:
        raise _too_much(data, "TIFF", f"more than {MAX_PARTS} values in its first directory")
    order, count, entry, place, start = _tiff_layout(data, 0)
    seen: set[int] = set()
    try:
        (directory,) = struct.unpack_from(order + place, data, start)
        while directory and directory not in seen and len(seen) <= MAX_FRAMES:
            (entries,) = struct.unpack_from(order + count, data, directory)
            seen.add(directory)
            end = directory + struct.calcsize(order + count) + entries * struct.calcsize(order + entry)
            (directory,) = struct.unpack_from(order + place, data, end)
    except (struct.error, OverflowError):  # a directory beyond the end
        pass
    return max(len(seen), 1)


def _tiff_layout(data: bytes, start: int) -> tuple[str, str, str, str, int]:
    """Byte order, formats of a count, an entry and a place, and where the place of the first directory stands."""
    order = "<" if data[start : start + 2] == b"II" else ">"
    if data[start + 2 : start + 3] == b"+":  # BigTIFF, where Pillow takes it for one
        return order, "Q", "HHQQ", "Q", start + 8
    return order, "H", "HHII", "I", start + 4


def _num_values(data: bytes, start: int) -> int:
    """How many numbers the first directory of the TIFF or EXIF block at `start`, and those within it, announce.

    Each entry counts as one more; texts and bytes as nothing, as do values of no known type and values for which the
    file is too short: Pillow leaves them out.
    """
    order, count, entry, place, first = _tiff_layout(data, start)
    total = 0
    try:
        pending = list(struct.unpack_from(order + place, data, first))
        seen = set(pending)
        for directory in pending:
            begin = start + directory + struct.calcsize(order + count)
            (entries,) = struct.unpack_from(order + count, data, start + directory)
            total += entries
            if total > MAX_PARTS:
                break
            whole = data[begin : begin + entries * struct.calcsize(order + entry)]
            whole = whole[: len(whole) // struct.calcsize(order + entry) * struct.calcsize(order + entry)]
            for tag, kind, values, value in struct.iter_unpack(order + entry, whole):
                size = TIFF_TYPE_BYTES[kind] if kind < len(TIFF_TYPE_BYTES) else 0
                if (kind not in TIFF_BYTE_TYPES or tag in TIFF_PLACES) and 0 < values * size <= len(data):
                    total += values
                if tag in TIFF_SUB_DIRECTORIES and value not in seen:
                    pending.append(value)
                    seen.add(value)
    except (struct.error, OverflowError):  # a directory beyond the end
        pass
    return total


_PARTS = {"JPEG": _check_jpeg, "PNG": _check_png, "GIF": _gif_frames, "TIFF": _tiff_frames, "AVIF": _check_avif}
"""What walks through a container before Pillow does; it returns the number of frames where that takes a walk."""


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
