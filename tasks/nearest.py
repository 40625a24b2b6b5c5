"""Nearest: the pool images nearest to each query, exactly or through the clusters' cells, with certified recall.

Through cells: a query probes the cells of its nearest centroids. Every group of neighbouring cells is read from the
inverted lists once, held in memory, and asked by all queries that probe it; what the groups found is put together query
by query. How many cells are probed follows from seeded queries that are answered exactly (`recall`). There is no
product quantisation: a group has the vectors at hand, so that what it finds is scored exactly.
Exactly: the same with groups of neighbouring shards, which all queries ask.
Cost at 1.4 x 10^7 queries x 7.4 x 10^8 images of 1,280 values, 100,000 cells, 32 probes: 3.6 x 10^15 operations to find
the probes, 8.6 x 10^15 to score them; of 160 groups each holds 12 GB, three times while it is put in order, and reads
the queries' vectors (36 GB); they write 20 bytes for every candidate, 32 of a query in each group that it probes.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from lvd.infra.errors import ShardError
from lvd.infra.runs import SortedRun, read_range
from lvd.infra.series import Series, first_positions, grouped
from lvd.infra.shards import ShardRef, read_table
from lvd.infra.writing import write_shard
from lvd.tasks import schemas
from lvd.tasks.algorithms import cells
from lvd.tasks.algorithms.firsts import places_in_order
from lvd.tasks.algorithms.neighbours import DATABASE_TILE, SCALE, Best, nearest, on_device
from lvd.tasks.lists import cells_of_group, held_lists, with_cells
from lvd.tasks.models.engine import read_vectors, vector_column
from lvd.tasks.recall import Recall, Search, certified

SCHEMA = schemas.CANDIDATES
VERSION = 2
QUERY_ROWS = 65_536  # queries that ask a group at once
MERGED_QUERIES = 50_000  # of one shard of candidates
TRUTH = pa.schema([*SCHEMA, ("rank", pa.int32())])  # rank: probes with which it is found, less one


def candidates(query: np.ndarray, row: np.ndarray, similarity: np.ndarray) -> pa.Table:
    arrays = [pa.array(query.astype(np.int64)), pa.array(row), pa.array(similarity)]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def listed(positions: np.ndarray, similarity: np.ndarray, rows: np.ndarray) -> pa.Table:
    """What `neighbours.nearest` found, without its padding. positions: (q,) the queries' places, ascending."""
    query, rank = np.nonzero(rows >= 0)
    return candidates(positions[query], rows[query, rank], similarity[query, rank])


@task(name="search-cells", persist_result=False, cache_policy=NO_CACHE)
def search_cells(
    lists: Series,
    sizes: ShardRef,
    queries: Series,
    probes: Series,
    target: ShardRef,
    *,
    num: int,
    depth: int,
    device: str,
) -> ShardRef:
    """The `depth` nearest images of every query in one group of cells.

    sizes: of every cell; probes: the cells of every query, the nearest first, of which `num` are probed.
    """
    first, stop = cells_of_group(sizes, target)
    with (
        write_shard(target, SCHEMA, {"version": VERSION, "probes": num, "depth": depth}) as shard,
        SortedRun(target, shard, "query") as run,
    ):
        if first < stop:
            held = held_group(lists.shards(), first, stop, sizes.rows, device)
            for block in cells.batched(passing(queries.shards(), probes.shards(), held, num), QUERY_ROWS):
                similarity, found = held.nearest(block, min(depth, len(held.members.rows)))
                run.keep(listed(block.rows, similarity, found))
    return target.model_copy(update={"rows": shard.kept.rows})


def held_group(lists: list[ShardRef], first: int, stop: int, num_cells: int, device: str) -> cells.Group:
    """The vectors of a range of cells, in memory."""
    cell, rows, values = held_lists(lists, first, stop)
    return cells.Group(cells.Block(rows, values, cell[:, None]), num_cells, device=device)


def passing(queries: list[ShardRef], probes: list[ShardRef], held: cells.Group, num: int) -> Iterator[cells.Block]:
    """The queries that probe a cell of the group, by their places."""
    for ref, probes_ref, start in zip(queries, probes, first_positions(queries)[:-1], strict=True):
        near = read_vectors(probes_ref, "probes")[:, :num]
        wanted = np.flatnonzero(held.is_probed(near))
        if len(wanted):
            yield cells.Block(start + wanted, read_vectors(ref)[wanted], near[wanted])


def spans(vectors: Series) -> list[slice]:
    """The shards of the pool in groups of neighbours that are held in memory one at a time."""
    refs = vectors.shards()
    total = sum(ref.rows for ref in refs)
    return grouped(refs, max(1, -(-total // cells.num_groups(total))))


def read_span(vectors: Series, placed: Series, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(cell, pool row, vector) of what has a cell in one span, by rows."""
    part = spans(vectors)[index]
    found = [with_cells(a, b) for a, b in zip(vectors.shards()[part], placed.shards()[part], strict=True)]
    return tuple(np.concatenate(columns) for columns in zip(*found, strict=True))


@task(name="search-all", persist_result=False, cache_policy=NO_CACHE)
def search_all(
    vectors: Series,
    placed: Series,
    queries: Series,
    target: ShardRef,
    *,
    depth: int,
    device: str,
    wanting: ShardRef | None = None,
    taken: ShardRef | None = None,
) -> ShardRef:
    """The `depth` nearest images of every query in one span of the pool, all of which is compared.

    placed: the cells, as what has none is no candidate. wanting: the queries that ask; all if left out. taken: what
    queries hold by now: an image is found only by a query that it is at least as similar to.
    """
    _, rows, values = read_span(vectors, placed, target.index)
    lowest = None if taken is None else held_similarity(taken, rows)
    asks = None if wanting is None else read_table(wanting)["query"].to_numpy()
    with (
        write_shard(target, SCHEMA, {"version": VERSION, "depth": depth}) as shard,
        SortedRun(target, shard, "query") as run,
    ):
        for positions, block in asking(queries.shards(), asks):
            similarity, found = nearest_of(block, rows, values, lowest, depth, device)
            run.keep(listed(positions, similarity, found))
    return target.model_copy(update={"rows": shard.kept.rows})


def asking(queries: list[ShardRef], asks: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(places (n,), vectors (n, d)) of the queries, of each shard those that ask; asks: their places, ascending."""
    starts = first_positions(queries)
    for ref, start, stop in zip(queries, starts, starts[1:], strict=False):
        if asks is None:
            places = np.arange(start, stop)
        else:
            places = asks[np.searchsorted(asks, start) : np.searchsorted(asks, stop)]
        if len(places):
            yield places, read_vectors(ref)[places - start]


def nearest_of(
    queries: np.ndarray, rows: np.ndarray, values: np.ndarray, lowest: np.ndarray | None, depth: int, device: str
) -> tuple[np.ndarray, np.ndarray]:
    """Similarity and row (q, depth) of the nearest. lowest: (n,) int64 of each row, in units of 1e-5."""
    import torch

    best = Best(on_device(queries, device), min(depth, max(1, len(rows))))
    for start in range(0, len(rows), DATABASE_TILE):
        part = slice(start, start + DATABASE_TILE)
        floors = None if lowest is None else torch.from_numpy(lowest[part]).to(device)
        best.offer(on_device(values[part], device), torch.from_numpy(rows[part]).to(device), floors=floors)
    return best.found()


def held_similarity(taken: ShardRef, rows: np.ndarray) -> np.ndarray:
    """(n,) int64: the similarity by which each row is held, in units of 1e-5, or less than any. rows: ascending."""
    lowest = np.full(len(rows), -2 * SCALE, dtype=np.int64)
    if len(rows):
        table = read_range(taken, int(rows[0]), int(rows[-1]) + 1)
        held, similarity = table["row"].to_numpy(), table["similarity"].to_numpy()
        place = np.searchsorted(rows, held)
        inside = (place < len(rows)) & (rows[np.minimum(place, len(rows) - 1)] == held)
        lowest[place[inside]] = np.rint(similarity[inside].astype(np.float64) * SCALE).astype(np.int64)
    return lowest


@task(name="merge-candidates", persist_result=False, cache_policy=NO_CACHE)
def merge_candidates(found: Series, target: ShardRef, *, depth: int, before: ShardRef | None = None) -> ShardRef:
    """The `depth` nearest of what all groups found, for MERGED_QUERIES queries: by query, the nearest first.

    before: the same of other groups.
    """
    first = target.index * MERGED_QUERIES
    tables = [read_range(ref, first, first + MERGED_QUERIES) for ref in found.shards()]
    tables += [read_table(before)] if before else []
    query, row, similarity = (np.concatenate([t[name].to_numpy() for t in tables]) for name in SCHEMA.names)
    order = first_of_each_query(query, row, similarity, depth)
    with write_shard(target, SCHEMA, {"version": VERSION, "depth": depth}) as shard:
        shard.keep_table(candidates(query[order], row[order], similarity[order]))
    return target.model_copy(update={"rows": shard.kept.rows})


def first_of_each_query(query: np.ndarray, row: np.ndarray, similarity: np.ndarray, depth: int) -> np.ndarray:
    """Indices of the `depth` nearest of each query, by query, then descending similarity, then row."""
    order = np.lexsort((row, -similarity, query))
    return order[places_in_order(query[order]) < depth]


@task(name="true-nearest", persist_result=False, cache_policy=NO_CACHE)
def true_nearest(
    drawn: ShardRef, vectors: Series, placed: Series, target: ShardRef, *, neighbors: int, device: str
) -> ShardRef:
    """The nearest images of some queries in one span of the pool, and with how many probes each is found.

    drawn: vectors of queries with all their probes.
    """
    cell, rows, values = read_span(vectors, placed, target.index)
    asked = read_table(drawn)
    places = nearest(vector_column(asked), [(0, values)], k=min(neighbors, max(1, len(rows))), device=device)
    similarity, found = places
    query, rank = np.nonzero(found >= 0)
    found, similarity = found[query, rank], similarity[query, rank]
    probed = cells.ranks(vector_column(asked, "probes")[query], cell[found])
    with write_shard(target, TRUTH, {"version": VERSION, "neighbors": neighbors}) as shard:
        table = candidates(query, rows[found], similarity)
        shard.keep_table(table.append_column(TRUTH.field("rank"), pa.array(probed.astype(np.int32))))
    return target.model_copy(update={"rows": shard.kept.rows})


def certified_recall(truth: list[ShardRef], num_queries: int, neighbors: int, search: Search, *, seed: int) -> Recall:
    """What `recall.certified` says of the queries' nearest images.

    truth: of all spans. Raises ShardError with the numbers if too few of them are found.
    """
    table = pa.concat_tables([read_table(ref) for ref in truth])
    query, row, similarity, rank = (table[name].to_numpy() for name in TRUTH.names)
    order = first_of_each_query(query, row, similarity, neighbors)
    found = certified(query[order], similarity[order], rank[order], num_queries, search, seed=seed)
    if found.recall < search.min_recall:
        raise ShardError(
            f"retrieve: the search must find {search.min_recall:.4f} of the {neighbors} nearest, found "
            f"{found.recall:.4f} (95 %: {found.interval[0]:.4f} to {found.interval[1]:.4f}; {found.queries} queries) "
            f"with {found.probes} probes: raise retrieve.search.max_probes, lower cluster.num_clusters, or set "
            "retrieve.search.engine: exact"
        )
    return found
