import numpy as np

from lvd.tasks import charts


def test_histogram_goes_from_the_first_bin_that_is_filled_to_the_last() -> None:
    chart = charts.histogram("x", np.array([0, 2, 0, 4, 0]), np.linspace(0, 1, 6))
    assert chart.values == (2, 0, 4)
    assert chart.heights == (50.0, 0.0, 100.0)
    assert chart.says[0] == "0.20 to 0.40: 2"
    assert (chart.ticks[0], chart.ticks[-1]) == ("0.20", "0.80")
    assert charts.histogram("x", np.zeros(3, dtype=np.int64), np.linspace(0, 1, 4)).values == ()


def test_many_clusters_are_drawn_as_few_columns_of_the_same_area() -> None:
    sizes = np.random.default_rng(0).integers(0, 1000, 6000)
    chart = charts.ranked_sizes("x", sizes)
    assert len(chart.values) == charts.MAX_POINTS
    assert list(chart.values) == sorted(chart.values, reverse=True)
    assert np.isclose(np.mean(chart.values), sizes.mean())
    few = charts.ranked_sizes("x", np.array([3, 9, 0]))
    assert few.values == (9, 3, 0)
    assert few.heights == (100.0, 33.33, 0.0)


def test_line_uses_the_whole_height_and_stands_in_the_middle_if_flat() -> None:
    assert charts.line("x", [0.5, 0.6, 0.7], "i").heights == (0.0, 50.0, 100.0)
    assert charts.line("x", [0.5, 0.5], "i").heights == (50.0, 50.0)


def test_a_column_that_is_not_empty_can_be_seen() -> None:
    assert charts.ranked_sizes("x", np.array([100_000, 1, 0])).heights[1:] == (1.0, 0.0)


def test_before_and_after_are_shares_of_their_own_on_one_scale() -> None:
    chart = charts.paired("x", np.array([3, 1]), np.array([0, 5]), ["a", "b"], ("l", "r"))
    assert (chart.before, chart.after) == ((0.75, 0.25), (0.0, 1.0))
    assert chart.heights(chart.before) == (75.0, 25.0) and chart.heights(chart.after) == (0.0, 100.0)
    assert chart.says == ("a: 75% before, 0% after", "b: 25% before, 100% after")
    assert charts.paired("x", np.array([0]), np.array([0]), ["a"], ()).before == ()
    assert charts.paired("x", np.array([2]), np.array([0]), ["a"], ()).after == (0.0,)


def test_clusters_before_and_after_stand_by_their_size() -> None:
    chart = charts.paired_clusters("x", np.array([1, 6, 0, 3]), np.array([1, 0, 0, 1]))
    assert chart.before == (0.6, 0.3, 0.1) and chart.after == (0.0, 0.5, 0.5)
    assert chart.says[0] == "cluster 1: 60% before, 0% after" and chart.ticks[1] == "3 clusters"
    many = charts.paired_clusters("x", np.arange(1000), np.zeros(1000, dtype=np.int64))
    assert len(many.before) == charts.MAX_POINTS // 2 and np.isclose(sum(many.before), 1)
    assert many.says[0].startswith("clusters ranked 1 to 17 by size")


def test_similarities_go_from_the_first_bin_that_is_filled_to_the_last() -> None:
    counts = np.array([[0, 2, 2, 0], [0, 0, 1, 0]])
    chart = charts.paired_similarities("x", counts, np.linspace(0, 1, 5))
    assert (chart.before, chart.after, chart.ticks) == ((0.5, 0.5), (0.0, 1.0), ("0.25", "0.75"))
    assert charts.paired_similarities("x", np.zeros((2, 4), dtype=np.int64), np.linspace(0, 1, 5)).before == ()
