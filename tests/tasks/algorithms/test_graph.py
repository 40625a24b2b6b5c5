"""Components against a textbook disjoint-set forest, and the choice of the representative."""

import numpy as np
import pytest

from lvd.tasks.algorithms import graph


def by_hand(edges, num_nodes):
    """Labels by union-find, one edge at a time."""
    parent = list(range(num_nodes))

    def root(node):
        while parent[node] != node:
            node = parent[node]
        return node

    for left, right in np.asarray(edges).reshape(-1, 2).tolist():
        a, b = sorted((root(left), root(right)))
        parent[b] = a
    return np.array([root(node) for node in range(num_nodes)], dtype=np.int64)


@pytest.mark.parametrize(
    ("edges", "num_nodes", "labels"),
    [
        (np.zeros((0, 2), np.int64), 0, []),
        (np.zeros((0, 2), np.int64), 3, [0, 1, 2]),
        (np.array([[2, 2]]), 3, [0, 1, 2]),  # a loop
        (np.array([[2, 1], [1, 2], [2, 1]]), 3, [0, 1, 1]),  # repeats, both ways round
        (np.array([[4, 3], [3, 2], [2, 1], [1, 0]]), 5, [0] * 5),  # a chain
        (np.array([[0, 3], [1, 4]], dtype=np.uint32), 5, [0, 1, 2, 0, 1]),
        ([], 2, [0, 1]),  # no blocks
        ([np.zeros((0, 2), np.int64), np.array([[0, 1]])], 2, [0, 0]),  # an empty block
    ],
)
def test_cases(edges, num_nodes, labels):
    found = graph.connected_components(edges, num_nodes)
    assert found.dtype == np.int64 and found.tolist() == labels


@pytest.mark.parametrize("num_edges", [10, 150, 290, 1000])
def test_equals_union_find_whatever_the_order_and_the_blocks(num_edges, monkeypatch):
    rng = np.random.default_rng(num_edges)
    edges = rng.integers(0, 600, size=(num_edges, 2))
    expected = by_hand(edges, 600)
    for size in (1, 7, 64, 5000):
        shuffled = rng.permutation(edges)
        pieces = (shuffled[start : start + size] for start in range(0, num_edges, size))
        np.testing.assert_array_equal(graph.connected_components(pieces, 600), expected)
    monkeypatch.setattr(graph, "BLOCK", 13)
    np.testing.assert_array_equal(graph.connected_components(edges[:, ::-1], 600), expected)


def test_a_long_chain_that_comes_backwards_edge_by_edge():
    nodes = np.arange(3000)
    chain = np.column_stack([nodes[:-1], nodes[1:]])[::-1]
    assert not graph.connected_components((chain[i : i + 1] for i in range(len(chain))), 3000).any()


@pytest.mark.parametrize("wrong", [[0, 5], [-1, 2]])
def test_an_edge_out_of_range_is_named(wrong):
    with pytest.raises(ValueError, match=rf"must be in \[0, 5\), were \[{wrong[0]}, {wrong[1]}\]"):
        graph.connected_components([np.array([[0, 1]]), np.array([[1, 2], wrong])], 5)


@pytest.mark.parametrize(
    ("area", "num_bytes", "image_id", "expected"),
    [
        ([1, 9, 5], [9, 1, 5], ["a", "b", "c"], 1),  # the largest area, though its file is the smallest
        ([9, 9, 5], [1, 2, 9], ["a", "b", "c"], 1),  # then the larger file
        ([9, 9, 9], [2, 2, 2], ["b", "c", "a"], 2),  # then the lowest id
    ],
)
@pytest.mark.parametrize("kind", ["U32", "S32", object])
def test_the_representative(area, num_bytes, image_id, expected, kind):
    # Rows 0, 2 and 3 are one component; row 1 is alone, and larger than all.
    labels = np.array([0, 1, 0, 0])
    place = [0, 2, 3]
    rows = graph.representatives(
        labels,
        np.insert(np.array(area), 1, 99),
        np.insert(np.array(num_bytes), 1, 99),
        np.insert(np.array(image_id, dtype=kind), 1, np.array("z", dtype=kind)[()]),
    )
    assert rows.dtype == np.int64 and rows.tolist() == [place[expected], 1, place[expected], place[expected]]


def test_representatives_equal_a_sort_per_component_and_follow_a_permutation():
    rng = np.random.default_rng(0)
    n = 500
    labels = by_hand(rng.integers(0, n, size=(300, 2)), n)
    area, num_bytes = rng.integers(1, 4, size=(2, n))
    image_id = rng.permutation([f"{i:032x}" for i in range(n)])
    rows = graph.representatives(labels, area, num_bytes, image_id)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        best = min(members, key=lambda i: (-area[i], -num_bytes[i], image_id[i]))
        assert (rows[members] == best).all()
    order = rng.permutation(n)
    moved = graph.representatives(labels[order], area[order], num_bytes[order], image_id[order])
    np.testing.assert_array_equal(order[moved], rows[order])


def test_first_seen():
    assert graph.first_seen(np.array([7, 3, 7, 3, 0])).tolist() == [0, 1, 0, 1, 4]
    labels = by_hand(np.random.default_rng(1).integers(0, 99, size=(50, 2)), 99)
    np.testing.assert_array_equal(graph.first_seen(labels), labels)


def test_no_rows():
    none = np.zeros(0, np.int64)
    assert graph.representatives(none, none, none, np.zeros(0, "U32")).shape == (0,)
    assert graph.first_seen(none).shape == (0,)
