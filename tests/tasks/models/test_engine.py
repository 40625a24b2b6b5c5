"""Vectors of shards: the same whatever else is computed with them, and taken over instead of computed twice."""

import gc
import threading
from collections.abc import Callable, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from lvd.infra.committing import commit
from lvd.infra.errors import ShardError
from lvd.infra.shards import ShardRef, StageDir, read_table
from lvd.tasks import copies, embed, models, schemas
from lvd.tasks.models import engine, pipeline
from lvd.tests import copying
from lvd.tests.drawing import CLASSES, draw
from lvd.tests.tasks import planted

BATCH = 4
INFERENCE = models.Inference(model="builtin:dct", batch_size=BATCH, precision="float32")
LAYOUT = ((6, 0, 5), (9,))
NUM = 20
BROKEN = 3  # this image cannot be decoded
RED, BLUE, LIME = 8, 13, 15  # these are of one colour
BATCH_S = 0.5  # what the watched model says of every batch
IN_A_ROW = (5, 4, 0, 6, 5)  # the shards of the tests of what fails


class Watched:
    """The built-in model with a record of its batches; some colours get NaN, zeros and infinity, as a defect would.

    fails_at: the batch that cannot be begun, or with `is_late` cannot be fetched.
    """

    def __init__(self, model: models.ImageModel) -> None:
        self._model, self.dim, self.min_short_edge_px = model, model.dim, model.min_short_edge_px
        self.input_shape, self.halved = model.input_shape, 0
        self.batches: list[np.ndarray] = []
        self.fails_at: int | None = None
        self.is_late = self.keeps_size = False
        self.failure = RuntimeError("the model broke")

    def preprocess(self, image: Image.Image) -> np.ndarray:
        if image.size == (7, 7):
            raise ValueError("a size that nobody thought of")
        return np.asarray(image if self.keeps_size else image.resize((64, 64)))

    def buffer(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.zeros(shape, dtype=np.uint8)

    def start(self, batch: np.ndarray) -> Callable[[], tuple[np.ndarray, float]]:
        is_failing = len(self.batches) == self.fails_at
        if is_failing and not self.is_late:
            raise self.failure
        batch = batch.copy()
        self.batches.append(batch)
        self.halved += len(self.batches) == 2

        def fetched() -> tuple[np.ndarray, float]:
            if is_failing:
                raise self.failure
            vectors = np.ones((len(batch), self.dim), np.float32) if self.keeps_size else self._model.embed(batch)
            for colour, value in (((255, 0, 0), np.nan), ((0, 0, 255), 0), ((0, 255, 0), np.inf)):
                vectors[(batch == colour).all(axis=(1, 2, 3))] = value
            return vectors, BATCH_S

        return fetched

    def embed(self, batch: np.ndarray) -> np.ndarray:
        return self.start(batch)()[0]

    @property
    def computed(self) -> int:
        """Images that were computed: all rows but the padding."""
        return sum(int(batch.any(axis=(1, 2, 3)).sum()) for batch in self.batches)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    model = Watched(models.load(engine.spec_of(INFERENCE)))
    monkeypatch.setattr(engine.models, "load", lambda spec, placement: model)
    return model


@pytest.fixture
def images(local_root: str) -> list[ShardRef]:
    names = list(CLASSES)
    data = [copying.png(draw(names[n % 12], np.random.default_rng(n), (48, 40)))[1] for n in range(NUM)]
    data[BROKEN] = data[BROKEN][:200]
    for number, colour in ((RED, "red"), (BLUE, "blue"), (LIME, "lime")):
        data[number] = copying.png(Image.new("RGB", (64, 64), colour))[1]
    return planted.images(local_root, [planted.image(d) for d in data], LAYOUT)


def fates_of(root: str, alive: Sequence[int], name: str) -> list[ShardRef]:
    rows = [{"state": "kept" if n in alive else ("dropped", "failed")[n % 2]} for n in range(NUM)]
    return planted.stage(root, name, schemas.FATES, rows, LAYOUT)


def described(
    images: list[ShardRef],
    name: str,
    alive: Sequence[int] | None = None,
    donors: Sequence[StageDir] = (),
    cut: Sequence[Sequence[int]] = ((0, 1, 2),),
) -> StageDir:
    """The vectors of the first partition, a complete stage; the shards of one call after another as the cut says."""
    root = images[0].root
    fates = [None] * 3 if alive is None else fates_of(root, alive, f"fates-{name}")
    target = StageDir(root=root, stage="descriptors", fingerprint=name)
    refs = target.planned(3)
    jobs = [engine.Job(images=images[n], fates=fates[n], target=refs[n], donors=tuple(donors)) for n in range(3)]
    for numbers in cut:
        done = engine.vectors_of_shards([jobs[n] for n in numbers], INFERENCE, device="cpu", decoders=2)
        assert [ref.index for ref in done] == list(numbers)
        assert [ref.rows for ref in done] == [len(read_table(ref)) for ref in done]
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


def account_of(ref: ShardRef) -> dict:
    return StageDir(root=ref.root, stage="", fingerprint="").storage.read_json(ref.name("account", "json"))


def notes_of(target: StageDir) -> list[int]:
    return [notes["taken_over"] for notes in target.account()["shard_notes"]]


def no_thread_is_left() -> bool:
    """Whether all threads have ended, and nothing of them is closed by another one."""
    gc.collect()  # a generator that is closed in the wrong thread would warn here
    return not [thread.name for thread in threading.enumerate() if thread.name.startswith("lvd-")]


# What comes out -------------------------------------------------------------------------------------------------------


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
    assert no_thread_is_left()


def test_rows_count_from_the_start_of_their_partition_and_a_zero_or_infinite_vector_is_a_reject(
    images, watched
) -> None:
    target = StageDir(root=images[0].root, stage="embed", fingerprint="b").planned(1)[0]
    job, config = engine.Job(images=images[3], fates=None, target=target), embed.Config(**INFERENCE.model_dump())
    (done,) = embed.embed_shards.fn([job], inference=config, device="cpu", decoders=1)
    assert read_table(done)["row"].to_pylist() == [0, 1, 3, 5, 6, 7, 8]
    rejects = read_table(done, kind="rejects").to_pylist()
    assert [(row["row"], row["key"], row["reason"]) for row in rejects] == [
        (2, "key-13", "not_finite"),
        (4, "key-15", "not_finite"),
    ]


def test_a_vector_depends_on_nothing_else_that_is_computed(images, watched) -> None:
    whole = vectors_in(described(images, "whole"))
    for number, alive in enumerate([[0, 9], [1, 2, 4, 5, 6], [0, 3, 8, 10], [2, 12, 13], []]):
        part = vectors_in(described(images, f"part{number}", alive))
        assert part == {row: whole[row] for row in alive if row in whole}
    assert {batch.shape for batch in watched.batches} == {(BATCH, 64, 64, 3)}  # padded, every one


@pytest.mark.parametrize(
    ("alive", "fresh"),
    [(None, 10), ([0, 1, 5, 6], 4), ([0, 1, 3, 5, 6, 7], 5), ([BROKEN], 0), ([], 0)],
)  # the image that cannot be decoded takes no place; by shards it would be 4 batches, 2, 2, 0, 0
def test_batches_fill_across_shards(images, watched, alive, fresh) -> None:
    described(images, "a", alive)
    assert len(watched.batches) == -(-fresh // BATCH)
    assert watched.computed == fresh
    padding = [int((~batch.any(axis=(1, 2, 3))).sum()) for batch in watched.batches]
    assert not any(padding[:-1])  # only the last one of a call is padded


@pytest.mark.parametrize("cut", [[[0], [1], [2]], [[0, 1], [2]], [[0], [1, 2]], [[2, 0, 1]], [[1], [2, 0]]])
def test_the_same_bytes_in_any_cut_into_calls(images, watched, cut) -> None:
    whole, parts = described(images, "whole"), described(images, "parts", cut=cut)
    for kind in ("data", "rejects"):
        assert files_in(parts, kind) == files_in(whole, kind)


def test_the_built_in_model_itself_gives_the_same_for_any_batch(images) -> None:
    target = StageDir(root=images[0].root, stage="descriptors", fingerprint="any")
    found = []
    for batch_size, ref in zip((1, 4, 32), target.planned(3), strict=True):
        config = copies.Config(model="builtin:dct", batch_size=batch_size, precision="float32")
        jobs = [engine.Job(images=images[0], fates=None, target=ref)]
        copies.describe_shards.fn(jobs, inference=config, device="cpu", decoders=1)
        found.append(read_table(ref))
    assert found[0] == found[1] == found[2] and len(found[0]) == 5


def test_inputs_of_their_own_size_go_one_by_one(images, watched) -> None:
    watched.keeps_size = True
    target = StageDir(root=images[0].root, stage="descriptors", fingerprint="sizes")
    data = [copying.png(Image.new("RGB", size, "gray"))[1] for size in ((20, 30), (30, 20), (9, 9), (20, 30), (8, 40))]
    sizes = planted.images(images[0].root, [planted.image(d) for d in data], ((3, 2),), name="sizes")
    jobs = [engine.Job(images=i, fates=None, target=t) for i, t in zip(sizes, target.planned(2), strict=True)]
    kept = INFERENCE.model_copy(update={"resize": "keep_ratio"})
    assert [ref.rows for ref in engine.vectors_of_shards(jobs, kept, device="cpu")] == [3, 2]
    shapes = [batch.shape for batch in watched.batches]
    assert shapes == [(1, 30, 20, 3), (1, 20, 30, 3), (1, 9, 9, 3), (1, 30, 20, 3), (1, 40, 8, 3)]


# What was computed before ---------------------------------------------------------------------------------------------


def test_what_was_computed_before_is_taken_over(images, watched) -> None:
    first, second = described(images, "a", [0, 2, 3, 6, 10]), described(images, "b", [1, 2, 8])
    assert (notes_of(first), notes_of(second)) == ([0, 0, 0], [0, 0, 0])
    alive = [0, 1, 4, 6, 7, 8]
    watched.batches.clear()
    third = described(images, "c", alive, donors=[first, second])
    assert watched.computed == 3  # 4, 7, and 8 again, which had no vector
    assert len(watched.batches) == 1
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
    monkeypatch.setattr(engine, "BLOCK_ROWS", 16)
    monkeypatch.setattr(pipeline, "MOST_ITEMS", 3)
    written, held, table, blocks = [], [], engine._table, engine.blocks

    def watched_blocks(items, batch_size: int):
        for block in blocks(items, batch_size):
            held.append(len(block.items))
            yield block

    monkeypatch.setattr(engine, "_table", lambda rows, dim: (written.append(len(rows)), table(rows, dim))[1])
    monkeypatch.setattr(engine, "blocks", watched_blocks)
    ref = StageDir(root=local_root, stage="descriptors", fingerprint="many").planned(1)[0]
    engine.vectors_of_shards([engine.Job(images=image, fates=None, target=ref)], INFERENCE, device="cpu")
    assert read_table(ref)["row"].to_pylist() == list(range(70))
    assert written == [16, 16, 16, 16, 6]
    assert sum(held) == 70 + 1 and max(held) <= 3 * BATCH  # the end of the shard is one more
    assert len(watched.batches) == -(-(70 - num_known) // BATCH)


# What fails -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def shards(local_root: str) -> list[tuple[ShardRef, ShardRef]]:
    """Images and their fates in one partition."""
    names, num = list(CLASSES), sum(IN_A_ROW)
    data = [copying.png(draw(names[n % 12], np.random.default_rng(n), (48, 40)))[1] for n in range(num)]
    images = planted.images(local_root, [planted.image(d) for d in data], (IN_A_ROW,), name="row")
    kept = planted.stage(local_root, "row-fates", schemas.FATES, [{"state": "kept"}] * num, (IN_A_ROW,))
    return list(zip(images, kept, strict=True))


def jobs_of(shards: list[tuple[ShardRef, ShardRef]], name: str) -> list[engine.Job]:
    targets = StageDir(root=shards[0][0].root, stage="descriptors", fingerprint=name).planned(len(shards))
    return [engine.Job(images=i, fates=f, target=t) for (i, f), t in zip(shards, targets, strict=True)]


def written(ref: ShardRef) -> list[bytes]:
    storage = StageDir(root=ref.root, stage="", fingerprint="").storage
    return [storage.read_bytes(ref.name(kind)) for kind in ("data", "rejects")]


@pytest.fixture
def whole(shards, watched) -> list[list[bytes]]:
    """The files of every shard, each made by a call of its own."""
    jobs = jobs_of(shards, "whole")
    files = [written(engine.vectors_of_shards([job], INFERENCE, device="cpu")[0]) for job in jobs]
    watched.batches.clear()
    return files


class DiskFull(OSError):
    """What happens to one shard."""


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    """Shard → the case in which it cannot be written."""
    cases: dict[int, str] = {}
    write_shard = engine.write_shard

    def no_space(table) -> None:
        raise DiskFull

    @contextmanager
    def writing(ref: ShardRef, *rest):
        if cases.get(ref.index) == "no space at first":
            raise DiskFull
        with write_shard(ref, *rest) as shard:
            if cases.get(ref.index) == "no space later":
                monkeypatch.setattr(shard, "keep_table", no_space)
            yield shard

    monkeypatch.setattr(engine, "write_shard", writing)
    return cases


def spoiled(case: str, jobs: list[engine.Job], number: int, shards, tmp_path) -> list[engine.Job]:
    """The jobs, one of which cannot be done."""
    job = jobs[number]
    images, fates = (tmp_path / "root" / ref.name() for ref in shards[number])
    if case == "no images":
        images.unlink()
    elif case == "cut images":
        images.write_bytes(images.read_bytes()[: images.stat().st_size // 2])
    elif case == "corrupt images":
        images.write_bytes(b"\xff" * images.stat().st_size)
    elif case == "fewer images":
        job = job.model_copy(update={"images": job.images.model_copy(update={"rows": 99}), "fates": None})
    elif case == "no fates":
        fates.unlink()
    elif case == "fates of another shard":
        job = job.model_copy(update={"fates": shards[3 if number != 3 else 0][1]})
    elif case == "corrupt fates":
        fates.write_bytes(fates.read_bytes()[:100])
    elif case == "no donor":
        job = job.model_copy(update={"donors": (StageDir(root=job.images.root, stage="none", fingerprint="x"),)})
    elif case == "in its place":
        (tmp_path / "root" / job.target.name()).mkdir(parents=True)
    return [*jobs[:number], job, *jobs[number + 1 :]]


CASES = [  # case, error
    ("no images", FileNotFoundError),
    ("cut images", Exception),
    ("corrupt images", Exception),
    ("fewer images", ShardError),
    ("no fates", FileNotFoundError),
    ("fates of another shard", ShardError),
    ("corrupt fates", Exception),
    ("no donor", Exception),
    ("in its place", IsADirectoryError),
    ("no space at first", DiskFull),
    ("no space later", DiskFull),
]


@pytest.mark.parametrize("number", [0, 1, 4])
@pytest.mark.parametrize(("case", "error"), CASES)
def test_a_shard_that_fails_leaves_the_others_whole(case, error, number, shards, whole, full_disk, tmp_path) -> None:
    full_disk[number] = case
    jobs = spoiled(case, jobs_of(shards, "spoiled"), number, shards, tmp_path)
    outcomes = engine.vectors_of_shards(jobs, INFERENCE, device="cpu", decoders=2)
    assert isinstance(outcomes[number], error)
    assert not (tmp_path / "root" / jobs[number].target.name()).is_file()
    for place, outcome in enumerate(outcomes):
        if place != number:
            assert written(outcome) == whole[place]
    assert no_thread_is_left()


def test_an_image_that_breaks_the_preprocessing_is_a_reject(shards, whole, watched, local_root) -> None:
    data = [copying.png(Image.new("RGB", size, "gray"))[1] for size in ((9, 9), (7, 7), (9, 9))]
    odd = planted.images(local_root, [planted.image(d) for d in data], ((3,),), name="odd")[0]
    jobs = jobs_of(shards, "odd")
    jobs[1] = jobs[1].model_copy(update={"images": odd, "fates": None})
    outcomes = engine.vectors_of_shards(jobs, INFERENCE, device="cpu")
    assert read_table(outcomes[1])["row"].to_pylist() == [0, 2]
    (reject,) = read_table(outcomes[1], kind="rejects").to_pylist()
    assert (reject["row"], reject["reason"], reject["error"]) == (
        1, "undecodable", "ValueError: a size that nobody thought of",
    )  # fmt: skip
    assert [written(outcomes[n]) for n in (0, 2, 3, 4)] == [whole[n] for n in (0, 2, 3, 4)]


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("fails_at", [0, 1, 3, 4])
def test_a_model_that_fails_leaves_what_is_written(fails_at, is_late, shards, whole, watched) -> None:
    watched.fails_at, watched.is_late = fails_at, is_late
    outcomes = engine.vectors_of_shards(jobs_of(shards, "broken"), INFERENCE, device="cpu", decoders=2)
    done = [isinstance(outcome, ShardRef) for outcome in outcomes]
    assert done == sorted(done, reverse=True) and not done[-1]
    assert all(outcome is watched.failure for outcome in outcomes[sum(done) :])
    assert [written(outcome) for outcome in outcomes[: sum(done)]] == whole[: sum(done)]
    if fails_at == 4 and is_late:
        assert sum(done) == 4  # 16 images landed, and those shards have 15
    assert no_thread_is_left()


def test_a_model_that_fails_while_a_shard_is_left_out(shards, whole, watched, full_disk) -> None:
    watched.fails_at = 1
    full_disk[0] = "no space at first"
    outcomes = engine.vectors_of_shards(jobs_of(shards, "both"), INFERENCE, device="cpu")
    assert isinstance(outcomes[0], DiskFull)
    assert all(outcome is watched.failure for outcome in outcomes[1:])
    assert no_thread_is_left()


def test_a_model_that_cannot_be_loaded_is_the_error_of_the_call(shards) -> None:
    other = INFERENCE.model_copy(update={"model": "torchscript", "path": "no/such.pt"})
    with pytest.raises(models.InputError, match=r"no file at no/such\.pt"):
        engine.vectors_of_shards(jobs_of(shards, "none"), other, device="cpu")


# What it cost ---------------------------------------------------------------------------------------------------------


def test_the_account_says_what_was_computed_and_how_long_it_took(images, watched) -> None:
    first = described(images, "a", [0, 1, 2, 4, 9])
    described(images, "b", None, donors=[first])  # fresh: 5 | none | 6, 7, RED, 10; 3 cannot be decoded
    accounts = [
        account_of(ref) for ref in StageDir(root=images[0].root, stage="descriptors", fingerprint="b").planned(3)
    ]
    costs = [account["cost"] for account in accounts]
    assert [account["notes"]["taken_over"] for account in accounts] == [4, 0, 1]
    assert [cost.get("computed", 0) for cost in costs] == [1, 0, 4]
    seconds = [cost.get("device_seconds", 0) for cost in costs]
    assert seconds == [BATCH_S / 4, 0, BATCH_S * 3 / 4 + BATCH_S]  # the second batch is of one image
    assert all(cost["waited_seconds"] >= 0 for cost in costs)
    assert costs[0]["written_bytes"] > 0 and costs[2]["written_bytes"] > costs[1]["written_bytes"]
    assert costs[0]["read_bytes"] > sum(len(row["image"]["bytes"]) for row in read_table_of_images(images[0]))
    assert all("gpu_seconds" not in cost and "taken_over" not in cost for cost in costs)
    total = StageDir(root=images[0].root, stage="descriptors", fingerprint="b").account()["cost"]
    assert (total["computed"], total["device_seconds"]) == (5, 2 * BATCH_S)


def read_table_of_images(ref: ShardRef) -> list[dict]:
    return [row for batch in engine.read_batches(ref, ["image"]) for row in batch.to_pylist()]


def test_a_gpu_counts_for_as_long_as_it_is_held(shards, watched) -> None:
    outcomes = engine.vectors_of_shards(jobs_of(shards, "gpu"), INFERENCE, device="cuda:0")
    accounts = [account_of(ref) for ref in outcomes]
    assert [a["cost"]["gpu_seconds"] for a in accounts] == pytest.approx([a["seconds"] for a in accounts], abs=0.002)
    assert sum(account["notes"]["halved"] for account in accounts) == 1  # which the second batch says it was


# Reading vectors ------------------------------------------------------------------------------------------------------


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


def test_how_it_is_run_is_part_of_the_settings_and_of_the_placement() -> None:
    config = copies.Config(model="x", neighbors=3, batch_size=7, precision="bfloat16", compile=True)
    assert engine.placement(config, "cuda:1") == models.Placement(device="cuda:1", precision="bfloat16", compiled=True)
    assert engine.settings(config).keys() == models.Inference.model_fields.keys()
