"""How well similarities tell copies from other pictures: scores of pairs, curves over the threshold, a recommendation.

True pairs are an original and its altered copy (lvd.tasks.transforms), or pairs that a person labelled as copies; false
pairs are an original and another original, or another one's copy.

Which precision is meant. Among the pairs of a sample, half are not copies; in a pool of N images every image meets
N - 1 others, and nearly all of them are not. So the precision is that of the pairs which a pool of N images would give:

    precision(t) = c recall(t) / (c recall(t) + (N - 1) false_rate(t))

with c copies of an average image in the pool (the prior; it is stated, not measured) that come in equal shares from all
transformations. Its lower bound takes the lower bound of the recall and the upper bound of the false rate, both
Clopper-Pearson. What counts as one observation there: for the recall an original, not each of its copies; for the false
rate an original with another image, not each version of that one. With no false pair seen this is the same bound as
the one from n independent originals, none of which found a false partner among the other n - 1. Beyond that, pairs that
share an image are taken as independent, which they are not quite.

So n originals can show a precision p only for pools of about n^2 c (1 - p) / (4 p) images: 600 images with 500
originals and p = 0.99. Beyond it the recommendation is the lowest threshold above all false pairs that were seen,
or more if the exponential tail through the highest of them asks for more, and it is marked as not shown.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from pydantic import BaseModel, Field

from lvd.tasks import adjusting
from lvd.tasks.algorithms import pca_hash
from lvd.tasks.decode import MAX_PIXELS
from lvd.tasks.models import ImageModel, engine
from lvd.tasks.screen import luminance, thumbnail

STEPS = 1000  # thresholds between 0 and 1
THRESHOLDS = np.arange(-STEPS, STEPS + 1) / STEPS
ORIGINAL = "original"  # the version of an image that is not altered
TAIL_PAIRS = 200  # the highest false pairs that the tail is fitted to


class Question(BaseModel, frozen=True, extra="forbid"):
    """What a threshold must reach, and in which pool."""

    min_precision: float = Field(0.99, gt=0, lt=1)  # of the pairs that are joined
    confidence: float = Field(0.95, gt=0.5, lt=1)  # of every interval
    copies_per_image: float = Field(1.0, gt=0)  # of an average image in the pool; fewer ask for a higher threshold
    pool_images: int = Field(1000, ge=2)  # each image meets all others; more ask for a higher threshold


class Scorer(Protocol):
    """A similarity of pairs. name: as the report calls it; threshold: from which on it says copy now."""

    name: str
    threshold: float

    def features(self, files: list[bytes]) -> np.ndarray:
        """(n, …) what is compared, of n image files. Raises DecodeError."""
        ...

    def matrix(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """(n, m) float32 similarities in [-1, 1] of all pairs of features."""
        ...


class ModelScorer:
    """The cosine of a copies model's descriptors; -1 with an image that has none."""

    def __init__(self, name: str, model: ImageModel, threshold: float) -> None:
        self.name, self.threshold, self._model = name, threshold, model

    def features(self, files: list[bytes]) -> np.ndarray:
        """(n, d) float32 unit rows; NaN for an image without a descriptor."""
        inputs = [engine.pixels_of(data, self._model) for data in files]
        if len({one.shape for one in inputs}) > 1:
            return np.concatenate([self._model.embed(one[None]) for one in inputs]).astype(np.float32)
        return np.asarray(self._model.embed(np.stack(inputs)), dtype=np.float32)

    def matrix(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return np.nan_to_num(left @ right.T, nan=-1.0).clip(-1, 1)


class AdjustedScorer:
    """The similarity of a model's descriptors once they are adjusted; the last column of its features is their bias."""

    def __init__(
        self, scorer: ModelScorer, background: adjusting.Background, rules: adjusting.ScoreNormalisation | None
    ) -> None:
        done = (("whitened", background.fit), ("scores normalised", rules))
        self.name = ", ".join([scorer.name, *(name for name, is_done in done if is_done is not None)])
        self.threshold, self.features = scorer.threshold, scorer.features
        self._background, self._rules = background, rules

    def adjusted(self, features: np.ndarray, image_id: np.ndarray, device: str) -> np.ndarray:
        """(n, c + 1) float32 of (n, d) features of the model; NaN stays NaN.

        image_id: (n,) str, None for copies that are in no pool.
        """
        vectors = adjusting.whitened(np.nan_to_num(features), self._background.fit)
        bias = np.zeros(len(vectors), dtype=np.float32)
        if self._rules is not None:
            bias = adjusting.biases(vectors, image_id, self._background, self._rules, device=device)
        result = np.column_stack([vectors.astype(np.float32), bias])
        result[np.isnan(features).any(axis=1)] = np.nan
        return result

    def matrix(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        similarity = left[:, :-1] @ right[:, :-1].T - (left[:, -1:] + right[:, -1]) / 2
        return np.nan_to_num(similarity, nan=-1.0).clip(-1, 1)


class HashScorer:
    """The thumbnail correlation of pairs whose PCA hashes are near, -1 of all others: what `fingerprint` looks at."""

    def __init__(self, name: str, fit: pca_hash.PcaHash, *, max_distance: int, threshold: float) -> None:
        self.name, self.threshold = name, threshold
        self._fit, self._max_distance = fit, max_distance

    @staticmethod
    def thumbnails(files: list[bytes]) -> np.ndarray:
        """(n, 1024) uint8 luminance, as `screen` measures it."""
        return np.stack([np.frombuffer(thumbnail(luminance(data, MAX_PIXELS)), dtype=np.uint8) for data in files])

    features = thumbnails

    def matrix(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        signs = [np.unpackbits(pca_hash.codes(self._fit, rows), axis=1) * np.float32(2) - 1 for rows in (left, right)]
        agreement = signs[0] @ signs[1].T  # bits that agree less those that differ
        near = np.nonzero((signs[0].shape[1] - agreement) / 2 <= self._max_distance)
        result = np.full(agreement.shape, -1, dtype=np.float32)
        result[near] = pca_hash.thumbnail_similarity(left[near[0]], right[near[1]])
        return result


class FalsePair(NamedTuple):
    """An original and a version of another image that look alike to a scorer."""

    similarity: float
    left: int
    right: int
    version: str


@dataclass(frozen=True)
class Scores:
    """What a scorer says of planted copies.

    true: transformation → (n,) float32 of each original and its copy; false: (2001,) counts of false pairs by level;
    num_images: n; versions: of each image; worst: the most similar false pairs, at most one of two images.
    """

    true: dict[str, np.ndarray]
    false: np.ndarray
    num_images: int
    versions: int
    worst: tuple[FalsePair, ...]


@dataclass(frozen=True)
class Curve:
    """Figures at every one of THRESHOLDS, (2001,) float64 each; `recall_of`: by transformation or kind.

    pairs: of images that the false rate rests on; trials: what the overall recall rests on.
    """

    recall_of: dict[str, np.ndarray]
    recall: np.ndarray
    recall_low: np.ndarray
    recall_high: np.ndarray
    false_rate: np.ndarray
    false_rate_high: np.ndarray
    precision: np.ndarray
    precision_low: np.ndarray
    false: np.ndarray  # counts at or above
    trials: dict[str, int]


class Recommendation(BaseModel, frozen=True):
    """The lowest threshold that reaches the precision asked for, and what it costs."""

    threshold: float
    is_shown: bool  # False: this sample cannot show it for this pool
    precision: float
    precision_low: float
    recall: float
    recall_low: float
    recall_high: float
    false_rate: float
    false_rate_high: float
    shown_up_to_images: int | None  # the largest pool for which this threshold is shown; None: labelled pairs
    tail_threshold: float | None  # where an exponential tail of the false pairs puts it; None: no tail, or above 1
    needed_originals: int | None  # so many would be needed to show it for this pool, if no false pair were seen


def levels(similarity: np.ndarray) -> np.ndarray:
    """(…) int64: of each similarity in [-1, 1] the last of THRESHOLDS that it reaches.

    By values rounded to 5 decimals, as lvd.tasks.copies compares them.
    """
    return np.rint(similarity.astype(np.float64) * 100_000).astype(np.int64) // (100_000 // STEPS) + STEPS


def at_or_above(counts: np.ndarray) -> np.ndarray:
    """(2001,) counts of pairs at or above each threshold, of counts by level."""
    return np.cumsum(counts[::-1])[::-1]


def histogram(similarity: np.ndarray) -> np.ndarray:
    """(2001,) int64 counts by level."""
    return np.bincount(levels(similarity).ravel(), minlength=len(THRESHOLDS))


def clopper_pearson(successes: np.ndarray, trials: float, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """The interval of a share, two-sided. successes: (n,), may be fractions: means of trials that go together."""
    from scipy.special import betaincinv

    successes, tail = np.asarray(successes, dtype=np.float64), (1 - confidence) / 2
    missed = np.maximum(trials - successes, 0)
    low = np.where(successes > 0, betaincinv(np.maximum(successes, 1e-300), missed + 1, tail), 0.0)
    high = np.where(missed > 0, betaincinv(successes + 1, np.maximum(missed, 1e-300), 1 - tail), 1.0)
    return low, high


def planted_scores(
    scorer: Scorer,
    originals: np.ndarray,
    copies: Mapping[str, np.ndarray],
    *,
    apart: Collection[str] = (),
    num_worst: int = 12,
) -> Scores:
    """The scores of n originals and, for each transformation, their n copies, all by one scorer's features.

    apart: transformations whose copies are compared with their own originals only. A mirrored picture is not looked
    for, so the pool may hold it beside the picture itself: the mirrored copy and that image would be a false pair.
    n^2 comparisons for each transformation; memory: one matrix of n x n.
    """
    n, false = len(originals), np.zeros(len(THRESHOLDS), dtype=np.int64)
    true, worst = {}, []
    for version, rows in {ORIGINAL: originals, **copies}.items():
        similarity = scorer.matrix(originals, rows)
        own = similarity.diagonal().copy()
        if version != ORIGINAL:
            true[version] = own
        if version in apart:
            continue
        false += histogram(similarity) - histogram(own)
        np.fill_diagonal(similarity, -2)
        highest = np.argpartition(similarity, -min(num_worst, n * n), axis=None)[-num_worst:]
        for left, right in zip(*np.unravel_index(highest, similarity.shape), strict=True):
            if left != right:
                worst.append(FalsePair(float(similarity[left, right]), int(left), int(right), version))
    return Scores(
        true, false, n, 1 + len(copies.keys() - {*apart}), tuple(_one_of_two(sorted(worst, reverse=True)))[:num_worst]
    )


def _one_of_two(pairs: list[FalsePair]) -> Iterator[FalsePair]:
    """The first pair of every two images."""
    seen: set[frozenset[int]] = set()
    for pair in pairs:
        if (both := frozenset((pair.left, pair.right))) not in seen:
            seen.add(both)
            yield pair


def look_alikes(scorer: Scorer, originals: np.ndarray) -> list[FalsePair]:
    """The pairs of originals that reach the scorer's threshold now, left < right, the least similar first."""
    similarity = scorer.matrix(originals, originals)
    left, right = np.nonzero(np.triu(similarity.round(5) >= np.float32(scorer.threshold), 1))
    pairs = [FalsePair(float(similarity[i, j]), int(i), int(j), ORIGINAL) for i, j in zip(left, right, strict=True)]
    return sorted(pairs)


def planted_curve(scores: Scores, question: Question) -> Curve:
    """The figures of planted copies, in the pool that is asked about."""
    n, pairs = scores.num_images, scores.num_images * (scores.num_images - 1)
    recall_of = {name: at_or_above(histogram(own)) / n for name, own in scores.true.items()}
    recall = np.mean(list(recall_of.values()), axis=0)
    low, high = clopper_pearson(recall * n, n, question.confidence)
    false = at_or_above(scores.false)
    rate = false / (pairs * scores.versions)
    rate_high = clopper_pearson(rate * pairs, pairs, question.confidence)[1]
    return Curve(
        recall_of=recall_of,
        recall=recall,
        recall_low=low,
        recall_high=high,
        false_rate=rate,
        false_rate_high=rate_high,
        precision=pool_precision(recall, rate, question),
        precision_low=pool_precision(low, rate_high, question),
        false=false,
        trials={"originals": n, "pairs of images": pairs, "false pairs scored": pairs * scores.versions},
    )


def labelled_curve(similarity: np.ndarray, is_copy: np.ndarray, kinds: np.ndarray, confidence: float) -> Curve:
    """The figures of labelled pairs, whose precision is that of the pairs as they were given: no prior enters.

    similarity: (n,); is_copy: (n,) bool, both values must occur; kinds: (n,) str, of the copies.
    """
    true = at_or_above(histogram(similarity[is_copy]))
    false = at_or_above(histogram(similarity[~is_copy]))
    copies, others, found = int(is_copy.sum()), int((~is_copy).sum()), true + false
    low, high = clopper_pearson(true, copies, confidence)
    of_kind = {kind: similarity[is_copy & (kinds == kind)] for kind in sorted(set(kinds[is_copy].tolist()))}
    precision_low = [float(clopper_pearson(np.array(t), f, confidence)[0]) for t, f in zip(true, found, strict=True)]
    return Curve(
        recall_of={kind: at_or_above(histogram(own)) / len(own) for kind, own in of_kind.items()},
        recall=true / copies,
        recall_low=low,
        recall_high=high,
        false_rate=false / others,
        false_rate_high=clopper_pearson(false, others, confidence)[1],
        precision=np.divide(true, found, out=np.ones(len(true)), where=found > 0),
        precision_low=np.array(precision_low),
        false=false,
        trials={"pairs of copies": copies, "other pairs": others},
    )


def pool_precision(recall: np.ndarray, false_rate: np.ndarray, question: Question) -> np.ndarray:
    """The share of true pairs among those found in a pool; 1 where nothing is found."""
    true, false = question.copies_per_image * recall, (question.pool_images - 1) * false_rate
    return np.divide(true, true + false, out=np.ones_like(true), where=true + false > 0)


def recall_at(curve: Curve, false_rate: float) -> tuple[float, float]:
    """(threshold, overall recall) at the lowest threshold whose false pairs are at most that share of all."""
    place = int(np.argmax(curve.false_rate <= false_rate)) if curve.false_rate[-1] <= false_rate else STEPS * 2
    return float(THRESHOLDS[place]), float(curve.recall[place])


def place_of(threshold: float) -> int:
    """The index of the lowest of THRESHOLDS that is at least this threshold."""
    return int(np.clip(math.ceil(round(threshold * STEPS, 6)) + STEPS, 0, 2 * STEPS))


def recommend(curve: Curve, question: Question, *, is_pool: bool = True) -> Recommendation:
    """The lowest threshold whose lower bound of the precision is what is asked for.

    is_pool: the precision is that of a pool, not of labelled pairs. Where no threshold reaches it: the lowest above all
    false pairs that were seen, or that of their tail if it is higher.
    """
    enough = (curve.precision_low >= question.min_precision) & (curve.recall > 0)
    tail = tail_threshold(curve, question) if is_pool else None
    is_shown = bool(enough.any())
    if is_shown:
        place = int(np.argmax(enough))
    else:
        place = max(int(np.argmax(curve.false == 0)) if curve.false[-1] == 0 else 2 * STEPS, place_of(tail or 0.0))
    figures = ("precision", "precision_low", "recall", "recall_low", "recall_high", "false_rate", "false_rate_high")
    return Recommendation(
        threshold=float(THRESHOLDS[place]),
        is_shown=is_shown,
        shown_up_to_images=_shown_up_to(curve, question, place) if is_pool else None,
        tail_threshold=tail,
        needed_originals=_needed(curve, question, place) if is_pool and not is_shown else None,
        **{name: float(getattr(curve, name)[place]) for name in figures},
    )


def _odds(question: Question) -> float:
    """False pairs that are allowed for every true one that is found."""
    return (1 - question.min_precision) / question.min_precision


def _shown_up_to(curve: Curve, question: Question, place: int) -> int:
    found = question.copies_per_image * curve.recall_low[place]
    return int(_odds(question) * found / curve.false_rate_high[place]) + 1


def _needed(curve: Curve, question: Question, place: int) -> int | None:
    """Originals whose pairs, none of them false, show the precision; None if there is no recall to show it with."""
    found = question.copies_per_image * curve.recall_low[place]
    nats = -math.log((1 - question.confidence) / 2)  # no success in m trials bounds a share by about nats / m
    return math.ceil(math.sqrt(nats * question.pool_images / (_odds(question) * found))) + 1 if found > 0 else None


def tail_threshold(curve: Curve, question: Question) -> float | None:
    """Where the precision is reached if the false rate falls on as among the TAIL_PAIRS highest false pairs.

    An exponential tail with their mean excess (the maximum-likelihood fit). A guess: real pools hold look-alikes that
    no small sample of them shows. None if fewer pairs were seen, or no threshold up to 1 will do.
    """
    start = int(np.argmax(curve.false <= TAIL_PAIRS))
    above = curve.false[start:]
    if curve.false[0] < TAIL_PAIRS or above[0] == 0:
        return None
    mean_excess = above.sum() / above[0] / STEPS  # the sum of a survival function, in steps of 1 / STEPS
    rate = curve.false_rate[start] * np.exp(-np.maximum(THRESHOLDS - THRESHOLDS[start], 0) / mean_excess)
    enough = pool_precision(curve.recall, rate, question) >= question.min_precision
    enough &= (curve.recall > 0) & (np.arange(len(THRESHOLDS)) >= start)
    return float(THRESHOLDS[np.argmax(enough)]) if enough.any() else None
