"""The flow `nightly`: the chain on the sources as they stand tonight.

What is new is computed, what is old is found on storage: a source whose path is a glob has one partition per match, and
a partition that was there yesterday keeps its directories.
"""

from typing import Any

from prefect import flow

from lvd.flows.curate import curate


@flow(name="nightly", persist_result=False)
def nightly(recipe: str = "lvd", root: str | None = None, settings: list[str] | None = None) -> dict[str, Any]:
    """Runs `curate` on the recipe's sources."""
    return curate(recipe=recipe, root=root, settings=settings)
