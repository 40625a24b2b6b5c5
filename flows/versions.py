"""Versions of the curated dataset: numbered, immutable, one for each thing that was published.

A version is `curated/vN`: its ledger, its report, its card, and the names of its shards. These lie in `published/`,
each in a directory named by what is in it, so that versions which hold the same images in the same way share them.
"""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic import BaseModel

from lvd.flows.run import NotComplete, Run
from lvd.infra.errors import InputError
from lvd.infra.shards import READERS, StageDir
from lvd.infra.storage import Storage

FOLDER, SHARDS, RUNS = "curated", "published", "runs"
STAMP = "%Y%m%dT%H%M%SZ"  # when a run began, at the front of the name of its record
RECORD = re.compile(r"[0-9]{8}T[0-9]{6}Z-(v[0-9]+)\.json")  # the name of the record of a run that came to a version


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
    """The version that this identity was published as, or the next free one, claimed for it.

    Of two runs that claim the same number at once, one gets the next.
    """
    known = identities(run.storage)
    for number, said in known.items():
        if said == identity:
            return f"v{number}"
    if run.looking:
        raise NotComplete(FOLDER)
    version = f"v{max(known, default=0) + 1}"
    claim = json.dumps({"identity": identity}, indent=1) + "\n"
    if run.storage.create(f"{FOLDER}/{version}/version.json", claim.encode()):
        return version
    return version_of(run, identity)


def identities(storage: Storage) -> dict[int, str]:
    """The numbers that a run has taken, ascending, whether it has published or not, and what for."""
    numbers = sorted(int(name[1:]) for name in storage.names(FOLDER) if name[1:].isdigit())

    def identity(number: int) -> str | None:
        name = f"{FOLDER}/v{number}/version.json"
        return storage.read_json(name)["identity"] if storage.exists(name) else None

    with ThreadPoolExecutor(READERS) as readers:
        found = zip(numbers, readers.map(identity, numbers), strict=True)
        return {number: said for number, said in found if said is not None}


def latest(storage: Storage) -> dict[str, Any] | None:
    """What `curated/latest.json` says, or None if nothing was published yet."""
    return storage.read_json(f"{FOLDER}/latest.json") if storage.exists(f"{FOLDER}/latest.json") else None


def records(storage: Storage) -> dict[str, list[str]]:
    """The names of the records of the finished runs that came to a version, the oldest first: version → names.

    The versions stand in ascending order. Cost: one listing.
    """
    found: dict[str, list[str]] = {}
    for name in storage.names(RUNS):
        if match := RECORD.fullmatch(name):
            found.setdefault(match[1], []).append(f"{RUNS}/{name}")
    return {version: found[version] for version in sorted(found, key=number_of)}


def number_of(version: str) -> int:
    return int(version[1:])


def published_names(root: str) -> list[str]:
    """The versions of a root that are complete and have a run's record, ascending. Raises InputError if none is."""
    storage = Storage(root)
    names = list(records(storage))
    with ThreadPoolExecutor(READERS) as readers:
        there = readers.map(lambda name: storage.exists(f"{FOLDER}/{name}/stage.json"), names)
        names = [name for name, is_complete in zip(names, there, strict=True) if is_complete]
    if not names:
        raise InputError(
            f"root must hold a published version, {root!r} has none: run `lvd run RECIPE --root {root}` first"
        )
    return names


def versions_of(root: str, names: list[str]) -> list[Version]:
    """What a root says of these versions."""
    storage = Storage(root)
    current, runs = (latest(storage) or {}).get("version"), records(storage)

    def version(name: str) -> Version:
        record = storage.read_json(runs[name][-1])
        refs = StageDir(root=root, stage=FOLDER, fingerprint=name).shards()
        return Version(
            name=name,
            number=number_of(name),
            is_latest=name == current,
            run_id=record["run_id"],
            images=sum(ref.rows for ref in refs),
            candidates=record["candidates"],
            shards=tuple(ref.name() for ref in refs),
        )

    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(version, names))


def published_versions(root: str) -> list[Version]:
    """What a root says of all its versions, ascending. Raises InputError if it has none."""
    return versions_of(root, published_names(root))


def named(root: str, names: dict[str, str]) -> list[Version]:
    """The versions that fields name: `v2`, `2` or `latest`. Raises InputError that lists those there are."""
    there, current = published_names(root), (latest(Storage(root)) or {}).get("version")
    found = []
    for field, name in names.items():
        meant = current if name == "latest" else f"v{name.removeprefix('v')}"
        if meant not in there:
            raise InputError(
                f"{field} must be a version of the root, one of {', '.join(there)} or latest, was {name!r}: "
                "see `lvd versions`"
            )
        found.append(meant)
    return versions_of(root, found)
