"""Images written anew: made smaller, or with faces blurred. Only pixels go in, so no metadata comes out.

Plain JPEGs go through libjpeg-turbo alone, everything else through `decode_rgb`. The pixels are the same on every
machine of one type. At 10^9 photographs of 110 kB and a short edge of 256: 2 ms of one core each, 38 TB written at
quality 95; memory of a worker: torch (250 MB) and one picture.
"""

import numpy as np
import simplejpeg
from PIL import Image

from lvd.tasks.decode import DecodeError, Header, decode_rgb, read_header

MAX_EDGE_PX = 65_500
"""Of a JPEG. Source: libjpeg, JPEG_MAX_DIMENSION."""

BLUR_CELLS = 4
"""Colours along each edge of what stays of a face. Raising it blurs less; mosaics of 8 and more can be recognised
(McPherson, Shokri and Shmatikov 2016)."""

ELLIPSE = 2**0.5
"""Axes of the ellipse for each edge of the box: the smallest ellipse that holds the whole box."""


def shrunk(data: bytes, *, short_edge_px: int, quality: int, max_pixels: int) -> bytes:
    """The image as a JPEG (RGB, 8 bits, upright, over white, no metadata) whose short edge is at most short_edge_px.

    short_edge_px: usual 224 to 1024. quality: of the JPEG, 1 to 100, usual 90 to 95; raising it writes more bytes.
    Raises DecodeError, and what no JPEG can hold is `too_many_pixels`.
    """
    return _jpeg(shrunk_pixels(data, short_edge_px=short_edge_px, max_pixels=max_pixels), quality)


def shrunk_pixels(data: bytes, *, short_edge_px: int, max_pixels: int) -> np.ndarray:
    """(h, w, 3) uint8 RGB of the image as displayed, with a short edge of short_edge_px, or less if it has less.

    Of an animation the first frame. The colour profile goes like all metadata; its colours are not converted.
    Raises DecodeError.
    """
    header = read_header(data, max_pixels=max_pixels)
    # The decoder halves large JPEGs, as long as twice the target is left: any further would cost sharpness.
    pixels, orientation = _pixels(data, header, 2 * short_edge_px, max_pixels)
    shape = (header.width, header.height) if orientation >= 5 else (header.height, header.width)
    return _upright(_resized(pixels, shape, short_edge_px), orientation)


def with_blurred(data: bytes, boxes: np.ndarray, *, quality: int, max_pixels: int) -> bytes:
    """The image as a JPEG (as of `shrunk`, but whole size) with an ellipse around each box blurred past recognition.

    Always a JPEG, whatever came in: transparency lies over white, and thumbnails and other metadata are gone.
    boxes: (n, 4 or more) left, top, right, bottom in [0, 1] of the upright image, further columns ignored; n may be 0.
    Raises DecodeError as `shrunk` does, and ValueError if a box leaves [0, 1] or is turned.
    """
    header = read_header(data, max_pixels=max_pixels)
    pixels, orientation = _pixels(data, header, None, max_pixels)
    image = Image.fromarray(np.ascontiguousarray(_upright(pixels, orientation)))
    return _jpeg(np.asarray(blurred(image, boxes)), quality)


def blurred(image: Image.Image, boxes: np.ndarray) -> Image.Image:
    """A copy of the RGB image in which each ellipse is a soft gradient between BLUR_CELLS x BLUR_CELLS means.

    Whatever the size of a face, no more than those means is left of it; no pixel outside of the ellipses changes.
    boxes: as in `with_blurred`. Raises ValueError if a box leaves [0, 1] or is turned.
    """
    boxes = np.asarray(boxes, dtype=np.float64)[:, :4]
    wrong = ~((boxes >= 0) & (boxes <= 1)).all(axis=1) | (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    if wrong.any():
        raise ValueError(
            f"boxes must be left, top, right, bottom in [0, 1], were {boxes[wrong][0].tolist()}: divide pixels by the "
            "width and height of the upright image"
        )
    copy, size = image.copy(), np.array(image.size)
    for box in boxes:
        middle = (box[:2] + box[2:]) / 2 * size
        axes = np.maximum((box[2:] - box[:2]) / 2 * size * ELLIPSE, 1.0)
        left, top = np.maximum(np.floor(middle - axes), 0).astype(int).tolist()
        right, bottom = np.minimum(np.ceil(middle + axes), size).astype(int).tolist()
        region = (left, top, right, bottom)
        means = copy.resize((BLUR_CELLS, BLUR_CELLS), Image.Resampling.BOX, box=region)
        soft = means.resize((right - left, bottom - top), Image.Resampling.BICUBIC)
        x = (np.arange(left, right) + 0.5 - middle[0]) / axes[0]
        y = (np.arange(top, bottom) + 0.5 - middle[1]) / axes[1]
        copy.paste(soft, region, Image.fromarray(x**2 + y[:, None] ** 2 <= 1))
    return copy


def _pixels(data: bytes, header: Header, min_short_edge_px: int | None, max_pixels: int) -> tuple[np.ndarray, int]:
    """(h, w, 3) uint8 RGB as it is stored, and the EXIF orientation still to be undone. Raises DecodeError."""
    if header.format == "JPEG":
        try:
            return _jpeg_pixels(data, header, min_short_edge_px), header.orientation
        except ValueError:  # CMYK or damage; Pillow forgives some damage, and says what is wrong with the rest
            pass
    return np.array(decode_rgb(data, min_short_edge_px=min_short_edge_px, max_pixels=max_pixels)), 1


def _jpeg_pixels(data: bytes, header: Header, min_short_edge_px: int | None) -> np.ndarray:
    """The pixels of a JPEG at the smallest of 1/8, 1/4, 1/2 and 1 whose short edge still has that many.

    Raises ValueError for CMYK, what libjpeg-turbo refuses or warns of, or if it sees another size than the header.
    """
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    if colours not in ("YCbCr", "Gray", "RGB") or sorted((height, width)) != sorted((header.height, header.width)):
        raise ValueError(f"{width} x {height} {colours}, but {header.width} x {header.height} in the header")
    scales = (scale for scale in (8, 4, 2) if min_short_edge_px and min(height, width) // scale >= min_short_edge_px)
    scale = next(scales, 1)
    return simplejpeg.decode_jpeg(data, "RGB", min_height=-(-height // scale), min_width=-(-width // scale))


def _resized(pixels: np.ndarray, shape: tuple[int, int], short_edge_px: int) -> np.ndarray:
    """(h', w', 3) uint8 with a short edge of short_edge_px or less, bicubic over all pixels, from (h, w, 3) uint8.

    shape: height and width before the decoder halved them; of an odd edge the last pixel is half beyond the picture.
    torch has the kernels of Pillow in vector instructions: a sixth of the time, and pixels that differ by 2 at most.
    """
    scale = short_edge_px / min(shape)
    if scale >= 1:
        return pixels
    import torch

    size = [max(1, round(edge * scale)) for edge in shape]
    pairs = zip(size, shape, pixels.shape, strict=False)
    factors = [new * round(old / now) / old for new, old, now in pairs]
    resized = torch.empty((1, *size, 3), dtype=torch.uint8)
    # What `torch.nn.functional.interpolate` calls, which takes no `out`, and no factors beside a size.
    torch.ops.aten._upsample_bicubic2d_aa.out(
        torch.from_numpy(pixels[None]).permute(0, 3, 1, 2), size, False, *factors, out=resized.permute(0, 3, 1, 2)
    )
    return resized[0].numpy()


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels as displayed (EXIF 2.32, tag 0x0112). A view."""
    if orientation in (2, 4, 5, 7):
        pixels = pixels[:, ::-1]
    quarters = {3: 2, 4: 2, 5: 1, 6: -1, 7: -1, 8: 1}.get(orientation, 0)
    return np.rot90(pixels, quarters)


def _jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """The JPEG of (h, w, 3) RGB. Raises DecodeError if an edge is longer than a JPEG's can be."""
    height, width = pixels.shape[:2]
    if max(height, width) > MAX_EDGE_PX:
        raise DecodeError(
            "too_many_pixels", f"{width} x {height} pixels, a JPEG has at most {MAX_EDGE_PX} along an edge"
        )
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "RGB", "420", fastdct=False)
