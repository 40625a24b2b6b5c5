"""What the embedding model sees: the patch features of a few published images as colours, for the report.

Cost: a few images are decoded and go through the model once for a published version, whatever its size; the shards
that hold them are read. 150 kB are written for an image of 224 px.
"""

import base64
import io

import numpy as np
import pyarrow as pa
from PIL import Image
from prefect import task
from prefect.cache_policies import NO_CACHE

from lvd.infra.errors import ShardError
from lvd.infra.series import Series
from lvd.infra.shards import ShardRef
from lvd.infra.writing import write_shard
from lvd.tasks import models
from lvd.tasks.algorithms.patch_colours import coloured
from lvd.tasks.contact_sheets import images_at
from lvd.tasks.decode import DecodeError
from lvd.tasks.models import engine

SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("key", pa.string()),
        ("seen", pa.binary()),  # the pixels that the model was given: height × width × 3
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("colours", pa.binary()),  # of the patches: patch_rows × patch_columns × 3; black is background
        ("patch_rows", pa.int32()),
        ("patch_columns", pa.int32()),
    ]
)
VERSION = 1


@task(name="patch-colours", persist_result=False, cache_policy=NO_CACHE)
def write_patches(
    dataset: Series, rows: list[int], inference: models.Inference, target: ShardRef, *, device: str
) -> ShardRef:
    """Writes the colours of these rows of the published dataset; no row if the model does not look at patches.

    An image that cannot be decoded is a reject. Raises InputError if the model cannot be had.
    """
    model = models.load(engine.spec_of(inference), engine.placement(inference, device))
    images = [image for _, image in images_at(dataset.shards(), rows, ["image_id", "key", "image"])]
    with write_shard(target, SCHEMA, engine.settings(inference)) as shard:
        seen = []
        for image in images:
            try:
                seen.append((image, engine.pixels_of(image["image"]["bytes"], model)))
            except DecodeError as error:
                shard.reject(image["key"], error.reason, image_id=image["image_id"], error=str(error))
        batch = np.stack([pixels for _, pixels in seen]) if seen else None
        features = model.patch_features(batch) if seen and hasattr(model, "patch_features") else None
        if features is not None and not np.isfinite(features).all():
            raise ShardError(f"{target.name()}: model {inference.model} gave patch features that are not finite")
        for (image, pixels), colours in zip(seen, [] if features is None else coloured(features)[0], strict=False):
            upright = np.ascontiguousarray(pixels.transpose(1, 2, 0))
            shard.keep(
                {
                    **{name: image[name] for name in ("image_id", "key")},
                    **dict(zip(("height", "width"), upright.shape, strict=False)),
                    **dict(zip(("patch_rows", "patch_columns"), colours.shape, strict=False)),
                    "seen": upright.tobytes(),
                    "colours": colours.tobytes(),
                }
            )
    return target.model_copy(update={"rows": shard.kept.rows})


def picture(data: bytes, height: int, width: int) -> Image.Image:
    """The RGB picture of such a column."""
    return Image.frombytes("RGB", (width, height), data)


def png_url(image: Image.Image) -> str:
    """The picture as a `data:` URL, every pixel as it is."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
