"""Single batches of a shard, against the whole of it, on a folder and on S3."""

import numpy as np
import pyarrow as pa
import pytest

from lvd.infra import places
from lvd.infra.committing import commit
from lvd.infra.places import Batches, places_of, read_columns
from lvd.infra.shards import StageDir, read_batches, read_table
from lvd.infra.storage import Storage
from lvd.infra.writing import write_shard

WIDE = pa.schema([(f"column_{number}", pa.string()) for number in range(300)])  # with a head of many kB
IMAGES = pa.schema([("id", pa.string()), ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))])


def shard_of(root: str, schema: pa.Schema, rows: list[dict]):
    target = StageDir(root=root, stage="rows", fingerprint=f"{len(schema)}-{len(rows)}")
    with write_shard(target.planned(1)[0], schema, {}) as shard:
        for row in rows:
            shard.keep(row, 200_000)  # so that batches are cut by their bytes as well
    commit(target, 1, config={}, inputs={})
    return target.shards()[0]


def test_every_row_is_read_from_its_own_batch(root: str) -> None:
    rng = np.random.default_rng(0)
    rows = [{"id": str(n), "image": {"bytes": rng.bytes(int(rng.integers(1, 3000))), "path": None}} for n in range(700)]
    rows[5]["image"]["bytes"] = None
    ref, batches = shard_of(root, IMAGES, rows), Batches()
    assert [place.rows for place in places_of(ref)] == [batch.num_rows for batch in read_batches(ref)]
    for number in (0, 5, 167, 168, 169, 400, 699):
        batch, place = batches.holding(ref, number)
        assert batch.slice(place, 1).to_pylist() == [rows[number]]
        assert batch.num_rows < len(rows)
    for beyond in (-1, 700):
        with pytest.raises(IndexError, match=r"row must be in \[0, 700\)"):
            batches.holding(ref, beyond)


def test_a_head_may_be_long_and_a_shard_empty(local_root: str) -> None:
    rows = [{name: f"{name} {n}" for name in WIDE.names} for n in range(3)]
    ref = shard_of(local_root, WIDE, rows)
    batch, place = Batches().holding(ref, 2)
    assert batch.slice(place, 1).to_pylist() == rows[2:]
    assert places_of(shard_of(local_root, WIDE, [])) == []


def test_a_shard_with_fewer_rows_than_it_should_have_is_no_endless_search(local_root: str) -> None:
    ref = shard_of(local_root, IMAGES, [{"id": "x", "image": None}])
    with pytest.raises(IndexError, match="must hold 2 rows, its batches end after 1"):
        places_of(ref.model_copy(update={"rows": 2}))


MIXED = pa.schema(
    [
        *(("id", pa.string()), ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
        *(("lists", pa.list_(pa.string())), ("vector", pa.list_(pa.float16(), 5)), ("width", pa.int32())),
        *(("is_kept", pa.bool_()), ("raw", pa.binary()), ("last", pa.string())),
    ]
)


@pytest.mark.parametrize("names", [["id"], ["last", "lists"], ["width", "is_kept", "id"], ["vector"], MIXED.names])
@pytest.mark.parametrize("near_bytes", [0, 64 << 10])
def test_columns_are_read_without_the_others(
    root: str, names: list[str], near_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "NEAR_BYTES", near_bytes)
    rng = np.random.default_rng(1)
    rows = [
        {
            "id": f"é{n}" if n % 7 else None,
            "image": {"bytes": rng.bytes(1 + n * 5), "path": None if n % 2 else "p"},
            "lists": None if n % 5 == 0 else ["a", None][: n % 3],
            "vector": rng.standard_normal(5).astype(np.float16) if n % 3 else None,
            "width": n if n % 4 else None,
            "is_kept": bool(n % 2),
            "raw": b"" if n % 3 else rng.bytes(2000),
            "last": "x" * (n % 11),
        }
        for n in range(300)
    ]
    ref = shard_of(root, MIXED, rows)
    found = read_columns(ref, names)
    found.validate(full=True)
    assert found.equals(read_table(ref, names))
    assert read_columns(shard_of(root, MIXED, []), names).num_rows == 0


def test_a_bucket_sends_no_pictures_for_their_names(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"id": str(n), "image": {"bytes": b"x" * 100_000, "path": None}} for n in range(40)]
    ref, sent, read_span = shard_of(s3_root, IMAGES, rows), [], Storage.read_span

    def counted(storage: Storage, name: str, start: int, length: int) -> pa.Buffer:
        sent.append(length)
        return read_span(storage, name, start, length)

    monkeypatch.setattr(Storage, "read_span", counted)
    assert read_columns(ref, ["id"])["id"].to_pylist() == [row["id"] for row in rows]
    assert sum(sent) < 400_000 < sum(len(row["image"]["bytes"]) for row in rows)
