"""What is committed opens as a dataset, whether its shards lie in it or elsewhere in its root."""

import json
from pathlib import Path

import fsspec
import numpy as np
import pytest

from lvd.infra.committing import commit, commit_lent
from lvd.infra.shards import ShardRef, StageDir, read_column, unwritten
from lvd.infra.writing import write_shard
from lvd.tasks import schemas
from lvd.tests.infra.test_shards import fill, target_of

LENT = (3, 1, 2)  # rows of the shards of a directory that has none of its own


def test_a_committed_stage_opens_as_a_hugging_face_dataset(local_root: str) -> None:
    from datasets import load_from_disk

    target = target_of(local_root)
    fill(target, [3, 0, 2])
    account = commit(target, 3, config={"model": "m"}, inputs={})
    assert (account["rows_in"], account["rows"], account["reasons"]) == (8, 5, {"http_404": 3})
    dataset = load_from_disk(f"{local_root}/{target.directory}")
    assert dataset["row"][:] == [0, 1, 2, 3, 4]
    assert dataset[4]["vector"] == [4.0, 4.0, 4.0]


def lent(root: str, version: str, order: tuple[int, ...] = (0, 1, 2)) -> StageDir:
    """A directory that consists of shards in others, in that order; the rows of the shard n begin with 10 × n."""
    refs = [ShardRef(root=root, directory=f"published/{number:032x}", index=0, count=1) for number in order]
    for number, ref in zip(order, refs, strict=True):
        if ref in unwritten(refs):
            with write_shard(ref, schemas.vectors(3), {"model": "m"}) as shard:
                for row in range(LENT[number]):
                    vector = np.full(3, row, dtype=np.float16)
                    shard.keep({"row": 10 * number + row, "image_id": "a", "vector": vector})
    target = StageDir(root=root, stage="curated", fingerprint=version)
    account = commit_lent(target, refs, config={}, inputs={})
    assert account["rows"] == sum(LENT[number] for number in order)
    return target


def test_a_directory_can_consist_of_the_shards_of_others(root: str) -> None:
    first, second = lent(root, "v1"), lent(root, "v2", (2, 0))
    assert read_column(first.shards(), "row").to_pylist() == [0, 1, 2, 10, 20, 21]
    assert [(ref.first_row, ref.rows, ref.base) for ref in first.shards(base=7)] == [(0, 3, 7), (3, 1, 7), (4, 2, 7)]
    assert read_column(second.shards(), "row").to_pylist() == [20, 21, 0, 1, 2]
    assert first.storage.names("published") == [f"{number:032x}" for number in range(3)]
    assert not any(name.endswith(".arrow") for name in first.storage.names("curated/v1"))


def test_it_opens_as_a_dataset_wherever_its_root_is_moved(tmp_path: Path) -> None:
    from datasets import load_from_disk

    lent(str(tmp_path / "root"), "v1", (1, 0))
    (tmp_path / "root").rename(tmp_path / "elsewhere")
    dataset = load_from_disk(str(tmp_path / "elsewhere/curated/v1"))
    assert dataset["row"][:] == [10, 0, 1, 2]


@pytest.mark.parametrize("streaming", [False, True])
def test_its_list_of_files_opens_as_a_dataset(root: str, streaming: bool, tmp_path: Path) -> None:
    """As the dataset card says it."""
    from datasets import load_dataset

    target = lent(root, "v1", (1, 0))
    version = target.storage.uri(target.directory)
    with fsspec.open(f"{version}/data_files.json") as file:
        names = json.load(file)
    files = [f"{version.rsplit('/', 2)[0]}/{name}" for name in names]
    options = {"data_files": files, "split": "train", "streaming": streaming, "cache_dir": str(tmp_path / "cache")}
    assert [row["row"] for row in load_dataset("arrow", **options)] == [10, 0, 1, 2]
