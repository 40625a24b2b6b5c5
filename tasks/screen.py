"""Screen: what every image is like, measured once, and the rules that keep it or drop it.

Cost at 10^9 images: reads the image bytes once (110 TB at 110 kB), writes 1.1 kB a row; one decode per image at reduced
scale; memory of a worker: one image and one batch of rows.
"""

from typing import Any

import numpy as np
import simplejpeg
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, Field

from lvd.infra.shards import ShardRef, StageDir, pool_rows, read_batches, read_column
from lvd.infra.writing import write_shard
from lvd.tasks import schemas
from lvd.tasks.decode import DecodeError, decode_rgb, read_header
from lvd.tasks.fates import Decision, Fates
from lvd.tasks.models.classifiers import ClassifierSpec
from lvd.tasks.models.faces import FaceSpec

SCHEMA = schemas.MEASURES
VERSION = 2
MEASURED_SHORT_EDGE_PX = 256
THUMBNAIL_PX = 32


class Nsfw(ClassifierSpec):
    """A classifier, and the score above which an image is dropped."""

    max_score: float = Field(0.5, ge=0, le=1)  # lower: stricter


class Faces(FaceSpec):
    """A detector, and the score from which a face is blurred in the published copy."""

    blur_min_score: float = Field(0.3, ge=0, le=1)  # lower: more is blurred that is no face


class Config(BaseModel, frozen=True, extra="forbid"):
    """The rules. The measures do not depend on them: changing a rule decodes nothing again."""

    min_short_edge_px: int = Field(32, ge=1)
    max_aspect_ratio: float = Field(5.0, ge=1.0)
    formats: tuple[str, ...] | None = None  # e.g. [JPEG, PNG]; null keeps every format that can be decoded
    keep_animated: bool = True  # the first frame is what is looked at
    min_contrast: float = Field(0.015, ge=0, le=0.5)  # below about 4 grey levels an image is near empty
    min_entropy: float = Field(0.0, ge=0, le=8)
    min_sharpness: float = Field(0.0, ge=0)
    min_brightness: float = Field(0.0, ge=0, le=1)
    max_brightness: float = Field(1.0, ge=0, le=1)
    max_pixels: int = Field(178_956_970, ge=1)
    nsfw: Nsfw | None = None  # e.g. {model: "hf_hub:Marqo/nsfw-image-detection-384"}; null: nobody looks
    faces: Faces | None = None  # e.g. {model: centerface}; null: nobody looks

    def rules(self) -> dict[str, Any]:
        """What decides which images are kept."""
        nsfw = {"nsfw": self.nsfw.max_score if self.nsfw else None}
        return self.model_dump(mode="json", exclude={"nsfw", "faces"}) | nsfw


def luminance(data: bytes, max_pixels: int) -> Any:
    """The picture as displayed as a PIL image of mode L, whose short edge has MEASURED_SHORT_EDGE_PX or more, or all.

    Of an upright JPEG the luminance that it holds, at the smallest DCT scale that is large enough; of others that of
    `decode_rgb`, which differs by a grey level at most places, and by more where RGB is clipped. Raises DecodeError.
    """
    from PIL import Image

    header = read_header(data, max_pixels=max_pixels)
    if header.format == "JPEG" and header.orientation == 1:
        try:
            return Image.fromarray(_jpeg_luminance(data, header.width, header.height))
        except ValueError:  # CMYK or damage; Pillow forgives some damage, and says what is wrong with the rest
            pass
    return decode_rgb(data, min_short_edge_px=MEASURED_SHORT_EDGE_PX, max_pixels=max_pixels).convert("L")


def _jpeg_luminance(data: bytes, width: int, height: int) -> np.ndarray:
    """(h, w) uint8. Raises ValueError if libjpeg-turbo refuses, warns, or sees no luminance or another size."""
    seen_height, seen_width, colours, _ = simplejpeg.decode_jpeg_header(data)
    if colours not in ("YCbCr", "Gray") or (seen_height, seen_width) != (height, width):
        raise ValueError(f"{seen_width} x {seen_height} {colours}, but {width} x {height} in the header")
    short = min(width, height)
    scale = next((s for s in (8, 4, 2) if -(-short // s) >= MEASURED_SHORT_EDGE_PX), 1)
    grey = simplejpeg.decode_jpeg(data, "GRAY", min_height=-(-height // scale), min_width=-(-width // scale))
    return grey[:, :, 0]


def thumbnail(grey: Any) -> bytes:
    """The 32 × 32 means of a PIL image of mode L, row by row."""
    from PIL import Image

    return grey.resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BOX).tobytes()


def measures(image: Any) -> dict[str, Any]:
    """Brightness, contrast, sharpness, entropy and the 32 × 32 luminance thumbnail of a PIL image, RGB or L."""
    from PIL import Image

    grey = image.convert("L")
    small = thumbnail(grey)
    scale = MEASURED_SHORT_EDGE_PX / min(grey.size)
    if scale < 1:
        grey = grey.resize(tuple(max(1, round(edge * scale)) for edge in grey.size), Image.Resampling.BOX)
    counts, levels = np.array(grey.histogram(), dtype=np.int64), np.arange(256)
    shares = counts[counts > 0] / counts.sum()
    brightness, contrast = _mean_and_variance(counts.sum(), counts @ levels, counts @ levels**2)
    curvature = laplacian(np.asarray(grey, dtype=np.int16))
    squares = np.multiply(curvature, curvature, dtype=np.int32).sum(dtype=np.int64)
    _, sharpness = _mean_and_variance(curvature.size, curvature.sum(dtype=np.int64), squares)
    return {
        "brightness": brightness / 255,
        "contrast": contrast**0.5 / 255,
        "sharpness": sharpness / 255**2,
        "entropy": float(-(shares * np.log2(shares)).sum()),
        "thumbnail": small,
    }


def _mean_and_variance(count: Any, total: Any, squares: Any) -> tuple[float, float]:
    """Of `count` integers, from their sum and the sum of their squares; zeros of none. Rounded once."""
    count, total, squares = int(count), int(total), int(squares)
    return (total / count, (count * squares - total**2) / count**2) if count else (0.0, 0.0)


def laplacian(values: np.ndarray) -> np.ndarray:
    """Second differences of (h, w) int16 luminance, the 4-neighbour stencil: (h - 2, w - 2) int16; maybe none."""
    middle = values[1:-1, 1:-1]
    return values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:] - 4 * middle


def dropped_because(columns: dict[str, np.ndarray], config: Config) -> tuple[np.ndarray, np.ndarray]:
    """The first rule that each image breaks, (n,) object, None if it is kept; and the breaking value, (n,) float32.

    columns: width, height, frames, format of the images, their measures, nsfw_score (NaN: not looked at), (n,) each.
    """
    short = np.minimum(columns["width"], columns["height"])
    ratio = np.maximum(columns["width"], columns["height"]) / short
    formats = config.formats if config.formats is not None else tuple(set(columns["format"]))
    rules = [
        ("too_small", short, short >= config.min_short_edge_px),
        ("aspect_ratio", ratio, ratio <= config.max_aspect_ratio),
        ("format", np.zeros(len(short)), np.isin(columns["format"].astype(str), formats)),
        ("animated", columns["frames"], (columns["frames"] == 1) | config.keep_animated),
        ("near_empty", columns["contrast"], columns["contrast"] >= config.min_contrast),
        ("near_empty", columns["entropy"], columns["entropy"] >= config.min_entropy),
        ("blurred", columns["sharpness"], columns["sharpness"] >= config.min_sharpness),
        ("too_dark", columns["brightness"], columns["brightness"] >= config.min_brightness),
        ("too_bright", columns["brightness"], columns["brightness"] <= config.max_brightness),
        ("nsfw", columns["nsfw_score"], ~(columns["nsfw_score"] > (config.nsfw.max_score if config.nsfw else 1))),
    ]
    reasons, values = np.full(len(short), None, dtype=object), np.full(len(short), np.nan, dtype=np.float32)
    for reason, measured, keep in rules:
        broken = ~keep & (reasons == None)  # noqa: E711 - elementwise
        reasons[broken], values[broken] = reason, measured[broken]
    return reasons, values


@task(name="screen", persist_result=False, cache_policy=NO_CACHE)
def screen_shard(source: ShardRef, target: ShardRef, max_pixels: int) -> ShardRef:
    """The measures of one shard of images. An image that cannot be decoded is a reject, not the end of its shard."""
    row = source.first_row
    with write_shard(target, SCHEMA, {"version": VERSION, "max_pixels": max_pixels}) as shard:
        for batch in read_batches(source, ["image_id", "image", "key"]):
            for image in batch.to_pylist():
                data = image["image"]["bytes"]
                try:
                    measured = measures(luminance(data, max_pixels))
                    shard.keep({"row": row, "image_id": image["image_id"], **measured})
                except DecodeError as error:
                    shard.reject(
                        image["key"], error.reason, row=row, image_id=image["image_id"], error=str(error), data=data
                    )
                row += 1
    return target.model_copy(update={"rows": shard.kept.rows})


@task(name="decide-screen", persist_result=False, cache_policy=NO_CACHE)
def decide(
    images: list[ShardRef], measures: list[ShardRef], content: list[ShardRef], target: StageDir, config: Config
) -> Decision:
    """The first fates: what cannot be decoded has failed, what breaks a rule is dropped, the rest is kept.

    content: empty if no model looked.
    """
    fates = Fates(read_column(images, "image_id").to_numpy())
    fates.end_rejected(measures, "screen")  # what cannot be decoded
    fates.end_rejected(content, "screen", again=True)
    rows = pool_rows(measures)
    columns = {name: read_column(images, name).to_numpy()[rows] for name in ("width", "height", "frames", "format")}
    columns |= {
        name: read_column(measures, name).to_numpy() for name in ("brightness", "contrast", "sharpness", "entropy")
    }
    columns["nsfw_score"] = nsfw_scores(content, len(fates.image_id))[rows]
    reasons, values = dropped_because(columns, config)
    broken = np.flatnonzero(reasons.astype(bool) & fates.alive[rows])
    fates.end(rows[broken], "dropped", "screen", reasons[broken], score=values[broken])
    return fates.write(target, images, {"version": VERSION, **config.rules()}, "screen")


def nsfw_scores(content: list[ShardRef], num_images: int) -> np.ndarray:
    """(num_images,) float32: the score of every image, NaN where nobody looked."""
    scores = np.full(num_images, np.nan, dtype=np.float32)
    if content:
        scores[pool_rows(content)] = read_column(content, "nsfw_score").to_numpy()
    return scores
