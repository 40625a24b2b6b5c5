"""Shards: atomic, deterministic, readable by `datasets`, resumable."""

import json
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from lvd.infra import shards
from lvd.infra.errors import InputError
from lvd.infra.shards import (
    ShardRef,
    StageDir,
    commit,
    commit_lent,
    gather_rows,
    pool_rows,
    read_column,
    read_table,
    unwritten,
    write_shard,
)
from lvd.infra.storage import Storage
from lvd.tasks import schemas

TARGET = ("embed", "abc")
LENT = (3, 1, 2)  # rows of the shards of a directory that has none of its own


def target_of(root: str) -> StageDir:
    return StageDir(root=root, stage=TARGET[0], fingerprint=TARGET[1])


def fill(target: StageDir, rows_per_shard: list[int]) -> None:
    number = 0
    for ref, rows in zip(target.planned(len(rows_per_shard)), rows_per_shard, strict=True):
        with write_shard(ref, schemas.vectors(3), {"model": "m"}) as shard:
            for _ in range(rows):
                vector = np.full(3, number, dtype=np.float16)
                shard.keep({"row": number, "image_id": f"{number:032x}", "vector": vector})
                number += 1
            shard.reject(f"key-{ref.index}", "http_404", error="gone", data=b"<html>")


def test_a_committed_stage_opens_as_a_hugging_face_dataset(local_root: str) -> None:
    from datasets import load_from_disk

    target = target_of(local_root)
    fill(target, [3, 0, 2])
    account = commit(target, 3, config={"model": "m"}, inputs={})
    assert (account["rows_in"], account["rows"], account["reasons"]) == (8, 5, {"http_404": 3})
    dataset = load_from_disk(f"{local_root}/{target.directory}")
    assert dataset["row"][:] == [0, 1, 2, 3, 4]
    assert dataset[4]["vector"] == [4.0, 4.0, 4.0]


def test_rows_and_rejects_are_read_back(root: str) -> None:
    target = target_of(root)
    fill(target, [3, 2])
    commit(target, 2, config={}, inputs={})
    refs = target.shards(base=100)
    assert [(ref.first_row, ref.rows) for ref in refs] == [(0, 3), (3, 2)]
    assert pool_rows(refs).tolist() == [100, 101, 102, 103, 104]
    assert read_column(refs, "row").to_pylist() == [0, 1, 2, 3, 4]
    assert gather_rows(refs, np.array([4, 0, 3, 0]), ["row"])["row"].to_pylist() == [4, 0, 3, 0]
    assert read_table(refs[1], kind="rejects").to_pylist()[0]["bytes"] == b"<html>"


def test_a_table_is_read_from_one_opening(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target, opened = target_of(root), []
    fill(target, [3, 0])
    plain = Storage.open
    monkeypatch.setattr(Storage, "open", lambda storage, name: (opened.append(name), plain(storage, name))[1])
    rows, none = (read_table(ref, ["image_id", "row"]) for ref in target.planned(2))
    assert rows.column_names == none.column_names == ["image_id", "row"] and rows.schema == none.schema
    assert (len(rows), len(none), opened.count(target.planned(2)[0].name())) == (3, 0, 1)


def test_small_columns_do_not_hold_large_ones_in_memory(root: str) -> None:
    """Streamed from a bucket, a batch lies in one piece of memory: a column would keep the bytes of all images."""
    ref = ShardRef(root=root, directory="download/abc", index=0, count=1)
    with write_shard(ref, schemas.CURATED, {}) as shard:
        for row in range(4):
            shard.keep({"image_id": f"{row:032x}", "image": {"bytes": bytes(1 << 20), "path": ""}})
    table = read_table(ref, ["image_id"])
    assert table["image_id"].to_pylist() == [f"{row:032x}" for row in range(4)]
    if root.startswith("s3://"):
        assert (
            max(held_bytes(buffer) for chunk in table["image_id"].chunks for buffer in chunk.buffers() if buffer) < 1e5
        )


def held_bytes(buffer: pa.Buffer) -> int:
    """The bytes that stay in memory as long as the buffer."""
    while buffer.parent is not None:
        buffer = buffer.parent
    return buffer.size


def test_a_shard_that_fails_is_not_there(root: str) -> None:
    target = target_of(root)
    ref = target.planned(1)[0]
    with pytest.raises(RuntimeError), write_shard(ref, schemas.vectors(3), {}) as shard:
        shard.keep({"row": 0, "image_id": "a", "vector": np.zeros(3, dtype=np.float16)})
        raise RuntimeError("the machine died")
    assert target.missing(1) == [ref]
    assert not target.is_complete()


def test_the_same_rows_give_the_same_bytes(tmp_path) -> None:
    roots = [str(tmp_path / name) for name in "ab"]
    for root in roots:
        fill(target_of(root), [300])
    first, second = ((tmp_path / name / "embed/abc/data-00000-of-00001.arrow").read_bytes() for name in "ab")
    assert first == second


def test_a_shard_of_another_schema_version_is_refused(local_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = target_of(local_root)
    fill(target, [1])
    monkeypatch.setattr(shards, "SCHEMA_VERSION", "2")
    with pytest.raises(InputError, match="schema version must be 2, was 1"):
        read_table(target.planned(1)[0])


def test_batches_are_bounded_by_bytes(local_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "BATCH_BYTES", 1000)
    ref = target_of(local_root).planned(1)[0]
    with write_shard(ref, schemas.vectors(3), {}) as shard:
        for row in range(10):
            shard.keep({"row": row, "image_id": "a", "vector": np.zeros(3, dtype=np.float16)}, num_bytes=500)
    assert [batch.num_rows for batch in shards.read_batches(ref)] == [2] * 5


def lent(root: str, version: str, order: tuple[int, ...] = (0, 1, 2)) -> StageDir:
    """A directory that consists of shards in others, in that order; the rows of the shard n begin with 10 × n."""
    refs = [ShardRef(root=root, directory=f"published/{number:032x}", index=0, count=1) for number in order]
    for number, ref in zip(order, refs, strict=True):
        if ref in unwritten(refs):
            with write_shard(ref, schemas.vectors(3), {"model": "m"}) as shard:
                for row in range(LENT[number]):
                    vector = np.full(3, row, dtype=np.float16)
                    shard.keep({"row": 10 * number + row, "image_id": "a", "vector": vector})
    target = StageDir(root=root, stage="curated", fingerprint=version)
    account = commit_lent(target, refs, config={}, inputs={})
    assert account["rows"] == sum(LENT[number] for number in order)
    return target


def test_a_directory_can_consist_of_the_shards_of_others(root: str) -> None:
    first, second = lent(root, "v1"), lent(root, "v2", (2, 0))
    assert read_column(first.shards(), "row").to_pylist() == [0, 1, 2, 10, 20, 21]
    assert [(ref.first_row, ref.rows, ref.base) for ref in first.shards(base=7)] == [(0, 3, 7), (3, 1, 7), (4, 2, 7)]
    assert read_column(second.shards(), "row").to_pylist() == [20, 21, 0, 1, 2]
    assert first.storage.names("published") == [f"{number:032x}" for number in range(3)]
    assert not any(name.endswith(".arrow") for name in first.storage.names("curated/v1"))


def test_it_opens_as_a_dataset_wherever_its_root_is_moved(tmp_path: Path) -> None:
    from datasets import load_from_disk

    lent(str(tmp_path / "root"), "v1", (1, 0))
    (tmp_path / "root").rename(tmp_path / "elsewhere")
    dataset = load_from_disk(str(tmp_path / "elsewhere/curated/v1"))
    assert dataset["row"][:] == [10, 0, 1, 2]


@pytest.mark.parametrize("streaming", [False, True])
def test_its_list_of_files_opens_as_a_dataset(root: str, streaming: bool, tmp_path: Path) -> None:
    """As the dataset card says it."""
    from datasets import load_dataset

    target = lent(root, "v1", (1, 0))
    version = target.storage.uri(target.directory)
    with fsspec.open(f"{version}/data_files.json") as file:
        names = json.load(file)
    files = [f"{version.rsplit('/', 2)[0]}/{name}" for name in names]
    options = {"data_files": files, "split": "train", "streaming": streaming, "cache_dir": str(tmp_path / "cache")}
    assert [row["row"] for row in load_dataset("arrow", **options)] == [10, 0, 1, 2]
