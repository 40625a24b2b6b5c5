"""The measures of a clustering by hand and by brute force, and the chosen number of clusters on planted groups."""

import re
from itertools import permutations

import numpy as np
import pytest

from lvd.tasks import study_clusters as study
from lvd.tasks.algorithms.neighbours import nearest

POLICY = study.Policy(images=100, min_queries=4, per_cluster=10_000, max_images=1_000_000)
KS = (2, 4, 8, 16, 32, 64)
GROUPS = 16
SELECTED = 3  # groups that a collection with a narrow interest holds


def planted(groups: np.ndarray, spread: float, rng: np.random.Generator, dim: int = 24) -> np.ndarray:
    """(n, dim) float16 unit rows around one direction for each group; the directions are always the same."""
    middles = np.random.default_rng(5).normal(size=(groups.max() + 1, dim))
    middles /= np.linalg.norm(middles, axis=1, keepdims=True)
    rows = middles[groups] + rng.normal(size=(len(groups), dim)) * spread / np.sqrt(dim)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def fits_of(rows: np.ndarray, collections: list[study.Collection]) -> list[list[study.Clustering]]:
    held_out = len(rows) // 5
    return [
        [study.clustering(rows, held_out, k, collections, iterations=6, seed=seed) for seed in range(study.SEEDS)]
        for k in KS
    ]


@pytest.fixture(scope="module")
def collection() -> study.Collection:
    """Images of all groups, with the right labels."""
    labels = np.arange(96) % GROUPS
    vectors = planted(labels, 0.5, np.random.default_rng(1))
    return study.Collection("all", vectors, labels.astype(np.int64), 96, POLICY)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    rng = np.random.default_rng(0)
    return planted(rng.integers(GROUPS, size=1000), 0.5, rng)


@pytest.fixture(scope="module")
def fits(rows: np.ndarray, collection: study.Collection) -> list[list[study.Clustering]]:
    few = collection.labels < SELECTED
    own = study.Collection("few", collection.vectors[few], collection.labels[few] * 0 - 1, int(few.sum()), POLICY)
    return fits_of(rows, [collection, own])


PARTITIONS = {
    "equal, by other names": ([0, 0, 1, 1], [7, 7, 3, 3], 1.0, 1.0, 1.0, 1.0),
    "one is finer": ([0, 0, 1, 2], [0, 0, 1, 1], 1.0, 0.8, 4 / 7, 4 / 7),
    "one part": ([0, 0, 0, 0], [0, 0, 1, 1], 0.5, 0.0, 0.0, 0.0),
    "crossed": ([0, 0, 1, 1], [0, 1, 0, 1], 0.5, 0.0, -0.5, -0.5),
    # nothing is left to chance: the adjusted measures say nothing, the others look perfect
    "an image each": ([0, 1, 2, 3], [0, 1, 2, 3], 1.0, 1.0, 1.0, 0.0),
}


@pytest.mark.parametrize("case", PARTITIONS)
def test_measures_of_small_partitions(case: str) -> None:
    left, right, purity, v_measure, rand, information = PARTITIONS[case]
    left, right = np.array(left), np.array(right)
    assert study.purity(left, right) == pytest.approx(purity)
    assert study.v_measure(left, right) == pytest.approx(v_measure)
    assert study.adjusted_rand_index(left, right) == pytest.approx(rand)
    assert study.adjusted_information(left, right) == pytest.approx(information, abs=1e-9)


@pytest.mark.parametrize("left", [[0, 0, 0, 1, 1, 2, 2], [0, 1, 2, 3, 4, 4, 4], [0, 0, 0, 0, 0, 0, 1]])
@pytest.mark.parametrize("right", [[0, 0, 1, 1, 1, 1, 1], [0, 1, 2, 2, 3, 3, 3]])
def test_expected_information_is_the_mean_over_all_permutations(left: list[int], right: list[int]) -> None:
    left, right = np.array(left), np.array(right)
    brute = np.mean([study.Table(left, right[list(order)]).information for order in permutations(range(len(right)))])
    assert study.expected_information(np.bincount(left), np.bincount(right)) == pytest.approx(brute, abs=1e-12)


def test_only_what_is_adjusted_does_not_rise_by_chance() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(5, size=400)
    few, many = (rng.integers(k, size=400) for k in (5, 200))
    assert study.purity(many, labels) > study.purity(few, labels) + 0.2
    assert study.v_measure(many, labels) > study.v_measure(few, labels) + 0.2
    for cells in (few, many):
        assert abs(study.adjusted_information(cells, labels)) < 0.05
        assert abs(study.adjusted_rand_index(cells, labels)) < 0.05


REACHED = {
    "the same": ("1100", "1100", (1.0, 1.0, 1.0)),
    "by chance": ("1100", "1010", (0.5, 0.5, 0.0)),
    "all the pool": ("1100", "1111", (1.0, 0.5, 0.0)),  # a recall of 1 that says nothing
    "no cluster": ("1100", "0000", (0.0, 0.0, 0.0)),
    "the others": ("1100", "0011", (0.0, 0.0, -1.0)),
}


@pytest.mark.parametrize("case", REACHED)
def test_how_reached_and_near_images_overlap(case: str) -> None:
    near, inside, expected = REACHED[case]
    near, inside = (np.array([sign == "1" for sign in part]) for part in (near, inside))
    assert study.found(near, inside) == pytest.approx(expected)


def test_the_agreement_of_few_among_many_is_the_f1() -> None:
    near, inside = np.zeros(100_000, dtype=bool), np.zeros(100_000, dtype=bool)
    near[:100], inside[40:200] = True, True
    recall, precision, agreement = study.found(near, inside)
    assert (recall, precision) == (0.6, 0.375)
    assert agreement == pytest.approx(2 * recall * precision / (recall + precision), abs=1e-3)


def test_clusters_are_reached_from_the_least_number_of_queries_on() -> None:
    of = study.Clustering(4, np.array([0, 1, 1, 2, 3, 2]), np.zeros(0, np.float32), 0.0, ())
    eligible, inside = study.reached(of, np.array([1, 1, 2, 2, 2, 0]), 2)
    assert eligible.tolist() == [1, 2] and inside.tolist() == [False, True, True, True, False, True]
    scaled = study.Scaled(neighbors=1, min_queries=2, per_cluster=1, max_images=9, is_thin=False)
    assert study.quotas(of, eligible, scaled).tolist() == [1, 1]


SCALES = {
    "the whole": (1000, 1.0, 1000, (4, 4, 200, 6000, False)),
    "half of the pool": (1000, 0.5, 1000, (2, 4, 100, 3000, False)),
    "less than a row for each": (1000, 0.01, 1000, (1, 4, 2, 60, True)),
    "a half of the images looks for twice as many each": (1000, 1.0, 500, (8, 2, 200, 6000, False)),
    "many for few": (10, 1.0, 10, (study.MAX_NEIGHBORS, 4, 200, 6000, False)),
}


@pytest.mark.parametrize("case", SCALES)
def test_a_policy_is_scaled(case: str) -> None:
    images, share, queries, expected = SCALES[case]
    policy = study.Policy(images=4000, min_queries=4, per_cluster=200, max_images=6000)
    assert tuple(study.scaled(policy, images=images, queries=queries, share=share).model_dump().values()) == expected


@pytest.mark.parametrize(
    ("rows_", "expected"), [(16_000, (8, 16, 32, 64, 128, 256, 512)), (1024, (2, 4, 8, 16, 32, 64)), (3, (2, 4))]
)
def test_the_ladder_leaves_enough_rows_for_each_cluster(rows_: int, expected: tuple[int, ...]) -> None:
    assert study.ladder(rows_) == expected


def test_labels_choose_the_planted_groups(fits: list, collection: study.Collection) -> None:
    values = study.scores_by_labels(fits, [collection], seed=0)
    choice = study.chosen_by_peak("labels", KS, values)
    assert GROUPS / 2 <= choice.num_clusters <= GROUPS * 2
    assert values.shape == (len(KS), study.SEEDS, 1 + study.RESAMPLES)
    assert choice.scores[choice.best] > 0.9 > 0.6 > choice.scores[2]
    assert f"{choice.num_clusters} clusters, as the adjusted mutual information" in choice.why
    again = study.scores_by_labels(fits, [collection], seed=0)
    assert (values == again).all() and (values != study.scores_by_labels(fits, [collection], seed=1)).any()


def test_retrieval_chooses_the_planted_groups(fits: list, rows: np.ndarray, collection: study.Collection) -> None:
    few = collection.vectors[collection.labels < SELECTED]
    neighbors = len(rows) // GROUPS // 2
    near = [nearest(few, [(0, rows)], k=neighbors)[1]]
    own = [[study.Clustering(f.num_clusters, f.cell, f.held_out, f.fitted, f.homes[1:]) for f in of] for of in fits]
    policy = study.scaled(
        POLICY.model_copy(update={"images": neighbors * len(few)}), images=len(few), queries=len(few), share=1.0
    )
    choice = study.chosen_by_peak("retrieval", KS, study.scores_by_retrieval(own, near, [policy], seed=0))
    assert GROUPS / 2 <= choice.num_clusters <= GROUPS * 2
    assert choice.scores[choice.best] > 0.8 > choice.scores[2]


def test_the_knee_is_at_the_planted_groups(fits: list) -> None:
    choice = study.chosen_by_knee(KS, study.scores_by_objective(fits, seed=0))
    assert GROUPS / 2 <= choice.num_clusters <= GROUPS * 2
    assert "knee" in choice.why


def test_labels_that_have_nothing_to_do_with_the_clusters_cannot_tell(fits: list, collection: study.Collection) -> None:
    labels = np.random.default_rng(3).permutation(collection.labels)
    other = study.Collection("shuffled", collection.vectors, labels, collection.images, POLICY)
    choice = study.chosen_by_peak("labels", KS, study.scores_by_labels(fits, [other], seed=0))
    assert choice.num_clusters is None and choice.alike == KS
    assert "cannot tell" in choice.why and "the cheapest is 2;" in choice.why.lower()


def test_an_even_spread_has_no_knee() -> None:
    rows = planted(np.arange(600), 1.0, np.random.default_rng(0))
    choice = study.chosen_by_knee(KS, study.scores_by_objective(fits_of(rows, []), seed=0))
    assert choice.num_clusters is None
    assert "cannot tell: it has no knee from 2 to 64 clusters" in choice.why


def test_two_numbers_have_no_knee() -> None:
    assert study.chosen_by_knee((2, 4), np.ones((2, 2, 31))).num_clusters is None


def scores_around(means: list[float], noise: float) -> np.ndarray:
    """(k, 4, 31) scores with that noise of the seeds; the resamples add nothing."""
    apart = np.array([-1.0, 1.0, 1.0, -1.0]) * noise
    return np.repeat((np.array(means)[:, None] + apart)[:, :, None], 31, axis=2)


PEAKS = {
    "clear": ([0.2, 0.9, 0.5], 0.01, 20, (20,), "is highest there, 0.900"),
    "a cheaper one is as good": ([0.2, 0.88, 0.9], 0.05, 20, (20, 40), r"within 3 standard errors .* the cheapest"),
    "a dearer one is as good": ([0.2, 0.9, 0.88], 0.05, 20, (20, 40), "not to be told from it, but dearer: 40"),
    "all alike": ([0.88, 0.9, 0.89], 0.05, None, (10, 20, 40), "cannot tell: from 10 to 40 clusters"),
    "the largest": ([0.2, 0.5, 0.9], 0.01, 40, (40,), "the largest that was tried"),
    "the smallest": ([0.9, 0.5, 0.2], 0.01, 10, (10,), "the smallest that was tried"),
}


@pytest.mark.parametrize("case", PEAKS)
def test_the_peak_and_what_is_within_the_noise(case: str) -> None:
    means, noise, number, alike, said = PEAKS[case]
    choice = study.chosen_by_peak("labels", (10, 20, 40), scores_around(means, noise))
    assert (choice.num_clusters, choice.alike) == (number, alike)
    assert re.search(said, choice.why), choice.why
    assert choice.why.count("that was tried") == (case in ("the largest", "the smallest"))


def test_one_k_that_comes_out_differently_each_time_makes_no_other_uncertain() -> None:
    values = scores_around([0.2, 0.5, 0.9], 0.01)
    values[0] += np.array([-0.4, 0.4, 0.4, -0.4])[:, None]
    assert study.chosen_by_peak("labels", (10, 20, 40), values).alike == (40,)


GAINS = {
    "clear": ([1.0, 1.0, 0.1, 0.1, 0.1], 8),
    "one break after another": ([1.0, 1.0, 0.45, 0.4, 0.05], 8),
    "at the first step": ([1.0, 0.1, 0.1, 0.1, 0.1], 4),
    "at the last step": ([1.0, 1.0, 1.0, 1.0, 0.1], 32),
    "even": ([0.3, 0.3, 0.3, 0.3, 0.3], None),
    "slower and slower": ([0.30, 0.28, 0.26, 0.24, 0.22], None),  # bent, but it breaks off nowhere
    "faster": ([0.1, 0.1, 1.0, 1.0, 1.0], None),
}


@pytest.mark.parametrize("case", GAINS)
def test_the_knee_is_where_gains_break_off(case: str) -> None:
    gains, number = GAINS[case]
    residual = np.exp2(-np.cumsum([0.0, *gains]))
    choice = study.chosen_by_knee((2, 4, 8, 16, 32, 64), scores_around((1 - residual).tolist(), 1e-4))
    assert choice.num_clusters == number


@pytest.mark.parametrize("by_rows", [False, True])
def test_what_carries_over_from_a_half(by_rows: bool) -> None:
    def measure(k: np.ndarray, rows: float) -> np.ndarray:
        return np.log(k / rows if by_rows else k)

    ks = (10, 20, 40, 80)
    found = study.carried(ks, measure(np.array(ks), 1000), measure(np.array(ks), 500))
    assert found.by_rows == by_rows
    assert min(found.at_same_k, found.at_same_rows) == pytest.approx(0, abs=1e-9)
    assert max(found.at_same_k, found.at_same_rows) == pytest.approx(np.log(2))


def test_no_half_of_the_numbers_within_the_ladder() -> None:
    assert study.carried((10, 15), np.zeros(2), np.zeros(2)) is None


@pytest.mark.parametrize(
    ("labels", "expected"), [([-1, -1, -1], False), ([0, 0, -1], False), ([0, 1, 2], False), ([0, 0, 1], True)]
)
def test_labels_that_can_be_used(labels: list[int], expected: bool) -> None:
    one = study.Collection("c", np.zeros((3, 2)), np.array(labels), 3, POLICY)
    assert one.is_labelled == expected
