"""PCA hash: copies keep their bits, tiny pools work, pairs against brute force, flat images are nobody's copies."""

import imagehash
import numpy as np
import pytest
from PIL import Image

from lvd.tasks.algorithms import pca_hash


def scenes(n, seed=0, side=128):
    """Random smooth images as PIL: noise of few pixels, enlarged, plus fine grain."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, size=(n, 9, 9), dtype=np.uint8)
    return [Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC) for pixels in coarse]


def thumbnails(images):
    return np.stack([np.asarray(image.resize((32, 32), Image.Resampling.BOX)).ravel() for image in images])


def distance(a, b):
    return np.bitwise_count(a ^ b).sum(axis=-1)


def test_normalised_rows_have_no_mean_and_length_one():
    rows = np.random.default_rng(0).integers(0, 256, size=(50, 1024), dtype=np.uint8)
    found = pca_hash.normalised(rows)
    expected = rows - rows.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    ("row", "flat"),
    [
        (np.full(1024, 0), True),
        (np.full(1024, 255), True),
        (np.arange(1024) % 2 + 100, True),  # a standard deviation of half a grey level
        (np.arange(1024) % 2 * 4 + 100, False),  # of two
    ],
)
def test_flat_rows_are_zeros(row, flat):
    assert (not pca_hash.normalised(row.astype(np.uint8)[None]).any()) == flat


def test_the_components_are_the_leading_eigenvectors():
    rows = thumbnails(scenes(300))
    fit = pca_hash.fit([rows])
    centred = pca_hash.normalised(rows).astype(np.float64)
    centred -= centred.mean(axis=0)
    expected = np.linalg.svd(centred, full_matrices=False)[2][:64]
    # The 64 coarse patterns span the same space; those of unlike variance are the same up to the sign.
    assert fit.mean.shape == (1024,) and fit.components.shape == (64, 1024)
    assert fit.mean.dtype == fit.components.dtype == np.float32
    np.testing.assert_allclose(np.abs((fit.components * expected).sum(axis=1)), 1.0, atol=1e-3)
    np.testing.assert_allclose(fit.components @ fit.components.T, np.eye(64), atol=1e-5)
    largest = np.abs(fit.components).argmax(axis=1)
    assert (fit.components[np.arange(64), largest] > 0).all()


@pytest.mark.parametrize("n", [0, 1, 2, 3, 40, 64])
def test_tiny_pools_are_filled_up_with_low_frequencies(n):
    rows = thumbnails(scenes(64))[:n] if n != 3 else np.repeat(thumbnails(scenes(1)), 3, axis=0)
    fit = pca_hash.fit([rows])
    np.testing.assert_allclose(fit.components @ fit.components.T, np.eye(64), atol=1e-5)
    # No component answers to brightness.
    np.testing.assert_allclose(fit.components.sum(axis=1), 0, atol=1e-4)
    assert len(np.unique(pca_hash.codes(fit, thumbnails(scenes(30, seed=5))), axis=0)) == 30


def test_flat_images_do_not_take_part_in_the_fit():
    rows = thumbnails(scenes(100))
    with_flat = np.concatenate([rows, np.full((100, 1024), 7, dtype=np.uint8)])
    np.testing.assert_allclose(pca_hash.fit([with_flat]).components, pca_hash.fit([rows]).components, atol=1e-4)


@pytest.mark.parametrize("pixels", [1000, 64, 49])
def test_thumbnails_must_be_square_and_large_enough(pixels):
    with pytest.raises(ValueError, match=f"square and have more than 64 pixels, had {pixels}"):
        pca_hash.fit([np.zeros((3, pixels), dtype=np.uint8)])


def test_copies_keep_their_code_and_others_do_not():
    images = scenes(200)
    rows = thumbnails(images)
    fit = pca_hash.fit([rows])
    codes = pca_hash.codes(fit, rows)
    resized = pca_hash.codes(fit, thumbnails([image.resize((200, 200)) for image in images]))
    brighter = pca_hash.codes(fit, thumbnails([image.point(lambda v: v * 0.7 + 40) for image in images]))
    assert np.median(distance(codes, resized)) <= 2 and np.median(distance(codes, brighter)) <= 2
    others = distance(codes[:, None], codes[None])[~np.eye(200, dtype=bool)]
    assert others.min() > 8 and abs(others.mean() - 32) < 3


def test_a_code_fits_into_an_imagehash():
    rows = thumbnails(scenes(20))
    fit = pca_hash.fit([rows])
    codes = pca_hash.codes(fit, rows)
    assert codes.shape == (20, 8) and codes.dtype == np.uint8
    first, second = (imagehash.ImageHash(np.unpackbits(code).reshape(8, 8).astype(bool)) for code in codes[:2])
    assert str(first) == codes[0].tobytes().hex()
    assert first - second == distance(codes[0], codes[1])
    # The leading component is the first bit.
    leading = (pca_hash.normalised(rows) - fit.mean) @ fit.components[0] > 0
    np.testing.assert_array_equal(codes[:, 0] >> 7, leading)


def test_codes_do_not_depend_on_the_rows_beside(monkeypatch):
    rows = thumbnails(scenes(64))
    fit = pca_hash.fit([rows[:10]])  # its filled-up patterns leave projections that are zero
    rows[5] = 9
    codes = pca_hash.codes(fit, rows)
    np.testing.assert_array_equal(np.concatenate([pca_hash.codes(fit, row[None]) for row in rows]), codes)
    monkeypatch.setattr(pca_hash, "BLOCK", 7)
    np.testing.assert_array_equal(pca_hash.codes(fit, rows), codes)
    assert pca_hash.codes(fit, rows[:0]).shape == (0, 8)


def test_a_projection_that_is_zero_but_for_rounding_gives_bit_zero():
    halves = np.random.default_rng(0).integers(0, 256, size=(50, 32, 16), dtype=np.uint8)
    symmetric = np.concatenate([halves, halves[:, :, ::-1]], axis=2).reshape(50, 1024)
    fit = pca_hash.fit([symmetric[:0]])  # DCT patterns alone
    patterns = fit.components.reshape(64, 32, 32)
    antisymmetric = np.abs(patterns + patterns[:, :, ::-1]).max(axis=(1, 2)) < 1e-6
    bits = np.unpackbits(pca_hash.codes(fit, symmetric), axis=1).astype(bool)
    assert antisymmetric.sum() > 20 and not bits[:, antisymmetric].any() and bits[:, ~antisymmetric].any()


def near_codes(n, seed=0):
    """Codes around a few centres, some equal, so that all distances occur."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 256, size=(n // 10 + 1, 8), dtype=np.uint8)
    flips = np.packbits(rng.random((n, 64)) < 0.03, axis=1)
    return centres[rng.integers(len(centres), size=n)] ^ flips


@pytest.mark.parametrize("cut", [None, 1, 2])  # pairwise; blocks beyond the distance
@pytest.mark.parametrize(("n", "pairs_at_once"), [(0, 8), (1, 8), (2, 8), (300, 1 << 20), (300, 50), (61, 1)])
@pytest.mark.parametrize("max_distance", [0, 1, 4, 6, 64])
def test_pairs_within_equal_brute_force(monkeypatch, cut, n, pairs_at_once, max_distance):
    monkeypatch.setattr(pca_hash, "PAIRS", pairs_at_once)
    monkeypatch.setattr(pca_hash, "BLOCK", 64)
    blocks = None if cut is None or max_distance > 32 else max_distance + (cut if max_distance > 1 else 1)
    monkeypatch.setattr(pca_hash, "_cheapest_cut", lambda num_codes, distance: blocks)
    codes = near_codes(n)
    found = collected(codes, max_distance)
    left, right = np.triu_indices(n, 1)
    expected = distance(codes[left], codes[right])
    near = expected <= max_distance
    pairs = zip(left[near].tolist(), right[near].tolist(), strict=True)
    assert found == dict(zip(pairs, expected[near].tolist(), strict=True))


def collected(codes, max_distance):
    """Pair → distance; each piece is sorted and of the promised types, and no pair comes twice."""
    found = {}
    for pairs, distances in pca_hash.pairs_within(codes, max_distance=max_distance):
        assert pairs.dtype == np.int64 and distances.dtype == np.uint8 and len(pairs) == len(distances) > 0
        assert pairs.tolist() == sorted(pairs.tolist())
        told = dict(zip(map(tuple, pairs.tolist()), distances.tolist(), strict=True))
        assert len(told) == len(pairs) and not told.keys() & found.keys()
        found |= told
    return found


@pytest.mark.parametrize("max_distance", [1, 2, 3, 4, 5, 6, 7, 8, 10])
def test_many_codes_give_the_pairs_of_comparing_all(monkeypatch, max_distance):
    codes = near_codes(20_000, seed=max_distance)
    chosen = []
    cheapest = pca_hash._cheapest_cut
    monkeypatch.setattr(pca_hash, "_cheapest_cut", lambda *args: chosen.append(cheapest(*args)) or chosen[-1])
    found = list(pca_hash.pairs_within(codes, max_distance=max_distance))
    monkeypatch.setattr(pca_hash, "_cheapest_cut", lambda *args: None)
    expected = list(pca_hash.pairs_within(codes, max_distance=max_distance))
    assert chosen != [None] or max_distance > 6
    in_order = [np.concatenate([pairs for pairs, _ in pieces]) for pieces in (found, expected)]
    in_order = [pairs[np.lexsort(pairs.T[::-1])] for pairs in in_order]
    np.testing.assert_array_equal(*in_order)


def test_the_keys_of_every_cut_fit_beside_the_row():
    for max_distance in range(1, 65):
        for num_codes in (1 << 10, 1 << 20, 1 << 30):
            blocks = pca_hash._cheapest_cut(num_codes, max_distance)
            assert blocks is None or -(-64 // blocks) * (blocks - max_distance) <= 32
    assert pca_hash._cheapest_cut(100, 6) is None  # comparing all is cheaper
    assert pca_hash._cheapest_cut(1 << 20, 40) is None


@pytest.mark.parametrize(
    ("codes", "max_distance", "message"),
    [
        (near_codes(3), -1, "max_distance must be at least 0 bits, was -1"),
        (near_codes(3)[:, :4], 1, r"codes must be \(n, 8\) uint8, were of shape \(3, 4\)"),
    ],
)
def test_negative_distances_and_other_widths_are_refused(codes, max_distance, message):
    with pytest.raises(ValueError, match=message):
        next(pca_hash.pairs_within(codes, max_distance=max_distance))


def test_the_fit_needs_a_block_and_does_not_see_where_rows_come_from():
    rows = thumbnails(scenes(300))
    whole, cut = pca_hash.fit([rows]), pca_hash.fit([rows[:7], rows[:0], rows[7:200], rows[200:]])
    np.testing.assert_allclose(whole.components, cut.components, atol=1e-4)
    assert whole.digest == pca_hash.fit(iter([rows])).digest != pca_hash.fit([rows[:200]]).digest
    assert (np.diff(whole.variance) <= 0).all() and 0.9 < whole.variance.sum() < 1
    assert pca_hash.fit([rows[:2]]).variance[2:].sum() == 0
    with pytest.raises(ValueError, match="blocks must hold at least one array of thumbnails, held none"):
        pca_hash.fit([])


def test_thumbnail_similarity_is_the_correlation():
    a, b = np.random.default_rng(0).integers(0, 256, size=(2, 40, 1024), dtype=np.uint8)
    expected = [np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)]
    found = pca_hash.thumbnail_similarity(a, b)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.dtype == np.float32


def test_thumbnail_similarity_of_copies_negatives_and_empty_images():
    row = np.random.default_rng(0).integers(60, 120, size=1024).astype(np.uint8)
    white, nearly_white = np.full(1024, 255, np.uint8), np.full(1024, 255, np.uint8)
    nearly_white[3] = 250
    pairs = [
        (row, row, 1.0),
        (row, row * 2, 1.0),  # twice the contrast
        (row, 255 - row, -1.0),
        (white, white, 0.0),
        (white, nearly_white, 0.0),
        (row, white, 0.0),
    ]
    found = pca_hash.thumbnail_similarity(np.stack([a for a, _, _ in pairs]), np.stack([b for _, b, _ in pairs]))
    np.testing.assert_allclose(found, [expected for _, _, expected in pairs], atol=1e-6)
    assert (np.abs(found) <= 1).all()
    assert pca_hash.thumbnail_similarity(row[None][:0], row[None][:0]).shape == (0,)
