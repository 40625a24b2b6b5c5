"""Components of the copy graph and the image that represents each: DINOv2 appendix A.3, PAPER.md 1."""

from collections.abc import Iterable, Iterator

import numpy as np

# Edges per step: bounds the memory of a step to about 100 MB.
BLOCK = 1 << 20


def connected_components(edges: np.ndarray | Iterable[np.ndarray], num_nodes: int) -> np.ndarray:
    """Component label of every node: (num_nodes,) int64, the smallest node of its component.

    A disjoint-set forest, joined one block of edges at a time: 16 bytes a node and the block, however many edges there
    are; 1 to 6 million edges a second.

    edges: (m, 2) integers in [0, num_nodes), in any order, repeats and loops allowed; or blocks of such, read once.
    Raises ValueError if an edge leaves that range.
    """
    parent = np.arange(num_nodes, dtype=np.int64)
    for block in _blocks(edges):
        if block.min() < 0 or block.max() >= num_nodes:
            wrong = block[((block < 0) | (block >= num_nodes)).any(axis=1)][0]
            raise ValueError(f"nodes of an edge must be in [0, {num_nodes}), were {wrong.tolist()}")
        _join(parent, block)
    return _roots(parent, parent)


def representatives(labels: np.ndarray, area: np.ndarray, num_bytes: np.ndarray, image_id: np.ndarray) -> np.ndarray:
    """The row that stands for each row's component: (n,) int64.

    Largest area, then the larger file, then the lowest image id (PAPER.md 1.4).

    labels: (n,) int64, as `connected_components` returns them. area: (n,) int64, pixels. num_bytes: (n,) int64.
    image_id: (n,) fixed-width strings or bytes, or objects that can be ordered.
    """
    rows = np.arange(len(labels), dtype=np.int64)
    shared = np.flatnonzero(np.bincount(labels, minlength=len(labels))[labels] > 1)
    rank = np.unique(image_id[shared], return_inverse=True)[1]
    order = shared[np.lexsort((rank, -num_bytes[shared], -area[shared], labels[shared]))]
    first = np.unique(labels[order], return_index=True)[1]
    rows[order] = np.repeat(order[first], np.diff(np.append(first, len(order))))
    return rows


def first_seen(labels: np.ndarray) -> np.ndarray:
    """The smallest row of each row's component: (n,) int64. labels: (n,) integers."""
    first, inverse = np.unique(labels, return_index=True, return_inverse=True)[1:]
    return first[inverse].astype(np.int64)


def _blocks(edges: np.ndarray | Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The edges in pieces of (1 to BLOCK, 2) int64."""
    for block in [edges] if isinstance(edges, np.ndarray) else edges:
        for start in range(0, len(block), BLOCK):
            yield np.asarray(block[start : start + BLOCK], dtype=np.int64)


def _join(parent: np.ndarray, edges: np.ndarray) -> None:
    """Joins in place the trees that the edges connect, under the smallest root, and shortens the paths of the edges."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components as label_components

    nodes, compact = np.unique(edges, return_inverse=True)
    roots, root_of_node = np.unique(_roots(parent, nodes), return_inverse=True)
    left, right = root_of_node[compact.reshape(edges.shape)].T
    graph = coo_array((np.ones(len(edges), dtype=bool), (left, right)), shape=(len(roots), len(roots)))
    labels = label_components(graph, directed=False)[1]
    smallest = roots[np.unique(labels, return_index=True)[1]][labels]
    parent[roots] = smallest
    parent[nodes] = smallest[root_of_node]


def _roots(parent: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """The root of each node's tree: (n,) int64."""
    roots = parent[nodes]
    while not np.array_equal(above := parent[roots], roots):
        roots = above
    return roots
