"""The vectors of a shard of images by any model, in batches of one fixed size.

Every batch is padded to the same number of rows, so that a vector does not depend on which images it was computed with;
that is what lets a vector be taken over from an earlier run in which other images were kept.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from lvd.infra.shards import Shard, ShardRef, StageDir, read_batches, read_table, write_shard
from lvd.tasks import models, schemas
from lvd.tasks.decode import DecodeError, decode_rgb


def vectors_of_shard(
    images: ShardRef,
    fates: ShardRef | None,
    target: ShardRef,
    spec: models.ModelSpec,
    *,
    batch_size: int,
    device: str,
    donors: list[StageDir],
) -> ShardRef:
    """Writes the unit float16 vectors of the images that are alive (all of them without `fates`).

    donors: complete outputs of the same model for the same images with other images kept; their vectors are taken over.
    An image that cannot be decoded, or whose vector is not finite, is a reject. Where every input has a size of its
    own, batches are of one image.
    """
    batch_size = models.usable_batch_size(spec, batch_size)
    alive = (
        np.ones(images.rows, dtype=bool)
        if fates is None
        else read_table(fates, ["state"])["state"].to_numpy() == "kept"
    )
    known = _known(donors, target.index)
    model = models.load(spec, device=device)
    with write_shard(
        target, schemas.vectors(model.dim), {"model": spec.model_dump(mode="json"), "batch_size": batch_size}
    ) as shard:
        pending: list[dict[str, Any]] = []
        prepared = 0
        for row, image in _alive_rows(images, alive):
            pending.append({"row": row, "image_id": image["image_id"], "key": image["key"], "vector": known.get(row)})
            if row not in known:
                _prepare(pending[-1], image["image"]["bytes"], model)
                prepared += "pixels" in pending[-1]
            if prepared == batch_size or len(pending) == 16 * batch_size:
                _flush(pending, model, batch_size, shard)
                prepared = 0
        _flush(pending, model, batch_size, shard)
        shard.notes["taken_over"] = sum(bool(alive[row - images.first_row]) for row in known)
    return target.model_copy(update={"rows": shard.kept.rows})


def _alive_rows(images: ShardRef, alive: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
    position = 0
    for batch in read_batches(images, ["image_id", "key", "image"]):
        here = np.flatnonzero(alive[position : position + batch.num_rows])
        for index, image in zip(here, batch.take(pa.array(here)).to_pylist(), strict=True):
            yield images.first_row + position + int(index), image
        position += batch.num_rows


def _known(donors: list[StageDir], index: int) -> dict[int, np.ndarray]:
    """row → vector, from the shards of that number of all donors."""
    known: dict[int, np.ndarray] = {}
    for donor in donors:
        table = read_table(donor.shards()[index], ["row", "vector"])
        known.update(zip(table["row"].to_pylist(), vector_column(table), strict=True))
    return known


def _prepare(row: dict[str, Any], data: bytes, model: models.ImageModel) -> None:
    try:
        row["pixels"] = model.preprocess(decode_rgb(data, min_short_edge_px=model.min_short_edge_px or None))
    except DecodeError as error:
        row["error"] = error


def _flush(pending: list[dict[str, Any]], model: models.ImageModel, batch_size: int, shard: Shard) -> None:
    """Embeds what is prepared and writes the rows in their order."""
    fresh = [row for row in pending if "pixels" in row]
    if fresh:
        batch = np.stack([np.asarray(row["pixels"]) for row in fresh])
        padding = np.zeros((batch_size - len(batch), *batch.shape[1:]), dtype=batch.dtype)
        vectors = model.embed(np.concatenate([batch, padding]))[: len(fresh)]
        for row, vector in zip(fresh, vectors, strict=True):
            row["vector"] = vector.astype(np.float16)
    for row in pending:
        if "error" in row:
            shard.reject(
                row["key"], row["error"].reason, row=row["row"], image_id=row["image_id"], error=str(row["error"])
            )
        elif not np.isfinite(row["vector"]).all() or not row["vector"].any():
            shard.reject(
                row["key"],
                "not_finite",
                row=row["row"],
                image_id=row["image_id"],
                error="the model gave a vector that is zero or not finite",
            )
        else:
            shard.keep({name: row[name] for name in ("row", "image_id", "vector")})
    pending.clear()


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


def spec_of(config: models.ModelSpec) -> models.ModelSpec:
    """The part of a stage's configuration that says which model."""
    return models.ModelSpec(**{name: getattr(config, name) for name in models.ModelSpec.model_fields})
