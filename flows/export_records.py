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
    storage, place = dataset.storage, without_user(out)
    version = dataset.fingerprint
    name = f"{FOLDER}/{version}-{said['kind']}-{fingerprint(said['identity'], place)[:12]}.json"
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    try:
        before = storage.read_json(name) if storage.exists(name) else {"begun_at": now, "finished_at": None}
        finished = before["finished_at"] or (now if is_finished else None)
        storage.write_json(name, {**before, **said, "version": version, "out": place, "finished_at": finished})
    except storage.errors as error:
        raise InputError(
            f"root must be a place that can be written, as exports are recorded there, was {storage.root!r}: {error}"
        ) from error


def without_user(uri: str) -> str:
    """The URI without the name and password that it may have."""
    url = urlsplit(uri)
    return url._replace(netloc=url.netloc.rpartition("@")[2]).geturl() if "@" in url.netloc else uri
