"""A process of its own: its result, its errors, its death, and that it does not outlive who asked."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lvd.infra.errors import InputError, RetryableError
from lvd.infra.process import in_own_process
from lvd.tests.running import wait_until


def doubled(number: int) -> tuple[int, int]:
    return 2 * number, os.getpid()


def refuse(text: str) -> None:
    raise InputError(text)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleep_for_ever(note: str) -> None:
    Path(note).write_text(str(os.getpid()))
    signal.pause()


def test_a_result_comes_back_from_another_process() -> None:
    value, pid = in_own_process(doubled, 21)
    assert value == 42 and pid != os.getpid()


def test_an_error_is_raised_here() -> None:
    with pytest.raises(InputError, match=r"^range, value, remedy$"):
        in_own_process(refuse, "range, value, remedy")


def test_a_process_that_is_killed_can_be_tried_again() -> None:
    with pytest.raises(RetryableError, match=r"test_process\.die ended with exit code -9"):
        in_own_process(die)


def test_it_ends_with_the_process_that_asked(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = (
        "from lvd.infra.process import in_own_process\n"
        "from lvd.tests.infra.test_process import sleep_for_ever\n"
        f"if __name__ == '__main__': in_own_process(sleep_for_ever, {str(note)!r})\n"
    )
    (tmp_path / "asks.py").write_text(code)
    with subprocess.Popen([sys.executable, str(tmp_path / "asks.py")]) as asking:
        wait_until(lambda: note.exists() and note.read_text(), 60, "the process of its own writes its number")
        asking.kill()
    child = Path(f"/proc/{note.read_text()}")
    wait_until(lambda: not child.exists() or "State:\tZ" in (child / "status").read_text(), 20, "the process ends")
