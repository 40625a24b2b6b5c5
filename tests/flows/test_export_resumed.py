"""Exports that were ended somewhere: what is there is not written again, and the files are the same."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lvd.flows.export_asked import ask
from lvd.flows.export_place import MANIFEST, SUMS, WORK
from lvd.flows.export_records import records
from lvd.infra.errors import InputError
from lvd.infra.shards import StageDir
from lvd.infra.storage import Storage
from lvd.tasks import export as export_stage
from lvd.tests import versions_planted
from lvd.tests.exports import exported_here, files_of
from lvd.tests.running import lvd, wait_until

KINDS = ("webdataset", "imagefolder", "parquet")


def test_what_is_written_is_not_written_again(local_root: str, tmp_path: Path) -> None:
    versions_planted.published(local_root)
    out, config = tmp_path / "out", export_stage.Config(kind="webdataset", shard_images=6)
    assert exported_here(local_root, str(out), config) == {"order": 1, "export": 4}
    whole = files_of(out)
    work = StageDir(
        root=str(out / ".lvd"), stage="export", fingerprint=ask(local_root, str(out), config, None).identity
    )
    lost = work.shards()[2]
    for name in (lost.name(), f"{work.directory}/stage.json"):  # as if it had been killed in the third shard
        (out / ".lvd" / name).unlink()
    for name in ("lvd-000002.tar", MANIFEST, SUMS):
        (out / name).unlink()
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert exported_here(local_root, str(out), config) == {"order": 0, "export": 1}
    assert files_of(out) == whole
    assert {name: (out / name).stat().st_mtime_ns for name in times} == times
    assert exported_here(local_root, str(out), config) == {}
    (out / "lvd-000001.tar").unlink()
    with pytest.raises(InputError, match=r"lvd-000001\.tar is gone"):
        exported_here(local_root, str(out), config)


@pytest.mark.parametrize("kind", KINDS)
def test_ended_before_any_of_its_files_it_gives_the_same_files(
    local_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    versions_planted.published(local_root, shards=(3, 1))
    config, left = export_stage.Config(kind=kind, shard_images=3), 1000
    whole_file = Storage.whole_file

    @contextmanager
    def ending(self: Storage, name: str) -> Iterator[Path]:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        with whole_file(self, name) as path:
            yield path

    monkeypatch.setattr(Storage, "whole_file", ending)
    exported_here(local_root, str(tmp_path / "whole"), config)
    number, expected = 1000 - left, files_of(tmp_path / "whole")
    assert number > 10
    for stop in range(number):
        out = tmp_path / str(stop)
        left = stop
        with pytest.raises(KeyboardInterrupt):
            exported_here(local_root, str(out), config)
        left = 1000
        exported_here(local_root, str(out), config)
        assert files_of(out) == expected, stop


SLOWLY = """
import sys, time
from lvd.infra.storage import Storage
from lvd.tasks import export
from lvd.tests.exports import exported_here

write_bytes = Storage.write_bytes
Storage.write_bytes = lambda *given: (time.sleep(0.02), write_bytes(*given))
exported_here(sys.argv[1], sys.argv[2], export.Config(kind="imagefolder", shard_images=20))
"""


def test_killed_and_started_again_the_command_gives_the_same_files(
    local_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions_planted.published(local_root, shards=(100, 100))
    exported_here(local_root, str(tmp_path / "whole"), export_stage.Config(kind="imagefolder", shard_images=20))
    out = tmp_path / "out"

    def written() -> int:
        return len(list(out.glob(f"{WORK}/export/*/data-*.arrow")))

    with subprocess.Popen([sys.executable, "-c", SLOWLY, local_root, str(out)]) as process:
        wait_until(lambda: written() or process.poll() is not None, 60, "a shard is written")
        process.kill()
    before = written()
    assert process.returncode == -signal.SIGKILL and 0 < before < 10
    monkeypatch.setenv("LVD_METRICS_FILE", str(tmp_path / "nightly.prom"))
    args = ("export", local_root, "--to", "imagefolder", "--shard-images", "20", "--out", str(out))
    again = lvd(*args, "--set", "compute.cpu_workers=1", home=tmp_path / "prefect")
    assert again.returncode == 0, again.stderr[-4000:]
    assert f"wrote {10 - before} shards" in again.stdout
    assert not (out / ".lvd").exists() and not (out / ".tmp").exists()
    assert not (tmp_path / "nightly.prom").exists()  # which is of runs
    assert versions_planted.files_below(out) == files_of(tmp_path / "whole")
    finished = {one["out"]: one["finished_at"] is not None for one in records(local_root)}
    assert finished == {str(out): True, str(tmp_path / "whole"): False}
