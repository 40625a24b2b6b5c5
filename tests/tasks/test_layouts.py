"""The layouts of an export: what their files hold, and that nothing in them is of a day or a machine."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lvd.infra.storage import Storage
from lvd.tasks import layouts, schemas
from lvd.tests import versions_planted

COLUMNS = [name for name in schemas.CURATED.names if name != "image"]
ROWS = [versions_planted.row(number) for number in range(10)]


def write(folder: Path, kind: layouts.Kind, columns: list[str] = COLUMNS, rows: list[dict] = ROWS) -> list[dict]:
    schema = pa.schema([schemas.CURATED.field(name) for name in COLUMNS])
    table = pa.Table.from_pylist([{name: row[name] for name in COLUMNS} for row in rows], schema=schema)
    shard = layouts.Shard(storage=Storage(str(folder)), index=1234, count=2000, rows=table)
    return list(shard.write(kind, columns, iter([row["image"]["bytes"] for row in rows])))


@pytest.mark.parametrize("kind", ["webdataset", "imagefolder", "parquet"])
def test_what_is_said_of_the_files_is_so_and_they_are_the_same_again(tmp_path: Path, kind: layouts.Kind) -> None:
    import hashlib

    written = write(tmp_path / "a", kind)
    assert write(tmp_path / "b", kind) == written
    assert sum(one["rows"] for one in written) == 10
    for one in written:
        data = (tmp_path / "a" / one["name"]).read_bytes()
        assert (one["bytes"], one["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def test_a_tar_has_an_image_and_its_columns_under_one_key(tmp_path: Path) -> None:
    write(tmp_path, "webdataset", ["image_id", "key", "similarity"])
    with tarfile.open(tmp_path / "lvd-001234.tar") as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    assert {(m.mtime, m.uid, m.gid, m.mode, m.uname) for m, _ in members} == {(0, 0, 0, 0o644, "")}
    for row, (image, data), (about, text) in zip(ROWS, members[::2], members[1::2], strict=True):
        suffix = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp"}[data[:2]]
        assert (image.name, about.name) == (f"{row['image_id']}.{suffix}", f"{row['image_id']}.json")
        assert data == row["image"]["bytes"]
        said = json.loads(text)
        assert list(said) == ["image_id", "key", "similarity"] and said["key"] == row["key"]


def test_an_image_folder_has_a_folder_for_each_collection_and_each_its_table(tmp_path: Path) -> None:
    written = write(tmp_path, "imagefolder", ["image_id", "label"])
    folders = {one["name"].rsplit("/", 1)[0] for one in written}
    assert folders == {"train/birds/001/234", "train/curated/001/234"}
    for folder in folders:
        table = pq.read_table(tmp_path / folder / "metadata.parquet")
        assert table.column_names == ["file_name", "image_id", "label"]
        assert table.schema.field("label").type == pa.string()  # though it is null throughout
        files = {path.name for path in (tmp_path / folder).iterdir()} - {"metadata.parquet"}
        assert set(table["file_name"].to_pylist()) == files
        for row in table.to_pylist():
            data = (tmp_path / folder / row["file_name"]).read_bytes()
            assert data == next(one["image"]["bytes"] for one in ROWS if one["image_id"] == row["image_id"])


def test_parquet_has_row_groups_of_bounded_bytes_and_no_statistics_of_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layouts, "ROW_GROUP_BYTES", 2000)
    (one,) = write(tmp_path, "parquet")
    assert one["name"] == "data/train-01234-of-02000.parquet"
    file = pq.ParquetFile(tmp_path / one["name"])
    assert file.num_row_groups > 2
    assert file.read().to_pylist()[3]["image"]["bytes"] == ROWS[3]["image"]["bytes"]
    group = file.metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert not columns["image.bytes"].is_stats_set and columns["image.bytes"].compression == "UNCOMPRESSED"
    assert columns["key"].is_stats_set and columns["retrieved_for.list.element"].compression == "ZSTD"


def test_rows_without_images_are_parquet_too(tmp_path: Path) -> None:
    table = pa.table({"image_id": ["a", "b"], "row": [1, 2]})
    shard = layouts.Shard(storage=Storage(str(tmp_path)), index=0, count=1, rows=table)
    (one,) = shard.write("parquet", ["image_id", "row"], None)
    assert pq.read_table(tmp_path / one["name"]).to_pylist() == table.to_pylist()


def test_an_unknown_format_has_a_name_too() -> None:
    assert [layouts.suffix(versions_planted.picture(n)) for n in range(3)] == ["jpg", "png", "webp"]
    assert layouts.suffix(io.BytesIO(b"who knows").getvalue()) == "img"
