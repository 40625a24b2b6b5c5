"""Runs in this process, without Prefect: of a stage, or of the whole chain, which can die when it writes a file."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lvd.flows.curate import chain
from lvd.flows.group import Call, Outcome
from lvd.flows.recipe import Recipe
from lvd.flows.run import Run, Snapshot
from lvd.infra.errors import InputError, ShardError
from lvd.infra.shards import StageDir
from lvd.infra.storage import Storage
from lvd.tasks import copies, crawl, fingerprint, neighbours, publish, retrieve, screen, settling

SUBMITTED = (
    *((neighbours, "fit_cells"), (neighbours, "draw_queries"), (settling, "settle"), (publish, "select")),
    *((retrieve, "retrieve_sample"), (retrieve, "retrieve_cluster"), (crawl, "choose")),
    *((stage, "decide") for stage in (screen, fingerprint, copies)),
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
                arguments = ([one.arguments[0]],) if one.together else one.arguments
                value, error = getattr(import_module(module), name).fn(*arguments, **one.options), None
                if one.together:
                    (value,), error = value, value[0] if isinstance(value[0], Exception) else None
            except (InputError, ShardError) as failure:
                value, error = None, failure
            yield Outcome(value=value, error=error, call=one)


class Publishing(Plain):
    """The whole chain in this process."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.looking = False
        self.observer = SimpleNamespace(stage_ended=lambda *told: None, run_ended=lambda record: [])


class Died(BaseException):
    """What no code of the chain expects, as it expects no end of its process."""


def published_plainly(recipe: Recipe, dying_at: str | None = None) -> Snapshot:
    """What a run of the whole chain comes to, without its report. Call `without_prefect` before.

    dying_at: raises Died when a file whose name has this part is written, and before it is there.
    """
    with pytest.MonkeyPatch.context() as patch:
        if dying_at:
            patch.setattr(Storage, "whole_file", _dying(Storage.whole_file, dying_at))
            patch.setattr(Storage, "create", _dying_at_once(Storage.create, dying_at))
        return chain(Publishing(recipe))


def _dying(whole_file: Any, part: str) -> Any:
    @contextmanager
    def dying(storage: Storage, name: str) -> Iterator[Path]:
        with whole_file(storage, name) as path:
            yield path
            if part in name:
                raise Died(name)

    return dying


def _dying_at_once(create: Any, part: str) -> Any:
    def dying(storage: Storage, name: str, data: bytes) -> bool:
        if part in name:
            raise Died(name)
        return create(storage, name, data)

    return dying


def without_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the flows submit is done when it is submitted; no file waits for the disk, nothing is reported."""
    monkeypatch.setattr("os.fsync", lambda file: None)
    monkeypatch.setattr("lvd.infra.committing.versions", dict)
    monkeypatch.setattr("lvd.flows.curate.write_report", lambda *said: None)
    monkeypatch.setattr("prefect.flow", lambda **options: lambda function: function)
    for module, name in SUBMITTED:
        function = getattr(module, name).fn

        def submit(*arguments: Any, function: Any = function, **options: Any) -> SimpleNamespace:
            value = function(*arguments, **options)
            return SimpleNamespace(result=lambda: value, wait=lambda: None)

        monkeypatch.setattr(module, name, SimpleNamespace(fn=function, submit=submit))
