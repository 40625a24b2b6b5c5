"""The flow `curate`: the whole chain on one screen."""

import platform
import time
from typing import Any

from prefect import flow

from lvd.flows import pool
from lvd.flows.accounts import timings
from lvd.flows.collected import Cells, Matches, Sources
from lvd.flows.crawling import crawl
from lvd.flows.deduplication import copies, fingerprint
from lvd.flows.gathering import content, download, screen
from lvd.flows.miniature import is_drawn, served
from lvd.flows.preflight import check
from lvd.flows.progress import shown
from lvd.flows.recipe import Recipe, load
from lvd.flows.report import write_report
from lvd.flows.run import NotComplete, Run, Snapshot
from lvd.flows.selection import cluster, embed, publish, retrieve
from lvd.flows.versions import Published, latest
from lvd.infra.lease import lease
from lvd.infra.shards import StageDir
from lvd.infra.storage import Storage


def chain(run: Run) -> Snapshot:
    """From the sources to the published dataset. Every arrow is a directory on storage."""
    sources = content(run, download(run, crawl(run)))
    measures, screened = screen(run, sources)
    unique = fingerprint(run, sources, measures, screened)
    survivors = copies(run, sources, unique)
    vectors = embed(run, sources, survivors)
    cells = cluster(run, sources, vectors)
    matches = retrieve(run, sources, vectors, cells)
    published = publish(run, sources, survivors, vectors, matches)
    return close(run, published, sources, survivors, cells, matches)


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
        with served(recipe), pool.cluster(recipe.compute):
            return chain(run)


def look(recipe: Recipe) -> Snapshot | None:
    """The snapshot of a recipe that has nothing left to compute, without Prefect; None if something is missing."""
    if not is_drawn(recipe) or (recipe.compute.runner == "ray" and recipe.compute.gpus != 0):
        return None  # what is not there to see: the miniature web, the GPUs of a cluster
    try:
        return chain(Run(recipe, looking=True))
    except NotComplete:
        return None


def close(
    run: Run, published: Published, sources: Sources, survivors: StageDir, cells: Cells, matches: Matches
) -> Snapshot:
    """Writes `runs/…json`, the report and `curated/latest.json`; a run that only looks returns what it found."""
    result = Snapshot(
        run_id=f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(run.started))}-{published.version}",
        version=published.version,
        root=run.storage.root,
        curated=published.dataset.directory,
        ledger=published.states,
        candidates=published.candidates,
        computed=run.computed,
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
        "collections": [
            {"role": g.role, "name": g.name, "images": [part.images.directory for part in g.parts]}
            for g in sources.all()
        ],
        "node": platform.node(),
    }
    record["cost"] = [timing.model_dump() for timing in timings(run, record)]
    name = f"runs/{result.run_id}.json"
    run.storage.write_json(name, record)
    write_report(run, published, sources, survivors, cells, matches, record)
    run.storage.write_json(
        "curated/latest.json", {"version": published.version, "directory": published.dataset.directory, "run": name}
    )
    return result
