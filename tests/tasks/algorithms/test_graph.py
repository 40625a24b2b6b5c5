"""Components against a textbook disjoint-set forest, the edges that decide them, and who stands for a component."""

import subprocess
import sys

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


def drawn_graph(rng, *, max_nodes=40, levels=8):
    """Pairs without repeats among sparse node numbers, some nodes with many edges, and similarities with many ties."""
    nodes = np.sort(rng.choice(10**11, int(rng.integers(2, max_nodes)), replace=False))
    num_edges = int(rng.integers(1, 6 * len(nodes)))
    ends = (len(nodes) * rng.random((num_edges, 2)) ** 2).astype(np.int64)
    pairs = np.unique(np.sort(ends, axis=1)[ends[:, 0] != ends[:, 1]], axis=0)
    pairs = nodes[pairs[rng.permutation(len(pairs))]]
    return pairs, (rng.integers(-1, levels, len(pairs)) / np.float32(8)).astype(np.float32)


def in_order(pairs, similarity):
    """The positions of the edges, the strongest first."""
    return sorted(range(len(pairs)), key=lambda i: (-similarity[i], *pairs[i]))


def strongest_by_hand(pairs, similarity, k):
    """The edges (left, right, similarity) among the k strongest of a node, or of the maximum spanning forest."""
    order, pairs = in_order(pairs, similarity), pairs.tolist()
    kept, group = set(), {node: {node} for pair in pairs for node in pair}
    for node in group:
        kept.update([i for i in order if node in pairs[i]][:k])
    for i in order:
        left, right = (group[node] for node in pairs[i])
        if left is not right:
            kept.add(i)
            left |= right
            group.update(dict.fromkeys(right, left))
    return {(*pairs[i], similarity[i]) for i in kept}


def as_set(pairs, similarity):
    return {(*pair, value) for pair, value in zip(pairs.tolist(), similarity, strict=True)}


def thinned(pairs, similarity, k):
    mask = graph.strongest(pairs, similarity, k=k)
    assert mask.dtype == bool and mask.shape == similarity.shape
    return pairs[mask], similarity[mask]


def components(pairs, nodes):
    """The labels of the nodes, counted in their order."""
    return by_hand(np.searchsorted(nodes, pairs), len(nodes)).tolist()


def bounded_by_hand(pairs, similarity, num_nodes, max_size):
    labels = list(range(num_nodes))
    for i in in_order(pairs, similarity):
        low, high = sorted(labels[node] for node in pairs[i])
        if low != high and labels.count(low) + labels.count(high) <= max_size:
            labels = [low if label == high else label for label in labels]
    return labels


def test_numba_waits_for_the_first_call():
    done = subprocess.run(
        [sys.executable, "-c", "import sys, lvd.tasks.algorithms.graph; print('numba' in sys.modules)"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "False\n"


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
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
def test_cases(edges, num_nodes, labels, dtype, monkeypatch):
    if dtype == np.int64:
        monkeypatch.setattr(graph, "MAX_SMALL_NODES", -1)
    found = graph.connected_components(edges, num_nodes)
    assert found.dtype == dtype and found.tolist() == labels


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint32, np.uint64, np.int16, ">i8"])
def test_edges_of_any_type_and_layout_are_left_as_they_were(dtype):
    edges = np.random.default_rng(3).integers(0, 900, size=(800, 2)).astype(dtype)
    edges.flags.writeable = False
    before, expected = edges.copy(), by_hand(edges, 900)
    wide = np.column_stack([edges, edges])
    for same in (edges, np.asfortranarray(edges), wide[:, :2], wide[::-1, 2:]):
        np.testing.assert_array_equal(graph.connected_components(same, 900), expected)
    np.testing.assert_array_equal(edges, before)


@pytest.mark.parametrize("num_edges", [10, 150, 256, 290, 1000])
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


@pytest.mark.parametrize("wrong", [[0, 5], [5, 0], [-1, 2], [2, -1], [0, 1 << 33]])
def test_an_edge_out_of_range_is_named(wrong, monkeypatch):
    many = np.zeros((700, 2), dtype=np.int64)
    many[650] = wrong
    message = rf"must be in \[0, 5\), were \[{wrong[0]}, {wrong[1]}\]"
    with pytest.raises(ValueError, match=message):
        graph.connected_components([np.array([[0, 1]]), many], 5)
    monkeypatch.setattr(graph, "BLOCK", 600)
    with pytest.raises(ValueError, match=message):
        graph.bounded_components(many, np.zeros(700, np.float32), 5, max_size=3)


def test_the_strongest_edges():
    pairs = np.array([[10, 20], [10, 30], [10, 40], [20, 30], [70, 80]])
    similarity = np.array([0.9, 0.8, 0.7, 0.8, 0.1], np.float32)
    # 10-40 is of the forest and the strongest of 40; 20-30 is neither, as 10-30 is as similar and comes before it.
    assert graph.strongest(pairs, similarity, k=1).tolist() == [True, True, True, False, True]
    assert graph.strongest(pairs, similarity, k=2).all()
    assert graph.strongest(pairs, (similarity * 10).astype(np.uint8), k=1).tolist() == [True, True, True, False, True]
    assert graph.strongest(pairs[:0], similarity[:0], k=1).shape == (0,)


@pytest.mark.parametrize("k", [0, 1, 2, 5])
def test_the_strongest_edges_equal_the_definition_and_keep_the_components_at_every_similarity(k):
    rng = np.random.default_rng([2, k])
    dropped = 0
    for _ in range(60):
        pairs, similarity = drawn_graph(rng)
        kept_pairs, kept_similarity = thinned(pairs, similarity, k)
        kept = as_set(kept_pairs, kept_similarity)
        assert kept == strongest_by_hand(pairs, similarity, k)
        assert graph.strongest(kept_pairs, kept_similarity, k=k).all()
        order, nodes = rng.permutation(len(pairs)), np.unique(pairs)
        assert as_set(*thinned(pairs[order], similarity[order], k)) == kept
        for least in np.unique(similarity):
            all_above, kept_above = pairs[similarity >= least], kept_pairs[kept_similarity >= least]
            assert components(kept_above, nodes) == components(all_above, nodes)
        dropped += len(pairs) - len(kept)
    assert dropped > 30


@pytest.mark.parametrize("k", [1, 3])
def test_edges_may_be_thinned_out_in_parts(k):
    rng = np.random.default_rng([3, k])
    for _ in range(60):
        pairs, similarity = drawn_graph(rng)
        cut = int(rng.integers(0, len(pairs) + 1))
        part_pairs, part_similarity = thinned(pairs[:cut], similarity[:cut], k)
        parts = np.concatenate([part_pairs, pairs[cut:]]), np.concatenate([part_similarity, similarity[cut:]])
        assert as_set(*thinned(*parts, k)) == as_set(*thinned(pairs, similarity, k))


@pytest.mark.parametrize("is_tied", [False, True])
def test_a_clique_stays_one_component(is_tied):
    pairs = np.column_stack(np.triu_indices(300, 1))
    drawn = np.random.default_rng(4).random(len(pairs)).astype(np.float32)
    similarity = np.ones(len(pairs), np.float32) if is_tied else drawn
    kept, _ = thinned(pairs, similarity, 4)
    assert not graph.connected_components(kept, 300).any()
    assert len(kept) <= 300 * 4 + 299
    assert np.bincount(kept.ravel()).min() >= 4


@pytest.mark.parametrize(
    "similarity",
    [
        np.array([-0.0, 0.0, -0.5, -0.25, 0.25, 1.0, -1.0, 0.0], np.float32),
        np.array([-3, 3, 0, 0, 7, -7, 1, 2**40]),
        np.array([255, 0, 3, 3, 7, 1, 200, 100], np.uint8),
    ],
)
def test_the_order_of_edges(similarity):
    rng = np.random.default_rng(5)
    for high in (3, 10**9, 10**18):  # the last does not fit 64 bits with its position
        pairs = rng.integers(0, high, size=(8, 2))
        values = similarity.astype(np.float64)
        expected = np.lexsort((pairs[:, 1], pairs[:, 0], -values))
        np.testing.assert_array_equal(graph._strongest_first(pairs, similarity), expected)


def test_doubles_are_refused_and_not_rounded():
    with pytest.raises(TypeError, match="float64"):
        graph.bounded_components(np.array([[0, 1]]), np.array([0.5]), 2, max_size=2)


def test_a_chain_is_cut_where_it_is_weakest():
    chain = np.column_stack([np.arange(5), np.arange(1, 6)])
    similarity = np.array([0.9, 0.8, 0.7, 0.8, 0.9], np.float32)
    # At most 2: 1-2 and 3-4 are refused, as 0-1 and 4-5 came before them; 2-3 is then free to join.
    for max_size, labels in [(1, range(6)), (2, [0, 0, 2, 2, 4, 4]), (3, [0, 0, 0, 3, 3, 3]), (6, [0] * 6)]:
        assert graph.bounded_components(chain, similarity, 6, max_size=max_size).tolist() == list(labels)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_bounded_components_equal_the_definition(dtype, monkeypatch):
    if dtype == np.int64:
        monkeypatch.setattr(graph, "MAX_SMALL_NODES", -1)
    rng = np.random.default_rng(6)
    for _ in range(40):
        pairs, similarity = drawn_graph(rng)
        nodes = np.unique(pairs)
        pairs, num_nodes = np.searchsorted(nodes, pairs), len(nodes) + 2
        order = rng.permutation(len(pairs))
        for max_size in (1, 2, 5, 12, num_nodes):
            labels = graph.bounded_components(pairs, similarity, num_nodes, max_size=max_size)
            assert labels.dtype == dtype and np.bincount(labels).max() <= max_size
            assert labels.tolist() == bounded_by_hand(pairs.tolist(), similarity, num_nodes, max_size)
            moved = graph.bounded_components(pairs[order], similarity[order], num_nodes, max_size=max_size)
            np.testing.assert_array_equal(moved, labels)
        np.testing.assert_array_equal(labels, graph.connected_components(pairs, num_nodes))


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


def test_what_came_later_changes_nothing_for_the_eldest():
    rng = np.random.default_rng(9)
    for _ in range(150):
        num, pairs = int(rng.integers(1, 14)), rng.integers(0, 14, (int(rng.integers(0, 16)), 2))
        pairs, age = pairs[(pairs < num).all(axis=1)], np.sort(rng.integers(0, 4, num))
        ids = np.array([f"{n:032x}" for n in rng.permutation(num)], dtype="S32")
        rank = rng.integers(0, 3, num), rng.integers(0, 2, num), ids
        found = graph.eldest(pairs, age, *rank)
        for row in range(num):
            then = by_hand(pairs[age[pairs].max(axis=1, initial=0) <= age[row]], num)
            together = np.flatnonzero(then == then[row])
            assert found[row] == min(together, key=lambda r: (age[r], -rank[0][r], -rank[1][r], ids[r]))
        earlier = int((age < 2).sum())
        some = pairs[(pairs < earlier).all(axis=1)]
        before = graph.eldest(some, age[:earlier], *(values[:earlier] for values in rank))
        np.testing.assert_array_equal(before, found[:earlier])


def test_first_seen():
    assert graph.first_seen(np.array([7, 3, 7, 3, 0])).tolist() == [0, 1, 0, 1, 4]
    labels = by_hand(np.random.default_rng(1).integers(0, 99, size=(50, 2)), 99)
    np.testing.assert_array_equal(graph.first_seen(labels), labels)


def test_no_rows():
    none = np.zeros(0, np.int64)
    assert graph.representatives(none, none, none, np.zeros(0, "U32")).shape == (0,)
    assert graph.first_seen(none).shape == (0,)
