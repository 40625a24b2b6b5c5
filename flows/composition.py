"""What every curated collection gives, as the paper's Table 15 counts it."""

import numpy as np
from pydantic import BaseModel

from lvd.flows.recipe import CuratedCollection, Recipe
from lvd.tasks.algorithms import mixture
from lvd.tasks.retrieve import BALANCED, Cluster, Sample


class Row(BaseModel, frozen=True):
    """One line of the composition, as the paper's Table 15 has them."""

    name: str
    images: int
    retrieval: str
    retrieved: int | None  # before the cap; None for a collection that is published as it is
    final: int


def composition(recipe: Recipe) -> list[Row]:
    """What every curated collection gives, from its counts and its retrieval rules. Source: DINOv2, Table 15.

    Of a mixture each selection gives its share of the target, at most what it has.
    """
    config, rows = recipe.retrieve, []
    for collection in recipe.curated:
        images = collection.num_images or 0
        if collection.include:
            rows.append(Row(name=collection.name, images=images, retrieval="as is", retrieved=None, final=images))
        if collection.retrieve is not None and config.kind != BALANCED:
            rows.append(retrieval(collection, images))
    if config.has_balanced:
        target = config.target_images
        rows.append(Row(name=BALANCED, images=0, retrieval="evenly over clusters", retrieved=target, final=target))
    if not config.weights:
        return rows
    mixed = [row for row in rows if row.retrieved is not None and config.weights.get(row.name)]
    available = np.array([row.final for row in mixed], dtype=np.int64)
    weights = [config.weights[row.name] for row in mixed]
    shares = mixture.shares(config.target_images, weights, available, refill=config.refill).rows
    thinned = [row.model_copy(update={"final": int(n)}) for row, n in zip(mixed, shares, strict=True)]
    return [row for row in rows if row.retrieved is None] + thinned


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
