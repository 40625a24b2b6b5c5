"""`lvd serve` and `lvd report` as commands: an address, an end, and one line for what is wrong."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lvd.flows import listening
from lvd.flows.show_report import report_of
from lvd.infra.errors import InputError
from lvd.tests.running import LVD, Curated, environment, lvd
from lvd.tests.shelved import Served, picture, row_of, write_version


def test_a_root_without_a_version_and_a_taken_port_are_said_in_one_line(tmp_path: Path) -> None:
    for command in (("serve", str(tmp_path)), ("report", str(tmp_path))):
        done = lvd(*command, home=tmp_path / "prefect")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "root must hold a published version" in done.stderr
    with listening.bound("127.0.0.1", 0) as taken:
        for host, port in (("127.0.0.1", taken.getsockname()[1]), ("no.such.host.invalid", 0), ("x" * 70, 0), ("", -1)):
            with pytest.raises(InputError, match="must be an address of this machine"):
                listening.bound(host, port)


def test_it_prints_its_address_and_ends_with_ctrl_c(curated: Curated, tmp_path: Path) -> None:
    command = [str(LVD), "serve", str(curated.root), "--port", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment(tmp_path / "prefect"), **pipes) as process:
        address = process.stdout.readline().strip()
        site = Served(int(address.rstrip("/").rsplit(":", 1)[1]))
        assert address == f"{site.url}/"
        assert "The miniature set" in site.page("/")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")


SLOW = """
import sys, time
from lvd.flows import listening, pages
def compared(*_):
    print("comparing", flush=True)
    time.sleep(120)
pages.findings = compared
listening.serve(sys.argv[1], host="127.0.0.1", port=0)
"""


def test_ctrl_c_does_not_wait_for_a_comparison(local_root: str, tmp_path: Path) -> None:
    write_version(local_root, 1, [[row_of("a", number=1)]])
    command, pipes = [sys.executable, "-c", SLOW, local_root], {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    env = environment(tmp_path / "prefect") | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=env, text=True, **pipes) as process, ThreadPoolExecutor(1) as browser:
        site = Served(int(process.stdout.readline().strip().rstrip("/").rsplit(":", 1)[1]))
        asked = browser.submit(site.ask, "/api/find", method="POST", body=picture(1))
        assert process.stdout.readline() == "comparing\n"
        assert list(tmp_path.glob("lvd-*/lvd-*"))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert asked.exception() is not None
    assert (process.returncode, err) == (0, "")
    assert not list(tmp_path.glob("lvd-*"))


def test_a_browser_that_cannot_be_opened_is_said(local_root: str, tmp_path: Path) -> None:
    write_version(local_root, 1, [[row_of("a", number=1)]])
    env = environment(tmp_path / "prefect") | {"BROWSER": "false", "PATH": ""}
    done = subprocess.run([str(LVD), "report", local_root, "--open"], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--open needs a browser" in done.stderr and done.stdout.endswith("report.html\n")


def test_the_report_is_named(curated: Curated) -> None:
    uri = str(curated.root / "curated/v1/report.html")
    assert report_of(str(curated.root), None) == report_of(str(curated.root), "v1") == uri
    for wrong in ("v2", "0", "../v1", "latest"):
        with pytest.raises(InputError, match="--version must be"):
            report_of(str(curated.root), wrong)


def test_it_starts_without_prefect_and_models() -> None:
    code = "import sys, lvd.flows.listening\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"prefect", "torch", "timm", "faiss"} & {name.split(".")[0] for name in done.stdout.split()}
