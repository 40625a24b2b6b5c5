"""What of a root no version needs any more: found, and removed if that is asked for.

Needed is what the records of the kept versions' runs name, the shards that these versions consist of, and what a root
keeps for later runs. Everything else that stages wrote is left over: what only versions had that are not kept, what was
computed for no version, and what an interrupted run had done (to keep it, run it to its end first). What no stage wrote
is left alone: generations, records of takedowns and of exports, metrics, the miniature web.
"""

import re
from calendar import timegm
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from time import strptime
from typing import Any

from pydantic import BaseModel

from lvd.flows import export_records
from lvd.flows.accounts import ORDER
from lvd.flows.inquiry import NOT_STAGES
from lvd.flows.versions import FOLDER, SHARDS, STAMP, latest, published_names, records
from lvd.infra.errors import InputError
from lvd.infra.lease import check_free, lease
from lvd.infra.shards import READERS, StageDir
from lvd.infra.storage import Storage

KEPT_FOR_LATER = {  # stage → why its directories stay whoever made them: a later run would else measure otherwise
    "hash-fit": "hashes of images that come later must be comparable with those of earlier ones",
    "background": "descriptors of images that come later must be adjusted as those of earlier ones",
    "batch-size": "vectors may depend on it in their last bits, and another trial may find another one",
}
CENTROIDS = "centroids"  # kept ones stay, all of them: later runs assign to the last
OWNED = {*ORDER, SHARDS} - {"ledger"} - KEPT_FOR_LATER.keys()  # the stages whose directories can be left over
FINGERPRINT, VERSION = re.compile(r"[0-9a-f]{24,}(-[0-9a-z]+)?/"), re.compile(r"v[0-9]+/")  # names of directories
OLD, NEW = "no kept version needs it", "made since the last version"
FIRST, SECOND, LAST = "stage.json", "data-", "version.json"  # the order in which a directory's files go


class Leftover(BaseModel, frozen=True):
    """A directory that no kept version needs."""

    directory: str
    stage: str
    state: str  # complete or unfinished
    why: str
    files: int
    num_bytes: int


class Leftovers(BaseModel, frozen=True):
    """What can go from a root, or has gone."""

    root: str
    kept: tuple[str, ...]  # versions
    held: dict[str, str]  # of these, those that are kept only because an export of them is not finished: its place
    versions: tuple[str, ...]  # that are not kept
    records: tuple[str, ...]  # of the runs that came to them
    directories: tuple[Leftover, ...]
    needed_bytes: int  # of all directories of stages that stay
    unknown: tuple[str, ...]  # folders of the root that are left alone, as no stage wrote them

    @property
    def num_bytes(self) -> int:
        return sum(found.num_bytes for found in self.directories)


def leftovers(root: str, keep: int | None = None) -> Leftovers:
    """What can go if the newest `keep` versions stay, by default all. The one of `latest.json` stays in any case, and
    so does one whose export is not finished.

    Cost: a listing of the root, stage.json and the runs' records of every kept version. Memory: some 300 bytes for each
    directory.
    Raises InputError if no version was published, keep is below 1, or a run holds the root.
    """
    storage = asked(root, keep)
    check_free(storage)
    return _found(storage, keep)


def remove_leftovers(root: str, keep: int | None = None) -> Leftovers:
    """Removes what `leftovers` finds, under the root's lease, and returns it. Interrupted, it can be called again.

    At any moment what is there is whole or known not to be: the records of runs go first, then versions, then what
    they were made of; of each directory stage.json goes before the shards, and these before what was noted of them.
    """
    storage = asked(root, keep)
    with lease(storage):
        found = _found(storage, keep)
        storage.remove_files(list(found.records))
        storage.remove_temporary()
        for one in found.directories:
            if one.stage == FOLDER:
                remove_directory(storage, one.directory)
        others = [one.directory for one in found.directories if one.stage != FOLDER]
        with ThreadPoolExecutor(READERS) as workers:
            list(workers.map(lambda directory: remove_directory(storage, directory), others))
    return found


def asked(root: str, keep: int | None) -> Storage:
    """The root. Raises InputError if that cannot be asked of it."""
    if keep is not None and keep < 1:
        raise InputError(f"--keep must be at least 1, was {keep}: the newest version always stays")
    published_names(root)
    return Storage(root)


def remove_directory(storage: Storage, directory: str) -> None:
    """Removes a stage's directory, what says that it is complete first."""
    names = [name for name, _ in storage.files(directory)]
    own = {name: name.rsplit("/", 1)[-1] for name in names}
    storage.remove_files([name for name in names if own[name] == FIRST])
    storage.remove_files([name for name in names if own[name].startswith(SECOND)])
    storage.remove_files([name for name in names if own[name] not in (FIRST, LAST)])
    storage.remove(directory)


def _found(storage: Storage, keep: int | None) -> Leftovers:
    versions = published_names(storage.root)
    held = {one["version"]: one["out"] for one in export_records.records(storage.root) if not one["finished_at"]}
    stays = {*versions[-(keep or len(versions)) :], (latest(storage) or {}).get("version")}
    kept = [version for version in versions if version in stays or version in held]
    needed, sizes = needed_directories(storage, kept), Sizes(storage)
    needed |= kept_for_later(storage, sizes.complete - needed)
    since = made_since(storage, sizes.complete - needed, kept)
    found = []
    for directory in sorted(sizes.directories.keys() - needed):
        stage, name = directory.split("/")
        state = "complete" if directory in sizes.complete else "unfinished"
        why = NEW if directory in since else OLD
        if stage == FOLDER:
            why = "it is not kept" if name in versions else "its run did not end"
        files, num_bytes = sizes.directories[directory]
        found.append(Leftover(directory=directory, stage=stage, state=state, why=why, files=files, num_bytes=num_bytes))
    return Leftovers(
        root=storage.root,
        kept=tuple(kept),
        held={version: held[version] for version in kept if version not in stays},
        versions=tuple(version for version in versions if version not in kept),
        records=tuple(name for version, names in records(storage).items() if version not in kept for name in names),
        directories=tuple(found),
        needed_bytes=sum(num_bytes for directory, (_, num_bytes) in sizes.directories.items() if directory in needed),
        unknown=tuple(sorted(sizes.unknown)),
    )


def needed_directories(storage: Storage, kept: list[str]) -> set[str]:
    """The directories that these versions need: their own, their shards, and what their runs' records name."""
    needed, runs = set(), records(storage)
    for version in kept:
        dataset = StageDir(root=storage.root, stage=FOLDER, fingerprint=version)
        needed |= {dataset.directory, *(below(ref.name()) for ref in dataset.shards())}
        for name in runs[version]:
            directories = storage.read_json(name)["directories"].values()
            needed |= {below(directory) for found in directories for directory in found}
    return needed


def kept_for_later(storage: Storage, directories: set[str]) -> set[str]:
    """Those of these complete directories that a root keeps for later runs, whoever made them."""
    fits = {directory for directory in directories if directory.startswith(f"{CENTROIDS}/")}
    found = {directory for directory, account in accounts(storage, fits) if account["notes"].get("fitted_on")}
    return found | {directory for directory in directories if directory.split("/")[0] in KEPT_FOR_LATER}


def made_since(storage: Storage, directories: set[str], kept: list[str]) -> set[str]:
    """Those of these complete directories that were made since the last run began that came to a kept version.

    An interrupted run has made them: it would go on with them.
    """
    runs = records(storage)
    last = max(timegm(strptime(name.split("/")[1].split("-")[0], STAMP)) for one in kept for name in runs[one])
    of_stages = {one for one in directories if one.split("/")[0] not in (FOLDER, SHARDS)}
    return {directory for directory, account in accounts(storage, of_stages) if account["ended_at"] > last}


def accounts(storage: Storage, directories: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """stage.json of each of these."""
    with ThreadPoolExecutor(READERS) as readers:
        yield from readers.map(lambda one: (one, storage.read_json(f"{one}/{FIRST}")), directories)


class Sizes:
    """The files and bytes of every directory of a stage, by one listing of the root."""

    def __init__(self, storage: Storage) -> None:
        self.directories: dict[str, tuple[int, int]] = {}
        self.complete: set[str] = set()
        self.unknown: set[str] = set()
        for name, num_bytes in storage.files(""):
            stage, _, rest = name.partition("/")
            if stage in OWNED or stage in KEPT_FOR_LATER:
                if (VERSION if stage == FOLDER else FINGERPRINT).match(rest):
                    self._add(below(name), name, num_bytes)
            elif rest and stage not in NOT_STAGES:
                self.unknown.add(stage)
        if storage.is_local:
            self._add_empty(storage)

    def _add_empty(self, storage: Storage) -> None:
        """Folders whose files somebody was removing when he was interrupted: on a bucket there are none."""
        for stage in OWNED:
            for name in storage.names(stage):
                if (VERSION if stage == FOLDER else FINGERPRINT).match(f"{name}/"):
                    self.directories.setdefault(f"{stage}/{name}", (0, 0))

    def _add(self, directory: str, name: str, num_bytes: int) -> None:
        files, before = self.directories.get(directory, (0, 0))
        self.directories[directory] = files + 1, before + num_bytes
        own = name.removeprefix(f"{directory}/")
        if own == FIRST or (directory.startswith(f"{SHARDS}/") and own.startswith(SECOND)):
            self.complete.add(directory)


def below(name: str) -> str:
    """The stage's directory that a file or a folder lies in: the first two parts of its name."""
    return "/".join(name.split("/", 2)[:2])
