"""What a root knows of its exports: `{root}/exports/…json`, one for each place, so that a takedown can name them."""

import time
from typing import Any
from urllib.parse import urlsplit

from lvd.infra.errors import InputError
from lvd.infra.shards import StageDir, fingerprint
from lvd.infra.storage import Storage

FOLDER = "exports"


def records(root: str) -> list[dict[str, Any]]:
    """Every export that was begun: version, out, kind, images, begun_at, and finished_at, which is None until then."""
    storage = Storage(root)
    return [storage.read_json(f"{FOLDER}/{name}") for name in storage.names(FOLDER)]


def record(dataset: StageDir, out: str, said: dict[str, Any], *, is_finished: bool = False) -> None:
    """Writes the record of an export of this version to that place; times of an earlier attempt stay.

    Raises InputError if the root cannot be written.
    """
    storage, place, name = dataset.storage, without_user(out), name_of(dataset, out, said)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    try:
        before = storage.read_json(name) if storage.exists(name) else {"begun_at": now, "finished_at": None}
        finished = before["finished_at"] or (now if is_finished else None)
        storage.write_json(
            name, {**before, **said, "version": dataset.fingerprint, "out": place, "finished_at": finished}
        )
    except storage.errors as error:
        raise InputError(
            f"root must be a place that can be written, as exports are recorded there, was {storage.root!r}: {error}"
        ) from error


def replace(dataset: StageDir, out: str, said: dict[str, Any]) -> None:
    """Takes away the records of other exports that were at this place, which is empty or holds this one."""
    storage, mine = dataset.storage, name_of(dataset, out, said)
    for name in (f"{FOLDER}/{name}" for name in storage.names(FOLDER)):
        if name != mine and storage.read_json(name)["out"] == without_user(out):
            storage.remove(name)


def remove(dataset: StageDir, out: str, said: dict[str, Any]) -> None:
    """Takes away the record of an export that is gone from that place."""
    dataset.storage.remove(name_of(dataset, out, said))


def name_of(dataset: StageDir, out: str, said: dict[str, Any]) -> str:
    """The record's name. said: with `kind` and `identity`."""
    place = fingerprint(said["identity"], without_user(out))[:12]
    return f"{FOLDER}/{dataset.fingerprint}-{said['kind']}-{place}.json"


def without_user(uri: str) -> str:
    """The URI without the name and password that it may have."""
    url = urlsplit(uri)
    return url._replace(netloc=url.netloc.rpartition("@")[2]).geturl() if "@" in url.netloc else uri
