"""The sub-flow that finds clusters: the centroids, the cell of every image, and what hangs on them."""

from lvd.flows import pool
from lvd.flows.collected import Cells, Embedded
from lvd.flows.group import Call, call
from lvd.flows.kept_centroids import chosen, drifted, fitted_again, remedy
from lvd.flows.run import Run, Work
from lvd.flows.stage import stage
from lvd.infra.committing import commit
from lvd.infra.series import Series
from lvd.infra.shards import ShardRef, StageDir
from lvd.tasks import cluster as cluster_stage
from lvd.tasks import levels as levels_stage
from lvd.tasks import lists as lists_stage
from lvd.tasks import semantic
from lvd.tasks.algorithms import cells as cell_groups

FLOW = "cluster"


@stage
def cluster(run: Run, vectors: Embedded) -> Cells:
    """Centroids of the pool's survivors, the cell of each, and what of them means the same as another."""
    config = run.recipe.cluster
    centroids = chosen(run, vectors.pool)
    (middle,) = centroids.shards()
    cells = assigned(run, vectors.pool, middle, config.next_cells)
    if (drift := drifted(run, centroids, vectors.pool, cells)) is not None:
        run.remark(f"cluster: {drift}: {remedy(run)}")
        if config.refit == "on_drift":
            centroids = fitted_again(run, vectors.pool)
            (middle,) = centroids.shards()
            cells = assigned(run, vectors.pool, middle, config.next_cells)
    parents = levels_above(run, centroids) if config.levels else None
    found = Cells(centroids=centroids, cells=cells, sizes=counted(run, cells, middle.rows), parents=parents)
    return without_duplicates(run, vectors, found) if run.recipe.semdedup else found


def counted(run: Run, cells: Series, num_clusters: int) -> StageDir:
    """The images of every cell."""
    target = run.target("sizes", cluster_stage.VERSION, cells.directories)

    def counting(ref: ShardRef) -> Call:
        return call(cluster_stage.count_cells, cells, num_clusters, ref)

    inputs = {"cells": list(cells.directories)}
    run.complete(FLOW, [Work(target=target, count=1, call=counting, inputs=inputs)])
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
    (sizes,), (middle,) = found.sizes.shards(), found.centroids.shards()
    lists = Series.of(
        [inverted_lists(run, *night) for night in zip(*by_generation(vectors.pool, found.cells), strict=True)]
    )
    said = config.model_dump()
    alike = run.target("alike", semantic.VERSION, said, found.cells.directories)

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
    works = []
    for part in found.cells.each():
        own = part.shards()
        target = run.target("cluster", semantic.VERSION, "left", part.identity(), duplicates.directory)

        def leaving(ref: ShardRef, own: list[ShardRef] = own) -> Call:
            return call(semantic.left_shard, own[ref.index], gone, ref)

        inputs = {"cells": part.directories[0], "duplicates": duplicates.directory}
        works.append(Work(target=target, count=len(own), call=leaving, config=said, inputs=inputs))
    run.complete(FLOW, works)
    left = Series.of([work.target for work in works], generations=found.cells.generations)
    sizes_left = counted(run, left, middle.rows)
    return found.model_copy(update={"cells": left, "sizes": sizes_left, "duplicates": duplicates})


def by_generation(vectors: Series, cells: Series) -> tuple[list[Series], list[Series]]:
    """The vectors of every generation, and their cells."""
    return vectors.by_generation(), cells.by_generation()


def inverted_lists(run: Run, vectors: Series, cells: Series) -> StageDir:
    """Vectors in the order of their cells."""
    dim = vectors.dim()
    target = run.target("lists", lists_stage.VERSION, cells.identity(), vectors.identity())

    def listing(ref: ShardRef) -> Call:
        return call(lists_stage.lists_run, vectors, cells, ref, dim)

    count, inputs = lists_stage.num_runs(vectors, dim), {"cells": list(cells.directories)}
    run.complete(FLOW, [Work(target=target, count=count, call=listing, inputs=inputs)])
    return target


def assigned(run: Run, of: Series, centroids: ShardRef, next_cells: int = 0) -> Series:
    """The cells of these vectors, a directory for each of theirs. Their rows are numbered through already."""
    works, options = [], {"next_cells": next_cells, "device": run.device}
    for part in of.each():
        refs = part.shards()
        target = run.target("cluster", cluster_stage.VERSION, centroids.directory, next_cells, part.identity())

        def computing(ref: ShardRef, refs: list[ShardRef] = refs) -> Call:
            return call(cluster_stage.assign_shard, refs[ref.index], centroids, ref, **options)

        inputs = {"centroids": centroids.directory, "vectors": list(part.directories)}
        works.append(Work(target=target, count=len(refs), call=computing, device=run.device, inputs=inputs))
    run.complete(FLOW, works)
    return Series.of([work.target for work in works], generations=of.generations)
