"""Exports from end to end: every image once, opened again as people open them, resumed, refused."""

import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from lvd.flows.export_asked import ask
from lvd.flows.export_place import MANIFEST, SUMS, WORK
from lvd.flows.exporting import runs_of
from lvd.infra.errors import InputError
from lvd.infra.shards import ShardRef, StageDir
from lvd.infra.storage import Storage
from lvd.tasks import export as export_stage
from lvd.tests import versions_planted
from lvd.tests.exports import exported_here, files_of

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
        ["sha256sum", "-c", "--quiet", SUMS], cwd=folder, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout
    manifest = json.loads((folder / MANIFEST).read_text())
    assert (manifest["images"], manifest["shards"], manifest["seed"]) == (TOTAL, 5, 2)
    assert manifest["suffixes"] == {"jpg": 8, "png": 8, "webp": 8}
    named = {line.split("  ")[1] for line in (folder / SUMS).read_text().splitlines()}
    own = {MANIFEST, SUMS}
    there = {name for name in versions_planted.files_below(folder) if not name.startswith(WORK)}
    assert there == named | own
    assert hashlib.sha256((folder / SUMS).read_bytes()).hexdigest() == manifest["sha256sums"]


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


def test_torchvision_opens_the_image_folder_as_its_card_says(
    local_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = versions_planted.picture
    monkeypatch.setattr(versions_planted, "picture", lambda n: gif(picture(n)) if n % 5 == 0 else picture(n))
    versions_planted.published(local_root)
    exported_here(local_root, str(tmp_path / "out"), export_stage.Config(kind="imagefolder", shard_images=9))
    card = (tmp_path / "out/README.md").read_text()
    monkeypatch.chdir(tmp_path / "out")
    said = {}
    exec(card[card.index("from torchvision") : card.index("\n```\n", card.index("from torchvision"))], said)
    assert len(said["images"]) == TOTAL and said["images"].classes == ["birds", "curated"]
    assert sum(path.endswith(".gif") for path, _ in said["images"].samples) == 5


def gif(data: bytes) -> bytes:
    """The picture as a GIF."""
    file = io.BytesIO()
    Image.open(io.BytesIO(data)).save(file, "GIF")
    return file.getvalue()


def test_a_seed_gives_the_same_bytes_and_another_one_another_order(local_root: str, tmp_path: Path) -> None:
    rows = versions_planted.published(local_root)
    orders = {}
    for name, said in {
        "a": {"seed": 1}, "again": {"seed": 1}, "b": {"seed": 2}, "plain": {"shuffle": False},
    }.items():  # fmt: skip
        exported_here(local_root, str(tmp_path / name), export_stage.Config(kind="webdataset", shard_images=10, **said))
        orders[name] = [image_id for image_id, *_ in exported(tmp_path / name, "webdataset")]
    assert files_of(tmp_path / "a") == files_of(tmp_path / "again")
    assert orders["a"] != orders["b"] and sorted(orders["a"]) == sorted(orders["b"])
    assert orders["plain"] == [row["image_id"] for row in rows]


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
