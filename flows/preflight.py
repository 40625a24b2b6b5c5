"""What can be known to be wrong before anything is written."""

import os
from pathlib import Path

from lvd.flows import pool
from lvd.flows.deduplication import copy_thresholds
from lvd.flows.gathering import listed
from lvd.flows.run import Run
from lvd.infra.errors import InputError
from lvd.tasks import models
from lvd.tasks.sources import num_rows


def check(run: Run) -> None:
    """Raises InputError with one line if the recipe cannot be run here. Writes nothing."""
    recipe = run.recipe
    models.check(recipe.copies, "recipe.copies")
    models.check(recipe.embed, "recipe.embed")
    copy_thresholds(recipe.copies)
    if recipe.compute.gpus != "auto":
        pool.device(recipe.compute)
    pool.task_runner(recipe.compute)
    check_root(run)
    if recipe.miniature is None:
        check_clusters(run)


def check_root(run: Run) -> None:
    """A local root must be a folder, or be able to become one."""
    if not run.storage.is_local:
        return
    root = Path(run.storage.root)
    parent = next(p for p in (root, *root.parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK) or os.statvfs(parent).f_flag & os.ST_RDONLY:
        raise InputError(
            f"recipe.root must be a folder that can be written, was {run.storage.root!r}: "
            f"{parent} cannot be; choose another with --root"
        )


def check_clusters(run: Run) -> None:
    """There cannot be more clusters than candidates."""
    candidates = sum(num_rows(partition) for role, _, found in listed(run) for partition in found if role == "pool")
    if run.recipe.cluster.num_clusters > candidates:
        raise InputError(
            f"recipe.cluster.num_clusters must be in [1, {candidates}], the candidates of the pool, "
            f"was {run.recipe.cluster.num_clusters}: set it lower"
        )
