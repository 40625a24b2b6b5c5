"""Where the retrieved images come from: clusters and domains, of every collection and of all, beside the whole pool."""

from collections import Counter
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from lvd.infra.shards import ShardRef, read_table
from lvd.tasks.tallies import SIMILARITY_EDGES, most_common, value_counts

TOP_CLUSTERS, TOP_DOMAINS = 12, 12


class InCluster(BaseModel, frozen=True):
    """What of a cluster a collection retrieved."""

    cluster: int
    images: int
    size: int


class Reached(BaseModel, frozen=True):
    """Clusters and domains that a collection's retrieved images come from, those with most of them first."""

    clusters: int
    of_clusters: int  # that hold an image
    top_clusters: tuple[InCluster, ...]
    domains: int  # an image from a folder or a tar has none
    top_domains: tuple[tuple[str, int], ...]


class Rows(NamedTuple):
    """Some rows of the pool, ascending, each once: those that a selection retrieved, or all that are published."""

    name: str
    rows: np.ndarray

    @classmethod
    def of(cls, name: str, matches: list[ShardRef]) -> "Rows":
        """Memory: 8 bytes a match."""
        parts = [read_table(ref, ["row"])["row"].to_numpy() for ref in matches]
        return cls(name, np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *parts])))

    def among(self, first: int, stop: int) -> np.ndarray:
        """(m,) int64: those in [first, stop)."""
        return self.rows[np.searchsorted(self.rows, first) : np.searchsorted(self.rows, stop)]

    def has(self, rows: np.ndarray) -> np.ndarray:
        """(n,) bool: whether each row is one of them."""
        place = np.searchsorted(self.rows, rows)
        return np.append(self.rows, -1)[place] == rows


def overlaps(selections: list[Rows]) -> dict[str, dict[str, int]]:
    """Selection → selection → images that are in both; in itself, all of its own."""
    return {a.name: {b.name: int(a.has(b.rows).sum()) for b in selections} for a in selections}


class Domains:
    """Domains of every selection's images, from tables of the pool that pass by once."""

    def __init__(self, selections: list[Rows]) -> None:
        self._selections = selections
        self.counts: dict[str, Counter[str]] = {one.name: Counter() for one in selections}

    def add(self, table: pa.Table) -> None:
        """table: columns row, in a gapless ascending order, and domain."""
        if not len(table):
            return
        first = table["row"][0].as_py()
        for one in self._selections:
            found = table["domain"].take(pa.array(one.among(first, first + len(table)) - first))
            self.counts[one.name].update(value_counts(found))
            self.counts[one.name] = most_common(self.counts[one.name])


class Spread:
    """How images lie over the clusters: all of the pool, those of every selection, and those that are published.

    Cost: the small columns of the cells are read once; memory 8 bytes a cluster and selection.
    """

    def __init__(
        self, cells: list[ShardRef], published: Rows, selections: list[Rows], num_clusters: int, asked: np.ndarray
    ) -> None:
        """asked: (m,) int64, ascending: pool rows whose cluster is wanted."""
        self.counts = {one.name: np.zeros(num_clusters, dtype=np.int64) for one in selections}
        self.kept = np.zeros(num_clusters, dtype=np.int64)
        self.similarities = np.zeros((2, len(SIMILARITY_EDGES) - 1), dtype=np.int64)  # of all, of the published
        self.cluster_of = dict.fromkeys(asked.tolist(), -1)
        for ref in cells:
            table = read_table(ref, ["row", "cluster_id", "similarity"])
            row, cluster = table["row"].to_numpy(), table["cluster_id"].to_numpy()
            similarity = np.clip(table["similarity"].to_numpy(), -1, 1)
            is_kept = published.has(row)
            for one in selections:
                self.counts[one.name] += np.bincount(cluster[one.has(row)], minlength=num_clusters)
            self.kept += np.bincount(cluster[is_kept], minlength=num_clusters)
            for line, some in enumerate((similarity, similarity[is_kept])):
                self.similarities[line] += np.histogram(some, SIMILARITY_EDGES)[0]
            here = np.flatnonzero(np.isin(row, asked))
            self.cluster_of.update(zip(row[here].tolist(), cluster[here].tolist(), strict=True))

    def reached(self, name: str, sizes: np.ndarray, domains: Counter[str]) -> Reached:
        """What one selection reached. sizes: (k,) int64, of the clusters."""
        counts = self.counts[name]
        order = np.lexsort((np.arange(len(counts)), -counts))[:TOP_CLUSTERS]
        chosen = order[counts[order] > 0].tolist()
        top = [InCluster(cluster=one, images=int(counts[one]), size=int(sizes[one])) for one in chosen]
        ranked = sorted(domains.items(), key=lambda pair: (-pair[1], pair[0]))
        return Reached(
            clusters=int((counts > 0).sum()),
            of_clusters=int((sizes > 0).sum()),
            top_clusters=tuple(top),
            domains=len(domains),
            top_domains=tuple(ranked[:TOP_DOMAINS]),
        )
