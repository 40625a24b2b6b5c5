"""A process of its own: its result, its errors, its death, and that it does not outlive who asked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lvd.infra.errors import InputError, RetryableError
from lvd.infra.process import in_own_process
from lvd.infra.safety import is_public
from lvd.infra.storage import Storage
from lvd.tests.running import wait_until

ASKS = """
import os, signal, sys
from pathlib import Path
from lvd.infra.process import in_own_process

def sleep_for_ever(note):
    Path(note).write_text(str(os.getpid()))
    signal.pause()

if __name__ == "__main__":
    in_own_process(sleep_for_ever, sys.argv[1])
"""


def test_a_result_comes_back_from_another_process() -> None:
    assert in_own_process(is_public, "8.8.8.8") is True
    assert in_own_process(os.getpid) != os.getpid()


def test_an_error_is_raised_here() -> None:
    with pytest.raises(InputError, match=r"^recipe\.root must be .* was 'nonsense://x'"):
        in_own_process(Storage, "nonsense://x")


def test_a_process_that_is_killed_can_be_tried_again() -> None:
    with pytest.raises(RetryableError, match=r"posix\.abort ended with exit code -6$"):
        in_own_process(os.abort)


def test_it_ends_with_the_process_that_asked(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    (tmp_path / "asks.py").write_text(ASKS)
    with subprocess.Popen([sys.executable, str(tmp_path / "asks.py"), str(note)]) as asking:
        wait_until(lambda: note.exists() and note.read_text(), 60, "the process of its own writes its number")
        asking.kill()
    child = Path(f"/proc/{note.read_text()}")
    wait_until(lambda: not child.exists() or "State:\tZ" in (child / "status").read_text(), 20, "the process ends")
    assert asking.returncode == -9
