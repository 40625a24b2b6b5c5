"""Time, CPU time and memory of whole processes with their children. Linux only."""

import ctypes
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

WATCH_S = 0.3  # between two looks at the memory, each of which takes some 10 ms and holds up the process


def expect(is_so: bool, message: str) -> None:
    if not is_so:
        raise SystemExit(message)


def peer_environment(folder: Path, *installs: list[str]) -> Path:
    """The Python of an environment of the peers; it is made if it is not there.

    installs: what `pip install` is given, call by call.
    """
    python = folder / "bin" / "python"
    if python.exists():
        return python
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    subprocess.run([sys.executable, "-m", "venv", *(["--without-pip"] if uv else []), str(folder)], check=True)
    install = [uv, "pip", "install", "--python", str(python)] if uv else [str(python), "-m", "pip", "install"]
    for given in installs:
        subprocess.run([*install, "--quiet", *given], check=True)
    return python


class Run(NamedTuple):
    """One whole process with its children."""

    images: int
    wall_s: float
    cpu_s: float
    peak_mb: float  # proportional set sizes of all processes that live at one time

    @property
    def per_s(self) -> float:
        return self.images / self.wall_s

    @property
    def per_cpu_s(self) -> float:
        return self.images / self.cpu_s


def run_whole(command: list[str], folder: Path, images: int) -> Run:
    """The run of a command that came to a good end. All that it leaves lies in the folder, bytecode beside that."""
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        "PYTHONPYCACHEPREFIX": str(folder.parent / "bytecode"),  # without it the peer's start takes 17 CPU s, not 5
        "TMPDIR": str(folder),
        "NO_ALBUMENTATIONS_UPDATE": "1",  # else its import looks for a newer version on the net
    }
    log, mine = folder / "log", children(os.getpid())
    peaks_mb, ended = [0.0], threading.Event()
    with log.open("w") as output:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)

        def watch() -> None:
            while not ended.wait(WATCH_S):
                peaks_mb.append(sum(map(memory_mb, family(process.pid))))

        watcher = threading.Thread(target=watch)
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        ended.set()
        watcher.join()
    expect(status == 0, f"{command[0]} ended with status {process.returncode}: {log.read_text()[-2000:]}")
    usages = [usage, *(os.wait4(pid, 0)[2] for pid in children(os.getpid()) if pid not in mine)]
    return Run(images, wall_s, sum(used.ru_utime + used.ru_stime for used in usages), max(peaks_mb))


def adopt_orphans() -> None:
    """From now on whatever a child leaves behind becomes a child of this process, so that its CPU time can be had."""
    set_child_subreaper = 36  # PR_SET_CHILD_SUBREAPER, linux/prctl.h
    expect(ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0) == 0, "prctl must adopt orphans, which Linux does")


def family(pid: int) -> list[int]:
    """The process, its children, and theirs."""
    found = [pid]
    for parent in found:
        found += children(parent)
    return found


def children(pid: int) -> list[int]:
    with suppress(OSError):
        threads = Path(f"/proc/{pid}/task").iterdir()
        return [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    return []


def memory_mb(pid: int) -> float:
    """Proportional set size: a page that n processes share counts for 1/n. 0 if the process has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0
