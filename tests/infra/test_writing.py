"""Shards are written whole or not at all, the same rows as the same bytes, in batches that are bounded."""

import numpy as np
import pytest

from lvd.infra import writing
from lvd.infra.shards import read_batches
from lvd.infra.writing import write_shard
from lvd.tasks import schemas
from lvd.tests.infra.test_shards import fill, target_of


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


def test_batches_are_bounded_by_bytes(local_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "BATCH_BYTES", 1000)
    ref = target_of(local_root).planned(1)[0]
    with write_shard(ref, schemas.vectors(3), {}) as shard:
        for row in range(10):
            shard.keep({"row": row, "image_id": "a", "vector": np.zeros(3, dtype=np.float16)}, num_bytes=500)
    assert [batch.num_rows for batch in read_batches(ref)] == [2] * 5
