"""Exports that have images which were taken down since: which they are, and how one makes room for itself again."""

from typing import Any

from lvd.flows.export_records import name_of, records
from lvd.flows.veiling import num_taken_down
from lvd.flows.versions import FOLDER
from lvd.infra.lease import check_free
from lvd.infra.shards import StageDir
from lvd.infra.storage import Storage


def outdated(storage: Storage) -> tuple[str, ...]:
    """The exports that have such images, or of whose version nobody knows any more, in words."""
    found = []
    for one in records(storage.root):
        dataset = StageDir(root=storage.root, stage=FOLDER, fingerprint=one["version"])
        rows = sum(ref.rows for ref in dataset.shards()) if dataset.is_complete() else None
        if rows != one["images"] or num_taken_down(dataset):
            found.append(f"{one['out']} ({one['kind']} of {one['version']})")
    return tuple(sorted(found))


def is_outdated(dataset: StageDir, out: str, said: dict[str, Any], identity: str) -> bool:
    """Whether the export of this identity at that place is the same as another but for images that were taken down.

    said: what the root would keep of the other.
    """
    storage, name = dataset.storage, name_of(dataset, out, {**said, "identity": identity})
    before = storage.read_json(name) if storage.exists(name) else {"images": 0}
    same = said.keys() - {"identity", "images"}
    return before["images"] > said["images"] and all(before.get(key) == said[key] for key in same)


def clear(storage: Storage, work: Storage, sums: str, keeps: str) -> None:
    """Removes the files of an export: those that it lists, or all if it was not finished, as it began in no files.

    sums: the name of its list; keeps: what says that it is there, which stays. Raises InputError if it is under way.
    """
    check_free(work)
    if storage.exists(sums):
        names = [line.partition("  ")[2] for line in storage.read_bytes(sums).decode().splitlines()]
    else:
        names = [name for name, _ in storage.files("") if name.rpartition("/")[2] != keeps]
    storage.remove_files([*names, sums])
