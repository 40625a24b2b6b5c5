"""The sub-flows that take copies out: fingerprint, copies."""

from lvd.flows.adjusting import adjusted_vectors
from lvd.flows.collected import Sources, series_of, shards_of
from lvd.flows.group import Call, call
from lvd.flows.measuring import measured_vectors
from lvd.flows.neighbours import pool_edges, reference_edges, searched
from lvd.flows.run import Run, Work
from lvd.flows.stage import commit_decision, stage
from lvd.infra.committing import commit
from lvd.infra.errors import InputError
from lvd.infra.series import Series
from lvd.infra.shards import ShardRef, StageDir
from lvd.tasks import copies as copies_stage
from lvd.tasks import fingerprint as fingerprint_stage
from lvd.tasks import hash_fit, models

DECIDING = ("representative", "max_component", "min_representative_similarity")


@stage
def fingerprint(run: Run, sources: Sources, measures: list[StageDir], screened: StageDir) -> StageDir:
    """PCA hashes of the pool, and the fates once exact and near duplicates are gone."""
    config, refs = run.recipe.fingerprint, shards_of(measures, sources.pool)
    fit_uri = config.fit or own_fit(run, refs)
    digest, works = hash_fit.read_fit(fit_uri).digest, []
    for directory in measures:
        own = directory.shards()
        target = run.target("fingerprint", fingerprint_stage.VERSION, digest, directory.directory)

        def computing(ref: ShardRef, own: list[ShardRef] = own) -> Call:
            return call(fingerprint_stage.hash_shard, own[ref.index], ref, fit_uri)

        inputs = {"measures": directory.directory}
        works.append(Work(target=target, count=len(own), call=computing, config={"fit": digest}, inputs=inputs))
    run.complete("fingerprint", works)
    hashes = [work.target for work in works]
    target = run.target(
        "unique",
        fingerprint_stage.VERSION,
        config.rules(),
        digest,
        [d.directory for d in hashes],
        screened.directory,
    )
    if run.needs(target):
        images, hashed = sources.pool.images(), shards_of(hashes, sources.pool)
        decision = fingerprint_stage.decide.submit(images, refs, hashed, screened.shards(), target, config)
        commit_decision(target, len(images), decision, config, [*hashes, screened], fit=digest)
    return target


def own_fit(run: Run, measures: list[ShardRef]) -> str:
    """The URI of the root's own fit, made by the first run with these settings from the pool of that run.

    It stays as it is, so that all later images hash alike; another seed or sample size makes a new one.
    """
    settings = {"sample_size": run.recipe.fingerprint.sample_size, "seed": run.recipe.seed}
    target = run.target("hash-fit", hash_fit.FIT_VERSION, *settings.values())

    def computing(ref: ShardRef) -> Call:
        return call(hash_fit.fit_hash, measures, ref, **settings)

    inputs = {"measures": list(dict.fromkeys(ref.directory for ref in measures))}
    run.complete("fingerprint", [Work(target=target, count=1, call=computing, config=settings, inputs=inputs)])
    return run.storage.uri(f"{target.directory}/fit.npz")


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
        copies_stage.describe_shards,
    )
    if config.is_adjusted:
        described = adjusted_vectors(run, sources, described)
    pool = series_of(described["pool"], sources.pool)
    references = [
        copies_stage.Reference(
            name=g.name, role=g.role, shards=tuple(ref for d in described[g.name] for ref in d.shards())
        )
        for g in used
    ]
    others = Series.of([d for g in used for d in described[g.name]])
    edges, reference_found = pool_edges(run, pool, thresholds), reference_edges(run, pool, others, thresholds)
    settings = {**config.model_dump(include=set(DECIDING)), **thresholds.model_dump()}
    names = [[r.name, r.role, len(described[r.name])] for r in references]
    inputs = [*edges.stage_dirs(), *reference_found.stage_dirs(), unique]
    identity = copies_stage.VERSION, settings, names, [d.directory for d in inputs]
    target, grouped, decontaminated = (
        run.target(name, *identity) for name in ("copies", "components", "decontaminated")
    )
    if run.needs(target):
        images = sources.pool.images()
        targets = copies_stage.Targets(
            fates=target, components=grouped.planned(1)[0], decontaminated=decontaminated.planned(1)[0]
        )
        found = pool.shards(), edges.shards(), reference_found.shards()
        decision = copies_stage.decide.submit(images, unique.shards(), *found, references, targets, config, thresholds)
        decision.wait()
        for extra in (grouped, decontaminated):
            commit(extra, 1, config=settings, inputs={"directories": [d.directory for d in inputs]})
        searches = {"neighbours": searched(edges), "references": searched(reference_found)}
        notes = {"thresholds": thresholds.model_dump(), "search": searches}
        notes |= {"components": grouped.directory, "decontaminated": decontaminated.directory}
        commit_decision(target, len(images), decision, config, inputs, **notes)
    return target


def copy_thresholds(config: copies_stage.Config) -> copies_stage.Thresholds:
    """The recipe's thresholds, or the model's own, which do not hold for adjusted descriptors.

    Raises InputError if there are neither.
    """
    own = None if config.is_adjusted else models.copy_thresholds(config)
    reason = f"the model {config.model!r} has no threshold of its own"
    if config.is_adjusted:
        reason = (
            "with whitening or score_normalisation the model's own does not hold: give 0.5 and see 'lvd study copies'"
        )
    chosen = {
        name: getattr(config, name) or (getattr(own, name) if own else None)
        for name in ("min_similarity", "benchmark_min_similarity")
    }
    for name, value in chosen.items():
        if value is None:
            raise InputError(f"recipe.copies.{name} must be given in (0, 1]: {reason}")
    floor = config.edge_min_similarity or (own.floor if own else 1.0)
    return copies_stage.Thresholds(**chosen, edge_min_similarity=min(floor, *chosen.values()))
