"""Sorted runs: what a range of keys gives, on a folder and on S3; they are datasets like any other shard."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lvd.infra.runs import BATCH_ROWS, SortedRun, cuts, read_range
from lvd.infra.shards import ShardRef, StageDir, read_table
from lvd.infra.writing import write_shard

SCHEMA = pa.schema([("key", pa.int64()), ("value", pa.string())])


def written(root: str, *parts: np.ndarray) -> ShardRef:
    (ref,) = StageDir(root=root, stage="runs", fingerprint="a").planned(1)
    with write_shard(ref, SCHEMA, {}) as shard, SortedRun(ref, shard, "key") as run:
        for keys in parts:
            run.keep(pa.table([pa.array(keys), pa.array([f"v{key}" for key in keys])], schema=SCHEMA))
    return ref


@pytest.fixture
def rows_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every batch that is read."""
    read, found = pa.ipc.read_record_batch, []

    def reading(*arguments: Any) -> pa.RecordBatch:
        batch = read(*arguments)
        found.append(batch.num_rows)
        return batch

    monkeypatch.setattr(pa.ipc, "read_record_batch", reading)
    return found


def keys_of(seed: int, rows: int, num: int) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).integers(0, num, rows))


@pytest.mark.parametrize(("rows", "num"), [(1, 1), (5000, 40), (5000, 4000), (9000, 3), (3000, 10**9)])
def test_a_range_has_all_rows_of_its_keys_and_reads_few_others(
    root: str, rows: int, num: int, rows_read: list[int]
) -> None:
    keys = keys_of(rows, rows, num)
    half = np.searchsorted(keys, keys[len(keys) // 2])
    ref = written(root, keys[:half], keys[half:])
    assert read_table(ref)["key"].to_numpy().tolist() == keys.tolist()
    largest = np.unique(keys, return_counts=True)[1].max()
    for first, stop in [
        (0, num),
        (num // 3, num // 2),
        (int(keys[0]), int(keys[0]) + 1),
        (num, num + 5),
        (-5, 0),
        (7, 7),
    ]:
        rows_read.clear()
        found = read_range(ref, first, stop)
        expected = keys[(keys >= first) & (keys < stop)]
        assert found["key"].to_pylist() == expected.tolist()
        assert found["value"].to_pylist() == [f"v{key}" for key in expected]
        assert sum(rows_read) <= len(expected) + 2 * (BATCH_ROWS + largest)


def test_an_empty_run_has_no_range(local_root: str) -> None:
    assert len(read_range(written(local_root), 0, 10)) == 0


def test_batches_end_where_keys_end() -> None:
    keys = keys_of(1, 20_000, 90)
    begins = cuts(keys)
    assert begins[0] == 0 and all(keys[begin] != keys[begin - 1] for begin in begins[1:].tolist())
    assert np.diff(begins).min() >= BATCH_ROWS
    assert cuts(np.zeros(5 * BATCH_ROWS, dtype=np.int64)).tolist() == [0]


def test_a_narrow_range_reads_little(local_root: str, rows_read: list[int]) -> None:
    keys = keys_of(2, 100_000, 100_000)
    ref = written(local_root, keys)
    path = Path(local_root) / ref.name()
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)  # what is not read may be anything
    path.write_bytes(data)
    assert read_range(ref, 10, 20)["key"].to_pylist() == keys[(keys >= 10) & (keys < 20)].tolist() != []
    assert 0 < sum(rows_read) <= 2 * BATCH_ROWS + 20


def test_a_run_that_failed_has_no_index(local_root: str) -> None:
    (ref,) = StageDir(root=local_root, stage="runs", fingerprint="a").planned(1)
    with (
        pytest.raises(RuntimeError, match="broke"),
        write_shard(ref, SCHEMA, {}) as shard,
        SortedRun(ref, shard, "key"),
    ):
        raise RuntimeError("broke")
    assert not Path(local_root, ref.name("index", "npz")).exists()
