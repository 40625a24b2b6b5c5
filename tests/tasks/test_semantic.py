"""Semantic duplicates: what groups of cells come to is what each cell comes to; names, and the cells that are left."""

import numpy as np
import pytest

from lvd.infra.runs import read_range
from lvd.infra.shards import ShardRef, read_table
from lvd.tasks import lists, schemas, semantic
from lvd.tasks.algorithms.semantic_duplicates import duplicates_within
from lvd.tests.tasks import planted

ROWS, DIM, NUM = 240, 4, 9
LEFT_OUT = (0, 3, *range(60, 75), 239)
KEPT = np.setdiff1d(np.arange(ROWS), LEFT_OUT)
POOL = planted.around(np.random.default_rng(0), ROWS, DIM, 12, spread=0.3)
MIDDLE = planted.random_units(np.random.default_rng(1), NUM, DIM).astype(np.float32)
MIDDLE[4] = -POOL[KEPT].astype(np.float32).mean(axis=0)  # an empty cluster among the others
HOME = (POOL.astype(np.float32) @ MIDDLE.T).argmax(axis=1)
LAYOUTS = [((ROWS,),), ((50, 0, 25), (5, 0, 160)), planted.cut(ROWS, 9)]


@pytest.fixture(autouse=True)
def no_file_waits_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda file: None)


class Clustered:
    """A pool with its cells, their sizes, the centroids and the inverted lists."""

    def __init__(self, root: str, layout: planted.Layout) -> None:
        self.root = root
        self.vectors = planted.vectors(root, "embed", POOL, layout, left_out=LEFT_OUT)
        of = {
            n: {"row": n, "image_id": planted.identity(n), "cluster_id": int(HOME[n]), "similarity": n / ROWS}
            for n in KEPT.tolist()
        }
        self.cells = planted.stage(root, "cluster", schemas.CELLS, of, layout)
        sizes = np.bincount(HOME[KEPT], minlength=NUM).tolist()
        rows = [{"cluster_id": n, "size": size} for n, size in enumerate(sizes)]
        (self.sizes,) = planted.stage(root, "sizes", schemas.SIZES, rows, ((NUM,),))
        schema = schemas.centroids(DIM)
        rows = [dict(zip(schema.names, (n, size, MIDDLE[n]), strict=True)) for n, size in enumerate(sizes)]
        (self.centroids,) = planted.stage(root, "centroids", schema, rows, ((NUM,),))
        vectors, placed = planted.series(self.vectors), planted.series(self.cells)
        count = lists.num_runs(vectors, DIM)
        self.lists = planted.computed(root, "lists", count, lambda ref: lists.lists_run.fn(vectors, placed, ref, DIM))

    def alike(self, groups: int, **settings: object) -> list[ShardRef]:
        config, of = semantic.Config.model_validate(settings), planted.series(self.lists)

        def computing(ref: ShardRef) -> ShardRef:
            return semantic.alike_group.fn(of, self.sizes, self.centroids, ref, config, device="cpu")

        return planted.computed(self.root, "alike", groups, computing, called=f"{groups}-{settings}")

    def duplicates(self, alike: list[ShardRef]) -> ShardRef:
        of, pool = planted.series(alike), planted.series(self.vectors)
        return planted.computed(self.root, "duplicates", 1, lambda ref: semantic.name_duplicates.fn(of, pool, ref))[0]


def expected(min_similarity: float, keep: str) -> dict[int, tuple[int, float]]:
    """Row that goes → the one that stays, and how alike they are; cell by cell."""
    found = {}
    for cell in range(NUM):
        rows = KEPT[HOME[KEPT] == cell]
        closeness = (POOL[rows].astype(np.float32) @ MIDDLE[cell]).round(5)
        gone, because_of, alike = duplicates_within(
            POOL[rows], closeness, rows, min_similarity=min_similarity, keep=keep
        )
        pairs = zip(rows[gone].tolist(), rows[because_of].tolist(), alike.tolist(), strict=True)
        found |= {row: (kept, similarity) for row, kept, similarity in pairs}
    return found


@pytest.mark.parametrize("keep", ["far", "near"])
@pytest.mark.parametrize("groups", [1, 5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_groups_of_cells_say_what_every_cell_says(
    local_root: str, monkeypatch: pytest.MonkeyPatch, layout: planted.Layout, groups: int, keep: str
) -> None:
    monkeypatch.setattr(lists, "rows_per_run", lambda dim: 70)
    monkeypatch.setattr("lvd.infra.runs.BATCH_ROWS", 8)
    refs = Clustered(local_root, layout).alike(groups, min_similarity=0.97, keep=keep)
    rows = [row for ref in refs for row in read_table(ref).to_pylist()]
    truth = expected(0.97, keep)
    assert len(rows) == len(truth) and 20 < len(truth) < len(KEPT) - 20
    assert {row["row"]: (row["kept"], row["similarity"]) for row in rows} == truth
    assert not {row["kept"] for row in rows} & {*truth}, "what stays does not go"


def test_which_of_those_alike_stays_is_a_choice() -> None:
    assert {*expected(0.97, "far")} != {*expected(0.97, "near")}
    assert len(expected(0.9, "far")) > len(expected(0.97, "far")) > len(expected(0.999, "far"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_goes_is_named_and_leaves_its_cell(
    local_root: str, monkeypatch: pytest.MonkeyPatch, layout: planted.Layout
) -> None:
    monkeypatch.setattr("lvd.infra.runs.BATCH_ROWS", 8)
    clustered = Clustered(local_root, layout)
    gone = clustered.duplicates(clustered.alike(3, min_similarity=0.97))
    truth = expected(0.97, "far")
    rows = read_table(gone).to_pylist()
    assert [row["row"] for row in rows] == sorted(truth)
    assert [(row["because_of"], row["similarity"]) for row in rows] == [
        (planted.identity(truth[n][0]), truth[n][1]) for n in sorted(truth)
    ]
    for first, stop in ((0, ROWS), (10, 11), (59, 75), (100, 200), (5, 5)):
        found = read_range(gone, first, stop)["row"].to_pylist()
        assert found == [n for n in sorted(truth) if first <= n < stop]
    cells, rest = clustered.cells, []
    left = planted.computed(
        local_root, "left", len(cells), lambda ref: semantic.left_shard.fn(cells[ref.index], gone, ref)
    )
    for before, after in zip(cells, left, strict=True):
        mine = [row for row in read_table(before).to_pylist() if row["row"] not in truth]
        assert read_table(after).to_pylist() == mine
        rest += [row["row"] for row in mine]
    assert rest == [n for n in KEPT.tolist() if n not in truth]


def test_nothing_goes_where_nothing_is_alike(local_root: str) -> None:
    clustered = Clustered(local_root, LAYOUTS[1])
    gone = clustered.duplicates(clustered.alike(2, min_similarity=1.0))
    assert len(read_table(gone)) == 0 and len(read_range(gone, 0, ROWS)) == 0
    (cells, *_) = clustered.cells
    (left,) = planted.computed(local_root, "left", 1, lambda ref: semantic.left_shard.fn(cells, gone, ref))
    assert read_table(left).equals(read_table(cells))
