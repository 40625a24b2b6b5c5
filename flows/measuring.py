"""Vectors of collections by a model: what is measured, and how; what can be taken over from an earlier run."""

from typing import Any

from lvd.flows import pool
from lvd.flows.collected import Gathered
from lvd.flows.group import Call, call, joint_call
from lvd.flows.run import Run, Work
from lvd.infra.shards import ShardRef, StageDir, fingerprint, read_table
from lvd.tasks import batch_size as batch_size_stage
from lvd.tasks import models
from lvd.tasks.fates import Decision
from lvd.tasks.models import engine

CPU_BATCH_SIZE = 32


def measured_vectors(
    run: Run,
    stage_name: str,
    flow_name: str,
    collections: list[Gathered],
    fates_dir: StageDir,
    config: Any,
    version: int,
    task: Any,
) -> dict[str, list[StageDir]]:
    """Vectors of every partition: of the images alive in the pool, of all in the others. Collection → directories.

    A directory's name is what was measured, a dash, and which images were alive; so directories that begin alike hold
    vectors that can be taken over.
    """
    masks = Decision(**fates_dir.account()["notes"]).masks
    weights = models.weights_digest(config)
    inference, device = settled(run, flow_name, config, weights)
    settings = engine.settings(inference)
    options = {
        "inference": inference,
        "device": device,
        "decoders": pool.decoders(run.recipe.compute, flow_name, device),
    }
    works, result, there = [], {}, run.storage.names(stage_name)
    fate_refs = iter(fates_dir.shards())
    for gathered in collections:
        for part in gathered.parts:
            measure = fingerprint(stage_name, version, settings, weights, part.images.directory)[:24]
            mask = masks[part.images.directory] if gathered.role == "pool" else "all"
            target = run.named(stage_name, f"{measure}-{mask}")
            result.setdefault(gathered.name, []).append(target)
            images = part.images.shards()
            alive = [next(fate_refs) for _ in images] if gathered.role == "pool" else [None] * len(images)
            donors = [
                d
                for name in there
                if name.startswith(measure) and (d := target.model_copy(update={"fingerprint": name})).is_complete()
            ]

            def computing(ref: ShardRef, images: Any = images, alive: Any = alive, donors: Any = donors) -> Call:
                job = engine.Job(images=images[ref.index], fates=alive[ref.index], target=ref, donors=tuple(donors))
                return joint_call(task, job, options)

            works.append(
                Work(
                    target=target,
                    count=len(images),
                    call=computing,
                    device=device,
                    config={**settings, "weights": weights},
                    inputs={"images": part.images.directory},
                )
            )
    run.complete(flow_name, works)
    return result


def settled(run: Run, flow_name: str, config: models.Inference, weights: str) -> tuple[models.Inference, str]:
    """How the model is run in this root, and on which kind of device: what the recipe leaves open is decided."""
    device = models.device_for(config, run.device)
    inference = models.Inference(**config.model_dump(include=set(models.Inference.model_fields)))
    if inference.precision == "auto":
        inference = inference.model_copy(update={"precision": models.usual_precision(config, device)})
    if inference.batch_size == "auto":
        size = CPU_BATCH_SIZE if device == "cpu" else found_batch_size(run, flow_name, inference, weights, device)
        inference = inference.model_copy(update={"batch_size": size})
    return inference, device


def found_batch_size(run: Run, flow_name: str, inference: models.Inference, weights: str, device: str) -> int:
    """The batch size that was the fastest when the root first asked: it stays, since vectors may depend on it."""
    said = inference.model_dump(mode="json")
    target = run.target("batch-size", batch_size_stage.VERSION, said, weights)

    def computing(ref: ShardRef) -> Call:
        return call(batch_size_stage.find_batch_size, ref, inference, device=device)

    run.complete(flow_name, [Work(target=target, count=1, call=computing, device=device, config=said)])
    return read_table(target.shards()[0], ["batch_size"])["batch_size"][0].as_py()
