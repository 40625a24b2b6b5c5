"""The two passes of an export: rows in a seeded order, and the files of one range of places."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from lvd.infra.committing import commit
from lvd.infra.errors import ShardError
from lvd.infra.shards import StageDir, read_table
from lvd.infra.storage import Storage
from lvd.tasks import export
from lvd.tests import versions_planted

TOTAL = sum(versions_planted.SHARDS)


def ordered(root: str, config: export.Config, groups: list[tuple[int, int]]) -> StageDir:
    """The runs of a planted version, each of some of its shards."""
    dataset = StageDir(root=root, stage="curated", fingerprint="v1")
    target = StageDir(root=f"{root}-out", stage="order", fingerprint="a")
    for ref, (first, stop) in zip(target.planned(len(groups)), groups, strict=True):
        assert export.order_shard.fn(dataset, first, stop, ref, config).rows > 0
    commit(target, len(groups), config={}, inputs={})
    return target


def test_places_are_a_permutation_and_do_not_depend_on_the_runs(local_root: str) -> None:
    rows = versions_planted.published(local_root)
    config = export.Config(kind="parquet", seed=3)
    orders = []
    for groups in ([(0, 4)], [(0, 2), (2, 3), (3, 4)]):
        target = ordered(local_root, config, groups)
        table = export.ordered(target.shards(), 0, TOTAL)
        assert table[export.PLACE].to_pylist() == list(range(TOTAL))
        orders.append(table["image_id"].to_pylist())
        assert sum(notes["image_bytes"] for notes in target.account()["shard_notes"]) == sum(
            len(row["image"]["bytes"]) for row in rows
        )
        Storage(f"{local_root}-out").remove("order")
    assert orders[0] == orders[1] != [row["image_id"] for row in rows]
    assert sorted(orders[0]) == sorted(row["image_id"] for row in rows)
    target = ordered(local_root, config.model_copy(update={"shuffle": False}), [(0, 3), (3, 4)])
    assert export.ordered(target.shards(), 5, 9)["image_id"].to_pylist() == [row["image_id"] for row in rows[5:9]]


def test_a_shard_has_the_images_of_its_places_and_lists_its_files(root: str) -> None:
    rows = {row["image_id"]: row for row in versions_planted.published(root)}
    config = export.Config(kind="parquet", seed=1, columns=("key",))
    dataset = StageDir(root=root, stage="curated", fingerprint="v1")
    order = ordered(root, config, [(0, 4)])
    files = StageDir(root=f"{root}-out", stage="export", fingerprint="a")
    for ref, (first, stop) in zip(files.planned(2), ((0, 10), (10, TOTAL)), strict=True):
        export.export_shard.fn(dataset, order, f"{root}-out", first, stop, ref, config)
    commit(files, 2, config={}, inputs={})
    listed = [one for ref in files.shards() for one in read_table(ref).to_pylist()]
    storage, found = Storage(f"{root}-out"), []
    for one in listed:
        with storage.open(one["name"]) as file:
            found += pq.read_table(file).to_pylist()
    assert [one["rows"] for one in listed] == [10, TOTAL - 10]
    assert [row["image_id"] for row in found] == export.ordered(order.shards(), 0, TOTAL)["image_id"].to_pylist()
    assert {row["image_id"]: row["image"]["bytes"] for row in found} == {
        image_id: row["image"]["bytes"] for image_id, row in rows.items()
    }
    assert all(set(row) == {"image_id", "key", "image"} and row["key"] == rows[row["image_id"]]["key"] for row in found)
    suffixes = [notes["suffixes"] for notes in files.account()["shard_notes"]]
    assert sum(count for one in suffixes for count in one.values()) == TOTAL


def test_other_bytes_than_the_id_tells_are_an_error(local_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that is rewritten while it is exported, or a disk that lies."""
    versions_planted.published(local_root)
    dataset = StageDir(root=local_root, stage="curated", fingerprint="v1")
    order = ordered(local_root, export.Config(kind="parquet"), [(0, 4)])
    name = dataset.shards()[0].name()
    storage = Storage(local_root)
    data, whole = versions_planted.picture(1), storage.read_bytes(name)
    assert whole.count(data) == 1
    storage.write_bytes(name, whole.replace(data, bytes(len(data))))
    rows = export.ordered(order.shards(), 0, TOTAL)
    with pytest.raises(ShardError, match="must have the bytes that it is named after"):
        list(export.checked(dataset.shards(), rows))
    blurred = rows.set_column(
        rows.schema.get_field_index("faces_blurred"), "faces_blurred", [np.ones(TOTAL, dtype=np.int32)]
    )
    assert len(list(export.checked(dataset.shards(), blurred))) == TOTAL  # these have another id by design


@pytest.mark.parametrize(
    ("said", "images"),
    [({}, 10_000), ({"shard_images": 7}, 7), ({"shard_bytes": 550_000}, 5), ({"shard_bytes": 1}, 1)],
)
def test_images_of_a_shard(said: dict, images: int) -> None:
    assert export.Config(kind="webdataset", **said).images_per_shard(1000, 110_000_000) == images


def test_what_is_not_known_is_refused() -> None:
    for said in ({"kind": "zip"}, {"kind": "parquet", "shard_images": 0}, {"kind": "parquet", "sed": 1}):
        with pytest.raises(ValidationError):
            export.Config(**said)
