"""The batch size by trial, on a model whose pace for each size is known."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from lvd.infra.shards import StageDir, read_table
from lvd.tasks import batch_size, models
from lvd.tasks.batch_size import LARGEST, SMALLEST, best

INFERENCE = models.Inference(model="builtin:dct", batch_size=16, precision="float32")
SIZES = tuple(itertools.takewhile(lambda size: size <= LARGEST, (SMALLEST * 2**n for n in itertools.count())))


class Clock:
    """The time, which only the model moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Paced:
    """A model of so many images a second for each batch size; larger ones than `fits` go in halves."""

    dim, input_shape, min_short_edge_px = 4, (2, 3), 0

    def __init__(self, clock: Clock, paces: dict[int, float], fits: int = 1 << 20, halved: int = 0) -> None:
        self._clock, self._paces, self._fits, self.halved = clock, paces, fits, halved
        self.under_way = self.most_under_way = 0
        self.sizes: list[int] = []

    def buffer(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.zeros(shape, dtype=np.uint8)

    def start(self, batch: np.ndarray) -> Callable[[], tuple[np.ndarray, float]]:
        assert batch.any(), "noise, not zeros"
        seconds = len(batch) / self._paces[len(batch)]
        self.sizes.append(len(batch))
        self.halved += len(batch) > self._fits
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)

        def fetched() -> tuple[np.ndarray, float]:
            self._clock.now += seconds
            self.under_way -= 1
            return np.zeros((len(batch), self.dim), dtype=np.float32), seconds

        return fetched

    def embed(self, batch: np.ndarray) -> np.ndarray:
        return self.start(batch)()[0]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the trials."""
    clock = Clock()
    monkeypatch.setattr(batch_size, "time", clock)
    return clock


def paces(*images_per_second: float) -> dict[int, float]:
    return dict(zip(SIZES, images_per_second, strict=False))


TRIALS = [  # paces of 16, 32, …; what fits; sizes tried; the best
    ((100, 190, 350, 600, 605, 900, 900), 1 << 20, [16, 32, 64, 128, 256], 128),  # 256 gains less than 3%
    ((100, 90, 900), 1 << 20, [16, 32], 16),
    ((100, 103, 106.1, 109), 1 << 20, [16, 32, 64, 128], 64),  # within 3% of the fastest
    ((100, 200, 400, 800), 64, [16, 32, 64], 64),  # memory runs out at 128
    ((100, 200), 16, [16], 16),
    ((100, 200), 8, [], 16),  # nothing fits: batches go in halves
    ((1, 2, 4, 8, 16, 32, 64), 1 << 20, list(SIZES), LARGEST),  # never more than the largest
]


@pytest.mark.parametrize(("given", "fits", "tried", "chosen"), TRIALS)
def test_sizes_double_until_nothing_is_gained(given, fits, tried, chosen, clock) -> None:
    model = Paced(clock, paces(*given), fits)
    found = list(batch_size.trials(model, INFERENCE))
    assert [size for size, _ in found] == tried
    assert [pace for _, pace in found] == pytest.approx([paces(*given)[size] for size in tried])
    assert best(found)[0] == chosen
    assert model.under_way == 0 and model.most_under_way == (2 if tried else 1)


def test_a_model_that_went_in_halves_before_is_tried_all_the_same(clock) -> None:
    assert [size for size, _ in batch_size.trials(Paced(clock, paces(100, 200, 200), halved=3), INFERENCE)] == [
        16,
        32,
        64,
    ]


def test_a_slow_model_is_tried_with_a_few_batches(clock) -> None:
    model = Paced(clock, paces(1, 1))
    assert batch_size.images_per_second(model, 16) == pytest.approx(1)
    assert len(model.sizes) == 3  # one to warm up, and two of 16 s
    many = Paced(clock, paces(1600))
    assert batch_size.images_per_second(many, 16) == pytest.approx(1600)
    assert 100 <= len(many.sizes) <= 104  # a second of work


def test_where_memory_runs_out_the_trial_ends_at_once(clock) -> None:
    model = Paced(clock, paces(1600), fits=8)
    batch_size.images_per_second(model, 16)
    assert len(model.sizes) <= 3


def test_inputs_of_their_own_size_go_one_by_one(clock) -> None:
    kept = INFERENCE.model_copy(update={"resize": "keep_ratio"})
    assert list(batch_size.trials(Paced(clock, {1: 50.0}), kept)) == [(1, pytest.approx(50))]


BEST = [  # trials, the best
    ([], (SMALLEST, 0.0)),
    ([(16, 5.0)], (16, 5.0)),
    ([(16, 100.0), (32, 102.9)], (16, 100.0)),
    ([(16, 100.0), (32, 103.1)], (32, 103.1)),
    ([(16, 100.0), (32, 200.0), (64, 150.0)], (32, 200.0)),
]


@pytest.mark.parametrize(("tried", "expected"), BEST)
def test_the_best_is_the_smallest_of_the_fastest(tried, expected) -> None:
    assert best(tried) == expected


@pytest.mark.parametrize(
    ("given", "fits", "rows"),
    [
        ((100, 200, 201), 1 << 20, [(32, 200), (16, 100), (64, 201)]),
        ((100, 200), 8, [(16, 0)]),  # nothing fits, and the smallest is taken
    ],
)
def test_the_trials_are_kept_with_the_best_first(given, fits, rows, clock, monkeypatch, local_root) -> None:
    asked = []
    model = Paced(clock, paces(*given), fits)
    monkeypatch.setattr(models, "load", lambda spec, placement: (asked.append((spec, placement)), model)[1])
    target = StageDir(root=local_root, stage="batch-size", fingerprint="a").planned(1)[0]
    done = batch_size.find_batch_size.fn(target, INFERENCE, device="cuda:0")
    found = read_table(done).to_pylist()
    assert [(row["batch_size"], row["images_per_second"]) for row in found] == rows
    assert done.rows == len(rows)
    assert asked == [(models.ModelSpec(model="builtin:dct"), models.Placement("cuda:0", "float32"))]
