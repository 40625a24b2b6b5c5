"""Content: what models see in every image that the rules are about: how unsafe it is, and where faces are.

Beside the measures and not among them, so that a model can be turned on later and nothing else is measured again.
Cost at 10^9 images: reads the image bytes once (110 TB at 110 kB), writes 60 bytes a row; a decode, and on a GPU about
1 ms for a ViT-T of 384 px; the face detector takes some 30 ms of one core. Memory of a worker: one batch of inputs.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel

from lvd.infra.shards import ShardRef, read_batches
from lvd.infra.writing import Shard, write_shard
from lvd.tasks import schemas
from lvd.tasks.decode import DecodeError, decode_rgb
from lvd.tasks.encode import blurred
from lvd.tasks.models.classifiers import ClassifierSpec, classifier_digest, load_classifier
from lvd.tasks.models.faces import FaceSpec, detector_digest, load_detector

SCHEMA = schemas.CONTENT
VERSION = 1


class Config(BaseModel, frozen=True, extra="forbid"):
    """The models that look; the rules are in `screen`."""

    nsfw: ClassifierSpec | None = None
    faces: FaceSpec | None = None
    max_pixels: int
    batch_size: int = 32

    def digests(self) -> list[str | None]:
        """What tells these weights from others."""
        return [
            classifier_digest(self.nsfw) if self.nsfw else None,
            detector_digest(self.faces) if self.faces else None,
        ]


def blurring(spec: FaceSpec, *, min_score: float, device: str) -> Callable[[Any], Any]:
    """A function that gives a PIL RGB image with its faces blurred."""
    detector = load_detector(spec, device=device, where="recipe.screen.faces")

    def covered(picture: Any) -> Any:
        boxes = detector.boxes(picture)
        return blurred(picture, boxes[boxes[:, 4] >= min_score])

    return covered


@task(name="content", persist_result=False, cache_policy=NO_CACHE)
def content_shard(source: ShardRef, target: ShardRef, config: Config, device: str) -> ShardRef:
    """The scores and boxes of one shard of images. An image that cannot be decoded or scored is a reject."""
    classifier = load_classifier(config.nsfw, device=device, where="recipe.screen.nsfw") if config.nsfw else None
    detector = load_detector(config.faces, device=device, where="recipe.screen.faces") if config.faces else None
    with write_shard(target, SCHEMA, {"version": VERSION, **config.model_dump(mode="json")}) as shard:
        pending: list[dict[str, Any]] = []
        for row, image in _rows(source):
            pending.append({"row": row, **image, "nsfw_score": None, "face_boxes": None})
            _look(pending[-1], classifier, detector, config.max_pixels)
            if len(pending) == config.batch_size:
                _flush(pending, classifier, config.batch_size, shard)
        _flush(pending, classifier, config.batch_size, shard)
    return target.model_copy(update={"rows": shard.kept.rows})


def _rows(source: ShardRef) -> Iterator[tuple[int, dict[str, Any]]]:
    row = source.first_row
    for batch in read_batches(source, ["image_id", "key", "image"]):
        for image in batch.to_pylist():
            yield row, image
            row += 1


def _look(image: dict[str, Any], classifier: Any, detector: Any, max_pixels: int) -> None:
    """Where faces are looked for, the image is decoded whole, as it is again when they are blurred."""
    edge = None if detector else classifier.min_short_edge_px or None
    try:
        picture = decode_rgb(image.pop("image")["bytes"], min_short_edge_px=edge, max_pixels=max_pixels)
    except DecodeError as error:
        image["error"] = error
        return
    if detector:
        image["face_boxes"] = detector.boxes(picture).tolist()
    if classifier:
        image["pixels"] = classifier.preprocess(picture)


def _flush(pending: list[dict[str, Any]], classifier: Any, batch_size: int, shard: Shard) -> None:
    """Scores what is prepared, always as a batch of one size, and writes the rows in their order."""
    fresh = [image for image in pending if "pixels" in image]
    if fresh:
        batch = np.stack([np.asarray(image.pop("pixels")) for image in fresh])
        padding = np.zeros((batch_size - len(batch), *batch.shape[1:]), dtype=batch.dtype)
        scores = classifier.scores(np.concatenate([batch, padding]))[: len(fresh)]
        for image, score in zip(fresh, scores.tolist(), strict=True):
            image["nsfw_score"] = score
    for image in pending:
        place = {"row": image["row"], "image_id": image["image_id"]}
        if "error" in image:
            shard.reject(image["key"], image["error"].reason, **place, error=str(image["error"]))
        elif image["nsfw_score"] is not None and not np.isfinite(image["nsfw_score"]):
            shard.reject(image["key"], "not_finite", **place, error="the classifier gives no finite score")
        else:
            shard.keep({name: image[name] for name in SCHEMA.names})
    pending.clear()
