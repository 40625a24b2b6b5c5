"""Finding: which stored images are like one that is asked for, by their vectors and by their hashes.

Nothing is written. All questions are answered in one pass over what is stored. Cost at 10^9 images, one image asked
for: reads 1 kB of descriptor, 2.6 kB of embedding and 50 bytes of hash a row; memory: one shard of vectors, and the
images asked for, one batch at a time.
"""

from collections.abc import Iterable, Iterator
from itertools import islice, pairwise

import numpy as np
from pydantic import BaseModel

from lvd.infra.shards import ShardRef, gather_rows, read_table
from lvd.tasks import adjusting, models
from lvd.tasks.algorithms import neighbours, pca_hash
from lvd.tasks.algorithms.cells import nearest_cells
from lvd.tasks.decode import MAX_PIXELS, DecodeError
from lvd.tasks.models import engine
from lvd.tasks.near_duplicates import bytes_of, pixels_of
from lvd.tasks.screen import luminance, thumbnail

BIASED_TIMES = 16  # so many times the vectors asked for are looked at before biases are taken off


class Hit(BaseModel, frozen=True):
    """A stored image that is like one that was asked for."""

    directory: str  # of the vectors or hashes that it was found in
    row: int  # as its shard has it
    image_id: str
    similarity: float  # of the vectors, or of the thumbnails


def thumbnail_of(data: bytes) -> np.ndarray:
    """(1024,) uint8: the thumbnail that screening measures. Raises DecodeError."""
    return np.frombuffer(thumbnail(luminance(data, MAX_PIXELS)), dtype=np.uint8)


def vectors_of(images: Iterable[bytes], inference: models.Inference, *, device: str) -> np.ndarray:
    """(n, d) float16 unit rows of encoded images; zeros where the model cannot give a vector.

    inference: as the stored vectors were made; no batch is padded, and a processor computes in float32, so the last
    bits may differ from theirs.
    """
    device = models.device_for(inference, device)
    if device == "cpu":
        inference = inference.model_copy(update={"precision": "float32"})
    model, remaining, parts = (
        models.load(engine.spec_of(inference), engine.placement(inference, device)),
        iter(images),
        [],
    )
    batch_size = models.usable_batch_size(inference, inference.batch_size)
    while batch := list(islice(remaining, batch_size)):
        vectors = np.zeros((len(batch), model.dim), dtype=np.float16)
        inputs = {row: pixels for row, data in enumerate(batch) if (pixels := _prepared(data, model)) is not None}
        if inputs:
            given = model.embed(np.stack(list(inputs.values())))
            vectors[list(inputs)] = np.where(np.isfinite(given).all(axis=1, keepdims=True), given, 0)
        parts.append(vectors)
    return np.concatenate([np.zeros((0, model.dim), dtype=np.float16), *parts])


def _prepared(data: bytes, model: models.ImageModel) -> np.ndarray | None:
    """What the model takes, or None for an image that cannot be decoded at the size that it wants."""
    try:
        return engine.pixels_of(data, model)
    except DecodeError:
        return None


class Inverted(BaseModel, frozen=True):
    """The cells that stored vectors lie in: only rows of the cells that a query probes are read and compared."""

    centroids: ShardRef
    cells: list[ShardRef]  # one for each shard of vectors
    probes: int  # cells of each query, as many as the search for copies was certified for


def nearest_stored(
    queries: np.ndarray,
    refs: list[ShardRef],
    *,
    k: int,
    min_similarity: float = -1.0,
    inverted: Inverted | None = None,
    bias: np.ndarray | None = None,
    device: str = "cpu",
) -> list[list[Hit]]:
    """The k most similar stored vectors of each query, the most similar first; a query of zeros has none.

    queries: (q, d) float16, unit rows or zeros. refs: shards of vectors; each is read once for all queries.
    inverted: without it every vector is compared; with it, those that are less alike than copies can be missed.
    bias: (q,) of the queries, where the stored vectors have theirs: the k are then chosen by similarities less the
    biases, among the BIASED_TIMES x k that are most similar without.
    """
    hits: list[list[Hit]] = [[] for _ in queries]
    asked = np.flatnonzero(queries.any(axis=1))
    total = sum(ref.rows for ref in refs)
    if not len(asked) or not total:
        return hits
    places = _probed(queries[asked], refs, inverted, device)
    similarity, found = neighbours.nearest(
        queries[asked],
        _vectors_at(refs, places),
        k=min(k if bias is None else BIASED_TIMES * k, total),
        min_similarity=min_similarity,
        device=device,
    )
    query, rank = np.nonzero(found >= 0)
    at, which = np.unique(np.concatenate([*places, [-1]])[found[query, rank]], return_inverse=True)
    score = similarity[query, rank]
    if bias is not None:
        own = gather_rows(refs, at, ["bias"])["bias"].to_numpy()
        score = adjusting.less_biases(score, bias[asked[query]], own[which])
        order = np.lexsort((rank, -score, query))
        order = order[score[order] >= np.float32(min_similarity)]
        first = np.searchsorted(query[order], query[order])
        order = order[np.arange(len(order)) - first < k]
        query, which, score = query[order], which[order], score[order]
    images = gather_rows(refs, at, ["row", "image_id"]).to_pylist()
    starts = np.cumsum([0, *(ref.rows for ref in refs)])
    owners = [refs[i].directory for i in np.searchsorted(starts, at, side="right") - 1]
    for number, place, similar in zip(asked[query], which, score, strict=True):
        hits[number].append(Hit(directory=owners[place], similarity=round(float(similar), 5), **images[place]))
    return hits


def _probed(queries: np.ndarray, refs: list[ShardRef], inverted: Inverted | None, device: str) -> list[np.ndarray]:
    """The rows of each shard that are compared, counted over all shards."""
    starts = np.cumsum([0, *(ref.rows for ref in refs)])
    if inverted is None:
        return [np.arange(start, end) for start, end in pairwise(starts)]
    centroids = engine.read_vectors(inverted.centroids)
    near = nearest_cells(queries, centroids, probes=min(inverted.probes, len(centroids)), device=device)
    is_probed = np.zeros(len(centroids), dtype=bool)
    is_probed[near] = True
    return [
        start + np.flatnonzero(is_probed[read_table(ref, ["cell"])["cell"].to_numpy()])
        for start, ref in zip(starts, inverted.cells, strict=False)
    ]


def _vectors_at(refs: list[ShardRef], places: list[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """(how many came before, vectors) of each shard that has some."""
    before = np.cumsum([0, *map(len, places)])
    starts = np.cumsum([0, *(ref.rows for ref in refs)])
    for ref, start, first, mine in zip(refs, starts, before, places, strict=False):
        if len(mine):
            vectors = engine.read_vectors(ref)
            yield int(first), vectors if len(mine) == len(vectors) else vectors[mine - start]


def near_hashes(
    thumbnails: np.ndarray,
    hashes: list[ShardRef],
    measured: list[ShardRef],
    fit: pca_hash.PcaHash,
    *,
    max_distance: int,
    min_similarity: float,
) -> list[list[Hit]]:
    """The stored images whose PCA hash is near and whose thumbnail confirms it, of each query, the most similar first.

    thumbnails: (q, 1024) uint8 of the queries. measured: the shards that the hashes were computed from, in their order;
    each shard of hashes is read once for all queries, and thumbnails only of those that are near.
    """
    hits: list[list[Hit]] = [[] for _ in thumbnails]
    codes = as_integers(pca_hash.codes(fit, thumbnails))
    for ref, measure in zip(hashes, measured, strict=True):
        table = read_table(ref, ["row", "image_id", "pca_hash"])
        stored = as_integers(bytes_of(table["pca_hash"]))
        for query, place, similarity in confirmed(codes, stored, thumbnails, measure, max_distance, min_similarity):
            row = table.slice(place, 1).select(["row", "image_id"]).to_pylist()[0]
            hits[query].append(Hit(directory=ref.directory, similarity=round(similarity, 5), **row))
    return [sorted(found, key=lambda hit: -hit.similarity) for found in hits]


def as_integers(codes: np.ndarray) -> np.ndarray:
    """(n,) uint64 of (n, 8) uint8 codes."""
    return np.ascontiguousarray(codes).view(np.uint64).ravel()


def confirmed(
    codes: np.ndarray,
    stored: np.ndarray,
    thumbnails: np.ndarray,
    measure: ShardRef,
    max_distance: int,
    min_similarity: float,
) -> Iterator[tuple[int, int, float]]:
    """(query, place in the shard, similarity of the thumbnails) of the near pairs that are no chance."""
    for query, code in enumerate(codes):
        near = np.flatnonzero(np.bitwise_count(stored ^ code) <= max_distance)
        if not len(near):
            continue
        pixels = pixels_of(gather_rows([measure], near, ["thumbnail"]))
        similarity = pca_hash.thumbnail_similarity(np.broadcast_to(thumbnails[query], pixels.shape), pixels)
        for place in np.flatnonzero(similarity >= np.float32(min_similarity)):
            yield query, int(near[place]), float(similarity[place])
