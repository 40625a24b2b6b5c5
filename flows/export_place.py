"""The place of an export: whether it is free, holds this export, whole or begun, or holds another.

What is under way lies below `{out}/.lvd`, so that the same command goes on where it was; a finished export has none of
it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lvd.flows.export_asked import Asked
from lvd.flows.export_records import record, replace
from lvd.flows.outdated_exports import clear
from lvd.infra.errors import InputError, RetryableError
from lvd.infra.storage import TEMPORARY, Storage
from lvd.tasks.layouts import SPLIT

WORK = ".lvd"  # below the export while it is under way
MANIFEST, SUMS, CARD = "export.json", "SHA256SUMS", "README.md"


@contextmanager
def reached(asked: Asked, storage: Storage) -> Iterator[None]:
    """Raises InputError, in one line, where the place cannot be read or written inside."""
    try:
        yield
    except (InputError, RetryableError):  # an object store's own are such already
        raise
    except storage.errors as error:
        said = " ".join(str(error).split())
        raise InputError(f"--out must be a place that can be read and written, was {asked.place!r}: {said}") from error


def is_finished(asked: Asked, storage: Storage) -> bool:
    """Whether this very export is there, with all of its shards. Raises InputError if anything else is."""
    with reached(asked, storage):
        there = [name for name in storage.names("") if name not in (WORK, TEMPORARY)]
        found = begun(storage)
        if found is None and there:
            raise InputError(
                f"--out must be empty or hold this export, {asked.place!r} has {there[0]!r}: choose another"
            )
        if found and asked.replaces(found):
            return False
        if found:
            check_same(asked, found)
        if MANIFEST not in there:
            return False
        check_whole(asked, found, storage)
    return True


def begun(storage: Storage) -> dict[str, Any] | None:
    """What the export that lies there says of itself, finished or not: `identity`, `said`; None if there is none."""
    claimed = next((name for name in (MANIFEST, f"{WORK}/{MANIFEST}") if storage.exists(name)), None)
    return storage.read_json(claimed) if claimed else None


def check_same(asked: Asked, found: dict[str, Any]) -> None:
    """Raises InputError if what lies there is another export than this one."""
    if found.get("identity") == asked.identity:
        return
    other = f"another ({found.get('said', 'not made by lvd')})"
    if found.get("said") == asked.said:
        other = f"one of {asked.dataset.fingerprint} with other shards or columns, or as it was before"
    raise InputError(
        f"--out must be empty or hold this export ({asked.said}), {asked.place!r} holds {other}: "
        "choose another place, or remove what is there"
    )


def check_whole(asked: Asked, manifest: dict[str, Any], storage: Storage) -> None:
    """Raises InputError if files are gone or have another length. Those of an image folder are counted together."""
    wanted = {one["name"]: one["bytes"] for one in manifest["files"]}
    files = num_bytes = 0
    for name, size in storage.files(""):
        if wanted.get(name) == size:
            del wanted[name]
        elif name.startswith(f"{SPLIT}/"):
            files, num_bytes = files + 1, num_bytes + size
    lost = next(iter(wanted), None)
    if lost is None and not manifest["files"] and (files, num_bytes) != (manifest["num_files"], manifest["bytes"]):
        lost = f"one of {manifest['num_files']:,}"
    if lost is not None:
        raise InputError(
            f"{asked.place!r} must have the files that its {MANIFEST} names, {lost} is gone or cut short: "
            "remove what is there, and export again"
        )


def claim(asked: Asked, storage: Storage, work: Storage) -> None:
    """Says in the folder, and in the root, that this export is under way. Raises InputError if it cannot.

    Of two that come at once, one claims the place. What it replaces goes first, and what says that it is there last.
    """
    mine = {"identity": asked.identity, "said": asked.said}
    with reached(asked, storage):
        found = begun(storage)
        if found is not None and asked.replaces(found):
            clear(storage, work, SUMS, MANIFEST)
            work.write_json(MANIFEST, mine)
            storage.remove(MANIFEST)
        elif not work.create(MANIFEST, json.dumps(mine, ensure_ascii=False).encode()):
            check_same(asked, work.read_json(MANIFEST))
    record(asked.dataset, asked.out, asked.facts)
    replace(asked.dataset, asked.out, asked.facts)
