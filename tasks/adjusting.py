"""Adjusted descriptors: whitened, and with a bias, the part of a similarity that an image has to everything.

Source: SSCD (Pizzi et al. 2022), PAPER.md section 3. Whitening takes a principal component analysis of a sample of the
pool and gives every component the same variance. The bias is the mean similarity to the nearest of a background set,
another sample of the pool; a pair's similarity is lowered by the mean of both biases. Both samples are drawn once per
root and settings, so that the images of a later run are measured alike.
Cost at 10^9 x 512: whitening 5 x 10^14 operations, the biases against 20,000 images 2 x 10^16; writes 1 kB a row.
"""

import io
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, Field

from lvd.infra.errors import InputError
from lvd.infra.shards import ShardRef, gather_rows, read_schema, read_table
from lvd.infra.storage import Storage
from lvd.infra.writing import write_shard
from lvd.tasks import schemas
from lvd.tasks.algorithms import neighbours
from lvd.tasks.algorithms.allocation import draw
from lvd.tasks.models.engine import vector_column

VERSION = 1
SEEDS = {"whitening": 0x3417E, "background": 0xBAC6}
MIN_VARIANCE, MIN_SHARE = 1e-6, 1e-5  # in all, and of the first component: below, float16 holds rounding only
ROWS_PER_COMPONENT = 2  # with fewer, the sample's own vectors are all made unlike one another, its copies too
WEIGHT_BITS = 22  # of a component's weights: float16 values times these have exact float64 sums, in any order
DISTINCT = 0.5  # background images that are so alike count once, else images with many copies would have those there
BLOCK = 1024  # of the background, compared at once


class Whitening(BaseModel, frozen=True, extra="forbid"):
    """Every component of the descriptors gets the same variance; unit length again."""

    sample_size: int = Field(20_000, ge=4)  # descriptors of the pool that it is fitted on; at least 2 per component
    dim: int | None = Field(None, ge=1, le=4096)  # leading components that are kept; null: all


class ScoreNormalisation(BaseModel, frozen=True, extra="forbid"):
    """A similarity less what both images have in common with images that are no copies of them."""

    sample_size: int = Field(20_000, ge=1)  # descriptors of the pool that the background is drawn from
    neighbours: int = Field(10, ge=1, le=1024)  # of the background, whose mean similarity is the bias
    weight: float = Field(1.0, gt=0, le=10)  # of the bias; raising it lowers similarities more


class Fit(NamedTuple):
    """A whitening: offset (c,) and weights (c, d), float64."""

    offset: np.ndarray
    weights: np.ndarray


class Background(NamedTuple):
    """What descriptors are adjusted by. fit: None without whitening; vectors: (b, d) float16, whitened, none without
    score normalisation; image_id: (b,) str."""

    fit: Fit | None
    vectors: np.ndarray
    image_id: np.ndarray


def fit_whitening(vectors: np.ndarray, dim: int | None) -> Fit:
    """The whitening of these (n, d) rows, of the `dim` leading components, or of all.

    Raises InputError if the rows are all alike, or fewer than 2 per component.
    """
    where, rows = "recipe.copies.whitening", vectors.astype(np.float64)
    mean = rows.mean(axis=0) if len(rows) else np.zeros(rows.shape[1])
    variance, directions = np.linalg.eigh((rows - mean).T @ (rows - mean) / max(len(rows), 1))
    variance, directions = variance[::-1], directions.T[::-1]
    if variance[0] < MIN_VARIANCE:
        raise InputError(f"{where} needs descriptors that differ, had {len(rows)} that do not: leave it out")
    num = np.count_nonzero(variance > MIN_SHARE * variance[0])
    num = num if dim is None else min(dim, num)
    if len(rows) < ROWS_PER_COMPONENT * num:
        raise InputError(
            f"{where}.dim must be at most {len(rows) // ROWS_PER_COMPONENT} with a sample of {len(rows)} images, was "
            f"{dim or 'null'} ({num} components): lower it, or take a larger sample"
        )
    weights = directions[:num] / np.sqrt(variance[:num, None])
    step = 2.0 ** (np.ceil(np.log2(np.abs(weights).max(axis=1, keepdims=True))) - WEIGHT_BITS)
    weights = np.rint(weights / step) * step
    return Fit(weights @ mean, weights)


def whitened(vectors: np.ndarray, fit: Fit | None) -> np.ndarray:
    """(n, c) float16 unit rows of (n, d) float16 unit rows; as they are without a fit. Zeros and NaN stay so.

    A row's result depends on the row alone: the sums are exact.
    """
    if fit is None:
        return vectors.astype(np.float16)
    values = vectors.astype(np.float16).astype(np.float64) @ fit.weights.T - fit.offset
    length = np.linalg.norm(values, axis=1, keepdims=True)
    length[~vectors.any(axis=1)] = np.inf
    return np.divide(values, length, out=np.zeros_like(values), where=length != 0).astype(np.float16)


def distinct(vectors: np.ndarray) -> np.ndarray:
    """(m,) int64: the rows, in their order, that are not as alike as DISTINCT to one that was taken before."""
    rows, taken = vectors.astype(np.float64), np.zeros(0, dtype=np.int64)
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        is_new = np.ones(len(block), dtype=bool)
        for first in range(0, len(taken), BLOCK):
            is_new &= ((block @ rows[taken[first : first + BLOCK]].T) < DISTINCT).all(axis=1)
        alike = block @ block.T >= DISTINCT
        for row in range(len(block)):
            is_new[row] &= not (alike[row, :row] & is_new[:row]).any()
        taken = np.concatenate([taken, start + np.flatnonzero(is_new)])
    return taken


def biases(
    vectors: np.ndarray, image_id: np.ndarray, background: Background, config: ScoreNormalisation, *, device: str
) -> np.ndarray:
    """(n,) float32, not below 0: the weighted mean similarity to the nearest of the background but the image itself.

    vectors: (n, c) float16, whitened as the background is. image_id: (n,) str or None.
    """
    total = len(background.vectors)
    if not len(vectors) or not total:
        return np.zeros(len(vectors), dtype=np.float32)
    similarity, found = neighbours.nearest(
        vectors, [(0, background.vectors)], k=min(config.neighbours + 1, total), device=device
    )
    other = (found >= 0) & (background.image_id[found] != image_id[:, None])
    taken = other & (np.cumsum(other, axis=1) <= config.neighbours)
    units = np.rint(np.where(taken, similarity, 0).astype(np.float64) * neighbours.SCALE).sum(axis=1)
    mean = units / np.maximum(taken.sum(axis=1), 1) / neighbours.SCALE
    return (config.weight * np.maximum(mean, 0)).astype(np.float32)


def less_biases(similarity: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(m,) float32: similarities less the mean of both biases, rounded to 5 decimals as all similarities are."""
    raw = np.rint(similarity.astype(np.float64) * neighbours.SCALE) / neighbours.SCALE
    return (
        (raw - (left.astype(np.float64) + right.astype(np.float64)) / 2).round(neighbours.DECIMALS).astype(np.float32)
    )


def columns(ref: ShardRef) -> list[str]:
    """`vector`, and `bias` where the shard has one."""
    return [name for name in ("vector", "bias") if name in read_schema(ref).names]


def bias_column(table: pa.Table) -> np.ndarray | None:
    """(n,) float32; None where scores are not normalised."""
    return table["bias"].to_numpy() if "bias" in table.schema.names else None


@task(name="fit-background", persist_result=False, cache_policy=NO_CACHE)
def fit_background(
    descriptors: list[ShardRef],
    target: ShardRef,
    whitening: Whitening | None,
    background_size: int | None,
    seed: int,
) -> ShardRef:
    """The whitening in `fit.npz`, and the background images in a shard, which is written last."""
    total = sum(ref.rows for ref in descriptors)

    def sample(size: int, name: str) -> pa.Table:
        rng = np.random.default_rng(np.random.SeedSequence([seed, SEEDS[name]]))
        chosen = draw(total, min(total, size), rng=rng)
        return gather_rows(descriptors, chosen, ["row", "image_id", "vector"])

    fit, file = None, io.BytesIO()
    if whitening is not None:
        fit = fit_whitening(vector_column(sample(whitening.sample_size, "whitening")), whitening.dim)
        np.savez(file, offset=fit.offset, weights=fit.weights)
    table = sample(background_size or 0, "background")
    vectors = whitened(vector_column(table), fit)
    kept = distinct(vectors)
    with write_shard(target, schemas.vectors(vectors.shape[1]), {"version": VERSION, "seed": seed}) as shard:
        shard.keep_table(with_vectors(table, vectors).take(pa.array(kept)))
        shard.notes |= {"drawn": len(table), "of": total, "components": vectors.shape[1]}
        if fit is not None:
            Storage(target.root).write_bytes(f"{target.directory}/fit.npz", file.getvalue())
    return target.model_copy(update={"rows": shard.kept.rows})


def sampled_background(
    vectors: np.ndarray, image_id: np.ndarray, whitening: Whitening | None, is_normalised: bool
) -> Background:
    """The background of a sample that is in memory: all of it, where a root has none yet."""
    fit = None if whitening is None else fit_whitening(vectors, whitening.dim)
    own = whitened(vectors, fit)
    kept = distinct(own) if is_normalised else np.zeros(0, dtype=np.int64)
    return Background(fit, own[kept], image_id[kept])


def read_background(ref: ShardRef) -> Background:
    """What `fit_background` wrote."""
    storage, name, fit = Storage(ref.root), f"{ref.directory}/fit.npz", None
    if storage.exists(name):
        with np.load(io.BytesIO(storage.read_bytes(name)), allow_pickle=False) as arrays:
            fit = Fit(arrays["offset"], arrays["weights"])
    table = read_table(ref)
    return Background(fit, vector_column(table), table["image_id"].to_numpy())


@task(name="adjust", persist_result=False, cache_policy=NO_CACHE)
def adjust_shard(
    descriptors: ShardRef,
    background: ShardRef,
    target: ShardRef,
    normalisation: ScoreNormalisation | None,
    *,
    device: str,
) -> ShardRef:
    """The rows of one shard of descriptors, adjusted, and its rejects."""
    by, table = read_background(background), read_table(descriptors)
    vectors = whitened(vector_column(table), by.fit)
    adjusted, schema = with_vectors(table, vectors), schemas.vectors(vectors.shape[1])
    if normalisation is not None:
        bias = pa.array(biases(vectors, table["image_id"].to_numpy(), by, normalisation, device=device))
        adjusted, schema = adjusted.append_column("bias", bias), schema.append(pa.field("bias", pa.float32()))
    with write_shard(target, schema, {"version": VERSION}) as shard:
        shard.keep_table(adjusted)
        for row in read_table(descriptors, kind="rejects").to_pylist():
            said = {name: row[name] for name in ("state", "row", "image_id", "error")}
            shard.reject(row["key"], row["reason"], data=row["bytes"], **said)
    return target.model_copy(update={"rows": shard.kept.rows})


def with_vectors(table: pa.Table, vectors: np.ndarray) -> pa.Table:
    """The rows of a table of vectors with other vectors."""
    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    return table.select(["row", "image_id"]).append_column("vector", values)
