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
    fit = pca_hash.fit(rows)
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
    fit = pca_hash.fit(rows)
    np.testing.assert_allclose(fit.components @ fit.components.T, np.eye(64), atol=1e-5)
    # No component answers to brightness.
    np.testing.assert_allclose(fit.components.sum(axis=1), 0, atol=1e-4)
    assert len(np.unique(pca_hash.codes(fit, thumbnails(scenes(30, seed=5))), axis=0)) == 30


def test_flat_images_do_not_take_part_in_the_fit():
    rows = thumbnails(scenes(100))
    with_flat = np.concatenate([rows, np.full((100, 1024), 7, dtype=np.uint8)])
    np.testing.assert_allclose(pca_hash.fit(with_flat).components, pca_hash.fit(rows).components, atol=1e-4)


@pytest.mark.parametrize("pixels", [1000, 64, 49])
def test_thumbnails_must_be_square_and_large_enough(pixels):
    with pytest.raises(ValueError, match=f"square and have more than 64 pixels, had {pixels}"):
        pca_hash.fit(np.zeros((3, pixels), dtype=np.uint8))


def test_copies_keep_their_code_and_others_do_not():
    images = scenes(200)
    rows = thumbnails(images)
    fit = pca_hash.fit(rows)
    codes = pca_hash.codes(fit, rows)
    resized = pca_hash.codes(fit, thumbnails([image.resize((200, 200)) for image in images]))
    brighter = pca_hash.codes(fit, thumbnails([image.point(lambda v: v * 0.7 + 40) for image in images]))
    assert np.median(distance(codes, resized)) <= 2 and np.median(distance(codes, brighter)) <= 2
    others = distance(codes[:, None], codes[None])[~np.eye(200, dtype=bool)]
    assert others.min() > 8 and abs(others.mean() - 32) < 3


def test_a_code_fits_into_an_imagehash():
    rows = thumbnails(scenes(20))
    fit = pca_hash.fit(rows)
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
    fit = pca_hash.fit(rows[:10])  # its filled-up patterns leave projections that are zero
    rows[5] = 9
    codes = pca_hash.codes(fit, rows)
    np.testing.assert_array_equal(np.concatenate([pca_hash.codes(fit, row[None]) for row in rows]), codes)
    monkeypatch.setattr(pca_hash, "BLOCK", 7)
    np.testing.assert_array_equal(pca_hash.codes(fit, rows), codes)
    assert pca_hash.codes(fit, rows[:0]).shape == (0, 8)


def test_a_projection_that_is_zero_but_for_rounding_gives_bit_zero():
    halves = np.random.default_rng(0).integers(0, 256, size=(50, 32, 16), dtype=np.uint8)
    symmetric = np.concatenate([halves, halves[:, :, ::-1]], axis=2).reshape(50, 1024)
    fit = pca_hash.fit(symmetric[:0])  # DCT patterns alone
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


@pytest.mark.parametrize(("n", "block"), [(0, 8), (1, 8), (2, 8), (300, 300), (300, 64), (60, 7), (301, 100)])
@pytest.mark.parametrize("max_distance", [0, 4, 64])
def test_pairs_within_equal_brute_force(n, block, max_distance):
    codes = near_codes(n)
    expected = {
        (left, right): distance(codes[left], codes[right])
        for left in range(n)
        for right in range(left + 1, n)
        if distance(codes[left], codes[right]) <= max_distance
    }
    found = {}
    for pairs, distances in pca_hash.pairs_within(codes, max_distance=max_distance, block=block):
        assert pairs.dtype == np.int64 and distances.dtype == np.uint8 and len(pairs) == len(distances) > 0
        assert pairs.tolist() == sorted(pairs.tolist())
        for pair, bits in zip(map(tuple, pairs.tolist()), distances.tolist(), strict=True):
            assert pair not in found
            found[pair] = bits
    assert found == expected


def test_negative_distances_are_refused():
    with pytest.raises(ValueError, match="max_distance must be at least 0 bits, was -1"):
        next(pca_hash.pairs_within(near_codes(3), max_distance=-1))


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
