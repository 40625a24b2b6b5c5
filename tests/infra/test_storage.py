"""Storage on a folder and on S3: whole files or none."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lvd.infra.storage import TEMPORARY, Storage


def test_a_file_is_read_back_listed_and_removed(root: str) -> None:
    storage = Storage(root)
    storage.write_json("stage/abc/stage.json", {"rows": 3})
    storage.write_bytes("stage/abc/data", b"x" * 100_000)
    assert storage.read_json("stage/abc/stage.json") == {"rows": 3}
    assert storage.names("stage/abc") == ["data", "stage.json"]
    assert storage.exists("stage/abc/data")
    storage.remove("stage/abc/data")
    assert storage.names("stage/abc") == ["stage.json"]
    assert storage.names("nowhere") == []


def test_a_write_that_fails_leaves_nothing(root: str) -> None:
    storage = Storage(root)
    with pytest.raises(ValueError, match="broken"), storage.whole_file("stage/data") as path:
        path.write_bytes(b"half")
        raise ValueError("broken")
    assert not storage.exists("stage/data")
    assert storage.names(TEMPORARY) == []


def test_a_file_is_replaced_in_one_step(root: str) -> None:
    storage = Storage(root)
    storage.write_bytes("a", b"old")
    with storage.whole_file("a") as path:
        path.write_bytes(b"new")
        assert storage.read_bytes("a") == b"old"
    assert storage.read_bytes("a") == b"new"


def test_of_many_creations_one_wins(root: str) -> None:
    storage = Storage(root)
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: storage.create("lease", str(number).encode()), range(16)))
    assert sum(won) == 1
    assert storage.read_bytes("lease") == str(won.index(True)).encode()


def test_what_a_dead_process_left_is_removed(local_root: str) -> None:
    left = Path(local_root) / TEMPORARY / "half-written"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"x")
    Storage(local_root).remove_temporary()
    assert not left.parent.exists()
