"""Fingerprint: PCA hashes, and the copies that they and the bytes themselves give away.

No image is decoded here: the hash is computed from the thumbnails that screening measured. The PCA is fitted on a
seeded sample of the pool and stored beside the hashes.
Cost at 10^9 images: reads 1.1 kB and writes 50 bytes a row; the decision compares every pair of hashes in one process
(about 10^9 pairs a second) that holds about 300 bytes an image.
"""

import io
from typing import Any

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, Field

from lvd.infra.shards import ShardRef, StageDir, gather_rows, pool_rows, read_column, read_table, write_shard
from lvd.tasks import schemas
from lvd.tasks.algorithms import graph, pca_hash
from lvd.tasks.fates import Decision, Fates, sizes

SCHEMA = schemas.HASHES
VERSION = 1
PAIR_BLOCK = 4096


class Config(BaseModel, frozen=True, extra="forbid"):
    sample_size: int = Field(20_000, ge=1)  # thumbnails that the PCA is fitted on
    max_distance: int = Field(6, ge=0, le=64)  # of 64 bits; more finds more copies and costs more pairs to confirm
    min_thumbnail_similarity: float = Field(0.985, ge=-1, le=1)  # correlation that confirms a pair


def thumbnails(refs: list[ShardRef], positions: np.ndarray) -> np.ndarray:
    """(m, 1024) uint8 thumbnails at positions of the measures."""
    return pixels_of(gather_rows(refs, positions, ["thumbnail"]))


def pixels_of(measures: pa.Table) -> np.ndarray:
    """(n, 1024) uint8 of the column `thumbnail`, n may be 0."""
    pixels = np.frombuffer(b"".join(measures["thumbnail"].to_pylist()), dtype=np.uint8)
    return pixels.reshape(-1, measures.schema.field("thumbnail").type.byte_width)


def as_image_hash(code: bytes) -> Any:
    """The 8 stored bytes as an `imagehash.ImageHash`; the difference of two is their Hamming distance."""
    from imagehash import ImageHash

    return ImageHash(np.unpackbits(np.frombuffer(code, dtype=np.uint8)).reshape(8, 8).astype(bool))


def near_pairs(measures: list[ShardRef], codes: np.ndarray, positions: np.ndarray, config: Config) -> np.ndarray:
    """(m, 2) int64 pairs of indices into `positions` whose hashes are near and whose thumbnails confirm it.

    codes: (n, 8) uint8, of the measures at `positions`.
    """
    confirmed = [np.zeros((0, 2), dtype=np.int64)]
    for pairs, _ in pca_hash.pairs_within(codes, max_distance=config.max_distance):
        for start in range(0, len(pairs), PAIR_BLOCK):
            block = pairs[start : start + PAIR_BLOCK]
            left, right = (thumbnails(measures, positions[block[:, side]]) for side in (0, 1))
            confirmed.append(block[pca_hash.thumbnail_similarity(left, right) >= config.min_thumbnail_similarity])
    return np.concatenate(confirmed)


def end_exact(fates: Fates) -> None:
    """Of images with equal bytes the first one stays."""
    alive = np.flatnonzero(fates.alive)
    _, first, inverse = np.unique(fates.image_id[alive].astype("S32"), return_index=True, return_inverse=True)
    repeated = alive[first[inverse] != np.arange(len(alive))]
    fates.end(repeated, "dropped", "fingerprint", "exact_duplicate", score=1.0, because_of=fates.image_id[repeated])


def end_near(
    fates: Fates, images: list[ShardRef], measures: list[ShardRef], hashes: list[ShardRef], config: Config
) -> None:
    """Of each group of confirmed near duplicates the representative stays: largest area, larger file, lowest id."""
    measured = pool_rows(measures)
    positions = np.flatnonzero(fates.alive[measured])
    codes = np.frombuffer(b"".join(read_column(hashes, "pca_hash").to_pylist()), dtype=np.uint8).reshape(-1, 8)[
        positions
    ]
    rows = measured[positions]
    labels = graph.connected_components(near_pairs(measures, codes, positions, config), len(rows))
    area, num_bytes = sizes(images)
    chosen = graph.representatives(labels, area[rows], num_bytes[rows], fates.image_id[rows].astype("S32"))
    dropped = np.flatnonzero(chosen != np.arange(len(rows)))
    for start in range(0, len(dropped), PAIR_BLOCK):
        block = dropped[start : start + PAIR_BLOCK]
        similarity = pca_hash.thumbnail_similarity(
            thumbnails(measures, positions[block]), thumbnails(measures, positions[chosen[block]])
        )
        cause = fates.image_id[rows[chosen[block]]]
        fates.end(rows[block], "dropped", "fingerprint", "near_duplicate", score=similarity, because_of=cause)


@task(name="fit-hash", persist_result=False, cache_policy=NO_CACHE)
def fit_hash(measures: list[ShardRef], target: StageDir, config: Config, seed: int) -> None:
    """Fits the PCA on a seeded sample of the pool's thumbnails and stores it as `fit.npz` beside the hashes."""
    total = sum(ref.rows for ref in measures)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0x9A5]))
    sample = np.sort(rng.choice(total, size=min(total, config.sample_size), replace=False))
    fit = pca_hash.fit(thumbnails(measures, sample))
    file = io.BytesIO()
    np.savez(file, mean=fit.mean, components=fit.components)
    target.storage.write_bytes(f"{target.directory}/fit.npz", file.getvalue())


def stored_fit(target: StageDir) -> pca_hash.PcaHash:
    with np.load(io.BytesIO(target.storage.read_bytes(f"{target.directory}/fit.npz")), allow_pickle=False) as arrays:
        return pca_hash.PcaHash(mean=arrays["mean"], components=arrays["components"])


@task(name="fingerprint", persist_result=False, cache_policy=NO_CACHE)
def hash_shard(measures: ShardRef, target: ShardRef, fit_at: StageDir) -> ShardRef:
    """The PCA hash of every row of one shard of measures; `row` is the pool row."""
    table = read_table(measures, ["row", "image_id", "thumbnail"])
    fit = stored_fit(fit_at)
    with write_shard(target, SCHEMA, {"version": VERSION}) as shard:
        codes = pca_hash.codes(fit, pixels_of(table))
        for row, image_id, code in zip(table["row"].to_pylist(), table["image_id"].to_pylist(), codes, strict=True):
            shard.keep({"row": row + measures.base, "image_id": image_id, "pca_hash": code.tobytes()})
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
    return current.write(target, images, {"version": VERSION, **config.model_dump(mode="json")}, "fingerprint")
