"""What can be known to be wrong before anything is written."""

import tempfile
from pathlib import Path

from lvd.flows import from_vectors, metrics, pool
from lvd.flows.crawling import listed
from lvd.flows.deduplication import copy_thresholds
from lvd.flows.generations import new_among
from lvd.flows.recipe import Recipe
from lvd.flows.run import Run
from lvd.infra.errors import InputError
from lvd.tasks import hash_fit, models
from lvd.tasks.models.classifiers import check_classifier
from lvd.tasks.models.faces import check_detector
from lvd.tasks.source_rows import check_columns, num_rows


def check(run: Run) -> None:
    """Raises InputError with one line if the recipe cannot be run here. Writes nothing."""
    check_models(run.recipe)
    check_published(run.recipe)
    check_root(run)
    metrics.local_file(run.recipe.metrics_file)
    if run.recipe.has_own_vectors:
        check_vectors(run)
    elif run.recipe.miniature is None:
        check_sources(run)


def check_models(recipe: Recipe) -> None:
    """The models must be known and their files there; the machine must be able to run them."""
    pool.task_runner(recipe.compute)
    if recipe.compute.gpus != "auto" and recipe.compute.runner == "local":
        pool.device(recipe.compute)
    if recipe.has_own_vectors:
        return
    models.check(recipe.copies, "recipe.copies")
    models.check(recipe.embed, "recipe.embed")
    if recipe.screen.nsfw:
        check_classifier(recipe.screen.nsfw, "recipe.screen.nsfw")
    if recipe.screen.faces:
        check_detector(recipe.screen.faces, "recipe.screen.faces")
    copy_thresholds(recipe.copies)
    if recipe.fingerprint.fit:
        hash_fit.read_fit(recipe.fingerprint.fit)


def check_published(recipe: Recipe) -> None:
    """Something must come out: of a curated collection, of a balanced sample, or everything that is left."""
    chooses = recipe.retrieve.has_balanced or any(c.include or c.retrieve for c in recipe.curated)
    if recipe.publish.images == "retrieved" and not chooses:
        raise InputError(
            "recipe.curated must name a collection that is included or retrieves, was none: add one, choose evenly "
            "with --set retrieve='{kind: balanced, target_images: 1000}', or publish everything that is left with "
            "--set publish.images=survivors"
        )


def check_root(run: Run) -> None:
    """The root must be a place that can be written: tried by making and removing a folder, or listing a bucket."""
    storage = run.storage
    try:
        if storage.is_local:
            root = Path(storage.root).absolute()
            parent = next(p for p in (root, *root.parents) if p.exists())
            Path(tempfile.mkdtemp(dir=parent)).rmdir()
        else:
            storage.names("")
    except storage.errors as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"recipe.root must be a place that can be written, was {run.recipe.root!r} ({reason}): "
            "choose another with --root"
        ) from error


def check_sources(run: Run) -> None:
    """Every source must be there and have its columns; there cannot be more clusters than candidates.

    Of a pool that was run before only what is new is opened.
    """
    sources = [(where, role, partition) for where, role, _, found in listed(run) for partition in found]
    own = [partition for _, role, partition in sources if role == "pool"]
    new = new_among(run.recipe, own)
    opened = {partition.identity for partition in new}
    for where, role, partition in sources:
        if role == "pool" and partition.identity not in opened:
            continue
        try:
            check_columns(partition)
        except InputError as error:
            raise InputError(f"{where}.{error}") from error
    counts = [num_rows(partition) for partition in new] if len(new) == len(own) else [None]
    if None not in counts:
        check_clusters(run.recipe, sum(counts))


def check_vectors(run: Run) -> None:
    """Every file of vectors must be there; there cannot be more clusters than vectors."""
    pieces = from_vectors.listed(run.recipe)
    check_clusters(run.recipe, sum(piece.rows for piece in pieces[from_vectors.POOL]))


def check_clusters(recipe: Recipe, candidates: int) -> None:
    if recipe.cluster.num_clusters > candidates:
        raise InputError(
            f"recipe.cluster.num_clusters must be in [1, {candidates}], the candidates of the pool, "
            f"was {recipe.cluster.num_clusters}: set it lower"
        )
