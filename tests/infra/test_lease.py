"""The lease: one run at a time, and a dead holder's lease is taken over."""

import json
import subprocess
import sys
import time

import pytest

from lvd.infra import lease as lease_room
from lvd.infra.errors import InputError
from lvd.infra.lease import lease
from lvd.infra.storage import Storage

HOLD = """
import sys, time
from lvd.infra.lease import lease
from lvd.infra.storage import Storage
with lease(Storage(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_while_the_first_lives(root: str) -> None:
    storage = Storage(root)
    with lease(storage), pytest.raises(InputError, match=r"in use by process \d+ on .*wait"), lease(storage):
        pass
    assert storage.names("leases") == []


def test_the_lease_of_a_killed_process_is_taken_over(local_root: str) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, local_root], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(InputError), lease(Storage(local_root)):
            pass
        holder.kill()
        holder.wait()
        with lease(Storage(local_root)):
            assert Storage(local_root).exists(lease_room.NAME)


@pytest.mark.parametrize(("expires_in_s", "refused"), [(60, True), (-1, False)])
def test_a_lease_of_another_machine_counts_until_it_expires(root: str, expires_in_s: float, refused: bool) -> None:
    storage = Storage(root)
    other = {"holder": "x", "host": "elsewhere", "pid": 1, "started": "1", "expires_at": time.time() + expires_in_s}
    storage.write_bytes(lease_room.NAME, json.dumps(other).encode())
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
