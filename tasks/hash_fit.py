"""The fit of the PCA hash: made once of a seeded sample, stored, and read by every run that is to hash alike."""

import io
import zipfile
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from lvd.infra.errors import InputError
from lvd.infra.shards import ShardRef, read_table
from lvd.infra.storage import Storage
from lvd.infra.writing import write_shard
from lvd.tasks.algorithms import pca_hash
from lvd.tasks.near_duplicates import PIXELS, pixels_of

FIT_VERSION = 1  # raising it makes every root fit, hash and decide anew
COMPONENTS = pa.schema([("component", pa.int64()), ("variance", pa.float32())])  # its share of the sample's variance
BITS = 64


def sampled(measures: list[ShardRef], sample: np.ndarray) -> Iterator[np.ndarray]:
    """The thumbnails at these ascending positions in blocks of `pca_hash.BLOCK`, the last one shorter; one at least.

    Memory: one shard and one block.
    """
    waiting, first = np.zeros((0, PIXELS), dtype=np.uint8), 0
    for ref in measures:
        inside = sample[np.searchsorted(sample, first) : np.searchsorted(sample, first + ref.rows)] - first
        first += ref.rows
        if len(inside):
            waiting = np.concatenate([waiting, pixels_of(read_table(ref, ["thumbnail"]).take(pa.array(inside)))])
        while len(waiting) >= pca_hash.BLOCK:
            yield waiting[: pca_hash.BLOCK]
            waiting = waiting[pca_hash.BLOCK :]
    yield waiting


@task(name="fit-hash", persist_result=False, cache_policy=NO_CACHE)
def fit_hash(measures: list[ShardRef], target: ShardRef, sample_size: int, seed: int) -> ShardRef:
    """Fits the PCA on a seeded sample of the pool's thumbnails: `fit.npz`, what it was made from in `fit.json`, and a
    shard with the components' shares of the variance, which is written last."""
    total = sum(ref.rows for ref in measures)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0x9A5]))
    sample = np.sort(rng.choice(total, size=min(total, sample_size), replace=False))
    fit, storage, file = pca_hash.fit(sampled(measures, sample), bits=BITS), Storage(target.root), io.BytesIO()
    np.savez(file, mean=fit.mean, components=fit.components, variance=fit.variance)
    about = {
        "version": FIT_VERSION,
        "sample_size": sample_size,
        "seed": seed,
        "measures": list(dict.fromkeys(ref.directory for ref in measures)),
        "thumbnails": len(sample),
        "of": total,
        "variance_explained": round(float(fit.variance.sum()), 4),
        "sha256": fit.digest,
    }
    with write_shard(target, COMPONENTS, {"version": FIT_VERSION, "sample_size": sample_size, "seed": seed}) as shard:
        for component, variance in enumerate(fit.variance.tolist()):
            shard.keep({"component": component, "variance": variance})
        shard.notes.update(about)
        storage.write_bytes(f"{target.directory}/fit.npz", file.getvalue())
        storage.write_json(f"{target.directory}/fit.json", about)
    return target.model_copy(update={"rows": shard.kept.rows})


def read_fit(uri: str) -> pca_hash.PcaHash:
    """The fit of a `fit.npz`. Raises InputError if there is none, or it is none for these thumbnails and hashes."""
    folder, _, name = uri.rpartition("/")
    remedy = "name the fit.npz in a hash-fit/ directory of a root, or set it to null to fit the pool's own"
    try:
        storage = Storage(folder or ("/" if uri.startswith("/") else "."))
    except InputError as error:
        raise InputError(
            f"recipe.fingerprint.fit must be a path or a URI, was {uri!r} ({error.__cause__}): {remedy}"
        ) from error
    try:
        with np.load(io.BytesIO(storage.read_bytes(name)), allow_pickle=False) as arrays:
            fit = pca_hash.PcaHash(*(arrays[part] for part in ("mean", "components", "variance")))
    except (*storage.errors, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        said = " ".join(str(error).split())
        raise InputError(
            f"recipe.fingerprint.fit must be a readable fit.npz, was {uri!r} ({said}): {remedy}"
        ) from error
    shapes = [array.shape for array in (fit.mean, fit.components, fit.variance)]
    if shapes != [(PIXELS,), (BITS, PIXELS), (BITS,)] or not all(
        array.dtype == np.float32 and np.isfinite(array).all() for array in (fit.mean, fit.components, fit.variance)
    ):
        raise InputError(
            f"recipe.fingerprint.fit must hold finite float32 arrays mean ({PIXELS},), components ({BITS}, {PIXELS}) "
            f"and variance ({BITS},), {uri!r} has {', '.join(map(str, shapes))}: {remedy}"
        )
    return fit
