"""Exports without Prefect's server: the same works, the same files."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

from lvd.flows import dispatch, exporting, group
from lvd.flows.export_asked import ask
from lvd.flows.export_place import WORK, claim, is_finished
from lvd.flows.recipe import parse
from lvd.flows.run import Run
from lvd.infra.storage import Storage
from lvd.tasks import export as export_stage
from lvd.tests import versions_planted


class Done:
    """A future that is done, as Prefect's."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def result(self, raise_on_failure: bool = True) -> Any:
        return self._value

    def add_done_callback(self, callback: Any) -> None:
        callback(self)


def submitted(own: group.Group, stage: str) -> Done:
    """Computes a group here and now, as Prefect's task runner would."""
    try:
        return Done(group.compute.fn(own))
    except group.SomeFailed as error:
        return Done(error)


def exported_here(root: str, out: str, config: export_stage.Config, version: str | None = None) -> dict[str, int]:
    """Exports, and returns how many shards of each stage were computed. What the work leaves stays below `.lvd`."""
    asked = ask(root, out, config, version)
    storage, work = Storage(asked.out), Storage(f"{asked.out}/{WORK}")
    run = Run(parse({"name": "export", "root": work.root, "compute": {"cpu_workers": 2, "gpus": 0}}))
    if not is_finished(asked, storage):
        claim(asked, storage, work)
        with patch.object(dispatch, "_submitted", submitted):
            exporting.finish(asked, storage, exporting.export.__wrapped__(run, asked))
    return run.computed


def files_of(out: Path) -> dict[str, bytes]:
    """Name → bytes of what an export came to, without what its work left."""
    return {name: data for name, data in versions_planted.files_below(out).items() if not name.startswith(".")}
