"""The vectors of shards of images by any model, in batches of one fixed size.

Every batch is padded to the same number of rows, so that a vector does not depend on which images it was computed with;
that is what lets batches run on across shards, and a vector be taken over from an earlier run in which other images
were kept.
"""

from collections import Counter
from collections.abc import Generator, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from lvd.infra.errors import ShardError
from lvd.infra.metering import metered
from lvd.infra.shards import ShardRef, StageDir, read_batches, read_table
from lvd.infra.writing import Shard, write_shard
from lvd.tasks import models, schemas
from lvd.tasks.containers import DecodeError
from lvd.tasks.decode import decode_rgb
from lvd.tasks.models.pipeline import Ahead, End, Row, blocks, computed

BLOCK_ROWS = 4096  # rows that are written at once
AHEAD_BATCHES = 3  # batches of images that are read and decoded ahead
AHEAD_BYTES = 256 << 20  # of encoded images among them


class Job(BaseModel, frozen=True):
    """One shard of images, and where its vectors go.

    fates: the images that are alive; all of them if there are none. donors: complete outputs of the same model for the
    same images with other images kept; their vectors are taken over.
    """

    images: ShardRef
    fates: ShardRef | None
    target: ShardRef
    donors: tuple[StageDir, ...] = ()


def vectors_of_shards(
    jobs: list[Job], inference: models.Inference, *, device: str, decoders: int = 1
) -> list[ShardRef | Exception]:
    """Writes the unit float16 vectors of the images that are alive; what became of each shard, in their order.

    inference: with a batch size and a precision that are settled; decoders: threads that decode, usually the cores that
    this work may have. An image that cannot be decoded, or whose vector is not finite, is a reject. A shard that cannot
    be read or written leaves the others alone. Memory: `AHEAD_BATCHES` + 3 batches, and `AHEAD_BYTES`.
    """
    batch_size = models.usable_batch_size(inference, inference.batch_size)
    model = models.load(spec_of(inference), placement(inference, device))
    outcomes: list[ShardRef | Exception] = []
    with ThreadPoolExecutor(decoders, thread_name_prefix="lvd-decode") as pool:
        rows = _rows(jobs, model, pool)
        with Ahead(rows, max_items=AHEAD_BATCHES * batch_size + decoders, max_bytes=AHEAD_BYTES) as fed:
            items = _with_every_end(computed(blocks(fed, batch_size), model, batch_size))
            for job in jobs:
                outcomes.append(_written(job, items, model, inference, is_gpu=device != "cpu"))
    return outcomes


def placement(inference: models.Inference, device: str) -> models.Placement:
    """Where and how the model is loaded."""
    return models.Placement(device=device, precision=inference.precision, compiled=inference.compile)


def spec_of(config: models.ModelSpec) -> models.ModelSpec:
    """The part of a stage's configuration that says which model."""
    return models.ModelSpec(**{name: getattr(config, name) for name in models.ModelSpec.model_fields})


def settings(inference: models.Inference) -> dict[str, Any]:
    """What decides the vectors of an image, but for the weights."""
    return inference.model_dump(mode="json", include=set(models.Inference.model_fields))


def _rows(jobs: list[Job], model: models.ImageModel, pool: Executor) -> Generator[Row | End, None, None]:
    """The living images of all shards, their decoding on its way, and the end of each shard."""
    for job in jobs:
        error = None
        with metered() as cost:
            try:
                yield from _alive_rows(job, model, pool, cost)
            except Exception as failure:  # noqa: BLE001 - the shard fails, the others go on
                error = failure
        yield End(cost, error)


def _with_every_end(items: Iterator[Row | End]) -> Iterator[Row | End]:
    """The items; where the model fails, that is the end of every further shard."""
    failure = None
    try:
        yield from items
    except Exception as error:  # noqa: BLE001 - it is the outcome of each of those shards
        failure = error
    while failure is not None:
        yield End(Counter(), failure)


def _alive_rows(job: Job, model: models.ImageModel, pool: Executor, cost: Counter[str]) -> Iterator[Row]:
    images, position = job.images, 0
    alive = (
        np.ones(images.rows, dtype=bool)
        if job.fates is None
        else read_table(job.fates, ["state"])["state"].to_numpy() == "kept"
    )
    if len(alive) != images.rows:
        where = f"{job.fates.root}/{job.fates.name()}"
        raise ShardError(f"{where} must have {images.rows} rows, had {len(alive)}: delete its stage and run again")
    known = _known(job.donors, job.target.index)
    for batch in read_batches(images, ["image_id", "key", "image"]):
        here = np.flatnonzero(alive[position : position + batch.num_rows])
        for index, image in zip(here, batch.take(pa.array(here)).to_pylist(), strict=True):
            number = images.first_row + position + int(index)
            row = Row(number, image["image_id"], image["key"], cost, vector=known.get(number))
            cost["taken_over"] += row.vector is not None
            if row.vector is None:
                data = image["image"]["bytes"]
                row.num_bytes, row.pixels = len(data), pool.submit(pixels_of, data, model)
            yield row
        position += batch.num_rows


def pixels_of(data: bytes, model: models.ImageModel) -> np.ndarray:
    """The input of one image. Raises DecodeError for whatever makes it none."""
    try:
        return np.asarray(model.preprocess(decode_rgb(data, min_short_edge_px=model.min_short_edge_px or None)))
    except DecodeError:
        raise
    except Exception as error:
        raise DecodeError("undecodable", f"{type(error).__name__}: {error}") from error


def _known(donors: tuple[StageDir, ...], index: int) -> dict[int, np.ndarray]:
    """row → vector, from the shards of that number of all donors."""
    known: dict[int, np.ndarray] = {}
    for donor in donors:
        table = read_table(donor.shards()[index], ["row", "vector"])
        known.update(zip(table["row"].to_pylist(), vector_column(table), strict=True))
    return known


def _written(
    job: Job, items: Iterator[Row | End], model: models.ImageModel, inference: models.Inference, *, is_gpu: bool
) -> ShardRef | Exception:
    """The shard's reference once it is on storage, or why it is not; its items are taken in either case."""
    has_ended, halved = False, model.halved

    def own() -> Iterator[Row]:
        nonlocal has_ended
        for item in items:
            if isinstance(item, End):
                has_ended = True
                shard.cost.update({name: value for name, value in item.cost.items() if name != "taken_over"})
                shard.notes["taken_over"] = item.cost["taken_over"]
                if item.error is not None:
                    raise item.error
                return
            yield item

    try:
        with write_shard(job.target, schemas.vectors(model.dim), settings(inference)) as shard:
            _keep(shard, own(), model.dim)
            shard.notes["halved"] = model.halved - halved
            shard.is_on_gpu = is_gpu
        return job.target.model_copy(update={"rows": shard.kept.rows})
    except Exception as error:  # noqa: BLE001 - the shard fails, the others go on
        while not has_ended:
            has_ended = isinstance(next(items), End)
        return error


def _keep(shard: Shard, rows: Iterator[Row], dim: int) -> None:
    """Writes the rows in their order."""
    kept: list[Row] = []
    for row in rows:
        if row.error is not None:
            shard.reject(row.key, row.error.reason, row=row.row, image_id=row.image_id, error=str(row.error))
        elif not np.isfinite(row.vector).all() or not row.vector.any():
            error = "the model gave a vector that is zero or not finite"
            shard.reject(row.key, "not_finite", row=row.row, image_id=row.image_id, error=error)
        else:
            kept.append(row)
        if len(kept) == BLOCK_ROWS:
            shard.keep_table(_table(kept, dim))
            kept = []
    shard.keep_table(_table(kept, dim))


def _table(rows: list[Row], dim: int) -> pa.Table:
    values = np.concatenate([np.zeros(0, dtype=np.float16), *(row.vector for row in rows)])
    columns = [[row.row for row in rows], [row.image_id for row in rows]]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values), dim)
    schema = schemas.vectors(dim)
    return pa.Table.from_arrays(
        [pa.array(c, f.type) for c, f in zip(columns, schema, strict=False)] + [vectors], schema=schema
    )


def vector_column(table: pa.Table, name: str = "vector") -> np.ndarray:
    """(n, d) array of a fixed-size-list column."""
    column = table[name].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = (
            pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], type=table.schema.field(name).type)
        )
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), column.type.list_size)


def read_vectors(ref: ShardRef, name: str = "vector") -> np.ndarray:
    """(n, d) array of a fixed-size-list column of a shard."""
    return vector_column(read_table(ref, [name]), name)


def vector_blocks(refs: list[ShardRef]) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, (b, d) float16) of one shard of vectors after another; rows counted over all of them."""
    first = 0
    for ref in refs:
        vectors = read_vectors(ref)
        if len(vectors):
            yield first, vectors
        first += len(vectors)
