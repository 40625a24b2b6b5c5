"""The sub-flow that finds clusters: a sample, a fit on it, full passes, and the cell of every image."""

from typing import Any

from lvd.flows import pool
from lvd.flows.collected import Cells, Embedded
from lvd.flows.group import Call, call
from lvd.flows.run import Run, Work
from lvd.flows.stage import stage
from lvd.infra.series import Series
from lvd.infra.shards import ShardRef, StageDir, commit
from lvd.tasks import centroids as fit_stage
from lvd.tasks import cluster as cluster_stage
from lvd.tasks import levels as levels_stage
from lvd.tasks import lists as lists_stage
from lvd.tasks import semantic
from lvd.tasks.algorithms import cells as cell_groups
from lvd.tasks.algorithms.kmeans import has_settled

FLOW = "cluster"


@stage
def cluster(run: Run, vectors: Embedded) -> Cells:
    """Centroids of the pool's survivors, the cell of each, and what of them means the same as another."""
    config = run.recipe.cluster
    centroids = Fit(run, vectors.pool).centroids()
    refs, (middle,) = vectors.pool.shards(), centroids.shards()
    cells = assigned(run, refs, vectors.pool, middle, config.next_cells)
    parents = levels_above(run, centroids) if config.levels else None
    found = Cells(centroids=centroids, cells=cells, sizes=counted(run, cells, middle.rows), parents=parents)
    return without_duplicates(run, vectors, found) if run.recipe.semdedup else found


def counted(run: Run, cells: StageDir, num_clusters: int) -> StageDir:
    """The images of every cell."""
    target = run.target("sizes", cluster_stage.VERSION, cells.directory)

    def counting(ref: ShardRef) -> Call:
        return call(cluster_stage.count_cells, Series.of([cells]), num_clusters, ref)

    run.complete(FLOW, [Work(target=target, count=1, call=counting, inputs={"cells": cells.directory})])
    return target


def levels_above(run: Run, centroids: StageDir) -> StageDir:
    """The parent of every cluster of every level but the highest."""
    config, seed = run.recipe.cluster, run.recipe.seed
    parents = run.target("parents", levels_stage.VERSION, centroids.directory, seed)
    if run.needs(parents, len(config.levels) - 1):
        (middle,) = centroids.shards()
        devices = pool.every_gpu(run.recipe.compute) or ("cpu",)
        count = levels_stage.fit_levels.submit(middle, parents, config, seed, devices).result()
        commit(parents, count, config=config.fitting(), inputs={"centroids": centroids.directory})
    return parents


def without_duplicates(run: Run, vectors: Embedded, found: Cells) -> Cells:
    """The cells without the images that mean the same as another one of their cell."""
    config = run.recipe.semdedup
    lists, (sizes,), (middle,) = (
        Series.of([inverted_lists(run, vectors, found)]),
        found.sizes.shards(),
        found.centroids.shards(),
    )
    said = config.model_dump()
    alike = run.target("alike", semantic.VERSION, said, found.cells.directory)

    def finding(ref: ShardRef) -> Call:
        return call(semantic.alike_group, lists, sizes, middle, ref, config, device=run.device)

    refs = found.cells.shards()
    count = cell_groups.num_groups(sum(ref.rows for ref in refs))
    inputs = {"lists": list(lists.directories)}
    run.complete(FLOW, [Work(target=alike, count=count, call=finding, device=run.device, config=said, inputs=inputs)])
    duplicates = run.target("duplicates", semantic.VERSION, alike.directory)

    def naming(ref: ShardRef) -> Call:
        return call(semantic.name_duplicates, Series.of([alike]), vectors.pool, ref)

    run.complete(FLOW, [Work(target=duplicates, count=1, call=naming, inputs={"alike": alike.directory})])
    (gone,) = duplicates.shards()
    left = run.target("cluster", semantic.VERSION, "left", found.cells.directory, duplicates.directory)

    def leaving(ref: ShardRef) -> Call:
        return call(semantic.left_shard, refs[ref.index], gone, ref)

    inputs = {"cells": found.cells.directory, "duplicates": duplicates.directory}
    run.complete(FLOW, [Work(target=left, count=len(refs), call=leaving, config=said, inputs=inputs)])
    sizes_left = counted(run, left, middle.rows)
    return found.model_copy(update={"cells": left, "sizes": sizes_left, "duplicates": duplicates})


def inverted_lists(run: Run, vectors: Embedded, found: Cells) -> StageDir:
    """The pool's vectors in the order of their cells."""
    placed, dim = Series.of([found.cells]), found.centroids.account()["shard_notes"][0]["dim"]
    target = run.target("lists", lists_stage.VERSION, found.cells.directory, vectors.pool.directories)

    def listing(ref: ShardRef) -> Call:
        return call(lists_stage.lists_run, vectors.pool, placed, ref, dim)

    count, inputs = lists_stage.num_runs(vectors.pool, dim), {"cells": found.cells.directory}
    run.complete(FLOW, [Work(target=target, count=count, call=listing, inputs=inputs)])
    return target


def assigned(run: Run, refs: list[ShardRef], of: Series, centroids: ShardRef, next_cells: int = 0) -> StageDir:
    """The cells of these vectors, shard by shard."""
    target = run.target("cluster", cluster_stage.VERSION, centroids.directory, next_cells, of.directories)

    def computing(ref: ShardRef) -> Call:
        options = {"next_cells": next_cells, "device": run.device}
        return call(cluster_stage.assign_shard, refs[ref.index], centroids, ref, **options)

    inputs = {"centroids": centroids.directory, "vectors": list(of.directories)}
    run.complete(FLOW, [Work(target=target, count=len(refs), call=computing, device=run.device, inputs=inputs)])
    return target


class Fit:
    """The centroids of some vectors, step by step; every step is a directory, so that a fit goes on where it was."""

    def __init__(self, run: Run, vectors: Series) -> None:
        self._run, self._vectors, self._config = run, vectors, run.recipe.cluster
        self._seed, self._identity = run.recipe.seed, (run.recipe.seed, list(vectors.directories))
        self._rows = sum(ref.rows for ref in vectors.shards())

    def centroids(self) -> StageDir:
        """The centroids after all passes, or after that one which gained too little."""
        config = self._config
        found = self._fitted()
        for number in range(config.full_passes):
            done = iterations_of(found)
            if has_settled([one["objective"] for one in done if one["over"] == "pool"], config.min_gain):
                break
            found = self._passed(found, number, done)
        target = self._run.target("centroids", fit_stage.VERSION, config.fitting(), *self._identity)
        (last,), done = found.shards(), iterations_of(found)

        def keeping(ref: ShardRef) -> Call:
            return call(fit_stage.last_centroids, last, done, ref, config, self._seed)

        self._complete(target, 1, keeping, {"centroids": found.directory})
        return target

    def _fitted(self) -> StageDir:
        """The centroids of a sample."""
        run, config, seed, vectors = self._run, self._config, self._seed, self._vectors
        fit_stage.sample_size(self._rows, config)  # or there are more clusters than images
        drawn = {"size": config.sample_per_cluster * config.num_clusters}
        sampled = run.target("sampled", fit_stage.VERSION, drawn, *self._identity)

        def drawing(ref: ShardRef) -> Call:
            return call(fit_stage.sample_group, vectors, ref, config, seed)

        self._complete(sampled, self._groups, drawing, {"vectors": list(vectors.directories)})
        before = {name: value for name, value in config.fitting().items() if name != "full_passes"}
        fitted = run.target("fit", fit_stage.VERSION, before, sampled.directory, seed)
        sample, gpus = Series.of([sampled]), pool.every_gpu(run.recipe.compute)

        def fitting(ref: ShardRef) -> Call:
            options = {"devices": gpus, "device": run.device}
            return call(fit_stage.fit_centroids, sample, self._rows, ref, config, seed, **options)

        is_new = not fitted.is_complete()
        self._complete(fitted, 1, fitting, {"sample": sampled.directory}, device=run.device)
        if is_new:
            fit_stage.Checkpoint(fitted.planned(1)[0]).remove()
        return fitted

    def _passed(self, before: StageDir, number: int, done: list[dict[str, Any]]) -> StageDir:
        """The centroids after a pass over all vectors."""
        run, (centroids,) = self._run, before.shards()
        sums = run.target("sums", fit_stage.VERSION, before.directory, *self._identity)

        def adding(ref: ShardRef) -> Call:
            return call(fit_stage.sums_group, self._vectors, centroids, ref, device=run.device)

        self._complete(sums, self._groups, adding, {"centroids": before.directory}, device=run.device)
        while len(parts := sums.shards()) > fit_stage.FAN_IN:
            sums = self._added(sums, parts)
        moved = run.target("fit", fit_stage.VERSION, "pass", number, sums.directory)

        def moving(ref: ShardRef) -> Call:
            return call(fit_stage.move_centroids, parts, centroids, done, ref)

        self._complete(moved, 1, moving, {"sums": sums.directory})
        return moved

    def _added(self, sums: StageDir, parts: list[ShardRef]) -> StageDir:
        """One level of the tree: each FAN_IN sums as one."""
        target = self._run.target("sums", fit_stage.VERSION, "of", sums.directory)

        def reducing(ref: ShardRef) -> Call:
            first = ref.index * fit_stage.FAN_IN
            return call(fit_stage.reduce_sums, parts[first : first + fit_stage.FAN_IN], ref)

        self._complete(target, -(-len(parts) // fit_stage.FAN_IN), reducing, {"sums": sums.directory})
        return target

    @property
    def _groups(self) -> int:
        return fit_stage.num_groups(self._vectors, self._config.num_clusters)

    def _complete(self, target: StageDir, count: int, computing: Any, inputs: dict[str, Any], **more: Any) -> None:
        config = self._config.fitting()
        self._run.complete(
            FLOW, [Work(target=target, count=count, call=computing, config=config, inputs=inputs, **more)]
        )


def iterations_of(found: StageDir) -> list[dict[str, Any]]:
    """What the account of some centroids says of every iteration."""
    return found.account()["shard_notes"][0]["iterations"]
