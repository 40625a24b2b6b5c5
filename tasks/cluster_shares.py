"""Cluster shares: from every cluster that a collection reaches often enough, a uniform sample of its pool images; or
from all clusters, so that all levels of a hierarchy are balanced.

Which clusters, and how many images of each, is decided over the whole collection; the images are those with the lowest
seeded hashes of their rows, so that the sample does not depend on how the pool is cut into shards.
Cost at 10^9 images: the drawing reads the cells once for all collections, 60 bytes a row.
"""

from zlib import crc32

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel

from lvd.infra.errors import ShardError
from lvd.infra.series import Series, grouped
from lvd.infra.shards import ShardRef, read_table
from lvd.infra.writing import write_shard
from lvd.tasks.algorithms import allocation, hierarchy
from lvd.tasks.algorithms.evenness import entropy_bits
from lvd.tasks.algorithms.firsts import places_in_order
from lvd.tasks.algorithms.row_hash import row_hash

VERSION = 1
DRAWING = 0xD7  # what the rows' hashes are keyed with, beside the collection's name
ROWS_PER_GROUP = 2_000_000  # of the pool, whose cells are read in one task
SLACK = 10  # standard deviations of a group's share: so many more images are drawn than are wanted
QUOTAS = pa.schema(
    [
        ("cluster_id", pa.int32()),
        ("queries", pa.int64()),  # of the collection in it
        ("size", pa.int64()),  # pool images in it
        ("quota", pa.int64()),  # of which are drawn
        ("query_id", pa.string()),  # the query nearest to the centroid
    ]
)
DRAWN = pa.schema(
    [
        ("collection", pa.int32()),
        ("cluster_id", pa.int32()),
        ("hash", pa.uint64()),
        ("row", pa.int64()),
        ("image_id", pa.string()),
        ("similarity", pa.float32()),
    ]
)


class Drawn(BaseModel, frozen=True):
    """A collection that draws: its name, and what it draws of which cluster."""

    name: str
    quotas: ShardRef


@task(name="share-clusters", persist_result=False, cache_policy=NO_CACHE)
def share_clusters(
    homes: Series, sizes: ShardRef, target: ShardRef, *, min_queries: int, per_cluster: int, max_images: int
) -> ShardRef:
    """How many images every cluster gives that holds `min_queries` of the collection. homes: the queries' cells."""
    table = pa.concat_tables([read_table(ref, ["image_id", "cluster_id", "similarity"]) for ref in homes.shards()])
    home, closeness = table["cluster_id"].to_numpy(), table["similarity"].to_numpy()
    clusters = allocation.eligible_clusters(home, min_queries=min_queries)
    available = read_table(sizes)["size"].to_numpy()[clusters]
    quotas = allocation.cluster_sample(clusters, available, per_cluster=per_cluster, max_images=max_images)
    order = np.lexsort((np.arange(len(home)), -closeness, home))
    nearest = order[np.searchsorted(home[order], clusters)]
    with write_shard(target, QUOTAS, {"version": VERSION}) as shard:
        counts = np.searchsorted(home[order], clusters, side="right") - np.searchsorted(home[order], clusters)
        ids = table["image_id"].take(pa.array(nearest))
        columns = [pa.array(clusters.astype(np.int32)), *map(pa.array, (counts, available, quotas)), ids]
        shard.keep_table(pa.table(columns, schema=QUOTAS))
        asked = np.minimum(available, per_cluster)
        shard.notes.update(
            queries=len(home),
            clusters=len(clusters),
            taken_whole=int((available <= per_cluster).sum()),  # smaller than their share
            asked=int(asked.sum()),
            capped=int(asked.sum() - quotas.sum()),  # beyond max_images
        )
    return target.model_copy(update={"rows": shard.kept.rows})


@task(name="balance-clusters", persist_result=False, cache_policy=NO_CACHE)
def balance_clusters(sizes: ShardRef, levels: list[ShardRef], target: ShardRef, num_images: int, seed: int) -> ShardRef:
    """How many images every cluster gives so that all levels are balanced. levels: parents, from the lowest up."""
    available = read_table(sizes)["size"].to_numpy()
    parents = [read_table(ref)["parent"].to_numpy() for ref in levels]
    quotas = hierarchy.balanced_quotas(available, parents, num_images, seed=seed)
    clusters = np.flatnonzero(quotas)
    with write_shard(target, QUOTAS, {"version": VERSION}) as shard:
        given = {"cluster_id": clusters.astype(np.int32), "size": available[clusters], "quota": quotas[clusters]}
        columns = [pa.array(given[f.name]) if f.name in given else pa.nulls(len(clusters), f.type) for f in QUOTAS]
        shard.keep_table(pa.table(columns, schema=QUOTAS))
        shard.notes.update(
            queries=0,
            clusters=len(clusters),
            taken_whole=int((quotas == available)[clusters].sum()),
            asked=num_images,
            capped=num_images - int(quotas.sum()),  # the pool has no more
            entropy_before=entropies(available, parents),
            entropy_after=entropies(quotas, parents),
        )
    return target.model_copy(update={"rows": shard.kept.rows})


def entropies(counts: np.ndarray, parents: list[np.ndarray]) -> list[float]:
    """Of the cluster of an image, in bits, level by level from the lowest up."""
    found = [round(entropy_bits(counts), 4)]
    for parent in parents:
        counts = np.bincount(parent, weights=counts)
        found.append(round(entropy_bits(counts), 4))
    return found


def num_groups(cells: Series) -> int:
    return len(grouped(cells.shards(), ROWS_PER_GROUP))


@task(name="draw-from-clusters", persist_result=False, cache_policy=NO_CACHE)
def draw_group(cells: Series, collections: list[Drawn], target: ShardRef, seed: int) -> ShardRef:
    """The images of some neighbouring shards whose hashes are low enough, for every collection that draws."""
    rules = [(number, one.name, read_table(one.quotas)) for number, one in enumerate(collections)]
    with write_shard(target, DRAWN, {"version": VERSION, "seed": seed}) as shard:
        refs = cells.shards()
        for ref in refs[grouped(refs, ROWS_PER_GROUP)[target.index]]:
            table = read_table(ref, ["row", "image_id", "cluster_id", "similarity"])
            rows, cell = table["row"].to_numpy(), table["cluster_id"].to_numpy()
            for number, name, quotas in rules:
                hashes = row_hash(rows, seed, DRAWING, crc32(name.encode()))
                chosen = np.flatnonzero(hashes <= limits(quotas, cell))
                some = table.take(pa.array(chosen))
                given = {
                    "collection": pa.repeat(number, len(chosen)).cast(pa.int32()),
                    "hash": pa.array(hashes[chosen]),
                }
                columns = [given[f.name] if f.name in given else some[f.name] for f in DRAWN]
                shard.keep_table(pa.table(columns, schema=DRAWN))
    return target.model_copy(update={"rows": shard.kept.rows})


def limits(quotas: pa.Table, cell: np.ndarray) -> np.ndarray:
    """(n,) uint64: the highest hash with which an image of each of these cells may be among its cluster's quota."""
    clusters, size, quota = (quotas[name].to_numpy() for name in ("cluster_id", "size", "quota"))
    wanted = quota + SLACK * np.sqrt(quota) + SLACK * (quota > 0)
    share = np.minimum(wanted / np.maximum(size, 1), 1.0)
    bound = np.where(share >= 1, 2.0**64 - 2048, share * 2.0**64).astype(np.uint64)
    bound[share >= 1] = np.uint64(2**64 - 1)
    bound = np.append(np.where(quota > 0, bound, np.uint64(0)), np.uint64(0))
    place = np.searchsorted(clusters, cell)
    is_there = np.append(clusters, -1)[place] == cell
    return bound[np.where(is_there, place, len(clusters))]


def lowest_of_each(table: pa.Table, quotas: pa.Table) -> np.ndarray:
    """Indices of what is drawn, by cluster and row. table: of DRAWN, of one collection.

    Raises ShardError if a cluster has fewer than its quota, which happens once in 10^20 times.
    """
    clusters, quota = quotas["cluster_id"].to_numpy(), quotas["quota"].to_numpy()
    cell = table["cluster_id"].to_numpy()
    order = np.lexsort((table["hash"].to_numpy(), cell))
    chosen = order[places_in_order(cell[order]) < quota[np.searchsorted(clusters, cell[order])]]
    if len(chosen) != quota.sum():
        raise ShardError(f"retrieve: {quota.sum()} images must be drawn of the clusters, there were {len(chosen)}")
    return chosen[np.lexsort((table["row"].to_numpy()[chosen], cell[chosen]))]
