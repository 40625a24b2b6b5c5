"""Models without weights: `builtin:dct` finds copies, `builtin:color_texture` groups what looks alike.

Both look at a small raster of the image and work on each raster alone, so a vector does not depend on its batch. Cost:
2 ms of one core an image after decoding.
"""

import hashlib
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lvd.infra.errors import InputError
from lvd.tasks.models import CopyThresholds, ModelSpec, Placement, register

if TYPE_CHECKING:
    from PIL import Image

RASTER_PX = 64

# builtin:dct
FRAME_RASTER_PX = 256
MAX_FRAME_LINES = 96  # three eighths of each side; what is uniform beyond that is background, not a frame
MAX_FRAMES = 4  # one inside the other; the blurred line where one gives way to the next counts
FRAME_NOISE = 0.01  # of a line that may be unlike the frame
FRAME_TOLERANCE = 12  # grey levels: what JPEG leaves of a flat area
FRAME_REACH_LINES = 6  # within so many lines a frame must give way to the picture
FRAME_SHARE = 0.6  # of the line: less is an object on a plain ground
LUMA_FREQUENCIES, CHROMA_FREQUENCIES = 12, 4
ROLL_OFF = 10.0  # half cycles; a crop of 5% on each side turns higher frequencies round
CHROMA_WEIGHT = 0.4  # the greyscale copy of a colour image keeps a cosine of 1 / sqrt(1 + 0.4^2) = 0.93
LUMA_GATE = 64.0  # energy in DCT units: 1 grey level of standard deviation, below it there is only noise
CHROMA_GATE = 32.0
DCT_THRESHOLDS = CopyThresholds(min_similarity=0.52, benchmark_min_similarity=0.45, floor=0.40)
"""Of the 288,420 pairs of 760 unrelated photographs, most of them of 32 px,
the share above is 0, 4e-5 and 2e-4 (the highest 0.50); of the pairs of 144 drawn pictures none is above 0.38."""

# builtin:color_texture
HUES, LEVELS, CHROMAS, ORIENTATIONS = 10, 6, 4, 8
GREY_CHROMA = 24.0  # chroma at which a pixel's hue counts in full
MAX_CHROMA = 96.0


class BuiltinModel:
    """A model that describes one raster at a time, given the two functions that do it."""

    def __init__(self, raster: Any, describe: Any, dim: int, min_short_edge_px: int) -> None:
        self.preprocess = raster
        self._describe = describe
        self.dim = dim
        self.min_short_edge_px = min_short_edge_px
        self.input_shape = (RASTER_PX, RASTER_PX, 3)
        self.halved = 0

    def buffer(self, shape: tuple[int, ...]) -> np.ndarray:
        """Zeroed uint8 memory."""
        return np.zeros(shape, dtype=np.uint8)

    def start(self, batch: np.ndarray) -> Callable[[], tuple[np.ndarray, float]]:
        """What gives the rows, which are computed now, and the seconds that they took."""
        began = time.perf_counter()
        result = self.embed(batch), time.perf_counter() - began
        return lambda: result

    def embed(self, batch: np.ndarray) -> np.ndarray:
        """(b, dim) float32 unit rows of (b, 64, 64, 3) uint8 rasters."""
        return np.stack([self._describe(raster) for raster in batch])


def framed_raster(image: "Image.Image") -> np.ndarray:
    """(64, 64, 3) uint8 YCbCr of an RGB image, squeezed to the square, without its uniform frame."""
    from PIL import Image

    small = image.resize((FRAME_RASTER_PX, FRAME_RASTER_PX), Image.Resampling.BILINEAR)
    pixels = without_frame(np.asarray(small))
    if pixels.shape[:2] != (FRAME_RASTER_PX, FRAME_RASTER_PX):
        small = Image.fromarray(pixels)
    return np.asarray(small.resize((RASTER_PX, RASTER_PX), Image.Resampling.BOX).convert("YCbCr"))


def without_frame(pixels: np.ndarray) -> np.ndarray:
    """The part of (h, w, 3) uint8 pixels inside a uniform frame, bars on some of its sides, or several of them."""
    for _ in range(MAX_FRAMES):
        size = pixels.shape
        for turned in (False, True):
            lines = pixels.transpose(1, 0, 2) if turned else pixels
            first, last = frame_lines(lines), frame_lines(lines[::-1])
            if first + last < len(lines):
                lines = lines[first : len(lines) - last]
            pixels = lines.transpose(1, 0, 2) if turned else lines
        if pixels.shape == size:
            break
    return pixels


def frame_lines(pixels: np.ndarray) -> int:
    """How many of the first lines of (h, w, 3) uint8 pixels are a frame: one colour, then picture along most of a line.

    A plain ground around an object does not count: trimming it would shift the picture as soon as a copy has a caption.
    """
    colour = np.median(pixels[0], axis=0).astype(np.int16)

    def unlike_frame(lines: np.ndarray) -> np.ndarray:
        return (np.abs(lines - colour) > FRAME_TOLERANCE).any(axis=2).mean(axis=1)

    if unlike_frame(pixels[:1])[0] > FRAME_NOISE:
        return 0
    unlike = unlike_frame(pixels[: MAX_FRAME_LINES + FRAME_REACH_LINES])
    picture = np.flatnonzero(unlike > FRAME_NOISE)
    if not len(picture) or picture[0] > MAX_FRAME_LINES:
        return 0
    depth = int(picture[0])
    return depth if unlike[depth : depth + FRAME_REACH_LINES].max() >= FRAME_SHARE else 0


def low_frequencies(raster: np.ndarray) -> np.ndarray:
    """(173,) float32 unit vector of a (64, 64, 3) uint8 YCbCr raster: its low DCT frequencies, signed square roots.

    Whitened by the frequency (natural images fall off as its inverse), so that unrelated images are near 0. Brightness
    and contrast drop out with the constant term and the norm. A raster flatter than the gates has no such vector: it
    gets a direction drawn from its digest, equal for equal rasters only. Source: in the manner of PDQ (Facebook, 2019).
    """
    from scipy.fft import dctn

    planes = np.ascontiguousarray(raster.transpose(2, 0, 1), dtype=np.float32)
    coefficients = dctn(planes, axes=(1, 2), norm="ortho")
    luma, luma_energy = _whitened(coefficients[:1], LUMA_FREQUENCIES)
    chroma, chroma_energy = _whitened(coefficients[1:], CHROMA_FREQUENCIES)
    if luma_energy < LUMA_GATE and chroma_energy < CHROMA_GATE:
        drawn = hashlib.shake_256(raster.tobytes()).digest(len(luma) + len(chroma))
        return _unit(np.frombuffer(drawn, dtype=np.uint8).astype(np.float32) - np.float32(127.5))
    luma *= np.float32(min(1.0, luma_energy / LUMA_GATE))
    chroma *= np.float32(CHROMA_WEIGHT * min(1.0, chroma_energy / CHROMA_GATE))
    return _unit(np.concatenate([luma, chroma]))


def _whitened(planes: np.ndarray, frequencies: int) -> tuple[np.ndarray, float]:
    """(unit float32 vector, energy) of the lowest frequencies of (c, 64, 64) DCT coefficients, without the constant."""
    frequency = np.hypot(*np.mgrid[:frequencies, :frequencies]).astype(np.float32).ravel()[1:]
    weight = frequency * np.exp(-np.square(frequency / np.float32(ROLL_OFF)))
    values = planes[:, :frequencies, :frequencies].reshape(len(planes), -1)[:, 1:]
    energy = float(np.sqrt(np.square(values).sum()))
    return _unit(np.sign(values) * np.sqrt(np.abs(values) * weight)).ravel(), energy


def _unit(vector: np.ndarray) -> np.ndarray:
    """The float32 vector of length 1; zeros stay zeros."""
    return (vector / max(np.sqrt(np.square(vector).sum(dtype=np.float64)), 1e-12)).astype(np.float32)


def whole_raster(image: "Image.Image") -> np.ndarray:
    """(64, 64, 3) uint8 RGB of an RGB image, squeezed to the square."""
    from PIL import Image

    return np.asarray(image.resize((RASTER_PX, RASTER_PX), Image.Resampling.BILINEAR))


def colours_and_gradients(raster: np.ndarray) -> np.ndarray:
    """(345,) float32 unit vector of a (64, 64, 3) uint8 RGB raster.

    Histograms of hue, luminance and chroma, of the whole and of its quarters; histograms of gradient orientation in
    4 x 4 cells at two scales. Each block: square roots, less their mean, unit length; so none outweighs the others.
    """
    red, green, blue = np.ascontiguousarray(raster.transpose(2, 0, 1), dtype=np.float32)
    luma = np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue  # ITU-R BT.601, as in JPEG
    blue, red = (blue - luma) * np.float32(0.564), (red - luma) * np.float32(0.713)
    chroma = np.hypot(red, blue)
    coloured = np.minimum(chroma / np.float32(GREY_CHROMA), 1)
    hue = np.arctan2(red, blue) / np.float32(2 * np.pi) % 1 * HUES
    level = luma / np.float32(255) * (LEVELS - 1)
    strength = np.minimum(chroma / np.float32(MAX_CHROMA), 1) * (CHROMAS - 1)

    def colours(cells: int) -> list[np.ndarray]:
        grey = _cell_histogram(np.zeros_like(luma), 1 - coloured, 1, cells)
        return [_cell_histogram(hue, coloured, HUES, cells), grey, _cell_histogram(level, None, LEVELS, cells)]

    blocks = [
        np.concatenate([*colours(1), _cell_histogram(strength, None, CHROMAS, 1)], axis=1),
        np.concatenate(colours(2), axis=1),
        _orientations(luma, turn=1),
        _orientations(luma.reshape(RASTER_PX // 2, 2, RASTER_PX // 2, 2).mean(axis=(1, 3)), turn=2),
    ]
    roots = [np.sqrt(block.ravel()) for block in blocks]
    return _unit(np.concatenate([_unit(root - root.mean()) for root in roots]))


def _orientations(luma: np.ndarray, *, turn: int) -> np.ndarray:
    """(16, 8) gradient magnitude by orientation in 4 x 4 cells; turn: 1 for half turns (unsigned), 2 for whole ones."""
    x, y = np.zeros_like(luma), np.zeros_like(luma)
    x[:, 1:-1], y[1:-1] = luma[:, 2:] - luma[:, :-2], luma[2:] - luma[:-2]
    angle = np.arctan2(y, x) / np.float32(np.pi * turn) % 1 * ORIENTATIONS
    return _cell_histogram(angle, np.hypot(x, y), ORIENTATIONS, 4)


def _cell_histogram(values: np.ndarray, weight: np.ndarray | None, bins: int, cells: int) -> np.ndarray:
    """(cells^2, bins) shares of the cells of a grid: (s, s) values in [0, bins), each split between two bins.

    The last bin borders on the first: a value of at most bins - 1 never meets that seam.
    """
    side = len(values)
    weight = np.ones_like(values) if weight is None else weight
    cell = np.arange(side) * cells // side
    first = (cell[:, None] * cells + cell) * bins
    lower = np.floor(values)
    upper_share = (values - lower) * weight
    lower_bin = lower.astype(np.int64) % bins
    places = np.concatenate([(first + lower_bin).ravel(), (first + (lower_bin + 1) % bins).ravel()])
    shares = np.concatenate([(weight - upper_share).ravel(), upper_share.ravel()])
    counts = np.bincount(places, weights=shares, minlength=cells * cells * bins)
    return (counts * (cells * cells / side**2)).reshape(cells * cells, bins)


def _check(spec: ModelSpec, where: str) -> None:
    """Raises InputError if the spec says anything but the name: a builtin has no weights and one input size."""
    for field in ("path", "sha256", "input_px", "resize", "mean", "std"):
        if (value := getattr(spec, field)) is not None:
            raise InputError(f"{where}.{field}: {spec.model} takes no {field}, was {value!r}: leave it out")


def _build(spec: ModelSpec, _placement: Placement, *, model: BuiltinModel) -> BuiltinModel:
    """The model, on the processor wherever it is asked for."""
    _check(spec, f"model {spec.model}")
    return model


def _enter(name: str, note: str, model: BuiltinModel, thresholds: CopyThresholds | None = None) -> None:
    """One line of the registry. The number at the end of the digest goes up with every change of the vectors."""
    digest = f"builtin:{name}:1"
    decorate = register(
        f"builtin:{name}",
        kind="builtin",
        note=note,
        check=_check,
        digest=lambda _spec: digest,
        dim=model.dim,
        thresholds=thresholds,
        uses_gpu=False,
    )
    decorate(partial(_build, model=model))


_enter("dct", "copies, without weights", BuiltinModel(framed_raster, low_frequencies, 173, 128), DCT_THRESHOLDS)
_enter("color_texture", "looks alike, without weights", BuiltinModel(whole_raster, colours_and_gradients, 345, 128))
