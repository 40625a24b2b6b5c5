"""Embed: one semantic unit vector for every image that is left.

Cost at 10^9 images of 224 px with a ViT-H: reads the image bytes once more, writes 2.6 kB a row; the paper's chain
went at 43 images/s a V100. Memory of a worker: the model, one batch, one batch of rows.
"""

from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import Field

from lvd.infra.shards import ShardRef, StageDir
from lvd.tasks import schemas
from lvd.tasks.models import ModelSpec, engine

SCHEMA = schemas.vectors
VERSION = 1


class Config(ModelSpec):
    """The embedding model; any that `lvd models` names."""

    model: str = "vit_huge_patch14_gap_224.in22k_ijepa"
    batch_size: int = Field(32, ge=1, le=4096)  # part of the result: every batch is padded to it


@task(name="embed", persist_result=False, cache_policy=NO_CACHE)
def embed_shard(
    images: ShardRef, fates: ShardRef | None, target: ShardRef, config: Config, device: str, donors: list[StageDir]
) -> ShardRef:
    """The embeddings of one shard of images."""
    return engine.vectors_of_shard(
        images, fates, target, engine.spec_of(config), batch_size=config.batch_size, device=device, donors=donors
    )
