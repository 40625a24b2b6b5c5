"""Export: a published version as files that trainers read, its images in a random order, every one of them once.

Two passes. `order` reads the rows without their pictures, gives every row its place in a seeded order of all, and
keeps runs of rows sorted by place; `export` writes the rows of one range of places, and fetches each image from where
it lies. Cost at 1.4 × 10^8 images of 110 kB: `order` reads 1 TB (a megabyte or two of each batch of 32 MB) and writes
0.06 TB in 300 runs, 1 GB of memory for each. `export` reads 2 TB of the runs (the batches that hold a row of the shard)
and 15.4 TB of images in 1.4 × 10^8 requests, 16 at a time in every task, and writes 15.4 TB; memory: the rows of one
shard, 32 spans of 4 MB at most, and of Parquet a row group of 64 MB. The usual two passes over the images themselves,
into buckets and out of them, would read and write 31 TB each, and need 15.4 TB of room. On disks that seek, without the
shuffle, images that follow one another are read together: 4 MB at a time.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, Field

from lvd.infra.errors import ShardError
from lvd.infra.pictures import IMAGE, OFFSET, READERS, SIZE, pictures, without_pictures
from lvd.infra.runs import SortedRun, read_range
from lvd.infra.shards import ShardRef, StageDir, read_batches, read_schema, with_large_texts
from lvd.infra.storage import Storage
from lvd.infra.writing import write_shard
from lvd.tasks import layouts
from lvd.tasks.algorithms.permutation import permuted

SCHEMA = pa.schema(  # the files that an export's shard came to
    [("name", pa.string()), ("bytes", pa.int64()), ("sha256", pa.string()), ("rows", pa.int64())]
)
VERSION = 1
PLACE, SHARD = "place", "shard"
ROWS_PER_RUN = 500_000  # in memory at 1 kB, and the same again while they are put in order


class Config(BaseModel, frozen=True, extra="forbid"):
    """What decides the bytes of an export, with the version."""

    kind: layouts.Kind
    shard_images: int = Field(10_000, ge=1, le=1_000_000)  # usual: so that a shard has 0.1 to 1 GB
    shard_bytes: int | None = Field(None, ge=1)  # of images, on average; in place of shard_images
    shuffle: bool = True
    seed: int = Field(0, ge=0)
    columns: tuple[str, ...] | None = None  # besides the image and its id; None: all

    def chosen(self, names: list[str]) -> list[str]:
        """The columns that are written besides the image, in the order of the dataset."""
        return [n for n in names if n != IMAGE and (self.columns is None or n in (*self.columns, "image_id"))]

    def images_per_shard(self, rows: int, image_bytes: int) -> int:
        """rows, image_bytes: of the whole version."""
        if self.shard_bytes is None or not image_bytes:
            return self.shard_images
        return max(1, self.shard_bytes * rows // image_bytes)


@task(name="order", persist_result=False, cache_policy=NO_CACHE)
def order_shard(dataset: StageDir, first: int, stop: int, target: ShardRef, config: Config) -> ShardRef:
    """The rows of the shards [first, stop) of a dataset by their places in the export, and where their images lie."""
    refs = dataset.shards()
    total = sum(ref.rows for ref in refs)
    fields = [field for field in read_schema(refs[0]) if field.name != IMAGE]
    own = [(PLACE, pa.int64()), (SHARD, pa.int32()), (OFFSET, pa.int64()), (SIZE, pa.int64())]
    schema = pa.schema([*own, *fields])
    tables = [_placed(refs[number], number, total, config, schema) for number in range(first, stop)]
    table = with_large_texts(pa.concat_tables(tables))
    table = table.take(pa.array(np.argsort(table[PLACE].to_numpy())))
    said = config.model_dump(include={"shuffle", "seed"})
    with write_shard(target, schema, {"version": VERSION, **said}) as shard, SortedRun(target, shard, PLACE) as run:
        run.keep(table)
        shard.notes["image_bytes"] = int(table[SIZE].to_numpy().sum())
    return target.model_copy(update={"rows": shard.kept.rows})


def _placed(ref: ShardRef, number: int, total: int, config: Config, schema: pa.Schema) -> pa.Table:
    """The rows of one shard, in their own order, each with its place in the export."""
    parts = [one.combine_chunks().take(pa.array(np.arange(len(one)))) for one in _small(ref)]
    table = pa.concat_tables(parts) if parts else schema.empty_table()
    rows = ref.first_row + np.arange(len(table))
    places = permuted(rows, total, seed=config.seed) if config.shuffle else rows
    own = {PLACE: pa.array(places), SHARD: pa.repeat(pa.scalar(number, pa.int32()), len(table))}
    return pa.table({name: own[name] if name in own else table[name] for name in schema.names}).cast(schema)


def _small(ref: ShardRef) -> Iterator[pa.Table]:
    """The batches of a shard without pictures; where the rows have none, with lengths of zero."""
    if IMAGE in read_schema(ref).names:
        yield from without_pictures(ref)
        return
    for batch in read_batches(ref):
        table, zeros = pa.Table.from_batches([batch.replace_schema_metadata(None)]), np.zeros(batch.num_rows, np.int64)
        yield table.append_column(OFFSET, pa.array(zeros)).append_column(SIZE, pa.array(zeros))


@task(name="export", persist_result=False, cache_policy=NO_CACHE)
def export_shard(
    dataset: StageDir, order: StageDir, out: str, first: int, stop: int, target: ShardRef, config: Config
) -> ShardRef:
    """The files with the images at the places [first, stop), below `out`; the shard that is returned lists them."""
    refs = dataset.shards()
    rows = ordered(order.shards(), first, stop)
    has_images = IMAGE in read_schema(refs[0]).names
    suffixes: Counter[str] = Counter()
    images = counted(checked(refs, rows), suffixes) if has_images else None
    files = layouts.Shard(storage=Storage(out), index=target.index, count=target.count, rows=rows)
    with write_shard(target, SCHEMA, {"version": VERSION, **config.model_dump()}) as shard:
        for written in files.write(config.kind, config.chosen(read_schema(refs[0]).names), images):
            shard.keep(written)
        shard.rows_in = len(rows)
        shard.notes["suffixes"] = dict(sorted(suffixes.items()))
    return target.model_copy(update={"rows": shard.kept.rows})


def counted(images: Iterator[bytes], suffixes: Counter[str]) -> Iterator[bytes]:
    """The images, counted by the suffixes that their formats ask for."""
    for data in images:
        suffixes[layouts.suffix(data)] += 1
        yield data


def ordered(order: list[ShardRef], first: int, stop: int) -> pa.Table:
    """The rows at the places [first, stop) of all runs, by place."""
    with ThreadPoolExecutor(READERS) as readers:
        parts = list(readers.map(lambda ref: read_range(ref, first, stop), order))
    table = pa.concat_tables(parts)
    places = table[PLACE].to_numpy()
    table = table.take(pa.array(np.argsort(places)))
    if len(table) != stop - first:
        raise ShardError(f"the places {first} to {stop} must have a row each, had {len(table)}: a row is lost")
    return table


def checked(refs: list[ShardRef], rows: pa.Table) -> Iterator[bytes]:
    """The image of every row. Raises ShardError for one whose bytes are not those that its id was made of.

    An image in which faces were blurred has the id of the image as it was fetched: it is not checked.
    """
    places = (rows[name].to_numpy() for name in (SHARD, OFFSET, SIZE))
    blurred = rows["faces_blurred"] if "faces_blurred" in rows.schema.names else pa.nulls(len(rows), pa.int32())
    whose: Iterator[tuple[Any, ...]] = zip(rows["image_id"].to_pylist(), blurred.to_pylist(), strict=True)
    for data, (image_id, faces) in zip(pictures(refs, *places), whose, strict=True):
        if not faces and hashlib.sha256(data).hexdigest()[:32] != image_id:
            raise ShardError(
                f"image {image_id} must have the bytes that it is named after, has others: if the version was "
                "rewritten meanwhile, export it to another folder"
            )
        yield data
