"""How a stage becomes a Prefect sub-flow, and how a decision is closed."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from lvd.flows import pool
from lvd.flows.run import Run
from lvd.infra.committing import commit
from lvd.infra.shards import StageDir


def stage(function: Callable[..., Any]) -> Callable[..., Any]:
    """Runs a stage as a Prefect sub-flow of its own, and tells of it; a run that only looks calls it as it is."""

    @wraps(function)
    def call(run: Run, *args: Any) -> Any:
        if run.looking:
            return function(run, *args)
        from prefect import flow

        @flow(
            name=function.__name__,
            task_runner=pool.task_runner(run.recipe.compute),
            persist_result=False,
            validate_parameters=False,
        )
        def sub_flow() -> Any:
            before = {name: len(found) for name, found in run.directories.items()}
            with pool.asking(run.recipe.compute, function.__name__, "cpu"):  # what decides; models ask for themselves
                result = function(run, *args)
            run.observer.stage_ended(function.__name__, before)
            return result

        return sub_flow()

    return call


def commit_decision(
    target: StageDir, count: int, future: Any, config: Any, inputs: list[StageDir], **notes: Any
) -> None:
    decision = future.result()
    directories = [directory.directory for directory in inputs]
    commit(
        target,
        count,
        config=config.model_dump(mode="json"),
        inputs={"directories": directories},
        notes={**decision.model_dump(), **notes},
    )
