"""PCA hash: 64 bits of an image, the signs of its luminance thumbnail along the pool's leading principal components.

Source: DINOv2 appendix A.1 (PCA-hash deduplication); the paper gives no sizes: 64 bits of 32 x 32 thumbnails are ours.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# Rows per step where a whole sample is read; fixed, so that sums do not depend on anything else.
BLOCK = 4096
# Thumbnails that vary by less, in grey levels of 255 (standard deviation), are flat: noise is all that they hold.
FLAT_STD = 1.0
# The unit rows have a total variance of at most 1; a direction with less than this is float32 rounding noise.
MIN_VARIANCE = 1e-8
# A DCT pattern of which less is left, after the directions already there are taken out, adds too little to them.
MIN_RESIDUAL = 0.1
# A projection that is zero but for rounding gives bit 0 (unit rows: the weakest of 64 components holds about 0.02).
ZERO_PROJECTION = 1e-6


@dataclass(frozen=True)
class PcaHash:
    """A fitted hash. mean: (p,) float32; components: (bits, p) float32, orthonormal rows, the leading one first."""

    mean: np.ndarray
    components: np.ndarray


def normalised(thumbnails: np.ndarray) -> np.ndarray:
    """The rows without their mean and of unit length: (n, p) float32; flat rows are zeros.

    thumbnails: (n, p) uint8 luminance.
    """
    mean, norm = _mean_and_norm(thumbnails)
    scale = np.divide(1.0, norm, out=np.zeros_like(norm), where=norm > 0).astype(np.float32)
    return (thumbnails - mean.astype(np.float32)[:, None]) * scale[:, None]


def fit(thumbnails: np.ndarray, *, bits: int = 64) -> PcaHash:
    """The PCA of the normalised thumbnails that are not flat, its leading `bits` components.

    Where the sample has fewer directions (one image has none), low-frequency DCT patterns, made orthogonal to those
    that were found, fill up. A component's sign is such that its largest entry is positive.

    thumbnails: (n, p) uint8, p = side x side; a seeded sample of the pool, 10^4 to 10^5 rows.
    Raises ValueError if p is no square or has no more than `bits` pixels.
    """
    pixels = thumbnails.shape[1]
    if math.isqrt(pixels) ** 2 != pixels or pixels <= bits:
        raise ValueError(f"thumbnails must be square and have more than {bits} pixels, had {pixels}")
    mean, covariance = _moments(thumbnails)
    variance, vectors = np.linalg.eigh(covariance)
    found = int((variance[-bits:] > MIN_VARIANCE).sum())
    directions = _filled_up(vectors.T[::-1][:found], bits)
    largest = np.abs(directions).round(6).argmax(axis=1, keepdims=True)
    directions = directions * np.sign(np.take_along_axis(directions, largest, axis=1))
    return PcaHash(mean=mean.astype(np.float32), components=directions.astype(np.float32))


def codes(fit: PcaHash, thumbnails: np.ndarray) -> np.ndarray:
    """The hash of each thumbnail: (n, bits / 8) uint8, one bit per component, the leading one first (big-endian).

    `imagehash.ImageHash(np.unpackbits(code).reshape(8, 8))` holds one. All flat thumbnails have the same code.
    """
    components = fit.components.astype(np.float64).T
    positive = [
        (normalised(thumbnails[start : start + BLOCK]) - fit.mean).astype(np.float64) @ components > ZERO_PROJECTION
        for start in range(0, len(thumbnails), BLOCK)
    ]
    return np.packbits(np.concatenate([np.zeros((0, len(fit.components)), dtype=bool), *positive]), axis=1)


def pairs_within(codes: np.ndarray, *, max_distance: int, block: int = 4096) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every pair of rows at most max_distance bits apart, exactly: (m, 2) int64, left < right, and (m,) uint8 distance.

    Yields one piece for each two blocks of rows that hold such a pair; pairs are sorted within a piece, and no pair
    comes twice. n^2 / 2 comparisons, about 4 x 10^9 a second on two cores; memory: at most block^2 pairs.

    codes: (n, bytes) uint8. max_distance: more finds more altered copies and more look-alikes; 0 to 8 of 64 is usual.
    Raises ValueError if max_distance is negative.
    """
    import faiss

    if max_distance < 0:
        raise ValueError(f"max_distance must be at least 0 bits, was {max_distance}")
    codes = np.ascontiguousarray(codes)
    for right_start in range(0, len(codes), block):
        index = faiss.IndexBinaryFlat(codes.shape[1] * 8)
        index.add(codes[right_start : right_start + block])
        for left_start in range(0, right_start + 1, block):
            # Faiss finds distances strictly below the radius.
            limits, distance, right = index.range_search(codes[left_start : left_start + block], max_distance + 1)
            left = np.repeat(np.arange(len(limits) - 1), np.diff(limits.astype(np.int64))) + left_start
            pairs = np.column_stack([left, right + right_start])
            keep = pairs[:, 0] < pairs[:, 1]
            if keep.any():
                pairs, distance = pairs[keep], distance[keep].astype(np.uint8)
                order = np.lexsort((pairs[:, 1], pairs[:, 0]))
                yield pairs[order], distance[order]


def thumbnail_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlation of a[i] and b[i]: (m,) float32 in [-1, 1]; 0 where either is flat, so two empty images are no copies.

    a, b: (m, p) uint8 luminance thumbnails.
    """
    mean_a, norm_a = _mean_and_norm(a)
    mean_b, norm_b = _mean_and_norm(b)
    covariance = np.multiply(a, b, dtype=np.uint16).sum(axis=1, dtype=np.int64) - a.shape[1] * mean_a * mean_b
    scale = norm_a * norm_b
    # The float64 rounding is too small to carry a float32 past 1.
    return np.divide(covariance, scale, out=np.zeros_like(scale), where=scale > 0).astype(np.float32)


def _mean_and_norm(thumbnails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (n,) float64 of each row and the length (n,) float64 of the row without it; 0 for flat rows.

    From integer sums, so that a row's figures depend on the row alone.
    """
    pixels = thumbnails.shape[1]
    total = thumbnails.sum(axis=1, dtype=np.int64)
    squares = np.multiply(thumbnails, thumbnails, dtype=np.uint16).sum(axis=1, dtype=np.int64)
    squared_norm = (pixels * squares - total**2) / pixels
    return total / pixels, np.sqrt(np.where(squared_norm < pixels * FLAT_STD**2, 0.0, squared_norm))


def _moments(thumbnails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (p,) and covariance (p, p), float64, of the normalised rows that are not flat; zeros where there is none."""
    pixels = thumbnails.shape[1]
    count, total, products = 0, np.zeros(pixels), np.zeros((pixels, pixels))
    for start in range(0, len(thumbnails), BLOCK):
        rows = normalised(thumbnails[start : start + BLOCK]).astype(np.float64)
        count += int(rows.any(axis=1).sum())
        total += rows.sum(axis=0)
        products += rows.T @ rows
    mean = total / max(count, 1)
    return mean, products / max(count, 1) - np.outer(mean, mean)


def _filled_up(directions: np.ndarray, bits: int) -> np.ndarray:
    """The directions (m, p) and, below them, the DCT patterns that make them `bits` orthonormal rows: (bits, p)."""
    for pattern in _dct_patterns(math.isqrt(directions.shape[1])):
        if len(directions) == bits:
            break
        residual = pattern - directions.T @ (directions @ pattern)
        residual -= directions.T @ (directions @ residual)
        norm = np.linalg.norm(residual)
        if norm > MIN_RESIDUAL:
            directions = np.vstack([directions, residual / norm])
    return directions


def _dct_patterns(side: int) -> np.ndarray:
    """The two-dimensional DCT-II patterns but the constant one, low frequencies first: (side^2 - 1, side^2) float64."""
    frequency = np.arange(side)
    waves = np.cos(np.pi * np.outer(frequency, frequency + 0.5) / side)
    waves /= np.linalg.norm(waves, axis=1, keepdims=True)
    vertical, horizontal = np.divmod(np.arange(side * side), side)
    order = np.lexsort((vertical, vertical + horizontal))[1:]
    patterns = waves[vertical[order], :, None] * waves[horizontal[order], None, :]
    return patterns.reshape(len(order), side * side)
