"""The sub-flows that choose images and publish them: embed, cluster, retrieve, publish."""

from typing import Any

from lvd.flows import versions
from lvd.flows.collected import Cells, Matches, Sources, shards_of
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
        embed_stage.embed_shard,
    )


@stage
def cluster(run: Run, sources: Sources, vectors: dict[str, list[StageDir]]) -> Cells:
    """Centroids of the pool's survivors, and the cell of each."""
    config, directories = run.recipe.cluster, [d.directory for d in vectors["pool"]]
    refs = shards_of(vectors["pool"], sources.pool)
    centroids = run.target("centroids", cluster_stage.VERSION, config.model_dump(), run.recipe.seed, directories)

    def fit(ref: ShardRef) -> Any:
        return cluster_stage.fit_centroids.submit(refs, ref, config, run.recipe.seed)

    run.complete(
        "cluster",
        [Work(target=centroids, count=1, submit=fit, config=config.model_dump(), inputs={"vectors": directories})],
    )
    cells = run.target("cluster", cluster_stage.VERSION, centroids.directory)
    centroid_ref = centroids.shards()[0]

    def assign(ref: ShardRef) -> Any:
        return cluster_stage.assign_shard.submit(refs[ref.index], centroid_ref, ref)

    run.complete(
        "cluster", [Work(target=cells, count=len(refs), submit=assign, inputs={"centroids": centroids.directory})]
    )
    return Cells(centroids=centroids, cells=cells)


@stage
def retrieve(run: Run, sources: Sources, vectors: dict[str, list[StageDir]], cells: Cells) -> Matches:
    """The matches of every curated collection that retrieves."""
    config, seed = run.recipe.retrieve, run.recipe.seed
    pool_refs = shards_of(vectors["pool"], sources.pool)
    policies = {c.name: c.retrieve for c in run.recipe.curated if c.retrieve}
    queries = {name: shards_of(vectors[name]) for name in policies}
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

            def submit(
                ref: ShardRef, name: str = name, policy: Any = policy, candidates: list[ShardRef] = candidates
            ) -> Any:
                return retrieve_stage.retrieve_sample.submit(name, candidates, pool_refs, ref, policy, config)

            inputs = {"candidates": found[name].directory}
        else:
            inputs = {"cells": cells.cells.directory, "queries": [d.directory for d in vectors[name]]}
            target = run.target("retrieve", retrieve_stage.VERSION, settings, seed, inputs)

            def submit(ref: ShardRef, name: str = name, policy: Any = policy) -> Any:
                return retrieve_stage.retrieve_cluster.submit(
                    name, queries[name], cells.centroids.shards()[0], cells.cells.shards(), ref, policy, seed
                )

        works.append(Work(target=target, count=1, submit=submit, config=settings, inputs=inputs))
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

    def submit(ref: ShardRef) -> Any:
        return retrieve_stage.search_shard.submit(queries[ref.index], pool_refs, ref, depth=depth, device=run.device)

    return Work(
        target=target, count=len(queries), submit=submit, config={"collection": name, "depth": depth}, inputs=inputs
    )


@stage
def publish(
    run: Run, sources: Sources, survivors: StageDir, vectors: dict[str, list[StageDir]], matches: Matches
) -> versions.Published:
    """The curated dataset and its ledger, as the next version unless the same one is there."""
    config = run.recipe.publish
    included = [g for g, c in zip(sources.curated, run.recipe.curated, strict=True) if c.include]
    curated_parts = [part for g in included for part in g.parts]
    parts = [part.images.shards() for part in (*curated_parts, *sources.pool.parts)]
    matched = [publish_stage.Matched(name=name, shards=tuple(d.shards())) for name, d in matches.by_collection.items()]
    vector_refs = shards_of(vectors["pool"], sources.pool)
    inputs = {
        "images": [part.images.directory for part in (*curated_parts, *sources.pool.parts)],
        "matches": [d.directory for d in matches.by_collection.values()],
        "fates": survivors.directory,
        "vectors": [d.directory for d in vectors["pool"]],
    }
    selection = run.target("selection", publish_stage.VERSION, config.model_dump(), len(curated_parts), inputs)
    if run.needs(selection):
        count = publish_stage.select.submit(
            parts[: len(curated_parts)], parts[len(curated_parts) :], vector_refs, matched, selection, config
        ).result()
        commit(selection, count, config=config.model_dump(), inputs=inputs)
    chosen = selection.shards()
    version = versions.version_of(
        run, fingerprint("version", publish_stage.VERSION, ledger_stage.VERSION, selection.directory, run.recipe.name)
    )
    target = run.named("curated", version)

    def write(ref: ShardRef) -> Any:
        return publish_stage.publish_shard.submit(chosen[ref.index], parts, ref)

    def account(ref: ShardRef) -> Any:
        if ref.index < curated_shards:
            return ledger_stage.curated_shard.submit(
                manifests[ref.index], images[ref.index], chosen, part_of[ref.index], ref
            )
        index = ref.index - curated_shards
        return ledger_stage.pool_shard.submit(
            manifests[ref.index],
            images[ref.index],
            fate_refs[index],
            vector_refs[index],
            chosen,
            part_of[ref.index],
            ref,
        )

    images = [ref for refs in parts for ref in refs]
    part_of = [number for number, refs in enumerate(parts) for _ in refs]
    manifests = [ref for part in (*curated_parts, *sources.pool.parts) for ref in part.manifest.shards()]
    curated_shards = sum(len(refs) for refs in parts[: len(curated_parts)])
    fate_refs = survivors.shards()
    ledger_dir = run.named(f"curated/{version}", "ledger")
    run.complete("publish", [Work(target=ledger_dir, count=len(images), submit=account, inputs=inputs)])
    candidates = sum(part.manifest.account()["rows_in"] for part in (*curated_parts, *sources.pool.parts))
    states = ledger_stage.check_balance(ledger_dir.shards(), candidates)
    run.complete(
        "publish", [Work(target=target, count=len(chosen), submit=write, config=config.model_dump(), inputs=inputs)]
    )
    return versions.Published(version=version, dataset=target, ledger=ledger_dir, states=states, candidates=candidates)
