"""Levels: clusters of clusters, above those of the images. Source: Vo et al., arXiv 2405.15613; PAPER.md section 5.

Cost: the centroids of the finest level in one process, 5 GB for 10^6 x 1,280 in float32.
"""

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from lvd.infra.shards import ShardRef, StageDir
from lvd.infra.writing import write_shard
from lvd.tasks.algorithms import hierarchy
from lvd.tasks.cluster import Config
from lvd.tasks.models.engine import read_vectors

VERSION = 1
SCHEMA = pa.schema([("cluster_id", pa.int32()), ("parent", pa.int32())])  # of the level below


@task(name="fit-levels", persist_result=False, cache_policy=NO_CACHE)
def fit_levels(centroids: ShardRef, parents: StageDir, config: Config, seed: int, devices: tuple[str, ...]) -> int:
    """Writes, for each level above the first, the parent of every cluster below it.

    Returns the number of levels, which is that of the shards.
    """
    found = hierarchy.upper_levels(
        read_vectors(centroids),
        config.levels[1:],
        seed=seed,
        iterations=config.iterations,
        resample_steps=config.resample_steps,
        resample_per_cluster=config.resample_per_cluster,
        devices=devices,
    )
    for level, ref in zip(found, parents.planned(len(found)), strict=True):
        with write_shard(ref, SCHEMA, {"version": VERSION}) as shard:
            numbers = np.arange(len(level.parent), dtype=np.int32)
            shard.keep_table(pa.Table.from_arrays([pa.array(numbers), pa.array(level.parent)], schema=SCHEMA))
    return len(found)
