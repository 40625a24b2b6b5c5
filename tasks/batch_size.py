"""The batch size at which a model is fastest on a GPU, found by trial: once for a root, which then keeps it.

A vector may depend on the batch size in its last bits, so the size is a result like any other, with its trials on
storage. Costs some seconds of one GPU.
"""

import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from lvd.infra.shards import ShardRef
from lvd.infra.writing import write_shard
from lvd.tasks import models
from lvd.tasks.models import engine

VERSION = 1
SCHEMA = pa.schema([("batch_size", pa.int64()), ("images_per_second", pa.float64())])
SMALLEST, LARGEST = 16, 1024
TRIAL_S = 1.0  # of work for each size
GAIN = 1.03  # a larger batch must be so much faster: it takes memory, and pads more


@task(name="batch-size", persist_result=False, cache_policy=NO_CACHE)
def find_batch_size(target: ShardRef, inference: models.Inference, *, device: str) -> ShardRef:
    """The trials, the best size first."""
    model = models.load(engine.spec_of(inference), engine.placement(inference, device))
    tried = list(trials(model, inference))
    chosen = best(tried)
    with write_shard(target, SCHEMA, {"version": VERSION, **engine.settings(inference)}) as shard:
        for batch_size, pace in [chosen, *(one for one in tried if one != chosen)]:
            shard.keep({"batch_size": batch_size, "images_per_second": round(pace, 1)})
    return target.model_copy(update={"rows": shard.kept.rows})


def trials(model: models.ImageModel, inference: models.Inference) -> Iterator[tuple[int, float]]:
    """(batch size, images per second) of sizes that double, until memory runs out or nothing is gained."""
    before, size, halved = 0.0, models.usable_batch_size(inference, SMALLEST), model.halved
    while size <= LARGEST:
        pace = images_per_second(model, size)
        if model.halved > halved:
            return
        yield size, pace
        if pace < before * GAIN or models.usable_batch_size(inference, 2 * size) == size:
            return
        before, size = pace, 2 * size


def images_per_second(model: models.ImageModel, batch_size: int) -> float:
    """The pace on noise, results fetched as the engine does, one batch behind."""
    batch = model.buffer((batch_size, *model.input_shape))
    batch[...] = np.random.default_rng(0).integers(0, 256, batch.shape, dtype=np.uint8)
    halved = model.halved
    model.embed(batch)  # the first one of a shape chooses its kernels
    began, done, fetch = time.perf_counter(), 0, model.start(batch)
    while time.perf_counter() - began < TRIAL_S and model.halved == halved:
        following = model.start(batch)
        fetch()
        fetch, done = following, done + batch_size
    fetch()
    return (done + batch_size) / (time.perf_counter() - began)


def best(tried: list[tuple[int, float]]) -> tuple[int, float]:
    """The smallest size that is within `GAIN` of the fastest; `SMALLEST` if none fitted, and batches go in halves."""
    fastest = max((pace for _, pace in tried), default=0.0)
    return next(((size, pace) for size, pace in tried if pace * GAIN >= fastest), (SMALLEST, 0.0))
