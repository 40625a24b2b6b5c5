"""The sub-flows that bring images in: crawl, download, screen."""

from typing import Any

from lvd.flows.collected import Gathered, Part, Sources, shards_of
from lvd.flows.run import Run, Work
from lvd.flows.stage import commit_decision, stage
from lvd.infra.errors import InputError
from lvd.infra.shards import ShardRef, StageDir, commit
from lvd.tasks import crawl as crawl_stage
from lvd.tasks import download as download_stage
from lvd.tasks import screen as screen_stage
from lvd.tasks.sources import Partition, Source, num_rows, partitions


def listed(run: Run) -> list[tuple[str, str, list[Partition]]]:
    """(role, name, partitions) of every collection. Raises InputError naming the entry that is not there."""
    recipe = run.recipe

    def found(where: str, source: Source | None) -> list[Partition]:
        if source is None:
            raise InputError(f"{where} must have a source to be run: give its kind and path")
        try:
            return partitions(source)
        except InputError as error:
            raise InputError(f"{where}.{error}") from error

    if not recipe.pool:
        raise InputError("recipe.pool must name at least one source, was empty: give a kind and a path")
    result = [("pool", "pool", [p for i, source in enumerate(recipe.pool) for p in found(f"recipe.pool[{i}]", source)])]
    for role, collections in (("benchmark", recipe.benchmarks), ("curated", recipe.curated)):
        field = "benchmarks" if role == "benchmark" else "curated"
        result += [(role, c.name, found(f"recipe.{field}[{i}]", c.source)) for i, c in enumerate(collections)]
    return result


@stage
def crawl(run: Run) -> Sources:
    """The manifests: every candidate of every source, listed once."""
    config, tasks, gathered = run.recipe.crawl, [], []
    for role, name, found in listed(run):
        parts = []
        for partition in found:
            target = run.target(
                "crawl",
                crawl_stage.VERSION,
                config.model_dump(),
                partition.source.model_dump(mode="json"),
                partition.files,
                partition.digest,
            )
            count = max(1, -(-num_rows(partition) // config.rows_per_shard))
            if run.needs(target, count):
                tasks.append((target, partition, crawl_stage.manifest_shards.submit(target, partition, config)))
            parts.append(Part(partition=partition, manifest=target))
        gathered.append(Gathered(role=role, name=name, parts=tuple(parts)))
    for target, partition, future in tasks:
        inputs = {"files": list(partition.files)[:100], "digest": partition.digest}
        commit(target, future.result(), config=config.model_dump(mode="json"), inputs=inputs)
    by_role = {role: tuple(g for g in gathered if g.role == role) for role in ("pool", "benchmark", "curated")}
    return Sources(pool=by_role["pool"][0], benchmarks=by_role["benchmark"], curated=by_role["curated"])


@stage
def download(run: Run, sources: Sources) -> Sources:
    """The images: bytes as they came, and a reject for every candidate that gave none."""
    config, works = run.recipe.download, []

    def with_images(part: Part) -> Part:
        target = run.target("download", download_stage.VERSION, config.model_dump(mode="json"), part.manifest.directory)
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
