"""Inverted lists: the vectors once more, in the order of their cells, so that a search reads only what it probes.

In sorted runs that fit into memory, each of some neighbouring shards: a range of cells is a range of bytes of each run.
Cost at 10^9 x 1,280: reads and writes 2.6 TB, in 10,000 runs. Memory: a run, three times.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from lvd.infra.runs import SortedRun, read_range
from lvd.infra.series import Series, grouped
from lvd.infra.shards import ShardRef, read_table
from lvd.infra.writing import write_shard
from lvd.tasks import schemas
from lvd.tasks.algorithms import cells
from lvd.tasks.models.engine import vector_column

VERSION = 2
RUN_BYTES = 256 << 20  # of vectors


def rows_per_run(dim: int) -> int:
    return max(1, RUN_BYTES // (2 * dim))


def num_runs(vectors: Series, dim: int) -> int:
    return len(grouped(vectors.shards(), rows_per_run(dim)))


@task(name="list-cells", persist_result=False, cache_policy=NO_CACHE)
def lists_run(vectors: Series, placed: Series, target: ShardRef, dim: int) -> ShardRef:
    """The vectors of some neighbouring shards in the order of their cells: one sorted run of the inverted lists.

    What is in no cell is in no list. Memory: twice the run.
    """
    refs, cell_refs = vectors.shards(), placed.shards()
    part = grouped(refs, rows_per_run(dim))[target.index]
    found = [with_cells(ref, cell_ref) for ref, cell_ref in zip(refs[part], cell_refs[part], strict=True)]
    cell, rows, values = (np.concatenate(columns) for columns in zip(*found, strict=True))
    order = np.argsort(cell, kind="stable")
    schema = schemas.lists(dim)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values[order].ravel()), dim)
    with (
        write_shard(target, schema, {"version": VERSION}) as shard,
        SortedRun(target, shard, "cluster_id") as run,
    ):
        run.keep(pa.Table.from_arrays([pa.array(cell[order]), pa.array(rows[order]), column], schema=schema))
    return target.model_copy(update={"rows": shard.kept.rows})


def with_cells(vectors: ShardRef, placed: ShardRef) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(cell (n,) int32, pool row (n,) int64, vector (n, d) float16) of what has a cell in one shard."""
    table, found = read_table(vectors, ["row", "vector"]), read_table(placed, ["row", "cluster_id"])
    rows = found["row"].to_numpy()
    place = np.searchsorted(table["row"].to_numpy() + vectors.base, rows)
    values = vector_column(table)
    return found["cluster_id"].to_numpy(), rows, values if len(place) == len(values) else values[place]


def held_lists(lists: list[ShardRef], first: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(cell, pool row, vector) of a range of cells, of one run after the other."""
    tables = [read_range(ref, first, stop) for ref in lists]
    parts = [(table["cluster_id"].to_numpy(), table["row"].to_numpy(), vector_column(table)) for table in tables]
    return tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))


def cells_of_group(sizes: ShardRef, target: ShardRef) -> tuple[int, int]:
    """The first cell and the last but one of group number `target.index`, of `target.count` that hold about as much."""
    rows = read_table(sizes)["size"].to_numpy()
    group = cells.group_of(np.arange(len(rows)), rows, max(1, -(-int(rows.sum()) // target.count)))
    here = np.flatnonzero((group == target.index) & (rows > 0))
    return (int(here[0]), int(here[-1]) + 1) if len(here) else (0, 0)


def held_cells(
    lists: list[ShardRef], sizes: ShardRef, target: ShardRef
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(cell, pool rows (n,), vectors (n, d)) of every cell of a group, by rows. Memory: the group, twice."""
    first, stop = cells_of_group(sizes, target)
    if first == stop:
        return
    cell, rows, values = held_lists(lists, first, stop)
    order = np.lexsort((rows, cell))
    ends = np.searchsorted(cell[order], np.arange(first, stop + 1))
    for number, (begin, end) in enumerate(pairwise(ends), first):
        if begin < end:
            yield number, rows[order[begin:end]], values[order[begin:end]]
