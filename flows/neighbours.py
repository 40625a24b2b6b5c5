"""The search for neighbours: which engine, the cells and what they are certified for, the edges."""

from lvd.flows.group import Call, call
from lvd.flows.run import Run, Work
from lvd.infra.shards import ShardRef, StageDir, commit
from lvd.tasks import neighbours as search_stage
from lvd.tasks.algorithms.cells import num_groups, usual_number
from lvd.tasks.copies import Config, Thresholds
from lvd.tasks.neighbours import Cells
from lvd.tasks.recall import Recall

FLOW = "copies"


class Described:
    """The descriptors of a collection: their shards, and the directories that these lie in."""

    def __init__(self, shards: list[ShardRef], directories: list[StageDir]) -> None:
        self.shards, self.directories = shards, directories
        self.names = [d.directory for d in directories]
        self.rows = sum(ref.rows for ref in shards)


def pool_edges(run: Run, pool: Described, thresholds: Thresholds) -> StageDir:
    """The edges within the pool."""
    return Neighbours(run, pool, None, thresholds).edges("neighbours")


def reference_edges(run: Run, pool: Described, references: Described, thresholds: Thresholds) -> StageDir:
    """The edges between the pool and the references, which are counted from 0 in the order of their shards."""
    return Neighbours(run, pool, references, thresholds).edges("references")


class Neighbours:
    """One search: of the pool in itself, or of references in the pool."""

    def __init__(self, run: Run, pool: Described, references: Described | None, thresholds: Thresholds) -> None:
        self._run, self._pool, self._references, self._thresholds = run, pool, references, thresholds
        self._config: Config = run.recipe.copies
        self._floor = thresholds.edge_min_similarity
        self._asked = pool if references is None else references

    def edges(self, stage: str) -> StageDir:
        """The directory of the edges; its stage.json names the engine, and the recall of what is not exact."""
        search, found = self._config.search, None
        options = {"min_similarity": self._floor, "k": self._config.neighbors, "device": self._run.device}
        if search.is_exact(self._pool.rows, self._asked.rows):
            count, how = len(self._pool.shards), ["exact"]

            def computing(ref: ShardRef) -> Call:
                others = None if self._references is None else self._references.shards
                return call(search_stage.exact_shard, self._pool.shards, others, ref, **options)
        else:
            pool = self._cells(self._pool)
            references = None if self._references is None else self._cells(self._references)
            found = self._certified(stage, pool, references)
            count = num_groups(self._pool.rows)
            how = ["cells", found.probes, pool.probes[0].directory]

            def computing(ref: ShardRef) -> Call:
                return call(search_stage.cells_group, pool, references, ref, probes=found.probes, **options)

        inputs = {"pool": self._pool.names, "references": self._references.names if self._references else None}
        target = self._run.target(stage, search_stage.VERSION, self._config.neighbors, self._floor, how, inputs, count)
        notes = {"engine": how[0], "recall": found.model_dump() if found else None}
        settings = {"k": self._config.neighbors, "min_similarity": self._floor}
        said = {"config": settings, "inputs": inputs, "notes": notes}
        self._run.complete(FLOW, [Work(target=target, count=count, call=computing, device=self._run.device, **said)])
        return target

    def _cells(self, of: Described) -> Cells:
        """The pool's cells, and the probes of these descriptors."""
        run, search, seed, device = self._run, self._config.search, self._run.recipe.seed, self._run.device
        num_cells = min(search.num_cells or usual_number(self._pool.rows), self._pool.rows)
        fitted = run.target("cells", search_stage.VERSION, num_cells, seed, self._pool.names)
        if run.needs(fitted):
            (target,) = fitted.planned(1)
            search_stage.fit_cells.submit(self._pool.shards, target, num_cells, seed).result()
            commit(fitted, 1, config={"num_cells": num_cells, "seed": seed}, inputs={"descriptors": self._pool.names})
        (centroids,) = fitted.shards()
        probes = run.target("probes", search_stage.VERSION, search.max_probes, fitted.directory, of.names)

        def computing(ref: ShardRef) -> Call:
            most = search.max_probes
            return call(search_stage.probe_shard, of.shards[ref.index], centroids, ref, max_probes=most, device=device)

        inputs = {"cells": fitted.directory, "descriptors": of.names}
        run.complete(FLOW, [Work(target=probes, count=len(of.shards), call=computing, inputs=inputs, device=device)])
        return Cells(centroids=centroids, descriptors=tuple(of.shards), probes=tuple(probes.shards()))

    def _certified(self, stage: str, pool: Cells, references: Cells | None) -> Recall:
        """How many probes find enough. Raises ShardError with the numbers if none do."""
        run, search, seed, device = self._run, self._config.search, self._run.recipe.seed, self._run.device
        asked = pool if references is None else references
        drawn = run.target(
            "queries", search_stage.VERSION, stage, search.recall_queries, seed, asked.probes[0].directory
        )
        if run.needs(drawn):
            (target,) = drawn.planned(1)
            is_pool = references is None
            search_stage.draw_queries.submit(asked, target, search.recall_queries, seed, is_pool=is_pool).result()
            commit(drawn, 1, config={"queries": search.recall_queries}, inputs={"of": asked.probes[0].directory})
        (queries,) = drawn.shards()
        truth = run.target("truth", search_stage.VERSION, self._floor, drawn.directory, pool.probes[0].directory)

        def computing(ref: ShardRef) -> Call:
            return call(search_stage.true_pairs_shard, queries, pool, ref, min_similarity=self._floor, device=device)

        inputs = {"queries": drawn.directory, "pool": self._pool.names}
        run.complete(FLOW, [Work(target=truth, count=len(pool.probes), call=computing, inputs=inputs, device=device)])
        bound = self._thresholds.min_similarity if references is None else self._thresholds.benchmark_min_similarity
        found = search_stage.certified(truth.shards(), queries.rows, search, min_similarity=bound, seed=seed)
        search_stage.demand(found, search, min_similarity=bound, num_cells=pool.centroids.rows)
        return found
