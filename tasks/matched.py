"""Matches of all selections together: every image once, with what it was retrieved for; or all that are left."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from lvd.infra.shards import ShardRef, read_table, with_large_texts
from lvd.tasks import schemas


class Matched(BaseModel, frozen=True):
    """One collection's matches; `shards` is empty if it retrieves nothing."""

    name: str
    shards: tuple[ShardRef, ...]


def retrieved(matched: list[Matched]) -> pa.Table:
    """One row per retrieved pool image, ascending: the collections that it was retrieved for, and its nearest query.

    Columns row, image_id, role, retrieved_for, query_id, similarity, cluster_id. Memory: 160 bytes a match.
    """
    names = ["row", "similarity", "query_id", "cluster_id", "image_id"]
    tables = [(index, read_table(ref, names)) for index, m in enumerate(matched) for ref in m.shards]
    empty = schemas.MATCHES.empty_table().select(names)
    table = with_large_texts(pa.concat_tables([empty, *(t for _, t in tables)]))
    collection = np.concatenate([np.zeros(0, dtype=np.int64), *(np.full(len(t), index) for index, t in tables)])
    row = table["row"].to_numpy()
    order = np.lexsort((collection, -table["similarity"].to_numpy(), row))
    best = table.take(pa.array(order[np.diff(row[order], prepend=-1) != 0]))
    pairs = np.unique(row * len(matched) + collection) if len(matched) else np.zeros(0, dtype=np.int64)
    offsets = np.searchsorted(pairs // max(1, len(matched)), np.append(best["row"].to_numpy(), np.iinfo(np.int64).max))
    known = pa.array([m.name for m in matched], type=pa.large_string())
    reasons = pa.ListArray.from_arrays(
        pa.array(offsets.astype(np.int32)), known.take(pa.array(pairs % max(1, len(matched))))
    )
    return best.append_column("retrieved_for", reasons).append_column("role", pa.repeat("retrieved", len(best)))


def survivors(left: list[ShardRef], matched: list[Matched]) -> pa.Table:
    """One row per pool image that is left, ascending; what `retrieved` says of it where it was retrieved."""
    chosen = retrieved(matched)
    tables = [read_table(ref, ["row", "image_id"]) for ref in left]
    rows = [pa.array(table["row"].to_numpy() + ref.base) for table, ref in zip(tables, left, strict=True)]
    parts = [table.set_column(0, "row", row) for table, row in zip(tables, rows, strict=True)]
    every = with_large_texts(pa.concat_tables(parts))
    others = every.filter(pc.invert(pc.is_in(every["row"], chosen["row"].combine_chunks())))
    none = pa.array([[]] * len(others), type=pa.list_(pa.large_string()))
    others = others.append_column("role", pa.repeat("survivor", len(others))).append_column("retrieved_for", none)
    return pa.concat_tables([chosen, others], promote_options="default").sort_by("row")
