"""S3 through a night: every request meets faults, for a while or for ever."""

import hashlib
import io
import logging
import random
import sys
import time
import uuid
from collections.abc import Iterator

import pyarrow as pa
import pytest

from lvd.flows import cli
from lvd.infra import object_store
from lvd.infra.committing import commit
from lvd.infra.errors import InputError, RetryableError
from lvd.infra.patience import Patience, StoreRefused, StoreUnavailable
from lvd.infra.shards import StageDir, read_table
from lvd.infra.storage import Storage
from lvd.infra.writing import write_shard
from lvd.tests.faults import Proxy, always, first, now_and_then
from lvd.tests.running import free_port

QUICK = Patience(total_s=20, first_wait_s=0.01, longest_wait_s=0.1, connect_timeout_s=5, read_timeout_s=10)
BRIEF = QUICK.model_copy(update={"total_s": 0.4, "read_timeout_s": 2})
PASSING = {"slow_down": 3, "gateway": 1, "incomplete_body": 1, "cut": 1, "reset": 1, "lost": 1, "stall": 1}
BUCKET = "lvd-faults"
SECRET = "a-secret-that-nobody-may-read"


@pytest.fixture(scope="module")
def only_proxy(s3_endpoint: str) -> Iterator[Proxy]:
    """One for all tests, with a bucket behind it and the environment that reaches it: clients are slow to make."""
    import s3fs

    with Proxy(s3_endpoint) as proxy, pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", proxy.url)
        environment.setenv("AWS_ACCESS_KEY_ID", "testing")
        environment.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        Storage(f"s3://{BUCKET}").fs.call_s3("create_bucket", Bucket=BUCKET)
        yield proxy
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def proxy(only_proxy: Proxy) -> Proxy:
    only_proxy.choose = always("pass")
    only_proxy.seen.clear()
    return only_proxy


@pytest.fixture
def s3_root(proxy: Proxy) -> str:
    """A root of its own in the bucket."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


def place(storage: Storage, name: str) -> dict[str, str]:
    return {"Bucket": BUCKET, "Key": storage.locate(name).removeprefix(f"{BUCKET}/")}


def uploads(storage: Storage) -> list[str]:
    """Names of what is uploaded in parts and not complete."""
    found = storage.fs.call_s3("list_multipart_uploads", Bucket=BUCKET).get("Uploads", ())
    start = place(storage, "")["Key"]
    return [one["Key"].removeprefix(start) for one in found if one["Key"].startswith(start)]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Bytes that are uploaded in three parts, and read in several blocks."""
    monkeypatch.setattr(object_store, "PART_BYTES", 5 << 20)  # S3 takes no smaller ones
    return random.Random(5).randbytes(11 << 20)


@pytest.mark.parametrize("kind", PASSING)
def test_what_passes_costs_time_only(kind: str, s3_root: str, proxy: Proxy) -> None:
    storage = Storage(s3_root, QUICK if kind != "stall" else QUICK.model_copy(update={"read_timeout_s": 0.5}))
    storage.write_bytes("folder/b", b"old")

    def again(operation, *arguments):
        proxy.choose = first(PASSING[kind], kind, "PUT" if kind == "incomplete_body" else "")
        return operation(*arguments)

    again(storage.write_bytes, "folder/a", b"x" * 1000)
    assert again(storage.read_bytes, "folder/a") == b"x" * 1000
    assert again(storage.names, "folder") == ["a", "b"]
    assert again(storage.exists, "folder/a")
    assert not again(storage.exists, "folder/c")
    assert again(storage.create, "folder/c", b"1") is True
    assert again(storage.create, "folder/c", b"2") is False
    again(storage.remove, "folder/b")
    with again(storage.open, "folder/a") as file:
        assert file.read() == b"x" * 1000
    assert storage.names("folder") == ["a", "c"]
    assert storage.read_bytes("folder/c") == b"1"
    assert proxy.seen[kind] >= (3 if kind == "incomplete_body" else 8)


@pytest.mark.parametrize("kind", ["slow_down", "cut", "short", "stall"])
def test_what_does_not_pass_ends_with_one_line(kind: str, s3_root: str, proxy: Proxy) -> None:
    storage = Storage(s3_root, BRIEF)
    Storage(s3_root, QUICK).write_bytes("a", b"x" * 1000)
    proxy.choose = always(kind)
    started = time.monotonic()
    with pytest.raises(storage.errors) as caught:
        storage.read_bytes("a")
    assert time.monotonic() - started < 20
    assert isinstance(caught.value, StoreUnavailable) and isinstance(caught.value, RetryableError)
    text = str(caught.value)
    assert f"{s3_root}/a" in text and "run the same command again" in text and "\n" not in text
    assert kind != "slow_down" or "503 SlowDown: Please reduce your request rate." in text


def test_a_server_that_is_gone_is_told_in_bounded_time(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    storage = Storage(s3_root, BRIEF.model_copy(update={"connect_timeout_s": 1.5}))  # of a client of its own
    with pytest.raises(StoreUnavailable, match="Could not connect"):
        storage.write_bytes("a", b"x")


@pytest.mark.parametrize(("kind", "code"), [("denied", "AccessDenied"), ("unknown_key", "InvalidAccessKeyId")])
def test_a_refusal_is_told_at_once(kind: str, code: str, s3_root: str, proxy: Proxy) -> None:
    storage = Storage(s3_root, QUICK)
    proxy.choose = always(kind)
    for operation in (storage.read_bytes, storage.names, storage.open, lambda name: storage.create(name, b"")):
        proxy.seen.clear()
        with pytest.raises(storage.errors, match=f"403 {code}") as caught:
            operation("a")
        assert isinstance(caught.value, InputError) and isinstance(caught.value, StoreRefused)
        assert proxy.seen.total() == 1


def test_a_bucket_that_is_not_there_is_told_at_once(s3_root: str, proxy: Proxy) -> None:
    storage = Storage("s3://lvd-nowhere/root", QUICK)
    for operation in (storage.read_bytes, storage.names, storage.exists, lambda name: storage.write_bytes(name, b"")):
        proxy.seen.clear()
        with pytest.raises(StoreRefused, match="NoSuchBucket"):
            operation("a")
        assert proxy.seen.total() <= 2


def test_a_file_that_is_not_there_is_asked_for_once(s3_root: str, proxy: Proxy) -> None:
    storage = Storage(s3_root, QUICK)
    for operation in (storage.read_bytes, storage.open):
        proxy.seen.clear()
        with pytest.raises(FileNotFoundError):
            operation("a")
        assert proxy.seen.total() == 1


def test_no_credentials_are_told_at_once(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    with pytest.raises(StoreRefused, match="credentials"):
        Storage(s3_root, QUICK.model_copy(update={"connect_timeout_s": 2.5})).read_bytes("a")


def test_secrets_are_in_no_message(s3_root: str, proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "lvd")
    storage = Storage(s3_root, BRIEF)
    for kind in ("slow_down", "unknown_key", "reset"):
        proxy.choose = always(kind)
        with pytest.raises(storage.errors) as caught:
            storage.read_bytes("a")
        assert SECRET not in str(caught.value)
    assert "trying again" in caplog.text
    assert SECRET not in caplog.text


def test_a_command_ends_with_one_line(
    s3_root: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(object_store, "PATIENCE", BRIEF)
    monkeypatch.setattr(sys, "argv", ["lvd", "status", s3_root])
    for kind, code in (("slow_down", 1), ("denied", 2)):
        proxy.choose = always(kind)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        text = capsys.readouterr().err
        assert ended.value.code == code
        assert text.startswith(f"lvd: {s3_root}") and text.count("\n") == 1


def test_creations_whose_answers_are_lost_have_one_winner(s3_root: str, proxy: Proxy) -> None:
    storages = [Storage(s3_root, QUICK) for _ in range(4)]
    proxy.choose = first(4, "lost", "PUT")
    won = [storage.create("lease", b"the same") for storage in storages]
    assert won == [True, False, False, False]


@pytest.mark.parametrize("kind", ["slow_down", "lost"])
def test_parts_of_an_upload_are_tried_again(kind: str, s3_root: str, proxy: Proxy, small_parts: bytes) -> None:
    storage = Storage(s3_root, QUICK)
    for method in ("PUT", "POST"):  # parts; the upload's beginning and its completion
        proxy.choose = first(2, kind, method)
        storage.write_bytes("big", small_parts)
        assert storage.fs.call_s3("head_object", **place(storage, "big"))["ContentLength"] == len(small_parts)
    assert proxy.seen[kind] == 4
    assert hashlib.sha256(storage.read_bytes("big")).digest() == hashlib.sha256(small_parts).digest()


def test_the_lost_answer_of_a_completion_is_not_an_error(s3_root: str, proxy: Proxy, small_parts: bytes) -> None:
    left = ["error_in_200", "lost"]
    proxy.choose = lambda method, path: left.pop() if "uploadId=" in path and method == "POST" and left else "pass"
    storage = Storage(s3_root, QUICK)
    storage.write_bytes("big", small_parts)
    assert storage.read_bytes("big") == small_parts


def test_an_upload_that_fails_leaves_nothing(s3_root: str, proxy: Proxy, small_parts: bytes) -> None:
    storage = Storage(s3_root, BRIEF)
    Storage(s3_root, QUICK).write_bytes("big", b"old")
    proxy.choose = lambda method, path: "slow_down" if "partNumber=" in path else "pass"
    with pytest.raises(StoreUnavailable, match="SlowDown"):
        storage.write_bytes("big", small_parts)
    proxy.choose = always("pass")
    assert storage.read_bytes("big") == b"old"
    assert uploads(storage) == []


def test_what_dead_processes_left_of_uploads_is_removed(s3_root: str, proxy: Proxy) -> None:
    storage = Storage(s3_root, QUICK)
    for name in ("/stage/a", "/stage/b", "-other/c"):
        storage.fs.call_s3("create_multipart_upload", Bucket=BUCKET, Key=place(storage, "")["Key"] + name)
    storage.remove_temporary()
    assert uploads(storage) == ["-other/c"]
    proxy.choose = always("denied")
    storage.remove_temporary()  # a right that a run can do without


@pytest.mark.parametrize("kind", ["cut", "short", "slow_down"])
def test_every_block_of_a_stream_is_whole(kind: str, s3_root: str, proxy: Proxy, small_parts: bytes) -> None:
    storage = Storage(s3_root, QUICK)
    storage.write_bytes("big", small_parts)
    asked = [0]

    def every_other(method: str, path: str) -> str:
        asked[0] += 1
        return kind if asked[0] % 2 else "pass"

    proxy.choose = every_other
    with storage.open("big") as file:
        parts = []
        while part := file.read(1_000_003):
            parts.append(part)
        assert b"".join(parts) == small_parts
        file.seek(9_345_678)
        assert file.read(1000) == small_parts[9_345_678:][:1000]
        file.seek(100)
        assert file.read(10) == small_parts[100:110]
    assert proxy.seen[kind] >= 5


def test_empty_files_are_files(s3_root: str, proxy: Proxy) -> None:
    storage = Storage(s3_root, QUICK)
    storage.write_bytes("empty", b"")
    assert storage.read_bytes("empty") == b""
    with storage.open("empty") as file:
        assert file.read() == b""


@pytest.mark.parametrize("num_bytes", [100, 5 << 20])  # in one block, in several
def test_other_bytes_than_were_written_do_not_pass(num_bytes: int, s3_root: str, proxy: Proxy) -> None:
    storage = Storage(s3_root, QUICK)
    data = random.Random(1).randbytes(num_bytes)
    storage.write_bytes("a", data)
    proxy.choose = always("flip", "GET")
    for read in (storage.read_bytes, lambda name: storage.open(name).read()):
        with pytest.raises(StoreUnavailable, match="CRC-32"):
            read("a")
    proxy.choose = always("pass")
    assert storage.read_bytes("a") == data


def test_a_stream_that_ends_between_two_messages_does_not_pass(s3_root: str, proxy: Proxy) -> None:
    sink, ends = io.BytesIO(), []
    with pa.ipc.new_stream(sink, pa.schema([("a", pa.int64())])) as writer:
        for number in range(3):
            writer.write_batch(pa.record_batch({"a": [number]}))
            ends.append(sink.tell())
    cut = sink.getvalue()[: ends[1]]
    assert len(list(pa.ipc.open_stream(cut))) == 2  # Arrow sees nothing wrong in it
    storage = Storage(s3_root, QUICK)
    storage.write_bytes("a", sink.getvalue())
    about = storage.fs.call_s3("head_object", **place(storage, "a"))["Metadata"]
    storage.fs.call_s3("put_object", **place(storage, "a"), Body=cut, Metadata=about)
    with pytest.raises(StoreUnavailable, match="CRC-32"), storage.open("a") as file:
        pa.ipc.open_stream(file).read_all()


def test_a_file_that_is_replaced_while_it_is_read_is_not_mixed(s3_root: str, proxy: Proxy) -> None:
    storage = Storage(s3_root, QUICK)
    storage.write_bytes("a", b"a" * (3 << 20))
    with storage.open("a") as file:
        assert file.read(10) == b"a" * 10
        storage.write_bytes("a", b"b" * (3 << 20))
        with pytest.raises(StoreUnavailable, match="replaced"):
            file.read()


def test_faults_that_come_and_go_change_nothing(
    s3_root: str, local_root: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "PATIENCE", QUICK)
    kinds = ("slow_down", "internal_error", "gateway", "cut", "reset", "lost")
    tables, files = [], []
    for root in (local_root, s3_root):
        if root == s3_root:
            proxy.choose = now_and_then(random.Random(3), kinds, 0.2)
        target = StageDir(root=root, stage="embed", fingerprint="abc")
        for ref in target.planned(20):
            with write_shard(ref, pa.schema([("row", pa.int64()), ("data", pa.binary())]), {}) as shard:
                for row in range(30):
                    shard.keep({"row": row, "data": random.Random(row + ref.index).randbytes(3000)}, 3000)
        assert target.missing(20) == []
        commit(target, 20, config={}, inputs={})
        tables.append([read_table(ref) for ref in target.shards()])
        names = target.storage.names(target.directory)
        stable = [name for name in names if name.endswith(".arrow") or name == "state.json"]
        files.append({name: target.storage.read_bytes(f"{target.directory}/{name}") for name in stable})
    assert tables[0] == tables[1]
    assert files[0] == files[1] and len(files[0]) == 41
    assert set(proxy.seen) == {*kinds, "pass"}
