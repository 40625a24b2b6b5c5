"""The lease that keeps two runs from one root; it expires when its holder dies."""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lvd.infra.errors import InputError
from lvd.infra.storage import Storage

NAME = "leases/run.json"
LIFETIME_S = 120.0
RENEW_S = 20.0


@contextmanager
def lease(storage: Storage) -> Iterator[None]:
    """Holds the root. A dead holder's lease is taken over: at once on its own machine, else when it expires.

    Raises InputError if another run holds the root.
    """
    mine = {
        "holder": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }
    while not storage.create(NAME, _dated(mine)):
        theirs = _read(storage)
        if theirs is not None and not _is_dead(theirs):
            expires = time.strftime("%H:%M:%S", time.localtime(theirs["expires_at"]))
            raise InputError(
                f"root {storage.root} is in use by process {theirs['pid']} on {theirs['host']}: "
                f"wait for that run, or, if it is dead, until its lease expires at {expires}"
            )
        storage.remove(NAME)
    stop = threading.Event()
    renewer = threading.Thread(target=_renew, args=(storage, mine, stop), name="lvd-lease", daemon=True)
    renewer.start()
    try:
        yield
    finally:
        stop.set()
        renewer.join()
        storage.remove(NAME)


def _dated(mine: dict[str, Any]) -> bytes:
    return json.dumps({**mine, "expires_at": time.time() + LIFETIME_S}).encode()


def _read(storage: Storage) -> dict[str, Any] | None:
    try:
        return json.loads(storage.read_bytes(NAME))
    except FileNotFoundError:
        return None


def _is_dead(theirs: dict[str, Any]) -> bool:
    if theirs["host"] == socket.gethostname() and _started(theirs["pid"]) != theirs["started"]:
        return True
    return theirs["expires_at"] < time.time()


def _started(pid: int) -> str | None:
    """What tells a process from a later one of the same number; None if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:  # noqa: PTH123
            return file.read().rsplit(")", 1)[1].split()[19]
    except FileNotFoundError:
        return None


def _renew(storage: Storage, mine: dict[str, Any], stop: threading.Event) -> None:
    while not stop.wait(RENEW_S):
        storage.write_bytes(NAME, _dated(mine))
