"""Which task runner, which device: where the work of a stage runs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lvd.flows.recipe import Compute
from lvd.infra.errors import InputError


def workers(compute: Compute) -> int:
    """Tasks that run at once on this machine."""
    return (os.cpu_count() or 1) if compute.cpu_workers == "auto" else compute.cpu_workers


def device(compute: Compute) -> str:
    """The torch device that models run on."""
    if compute.gpus == 0:
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if compute.gpus == "auto":
        return "cpu"
    raise InputError(
        f"recipe.compute.gpus must be 0 or 'auto' on a machine without a GPU, was {compute.gpus}: "
        "change it, or run where there is one"
    )


@contextmanager
def cluster(compute: Compute) -> Iterator[None]:
    """The Ray of a run that names no address: started once for all stages, ended with the run."""
    if compute.runner == "local" or compute.address is not None:
        yield
        return
    import ray

    with ray.init(num_cpus=workers(compute), include_dashboard=False):
        yield


def task_runner(compute: Compute) -> Any:
    """Prefect's task runner for the recipe's choice.

    Raises InputError if it needs a package that is not installed.
    """
    if compute.runner == "local":
        from prefect.task_runners import ThreadPoolTaskRunner

        return ThreadPoolTaskRunner(max_workers=workers(compute))
    try:
        from prefect_ray import RayTaskRunner
    except ImportError as error:
        raise InputError(
            "recipe.compute.runner: 'ray' needs the package prefect-ray: install the extra 'ray' of lvd"
        ) from error
    return RayTaskRunner(address=compute.address)
