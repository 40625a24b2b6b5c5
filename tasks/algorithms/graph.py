"""Components of the copy graph, the edges that decide them, and the image that represents each.

Source: DINOv2 appendix A.3, PAPER.md 1. The loops over edges are compiled by numba at their first call in a process, in
2 to 4 CPU seconds with its import; they hold no lock of Python's while they run.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import NamedTuple

import numpy as np

# Edges per step: what is not contiguous int32 or int64 is copied in steps of 16 MB.
BLOCK = 1 << 20
# Edges whose nodes are looked up together, so that the reads from memory overlap: 64 to 1,024 are alike; one by one is
# a third slower on 50 M nodes.
BATCH = 256
# Nodes up to which a node, and the size of a component, is held in 4 bytes.
MAX_SMALL_NODES = (1 << 31) - 1


def connected_components(edges: np.ndarray | Iterable[np.ndarray], num_nodes: int) -> np.ndarray:
    """Component label of every node: (num_nodes,), the smallest node of its component.

    int32 below 2^31 nodes, else int64. A disjoint-set forest with path halving under the smallest root: 4 bytes a node
    (else 8) and nothing more, however many edges there are; 10 to 20 million random edges a second. Contiguous int32
    and int64 edges are read where they lie.

    edges: (m, 2) integers in [0, num_nodes), in any order, repeats and loops allowed; or blocks of such, read once.
    Raises ValueError if an edge leaves that range.
    """
    join = _kernels().join
    parent = _forest(num_nodes)
    for block in _blocks(edges):
        _refuse(block, join(parent, block), num_nodes)
    return _labels(parent)


def strongest(pairs: np.ndarray, similarity: np.ndarray, *, k: int) -> np.ndarray:
    """Which edges stand for all of them: (m,) bool.

    Kept are the k strongest edges of every node, and the maximum spanning forest, without which a group of copies whose
    k nearest are all of the group would come apart: the components above any similarity are the same as with all edges.
    On average at most k + 1 edges a node are kept. Stronger is the more similar edge, then the one with the smaller
    left, then right node; so the mask follows the edges whatever their order, and edges may be thinned out in parts:
    the strongest of (the strongest of A) and B are the strongest of A and B.

    About 70 bytes an edge beside the pairs; 1 to 3 million edges a second.

    pairs: (m, 2) int64, left < right, no pair twice; any numbers, such as rows of the pool. similarity: (m,) float32 or
    integers, no NaN. k: raising it keeps more edges; usually that of the neighbour lists, 64.
    """
    compact, num_nodes = _compact(pairs)
    if np.bincount(compact.ravel(), minlength=1).max() <= k:
        return np.ones(len(pairs), dtype=bool)
    order = _strongest_first(compact, similarity)
    return _kernels().keep(_forest(num_nodes), compact, order, k)


def bounded_components(pairs: np.ndarray, similarity: np.ndarray, num_nodes: int, *, max_size: int) -> np.ndarray:
    """Component label of every node if none may have more than max_size nodes: (num_nodes,), the smallest node.

    Single linkage with a cap, against chains of images each a little like the next (PAPER.md 1.6): the strongest edge
    first, in the order of `strongest`, and an edge joins two components if together they have at most max_size nodes.
    Labels are as those of `connected_components`, and equal to them if max_size is at least num_nodes.

    8 bytes a node (16 from 2^31 nodes on) and about 45 an edge beside the pairs; 2 to 4 million edges a second.

    pairs: (m, 2) int64 in [0, num_nodes), left < right. similarity: (m,) float32 or integers, no NaN. max_size: raising
    it joins more. Raises ValueError if an edge leaves that range.
    """
    for block in _blocks(pairs):
        outside = ((block < 0) | (block >= num_nodes)).any(axis=1)
        _refuse(block, int(outside.argmax()) if outside.any() else -1, num_nodes)
    parent = _forest(num_nodes)
    order = _strongest_first(pairs, similarity)
    _kernels().join_bounded(parent, pairs, order, max_size)
    return _labels(parent)


def representatives(labels: np.ndarray, area: np.ndarray, num_bytes: np.ndarray, image_id: np.ndarray) -> np.ndarray:
    """The row that stands for each row's component: (n,) int64.

    Largest area, then the larger file, then the lowest image id (PAPER.md 1.4).

    labels: (n,) integers, as `connected_components` returns them. area: (n,) int64, pixels. num_bytes: (n,) int64.
    image_id: (n,) fixed-width strings or bytes, or objects that can be ordered.
    """
    rows = np.arange(len(labels), dtype=np.int64)
    shared = np.flatnonzero(np.bincount(labels, minlength=len(labels))[labels] > 1)
    rank = np.unique(image_id[shared], return_inverse=True)[1]
    order = shared[np.lexsort((rank, -num_bytes[shared], -area[shared], labels[shared]))]
    first = np.unique(labels[order], return_index=True)[1]
    rows[order] = np.repeat(order[first], np.diff(np.append(first, len(order))))
    return rows


def eldest(
    pairs: np.ndarray, age: np.ndarray, area: np.ndarray, num_bytes: np.ndarray, image_id: np.ndarray
) -> np.ndarray:
    """The row that stands for each row if none that came later may change that: (n,) int64.

    Of the component that a row has among all that had come with it or before: the earliest rows', of these the one of
    `representatives`. So two rows that only a later one joins both stay, and that one has the earlier of them.

    pairs: (m, 2) int64 rows, in any order. age: (n,) integers, the lower the earlier. The others as in
    `representatives`. 100 bytes for each row that has a pair, 40 for each pair.
    """
    nodes, ends = np.unique(pairs, return_inverse=True)
    rank = np.unique(image_id[nodes], return_inverse=True)[1]
    order = np.lexsort((rank, -num_bytes[nodes], -area[nodes], age[nodes]))
    place = np.empty(len(nodes), dtype=np.int64)
    place[order] = np.arange(len(nodes))
    ends, nodes, chosen = place[ends].reshape(pairs.shape), nodes[order], np.arange(len(age))
    parent, join, came = _forest(len(nodes)), _kernels().join, age[nodes]
    since = came[ends].max(axis=1, initial=0)
    by_age = np.argsort(since, kind="stable")
    for part in np.split(by_age, np.flatnonzero(np.diff(since[by_age])) + 1):
        for block in _blocks(ends[part]):
            join(parent, block)
        new = np.unique(ends[part])
        new = new[came[new] == since[part[:1]]]
        root = parent[new]
        while (root != parent[root]).any():
            root = parent[root]
        chosen[nodes[new]] = nodes[root]
    return chosen


def first_seen(labels: np.ndarray) -> np.ndarray:
    """The smallest row of each row's component: (n,) int64. labels: (n,) integers."""
    first, inverse = np.unique(labels, return_index=True, return_inverse=True)[1:]
    return first[inverse].astype(np.int64)


class _Kernels(NamedTuple):
    """The compiled loops. parent: int32 or int64, the parent of every node, itself at a root; never a larger node."""

    join: Callable[[np.ndarray, np.ndarray], int]  # joins all edges; returns the first that leaves the range, or -1
    keep: Callable[[np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]
    join_bounded: Callable[[np.ndarray, np.ndarray, np.ndarray, int], None]
    flatten: Callable[[np.ndarray], None]
    radix_sort: Callable[[np.ndarray, int, int], np.ndarray]  # stable, by the bits from one to below the other


@cache
def _kernels() -> _Kernels:
    from numba import njit

    @njit(nogil=True)
    def root(parent, node):
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    @njit(nogil=True)
    def join(parent, edges):
        num_nodes = len(parent)
        left, right = np.empty(BATCH, parent.dtype), np.empty(BATCH, parent.dtype)
        for start in range(0, len(edges), BATCH):
            batch = edges[start : start + BATCH]
            for i in range(len(batch)):
                a, b = batch[i, 0], batch[i, 1]
                if a < 0 or b < 0 or a >= num_nodes or b >= num_nodes:
                    return start + i
                left[i], right[i] = parent[a], parent[b]
            for i in range(len(batch)):
                left[i], right[i] = parent[left[i]], parent[right[i]]
            for i in range(len(batch)):
                a, b = batch[i, 0], batch[i, 1]
                # The grandparents may be out of date, but they are still above their nodes, or the nodes themselves.
                parent[a], parent[b] = min(parent[a], left[i]), min(parent[b], right[i])
                low, high = root(parent, left[i]), root(parent, right[i])
                if low > high:
                    low, high = high, low
                parent[high] = low
        return -1

    @njit(nogil=True)
    def keep(parent, edges, order, k):
        kept, met = np.zeros(len(edges), np.bool_), np.zeros(len(parent), np.int32)
        for edge in order:
            a, b = edges[edge, 0], edges[edge, 1]
            if met[a] < k or met[b] < k:
                kept[edge] = True
                met[a] = min(met[a] + 1, k)
                met[b] = min(met[b] + 1, k)
            a, b = root(parent, a), root(parent, b)
            if a != b:
                kept[edge] = True
                parent[max(a, b)] = min(a, b)
        return kept

    @njit(nogil=True)
    def join_bounded(parent, edges, order, max_size):
        size = np.ones(len(parent), parent.dtype)
        for edge in order:
            a, b = root(parent, edges[edge, 0]), root(parent, edges[edge, 1])
            if a != b and size[a] + size[b] <= max_size:
                low, high = min(a, b), max(a, b)
                parent[high] = low
                size[low] += size[high]

    @njit(nogil=True)
    def flatten(parent):
        for node in range(len(parent)):
            parent[node] = parent[parent[node]]

    @njit(nogil=True)
    def radix_sort(values, low_bit, high_bit):
        other = np.empty_like(values)
        for shift in range(low_bit, high_bit, 11):
            places = np.zeros(1 << 11, np.int64)
            for value in values:
                places[value >> shift & 0x7FF] += 1
            places = np.cumsum(places) - places
            for value in values:
                digit = value >> shift & 0x7FF
                other[places[digit]] = value
                places[digit] += 1
            values, other = other, values
        return values

    return _Kernels(join, keep, join_bounded, flatten, radix_sort)


def _forest(num_nodes: int) -> np.ndarray:
    """(num_nodes,) int32 or int64, each node its own root."""
    return np.arange(num_nodes, dtype=np.int32 if num_nodes <= MAX_SMALL_NODES else np.int64)


def _labels(parent: np.ndarray) -> np.ndarray:
    """The forest itself, with every node right under its root."""
    _kernels().flatten(parent)
    return parent


def _blocks(edges: np.ndarray | Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The edges in pieces of (0 to BLOCK, 2) int32 or int64, contiguous and read-only."""
    for block in [edges] if isinstance(edges, np.ndarray) else edges:
        dtype = np.int32 if block.dtype == np.int32 else np.int64
        for start in range(0, len(block), BLOCK):
            piece = np.ascontiguousarray(block[start : start + BLOCK], dtype=dtype).view()
            piece.flags.writeable = False  # whatever it was: else numba compiles the loop twice
            yield piece


def _refuse(block: np.ndarray, wrong: int, num_nodes: int) -> None:
    """Raises ValueError if there is a wrong edge, the one at a position of the block; -1: there is none."""
    if wrong >= 0:
        raise ValueError(f"nodes of an edge must be in [0, {num_nodes}), were {block[wrong].tolist()}")


def _compact(pairs: np.ndarray) -> tuple[np.ndarray, int]:
    """(m, 2) int64: the nodes numbered anew from 0 in their order, without gaps; and how many there are."""
    nodes = pairs.ravel()
    order = _order(nodes)
    in_order = nodes[order]
    is_new = np.concatenate([[True], in_order[1:] != in_order[:-1]])[: len(nodes)]
    del in_order
    compact = np.empty(len(nodes), dtype=np.int64)
    compact[order] = np.cumsum(is_new) - 1
    return compact.reshape(-1, 2), int(is_new.sum())


def _strongest_first(pairs: np.ndarray, similarity: np.ndarray) -> np.ndarray:
    """(m,) int64 positions: similarity descending, then left, then right ascending."""
    if similarity.dtype == np.float32:
        bits = (similarity + np.float32(0)).view(np.int32)  # -0 is 0; positive floats have the order of their bits
        ranks = (bits ^ (bits >> 31 & 0x7FFFFFFF)).astype(np.int64)  # negative ones that of all but the sign reversed
    else:
        ranks = similarity.astype(np.int64, casting="safe")
    order = _order(pairs[:, 1])
    order = order[_order(pairs[order, 0])]
    return order[_order((ranks.max(initial=0) - ranks)[order])]


def _order(values: np.ndarray) -> np.ndarray:
    """`np.argsort(values, kind="stable")` of (n,) int64 of at least 0, several times as fast.

    Value and position share 64 bits, which are sorted by the value alone, 11 bits at a time. 16 bytes a value.
    """
    position_bits, value_bits = len(values).bit_length(), int(values.max(initial=0)).bit_length()
    if position_bits + value_bits > 63:
        return np.argsort(values, kind="stable")
    packed = values << position_bits
    packed |= np.arange(len(values))
    packed = _kernels().radix_sort(packed, position_bits, position_bits + value_bits)
    packed &= (1 << position_bits) - 1
    return packed
