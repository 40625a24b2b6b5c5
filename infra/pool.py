"""The node pool on one machine, without containers: PostgreSQL, S3, Prefect, a Ray cluster of two nodes and a worker.

`python -m lvd.infra.pool up | demo | down`. Every server is a daemon in a session of its own and listens on 127.0.0.1.
What was started is remembered in `pool.json` by process id and start time, so that `down` ends these and no others.
"""

import argparse
import contextlib
import json
import os
import pwd
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn
from urllib.request import ProxyHandler, Request, build_opener

from pydantic import BaseModel

from lvd.infra.errors import InputError

START_TIMEOUT_S = 180.0
RUN_TIMEOUT_S = 1800.0
GRACE_S = 20.0  # between the request to end and SIGKILL
POOLS = ("lvd-cpu", "lvd-gpu")
BUCKET = "lvd"
OBJECT_STORE_BYTES = 200_000_000  # of one Ray node: shards go by storage, tasks give back little
BIN = Path(sys.executable).parent
DEBIAN_POSTGRESQL = Path("/usr/lib/postgresql")  # Debian keeps the server's programs out of PATH
DEPLOYMENTS = Path(__file__).with_name("prefect.yaml")
FOREIGN = ("PREFECT_", "RAY_", "AWS_", "PG", "LVD_POOL")  # settings of other services, which must not reach the pool's
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
                list(command),
                env=environment,
                cwd=options.pop("cwd", self.folder),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **options,
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
                    list(command),
                    env=environment,
                    cwd=options.pop("cwd", self.folder),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    timeout=START_TIMEOUT_S,
                    check=False,
                    **options,
                )
            except subprocess.TimeoutExpired:
                self.fail(name, f"did not end within {START_TIMEOUT_S:.0f} s")
        if done.returncode:
            self.fail(name, f"ended with exit code {done.returncode}")

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
    """What names one start of the machine and one PID namespace: where a process id means the same process."""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except FileNotFoundError as error:
        raise InputError("the pool of one machine needs Linux with /proc: use infra/compose.yaml elsewhere") from error
    return f"{boot_id} {Path('/proc/self/ns/pid').readlink()}"


def stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the process's state on; None if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def started(pid: int) -> str | None:
    """When the process started, in clock ticks since boot; None if there is none."""
    fields = stat(pid)
    return fields[19] if fields else None


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


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody uses now, all different."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def private(path: Path, text: str) -> None:
    """Writes a file that only its owner may read."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(text)


def answers(url: str, method: str = "GET") -> bool:
    """Whether the server on loopback says yes; no proxy is asked."""
    try:
        with build_opener(ProxyHandler({})).open(Request(url, method=method), timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def asked(url: str) -> list[dict[str, Any]]:
    """What a filter of Prefect's API gives, unfiltered."""
    request = Request(url, data=b"{}", headers={"Content-Type": "application/json"})
    with build_opener(ProxyHandler({})).open(request, timeout=30) as answer:
        return json.load(answer)


def postgresql_programs() -> Path:
    """The folder of `initdb`, `postgres` and `pg_isready`: of PATH, else the newest that Debian keeps.

    Raises InputError if PostgreSQL's server is not installed.
    """
    on_path = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    debian = sorted(DEBIAN_POSTGRESQL.glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    for folder in (*on_path, *debian):
        if all((folder / program).is_file() for program in ("initdb", "postgres", "pg_isready")):
            return folder
    raise InputError(
        "PostgreSQL's server must be installed, and no `initdb` was found in PATH or /usr/lib/postgresql: "
        "install it (Debian: apt-get install postgresql)"
    )


def inherited() -> dict[str, str]:
    """This environment without the settings of other services; loopback is never asked of a proxy."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    direct = ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1", "localhost"]))
    return {**kept, "NO_PROXY": direct, "no_proxy": direct, "PATH": f"{BIN}{os.pathsep}{kept.get('PATH', '')}"}


def settings(ports: Ports) -> dict[str, str]:
    """What a process needs to reach the pool. The keys and the token are made anew for every pool."""
    return {
        "PREFECT_API_URL": f"http://127.0.0.1:{ports.prefect}/api",
        "PREFECT_UI_URL": f"http://127.0.0.1:{ports.prefect}",
        "AWS_ACCESS_KEY_ID": secrets.token_hex(10),
        "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20),
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports.s3}",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # or Ray turns 127.0.0.1 into the machine's outward address
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "LVD_RAY": f"127.0.0.1:{ports.ray}",
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def program(name: str) -> str:
    """A console script beside this Python. Raises InputError if it is not installed."""
    path = BIN / name
    if not path.is_file():
        raise InputError(f"`{name}` must be installed beside {sys.executable}: `make venv` installs it")
    return str(path)


def up(pool: Pool, cpus: int) -> bool:
    """Brings the pool up; what was started is ended again if a step fails. Returns False if it was up before."""
    state = pool.load()
    if state is not None and state.up and (dead := [one.name for one in state.daemons if not alive(one)]):
        raise InputError(f"of the pool in {pool.folder} these have ended: {', '.join(dead)}: run `down`, then `up`")
    if state is not None and state.up:
        return False
    if state is not None and alive(state.by):
        raise InputError(f"process {state.by.pid} is bringing up the pool in {pool.folder}: wait for it")
    if state is not None:
        pool.end()  # what a killed `up` left
    programs = postgresql_programs()
    moto_server, prefect, _ = (program(name) for name in ("moto_server", "prefect", "ray"))
    begin(pool)
    try:
        say(f"bringing up the pool in {pool.folder} (logs: {pool.folder / 'logs'}) …")
        environment = {**inherited(), "LVD_POOL": pool.state.marker, **pool.state.settings}
        environment |= {"TMPDIR": f"{pool.state.runtime}/tmp", "RAY_TMPDIR": f"{pool.state.runtime}/ray"}
        environment |= {
            "RAY_raylet_start_wait_time_s": f"{START_TIMEOUT_S:.0f}",  # its 30 s are too few on a busy machine
            "RAY_USAGE_STATS_ENABLED": "0",
            "DO_NOT_TRACK": "1",
            "PREFECT_HOME": str(pool.folder / "prefect"),
        }
        ray, joined = start_ray(pool, cpus, environment)
        s3 = pool.start("s3", [moto_server, "--host", "127.0.0.1", "--port", str(pool.state.ports.s3)], environment)
        database_url = start_postgresql(pool, programs)
        start_prefect(pool, prefect, environment, database_url)
        start_bucket(pool, s3)
        deploy(pool, prefect, environment)
        pool.wait(ray, joined.exists)
        start_worker(pool, prefect, environment)
    except BaseException:
        pool.end()
        raise
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in pool.state.settings.items())
    private(
        pool.environment_file,
        f"# what reaches the pool of {pool.folder}; it holds for as long as this pool is up\n{exports}",
    )
    pool.keep(up=True)
    return True


def begin(pool: Pool) -> None:
    """Makes the folders, chooses the ports and takes pool.json: of two that do so at once, one is refused."""
    here = boot()
    pool.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (pool.folder / "logs").mkdir(mode=0o700, exist_ok=True)
    ports = Ports(**dict(zip(Ports.model_fields, free_ports(len(Ports.model_fields)), strict=True)))
    runtime = Path(tempfile.mkdtemp(prefix="lvd-pool-"))
    runtime.chmod(0o711)  # PostgreSQL's account passes through
    for name in ("ray", "tmp"):
        (runtime / name).mkdir(mode=0o700)
    me = Daemon(name="up", pid=os.getpid(), started=started(os.getpid()) or "")
    pool.state = State(
        boot=here,
        runtime=str(runtime),
        by=me,
        ports=ports,
        marker=secrets.token_hex(16),
        settings=settings(ports),
    )
    try:
        pool.state_file.touch(mode=0o600, exist_ok=False)
    except FileExistsError as error:
        shutil.rmtree(runtime)
        raise InputError(f"another process brings up the pool in {pool.folder}: wait for it") from error
    pool.keep()


def start_postgresql(pool: Pool, programs: Path) -> str:
    """The URL of the database, once the server answers. As root it runs as the account `postgres`, as it must."""
    port, password = str(pool.state.ports.postgresql), secrets.token_hex(20)
    data, password_file = Path(pool.state.runtime, "postgresql"), Path(pool.state.runtime, "password")
    options: dict[str, Any] = {"cwd": pool.state.runtime}
    data.mkdir(mode=0o700)
    private(password_file, password)
    if os.geteuid() == 0:
        try:
            account = pwd.getpwnam("postgres")
        except KeyError as error:
            raise InputError("as root, PostgreSQL needs the account `postgres`: make it, or run as a user") from error
        options |= {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        for path in (data, password_file):
            os.chown(path, account.pw_uid, account.pw_gid)
    environment = {**inherited(), "LVD_POOL": pool.state.marker, "LC_ALL": "C.UTF-8"}
    initdb = [str(programs / "initdb"), "--pgdata", str(data), "--username", "lvd", "--pwfile", str(password_file)]
    authentication = ["--auth-host", "scram-sha-256", "--auth-local", "reject", "--encoding", "UTF8", "--no-sync"]
    pool.call("initdb", [*initdb, *authentication], environment, **options)
    password_file.unlink()
    listen = ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-p", port]
    command = [str(programs / "postgres"), "-D", str(data), *listen]
    server = pool.start("postgresql", command, environment, **options)
    ready = [str(programs / "pg_isready"), "--quiet", "--host", "127.0.0.1", "--port", port]
    pool.wait(server, lambda: subprocess.run(ready, env=environment, check=False).returncode == 0)
    return f"postgresql+asyncpg://lvd:{password}@127.0.0.1:{port}/postgres"


def start_prefect(pool: Pool, prefect: str, environment: dict[str, str], database_url: str) -> None:
    """Prefect's server, with its page, on that database."""
    port = str(pool.state.ports.prefect)
    server = {
        "PREFECT_API_DATABASE_CONNECTION_URL": database_url,
        "PREFECT_SERVER_UI_API_URL": pool.state.settings["PREFECT_API_URL"],
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(pool.folder / "prefect" / "page"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    command = [prefect, "server", "start", "--host", "127.0.0.1", "--port", port]
    daemon = pool.start("prefect", command, {**environment, **server})
    pool.wait(daemon, lambda: answers(f"http://127.0.0.1:{port}/api/health"))


def start_bucket(pool: Pool, s3: Daemon) -> None:
    """Returns when the S3 server has the bucket."""
    pool.wait(s3, lambda: answers(f"http://127.0.0.1:{pool.state.ports.s3}/{BUCKET}", method="PUT"))


def start_ray(pool: Pool, cpus: int, environment: dict[str, str]) -> tuple[Daemon, Path]:
    """The cluster's daemon, and the file that appears when both nodes have joined."""
    joined = Path(pool.state.runtime, "ray", "joined")
    serve = f"from lvd.infra.pool import serve_ray; serve_ray({pool.state.ports.ray}, {cpus}, {str(joined)!r})"
    return pool.start("ray", [sys.executable, "-c", serve], environment), joined


def serve_ray(port: int, cpus: int, joined: str) -> None:
    """Runs a head and a second node until it is ended; then Ray's reaper ends their processes.

    `ray start` would listen on the machine's outward address; nodes made so are on 127.0.0.1 alone.
    """
    from ray.cluster_utils import Cluster

    node = {"node_ip_address": "127.0.0.1", "num_cpus": cpus, "object_store_memory": OBJECT_STORE_BYTES}
    head = {"gcs_server_port": port, "include_dashboard": False, "dashboard_agent_listen_port": None}
    cluster = Cluster(initialize_head=True, head_node_args={**node, **head})
    cluster.add_node(**node)
    cluster.wait_for_nodes(timeout=START_TIMEOUT_S)
    Path(joined).touch()
    signal.pause()


def deploy(pool: Pool, prefect: str, environment: dict[str, str]) -> None:
    """The work pools and the deployments, by Prefect's own commands."""
    for name in POOLS:
        pool.call("work-pool", [prefect, "--no-prompt", "work-pool", "create", name, "--type", "process"], environment)
    pool.call("deploy", [prefect, "--no-prompt", "deploy", "--all", "--prefect-file", str(DEPLOYMENTS)], environment)


def start_worker(pool: Pool, prefect: str, environment: dict[str, str]) -> None:
    """The worker that starts the flow runs of the first pool. Returns when the server knows it."""
    command = [prefect, "--no-prompt", "worker", "start", "--pool", POOLS[0], "--name", "lvd-pool"]
    worker = pool.start("worker", command, {**environment, "PREFECT_WORKER_QUERY_SECONDS": "2"})
    url = f"{pool.state.settings['PREFECT_API_URL']}/work_pools/{POOLS[0]}/workers/filter"
    pool.wait(worker, lambda: any(one["status"] == "ONLINE" for one in asked(url)))


def demo(pool: Pool) -> int:
    """Runs `curate/mini` on the pool and says where to look. Returns the exit code of `prefect deployment run`."""
    mini = [f"compute.address={pool.state.settings['LVD_RAY']}", f"miniature.port={free_ports(1)[0]}"]
    parameters = {"root": f"s3://{BUCKET}/mini", "settings": ["compute.runner=ray", *mini]}
    run = ["deployment", "run", "curate/mini", "--params", json.dumps(parameters), "--watch"]
    command = [program("prefect"), "--no-prompt", *run, "--watch-timeout", str(RUN_TIMEOUT_S)]
    page = pool.state.settings["PREFECT_UI_URL"]
    with subprocess.Popen(
        command, env={**inherited(), **pool.state.settings}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            if found := re.search(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", line):
                page = f"{pool.state.settings['PREFECT_UI_URL']}/runs/flow-run/{found.group()}"
    say(f"the run's page: {page}")
    say(f"what lies on storage: . {pool.environment_file} && {program('lvd')} status {parameters['root']}")
    return process.returncode


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def describe(pool: Pool) -> None:
    ports, values = pool.state.ports, pool.state.settings
    say(f"Prefect's page  {values['PREFECT_UI_URL']}  (deployments made; a worker waits for runs of {POOLS[0]})")
    say(f"S3              {values['AWS_ENDPOINT_URL']}  (bucket {BUCKET}; in memory: `down` loses what lies there)")
    say(f"Ray             {values['LVD_RAY']}  (two nodes)")
    say(f"PostgreSQL      127.0.0.1:{ports.postgresql}  (of Prefect; private)")
    say(f"in a shell      . {pool.environment_file}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 done, 2 you must act, 1 the demo's run failed."""
    parser = argparse.ArgumentParser(prog="python -m lvd.infra.pool", description=__doc__)
    parser.add_argument("command", choices=("up", "demo", "down"))
    parser.add_argument("--folder", type=Path, default=Path("pool"), help="of pool.json, env.sh and the logs")
    parser.add_argument("--cpus", type=int, default=1, help="of each of the two Ray nodes: tasks that it runs at once")
    options = parser.parse_args(arguments)
    pool = Pool(options.folder)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: what was started is ended
    try:
        if options.cpus < 1:
            raise InputError(f"--cpus must be at least 1, was {options.cpus}")
        if options.command == "down":
            state = pool.load()
            if state is not None:
                pool.end()
            say(f"the pool in {pool.folder} is down" if state else f"no pool is up in {pool.folder}")
            return 0
        say(
            f"the pool in {pool.folder} is up"
            if up(pool, options.cpus)
            else f"the pool in {pool.folder} was up already"
        )
        describe(pool)
        return demo(pool) if options.command == "demo" else 0
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
