"""The sub-flows that bring images in and look at them: download, content, screen."""

from typing import Any

from lvd.flows import pool
from lvd.flows.collected import Gathered, Part, Sources, shards_of
from lvd.flows.group import Call, call
from lvd.flows.run import Run, Work
from lvd.flows.stage import commit_decision, stage
from lvd.infra.shards import ShardRef, StageDir
from lvd.tasks import content as content_stage
from lvd.tasks import download as download_stage
from lvd.tasks import screen as screen_stage
from lvd.tasks.models.classifiers import ClassifierSpec
from lvd.tasks.models.faces import FaceSpec


@stage
def download(run: Run, sources: Sources) -> Sources:
    """The images: bytes as they came, and a reject for every candidate that gave none."""
    config, share, works = run.recipe.download, pool.workers(run.recipe.compute), []

    def with_images(part: Part) -> Part:
        target = run.target("download", download_stage.VERSION, config.deciding(), part.manifest.directory)
        manifest = part.manifest.shards()

        def computing(ref: ShardRef) -> Call:
            return call(download_stage.download_shard, manifest[ref.index], ref, config, share)

        works.append(
            Work(
                target=target,
                count=len(manifest),
                call=computing,
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
def content(run: Run, sources: Sources) -> Sources:
    """What models see, where the recipe asks for it: in the pool's images, and faces in all that is published."""
    rules, works = run.recipe.screen, []
    nsfw = ClassifierSpec(**rules.nsfw.model_dump(include=set(ClassifierSpec.model_fields))) if rules.nsfw else None
    faces = FaceSpec(**rules.faces.model_dump(include=set(FaceSpec.model_fields))) if rules.faces else None

    def looked_at(part: Part, **models: Any) -> Part:
        config = content_stage.Config(max_pixels=rules.max_pixels, **models)
        said = config.model_dump(mode="json")
        target = run.target("content", content_stage.VERSION, said, config.digests(), part.images.directory)
        images = part.images.shards()

        def computing(ref: ShardRef) -> Call:
            return call(content_stage.content_shard, images[ref.index], ref, config, device=run.device)

        inputs = {"images": part.images.directory}
        work = Work(target=target, count=len(images), call=computing, config=said, inputs=inputs, device=run.device)
        works.append(work)
        return part.model_copy(update={"content": target})

    def seen(gathered: Gathered, **models: Any) -> Gathered:
        parts = tuple(looked_at(part, **models) for part in gathered.parts)
        return gathered.model_copy(update={"parts": parts})

    result = sources
    if nsfw or faces:
        result = result.model_copy(update={"pool": seen(sources.pool, nsfw=nsfw, faces=faces)})
    if faces:
        included = {collection.name for collection in run.recipe.curated if collection.include}
        curated = tuple(seen(g, faces=faces) if g.name in included else g for g in sources.curated)
        result = result.model_copy(update={"curated": curated})
    run.complete("content", works)
    return result


@stage
def screen(run: Run, sources: Sources) -> tuple[list[StageDir], StageDir]:
    """The measures of the pool's images, and the first fates: what the rules keep."""
    config, works = run.recipe.screen, []
    for part in sources.pool.parts:
        images = part.images.shards()
        target = run.target("screen", screen_stage.VERSION, config.max_pixels, part.images.directory)

        def computing(ref: ShardRef, images: list[ShardRef] = images) -> Call:
            return call(screen_stage.screen_shard, images[ref.index], ref, config.max_pixels)

        works.append(
            Work(
                target=target,
                count=len(images),
                call=computing,
                config={"max_pixels": config.max_pixels},
                inputs={"images": part.images.directory},
            )
        )
    run.complete("screen", works)
    measures = [work.target for work in works]
    contents = [part.content for part in sources.pool.parts if part.content]
    inputs = [*measures, *contents]
    target = run.target("screened", screen_stage.VERSION, config.rules(), [d.directory for d in inputs])
    if run.needs(target):
        images = sources.pool.images()
        measured, seen = (shards_of(directories, sources.pool) for directories in (measures, contents))
        decision = screen_stage.decide.submit(images, measured, seen, target, config)
        commit_decision(target, len(images), decision, config, inputs)
    return measures, target
