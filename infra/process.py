"""Work in a process of its own: it holds up nothing here, nothing here holds it up, and its end costs only its work.

And what tells one process from another.
"""

import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from lvd.infra.errors import RetryableError


def in_own_process(function: Callable[..., Any], *arguments: Any, preload: Sequence[str] = ()) -> Any:
    """What the function gives, called in a new process that ends with this one.

    function: of a module, importable by name; the first call imports that module and those of `preload` once, in the
    process that the others are forked from. Arguments and result are pickled; so is an error, which is raised here.
    Raises RetryableError if the process ends without a word (out of memory, killed).
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__, *preload])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, arguments), daemon=True)
    with receiver:
        process.start()
        sender.close()
        try:
            value, error = receiver.recv()
        except EOFError as end:
            process.join()
            name = f"{function.__module__}.{function.__name__}"
            raise RetryableError(f"the process of {name} ended with exit code {process.exitcode}") from end
        finally:
            process.join()
    if error is not None:
        raise error
    return value


def machine() -> str:
    """Where a process number means the same process: one boot of one machine, one PID namespace."""
    boot_id, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if not boot_id.exists():
        return socket.gethostname()
    return f"{boot_id.read_text().strip()} {namespace.readlink()}"


def stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the process's state on; None if there is no process, or no /proc to ask."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def started(pid: int) -> str | None:
    """When a process started, in clock ticks since boot, which tells it from a later one of the same number."""
    fields = stat(pid)
    return fields[19] if fields else None


def _answer(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        answer = function(*arguments), None
    except Exception as error:  # noqa: BLE001 - raised again in the process that asked
        answer = None, error
    sender.send(answer)
    sender.close()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
