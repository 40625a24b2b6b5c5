"""Settling: which query takes which image, where several want the same one; over a whole collection at once.

Refill takes pairs by descending similarity, each image once, each query up to N: what a query loses it makes good from
further down its list. A query whose list ends before it has N asks again, beyond what others hold by a better claim,
until it has them or no image is left that it could take. The result is that of lists without an end: images only ever
pass to queries that are more similar to them, so what was refused once stays refused.
Asking again is a search of the whole pool, 2 x q x n x d operations for the q queries that do: some thousands, unless
the queries together want more than the pool near them has. Ranks are among the images that a query looked at: those of
a further round leave out what others hold.
What a search through cells did not find is missed here too, but for the queries that ask again.
Cost: 100 bytes a candidate, in one process: 45 GB for 1.4 x 10^7 queries with 32 candidates each.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel

from lvd.infra.runs import SortedRun
from lvd.infra.shards import ShardRef, read_table
from lvd.infra.writing import write_shard
from lvd.tasks import schemas
from lvd.tasks.algorithms import allocation
from lvd.tasks.algorithms.firsts import places_in_order

VERSION = 2
TAKEN = pa.schema([*schemas.CANDIDATES, ("rank", pa.int32())])  # rank: in the query's list, from 0
WANTING = pa.schema([("query", pa.int64())])


class Round(BaseModel, frozen=True):
    """One search: its candidates, how many of each query at most, and the queries that asked; all of them if none."""

    candidates: tuple[ShardRef, ...]
    depth: int
    has_all: bool  # a query with fewer candidates than that has no more; not so where only some cells were probed
    wanting: ShardRef | None = None


class Settled(BaseModel, frozen=True):
    """What a settlement came to."""

    queries: int
    asked: int
    found: int
    images: int  # different ones
    collided: int  # of the nearest N of all queries, those that another query has among its own
    wanting: int  # queries that have fewer than N and may ask again
    ended: int  # queries that have fewer than N, as no image is left for them


class Lists(NamedTuple):
    """The candidates of all queries, (m,) each, by query, then descending similarity, then row."""

    query: np.ndarray
    row: np.ndarray
    similarity: np.ndarray
    rank: np.ndarray


def read_lists(rounds: list[Round]) -> Lists:
    """All rounds' candidates, each pair once; a round has them in this order. Memory: 60 bytes a candidate."""
    tables = [read_table(ref) for one in rounds for ref in one.candidates]
    query, row, similarity = (np.concatenate([t[n].to_numpy() for t in tables]) for n in schemas.CANDIDATES.names)
    if len(rounds) > 1:
        order = np.lexsort((row, -similarity, query))
        query, row, similarity = query[order], row[order], similarity[order]
        # What a query holds itself is found again.
        is_new = np.ones(len(query), dtype=bool)
        is_new[1:] = (query[1:] != query[:-1]) | (row[1:] != row[:-1])
        query, row, similarity = query[is_new], row[is_new], similarity[is_new]
    return Lists(query, row, similarity, places_in_order(query).astype(np.int32))


def exhausted(rounds: list[Round], num_queries: int) -> np.ndarray:
    """(q,) bool: queries that no further search would find an image for."""
    done = np.zeros(num_queries, dtype=bool)
    for one in rounds:
        if not one.has_all:
            continue
        counts = np.zeros(num_queries, dtype=np.int64)
        for ref in one.candidates:
            counts += np.bincount(read_table(ref, ["query"])["query"].to_numpy(), minlength=num_queries)
        asked = slice(None) if one.wanting is None else read_table(one.wanting)["query"].to_numpy()
        done[asked] |= counts[asked] < one.depth
    return done


@task(name="settle", persist_result=False, cache_policy=NO_CACHE)
def settle(
    rounds: list[Round], num_queries: int, taken: ShardRef, wanting: ShardRef, *, neighbors: int, policy: str
) -> Settled:
    """Writes what every query takes, by pool row, and the queries that are to ask again. All settled in one process."""
    lists = read_lists(rounds)
    chosen = allocation.settle_collisions(*lists[:3], neighbors=neighbors, policy=policy)
    has = np.bincount(lists.query[chosen], minlength=num_queries)
    lacks = (has < neighbors) & (policy == "refill")
    asks = np.flatnonzero(lacks & ~exhausted(rounds, num_queries)) if lacks.any() else np.zeros(0, dtype=np.int64)
    first = lists.row[lists.rank < neighbors]
    by_row = chosen[np.lexsort((lists.query[chosen], lists.row[chosen]))]
    with (
        write_shard(taken, TAKEN, {"version": VERSION, "neighbors": neighbors, "policy": policy}) as shard,
        SortedRun(taken, shard, "row") as run,
    ):
        run.keep(pa.Table.from_arrays([pa.array(column[by_row]) for column in lists], schema=TAKEN))
    with write_shard(wanting, WANTING, {"version": VERSION}) as shard:
        shard.keep_table(pa.Table.from_arrays([pa.array(asks)], schema=WANTING))
    return Settled(
        queries=num_queries,
        asked=num_queries * neighbors,
        found=len(chosen),
        images=len(np.unique(lists.row[chosen])),
        collided=len(first) - len(np.unique(first)),
        wanting=len(asks),
        ended=int(lacks.sum()) - len(asks),
    )
