"""The map of the clusters: a sample of the pool's vectors on a plane, those of published images and others."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from lvd.infra.shards import ShardRef, read_table
from lvd.tasks.algorithms.projection import on_a_plane
from lvd.tasks.models.engine import vector_column
from lvd.tasks.reached import Rows

EACH = 800  # points of images that are published, and of others
MAX_SHARDS = 48  # that points are drawn from
GRID = 1000  # of the coordinates
TABLE_ROWS = 20


class Dot(BaseModel, frozen=True):
    """One image on the map."""

    image_id: str
    x: int  # 0 to GRID
    y: int
    cluster: int  # -1: none
    is_published: bool
    selections: tuple[int, ...]  # that retrieved it, as numbers of the map's names


class InPart(BaseModel, frozen=True):
    """One cluster on the map: how many of its points are there, and of them published."""

    cluster: int
    dots: int
    published: int


class ClusterMap(BaseModel, frozen=True):
    """Points in the order of the pool. The share of published ones is not that of the pool: see EACH."""

    names: tuple[str, ...]  # of the selections
    dots: tuple[Dot, ...]
    total: int  # vectors of the pool
    published: int  # of them

    def lines(self) -> Iterator[list]:
        """What the script reads of every point: id, x, y, cluster, whether it is published, selections."""
        for dot in self.dots:
            yield [dot.image_id, dot.x, dot.y, dot.cluster, int(dot.is_published), list(dot.selections)]

    def path(self, *, published: bool) -> str:
        """An SVG path with a dot for each of the points that are published, or of the others."""
        return "".join(f"M{dot.x} {dot.y}h0" for dot in self.dots if dot.is_published == published)

    def table(self) -> list[InPart]:
        """The clusters with most points."""
        found: dict[int, list[int]] = {}
        for dot in self.dots:
            found.setdefault(dot.cluster, []).append(dot.is_published)
        ranked = sorted(found.items(), key=lambda pair: (-len(pair[1]), pair[0]))[:TABLE_ROWS]
        return [InPart(cluster=c, dots=len(kept), published=sum(kept)) for c, kept in ranked]


class Drawn(BaseModel, frozen=True, arbitrary_types_allowed=True):
    """Vectors that were drawn, by ascending pool row."""

    rows: np.ndarray  # (n,) int64
    image_ids: list[str]
    vectors: np.ndarray  # (n, d) float16


def drawn(
    vectors: list[ShardRef],
    images: list[ShardRef],
    published: Rows,
    wanted: np.ndarray,
    rng: np.random.Generator,
) -> Drawn:
    """At most EACH vectors of images that are published, as many of others, and those of the wanted rows.

    vectors: of the pool, a shard for each shard of its images; `base` makes their rows rows of the pool. wanted: (m,)
    int64, ascending pool rows, such as have a picture already; those without a vector are left out. All others are
    uniform in MAX_SHARDS shards. Memory: one shard of vectors, and those drawn.
    """
    filled = [number for number, ref in enumerate(vectors) if ref.rows]
    open_ = set(rng.choice(filled, min(MAX_SHARDS, len(filled)), replace=False).tolist()) if filled else set()
    held: dict[bool, list[_Candidate]] = {True: [], False: []}
    asked: list[_Candidate] = []
    for number, (ref, image_ref) in enumerate(zip(vectors, images, strict=True)):
        first = image_ref.base + image_ref.first_row
        is_asked = np.searchsorted(wanted, first + image_ref.rows) > np.searchsorted(wanted, first)
        if not ref.rows or not (number in open_ or is_asked):
            continue
        table = read_table(ref, ["row", "image_id", "vector"])
        rows, values = table["row"].to_numpy() + ref.base, vector_column(table)
        priority = rng.random(len(rows))
        is_wanted, is_kept = np.isin(rows, wanted), published.has(rows)

        def at(places: np.ndarray, table=table, rows=rows, values=values, priority=priority) -> list[_Candidate]:
            ids = table["image_id"].take(pa.array(places)).to_pylist()
            picked = (priority[places].tolist(), rows[places].tolist(), ids, values[places])
            return [_Candidate(*one) for one in zip(*picked, strict=True)]

        asked += at(np.flatnonzero(is_wanted))
        for kept in (True, False) if number in open_ else ():
            here = np.flatnonzero((is_kept == kept) & ~is_wanted)
            best = here[np.argsort(priority[here], kind="stable")[:EACH]]
            held[kept] = sorted([*held[kept], *at(best)], key=lambda one: one.priority)[:EACH]
    found = sorted([*asked, *held[True], *held[False]], key=lambda one: one.row)
    return Drawn(
        rows=np.array([one.row for one in found], dtype=np.int64),
        image_ids=[one.image_id for one in found],
        vectors=np.array([one.vector for one in found], dtype=np.float16).reshape(len(found), -1 if found else 0),
    )


class _Candidate(NamedTuple):
    priority: float
    row: int
    image_id: str
    vector: np.ndarray


def mapped(found: Drawn, cluster_of: dict[int, int], published: Rows, selections: list[Rows], total: int) -> ClusterMap:
    """The map of the drawn vectors.

    cluster_of: pool row → cluster, -1 for none. total: vectors of the pool.
    """
    places = np.round(on_a_plane(found.vectors) * GRID).astype(int).tolist() if len(found.rows) else []
    chosen = [one.has(found.rows) for one in selections]
    is_published = published.has(found.rows).tolist()
    dots = tuple(
        Dot(
            image_id=found.image_ids[n],
            x=places[n][0],
            y=places[n][1],
            cluster=cluster_of.get(row, -1),
            is_published=is_published[n],
            selections=tuple(number for number, has in enumerate(chosen) if has[n]),
        )
        for n, row in enumerate(found.rows.tolist())
    )
    names = tuple(one.name for one in selections)
    return ClusterMap(names=names, dots=dots, total=total, published=len(published.rows))
