"""What the parts of a file would cost a decoder: containers walked through before Pillow sees them.

So no file costs more than a few seconds, however its blocks, directories, scans or frames repeat.
"""

import re
import struct
from itertools import islice
from typing import Literal

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

Reason = Literal["not_an_image", "truncated", "undecodable", "too_many_pixels", "too_many_frames"]

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


class DecodeError(Exception):
    """These bytes give no picture. `reason` is one word for the ledger, the message says what was seen."""

    def __init__(self, reason: Reason, message: str):
        super().__init__(message)
        self.reason: Reason = reason

    def __reduce__(self):
        return DecodeError, (self.reason, str(self))


def _too_much(data: bytes, name: str, what: str) -> DecodeError:
    """The error for a file whose parts would cost more than its picture."""
    return DecodeError("undecodable", f"{name} of {len(data)} bytes: {what}")


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
    if len(found) == MAX_PROFILES or any(num_values(data, header.start()) > MAX_PARTS for header in found):
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
    if num_values(data, 0) > MAX_PARTS:
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


def num_values(data: bytes, start: int) -> int:
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


WALKS = {"JPEG": _check_jpeg, "PNG": _check_png, "GIF": _gif_frames, "TIFF": _tiff_frames, "AVIF": _check_avif}
"""What walks through a container before Pillow does; it returns the number of frames where that takes a walk."""


def ends_early(data: bytes, name: str) -> bool:
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
