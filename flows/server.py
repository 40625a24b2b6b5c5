"""Prefect's API for a run that was started by hand: the configured one, or a server that ends with this process."""

import contextlib
import ctypes
import logging
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

from lvd.infra.errors import InputError, RetryableError

logger = logging.getLogger("lvd")

START_TIMEOUT_S = 120.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class ServerAway(RetryableError):
    """Prefect's server was asked in vain, for as long as Prefect's client tries."""


@contextlib.contextmanager
def prefect_server() -> Iterator[None]:
    """An API for the flows inside: PREFECT_API_URL or the profile's, else a server of this process's own on loopback.

    Prefect's own temporary server outlives a run that is killed; this one gets SIGTERM from the kernel (on Linux).
    """
    from prefect.settings import PREFECT_API_URL, temporary_settings

    if configured := PREFECT_API_URL.value():
        with answering(configured, "start it, or correct PREFECT_API_URL, and "):
            ask()
            yield
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(command(port), env={**os.environ, "PREFECT_UI_ENABLED": "0"}, preexec_fn=end_with_parent)
    try:
        url = f"http://127.0.0.1:{port}/api"
        wait_until_healthy(url, process)
        with answering(url), temporary_settings(updates={PREFECT_API_URL: url}):
            yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def answering(url: str, remedy: str = "") -> Iterator[None]:
    """Raises ServerAway, in one line, where Prefect's client gives up on its server in what is inside."""
    import httpx

    try:
        yield
    except httpx.HTTPError as error:
        said = f"{type(error).__name__}: {error}"
        if isinstance(error, httpx.HTTPStatusError):  # its text has the URL, password and all
            said = f"it said {error.response.status_code} {error.response.reason_phrase}"
        raise ServerAway(
            f"Prefect's server at {httpx.URL(url).copy_with(userinfo=b'')} must answer, was asked in vain ({said}): "
            f"{remedy}run the same command again; what is done stays done"
        ) from error


@contextlib.contextmanager
def dispensable(what: str) -> Iterator[None]:
    """What is left on Prefect's screen inside is tried once; if it fails, the run goes on, with a warning."""
    import httpx
    from prefect.exceptions import PrefectException
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    try:
        with temporary_settings(updates={PREFECT_CLIENT_MAX_RETRIES: 0}):
            yield
    except (httpx.HTTPError, PrefectException) as error:
        logger.warning("%s is not on Prefect's screen, the run goes on: %s: %s", what, type(error).__name__, error)


def ask() -> None:
    """Returns if the configured server answers and is of a fitting version: Prefect itself does not look, see `cli`.

    Raises httpx's error if it does not answer, at once, as the run has not begun; InputError for another version.
    """
    from prefect import get_client
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    with temporary_settings(updates={PREFECT_CLIENT_MAX_RETRIES: 0}), get_client(sync_client=True) as client:
        if (error := client.api_healthcheck()) is not None:
            raise error
        try:
            client.raise_for_api_version_mismatch()
        except RuntimeError as error:
            raise InputError(f"Prefect's server must be of this Prefect's major version: {error}") from error


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
