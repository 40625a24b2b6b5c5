"""The search for neighbours, night by night: which engine, the cells and what they are certified for, the edges.

Of every generation of the pool its images are compared with one another, with those of the generations before, and with
the references; what was compared stays on storage. The cells are those of the first generation, and so is the number
of probes, until the pool has become GROWTH times as large: then there are more and finer ones for the nights to come.
Each further generation is certified with them when it is compared.
"""

from itertools import accumulate
from typing import Any

from lvd.flows.group import Call, call
from lvd.flows.run import Run, Work
from lvd.infra.committing import commit
from lvd.infra.series import Series
from lvd.infra.shards import ShardRef, StageDir
from lvd.tasks import neighbours as search_stage
from lvd.tasks.algorithms.cells import num_groups, usual_number
from lvd.tasks.copies import Config, Thresholds
from lvd.tasks.neighbours import Cells
from lvd.tasks.recall import Recall

FLOW = "copies"
GROWTH = 4  # as many times the images, twice as many cells


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
        self._shards = [night.shards() for night in self._nights]
        self._rows = [sum(ref.rows for ref in refs) for refs in self._shards]
        self._until = [0, *accumulate(self._rows)]  # rows of all generations before each, and of all
        self._first = self._epochs()
        self._fitted: dict[int, StageDir] = {}  # the last generation that they were fitted on → the cells
        self._probed: dict[tuple[str, str], StageDir] = {}  # cells, descriptors → the probes
        self._recalls: dict[int, Recall] = {}  # of the generations that were certified

    def edges(self) -> Series:
        """The directories of the edges; their stage.json name the engine, and the recall of what is not exact."""
        targets, works = [], []
        num_references = self._references.num_rows() if self._references is not None else 0
        for number, night in enumerate(self._nights):
            if self._references is not None:
                others = [(self._references, num_references)]
            else:
                others = [(None, self._rows[number])]
                others += [(self._pool.until(number), self._until[number])] if number else []
            for other, rows in others:
                is_exact = not self._rows[number] * rows or self._config.search.is_exact(self._rows[number], rows)
                how = ["exact"] if is_exact else self._through_cells(number)
                inputs = {"pool": night.identity(), "others": other.identity() if other else None}
                identity = search_stage.VERSION, self._config.neighbors, self._floor, how, inputs
                targets.append(self._run.target(self._stage, *identity))
                if targets[-1].is_complete():
                    self._still_demanded(number, targets[-1])
                else:
                    works.append((self._exact if is_exact else self._probing)(number, other, targets[-1], inputs))
        self._run.complete(FLOW, works)
        return Series.of(targets)

    def _epochs(self) -> list[int]:
        """Of every generation the one with whose end its cells were fitted, and its probes chosen."""
        found = [0]
        for number in range(1, len(self._nights)):
            has_grown = self._until[number + 1] >= GROWTH * self._until[found[-1] + 1]
            found.append(number if has_grown else found[-1])
        return found

    def _through_cells(self, number: int) -> list[Any]:
        first = self._first[number]
        return ["cells", self._recall(first).probes, self._centroids(first).directory]

    def _still_demanded(self, number: int, target: StageDir) -> None:
        """Raises ShardError if what an earlier run was content with is less than this recipe asks for."""
        if recall := target.account()["notes"]["recall"]:
            self._demand(number, Recall(**recall))

    def _demand(self, number: int, found: Recall) -> None:
        num_cells = self._num_cells(self._first[number])
        search_stage.demand(found, self._config.search, min_similarity=self._bound, num_cells=num_cells)

    def _count(self, number: int, other: Series | None, *, is_exact: bool) -> int:
        """How many shards the edges of a generation to others are, or to one another."""
        if is_exact:
            return len(self._shards[number])
        if other is None:
            return num_groups(self._rows[number])
        return len(search_stage.spans(self._passing(number)))

    def _passing(self, number: int) -> list[ShardRef]:
        """What is compared with others through cells, span by span: of two nights the older, as it is larger."""
        if self._references is not None:
            return self._shards[number]
        return [ref for refs in self._shards[:number] for ref in refs]

    def _exact(self, number: int, other: Series | None, target: StageDir, inputs: dict[str, Any]) -> Work:
        night, options = self._nights[number], {**self._options, "is_pool": self._references is None}

        def comparing(ref: ShardRef) -> Call:
            return call(search_stage.exact_shard, night, other, ref, **options)

        return self._work(number, other, target, inputs, comparing, None)

    def _probing(self, number: int, other: Series | None, target: StageDir, inputs: dict[str, Any]) -> Work:
        found, first = self._recall(number), self._first[number]
        own, options = self._cells(self._nights[number], first), {**self._options, "probes": found.probes}
        if other is None:

            def looking(ref: ShardRef) -> Call:
                return call(search_stage.cells_group, own, ref, **options)
        else:
            is_pool = self._references is None
            theirs = self._cells(other, first, is_pool=is_pool)
            passing, held = (theirs, own) if is_pool else (own, theirs)

            def looking(ref: ShardRef) -> Call:
                return call(search_stage.cells_between, passing, held, ref, **options)

        return self._work(number, other, target, inputs, looking, found)

    def _work(
        self,
        number: int,
        other: Series | None,
        target: StageDir,
        inputs: dict[str, Any],
        computing: Any,
        found: Recall | None,
    ) -> Work:
        return Work(
            target=target,
            count=self._count(number, other, is_exact=found is None),
            call=computing,
            device=self._run.device,
            config={"k": self._config.neighbors, "min_similarity": self._floor},
            inputs=inputs,
            notes={"engine": "cells" if found else "exact", "recall": found.model_dump() if found else None},
        )

    def _num_cells(self, first: int) -> int:
        rows = self._until[first + 1]
        return min(self._config.search.num_cells or usual_number(rows), rows)

    def _centroids(self, first: int) -> StageDir:
        """The cells, fitted on all generations up to one."""
        if first in self._fitted:
            return self._fitted[first]
        run, seed = self._run, self._run.recipe.seed
        num_cells, pool = self._num_cells(first), self._pool.until(first + 1)
        fitted = run.target("cells", search_stage.VERSION, num_cells, seed, pool.identity())
        if run.needs(fitted):
            (target,) = fitted.planned(1)
            search_stage.fit_cells.submit(pool, target, num_cells, seed).result()
            commit(fitted, 1, config={"num_cells": num_cells, "seed": seed}, inputs={"descriptors": pool.identity()})
        self._fitted[first] = fitted
        return fitted

    def _cells(self, of: Series, first: int, *, is_pool: bool = True) -> Cells:
        """The cells of a generation, and the probes of these descriptors, each directory once."""
        run, device, most = self._run, self._run.device, self._config.search.max_probes
        fitted = self._centroids(first)
        (centroids,), works = fitted.shards(), []
        for part in of.each():
            ((directory,), place) = part.directories, (fitted.directory, part.directories[0])
            if place in self._probed:
                continue
            refs = part.shards()

            def computing(ref: ShardRef, refs: list[ShardRef] = refs) -> Call:
                options = {"max_probes": most, "device": device}
                return call(search_stage.probe_shard, refs[ref.index], centroids, ref, **options)

            target = run.target("probes", search_stage.VERSION, most, fitted.directory, part.directories)
            inputs = {"cells": fitted.directory, "descriptors": [directory]}
            works.append(Work(target=target, count=len(refs), call=computing, inputs=inputs, device=device))
            self._probed[place] = target
        run.complete(FLOW, works)
        probes = Series.of([self._probed[fitted.directory, directory] for directory in of.directories])
        return Cells(centroids=centroids, descriptors=of, probes=probes, is_pool=is_pool)

    def _recall(self, number: int) -> Recall:
        """How many probes find enough of a generation's pairs: as many as in the one that its cells are of."""
        if number not in self._recalls:
            first = self._first[number]
            self._recalls[number] = self._certified(number, None if first == number else self._recall(first).probes)
        return self._recalls[number]

    def _certified(self, number: int, probes: int | None) -> Recall:
        """What so many probes find, or how many find enough. Raises ShardError with the numbers if they do not."""
        run, search, seed, device = self._run, self._config.search, self._run.recipe.seed, self._run.device
        first = self._first[number]
        pool, asked = (self._cells(of, first) for of in (self._pool.until(number + 1), self._nights[number]))
        if self._references is not None:
            pool, asked = asked, self._cells(self._references, first, is_pool=False)
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
        self._demand(number, found)
        return found
