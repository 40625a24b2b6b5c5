"""Passes of k-means over blocks of rows: against brute force, and the same bytes for any cut, order, thread, device."""

import hashlib
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from lvd.tasks.algorithms import assignment, kmeans
from lvd.tasks.algorithms.assignment import Assigner, on_grid

ONE_THREAD = """
import sys
import numpy as np
from lvd.tasks.algorithms import kmeans
rows = np.load(sys.argv[1])
fit = kmeans.fit(rows, num_clusters=40, iterations=3, seed=4)
assert kmeans.start(rows, 40, seed=4).tobytes() == np.load(sys.argv[2]).tobytes()
sys.stdout.write(fit.centroids.tobytes().hex())
"""


def unit(rows, dtype=np.float32):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(dtype)


def random_rows(num_rows, d=24, seed=0):
    return unit(np.random.default_rng(seed).standard_normal((num_rows, d)), np.float16)


def centroids_of(num, d=24, seed=1):
    """Of which the last two lie where no row does, and two are the same one."""
    centroids = unit(np.random.default_rng(seed).standard_normal((num, d)))
    centroids[4] = centroids[2]
    centroids[-2:] = 0.0
    centroids[-2:, 0] = -1.0
    return on_grid(centroids)


def hemisphere(num_rows, d=24, seed=0):
    """Rows of which none is near the last two centroids."""
    rows = np.random.default_rng(seed).standard_normal((num_rows, d))
    rows[:, 0] = np.abs(rows[:, 0]) + 1.0
    return unit(rows, np.float16)


def digest(sums):
    arrays = (sums.sums, sums.counts, sums.spare_rows, sums.spare_similarity, sums.spare_vectors)
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


def by_brute_force(rows, centroids, spares):
    """What `pass_over` gives for rows numbered from 0."""
    products = (rows.astype(np.float64) @ centroids.astype(np.float64).T).round(5)
    cluster = products.argmax(axis=1)
    sums, counts = np.zeros(centroids.shape), np.bincount(cluster, minlength=len(centroids))
    np.add.at(sums, cluster, rows.astype(np.float64))
    length = np.linalg.norm(rows.astype(np.float64), axis=1)
    cosine = ((rows.astype(np.float64) * centroids[cluster]).sum(axis=1) / length).round(5)
    found = {}
    for row in np.lexsort((np.arange(len(rows)), cosine)).tolist():
        if cosine[row] < 1.0:
            found.setdefault(cosine[row], row)
    similarity, furthest = zip(*itertools.islice(found.items(), spares), strict=True)
    return kmeans.Sums(sums, counts, np.array(furthest), np.array(similarity, dtype=np.float32), rows[list(furthest)])


@pytest.mark.parametrize("spares", [50, 5000])  # among the many, rows of one similarity
def test_a_pass_is_that_of_brute_force(spares):
    rows, centroids = hemisphere(5000), centroids_of(30)
    found = kmeans.pass_over([(np.arange(5000), rows)], centroids, spares=spares)
    expected = by_brute_force(rows, centroids, spares)
    for name in ("sums", "counts", "spare_rows", "spare_similarity", "spare_vectors"):
        mine, other = getattr(found, name), getattr(expected, name)
        assert mine.dtype == other.dtype, name
        np.testing.assert_array_equal(mine, other, err_msg=name)
    assert found.counts[[4, 28, 29]].tolist() == [0, 0, 0] and found.counts[2] > 0, "the lower of two equal ones"
    assert (np.diff(found.spare_similarity) > 0).all()


@pytest.mark.parametrize("tiles", [(1024, 4096), (7, 5), (64, 1), (1, 100)])
def test_tiles_change_nothing(tiles, monkeypatch):
    rows, centroids = hemisphere(700), centroids_of(90)
    expected = digest(by_brute_force(rows, centroids, 20))
    for name, size in zip(("ROW_TILE", "CENTROID_TILE"), tiles, strict=True):
        monkeypatch.setattr(assignment, name, size)
    assert digest(kmeans.pass_over([(np.arange(700), rows)], centroids, spares=20)) == expected


@pytest.mark.parametrize("error", [1e-5, 0.005, 2.0])
def test_a_coarser_screen_changes_nothing(error, monkeypatch):
    rows, centroids = hemisphere(700), centroids_of(90)
    expected = digest(kmeans.pass_over([(np.arange(700), rows)], centroids, spares=20))
    exact = torch.mm

    def noisy(a, b, out):
        noise = np.random.default_rng(0).uniform(-error, error, (len(a), b.shape[1])).astype(np.float32)
        return exact(a, b, out=out).add_(torch.from_numpy(noise))

    monkeypatch.setattr(torch, "mm", noisy)
    monkeypatch.setattr(assignment, "_screen_error", lambda dimension: error + 1e-5)
    assert digest(kmeans.pass_over([(np.arange(700), rows)], centroids, spares=20)) == expected


def test_the_error_of_the_screen_is_within_its_bound():
    rows, centroids = random_rows(300, d=1280), unit(np.random.default_rng(2).standard_normal((200, 1280)))
    screen = torch.from_numpy(rows.astype(np.float32)) @ torch.from_numpy(centroids).T
    error = np.abs(screen.numpy() - rows.astype(np.float64) @ centroids.astype(np.float64).T).max()
    assert error < assignment._screen_error(1280) < 1e-4


def test_a_coarser_format_of_products_has_a_wider_bound():
    torch.set_float32_matmul_precision("high")
    try:
        assert assignment._screen_error(1280) >= 2**-8
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_way_of_a_gpu_gives_the_same():
    rows, centroids = hemisphere(3000), centroids_of(60)
    results = []
    for is_host in (True, False):
        with Assigner(centroids, with_sums=True) as assigner:
            assigner._is_host, assigner._row_tile, assigner._centroid_tile = is_host, 1000, 25
            found = assigner.nearest(rows)
            results.append([*found, *assigner.sums])
    for mine, other in zip(*results, strict=True):
        np.testing.assert_array_equal(mine, other)
        assert mine.dtype == other.dtype


def test_products_with_centroids_on_the_grid_are_exact():
    rows, centroids = random_rows(50, d=1280), on_grid(unit(np.random.default_rng(5).standard_normal((20, 1280))))
    forwards = np.cumsum(rows.astype(np.float64)[:, None] * centroids[None], axis=2)[:, :, -1]
    backwards = np.cumsum((rows.astype(np.float64)[:, None] * centroids[None])[:, :, ::-1], axis=2)[:, :, -1]
    np.testing.assert_array_equal(forwards, backwards)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1.0, atol=1e-6)


def cuts(num_rows, num_shards):
    return np.array_split(np.random.default_rng(num_shards).permutation(num_rows), num_shards)


@pytest.mark.parametrize("num_shards", [1, 8, 37])
@pytest.mark.parametrize("spares", [0, 9, 3000])
def test_any_cut_and_order_gives_the_same_bytes(num_shards, spares):
    rows, centroids = hemisphere(6000), centroids_of(50)
    whole = kmeans.pass_over([(np.arange(6000), rows)], centroids, spares=spares)
    parts = [
        kmeans.pass_over([(some[:60], rows[some[:60]]), (some[60:], rows[some[60:]])], centroids, spares=spares)
        for some in cuts(6000, num_shards)
    ]
    assert digest(kmeans.merged(parts, spares=spares)) == digest(whole)
    assert digest(kmeans.merged(iter(parts[::-1]), spares=spares)) == digest(whole)
    while len(parts) > 1:  # a tree of fours
        parts = [kmeans.merged(parts[i : i + 4], spares=spares) for i in range(0, len(parts), 4)]
    assert digest(parts[0]) == digest(whole)
    assert kmeans.updated(parts[0], centroids).tobytes() == kmeans.updated(whole, centroids).tobytes()
    assert kmeans.iteration_of(parts[0], centroids) == kmeans.iteration_of(whole, centroids)


def test_merging_leaves_its_parts_as_they_were():
    rows, centroids = hemisphere(400), centroids_of(10)
    parts = [kmeans.pass_over([(some, rows[some])], centroids, spares=5) for some in cuts(400, 2)]
    before = [digest(part) for part in parts]
    kmeans.merged(parts, spares=5)
    assert [digest(part) for part in parts] == before
    with pytest.raises(ValueError, match="at least 1 part"):
        kmeans.merged([], spares=5)


def test_full_passes_with_empty_clusters_are_those_of_lloyd():
    rows, centroids = hemisphere(4000), centroids_of(40)
    expected = kmeans.lloyd(rows, centroids, iterations=3)
    assert expected.iterations[0].num_empty >= 3 and expected.iterations[1].num_empty == 0
    for num_shards in (1, 5):
        iterations, moving = [], centroids
        for _ in range(3):
            parts = [kmeans.pass_over([(some, rows[some])], moving, spares=40) for some in cuts(len(rows), num_shards)]
            sums = kmeans.merged(parts, spares=40)
            iterations.append(kmeans.iteration_of(sums, moving))
            moving = kmeans.updated(sums, moving)
        assert moving.tobytes() == expected.centroids.tobytes()
        assert tuple(iterations) == expected.iterations
    shared = kmeans.lloyd(rows, centroids, iterations=3, devices=("cpu", "cpu"))
    assert shared.centroids.tobytes() == expected.centroids.tobytes() and shared.iterations == expected.iterations


def test_one_thread_gives_the_same_bytes(tmp_path):
    rows = random_rows(9000)
    np.save(tmp_path / "rows.npy", rows)
    np.save(tmp_path / "start.npy", kmeans.start(rows, 40, seed=4))
    command = [sys.executable, "-c", ONE_THREAD, str(tmp_path / "rows.npy"), str(tmp_path / "start.npy")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    alone = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        fit = kmeans.fit(rows, num_clusters=40, iterations=3, seed=4)
    finally:
        torch.set_num_threads(threads)
    assert fit.centroids.tobytes().hex() == alone


def test_more_members_than_float32_can_count(monkeypatch):
    monkeypatch.setattr(assignment, "ROW_TILE", 1 << 16)  # for speed
    size = 1 << 20
    near, far = (np.repeat(np.array([row], dtype=np.float16), size, axis=0) for row in ([1.0, 0.0], [0.0, 1.0]))
    blocks = ((np.arange(i * size, (i + 1) * size), near if i < 17 else far) for i in range(18))
    centroid = on_grid(unit(np.array([[1.0, 1.0]])))
    sums = kmeans.pass_over(blocks, centroid, spares=0)
    assert sums.counts.tolist() == [18 * size] and 17 * size > 1 << 24
    assert sums.sums.tolist() == [[17 * size, size]]
    np.testing.assert_allclose(kmeans.updated(sums, centroid), unit(np.array([[17.0, 1.0]])), atol=1e-7)


def test_an_iteration_in_figures():
    rows = unit(np.array([[1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0]]), np.float16)
    centroids = np.array([[1, 0, 0], [0.6, 0.8, 0], [0, 0, -1]], dtype=np.float32)
    told = kmeans.iteration_of(kmeans.pass_over([(np.arange(4), rows)], centroids, spares=2), centroids)
    assert told.objective == pytest.approx((1 + 1 + 1 + 0.8) / 4, abs=1e-7)
    assert told.imbalance == 3 * (9 + 1) / 16
    assert told.num_empty == 1 and told.sizes == (0, 0, 0, 1, 3, 3, 3)
    assert all(type(size) is int for size in told.sizes)
    empty = kmeans.pass_over([], centroids, spares=2)
    assert empty.counts.tolist() == [0, 0, 0] and len(empty.spare_rows) == 0
    with pytest.raises(ValueError, match="at least 1 row, were of 0"):
        kmeans.iteration_of(empty, centroids)
    np.testing.assert_array_equal(kmeans.updated(empty, centroids), centroids)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 0.5])
def test_a_row_that_is_no_unit_row_is_named_by_its_number(value):
    rows, centroids = random_rows(20), centroids_of(6)
    rows[13] = value
    for is_host in (True, False):
        with Assigner(centroids) as assigner, pytest.raises(ValueError, match="row 1013 must be finite and of unit"):
            assigner._is_host = is_host
            assigner.nearest(rows, np.arange(1000, 1020))
    with pytest.raises(ValueError, match="row 1013 must be finite and of unit length"):
        kmeans.pass_over([(np.arange(1000, 1020), rows)], centroids, spares=0)


def test_centroids_that_are_not_finite_are_refused():
    centroids = centroids_of(6)
    centroids[3, 1] = np.nan
    with pytest.raises(ValueError, match="centroid row 3 must be finite"):
        kmeans.pass_over([], centroids, spares=0)
