"""What a recipe comes to before anything is run: its composition, shards, bytes and GPU-hours."""

from pydantic import BaseModel

from lvd.flows.recipe import CuratedCollection, Recipe
from lvd.tasks.retrieve import Cluster, Sample

VECTOR_BYTES_PER_VALUE = 2  # float16


class Row(BaseModel, frozen=True):
    """One line of the composition, as the paper's Table 15 has them."""

    name: str
    images: int
    retrieval: str
    retrieved: int | None  # before the cap; None for a collection that is published as it is
    final: int


def composition(recipe: Recipe) -> list[Row]:
    """What every curated collection gives, from its counts and its retrieval rules. Source: DINOv2, Table 15."""
    rows = []
    for collection in recipe.curated:
        images = collection.num_images or 0
        if collection.include:
            rows.append(Row(name=collection.name, images=images, retrieval="as is", retrieved=None, final=images))
        if collection.retrieve is not None:
            rows.append(retrieval(collection, images))
    return rows


def retrieval(collection: CuratedCollection, images: int) -> Row:
    """Sample-based: N × images, as the table counts. Cluster-based: a share of every eligible cluster, capped."""
    policy = collection.retrieve
    if isinstance(policy, Sample):
        total = policy.neighbors * images
        return Row(
            name=collection.name,
            images=images,
            retrieval=f"sample, N = {policy.neighbors}",
            retrieved=total,
            final=total,
        )
    assert isinstance(policy, Cluster)
    clusters = (
        collection.eligible_clusters if collection.eligible_clusters is not None else images // policy.min_queries
    )
    total = clusters * policy.per_cluster
    bound = "" if collection.eligible_clusters is not None else ", at most"
    return Row(
        name=collection.name,
        images=images,
        retrieval=f"cluster{bound}",
        retrieved=total,
        final=min(total, policy.max_images),
    )


class Load(BaseModel, frozen=True):
    """What a stage reads, writes and computes."""

    stage: str
    images: int
    shards: int
    read_bytes: int
    written_bytes: int
    gpu_hours: float | None  # None: no GPU work


def loads(recipe: Recipe, pool_images: int) -> list[Load]:
    """The stages' loads for that many pool candidates, with the expectations in `recipe.plan`."""
    expect, rows = recipe.plan, recipe.crawl.rows_per_shard
    unique = round(pool_images * expect.kept_after_fingerprint)
    left = round(unique * expect.kept_after_copies)
    selected = sum(row.final for row in composition(recipe))

    def load(stage: str, images: int, read: int, written: int, per_second: float | None = None) -> Load:
        hours = None if per_second is None else images / per_second / 3600
        return Load(
            stage=stage,
            images=images,
            shards=-(-pool_images // rows),
            read_bytes=images * read,
            written_bytes=images * written,
            gpu_hours=hours,
        )

    size = expect.mean_image_bytes
    descriptor, vector = (
        values * VECTOR_BYTES_PER_VALUE for values in (expect.descriptor_values, expect.vector_values)
    )
    return [
        load("crawl", pool_images, 100, 100),
        load("download", pool_images, size, size),
        load("screen", pool_images, size, 1100),
        load("fingerprint", pool_images, 1100, 50),
        load("copies", unique, size, descriptor, expect.descriptors_per_gpu_second),
        load("embed", left, size, vector, expect.embeddings_per_gpu_second),
        load("cluster", left, vector, 60),
        load("publish", selected, size, size),
    ]
