"""The sub-flows that bring images in: crawl, download, screen."""

from collections import Counter
from typing import Any

from lvd.flows.collected import Gathered, Part, Sources, shards_of
from lvd.flows.run import Run, Work
from lvd.flows.stage import commit_decision, stage
from lvd.infra.errors import InputError
from lvd.infra.shards import ShardRef, StageDir, commit
from lvd.tasks import crawl as crawl_stage
from lvd.tasks import download as download_stage
from lvd.tasks import screen as screen_stage
from lvd.tasks.sources import Partition, partitions


def listed(run: Run) -> list[tuple[str, str, str, list[Partition]]]:
    """(field of the recipe, role, name, partitions) of every source, the pool's first.

    Raises InputError naming the field whose source is not there.
    """
    recipe = run.recipe
    if not recipe.pool:
        raise InputError("recipe.pool must name at least one source, was empty: give a kind and a path")
    asked = [(f"recipe.pool[{i}]", "pool", "pool", source) for i, source in enumerate(recipe.pool)]
    asked += [(f"recipe.benchmarks[{i}]", "benchmark", c.name, c.source) for i, c in enumerate(recipe.benchmarks)]
    asked += [(f"recipe.curated[{i}]", "curated", c.name, c.source) for i, c in enumerate(recipe.curated)]
    result, seen = [], Counter()
    for where, role, name, source in asked:
        if source is None:
            raise InputError(f"{where} must have a source to be run: give its kind and path")
        try:
            found = partitions(source)
        except InputError as error:
            raise InputError(f"{where}.{error}") from error
        result.append((where, role, name, [told_apart(partition, role, seen) for partition in found]))
    return result


def told_apart(partition: Partition, role: str, seen: Counter[tuple[str, str]]) -> Partition:
    """The partition with the number of those of equal content that came before it in the same role."""
    seen[role, partition.digest] += 1
    return partition.model_copy(update={"repeat": seen[role, partition.digest] - 1})


@stage
def crawl(run: Run) -> Sources:
    """The manifests: every candidate of every source, listed once."""
    config = run.recipe.crawl
    started, parts = {}, {}
    for _, role, name, found in listed(run):
        for partition in found:
            target = run.target("crawl", crawl_stage.VERSION, config.model_dump(), partition.digest, partition.repeat)
            if target.directory not in started and run.needs(target):
                future = crawl_stage.manifest_shards.submit(target, partition, config)
                started[target.directory] = target, partition, future
            parts.setdefault((role, name), []).append(Part(partition=partition, manifest=target))
    for target, partition, future in started.values():
        inputs = {"files": list(partition.files)[:100], "digest": partition.digest}
        commit(target, future.result(), config=config.model_dump(mode="json"), inputs=inputs)
    gathered = [Gathered(role=role, name=name, parts=tuple(found)) for (role, name), found in parts.items()]
    pool, *others = gathered
    return Sources(
        pool=pool,
        benchmarks=tuple(g for g in others if g.role == "benchmark"),
        curated=tuple(g for g in others if g.role == "curated"),
    )


@stage
def download(run: Run, sources: Sources) -> Sources:
    """The images: bytes as they came, and a reject for every candidate that gave none."""
    config, works = run.recipe.download, []

    def with_images(part: Part) -> Part:
        target = run.target("download", download_stage.VERSION, config.deciding(), part.manifest.directory)
        manifest = part.manifest.shards()

        def submit(ref: ShardRef) -> Any:
            return download_stage.download_shard.submit(manifest[ref.index], ref, config)

        works.append(
            Work(
                target=target,
                count=len(manifest),
                submit=submit,
                config=config.model_dump(mode="json"),
                inputs={"manifest": part.manifest.directory},
            )
        )
        return part.model_copy(update={"images": target})

    def fetched(gathered: Gathered) -> Gathered:
        return gathered.model_copy(update={"parts": tuple(with_images(part) for part in gathered.parts)})

    result = Sources(
        pool=fetched(sources.pool),
        benchmarks=tuple(map(fetched, sources.benchmarks)),
        curated=tuple(map(fetched, sources.curated)),
    )
    run.complete("download", works)
    return result


@stage
def screen(run: Run, sources: Sources) -> tuple[list[StageDir], StageDir]:
    """The measures of the pool's images, and the first fates: what the rules keep."""
    config, works = run.recipe.screen, []
    for part in sources.pool.parts:
        images = part.images.shards()
        target = run.target("screen", screen_stage.VERSION, config.max_pixels, part.images.directory)

        def submit(ref: ShardRef, images: list[ShardRef] = images) -> Any:
            return screen_stage.screen_shard.submit(images[ref.index], ref, config.max_pixels)

        works.append(
            Work(
                target=target,
                count=len(images),
                submit=submit,
                config={"max_pixels": config.max_pixels},
                inputs={"images": part.images.directory},
            )
        )
    run.complete("screen", works)
    measures = [work.target for work in works]
    target = run.target(
        "screened", screen_stage.VERSION, config.model_dump(mode="json"), [m.directory for m in measures]
    )
    if run.needs(target):
        images = sources.pool.images()
        commit_decision(
            target,
            len(images),
            screen_stage.decide.submit(images, shards_of(measures, sources.pool), target, config),
            config,
            measures,
        )
    return measures, target
