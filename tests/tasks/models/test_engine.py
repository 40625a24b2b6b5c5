"""Vectors of shards: the same whatever else is computed with them, and taken over instead of computed twice."""

from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from lvd.infra.shards import ShardRef, StageDir, commit, read_table
from lvd.tasks import copies, embed, models, schemas
from lvd.tasks.models import engine
from lvd.tests import copying
from lvd.tests.drawing import CLASSES, draw
from lvd.tests.tasks import planted

SPEC = models.ModelSpec(model="builtin:dct")
BATCH = 4
LAYOUT = ((6, 0, 5), (9,))
NUM = 20
BROKEN = 3  # this image cannot be decoded
RED, BLUE = 8, 13  # these are all red and all blue


class Watched:
    """The built-in model with a record of its batches; red images get NaN, blue ones zeros, as a defect would."""

    def __init__(self, model: models.ImageModel) -> None:
        self._model, self.dim, self.min_short_edge_px = model, model.dim, model.min_short_edge_px
        self.batches: list[np.ndarray] = []

    def preprocess(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image.resize((64, 64)))

    def embed(self, batch: np.ndarray) -> np.ndarray:
        self.batches.append(batch)
        vectors = self._model.embed(batch)
        vectors[(batch == (255, 0, 0)).all(axis=(1, 2, 3))] = np.nan
        vectors[(batch == (0, 0, 255)).all(axis=(1, 2, 3))] = 0
        return vectors

    @property
    def computed(self) -> int:
        """Images that were computed: all rows but the padding."""
        return sum(int(batch.any(axis=(1, 2, 3)).sum()) for batch in self.batches)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    model = Watched(models.load(SPEC, device="cpu"))
    monkeypatch.setattr(engine.models, "load", lambda spec, device: model)
    return model


@pytest.fixture
def images(local_root: str) -> list[ShardRef]:
    names = list(CLASSES)
    data = [copying.png(draw(names[n % 12], np.random.default_rng(n), (48, 40)))[1] for n in range(NUM)]
    data[BROKEN] = data[BROKEN][:200]
    data[RED], data[BLUE] = (copying.png(Image.new("RGB", (64, 64), name))[1] for name in ("red", "blue"))
    return planted.images(local_root, [planted.image(d) for d in data], LAYOUT)


def fates_of(root: str, alive: Sequence[int], name: str) -> list[ShardRef]:
    rows = [{"state": "kept" if n in alive else ("dropped", "failed")[n % 2]} for n in range(NUM)]
    return planted.stage(root, name, schemas.FATES, rows, LAYOUT)


def described(
    images: list[ShardRef], name: str, alive: Sequence[int] | None = None, donors: Sequence[StageDir] = ()
) -> StageDir:
    """The vectors of the first partition, a complete stage."""
    root = images[0].root
    fates = [None] * 3 if alive is None else fates_of(root, alive, f"fates-{name}")
    target = StageDir(root=root, stage="descriptors", fingerprint=name)
    for image, fate, ref in zip(images[:3], fates, target.planned(3), strict=False):
        done = engine.vectors_of_shard(image, fate, ref, SPEC, batch_size=BATCH, device="cpu", donors=list(donors))
        assert done.rows == len(read_table(ref))
    commit(target, 3, config={}, inputs={})
    return target


def vectors_in(target: StageDir) -> dict[int, bytes]:
    """Row → the vector's bytes."""
    tables = [read_table(ref) for ref in target.shards()]
    rows = [row for table in tables for row in table["row"].to_pylist()]
    assert rows == sorted(set(rows))
    return dict(zip(rows, (v.tobytes() for t in tables for v in engine.vector_column(t)), strict=True))


def files_in(target: StageDir, kind: str) -> list[bytes]:
    return [target.storage.read_bytes(ref.name(kind)) for ref in target.planned(3)]


def notes_of(target: StageDir) -> list[int]:
    return [notes["taken_over"] for notes in target.account()["shard_notes"]]


def test_every_living_image_has_its_vector_and_every_bad_one_its_reject(images, watched) -> None:
    whole = described(images, "a")
    assert list(vectors_in(whole)) == [0, 1, 2, 4, 5, 6, 7, 9, 10]
    rejects = [row for ref in whole.planned(3) for row in read_table(ref, kind="rejects").to_pylist()]
    assert [(row["row"], row["key"], row["state"], row["reason"]) for row in rejects] == [
        (BROKEN, "key-3", "failed", "truncated"),
        (RED, "key-8", "failed", "not_finite"),
    ]
    assert all(row["error"] and row["image_id"] for row in rejects)
    ids = [row["image_id"] for ref in images[:3] for row in read_table(ref, ["image_id"]).to_pylist()]
    kept = [row["image_id"] for ref in whole.shards() for row in read_table(ref, ["image_id"]).to_pylist()]
    assert kept == [ids[row] for row in vectors_in(whole)]
    for vector in vectors_in(whole).values():
        assert np.linalg.norm(np.frombuffer(vector, dtype=np.float16).astype(float)) == pytest.approx(1, abs=1e-3)


def test_rows_count_from_the_start_of_their_partition_and_a_zero_vector_is_a_reject(images, watched) -> None:
    target = StageDir(root=images[0].root, stage="embed", fingerprint="b").planned(1)[0]
    done = embed.embed_shard.fn(images[3], None, target, embed.Config(model="builtin:dct"), "cpu", [])
    assert read_table(done)["row"].to_pylist() == [0, 1, 3, 4, 5, 6, 7, 8]
    rejects = read_table(done, kind="rejects").to_pylist()
    assert [(row["row"], row["key"], row["reason"]) for row in rejects] == [(2, "key-13", "not_finite")]


def test_a_vector_depends_on_nothing_else_that_is_computed(images, watched) -> None:
    whole = vectors_in(described(images, "whole"))
    for number, alive in enumerate([[0, 9], [1, 2, 4, 5, 6], [0, 3, 8, 10], [2, 12, 13], []]):
        part = vectors_in(described(images, f"part{number}", alive))
        assert part == {row: whole[row] for row in alive if row in whole}
    assert {batch.shape for batch in watched.batches} == {(BATCH, 64, 64, 3)}  # padded, every one


def test_the_built_in_model_itself_gives_the_same_for_any_batch(images) -> None:
    target = StageDir(root=images[0].root, stage="descriptors", fingerprint="any")
    config = copies.Config(model="builtin:dct")
    found = []
    for batch_size, ref in zip((1, 4, 32), target.planned(3), strict=True):
        copies.describe_shard.fn(images[0], None, ref, config.model_copy(update={"batch_size": batch_size}), "cpu", [])
        found.append(read_table(ref))
    assert found[0] == found[1] == found[2] and len(found[0]) == 5


def test_what_was_computed_before_is_taken_over(images, watched) -> None:
    first, second = described(images, "a", [0, 2, 3, 6, 10]), described(images, "b", [1, 2, 8])
    assert (notes_of(first), notes_of(second)) == ([0, 0, 0], [0, 0, 0])
    alive = [0, 1, 4, 6, 7, 8]
    watched.batches.clear()
    third = described(images, "c", alive, donors=[first, second])
    assert watched.computed == 3  # 4, 7, and 8 again, which had no vector
    assert notes_of(third) == [2, 0, 1]
    again = described(images, "d", alive)
    assert watched.computed == 3 + 6
    for kind in ("data", "rejects"):
        assert files_in(third, kind) == files_in(again, kind)  # not a byte tells where a vector came from


def test_nothing_is_computed_when_everything_is_known(images, watched, monkeypatch) -> None:
    donor = described(images, "a", [0, 1, 2, 5, 6, 7, 9, 10])
    watched.batches.clear()

    def refused(*_args, **_options) -> None:
        raise AssertionError("an image was decoded whose vector is known")

    monkeypatch.setattr(engine, "decode_rgb", refused)
    assert vectors_in(described(images, "b", [0, 5, 9], donors=[donor])).keys() == {0, 5, 9}
    assert watched.batches == []


@pytest.mark.parametrize("num_known", [0, 69, 70])
def test_many_rows_come_out_in_order_and_few_are_held(local_root, watched, monkeypatch, num_known: int) -> None:
    data = copying.png(Image.new("RGB", (8, 8), "green"))[1]
    image = planted.images(local_root, [planted.image(data)] * 70, ((70,),), name="many")[0]
    known = {n: np.full(watched.dim, 1, dtype=np.float16) for n in range(num_known)}
    monkeypatch.setattr(engine, "_known", lambda donors, index: known)
    held = []
    flush = engine._flush
    monkeypatch.setattr(engine, "_flush", lambda pending, *rest: (held.append(len(pending)), flush(pending, *rest)))
    ref = StageDir(root=local_root, stage="descriptors", fingerprint="many").planned(1)[0]
    engine.vectors_of_shard(image, None, ref, SPEC, batch_size=BATCH, device="cpu", donors=[])
    assert read_table(ref)["row"].to_pylist() == list(range(70))
    assert sum(held) == 70 and max(held) <= 16 * BATCH
    assert len(watched.batches) == -(-(70 - num_known) // BATCH)


def test_columns_and_blocks_of_vectors(local_root: str) -> None:
    values = planted.random_units(np.random.default_rng(0), 14, 5)
    refs = planted.vectors(local_root, "embed", values, planted.TWO_PARTITIONS, left_out=[0, 1, 2, 8])
    kept = np.delete(values, [0, 1, 2, 8], axis=0)
    blocks = list(engine.vector_blocks(refs))
    assert [first for first, _ in blocks] == [0, 4, 8]  # shards without a row give no block
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), kept)
    assert engine.vector_column(read_table(refs[0])).shape == (0, 5)
    table = read_table(refs[2])
    np.testing.assert_array_equal(engine.vector_column(table.slice(1, 2)), kept[1:3])
    np.testing.assert_array_equal(engine.vector_column(table.take([3, 0])), kept[[3, 0]])


def test_spec_of_leaves_out_what_is_the_stage_s_own() -> None:
    config = copies.Config(model="x", input_px=64, neighbors=3, batch_size=7)
    assert engine.spec_of(config) == models.ModelSpec(model="x", input_px=64)
