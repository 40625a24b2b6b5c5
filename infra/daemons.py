"""Servers that outlive the command that started them, remembered by process id and start time, ended as whole families.

`pool.json` says what runs; a process of the same number that came later is never touched.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from pydantic import BaseModel

from lvd.infra.errors import InputError
from lvd.infra.process import machine, started, stat

START_TIMEOUT_S = 180.0
GRACE_S = 20.0  # between the request to end and SIGKILL
STOP_SIGNALS = {"postgresql": signal.SIGINT}  # its fast shutdown; SIGTERM waits for every client


class Daemon(BaseModel, frozen=True, extra="forbid"):
    """A server of the pool: the leader of its session."""

    name: str
    pid: int
    started: str  # clock ticks since boot: with the pid, one process


class Ports(BaseModel, frozen=True, extra="forbid"):
    """One free port of 127.0.0.1 for every server."""

    postgresql: int
    s3: int
    prefect: int
    ray: int


class State(BaseModel, frozen=True, extra="forbid"):
    """`pool.json`: what runs, and what was made for it."""

    boot: str
    runtime: str  # a short private folder: socket paths are limited to 107 bytes, and PostgreSQL may be another account
    by: Daemon  # the process that brings the pool up
    up: bool = False
    ports: Ports
    marker: str  # every process of the pool has it in its environment
    settings: dict[str, str]  # what reaches the pool: the environment of the nodes, of the worker and of env.sh
    daemons: tuple[Daemon, ...] = ()


class Pool:
    """The pool of one folder: pool.json, env.sh, Prefect's files and the logs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.state_file = self.folder / "pool.json"
        self.environment_file = self.folder / "env.sh"
        self.state: State | None = None
        self.children: list[subprocess.Popen[bytes]] = []  # what this process started itself

    def load(self) -> State | None:
        """What pool.json says; None if there is none, or it is of an earlier boot.

        Raises InputError if it cannot be read, or is of another container, whose processes cannot be told from here.
        """
        try:
            self.state = State.model_validate_json(self.state_file.read_bytes())
        except FileNotFoundError:
            self.state = None
        except ValueError as error:
            raise InputError(f"{self.state_file} must be what `up` wrote: remove it ({error})") from error
        if self.state is not None and self.state.boot != boot():
            if self.state.boot.split()[0] == boot().split()[0]:
                raise InputError(f"the pool in {self.folder} was brought up in another container: end it from there")
            self._forget()
        return self.state

    def keep(self, **changes: Any) -> None:
        """Writes pool.json, whole or not at all."""
        self.state = self.state.model_copy(update=changes)
        temporary = self.state_file.with_suffix(".tmp")
        private(temporary, self.state.model_dump_json(indent=1))
        temporary.replace(self.state_file)

    def log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def start(self, name: str, command: Sequence[str], environment: dict[str, str], **options: Any) -> Daemon:
        """Starts a server in a session of its own, and remembers it before anything else happens."""
        with self.log(name).open("wb") as log:
            process = subprocess.Popen(
                list(command), env=environment, start_new_session=True, **self._quiet(log) | options
            )
        self.children.append(process)
        daemon = Daemon(name=name, pid=process.pid, started=started(process.pid) or "")
        self.keep(daemons=(*self.state.daemons, daemon))
        return daemon

    def call(self, name: str, command: Sequence[str], environment: dict[str, str], **options: Any) -> None:
        """Runs a command to its end. Raises InputError with the end of what it printed if it fails."""
        with self.log(name).open("wb") as log:
            try:
                done = subprocess.run(
                    list(command), env=environment, timeout=START_TIMEOUT_S, check=False, **self._quiet(log) | options
                )
            except subprocess.TimeoutExpired:
                self.fail(name, f"did not end within {START_TIMEOUT_S:.0f} s")
        if done.returncode:
            self.fail(name, f"ended with exit code {done.returncode}")

    def _quiet(self, log: BinaryIO) -> dict[str, Any]:
        """How a command is run: in the pool's folder, reading nothing, with all that it says in its log."""
        return {"cwd": self.folder, "stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}

    def wait(self, daemon: Daemon, answers: Callable[[], bool]) -> None:
        """Returns when the server answers. Raises InputError with the end of its log if it ends or takes too long."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not answers():
            if not alive(daemon):
                self.fail(daemon.name, "ended before it answered")
            if time.monotonic() > deadline:
                self.fail(daemon.name, f"did not answer within {START_TIMEOUT_S:.0f} s")
            time.sleep(0.1)

    def fail(self, name: str, what: str) -> NoReturn:
        tail = self.log(name).read_text(errors="replace")[-2000:]
        raise InputError(f"{name} {what}: see {self.log(name)}, which ends with\n{tail}")

    def end(self) -> None:
        """Ends every process of the pool, the last one started first, and removes what was made for them."""
        for daemon in reversed(self.state.daemons):
            end(daemon, self.state.marker)
        while self.children:
            self.children.pop().wait()
        shutil.rmtree(self.state.runtime, ignore_errors=True)
        self._forget()

    def _forget(self) -> None:
        self.state_file.unlink(missing_ok=True)
        self.environment_file.unlink(missing_ok=True)
        self.state = None


def boot() -> str:
    """What names one start of the machine and one PID namespace. Raises InputError where nothing does."""
    if not Path("/proc/self/ns/pid").is_symlink():
        raise InputError("the pool of one machine needs Linux with /proc: use infra/compose.yaml elsewhere")
    return machine()


def alive(daemon: Daemon) -> bool:
    """Whether it runs: a zombie, or a later process of the same number, does not."""
    fields = stat(daemon.pid)
    return fields is not None and fields[19] == daemon.started and fields[0] != "Z"


def marked(pid: int, marker: str) -> bool:
    """Whether the process was started with the pool's marker in its environment."""
    try:
        return f"LVD_POOL={marker}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def family(daemon: Daemon, marker: str) -> dict[int, str]:
    """Process id → start time of the daemon, of all in its session and of all that descend from these.

    A session whose leader is gone is still its own: a process counts if it has the pool's marker.
    """
    is_ours = alive(daemon)
    processes = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (fields := stat(int(entry.name))) is not None and fields[0] != "Z":
            processes[int(entry.name)] = fields
    members = {
        pid for pid, fields in processes.items() if int(fields[3]) == daemon.pid and (is_ours or marked(pid, marker))
    }
    found: set[int] = set()
    while members - found:
        found |= members
        members = {pid for pid, fields in processes.items() if int(fields[1]) in found}
    return {pid: processes[pid][19] for pid in found}


def end(daemon: Daemon, marker: str) -> None:
    """Asks the daemon to end, then ends all that is left of its family."""
    known = family(daemon, marker)
    if alive(daemon):
        os.kill(daemon.pid, STOP_SIGNALS.get(daemon.name, signal.SIGTERM))
    deadline = time.monotonic() + GRACE_S
    while alive(daemon) and time.monotonic() < deadline:
        known |= family(daemon, marker)
        time.sleep(0.05)
    while left := {pid for pid, start in (known | family(daemon, marker)).items() if runs(pid, start)}:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)


def runs(pid: int, start: str) -> bool:
    return alive(Daemon(name="", pid=pid, started=start))


def private(path: Path, text: str) -> None:
    """Writes a file that only its owner may read."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(text)
