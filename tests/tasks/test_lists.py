"""Inverted lists: every placed row once, in the order of the cells, with its vector; the rest nowhere."""

from collections import Counter

import numpy as np
import pytest

from lvd.infra.runs import read_range
from lvd.infra.shards import ShardRef, read_table
from lvd.tasks import lists, schemas
from lvd.tasks.models.engine import vector_column
from lvd.tests.tasks import planted

ROWS, DIM, NUM = 200, 4, 30
LEFT_OUT = (0, 3, *range(60, 75), 199)
UNPLACED = (1, 2, 80, 81, 198)  # have a vector and no cell
KEPT = np.setdiff1d(np.arange(ROWS), LEFT_OUT)
PLACED = np.setdiff1d(KEPT, UNPLACED)
POOL = planted.random_units(np.random.default_rng(0), ROWS, DIM)
HOME = np.random.default_rng(1).integers(0, NUM - 1, ROWS)  # the last cell is empty


def cells_of(root: str, layout: planted.Layout, rows: np.ndarray = PLACED) -> list[ShardRef]:
    of = {
        int(n): {"row": int(n), "image_id": planted.identity(n), "cluster_id": int(HOME[n]), "similarity": 0.5}
        for n in rows
    }
    return planted.stage(root, "cluster", schemas.CELLS, of, layout)


def listed(root: str, layout: planted.Layout, rows: np.ndarray = PLACED) -> list[ShardRef]:
    vectors = planted.series(planted.vectors(root, "embed", POOL, layout, left_out=LEFT_OUT))
    placed = planted.series(cells_of(root, layout, rows))
    count = lists.num_runs(vectors, DIM)
    return planted.computed(root, "lists", count, lambda ref: lists.lists_run.fn(vectors, placed, ref, DIM))


@pytest.mark.parametrize("layout", [((ROWS,),), planted.cut(ROWS, 8), ((50, 0, 25), (5, 0, 120))])
@pytest.mark.parametrize("rows_per_run", [1, 40, 10_000])
def test_every_row_is_listed_once_in_the_order_of_cells(
    local_root: str, layout: planted.Layout, rows_per_run: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "rows_per_run", lambda dim: rows_per_run)
    monkeypatch.setattr("lvd.infra.runs.BATCH_ROWS", 8)
    runs = listed(local_root, layout)
    assert (len(runs) == 1) == (len(layout) == 1 or rows_per_run > ROWS)
    seen: list[int] = []
    for ref in runs:
        table = read_table(ref)
        cell, rows = table["cluster_id"].to_numpy(), table["row"].to_numpy()
        assert (np.diff(cell) >= 0).all()
        assert (np.diff(rows)[np.diff(cell) == 0] > 0).all(), "in a cell by rows"
        np.testing.assert_array_equal(cell, HOME[rows])
        np.testing.assert_array_equal(vector_column(table), POOL[rows])
        seen += rows.tolist()
    assert sorted(seen) == PLACED.tolist()
    for first, stop in ((0, NUM), (4, 5), (7, 15), (NUM - 1, NUM)):
        found = [row for ref in runs for row in read_range(ref, first, stop).to_pylist()]
        assert sorted(row["row"] for row in found) == [n for n in PLACED.tolist() if first <= HOME[n] < stop]


@pytest.mark.parametrize("groups", [1, 3, 50])
def test_every_cell_is_held_in_one_group(local_root: str, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "rows_per_run", lambda dim: 40)
    runs = listed(local_root, planted.cut(ROWS, 8))
    counts = np.bincount(HOME[PLACED], minlength=NUM)
    sizes = planted.stage(
        local_root, "sizes", schemas.SIZES, [{"cluster_id": n, "size": int(s)} for n, s in enumerate(counts)], ((NUM,),)
    )[0]
    seen: Counter[int] = Counter()
    for index in range(groups):
        target = ShardRef(root=local_root, directory="any", index=index, count=groups)
        for cell, rows, values in lists.held_cells(runs, sizes, target):
            assert rows.tolist() == [n for n in PLACED.tolist() if HOME[n] == cell]
            np.testing.assert_array_equal(values, POOL[rows])
            seen[cell] += 1
    assert {cell for cell, _ in seen.items()} >= {cell for cell in range(NUM) if counts[cell]}
    assert set(seen.values()) == {1}


def test_nothing_placed_is_an_empty_run(local_root: str) -> None:
    (run,) = listed(local_root, ((100, 100),), np.zeros(0, dtype=np.int64))
    assert run.rows == 0 and len(read_range(run, 0, NUM)) == 0


def test_a_run_fits_into_memory() -> None:
    assert lists.rows_per_run(1280) * 1280 * 2 <= lists.RUN_BYTES
    assert lists.rows_per_run(1 << 40) == 1
