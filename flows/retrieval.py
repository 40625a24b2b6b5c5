"""The sub-flow that chooses: images near the curated ones, shares of clusters, a balanced sample, or a mixture."""

from typing import Any

import numpy as np

from lvd.flows.clustering import assigned, inverted_lists
from lvd.flows.collected import Cells, Embedded, Matches
from lvd.flows.group import Call, call
from lvd.flows.run import Run, Work
from lvd.flows.stage import stage
from lvd.infra.series import Series
from lvd.infra.shards import ShardRef, StageDir, commit
from lvd.tasks import cluster_shares, neighbours, settling
from lvd.tasks import nearest as search_stage
from lvd.tasks import retrieve as retrieve_stage
from lvd.tasks.algorithms import cells as cell_groups
from lvd.tasks.algorithms import mixture
from lvd.tasks.recall import Recall
from lvd.tasks.retrieve import BALANCED

FLOW = "retrieve"
DEEPER = 4  # times as many candidates in every further round
OF_THE_WHOLE = ("kind", "queries", "clusters", "recall")  # figures that are those of a thinned selection too
MOST_CANDIDATES = 1 << 27  # of a further round, of all queries together


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
    homes = assigned(run, vectors.curated[name].shards(), vectors.curated[name], centroids)
    rules = policy.model_dump(exclude={"kind"})
    target = run.target("quotas", cluster_shares.VERSION, name, rules, homes.directory, cells.sizes.directory)

    def sharing(ref: ShardRef) -> Call:
        return call(cluster_shares.share_clusters, Series.of([homes]), sizes, ref, **rules)

    inputs = {"homes": homes.directory, "sizes": cells.sizes.directory}
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
    seed, pool = run.recipe.seed, Series.of([cells.cells])
    collections = [cluster_shares.Drawn(name=name, quotas=target.shards()[0]) for name, target in quotas.items()]
    names = [(one.name, one.quotas.directory) for one in collections]
    target = run.target("drawn", cluster_shares.VERSION, names, seed, cells.cells.directory)

    def drawing(ref: ShardRef) -> Call:
        return call(cluster_shares.draw_group, pool, collections, ref, seed)

    inputs = {"cells": cells.cells.directory, "quotas": dict(names)}
    count = cluster_shares.num_groups(pool)
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
        available.append(cells.cells.account()["rows"])
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


class BySample:
    """The matches of one collection by its nearest images: searched, settled, and searched again where some lack."""

    def __init__(self, run: Run, name: str, vectors: Embedded, cells: Cells, policy: retrieve_stage.Sample) -> None:
        self._run, self._name, self._cells, self._policy = run, name, cells, policy
        self._vectors, self._pool, self._queries = vectors, vectors.pool, vectors.curated[name]
        self._config = run.recipe.retrieve
        self._placed = Series.of([cells.cells])
        self._num_queries = sum(ref.rows for ref in self._queries.shards())
        self._spans = len(search_stage.spans(self._pool))
        self._inputs = {"pool": cells.cells.directory, "queries": list(self._queries.directories)}

    def matches(self) -> StageDir:
        config, policy = self._config, self._policy
        depth = config.depth(policy.neighbors)
        recall = None
        if config.search.is_exact(self._num_queries, sum(ref.rows for ref in self._placed.shards())):
            candidates = self._compared(depth)
        else:
            recall = self._certified()
            candidates = self._probed(recall.probes, depth)
        rounds = [self._round(candidates, depth, has_all=recall is None)]
        taken, wanting, settled = self._settled(rounds)
        while settled.wanting:
            depth = self._deeper(depth, settled.wanting)
            (asks,), (held,) = wanting.shards(), taken.shards()
            candidates = self._compared(depth, asks, held)
            rounds.append(self._round(candidates, depth, has_all=True, wanting=asks))
            taken, wanting, settled = self._settled(rounds)
        return self._written(taken, settled, recall, len(rounds))

    def _deeper(self, depth: int, queries: int) -> int:
        """How many candidates each query gets in the next round."""
        return max(depth + self._policy.neighbors, min(DEEPER * depth, MOST_CANDIDATES // queries))

    def _round(self, found: StageDir, depth: int, *, has_all: bool, wanting: ShardRef | None = None) -> settling.Round:
        """The candidates of one search, put together query by query."""
        target = self._run.target("candidates", search_stage.VERSION, depth, found.directory)

        def merging(ref: ShardRef) -> Call:
            return call(search_stage.merge_candidates, Series.of([found]), ref, depth=depth)

        count = max(1, -(-self._num_queries // search_stage.MERGED_QUERIES))
        self._complete(target, count, merging, {"found": found.directory})
        return settling.Round(candidates=tuple(target.shards()), depth=depth, has_all=has_all, wanting=wanting)

    def _compared(self, depth: int, asks: ShardRef | None = None, held: ShardRef | None = None) -> StageDir:
        """What the queries find when all of the pool is compared; asks, held: in a further round."""
        run, again = self._run, [ref.directory for ref in (asks, held) if ref]
        target = run.target("nearest", search_stage.VERSION, "exact", depth, again, self._inputs)

        def computing(ref: ShardRef) -> Call:
            options = {"depth": depth, "device": run.device, "wanting": asks, "taken": held}
            return call(search_stage.search_all, self._pool, self._placed, self._queries, ref, **options)

        self._complete(target, self._spans, computing, {**self._inputs, "again": again}, device=run.device)
        return target

    def _probed(self, probes: int, depth: int) -> StageDir:
        """What the queries find in the cells that they probe."""
        run, (sizes,) = self._run, self._cells.sizes.shards()
        lists = Series.of([inverted_lists(run, self._vectors, self._cells)])
        near = Series.of([self._probes()])
        target = run.target("nearest", search_stage.VERSION, probes, depth, lists.directories, near.directories)

        def computing(ref: ShardRef) -> Call:
            options = {"num": probes, "depth": depth, "device": run.device}
            return call(search_stage.search_cells, lists, sizes, self._queries, near, ref, **options)

        count = cell_groups.num_groups(sum(ref.rows for ref in self._placed.shards()))
        self._complete(target, count, computing, {**self._inputs, "lists": lists.directories}, device=run.device)
        return target

    def _probes(self) -> StageDir:
        """The nearest cells of every query."""
        run, most, refs = self._run, self._config.search.max_probes, self._queries.shards()
        (centroids,) = self._cells.centroids.shards()
        target = run.target("probes", neighbours.VERSION, most, centroids.directory, self._queries.directories)

        def computing(ref: ShardRef) -> Call:
            options = {"max_probes": most, "device": run.device}
            return call(neighbours.probe_shard, refs[ref.index], centroids, ref, **options)

        self._complete(target, len(refs), computing, {"centroids": centroids.directory}, device=run.device)
        return target

    def _certified(self) -> Recall:
        """How many probes find enough of the nearest images. Raises ShardError with the numbers if none do."""
        run, search, seed, near = self._run, self._config.search, self._run.recipe.seed, self._probes()
        drawn = run.target("queries", neighbours.VERSION, search.recall_queries, seed, near.directory)
        (centroids,) = self._cells.centroids.shards()
        if run.needs(drawn):
            refs, probes = tuple(self._queries.shards()), tuple(near.shards())
            of = neighbours.Cells(centroids=centroids, descriptors=refs, probes=probes)
            (target,) = drawn.planned(1)
            neighbours.draw_queries.submit(of, target, search.recall_queries, seed, is_pool=False).result()
            commit(drawn, 1, config={"queries": search.recall_queries}, inputs={"of": near.directory})
        (queries,) = drawn.shards()
        truth = run.target("truth", search_stage.VERSION, self._policy.neighbors, drawn.directory, self._inputs)

        def computing(ref: ShardRef) -> Call:
            options = {"neighbors": self._policy.neighbors, "device": run.device}
            return call(search_stage.true_nearest, queries, self._pool, self._placed, ref, **options)

        inputs = {**self._inputs, "drawn": drawn.directory}
        self._complete(truth, self._spans, computing, inputs, device=run.device)
        return search_stage.certified_recall(truth.shards(), queries.rows, self._policy.neighbors, search, seed=seed)

    def _settled(self, rounds: list[settling.Round]) -> tuple[StageDir, StageDir, settling.Settled]:
        """What every query takes of all that it has found so far, and which of them are to ask again."""
        run, neighbors, policy = self._run, self._policy.neighbors, self._config.collisions
        found = [one.candidates[0].directory for one in rounds]
        identity = (settling.VERSION, neighbors, policy, self._num_queries, found)
        taken, wanting = run.target("taken", *identity), run.target("wanting", *identity)
        if run.needs(wanting):
            (a,), (b,) = taken.planned(1), wanting.planned(1)
            options = {"neighbors": neighbors, "policy": policy}
            settled = settling.settle.submit(rounds, self._num_queries, a, b, **options).result()
            said = {"config": options, "inputs": {"candidates": found}, "notes": settled.model_dump()}
            commit(taken, 1, **said)
            commit(wanting, 1, **said)
        return taken, wanting, settling.Settled(**wanting.account()["notes"])

    def _written(self, taken: StageDir, settled: settling.Settled, recall: Recall | None, rounds: int) -> StageDir:
        run, name = self._run, self._name
        settings = {"collection": name, **self._policy.model_dump(), **self._config.model_dump()}
        told = recall and recall.model_dump()
        target = run.target("retrieve", retrieve_stage.VERSION, settings, told, taken.directory)
        if run.needs(target):
            (ref,) = taken.shards()
            arguments = (name, ref, self._queries, self._pool, target)
            written = retrieve_stage.retrieve_sample.submit(*arguments).result()
            notes = {"kind": "sample", **settled.model_dump(), "rounds": rounds, "recall": told}
            commit(target, written.shards, config=settings, inputs={"taken": taken.directory}, notes=notes)
        return target

    def _complete(self, target: StageDir, count: int, computing: Any, inputs: dict[str, Any], **more: Any) -> None:
        settings = {"collection": self._name, **self._policy.model_dump()}
        work = Work(target=target, count=count, call=computing, config=settings, inputs=inputs, **more)
        self._run.complete(FLOW, [work])
