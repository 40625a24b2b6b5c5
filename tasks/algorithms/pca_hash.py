"""PCA hash: 64 bits of an image, the signs of its luminance thumbnail along the pool's leading principal components.

Source: DINOv2 appendix A.1 (PCA-hash deduplication); the paper gives no sizes: 64 bits of 32 x 32 thumbnails are ours.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np

# Rows per step where many are read; fixed, so that sums do not depend on anything else.
BLOCK = 4096
# Pairs of codes that are compared at a time: about 60 MB.
PAIRS = 1 << 20
# Nanoseconds, for choosing how to search: one pair of a block against a block, one pair of one key, one row of a sort.
PAIRWISE_NS, PAIR_NS, ROW_NS = 0.4, 10.0, 70.0
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
    """A fitted hash.

    mean: (p,) float32. components: (bits, p) float32, orthonormal rows, the leading one first.
    variance: (bits,) float32, each component's share of the sample's variance; 0 of those that only fill up.
    """

    mean: np.ndarray
    components: np.ndarray
    variance: np.ndarray

    @property
    def digest(self) -> str:
        """SHA-256 of what decides the codes: 64 hex characters."""
        both = hashlib.sha256(np.ascontiguousarray(self.mean, dtype="<f4").tobytes())
        both.update(np.ascontiguousarray(self.components, dtype="<f4").tobytes())
        return both.hexdigest()


def normalised(thumbnails: np.ndarray) -> np.ndarray:
    """The rows without their mean and of unit length: (n, p) float32; flat rows are zeros.

    thumbnails: (n, p) uint8 luminance.
    """
    mean, norm = _mean_and_norm(thumbnails)
    scale = np.divide(1.0, norm, out=np.zeros_like(norm), where=norm > 0).astype(np.float32)
    return (thumbnails - mean.astype(np.float32)[:, None]) * scale[:, None]


def fit(blocks: Iterable[np.ndarray], *, bits: int = 64) -> PcaHash:
    """The PCA of the normalised thumbnails that are not flat, its leading `bits` components.

    Where the sample has fewer directions (one image has none), low-frequency DCT patterns, made orthogonal to those
    that were found, fill up. A component's sign is such that its largest entry is positive. Memory: one block, and the
    sums of the covariance, (p, p). The last bits of the sums depend on the cuts between the blocks: cut always alike.

    blocks: of (n, p) uint8, p = side x side, n may be 0; together a seeded sample of the pool, 10^4 to 10^5 rows.
    Raises ValueError if there is no block, or p is no square or has no more than `bits` pixels.
    """
    mean, covariance = _moments(blocks, bits)
    variance, vectors = np.linalg.eigh(covariance)
    found = int((variance[-bits:] > MIN_VARIANCE).sum())
    directions = _filled_up(vectors.T[::-1][:found], bits)
    largest = np.abs(directions).round(6).argmax(axis=1, keepdims=True)
    directions = directions * np.sign(np.take_along_axis(directions, largest, axis=1))
    shares = np.zeros(bits)
    shares[:found] = variance[::-1][:found] / max(np.trace(covariance), MIN_VARIANCE)
    return PcaHash(*(values.astype(np.float32) for values in (mean, directions, shares)))


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


def grouped(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct codes, ascending, and who has them: (g, 8) uint8, (n,) int64 rows, (g + 1,) int64 starts.

    The rows of code i are rows[starts[i] : starts[i + 1]], ascending.

    codes: (n, 8) uint8.
    """
    rows = np.argsort(_words(codes), kind="stable")
    ordered = codes[rows]
    first = np.ones(len(codes), dtype=bool)
    first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return ordered[first], rows, np.append(np.flatnonzero(first), len(codes))


def pairs_within(codes: np.ndarray, *, max_distance: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every pair of rows at most max_distance bits apart, exactly: (m, 2) int64, left < right, and (m,) uint8 distance.

    Pairs are sorted within a piece, no pair comes twice, and the pieces come in the same order everywhere; memory: n
    codes, and some PAIRS for a piece. Equal codes are looked for once. Of distinct codes cut into b blocks of bits, two
    that differ in d bits agree in b - d blocks at least: for every choice of b - d blocks, the codes are sorted by
    those, and what agrees is compared (Manku, Jain and Das Sarma 2007, section 3). 10^6 random codes within 6 bits take
    5 s of one core; few codes or large distances are compared pairwise, 3 x 10^9 pairs a second on two cores.

    codes: (n, 8) uint8. max_distance: more finds more altered copies and more look-alikes; 0 to 8 of 64 is usual.
    Raises ValueError if max_distance is negative or codes have another width.
    """
    if max_distance < 0:
        raise ValueError(f"max_distance must be at least 0 bits, was {max_distance}")
    if codes.shape[1:] != (8,):
        raise ValueError(f"codes must be (n, 8) uint8, were of shape {codes.shape}")
    distinct, rows, starts = grouped(codes)
    for left, right in pairs_in_groups(starts):
        yield _sorted_pairs(rows[left], rows[right], np.zeros(len(left), dtype=np.uint8))
    if max_distance == 0:
        return
    words = _words(distinct)
    cut = _cheapest_cut(len(words), max_distance)
    near = _pairwise(distinct, max_distance) if cut is None else _near_words(words, max_distance, cut)
    for left, right, distance in near:
        for which, a, b in pairs_between(starts, left, right):
            yield _sorted_pairs(rows[a], rows[b], distance[which])


def pairs_in_groups(starts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every pair of places a < b of one group, a ascending, in pieces of about PAIRS pairs: two (m,) int64.

    starts: (g + 1,) int64, ascending; group i is the places starts[i] to starts[i + 1].
    """
    sizes = np.diff(starts)
    places = np.arange(starts[0], starts[-1])
    after = np.repeat(starts[1:], sizes) - places - 1
    for first, last in _windows(after):
        left, nth = _repeated(after[first:last])
        left = places[first + left]
        yield left, left + 1 + nth


def pairs_between(
    starts: np.ndarray, left: np.ndarray, right: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Every place of the group left[i] with every one of the group right[i]: (m,) int64 i, and the two places.

    In pieces of about PAIRS. starts: as in `pairs_in_groups`; left, right: (k,) int64 groups.
    """
    sizes = np.diff(starts)
    for first, last in _windows(sizes[left]):
        group, nth = _repeated(sizes[left[first:last]])
        group = group + first
        place, others = starts[left[group]] + nth, sizes[right[group]]
        for start, stop in _windows(others):
            which, nth = _repeated(others[start:stop])
            which = which + start
            yield group[which], place[which], starts[right[group[which]]] + nth


def is_flat(thumbnails: np.ndarray) -> np.ndarray:
    """(n,) bool: thumbnails that are similar to none. thumbnails: (n, p) uint8 luminance."""
    return _mean_and_norm(thumbnails)[1] == 0


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


def _moments(blocks: Iterable[np.ndarray], bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (p,) and covariance (p, p), float64, of the normalised rows that are not flat; zeros where there is none."""
    count, total, products = 0, np.zeros(0), np.zeros((0, 0))
    for thumbnails in blocks:
        pixels = thumbnails.shape[1]
        if math.isqrt(pixels) ** 2 != pixels or pixels <= bits:
            raise ValueError(f"thumbnails must be square and have more than {bits} pixels, had {pixels}")
        rows = normalised(thumbnails).astype(np.float64)
        if not total.size:
            total, products = np.zeros(pixels), np.zeros((pixels, pixels))
        count += int(rows.any(axis=1).sum())
        total += rows.sum(axis=0)
        products += rows.T @ rows
    if not total.size:
        raise ValueError("blocks must hold at least one array of thumbnails, held none")
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


def _words(codes: np.ndarray) -> np.ndarray:
    """(n,) uint64 of (n, 8) codes, ordered as their bytes are."""
    return np.ascontiguousarray(codes).view(">u8").ravel().astype(np.uint64)


def _windows(counts: np.ndarray) -> Iterator[tuple[int, int]]:
    """Consecutive ranges, none of them of counts that are all zero, whose counts come to PAIRS, or that are of one."""
    until, first = np.cumsum(counts), 0
    while first < len(counts):
        before = until[first - 1] if first else 0
        last = max(int(np.searchsorted(until, before + PAIRS, side="right")), first + 1)
        if until[last - 1] > before:
            yield first, last
        first = last


def _repeated(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index i counts[i] times, for every i, and which time it is: two (sum,) int64."""
    index = np.repeat(np.arange(len(counts)), counts)
    return index, np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)


def _sorted_pairs(a: np.ndarray, b: np.ndarray, distance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    left, right = np.minimum(a, b), np.maximum(a, b)
    order = np.argsort((left << 32) | right)  # no pair comes twice, so any sort gives one order
    return np.column_stack([left, right])[order], distance[order]


def _cheapest_cut(num_codes: int, max_distance: int) -> int | None:
    """Into how many blocks codes are best cut; None if comparing all pairs costs less. For codes that are random."""
    all_pairs = num_codes**2 / 2
    costs: dict[int | None, float] = {None: all_pairs * PAIRWISE_NS}
    for blocks in range(max_distance + 1, max_distance + 5):
        agreeing = blocks - max_distance
        if -(-64 // blocks) * agreeing <= 32:  # the key shares a word with the row
            cost = num_codes * ROW_NS + all_pairs / 2 ** (64 * agreeing / blocks) * PAIR_NS
            costs[blocks] = math.comb(blocks, agreeing) * cost
    return min(costs, key=costs.__getitem__)


def _near_words(words: np.ndarray, max_distance: int, num_blocks: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Pairs of distinct words at most max_distance bits apart, in pieces: (m,) int64 left and right, (m,) uint8.

    A pair is told by the first choice of blocks, in the order of `combinations`, in which it agrees.
    """
    edges = [64 * i // num_blocks for i in range(num_blocks + 1)]
    widths = np.diff(edges).astype(np.uint64)
    shifts = np.array(edges[:-1], dtype=np.uint64)
    masks = (np.uint64(1) << widths) - np.uint64(1)
    half, rows = np.uint64(32), np.arange(len(words), dtype=np.uint64)
    for chosen in combinations(range(num_blocks), num_blocks - max_distance):
        keys = np.zeros(len(words), dtype=np.uint64)
        for block in chosen:
            keys = (keys << widths[block]) | ((words >> shifts[block]) & masks[block])
        keys = np.sort((keys << half) | rows)
        order = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
        keys >>= half
        starts = np.concatenate([[0], np.flatnonzero(keys[1:] != keys[:-1]) + 1, [len(keys)]])
        ordered = words[order]
        earlier = [masks[block] << shifts[block] for block in range(chosen[-1]) if block not in chosen]
        for left, right in pairs_in_groups(starts):
            different = ordered[left] ^ ordered[right]
            distance = np.bitwise_count(different)
            keep = np.flatnonzero(distance <= max_distance)
            for mask in earlier:
                keep = keep[different[keep] & mask != 0]
            if len(keep):
                yield order[left[keep]], order[right[keep]], distance[keep]


def _pairwise(codes: np.ndarray, max_distance: int) -> Iterator[tuple[np.ndarray, ...]]:
    """As `_near_words`, of (n, 8) distinct codes, by comparing all pairs of two blocks of BLOCK codes at a time."""
    import faiss

    codes = np.ascontiguousarray(codes)
    for right_start in range(0, len(codes), BLOCK):
        index = faiss.IndexBinaryFlat(codes.shape[1] * 8)
        index.add(codes[right_start : right_start + BLOCK])
        for left_start in range(0, right_start + 1, BLOCK):
            # Faiss finds distances strictly below the radius.
            limits, distance, right = index.range_search(codes[left_start : left_start + BLOCK], max_distance + 1)
            left = np.repeat(np.arange(len(limits) - 1), np.diff(limits.astype(np.int64))) + left_start
            right = right + right_start
            keep = left < right
            if keep.any():
                yield left[keep], right[keep], distance[keep].astype(np.uint8)
