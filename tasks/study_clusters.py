"""How many clusters a pool needs: k-means of a sample for several k, what each is good for, and which k is chosen.

What is measured of each k, in the mean over SEEDS fits from different starts:
- the objective (mean cosine to the centroid) of rows that were not fitted on;
- sizes: imbalance k Σ n² / (Σ n)², 1 where all are equal, k where one cluster holds everything;
- stability: the adjusted Rand index of two of these fits (Hubert and Arabie 1985), in the mean over all pairs;
- labels of curated images that are assigned to the pool's clusters: purity, V-measure (Rosenberg and Hirschberg 2007)
  and adjusted mutual information (Vinh et al. 2010). Purity and V-measure rise with k even by chance: only the
  adjusted one can choose a k;
- retrieval: how far the images of the clusters that a collection reaches are those nearest to the collection's images:
  recall, precision, and their agreement corrected for chance (Cohen's kappa).

Which k is chosen. By labels, where a collection has some: the k of the highest adjusted mutual information. Without
them by retrieval: the k of the highest agreement. Without collections by the objective's knee. A k is
as good as the best one if the difference is within MAX_ERRORS standard errors; of those the smallest, which is the
cheapest, is chosen. If all are alike, none is: the sample cannot tell.

What carries over from a sample of s rows to a pool of n. k-means of enough rows finds the centroids of the distribution
that they come from, so what belongs to the shape of clusters (the objective, purity, which clusters a collection
reaches) carries over at the same k. What belongs to single rows (a row's nearest ones share its cluster) carries over
at the same rows per cluster, k n / s. `carried` measures which of the two holds between the sample and half of it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel

from lvd.tasks.algorithms import allocation, kmeans
from lvd.tasks.algorithms.evenness import entropy_bits

SEEDS = 4  # of each k: on the miniature pool two of them leave any k between a half and twice the best alike
RESAMPLES = 30  # of the images, with replacement, for standard errors
HELD_OUT = 0.2  # of the sample: not fitted on
# Two of seven equal means are further apart in one case of twenty: the studentised range, 4.17 / √2.
MAX_ERRORS = 3.0
MIN_ROWS_PER_CLUSTER = 16  # of the ladder's largest k; Faiss warns below 39, and a fit of `cluster` takes 256
LADDER_STEPS = 7
MAX_NEIGHBORS = 256  # of one query
KNEE = 0.5  # after a knee a doubling of k gains at most this share of what it gained before

Rule = Literal["labels", "retrieval", "objective"]


class Policy(BaseModel, frozen=True, extra="forbid"):
    """What retrieval asks for. images: that the collection is to retrieve, by either kind of retrieval."""

    images: int
    min_queries: int
    per_cluster: int
    max_images: int


class Scaled(BaseModel, frozen=True):
    """A policy as a sample of the pool can show it. is_thin: the search is wider than the policy's, as the sample has
    less than one row for each query."""

    neighbors: int
    min_queries: int
    per_cluster: int
    max_images: int
    is_thin: bool


@dataclass(frozen=True)
class Collection:
    """Images of a curated collection. vectors: (q, d) float16, unit rows; labels: (q,) int64, -1 for none.

    images: of the whole collection, of which these are a sample.
    """

    name: str
    vectors: np.ndarray
    labels: np.ndarray
    images: int
    policy: Policy

    @property
    def is_labelled(self) -> bool:
        """Whether labels can tell clusters apart: there are two, and one stands twice."""
        found = np.unique(self.labels[self.labels >= 0], return_counts=True)[1]
        return len(found) > 1 and found.max() > 1


@dataclass(frozen=True)
class Clustering:
    """One fit. cell: (s,) int32 of the sample's rows; held_out: (h,) float32 similarities of the rows not fitted on.

    homes: the cluster of each image of each collection. fitted: the objective of the rows fitted on.
    """

    num_clusters: int
    cell: np.ndarray
    held_out: np.ndarray
    fitted: float
    homes: tuple[np.ndarray, ...]


class Found(NamedTuple):
    """How the images of the eligible clusters and the nearest ones overlap. agreement: Cohen's kappa."""

    recall: float
    precision: float
    agreement: float


class Choice(BaseModel, frozen=True):
    """What one rule says. num_clusters: None if the sample cannot tell; alike: every k as good as the best.

    scores: of each k, as the rule compares them.
    """

    rule: Rule
    num_clusters: int | None
    best: int
    alike: tuple[int, ...]
    scores: dict[int, float]
    why: str


class Carried(BaseModel, frozen=True):
    """How the rule's measure differs between the sample and half of it, in the mean over k."""

    at_same_k: float
    at_same_rows: float  # per cluster: half of the sample with half of the k

    @property
    def by_rows(self) -> bool:
        """Whether equal rows per cluster carry the measure over better than an equal k."""
        return self.at_same_rows < self.at_same_k


def ladder(num_rows: int) -> tuple[int, ...]:
    """The k that are tried if none are named: up to LADDER_STEPS powers of two, ascending.

    num_rows: fitted on; the largest k has at least MIN_ROWS_PER_CLUSTER of them for each cluster.
    """
    top = int(math.log2(max(num_rows / MIN_ROWS_PER_CLUSTER, 4)))
    return tuple(2**power for power in range(max(top - LADDER_STEPS + 1, 1), top + 1))


def scaled(policy: Policy, *, images: int, queries: int, share: float) -> Scaled:
    """The policy for a sample of that share of the pool, asked with `queries` of the collection's images.

    Images of the pool are scaled by the share: those of a cluster, at most, and wanted. Each query looks for its part
    of the wanted ones. The least queries of a cluster are scaled by queries / images.
    """
    neighbors = policy.images * share / queries
    return Scaled(
        neighbors=min(max(math.ceil(neighbors), 1), MAX_NEIGHBORS),
        min_queries=max(round(policy.min_queries * queries / images), 1),
        per_cluster=max(round(policy.per_cluster * share), 1),
        max_images=max(round(policy.max_images * share), 1),
        is_thin=neighbors < 1,
    )


def clustering(
    sample: np.ndarray,
    num_held_out: int,
    num_clusters: int,
    collections: list[Collection],
    *,
    iterations: int,
    seed: int,
) -> Clustering:
    """A fit of the sample's rows but for the first `num_held_out`, and where everything lies.

    sample: (s, d) float16, unit rows in random order.
    """
    fit = kmeans.fit(sample[num_held_out:], num_clusters=num_clusters, iterations=iterations, seed=seed)
    cell, similarity = (part[:, 0] for part in kmeans.assign(sample, fit.centroids))
    return Clustering(
        num_clusters=num_clusters,
        cell=cell,
        held_out=similarity[:num_held_out],
        fitted=float(similarity[num_held_out:].mean(dtype=np.float64)),
        homes=tuple(kmeans.assign(one.vectors, fit.centroids)[0][:, 0] for one in collections),
    )


class Table:
    """How often each pair of two partitions' parts occurs, where it does. left, right: (n,) integers of any kind."""

    def __init__(self, left: np.ndarray, right: np.ndarray) -> None:
        rows, columns = (np.unique(part, return_inverse=True)[1] for part in (left, right))
        self.left, self.right = np.bincount(rows), np.bincount(columns)
        place, self.both = np.unique(rows * len(self.right) + columns, return_counts=True)
        self.row, self.column = np.divmod(place, len(self.right))
        self.total = len(left)

    @property
    def information(self) -> float:
        """Mutual information in bits."""
        expected = self.left[self.row] * self.right[self.column] / self.total
        return float((self.both * np.log2(self.both / expected)).sum() / self.total)


def purity(cells: np.ndarray, labels: np.ndarray) -> float:
    """The share of images whose label is the most frequent one of their cluster; rises with the number of clusters."""
    table = Table(cells, labels)
    most = np.zeros(len(table.left), dtype=np.int64)
    np.maximum.at(most, table.row, table.both)
    return float(most.sum() / table.total)


def v_measure(left: np.ndarray, right: np.ndarray) -> float:
    """Twice the mutual information over the sum of the entropies: 1 for equal partitions. Source: see the module."""
    table = Table(left, right)
    whole = entropy_bits(table.left) + entropy_bits(table.right)
    return 2 * table.information / whole if whole else 1.0


def adjusted_information(left: np.ndarray, right: np.ndarray, expected: float | None = None) -> float:
    """Adjusted mutual information, by the mean of the entropies: 1 for equal partitions, 0 in the mean by chance.

    0 where a partition has one part, or both have one for each image. expected: the information by chance, where it is
    known. Source: Vinh et al., JMLR 2010.
    """
    table = Table(left, right)
    most = (entropy_bits(table.left) + entropy_bits(table.right)) / 2
    expected = expected_information(table.left, table.right) if expected is None else expected
    return (table.information - expected) / (most - expected) if most - expected > 1e-12 else 0.0


def expected_information(left: np.ndarray, right: np.ndarray) -> float:
    """The mutual information of two partitions in bits, in the mean over all permutations.

    left, right: sizes of the parts. n images have at most √(2n) different sizes, so it costs at most n √(2n) steps.
    """
    from scipy.special import gammaln

    total = int(left.sum())
    log_factorial = gammaln(np.arange(total + 1) + 1.0)
    sizes, times = np.unique(right, return_counts=True)
    result = 0.0
    for size, many in zip(*np.unique(left, return_counts=True), strict=True):
        low, high = np.maximum(1, size + sizes - total), np.minimum(size, sizes)
        length = high - low + 1
        other, weight = np.repeat(sizes, length), np.repeat(times, length)
        both = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length) + np.repeat(low, length)
        log_chance = (
            log_factorial[size] + log_factorial[total - size] + log_factorial[other] + log_factorial[total - other]
        )
        log_chance = log_chance - log_factorial[total] - log_factorial[both] - log_factorial[size - both]
        log_chance -= log_factorial[other - both] + log_factorial[total - size - other + both]
        gain = both / total * np.log2(total * both / (size * other))
        result += many * float((weight * gain * np.exp(log_chance)).sum())
    return result


def adjusted_rand_index(left: np.ndarray, right: np.ndarray) -> float:
    """1 for equal partitions, 0 in the mean by chance. Source: Hubert and Arabie 1985."""
    table = Table(left, right)

    def pairs(counts: np.ndarray) -> float:
        return float((counts * (counts - 1.0)).sum() / 2)

    together, of_left, of_right = pairs(table.both), pairs(table.left), pairs(table.right)
    expected = of_left * of_right / max(pairs(np.array([table.total])), 1)
    most = (of_left + of_right) / 2
    return (together - expected) / (most - expected) if most > expected else 1.0


def reached(of: Clustering, home: np.ndarray, min_queries: int) -> tuple[np.ndarray, np.ndarray]:
    """The eligible clusters, sorted, and which rows of the sample lie in them: (c,) int64, (s,) bool."""
    eligible = allocation.eligible_clusters(home, min_queries=min_queries)
    is_eligible = np.zeros(of.num_clusters, dtype=bool)
    is_eligible[eligible] = True
    return eligible, is_eligible[of.cell]


def quotas(of: Clustering, eligible: np.ndarray, policy: Scaled) -> np.ndarray:
    """Images of the sample that the policy draws from each eligible cluster: (c,) int64."""
    sizes = np.bincount(of.cell, minlength=of.num_clusters)[eligible]
    return allocation.cluster_sample(eligible, sizes, per_cluster=policy.per_cluster, max_images=policy.max_images)


def marked(rows: np.ndarray, num_rows: int) -> np.ndarray:
    """(num_rows,) bool, set at the rows: (…) integers."""
    result = np.zeros(num_rows, dtype=bool)
    result[rows.ravel()] = True
    return result


def found(is_near: np.ndarray, is_reached: np.ndarray) -> Found:
    """Recall: of the near images, the share in eligible clusters. Precision: of theirs, the share that is near.

    Agreement: 1 if they are the same, 0 as by chance, which is also where clusters hold all images or none; of few near
    ones among many it is the F1 of recall and precision. is_near, is_reached: (s,) bool. Source: Cohen 1960.
    """
    near, reached_, both = (float(np.count_nonzero(part)) for part in (is_near, is_reached, is_near & is_reached))
    num = len(is_near)
    apart = near * (num - reached_) + reached_ * (num - near)
    agreement = 2 * (both * num - near * reached_) / apart if apart else 0.0
    return Found(both / max(near, 1), both / max(reached_, 1), agreement)


def jaccard(left: np.ndarray, right: np.ndarray) -> float:
    """The share of rows in both among those in either, both (s,) bool; 1 if there are none at all."""
    either = np.count_nonzero(left | right)
    return np.count_nonzero(left & right) / either if either else 1.0


def resampled(num: int, rng: np.random.Generator) -> np.ndarray:
    """(1 + RESAMPLES, num) int64: all positions, then draws with replacement."""
    return np.concatenate([np.arange(num)[None], rng.integers(num, size=(RESAMPLES, num))])


def scores(
    fits: list[list[Clustering]], score: Callable[[Clustering, int], list[float]], num_collections: int
) -> np.ndarray:
    """(k, seeds, 1 + RESAMPLES) float64: score(clustering, collection) in the mean over the collections."""
    numbers = range(num_collections)
    return np.array([[np.mean([score(fit, i) for i in numbers], axis=0) for fit in of_k] for of_k in fits])


def scores_by_labels(fits: list[list[Clustering]], collections: list[Collection], *, seed: int) -> np.ndarray:
    """The adjusted mutual information of the labels, as `scores`; collections without labels are left out.

    All resamples of a fit are adjusted by the same expected information: what they vary by is the same, and it costs
    far less.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, 1]))
    own = [i for i, one in enumerate(collections) if one.is_labelled]
    rows = [np.flatnonzero(collections[i].labels >= 0) for i in own]
    draws = [of[resampled(len(of), rng)] for of in rows]

    def score(fit: Clustering, place: int) -> list[float]:
        home, labels = fit.homes[own[place]], collections[own[place]].labels
        whole = Table(home[rows[place]], labels[rows[place]])
        expected = expected_information(whole.left, whole.right)
        return [adjusted_information(home[drawn], labels[drawn], expected) for drawn in draws[place]]

    return scores(fits, score, len(own))


def scores_by_retrieval(
    fits: list[list[Clustering]], near: list[np.ndarray], policies: list[Scaled], *, seed: int
) -> np.ndarray:
    """The agreement of cluster-based with sample-based retrieval, as `scores`.

    near: the rows of the sample that are nearest to each image, (q, neighbors) int64 of each collection.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, 2]))
    draws = [resampled(len(rows), rng) for rows in near]
    num_rows = len(fits[0][0].cell)
    marks = [[marked(rows[drawn], num_rows) for drawn in draw] for rows, draw in zip(near, draws, strict=True)]

    def score(fit: Clustering, place: int) -> list[float]:
        least, home = policies[place].min_queries, fit.homes[place]
        both = zip(draws[place], marks[place], strict=True)
        return [found(is_near, reached(fit, home[drawn], least)[1]).agreement for drawn, is_near in both]

    return scores(fits, score, len(near))


def scores_by_objective(fits: list[list[Clustering]], *, seed: int) -> np.ndarray:
    """The mean cosine of the rows not fitted on, as `scores`."""
    draws = resampled(len(fits[0][0].held_out), np.random.default_rng(np.random.SeedSequence([seed, 3])))
    return scores(fits, lambda fit, _: [float(fit.held_out[drawn].mean(dtype=np.float64)) for drawn in draws], 1)


def alike(values: np.ndarray) -> np.ndarray:
    """(k,) bool: where the mean over the seeds is within MAX_ERRORS standard errors of the highest one.

    The error of a difference: over the resamples, of which every k has the same ones, and over the seeds (`of_seeds`).
    values: (k, seeds, 1 + resamples).
    """
    mean = values.mean(axis=1)
    best = int(mean[:, 0].argmax())
    error = np.sqrt((mean[best] - mean)[:, 1:].var(axis=1, ddof=1) + 2 * of_seeds(values))
    return mean[best, 0] - mean[:, 0] <= MAX_ERRORS * error


def of_seeds(values: np.ndarray) -> float:
    """The variance of a k's mean over its seeds; 0 with one seed. values: (k, seeds, 1 + resamples).

    A few seeds say little of one k, so it is pooled over all k: by the median, as a k that is much too small can come
    out quite different each time, over the median of a chi-squared variable.
    """
    from scipy.stats import chi2

    seeds = values.shape[1]
    if seeds < 2:
        return 0.0
    usual = chi2.median(seeds - 1) / (seeds - 1)
    return float(np.median(values[:, :, 0].var(axis=1, ddof=1)) / usual / seeds)


MEASURES = {
    "labels": "the adjusted mutual information with the labels",
    "retrieval": "the agreement of both kinds of retrieval",
}


def chosen_by_peak(rule: Literal["labels", "retrieval"], ks: tuple[int, ...], values: np.ndarray) -> Choice:
    """The smallest k whose score cannot be told from the highest one; none if all are alike.

    values: (k, seeds, 1 + resamples), as `scores_by_labels` or `scores_by_retrieval` has them.
    """
    mean, same = values.mean(axis=1)[:, 0], alike(values)
    place, what = int(mean.argmax()), MEASURES[rule]
    first = int(same.argmax())
    within = f"within {MAX_ERRORS:g} standard errors"
    if same.all():
        why = (
            f"{what} cannot tell: from {ks[0]:,} to {ks[-1]:,} clusters it is {mean.min():.3f} to {mean.max():.3f}, "
            f"all {within} of one another. The cheapest is {ks[0]:,}; a larger sample or more labelled images may tell"
        )
    elif first != place:
        why = (
            f"{ks[first]:,} clusters, as {what} is {mean[first]:.3f} there, which is {within} of the highest, "
            f"{mean[place]:.3f} at {ks[place]:,}: of the {same.sum()} alike ({_listed(ks, same)}) it is the cheapest"
        )
    else:
        also = f"; not to be told from it, but dearer: {_listed(ks, same, but=place)}" if same.sum() > 1 else ""
        why = f"{ks[place]:,} clusters, as {what} is highest there, {mean[place]:.3f}{also}"
    if not same.all() and first == len(ks) - 1:
        why += "; it is the largest that was tried, and more may be better: name more, and a larger sample"
    if not same.all() and first == 0:
        why += "; it is the smallest that was tried, and fewer may be as good"
    return Choice(
        rule=rule,
        num_clusters=None if same.all() else ks[first],
        best=ks[place],
        alike=tuple(np.array(ks)[same].tolist()),
        scores=dict(zip(ks, mean.tolist(), strict=True)),
        why=why,
    )


def _listed(ks: tuple[int, ...], chosen: np.ndarray, but: int = -1) -> str:
    return ", ".join(f"{k:,}" for i, k in enumerate(ks) if chosen[i] and i != but)


def chosen_by_knee(ks: tuple[int, ...], values: np.ndarray) -> Choice:
    """The k beyond which more clusters gain much less; none if the gains do not break off anywhere.

    The gain is the fall of log(1 - objective). Data that are spread evenly gain the same at each doubling of k (the
    residual goes as k^(-2 / dimension)): a straight line over log k, without a knee. Else the knee is where the curve
    is highest above that line from the first k to the last, if it is so by more than MAX_ERRORS standard errors and a
    doubling beyond it gains at most KNEE of what one gained before, in the mean; of several alike the smallest.
    Source of the distance from the chord: Satopää et al., "Finding a kneedle in a haystack", 2011.

    values: (k, seeds, 1 + resamples) objectives.
    """
    scores_ = dict(zip(ks, values.mean(axis=1)[:, 0].tolist(), strict=True))
    said = {"rule": "objective", "scores": scores_}
    if len(ks) < 3:
        why = f"the objective cannot tell: a knee takes at least 3 numbers of clusters, there were {len(ks)}"
        return Choice(num_clusters=None, best=ks[-1], alike=ks, why=why, **said)
    doublings = np.log2(np.array(ks) / ks[0])[:, None, None]
    gained = -np.log(np.maximum(1 - values, 1e-9))
    gained -= gained[0]
    above = (gained - gained[-1] * doublings / doublings[-1])[1:-1]
    mean, whole = above.mean(axis=1), gained.mean(axis=1)[:, 0]
    before = whole[1:-1] / doublings[1:-1, 0, 0]
    after = (whole[-1] - whole[1:-1]) / (doublings[-1] - doublings[1:-1])[:, 0, 0]
    error = np.sqrt(mean[:, 1:].var(axis=1, ddof=1) + of_seeds(above))
    is_knee = alike(above) & (mean[:, 0] > MAX_ERRORS * error) & (after <= KNEE * before)
    if not is_knee.any():
        shares = [f"{1 - math.exp(-gain):.1%}" for gain in (before[0], after[-1])]
        why = (
            f"the objective cannot tell: it has no knee from {ks[0]:,} to {ks[-1]:,} clusters, where the first "
            f"doubling takes {shares[0]} off the distance to the centroid and the last {shares[1]}. "
            "Curated collections, best with labels, can tell more"
        )
        return Choice(num_clusters=None, best=ks[-1], alike=ks, why=why, **said)
    place, inner = int(is_knee.argmax()), ks[1:-1]
    shares = [f"{1 - math.exp(-float(gain[place])):.1%}" for gain in (before, after)]
    also = f"; not to be told from it, but dearer: {_listed(inner, is_knee, but=place)}" if is_knee.sum() > 1 else ""
    why = (
        f"{inner[place]:,} clusters, where the objective has its knee: up to it a doubling takes {shares[0]} off the "
        f"distance to the centroid, beyond it {shares[1]}{also}"
    )
    best = inner[int(np.where(is_knee, mean[:, 0], -np.inf).argmax())]
    return Choice(num_clusters=inner[place], best=best, alike=tuple(np.array(inner)[is_knee].tolist()), why=why, **said)


def carried(ks: tuple[int, ...], whole: np.ndarray, half: np.ndarray) -> Carried | None:
    """What carries a measure over from half of the sample to the sample; None where no k has a half within the ladder.

    whole, half: (k,) the measure on either. On the half, k / 2 is read between the k that were tried, by log k.
    """
    inside = np.array([k / 2 >= ks[0] for k in ks])
    if not inside.any():
        return None
    at_half_k = np.interp(np.log(np.array(ks)[inside] / 2), np.log(ks), half)
    return Carried(
        at_same_k=float(np.abs(whole - half)[inside].mean()),
        at_same_rows=float(np.abs(whole[inside] - at_half_k).mean()),
    )
