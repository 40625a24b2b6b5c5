"""A run in this process, without Prefect."""

from collections.abc import Iterable, Iterator
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest

from lvd.flows.group import Call, Outcome
from lvd.flows.run import Run
from lvd.infra.errors import InputError, ShardError
from lvd.infra.shards import StageDir
from lvd.tasks import neighbours, retrieve, settling

SUBMITTED = (
    *((neighbours, "fit_cells"), (neighbours, "draw_queries"), (settling, "settle")),
    *((retrieve, "retrieve_sample"), (retrieve, "retrieve_cluster")),
)


class Plain(Run):
    """A run in this process: a stage is a call, every shard is computed here and now, without Prefect."""

    def __init__(self, recipe: Any) -> None:
        super().__init__(recipe, looking=True)

    def needs(self, target: StageDir, shards: int = 1) -> bool:
        self.computed[target.stage] += 0 if target.is_complete() else shards
        return not target.is_complete()

    def outcomes(self, stage: str, calls: Iterable[Call], number: int, device: str = "cpu") -> Iterator[Outcome]:
        for one in calls:
            module, name = one.function.split(":")
            try:
                value, error = getattr(import_module(module), name).fn(*one.arguments, **one.options), None
            except (InputError, ShardError) as failure:
                value, error = None, failure
            yield Outcome(value=value, error=error, call=one)


def without_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the flows submit is done when it is submitted; no file waits for the disk."""
    monkeypatch.setattr("os.fsync", lambda file: None)
    monkeypatch.setattr("lvd.infra.committing.versions", dict)
    for module, name in SUBMITTED:
        function = getattr(module, name).fn

        def submit(*arguments: Any, function: Any = function, **options: Any) -> SimpleNamespace:
            value = function(*arguments, **options)
            return SimpleNamespace(result=lambda: value)

        monkeypatch.setattr(module, name, SimpleNamespace(fn=function, submit=submit))
