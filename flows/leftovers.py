"""What of a root no version needs any more: found, and removed if that is asked for.

Needed is what the records of the kept versions' runs name, the shards that these versions consist of, and what a root
keeps for later runs. Everything else that stages wrote is left over: what only versions had that are not kept, what was
computed for no version, and what an interrupted run had done (to keep it, run it to its end first). What no stage wrote
is left alone.
"""

import re
from concurrent.futures import ThreadPoolExecutor

from pydantic import BaseModel

from lvd.flows.accounts import ORDER
from lvd.flows.versions import FOLDER, RUNS, SHARDS, Version, published_versions, records
from lvd.infra.errors import InputError
from lvd.infra.lease import check_free, lease
from lvd.infra.shards import READERS
from lvd.infra.storage import TEMPORARY, Storage

KEPT_FOR_LATER = {  # stage → why its directories stay whoever made them: a later run would else measure otherwise
    "hash-fit": "hashes of images that come later must be comparable with those of earlier ones",
    "background": "descriptors of images that come later must be adjusted as those of earlier ones",
    "batch-size": "vectors may depend on it in their last bits, and another trial may find another one",
}
OWNED = {*ORDER, SHARDS} - {"ledger"} - KEPT_FOR_LATER.keys()  # the stages whose directories can be left over
OWN_FOLDERS = (RUNS, "leases", TEMPORARY)  # that are dealt with by themselves
FINGERPRINT, VERSION = re.compile(r"[0-9a-f]{24,}(-[0-9a-z]+)?/"), re.compile(r"v[0-9]+/")  # names of directories
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
    versions: tuple[str, ...]  # that are not kept
    records: tuple[str, ...]  # of the runs that came to them
    directories: tuple[Leftover, ...]
    needed_bytes: int  # of all directories of stages that stay
    unknown: tuple[str, ...]  # folders of the root that are left alone, as no stage wrote them

    @property
    def num_bytes(self) -> int:
        return sum(found.num_bytes for found in self.directories)


def leftovers(root: str, keep: int | None = None) -> Leftovers:
    """What can go if the newest `keep` versions stay, by default all. The one of `latest.json` stays in any case.

    Cost: a listing of the root, and stage.json of every version. Memory: some 300 bytes for each directory.
    Raises InputError if no version was published, keep is below 1, or a run holds the root.
    """
    if keep is not None and keep < 1:
        raise InputError(f"--keep must be at least 1, was {keep}: the newest version always stays")
    storage = Storage(root)
    check_free(storage)
    return _found(storage, keep)


def remove_leftovers(root: str, keep: int | None = None) -> Leftovers:
    """Removes what `leftovers` finds, under the root's lease, and returns it. Interrupted, it can be called again.

    At any moment what is there is whole or known not to be: the records of runs go first, then versions, then what
    they were made of; of each directory stage.json goes before the shards, and these before what was noted of them.
    """
    leftovers(root, keep)  # what cannot be done is said before the lease is taken
    storage = Storage(root)
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


def remove_directory(storage: Storage, directory: str) -> None:
    """Removes a stage's directory, what says that it is complete first."""
    names = [name for name, _ in storage.files(directory)]
    own = {name: name.rsplit("/", 1)[-1] for name in names}
    storage.remove_files([name for name in names if own[name] == FIRST])
    storage.remove_files([name for name in names if own[name].startswith(SECOND)])
    storage.remove_files([name for name in names if own[name] not in (FIRST, LAST)])
    storage.remove(directory)


def _found(storage: Storage, keep: int | None) -> Leftovers:
    versions = published_versions(storage.root)
    stays = versions[-(keep or len(versions)) :]
    kept = [version for version in versions if version.is_latest or version in stays]
    needed, gone = needed_directories(storage, kept)
    found, needed_bytes = [], 0
    sizes = Sizes(storage)
    for directory, (files, num_bytes) in sorted(sizes.directories.items()):
        stage, name = directory.split("/")
        if directory in needed or stage in KEPT_FOR_LATER:
            needed_bytes += num_bytes
            continue
        state = "complete" if directory in sizes.complete else "unfinished"
        why = "no kept version needs it"
        if stage == FOLDER:
            why = "it is not kept" if name in {version.name for version in versions} else "its run did not end"
        found.append(Leftover(directory=directory, stage=stage, state=state, why=why, files=files, num_bytes=num_bytes))
    return Leftovers(
        root=storage.root,
        kept=tuple(version.name for version in kept),
        versions=tuple(version.name for version in versions if version not in kept),
        records=tuple(gone),
        directories=tuple(found),
        needed_bytes=needed_bytes,
        unknown=tuple(sorted(sizes.unknown)),
    )


def needed_directories(storage: Storage, kept: list[Version]) -> tuple[set[str], list[str]]:
    """The directories that these versions need, and the records of the runs that came to other ones."""
    names, gone = {version.name for version in kept}, []
    needed = {below(shard) for version in kept for shard in version.shards} | {f"{FOLDER}/{name}" for name in names}
    for name, record in records(storage):
        if record["version"] in names:
            needed |= {below(directory) for found in record["directories"].values() for directory in found}
        else:
            gone.append(name)
    return needed, gone


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
            elif rest and stage not in OWN_FOLDERS:
                self.unknown.add(stage)

    def _add(self, directory: str, name: str, num_bytes: int) -> None:
        files, before = self.directories.get(directory, (0, 0))
        self.directories[directory] = files + 1, before + num_bytes
        own = name.removeprefix(f"{directory}/")
        if own == FIRST or (directory.startswith(f"{SHARDS}/") and own.startswith(SECOND)):
            self.complete.add(directory)


def below(name: str) -> str:
    """The stage's directory that a file or a folder lies in: the first two parts of its name."""
    return "/".join(name.split("/", 2)[:2])
