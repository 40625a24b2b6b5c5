"""Outages in the middle of a run: Prefect's server, its database, the object store.

The run ends with the same bytes, or with one line, and then the same command goes on where it was.
"""

import hashlib
import json
import os
import pwd
import random
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import prefect
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from lvd.flows.server import ServerAway, command, prefect_server
from lvd.infra.errors import InputError
from lvd.infra.pool import answers, asked, postgresql_programs
from lvd.infra.storage import Storage
from lvd.tests.faults import Proxy, now_and_then
from lvd.tests.running import LVD, data_files, environment, free_port, wait_until

FIRST_HALF = ("crawl", "links", "verdicts", "choices", "download", "screen", "screened", "hash-fit", "fingerprint")
KINDS = ("slow_down", "internal_error", "gateway", "cut", "short", "reset", "lost")
SPELL_S, BAD_S = 20.0, 3.0  # in the first seconds of every spell the object store answers 503 and nothing else
SHARDS = ("--set", "crawl.rows_per_shard=250", "--set", "publish.rows_per_shard=250")  # fewer: fewer requests to S3
AGAIN = 4  # failed requests of a stage among which one was tried again: at most two are given up at once
ANSWER_S = 180  # a server's start, or a stage, on a busy machine


@dataclass
class Reference:
    """A finished run on a local root, which no outage met."""

    base: Path
    settings: tuple[str, ...]

    @property
    def root(self) -> Path:
        return self.base / "root"

    @contextmanager
    def run(self, root: str | Path, log: Path, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
        """The same command with another root. log: what it prints to standard error."""
        env = {**environment(self.base / "prefect"), **variables}
        args = [str(LVD), "run", "mini", "--root", str(root), *self.settings]
        with log.open("wb") as said, subprocess.Popen(args, env=env, stdout=subprocess.DEVNULL, stderr=said) as process:
            try:
                yield process
            finally:
                process.kill()

    def ended(self, root: str | Path, log: Path, **variables: str) -> int:
        """The exit code of that command."""
        with self.run(root, log, **variables) as process:
            return process.wait(timeout=600)

    def first_half(self, root: Path) -> Path:
        """A new root with what the run had made of the stages before the descriptors."""
        for stage in (*FIRST_HALF, "unique"):
            shutil.copytree(self.root / stage, root / stage)
        return root


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    base = tmp_path_factory.mktemp("outages")
    settings = (*SHARDS, "--set", f"miniature.port={free_port()}", "--set", f"miniature.folder={base / 'web'}")
    made = Reference(base, settings)
    assert made.ended(made.root, base / "log") == 0, (base / "log").read_text()[-4000:]
    return made


class Server:
    """A Prefect server in a process of its own; killed and started again it has the same port and database."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.log, self._port = folder / "server.log", free_port()
        self.url = f"http://127.0.0.1:{self._port}/api"
        said = {"PREFECT_SERVER_LOGGING_LEVEL": "INFO", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
        self._env = {**environment(folder / "server"), **said, **variables}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            logged = [*command(self._port), "--log-level", "info"]
            self._process = subprocess.Popen(logged, env=self._env, stdout=log, stderr=log)
        wait_until(lambda: answers(f"{self.url}/health"), ANSWER_S, "the Prefect server must answer")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def failed_posts(self) -> int:
        """How many of those requests it has answered with an error of its own."""
        return len(re.findall(r'"POST \S+ HTTP/1.1" 5\d\d', self.log.read_text()))

    def states(self, flow: str) -> list[str]:
        """How the runs of a flow stand, the first one first."""
        flows = {one["id"]: one["name"] for one in asked(f"{self.url}/flows/filter")}
        runs = [one for one in asked(f"{self.url}/flow_runs/filter") if flows[one["flow_id"]] == flow]
        return [one["state_type"] for one in sorted(runs, key=lambda one: one["created"])]


@contextmanager
def serving(folder: Path, **variables: str) -> Iterator[Server]:
    server = Server(folder, **variables)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def reached(place: Path, process: subprocess.Popen[bytes]) -> None:
    """Returns when a running process has made that folder."""
    wait_until(lambda: place.exists() or process.poll() is not None, ANSWER_S, f"{place.name} must be begun")
    assert process.poll() is None, f"the run ended before {place.name}"


def only_line(log: Path) -> str:
    """What a run said besides its progress, and besides requests that it made again."""
    lines = [line for line in log.read_text().splitlines() if not line[:4].isdecimal()]  # progress begins with its date
    lines = [line for line in lines if ", trying again in " not in line]
    assert len(lines) == 1, lines[-40:]
    return lines[0]


def test_a_prefect_server_that_is_away_costs_time_or_ends_the_run_in_one_line(
    reference: Reference, tmp_path: Path
) -> None:
    root, log = reference.first_half(tmp_path / "root"), tmp_path / "log"
    with serving(tmp_path) as server:
        with reference.run(root, log, PREFECT_API_URL=server.url, PREFECT_CLIENT_MAX_RETRIES="1") as process:
            reached(root / "descriptors", process)
            server.kill()
            assert process.wait(timeout=ANSWER_S) == 1
        line = only_line(log)
        assert line.startswith(f"lvd: Prefect's server at {server.url} must answer")
        assert line.endswith(
            "start it, or correct PREFECT_API_URL, and run the same command again; what is done stays done"
        )

        server.start()
        with reference.run(root, log, PREFECT_API_URL=server.url) as process:
            reached(root / "embed", process)
            server.kill()
            server.start()
            assert process.wait(timeout=ANSWER_S) == 0, log.read_text()[-4000:]
        assert server.states("curate")[-1] == "COMPLETED"
    assert data_files(root) == data_files(reference.root)


def test_a_server_that_is_not_there_is_told_before_the_run() -> None:
    url = f"http://127.0.0.1:{free_port()}/api"
    told = pytest.raises(ServerAway, match="refused")
    with temporary_settings(updates={PREFECT_API_URL: url}), told, prefect_server():
        raise AssertionError("the run must not begin")


class Stub(BaseHTTPRequestHandler):
    """Answers as Prefect's server does when it is asked whether it is there, and for its version."""

    status, version = 200, prefect.__version__

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        body = json.dumps(True if self.path.endswith("/health") else self.version).encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        ({}, None, ""),
        ({"status": 401}, ServerAway, "it said 401 Unauthorized"),
        ({"status": 503}, ServerAway, "it said 503 Service Unavailable"),
        ({"version": "99.0.0"}, InputError, "server: 99.0.0"),  # which Prefect itself is told not to look at
    ],
)
def test_a_server_is_asked_once_before_the_run(
    answer: dict[str, str], error: type[Exception] | None, said: str
) -> None:
    web = ThreadingHTTPServer(("127.0.0.1", 0), type("Answer", (Stub,), answer))
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    url = f"http://somebody:secret@127.0.0.1:{web.server_port}/api"
    try:
        raised = pytest.raises(error, match=said) if error else nullcontext()
        with temporary_settings(updates={PREFECT_API_URL: url}), raised as caught, prefect_server():
            assert error is None
    finally:
        web.shutdown()
        thread.join()
        web.server_close()
    assert caught is None or "secret" not in str(caught.value)


class Database:
    """A PostgreSQL server of its own; as root it runs as the account `postgres`, as it must."""

    def __init__(self, programs: Path, folder: Path, port: int) -> None:
        self._pg_ctl, self._folder, self._data, self._port = programs / "pg_ctl", folder, folder / "data", port
        self._user: dict[str, str | int | list[str]] = {}
        if os.geteuid() == 0:
            account = pwd.getpwnam("postgres")
            self._user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
            os.chown(folder, account.pw_uid, account.pw_gid)
        initdb = [programs / "initdb", "--username", "lvd", "--auth", "trust", "--encoding", "UTF8", "--no-sync"]
        self._call(*initdb, "--pgdata", self._data)

    @property
    def url(self) -> str:
        return f"postgresql+asyncpg://lvd@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        options = f"-c listen_addresses=127.0.0.1 -c unix_socket_directories= -p {self._port}"
        self._call(self._pg_ctl, "start", "-w", "-D", self._data, "-o", options, "-l", self._folder / "log")

    def crash(self) -> None:
        """Ends it without a word to its clients."""
        self._call(self._pg_ctl, "stop", "-m", "immediate", "-w", "-D", self._data)

    def _call(self, *args: str | Path) -> None:
        subprocess.run(
            [str(arg) for arg in args],
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=ANSWER_S,
            check=True,
            **self._user,
        )


@pytest.fixture
def database() -> Iterator[Database]:
    try:
        programs = postgresql_programs()
    except InputError as error:
        pytest.skip(str(error))
    with tempfile.TemporaryDirectory(prefix="lvd-outages-") as folder:  # the test's own is closed to other accounts
        database = Database(programs, Path(folder), free_port())
        database.start()
        try:
            yield database
        finally:
            database.crash()


def test_a_database_that_is_away_costs_time_only(reference: Reference, database: Database, tmp_path: Path) -> None:
    root, log = reference.first_half(tmp_path / "root"), tmp_path / "log"
    with serving(tmp_path, PREFECT_API_DATABASE_CONNECTION_URL=database.url) as server:
        with reference.run(root, log, PREFECT_API_URL=server.url) as process:
            reached(root / "descriptors", process)
            database.crash()
            try:
                wait_until(
                    lambda: server.failed_posts() >= AGAIN or process.poll() is not None,
                    ANSWER_S,
                    "a request must be tried again",
                )
                assert process.poll() is None, "the run ended before the database was missed"
            finally:
                database.start()
            assert process.wait(timeout=ANSWER_S) == 0, log.read_text()[-4000:]
        assert server.states("curate") == ["COMPLETED"]
    assert data_files(root) == data_files(reference.root)


def spells(rng: random.Random) -> Callable[[str, str], str]:
    """A 503 to every request for some seconds, then one of all faults now and then, again and again."""
    began, between = time.monotonic(), now_and_then(rng, KINDS, 0.05)

    def choose(method: str, path: str) -> str:
        return "slow_down" if (time.monotonic() - began) % SPELL_S < BAD_S else between(method, path)

    return choose


def until(
    method: str, part: str, times: int, before: Callable[[str, str], str], kind: str
) -> Callable[[str, str], str]:
    """`before`, until so many requests of that method have named that part of a path; then `kind` for ever."""
    left, lock = [times], threading.Lock()

    def choose(asked_: str, path: str) -> str:
        with lock:
            left[0] -= asked_ == method and part in path
            return before(asked_, path) if left[0] > 0 else kind

    return choose


def test_an_object_store_that_fails_costs_time_or_ends_the_run_in_one_line(
    reference: Reference, s3_root: str, s3_endpoint: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with Proxy(s3_endpoint) as proxy:
        proxy.choose = until("PUT", "/download/", 5, spells(random.Random(1)), "unknown_key")
        assert reference.ended(s3_root, log, AWS_ENDPOINT_URL=proxy.url) == 2, log.read_text()[-4000:]
        assert "InvalidAccessKeyId" in only_line(log)

        proxy.choose = spells(random.Random(2))
        assert reference.ended(s3_root, log, AWS_ENDPOINT_URL=proxy.url) == 0, log.read_text()[-4000:]
        assert set(proxy.seen) == {*KINDS, "unknown_key", "pass"}
    storage, files = Storage(s3_root), data_files(reference.root)
    assert {name: hashlib.sha256(storage.read_bytes(name)).hexdigest() for name in files} == files
    names = {path.removeprefix(f"{storage.path}/") for path in storage.fs.find(storage.path)}
    assert {name for name in names if name.endswith(".arrow")} == {name for name in files if name.endswith(".arrow")}
