"""Prefect's API for a run that was started by hand: the configured one, or a server that ends with this process."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from lvd.infra.errors import RetryableError

START_TIMEOUT_S = 120.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@contextlib.contextmanager
def prefect_server() -> Iterator[None]:
    """An API for the flows inside: PREFECT_API_URL or the profile's, else a server of this process's own on loopback.

    Prefect's own temporary server outlives a run that is killed; this one gets SIGTERM from the kernel (on Linux).
    """
    from prefect.settings import PREFECT_API_URL, temporary_settings

    if PREFECT_API_URL.value():
        yield
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(command(port), env={**os.environ, "PREFECT_UI_ENABLED": "0"}, preexec_fn=end_with_parent)
    try:
        url = f"http://127.0.0.1:{port}/api"
        wait_until_healthy(url, process)
        with temporary_settings(updates={PREFECT_API_URL: url}):
            yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def command(port: int) -> list[str]:
    """How Prefect itself starts its temporary server."""
    import prefect

    app_dir = str(Path(prefect.__file__).parent.parent)
    options = ["--factory", "prefect.server.api.server:create_app", "--host", "127.0.0.1", "--port", str(port)]
    return [sys.executable, "-m", "uvicorn", "--app-dir", app_dir, *options, "--log-level", "error", "--lifespan", "on"]


def end_with_parent() -> None:
    """In the child: have the kernel send SIGTERM when the parent dies, however it dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def wait_until_healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    """Returns when the server answers. Raises RetryableError if it ends or does not answer in time."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RetryableError(
                f"Prefect's server ended with exit code {process.returncode} before it answered: run again"
            )
        with contextlib.suppress(URLError, OSError), urlopen(f"{url}/health", timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise RetryableError(f"Prefect's server did not answer within {START_TIMEOUT_S:.0f} s: run again")
