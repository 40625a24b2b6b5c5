"""Which task runner, which device, which resources: where the work of a stage runs."""

import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from lvd.flows.recipe import Compute, Resources
from lvd.infra.errors import InputError
from lvd.infra.writing import NODE_VARIABLE

RETRIES = 5  # of a task whose node or process died; what it had written is not computed again
RAY_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    # A worker process keeps its models from task to task and may be given another GPU: see `own_device`.
    "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
}
# How patient a task is with Prefect's server: as the run itself.
PASSED_ON = tuple(
    f"PREFECT_CLIENT_{name}" for name in ("MAX_RETRIES", "RETRY_EXTRA_CODES", "SERVER_VERSION_CHECK_ENABLED")
)


def workers(compute: Compute) -> int:
    """Tasks that run at once on this machine."""
    return (os.cpu_count() or 1) if compute.cpu_workers == "auto" else compute.cpu_workers


def device(compute: Compute) -> str:
    """The kind of device that models run on: `cpu`, or `cuda` where this machine, or the Ray cluster, has a GPU."""
    if compute.gpus == 0:
        return "cpu"
    if gpus(compute) or (compute.runner == "ray" and compute.gpus != "auto"):  # its nodes may come when they are needed
        return "cuda"
    if compute.gpus == "auto":
        return "cpu"
    raise InputError(
        f"recipe.compute.gpus must be 0 or 'auto' where there is no GPU, was {compute.gpus}: "
        "change it, or run where there is one"
    )


def gpus(compute: Compute) -> int:
    """GPUs that there are, on this machine or in the Ray cluster that the run is connected to."""
    if compute.runner == "ray":
        return int(_cluster_resources().get("GPU", 0))
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return there if compute.gpus == "auto" else min(there, compute.gpus)


def every_gpu(compute: Compute) -> tuple[str, ...]:
    """All GPUs of this machine, for a task beside which no other runs; none on a cluster, where a task has its own."""
    if compute.runner != "local" or device(compute) == "cpu":
        return ()
    return tuple(f"cuda:{number}" for number in range(gpus(compute)))


def slots(compute: Compute, stage: str, device: str) -> int:
    """Tasks of a stage that can run at once, as the pool stands now."""
    if compute.runner == "local":
        return gpus(compute) if device != "cpu" else workers(compute)
    asked, there = resources(compute, stage, device), _cluster_resources()
    bounds = [there.get("CPU", 0) / asked.cpus]
    if asked.gpus:
        bounds.append(there.get("GPU", 0) / asked.gpus)
    return int(min(bounds))


def resources(compute: Compute, stage: str, device: str) -> Resources:
    """What one task of a stage asks for: what the recipe says, else one GPU with its share of cores, else one core."""
    said = compute.resources.get(stage, Resources())
    gpus_ = said.gpus if said.gpus is not None else 1.0
    if device == "cpu":
        return said.model_copy(update={"cpus": said.cpus or 1.0, "gpus": 0.0})
    return said.model_copy(update={"cpus": said.cpus or max(1.0, gpus_ * cores_per_gpu(compute)), "gpus": gpus_})


def cores_per_gpu(compute: Compute) -> int:
    """Cores that belong to each GPU: of this machine, or of that node of the cluster that has fewest."""
    if compute.runner == "local":
        return max(1, workers(compute) // max(1, gpus(compute)))
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    return max(1, int(min((node.get("CPU", 1) / node["GPU"] for node in nodes), default=1)))


def decoders(compute: Compute, stage: str, device: str) -> int:
    """Threads that decode for one task: the cores it has; one on a processor, where several tasks run at once."""
    return 1 if device == "cpu" else max(1, int(resources(compute, stage, device).cpus))


def asking(compute: Compute, stage: str, device: str) -> AbstractContextManager[Any]:
    """What is submitted inside asks Ray for the resources of that stage."""
    if compute.runner == "local":
        return nullcontext()
    from prefect_ray.context import remote_options

    asked = resources(compute, stage, device)
    options: dict[str, Any] = {"num_cpus": asked.cpus, "max_retries": RETRIES}
    if asked.gpus:
        # Ray would end a process that had a GPU after every task, and the models with it.
        options |= {"num_gpus": asked.gpus, "max_calls": 0}
    if asked.memory_gb is not None:
        options["memory"] = int(asked.memory_gb * 1e9)
    return remote_options(**options)


def name_node() -> None:
    """Lets the accounts of shards say which node of a Ray cluster made them."""
    if (context := _ray_context()) is not None:
        os.environ[NODE_VARIABLE] = context.get_node_id()[:8]


@contextmanager
def own_device(device: str, *, gpus: int = 1, share: float = 1.0) -> Iterator[str]:
    """The very device for the work inside: of several GPUs the one that Ray assigned, or the next one that is free.

    gpus: of this machine that may be lent; share: of the assigned GPU's memory that this task may use.
    """
    if device == "cpu":
        yield device
        return
    if (assigned := _assigned_gpu()) is None:
        with _GPUS.one(gpus) as free:
            yield free
        return
    import torch

    from lvd.tasks import models

    models.keep_only(assigned)
    torch.cuda.set_per_process_memory_fraction(min(share, 1.0), assigned)
    try:
        yield assigned
    finally:
        torch.cuda.empty_cache()  # another process may be given this GPU next


class _LocalGpus:
    """The GPUs of this machine, each of them lent to one task at a time."""

    def __init__(self) -> None:
        self._changed, self._lent = threading.Condition(), set()

    @contextmanager
    def one(self, most: int) -> Iterator[str]:
        """most: how many may be lent, the first ones of the machine."""
        every = {f"cuda:{index}" for index in range(most)}
        with self._changed:
            self._changed.wait_for(lambda: every - self._lent)
            mine = min(every - self._lent)
            self._lent.add(mine)
        try:
            yield mine
        finally:
            with self._changed:
                self._lent.remove(mine)
                self._changed.notify()


_GPUS = _LocalGpus()


def end_if_broken(errors: Iterable[BaseException | None]) -> None:
    """Ends this process of a Ray node if its GPU context is beyond repair, so that the next task gets a fresh one."""
    if _ray_context() is not None and any("CUDA error" in str(error) for error in errors if error is not None):
        os._exit(1)


def _assigned_gpu() -> str | None:
    """The GPU that Ray gave this task, as torch counts them here; None outside Ray."""
    if (context := _ray_context()) is None or not (ids := context.get_accelerator_ids().get("GPU")):
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return f"cuda:{visible.split(',').index(str(ids[0])) if visible else int(ids[0])}"


def _ray_context() -> Any:
    """What Ray says of the task that this process runs; None where it runs none."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    return context if context.get_task_id() else None


def _cluster_resources() -> dict[str, float]:
    """What all nodes of the connected cluster have; nothing if the run is not connected to one."""
    import ray

    return ray.cluster_resources() if ray.is_initialized() else {}


@contextmanager
def cluster(compute: Compute) -> Iterator[None]:
    """The Ray of a run: connected once for all stages; without an address one is started, and ended with the run.

    Raises InputError if the cluster does not answer.
    """
    if compute.runner == "local":
        yield
        return
    import ray

    own_settings = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    environment = {
        "runtime_env": {"env_vars": RAY_ENVIRONMENT | own_settings},
        "namespace": "lvd",
        "log_to_driver": False,
    }
    own = {"num_cpus": workers(compute), "include_dashboard": False} if compute.address is None else {}
    try:
        connected = ray.init(address=compute.address or "local", **own, **environment)
    except (ConnectionError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"recipe.compute.address must be that of a Ray cluster that answers, was {compute.address!r} ({reason}): "
            "correct it, or set RAY_AUTH_TOKEN as the cluster has it"
        ) from error
    with connected:
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
