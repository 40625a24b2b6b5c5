"""The flow `nightly`: the chain on the sources as they stand tonight.

What is new is computed, what is old is found on storage: a partition that was there yesterday keeps its directories. A
source whose path is a glob has one partition per match; of lists, archives and tars what is new beside the files of
yesterday is a partition (`tasks.sources`). New images are compared with one another and with the old ones, never old
with old (`generations`), go to the centroids that the root keeps (`kept_centroids`), and with `representative: oldest`
never take the place of old ones. In the end there is the next version, unless nothing has changed.
"""

from typing import Any

from prefect import flow

from lvd.flows.curate import curate


@flow(name="nightly", persist_result=False)
def nightly(recipe: str = "nightly", root: str | None = None, settings: list[str] | None = None) -> dict[str, Any]:
    """Runs `curate` on the recipe's sources."""
    return curate(recipe=recipe, root=root, settings=settings)
