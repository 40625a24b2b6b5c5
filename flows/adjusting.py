"""Adjusted descriptors of a run: the root's own background, and what is measured by it."""

from typing import Any

from lvd.flows.collected import Sources, shards_of
from lvd.flows.group import Call, call
from lvd.flows.run import Run, Work
from lvd.infra.shards import ShardRef, StageDir, fingerprint
from lvd.tasks import adjusting, models
from lvd.tasks.copies import Config
from lvd.tasks.models import engine


def background_identity(config: Config, seed: int) -> tuple[Any, ...]:
    """What tells a root's background from another one: the model, and how it is drawn."""
    settings = engine.settings(config)
    whitening = config.whitening.model_dump() if config.whitening else None
    size = config.score_normalisation.sample_size if config.score_normalisation else None
    return adjusting.VERSION, settings, models.weights_digest(config), whitening, size, seed


def stored_background(root: str, config: Config, seed: int) -> StageDir | None:
    """The background that a root has for these settings, if it has one."""
    target = StageDir(
        root=root, stage="background", fingerprint=fingerprint("background", *background_identity(config, seed))
    )
    return target if target.is_complete() else None


def own_background(run: Run, pool: list[ShardRef]) -> StageDir:
    """The root's background, drawn by the first run with these settings from the descriptors of that run.

    It stays as it is when the pool grows, so that all later images are measured alike.
    """
    config, seed = run.recipe.copies, run.recipe.seed
    target = run.target("background", *background_identity(config, seed))
    size = config.score_normalisation.sample_size if config.score_normalisation else None

    def computing(ref: ShardRef) -> Call:
        return call(adjusting.fit_background, pool, ref, config.whitening, size, seed)

    settings = {"whitening": config.whitening and config.whitening.model_dump(), "sample_size": size, "seed": seed}
    inputs = {"descriptors": list(dict.fromkeys(ref.directory for ref in pool))}
    run.complete("copies", [Work(target=target, count=1, call=computing, config=settings, inputs=inputs)])
    return target


def adjusted_vectors(run: Run, sources: Sources, described: dict[str, list[StageDir]]) -> dict[str, list[StageDir]]:
    """One directory of adjusted descriptors for each directory of descriptors. Collection → directories.

    The end of a directory's name is that of its descriptors: which images were alive.
    """
    background = own_background(run, shards_of(described["pool"], sources.pool))
    (drawn,) = background.shards()
    normalisation = run.recipe.copies.score_normalisation
    said = {
        "background": background.directory,
        "score_normalisation": normalisation.model_dump() if normalisation else None,
    }
    works: dict[str, list[Work]] = {}
    for name, directories in described.items():
        for directory in directories:
            shards, account = directory.shards(), directory.account()
            measure = fingerprint("adjusted", adjusting.VERSION, said, directory.directory)
            target = run.named("adjusted", f"{measure[:24]}-{directory.fingerprint.rpartition('-')[2]}")

            def computing(ref: ShardRef, shards: list[ShardRef] = shards) -> Call:
                return call(adjusting.adjust_shard, shards[ref.index], drawn, ref, normalisation, device=run.device)

            inputs = {"images": account["inputs"]["images"], "descriptors": directory.directory}
            config = {**account["config"], **said}
            work = Work(
                target=target, count=len(shards), call=computing, device=run.device, config=config, inputs=inputs
            )
            works.setdefault(name, []).append(work)
    run.complete("copies", [work for each in works.values() for work in each])
    return {name: [work.target for work in each] for name, each in works.items()}
