"""Shares, collisions and draws: planted answers, brute force, and what must hold for any input."""

from fractions import Fraction

import numpy as np
import pytest

from lvd.tasks.algorithms import allocation


@pytest.mark.parametrize(
    ("sizes", "total", "shares"),
    [
        ([], 5, []),
        ([3, 2], 0, [0, 0]),
        ([0, 0], 5, [0, 0]),
        ([3, 2], 9, [3, 2]),  # more than there is
        ([3, 2], 5, [3, 2]),
        ([1, 1, 1], 2, [1, 1, 0]),  # equal remainders: the lower index
        ([5, 3, 2], 5, [3, 1, 1]),  # 2.5, 1.5, 1.0: of the two halves the lower index
        ([10, 0, 10], 7, [4, 0, 3]),
        ([10_000] * 3, 10_000, [3334, 3333, 3333]),
        ([4 * 10**18, 4 * 10**18], 10**18 + 1, [5 * 10**17 + 1, 5 * 10**17]),  # products beyond int64
        ([2**61, 2**61], 5, [3, 2]),  # just beyond
    ],
)
def test_largest_remainder(sizes, total, shares):
    found = allocation.largest_remainder(np.array(sizes, dtype=np.int64), total)
    assert found.dtype == np.int64 and found.tolist() == shares


def test_largest_remainder_is_within_one_of_proportional_and_sums():
    rng = np.random.default_rng(0)
    for _ in range(100):
        sizes = rng.integers(0, 50, size=rng.integers(1, 12))
        total = int(rng.integers(0, sizes.sum() + 5))
        shares = allocation.largest_remainder(sizes, total)
        assert shares.sum() == min(total, sizes.sum()) and (shares <= sizes).all() and (shares >= 0).all()
        if sizes.sum():
            target = Fraction(min(total, int(sizes.sum())), int(sizes.sum()))
            exact = [int(size) * target for size in sizes]
            assert all(abs(int(share) - e) < 1 for share, e in zip(shares, exact, strict=True))
            # Who was rounded up had no smaller a remainder than who was rounded down.
            up = [e % 1 for share, e in zip(shares, exact, strict=True) if share > e]
            down = [e % 1 for share, e in zip(shares, exact, strict=True) if share < e]
            assert not up or not down or min(up) >= max(down)


def test_largest_remainder_refuses_negative_figures():
    with pytest.raises(ValueError, match="were -2 and 5"):
        allocation.largest_remainder(np.array([3, -2]), 5)
    with pytest.raises(ValueError, match="were 0 and -1"):
        allocation.largest_remainder(np.array([3, 0]), -1)


def candidates(num_queries, depth, num_rows, seed=0, decimals=5):
    """Random candidates: each query's `depth` rows, shuffled; with few decimals many similarities are equal."""
    rng = np.random.default_rng(seed)
    query = np.repeat(np.arange(num_queries) * 3, depth)
    row = np.concatenate([rng.choice(num_rows, size=depth, replace=False) for _ in range(num_queries)])
    similarity = rng.random(len(row)).round(decimals).astype(np.float32)
    order = rng.permutation(len(row))
    return query[order], row[order], similarity[order]


def one_at_a_time(query, row, similarity, neighbors):
    """Refill by its definition: again and again the best pair that may still be taken."""
    taken = []
    while True:
        rows, queries = row[taken].tolist(), query[taken].tolist()
        free = [i for i in range(len(row)) if row[i] not in rows and queries.count(query[i]) < neighbors]
        if not free:
            return sorted(taken)
        taken.append(min(free, key=lambda i: (-similarity[i], query[i], row[i])))


def test_refill_by_hand():
    # Row 7 is wanted by both: query 0 is nearer and keeps it; query 1 goes on to row 8, and not to a third.
    query, row = np.array([0, 0, 1, 1, 1]), np.array([7, 9, 7, 8, 5])
    similarity = np.array([0.9, 0.2, 0.8, 0.7, 0.6])
    for policy, expected in [("refill", [0, 3]), ("keep_once", [0]), ("count", [0, 2])]:
        found = allocation.settle_collisions(query, row, similarity, neighbors=1, policy=policy)
        assert found.dtype == np.int64 and found.tolist() == expected


@pytest.mark.parametrize("decimals", [5, 1, 0])
@pytest.mark.parametrize("neighbors", [1, 3])
def test_refill_takes_the_best_pair_that_may_still_be_taken(decimals, neighbors):
    for seed in range(5):
        pairs = candidates(8, 6, 20, seed, decimals)
        found = allocation.settle_collisions(*pairs, neighbors=neighbors, policy="refill")
        assert found.tolist() == one_at_a_time(*pairs, neighbors)


def test_refill_leaves_no_pair_that_both_sides_would_rather_have():
    query, row, similarity = candidates(3000, 16, 9000)
    taken = allocation.settle_collisions(query, row, similarity, neighbors=4, policy="refill")
    assert len(np.unique(row[taken])) == len(taken)
    count = np.bincount(query[taken], minlength=query.max() + 1)
    assert count.max() == 4
    row_has = np.full(row.max() + 1, -1.0)
    row_has[row[taken]] = similarity[taken]
    query_has = np.full(query.max() + 1, np.inf)
    np.minimum.at(query_has, query[taken], similarity[taken])
    query_has[count < 4] = -1.0
    assert not ((similarity > row_has[row]) & (similarity > query_has[query])).any()


def test_keep_once_and_count_equal_a_loop():
    for seed in range(5):
        query, row, similarity = candidates(40, 6, 60, seed, decimals=1)
        first = []
        for q in np.unique(query):
            own = [i for i in range(len(query)) if query[i] == q]
            first += sorted(own, key=lambda i: (-similarity[i], row[i]))[:3]
        count = allocation.settle_collisions(query, row, similarity, neighbors=3, policy="count")
        assert count.tolist() == sorted(first)
        nearest = [
            min((i for i in first if row[i] == r), key=lambda i: (-similarity[i], query[i])) for r in {*row[first]}
        ]
        once = allocation.settle_collisions(query, row, similarity, neighbors=3, policy="keep_once")
        assert once.tolist() == sorted(nearest) and len(once) < len(count)


@pytest.mark.parametrize("policy", ["refill", "keep_once", "count"])
def test_collisions_do_not_depend_on_the_order_of_the_input(policy):
    query, row, similarity = candidates(100, 8, 200, decimals=1)
    taken = allocation.settle_collisions(query, row, similarity, neighbors=3, policy=policy)
    order = np.random.default_rng(5).permutation(len(row))
    moved = allocation.settle_collisions(query[order], row[order], similarity[order], neighbors=3, policy=policy)
    assert sorted(order[moved]) == taken.tolist()
    nothing = np.zeros(0, np.int64)
    assert allocation.settle_collisions(nothing, nothing, nothing, neighbors=3, policy=policy).shape == (0,)


def test_collisions_refuse_bad_arguments():
    one = np.zeros(1, np.int64)
    with pytest.raises(ValueError, match="neighbors must be at least 1, was 0"):
        allocation.settle_collisions(one, one, one, neighbors=0, policy="refill")
    with pytest.raises(ValueError, match="was 'keep'"):
        allocation.settle_collisions(one, one, one, neighbors=1, policy="keep")


@pytest.mark.parametrize(
    ("sizes", "per_cluster", "max_images", "quotas"),
    [
        ([5, 20_000, 10_000], 10_000, 1_000_000, [5, 10_000, 10_000]),  # a small cluster gives all that it has
        ([8, 8, 8], 5, 15, [5, 5, 5]),
        ([8, 8, 2], 5, 6, [2, 3, 1]),  # 2.5, 2.5, 1.0: the lower cluster id is the second
        ([8, 8, 8], 5, 0, [0, 0, 0]),
        ([], 5, 10, []),
    ],
)
def test_cluster_sample(sizes, per_cluster, max_images, quotas):
    cluster_ids = np.array([30, 10, 20])[: len(sizes)]
    found = allocation.cluster_sample(
        cluster_ids, np.array(sizes, np.int64), per_cluster=per_cluster, max_images=max_images
    )
    assert found.dtype == np.int64 and found.tolist() == quotas


def test_the_papers_cap_is_met_exactly_in_any_order():
    rng = np.random.default_rng(0)
    cluster_ids, sizes = rng.choice(100_000, size=263, replace=False), rng.integers(1, 30_000, size=263)
    quotas = allocation.cluster_sample(cluster_ids, sizes, per_cluster=10_000, max_images=1_000_000)
    assert quotas.sum() == 1_000_000 and (quotas <= np.minimum(sizes, 10_000)).all()
    order = rng.permutation(263)
    moved = allocation.cluster_sample(cluster_ids[order], sizes[order], per_cluster=10_000, max_images=1_000_000)
    np.testing.assert_array_equal(moved, quotas[order])


def test_eligible_clusters_hold_more_than_three_queries():
    ids = np.array([9, 2, 2, 9, 2, 9, 9, 5, 2, 2, 7, 7, 7], dtype=np.int32)
    found = allocation.eligible_clusters(ids, min_queries=4)
    assert found.dtype == np.int64 and found.tolist() == [2, 9]
    assert allocation.eligible_clusters(ids[:0], min_queries=1).tolist() == []


@pytest.mark.parametrize(
    ("size", "quota"), [(0, 0), (1, 0), (1, 1), (10, 3), (10, 8), (10, 10), (1000, 499), (10**12, 50)]
)
def test_draw(size, quota):
    drawn = allocation.draw(size, quota, rng=np.random.default_rng(3))
    assert drawn.dtype == np.int64 and drawn.shape == (quota,) and (np.diff(drawn) > 0).all()
    assert quota == 0 or (drawn[0] >= 0 and drawn[-1] < size)
    np.testing.assert_array_equal(drawn, allocation.draw(size, quota, rng=np.random.default_rng(3)))


@pytest.mark.parametrize("quota", [2, 4])
def test_every_subset_is_drawn_equally_often(quota):
    rng = np.random.default_rng(0)
    counts = {}
    for _ in range(6000):
        subset = tuple(allocation.draw(6, quota, rng=rng).tolist())
        counts[subset] = counts.get(subset, 0) + 1
    # 15 subsets of 400 expected; a standard deviation is 19.
    assert len(counts) == 15 and all(abs(count - 400) < 5 * 19 for count in counts.values())


def test_draw_refuses_more_than_there_is():
    with pytest.raises(ValueError, match=r"quota must be in \[0, 3\], was 4"):
        allocation.draw(3, 4, rng=np.random.default_rng(0))
