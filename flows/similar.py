"""What is like a stored image: its copies and neighbours by the vectors and hashes that the last run left of it.

The answer is that of `lvd find` for its file: what was taken down is not named. A model is needed only for an image
that was dropped before the last run made the vector that is compared. Cost: as of `lvd find`, one pass over the vectors
of all images.
"""

import numpy as np
import pyarrow.compute as pc

from lvd.flows import finding
from lvd.flows.finding import MAX_COPIES, OWN_AND_REPEATED, Looked, Picture
from lvd.flows.found import Finding
from lvd.flows.stored import Stored, split
from lvd.flows.veiling import Veil
from lvd.infra.errors import InputError
from lvd.infra.shards import ShardRef, read_schema, read_table
from lvd.tasks import adjusting
from lvd.tasks.decode import DecodeError
from lvd.tasks.finding import nearest_stored, thumbnail_of, vectors_of
from lvd.tasks.models import engine


def like_stored(root: str, image_id: str, key: str, data: bytes | None, neighbours: int) -> Finding:
    """What is found of a stored image. data: its bytes, for its hash and what else was not stored; None does without.

    Raises InputError if nothing was published, or the root is over vectors.
    """
    stored = Stored(root)
    try:
        thumbnail = thumbnail_of(data) if data else None
    except DecodeError:
        thumbnail = None
    picture = Picture(path=key, image_id=image_id, thumbnail=np.zeros(0, np.uint8) if thumbnail is None else thumbnail)
    descriptors = split(stored, "adjusted" if stored.is_adjusted else "descriptors")
    embeddings = split(stored, "embed")
    copy_query, bias = vector_of(stored, "descriptors", image_id, [*descriptors[0], *descriptors[1]], data)
    query, _ = vector_of(stored, "embed", image_id, [*embeddings[0], *embeddings[1]], data)
    floor, device = stored.thresholds.benchmark_min_similarity, stored.device
    options = {"k": MAX_COPIES, "bias": bias, "device": device}
    (in_pool,) = nearest_stored(copy_query, descriptors[0], inverted=stored.inverted(descriptors[0]), **options)
    (in_references,) = nearest_stored(copy_query, descriptors[1], min_similarity=floor, **options)
    every = [*embeddings[0], *embeddings[1]]
    (near,) = nearest_stored(query, every, k=neighbours + OWN_AND_REPEATED, device=device)
    centroids = stored.stage("centroids")[0].shards()[0]
    cluster = finding.cells_of(query, centroids, device)[0] if query.any() else None
    hashed = stored.hashed(thumbnail[None])[0] if thumbnail is not None else []
    looked = Looked(pool=in_pool, references=in_references, hashed=hashed, neighbours=near, cluster=cluster)
    hits = [*in_pool, *in_references, *hashed, *near]
    references = [hit for hit in hits if finding.is_reference(hit.directory)]
    register = finding.Register(stored, {hit.image_id for hit in hits} | {image_id}, references)
    said = picture, looked, register, stored.thresholds, neighbours
    return finding.veiled(*said, veil) if (veil := Veil(root)) else finding.finding(*said)


def vector_of(
    stored: Stored, stage: str, image_id: str, refs: list[ShardRef], data: bytes | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """The vector and bias as `stored_vector` has them; by the model where none is stored and the model can be had."""
    found, bias = stored_vector(image_id, refs)
    if found.any() or not data:
        return found, bias
    try:
        spec = stored.vectors(stage).spec
    except InputError:  # its weights are elsewhere
        return found, bias
    made = vectors_of([data], spec, device=stored.device)
    return stored.adjusted(made, [image_id]) if stage == "descriptors" else (made, None)


def stored_vector(image_id: str, refs: list[ShardRef]) -> tuple[np.ndarray, np.ndarray | None]:
    """The (1, d) vector of an image, zeros if it has none, and its (1,) bias where the stored vectors have theirs."""
    for ref in refs:
        place = pc.index(read_table(ref, ["image_id"])["image_id"], image_id).as_py()
        if place >= 0:
            row = read_table(ref, adjusting.columns(ref)).slice(place, 1)
            return engine.vector_column(row), adjusting.bias_column(row)
    width = read_schema(refs[0]).field("vector").type.list_size if refs else 0
    return np.zeros((1, width), np.float16), None
