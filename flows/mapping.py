"""Gathers what the report shows of the clusters: where retrieved images lie among all, as a map and as charts."""

import numpy as np
from pydantic import BaseModel

from lvd.flows.collected import Cells, Embedded, Matches, Sources
from lvd.infra.shards import read_table
from lvd.tasks import charts, cluster_map, tallies
from lvd.tasks.reached import Domains, Reached, Rows, Spread


class Places(BaseModel, frozen=True):
    """Where the retrieved images come from."""

    reached: dict[str, Reached]  # by selection
    cluster_map: cluster_map.ClusterMap
    shifts: tuple[charts.Paired, ...]


def selections(matches: Matches) -> list[Rows]:
    """The rows that every selection retrieved. Memory: 8 bytes a match."""
    return [Rows.of(name, target.shards()) for name, target in matches.by_collection.items()]


def places(
    sources: Sources,
    vectors: Embedded,
    cells: Cells,
    domains: Domains,
    published: Rows,
    selected: list[Rows],
    shown: set[int],
    rng: np.random.Generator,
) -> Places:
    """The cells are read once, and the vectors of `cluster_map.MAX_SHARDS` shards and of those that hold a picture.

    published: the pool's rows that are published, retrieved or not.
    shown: pool rows that have a picture on the page.
    """
    sizes = read_table(cells.sizes.shards()[0], ["size"])["size"].to_numpy()
    refs, wanted = vectors.pool.shards(), np.array(sorted(shown), dtype=np.int64)
    found = cluster_map.drawn(refs, sources.pool.images(), published, wanted, rng)
    spread = Spread(cells.cells.shards(), published, selected, len(sizes), found.rows)
    total = sum(ref.rows for ref in refs)
    return Places(
        reached={one.name: spread.reached(one.name, sizes, domains.counts[one.name]) for one in selected},
        cluster_map=cluster_map.mapped(found, spread.cluster_of, published, selected, total),
        shifts=(
            charts.paired_clusters("Clusters, the largest first", sizes, spread.kept),
            charts.paired_similarities("Similarity to the centroid", spread.similarities, tallies.SIMILARITY_EDGES),
        ),
    )
