"""The flow `curate`: the whole chain on one screen."""

import platform
import time
from collections.abc import Callable
from typing import Any

from prefect import flow

from lvd.flows import from_vectors, generations, pool
from lvd.flows.accounts import timings
from lvd.flows.clustering import cluster
from lvd.flows.crawling import crawl
from lvd.flows.deduplication import copies, fingerprint
from lvd.flows.forgetting import forget, withhold
from lvd.flows.gathering import content, download, screen
from lvd.flows.miniature import is_drawn, served
from lvd.flows.preflight import check
from lvd.flows.progress import shown
from lvd.flows.recipe import Recipe, load
from lvd.flows.report import write_report
from lvd.flows.retrieval import retrieve
from lvd.flows.run import NotComplete, Run, Snapshot
from lvd.flows.selection import embed, publish
from lvd.flows.versions import Published, latest
from lvd.infra.lease import lease
from lvd.infra.logs import of_run
from lvd.infra.storage import Storage


def chain(run: Run) -> Snapshot:
    """From the sources to the published dataset. Every arrow is a directory on storage."""
    listed = crawl(run)
    if new := generations.num_new(run.recipe, listed.pool):
        run.remark(f"new since the last run: {new} of {len(listed.pool.parts)} partitions of the pool")
    sources = content(run, download(run, listed))
    measures, screened = screen(run, sources)
    unique = fingerprint(run, sources, measures, withhold(run, sources, screened))
    survivors = forget(run, sources, copies(run, sources, unique))
    vectors = embed(run, sources, survivors)
    cells = cluster(run, vectors)
    matches = retrieve(run, vectors, cells)
    published = publish(run, sources, survivors, vectors, cells, matches)

    def reported(record: dict[str, Any]) -> None:
        generations.keep(run.recipe, sources.pool)
        record["collections"] = [
            {"role": g.role, "name": g.name, "images": [part.images.directory for part in g.parts]}
            for g in sources.all()
        ]
        write_report(run, published, sources, survivors, vectors, cells, matches, record)

    return close(run, published, reported)


def chain_of_vectors(run: Run) -> Snapshot:
    """From vectors that somebody has already to those that are chosen."""
    pieces = from_vectors.listed(run.recipe)
    vectors = from_vectors.embed(run, pieces)
    cells = cluster(run, vectors)
    matches = retrieve(run, vectors, cells)
    published = from_vectors.publish(run, pieces, vectors, cells, matches)
    return close(run, published, lambda record: None)


@flow(name="curate", persist_result=False)
def curate(recipe: str = "mini", root: str | None = None, settings: list[str] | None = None) -> dict[str, Any]:
    """Runs the chain of a recipe: a file or the name of a bundled one, with a root and `--set` settings of its own."""
    return execute(load(recipe, root=root, settings=settings or [])).model_dump()


def execute(recipe: Recipe) -> Snapshot:
    """The checked, leased run of a recipe. Call it inside a flow.

    Raises InputError before anything is written if the recipe cannot be run here.
    """
    check(Run(recipe))
    with shown() as progress, lease(Storage(recipe.root)):
        run = Run(recipe, progress=progress)
        run.storage.remove_temporary()
        with of_run(run.stamp), served(recipe), pool.cluster(recipe.compute), run.observer.watching():
            return chain_for(recipe)(run)


def chain_for(recipe: Recipe) -> Callable[[Run], Snapshot]:
    """The chain of images, or the shorter one of vectors."""
    return chain_of_vectors if recipe.has_own_vectors else chain


def look(recipe: Recipe) -> Snapshot | None:
    """The snapshot of a recipe that has nothing left to compute, without Prefect; None if something is missing."""
    if not is_drawn(recipe) or (recipe.compute.runner == "ray" and recipe.compute.gpus != 0):
        return None  # what is not there to see: the miniature web, the GPUs of a cluster
    try:
        return chain_for(recipe)(Run(recipe, looking=True))
    except NotComplete:
        return None


def close(run: Run, published: Published, reported: Callable[[dict[str, Any]], None]) -> Snapshot:
    """Writes the report, `runs/…json` and `curated/latest.json`; a run that only looks returns what it found.

    reported: writes the report with what the run's record says.
    """
    result = Snapshot(
        run_id=f"{run.stamp}-{published.version}",
        version=published.version,
        root=run.storage.root,
        curated=published.dataset.directory,
        report="README.md" if run.recipe.has_own_vectors else "report.html",
        ledger=published.states,
        candidates=published.candidates,
        computed=run.computed,
        remarks=tuple(run.remarks),
        seconds=round(time.time() - run.started, 3),
    )
    if run.looking:
        if (latest(run.storage) or {}).get("version") != published.version:
            raise NotComplete("curated/latest.json")
        return result
    record = {
        **result.model_dump(),
        "recipe": run.recipe.model_dump(mode="json"),
        "directories": run.directories,
        "collections": [],
        "node": platform.node(),
    }
    record["cost"] = [timing.model_dump() for timing in timings(run, record)]
    reported(record)
    result = result.model_copy(update={"alerts": tuple(run.observer.run_ended(record))})
    name = f"runs/{result.run_id}.json"
    run.storage.write_json(name, record)
    run.storage.write_json(
        "curated/latest.json", {"version": published.version, "directory": published.dataset.directory, "run": name}
    )
    return result
