"""Pictures of stored images, made small when they are asked for: where they lie, and which of them nobody is shown.

Of a published image the published bytes are shown, faces blurred where the recipe blurs them; of others what was
fetched, with the same faces blurred. Never shown: what was taken down, what the classifier found unsafe, and, where
faces are blurred, an image in which nobody looked for them. Cost: one batch of images; for
the first picture of a version also a pass over the ids of its ledger and of its published images.
"""

import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
from PIL import Image

from lvd.flows.shelf import FORGOTTEN, Edition, NotThere
from lvd.infra.shards import ShardRef
from lvd.tasks.decode import DecodeError, decode_rgb
from lvd.tasks.takedowns import host_in

EDGES_PX = {"small": 240, "large": 960}  # of the longer edge; never enlarged
MAX_PIXELS = 100_000_000  # of an image that is shown; one takes 4 bytes a pixel, a WebP 16, see `decode`
CACHED_BYTES = 64 << 20  # of pictures made
AT_ONCE = 2  # pictures that are decoded at a time
QUALITY = 78  # of their WebP
UNSEEN = {FORGOTTEN: "it was taken down", "nsfw": "the classifier found it unsafe"}  # reason → why it is not shown


class NotShown(NotThere):
    """There is a reason why nobody is shown this picture."""


class Pictures:
    """WebP pictures by image id; the last ones stay in memory."""

    def __init__(self) -> None:
        self._made: OrderedDict[tuple[Any, ...], bytes] = OrderedDict()
        self._bytes, self._lock, self._turns = 0, threading.Lock(), threading.BoundedSemaphore(AT_ONCE)

    def webp(self, edition: Edition, image_id: str, size: str = "small") -> bytes:
        """A picture of the image. Raises NotShown, and NotThere if no such image is stored."""
        check_shown(edition, image_id)
        name = (edition.state, image_id, size)
        with self._lock:
            if name in self._made:
                self._made.move_to_end(name)
                return self._made[name]
        with self._turns:
            made = small(stored(edition, image_id), EDGES_PX[size])
        with self._lock:
            if name not in self._made:
                self._made[name] = made
                self._bytes += len(made)
            while self._bytes > CACHED_BYTES:
                self._bytes -= len(self._made.popitem(last=False)[1])
        return made


def check_shown(edition: Edition, image_id: str) -> None:
    """Raises NotShown if a row of the ledger, or a record of a takedown, says that the picture is not to be seen."""
    reasons = {row["reason"] for row in edition.rows_of(image_id)}
    if taken_down(edition, image_id):
        reasons.add(FORGOTTEN)
    for reason, why in UNSEEN.items():
        if reason in reasons:
            raise NotShown(f"the picture of {image_id} is not shown: {why}")


def is_shown(edition: Edition, image_id: str) -> bool:
    """Whether nothing forbids to show the picture of an image."""
    try:
        check_shown(edition, image_id)
    except NotShown:
        return False
    return True


def taken_down(edition: Edition, image_id: str) -> bool:
    """Whether a record of a takedown means the image: by its id, or by the key or the URL of one of its rows."""
    rows = edition.rows_of(image_id) if edition.veil else []
    return edition.veil.record(image_id, chain(rows, addressed(edition, rows))) is not None


def addressed(edition: Edition, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The stored images of rows of the ledger whose keys are no URLs, with the URLs that they have."""
    for row in rows if edition.veil.asks_for_urls else ():
        if not host_in(row["key"]) and (place := place_of(edition, row["position"])):
            _, refs, number = place
            yield image_at(edition, refs, number, ["image_id", "key", "url"])


def stored(edition: Edition, image_id: str) -> bytes:
    """The bytes of an image as they may be shown. Raises NotThere, or NotShown if faces cannot be blurred."""
    if row := edition.published_row(image_id):
        data = image_at(edition, edition.dataset, row["position"], ["image"])["image"]["bytes"]
    else:
        data = unpublished(edition, image_id)
    if not data:
        raise NotThere(f"the bytes of {image_id} are no longer stored")
    return data


def unpublished(edition: Edition, image_id: str) -> bytes | None:
    """The bytes of a candidate that was not published, or of an image of a benchmark or curated collection."""
    for row in edition.rows_of(image_id):
        if place := place_of(edition, row["position"]):
            return covered(edition, *place)
    for _, directory, images in edition.others:
        if found := images.of_id(image_id, 1):
            return covered(edition, directory, images.refs, found[0]["position"])
    raise NotThere(f"no image {image_id} is stored")


def place_of(edition: Edition, position: int) -> tuple[str, list[ShardRef], int] | None:
    """The directory of images, its shards and the row there, of a row of the ledger; None if no image came.

    There is a shard of the ledger for every shard of images, and it ends with these, in their order.
    """
    number, row = edition.ledger.shard_of(position)
    if number >= len(edition.stored):
        return None
    directory, refs, ref = edition.stored[number]
    row -= edition.ledger.refs[number].rows - ref.rows
    return (directory, refs, ref.first_row + row) if row >= 0 else None


def covered(edition: Edition, directory: str, refs: list[ShardRef], row: int) -> bytes | None:
    """The bytes of a stored image; where the recipe blurs faces, with those blurred that were found in it."""
    image = image_at(edition, refs, row, ["image", "width", "height", "num_bytes"])
    faces = edition.record["recipe"]["screen"]["faces"]
    if faces is None or not image["image"]["bytes"]:
        return image["image"]["bytes"]
    from lvd.tasks.publish import Blur, Looked, cover, face_boxes

    seen, blur = edition.content.get(directory), Blur(min_score=faces["blur_min_score"])
    both = Looked(images=refs, content=seen) if seen else None
    boxes = face_boxes(both, np.array([row]), blur) if both else {}
    if row not in boxes:
        raise NotShown("the picture is not shown: faces are blurred here, and nobody looked for them in this image")
    cover(image, boxes[row], blur)
    return image["image"]["bytes"]


def image_at(edition: Edition, refs: list[ShardRef], row: int, columns: list[str]) -> dict[str, Any]:
    """Columns of the image at that row of a directory."""
    ref = next(ref for ref in refs if ref.first_row <= row < ref.first_row + ref.rows)
    batch, place = edition.batches.holding(ref, row - ref.first_row)
    return batch.select(columns).slice(place, 1).to_pylist()[0]


def small(data: bytes, edge_px: int) -> bytes:
    """A WebP of the image whose longer edge is at most that long. Raises NotThere if it cannot be decoded."""
    try:
        picture = decode_rgb(data, min_short_edge_px=edge_px, max_pixels=MAX_PIXELS)
    except DecodeError as error:
        raise NotThere(f"it cannot be shown: {error.reason}") from error
    picture.thumbnail((edge_px, edge_px), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=QUALITY, method=2)
    return file.getvalue()


def tag(data: bytes) -> str:
    """What tells these bytes from others, for the header ETag."""
    return f'"{hashlib.sha256(data).hexdigest()[:24]}"'
