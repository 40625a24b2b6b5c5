"""Copies: descriptors, the graph of nearest neighbours, self-deduplication and relative deduplication.

Source: DINOv2 appendix A.3. Edges above a similarity join images into components; of each component one representative
is kept (self-deduplication). Then every component, among the images left and the references, that holds a reference
image is dropped whole (relative deduplication).
Cost at 10^9 images: descriptors read the image bytes once and write 1 kB a row. The neighbour search is exact: each
shard against every other, 10^18 products of 512 values; the decision holds about 300 bytes an image in one process.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, Field

from lvd.infra.shards import ShardRef, StageDir, gather_rows, pool_rows, read_table, write_shard
from lvd.tasks import schemas
from lvd.tasks.algorithms import graph, neighbours
from lvd.tasks.fates import Decision, Fates, sizes
from lvd.tasks.models import ModelSpec, engine

SCHEMA = schemas.EDGES
VERSION = 1
PAIR_BLOCK = 4096


class Config(ModelSpec):
    """The descriptor model, and what counts as a copy. Thresholds left out are the model's own (`lvd models`)."""

    model: str = "sscd_disc_mixup"
    batch_size: int = Field(32, ge=1, le=4096)
    neighbors: int = Field(64, ge=1, le=1024)  # of each image; the paper's k
    min_similarity: float | None = Field(None, gt=0, le=1)  # self-deduplication; the paper's is 0.6 with SSCD
    benchmark_min_similarity: float | None = Field(None, gt=0, le=1)  # relative deduplication; the paper's is 0.45
    edge_min_similarity: float | None = Field(None, gt=0, le=1)  # edges below it are not measured
    representative: Literal["largest_area", "first_seen"] = "largest_area"
    curated_as_reference: bool = True  # pool copies of curated images go as well, as the paper's train splits do


class Thresholds(BaseModel, frozen=True):
    """What the configuration and the model's own thresholds come to."""

    min_similarity: float
    benchmark_min_similarity: float
    edge_min_similarity: float


class Reference(BaseModel, frozen=True):
    """One collection that the pool must not copy: its descriptors, and whether it is a benchmark or curated."""

    name: str
    role: Literal["benchmark", "curated"]
    shards: tuple[ShardRef, ...]


@task(name="describe", persist_result=False, cache_policy=NO_CACHE)
def describe_shard(
    images: ShardRef, fates: ShardRef | None, target: ShardRef, config: Config, device: str, donors: list[StageDir]
) -> ShardRef:
    """The copy descriptors of one shard of images."""
    return engine.vectors_of_shard(
        images, fates, target, engine.spec_of(config), batch_size=config.batch_size, device=device, donors=donors
    )


@task(name="neighbours", persist_result=False, cache_policy=NO_CACHE)
def neighbours_shard(
    queries: ShardRef,
    database: list[ShardRef],
    target: ShardRef,
    *,
    min_similarity: float,
    k: int,
    same: bool,
    device: str,
) -> ShardRef:
    """The edges from one shard of descriptors to its nearest neighbours in `database` above a similarity.

    same: the database is the pool itself; an image is then not its own neighbour, and `right` is a pool row. Otherwise
    `right` counts the reference descriptors from 0, in the order of `database`.
    """
    table = read_table(queries)
    left = table["row"].to_numpy() + queries.base
    right = pool_rows(database) if same else np.arange(sum(ref.rows for ref in database))
    with write_shard(target, SCHEMA, {"version": VERSION, "k": k, "min_similarity": min_similarity}) as shard:
        if len(left) and len(right):
            exclude = np.searchsorted(right, left) if same else None
            similarity, found = neighbours.nearest(
                engine.vector_column(table),
                engine.vector_blocks(database),
                k=min(k, len(right)),
                min_similarity=min_similarity,
                exclude=exclude,
                device=device,
            )
            query, rank = np.nonzero(found >= 0)
            edges = [left[query], right[found[query, rank]], similarity[query, rank]]
            shard.keep_table(pa.Table.from_arrays([pa.array(c) for c in edges], schema=SCHEMA))
    return target.model_copy(update={"rows": shard.kept.rows})


def edges_above(refs: list[ShardRef], min_similarity: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """((m, 2) int64 pairs, (m,) float32 similarities) of one shard of edges after another."""
    for ref in refs:
        table = read_table(ref)
        keep = table["similarity"].to_numpy() >= np.float32(min_similarity)
        yield (
            np.column_stack([table["left"].to_numpy(), table["right"].to_numpy()])[keep],
            table["similarity"].to_numpy()[keep],
        )


def cosines(left: list[ShardRef], left_at: np.ndarray, right: list[ShardRef], right_at: np.ndarray) -> np.ndarray:
    """(m,) float32 similarity of pairs of descriptors at positions of two datasets, in blocks.

    By a float64 product and rounded to 5 decimals, as `neighbours.nearest` does it: the same as of the pair's edge.
    """
    parts = [np.zeros(0, dtype=np.float32)]
    for start in range(0, len(left_at), PAIR_BLOCK):
        block = slice(start, start + PAIR_BLOCK)
        a, b = (
            engine.vector_column(gather_rows(refs, at[block], ["vector"])).astype(np.float64)
            for refs, at in ((left, left_at), (right, right_at))
        )
        parts.append(np.einsum("nd,nd->n", a, b).round(5).astype(np.float32))
    return np.concatenate(parts)


def end_copies(
    fates: Fates,
    images: list[ShardRef],
    descriptors: list[ShardRef],
    edges: list[ShardRef],
    min_similarity: float,
    config: Config,
) -> None:
    """Self-deduplication: of every component the representative stays; the score is the similarity to it."""
    labels = graph.connected_components((pairs for pairs, _ in edges_above(edges, min_similarity)), len(fates.image_id))
    if config.representative == "first_seen":
        chosen = graph.first_seen(labels)
    else:
        chosen = graph.representatives(labels, *sizes(images), fates.image_id.astype("S32"))
    dropped = np.flatnonzero(fates.alive & (chosen != np.arange(len(chosen))))
    rows = pool_rows(descriptors)
    similarity = cosines(
        descriptors, np.searchsorted(rows, dropped), descriptors, np.searchsorted(rows, chosen[dropped])
    )
    fates.end(dropped, "dropped", "copies", "copy", score=similarity, because_of=fates.image_id[chosen[dropped]])


def end_reference_copies(
    fates: Fates,
    descriptors: list[ShardRef],
    edges: list[ShardRef],
    reference_edges: list[ShardRef],
    references: list[Reference],
    min_similarity: float,
) -> dict[str, int]:
    """Relative deduplication: components that hold a reference image are dropped whole.

    Returns the images that were dropped because of each reference collection.
    """
    num_pool, alive = len(fates.image_id), fates.alive
    shards = [ref for reference in references for ref in reference.shards]
    rows_each = [sum(ref.rows for ref in reference.shards) for reference in references]
    owner = np.repeat(np.arange(len(references)), rows_each)
    is_curated = np.array([reference.role == "curated" for reference in references], dtype=bool)

    found = list(edges_above(reference_edges, min_similarity))
    pairs = np.concatenate([np.zeros((0, 2), dtype=np.int64), *(p for p, _ in found)])
    similarity = np.concatenate([np.zeros(0, dtype=np.float32), *(s for _, s in found)])
    into_alive = alive[pairs[:, 0]]
    pairs, similarity = pairs[into_alive], similarity[into_alive]

    def joined() -> Iterator[np.ndarray]:
        yield from (p[alive[p].all(axis=1)] for p, _ in edges_above(edges, min_similarity))
        yield np.column_stack([pairs[:, 0], pairs[:, 1] + num_pool])

    labels = graph.connected_components(joined(), num_pool + len(owner))[:num_pool]
    dropped = np.flatnonzero(alive & np.isin(labels, labels[pairs[:, 0]]))
    cause = causes(dropped, labels, pairs, similarity, is_curated[owner])
    score = cosines(descriptors, np.searchsorted(pool_rows(descriptors), dropped), shards, cause)
    reasons = np.where(is_curated[owner[cause]], "curated_copy", "benchmark_copy").astype(object)
    names = gather_rows(shards, cause, ["image_id"])["image_id"].to_numpy() if len(cause) else None
    fates.end(dropped, "dropped", "copies", reasons, score=score, because_of=names)
    counts = np.bincount(owner[cause], minlength=len(references))
    return {reference.name: int(count) for reference, count in zip(references, counts, strict=True)}


def causes(
    dropped: np.ndarray, labels: np.ndarray, pairs: np.ndarray, similarity: np.ndarray, is_curated: np.ndarray
) -> np.ndarray:
    """(m,) int64: the reference image that is named for each dropped pool image.

    The most similar benchmark image, else curated image, that it has an edge to; for an image that was joined through
    others, the one with the strongest edge into its component.

    pairs: (e, 2) of pool row and reference; is_curated: (references,) bool.
    """
    order = np.lexsort((pairs[:, 1], -similarity, is_curated[pairs[:, 1]]))  # the best pair first
    rows, references = pairs[order[::-1]].T.tolist() if len(pairs) else ([], [])  # the best one is entered last
    of_row = dict(zip(rows, references, strict=True))
    of_label = dict(zip(labels[rows].tolist(), references, strict=True))
    named = (
        of_row.get(row, of_label[label]) for row, label in zip(dropped.tolist(), labels[dropped].tolist(), strict=True)
    )
    return np.fromiter(named, dtype=np.int64, count=len(dropped))


@task(name="decide-copies", persist_result=False, cache_policy=NO_CACHE)
def decide(
    images: list[ShardRef],
    fates: list[ShardRef],
    descriptors: list[ShardRef],
    edges: list[ShardRef],
    reference_edges: list[ShardRef],
    references: list[Reference],
    target: StageDir,
    config: Config,
    thresholds: Thresholds,
) -> Decision:
    """The fates after both deduplications, and the number of pool images dropped for each reference collection."""
    current = Fates.read(fates)
    current.end_rejected(descriptors, "copies")  # what has no descriptor
    end_copies(current, images, descriptors, edges, thresholds.min_similarity, config)
    per_reference = end_reference_copies(
        current, descriptors, edges, reference_edges, references, thresholds.benchmark_min_similarity
    )
    decision = current.write(target, images, {"version": VERSION, **thresholds.model_dump()}, "copies")
    return decision.model_copy(update={"per_reference": per_reference})
