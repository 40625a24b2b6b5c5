"""Versions of the curated dataset: numbered, immutable, one for each thing that was published."""

from typing import Any

from pydantic import BaseModel

from lvd.flows.run import NotComplete, Run
from lvd.infra.shards import StageDir

FOLDER = "curated"


class Published(BaseModel, frozen=True):
    """A published version, and the ledger's count of candidates by state."""

    version: str
    dataset: StageDir
    ledger: StageDir
    states: dict[str, int]
    candidates: int


def version_of(run: Run, identity: str) -> str:
    """The version that this identity was published as, or the next free one, claimed for it."""
    there = sorted(int(name[1:]) for name in run.storage.names(FOLDER) if name[1:].isdigit())
    numbers = [number for number in there if run.storage.exists(f"{FOLDER}/v{number}/version.json")]  # claimed ones
    for number in numbers:
        if run.storage.read_json(f"{FOLDER}/v{number}/version.json")["identity"] == identity:
            return f"v{number}"
    if run.looking:
        raise NotComplete(FOLDER)
    version = f"v{numbers[-1] + 1 if numbers else 1}"
    run.storage.write_json(f"{FOLDER}/{version}/version.json", {"identity": identity})
    return version


def latest(run_storage: Any) -> dict[str, Any] | None:
    """What `curated/latest.json` says, or None if nothing was published yet."""
    return run_storage.read_json(f"{FOLDER}/latest.json") if run_storage.exists(f"{FOLDER}/latest.json") else None
