"""The sub-flows that choose images and publish them: embed, cluster, retrieve, publish."""

from collections.abc import Callable
from typing import Any

from lvd.flows import versions
from lvd.flows.collected import Cells, Matches, Part, Sources, shards_of
from lvd.flows.group import Call, call
from lvd.flows.measuring import measured_vectors
from lvd.flows.run import Run, Work
from lvd.flows.stage import stage
from lvd.infra.shards import ShardRef, StageDir, commit, fingerprint
from lvd.tasks import cluster as cluster_stage
from lvd.tasks import embed as embed_stage
from lvd.tasks import ledger as ledger_stage
from lvd.tasks import publish as publish_stage
from lvd.tasks import retrieve as retrieve_stage


@stage
def embed(run: Run, sources: Sources, survivors: StageDir) -> dict[str, list[StageDir]]:
    """The embeddings of the pool's survivors and of the curated images: collection → directories."""
    config = run.recipe.embed
    return measured_vectors(
        run,
        "embed",
        "embed",
        [sources.pool, *sources.curated],
        survivors,
        config,
        embed_stage.VERSION,
        embed_stage.embed_shards,
    )


@stage
def cluster(run: Run, sources: Sources, vectors: dict[str, list[StageDir]]) -> Cells:
    """Centroids of the pool's survivors, and the cell of each."""
    config, directories = run.recipe.cluster, [d.directory for d in vectors["pool"]]
    refs = shards_of(vectors["pool"], sources.pool)
    centroids = run.target("centroids", cluster_stage.VERSION, config.model_dump(), run.recipe.seed, directories)

    def fit(ref: ShardRef) -> Call:
        return call(cluster_stage.fit_centroids, refs, ref, config, run.recipe.seed)

    run.complete(
        "cluster",
        [Work(target=centroids, count=1, call=fit, config=config.model_dump(), inputs={"vectors": directories})],
    )
    cells = run.target("cluster", cluster_stage.VERSION, centroids.directory)
    centroid_ref = centroids.shards()[0]

    def assign(ref: ShardRef) -> Call:
        return call(cluster_stage.assign_shard, refs[ref.index], centroid_ref, ref)

    run.complete(
        "cluster", [Work(target=cells, count=len(refs), call=assign, inputs={"centroids": centroids.directory})]
    )
    return Cells(centroids=centroids, cells=cells)


@stage
def retrieve(run: Run, sources: Sources, vectors: dict[str, list[StageDir]], cells: Cells) -> Matches:
    """The matches of every curated collection that retrieves."""
    config, seed = run.recipe.retrieve, run.recipe.seed
    pool_refs = shards_of(vectors["pool"], sources.pool)
    policies = {c.name: c.retrieve for c in run.recipe.curated if c.retrieve}
    queries = {g.name: shards_of(vectors[g.name], g) for g in sources.curated if g.name in policies}
    searches, settled = [], {}
    for name, policy in policies.items():
        if isinstance(policy, retrieve_stage.Sample):
            searches.append(
                _search(run, name, queries[name], pool_refs, policy.neighbors * config.depth_per_neighbor, vectors)
            )
    run.complete("retrieve", searches)
    found = {work.config["collection"]: work.target for work in searches}
    works = []
    for name, policy in policies.items():
        settings = {"collection": name, **policy.model_dump(), **config.model_dump()}
        if name in found:
            candidates = found[name].shards()
            target = run.target("retrieve", retrieve_stage.VERSION, settings, found[name].directory)

            def computing(
                ref: ShardRef, name: str = name, policy: Any = policy, candidates: list[ShardRef] = candidates
            ) -> Call:
                return call(retrieve_stage.retrieve_sample, name, candidates, pool_refs, ref, policy, config)

            inputs = {"candidates": found[name].directory}
        else:
            inputs = {"cells": cells.cells.directory, "queries": [d.directory for d in vectors[name]]}
            target = run.target("retrieve", retrieve_stage.VERSION, settings, seed, inputs)

            def computing(ref: ShardRef, name: str = name, policy: Any = policy) -> Call:
                return call(
                    retrieve_stage.retrieve_cluster,
                    name,
                    queries[name],
                    cells.centroids.shards()[0],
                    cells.cells.shards(),
                    ref,
                    policy,
                    seed,
                )

        works.append(Work(target=target, count=1, call=computing, config=settings, inputs=inputs))
        settled[name] = target
    run.complete("retrieve", works)
    return Matches(by_collection=settled)


def _search(
    run: Run,
    name: str,
    queries: list[ShardRef],
    pool_refs: list[ShardRef],
    depth: int,
    vectors: dict[str, list[StageDir]],
) -> Work:
    inputs = {"pool": [d.directory for d in vectors["pool"]], "queries": [d.directory for d in vectors[name]]}
    target = run.target("candidates", retrieve_stage.VERSION, depth, inputs)

    def computing(ref: ShardRef) -> Call:
        return call(retrieve_stage.search_shard, queries[ref.index], pool_refs, ref, depth=depth, device=run.device)

    config = {"collection": name, "depth": depth}
    return Work(target=target, count=len(queries), call=computing, device=run.device, config=config, inputs=inputs)


@stage
def publish(
    run: Run, sources: Sources, survivors: StageDir, vectors: dict[str, list[StageDir]], matches: Matches
) -> versions.Published:
    """The curated dataset and its ledger, as the next version unless the same one is there."""
    config = run.recipe.publish
    included = [g for g, c in zip(sources.curated, run.recipe.curated, strict=True) if c.include]
    curated_parts = [part for g in included for part in g.parts]
    all_parts = [*curated_parts, *sources.pool.parts]
    images = [part.images.shards() for part in all_parts]
    content = [part.content.shards() if part.content else [] for part in all_parts]
    vector_refs = shards_of(vectors["pool"], sources.pool)
    inputs = {
        "images": [part.images.directory for part in all_parts],
        "matches": [d.directory for d in matches.by_collection.values()],
        "fates": survivors.directory,
        "vectors": [d.directory for d in vectors["pool"]],
    }
    if any(content):
        inputs["content"] = [part.content.directory for part in all_parts if part.content]
    selection = run.target("selection", publish_stage.VERSION, config.model_dump(), len(curated_parts), inputs)
    if run.needs(selection):
        matched = [publish_stage.Matched(name=n, shards=tuple(d.shards())) for n, d in matches.by_collection.items()]
        curated_images, pool_images = images[: len(curated_parts)], images[len(curated_parts) :]
        curated = [publish_stage.Looked(images=i, content=c) for i, c in zip(curated_images, content, strict=False)]
        chosen = publish_stage.select.submit(curated, pool_images, vector_refs, matched, selection, config)
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
    computing = _ledger_shards(all_parts, len(curated_parts), selection, survivors.shards(), vector_refs)
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
    parts: list[Part], num_curated: int, selection: StageDir, fates: list[ShardRef], vectors: list[ShardRef]
) -> Callable[[ShardRef], Call]:
    """How a shard of the ledger is computed: one for every shard of images, the included curated ones first."""
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
            seen = content[number][index : index + 1]
            return call(ledger_stage.curated_shard, manifest, images, seen, held, number, ref)
        index = ref.index - pool_starts
        return call(ledger_stage.pool_shard, manifest, images, fates[index], vectors[index], held, number, ref)

    return computing
