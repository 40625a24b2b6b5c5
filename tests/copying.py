"""How a picture of the miniature web is stored, and how copies of it are made: same arguments, same bytes."""

import struct
import zlib
from collections.abc import Callable
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

EXIF_ORIENTATION = 0x0112
EXIF_ROTATE_TO_THE_RIGHT = 6

Stored = tuple[str, bytes]  # the extension and the bytes of a file


def jpeg(image: Image.Image, quality: int = 85, **options) -> Stored:
    """A JPEG file; options as Pillow takes them."""
    return "jpg", saved(image, "JPEG", quality=quality, **options)


def png(image: Image.Image) -> Stored:
    """A PNG file in the mode of the image."""
    return "png", saved(image, "PNG", compress_level=3)


def webp(image: Image.Image, **options) -> Stored:
    """A WebP file, lossy at quality 80 unless told."""
    return "webp", saved(image, "WEBP", **{"quality": 80, "method": 2, **options})


def gif(image: Image.Image, **options) -> Stored:
    """A GIF file with its own palette."""
    return "gif", saved(image, "GIF", **options)


def saved(image: Image.Image, file_format: str, **options) -> bytes:
    """The bytes of the file that Pillow writes."""
    file = BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def exif_rotated(image: Image.Image) -> Stored:
    """A JPEG whose pixels lie on their side and whose EXIF orientation turns them upright."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = EXIF_ROTATE_TO_THE_RIGHT
    return jpeg(image.transpose(Image.Transpose.ROTATE_90), 88, exif=exif)


def grey_16_bit(image: Image.Image) -> Stored:
    """A PNG of 16 bits of grey."""
    return png(Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257))


def see_through(image: Image.Image) -> Image.Image:
    """The picture in RGBA, opaque but for its lower right corner, which fades by half."""
    fade = np.full((image.height, image.width), 255, np.uint8)
    fade[image.height * 3 // 4 :, image.width * 3 // 4 :] = 128
    layered = image.convert("RGBA")
    layered.putalpha(Image.fromarray(fade))
    return layered


def frames(image: Image.Image) -> dict:
    """Pillow's options for an animation that begins with the picture and drifts to the left."""
    moved = [Image.fromarray(np.roll(np.asarray(image), -step, axis=1)) for step in (8, 16)]
    return {"save_all": True, "append_images": moved, "duration": 120, "loop": 0}


# Everyday files of the web that a decoder may stumble over; none of them may be lost.
SPECIAL_FORMATS: dict[str, Callable[[Image.Image], Stored]] = {
    "jpeg_progressive": lambda image: jpeg(image, progressive=True),
    "jpeg_444": lambda image: jpeg(image, 95, subsampling=0),
    "jpeg_exif_rotated": exif_rotated,
    "jpeg_grey": lambda image: jpeg(image.convert("L")),
    "jpeg_cmyk": lambda image: jpeg(image.convert("CMYK")),
    "png_rgb": png,
    "png_palette": lambda image: png(image.quantize(64)),
    "png_rgba": lambda image: png(see_through(image)),
    "png_grey_alpha": lambda image: png(see_through(image).convert("LA")),
    "png_grey_16_bit": grey_16_bit,
    "png_black_and_white": lambda image: png(image.convert("1")),
    "png_called_jpg": lambda image: ("jpg", png(image)[1]),
    "webp_lossless": lambda image: webp(image, lossless=True, quality=20),
    "webp_alpha": lambda image: webp(see_through(image)),
    "webp_animated": lambda image: webp(image, **frames(image)),
    "gif": gif,
    "gif_animated": lambda image: gif(image, **frames(image)),
}


def everyday(image: Image.Image, rng: np.random.Generator) -> Stored:
    """The picture in a format as common as on the web: mostly JPEG, some WebP, small PNG and GIF."""
    draw = rng.random()
    if draw < 0.1:
        return webp(image)
    if draw < 0.17 and min(image.size) < 260:
        return png(image)
    if draw < 0.2 and min(image.size) < 260:
        return gif(image)
    return jpeg(image, int(rng.integers(60, 96)), progressive=bool(rng.random() < 0.2))


def resized(image: Image.Image, factor: float) -> Image.Image:
    """The picture with both edges times the factor."""
    size = round(image.width * factor), round(image.height * factor)
    return image.resize(size, Image.Resampling.LANCZOS)


def cropped(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    """The picture without these shares of its edges."""
    width, height = image.size
    return image.crop(
        (round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height))
    )


def bordered(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    """The picture with a uniform border of this share of its short edge on every side: white, black or grey."""
    shade = int(rng.choice([0, 128, 255]))
    return ImageOps.expand(image, round(share * min(image.size)), fill=(shade, shade, shade))


def signed(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture with a small line of text at a random place."""
    marked, size = image.copy(), max(10, min(image.size) // 18)
    place = rng.uniform(0.03, 0.5) * image.width, rng.uniform(0.05, 0.9) * image.height
    font = ImageFont.load_default(size)
    ImageDraw.Draw(marked).text(place, "© picture desk", font=font, fill="white", stroke_width=1, stroke_fill="black")
    return marked


def captioned(image: Image.Image) -> Image.Image:
    """The picture with a dark strip of 8% of its height over its foot, and a line of text on it."""
    marked, tall = image.copy(), round(image.height * 0.08)
    pen = ImageDraw.Draw(marked)
    pen.rectangle((0, image.height - tall, image.width, image.height), fill=(20, 20, 20))
    font = ImageFont.load_default(tall * 0.6)
    pen.text((tall / 2, image.height - tall * 0.9), "A picture of the day", font=font, fill="white")
    return marked


def with_40_percent(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A part of the picture with 40% of its area and its shape, at a random place."""
    gone = 1 - 0.4**0.5
    left, top = rng.uniform(0, gone, 2)
    return cropped(image, left, top, gone - left, gone - top)


# Copies that must be found.
NEAR_COPIES: dict[str, Callable[[Image.Image, np.random.Generator], Stored]] = {
    "reencode_q40": lambda image, rng: jpeg(image, 40),
    "resize_half": lambda image, rng: jpeg(resized(image, 0.5)),
    "crop_2_percent": lambda image, rng: jpeg(cropped(image, 0.02, 0.02, 0.02, 0.02)),
    "border_4_percent": lambda image, rng: jpeg(bordered(image, 0.04, rng)),
    "text": lambda image, rng: jpeg(signed(image, rng)),
    "webp": lambda image, rng: webp(image),
    "brighter": lambda image, rng: jpeg(ImageEnhance.Brightness(image).enhance(1.15)),
    "reencode_q60": lambda image, rng: jpeg(image, 60),
    "crop_4_percent": lambda image, rng: jpeg(cropped(image, 0.04, 0.04, 0.04, 0.04)),
    "grey": lambda image, rng: jpeg(image.convert("L")),
    "resize_three_quarters": lambda image, rng: jpeg(resized(image, 0.75), 80),
    "border_8_percent": lambda image, rng: jpeg(bordered(image, 0.08, rng)),
    "png": lambda image, rng: png(image),
    "darker": lambda image, rng: jpeg(ImageEnhance.Brightness(image).enhance(0.85)),
    "caption": lambda image, rng: jpeg(captioned(image)),
    "reencode_q80": lambda image, rng: jpeg(image, 80, progressive=True),
    "crop_5_percent_of_two_edges": lambda image, rng: jpeg(cropped(image, 0.05, 0, 0, 0.05)),
    "contrast": lambda image, rng: jpeg(ImageEnhance.Contrast(image).enhance(1.2)),
    "exif_rotated": lambda image, rng: exif_rotated(image),
}

# Copies of benchmark images; "exact" is the same file.
BENCHMARK_COPIES = (
    "exact", "reencode_q40", "reencode_q60", "reencode_q80", "resize_half", "resize_three_quarters", "crop_2_percent",
    "crop_4_percent", "border_4_percent", "text", "brighter", "webp", "png", "grey",
)  # fmt: skip

# Copies that are reported apart; smaller than their original, so that the original is the representative.
HARD_COPIES: dict[str, Callable[[Image.Image, np.random.Generator], Stored]] = {
    "mirror": lambda image, rng: jpeg(resized(ImageOps.mirror(image), 0.9)),
    "crop_40_percent": lambda image, rng: jpeg(with_40_percent(image, rng)),
}


def bomb_png(edge_px: int = 60_000) -> bytes:
    """A PNG of under 1 kB that claims edge_px x edge_px pixels in RGB, and holds rows of zeros for a few of them."""
    header = struct.pack(">IIBBBBB", edge_px, edge_px, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(4 * (1 + 3 * edge_px)), 9)
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
