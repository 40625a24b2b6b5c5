"""`python -m lvd.infra.pool`: the pool of one machine brought up, used and ended; and whom it may end."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lvd.flows.inquiry import last_run
from lvd.infra import daemons, pool
from lvd.infra.errors import InputError
from lvd.infra.storage import Storage
from lvd.tests.running import wait_until

LISTENS = "0A"  # the state of /proc/net/tcp
SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


def command(name: str, folder: Path, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lvd.infra.pool", name, "--folder", str(folder)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        cwd=folder.parent,
    )


def listened_addresses(pids: set[int]) -> set[str]:
    """The addresses on which any of the processes accepts connections."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes.add(str(link.readlink()).removeprefix("socket:[").rstrip("]"))
            except FileNotFoundError:
                continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENS and fields[9] in inodes:
                words = bytes.fromhex(fields[1].partition(":")[0])
                raw = b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))
                found.add(socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where a pool may be; it is down afterwards, whatever the test did."""
    try:
        pool.postgresql_programs()
    except InputError as error:
        pytest.skip(str(error))
    folder = tmp_path / "pool"
    yield folder
    command("down", folder)


def test_the_pool_comes_up_runs_the_demo_and_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = command("demo", folder, timeout_s=2400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    state = pool.Pool(folder).load()
    assert f"{state.settings['PREFECT_UI_URL']}/runs/flow-run/" in done.stdout
    for name in ("pool.json", "env.sh"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600, name
    assert [one.name for one in state.daemons if daemons.alive(one)] == ["ray", "s3", "postgresql", "prefect", "worker"]
    processes = {pid: start for one in state.daemons for pid, start in daemons.family(one, state.marker).items()}
    assert listened_addresses(set(processes)) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}

    again = command("up", folder)
    assert again.returncode == 0 and "was up already" in again.stdout
    assert pool.Pool(folder).load() == state

    script = f". {folder / 'env.sh'} && exec {Path(sys.executable).with_name('lvd')} status s3://lvd/mini"
    status = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert status.returncode == 0 and "last run" in status.stdout, status.stdout + status.stderr
    script = f". {folder / 'env.sh'} && exec {Path(sys.executable).with_name('prefect')} --no-prompt deployment ls"
    listed = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=120, check=False).stdout
    assert all(name in listed for name in ("curate/lvd", "curate/lvd-gpu", "curate/mini", "nightly/lvd"))
    for name, value in state.settings.items():
        monkeypatch.setenv(name, value)
    last = last_run(Storage("s3://lvd/mini"))
    assert last["version"] == "v1"
    assert sum(last["ledger"].values()) == last["candidates"] > 500
    assert last["recipe"]["compute"]["runner"] == "ray"

    down = command("down", folder)
    assert down.returncode == 0, down.stdout + down.stderr
    left = [pid for pid, start in processes.items() if daemons.runs(pid, start)]
    assert not left
    assert not (folder / "pool.json").exists() and not Path(state.runtime).exists()
    assert "no pool is up" in command("down", folder).stdout


def test_what_was_started_is_ended_when_a_step_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[daemons.Daemon] = []

    def fails(one: pool.Pool, *_: object) -> str:
        started.extend(one.state.daemons)
        raise InputError("no database today")

    monkeypatch.setattr(pool, "start_postgresql", fails)
    with pytest.raises(InputError, match="no database today"):
        pool.up(pool.Pool(folder), 1)
    assert {one.name for one in started} == {"ray", "s3"}
    assert not any(daemons.alive(one) for one in started)
    assert not (folder / "pool.json").exists()


def test_a_log_that_tells_why_is_shown(tmp_path: Path) -> None:
    one = pool.Pool(tmp_path)
    pool.begin(one)
    daemon = one.start("s3", [sys.executable, "-c", "raise SystemExit('the port is taken')"], dict(os.environ))
    with pytest.raises(
        InputError, match=r"s3 ended before it answered: see .*s3\.log, which ends with\nthe port is taken"
    ):
        one.wait(daemon, lambda: False)
    one.end()


def test_without_postgresql_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(pool, "DEBIAN_POSTGRESQL", tmp_path)
    with pytest.raises(InputError, match="install it"):
        pool.up(pool.Pool(tmp_path / "pool"), 1)
    assert not (tmp_path / "pool").exists()


def test_two_that_come_up_at_once_are_one(tmp_path: Path) -> None:
    first = pool.Pool(tmp_path / "pool")
    pool.begin(first)
    with pytest.raises(InputError, match="wait for it"):
        pool.begin(pool.Pool(tmp_path / "pool"))
    with pytest.raises(InputError, match=f"process {os.getpid()} is bringing up the pool"):
        pool.up(pool.Pool(tmp_path / "pool"), 1)
    first.end()


def test_a_later_process_of_the_same_number_is_not_ended() -> None:
    with subprocess.Popen(SLEEPER, start_new_session=True) as stranger:
        daemons.end(daemons.Daemon(name="s3", pid=stranger.pid, started="1"), marker="of a pool")
        assert stranger.poll() is None
        stranger.kill()


def test_a_pool_of_an_earlier_boot_is_forgotten(tmp_path: Path) -> None:
    one = pool.Pool(tmp_path)
    pool.begin(one)
    runtime = Path(one.state.runtime)
    one.keep(boot="before")
    assert pool.Pool(tmp_path).load() is None
    assert not one.state_file.exists()
    shutil.rmtree(runtime)


def test_a_pool_of_another_container_is_left_alone(tmp_path: Path) -> None:
    one = pool.Pool(tmp_path)
    pool.begin(one)
    here = one.state.boot
    one.keep(boot=f"{here.split()[0]} pid:[1]")
    with pytest.raises(InputError, match="another container"):
        pool.Pool(tmp_path).load()
    one.keep(boot=here)
    one.end()


def test_those_that_left_the_session_and_those_whose_leader_died_are_ended(tmp_path: Path) -> None:
    child = f"import subprocess; subprocess.Popen({SLEEPER!r})"
    leaver = f"import subprocess; print(subprocess.Popen({SLEEPER!r}, start_new_session=True).pid, flush=True)"
    environment = {**os.environ, "LVD_POOL": "mine"}
    for script in (f"{leaver}; import time; time.sleep(600)", child):
        with subprocess.Popen(
            [sys.executable, "-c", script], start_new_session=True, env=environment, stdout=subprocess.PIPE, text=True
        ) as leader:
            daemon = daemons.Daemon(name="ray", pid=leader.pid, started=daemons.started(leader.pid))
            if script == child:
                leader.wait()
            else:
                leader.stdout.readline()
            family = daemons.family(daemon, "mine")
            others = daemons.family(daemon, "of another pool")
            daemons.end(daemon, "mine")
            leader.kill()
        assert len(family) == (1 if script == child else 2)
        assert others == ({} if script == child else family)
        assert not any(daemons.runs(pid, start) for pid, start in family.items())


def test_a_daemon_that_does_not_listen_is_ended_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemons, "GRACE_S", 0.2)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        daemon = daemons.Daemon(name="worker", pid=process.pid, started=daemons.started(process.pid))
        daemons.end(daemon, "mine")
        wait_until(lambda: process.poll() is not None, 10, "the daemon must end")
        assert process.returncode == -signal.SIGKILL


def test_bad_arguments_are_refused_with_their_range(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lvd.infra.pool", "up", "--folder", str(tmp_path), "--cpus", "0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (2, "--cpus must be at least 1, was 0\n")


def test_secrets_are_new_for_every_pool() -> None:
    ports = pool.Ports(**dict(zip(pool.Ports.model_fields, pool.free_ports(4), strict=True)))
    one, other = pool.settings(ports), pool.settings(ports)
    assert {name for name in one if one[name] != other[name]} == {
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "RAY_AUTH_TOKEN",
    }
    assert json.dumps(one)
