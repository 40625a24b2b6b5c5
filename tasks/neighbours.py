"""Neighbours: the pairs of descriptors above a similarity, as edges of a graph; exact, or through cells.

Exact: every shard against itself and the half of the shards after it, so that no pair is scored twice.
Through cells: k-means cells, the nearest cells of every row, and what they miss, measured: seeded queries are answered
exactly, and of half of them the number of probes follows that finds `min_recall` of their pairs; the other half, which
nobody has looked at, gives the recall that is reported. Then every group of cells is held in memory while all rows that
probe it pass by. There is no product quantisation: what it would lose is found again only by scoring the descriptors
themselves, which a group has at hand in float16 anyway.
Cost at 10^9 x 512: probes 260 GB; with 131,072 cells and 32 probes 1.3 x 10^17 operations to find the probes, and 2.5 x
10^17 to score them, of 5 x 10^20 exactly; each of 160 groups reads all descriptors (1 TB) and holds 6.4 GB of them.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, Field

from lvd.infra.errors import ShardError
from lvd.infra.series import Series, grouped
from lvd.infra.shards import ShardRef, gather_rows, read_table
from lvd.infra.writing import write_shard
from lvd.tasks import adjusting, recall, schemas
from lvd.tasks.algorithms import cells, pairs
from lvd.tasks.algorithms.allocation import draw
from lvd.tasks.algorithms.neighbours import SCALE, lowest_kept, on_device
from lvd.tasks.models.engine import read_vectors, vector_column
from lvd.tasks.recall import Recall, Search

VERSION = 2
SAMPLE_PER_CELL = 32  # rows that the cells are fitted on
QUERY_ROWS = 65_536  # that pass by at once
HELD_ROWS = 1 << 19  # of either side that are held at once, where two collections are compared
REFERENCE = 1 << 40  # what is added to a reference's number, so that it is no row of the pool
SEEDS = {"cells": 0xCE11, "queries": 0x9E4}


class CellSearch(Search, frozen=True, extra="forbid"):
    """The search for copies, which has cells of its own."""

    num_cells: int | None = Field(None, ge=1, le=1 << 24)  # null: about 4 sqrt(n)


class Cells(BaseModel, frozen=True):
    """Where the cells, and the probes of one collection's descriptors, lie."""

    centroids: ShardRef
    descriptors: Series
    probes: Series
    is_pool: bool = True

    def all(self) -> "Described":
        refs = self.descriptors.shards()
        return Described(refs, self.probes.shards(), rows_of(refs, self.is_pool))


class Described(NamedTuple):
    """Shards of descriptors, their probes, and the numbers of their rows."""

    descriptors: list[ShardRef]
    probes: list[ShardRef]
    rows: list[np.ndarray]

    def part(self, span: slice) -> "Described":
        return Described(*(each[span] for each in self))


def probes_schema(num: int) -> pa.Schema:
    return pa.schema([("cell", pa.int32()), ("probes", pa.list_(pa.int32(), num))])


TRUTH = pa.schema(
    [
        ("query", pa.int64()),
        ("similarity", pa.float32()),
        ("rank", pa.int32()),  # probes with which the pair is found, less one
    ]
)


def rows_of(refs: list[ShardRef], is_pool: bool) -> list[np.ndarray]:
    """The numbers of the descriptors of each shard: pool rows, or counted from REFERENCE on."""
    if is_pool:
        return [read_table(ref, ["row"])["row"].to_numpy() + ref.base for ref in refs]
    ends = np.cumsum([ref.rows for ref in refs])
    return [REFERENCE + np.arange(end - ref.rows, end) for ref, end in zip(refs, ends, strict=True)]


def read_described(ref: ShardRef) -> tuple[np.ndarray, np.ndarray | None]:
    """The descriptors of a shard, and their biases if they have any."""
    table = read_table(ref, adjusting.columns(ref))
    return vector_column(table), adjusting.bias_column(table)


class Biases:
    """The biases of a collection's descriptors by their numbers: 12 bytes each, or nothing if they have none."""

    def __init__(self, of: Described) -> None:
        self._numbers = self._values = None
        if of.descriptors and "bias" in adjusting.columns(of.descriptors[0]):
            self._numbers = np.concatenate(of.rows)
            self._values = np.concatenate([read_table(ref, ["bias"])["bias"].to_numpy() for ref in of.descriptors])

    def of(self, numbers: np.ndarray) -> np.ndarray | None:
        return None if self._values is None else self._values[np.searchsorted(self._numbers, numbers)]


def less_biases(
    found: pairs.Pairs, left: np.ndarray | None, right: np.ndarray | None, min_similarity: float
) -> pairs.Pairs:
    """The pairs by their similarities less the biases of both blocks, where that is above the bound; else as they are.

    No bias is below 0, so the similarities that were screened are no lower than these.
    """
    if left is None:
        return found
    similarity = adjusting.less_biases(found.similarity, left[found.left], right[found.right])
    units = np.rint(similarity.astype(np.float64) * SCALE)
    keep = units >= lowest_kept(min_similarity)
    return pairs.Pairs(found.left[keep], found.right[keep], similarity[keep])


def written(edges: pairs.Edges, target: ShardRef, **config: Any) -> ShardRef:
    """Writes the edges that stay. References are counted from 0 there."""
    left, right, similarity = edges.found()
    right = np.where(right >= REFERENCE, right - REFERENCE, right)
    with write_shard(target, schemas.EDGES, {"version": VERSION, **config}) as shard:
        shard.keep_table(pa.Table.from_arrays([pa.array(c) for c in (left, right, similarity)], schema=schemas.EDGES))
    return target.model_copy(update={"rows": shard.kept.rows})


@task(name="neighbours-exact", persist_result=False, cache_policy=NO_CACHE)
def exact_shard(
    pool: Series,
    others: Series | None,
    target: ShardRef,
    *,
    is_pool: bool,
    min_similarity: float,
    k: int,
    device: str,
) -> ShardRef:
    """The edges of shard number `target.index` to the others, or among these shards if there are none.

    is_pool: the others are of the pool as well, and no references.
    """
    shards, edges = pool.shards(), pairs.Edges(k)
    own = shards[target.index]
    (left,) = rows_of([own], is_pool=True)
    values, bias = read_described(own)
    vectors = on_device(values, device)
    asked = half_of(shards, target.index) if others is None else others.shards()
    for other, right in zip(asked, rows_of(asked, is_pool), strict=True):
        values, other_bias = read_described(other)
        for raw in pairs.pairs_above(vectors, on_device(values, device), min_similarity):
            found = less_biases(raw, bias, other_bias, min_similarity)
            a, b = left[found.left], right[found.right]
            keep = a < b if other is own else np.ones(len(a), dtype=bool)
            edges.add(a[keep], b[keep], found.similarity[keep])
    return written(edges, target, k=k, min_similarity=min_similarity)


def half_of(shards: list[ShardRef], index: int) -> list[ShardRef]:
    """The shard itself and half of the others, in a ring: over all indices every two shards meet once."""
    num = len(shards)
    steps = [d for d in range(num // 2 + 1) if 2 * d != num or index < d]
    return [shards[(index + d) % num] for d in steps]


@task(name="fit-cells", persist_result=False, cache_policy=NO_CACHE)
def fit_cells(of: Series, target: ShardRef, num_cells: int, seed: int) -> ShardRef:
    """The centroids of the cells, fitted on a seeded sample."""
    descriptors = of.shards()
    total = sum(ref.rows for ref in descriptors)
    rng = np.random.default_rng(np.random.SeedSequence([seed, SEEDS["cells"]]))
    chosen = draw(total, min(total, SAMPLE_PER_CELL * num_cells), rng=rng)
    centroids = cells.fit(vector_column(gather_rows(descriptors, chosen, ["vector"])), num_cells, seed=seed)
    with write_shard(target, schemas.centroids(centroids.shape[1]), {"version": VERSION, "seed": seed}) as shard:
        for number, centroid in enumerate(centroids):
            shard.keep({"cluster_id": number, "size": 0, "vector": centroid})
    return target.model_copy(update={"rows": shard.kept.rows})


@task(name="probe-cells", persist_result=False, cache_policy=NO_CACHE)
def probe_shard(
    descriptors: ShardRef, centroids: ShardRef, target: ShardRef, *, max_probes: int, device: str
) -> ShardRef:
    """The nearest cells of every descriptor of a shard, in its order."""
    centres = read_vectors(centroids)
    found = cells.nearest_cells(
        read_vectors(descriptors),
        centres,
        probes=min(max_probes, len(centres)),
        device=device,
    )
    schema = probes_schema(found.shape[1])
    with write_shard(target, schema, {"version": VERSION}) as shard:
        values = pa.FixedSizeListArray.from_arrays(pa.array(found.ravel()), found.shape[1])
        shard.keep_table(pa.Table.from_arrays([pa.array(np.ascontiguousarray(found[:, 0])), values], schema=schema))
    return target.model_copy(update={"rows": shard.kept.rows})


@task(name="draw-queries", persist_result=False, cache_policy=NO_CACHE)
def draw_queries(of: Cells, target: ShardRef, num: int, seed: int) -> ShardRef:
    """A seeded sample of descriptors with their probes, in random order."""
    whole = of.all()
    total = sum(map(len, whole.rows))
    rng = np.random.default_rng(np.random.SeedSequence([seed, SEEDS["queries"]]))
    chosen = rng.permutation(draw(total, min(total, num), rng=rng))
    numbers = np.concatenate(whole.rows)[chosen]
    described = gather_rows(whole.descriptors, chosen, adjusting.columns(whole.descriptors[0]))
    probes = gather_rows(whole.probes, chosen, ["probes"])["probes"]
    columns = {"row": pa.array(numbers), "vector": described["vector"], "probes": probes}
    columns |= {name: described[name] for name in described.column_names if name == "bias"}
    table = pa.table(columns)
    with write_shard(target, table.schema, {"version": VERSION, "seed": seed}) as shard:
        shard.keep_table(table)
    return target.model_copy(update={"rows": shard.kept.rows})


@task(name="true-pairs", persist_result=False, cache_policy=NO_CACHE)
def true_pairs_shard(queries: ShardRef, of: Cells, target: ShardRef, *, min_similarity: float, device: str) -> ShardRef:
    """Every pair of a query and a descriptor of one pool shard above the similarity, and when it is found."""
    ref, probes_ref = of.descriptors.shards()[target.index], of.probes.shards()[target.index]
    asked, probes = read_table(queries), read_vectors(probes_ref, "probes")
    rows, asked_rows = rows_of([ref], is_pool=True)[0], asked["row"].to_numpy()
    asked_probes = vector_column(asked, "probes")
    with write_shard(target, TRUTH, {"version": VERSION, "min_similarity": min_similarity}) as shard:
        values, bias = read_described(ref)
        left, right = (on_device(each, device) for each in (vector_column(asked), values))
        asked_bias = adjusting.bias_column(asked)
        for raw in pairs.pairs_above(left, right, min_similarity):
            found = less_biases(raw, asked_bias, bias, min_similarity)
            query, row, similarity = (values[asked_rows[found.left] != rows[found.right]] for values in found)
            rank = np.minimum(
                cells.ranks(asked_probes[query], probes[row, 0]), cells.ranks(probes[row], asked_probes[query, 0])
            )
            columns = [pa.array(query), pa.array(similarity), pa.array(rank.astype(np.int32))]
            shard.keep_table(pa.Table.from_arrays(columns, schema=TRUTH))
    return target.model_copy(update={"rows": shard.kept.rows})


def certified(
    truth: list[ShardRef],
    num_queries: int,
    search: Search,
    *,
    min_similarity: float,
    seed: int,
    probes: int | None = None,
) -> Recall:
    """What `recall.certified` says of the true pairs above a similarity."""
    table = pa.concat_tables([read_table(ref) for ref in truth])
    query, similarity, rank = (table[name].to_numpy() for name in TRUTH.names)
    is_pair = similarity >= np.float32(min_similarity)
    return recall.certified(
        query[is_pair], similarity[is_pair], rank[is_pair], num_queries, search, seed=seed, probes=probes
    )


def demand(found: Recall, search: Search, *, min_similarity: float, num_cells: int) -> None:
    """Raises ShardError with the numbers if too few of the pairs are found."""
    if found.recall < search.min_recall:
        raise ShardError(
            f"copies: the search must find {search.min_recall:.4f} of the pairs above {min_similarity}, found "
            f"{found.recall:.4f} (95 %: {found.interval[0]:.4f} to {found.interval[1]:.4f}; {found.pairs} pairs of "
            f"{found.queries} images) with {found.probes} probes of {num_cells} cells: raise copies.search.max_probes, "
            "lower num_cells, or set engine: exact"
        )


@task(name="neighbours-cells", persist_result=False, cache_policy=NO_CACHE)
def cells_group(of: Cells, target: ShardRef, *, probes: int, min_similarity: float, k: int, device: str) -> ShardRef:
    """The edges within a collection that are found at the cells of one group.

    A pair that is found from both sides counts at the lower cell.
    """
    whole, edges = of.all(), pairs.Edges(k)
    biases, group = Biases(whole), held_group(whole, of.centroids.rows, target, probes, device)
    held_bias = biases.of(group.members.rows)
    for queries in cells.batched(blocks_passing(whole, group, probes), QUERY_ROWS):
        bias = biases.of(queries.rows)
        for raw in group.pairs(queries, min_similarity):
            found = less_biases(raw, bias, held_bias, min_similarity)
            a, b = queries.rows[found.left], group.members.rows[found.right]
            own, other = queries.cell[found.left], group.members.cell[found.right]
            is_lower = (other < own) | ~cells.is_found_at_other(queries, group.members, found)
            keep = np.where(own == other, a < b, is_lower)
            edges.add(a[keep], b[keep], found.similarity[keep])
    return written(edges, target, k=k, min_similarity=min_similarity, probes=probes)


@task(name="neighbours-between", persist_result=False, cache_policy=NO_CACHE)
def cells_between(
    pool: Cells, others: Cells, target: ShardRef, *, probes: int, min_similarity: float, k: int, device: str
) -> ShardRef:
    """The edges between one span of the pool and others, of which one side probes the cell of the other.

    The span is read once for every HELD_ROWS of the others. Memory: 4 x HELD_ROWS descriptors.
    """
    whole, num_cells, edges = pool.all(), pool.centroids.rows, pairs.Edges(k)
    span, other = whole.part(spans(whole.descriptors)[target.index]), others.all()
    bias_of, other_bias_of = Biases(span), Biases(other)
    for held in cells.batched(blocks(other, probes), HELD_ROWS):
        asked = cells.Group(held, num_cells, device=device)
        other_bias = other_bias_of.of(asked.members.rows)
        for passing in cells.batched(blocks(span, probes), HELD_ROWS):
            own = cells.Group(passing, num_cells, device=device)
            bias = bias_of.of(own.members.rows)
            for raw in asked.pairs(own.members, min_similarity):
                found = less_biases(raw, bias, other_bias, min_similarity)
                edges.add(own.members.rows[found.left], asked.members.rows[found.right], found.similarity)
            for raw in own.pairs(asked.members, min_similarity):
                found = less_biases(raw, other_bias, bias, min_similarity)
                keep = ~cells.is_found_at_other(asked.members, own.members, found)  # or it was found above
                a, b = own.members.rows[found.right[keep]], asked.members.rows[found.left[keep]]
                edges.add(a, b, found.similarity[keep])
    return written(edges, target, k=k, min_similarity=min_similarity, probes=probes)


def spans(pool: list[ShardRef]) -> list[slice]:
    """Neighbouring shards of the pool that are compared with others in one task."""
    total = sum(ref.rows for ref in pool)
    return grouped(pool, max(1, -(-total // cells.num_groups(total))))


def held_group(of: Described, num_cells: int, target: ShardRef, probes: int, device: str) -> cells.Group:
    """The rows that lie in the cells of one group, of `target.count` that hold about as much."""
    own = [read_table(ref, ["cell"])["cell"].to_numpy() for ref in of.probes]
    sizes = sum(np.bincount(cell, minlength=num_cells) for cell in own)
    group = cells.group_of(np.arange(num_cells), sizes, max(1, -(-sizes.sum() // target.count)))
    is_here = group == target.index
    parts = [block(*refs, probes, is_here[cell]) for refs, cell in zip(zip(*of, strict=True), own, strict=True)]
    return cells.Group(cells.joined(parts), num_cells, device=device)


def blocks_passing(of: Described, group: cells.Group, probes: int) -> Iterator[cells.Block]:
    """The rows that probe a cell of the group, shard by shard."""
    for refs in zip(*of, strict=True):
        yield block(*refs, probes, group.is_probed(read_vectors(refs[1], "probes")[:, :probes]))


def blocks(of: Described, probes: int) -> Iterator[cells.Block]:
    """All rows, shard by shard."""
    for refs in zip(*of, strict=True):
        yield block(*refs, probes, np.ones(len(refs[2]), dtype=bool))


def block(ref: ShardRef, probes_ref: ShardRef, rows: np.ndarray, probes: int, wanted: np.ndarray) -> cells.Block:
    """The wanted rows of a shard, (n,) bool, with so many probes."""
    near = read_vectors(probes_ref, "probes")[:, :probes]
    return cells.Block(rows[wanted], read_vectors(ref)[wanted], near[wanted])
