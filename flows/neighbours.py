"""The search for neighbours, night by night: which engine, the cells and what they are certified for, the edges.

Of every generation of the pool its images are compared with one another, with those of the generations before, and with
the references; what was compared stays on storage. The cells are those of the first generation, and so is the number
of probes: each further one is certified with it.
"""

from typing import Any

from lvd.flows.group import Call, call
from lvd.flows.run import Run, Work
from lvd.infra.committing import commit
from lvd.infra.series import Series
from lvd.infra.shards import ShardRef
from lvd.tasks import neighbours as search_stage
from lvd.tasks.algorithms.cells import num_groups, usual_number
from lvd.tasks.copies import Config, Thresholds
from lvd.tasks.neighbours import Cells
from lvd.tasks.recall import Recall

FLOW = "copies"


def pool_edges(run: Run, pool: Series, thresholds: Thresholds) -> Series:
    """The edges within the pool."""
    return Neighbours(run, "neighbours", pool, None, thresholds).edges()


def reference_edges(run: Run, pool: Series, references: Series, thresholds: Thresholds) -> Series:
    """The edges between the pool and the references, which are counted from 0 in the order of their shards."""
    return Neighbours(run, "references", pool, references, thresholds).edges()


def searched(edges: Series) -> dict[str, Any]:
    """The engine and the recall of a search; of several, those of the one that found the least."""
    notes = [directory.account()["notes"] for directory in edges.stage_dirs()]
    return min(notes, key=lambda one: one["recall"]["recall"] if one["recall"] else 1.0)


class Neighbours:
    """One search: of the pool in itself, or of references in the pool."""

    def __init__(self, run: Run, stage: str, pool: Series, references: Series | None, thresholds: Thresholds) -> None:
        self._run, self._stage, self._references = run, stage, references
        self._pool, self._nights = pool, pool.by_generation()
        self._config: Config = run.recipe.copies
        self._floor = thresholds.edge_min_similarity
        self._bound = thresholds.min_similarity if references is None else thresholds.benchmark_min_similarity
        self._options = {"min_similarity": self._floor, "k": self._config.neighbors, "device": run.device}
        self._recalls: dict[int, Recall] = {}  # of the generations that were certified

    def edges(self) -> Series:
        """The directories of the edges; their stage.json name the engine, and the recall of what is not exact."""
        works: list[Work] = []
        for number, night in enumerate(self._nights):
            before = self._pool.until(number)
            others = [(self._references, False)] if self._references is not None else [(None, True)]
            if self._references is None and before.directories:
                others.append((before, True))
            for other, is_pool in others:
                works.append(self._work(number, night, other, is_pool))
        self._run.complete(FLOW, works)
        return Series.of([work.target for work in works])

    def _work(self, number: int, night: Series, others: Series | None, is_pool: bool) -> Work:
        """The edges of a generation to the others, or among its own images if there are none."""
        asked = night if others is None else others
        if self._config.search.is_exact(night.num_rows(), asked.num_rows()):
            options = {**self._options, "is_pool": is_pool}

            def comparing(ref: ShardRef) -> Call:
                return call(search_stage.exact_shard, night, others, ref, **options)

            return self._to(night, others, ["exact"], None, len(night.shards()), comparing)
        found, own = self._recall(number), self._cells(night)
        options = {**self._options, "probes": found.probes}
        if others is None:

            def looking(ref: ShardRef) -> Call:
                return call(search_stage.cells_group, own, ref, **options)

            count = num_groups(night.num_rows())
        else:
            # Of two nights the older one is the larger: it passes by, and what is new is held.
            passing, held = (self._cells(others), own) if is_pool else (own, self._cells(others, is_pool=False))

            def looking(ref: ShardRef) -> Call:
                return call(search_stage.cells_between, passing, held, ref, **options)

            count = len(search_stage.spans(passing.descriptors.shards()))
        return self._to(night, others, ["cells", found.probes, own.centroids.directory], found, count, looking)

    def _to(
        self, night: Series, others: Series | None, how: list[Any], found: Recall | None, count: int, computing: Any
    ) -> Work:
        run, k = self._run, self._config.neighbors
        inputs = {"pool": night.identity(), "others": others.identity() if others else None}
        target = run.target(self._stage, search_stage.VERSION, k, self._floor, how, inputs, count)
        return Work(
            target=target,
            count=count,
            call=computing,
            device=run.device,
            config={"k": k, "min_similarity": self._floor},
            inputs=inputs,
            notes={"engine": how[0], "recall": found.model_dump() if found else None},
        )

    def _cells(self, of: Series, *, is_pool: bool = True) -> Cells:
        """The cells of the first generation, and the probes of these descriptors."""
        run, search, seed, device = self._run, self._config.search, self._run.recipe.seed, self._run.device
        first = self._nights[0]
        num_cells = min(search.num_cells or usual_number(first.num_rows()), first.num_rows())
        fitted = run.target("cells", search_stage.VERSION, num_cells, seed, first.identity())
        if run.needs(fitted):
            (target,) = fitted.planned(1)
            search_stage.fit_cells.submit(first, target, num_cells, seed).result()
            commit(fitted, 1, config={"num_cells": num_cells, "seed": seed}, inputs={"descriptors": first.identity()})
        (centroids,), works = fitted.shards(), []
        for part in of.each():
            probes = run.target("probes", search_stage.VERSION, search.max_probes, fitted.directory, part.directories)
            refs = part.shards()

            def computing(ref: ShardRef, refs: list[ShardRef] = refs) -> Call:
                options = {"max_probes": search.max_probes, "device": device}
                return call(search_stage.probe_shard, refs[ref.index], centroids, ref, **options)

            inputs = {"cells": fitted.directory, "descriptors": list(part.directories)}
            works.append(Work(target=probes, count=len(refs), call=computing, inputs=inputs, device=device))
        run.complete(FLOW, works)
        probes = Series.of([work.target for work in works])
        return Cells(centroids=centroids, descriptors=of, probes=probes, is_pool=is_pool)

    def _recall(self, number: int) -> Recall:
        """How many probes find enough of a generation's pairs: as many as in the first one."""
        if number not in self._recalls:
            self._recalls[number] = self._certified(number, self._recall(0).probes if number else None)
        return self._recalls[number]

    def _certified(self, number: int, probes: int | None) -> Recall:
        """What so many probes find, or how many find enough. Raises ShardError with the numbers if they do not."""
        run, search, seed, device = self._run, self._config.search, self._run.recipe.seed, self._run.device
        night, pool = self._nights[number], self._cells(self._pool.until(number + 1))
        asked = self._cells(night)
        if self._references is not None:
            pool, asked = asked, self._cells(self._references, is_pool=False)
        wanted = search.recall_queries
        drawn = run.target("queries", search_stage.VERSION, self._stage, wanted, seed, asked.probes.directories)
        if run.needs(drawn):
            (target,) = drawn.planned(1)
            search_stage.draw_queries.submit(asked, target, wanted, seed).result()
            commit(drawn, 1, config={"queries": wanted}, inputs={"of": list(asked.probes.directories)})
        (queries,) = drawn.shards()
        truth = run.target("truth", search_stage.VERSION, self._floor, drawn.directory, pool.descriptors.identity())

        def computing(ref: ShardRef) -> Call:
            return call(search_stage.true_pairs_shard, queries, pool, ref, min_similarity=self._floor, device=device)

        inputs = {"queries": drawn.directory, "pool": pool.descriptors.identity()}
        count = len(pool.descriptors.shards())
        run.complete(FLOW, [Work(target=truth, count=count, call=computing, inputs=inputs, device=device)])
        told = {"min_similarity": self._bound, "seed": seed, "probes": probes}
        found = search_stage.certified(truth.shards(), queries.rows, search, **told)
        search_stage.demand(found, search, min_similarity=self._bound, num_cells=pool.centroids.rows)
        return found
