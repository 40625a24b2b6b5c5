"""Shards: what was written is read back, whatever its place, and no more of it is held than was asked for."""

import numpy as np
import pyarrow as pa
import pytest

from lvd.infra import shards
from lvd.infra.committing import commit
from lvd.infra.errors import InputError
from lvd.infra.shards import ShardRef, StageDir, gather_rows, pool_rows, read_column, read_table
from lvd.infra.storage import Storage
from lvd.infra.writing import write_shard
from lvd.tasks import schemas

TARGET = ("embed", "abc")


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


def test_a_shard_of_another_schema_version_is_refused(local_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = target_of(local_root)
    fill(target, [1])
    monkeypatch.setattr(shards, "SCHEMA_VERSION", "2")
    with pytest.raises(InputError, match="schema version must be 2, was 1"):
        read_table(target.planned(1)[0])
