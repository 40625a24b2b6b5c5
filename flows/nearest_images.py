"""The images nearest to those of one collection: searched, settled, and searched again where some lack."""

from typing import Any

from lvd.flows.clustering import inverted_lists
from lvd.flows.collected import Cells, Embedded
from lvd.flows.group import Call, call
from lvd.flows.run import Run, Work
from lvd.infra.series import Series
from lvd.infra.shards import ShardRef, StageDir, commit
from lvd.tasks import nearest as search_stage
from lvd.tasks import neighbours, settling
from lvd.tasks import retrieve as retrieve_stage
from lvd.tasks.algorithms import cells as cell_groups
from lvd.tasks.recall import Recall

FLOW = "retrieve"
DEEPER = 4  # times as many candidates in every further round
MOST_CANDIDATES = 1 << 27  # of a further round, of all queries together


class BySample:
    """The matches of one collection by its nearest images."""

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
