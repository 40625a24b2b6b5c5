"""Ten thousand damaged files and fifty crafted ones: a picture or a reason, and never a crash, a hang or a lost row.

What may bring a process down is read in a child process, under a limit of its memory and of its time per file, so that
a fault names the seed and the file that it came from.
"""

import faulthandler
import functools
import io
import json
import resource
import signal
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from lvd.tasks.containers import MAX_FRAMES, MAX_PARTS, Reason
from lvd.tasks.decode import DecodeError, decode_rgb, read_header
from lvd.tasks.encode import shrunk, with_blurred
from lvd.tests.copying import see_through
from lvd.tests.drawing import draw

SEED = 20
NUM_FILES = 10_000
NUM_ENCODED = 1_000
MAX_PIXELS = 1_000_000
MEMORY_BYTES = 1 << 30  # on top of what the process has when it begins
FILE_CPU_S = 10.0
REASONS = get_args(Reason)

DRAWN = draw("leaves", np.random.default_rng(SEED), (48, 40))


# What a file is made of


def encoded(image: Image.Image, file_format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def animated(file_format: str, **options) -> bytes:
    rest = [Image.fromarray(np.roll(np.asarray(DRAWN), step, axis=1)) for step in (5, 10, 15)]
    return encoded(DRAWN, file_format, save_all=True, append_images=rest, duration=80, **options)


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(size: tuple[int, int], rows: bytes, *chunks: bytes, kind: int = 2, bits: int = 8, interlaced: int = 0) -> bytes:
    """A PNG; rows: each with its filter byte. kind: 0 is grey, 2 RGB."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, bits, kind, 0, 0, interlaced))
    ends = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + ends


def interlaced_png() -> bytes:
    """The drawing in the seven passes of Adam7."""
    pixels = np.asarray(DRAWN)
    starts = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    passes = [pixels[top::down, left::across] for top, left, down, across in starts]
    return png(DRAWN.size, b"".join(b"\0" + row.tobytes() for part in passes for row in part), interlaced=1)


def tiff(tags: dict[int, tuple[int, int, int]], tail: bytes = b"", *, at: int = 300, following: int = 0) -> bytes:
    """A TIFF of one directory, tag → type, count, value, and what begins at byte `at`."""
    entries = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted(tags.items()))
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", following)
    return (b"II*\0" + struct.pack("<I", 8) + directory).ljust(at, b"\0") + tail


def plain_tags(width: int, height: int, **changed: tuple[int, int, int]) -> dict[int, tuple[int, int, int]]:
    """The tags of an 8-bit grey TIFF whose one strip begins at byte 300; changed: `t273=(type, count, value)`."""
    tags = {256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 273: (4, 1, 300)}
    tags |= {277: (3, 1, 1), 278: (4, 1, height), 279: (4, 1, width * height % 2**32)}
    return tags | {int(name[1:]): entry for name, entry in changed.items()}


def tiled_tiff() -> bytes:
    """The drawing in grey, in deflated tiles of 16 x 16."""
    grey = np.pad(np.asarray(DRAWN.convert("L")), ((0, 8), (0, 0)))
    tiles = [zlib.compress(grey[y : y + 16, x : x + 16].tobytes()) for y in (0, 16, 32) for x in (0, 16, 32)]
    offsets = np.cumsum([300 + 72] + [len(tile) for tile in tiles])[:-1]
    table = struct.pack("<18I", *offsets, *map(len, tiles))
    tags = plain_tags(48, 40, t259=(3, 1, 8), t322=(4, 1, 16), t323=(4, 1, 16), t324=(4, 9, 300), t325=(4, 9, 336))
    return tiff({tag: entry for tag, entry in tags.items() if tag not in (273, 278, 279)}, table + b"".join(tiles))


def run_length_bmp(width: int, height: int, data: bytes) -> bytes:
    """An 8-bit grey BMP of run-length encoded rows."""
    begin = 54 + 1024
    file = struct.pack("<IIIIiiHHIIIIII", begin + len(data), 0, begin, 40, width, height, 1, 8, 1, len(data), *4 * [0])
    return b"BM" + file + b"".join(bytes([shade] * 3 + [0]) for shade in range(256)) + data


def gif(*blocks: bytes, size: tuple[int, int] = (1, 1)) -> bytes:
    return b"GIF89a" + struct.pack("<HH", *size) + b"\x80\0\0" + b"\0\0\0\xff\xff\xff" + b"".join(blocks) + b";"


GIF_FRAME = b",\0\0\0\0\1\0\1\0\0\2\2\x44\1\0"


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"WEBP" + b"".join(
        name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for name, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def three(value: int) -> bytes:
    return struct.pack("<I", value)[:3]


def webp(frames: int, *chunks: tuple[bytes, bytes], edge_px: int = 1, flags: int = 2) -> bytes:
    """An animated WebP of frames of one pixel."""
    dot = encoded(Image.new("RGB", (1, 1)), "WEBP", lossless=True)[12:]
    canvas = (b"VP8X", bytes([flags, 0, 0, 0]) + 2 * three(edge_px - 1))
    frame = (b"ANMF", bytes(12) + three(10) + b"\0" + dot)
    return riff(canvas, *chunks, (b"ANIM", bytes(6)), *[frame] * frames)


def segment(marker: int, data: bytes) -> bytes:
    """A segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def jpeg(*segments: bytes) -> bytes:
    """The drawing as a JPEG with segments at its beginning."""
    data = encoded(DRAWN, "JPEG")
    return data[:2] + b"".join(segments) + data[2:]


def exif(tag: int, count: int, *, kind: int = 5) -> bytes:
    """A TIFF directory of one tag with that many fractions, or other values of 8 bytes."""
    return tiff({tag: (kind, count, 300)}, struct.pack("<II", 1, 3) * count)


def patched_avif(width: int, height: int, image: Image.Image = DRAWN) -> bytes:
    """An AVIF of the image whose header tells another size."""
    data = bytearray(encoded(image, "AVIF", speed=10))
    at = data.index(b"ispe") + 8
    data[at : at + 8] = struct.pack(">II", width, height)
    return bytes(data)


def turned() -> dict:
    """Pillow's options for a JPEG on its side, with a comment and an ICC profile of a kind."""
    tags = Image.Exif()
    tags[0x0112], tags[0x010F] = 6, "camera"
    return {"exif": tags, "comment": b"a comment", "icc_profile": bytes(range(256)) * 2}


GREY16 = Image.fromarray(np.asarray(DRAWN.convert("L"), np.uint16) * 257)
GOOD: dict[str, Callable[[], bytes]] = {
    "JPEG": lambda: encoded(DRAWN, "JPEG", **turned()),
    "JPEG, progressive": lambda: encoded(DRAWN, "JPEG", progressive=True, subsampling=0),
    "JPEG, restarts": lambda: encoded(DRAWN, "JPEG", restart_marker_blocks=2),
    "JPEG, grey": lambda: encoded(DRAWN.convert("L"), "JPEG"),
    "JPEG, CMYK": lambda: encoded(DRAWN.convert("CMYK"), "JPEG"),
    "JPEG, several": lambda: encoded(DRAWN, "MPO", save_all=True, append_images=[DRAWN, DRAWN]),
    "PNG": lambda: encoded(DRAWN, "PNG"),
    "PNG, 16 bits": lambda: encoded(GREY16, "PNG"),
    "PNG, interlaced": interlaced_png,
    "PNG, palette": lambda: encoded(DRAWN.quantize(32), "PNG", transparency=3),
    "PNG, alpha": lambda: encoded(see_through(DRAWN), "PNG", **turned()),
    "PNG, animated": lambda: animated("PNG"),
    "WEBP": lambda: encoded(DRAWN, "WEBP", **turned()),
    "WEBP, lossless": lambda: encoded(see_through(DRAWN), "WEBP", lossless=True),
    "WEBP, animated": lambda: animated("WEBP"),
    "GIF": lambda: encoded(DRAWN, "GIF"),
    "GIF, animated": lambda: animated("GIF", comment=b"a comment", loop=0),
    "BMP": lambda: encoded(DRAWN, "BMP"),
    "BMP, palette": lambda: encoded(DRAWN.convert("P"), "BMP"),
    "BMP, run-length": lambda: run_length_bmp(48, 40, b"\x10\x40\x20\x80\0\0" * 40 + b"\0\1"),
    "TIFF": lambda: encoded(DRAWN, "TIFF"),
    "TIFF, LZW": lambda: encoded(DRAWN, "TIFF", compression="tiff_lzw"),
    "TIFF, deflate": lambda: encoded(see_through(DRAWN), "TIFF", compression="tiff_adobe_deflate"),
    "TIFF, JPEG": lambda: encoded(DRAWN, "TIFF", compression="jpeg"),
    "TIFF, fax": lambda: encoded(DRAWN.convert("1"), "TIFF", compression="group4"),
    "TIFF, 16 bits": lambda: encoded(GREY16, "TIFF"),
    "TIFF, big": lambda: encoded(DRAWN, "TIFF", big_tiff=True),
    "TIFF, tiled": tiled_tiff,
    "TIFF, pages": lambda: animated("TIFF", compression="packbits"),
    "AVIF": lambda: encoded(DRAWN, "AVIF", speed=10, **turned()),
    "AVIF, alpha": lambda: encoded(see_through(DRAWN), "AVIF", speed=10),
    "AVIF, animated": lambda: animated("AVIF", speed=10),
}
SVG = b"""<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY file SYSTEM "file:///etc/passwd">]>
<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1/a.png"/><text>&file;</text></svg>"""
FOREIGN: dict[str, Callable[[], bytes]] = {
    "ICO": lambda: encoded(DRAWN, "ICO", sizes=[(32, 32)]),
    "JPEG 2000": lambda: encoded(DRAWN, "JPEG2000"),
    "PDF": lambda: encoded(DRAWN, "PDF"),
    "EPS": lambda: encoded(DRAWN, "EPS"),
    "EPS that reads a file": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file run\n",
    "PSD": lambda: struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, 40, 48, 8, 3) + bytes(14) + DRAWN.tobytes(),
    "SVG": lambda: SVG,
    "XML": lambda: b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bbbb">]><a xmlns:xi="x"><xi:include href="b"/></a>',
    "HTML": lambda: b"<!DOCTYPE html><img src=data:image/png;base64,iVBORw0KGgo=>",
}


# What becomes of it


def flipped(data: bytearray, rng: np.random.Generator, _: bytes) -> None:
    """Random bytes at random places; every other time all of them in the header."""
    end = len(data) if rng.random() < 0.5 else min(len(data), 200)
    for place in rng.integers(0, end, rng.integers(1, 12)):
        data[place] = rng.integers(256)


def bit_flipped(data: bytearray, rng: np.random.Generator, _: bytes) -> None:
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)


def cut(data: bytearray, rng: np.random.Generator, _: bytes) -> None:
    del data[rng.integers(len(data)) :]


def spliced(data: bytearray, rng: np.random.Generator, other: bytes) -> None:
    """The head of this file and the tail of another one."""
    data[rng.integers(len(data)) :] = other[rng.integers(len(other)) :]


def emptied(data: bytearray, rng: np.random.Generator, _: bytes) -> None:
    """A stretch of one byte, mostly zeros."""
    begin, length = rng.integers(len(data)), rng.integers(1, 64)
    data[begin : begin + length] = bytes([rng.choice([0, 0, 255])]) * len(data[begin : begin + length])


def repeated(data: bytearray, rng: np.random.Generator, _: bytes) -> None:
    """A stretch once more, so that blocks stand twice."""
    begin, length = rng.integers(len(data)), rng.integers(1, 400)
    data[begin:begin] = data[begin : begin + length] * rng.integers(1, 4)


def left_out(data: bytearray, rng: np.random.Generator, _: bytes) -> None:
    begin = rng.integers(len(data))
    del data[begin : begin + rng.integers(1, 64)]


def extreme(data: bytearray, rng: np.random.Generator, _: bytes) -> None:
    """A number of two or four bytes, in the first part, that is very large, zero or negative."""
    begin, value = rng.integers(min(len(data), 400)), int(rng.choice([0, 1, 0x7FFF, 0x8000, 0xFFFF]))
    number = struct.pack(str(rng.choice(["<HH", ">HH"])), value, value)[: rng.choice([2, 4])]
    data[begin : begin + len(number)] = number


DAMAGES = (flipped, bit_flipped, cut, spliced, emptied, repeated, left_out, extreme)


# What is crafted to cost more than it is worth: the file, and "picture" or the reason and a word of the message

BOX = (0.2, 0.3, 0.6, 0.7)
MANY = 100_000
ZEROS = bytes(100_000_000)


def profile(num_bytes: int) -> bytes:
    return chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(num_bytes)))


def before_a_film(last: bytes = b"") -> bytes:
    """A progressive JPEG that ends with that, and behind its end bytes that could be scans."""
    return encoded(DRAWN, "JPEG", progressive=True)[:-2] + last + b"\xff\xd9\0\2" + b"\xff\xda\0\2" * 500


def repeated_scans(count: int) -> bytes:
    """A progressive JPEG with that many more of its last scan."""
    data = encoded(Image.new("L", (400, 400)), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * count + data[-2:]


def pages(count: int) -> bytes:
    """A TIFF whose directories are the same 200 bytes, one after the other."""
    page, size = tiff(plain_tags(4, 4))[8:208], 200
    chained = [page[:110] + struct.pack("<I", 8 + size * number) + page[114:] for number in range(1, count)]
    return b"II*\0" + struct.pack("<I", 8) + b"".join(chained) + page


def tiff_loop() -> bytes:
    """Two directories, each of which names the other as the next."""
    tail = bytes(16) + tiff(plain_tags(4, 4), following=8)[8:]
    return tiff(plain_tags(4, 4), tail, following=316)


def nested_boxes(depth: int) -> bytes:
    sizes = range(8 * depth, 0, -8)
    return encoded(DRAWN, "AVIF", speed=10)[:32] + b"".join(struct.pack(">I", size) + b"meta" for size in sizes)


def avif_with_exif(count: int) -> bytes:
    """Pillow writes no orientation of so many values; another tag becomes one behind its back."""
    tags = encoded(DRAWN, "AVIF", speed=10, exif=exif(0x9777, count))
    return tags.replace(struct.pack("<HHI", 0x9777, 5, count), struct.pack("<HHI", 0x0112, 5, count))


def raw_profile(count: int) -> bytes:
    return chunk(b"tEXt", b"Raw profile type exif\0\n\n\n" + (b"Exif\0\0" + exif(0x0112, count)).hex().encode())


SMALL = ((1, 1), bytes(4))
BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "PNG of 50,000 x 50,000": (lambda: png((50_000, 50_000), bytes(4)), "too_many_pixels"),
    "PNG of 2^31 pixels": (lambda: png((2**31 - 1, 1), bytes(4)), "too_many_pixels"),
    "PNG with a text of 100 MB": (lambda: png(*SMALL, chunk(b"zTXt", b"a\0\0" + zlib.compress(ZEROS))), "undecodable"),
    "PNG with a profile of 100 MB": (lambda: png(*SMALL, profile(len(ZEROS))), "undecodable"),
    "PNG with many profiles": (lambda: png(*SMALL, *[profile(10**6)] * 500), "undecodable profiles"),
    "PNG with many texts": (
        lambda: png(*SMALL, *[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**6)))] * 500),
        "undecodable MAX_TEXT_MEMORY",
    ),
    "PNG of empty chunks": (lambda: png(*SMALL, chunk(b"abCd", b"") * MAX_PARTS), "undecodable chunks"),
    "PNG of as many chunks as are allowed": (lambda: png(*SMALL, chunk(b"IDAT", b"") * (MAX_PARTS - 3)), "picture"),
    "PNG of 2^31 frames": (lambda: png(*SMALL, chunk(b"acTL", struct.pack(">II", 2**31, 0))), "too_many_frames"),
    "PNG with an orientation of many values": (lambda: png(*SMALL, chunk(b"eXIf", exif(0x0112, 20 * MANY))), "picture"),
    "PNG with the same as text": (lambda: png(*SMALL, raw_profile(20 * MANY)), "picture"),
    "JPEG of 65,500 x 65,500": (
        lambda: jpeg().replace(struct.pack(">HH", 40, 48), struct.pack(">HH", 65_500, 65_500)),
        "too_many_pixels",
    ),
    "JPEG of empty segments": (lambda: jpeg(segment(0xE3, b"") * MAX_PARTS), "undecodable segments"),
    "JPEG of fill bytes": (lambda: jpeg(b"\xff" * MAX_PARTS), "undecodable segments"),
    "JPEG of junk": (lambda: jpeg(segment(0xE3, b""), b"ab" * MAX_PARTS), "undecodable segments"),
    "JPEG of small EXIF segments": (lambda: jpeg(segment(0xE1, b"Exif\0\0x") * MANY), "undecodable EXIF"),
    "JPEG of many EXIF segments": (lambda: jpeg(segment(0xE1, b"Exif\0\0" + exif(0x011A, 8000)) * 64), "picture"),
    "JPEG of 2,000 scans": (lambda: repeated_scans(2_000), "undecodable scans"),
    "JPEG of segments before its end": (lambda: before_a_film(segment(0xE3, b"") * MAX_PARTS), "undecodable segments"),
    "JPEG of 90 scans": (lambda: repeated_scans(80), "picture"),
    "JPEG and a film behind it": (before_a_film, "picture"),
    "GIF of 65,535 x 65,535": (lambda: gif(GIF_FRAME, size=(65_535, 65_535)), "too_many_pixels"),
    "GIF with a frame of 65,535 x 65,535": (
        lambda: gif(GIF_FRAME.replace(b"\1\0\1\0", b"\xff" * 4)),
        "too_many_pixels",
    ),
    "GIF of many frames": (lambda: gif(GIF_FRAME * MANY), "too_many_frames"),
    "GIF of as many frames as are allowed": (lambda: gif(GIF_FRAME * MAX_FRAMES), "picture"),
    "GIF of one frame more": (lambda: gif(GIF_FRAME * (MAX_FRAMES + 1)), "too_many_frames"),
    "GIF with a long comment": (lambda: gif(b"!\xfe" + b"\2ab" * MAX_PARTS + b"\0", GIF_FRAME), "undecodable blocks"),
    "GIF with many comments": (lambda: gif(b"!\xfe\1a\0" * MAX_PARTS, GIF_FRAME), "undecodable blocks"),
    "GIF of junk": (lambda: gif(b"a" * (MAX_PARTS + 1), GIF_FRAME), "undecodable blocks"),
    "WEBP of 50,000 x 50,000": (lambda: webp(1, edge_px=50_000), "too_many_pixels"),
    "WEBP of 2^48 pixels": (lambda: webp(1, edge_px=2**24), "too_many_pixels"),
    "WEBP of 16,384 x 16,384": (
        lambda: riff((b"VP8L", b"\x2f" + struct.pack("<I", 2**28 - 1) + bytes(9))),
        "too_many_pixels",
    ),
    "WEBP of many frames": (lambda: webp(MANY), "too_many_frames"),
    "WEBP of many chunks": (lambda: webp(1, *[(b"abcd", b"")] * MANY), "picture"),
    "BMP of 50,000 x 50,000": (lambda: run_length_bmp(50_000, 50_000, b"\0\1"), "too_many_pixels"),
    "BMP of 2^31 pixels": (lambda: run_length_bmp(2**31 - 1, 1, b"\0\1"), "too_many_pixels"),
    "BMP of minus 2^31 rows": (lambda: run_length_bmp(1, -(2**31), b"\0\1"), "too_many_pixels"),
    "BMP of runs that lead nowhere": (
        lambda: run_length_bmp(1000, 900, b"\0\2\0\0" * 2_000_000),
        "too_many_pixels run-length",
    ),
    "TIFF of 50,000 x 50,000": (lambda: tiff(plain_tags(50_000, 50_000), bytes(16)), "too_many_pixels"),
    "TIFF of 2^31 pixels": (lambda: tiff(plain_tags(2**31, 1), bytes(16)), "too_many_pixels"),
    "TIFF whose directory is the next one": (lambda: tiff(plain_tags(4, 4), bytes(16), following=8), "picture"),
    "TIFF with a tag of no known type": (lambda: tiff(plain_tags(4, 4, t900=(99, 2**32 - 1, 0)), bytes(16)), "picture"),
    "TIFF with a tag beyond its end": (lambda: tiff(plain_tags(4, 4, t900=(5, 2**31, 300)), bytes(16)), "picture"),
    "TIFF whose directories go round": (tiff_loop, "picture"),
    "TIFF of many pages": (lambda: pages(MANY), "too_many_frames"),
    "TIFF of many strips": (
        lambda: tiff(plain_tags(900, 900, t278=(4, 1, 1), t273=(4, 3 * MANY, 300)), bytes(12 * MANY)),
        "undecodable values",
    ),
    "TIFF of many strips, as bytes": (
        lambda: tiff(plain_tags(900, 900, t278=(4, 1, 1), t273=(1, 30 * MANY, 300)), bytes(30 * MANY)),
        "undecodable values",
    ),
    "TIFF of many fractions": (
        lambda: tiff(plain_tags(4, 4, t282=(5, 3 * MANY, 300), t283=(5, 1, 300)), struct.pack("<II", 1, 3) * 3 * MANY),
        "undecodable values",
    ),
    "TIFF of many fractions in its EXIF": (
        lambda: tiff(
            plain_tags(4, 4, t34665=(4, 1, 300)),
            struct.pack("<HHHIII", 1, 0x9201, 10, 3 * MANY, 330, 0).ljust(30, b"\0") + bytes(24 * MANY),
        ),
        "undecodable values",
    ),
    "TIFF of a tile of 30,000 x 30,000": (
        lambda: tiff(plain_tags(16, 16, t259=(3, 1, 8), t322=(4, 1, 30_000), t323=(4, 1, 30_000), t324=(4, 1, 300))),
        "too_many_pixels tile",
    ),
    "TIFF of many tags, big": (
        lambda: struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, MAX_PARTS + 1) + bytes(20) * MAX_PARTS,
        "undecodable values",
    ),
    "AVIF of 50,000 x 50,000": (lambda: patched_avif(50_000, 50_000), "undecodable"),
    "AVIF of 2^62 pixels": (lambda: patched_avif(2**31 - 1, 2**31 - 1), "undecodable"),
    "AVIF of 9 megapixels that tells 100 x 100": (
        lambda: patched_avif(100, 100, Image.new("RGB", (3_000, 3_000))),
        "picture",
    ),
    "AVIF of nested boxes": (lambda: nested_boxes(MANY), "undecodable"),
    "AVIF of empty boxes": (
        lambda: encoded(DRAWN, "AVIF", speed=10) + struct.pack(">I4s", 8, b"free") * MANY,
        "picture",
    ),
    "AVIF with an orientation of many values": (lambda: avif_with_exif(3 * MANY), "undecodable EXIF"),
}


# What reads it


def read(data: bytes) -> str:
    """ "picture", or the reason why there is none and the message; asserts that header and pixels tell one story."""
    try:
        header = read_header(data, max_pixels=MAX_PIXELS)
    except DecodeError as error:
        header = error
    try:
        picture = decode_rgb(data, max_pixels=MAX_PIXELS)
    except DecodeError as error:
        assert str(error) and error.reason in REASONS and "MemoryError" not in str(error)
        assert not isinstance(header, DecodeError) or header.reason == error.reason
        return f"{error.reason} {error}"
    assert not isinstance(header, DecodeError), header
    assert picture.mode == "RGB" and picture.size == (header.width, header.height)
    assert 0 < header.width * header.height <= MAX_PIXELS and 1 <= header.frames <= MAX_FRAMES
    reduced = decode_rgb(data, min_short_edge_px=10, max_pixels=MAX_PIXELS)
    assert min(10, *picture.size) <= min(reduced.size) <= min(picture.size)
    return "picture"


def encode(data: bytes) -> str:
    """The same for the two ways to write an image anew, which succeed or fail alike."""
    results = []
    for write in (
        lambda: shrunk(data, short_edge_px=16, quality=90, max_pixels=MAX_PIXELS),
        lambda: with_blurred(data, np.array([BOX]), quality=90, max_pixels=MAX_PIXELS),
    ):
        try:
            assert read_header(write()).format == "JPEG"
            results.append("picture")
        except DecodeError as error:
            results.append(f"{error.reason} {error}")
    assert results[0] == results[1]
    return results[0]


CHECKS = {"read": read, "encode": encode}


def limit_memory() -> None:
    """No more than MEMORY_BYTES on top of what the process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES, resource.RLIM_INFINITY))


def main(at: str, check: str, num_files: int) -> None:
    """Writes what the check finds of each file as JSON: damaged ones counted, or the crafted ones if num_files is 0.

    The process ends at a file that hangs. at: where the name of the file under way stands at any time.
    """
    faulthandler.enable()
    faulthandler.register(signal.SIGPROF, chain=True)  # a hang in C runs no handler of Python's
    assert {CHECKS[check](build()) for build in GOOD.values()} == {"picture"}
    found: Counter[str] = Counter()
    for number in range(num_files or len(BOMBS)):
        if num_files:
            name, data = damaged(number)
        else:
            resource.setrlimit(resource.RLIMIT_AS, 2 * (resource.RLIM_INFINITY,))
            name, data = list(BOMBS)[number], list(BOMBS.values())[number][0]()
        Path(at).write_text(f"file {number} of seed {SEED}, {name}")
        limit_memory()
        signal.setitimer(signal.ITIMER_PROF, FILE_CPU_S)
        outcome = CHECKS[check](data)
        signal.setitimer(signal.ITIMER_PROF, 0)
        found[f"{name}: {outcome.partition(' ')[0] if num_files else outcome}"] += 1
    json.dump(found, sys.stdout)


@functools.cache
def undamaged() -> dict[str, bytes]:
    return {name: build() for name, build in (GOOD | FOREIGN).items()}


def damaged(number: int, seed: int = SEED) -> tuple[str, bytes]:
    """What the damaged file of that number was made from, and its bytes: the same ones for the same seed."""
    rng, files = np.random.default_rng([seed, number]), undamaged()
    names = [*GOOD] * 5 + [*FOREIGN]
    name, other = names[number % len(names)], names[rng.integers(len(names))]
    data = bytearray(files[name])
    for _ in range(rng.integers(1, 4)):
        DAMAGES[rng.integers(len(DAMAGES))](data, rng, files[other])
        data = data or bytearray(1)
    return name, bytes(data)


def child(at: Path, *arguments: object) -> dict[str, int]:
    """What `main` finds in a process of its own; fails with the name of the file that it stopped at."""
    call = f"from lvd.tests.tasks.test_corrupted import main; main{(str(at), *arguments)!r}"
    run = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True)
    where = at.read_text() if at.exists() else "the beginning"
    assert run.returncode == 0, f"exit code {run.returncode} at {where}\n{run.stderr[-3000:]}"
    return json.loads(run.stdout)


@pytest.mark.parametrize(("check", "num_files"), [("read", NUM_FILES), ("encode", NUM_ENCODED)])
def test_every_damaged_file_is_a_picture_or_has_a_reason(tmp_path: Path, check: str, num_files: int) -> None:
    found = child(tmp_path / "at", check, num_files)
    assert sum(found.values()) == num_files
    outcomes = {outcome.rpartition(": ")[2] for outcome in found}
    assert {"picture", "truncated", "undecodable", "not_an_image"} <= outcomes <= {"picture", *REASONS}
    for name in GOOD if check == "read" else ():  # some damage is survived, some is not
        assert found.get(f"{name}: picture", 0) > 0, name
        assert sum(found.get(f"{name}: {reason}", 0) for reason in REASONS) > 0, name


@pytest.fixture(scope="module")
def bomb_outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    found = child(tmp_path_factory.mktemp("bombs") / "at", "read", 0)
    return dict(outcome.split(": ", 1) for outcome in found)


@pytest.mark.parametrize("name", BOMBS)
def test_a_crafted_file_costs_little(bomb_outcomes: dict[str, str], name: str) -> None:
    reason, _, word = BOMBS[name][1].partition(" ")
    outcome = bomb_outcomes[name]
    assert outcome.partition(" ")[0] == reason and word in outcome, outcome


@pytest.mark.parametrize("name", FOREIGN)
def test_another_format_is_no_image(name: str) -> None:
    assert read(undamaged()[name]).startswith("not_an_image")


@pytest.mark.parametrize("name", GOOD)
def test_frames_are_counted_as_pillow_counts_them(name: str) -> None:
    image = Image.open(io.BytesIO(undamaged()[name]))
    assert read_header(undamaged()[name]).frames == getattr(image, "n_frames", 1)


def test_no_damaged_file_loses_its_row(tmp_path: Path) -> None:
    """Through the stages: fetched from a folder, then screened. (The imports would cost each child process seconds.)"""
    from lvd.infra.shards import StageDir, read_table
    from lvd.infra.writing import with_features
    from lvd.tasks import schemas, screen, sources
    from lvd.tasks.fetching import Config, fetch_shard
    from lvd.tests.tasks import planted

    num_files, folder, root = 400, tmp_path / "files", str(tmp_path / "root")
    folder.mkdir()
    files = {f"{number:03}.jpg": damaged(number, seed=SEED + 1)[1] for number in range(num_files)}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (partition,) = sources.partitions(sources.Images(path=str(folder)))
    (manifest,) = planted.manifest(root, partition)
    (target,) = StageDir(root=root, stage="download", fingerprint="f").planned(1)
    rows = fetch_shard(manifest, target, with_features(schemas.IMAGES), Config(max_pixels=MAX_PIXELS), 1)
    fetched = target.model_copy(update={"rows": rows})
    images, refused = read_table(fetched).to_pylist(), read_table(fetched, kind="rejects").to_pylist()
    assert sorted(row["key"] for row in [*images, *refused]) == sorted(
        row["key"] for row in read_table(manifest).to_pylist()
    )
    assert len(images) + len(refused) == num_files and {row["reason"] for row in refused} <= {*REASONS}
    assert all(row["image"]["bytes"] == files[row["key"].rpartition("/")[2]] for row in images)

    (target,) = StageDir(root=root, stage="screen", fingerprint="f").planned(1)
    screened = screen.screen_shard.fn(fetched, target, MAX_PIXELS)
    measured, failed = read_table(screened).to_pylist(), read_table(screened, kind="rejects").to_pylist()
    assert sorted(row["row"] for row in [*measured, *failed]) == list(range(len(images)))
    assert measured and failed and {row["reason"] for row in failed} <= {*REASONS}
    for row in measured:
        assert images[row["row"]]["image_id"] == row["image_id"]
