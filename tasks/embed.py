"""Embed: one semantic unit vector for every image that is left.

Cost at 10^9 images of 224 px with a ViT-H: reads the image bytes once more, writes 2.6 kB a row; the paper's chain
went at 43 images/s a V100. Memory of a worker: the model, one batch, one batch of rows.
"""

from prefect import task
from prefect.cache_policies import NO_CACHE

from lvd.infra.shards import ShardRef
from lvd.tasks import schemas
from lvd.tasks.models import Inference, engine

SCHEMA = schemas.vectors
VERSION = 2


class Config(Inference):
    """The embedding model; any that `lvd models` names."""

    model: str = "vit_huge_patch14_gap_224.in22k_ijepa"


@task(name="embed", persist_result=False, cache_policy=NO_CACHE)
def embed_shards(
    jobs: list[engine.Job], *, inference: Inference, device: str, decoders: int
) -> list[ShardRef | Exception]:
    """The embeddings of shards of images; what became of each."""
    return engine.vectors_of_shards(jobs, inference, device=device, decoders=decoders)
