"""One run of the chain: what it was asked, what it found on storage, what it computed."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from lvd.flows import dispatch, pool
from lvd.flows.alerts import Alert
from lvd.flows.group import Call, Outcome
from lvd.flows.progress import Progress, Unseen
from lvd.flows.recipe import Recipe
from lvd.infra.committing import commit, commit_lent
from lvd.infra.errors import InputError, ShardError
from lvd.infra.shards import ShardRef, StageDir, fingerprint, unwritten
from lvd.infra.storage import Storage

if TYPE_CHECKING:
    from lvd.flows.observing import Observer


class NotComplete(Exception):
    """Something of this run is not on storage yet."""


class Work(BaseModel):
    """The shards of one stage directory: what they are, and how one of them is computed.

    device: the kind that they ask for; what takes an argument `device` is given its own one of that kind.
    lent: the shards, where these lie in directories of their own, for others to share; then `count` is their number.
    """

    target: StageDir
    count: int
    call: Callable[[ShardRef], Call]  # what computes a shard
    device: str = "cpu"
    config: dict[str, Any] = {}
    inputs: dict[str, Any] = {}
    notes: dict[str, Any] = {}
    lent: list[ShardRef] | None = None

    def missing(self) -> list[ShardRef]:
        return self.target.missing(self.count) if self.lent is None else unwritten(self.lent)

    def close(self) -> None:
        if self.lent is None:
            commit(self.target, self.count, config=self.config, inputs=self.inputs, notes=self.notes)
        else:
            commit_lent(self.target, self.lent, config=self.config, inputs=self.inputs)


class Run:
    """The recipe, its root, and the account of what every stage did.

    looking: nothing is computed; a stage that is not complete raises NotComplete.
    """

    def __init__(self, recipe: Recipe, *, looking: bool = False, progress: Progress | None = None) -> None:
        self.recipe = recipe
        self.storage = Storage(recipe.root)
        self.looking = looking
        self.computed: dict[str, int] = {}  # stage → shards computed now
        self.directories: dict[str, list[str]] = {}  # stage → its directories
        self.remarks: list[str] = []  # what whoever started it should know
        self.started = time.time()
        self.stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self.started))  # its id begins with it
        self._progress = progress or Unseen()

    @cached_property
    def device(self) -> str:
        """The kind of device, decided once: the nodes of a cluster come and go."""
        return pool.device(self.recipe.compute)

    def remark(self, text: str) -> None:
        self.remarks.append(text)

    @cached_property
    def observer(self) -> "Observer":
        """What tells of this run, to Prefect and in metrics."""
        from lvd.flows.observing import Observer

        return Observer(self)

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
        """Computes the missing shards of all works, as many at once as the pool has room for; commits every work.

        A shard that fails leaves the others alone. Raises InputError if one failed because the user must act, else
        ShardError with what failed; what is done stays done.
        """
        different = {work.target.directory: work for work in works}.values()  # pool and benchmark may share images
        open_works = [work for work in different if self.needs(work.target, 0)]
        missing = {work.target.directory: work.missing() for work in open_works}
        for work in open_works:
            self.computed[work.target.stage] += len(missing[work.target.directory])
        failed: list[Outcome] = []
        for device in sorted({work.device for work in open_works}):
            mine = [work for work in open_works if work.device == device]
            number = sum(len(missing[work.target.directory]) for work in mine)
            calls = (replace(work.call(ref), ref=ref) for work in mine for ref in missing[work.target.directory])
            for outcome in self.outcomes(stage, calls, number, device):
                if outcome.error is not None:
                    failed.append(outcome)
        raise_first(stage, failed, sum(map(len, missing.values())))
        for work in open_works:
            work.close()

    def outcomes(self, stage: str, calls: Iterable[Call], number: int, device: str = "cpu") -> Iterator[Outcome]:
        """What became of every call, as they are done."""
        if not number:
            return
        with self._progress.stage(stage, number) as show:
            for outcome in dispatch.outcomes(calls, self.recipe.compute, stage, device, number):
                show(outcome)
                yield outcome


def raise_first(stage: str, failed: list[Outcome], number: int) -> None:
    """Raises InputError or ShardError for the first failure, if there is one; of the user's own, the first of those."""
    for outcome in failed:
        if isinstance(outcome.error, InputError):
            raise outcome.error
    if failed:
        error, ref = failed[0].error, failed[0].call.ref
        what = f"{len(failed)} of {number} shards failed, first {ref.name() if ref else failed[0].call.function}"
        raise ShardError(f"{stage}: {what}: {type(error).__name__}: {error}") from error


class Snapshot(BaseModel, frozen=True):
    """What a run came to: `{root}/runs/{run_id}.json`."""

    run_id: str
    version: str
    root: str
    curated: str  # the published dataset's directory below the root
    report: str = "report.html"  # in that directory
    ledger: dict[str, int]  # state → candidates
    candidates: int
    computed: dict[str, int]
    remarks: tuple[str, ...] = ()
    seconds: float = Field(ge=0)
    alerts: tuple[Alert, ...] = ()  # what is unusual about it
