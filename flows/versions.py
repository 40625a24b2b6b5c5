"""Versions of the curated dataset: numbered, immutable, one for each thing that was published.

A version is `curated/vN`: its ledger, its report, its card, and the names of its shards. These lie in `published/`,
each in a directory named by what is in it, so that versions which hold the same images in the same way share them.
"""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from lvd.flows.run import NotComplete, Run
from lvd.infra.errors import InputError
from lvd.infra.shards import StageDir
from lvd.infra.storage import Storage

FOLDER, SHARDS, RUNS = "curated", "published", "runs"


class Published(BaseModel, frozen=True):
    """A published version, and the ledger's count of candidates by state."""

    version: str
    dataset: StageDir
    ledger: StageDir
    states: dict[str, int]
    candidates: int


class Version(BaseModel, frozen=True):
    """What a root says of one of its versions, by the record of the last run that came to it."""

    name: str
    number: int
    is_latest: bool
    run_id: str
    images: int
    candidates: int
    shards: tuple[str, ...]  # the names of its files of images

    def dataset(self, root: str) -> StageDir:
        return StageDir(root=root, stage=FOLDER, fingerprint=self.name)

    def ledger(self, root: str) -> StageDir:
        return StageDir(root=root, stage=f"{FOLDER}/{self.name}", fingerprint="ledger")


def version_of(run: Run, identity: str) -> str:
    """The version that this identity was published as, or the next free one, claimed for it."""
    numbers = claimed(run.storage)
    for number in numbers:
        if run.storage.read_json(f"{FOLDER}/v{number}/version.json")["identity"] == identity:
            return f"v{number}"
    if run.looking:
        raise NotComplete(FOLDER)
    version = f"v{numbers[-1] + 1 if numbers else 1}"
    run.storage.write_json(f"{FOLDER}/{version}/version.json", {"identity": identity})
    return version


def claimed(storage: Storage) -> list[int]:
    """The numbers that a run has taken, ascending, whether it has published or not."""
    there = sorted(int(name[1:]) for name in storage.names(FOLDER) if name[1:].isdigit())
    return [number for number in there if storage.exists(f"{FOLDER}/v{number}/version.json")]


def latest(run_storage: Any) -> dict[str, Any] | None:
    """What `curated/latest.json` says, or None if nothing was published yet."""
    return run_storage.read_json(f"{FOLDER}/latest.json") if run_storage.exists(f"{FOLDER}/latest.json") else None


def records(storage: Storage) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name and the content of the record of every finished run, the oldest first."""
    for name in (name for name in storage.names(RUNS) if name.endswith(".json")):
        yield f"{RUNS}/{name}", storage.read_json(f"{RUNS}/{name}")


def published_versions(root: str) -> list[Version]:
    """The versions of a root that are complete and have a run's record, ascending. Raises InputError if none is."""
    storage = Storage(root)
    current, found = (latest(storage) or {}).get("version"), {}
    for _, record in records(storage):
        name = record["version"]
        dataset = StageDir(root=root, stage=FOLDER, fingerprint=name)
        if not dataset.is_complete():
            continue
        refs = dataset.shards()
        found[name] = Version(
            name=name,
            number=int(name[1:]),
            is_latest=name == current,
            run_id=record["run_id"],
            images=sum(ref.rows for ref in refs),
            candidates=record["candidates"],
            shards=tuple(ref.name() for ref in refs),
        )
    if not found:
        raise InputError(
            f"root must hold a published version, {root!r} has none: run `lvd run RECIPE --root {root}` first"
        )
    return sorted(found.values(), key=lambda version: version.number)


def version_named(versions: list[Version], name: str, field: str) -> Version:
    """The version of that name: `v2`, `2` or `latest`. Raises InputError that lists those there are."""
    for version in versions:
        if name in (version.name, str(version.number)) or (name == "latest" and version.is_latest):
            return version
    there = ", ".join(version.name for version in versions)
    raise InputError(
        f"{field} must be a version of the root, one of {there} or latest, was {name!r}: see `lvd versions`"
    )
