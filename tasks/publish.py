"""Publish: the selected images with their provenance, as one Hugging Face dataset.

The second and last time that image bytes are written, and only those of the selected images.
Cost at 1.4 × 10^8 selected images: reads the shards that hold one, writes 16 TB; the selection is made in one process
that holds about 1 kB for each.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, Field

from lvd.infra.shards import ShardRef, StageDir, read_batches, read_column, read_table, write_shard
from lvd.tasks import schemas
from lvd.tasks.decode import MAX_PIXELS, read_header
from lvd.tasks.encode import with_blurred

SCHEMA = schemas.CURATED
VERSION = 1


class Config(BaseModel, frozen=True, extra="forbid"):
    images: Literal["retrieved", "survivors"] = "retrieved"  # survivors: all that deduplication left, retrieved or not
    rows_per_shard: int = Field(10_000, ge=1, le=1_000_000)
    title: str | None = None  # of the dataset card; the recipe's name if left out
    license: str | None = None  # as the dataset card states it; the images keep the rights that they had


class Looked(BaseModel, frozen=True):
    """One partition's images, and what models saw in them; `content` is empty if none looked."""

    images: list[ShardRef]
    content: list[ShardRef]

    def unseen(self) -> set[int]:
        """Rows of images that could not be looked at."""
        return {row for ref in self.content for row in read_table(ref, ["row"], kind="rejects")["row"].to_pylist()}


class Blur(BaseModel, frozen=True):
    """Faces are blurred in what is published."""

    min_score: float
    quality: int = 95


class Matched(BaseModel, frozen=True):
    """One collection's matches; `shards` is empty if it retrieves nothing."""

    name: str
    shards: tuple[ShardRef, ...]


def included(parts: list[Looked]) -> Iterator[tuple[int, int, str]]:
    """(part, row, image id) of the included curated images, each content once, the first one staying.

    An image in which faces were to be looked for and could not be is none of them.
    """
    seen: set[str] = set()
    for part, looked in enumerate(parts):
        unseen = looked.unseen()
        for row, image_id in enumerate(read_column(looked.images, "image_id").to_pylist()):
            if image_id not in seen and row not in unseen:
                seen.add(image_id)
                yield part, row, image_id


def retrieved(matched: list[Matched]) -> Iterator[dict[str, Any]]:
    """One row per retrieved pool image, ascending: the collections that it was retrieved for, and its nearest query."""
    names = ["row", "similarity", "query_id", "cluster_id", "image_id"]
    tables = [(index, read_table(ref, names)) for index, m in enumerate(matched) for ref in m.shards]
    if not tables:
        return
    table = pa.concat_tables([t for _, t in tables])
    collection = np.concatenate([np.full(len(t), index) for index, t in tables])
    row = table["row"].to_numpy()
    order = np.lexsort((collection, -table["similarity"].to_numpy(), row))
    starts = np.flatnonzero(np.diff(row[order], prepend=-1))
    for start, stop in pairwise([*starts, len(order)]):
        best = table.slice(order[start], 1).to_pylist()[0]
        reasons = [matched[i].name for i in sorted(set(collection[order[start:stop]].tolist()))]
        yield {**best, "retrieved_for": reasons}


def survivors(vectors: list[ShardRef], matched: list[Matched]) -> Iterator[dict[str, Any]]:
    """One row per embedded pool image, ascending; what `retrieved` says of it where it was retrieved."""
    of_row = {match["row"]: match for match in retrieved(matched)}
    for ref in vectors:
        for image in read_table(ref, ["row", "image_id"]).to_pylist():
            row = image["row"] + ref.base
            yield of_row.get(row, {"row": row, "image_id": image["image_id"], "role": "survivor", "retrieved_for": []})


@task(name="select", persist_result=False, cache_policy=NO_CACHE)
def select(
    curated: list[Looked],
    pool: list[list[ShardRef]],
    vectors: list[ShardRef],
    matched: list[Matched],
    target: StageDir,
    config: Config,
) -> int:
    """Writes what is published: the included curated images, then the pool's. Returns the number of shards.

    Of a pool image whose content is a curated image, the curated one is published; its row is there for the ledger.
    """
    rows, contents = [], set()
    for part, row, image_id in included(curated):
        contents.add(image_id)
        rows.append({"part": part, "row": row, "role": "curated", "retrieved_for": []})
    bounds = np.cumsum([0, *(sum(ref.rows for ref in shards) for shards in pool)])
    for image in retrieved(matched) if config.images == "retrieved" else survivors(vectors, matched):
        part = int(np.searchsorted(bounds, image["row"], side="right")) - 1
        place = {"part": len(curated) + part, "row": image["row"] - int(bounds[part])}
        repeated = {"role": schemas.REPEATED} if image["image_id"] in contents else {}
        rows.append({"role": "retrieved", **image, **place, **repeated})
    count = max(1, -(-len(rows) // config.rows_per_shard))
    for ref in target.planned(count):
        with write_shard(ref, schemas.SELECTION, {"version": VERSION, **config.model_dump()}) as shard:
            for row in rows[ref.index * config.rows_per_shard : (ref.index + 1) * config.rows_per_shard]:
                shard.keep(row)
            places = [[row["part"], row["row"]] for row in rows[ref.index * config.rows_per_shard :][: shard.kept.rows]]
            shard.notes["places"] = [places[0], places[-1]] if places else []
    return count


def holding(selection: list[ShardRef], places: list[list[list[int]]], part: int, images: ShardRef) -> list[ShardRef]:
    """The shards of the selection that can hold an image of one shard of images; it is in order of part and row.

    places: the first and the last (part, row) of each shard of the selection.
    """
    first, last = [part, images.first_row], [part, images.first_row + images.rows]
    return [ref for ref, ends in zip(selection, places, strict=True) if ends and ends[0] <= last and ends[1] >= first]


@task(name="publish", persist_result=False, cache_policy=NO_CACHE)
def publish_shard(selection: ShardRef, parts: list[Looked], target: ShardRef, blur: Blur | None = None) -> ShardRef:
    """The selected images of one shard with their bytes. Memory: one batch of images read, one written.

    blur: null publishes the bytes as they are.
    """
    table = read_table(selection)
    table = table.filter(pc.not_equal(table["role"], schemas.REPEATED))
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
