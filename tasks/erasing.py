"""Erasing: what stands of images that were taken down in shards that are written already.

A file is written anew and takes the place of the old one in one step, and only if something in it has to change:
erasing goes on where it was interrupted, and what it has nothing to do with keeps its bytes.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lvd.infra.storage import Storage
from lvd.tasks import schemas
from lvd.tasks.takedowns import FORGOTTEN, alias_of

Change = Callable[[pa.Table], pa.Table]  # gives the very same table if nothing in it has to change
BROKEN = json.dumps({"broken": "it was taken down"})


def _nothing(value: Any) -> None:
    return None


BLANKS: dict[str, Callable[[Any], Any]] = {  # what stands for what says which image it was
    **dict.fromkeys(("url", "page_url", "alt", "domain", "label", "license", "digest", "robots"), _nothing),
    "location": lambda location: location and BROKEN,  # of a manifest: where it lies, if it is not fetched
    "error": lambda error: "",  # of a reject, as its first bytes
    "bytes": lambda data: b"",
}


def tables(storage: Storage, name: str) -> Iterator[pa.Table]:
    """A file of Arrow batches, one in memory at a time."""
    with storage.open(name) as file, pa.ipc.open_stream(file) as stream:
        for batch in stream:
            yield pa.Table.from_batches([batch])


def rewritten(storage: Storage, name: str, change: Change) -> tuple[bool, int]:
    """Whether the file had to be written anew, and the rows that it has now. Memory: two batches."""
    rows, is_changed = 0, False
    for table in tables(storage, name):
        changed = change(table)
        rows, is_changed = rows + len(changed), is_changed or changed is not table
    if not is_changed:
        return False, rows
    with storage.open(name) as file, pa.ipc.open_stream(file) as stream:
        schema = stream.schema
    with (
        storage.whole_file(name) as path,
        pa.OSFile(str(path), "wb") as file,
        pa.ipc.new_stream(file, schema) as sink,
    ):
        for table in tables(storage, name):
            for batch in change(table).combine_chunks().to_batches():
                sink.write_batch(batch)
    return True, rows


def are_aliases(column: pa.ChunkedArray) -> np.ndarray:
    """(n,) bool: the key is a hash already."""
    return pc.fill_null(pc.starts_with(column, f"{FORGOTTEN}:"), False).to_numpy(False)


def without_rows(table: pa.Table, gone: np.ndarray) -> pa.Table:
    return table.filter(pa.array(~gone)) if gone.any() else table


def without_names(table: pa.Table, gone: np.ndarray) -> pa.Table:
    """The table whose gone rows have a hash for a key, and nothing that says which image it was.

    gone: (n,) bool; a row whose key is a hash has been dealt with.
    """
    gone = gone & ~are_aliases(table["key"])
    if not gone.any():
        return table
    columns = []
    for field in table.schema:
        column, change = table[field.name], None
        if field.name == "key":
            change = alias_of
        elif field.name == "image":
            column = _emptied(column.combine_chunks(), gone)
        elif field.name in BLANKS:
            change = BLANKS[field.name]
        columns.append(column if change is None else _changed(column, gone, change))
    return pa.Table.from_arrays(columns, schema=table.schema)


def without_thumbnails(table: pa.Table, gone: np.ndarray, groups: dict[str, str]) -> pa.Table:
    """Measures whose gone rows have noise for a thumbnail, by which nobody sees or finds the picture.

    It is that of the image's group, as a hash gives it: near duplicates of one another stay so, and are none of others,
    so that no decision comes out otherwise. groups: image id → its group, for those in one.
    """
    if not gone.any():
        return table
    column, names = table["thumbnail"], table["image_id"].to_pylist()
    width = schemas.MEASURES.field("thumbnail").type.byte_width
    pairs = zip(column.to_pylist(), names, gone.tolist(), strict=True)
    values = [noise(groups.get(name, name), width) if g else old for old, name, g in pairs]
    made = pa.chunked_array([pa.array(values, column.type)])
    place = table.schema.get_field_index("thumbnail")
    return table if made.equals(column) else table.set_column(place, table.schema.field(place), made)


def noise(name: str, width: int) -> bytes:
    """So many bytes that follow from a name, and tell nothing of it."""
    return hashlib.shake_256(name.encode()).digest(width)


def _changed(column: pa.ChunkedArray | pa.Array, gone: np.ndarray, change: Callable[[Any], Any]) -> pa.Array:
    """The column with other values where rows are gone, built anew: Arrow keeps what lies below a null that it sets."""
    values = column.to_pylist()
    return pa.array([change(v) if g else v for v, g in zip(values, gone.tolist(), strict=True)], column.type)


def _emptied(images: pa.StructArray | pa.ChunkedArray, gone: np.ndarray) -> pa.Array:
    """The column `image` with no bytes where rows are gone: a decoder refuses them, as all that are no image."""
    images = images.chunk(0) if isinstance(images, pa.ChunkedArray) else images
    fields = [images.type.field(name) for name in ("bytes", "path")]
    data = _changed(images.field("bytes"), gone, lambda data: b"")
    return pa.StructArray.from_arrays([data, _changed(images.field("path"), gone, _nothing)], fields=fields)


def with_fates(table: pa.Table, gone: np.ndarray) -> pa.Table:
    """Rows of a ledger, of which the gone ones were dropped because they were taken down."""
    has_image = gone & pc.is_valid(table["image_id"]).to_numpy(False) & ~are_aliases(table["key"])
    named = without_names(table, gone)
    if not has_image.any():
        return named
    mask = pa.array(has_image)
    fate = {"state": "dropped", "stage": FORGOTTEN, "reason": FORGOTTEN, "score": None, "because_of": None}
    columns = [
        pc.if_else(mask, pa.scalar(fate[field.name], field.type), named[field.name])
        if field.name in fate
        else named[field.name]
        for field in table.schema
    ]
    return pa.Table.from_arrays(columns, schema=table.schema)
