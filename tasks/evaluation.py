"""Whether a selection is a good one: how features tell labelled images apart, and what a selection covers.

Features are judged as DINO's authors do: by the k nearest labelled images, whose votes weigh exp(cosine / 0.07), and by
a linear probe, a multinomial logistic regression on unit vectors.

A selection is judged by reference images, usually the curated ones, against random selections of the same size:

    nearest    the cosine of a reference image to the nearest selected one, on average
    coverage   the share of reference images that have a selected image nearer than their 5th nearest reference image
               (Naeem et al., Reliable Fidelity and Diversity Metrics for Generative Models, 2020)
    relevance  the share of selected images that are so near to at least one reference image (the precision of
               Kynkäänniemi et al., Improved Precision and Recall Metric, 2019)

Retrieval chooses what is near to the curated images, so that all three favour it there by construction. Held out, the
reference images are cut into halves again and again, and each half is asked only about what was selected for the other.

Intervals resample reference images and random selections both (Owen, The pigeonhole bootstrap, 2007), a little wider
than need be. Images count as independent; curated collections that hold near copies are not quite that.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel

from lvd.tasks.algorithms.evenness import entropy_bits
from lvd.tasks.study import clopper_pearson

NEIGHBOURS = (1, 5, 20)
TEMPERATURE = 0.07  # Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021, appendix
BALL = 5  # the reference image whose distance is the radius; Naeem et al. take 5
PENALTIES = tuple(10.0**power for power in range(-2, -7, -1))  # of a probe's squared weights; the strongest first
HELD_OUT_SHARE = 0.2  # of the training side, for the choice of the penalty
RESAMPLES = 1000
RESAMPLED_AT_ONCE = 50
CONFIDENCE = 0.95
BLOCK = 1024  # test images at a time


class Interval(BaseModel, frozen=True):
    """A figure with the ends of its 95% interval."""

    value: float
    low: float
    high: float


class Compared(BaseModel, frozen=True):
    """A measure of a selection beside random ones of the same size, and their difference.

    as_good: the share of the random ones that reach what the selection reaches.
    """

    selection: Interval
    random: Interval
    difference: Interval
    as_good: float


class Measured(NamedTuple):
    """One measure in t trials. selection: (t, n) or (1, n) float64; random: (t, p); NaN where a unit has no part in it.

    is_paired: both have the same units in their columns.
    """

    selection: np.ndarray
    random: np.ndarray
    is_paired: bool


def nearest_labelled(train: np.ndarray, test: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """((m, k) int64 rows of `train`, (m, k) float32 cosines), the most similar first, of equals the first row.

    train: (n, d), test: (m, d) unit rows; k is at most n.
    """
    rows, cosines, left = [], [], np.asarray(train, dtype=np.float32)
    for start in range(0, len(test), BLOCK):
        similarity = np.asarray(test[start : start + BLOCK], dtype=np.float32) @ left.T
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        rows.append(order)
        cosines.append(np.take_along_axis(similarity, order, axis=1))
    if not rows:
        return np.zeros((0, k), dtype=np.int64), np.zeros((0, k), dtype=np.float32)
    return np.concatenate(rows), np.concatenate(cosines)


def knn_predicted(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, *, temperature: float = TEMPERATURE
) -> dict[int, np.ndarray]:
    """k → (m,) int64 predicted classes, for every k of NEIGHBOURS that the training side has images for.

    labels: (n,) int64 from 0; temperature: raising it lets far neighbours weigh more, 0.07 is usual.
    Of classes with equal votes the first.
    """
    ks = [k for k in NEIGHBOURS if k <= len(train)]
    rows, cosines = nearest_labelled(train, test, max(ks, default=0))
    weights = np.exp(cosines.astype(np.float64) / temperature)
    predicted = {}
    for k in ks:
        votes = np.zeros((len(test), int(labels.max()) + 1))
        np.add.at(votes, (np.arange(len(test))[:, None], labels[rows[:, :k]]), weights[:, :k])
        predicted[k] = votes.argmax(axis=1)
    return predicted


def held_out(labels: np.ndarray, share: float, *, rng: np.random.Generator) -> np.ndarray:
    """(n,) bool: a stratified part of about that share; every class of two and more has images on both sides."""
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        number = min(max(round(share * len(members)), 1), len(members) - 1)
        chosen[rng.permutation(members)[:number]] = True
    return chosen


def probe_fitted(train: np.ndarray, labels: np.ndarray, classes: int, penalty: float) -> np.ndarray:
    """(d + 1, classes) float64 weights, the last row the intercepts, which are not penalised.

    They minimise the mean cross-entropy plus half the penalty times the squared weights, by L-BFGS from zeros.
    """
    from scipy.optimize import minimize

    rows = np.column_stack([np.asarray(train, dtype=np.float64), np.ones(len(train))])
    target = np.zeros((len(rows), classes))
    target[np.arange(len(rows)), labels] = 1

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(-1, classes)
        scores = rows @ weights
        scores -= scores.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(scores).sum(axis=1, keepdims=True))
        penalised = weights.copy()
        penalised[-1] = 0
        value = float((log_sum[:, 0] - (scores * target).sum(axis=1)).mean() + penalty / 2 * (penalised**2).sum())
        gradient = rows.T @ (np.exp(scores - log_sum) - target) / len(rows) + penalty * penalised
        return value, gradient.ravel()

    options = {"maxiter": 300, "ftol": 1e-9, "gtol": 1e-6}
    found = minimize(loss, np.zeros(rows.shape[1] * classes), jac=True, method="L-BFGS-B", options=options)
    return found.x.reshape(-1, classes)


def probed(weights: np.ndarray, test: np.ndarray) -> np.ndarray:
    """(m,) int64 predicted classes of (m, d) unit rows."""
    return (np.asarray(test, dtype=np.float64) @ weights[:-1] + weights[-1]).argmax(axis=1)


def probe_predicted(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, *, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """((m,) int64 predicted classes, the penalty), which is the best one on a held-out part of the training side.

    Of equally good ones the strongest; the middle one where no class has two images. labels: (n,) int64 from 0.
    """
    classes, aside = int(labels.max()) + 1, held_out(labels, HELD_OUT_SHARE, rng=rng)
    penalty = PENALTIES[len(PENALTIES) // 2]
    if aside.any():
        shares = []
        for one in PENALTIES:
            weights = probe_fitted(train[~aside], labels[~aside], classes, one)
            shares.append(float((probed(weights, train[aside]) == labels[aside]).mean()))
        penalty = PENALTIES[int(np.argmax(shares))]
    return probed(probe_fitted(train, labels, classes, penalty), test), penalty


def share_of(hits: np.ndarray) -> Interval:
    """The share of true ones and its exact interval (Clopper-Pearson), which is not empty where all are alike."""
    low, high = clopper_pearson(np.array([hits.sum()]), len(hits), CONFIDENCE)
    return Interval(value=float(hits.mean()), low=float(low[0]), high=float(high[0]))


def resampled(values: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """(1000,) float64 means of (t, n) values with resampled rows and columns; NaN counts for nothing."""
    trials, units = values.shape
    seen = np.isfinite(values)
    filled, seen = np.where(seen, values, 0.0), seen.astype(np.float64)
    return np.concatenate(
        [
            ((rows @ filled) * columns).sum(axis=1) / np.maximum(((rows @ seen) * columns).sum(axis=1), 1e-12)
            for rows, columns in zip(_weights(trials, rng), _weights(units, rng), strict=True)
        ]
    )


def _weights(number: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """(50, number) float64 counts of how often each unit is drawn, with replacement, for 1,000 resamples."""
    for _ in range(RESAMPLES // RESAMPLED_AT_ONCE):
        drawn = rng.integers(number, size=(RESAMPLED_AT_ONCE, number))
        drawn += number * np.arange(RESAMPLED_AT_ONCE)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=drawn.size)
        yield counts.reshape(drawn.shape).astype(np.float64)


def interval(value: float, replicates: np.ndarray) -> Interval:
    """The percentile interval."""
    low, high = np.quantile(replicates, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(value=value, low=float(low), high=float(high))


def mean_of(values: np.ndarray, *, rng: np.random.Generator) -> Interval:
    """The mean of (t, n) values with its bootstrap interval."""
    return interval(float(np.nanmean(values)), resampled(values, rng=rng))


def compared(measured: Measured, *, rng: np.random.Generator) -> Compared:
    """A measure of the selection, of random ones, and the difference: of pairs, where both have the same units."""
    mine, others, is_paired = measured
    replicates = [resampled(values, rng=rng) for values in (mine, others)]
    selection, random = (
        interval(float(np.nanmean(v)), found) for v, found in zip((mine, others), replicates, strict=True)
    )
    if is_paired:
        difference = mean_of(mine - others, rng=rng)
    else:
        difference = interval(selection.value - random.value, replicates[0] - replicates[1])
    as_good = float((np.nanmean(others, axis=1) >= np.nanmean(mine, axis=1)).mean())
    return Compared(selection=selection, random=random, difference=difference, as_good=as_good)


def radii(similarity: np.ndarray, group: np.ndarray) -> np.ndarray:
    """(n,) float32: the cosine of each reference image to its 5th nearest other one of its group, or to the last.

    similarity: (n, n) of the reference images; group: (n,) int64, each of at least two images.
    """
    result = np.empty(len(group), dtype=np.float32)
    for one in np.unique(group):
        rows = np.flatnonzero(group == one)
        others = similarity[np.ix_(rows, rows)].copy()
        np.fill_diagonal(others, -np.inf)
        k = min(BALL, len(rows) - 1)
        result[rows] = np.partition(others, -k, axis=1)[:, -k]
    return result


def judged(similarity: np.ndarray, radius: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """((n,) nearest cosine, (n,) bool covered, (m,) bool relevant) of n reference images and m selected ones.

    similarity: (n, m) float32; radius: (n,) as `radii` gives it.
    """
    nearest = similarity.max(axis=1)
    return nearest, nearest >= radius, (similarity >= radius[:, None]).any(axis=0)


def against_random(
    within: np.ndarray,
    similarity: np.ndarray,
    group: np.ndarray,
    selected: int,
    *,
    draws: int,
    rng: np.random.Generator,
) -> dict[str, Measured]:
    """The measures of a whole selection, against that many random ones. For reference images that retrieved it, biased.

    within: (n, n) cosines of the reference images; similarity: (n, selected + p) to the selected images and to those of
    the pool; group: (n,) int64.
    """
    radius, pool = radii(within, group), similarity.shape[1] - selected
    size = min(selected, pool)
    own = judged(similarity[:, :selected], radius)
    random = [_empty(len(group), pool) for _ in range(draws)]
    for values in random:
        drawn = np.sort(rng.choice(pool, size, replace=False))
        _enter(values, np.arange(len(group)), drawn, judged(similarity[:, selected + drawn], radius))
    return _measures([[np.asarray(one, dtype=np.float64) for one in own]], random)


def against_random_held_out(
    within: np.ndarray,
    similarity: np.ndarray,
    group: np.ndarray,
    halves: np.ndarray,
    credited: np.ndarray,
    *,
    rng: np.random.Generator,
) -> dict[str, Measured] | None:
    """The same, where a reference image is asked only about what was selected for the other half of them.

    halves: (n, t) int64, 0 or 1, of each reference image in t cuts; credited: (m, t, 2) bool, whether a selected image
    was selected for that half. None if no cut leaves two images of every group, and selected ones, on either side.
    """
    selected, pool, trials = len(credited), similarity.shape[1] - len(credited), []
    for cut in range(halves.shape[1]):
        mine, random = _empty(len(group), selected), _empty(len(group), pool)
        for half in (0, 1):
            rows, chosen = np.flatnonzero(halves[:, cut] == half), np.flatnonzero(credited[:, cut, 1 - half])
            if (
                not len(chosen)
                or len(chosen) > pool
                or np.unique(group[rows], return_counts=True)[1].min(initial=2) < 2
            ):
                break
            if not len(rows):
                break
            radius = radii(within[np.ix_(rows, rows)], group[rows])
            drawn = np.sort(rng.choice(pool, len(chosen), replace=False))
            _enter(mine, rows, chosen, judged(similarity[np.ix_(rows, chosen)], radius))
            _enter(random, rows, drawn, judged(similarity[np.ix_(rows, selected + drawn)], radius))
        else:
            trials.append((mine, random))
    return _measures([mine for mine, _ in trials], [random for _, random in trials]) if trials else None


def _empty(references: int, images: int) -> list[np.ndarray]:
    return [np.full(number, np.nan) for number in (references, references, images)]


def _enter(values: list[np.ndarray], rows: np.ndarray, chosen: np.ndarray, judgement: tuple[np.ndarray, ...]) -> None:
    """Puts what is judged of some reference images and some selected ones in their places; of two judgements the mean.

    Selected images can be judged by either half.
    """
    for place, units, found in zip(values, (rows, rows, chosen), judgement, strict=True):
        known = place[units]
        place[units] = np.where(np.isnan(known), found, (known + found) / 2)


def _measures(mine: list[list[np.ndarray]], random: list[list[np.ndarray]]) -> dict[str, Measured]:
    names = {"nearest": True, "coverage": True, "relevance": False}
    return {
        name: Measured(np.stack([one[i] for one in mine]), np.stack([one[i] for one in random]), is_paired)
        for i, (name, is_paired) in enumerate(names.items())
    }


def spread(
    selected: np.ndarray, pool: np.ndarray, num_clusters: int, *, draws: int, rng: np.random.Generator
) -> dict[str, Compared]:
    """The entropy of a selection over the clusters, and the clusters that it has images of, against random ones.

    selected: (m,) int64 cluster of each selected image; pool: (p,) of images of the pool. The selection itself is no
    sample: only the random ones vary, and the intervals are those of 95% of them.
    """
    own = np.bincount(selected, minlength=num_clusters)
    size = min(len(selected), len(pool))
    drawn = [np.bincount(rng.choice(pool, size, replace=False), minlength=num_clusters) for _ in range(draws)]
    figures = {"entropy": entropy_bits, "clusters": lambda counts: float(np.count_nonzero(counts))}
    found = {}
    for name, figure in figures.items():
        mine, others = figure(own), np.array([figure(counts) for counts in drawn])
        found[name] = Compared(
            selection=Interval(value=mine, low=mine, high=mine),
            random=interval(float(others.mean()), others),
            difference=interval(mine - float(others.mean()), mine - others),
            as_good=float((others >= mine).mean()),
        )
    return found
