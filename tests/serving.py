"""A Prefect server on loopback, and what its API says of events."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from lvd.tests.running import environment, free_port, wait_until

PREFECT = str(Path(sys.executable).with_name("prefect"))


@contextmanager
def serving(home: Path) -> Iterator[str]:
    """A Prefect server on what a home has: the URL of its API."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    env = {**environment(home), "PREFECT_API_URL": url, "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    command = [PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env) as process:
        try:
            wait_until(lambda: is_healthy(url), 120, "the Prefect server must answer")
            yield url
        finally:
            process.terminate()
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()


def is_healthy(url: str) -> bool:
    try:
        with urlopen(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def events(url: str, *names: str) -> list[dict[str, Any]]:
    """The events of these names, or with these beginnings if they end with a dot, of all time."""
    exact = [name for name in names if not name.endswith(".")]
    asked = {"event": {"name": exact, "prefix": [name for name in names if name not in exact]}}
    asked["occurred"] = {"since": "2020-01-01T00:00:00Z", "until": "2100-01-01T00:00:00Z"}
    found, following, body = [], f"{url}/events/filter", {"filter": asked, "limit": 50}
    while following:
        data = json.dumps(body).encode() if body else None
        request = Request(following, data=data, headers={"Content-Type": "application/json"})
        with urlopen(request, timeout=30) as answer:
            page = json.load(answer)
        found += page["events"]
        following, body = page["next_page"], None
    return found
