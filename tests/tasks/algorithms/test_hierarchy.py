"""Clusters of clusters and balanced quotas: planted answers, what must hold for any input, the original's faults."""

import numpy as np
import pytest

from lvd.tasks.algorithms import kmeans
from lvd.tasks.algorithms.hierarchy import balanced_quotas, resampled, upper_levels
from lvd.tests.tasks.planted import random_units, unit


def planted_hierarchy(seed=0, dim=32):
    """24 centroids in 8 groups of 3 in 4 groups of 2, and the two groups of each."""
    rng = np.random.default_rng(seed)
    near = np.repeat(rng.normal(size=(4, dim)), 2, axis=0) + 0.3 * rng.normal(size=(8, dim))
    rows = np.repeat(near, 3, axis=0) + 0.03 * rng.normal(size=(24, dim))
    return unit(rows).astype(np.float32), np.repeat(np.arange(8), 3), np.repeat(np.arange(4), 6)


def same_groups(left, right):
    return len({*zip(left.tolist(), right.tolist(), strict=True)}) == len({*left.tolist()}) == len({*right.tolist()})


@pytest.mark.parametrize("steps", [0, 2])
def test_planted_groups_are_found(steps):
    # The start is drawn: one seed in several meets a group twice and misses another.
    rows, eight, four = planted_hierarchy()
    found = [upper_levels(rows, [8, 4], seed=seed, resample_steps=steps, resample_per_cluster=2) for seed in range(5)]
    for low, high in found:
        assert (low.centroids.shape, high.centroids.shape) == ((8, 32), (4, 32))
        assert low.parent.shape == (24,) and high.parent.shape == (8,) and low.parent.dtype == np.int32
        np.testing.assert_allclose(np.linalg.norm(high.centroids, axis=1), 1.0, atol=1e-5)
    assert any(same_groups(low.parent, eight) and same_groups(high.parent[low.parent], four) for low, high in found)


def test_parents_are_the_nearest_and_levels_repeat_and_follow_their_seed():
    rows = unit(np.random.default_rng(1).normal(size=(200, 16))).astype(np.float32)
    first, again, other = (upper_levels(rows, [40, 7], seed=seed, resample_steps=1) for seed in (3, 3, 4))
    below = rows
    for level, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(level.parent, kmeans.assign(below, level.centroids)[0][:, 0])
        assert level.centroids.tobytes() == same.centroids.tobytes()
        below = level.centroids
    assert not np.array_equal(first[0].centroids, other[0].centroids)


def test_a_level_may_have_as_many_clusters_as_the_one_below_or_one():
    rows, _, _ = planted_hierarchy()
    low, high = upper_levels(rows, [24, 1], seed=0, resample_steps=1)
    assert low.centroids.shape == (24, 32) and set(high.parent.tolist()) == {0}
    assert upper_levels(rows, [], seed=0) == []


def test_copies_among_the_centroids_leave_empty_clusters_and_no_crash():
    rows = np.repeat(planted_hierarchy()[0][:3], 8, axis=0)  # 3 distinct rows for 10 clusters
    low, high = upper_levels(rows, [10, 5], seed=0, resample_steps=3, resample_per_cluster=1)
    assert len(np.unique(low.parent)) == 3 and high.parent.max() < 5
    quotas = balanced_quotas(np.full(24, 4), [low.parent, high.parent], 30, seed=0)
    assert quotas.sum() == 30 and np.bincount(np.arange(24) // 8, weights=quotas).tolist() == [10, 10, 10]


@pytest.mark.parametrize(("sizes", "level", "bound"), [([25], 2, 24), ([0], 2, 24), ([6, 7], 3, 6)])
def test_a_level_of_an_impossible_size_is_refused(sizes, level, bound):
    with pytest.raises(ValueError, match=f"level {level} must have 1 to {bound} clusters.*was {sizes[-1]}"):
        upper_levels(planted_hierarchy()[0], sizes, seed=0)


def test_resampling_draws_centroids_out_of_the_dense_region():
    # 2,000 points in a narrow cone and 200 all around it; a plain fit spends most of its centroids on the cone.
    rng = np.random.default_rng(0)
    axis = np.eye(8)[0]
    dense = unit(axis + 0.25 * rng.normal(size=(2000, 8)))
    points = np.concatenate([dense, random_units(rng, 200, 8)])
    shares = []
    for seed in range(3):
        plain = kmeans.fit(points, num_clusters=40, seed=seed).centroids
        even = resampled(points, plain, per_cluster=None, steps=5, iterations=20, seed=seed)
        assert even.shape == plain.shape
        shares.append([(centroids @ axis > 0.7).mean() for centroids in (plain, even)])
    plain, even = np.mean(shares, axis=0)
    assert even < 0.75 * plain


def test_resampling_by_its_definition():
    points = random_units(np.random.default_rng(5), 120, 8)
    start = kmeans.fit(points, num_clusters=6, seed=0).centroids
    cluster_id, similarity = (column[:, 0] for column in kmeans.assign(points, start))
    nearest = [
        row
        for cluster in range(6)
        for row in sorted(np.flatnonzero(cluster_id == cluster), key=lambda row: (-similarity[row], row))[:4]
    ]
    seen = []

    def fit(sample, **options):
        seen.append(sample)
        return real(sample, **options)

    real = kmeans.fit
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kmeans, "fit", fit)
        resampled(points, start, per_cluster=4, steps=1, iterations=2, seed=0)
    np.testing.assert_array_equal(seen[0], points[sorted(nearest)])


def test_no_step_changes_nothing_and_wrong_figures_are_refused():
    points = random_units(np.random.default_rng(0), 20, 4)
    start = points[:5].astype(np.float32)
    assert resampled(points, start, per_cluster=None, steps=0, iterations=2, seed=0) is start
    with pytest.raises(ValueError, match="steps must be at least 0, was -1"):
        resampled(points, start, per_cluster=None, steps=-1, iterations=2, seed=0)
    with pytest.raises(ValueError, match="per_cluster must be at least 1, was 0"):
        resampled(points, start, per_cluster=0, steps=1, iterations=2, seed=0)


def random_tree(rng, num_clusters=None, highest=30):
    """Sizes of level 1, many of them 0 or alike, and the parents of none to three levels, some of them empty."""
    count = num_clusters or int(rng.integers(1, 40))
    sizes = rng.integers(0, rng.integers(1, highest), size=count)
    parents = []
    for _ in range(int(rng.integers(0, 4))):
        above = int(rng.integers(1, count + 1))
        parents.append(rng.integers(0, above, size=count).astype(np.int32))
        count = above if len(parents) < 3 else int(parents[-1].max()) + 1
    if parents:  # the last level has as many clusters as are named
        parents[-1] = np.unique(parents[-1], return_inverse=True)[1].astype(np.int32)
    return sizes, parents


def is_balanced(quotas, sizes):
    """All clusters that still have rows gave x or x + 1, and no cluster gave more than those."""
    open_ones = quotas[quotas < sizes]
    return len(open_ones) == 0 or (open_ones.max() <= open_ones.min() + 1 and quotas.max() <= open_ones.min() + 1)


def test_quotas_of_any_hierarchy():
    rng = np.random.default_rng(0)
    for case in range(400):
        sizes, parents = random_tree(rng, highest=3 if case % 4 == 0 else 30)
        target = int(rng.choice([0, 1, sizes.sum(), sizes.sum() + 7, rng.integers(0, sizes.sum() + 1)]))
        quotas = balanced_quotas(sizes, parents, target, seed=case)
        assert quotas.dtype == np.int64 and quotas.shape == sizes.shape
        assert quotas.sum() == min(target, sizes.sum())
        assert (quotas >= 0).all() and (quotas <= sizes).all()
        np.testing.assert_array_equal(balanced_quotas(sizes, parents, target, seed=case), quotas)
        given, held = quotas, sizes
        for level, parent in enumerate(parents, 1):
            assert all(is_balanced(given[parent == group], held[parent == group]) for group in np.unique(parent))
            count = len(parents[level]) if level < len(parents) else parent.max() + 1
            given, held = (np.bincount(parent, values, minlength=count).astype(np.int64) for values in (given, held))
        assert is_balanced(given, held)


@pytest.mark.parametrize(
    ("sizes", "parents", "target", "quotas"),
    [
        ([], [], 5, []),
        ([5, 5, 5], [], 15, [5, 5, 5]),  # all alike, all taken: the original's crash
        ([5, 5, 5], [], 9, [3, 3, 3]),
        ([0, 5, 0, 5], [], 4, [0, 2, 0, 2]),  # empty clusters
        ([0, 0], [[0, 1]], 4, [0, 0]),
        ([1, 9, 9], [], 9, [1, 4, 4]),
        ([100, 2, 3], [], 9, [4, 2, 3]),
        ([8, 8, 8], [[0, 0, 1]], 8, [2, 2, 4]),  # the top first: 4 and 4
        ([8, 8, 1], [[0, 0, 1]], 9, [4, 4, 1]),
        ([8, 8, 8, 8], [[0, 0, 2, 3], [0, 0, 0, 1]], 16, [2, 2, 4, 8]),  # cluster 1 of level 2 is empty
        ([4 * 10**18, 4 * 10**18], [], 10**18, [5 * 10**17] * 2),
    ],
)
def test_quotas_by_hand(sizes, parents, target, quotas):
    found = balanced_quotas(
        np.array(sizes, dtype=np.int64), [np.array(parent, dtype=np.int32) for parent in parents], target, seed=0
    )
    assert found.dtype == np.int64 and found.tolist() == quotas


def test_equal_sizes_of_every_target():
    for target in range(14):
        quotas = balanced_quotas(np.full(6, 2), [np.array([0, 0, 0, 1, 1, 1])], target, seed=1)
        assert quotas.sum() == min(target, 12) and abs(quotas[:3].sum() - quotas[3:].sum()) <= 1


def test_rows_that_are_left_go_to_each_cluster_above_the_cut_alike_often():
    sizes, parent = np.array([1, 9, 9, 9, 9, 9, 9, 9]), np.array([0, 0, 0, 0, 0, 1, 1, 1])
    more = np.zeros(8)
    for seed in range(600):
        quotas = balanced_quotas(sizes, [parent], 12, seed=seed)  # 6 each: 1 and 5 of 4 clusters; 2 of 3
        assert quotas[0] == 1 and quotas[5:].tolist() == [2, 2, 2] and sorted(quotas[1:5].tolist()) == [1, 1, 1, 2]
        more += quotas == 2
    assert abs(more[1:5] - 150).max() < 5 * 10.6


def test_renumbered_upper_clusters_change_nothing_and_level_1_goes_with_its_keys():
    rng = np.random.default_rng(3)
    for case in range(60):
        sizes, parents = random_tree(rng, highest=6)
        target, keys = int(rng.integers(0, sizes.sum() + 1)), rng.choice(10**9, size=len(sizes), replace=False)
        plain = balanced_quotas(sizes, parents, target, seed=case)
        keyed = balanced_quotas(sizes, parents, target, seed=case, keys=keys)
        # Every upper level is numbered anew.
        renumbered, order = [], np.arange(len(sizes))
        for level, parent in enumerate(parents):
            count = len(parents[level + 1]) if level + 1 < len(parents) else int(parent.max()) + 1
            names = rng.permutation(count)
            renumbered.append(names[parent][order])
            order = np.argsort(names)
        np.testing.assert_array_equal(balanced_quotas(sizes, renumbered, target, seed=case), plain)
        # And level 1 too: its quotas go along.
        first = rng.permutation(len(sizes))
        moved = [renumbered[0][first], *renumbered[1:]] if parents else []
        np.testing.assert_array_equal(
            balanced_quotas(sizes[first], moved, target, seed=case, keys=keys[first]), keyed[first]
        )


def test_other_seeds_draw_other_clusters():
    drawn = {balanced_quotas(np.full(50, 9), [np.arange(50) // 10], 75, seed=seed).tobytes() for seed in range(5)}
    assert len(drawn) == 5


@pytest.mark.parametrize(
    ("sizes", "parents", "target", "match"),
    [
        ([3, -1], [], 2, "were -1 and 2"),
        ([3, 1], [], -2, "were 0 and -2"),
        ([3, 1], [[0]], 2, "each of 2 clusters of level 1 must have one parent, had 1"),
        ([3, 1], [[0, 1], [0]], 2, r"parents of level 1 must be in \[0, 1\), were from 0 to 1"),
        ([3, 1], [[0, -1]], 2, r"were from -1 to 0"),
        ([], [[0]], 2, "each of 0 clusters of level 1 must have one parent, had 1"),
    ],
)
def test_figures_that_do_not_fit_are_refused(sizes, parents, target, match):
    with pytest.raises(ValueError, match=match):
        balanced_quotas(np.array(sizes, dtype=np.int64), [np.array(parent) for parent in parents], target, seed=0)


def test_many_clusters_take_seconds():
    rng = np.random.default_rng(0)
    sizes = rng.geometric(0.02, size=500_000)
    parents = [rng.integers(0, 50_000, size=500_000), rng.integers(0, 10_000, size=50_000)]
    parents[1][:10_000] = np.arange(10_000)
    quotas = balanced_quotas(sizes, parents, 3_000_000, seed=0)
    assert quotas.sum() == 3_000_000 and (quotas <= sizes).all()
