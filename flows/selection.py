"""The sub-flows before and after the choice of images: embed, publish."""

from collections.abc import Callable

from lvd.flows import versions
from lvd.flows.collected import Cells, Embedded, Matches, Part, Sources, series_of
from lvd.flows.forgetting import withdrawn_of
from lvd.flows.group import Call, call
from lvd.flows.measuring import measured_vectors
from lvd.flows.run import Run, Work
from lvd.flows.stage import stage
from lvd.infra.shards import ShardRef, StageDir, commit, fingerprint
from lvd.tasks import embed as embed_stage
from lvd.tasks import ledger as ledger_stage
from lvd.tasks import publish as publish_stage
from lvd.tasks.matched import Matched


@stage
def embed(run: Run, sources: Sources, survivors: StageDir) -> Embedded:
    """The embeddings of the pool's survivors and of the curated images."""
    config = run.recipe.embed
    found = measured_vectors(
        run,
        "embed",
        "embed",
        [sources.pool, *sources.curated],
        survivors,
        config,
        embed_stage.VERSION,
        embed_stage.embed_shards,
    )
    return Embedded(
        pool=series_of(found["pool"], sources.pool),
        curated={gathered.name: series_of(found[gathered.name], gathered) for gathered in sources.curated},
    )


@stage
def publish(
    run: Run, sources: Sources, survivors: StageDir, vectors: Embedded, cells: Cells, matches: Matches
) -> versions.Published:
    """The curated dataset and its ledger, as the next version unless the same one is there."""
    config = run.recipe.publish
    included = [g for g, c in zip(sources.curated, run.recipe.curated, strict=True) if c.include]
    curated_parts = [part for g in included for part in g.parts]
    all_parts = [*curated_parts, *sources.pool.parts]
    images = [part.images.shards() for part in all_parts]
    content = [part.content.shards() if part.content else [] for part in all_parts]
    vector_refs = vectors.pool.shards()
    inputs = {
        "images": [part.images.directory for part in all_parts],
        "matches": [d.directory for d in matches.by_collection.values()],
        "fates": survivors.directory,
        "cells": cells.cells.directory,
    }
    if any(content):
        inputs["content"] = [part.content.directory for part in all_parts if part.content]
    withdrawn = [withdrawn_of(survivors, part) for part in curated_parts]
    selection = run.target("selection", publish_stage.VERSION, config.model_dump(), len(curated_parts), inputs)
    if run.needs(selection):
        matched = [Matched(name=n, shards=tuple(d.shards())) for n, d in matches.by_collection.items()]
        curated_images, pool_images = images[: len(curated_parts)], images[len(curated_parts) :]
        each = zip(curated_images, content, withdrawn, strict=False)
        curated = [publish_stage.Looked(images=i, content=c, withdrawn=w) for i, c, w in each]
        left = cells.cells.shards()
        chosen = publish_stage.select.submit(curated, pool_images, left, matched, selection, config)
        commit(selection, chosen.result(), config=config.model_dump(), inputs=inputs)
    said = run.recipe.model_dump(mode="json", exclude={"root", "miniature", "crawl", "download", "compute", "plan"})
    identity = (
        publish_stage.VERSION,
        ledger_stage.VERSION,
        selection.directory,
        said,
    )  # the card says what `said` says
    version = versions.version_of(run, fingerprint("version", identity))

    ledger = run.named(f"curated/{version}", "ledger")
    gone = cells.duplicates.shards()[0] if cells.duplicates else None
    computing = _ledger_shards(all_parts, withdrawn, selection, survivors.shards(), vector_refs, gone)
    count = sum(len(refs) for refs in images)
    run.complete("publish", [Work(target=ledger, count=count, call=computing, inputs=inputs)])
    candidates = sum(part.manifest.account()["rows_in"] for part in all_parts)
    states = ledger_stage.check_balance(ledger.shards(), candidates)

    dataset, chosen_refs = run.named("curated", version), selection.shards()
    faces = run.recipe.screen.faces
    blur = publish_stage.Blur(min_score=faces.blur_min_score) if faces else None
    looked = [publish_stage.Looked(images=i, content=c) for i, c in zip(images, content, strict=True)]

    def write(ref: ShardRef) -> Call:
        return call(publish_stage.publish_shard, chosen_refs[ref.index], looked, ref, blur)

    settings = config.model_dump()
    work = Work(target=dataset, count=len(chosen_refs), call=write, config=settings, inputs=inputs)
    run.complete("publish", [work])
    return versions.Published(version=version, dataset=dataset, ledger=ledger, states=states, candidates=candidates)


def _ledger_shards(
    parts: list[Part],
    withdrawn: list[list[ShardRef]],
    selection: StageDir,
    fates: list[ShardRef],
    vectors: list[ShardRef],
    duplicates: ShardRef | None,
) -> Callable[[ShardRef], Call]:
    """How a shard of the ledger is computed: one for every shard of images, the included curated ones first.

    withdrawn: what was taken down of each included curated partition.
    """
    num_curated = len(withdrawn)
    chosen, places = selection.shards(), [notes["places"] for notes in selection.account()["shard_notes"]]
    each = [
        (number, index, manifest, images)
        for number, part in enumerate(parts)
        for index, (manifest, images) in enumerate(zip(part.manifest.shards(), part.images.shards(), strict=True))
    ]
    content = [part.content.shards() if part.content else [] for part in parts[:num_curated]]
    pool_starts = sum(number < num_curated for number, *_ in each)

    def computing(ref: ShardRef) -> Call:
        number, index, manifest, images = each[ref.index]
        held = publish_stage.holding(chosen, places, number, images)
        if number < num_curated:
            seen, gone = (refs[number][index : index + 1] for refs in (content, withdrawn))
            return call(ledger_stage.curated_shard, manifest, images, seen, held, number, ref, gone)
        index = ref.index - pool_starts
        return call(
            ledger_stage.pool_shard, manifest, images, fates[index], vectors[index], held, number, ref, duplicates
        )

    return computing
