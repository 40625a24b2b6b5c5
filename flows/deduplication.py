"""The sub-flows that take copies out: fingerprint, copies."""

from typing import Any

from lvd.flows.collected import Sources, shards_of
from lvd.flows.measuring import measured_vectors
from lvd.flows.run import Run, Work
from lvd.flows.stage import commit_decision, stage
from lvd.infra.errors import InputError
from lvd.infra.shards import ShardRef, StageDir
from lvd.tasks import copies as copies_stage
from lvd.tasks import fingerprint as fingerprint_stage
from lvd.tasks import models


@stage
def fingerprint(run: Run, sources: Sources, measures: list[StageDir], screened: StageDir) -> StageDir:
    """PCA hashes of the pool, and the fates once exact and near duplicates are gone."""
    config = run.recipe.fingerprint
    refs = shards_of(measures, sources.pool)
    inputs = [m.directory for m in measures]
    hashes = run.target("fingerprint", fingerprint_stage.VERSION, config.sample_size, run.recipe.seed, inputs)

    def submit(ref: ShardRef) -> Any:
        return fingerprint_stage.hash_shard.submit(refs[ref.index], ref, hashes)

    if not run.looking and not run.storage.exists(f"{hashes.directory}/fit.npz"):
        fingerprint_stage.fit_hash.submit(refs, hashes, config, run.recipe.seed).result()
    settings = {"sample_size": config.sample_size, "seed": run.recipe.seed}
    run.complete(
        "fingerprint",
        [Work(target=hashes, count=len(refs), submit=submit, config=settings, inputs={"measures": inputs})],
    )
    target = run.target(
        "unique", fingerprint_stage.VERSION, config.model_dump(mode="json"), hashes.directory, screened.directory
    )
    if run.needs(target):
        images = sources.pool.images()
        decision = fingerprint_stage.decide.submit(images, refs, hashes.shards(), screened.shards(), target, config)
        commit_decision(target, len(images), decision, config, [hashes, screened])
    return target


@stage
def copies(run: Run, sources: Sources, unique: StageDir) -> StageDir:
    """Descriptors of pool and references, their nearest neighbours, and the fates once copies are gone."""
    config = run.recipe.copies
    thresholds = copy_thresholds(config)
    used = sources.references if config.curated_as_reference else sources.benchmarks
    described = measured_vectors(
        run,
        "descriptors",
        "copies",
        [sources.pool, *used],
        unique,
        config,
        copies_stage.VERSION,
        copies_stage.describe_shard,
    )
    pool_dirs, pool_refs = described["pool"], shards_of(described["pool"], sources.pool)
    references = [
        copies_stage.Reference(
            name=g.name, role=g.role, shards=tuple(ref for d in described[g.name] for ref in d.shards())
        )
        for g in used
    ]
    edges = neighbour_edges(run, "neighbours", pool_refs, pool_refs, pool_dirs, pool_dirs, thresholds)
    reference_refs = [ref for reference in references for ref in reference.shards]
    reference_dirs = [d for g in used for d in described[g.name]]
    reference_edges = neighbour_edges(
        run, "references", pool_refs, reference_refs, pool_dirs, reference_dirs, thresholds
    )
    settings = {"representative": config.representative, **thresholds.model_dump()}
    names = [[r.name, r.role, len(described[r.name])] for r in references]
    target = run.target(
        "copies", copies_stage.VERSION, settings, names, edges.directory, reference_edges.directory, unique.directory
    )
    if run.needs(target):
        images = sources.pool.images()
        decision = copies_stage.decide.submit(
            images,
            unique.shards(),
            pool_refs,
            edges.shards(),
            reference_edges.shards(),
            references,
            target,
            config,
            thresholds,
        )
        commit_decision(
            target, len(images), decision, config, [edges, reference_edges, unique], thresholds=thresholds.model_dump()
        )
    return target


def copy_thresholds(config: copies_stage.Config) -> copies_stage.Thresholds:
    """The recipe's thresholds, or the model's own. Raises InputError if there are neither."""
    own = models.copy_thresholds(config)
    chosen = {
        name: getattr(config, name) or (getattr(own, name) if own else None)
        for name in ("min_similarity", "benchmark_min_similarity")
    }
    for name, value in chosen.items():
        if value is None:
            raise InputError(
                f"recipe.copies.{name} must be given in (0, 1]: the model {config.model!r} has no threshold of its own"
            )
    floor = config.edge_min_similarity or (own.floor if own else 1.0)
    return copies_stage.Thresholds(**chosen, edge_min_similarity=min(floor, *chosen.values()))


def neighbour_edges(
    run: Run,
    stage_name: str,
    queries: list[ShardRef],
    database: list[ShardRef],
    query_dirs: list[StageDir],
    database_dirs: list[StageDir],
    thresholds: copies_stage.Thresholds,
) -> StageDir:
    """The directory of the edges from every query shard into the database."""
    k, floor = run.recipe.copies.neighbors, thresholds.edge_min_similarity
    inputs = {"queries": [d.directory for d in query_dirs], "database": [d.directory for d in database_dirs]}
    target = run.target(stage_name, copies_stage.VERSION, k, floor, inputs)

    def submit(ref: ShardRef) -> Any:
        return copies_stage.neighbours_shard.submit(
            queries[ref.index],
            database,
            ref,
            min_similarity=floor,
            k=k,
            same=stage_name == "neighbours",
            device=run.device,
        )

    run.complete(
        "copies",
        [
            Work(
                target=target,
                count=len(queries),
                submit=submit,
                config={"k": k, "min_similarity": floor},
                inputs=inputs,
            )
        ],
    )
    return target
