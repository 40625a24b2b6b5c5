"""Runs of `lvd` in a process of their own, as a person starts them; and such runs killed at random moments."""

import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lvd.infra.shards import StageDir, read_table

LVD = Path(sys.executable).with_name("lvd")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def environment(home: Path) -> dict[str, str]:
    """An environment in which Prefect keeps everything below `home` and no server is configured."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {**kept, "PREFECT_HOME": str(home)}


def lvd(*args: str, home: Path, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
    """The finished process of `lvd …`, with what it printed."""
    command = [str(LVD), *args]
    return subprocess.run(
        command, env=environment(home), capture_output=True, text=True, timeout=timeout_s, check=False
    )


class Curated:
    """A finished run of the miniature recipe; what it runs again has the same miniature web, on the same port."""

    def __init__(self, base: Path) -> None:
        self.root, self.home, self.folder, self.port = base / "root", base / "prefect", base / "web", free_port()
        self.settings = ("--set", f"miniature.port={self.port}", "--set", f"miniature.folder={self.folder}")
        process = self.run(self.root)
        assert process.returncode == 0, process.stderr[-4000:]
        self.files = data_files(self.root)  # before another run leaves more in the root

    def run(self, root: Path, *settings: str) -> subprocess.CompletedProcess[str]:
        return lvd("run", "mini", "--root", str(root), *self.settings, *settings, home=self.home)

    def ledger(self) -> list[dict[str, Any]]:
        target = StageDir(root=str(self.root), stage="curated/v1", fingerprint="ledger")
        return [row for ref in target.shards() for row in read_table(ref).to_pylist()]


def killed_runs(*args: str, home: Path, kills: int, longest_s: float, rng: random.Random) -> list[float]:
    """Starts `lvd …` that many times and ends it with SIGKILL after a random time. Returns the seconds each one had.

    A run that ends by itself before its time is not counted; the next one may then have less time.
    """
    lived: list[float] = []
    while len(lived) < kills and longest_s > 1:
        with subprocess.Popen(
            [str(LVD), *args], env=environment(home), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            seconds = rng.uniform(0.5, longest_s)
            try:
                process.wait(timeout=seconds)
                longest_s *= 0.7
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                lived.append(seconds)
    return lived


def data_files(root: Path) -> dict[str, str]:
    """Name below the root → SHA-256, of everything that must not depend on when and how often it was computed."""
    stable = ("dataset_info.json", "state.json", "README.md", "fit.npz", "version.json")
    files = (path for path in root.rglob("*") if path.suffix == ".arrow" or path.name in stable)
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def wait_until(condition, timeout_s: float, what: str) -> None:
    """Raises TimeoutError if the condition does not come true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} within {timeout_s} s")
        time.sleep(0.2)
