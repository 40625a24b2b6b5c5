"""Altered copies of a picture as people find them on the web: same picture, seed and number, same bytes.

Every transformation gives an encoded file, so that what is measured on it has met an encoder, as every copy on the web
has. Groups: mild (stored again, made smaller, a little trimmed: what every deduplication must find), medium (edited on
purpose, the picture still fills most of the copy), hard (turned, mirrored, half of it gone, or a part of another one).
"""

import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps

JPEG_QUALITY = 85  # of the copies that are not about the encoder
GROUPS = ("mild", "medium", "hard")
Group = Literal["mild", "medium", "hard"]


class Transform(NamedTuple):
    """One kind of copy. apply: an RGB picture and a generator to the bytes of the copy's file."""

    name: str
    group: Group
    apply: Callable[[Image.Image, np.random.Generator], bytes]


def copy_of(image: Image.Image, transform: Transform, *, seed: int, number: int) -> bytes:
    """The file of the copy of an RGB picture; number: which picture it is, so that no two get the same random draws."""
    purpose = zlib.crc32(transform.name.encode())
    return transform.apply(image, np.random.default_rng(np.random.SeedSequence([seed, number, purpose])))


def jpeg(image: Image.Image, quality: int = JPEG_QUALITY) -> bytes:
    return encoded(image, "JPEG", quality=quality)


def encoded(image: Image.Image, file_format: str, **options: int) -> bytes:
    """The bytes of the file that Pillow writes."""
    file = BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def scaled(image: Image.Image, x: float, y: float) -> Image.Image:
    """The picture with its width and height multiplied."""
    return image.resize((max(1, round(image.width * x)), max(1, round(image.height * y))), Image.Resampling.LANCZOS)


def without_area(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    """A part of the picture with its shape, at a random place; share: of the area that is left out."""
    edge = (1 - share) ** 0.5
    left, top = rng.uniform(0, 1 - edge, 2) * image.size
    return image.crop((round(left), round(top), round(left + edge * image.width), round(top + edge * image.height)))


def rotated(image: Image.Image, degrees: float) -> Image.Image:
    """The picture turned to the left in its own frame; its corners are gone and black ones are there."""
    return image.rotate(degrees, Image.Resampling.BICUBIC)


def tinted(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture with one channel 25% stronger and another one 20% weaker, as in a wrong white balance."""
    gains = rng.permutation(np.array([1.25, 1.0, 0.8], dtype=np.float32))
    return Image.fromarray((np.asarray(image, np.float32) * gains).clip(0, 255).astype(np.uint8))


def noisy(image: Image.Image, std: float, rng: np.random.Generator) -> Image.Image:
    """The picture with grain; std: in grey levels."""
    grain = rng.standard_normal((image.height, image.width, 1), dtype=np.float32) * np.float32(std)
    return Image.fromarray((np.asarray(image, np.float32) + grain).clip(0, 255).astype(np.uint8))


def written_over(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture with a line of large letters across it, at a random height."""
    marked, size = image.copy(), max(8, image.width // 11)
    place = rng.uniform(0.02, 0.2) * image.width, rng.uniform(0.05, 0.8) * image.height
    font = ImageFont.load_default(size)
    ImageDraw.Draw(marked).text(place, "WHEN YOU SEE IT", font=font, fill="white", stroke_width=2, stroke_fill="black")
    return marked


def captioned(image: Image.Image) -> Image.Image:
    """The picture with a white strip of 15% of its height above it, and a line of text on the strip."""
    tall = max(8, round(image.height * 0.15))
    page = ImageOps.expand(image, (0, tall, 0, 0), "white")
    font = ImageFont.load_default(tall * 0.5)
    ImageDraw.Draw(page).text((tall / 3, tall / 5), "nobody: me on Mondays", font=font, fill="black")
    return page


def bordered(image: Image.Image, colour: str) -> Image.Image:
    """The picture in a frame of 6% of its short edge."""
    return ImageOps.expand(image, max(1, round(0.06 * min(image.size))), colour)


def letterboxed(image: Image.Image) -> Image.Image:
    """The picture between black bars that make it a square; one that is a square already becomes 16:9."""
    width, height = image.size
    edge = max(width, height)
    return ImageOps.pad(image, (edge, edge) if width != height else (round(edge * 16 / 9), edge))


def in_a_browser(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A drawn browser window with a title bar, an address and lines of text, in which the picture is 60% wide."""
    width = max(30, round(image.width / 0.6))  # a title bar needs some room
    bar = max(2, round(0.06 * width))
    page = Image.new("RGB", (width, image.height + 3 * bar), "white")
    pen = ImageDraw.Draw(page)
    pen.rectangle((0, 0, width, bar), fill=(222, 225, 230))
    for place, colour in enumerate(((237, 106, 94), (245, 191, 79), (98, 197, 84))):
        middle, radius = bar * (0.6 + 0.6 * place), bar * 0.18
        pen.ellipse((middle - radius, bar / 2 - radius, middle + radius, bar / 2 + radius), fill=colour)
    pen.rounded_rectangle((bar * 2.6, bar * 0.2, width * 0.9, bar * 0.8), radius=bar * 0.3, fill="white")
    left = round(width * rng.uniform(0.04, 0.1))
    page.paste(image, (left, round(bar * 1.4)))
    for line in range(8):
        top, end = bar * (1.6 + line), rng.uniform(0.8, 0.96) * width
        pen.rectangle((left + image.width + 0.02 * width, top, end, top + bar * 0.3), fill=(190, 193, 198))
    return page


def beside_another(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture and, beside it on the left or the right, another one of its size: soft blobs of random colours."""
    grid = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    other = Image.fromarray(grid).resize(image.size, Image.Resampling.BICUBIC)
    page = Image.new("RGB", (2 * image.width, image.height))
    for place, part in enumerate((image, other) if rng.random() < 0.5 else (other, image)):
        page.paste(part, (place * image.width, 0))
    return page


TRANSFORMS: tuple[Transform, ...] = (
    Transform("jpeg_80", "mild", lambda image, rng: jpeg(image, 80)),
    Transform("jpeg_50", "mild", lambda image, rng: jpeg(image, 50)),
    Transform("jpeg_30", "mild", lambda image, rng: jpeg(image, 30)),
    Transform("webp", "mild", lambda image, rng: encoded(image, "WEBP", quality=75, method=2)),
    Transform("png", "mild", lambda image, rng: encoded(image, "PNG", compress_level=1)),
    Transform("half_size", "mild", lambda image, rng: jpeg(scaled(image, 0.5, 0.5))),
    Transform("double_size", "mild", lambda image, rng: jpeg(scaled(image, 2, 2))),
    Transform("squeezed", "mild", lambda image, rng: jpeg(scaled(image, 1, 0.75))),
    Transform("crop_5", "mild", lambda image, rng: jpeg(without_area(image, 0.05, rng))),
    Transform("grey", "mild", lambda image, rng: jpeg(image.convert("L"))),
    Transform("border_black", "mild", lambda image, rng: jpeg(bordered(image, "black"))),
    Transform("border_white", "mild", lambda image, rng: jpeg(bordered(image, "white"))),
    Transform("crop_20", "medium", lambda image, rng: jpeg(without_area(image, 0.2, rng))),
    Transform("rotate_5", "medium", lambda image, rng: jpeg(rotated(image, rng.choice([-5.0, 5.0])))),
    Transform("brightness", "medium", lambda i, rng: jpeg(ImageEnhance.Brightness(i).enhance(rng.choice([0.6, 1.4])))),
    Transform("contrast", "medium", lambda i, rng: jpeg(ImageEnhance.Contrast(i).enhance(rng.choice([0.6, 1.5])))),
    Transform("saturation", "medium", lambda i, rng: jpeg(ImageEnhance.Color(i).enhance(rng.choice([0.3, 1.9])))),
    Transform("colour_cast", "medium", lambda image, rng: jpeg(tinted(image, rng))),
    Transform("blur", "medium", lambda i, rng: jpeg(i.filter(ImageFilter.GaussianBlur(max(1.0, min(i.size) / 120))))),
    Transform("noise", "medium", lambda image, rng: jpeg(noisy(image, 15, rng))),
    Transform("text", "medium", lambda image, rng: jpeg(written_over(image, rng))),
    Transform("caption", "medium", lambda image, rng: jpeg(captioned(image))),
    Transform("letterbox", "medium", lambda image, rng: jpeg(letterboxed(image))),
    Transform("mirror", "hard", lambda image, rng: jpeg(ImageOps.mirror(image))),
    Transform("rotate_90", "hard", lambda image, rng: jpeg(image.transpose(Image.Transpose.ROTATE_90))),
    Transform("crop_50", "hard", lambda image, rng: jpeg(without_area(image, 0.5, rng))),
    Transform("screenshot", "hard", lambda image, rng: jpeg(in_a_browser(image, rng))),
    Transform("collage", "hard", lambda image, rng: jpeg(beside_another(image, rng))),
)
