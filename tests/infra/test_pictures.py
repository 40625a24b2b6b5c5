"""A shard read without its pictures, and the pictures by where they lie: the same rows and bytes as read whole."""

import numpy as np
import pyarrow as pa
import pytest

from lvd.infra import pictures as pictures_
from lvd.infra.committing import commit
from lvd.infra.errors import ShardError
from lvd.infra.metering import metered
from lvd.infra.pictures import OFFSET, SIZE, pictures, spans, without_pictures
from lvd.infra.shards import ShardRef, StageDir, read_batches
from lvd.infra.storage import Storage
from lvd.infra.writing import write_shard
from lvd.tasks import schemas
from lvd.tests import versions_planted


def small(refs: list[ShardRef]) -> tuple[pa.Table, np.ndarray]:
    """The rows of all shards without pictures, as copies, and the shard of each."""
    tables, shard = [], []
    for number, ref in enumerate(refs):
        for table in without_pictures(ref):
            tables.append(table.take(pa.array(np.arange(len(table)))))
            shard += [number] * len(table)
    return pa.concat_tables(tables), np.array(shard)


def test_rows_and_places_are_those_of_the_whole_shards(root: str) -> None:
    rows = versions_planted.published(root)
    refs = StageDir(root=root, stage="curated", fingerprint="v1").shards()
    table, shard = small(refs)
    names = [name for name in schemas.CURATED.names if name != "image"]
    whole = pa.Table.from_batches([batch for ref in refs for batch in read_batches(ref, names)])
    assert table.select(names).to_pylist() == whole.to_pylist()
    order = np.random.default_rng(0).permutation(len(rows))
    places = [shard, table[OFFSET].to_numpy(), table[SIZE].to_numpy()]
    for wanted in (np.arange(len(rows)), order, order[:1], order[:0]):
        found = list(pictures(refs, *(values[wanted] for values in places)))
        assert found == [rows[number]["image"]["bytes"] for number in wanted]


def test_the_bytes_of_the_pictures_are_not_read(root: str) -> None:
    target = StageDir(root=root, stage="curated", fingerprint="v1")
    (ref,) = target.planned(1)
    data = np.random.default_rng(0).bytes(3 << 20)
    with write_shard(ref, schemas.CURATED, {}) as shard:
        for number in range(6):
            one = {**versions_planted.row(number), "image": {"bytes": data, "path": ""}}
            shard.keep(one)
            shard.kept.flush()
    commit(target, 1, config={}, inputs={})
    with metered() as cost:
        table, shard = small(target.shards())
    assert len(table) == 6 and cost["read_bytes"] < 20_000
    (first, *_) = pictures(target.shards(), shard, table[OFFSET].to_numpy(), table[SIZE].to_numpy())
    assert first == data


def test_a_shard_that_ends_early_is_an_error(local_root: str) -> None:
    versions_planted.published(local_root, shards=(9,))
    (ref,) = StageDir(root=local_root, stage="curated", fingerprint="v1").shards()
    storage = Storage(local_root)
    data = storage.read_bytes(ref.name())
    for length in (len(data) // 2, len(data) - 200):
        storage.write_bytes(ref.name(), data[:length])
        with pytest.raises((ShardError, OSError, pa.ArrowInvalid)):
            list(without_pictures(ref))


def test_neighbours_in_a_file_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures_, "SPAN_BYTES", 30)
    shard = np.array([0, 0, 0, 0, 1, 1, 1])
    offset = np.array([100, 110, 120, 130, 140, 150, 170])  # the fifth is in another file, the last after a gap
    size = np.array([10, 10, 10, 10, 10, 10, 100])  # the fourth is one too many
    assert spans(shard, offset, size).tolist() == [0, 3, 4, 6]
    assert spans(shard[::-1], offset[::-1], size[::-1]).tolist() == list(range(7))
