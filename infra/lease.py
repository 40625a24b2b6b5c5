"""The lease that keeps two runs from one root; it expires when its holder dies."""

import _thread
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lvd.infra.errors import InputError
from lvd.infra.patience import Patience
from lvd.infra.process import machine, started
from lvd.infra.storage import Storage

logger = logging.getLogger("lvd")

NAME = "leases/run.json"
LIFETIME_S = 120.0
RENEW_S = 20.0
PATIENCE = Patience(total_s=60, read_timeout_s=10)  # a renewal must not end after the lease has expired


@contextmanager
def lease(storage: Storage) -> Iterator[None]:
    """Holds the root. A dead holder's lease is taken over: at once on its own machine, else when it expires.

    A run that loses its lease (it was suspended for longer than the lease lives, or storage did not answer for so long)
    is interrupted. Raises InputError if another run holds the root, or the root cannot be written.
    """
    storage = Storage(storage.root, PATIENCE)
    mine = {"holder": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid(), "machine": machine()}
    mine["started"] = started(os.getpid())
    try:
        _acquire(storage, mine)
    except storage.errors as error:
        raise InputError(f"recipe.root must be a place that can be written, was {storage.root!r}: {error}") from error
    stop = threading.Event()
    renewer = threading.Thread(target=_renew, args=(storage, mine, stop), name="lvd-lease", daemon=True)
    renewer.start()
    try:
        with _interruptible():
            yield
    finally:
        stop.set()
        renewer.join()
        if (_read(storage, NAME) or {}).get("holder") == mine["holder"]:
            storage.remove(NAME)


def check_free(storage: Storage) -> None:
    """Raises InputError if a living run holds the root. Writes nothing."""
    if (theirs := _read(storage, NAME)) is not None:
        _refuse_living(storage, theirs)


def is_held(storage: Storage) -> bool:
    """Whether a living run holds the root."""
    theirs = _read(storage, NAME)
    return theirs is not None and not _is_dead(theirs)


def _refuse_living(storage: Storage, theirs: dict[str, Any]) -> None:
    if not _is_dead(theirs):
        expires = time.strftime("%H:%M:%S", time.localtime(theirs["expires_at"]))
        raise InputError(
            f"root {storage.root} is in use by process {theirs['pid']} on {theirs['host']}: "
            f"wait for that run, or, if it is dead, until its lease expires at {expires}"
        )


@contextmanager
def _interruptible() -> Iterator[None]:
    """Interrupts reach the main thread, as they do not in a process that a script has started in the background."""
    is_deaf = not callable(before := signal.getsignal(signal.SIGINT))
    if not is_deaf or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _acquire(storage: Storage, mine: dict[str, Any]) -> None:
    """Makes the lease; of several that find a dead holder's, the one that makes its takeover file removes it."""
    while not storage.create(NAME, _dated(mine)):
        theirs = _read(storage, NAME)
        if theirs is None:
            continue
        _refuse_living(storage, theirs)
        takeover = f"leases/takeover-{theirs['holder']}.json"
        if storage.create(takeover, _dated(mine)):
            if (_read(storage, NAME) or {}).get("holder") == theirs["holder"]:
                storage.remove(NAME)
            storage.remove(takeover)
        elif _is_dead(_read(storage, takeover) or {"expires_at": time.time() + 1}):
            storage.remove(takeover)
        else:
            time.sleep(0.1)


def _dated(mine: dict[str, Any]) -> bytes:
    return json.dumps({**mine, "expires_at": time.time() + LIFETIME_S}).encode()


def _read(storage: Storage, name: str) -> dict[str, Any] | None:
    try:
        return json.loads(storage.read_bytes(name))
    except FileNotFoundError:
        return None


def _is_dead(theirs: dict[str, Any]) -> bool:
    if theirs.get("machine") == machine() and started(theirs["pid"]) != theirs["started"]:
        return True
    return theirs["expires_at"] < time.time()


def _renew(storage: Storage, mine: dict[str, Any], stop: threading.Event) -> None:
    """Keeps the lease while storage answers; interrupts the run once the lease is lost."""
    renewed = time.monotonic()
    while not stop.wait(RENEW_S):
        try:
            if (_read(storage, NAME) or {}).get("holder") != mine["holder"]:
                break
            storage.write_bytes(NAME, _dated(mine))
            renewed = time.monotonic()
        except storage.errors as error:
            logger.warning("the lease of %s could not be renewed, trying again: %s", storage.root, error)
            if time.monotonic() - renewed > LIFETIME_S:
                break
    else:
        return
    logger.error("the lease of %s was lost: this run stops, the same command goes on where it was", storage.root)
    _thread.interrupt_main()
