"""The miniature web on two Ray nodes of one CPU each, one of them killed again and again: the local run's bytes."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from lvd.tests.ray_nodes import in_own_namespace
from lvd.tests.running import Curated, data_files

KILLED_IN = ("download", "embed", "cluster")  # `python -m lvd.tests.ray_nodes` takes any; all were tried


def has_namespaces() -> bool:
    command = in_own_namespace(["true"])
    return bool(shutil.which("unshare")) and subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not has_namespaces(), reason="no right to make namespaces here: a Ray cluster might meet another")
def test_nodes_may_die_in_any_stage_and_the_bytes_are_those_of_the_local_run(curated: Curated, tmp_path: Path) -> None:
    short = tempfile.mkdtemp(prefix="ray")  # sockets lie in it
    environment = {
        **os.environ, "RAY_TMPDIR": short, "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16), "HOME": str(tmp_path),
    }  # fmt: skip
    where = [str(tmp_path / "root"), str(curated.folder), str(curated.port)]
    command = in_own_namespace([sys.executable, "-m", "lvd.tests.ray_nodes", *where, *KILLED_IN])
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    shutil.rmtree(short)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["code"] == 0, found["said"]
    assert found["died"] == list(KILLED_IN)
    assert len(found["nodes"]) >= 3  # the first node and the fresh ones
    assert found["again"] == []  # what was on storage when a node died was not computed again
    assert data_files(tmp_path / "root") == curated.files
