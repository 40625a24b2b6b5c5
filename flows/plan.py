"""What a recipe comes to before anything is run: its composition, shards, bytes, GPU-hours and CPU-hours."""

from typing import Any

from pydantic import BaseModel

from lvd.flows.miniature import is_drawn
from lvd.flows.recipe import CuratedCollection, Recipe
from lvd.infra.errors import InputError
from lvd.infra.shards import BATCH_BYTES
from lvd.tasks.algorithms import cells
from lvd.tasks.backlog import HELD_BYTES
from lvd.tasks.crawl import BUCKET_ROWS
from lvd.tasks.retrieve import Cluster, Sample
from lvd.tasks.sources import num_rows, partitions

VECTOR_BYTES_PER_VALUE = 2  # float16
GPU_FLOPS = 1e13  # float32 products: of a V100, which reaches about 14
CORE_FLOPS = 3e10  # float32 products: of one core with AVX2
DECISION_BYTES = 300  # per pool image, in the one process that decides


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
    """What a stage reads, writes, computes and holds."""

    stage: str
    images: int
    shards: int
    read_bytes: int
    written_bytes: int
    memory_bytes: int  # of its largest process, beside models and libraries
    gpu_hours: float | None = None  # of models and of the search through cells, at the expected pace
    cpu_hours: float | None = None  # of one core; None where no pace is known
    hours: float | None = None  # on all the GPUs or cores that are expected


def check_drawn(recipe: Recipe) -> None:
    """Raises InputError if the recipe's sources are in a miniature web that is not there yet."""
    if not is_drawn(recipe):
        raise InputError("recipe.miniature is drawn by its first run: run it once, then plan it")


def counted(recipe: Recipe) -> Recipe:
    """The recipe with the images of every source counted, where it does not say how many there are.

    Raises InputError if a source is not there.
    """
    check_drawn(recipe)
    counts: dict[str, int] = {}  # of archives nobody knows: for them the recipe says it
    entries = [(f"recipe.curated[{i}]", c.name, c.source) for i, c in enumerate(recipe.curated) if c.num_images is None]
    pool = recipe.plan.pool_images == 0
    entries += [(f"recipe.pool[{i}]", "pool", source) for i, source in enumerate(recipe.pool) if pool]
    for where, name, source in entries:
        try:
            found = [num_rows(partition) for partition in partitions(source)] if source else []
        except InputError as error:
            raise InputError(f"{where}.{error}") from error
        counts[name] = counts.get(name, 0) + sum(filter(None, found))
    curated = tuple(c.model_copy(update={"num_images": counts.get(c.name, c.num_images)}) for c in recipe.curated)
    plan = recipe.plan.model_copy(update={"pool_images": counts.get("pool", recipe.plan.pool_images)})
    return recipe.model_copy(update={"curated": curated, "plan": plan})


def loads(recipe: Recipe) -> list[Load]:
    """The stages' loads for the pool's candidates, with the expectations in `recipe.plan`."""
    expect, rows = recipe.plan, recipe.crawl.rows_per_shard
    candidates = expect.pool_images
    unique = round(candidates * expect.kept_after_fingerprint)
    left = round(unique * expect.kept_after_copies)
    selected = sum(row.final for row in composition(recipe))
    sample = min(left, recipe.cluster.sample_per_cluster * recipe.cluster.num_clusters)
    size = expect.mean_image_bytes
    descriptor, vector = (
        values * VECTOR_BYTES_PER_VALUE for values in (expect.descriptor_values, expect.vector_values)
    )

    def load(stage: str, images: int, read: int, written: int, memory: int, **more: Any) -> Load:
        numbers = {"images": images, "read_bytes": images * read, "written_bytes": images * written}
        return Load(stage=stage, memory_bytes=memory, **{"shards": -(-candidates // rows), **numbers, **more})

    def at_pace(images: int, per_gpu_second: float, per_core_second: float | None) -> dict[str, float]:
        if per_core_second is None:
            hours = images / per_gpu_second / 3600
            return {"gpu_hours": hours, "hours": hours / expect.gpus}
        hours = images / per_core_second / 3600
        return {"cpu_hours": hours, "hours": hours / expect.cores}

    screened = expect.screened_per_core_second

    return [
        load("crawl", candidates, 400, 380, candidates + 24 * min(candidates, BUCKET_ROWS)),
        load("download", candidates, size, size, HELD_BYTES),
        load("screen", candidates, size, 1100, BATCH_BYTES, **at_pace(candidates, 1, screened) if screened else {}),
        load("fingerprint", candidates, 1100, 50, DECISION_BYTES * candidates),
        load(
            "copies",
            unique,
            size,
            descriptor,
            DECISION_BYTES * candidates,
            **at_pace(unique, expect.descriptors_per_gpu_second, expect.descriptors_per_core_second),
        ),
        neighbours(recipe, unique, load, at_pace),
        load(
            "embed",
            left,
            size,
            vector,
            BATCH_BYTES,
            **at_pace(left, expect.embeddings_per_gpu_second, expect.embeddings_per_core_second),
        ),
        load("cluster", left, vector, 60, sample * expect.vector_values * 4),
        load("publish", selected, size, size, 2 * BATCH_BYTES, shards=-(-selected // recipe.publish.rows_per_shard)),
    ]


def neighbours(recipe: Recipe, images: int, load: Any, at_pace: Any) -> Load:
    """The search for copies in the pool. Through cells all descriptors are read once for each group of cells.

    load, at_pace: as in `loads`.
    """
    values, search = recipe.plan.descriptor_values, recipe.copies.search
    vector, groups = values * VECTOR_BYTES_PER_VALUE, cells.num_groups(images)
    if search.is_exact(images, images):
        return load("neighbours", images, vector * images // 2 // recipe.crawl.rows_per_shard, 0, 2 * BATCH_BYTES)
    number = search.num_cells or cells.usual_number(images)
    compared = number + search.max_probes * images / number  # vectors that each one is multiplied with, at most
    products = 2 * values * compared
    core_pace = CORE_FLOPS / products if recipe.plan.gpus == 0 else None
    work = {"shards": groups, **at_pace(images, GPU_FLOPS / products, core_pace)}
    probes = 4 + 4 * search.max_probes
    return load("neighbours", images, vector * (2 + groups), probes, vector * images // groups, **work)
