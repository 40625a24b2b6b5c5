"""The figures of a run, from what its stages say of themselves: the source of metrics and of alerts."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel

from lvd.flows.accounts import ORDER
from lvd.infra.shards import StageDir
from lvd.infra.storage import Storage

LEDGER = "ledger"
PUBLISHED = "curated"


class Account(BaseModel, frozen=True):
    """What stays of one directory's stage.json."""

    directory: str
    stage: str  # `ledger` for that of any version
    rows_in: int
    rows: int
    reasons: dict[str, int]
    seconds: float
    cost: dict[str, float]
    peak_memory_mb: int
    shards: int
    ended_at: float
    inputs: dict[str, Any]
    recall: float | None  # of its search; 1 if that was exact, None if it has none
    objective: float | None  # of k-means, after its last pass

    @classmethod
    def read(cls, root: str, directory: str) -> "Account":
        stage, name = directory.rsplit("/", 1)
        said = StageDir(root=root, stage=stage, fingerprint=name).account()
        notes = said["notes"]
        passes = [one for notes_ in said["shard_notes"] for one in notes_.get("iterations", ())]
        return cls(
            directory=directory,
            stage=LEDGER if stage.startswith(f"{PUBLISHED}/") else stage,
            rows_in=said["rows_in"],
            rows=said["rows"],
            reasons=notes.get("reasons") or said["reasons"],
            seconds=said["seconds"],
            cost=said.get("cost", {}),
            peak_memory_mb=said["peak_memory_mb"],
            shards=len(said["shard_rows"]),
            ended_at=said["ended_at"],
            inputs=said["inputs"],
            recall=(notes["recall"]["recall"] if notes["recall"] else 1.0) if "recall" in notes else None,
            objective=passes[-1]["objective"] if stage == "centroids" and passes else None,
        )


class StageFigures(BaseModel, frozen=True):
    """All directories of one stage together."""

    directories: int
    rows_in: int
    rows: int
    reasons: dict[str, int]
    seconds: float
    cost: dict[str, float]  # read_bytes, written_bytes, gpu_seconds, …
    peak_memory_mb: int


class Downloads(BaseModel, frozen=True):
    """Candidates that were asked of servers, and those that gave an image."""

    asked: int = 0
    fetched: int = 0

    @property
    def success(self) -> float | None:
        """In [0, 1]; None if nothing was asked for."""
        return self.fetched / self.asked if self.asked else None


class Books:
    """The accounts of the directories of one root that a run uses. Each is read once.

    Memory at 10^9 images: about a kilobyte for each directory.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self._accounts: dict[str, Account] = {}

    def enter(self, directories: Iterable[str]) -> list[Account]:
        """The accounts of those directories that were not there before, and are complete."""
        fresh = []
        for directory in dict.fromkeys(directories):
            if directory in self._accounts or not Storage(self.root).exists(f"{directory}/stage.json"):
                continue
            self._accounts[directory] = Account.read(self.root, directory)
            fresh.append(self._accounts[directory])
        return fresh

    def __iter__(self) -> Iterator[Account]:
        return iter(self._accounts.values())

    def __getitem__(self, directory: str) -> Account:
        return self._accounts[directory]

    def __contains__(self, directory: str) -> bool:
        return directory in self._accounts

    def of(self, stage: str) -> list[Account]:
        return [account for account in self if account.stage == stage]

    def stages(self) -> dict[str, StageFigures]:
        """Stage → its figures, in the order of the chain."""
        names = {account.stage for account in self}
        place = {stage: index for index, stage in enumerate(ORDER)}
        return {name: summed(self.of(name)) for name in sorted(names, key=lambda n: (place.get(n, len(ORDER)), n))}

    def recalls(self) -> dict[str, float]:
        """Stage → the recall of its search; the lowest where there are several."""
        found: dict[str, float] = {}
        for account in self:
            if account.recall is not None:
                found[account.stage] = min(account.recall, found.get(account.stage, 1.0))
        return found

    def objective(self) -> float | None:
        return next((account.objective for account in self if account.objective is not None), None)

    def downloads(self, since: float = 0.0) -> Downloads:
        """Of the sources that list URLs. since: counts only what was done after that time, in Unix seconds."""
        linked = {account.inputs["digest"] for account in self.of("links")}
        manifests = {a.directory for a in self.of("crawl") if a.inputs.get("digest") in linked}
        asked = [a for a in self.of("download") if a.inputs["manifest"] in manifests and a.ended_at >= since]
        return Downloads(asked=sum(a.rows_in for a in asked), fetched=sum(a.rows for a in asked))


def summed(accounts: list[Account]) -> StageFigures:
    """The figures of one stage, of all its directories."""
    reasons, cost = Counter(), Counter()
    for account in accounts:
        reasons.update(account.reasons)
        cost.update(account.cost)
    return StageFigures(
        directories=len(accounts),
        rows_in=sum(account.rows_in for account in accounts),
        rows=sum(account.rows for account in accounts),
        reasons=dict(sorted(reasons.items())),
        seconds=sum(account.seconds for account in accounts),
        cost=dict(cost),
        peak_memory_mb=max((account.peak_memory_mb for account in accounts), default=0),
    )
