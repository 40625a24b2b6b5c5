"""Spherical k-means: planted clusters, repeatability, starts, resumed fits, degenerate samples."""

import numpy as np
import pytest

from lvd.tasks.algorithms import kmeans


def unit(rows, dtype=np.float32):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(dtype)


def planted(num_clusters=20, per_cluster=60, d=32, noise=0.05, dtype=np.float16, seed=0):
    """Rows around well-separated centres, shuffled, and the cluster of each."""
    rng = np.random.default_rng(seed)
    centres = unit(rng.standard_normal((num_clusters, d)))
    truth = rng.permutation(np.repeat(np.arange(num_clusters), per_cluster))
    return unit(centres[truth] + noise * rng.standard_normal((len(truth), d)), dtype), truth


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_planted_clusters_are_found(dtype):
    # So narrow that the start, a draw by distance, meets each of them.
    rows, truth = planted(noise=0.005, dtype=dtype)
    fit = kmeans.fit(rows, num_clusters=20, seed=1)
    cluster_id, similarity = kmeans.assign(rows, fit.centroids)
    assert fit.num_effective == 20
    assert len(np.unique(np.column_stack([cluster_id[:, 0], truth]), axis=0)) == 20
    assert cluster_id.shape == similarity.shape == (1200, 1)
    assert (cluster_id.dtype, similarity.dtype) == (np.int32, np.float32)
    # The centroid is the unit mean of its members.
    for cluster in range(20):
        mean = unit(rows[cluster_id[:, 0] == cluster].astype(np.float64).sum(axis=0, keepdims=True))[0]
        np.testing.assert_allclose(fit.centroids[cluster], mean, atol=1e-6)


def test_the_objective_is_the_mean_similarity_and_rises():
    rows, _ = planted(noise=0.6)
    fit = kmeans.fit(rows, num_clusters=15, iterations=12, seed=0)
    assert fit.objective.shape == (12,) and fit.objective.dtype == np.float64
    assert (np.diff(fit.objective) > -1e-6).all() and fit.objective[-1] > fit.objective[0] + 0.01
    final = kmeans.assign(rows, fit.centroids)[1].mean()
    assert fit.objective[-1] - 1e-4 <= final <= fit.objective[-1] + 0.01
    np.testing.assert_allclose(np.linalg.norm(fit.centroids, axis=1), 1.0, atol=1e-6)


def test_is_as_good_as_faiss():
    import faiss

    rows, _ = planted(num_clusters=60, per_cluster=40, noise=0.3, dtype=np.float32)
    fit = kmeans.fit(rows, num_clusters=30, iterations=20, seed=0)
    peer = faiss.Kmeans(32, 30, niter=20, spherical=True, seed=1, min_points_per_centroid=1)
    peer.train(rows)
    assert fit.objective[-1] > peer.obj[-1] / len(rows) - 0.01


def test_a_fit_repeats_bit_for_bit_and_follows_its_seed():
    rows, _ = planted(noise=0.6)
    first, again, other = (kmeans.fit(rows, num_clusters=30, iterations=5, seed=seed) for seed in (7, 7, 8))
    assert first.centroids.tobytes() == again.centroids.tobytes()
    assert first.objective.tobytes() == again.objective.tobytes()
    assert first.centroids.tobytes() != other.centroids.tobytes()


def test_float16_and_float32_copies_of_a_sample_give_the_same_fit():
    rows, _ = planted(noise=0.6)
    half, single = (kmeans.fit(sample, num_clusters=30, seed=0) for sample in (rows, rows.astype(np.float32)))
    assert half.centroids.tobytes() == single.centroids.tobytes()


@pytest.mark.parametrize("num_clusters", [1, 5, 12, 50])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_copies_make_no_clusters_of_their_own(num_clusters, dtype):
    distinct = unit(np.random.default_rng(0).standard_normal((5, 16)), dtype)
    fit = kmeans.fit(np.repeat(distinct, 40, axis=0), num_clusters=num_clusters, seed=0)
    assert fit.num_effective == min(num_clusters, 5)
    assert np.isfinite(fit.centroids).all()
    np.testing.assert_allclose(np.linalg.norm(fit.centroids, axis=1), 1.0, atol=1e-5)


def test_lengths_within_the_rounding_of_float16_do_not_count():
    rows = 0.995 * np.repeat(unit(np.random.default_rng(0).standard_normal((3, 16))), 10, axis=0)
    fit = kmeans.fit(rows.astype(np.float32), num_clusters=5, iterations=4, seed=0)
    # The objective is the mean of inner products, but no row counts as far from its own centroid for being short.
    np.testing.assert_allclose(fit.objective[1:], 0.995, atol=1e-6)
    sums = kmeans.pass_over([(np.arange(30), rows.astype(np.float16))], fit.centroids, spares=5)
    assert fit.num_effective == 3 and len(sums.spare_rows) == 0


def test_many_clusters_start_by_the_cheaper_method(monkeypatch):
    monkeypatch.setattr(kmeans, "KMEANS_PLUS_PLUS_CLUSTERS", 10)
    rows, _ = planted(noise=0.005)
    fit, again = (kmeans.fit(rows, num_clusters=20, seed=1) for _ in range(2))
    # The chain can miss a planted cluster or two, which then share a centroid.
    assert fit.num_effective == 20 and fit.objective[-1] > 0.9
    assert fit.centroids.tobytes() == again.centroids.tobytes()


def test_an_empty_cluster_starts_again_at_the_furthest_row():
    rows = unit(np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.0, 1.0]]), np.float16)
    centroids = unit(np.array([[1.0, 0.05], [-1.0, 0.0], [-1.0, -0.1]]))
    sums = kmeans.pass_over([(np.arange(4), rows)], centroids, spares=3)
    assert sums.counts.tolist() == [4, 0, 0]
    # Rows 2 and 3 are copies: only one cluster starts there, the other at the next furthest row.
    assert sums.spare_rows.tolist() == [2, 0, 1]
    updated = kmeans.updated(sums, centroids)
    np.testing.assert_allclose(updated[1:], rows[[2, 0]], atol=1e-6)
    one = kmeans.updated(kmeans.pass_over([(np.arange(4), rows)], centroids, spares=1), centroids)
    np.testing.assert_allclose(one[1:], [rows[2], centroids[2]], atol=1e-6)


def test_rows_that_cancel_out_leave_their_centroid():
    rows = np.array([[1, 0], [-1, 0]], dtype=np.float16)
    centroid = np.array([[0, 1]], dtype=np.float32)
    sums = kmeans.pass_over([(np.arange(2), rows)], centroid, spares=1)
    np.testing.assert_array_equal(kmeans.updated(sums, centroid), centroid)


def test_as_many_clusters_as_rows():
    rows, _ = planted(num_clusters=4, per_cluster=3, noise=0.5)
    fit = kmeans.fit(rows, num_clusters=12, seed=0)
    assert fit.num_effective == 12
    np.testing.assert_allclose(fit.objective[-1], 1.0, atol=1e-3)


def test_nothing_is_printed(capfd):
    kmeans.fit(planted(num_clusters=4, per_cluster=3)[0], num_clusters=10, seed=0)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "row 9000 must be finite"), (np.inf, "row 9000 must be finite"), (0.0, "row 9000 .* its length was 0$")],
)
def test_rows_without_a_direction_are_named(value, message):
    rows = unit(np.random.default_rng(0).standard_normal((9100, 4)), np.float16)
    centroids = rows[:3].astype(np.float32)
    rows[9000] = value
    with pytest.raises(ValueError, match=message):
        kmeans.fit(rows, num_clusters=3, seed=0)
    with pytest.raises(ValueError, match=message):
        kmeans.assign(rows, centroids)


@pytest.mark.parametrize(("num_clusters", "iterations"), [(0, 5), (13, 5), (3, 0)])
def test_counts_out_of_range_are_named(num_clusters, iterations):
    rows, _ = planted(num_clusters=4, per_cluster=3)
    message = r"num_clusters must be in \[1, 12\], .* was \d+" if iterations else "iterations must be at least 1, was 0"
    with pytest.raises(ValueError, match=message):
        kmeans.fit(rows, num_clusters=num_clusters, iterations=iterations, seed=0)


def test_assign_equals_brute_force_however_it_is_cut():
    rows, _ = planted(noise=0.8)
    centroids = unit(np.random.default_rng(3).standard_normal((50, 32)))
    products = np.round(rows.astype(np.float64) @ centroids.astype(np.float64).T, 5)
    expected = np.argsort(-products, axis=1, kind="stable")[:, :4]
    cluster_id, similarity = kmeans.assign(rows, centroids, probes=4)
    np.testing.assert_array_equal(cluster_id, expected)
    np.testing.assert_array_equal(similarity, np.take_along_axis(products, expected, axis=1).astype(np.float32))
    parts = [kmeans.assign(rows[start : start + 211], centroids, probes=4) for start in range(0, len(rows), 211)]
    np.testing.assert_array_equal(np.concatenate([part[0] for part in parts]), cluster_id)
    np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), similarity)


def test_one_probe_gives_the_first_of_several():
    rows, _ = planted(noise=0.8)
    centroids = unit(np.random.default_rng(3).standard_normal((50, 32)))
    one, several = (kmeans.assign(rows, centroids, probes=probes) for probes in (1, 2))
    for first, both in zip(one, several, strict=True):
        assert first.shape == (len(rows), 1) and first.dtype == both.dtype
        np.testing.assert_array_equal(first[:, 0], both[:, 0])


def test_assign_edge_cases():
    rows = unit(np.ones((3, 4)), np.float16)
    cluster_id, similarity = kmeans.assign(rows, rows.astype(np.float32)[:2], probes=3)
    assert cluster_id.tolist() == [[0, 1, -1]] * 3  # equal centroids: the lowest id; more probes than clusters: -1
    assert (similarity[:, 2] == -np.inf).all()
    assert kmeans.assign(rows[:0], rows.astype(np.float32))[0].shape == (0, 1)
    with pytest.raises(ValueError, match="centroids must be as wide as the vectors, 4, were 3 wide"):
        kmeans.assign(rows, unit(np.ones((2, 3))))


@pytest.mark.parametrize("devices", [("cpu",), ("cpu", "cpu")])
def test_a_fit_goes_on_where_it_was_interrupted(devices):
    rows, _ = planted(noise=0.6)
    seen = []
    whole = kmeans.fit(rows, num_clusters=30, iterations=6, seed=2, on_iteration=seen.append)
    assert [len(progress.iterations) for progress in seen] == [1, 2, 3, 4, 5, 6]
    for progress in seen:  # the last one is done: nothing is left but to count
        resumed = kmeans.fit(rows, num_clusters=30, iterations=6, seed=99, progress=progress, devices=devices)
        assert resumed.centroids.tobytes() == whole.centroids.tobytes()
        assert resumed.iterations == whole.iterations and resumed.num_effective == whole.num_effective


def test_a_fit_that_gains_little_ends_and_stays_ended():
    rows, _ = planted(noise=0.6)
    whole = kmeans.fit(rows, num_clusters=15, iterations=30, seed=0)
    gains = np.diff(whole.objective) / whole.objective[:-1]
    short = kmeans.fit(rows, num_clusters=15, iterations=30, seed=0, min_gain=0.002)
    assert len(short.iterations) == np.flatnonzero(gains < 0.002)[0] + 2 < 30 == len(whole.iterations)
    assert short.iterations == whole.iterations[: len(short.iterations)]
    progress = kmeans.Progress(short.centroids, short.iterations)
    again = kmeans.fit(rows, num_clusters=15, iterations=30, seed=0, min_gain=0.002, progress=progress)
    assert again.iterations == short.iterations and again.centroids.tobytes() == short.centroids.tobytes()


def test_progress_of_another_fit_is_refused():
    rows, _ = planted(num_clusters=4, per_cluster=3)
    progress = kmeans.Progress(kmeans.start(rows, 3, seed=0), ())
    with pytest.raises(ValueError, match=r"progress must be of 4 centroids of 32 values, was of the shape \(3, 32\)"):
        kmeans.fit(rows, num_clusters=4, seed=0, progress=progress)


@pytest.mark.parametrize("method", ["auto", "k-means++", "afk-mc2", "random"])
def test_starts_are_distinct_rows(method):
    rows, _ = planted(noise=0.6)
    begin = kmeans.start(rows, 40, method=method, seed=5)
    assert begin.shape == (40, 32) and begin.dtype == np.float32
    row = kmeans.assign(begin, unit(rows.astype(np.float32)))[0][:, 0]
    assert len(np.unique(row)) == 40
    np.testing.assert_allclose(begin, unit(rows[row].astype(np.float32)), atol=1e-6)
    assert begin.tobytes() == kmeans.start(rows, 40, method=method, seed=5).tobytes()
    assert begin.tobytes() != kmeans.start(rows, 40, method=method, seed=6).tobytes()


def test_an_unknown_start_is_refused():
    with pytest.raises(ValueError, match=r"method must be 'auto', .* was 'far'"):
        kmeans.start(planted()[0], 4, method="far", seed=0)


def test_sample_rows():
    rows = kmeans.sample_rows(10**9, 1000, rng=np.random.default_rng(0))
    assert rows.shape == (1000,) and (np.diff(rows) > 0).all() and rows[0] >= 0 and rows[-1] < 10**9
    assert abs(rows.mean() / 10**9 - 0.5) < 0.05
    assert kmeans.sample_rows(5, 9, rng=np.random.default_rng(0)).tolist() == [0, 1, 2, 3, 4]
