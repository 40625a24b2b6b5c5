"""Publish: the selected images with their provenance, as one Hugging Face dataset.

The second and last time that image bytes are written, and only those of the selected images: a shard lies where its
content says, `published/{fingerprint}`, and all versions that hold the same rows share it.
Cost at 1.4 × 10^8 selected images: reads the shards that hold one, writes 16 TB, or what of it no version has yet; the
selection is made in one process that holds some 400 bytes for each, and names its shards' contents in 6 minutes.
"""

from collections.abc import Iterator
from itertools import chain
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, Field

from lvd.infra.shards import ShardRef, StageDir, fingerprint, read_batches, read_column, read_table
from lvd.infra.writing import write_shard
from lvd.tasks import schemas
from lvd.tasks.algorithms.chunks import chunk_ends
from lvd.tasks.algorithms.row_hash import row_hash
from lvd.tasks.decode import MAX_PIXELS, read_header
from lvd.tasks.encode import with_blurred
from lvd.tasks.matched import Matched, retrieved, survivors

SCHEMA = schemas.CURATED
VERSION = 3


class Config(BaseModel, frozen=True, extra="forbid"):
    images: Literal["retrieved", "survivors"] = "retrieved"  # survivors: all that deduplication left, retrieved or not
    rows_per_shard: int = Field(10_000, ge=1, le=1_000_000)  # on average: shards are cut by content, at most 2 × it
    title: str | None = None  # of the dataset card; the recipe's name if left out
    license: str | None = None  # as the dataset card states it; the images keep the rights that they had


class Looked(BaseModel, frozen=True):
    """One partition's images, and what models saw in them; `content` is empty if none looked."""

    images: list[ShardRef]
    content: list[ShardRef]
    withdrawn: list[ShardRef] = []  # what of them was taken down, if anything was

    def left_out(self) -> set[int]:
        """Rows of images that could not be looked at, or were taken down."""
        unseen = (read_table(ref, ["row"], kind="rejects") for ref in self.content)
        gone = (read_table(ref, ["row"]) for ref in self.withdrawn)
        return {row for table in chain(unseen, gone) for row in table["row"].to_pylist()}


class Blur(BaseModel, frozen=True):
    """Faces are blurred in what is published."""

    min_score: float
    quality: int = 95


def included(parts: list[Looked]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(part, row, image id), (m,) each, of the included curated images, each content once, the first one staying.

    An image in which faces were to be looked for and could not be is none of them, nor is one that was taken down.
    """
    part, row, ids = [], [], []
    for number, looked in enumerate(parts):
        found = read_column(looked.images, "image_id").to_numpy()
        seen = np.setdiff1d(np.arange(len(found)), np.fromiter(looked.left_out(), dtype=np.int64))
        part.append(np.full(len(seen), number))
        row.append(seen)
        ids.append(found[seen].astype("S32"))
    if not ids:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0, dtype="S32")
    whole = np.concatenate(ids)
    first = np.sort(np.unique(whole, return_index=True)[1])
    return np.concatenate(part)[first], np.concatenate(row)[first], whole[first]


@task(name="select", persist_result=False, cache_policy=NO_CACHE)
def select(
    curated: list[Looked],
    pool: list[list[ShardRef]],
    left: list[ShardRef],
    matched: list[Matched],
    target: StageDir,
    config: Config,
) -> int:
    """Writes what is published: the included curated images, then the pool's. Returns the number of shards.

    left: a sidecar that has the pool images which are left.
    Of a pool image whose content is a curated image, the curated one is published; its row is there for the ledger.
    """
    part, row, contents = included(curated)
    of_pool = retrieved(matched) if config.images == "retrieved" else survivors(left, matched)
    bounds = np.cumsum([0, *(sum(ref.rows for ref in shards) for shards in pool)])
    rows = of_pool["row"].to_numpy()
    place = np.searchsorted(bounds, rows, side="right") - 1
    pool_ids = of_pool["image_id"].to_numpy().astype("S32")
    is_repeated = np.isin(pool_ids, contents)
    roles = np.where(is_repeated, schemas.REPEATED, of_pool["role"].to_numpy())
    num = len(part)
    part = np.concatenate([part, len(curated) + place])
    row = np.concatenate([row, rows - bounds[place]])
    own = pa.table(
        {"role": pa.repeat("curated", num), "retrieved_for": pa.array([[]] * num, pa.list_(pa.large_string()))}
    )
    names = ["retrieved_for", "query_id", "similarity", "cluster_id"]
    others = of_pool.select(names).append_column("role", pa.array(roles, type=pa.string()))
    table = pa.concat_tables([own, others], promote_options="default")
    table = table.append_column("part", pa.array(part)).append_column("row", pa.array(row))
    directories = [refs[0].directory for refs in (*(looked.images for looked in curated), *pool)]
    ends = cuts(part, np.concatenate([contents, pool_ids]), config.rows_per_shard)
    for ref, begin, end in zip(target.planned(len(ends)), [0, *ends[:-1]], ends, strict=True):
        some = table.slice(begin, end - begin)
        with write_shard(ref, schemas.SELECTION, {"version": VERSION, **config.model_dump()}) as shard:
            shard.keep_table(some)
            places = np.column_stack([part[begin:end], row[begin:end]]).tolist()
            shard.notes["places"] = [places[0], places[-1]] if places else []
            shard.notes |= content_of(some, directories)
    return len(ends)


def cuts(part: np.ndarray, image_ids: np.ndarray, rows_per_shard: int) -> list[int]:
    """Where each shard of the selection ends, of which there is one at least.

    After images whose ids are low once they are mixed, and where a partition ends: so a version with a few other images
    has most of its shards in common with this one. image_ids: (n,) S32, in hex.
    """
    numbers = np.frombuffer(bytes.fromhex(image_ids.tobytes().decode()), dtype=">u8")[1::2].astype(np.uint64)
    is_border = np.append(np.diff(part) != 0, True)[: len(part)]
    return chunk_ends(row_hash(numbers, 0), is_border, rows_per_shard).tolist() or [0]


def content_of(selection: pa.Table, directories: list[str]) -> dict[str, Any]:
    """What of a shard of the selection is published: `parts`, and `digest` of their images and of the rows."""
    table = published_rows(selection)
    parts, part = np.unique(table["part"].to_numpy(), return_inverse=True)
    images = [directories[number] for number in parts]
    rows = table.select([f.name for f in schemas.SELECTION if f.name != "part"]).to_pydict()
    return {"parts": parts.tolist(), "digest": fingerprint(images, part.tolist(), rows)}


def published_rows(selection: pa.Table) -> pa.Table:
    """The rows of the selection without those that are there for the ledger only."""
    return selection.filter(pc.not_equal(selection["role"], schemas.REPEATED))


def holding(selection: list[ShardRef], places: list[list[list[int]]], part: int, images: ShardRef) -> list[ShardRef]:
    """The shards of the selection that can hold an image of one shard of images; it is in order of part and row.

    places: the first and the last (part, row) of each shard of the selection.
    """
    first, last = [part, images.first_row], [part, images.first_row + images.rows]
    return [ref for ref, ends in zip(selection, places, strict=True) if ends and ends[0] <= last and ends[1] >= first]


@task(name="publish", persist_result=False, cache_policy=NO_CACHE)
def publish_shard(
    selection: ShardRef, parts: dict[int, Looked], target: ShardRef, blur: Blur | None = None
) -> ShardRef:
    """The selected images of one shard with their bytes. Memory: one batch of images read, one written.

    parts: the partitions that it takes images from, by their numbers.
    blur: null publishes the bytes as they are.
    """
    table = published_rows(read_table(selection))
    part, row = table["part"].to_numpy(), table["row"].to_numpy()
    with write_shard(target, SCHEMA, {"version": VERSION}) as shard:
        for index in np.unique(part).tolist():
            chosen = np.flatnonzero(part == index)
            provenance = iter(table.take(pa.array(chosen)).to_pylist())
            faces = face_boxes(parts[index], row[chosen], blur) if blur else {}
            for image in rows_of(parts[index].images, row[chosen]):
                reasons = next(provenance)
                image["faces_blurred"] = None
                if blur:
                    cover(image, faces[reasons["row"]], blur)
                columns = {name: image[name] if name in image else reasons[name] for name in SCHEMA.names}
                shard.keep(columns, image["num_bytes"])
    return target.model_copy(update={"rows": shard.kept.rows})


def face_boxes(looked: Looked, rows: np.ndarray, blur: Blur) -> dict[int, np.ndarray]:
    """Row → (n, 5) boxes and scores of the faces that are to be blurred, for ascending rows of one partition."""
    found: dict[int, np.ndarray] = {}
    for images, content in zip(looked.images, looked.content, strict=True):
        first, last = np.searchsorted(rows, [images.first_row, images.first_row + images.rows])
        if first == last:
            continue
        table = read_table(content, ["row", "face_boxes"])
        for image in table.filter(pc.is_in(table["row"], pa.array(rows[first:last]))).to_pylist():
            boxes = np.array(image["face_boxes"], dtype=np.float32).reshape(-1, 5)
            found[image["row"]] = boxes[boxes[:, 4] >= blur.min_score]
    return found


def cover(image: dict[str, Any], boxes: np.ndarray, blur: Blur) -> None:
    """Blurs these faces in the row of an image, which keeps its `image_id`: that of the image as it was fetched."""
    image["faces_blurred"] = len(boxes)
    if len(boxes):
        data = with_blurred(image["image"]["bytes"], boxes, quality=blur.quality, max_pixels=MAX_PIXELS)
        header = read_header(data)
        image |= {"width": header.width, "height": header.height, "num_bytes": len(data)}
        image["image"]["bytes"] = data


def rows_of(shards: list[ShardRef], rows: np.ndarray) -> Iterator[dict[str, Any]]:
    """Images at ascending rows of one dataset, with their bytes."""
    for ref in shards:
        wanted = (
            rows[np.searchsorted(rows, ref.first_row) : np.searchsorted(rows, ref.first_row + ref.rows)] - ref.first_row
        )
        first = 0
        for batch in read_batches(ref) if len(wanted) else ():
            here = wanted[np.searchsorted(wanted, first) : np.searchsorted(wanted, first + batch.num_rows)] - first
            yield from batch.take(pa.array(here)).to_pylist()
            first += batch.num_rows
