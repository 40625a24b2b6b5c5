"""Near duplicates: pairs of images whose PCA hashes are near and whose thumbnails confirm it, in linear numbers."""

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from lvd.infra.shards import ShardRef, gather_rows
from lvd.tasks import schemas
from lvd.tasks.algorithms import graph, pca_hash

PIXELS = schemas.MEASURES.field("thumbnail").type.byte_width
HELD = 1 << 17  # thumbnails in memory at a time: 128 MB, and as much while they are gathered
FIRST_PAIRS, HELD_PAIRS = 1 << 18, 1 << 22  # pairs that wait to be compared, at first and at most: 64 MB
STEP = 1 << 14  # pairs that are compared at a time: 100 MB
LARGE = 64  # of more images with one hash, representatives are compared
MAX_REPRESENTATIVES = 64  # of the images with one hash
MAX_COMPARED = 1024  # pairs of one image that are looked at and are no copies, before others must ask for it
Read = Callable[[np.ndarray], np.ndarray]  # (m,) images, ascending → their (m, 1024) uint8 thumbnails


def thumbnails(refs: list[ShardRef], positions: np.ndarray) -> np.ndarray:
    """(m, 1024) uint8 thumbnails at positions of the measures."""
    return pixels_of(gather_rows(refs, positions, ["thumbnail"]))


def pixels_of(measures: pa.Table) -> np.ndarray:
    """(n, 1024) uint8 of the column `thumbnail`, n may be 0."""
    return bytes_of(measures["thumbnail"])


def bytes_of(column: pa.ChunkedArray) -> np.ndarray:
    """(n, width) uint8 of a column of fixed width without nulls."""
    width, parts = column.type.byte_width, [np.zeros((0, column.type.byte_width), dtype=np.uint8)]
    for chunk in column.chunks:
        if len(chunk):
            flat = np.frombuffer(chunk.buffers()[1], dtype=np.uint8)
            parts.append(flat[chunk.offset * width : (chunk.offset + len(chunk)) * width].reshape(-1, width))
    return parts[1] if len(parts) == 2 else np.concatenate(parts)


def near_pairs(
    measures: list[ShardRef],
    codes: np.ndarray,
    positions: np.ndarray,
    *,
    max_distance: int,
    min_similarity: float,
    age: np.ndarray | None = None,
) -> np.ndarray:
    """(m, 2) int64 pairs of indices into `positions` whose hashes are near and whose thumbnails confirm it.

    As many as connect the images that all such pairs would connect: two images that others connect are not compared.
    The number of comparisons stays linear, so three kinds of pairs can be missed. Of more than LARGE images with one
    hash, each is compared with at most MAX_REPRESENTATIVES: the first, the first that is no copy of it, and so on; a
    pair of which both are copies of no representative, or of different ones, is missed. Images of other hashes are
    compared with these representatives alone. And two images that are near in hash to more than MAX_COMPARED others
    each, and no copies of them, are not compared any more.

    codes: (n, 8) uint8, of the measures at `positions`. age: (n,) integers that never fall; if it is given, they
        connect as many of the images up to any age as well.
    """

    def read(rows: np.ndarray) -> np.ndarray:
        return thumbnails(measures, positions[rows])

    distinct, rows, starts = pca_hash.grouped(codes)
    large = np.diff(starts) > LARGE
    connected, nodes, starts = with_representatives(read, rows, starts, large, min_similarity)
    joined, compared = Joined(len(codes), age), np.zeros(len(codes), dtype=np.int32)
    joined.join(connected)
    found, waiting, limit = [connected], [], FIRST_PAIRS

    def compare() -> None:
        for pairs in in_batches(np.concatenate(waiting), age):
            confirmed = confirmed_pairs(read, pairs, joined, compared, min_similarity)
            joined.join(confirmed)
            found.append(confirmed)

    for pairs in candidates(distinct, nodes, starts, large, max_distance):
        waiting.append(pairs[~joined.has(pairs)])
        if sum(map(len, waiting)) >= limit:  # soon at first: what is connected early needs no further comparison
            compare()
            waiting, limit = [], min(2 * limit, HELD_PAIRS)
    if waiting:
        compare()
    return np.concatenate(found)


class Joined:
    """The images that are connected by now, each component with the age of the youngest image that helped.

    age: (n,) of every image; None: all are of one.
    """

    def __init__(self, num_images: int, age: np.ndarray | None) -> None:
        self._labels, self._age = np.arange(num_images), age
        self._youngest = np.zeros(0 if age is None else num_images, dtype=np.int64)  # of the component of each label

    def has(self, pairs: np.ndarray) -> np.ndarray:
        """(m,) bool: pairs that are connected, through no image that is younger than both."""
        label, other = self._labels[pairs].T
        if self._age is None:
            return label == other
        return (label == other) & (self._youngest[label] <= self._age[pairs].max(axis=1, initial=0))

    def join(self, pairs: np.ndarray) -> None:
        before = self._labels
        self._labels = graph.connected_components(before[pairs], len(before))[before]
        if self._age is not None:
            youngest = np.zeros_like(self._youngest)
            np.maximum.at(youngest, self._labels, self._youngest[before])
            np.maximum.at(youngest, self._labels[pairs[:, 0]], self._age[pairs].max(axis=1, initial=0))
            self._youngest = youngest

    def among(self, images: np.ndarray) -> "Joined":
        """The same of some images, which are counted from 0."""
        some = Joined(len(images), None if self._age is None else self._age[images])
        labels, first, some._labels = np.unique(self._labels[images], return_index=True, return_inverse=True)
        some._labels = first[some._labels]
        if self._age is not None:
            some._youngest[first] = self._youngest[labels]
        return some


def with_representatives(
    read: Read, rows: np.ndarray, starts: np.ndarray, large: np.ndarray, min_similarity: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The copies among the images of each large group, and the groups with their representatives alone.

    Flat images, which are no copies of anything, are left out of large groups.

    rows, starts: the groups, as `pca_hash.grouped` returns them; so are the groups that are returned. large: (g,) bool.
    """
    group_of = np.repeat(np.arange(len(large)), np.diff(starts))
    in_large = large[group_of]
    crowd, crowd_group = rows[in_large], group_of[in_large]
    connected, chosen, chosen_group = [np.zeros((0, 2), dtype=np.int64)], [rows[~in_large]], [group_of[~in_large]]
    group, leaders = -1, Leaders(min_similarity)
    for start in range(0, len(crowd), HELD):
        piece, groups = crowd[start : start + HELD], crowd_group[start : start + HELD]
        order = np.argsort(piece)
        pixels = np.empty((len(piece), PIXELS), dtype=np.uint8)
        pixels[order] = read(piece[order])
        for first, last in _runs(groups):
            if groups[first] != group:
                group, leaders = groups[first], Leaders(min_similarity)
            before = len(leaders.rows)
            connected.append(leaders.followed(piece[first:last], pixels[first:last]))
            chosen.append(np.array(leaders.rows[before:], dtype=np.int64))
            chosen_group.append(np.full(len(chosen[-1]), group))
    nodes, node_group = np.concatenate(chosen), np.concatenate(chosen_group)
    order = np.lexsort((nodes, node_group))
    until = np.cumsum(np.bincount(node_group, minlength=len(large)))
    return np.concatenate(connected), nodes[order], np.concatenate([[0], until]).astype(np.int64)


class Leaders:
    """The representatives of the images with one hash: the first one, the first that is no copy of it, and so on."""

    def __init__(self, min_similarity: float) -> None:
        self.rows: list[int] = []
        self._pixels: list[np.ndarray] = []
        self._min_similarity = min_similarity

    def followed(self, rows: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        """(m, 2) int64: a representative and its copy; each image follows the first one that it is a copy of."""
        keep = np.ones(len(rows), dtype=bool) if self._min_similarity <= 0 else ~pca_hash.is_flat(pixels)
        left, found = np.flatnonzero(keep), [np.zeros((0, 2), dtype=np.int64)]
        for turn in range(MAX_REPRESENTATIVES):
            if len(left) == 0:
                break
            if turn == len(self.rows):
                self.rows.append(int(rows[left[0]]))
                self._pixels.append(pixels[left[0]].copy())
                left = left[1:]
            near = _similarity_to(self._pixels[turn], pixels, left) >= self._min_similarity
            copies = rows[left[near]]
            found.append(np.column_stack([np.full(len(copies), self.rows[turn]), copies]))
            left = left[~near]
        return np.concatenate(found)


def candidates(
    distinct: np.ndarray, nodes: np.ndarray, starts: np.ndarray, large: np.ndarray, max_distance: int
) -> Iterator[np.ndarray]:
    """(m, 2) int64 images of equal and of near hashes, but no two of a large group.

    distinct: (g, 8) uint8 hashes; nodes, starts: the images of each; large: (g,) bool.
    """
    sizes_of = np.diff(starts)
    in_large = np.repeat(large, sizes_of)
    for left, right in pca_hash.pairs_in_groups(starts):
        yield np.column_stack([nodes[left], nodes[right]])[~in_large[left]]
    for pairs, _ in pca_hash.pairs_within(distinct, max_distance=max_distance):
        pairs = pairs[(sizes_of[pairs] > 0).all(axis=1)]
        for _, left, right in pca_hash.pairs_between(starts, pairs[:, 0], pairs[:, 1]):
            yield np.column_stack([nodes[left], nodes[right]])


def in_batches(pairs: np.ndarray, age: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """The (m, 2) int64 pairs in batches of at most HELD different images; sorted, so that a batch has few of them.

    age: of every image; pairs of old ones come before those of new ones, which might connect them.
    """
    keys = np.sort((pairs.min(axis=1) << 32) | pairs.max(axis=1)) if len(pairs) else pairs[:, 0]
    pairs = np.column_stack([keys >> 32, keys & 0xFFFFFFFF])
    if age is not None:
        pairs = pairs[np.argsort(age[pairs].max(axis=1, initial=0), kind="stable")]
    while len(pairs):
        first_seen = np.sort(np.unique(pairs[:HELD_PAIRS], return_index=True)[1])
        end = HELD_PAIRS if len(first_seen) <= HELD else max(int(first_seen[HELD]) // 2, 1)
        yield pairs[:end]
        pairs = pairs[end:]


def confirmed_pairs(
    read: Read, pairs: np.ndarray, joined: Joined, compared: np.ndarray, min_similarity: float
) -> np.ndarray:
    """Those of the pairs that are copies by their thumbnails, but for pairs that others connect already.

    compared: (n,) int32, the pairs in which an image was no copy; counted up.
    """
    pairs = pairs[~joined.has(pairs)]
    if len(pairs) == 0:
        return pairs
    nodes, left = np.unique(pairs, return_inverse=True)
    left, found = left.reshape(-1, 2), [np.zeros((0, 2), dtype=np.int64)]
    own, pixels = joined.among(nodes), read(nodes)
    misses = compared[nodes]
    while len(left):
        step, left = left[:STEP], left[STEP:]
        near = similarities(pixels, step) >= min_similarity
        found.append(nodes[step[near]])
        misses += np.bincount(step[~near].ravel(), minlength=len(nodes)).astype(np.int32)
        own.join(step[near])
        tired = misses >= MAX_COMPARED
        left = left[~own.has(left) & ~tired[left].all(axis=1)]
    compared[nodes] = misses
    return np.concatenate(found)


def similarities(pixels: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """(m,) float32: how alike the thumbnails of each pair are. pairs: (m, 2) indices into pixels."""
    steps = [pairs[start : start + STEP] for start in range(0, len(pairs), STEP)]
    found = [pca_hash.thumbnail_similarity(pixels[step[:, 0]], pixels[step[:, 1]]) for step in steps]
    return np.concatenate([np.zeros(0, dtype=np.float32), *found])


def _similarity_to(picture: np.ndarray, pixels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(m,) float32: how alike these rows of the thumbnails are to one picture."""
    steps = [pixels[rows[start : start + STEP]] for start in range(0, len(rows), STEP)]
    found = [pca_hash.thumbnail_similarity(np.broadcast_to(picture, step.shape), step) for step in steps]
    return np.concatenate([np.zeros(0, dtype=np.float32), *found])


def _runs(values: np.ndarray) -> Iterator[tuple[int, int]]:
    """First and last + 1 of every run of equal values."""
    ends = np.flatnonzero(np.append(values[1:] != values[:-1], True)) + 1
    yield from zip(np.concatenate([[0], ends[:-1]]).tolist(), ends.tolist(), strict=True)
