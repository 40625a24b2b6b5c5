"""Copies: descriptors, the graph of nearest neighbours, self-deduplication and relative deduplication.

Source: DINOv2 appendix A.3. Edges above a similarity join images into components; of each component one representative
is kept (self-deduplication). Then every component, among the images left and the references, that holds a reference
image is dropped whole (relative deduplication).
Cost at 10^9 images: descriptors read the image bytes once and write 1 kB a row; for the search see `neighbours`. The
decision streams the edges, and holds about 300 bytes an image in one process, 4 of them for the components.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, Field

from lvd.infra.shards import ShardRef, StageDir, gather_rows, pool_rows
from lvd.infra.writing import write_shard
from lvd.tasks import components, schemas
from lvd.tasks.adjusting import ScoreNormalisation, Whitening
from lvd.tasks.algorithms import graph
from lvd.tasks.components import Edges, cosines
from lvd.tasks.fates import Decision, Fates, ages, precedence
from lvd.tasks.models import Inference, engine
from lvd.tasks.neighbours import CellSearch

SCHEMA = schemas.FATES
VERSION = 3


class Config(Inference):
    """The descriptor model, and what counts as a copy. Thresholds left out are the model's own (`lvd models`).

    With whitening or score normalisation similarities are other ones, so that both thresholds must be given.
    """

    model: str = "sscd_disc_mixup"
    neighbors: int = Field(64, ge=1, le=1024)  # strongest edges kept of each image; the paper's k
    search: CellSearch = CellSearch()
    # PAPER.md section 3. Left out of dumps where they are off, as they were before there were any.
    whitening: Whitening | None = Field(None, exclude_if=lambda option: option is None)
    score_normalisation: ScoreNormalisation | None = Field(None, exclude_if=lambda option: option is None)
    min_similarity: float | None = Field(None, gt=0, le=1)  # self-deduplication; the paper's is 0.6 with SSCD
    benchmark_min_similarity: float | None = Field(None, gt=0, le=1)  # relative deduplication; the paper's is 0.45
    edge_min_similarity: float | None = Field(None, gt=0, le=1)  # edges below it are not measured
    # oldest: the largest of the earliest partition that has one, so that new images never take the place of old ones:
    # what became of an image among those that were there does not change, unless max_component cuts anew
    representative: Literal["largest_area", "first_seen", "oldest"] = "largest_area"
    max_component: int | None = Field(None, ge=2)  # images; a larger one is cut at its weakest edges. null: no bound
    min_representative_similarity: float | None = Field(None, gt=0, le=1)  # images below it are no copies of theirs
    curated_as_reference: bool = True  # pool copies of curated images go as well, as the paper's train splits do

    @property
    def is_adjusted(self) -> bool:
        return self.whitening is not None or self.score_normalisation is not None


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


class Targets(BaseModel, frozen=True):
    """Where a decision is written: the fates, what the components were, and what copied a reference."""

    fates: StageDir
    components: ShardRef
    decontaminated: ShardRef


@task(name="describe", persist_result=False, cache_policy=NO_CACHE)
def describe_shards(
    jobs: list[engine.Job], *, inference: Inference, device: str, decoders: int
) -> list[ShardRef | Exception]:
    """The copy descriptors of shards of images; what became of each."""
    return engine.vectors_of_shards(jobs, inference, device=device, decoders=decoders)


def end_copies(
    fates: Fates, images: list[ShardRef], descriptors: list[ShardRef], edges: Edges, config: Config, target: ShardRef
) -> None:
    """Self-deduplication: of every component the representative stays; the score is the similarity to it.

    Writes the components to the target.
    """

    def similarity(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        return cosines(descriptors, np.searchsorted(rows_there, rows), descriptors, np.searchsorted(rows_there, others))

    rows_there = pool_rows(descriptors)
    ranked = None if config.representative == "first_seen" else precedence(images, fates.image_id)
    found = components.grouped(
        edges,
        len(fates.image_id),
        ranked,
        similarity,
        max_size=config.max_component,
        min_similarity=config.min_representative_similarity,
        age=ages(images) if config.representative == "oldest" else None,
    )
    dropped = np.flatnonzero(fates.alive & (found.chosen != np.arange(len(found.chosen))))
    because_of = fates.image_id[found.chosen[dropped]]
    fates.end(dropped, "dropped", "copies", "copy", score=found.similarity[dropped], because_of=because_of)
    with write_shard(target, schemas.COMPONENTS, {"version": VERSION}) as shard:
        rows, size, lowest = found.summary()
        columns = [pa.array(fates.image_id[rows], pa.string()), pa.array(size), pa.array(lowest)]
        shard.keep_table(pa.Table.from_arrays(columns, schema=schemas.COMPONENTS))


def end_reference_copies(
    fates: Fates,
    descriptors: list[ShardRef],
    edges: Edges,
    reference_edges: Edges,
    references: list[Reference],
    target: ShardRef,
) -> dict[str, int]:
    """Relative deduplication: components that hold a reference image are dropped whole, and listed in the target.

    Returns the images that were dropped because of each reference collection.
    """
    num_pool, alive = len(fates.image_id), fates.alive
    shards = [ref for reference in references for ref in reference.shards]
    rows_each = [sum(ref.rows for ref in reference.shards) for reference in references]
    owner = np.repeat(np.arange(len(references)), rows_each)
    is_curated = np.array([reference.role == "curated" for reference in references], dtype=bool)
    pairs, similarity = reference_edges.all()
    into_alive = alive[pairs[:, 0]]
    pairs, similarity = pairs[into_alive], similarity[into_alive]

    def joined() -> Iterator[np.ndarray]:
        yield from (p[alive[p].all(axis=1)] for p, _ in edges)
        yield np.column_stack([pairs[:, 0], pairs[:, 1] + num_pool])

    labels = graph.connected_components(joined(), num_pool + len(owner))[:num_pool]
    dropped = np.flatnonzero(alive & np.isin(labels, labels[pairs[:, 0]]))
    cause = causes(dropped, labels, pairs, similarity, is_curated[owner])
    score = cosines(descriptors, np.searchsorted(pool_rows(descriptors), dropped), shards, cause)
    reasons = np.where(is_curated[owner[cause]], "curated_copy", "benchmark_copy").astype(object)
    names = gather_rows(shards, cause, ["image_id"])["image_id"].to_numpy() if len(cause) else np.zeros(0, dtype=object)
    fates.end(dropped, "dropped", "copies", reasons, score=score, because_of=names)
    collection, role = (
        np.array([getattr(reference, name) for reference in references], dtype=object)[owner[cause]]
        for name in ("name", "role")
    )
    is_direct = np.isin(dropped, pairs[:, 0])
    with write_shard(target, schemas.DECONTAMINATED, {"version": VERSION}) as shard:
        columns = [dropped, fates.image_id[dropped], collection, role, names, score, is_direct]
        typed = [pa.array(c, f.type) for c, f in zip(columns, schemas.DECONTAMINATED, strict=True)]
        shard.keep_table(pa.Table.from_arrays(typed, schema=schemas.DECONTAMINATED))
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
    targets: Targets,
    config: Config,
    thresholds: Thresholds,
) -> Decision:
    """The fates after both deduplications, and the number of pool images dropped for each reference collection."""
    current, within = Fates.read(fates), thresholds.min_similarity
    current.end_rejected(descriptors, "copies")  # what has no descriptor
    end_copies(current, images, descriptors, Edges(edges, within), config, targets.components)
    across, to_references = (Edges(e, thresholds.benchmark_min_similarity) for e in (edges, reference_edges))
    per_reference = end_reference_copies(
        current, descriptors, across, to_references, references, targets.decontaminated
    )
    decision = current.write(targets.fates, images, {"version": VERSION, **thresholds.model_dump()}, "copies")
    return decision.model_copy(update={"per_reference": per_reference})
