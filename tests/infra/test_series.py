"""Series: the shards of several directories as one sequence, in groups, and together."""

import numpy as np
import pyarrow as pa
import pytest

from lvd.infra.committing import commit
from lvd.infra.series import Series, first_positions, grouped
from lvd.infra.shards import ShardRef, StageDir
from lvd.infra.writing import write_shard

SCHEMA = pa.schema([("row", pa.int64()), ("value", pa.string())])
SIZES = ((3, 0), (2,), (0,))  # rows of every shard of three directories


def directories(root: str) -> list[StageDir]:
    found = []
    for number, sizes in enumerate(SIZES):
        target = StageDir(root=root, stage="a/b", fingerprint=f"part{number}")  # a stage's name may have parts
        for ref, size in zip(target.planned(len(sizes)), sizes, strict=True):
            with write_shard(ref, SCHEMA, {}) as shard:
                for row in range(size):
                    shard.keep({"row": row, "value": f"{number}-{ref.index}-{row}"})
        commit(target, len(sizes), config={}, inputs={})
        found.append(target)
    return found


def refs_of(*rows: int) -> list[ShardRef]:
    return [ShardRef(root="", directory="a/b", index=i, count=len(rows), rows=n) for i, n in enumerate(rows)]


def test_a_series_has_every_shard_with_the_base_of_its_directory(root: str) -> None:
    parts = directories(root)
    series = Series.of(parts, [0, 10, 20])
    assert series.stage_dirs() == parts
    assert series.shards() == [ref for part, base in zip(parts, (0, 10, 20), strict=True) for ref in part.shards(base)]
    assert [(ref.rows, ref.base, ref.first_row) for ref in series.shards()] == [
        (3, 0, 0),
        (0, 0, 3),
        (2, 10, 0),
        (0, 20, 0),
    ]
    assert [ref.base for ref in Series.of(parts).shards()] == [0] * 4


def test_a_series_travels_as_names(local_root: str) -> None:
    series = Series.of(directories(local_root), [0, 10, 20])
    assert Series.model_validate_json(series.model_dump_json()) == series
    assert len(series.model_dump_json()) < 250 + len(local_root)


def test_no_directory_is_no_shard() -> None:
    assert Series.of([]).shards() == []
    with pytest.raises(ValueError, match="argument 2"):
        Series(root="", directories=("a/b",), bases=()).shards()


@pytest.mark.parametrize(
    ("sizes", "rows", "groups"),
    [
        ((), 5, [[]]),  # one group at least
        ((3,), 5, [[3]]),
        ((3, 3, 3), 5, [[3, 3], [3]]),
        ((5, 5), 5, [[5], [5]]),
        ((9, 1, 1), 5, [[9], [1, 1]]),  # a shard is never cut
        ((5, 0, 0, 5), 5, [[5], [0, 0, 5]]),  # an empty one goes with those after it
        ((0, 0, 0), 5, [[0, 0, 0]]),
        ((1, 1, 1), 1, [[1], [1], [1]]),
    ],
)
def test_groups_are_neighbours_that_hold_enough(sizes: tuple[int, ...], rows: int, groups: list[list[int]]) -> None:
    refs = refs_of(*sizes)
    found = [refs[part] for part in grouped(refs, rows)]
    assert [[ref.rows for ref in group] for group in found] == groups
    assert [ref for group in found for ref in group] == refs


def test_random_groups_hold_enough_and_not_too_much() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        refs, rows = refs_of(*rng.integers(0, 9, rng.integers(1, 30)).tolist()), int(rng.integers(1, 40))
        found = [refs[part] for part in grouped(refs, rows)]
        assert [ref for group in found for ref in group] == refs
        for group in found[:-1]:
            assert sum(ref.rows for ref in group) >= rows > sum(ref.rows for ref in group[:-1])


def test_first_positions() -> None:
    assert first_positions(refs_of(3, 0, 2)).tolist() == [0, 3, 3, 5]
    assert first_positions([]).tolist() == [0]
