"""`prefect deployment run curate/mini` against a real server and a process worker, all on loopback.

Where PostgreSQL is installed, tests/flows/test_pool.py does this and more.
"""

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from lvd.flows.inquiry import last_run
from lvd.infra.errors import InputError
from lvd.infra.pool import POOLS, postgresql_programs
from lvd.infra.storage import Storage
from lvd.tests.running import environment, free_port, wait_until

PREFECT = str(Path(sys.executable).with_name("prefect"))
INFRA = Path(__file__).parents[2] / "infra"


def has_postgresql() -> bool:
    try:
        return bool(postgresql_programs())
    except InputError:
        return False


@contextmanager
def running(*args: str, **options):
    """A process that is ended, by its own id, when the test ends."""
    with subprocess.Popen([PREFECT, *args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:  # a busy machine: Prefect's worker was seen to wait for ever
                process.kill()


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except (URLError, OSError):
        return False


@pytest.fixture
def api(tmp_path: Path):
    """The environment of a Prefect server that runs."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    env = {**environment(tmp_path / "prefect"), "PREFECT_API_URL": url, "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    with running("server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui", env=env):
        wait_until(lambda: answers(f"{url}/health"), 120, "the Prefect server must answer")
        yield env


@pytest.mark.skipif(has_postgresql(), reason="tests/flows/test_pool.py runs it on the whole pool")
def test_the_deployments_are_made_and_mini_runs_on_a_worker(api: dict[str, str], tmp_path: Path) -> None:
    def prefect(*args: str) -> str:
        command = [PREFECT, "--no-prompt", *args]
        done = subprocess.run(command, env=api, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    for name in POOLS:
        prefect("work-pool", "create", name, "--type", "process")
    prefect("deploy", "--all", "--prefect-file", str(INFRA / "prefect.yaml"))
    listed = prefect("deployment", "ls")
    assert all(name in listed for name in ("curate/lvd", "curate/lvd-gpu", "curate/mini", "nightly/lvd"))
    assert "0 2 * * *" in prefect("deployment", "inspect", "nightly/lvd")

    root = tmp_path / "root"
    setting = f'settings=["miniature.port={free_port()}"]'
    with running("worker", "start", "--pool", "lvd-cpu", env=api, cwd=tmp_path):
        prefect("deployment", "run", "curate/mini", "-p", f"root={root}", "-p", setting, "--watch")
    last = last_run(Storage(str(root)))
    assert last["version"] == "v1"
    assert sum(last["ledger"].values()) == last["candidates"] > 500
    listed = prefect("artifact", "ls", "--limit", "100")
    stages = ("crawl", "download", "screen", "fingerprint", "copies", "embed", "cluster", "retrieve", "publish")
    assert all(stage in listed for stage in stages)
