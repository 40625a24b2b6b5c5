"""Fingerprint: PCA hashes, and the copies that they and the bytes themselves give away.

No image is decoded here: the hash is computed from the thumbnails that screening measured. The PCA is fitted once on a
seeded sample of the pool, and stays: what comes later hashes alike, and a new partition is hashed without the old ones.
Cost at 10^9 images: reads 1.1 kB and writes 50 bytes a row, 30 us of one core; the decision is one process that holds
about 300 bytes an image and 600 MB, and reads the thumbnails of what may be copies once for every 100,000 such pairs.
"""

from typing import Any, Literal

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, Field

from lvd.infra.shards import ShardRef, StageDir, pool_rows, read_column, read_table
from lvd.infra.writing import write_shard
from lvd.tasks import schemas
from lvd.tasks.algorithms import graph, pca_hash
from lvd.tasks.fates import Decision, Fates, ages, precedence
from lvd.tasks.hash_fit import read_fit
from lvd.tasks.near_duplicates import HELD, bytes_of, near_pairs, pixels_of, similarities, thumbnails

SCHEMA = schemas.HASHES
VERSION = 2


class Config(BaseModel, frozen=True, extra="forbid"):
    sample_size: int = Field(20_000, ge=1)  # thumbnails that the PCA is fitted on
    max_distance: int = Field(6, ge=0, le=64)  # of 64 bits; more finds more copies and costs more pairs to confirm
    min_thumbnail_similarity: float = Field(0.985, ge=-1, le=1)  # correlation that confirms a pair
    # oldest: as in `copies`. Left out of dumps where it is as it was before there was a choice
    representative: Literal["largest_area", "oldest"] = Field(
        "largest_area", exclude_if=lambda chosen: chosen == "largest_area"
    )
    fit: str | None = None  # URI of a fit.npz, e.g. of another root, so that both hash alike; null: the root's own

    def rules(self) -> dict[str, Any]:
        """What decides which images are copies, once they are hashed."""
        return self.model_dump(mode="json", exclude={"sample_size", "fit"})


def as_image_hash(code: bytes) -> Any:
    """The 8 stored bytes as an `imagehash.ImageHash`; the difference of two is their Hamming distance."""
    from imagehash import ImageHash

    return ImageHash(np.unpackbits(np.frombuffer(code, dtype=np.uint8)).reshape(8, 8).astype(bool))


def end_exact(fates: Fates) -> None:
    """Of images with equal bytes the first one stays."""
    alive = np.flatnonzero(fates.alive)
    _, first, inverse = np.unique(fates.image_id[alive].astype("S32"), return_index=True, return_inverse=True)
    repeated = alive[first[inverse] != np.arange(len(alive))]
    fates.end(repeated, "dropped", "fingerprint", "exact_duplicate", score=1.0, because_of=fates.image_id[repeated])


def end_near(
    fates: Fates, images: list[ShardRef], measures: list[ShardRef], hashes: list[ShardRef], config: Config
) -> None:
    """Of each group of confirmed near duplicates the representative stays."""
    measured = pool_rows(measures)
    positions = np.flatnonzero(fates.alive[measured])
    codes = bytes_of(read_column(hashes, "pca_hash"))[positions]
    rows = measured[positions]
    age = ages(images)[rows] if config.representative == "oldest" else None
    pairs = near_pairs(
        measures,
        codes,
        positions,
        max_distance=config.max_distance,
        min_similarity=config.min_thumbnail_similarity,
        age=age,
    )
    ranked = [values[rows] for values in precedence(images, fates.image_id)]
    if age is None:
        chosen = graph.representatives(graph.connected_components(pairs, len(rows)), *ranked)
    else:
        chosen = graph.eldest(pairs, age, *ranked)
    dropped = np.flatnonzero(chosen != np.arange(len(rows)))
    for start in range(0, len(dropped), HELD // 2):
        block = dropped[start : start + HELD // 2]
        nodes, pairs = np.unique(np.column_stack([block, chosen[block]]), return_inverse=True)
        similarity = similarities(thumbnails(measures, positions[nodes]), pairs.reshape(-1, 2))
        cause = fates.image_id[rows[chosen[block]]]
        fates.end(rows[block], "dropped", "fingerprint", "near_duplicate", score=similarity, because_of=cause)


@task(name="fingerprint", persist_result=False, cache_policy=NO_CACHE)
def hash_shard(measures: ShardRef, target: ShardRef, fit_uri: str) -> ShardRef:
    """The PCA hash of every row of one shard of measures; `row` is the row in the partition."""
    table = read_table(measures, ["row", "image_id", "thumbnail"])
    fit = read_fit(fit_uri)
    config = {"version": VERSION, "fit": fit.digest}
    codes = pca_hash.codes(fit, pixels_of(table))
    hashes = pa.FixedSizeBinaryArray.from_buffers(pa.binary(8), len(codes), [None, pa.py_buffer(codes.tobytes())])
    with write_shard(target, SCHEMA, config) as shard:
        shard.keep_table(table.drop_columns("thumbnail").append_column("pca_hash", hashes))
    return target.model_copy(update={"rows": shard.kept.rows})


@task(name="decide-fingerprint", persist_result=False, cache_policy=NO_CACHE)
def decide(
    images: list[ShardRef],
    measures: list[ShardRef],
    hashes: list[ShardRef],
    fates: list[ShardRef],
    target: StageDir,
    config: Config,
) -> Decision:
    """The fates after exact and near duplicates are gone: one image of each group stays."""
    current = Fates.read(fates)
    end_exact(current)
    end_near(current, images, measures, hashes, config)
    return current.write(target, images, {"version": VERSION, **config.rules()}, "fingerprint")
