"""The sub-flows before and after the choice of images: embed, publish."""

from collections.abc import Callable

from lvd.flows import versions
from lvd.flows.collected import Cells, Embedded, Matches, Part, Sources, series_of
from lvd.flows.forgetting import withdrawn_of
from lvd.flows.group import Call, call
from lvd.flows.measuring import measured_vectors
from lvd.flows.run import Run, Work
from lvd.flows.stage import stage
from lvd.infra.committing import commit
from lvd.infra.shards import ShardRef, StageDir, fingerprint
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
    looked = [
        publish_stage.Looked(images=part.images.shards(), content=part.content.shards() if part.content else [])
        for part in all_parts
    ]
    vector_refs = vectors.pool.shards()
    inputs = {
        "images": [part.images.directory for part in all_parts],
        "matches": [d.directory for d in matches.by_collection.values()],
        "fates": survivors.directory,
        "cells": list(cells.cells.directories),
    }
    if any(part.content for part in all_parts):
        inputs["content"] = [part.content.directory for part in all_parts if part.content]
    withdrawn = [withdrawn_of(survivors, part) for part in curated_parts]
    selection = run.target("selection", publish_stage.VERSION, config.model_dump(), len(curated_parts), inputs)
    if run.needs(selection):
        matched = [Matched(name=n, shards=tuple(d.shards())) for n, d in matches.by_collection.items()]
        each = zip(looked, withdrawn, strict=False)
        curated = [one.model_copy(update={"withdrawn": gone}) for one, gone in each]
        pool_images = [one.images for one in looked[len(curated_parts) :]]
        left = cells.cells.shards()
        chosen = publish_stage.select.submit(curated, pool_images, left, matched, selection, config)
        commit(selection, chosen.result(), config=config.model_dump(), inputs=inputs)
    silent = {"root", "miniature", "crawl", "download", "compute", "plan", "alerts", "metrics_file"}
    said = run.recipe.model_dump(mode="json", exclude=silent)
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
    count = sum(len(one.images) for one in looked)
    run.complete("publish", [Work(target=ledger, count=count, call=computing, inputs=inputs)])
    candidates = sum(part.manifest.account()["rows_in"] for part in all_parts)
    states = ledger_stage.check_balance(ledger.shards(), candidates)

    dataset = run.named("curated", version)
    faces = run.recipe.screen.faces
    blur = publish_stage.Blur(min_score=faces.blur_min_score) if faces else None
    lent, computing = _shards(all_parts, looked, selection, blur)
    settings = config.model_dump()
    work = Work(target=dataset, count=len(lent), call=computing, config=settings, inputs=inputs, lent=lent)
    run.complete("publish", [work])
    return versions.Published(version=version, dataset=dataset, ledger=ledger, states=states, candidates=candidates)


def _shards(
    parts: list[Part], looked: list[publish_stage.Looked], selection: StageDir, blur: publish_stage.Blur | None
) -> tuple[list[ShardRef], Callable[[ShardRef], Call]]:
    """The shards of the dataset, each in a directory named by what is in it, and how one of them is computed.

    What is in it: rows of the selection, the images that they name, and, if faces are blurred, where and how. So every
    version that holds the same finds the shard there.
    """
    sources: dict[str, tuple[ShardRef, list[int]]] = {}  # directory → the shard of the selection, and its parts
    for ref, notes in zip(selection.shards(), selection.account()["shard_notes"], strict=True):
        faces = [parts[number].content.directory for number in notes["parts"]] if blur else []
        identity = (publish_stage.VERSION, notes["digest"], blur and blur.model_dump(), faces)
        sources[f"{versions.SHARDS}/{fingerprint(versions.SHARDS, *identity)}"] = ref, notes["parts"]

    def computing(ref: ShardRef) -> Call:
        chosen, numbers = sources[ref.directory]
        return call(publish_stage.publish_shard, chosen, {number: looked[number] for number in numbers}, ref, blur)

    return [ShardRef(root=selection.root, directory=name, index=0, count=1) for name in sources], computing


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
