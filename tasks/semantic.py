"""Semantic duplicates: of the images of one cluster that mean the same, one stays (SemDeDup, arXiv 2303.09540).

An optional decision after clustering. Images in different clusters are not compared: what is alike across the border of
two cells stays. Cost at 10^9 x 1,280 with 100,000 cells: reads the inverted lists once (2.6 TB), and takes up to 10^9 x
10,000 x 1,280 operations; the decision holds 60 bytes for each image that goes.
"""

from typing import Literal

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, Field

from lvd.infra.runs import SortedRun, read_range
from lvd.infra.series import Series
from lvd.infra.shards import ShardRef, read_table
from lvd.infra.writing import write_shard
from lvd.tasks.algorithms.semantic_duplicates import duplicates_within
from lvd.tasks.lists import held_cells
from lvd.tasks.models.engine import read_vectors
from lvd.tasks.pool_ids import image_ids

VERSION = 2
SCHEMA = pa.schema([("row", pa.int64()), ("because_of", pa.string()), ("similarity", pa.float32())])
ALIKE = pa.schema([("row", pa.int64()), ("kept", pa.int64()), ("similarity", pa.float32())])


class Config(BaseModel, frozen=True, extra="forbid"):
    min_similarity: float = Field(0.95, gt=0, le=1)  # raising it keeps more; no value is right for all embeddings
    keep: Literal["far", "near"] = "far"  # of those alike: the least, or the most, typical of their cluster


@task(name="find-alike", persist_result=False, cache_policy=NO_CACHE)
def alike_group(
    lists: Series, sizes: ShardRef, centroids: ShardRef, target: ShardRef, config: Config, *, device: str
) -> ShardRef:
    """The images of one group of cells that go, each with the one that stays, cell by cell."""
    middle = read_vectors(centroids)
    rows, kept, similarity = [], [], []
    for cell, numbers, values in held_cells(lists.shards(), sizes, target):
        closeness = values.astype(np.float64) @ middle[cell].astype(np.float64)  # float32 would differ between machines
        gone, because_of, alike = duplicates_within(
            values, closeness.round(5), numbers, min_similarity=config.min_similarity, keep=config.keep, device=device
        )
        rows.append(numbers[gone])
        kept.append(numbers[because_of])
        similarity.append(alike)
    with write_shard(target, ALIKE, {"version": VERSION, **config.model_dump()}) as shard:
        columns = [
            np.concatenate([np.zeros(0, dtype=f.type.to_pandas_dtype()), *parts])
            for f, parts in zip(ALIKE, (rows, kept, similarity), strict=True)
        ]
        shard.keep_table(pa.Table.from_arrays([pa.array(column) for column in columns], schema=ALIKE))
    return target.model_copy(update={"rows": shard.kept.rows})


@task(name="name-duplicates", persist_result=False, cache_policy=NO_CACHE)
def name_duplicates(alike: Series, pool: Series, target: ShardRef) -> ShardRef:
    """All images that go, by pool row, with the ids of those that stay."""
    table = pa.concat_tables([read_table(ref) for ref in alike.shards()]).sort_by("row")
    ids = image_ids(pool.shards(), table["kept"].to_numpy())
    with write_shard(target, SCHEMA, {"version": VERSION}) as shard, SortedRun(target, shard, "row") as run:
        run.keep(pa.table([table["row"], ids, table["similarity"]], schema=SCHEMA))
    return target.model_copy(update={"rows": shard.kept.rows})


@task(name="leave-out-duplicates", persist_result=False, cache_policy=NO_CACHE)
def left_shard(cells: ShardRef, duplicates: ShardRef, target: ShardRef) -> ShardRef:
    """The cells of one shard without the images that go."""
    table = read_table(cells)
    rows = table["row"].to_numpy()
    if len(rows):
        gone = read_range(duplicates, int(rows[0]), int(rows[-1]) + 1)["row"].to_numpy()
        table = table.filter(pa.array(~np.isin(rows, gone)))
    with write_shard(target, table.schema, {"version": VERSION}) as shard:
        shard.keep_table(table)
    return target.model_copy(update={"rows": shard.kept.rows})
