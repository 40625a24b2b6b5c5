"""The lease: one run at a time, and a dead holder's lease is taken over."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from lvd.infra import lease as lease_room
from lvd.infra.errors import InputError
from lvd.infra.lease import check_free, is_held, lease
from lvd.infra.storage import Storage
from lvd.tests.running import wait_until

HOLD = """
import sys, time
from lvd.infra.lease import lease
from lvd.infra.storage import Storage
with lease(Storage(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def interrupts() -> Iterator[Callable[[Any], Any]]:
    """Sets what becomes of SIGINT until the test ends."""
    before = signal.getsignal(signal.SIGINT)
    yield lambda handler: signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGINT, before)


def test_a_second_run_is_refused_while_the_first_lives(root: str) -> None:
    storage = Storage(root)
    with lease(storage), pytest.raises(InputError, match=r"in use by process \d+ on .*wait"), lease(storage):
        pass
    assert storage.names("leases") == []


def test_a_root_is_free_unless_a_living_run_holds_it(root: str) -> None:
    storage = Storage(root)
    check_free(storage)
    assert not is_held(storage)
    with lease(storage), pytest.raises(InputError, match=r"in use by process \d+ on .*wait"):
        assert is_held(storage)
        check_free(storage)
    check_free(storage)
    storage.write_bytes(lease_room.NAME, lease_of_another(expires_in_s=60))
    with pytest.raises(InputError, match="in use by process 1 on elsewhere"):
        check_free(storage)
    assert is_held(storage)
    storage.write_bytes(lease_room.NAME, lease_of_another(expires_in_s=-1))
    check_free(storage)
    assert not is_held(storage)


def test_the_lease_of_a_killed_process_is_taken_over(local_root: str) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, local_root], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(InputError), lease(Storage(local_root)):
            pass
        holder.kill()
        holder.wait()
        with lease(Storage(local_root)):
            assert Storage(local_root).exists(lease_room.NAME)


def lease_of_another(expires_in_s: float) -> bytes:
    expires_at = time.time() + expires_in_s
    return json.dumps({"holder": "x", "host": "elsewhere", "pid": 1, "started": "1", "expires_at": expires_at}).encode()


@pytest.mark.parametrize(("expires_in_s", "refused"), [(60, True), (-1, False)])
def test_a_lease_of_another_machine_counts_until_it_expires(root: str, expires_in_s: float, refused: bool) -> None:
    storage = Storage(root)
    storage.write_bytes(lease_room.NAME, lease_of_another(expires_in_s))
    if refused:
        with pytest.raises(InputError, match="elsewhere"), lease(storage):
            pass
    else:
        with lease(storage):
            assert storage.read_json(lease_room.NAME)["host"] != "elsewhere"


def test_the_lease_is_renewed(local_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_room, "RENEW_S", 0.05)
    storage = Storage(local_root)
    with lease(storage):
        first = storage.read_json(lease_room.NAME)["expires_at"]
        deadline = time.monotonic() + 10
        while storage.read_json(lease_room.NAME)["expires_at"] == first and time.monotonic() < deadline:
            time.sleep(0.02)
        assert storage.read_json(lease_room.NAME)["expires_at"] > first


def test_of_many_that_find_a_dead_holder_one_holds_at_a_time(root: str) -> None:
    Storage(root).write_bytes(lease_room.NAME, lease_of_another(-1))
    holders, most, refused = set(), [], []

    def contend(number: int) -> None:
        try:
            with lease(Storage(root)):
                holders.add(number)
                most.append(len(holders))
                time.sleep(0.02)
                holders.remove(number)
        except InputError:
            refused.append(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(contend, range(24)))
    assert max(most) == 1
    assert len(most) + len(refused) == 24
    assert Storage(root).names("leases") == []


def test_a_storage_that_fails_for_a_while_does_not_end_the_renewal(
    local_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_room, "RENEW_S", 0.02)
    write, failures = Storage.write_bytes, iter([True] * 3)

    def unsteady(self: Storage, name: str, data: bytes) -> None:
        if next(failures, False):
            raise OSError("the bucket is busy")
        write(self, name, data)

    monkeypatch.setattr(Storage, "write_bytes", unsteady)
    storage = Storage(local_root)
    with lease(storage):
        first = storage.read_json(lease_room.NAME)["expires_at"]
        wait_until(lambda: storage.read_json(lease_room.NAME)["expires_at"] > first, 10, "the lease must be renewed")
    assert next(failures, None) is None


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_a_run_whose_lease_was_taken_is_stopped_and_leaves_the_other_lease(
    local_root: str, monkeypatch: pytest.MonkeyPatch, interrupts, handler: Any
) -> None:
    """Also one that a script has started in the background, with SIGINT ignored."""
    interrupts(handler)
    monkeypatch.setattr(lease_room, "RENEW_S", 0.05)
    storage = Storage(local_root)
    with pytest.raises(KeyboardInterrupt), lease(storage):
        storage.write_bytes(lease_room.NAME, lease_of_another(60))
        for _ in range(200):
            time.sleep(0.05)
    assert storage.read_json(lease_room.NAME)["host"] == "elsewhere"
    assert signal.getsignal(signal.SIGINT) is handler
