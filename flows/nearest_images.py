"""The images nearest to those of one collection: searched night by night, settled, and again where some lack."""

from typing import Any, NamedTuple

from lvd.flows.clustering import by_generation, counted, inverted_lists
from lvd.flows.collected import Cells, Embedded
from lvd.flows.group import Call, call
from lvd.flows.run import Run, Work
from lvd.infra.committing import commit
from lvd.infra.series import Series
from lvd.infra.shards import ShardRef, StageDir, fingerprint
from lvd.tasks import nearest as search_stage
from lvd.tasks import neighbours, settling
from lvd.tasks import retrieve as retrieve_stage
from lvd.tasks.algorithms import cells as cell_groups
from lvd.tasks.recall import Recall

FLOW = "retrieve"
DEEPER = 4  # times as many candidates in every further round
MOST_CANDIDATES = 1 << 27  # of a further round, of all queries together


class Night(NamedTuple):
    """The pool images of one generation: their vectors and cells."""

    vectors: Series
    cells: Series


class BySample:
    """The matches of one collection by its nearest images."""

    def __init__(self, run: Run, name: str, vectors: Embedded, cells: Cells, policy: retrieve_stage.Sample) -> None:
        self._run, self._name, self._cells, self._policy = run, name, cells, policy
        self._pool, self._queries = vectors.pool, vectors.curated[name]
        self._nights = [Night(*both) for both in zip(*by_generation(vectors.pool, cells.cells), strict=True)]
        self._config = run.recipe.retrieve
        self._num_queries = self._queries.num_rows()

    def matches(self) -> StageDir:
        config, policy = self._config, self._policy
        depth = config.depth(policy.neighbors)
        recall = None
        if config.search.is_exact(self._num_queries, self._cells.cells.num_rows()):
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

    def _round(self, found: Series, depth: int, *, has_all: bool, wanting: ShardRef | None = None) -> settling.Round:
        """The candidates of one search, put together query by query: of all nights but the last they may be already."""
        nights, targets = found.each(), []
        for night in nights:
            last = targets[-1].directory if targets else None
            name = fingerprint("candidates", search_stage.VERSION, depth, last, night.directories)
            targets.append(StageDir(root=found.root, stage="candidates", fingerprint=name))
        there = next((i for i in reversed(range(len(nights))) if targets[i].is_complete()), -1)
        new = Series.of([one.stage_dirs()[0] for one in nights[there + 1 :]])
        before = targets[there] if there >= 0 else None
        target = self._run.named("candidates", targets[-1].fingerprint)

        def merging(ref: ShardRef) -> Call:
            held = before.shards()[ref.index] if before else None
            return call(search_stage.merge_candidates, new, ref, depth=depth, before=held)

        count = max(1, -(-self._num_queries // search_stage.MERGED_QUERIES))
        inputs = {"found": list(new.directories), "before": before.directory if before else None}
        self._complete([self._work(target, count, merging, inputs)])
        return settling.Round(candidates=tuple(target.shards()), depth=depth, has_all=has_all, wanting=wanting)

    def _compared(self, depth: int, asks: ShardRef | None = None, held: ShardRef | None = None) -> Series:
        """What the queries find when all of the pool is compared; asks, held: in a further round."""
        run, works, again = self._run, [], [ref.directory for ref in (asks, held) if ref]
        options = {"depth": depth, "device": run.device, "wanting": asks, "taken": held}
        for night in self._nights:
            inputs = {**self._inputs(night), "again": again}
            target = run.target("nearest", search_stage.VERSION, "exact", depth, inputs)

            def computing(ref: ShardRef, night: Night = night) -> Call:
                return call(search_stage.search_all, *night, self._queries, ref, **options)

            works.append(self._work(target, len(search_stage.spans(night.vectors)), computing, inputs, run.device))
        return self._complete(works)

    def _probed(self, probes: int, depth: int) -> Series:
        """What the queries find in the cells that they probe."""
        run, near, works = self._run, Series.of([self._probes()]), []
        (centroids,), options = self._cells.centroids.shards(), {"num": probes, "depth": depth, "device": run.device}
        for night in self._nights:
            (sizes,) = counted(run, night.cells, centroids.rows).shards()
            lists = Series.of([inverted_lists(run, *night)])
            target = run.target("nearest", search_stage.VERSION, probes, depth, lists.directories, near.directories)

            def computing(ref: ShardRef, lists: Series = lists, sizes: ShardRef = sizes) -> Call:
                return call(search_stage.search_cells, lists, sizes, self._queries, near, ref, **options)

            count = cell_groups.num_groups(night.cells.num_rows())
            inputs = {**self._inputs(night), "lists": list(lists.directories)}
            works.append(self._work(target, count, computing, inputs, run.device))
        return self._complete(works)

    def _probes(self) -> StageDir:
        """The nearest cells of every query."""
        run, most, refs = self._run, self._config.search.max_probes, self._queries.shards()
        (centroids,) = self._cells.centroids.shards()
        target = run.target("probes", neighbours.VERSION, most, centroids.directory, self._queries.directories)

        def computing(ref: ShardRef) -> Call:
            options = {"max_probes": most, "device": run.device}
            return call(neighbours.probe_shard, refs[ref.index], centroids, ref, **options)

        self._complete([self._work(target, len(refs), computing, {"centroids": centroids.directory}, run.device)])
        return target

    def _certified(self) -> Recall:
        """How many probes find enough of the nearest images. Raises ShardError with the numbers if none do."""
        run, search, seed, near = self._run, self._config.search, self._run.recipe.seed, self._probes()
        drawn = run.target("queries", neighbours.VERSION, search.recall_queries, seed, near.directory)
        (centroids,) = self._cells.centroids.shards()
        if run.needs(drawn):
            probes = Series.of([near])
            of = neighbours.Cells(centroids=centroids, descriptors=self._queries, probes=probes, is_pool=False)
            (target,) = drawn.planned(1)
            neighbours.draw_queries.submit(of, target, search.recall_queries, seed).result()
            commit(drawn, 1, config={"queries": search.recall_queries}, inputs={"of": near.directory})
        (queries,), works = drawn.shards(), []
        options = {"neighbors": self._policy.neighbors, "device": run.device}
        for night in self._nights:
            inputs = {**self._inputs(night), "drawn": drawn.directory}
            target = run.target("truth", search_stage.VERSION, self._policy.neighbors, inputs)

            def computing(ref: ShardRef, night: Night = night) -> Call:
                return call(search_stage.true_nearest, queries, *night, ref, **options)

            works.append(self._work(target, len(search_stage.spans(night.vectors)), computing, inputs, run.device))
        truth = self._complete(works).shards()
        return search_stage.certified_recall(truth, queries.rows, self._policy.neighbors, search, seed=seed)

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

    def _inputs(self, night: Night) -> dict[str, Any]:
        return {
            "pool": list(night.cells.directories),
            "vectors": night.vectors.identity(),
            "queries": list(self._queries.directories),
        }

    def _work(self, target: StageDir, count: int, computing: Any, inputs: dict[str, Any], device: str = "cpu") -> Work:
        settings = {"collection": self._name, **self._policy.model_dump()}
        return Work(target=target, count=count, call=computing, config=settings, inputs=inputs, device=device)

    def _complete(self, works: list[Work]) -> Series:
        self._run.complete(FLOW, works)
        return Series.of([work.target for work in works])
