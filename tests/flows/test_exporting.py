"""Exports from end to end: every image once, opened again as people open them, resumed, refused."""

import hashlib
import json
import signal
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lvd.flows import exporting
from lvd.flows.export_records import record, records, without_user
from lvd.flows.exporting import ask, asked_config, compute_of, runs_of, version_at
from lvd.infra.errors import InputError
from lvd.infra.shards import ShardRef, StageDir
from lvd.infra.storage import Storage
from lvd.tasks import export as export_stage
from lvd.tests import versions_planted
from lvd.tests.exports import exported_here
from lvd.tests.running import LVD, environment, lvd, wait_until

KINDS = ("webdataset", "imagefolder", "parquet")
TOTAL = sum(versions_planted.SHARDS)


def exported(folder: Path, kind: str) -> list[tuple[str, bytes, dict[str, Any]]]:
    """(image id, bytes, columns) of every image in the order of the shards, read without any library's loader."""
    found = []
    if kind == "webdataset":
        for path in sorted(folder.glob("*.tar")):
            with tarfile.open(path) as tar:
                members = [(m.name.split(".")[0], tar.extractfile(m).read()) for m in tar]
            for (key, data), (same, text) in zip(members[::2], members[1::2], strict=True):
                assert key == same
                found.append((key, data, json.loads(text)))
    elif kind == "parquet":
        for path in sorted((folder / "data").iterdir()):
            for row in pq.read_table(path).to_pylist():
                found.append((row["image_id"], row.pop("image")["bytes"], row))
    else:
        for path in sorted(folder.rglob("metadata.parquet")):
            for row in pq.read_table(path).to_pylist():
                data = (path.parent / row.pop("file_name")).read_bytes()
                found.append((row["image_id"], data, row))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_image_is_there_once_with_its_bytes_and_columns(root: str, tmp_path: Path, kind: str) -> None:
    rows = {row["image_id"]: row for row in versions_planted.published(root)}
    out = f"{root}-out"
    exported_here(root, out, export_stage.Config(kind=kind, shard_images=5, seed=2))
    storage, folder = Storage(out), tmp_path / "copy"
    if not storage.is_local:
        storage.fs.get(storage.path, str(folder), recursive=True)
    else:
        folder = Path(out)
    found = exported(folder, kind)
    assert len(found) == TOTAL and {image_id: data for image_id, data, _ in found} == {
        image_id: row["image"]["bytes"] for image_id, row in rows.items()
    }
    for image_id, _, columns in found:
        assert columns == {name: value for name, value in rows[image_id].items() if name != "image"}
    checked = subprocess.run(
        ["sha256sum", "-c", "--quiet", exporting.SUMS], cwd=folder, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout
    manifest = json.loads((folder / exporting.MANIFEST).read_text())
    assert (manifest["images"], manifest["shards"], manifest["seed"]) == (TOTAL, 5, 2)
    assert manifest["suffixes"] == {"jpg": 8, "png": 8, "webp": 8}
    named = {line.split("  ")[1] for line in (folder / exporting.SUMS).read_text().splitlines()}
    own = {exporting.MANIFEST, exporting.SUMS}
    there = {name for name in versions_planted.files_below(folder) if not name.startswith(exporting.WORK)}
    assert there == named | own
    assert hashlib.sha256((folder / exporting.SUMS).read_bytes()).hexdigest() == manifest["sha256sums"]


def opened(kind: str, out: Path, cache: Path) -> Any:
    """The export as its card says that `datasets` opens it."""
    import datasets

    if kind == "imagefolder":
        return datasets.load_dataset("imagefolder", data_dir=str(out), split="train", cache_dir=str(cache))
    return datasets.load_dataset(str(out), split="train", cache_dir=str(cache))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")  # of the loaders
def test_datasets_opens_it(local_root: str, tmp_path: Path, kind: str) -> None:
    rows = {row["image_id"]: row for row in versions_planted.published(local_root)}
    out = tmp_path / "out"
    exported_here(local_root, str(out), export_stage.Config(kind=kind, shard_images=9))
    found = opened(kind, out, tmp_path / "cache")
    assert len(found) == TOTAL
    for one in found:
        columns = one["json"] if kind == "webdataset" else one
        row = rows[columns["image_id"]]
        image = one["image"] if "image" in one else next(one[s] for s in ("jpg", "png", "webp") if one[s] is not None)
        assert image.size == (row["width"], row["height"])
        assert columns["cluster_id"] == row["cluster_id"] and columns["retrieved_for"] == row["retrieved_for"]


def test_torchvision_opens_the_image_folder(local_root: str, tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    versions_planted.published(local_root)
    exported_here(local_root, str(tmp_path / "out"), export_stage.Config(kind="imagefolder", shard_images=9))
    found = ImageFolder(str(tmp_path / "out/train"))
    assert len(found) == TOTAL and found.classes == ["birds", "curated"]


def test_a_seed_gives_the_same_bytes_and_another_one_another_order(local_root: str, tmp_path: Path) -> None:
    rows = versions_planted.published(local_root)
    orders = {}
    for name, said in {
        "a": {"seed": 1}, "again": {"seed": 1}, "b": {"seed": 2}, "plain": {"shuffle": False},
    }.items():  # fmt: skip
        exported_here(local_root, str(tmp_path / name), export_stage.Config(kind="webdataset", shard_images=10, **said))
        orders[name] = [image_id for image_id, *_ in exported(tmp_path / name, "webdataset")]
    files = [versions_planted.files_below(tmp_path / name) for name in ("a", "again")]
    mine = [{name: data for name, data in one.items() if not name.startswith(".")} for one in files]
    assert mine[0] == mine[1]
    assert orders["a"] != orders["b"] and sorted(orders["a"]) == sorted(orders["b"])
    assert orders["plain"] == [row["image_id"] for row in rows]


def test_what_is_written_is_not_written_again(local_root: str, tmp_path: Path) -> None:
    versions_planted.published(local_root)
    out, config = tmp_path / "out", export_stage.Config(kind="webdataset", shard_images=6)
    assert exported_here(local_root, str(out), config) == {"order": 1, "export": 4}
    whole = versions_planted.files_below(out)
    work = StageDir(
        root=str(out / ".lvd"), stage="export", fingerprint=ask(local_root, str(out), config, None).identity
    )
    lost = work.shards()[2]
    for name in (lost.name(), f"{work.directory}/stage.json"):  # as if it had been killed in the third shard
        (out / ".lvd" / name).unlink()
    for name in ("lvd-000002.tar", exporting.MANIFEST, exporting.SUMS):
        (out / name).unlink()
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert exported_here(local_root, str(out), config) == {"order": 0, "export": 1}
    again = versions_planted.files_below(out)
    assert {n: d for n, d in again.items() if not n.startswith(".")} == {
        n: d for n, d in whole.items() if not n.startswith(".")
    }
    assert {name: (out / name).stat().st_mtime_ns for name in times} == times
    assert exported_here(local_root, str(out), config) == {}
    (out / "lvd-000001.tar").unlink()
    with pytest.raises(InputError, match=r"lvd-000001\.tar is gone"):
        exported_here(local_root, str(out), config)


def test_what_cannot_be_exported_is_refused_in_one_line(local_root: str, tmp_path: Path) -> None:
    versions_planted.published(local_root)
    config = export_stage.Config(kind="parquet")
    exported_here(local_root, str(tmp_path / "out"), config)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    (tmp_path / "file").write_text("a file")
    other = config.model_copy(update={"seed": 1})
    for out, asked, said in (
        ("out", other, r"holds another \(parquet of v1, shuffled with seed 0\)"),
        ("out", config.model_copy(update={"kind": "webdataset"}), "holds another"),
        ("full", config, "has 'notes.txt'"),
        ("file", config, "--out must"),
        ("root/exports", config, "outside of the root"),
        ("", config, "outside of the root"),
    ):
        with pytest.raises(InputError, match=said) as error:
            exported_here(local_root, str(tmp_path / out), asked)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"--version must be one of v1, was 'v7'"):
        version_at(local_root, "v7")
    with pytest.raises(InputError, match="must hold a published version"):
        version_at(str(tmp_path / "none"), None)
    with pytest.raises(InputError, match="--columns must name columns"):
        ask(local_root, str(tmp_path / "new"), asked_config(kind="parquet", columns="key, colour"), None)
    with pytest.raises(InputError, match=r"--to: .*'webdataset', 'imagefolder' or 'parquet'.*was 'zip'"):
        asked_config(kind="zip")
    with pytest.raises(InputError, match="must be of compute"):
        compute_of(("copies.min_similarity=0.5",))
    assert compute_of(("compute.cpu_workers=2",)) == {"cpu_workers": 2}


def test_a_version_without_images_is_exported_as_parquet_only(local_root: str, tmp_path: Path) -> None:
    import pyarrow as pa

    from lvd.infra.committing import commit
    from lvd.infra.writing import write_shard

    target = StageDir(root=local_root, stage="curated", fingerprint="v1")
    schema = pa.schema([("image_id", pa.string()), ("row", pa.int64()), ("role", pa.string())])
    for ref in target.planned(2):
        with write_shard(ref, schema, {}) as shard:
            for number in range(5):
                shard.keep({"image_id": f"{ref.index}-{number}", "row": number, "role": "retrieved"})
    commit(target, 2, config={}, inputs={})
    Storage(local_root).write_json("curated/latest.json", {"version": "v1"})
    with pytest.raises(InputError, match="must be parquet for a version without images"):
        ask(local_root, str(tmp_path / "out"), export_stage.Config(kind="webdataset"), None)
    exported_here(local_root, str(tmp_path / "out"), export_stage.Config(kind="parquet", shard_images=4))
    tables = [pq.read_table(path) for path in sorted((tmp_path / "out/data").iterdir())]
    assert [len(table) for table in tables] == [4, 4, 2]
    names = pa.concat_tables(tables)["image_id"].to_pylist()
    assert sorted(names) == [f"{part}-{number}" for part in range(2) for number in range(5)] != names


def test_shards_are_put_in_order_in_groups_of_bounded_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_stage, "ROWS_PER_RUN", 10)
    cases = {(4, 4, 4): [(0, 2), (2, 3)], (11, 1): [(0, 1), (1, 2)], (0, 0, 10, 1): [(0, 3), (3, 4)], (3,): [(0, 1)]}
    for rows, groups in cases.items():
        refs = [ShardRef(root="", directory="", index=i, count=len(rows), rows=n) for i, n in enumerate(rows)]
        assert runs_of(refs) == groups


def test_the_root_knows_its_exports_and_no_password(local_root: str) -> None:
    dataset = StageDir(root=local_root, stage="curated", fingerprint="v1")
    said = {"kind": "parquet", "identity": "a"}
    record(dataset, "ftp://me:secret@host/folder", said)
    (begun,) = records(local_root)
    assert begun["out"] == "ftp://host/folder" and begun["finished_at"] is None
    record(dataset, "ftp://me:secret@host/folder", said, is_finished=True)
    record(dataset, "s3://bucket/folder", said)
    finished, other = sorted(records(local_root), key=lambda one: one["out"])
    assert finished["begun_at"] == begun["begun_at"] and finished["finished_at"] and not other["finished_at"]
    assert without_user("C:/me@home") == "C:/me@home"


def written(out: Path) -> int:
    """Shards that a running export has done."""
    return len(list(out.glob(f"{exporting.WORK}/export/*/data-*.arrow")))


def test_killed_and_started_again_the_command_gives_the_same_files(local_root: str, tmp_path: Path) -> None:
    versions_planted.published(local_root, shards=(400, 300))
    exported_here(local_root, str(tmp_path / "whole"), export_stage.Config(kind="imagefolder", shard_images=20))
    args = ("export", local_root, "--to", "imagefolder", "--shard-images", "20", "--set", "compute.cpu_workers=1")
    out = ("--out", str(tmp_path / "out"))
    command = [str(LVD), *args, *out]
    with subprocess.Popen(
        command, env=environment(tmp_path / "prefect"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        wait_until(lambda: written(tmp_path / "out") or process.poll() is not None, 300, "a shard is written")
        process.kill()
    before = written(tmp_path / "out")
    assert process.returncode == -signal.SIGKILL and 0 < before < 35
    again = lvd(*args, *out, home=tmp_path / "prefect")
    assert again.returncode == 0, again.stderr[-4000:]
    assert f"wrote {35 - before} shards" in again.stdout
    assert not (tmp_path / "out/.lvd").exists() and not (tmp_path / "out/.tmp").exists()
    found, expected = (versions_planted.files_below(tmp_path / name) for name in ("out", "whole"))
    assert found == {name: data for name, data in expected.items() if not name.startswith(".")}
    finished = {one["out"]: one["finished_at"] is not None for one in records(local_root)}
    assert finished == {str(tmp_path / "out"): True, str(tmp_path / "whole"): False}
