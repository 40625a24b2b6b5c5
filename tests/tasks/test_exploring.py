"""The table for explorers: which rows, whose vectors, pictures of a bounded size."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lvd.infra.committing import commit
from lvd.infra.shards import StageDir
from lvd.infra.writing import write_shard
from lvd.tasks import schemas
from lvd.tasks.exploring import EDGE_PX, published, sampled, thumbnail, vectors_of, write

DIM = 4


def picture(edge_px: int, color: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (edge_px, edge_px // 2), (color, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def curated(local_root: str) -> StageDir:
    """Ten published images in two shards; number 7 is no picture."""
    target = StageDir(root=local_root, stage="curated", fingerprint="v1")
    for ref in target.planned(2):
        with write_shard(ref, schemas.CURATED, {}) as shard:
            for number in range(5 * ref.index, 5 * ref.index + 5):
                data = b"none" if number == 7 else picture(512, number)
                known = {"image_id": f"id{number}", "image": {"bytes": data, "path": None}, "key": f"k{number}"}
                known |= {"retrieved_for": ["birds", "planes"] if number % 2 else [], "role": "retrieved"}
                shard.keep({**dict.fromkeys(schemas.CURATED.names), **known})
    commit(target, 2, config={}, inputs={})
    return target


@pytest.fixture
def embedded(local_root: str) -> StageDir:
    """Vectors of all but number 3, in another order, and one that was not published."""
    target = StageDir(root=local_root, stage="embed", fingerprint="e")
    (ref,) = target.planned(1)
    with write_shard(ref, schemas.vectors(DIM), {}) as shard:
        for number in (9, 8, 11, 7, 6, 5, 4, 2, 1, 0):
            vector = np.eye(DIM, dtype=np.float16)[number % DIM]
            shard.keep({"row": number, "image_id": f"id{number}", "vector": vector})
    commit(target, 1, config={}, inputs={})
    return target


def test_pictures_and_vectors_meet_by_image(curated: StageDir, embedded: StageDir, tmp_path: Path) -> None:
    shards, file = curated.shards(), tmp_path / "a.parquet"
    vectors = vectors_of(embedded.shards(), {f"id{number}" for number in range(10)})
    assert set(vectors) == {f"id{number}" for number in range(10) if number != 3}
    assert write(published(shards, np.arange(10)), vectors, file) == 8  # one has no vector, one no picture
    rows = pq.read_table(file).to_pylist()
    assert [row["image_id"] for row in rows] == [f"id{number}" for number in (0, 1, 2, 4, 5, 6, 8, 9)]
    for row in rows:
        number = int(row["image_id"][2:])
        assert row["vector"] == np.eye(DIM)[number % DIM].tolist() and row["key"] == f"k{number}"
        assert row["retrieved_for"] == ("birds, planes" if number % 2 else "")
        with Image.open(io.BytesIO(row["image"]["bytes"])) as shown:
            assert shown.size == (EDGE_PX, EDGE_PX // 2) and shown.format == "JPEG"


def test_the_file_has_the_features_of_an_image_column(curated: StageDir, embedded: StageDir, tmp_path: Path) -> None:
    vectors = vectors_of(embedded.shards(), {"id0"})
    write(published(curated.shards(), np.array([0])), vectors, tmp_path / "a.parquet")
    found = pq.read_schema(tmp_path / "a.parquet")
    assert found.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    assert found.field("vector").type.value_type == pa.float32()


@pytest.mark.parametrize("rows", [[], [0], [4, 5], [9], [0, 3, 6, 9], range(10)])
def test_rows_are_found_across_shards(curated: StageDir, rows: list[int]) -> None:
    found = published(curated.shards(), np.array([*rows], dtype=np.int64), ["image_id"])
    assert [row["image_id"] for row in found] == [f"id{number}" for number in rows]


def test_a_sample_is_ascending_seeded_and_never_larger_than_what_is_there() -> None:
    rng = np.random.default_rng
    assert sampled(10, None, rng(0)).tolist() == sampled(10, 10, rng(0)).tolist() == list(range(10))
    some = sampled(1000, 100, rng(1))
    assert len(set(some.tolist())) == 100 and np.all(np.diff(some) > 0)
    assert some.tolist() == sampled(1000, 100, rng(1)).tolist() != sampled(1000, 100, rng(2)).tolist()


def test_a_thumbnail_is_never_enlarged_and_bad_bytes_give_none() -> None:
    with Image.open(io.BytesIO(thumbnail(picture(40)))) as shown:
        assert shown.size == (40, 20)
    assert thumbnail(b"") == thumbnail(b"<svg/>") == thumbnail(picture(512)[:100]) == b""


def test_a_file_is_there_whole_or_as_it_was(curated: StageDir, embedded: StageDir, tmp_path: Path) -> None:
    def breaking() -> Iterator[dict]:
        yield from published(curated.shards(), np.array([0]))
        raise OSError("gone")

    (tmp_path / "a.parquet").write_text("before")
    with pytest.raises(OSError, match="gone"):
        write(breaking(), vectors_of(embedded.shards(), {"id0"}), tmp_path / "a.parquet")
    assert {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()} == {"a.parquet": "before"}
