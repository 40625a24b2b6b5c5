"""Evaluation by arrays: k-NN and probe against brute force, intervals that cover, planted selections."""

import numpy as np
import pytest

from lvd.tasks import evaluation
from lvd.tasks.evaluation import (
    Measured,
    against_random,
    against_random_held_out,
    compared,
    held_out,
    judged,
    knn_predicted,
    mean_of,
    nearest_labelled,
    probe_fitted,
    probe_predicted,
    probed,
    radii,
    share_of,
    spread,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def around(centres: np.ndarray, number: int, spread_: float, seed: int) -> np.ndarray:
    """(centres × number, d) unit rows near each centre, centre by centre."""
    rows = np.repeat(centres, number, axis=0)
    return unit(rows + spread_ * rng(seed).normal(size=rows.shape))


def test_knn_is_that_of_brute_force() -> None:
    train, test, labels = (
        unit(rng(1).normal(size=(60, 4))),
        unit(rng(2).normal(size=(30, 4))),
        rng(3).integers(5, size=60),
    )
    predicted = knn_predicted(train, labels, test)
    assert set(predicted) == {1, 5, 20}
    for k, found in predicted.items():
        for row, one in enumerate(test):
            cosines = [float(one @ other) for other in train]
            votes = [0.0] * 5
            for place in sorted(range(60), key=lambda i: -cosines[i])[:k]:
                votes[labels[place]] += np.exp(cosines[place] / 0.07)
            assert found[row] == int(np.argmax(votes))


def test_blocks_of_test_images_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = unit(rng(1).normal(size=(40, 4))), unit(rng(2).normal(size=(23, 4)))
    whole = nearest_labelled(train, test, 7)
    monkeypatch.setattr(evaluation, "BLOCK", 5)
    for left, right in zip(whole, nearest_labelled(train, test, 7), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)


def test_one_near_neighbour_outvotes_four_far_ones_unless_the_temperature_is_high() -> None:
    angles = np.array([0.1, 0.9, 0.9, 0.9, 0.9])
    train, labels = np.stack([np.cos(angles), np.sin(angles)], axis=1), np.array([0, 1, 1, 1, 1])
    test = np.array([[1.0, 0.0]])
    assert knn_predicted(train, labels, test)[5].tolist() == [0]
    assert knn_predicted(train, labels, test, temperature=10)[5].tolist() == [1]


def test_few_training_images_leave_out_larger_neighbourhoods() -> None:
    train = unit(rng(1).normal(size=(6, 3)))
    assert set(knn_predicted(train, np.array([0, 0, 0, 1, 1, 1]), train)) == {1, 5}


def test_a_held_out_part_has_images_of_every_class_and_leaves_some() -> None:
    labels = np.repeat([0, 1, 2, 3], [1, 2, 40, 7])
    part = held_out(labels, 0.25, rng=rng())
    assert np.bincount(labels[part], minlength=4).tolist() == [0, 1, 10, 2]
    assert (part == held_out(labels, 0.25, rng=rng())).all() and (part != held_out(labels, 0.25, rng=rng(1))).any()


def test_a_probe_minimises_its_loss() -> None:
    train, labels, penalty = unit(rng(1).normal(size=(40, 3))), rng(2).integers(3, size=40), 1e-2

    def loss(weights: np.ndarray) -> float:
        scores = train @ weights[:-1] + weights[-1]
        chosen = scores[np.arange(40), labels] - np.log(np.exp(scores).sum(axis=1))
        return -chosen.mean() + penalty / 2 * (weights[:-1] ** 2).sum()

    weights = probe_fitted(train, labels, 3, penalty)
    for seed in range(50):
        assert loss(weights) <= loss(weights + 1e-2 * rng(seed).normal(size=weights.shape))


def test_the_intercepts_of_a_probe_are_the_class_shares_where_features_say_nothing() -> None:
    labels = np.repeat([0, 1], [30, 10])
    weights = probe_fitted(np.zeros((40, 2)), labels, 2, 1.0)
    shares = np.exp(weights[-1]) / np.exp(weights[-1]).sum()
    np.testing.assert_allclose(shares, [0.75, 0.25], atol=1e-4)


def test_a_probe_tells_what_a_plane_separates_and_knn_does_not() -> None:
    noise = 3 * rng(1).normal(size=(400, 20))
    labels = (np.arange(400) % 2).astype(np.int64)
    rows = unit(np.column_stack([2.5 * (2 * labels - 1) + 0.1 * rng(2).normal(size=400), noise]))
    found, penalty = probe_predicted(rows[:300], labels[:300], rows[300:], rng=rng())
    assert (
        (found == labels[300:]).mean()
        > 0.97
        > (knn_predicted(rows[:300], labels[:300], rows[300:])[1] == labels[300:]).mean()
    )
    assert penalty in evaluation.PENALTIES
    again = probe_predicted(rows[:300], labels[:300], rows[300:], rng=rng())
    assert (again[0] == found).all() and again[1] == penalty


def test_a_penalty_is_the_best_one_on_a_part_of_the_training_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "PENALTIES", (1e3, 1e-4))  # one that leaves the intercepts only, one that fits
    centres, labels = unit(rng(1).normal(size=(3, 30))), rng(2).integers(3, size=80)
    rows = unit(centres[labels] + 0.3 * rng(3).normal(size=(80, 30)))
    aside, shares = held_out(labels[:60], 0.2, rng=rng()), []
    for penalty in evaluation.PENALTIES:
        weights = probe_fitted(rows[:60][~aside], labels[:60][~aside], 3, penalty)
        shares.append((probed(weights, rows[:60][aside]) == labels[:60][aside]).mean())
    best = evaluation.PENALTIES[int(np.argmax(shares))]
    assert len(set(shares)) > 1
    for test in (rows[60:], -rows[60:]):
        assert probe_predicted(rows[:60], labels[:60], test, rng=rng())[1] == best


def test_of_equally_good_penalties_the_strongest() -> None:
    rows, labels = around(np.eye(3), 10, 0.01, 1), np.repeat(np.arange(3), 10)
    assert probe_predicted(rows, labels, rows, rng=rng())[1] == evaluation.PENALTIES[0]


def test_a_probe_of_classes_of_one_image() -> None:
    found, penalty = probe_predicted(np.eye(3), np.arange(3), np.eye(3), rng=rng())
    assert found.tolist() == [0, 1, 2] and penalty == evaluation.PENALTIES[2]
    assert probed(np.zeros((4, 3)), np.eye(3)).tolist() == [0, 0, 0]


def test_the_interval_of_a_share_is_exact() -> None:
    found = share_of(np.array([True] * 8))
    assert (found.value, found.high) == (1.0, 1.0) and found.low == pytest.approx(0.025 ** (1 / 8))


def test_bootstrap_intervals_cover_the_mean() -> None:
    covered = 0
    for seed in range(200):
        found = mean_of(rng(seed).exponential(2.0, size=(1, 60)), rng=rng(seed + 1000))
        covered += found.low <= 2.0 <= found.high
    assert 0.87 < covered / 200 < 0.985


def test_intervals_of_differences_cover_with_random_selections_and_images_that_vary() -> None:
    covered = 0
    for seed in range(150):
        own = rng(seed)
        image, trial = own.normal(size=(1, 40)), own.normal(scale=0.3, size=(20, 1))
        random = image + trial + own.normal(scale=0.5, size=(20, 40))
        mine = image + 0.5 + own.normal(scale=0.5, size=(1, 40))
        found = compared(Measured(mine, random, True), rng=rng(seed + 1000)).difference
        covered += found.low <= 0.5 <= found.high
    assert covered / 150 > 0.9


def test_pairs_tell_what_two_separate_intervals_do_not() -> None:
    image = rng(1).normal(size=(1, 100))
    random = image + 0.05 * rng(2).normal(size=(20, 100))
    paired = compared(Measured(image + 0.1, random, True), rng=rng())
    apart = compared(Measured(image + 0.1, random, False), rng=rng())
    assert paired.difference.low > 0 > apart.difference.low
    assert paired.difference.value == pytest.approx(apart.difference.value)
    assert paired.selection == mean_of(image + 0.1, rng=rng())


def test_what_is_missing_counts_for_nothing() -> None:
    values = np.array([[2.0, np.nan, 2.0, np.nan], [np.nan, 2.0, np.nan, 2.0]])
    assert mean_of(values, rng=rng()) == evaluation.Interval(value=2.0, low=2.0, high=2.0)


def test_as_good_is_the_share_of_random_selections_that_reach_it() -> None:
    random = np.arange(10.0)[:, None] * np.ones((1, 3))
    assert compared(Measured(np.full((1, 3), 7.0), random, True), rng=rng()).as_good == 0.3


def test_radii_and_judgements_are_those_of_brute_force() -> None:
    images, others = unit(rng(1).normal(size=(14, 4))), unit(rng(2).normal(size=(9, 4)))
    group = np.array([0] * 10 + [1] * 4)
    radius = radii(images @ images.T, group)
    for row in range(14):
        cosines = sorted(float(images[row] @ images[i]) for i in range(14) if i != row and group[i] == group[row])
        assert radius[row] == pytest.approx(cosines[-min(5, len(cosines))], abs=1e-6)
    nearest, covered, relevant = judged(images @ others.T, radius)
    for row in range(14):
        assert nearest[row] == pytest.approx(max(float(images[row] @ one) for one in others), abs=1e-6)
        assert covered[row] == any(float(images[row] @ one) >= radius[row] for one in others)
    for column, one in enumerate(others):
        assert relevant[column] == any(float(images[row] @ one) >= radius[row] for row in range(14))


CONCEPTS = np.eye(16)[:4]


def planted(kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(60 reference images of four concepts, the concept of each, 40 selected images, 400 of the pool)."""
    references, concept = around(CONCEPTS, 15, 0.15, 1), np.repeat(np.arange(4), 15)
    pool = np.concatenate([around(CONCEPTS, 4, 0.15, 2), unit(rng(3).normal(size=(384, 16)))])
    selected = {
        "near": around(CONCEPTS, 10, 0.15, 4),
        "random": np.concatenate([around(CONCEPTS, 1, 0.15, 5)[:2], unit(rng(6).normal(size=(38, 16)))]),
        "far": unit(-np.repeat(CONCEPTS, 10, axis=0) + 0.1 * rng(7).normal(size=(40, 16))),
    }[kind]
    return references, concept, selected, pool


@pytest.mark.parametrize(("kind", "sign"), [("near", 1), ("random", 0), ("far", -1)])
def test_a_planted_selection_covers_more_or_as_much_or_less_than_random_ones(kind: str, sign: int) -> None:
    references, _, selected, pool = planted(kind)
    within, similarity = references @ references.T, references @ np.concatenate([selected, pool]).T
    measures = against_random(within, similarity, np.zeros(60, dtype=int), 40, draws=20, rng=rng())
    assert {name: one.selection.shape for name, one in measures.items()} == {
        "nearest": (1, 60),
        "coverage": (1, 60),
        "relevance": (1, 40),
    }
    assert {name: one.random.shape[0] for name, one in measures.items()} == dict.fromkeys(measures, 20)
    assert (np.isfinite(measures["relevance"].random).sum(axis=1) == 40).all()
    for name in ("nearest", "coverage", "relevance") if sign else ("coverage",):
        found = compared(measures[name], rng=rng()).difference
        assert (np.sign(found.low) + np.sign(found.high)) / 2 == sign, (name, found)


def halves_and_credits(concept: np.ndarray, of_query: np.ndarray, cuts: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Random halves, and selected images credited to the half of their query."""
    halves = rng(11).integers(2, size=(len(concept), cuts))
    return halves, np.stack([halves[of_query] == half for half in (0, 1)], axis=2)


def test_held_out_a_selection_of_concepts_still_covers_more() -> None:
    references, concept, selected, pool = planted("near")
    of_query = np.array([np.argmax(references @ one) for one in selected])
    halves, credited = halves_and_credits(concept, of_query)
    within, similarity = references @ references.T, references @ np.concatenate([selected, pool]).T
    measures = against_random_held_out(within, similarity, np.zeros(60, dtype=int), halves, credited, rng=rng())
    for name, one in measures.items():
        assert compared(one, rng=rng()).difference.low > 0, name
    assert np.isfinite(measures["nearest"].selection).all()


def test_held_out_a_selection_of_copies_of_the_references_covers_no_more() -> None:
    references = unit(rng(1).normal(size=(60, 32)))  # no concepts: nothing can be learnt from one image for another
    selected = unit(references + 0.02 * rng(2).normal(size=(60, 32)))
    pool = unit(rng(3).normal(size=(600, 32)))
    within, similarity = references @ references.T, references @ np.concatenate([selected, pool]).T
    group = np.zeros(60, dtype=int)
    biased = against_random(within, similarity, group, 60, draws=20, rng=rng())
    assert compared(biased["nearest"], rng=rng()).difference.low > 0.3
    assert compared(biased["coverage"], rng=rng()).difference.low > 0
    halves, credited = halves_and_credits(group, np.arange(60))
    fair = against_random_held_out(within, similarity, group, halves, credited, rng=rng())
    for name in ("nearest", "coverage"):
        found = compared(fair[name], rng=rng()).difference
        assert found.low < 0 < found.high, (name, found)


def test_held_out_random_selections_are_as_large_as_what_is_credited() -> None:
    references, concept, selected, pool = planted("near")
    halves, credited = halves_and_credits(concept, np.arange(40))
    credited[0] = True  # asked for by either half
    within, similarity = references @ references.T, references @ np.concatenate([selected, pool]).T
    measured = against_random_held_out(within, similarity, np.zeros(60, dtype=int), halves, credited, rng=rng())
    assert np.isfinite(measured["relevance"].selection).all()
    drawn = np.isfinite(measured["relevance"].random).sum(axis=1)
    assert (drawn <= 41).all() and (drawn > 36).all()  # an image may be drawn for either half


def test_an_image_that_either_half_asked_for_is_judged_by_both() -> None:
    references = around(np.eye(6)[:2], 2, 0.01, 1)
    others = np.concatenate([references[:1], unit(rng(2).normal(size=(9, 6)))])
    halves, credited = np.array([[0], [0], [1], [1]]), np.ones((1, 1, 2), dtype=bool)
    within, similarity = references @ references.T, references @ others.T
    measures = against_random_held_out(within, similarity, np.zeros(4, dtype=int), halves, credited, rng=rng())
    assert measures["relevance"].selection.tolist() == [[0.5]]
    assert measures["coverage"].selection.tolist() == [[1.0, 1.0, 0.0, 0.0]]


def test_no_halves_can_be_held_out_where_nothing_is_credited() -> None:
    references, concept, selected, pool = planted("near")
    halves, credited = halves_and_credits(concept, np.arange(40))
    within, similarity = references @ references.T, references @ np.concatenate([selected, pool]).T
    group = np.zeros(60, dtype=int)
    assert against_random_held_out(within, similarity, group, halves, credited & False, rng=rng()) is None
    one_sided = np.zeros_like(halves)
    assert against_random_held_out(within, similarity, group, one_sided, credited, rng=rng()) is None


def test_the_spread_of_one_cluster_and_of_a_random_selection() -> None:
    pool = rng(1).integers(8, size=1000)
    one = spread(np.zeros(100, dtype=np.int64), pool, 8, draws=100, rng=rng())
    assert one["entropy"].selection.value == 0 and one["entropy"].difference.high < 0
    assert one["clusters"].selection.value == 1 and one["clusters"].random.value == 8
    same = spread(pool[rng(2).permutation(1000)[:100]], pool, 8, draws=100, rng=rng())["entropy"]
    assert same.difference.low < 0 < same.difference.high and 0.02 < same.as_good < 0.98
