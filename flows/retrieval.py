"""The sub-flow that chooses: images near the curated ones, shares of clusters, a balanced sample, or a mixture."""

from typing import Any

import numpy as np

from lvd.flows.clustering import assigned
from lvd.flows.collected import Cells, Embedded, Matches
from lvd.flows.group import Call, call
from lvd.flows.nearest_images import BySample
from lvd.flows.run import Run, Work
from lvd.flows.stage import stage
from lvd.infra.committing import commit
from lvd.infra.series import Series
from lvd.infra.shards import ShardRef, StageDir
from lvd.tasks import cluster_shares
from lvd.tasks import retrieve as retrieve_stage
from lvd.tasks.algorithms import mixture
from lvd.tasks.retrieve import BALANCED

FLOW = "retrieve"
OF_THE_WHOLE = ("kind", "queries", "clusters", "recall")  # figures that are those of a thinned selection too


@stage
def retrieve(run: Run, vectors: Embedded, cells: Cells) -> Matches:
    """The matches of every selection: of the curated collections that retrieve, and of the balanced one."""
    config = run.recipe.retrieve
    if config.kind == BALANCED:
        return Matches(by_collection={BALANCED: evenly(run, cells, config.target_images)})
    policies = {c.name: c.retrieve for c in run.recipe.curated if c.retrieve}
    if config.weights:
        policies = {name: policy for name, policy in policies.items() if config.weights.get(name)}
    quotas = {
        name: shared(run, vectors, cells, name, policy) for name, policy in policies.items() if policy.kind == "cluster"
    }
    found = drawn(run, cells, quotas) if quotas else {}
    for name, policy in policies.items():
        if policy.kind == "sample":
            found[name] = BySample(run, name, vectors, cells, policy).matches()
    found = {name: found[name] for name in policies}
    return Matches(by_collection=mixed(run, cells, found) if config.kind == "mixture" else found)


def shared(run: Run, vectors: Embedded, cells: Cells, name: str, policy: retrieve_stage.Cluster) -> StageDir:
    """How many images each cluster gives for a collection."""
    (centroids,), (sizes,) = cells.centroids.shards(), cells.sizes.shards()
    homes = assigned(run, vectors.curated[name], centroids)
    rules = policy.model_dump(exclude={"kind"})
    target = run.target("quotas", cluster_shares.VERSION, name, rules, homes.directories, cells.sizes.directory)

    def sharing(ref: ShardRef) -> Call:
        return call(cluster_shares.share_clusters, homes, sizes, ref, **rules)

    inputs = {"homes": list(homes.directories), "sizes": cells.sizes.directory}
    settings = {"collection": name, **policy.model_dump()}
    run.complete(FLOW, [Work(target=target, count=1, call=sharing, config=settings, inputs=inputs)])
    return target


def evenly(run: Run, cells: Cells, num_images: int, mixing: dict[str, Any] | None = None) -> StageDir:
    """The matches of so many images that all levels of clusters are balanced. mixing: what a mixture says of them."""
    (sizes,), seed = cells.sizes.shards(), run.recipe.seed
    levels = cells.parents.shards() if cells.parents else []
    above = [ref.directory for ref in levels[:1]]
    target = run.target("quotas", cluster_shares.VERSION, BALANCED, num_images, seed, cells.sizes.directory, above)

    def balancing(ref: ShardRef) -> Call:
        return call(cluster_shares.balance_clusters, sizes, levels, ref, num_images, seed)

    inputs = {"sizes": cells.sizes.directory, "parents": above}
    settings = {"collection": BALANCED, "kind": BALANCED, "target_images": num_images}
    run.complete(FLOW, [Work(target=target, count=1, call=balancing, config=settings, inputs=inputs)])
    return drawn(run, cells, {BALANCED: target}, mixing)[BALANCED]


def drawn(
    run: Run, cells: Cells, quotas: dict[str, StageDir], mixing: dict[str, Any] | None = None
) -> dict[str, StageDir]:
    """The matches of what draws from clusters: one pass over the pool's cells for all of them."""
    seed = run.recipe.seed
    collections = [cluster_shares.Drawn(name=name, quotas=target.shards()[0]) for name, target in quotas.items()]
    names = [(one.name, one.quotas.directory) for one in collections]
    target = run.target("drawn", cluster_shares.VERSION, names, seed, cells.cells.directories)

    def drawing(ref: ShardRef) -> Call:
        return call(cluster_shares.draw_group, cells.cells, collections, ref, seed)

    inputs = {"cells": list(cells.cells.directories), "quotas": dict(names)}
    count = cluster_shares.num_groups(cells.cells)
    run.complete(FLOW, [Work(target=target, count=count, call=drawing, config={"seed": seed}, inputs=inputs)])
    numbered = enumerate(collections)
    return {one.name: drawn_for(run, number, one, quotas[one.name], target, mixing or {}) for number, one in numbered}


def drawn_for(
    run: Run, number: int, one: cluster_shares.Drawn, quotas: StageDir, drawn: StageDir, mixing: dict[str, Any]
) -> StageDir:
    """The matches of one collection. number: its place among those that draw."""
    target = run.target("retrieve", retrieve_stage.VERSION, one.name, number, drawn.directory, mixing)
    if run.needs(target):
        account = quotas.account()
        said, kind = account["shard_notes"][0], account["config"]["kind"]
        arguments = (one.name, number, Series.of([drawn]), one.quotas, target, kind)
        written = retrieve_stage.retrieve_cluster.submit(*arguments).result()
        notes = {"kind": kind, **said, **written.notes(), **mixing}
        commit(target, written.shards, config=account["config"], inputs={"drawn": drawn.directory}, notes=notes)
    return target


def mixed(run: Run, cells: Cells, found: dict[str, StageDir]) -> dict[str, StageDir]:
    """The selections of a mixture: each collection's thinned to its share of the target, and the balanced one."""
    config, seed, names = run.recipe.retrieve, run.recipe.seed, list(found)
    available = [directory.account()["notes"]["images"] for directory in found.values()]
    if config.has_balanced:
        names.append(BALANCED)
        available.append(cells.cells.num_rows())
    weights = [config.weights[name] for name in names]
    shares = mixture.shares(config.target_images, weights, np.array(available, dtype=np.int64), refill=config.refill)
    result = {}
    for part, (name, keep, short) in enumerate(zip(names, shares.rows.tolist(), shares.short.tolist(), strict=True)):
        mixing = {"weight": weights[part], "available": available[part], "short": short}
        if name == BALANCED:
            result[name] = evenly(run, cells, keep, mixing)
            continue
        matched = found[name]
        identity = ("mixture", keep, part, seed, mixing, matched.directory)
        target = run.target("retrieve", retrieve_stage.VERSION, *identity)
        if run.needs(target):
            written = retrieve_stage.thin_matches.submit(Series.of([matched]), target, keep, seed, part).result()
            account = matched.account()
            whole = {key: value for key, value in account["notes"].items() if key in OF_THE_WHOLE}
            notes = {**whole, "asked": keep + short, **written.notes(), **mixing}
            commit(target, written.shards, config=account["config"], inputs={"matches": matched.directory}, notes=notes)
        result[name] = target
    return result
