"""One run of the chain: what it was asked, what it found on storage, what it computed."""

import time
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, Field

from lvd.flows import pool
from lvd.flows.recipe import Recipe
from lvd.infra.errors import InputError, ShardError
from lvd.infra.shards import ShardRef, StageDir, commit, fingerprint
from lvd.infra.storage import Storage

MAX_IN_FLIGHT = 256


class NotComplete(Exception):
    """Something of this run is not on storage yet."""


class Work(BaseModel):
    """The shards of one stage directory: what they are, and how one of them is submitted."""

    target: StageDir
    count: int
    submit: Callable[[ShardRef], Any]  # a shard to compute → a Prefect future
    config: dict[str, Any] = {}
    inputs: dict[str, Any] = {}
    notes: dict[str, Any] = {}


class Run:
    """The recipe, its root, and the account of what every stage did.

    looking: nothing is computed; a stage that is not complete raises NotComplete.
    """

    def __init__(
        self, recipe: Recipe, *, looking: bool = False, progress: Callable[[str, int, int], None] | None = None
    ) -> None:
        self.recipe = recipe
        self.storage = Storage(recipe.root)
        self.looking = looking
        self.computed: dict[str, int] = {}  # stage → shards computed now
        self.directories: dict[str, list[str]] = {}  # stage → its directories
        self.started = time.time()
        self._progress = progress or (lambda stage, done, total: None)

    @property
    def device(self) -> str:
        return pool.device(self.recipe.compute)

    def target(self, stage: str, *parts: Any) -> StageDir:
        return self.named(stage, fingerprint(stage, *parts))

    def named(self, stage: str, name: str) -> StageDir:
        """The directory of a stage, entered in the account of this run."""
        target = StageDir(root=self.storage.root, stage=stage, fingerprint=name)
        known = self.directories.setdefault(stage, [])
        if target.directory not in known:
            known.append(target.directory)
        self.computed.setdefault(stage, 0)
        return target

    def needs(self, target: StageDir, shards: int = 1) -> bool:
        """Whether this stage has to be computed; counts it if so."""
        if target.is_complete():
            return False
        if self.looking:
            raise NotComplete(target.directory)
        self.computed[target.stage] += shards
        return True

    def complete(self, stage: str, works: list[Work]) -> None:
        """Computes the missing shards of all works, a bounded number at a time, then commits every work.

        A shard that fails leaves the others alone. Raises InputError if one failed because the user must act, else
        ShardError with what failed; what is done stays done.
        """
        different = {work.target.directory: work for work in works}.values()  # pool and benchmark may share images
        open_works = [work for work in different if self.needs(work.target, 0)]
        missing = [(work, ref) for work in open_works for ref in work.target.missing(work.count)]
        failures: list[tuple[str, BaseException]] = []
        in_flight: list[tuple[str, Any]] = []
        self._progress(stage, 0, len(missing))
        for done, (work, ref) in enumerate(missing, 1):
            in_flight.append((ref.name(), work.submit(ref)))
            self.computed[work.target.stage] += 1
            if len(in_flight) >= MAX_IN_FLIGHT:
                self._settle(in_flight.pop(0), failures)
            self._progress(stage, done - len(in_flight), len(missing))
        for done, waiting in enumerate(in_flight, len(missing) - len(in_flight) + 1):
            self._settle(waiting, failures)
            self._progress(stage, done, len(missing))
        for _, error in failures:
            if isinstance(error, InputError):
                raise error
        if failures:
            name, error = failures[0]
            what = f"{len(failures)} of {len(missing)} shards failed, first {name}"
            raise ShardError(f"{stage}: {what}: {type(error).__name__}: {error}") from error
        for work in open_works:
            commit(work.target, work.count, config=work.config, inputs=work.inputs, notes=work.notes)

    @staticmethod
    def _settle(waiting: tuple[str, Any], failures: list[tuple[str, BaseException]]) -> None:
        name, future = waiting
        error = future.result(raise_on_failure=False)
        if isinstance(error, BaseException):
            failures.append((name, error))


class Snapshot(BaseModel, frozen=True):
    """What a run came to: `{root}/runs/{run_id}.json`."""

    run_id: str
    version: str
    root: str
    curated: str  # the published dataset's directory below the root
    ledger: dict[str, int]  # state → candidates
    candidates: int
    computed: dict[str, int]
    seconds: float = Field(ge=0)
