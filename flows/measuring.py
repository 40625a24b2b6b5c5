"""Vectors of collections by a model: what is measured, what can be taken over from an earlier run."""

from typing import Any

from lvd.flows.collected import Gathered
from lvd.flows.run import Run, Work
from lvd.infra.shards import ShardRef, StageDir, fingerprint
from lvd.tasks import models
from lvd.tasks.fates import Decision


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
    settings = config.model_dump(mode="json", include={*models.ModelSpec.model_fields, "batch_size"})
    works, result = [], {}
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
                for name in run.storage.names(stage_name)
                if name.startswith(measure) and (d := target.model_copy(update={"fingerprint": name})).is_complete()
            ]

            def submit(ref: ShardRef, images: Any = images, alive: Any = alive, donors: Any = donors) -> Any:
                return task.submit(images[ref.index], alive[ref.index], ref, config, run.device, donors)

            works.append(
                Work(
                    target=target,
                    count=len(images),
                    submit=submit,
                    config={**settings, "weights": weights},
                    inputs={"images": part.images.directory},
                )
            )
    run.complete(flow_name, works)
    return result
