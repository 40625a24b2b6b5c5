"""`lvd explore`: the file for explorers from a real run, and what is said where it cannot be."""

import json
import sys
import urllib.request
from pathlib import Path
from subprocess import Popen

import pyarrow.parquet as pq
import pytest

from lvd.flows import cli, exploring
from lvd.flows.exploring import arguments, export
from lvd.infra.errors import InputError
from lvd.infra.storage import Storage
from lvd.tests.running import Curated, free_port, wait_until


def lvd(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of `lvd …` in this process."""
    monkeypatch.setattr(sys, "argv", ["lvd", *args])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0), *capsys.readouterr()


def test_a_version_becomes_a_table_of_pictures_and_vectors(
    curated: Curated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, root = tmp_path / "all.parquet", str(curated.root)
    code, out, err = lvd(monkeypatch, capsys, "explore", root, "--export", str(file))
    assert code == 0, err
    rows = pq.read_table(file).to_pylist()
    kept = {row["image_id"]: row for row in curated.ledger() if row["state"] == "kept"}
    assert f"{len(rows)} images in {file}" in out and f"uvx embedding-atlas {file} --vector vector" in out
    assert {row["image_id"] for row in rows} == set(kept)  # every published image of the miniature is embedded
    assert {row["key"] for row in rows} == {row["key"] for row in kept.values()}
    assert all(sum(value * value for value in row["vector"]) == pytest.approx(1, abs=0.01) for row in rows)
    assert export(root, tmp_path / "some.parquet", version="v1", sample=20) == 20
    again = pq.read_table(tmp_path / "some.parquet")["image_id"].to_pylist()
    assert export(root, tmp_path / "some.parquet", sample=20) == 20
    assert pq.read_table(tmp_path / "some.parquet")["image_id"].to_pylist() == again


def test_what_is_not_there_is_said_in_one_line(
    curated: Curated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, file = str(curated.root), str(tmp_path / "a.parquet")
    for args, message in (
        ((root, "--version", "v9", "--export", file), "--version must be one of v1, was 'v9'"),
        ((str(tmp_path), "--export", file), "root must hold a published version"),
        ((root, "--export", str(tmp_path / "none" / "a.parquet")), "--export must be a file in a folder that exists"),
        ((root, "--export", str(tmp_path)), "--export must be a file in a folder that exists"),
    ):
        code, _, err = lvd(monkeypatch, capsys, "explore", *args)
        assert code == 2 and message in err and err.count("\n") == 1
    assert not Path(file).exists()
    monkeypatch.setattr(exploring, "EXPLORER", "no_such_module")
    code, _, err = lvd(monkeypatch, capsys, "explore", root)
    assert code == 2 and "install the extra `explore` of lvd" in err and "uvx embedding-atlas" in err


def test_a_root_of_vectors_has_no_pictures(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    record = {"version": "v1", "directories": {"imported": ["imported/a"]}, "curated": "curated/v1"}
    storage.write_json("runs/20260101T000000Z-v1.json", record)
    storage.write_json("curated/latest.json", {"version": "v1", "run": "runs/20260101T000000Z-v1.json"})
    with pytest.raises(InputError, match=r"must hold a run over images, that of v1 was over vectors"):
        export(str(tmp_path), tmp_path / "a.parquet")


def test_the_explorer_opens_the_file_on_loopback(curated: Curated, tmp_path: Path) -> None:
    pytest.importorskip(exploring.EXPLORER, reason="the extra `explore` is not installed")
    file, port = tmp_path / "a.parquet", free_port()
    export(str(curated.root), file, sample=50)
    with Popen([sys.executable, "-m", f"{exploring.EXPLORER}.cli", *arguments(str(file), port)]) as process:
        try:
            wait_until(lambda: answers(port) is not None, 120, "the explorer must answer")
            assert "id" in json.dumps(answers(port))
        finally:
            process.terminate()


def answers(port: int) -> dict | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/metadata.json", timeout=5) as answer:
            return json.load(answer)
    except OSError:
        return None
