"""A sample of a published version as one table for an explorer: pictures, where they come from, and their vectors."""

import io
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from lvd.infra.shards import ShardRef, read_batches, read_table
from lvd.tasks.decode import DecodeError, decode_rgb
from lvd.tasks.models.engine import vector_column

EDGE_PX = 256  # of a thumbnail's longer edge
QUALITY = 85
ROWS_PER_GROUP = 1000  # of the Parquet file: about 20 MB of pictures
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # as Hugging Face has it, so that viewers know one
PROVENANCE = {  # what tells images apart comes first: explorers draw a chart for each column, in this order
    "role": pa.string(),
    "retrieved_for": pa.string(),
    "source": pa.string(),
    "cluster_id": pa.int32(),
    "similarity": pa.float32(),
    "label": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "query_id": pa.string(),
    "url": pa.string(),
    "key": pa.string(),
    "image_id": pa.string(),
}


def schema(dim: int) -> pa.Schema:
    """The picture, where it comes from, and its vector."""
    return pa.schema([("image", IMAGE), *PROVENANCE.items(), ("vector", pa.list_(pa.float32(), dim))])


def sampled(total: int, size: int | None, rng: np.random.Generator) -> np.ndarray:
    """(n,) int64 ascending rows: all of them, or so many drawn evenly."""
    if size is None or size >= total:
        return np.arange(total)
    return np.sort(rng.choice(total, size=size, replace=False))


def vectors_of(refs: Iterable[ShardRef], image_ids: set[str]) -> dict[str, np.ndarray]:
    """image id → (d,) float16 unit vector, of those that are embedded. Memory: one shard, and the result."""
    found: dict[str, np.ndarray] = {}
    for ref in refs:
        if len(found) == len(image_ids):
            break
        wanted = pa.array(sorted(image_ids - found.keys()), pa.string())
        table = read_table(ref, ["image_id", "vector"])
        mine = table.filter(pc.is_in(table["image_id"], value_set=wanted))
        if len(mine):
            found |= dict(zip(mine["image_id"].to_pylist(), vector_column(mine), strict=True))
    return found


def thumbnail(data: bytes, edge_px: int = EDGE_PX) -> bytes:
    """A JPEG whose longer edge is `edge_px` at most; nothing where the bytes cannot be decoded."""
    try:
        picture = decode_rgb(data, min_short_edge_px=edge_px)
    except DecodeError:
        return b""
    picture.thumbnail((edge_px, edge_px), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def published(shards: list[ShardRef], rows: np.ndarray, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of the published dataset at these ascending places; all columns if none are named. Memory: one batch."""
    first = 0
    for ref in shards:
        last = first + ref.rows
        if np.searchsorted(rows, first) < np.searchsorted(rows, last):
            begin = first
            for batch in read_batches(ref, columns):
                here = rows[np.searchsorted(rows, begin) : np.searchsorted(rows, begin + batch.num_rows)] - begin
                yield from batch.take(pa.array(here)).to_pylist() if len(here) else ()
                begin += batch.num_rows
        first = last


def write(rows: Iterable[dict[str, Any]], vectors: dict[str, np.ndarray], file: Path) -> int:
    """Writes the Parquet file, whole or not at all, and returns its rows; images without a vector or a picture are
    left out.

    rows: as `published` gives them. Memory: ROWS_PER_GROUP rows with thumbnails, and the vectors.
    """
    written, columns = 0, schema(len(next(iter(vectors.values()))))
    part = file.with_name(f"{file.name}.part")
    try:
        with pq.ParquetWriter(part, columns, compression="zstd") as writer:
            for some in batched(shown(rows, vectors), ROWS_PER_GROUP):
                writer.write_table(pa.Table.from_pylist(some, schema=columns))
                written += len(some)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    return written


def shown(rows: Iterable[dict[str, Any]], vectors: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    """Rows of the file; those without a vector or a picture are left out."""
    for row in rows:
        vector, picture = vectors.get(row["image_id"]), thumbnail(row["image"]["bytes"])
        if vector is not None and picture:
            said = {name: row[name] for name in PROVENANCE}
            said |= {"retrieved_for": ", ".join(row["retrieved_for"] or ()), "vector": vector.astype(np.float32)}
            yield {**said, "image": {"bytes": picture, "path": None}}


def batched(rows: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    """So many rows at a time."""
    while some := list(islice(rows, size)):
        yield some
