"""Scores, curves and recommendations: against pairs counted one by one, and the statistics against simulation."""

import io

import numpy as np
import pytest
from PIL import Image

from lvd.tasks import models, study
from lvd.tasks.algorithms import pca_hash
from lvd.tasks.decode import DecodeError
from lvd.tasks.study import STEPS, THRESHOLDS, Question


class Dots:
    """A scorer whose features are vectors."""

    name, threshold = "dots", 0.9

    def features(self, files: list[bytes]) -> np.ndarray:
        return np.stack([np.frombuffer(data, dtype=np.float32) for data in files])

    def matrix(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return (left @ right.T).clip(-1, 1)


def unit(rng: np.random.Generator, n: int, d: int = 8) -> np.ndarray:
    rows = rng.standard_normal((n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def planted(n: int = 40, *, noise: float = 0.2, d: int = 8) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Originals, exact copies and noisy ones."""
    rng = np.random.default_rng(0)
    originals = unit(rng, n, d)
    noisy = originals + noise * rng.standard_normal((n, d)).astype(np.float32)
    return originals, {"same": originals.copy(), "noisy": noisy / np.linalg.norm(noisy, axis=1, keepdims=True)}


@pytest.mark.parametrize(
    ("similarity", "level"),
    [(-1.0, 0), (0.0, STEPS), (0.52, STEPS + 520), (0.5199999, STEPS + 520), (0.51999, STEPS + 519), (1.0, 2 * STEPS)],
)  # the fourth: rounded to 5 decimals first, as the pipeline does it
def test_a_similarity_reaches_the_thresholds_up_to_its_level(similarity: float, level: int) -> None:
    assert study.levels(np.array([similarity]))[0] == level


def test_scores_are_the_pairs_counted_one_by_one() -> None:
    originals, copies = planted(7)
    scores = study.planted_scores(Dots(), originals, copies, num_worst=5)
    false, found = np.zeros(len(THRESHOLDS), dtype=int), []
    for version, rows in {"original": originals, **copies}.items():
        for i in range(7):
            for j in range(7):
                similarity = Dots().matrix(originals[i : i + 1], rows[j : j + 1])[0, 0]
                if i == j and version != "original":
                    assert np.isclose(scores.true[version][i], similarity)
                if i != j:
                    false += round(float(similarity), 5) + 1e-9 >= THRESHOLDS
                    found.append((similarity, i, j))
    assert (study.at_or_above(scores.false) == false).all()
    assert false[0] == 7 * 6 * 3
    assert np.isclose(scores.worst[0].similarity, max(found)[0])
    assert len({frozenset(pair[1:3]) for pair in scores.worst}) == len(scores.worst)


def test_transformations_apart_are_no_false_pairs() -> None:
    originals, copies = planted(7)
    every, one = study.planted_scores(Dots(), originals, copies), next(iter(copies))
    some = study.planted_scores(Dots(), originals, copies, apart=[one])
    rest = study.planted_scores(Dots(), originals, {name: rows for name, rows in copies.items() if name != one})
    assert (some.false == rest.false).all() and some.false.sum() < every.false.sum()
    assert (some.true[one] == every.true[one]).all() and set(some.true) == set(copies)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0.0, 0.3085), (10, 10, 0.6915, 1.0), (5, 10, 0.1871, 0.8129), (1, 100, 0.00025, 0.0545)],
)  # the exact intervals of the tables, at 95%
def test_clopper_pearson(successes: int, trials: int, low: float, high: float) -> None:
    found = study.clopper_pearson(np.array([successes]), trials, 0.95)
    assert np.allclose([found[0][0], found[1][0]], [low, high], atol=1e-4)


def test_the_precision_is_that_of_the_pool() -> None:
    """By hand: 2 copies an image of which half are found, against 999 others of which 1 in 999 is taken for one."""
    question = Question(copies_per_image=2, pool_images=1000)
    assert np.isclose(study.pool_precision(np.array([0.5]), np.array([1 / 999]), question), 0.5)
    originals, copies = planted()
    scores = study.planted_scores(Dots(), originals, copies)
    small, large = (study.planted_curve(scores, Question(pool_images=n)) for n in (40, 40_000))
    assert (small.precision >= large.precision).all() and (small.precision > large.precision).any()
    assert (small.recall == large.recall).all()
    assert (small.precision_low <= small.precision + 1e-12).all()


def test_the_recommendation_is_the_lowest_threshold_that_is_shown() -> None:
    originals, copies = planted(200, d=64, noise=0.05)
    curve = study.planted_curve(study.planted_scores(Dots(), originals, copies), question := Question(pool_images=50))
    found = study.recommend(curve, question)
    place = study.place_of(found.threshold)
    assert found.is_shown and found.precision_low >= 0.99 > curve.precision_low[place - 1]
    assert found.recall_low <= found.recall <= found.recall_high
    assert found.shown_up_to_images >= 50
    again = question.model_copy(update={"pool_images": found.shown_up_to_images})
    assert study.planted_curve(study.planted_scores(Dots(), originals, copies), again).precision_low[place] >= 0.989


def test_a_pool_too_large_for_the_sample_is_not_shown_and_says_what_is_needed() -> None:
    originals, copies = planted(60, d=64, noise=0.05)
    question = Question(pool_images=100_000)
    curve = study.planted_curve(study.planted_scores(Dots(), originals, copies), question)
    found = study.recommend(curve, question)
    assert not found.is_shown
    assert found.false_rate == 0 and found.shown_up_to_images < 100
    assert found.tail_threshold is None or found.threshold >= found.tail_threshold
    n = found.needed_originals  # with so many, all unlike one another, it would be shown
    high = study.clopper_pearson(np.zeros(1), n * (n - 1), question.confidence)[1]
    assert study.pool_precision(np.array([found.recall_low]), high, question)[0] >= 0.9899


def test_more_copies_per_image_or_less_precision_never_raise_the_threshold() -> None:
    originals, copies = planted(80, d=32)
    scores = study.planted_scores(Dots(), originals, copies)

    def threshold(**changes: float) -> float:
        question = Question(**{"pool_images": 30, "min_precision": 0.9, **changes})
        return study.recommend(study.planted_curve(scores, question), question).threshold

    assert threshold(min_precision=0.5) <= threshold() <= threshold(min_precision=0.95)
    assert threshold(copies_per_image=10) <= threshold() <= threshold(copies_per_image=0.5)


def test_an_exponential_tail_is_found_where_it_is() -> None:
    """False pairs that fall by e every 0.02: the tail reaches 1e-8 at 0.02 ln(1e8) = 0.368."""
    rng = np.random.default_rng(0)
    similarity = rng.exponential(0.02, 1_000_000).clip(0, 1)
    scores = study.Scores({"same": np.ones(1000)}, study.histogram(similarity), 1000, 1, ())
    question = Question(pool_images=1_010_102)  # 0.99 of the pairs are true at a rate of 1e-8
    found = study.tail_threshold(study.planted_curve(scores, question), question)
    assert abs(found - 0.368) < 0.06  # 200 pairs give the slope to 7%


def test_a_gap_above_the_tail_gives_no_overflow() -> None:
    """150 false pairs 0.001 above all others: the rate falls by e every 0.001, and is enough after 0.007."""
    similarity = np.r_[np.full(150, 0.901), np.full(9_850, 0.9)]
    scores = study.Scores({"same": np.ones(101)}, study.histogram(similarity), 101, 1, ())
    assert 0.905 < study.tail_threshold(study.planted_curve(scores, Question()), Question()) < 0.912


def test_labelled_pairs_are_taken_as_they_are() -> None:
    similarity = np.array([0.9, 0.8, 0.3, 0.7, 0.2])
    is_copy = np.array([True, True, True, False, False])
    curve = study.labelled_curve(similarity, is_copy, np.array(["a", "b", "b", "x", "x"]), 0.95)
    at = study.place_of(0.7)
    assert (curve.recall[at], curve.precision[at], curve.false_rate[at]) == (2 / 3, 2 / 3, 0.5)
    assert {kind: recall[at] for kind, recall in curve.recall_of.items()} == {"a": 1.0, "b": 0.5}
    assert curve.precision_low[at] < curve.precision[at]
    found = study.recommend(curve, Question(min_precision=0.1), is_pool=False)
    assert found.is_shown and found.shown_up_to_images is None


def test_recall_at_a_share_of_false_pairs() -> None:
    curve = study.labelled_curve(
        np.array([0.9, 0.6, 0.7, 0.2]), np.array([True, True, False, False]), np.array(["a"] * 4), 0.95
    )
    assert study.recall_at(curve, 0.5) == (0.201, 1.0)
    assert study.recall_at(curve, 0.0) == (0.701, 0.5)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_scorers_describe_files_and_compare_all_pairs() -> None:
    rng = np.random.default_rng(0)
    pictures = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((90, 90)))
        for _ in range(70)  # fewer leave bits of the hash without a direction
    ]
    files = [png(p) for p in pictures[:5]]
    scorer = study.ModelScorer("dct", models.load(models.ModelSpec(model="builtin:dct")), 0.5)
    thumbnails = study.HashScorer.thumbnails(files)
    fit = pca_hash.fit([study.HashScorer.thumbnails([png(p) for p in pictures])])
    hashed = study.HashScorer("hash", fit, max_distance=6, threshold=0.985)
    for one, rows in ((scorer, scorer.features(files)), (hashed, hashed.features(files))):
        similarity = one.matrix(rows, rows[:3])
        assert similarity.shape == (5, 3)
        assert np.allclose(similarity[:3].diagonal(), 1, atol=1e-4)
        assert (similarity[~np.eye(5, 3, dtype=bool)] < one.threshold).all()
    assert hashed.matrix(thumbnails, thumbnails)[0, 1] == -1  # hashes far apart: no copy whatever the thumbnails say
    with pytest.raises(DecodeError):
        scorer.features([b"no image"])


def test_an_image_without_a_descriptor_is_no_copy() -> None:
    scorer = study.ModelScorer("dct", models.load(models.ModelSpec(model="builtin:dct")), 0.5)
    similarity = scorer.matrix(np.array([[np.nan, np.nan], [1, 0]], np.float32), np.array([[1, 0]], np.float32))
    assert similarity.tolist() == [[-1], [1]]


def test_look_alikes_are_the_pairs_above_the_threshold() -> None:
    rows = unit(np.random.default_rng(0), 6, 64)
    rows[4] = rows[1]
    assert [(pair.left, pair.right) for pair in study.look_alikes(Dots(), rows)] == [(1, 4)]
