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
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

from lvd.infra.daemons import START_TIMEOUT_S, Daemon, Pool, Ports, State, alive, boot, private, started
from lvd.infra.errors import InputError

RUN_TIMEOUT_S = 1800.0
POOLS = ("lvd-cpu", "lvd-gpu")
BUCKET = "lvd"
OBJECT_STORE_BYTES = 200_000_000  # of one Ray node: shards go by storage, tasks give back little
BIN = Path(sys.executable).parent
DEBIAN_POSTGRESQL = Path("/usr/lib/postgresql")  # Debian keeps the server's programs out of PATH
DEPLOYMENTS = Path(__file__).with_name("prefect.yaml")
FOREIGN = ("PREFECT_", "RAY_", "AWS_", "PG", "LVD_POOL")  # settings of other services, which must not reach the pool's


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody uses now, all different."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


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
