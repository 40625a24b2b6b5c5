"""Storage on a folder and on S3: whole files or none."""

import subprocess
import sys
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


def test_every_file_below_a_folder_is_told_with_its_size(root: str) -> None:
    storage = Storage(root)
    sizes = {"a/b/one": 3, "a/b/c/two": 5, "a/three": 0, "ab/four": 7}
    for name, size in sizes.items():
        storage.write_bytes(name, b"x" * size)
    assert {n: s for n, s in storage.files("") if not n.startswith(TEMPORARY)} == sizes
    assert dict(storage.files("a")) == {name: size for name, size in sizes.items() if name.startswith("a/")}
    assert dict(storage.files("nowhere")) == {}


def test_files_are_removed_by_name(root: str) -> None:
    storage = Storage(root)
    names = [f"a/{number:04d}" for number in range(7)]
    for name in names:
        storage.write_bytes(name, b"x")
    storage.remove_files([])
    storage.remove_files([*names[1:6], "a/not-there"])
    assert storage.names("a") == ["0000", "0006"]


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


def test_what_another_storage_did_is_seen(root: str) -> None:
    mine, theirs = Storage(root), Storage(root)
    assert mine.names("stage") == [] and not mine.exists("stage/a")
    theirs.write_bytes("stage/a", b"1")
    assert mine.names("stage") == ["a"] and mine.exists("stage/a") and mine.exists("stage")
    theirs.write_bytes("stage/b", b"2")
    theirs.write_bytes("stage/a", b"longer")
    assert mine.names("stage") == ["a", "b"] and mine.read_bytes("stage/a") == b"longer"
    theirs.remove("stage")
    assert mine.names("stage") == [] and not mine.exists("stage/b") and not mine.exists("stage")


def test_what_another_process_did_is_seen(root: str) -> None:
    mine = Storage(root)
    mine.write_bytes("stage/a", b"1")
    assert mine.names("stage") == ["a"] and mine.exists("stage/a") and not mine.exists("stage/b")
    program = "import sys; from lvd.infra.storage import Storage; s = Storage(sys.argv[1]); "
    program += "s.write_bytes('stage/b', b'2'); s.remove('stage/a')"
    subprocess.run([sys.executable, "-c", program, root], check=True, timeout=60)
    assert mine.names("stage") == ["b"] and mine.exists("stage/b") and not mine.exists("stage/a")


def test_a_folder_of_many_pages_is_listed_and_removed(s3_root: str) -> None:
    from moto.s3.models import s3_backends

    bucket, _, prefix = s3_root.removeprefix("s3://").partition("/")
    for number in range(2100):  # S3 lists and removes a thousand at a time
        s3_backends["123456789012"]["aws"].put_object(bucket, f"{prefix}/many/{number:04d}", b"")
    storage = Storage(s3_root)
    storage.write_bytes("many/0007/below", b"")
    storage.write_bytes("many-more", b"")
    assert storage.names("many") == sorted([*(f"{number:04d}" for number in range(2100)), "0007"])
    storage.remove("many")
    assert storage.names("") == ["many-more"]
