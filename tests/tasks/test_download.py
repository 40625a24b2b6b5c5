import gzip
import hashlib
import io
import json
import tarfile
import threading
import time
import zlib
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from lvd.infra.shards import StageDir, read_table
from lvd.infra.writing import with_features
from lvd.tasks import fetching, schemas, sources
from lvd.tasks.backlog import Backlog, Flights
from lvd.tasks.download import Config, download_shard
from lvd.tasks.fetching import decompressed, fetch_shard
from lvd.tests.tasks import planted
from lvd.tests.web import MiniatureWeb

QUICK = {"timeout_s": 1.0, "connect_timeout_s": 0.5, "backoff_s": 0.01, "allow_loopback": True}


def picture(seed, size=(24, 16), form="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def downloaded(tmp_path, source, name="run", **options):
    """The shard of a source with fewer than 10,000 rows: its reference, its images, its rejects."""
    (partition,) = sources.partitions(source)
    (manifest,) = planted.manifest(str(tmp_path / name), partition)
    (target,) = StageDir(root=str(tmp_path / name), stage="download", fingerprint="f").planned(1)
    rows = fetch_shard(manifest, target, with_features(schemas.IMAGES), Config(**{**QUICK, **options}), 1)
    ref = target.model_copy(update={"rows": rows})
    return ref, read_table(ref).to_pylist(), read_table(ref, kind="rejects").to_pylist()


def fetched(tmp_path, urls, **options):
    (tmp_path / "urls.txt").write_text("\n".join(urls))
    return downloaded(tmp_path, sources.Urls(path=str(tmp_path / "urls.txt")), **options)


PNG = picture(0)
JPEG = picture(1, (64, 48), "JPEG")
FAULTS = {
    # path: what the server does, the file, the reason, how many requests, the first bytes that are kept
    "absent.png": ({"do": "status", "status": 404}, b"", "http_404", 1, b"<html"),
    "gone.png": ({"do": "status", "status": 410}, b"", "http_410", 1, b"<html"),
    "broken.png": ({"do": "status", "status": 500}, b"", "http_500", 3, b"<html"),
    "busy.png": ({"do": "status", "status": 429}, b"", "http_429", 3, b"<html"),
    "silent.png": ({"do": "silent"}, b"", "timeout", 2, b""),
    "drip.png": ({"do": "drip"}, PNG, "timeout", 2, PNG[:1]),
    "loop.png": ({"do": "redirect", "location": "/loop.png"}, b"", "too_many_redirects", 4, b""),
    "inside.png": ({"do": "redirect", "location": "http://10.0.0.1/a.png"}, b"", "blocked_address", 1, b""),
    "metadata.png": ({"do": "redirect", "location": "http://2852039166/latest"}, b"", "blocked_address", 1, b""),
    "file.png": ({"do": "redirect", "location": "file:///etc/passwd"}, b"", "blocked_address", 1, b""),
    "nowhere.png": ({"do": "redirect", "location": "http://[1"}, b"", "invalid_url", 1, b""),
    "reset.png": ({"do": "reset"}, b"", "connection_failed", 3, b""),
    "cut.png": ({"do": "cut", "missing_bytes": 10}, PNG, "incomplete_body", 3, PNG),
    "chunks.png": ({"do": "cut_chunks"}, PNG, "incomplete_body", 3, PNG),
    "empty.png": ({"do": "serve"}, b"", "empty_body", 1, b""),
    "page.jpg": ({"do": "serve"}, b"<html>no image</html>", "not_an_image", 1, b"<html>no image</html>"),
    "bomb.png": ({"do": "serve"}, picture(2, (300, 300)), "too_many_pixels", 1, b"\x89PNG"),
    "huge.png": ({"do": "huge", "num_bytes": 10**9}, b"", "too_large", 1, bytes(1000)),
    "endless.png": ({"do": "endless", "num_bytes": 10**9}, b"", "too_large", 1, bytes(1000)),
}
FINE = {
    "a b.png": ({"do": "serve"}, PNG),
    "c.jpg": ({"do": "type", "content_type": "text/html"}, JPEG),
    "d.png": ({"do": "flaky", "status": 500, "times": 1}, picture(3)),
    "e.png": ({"do": "flaky", "status": 503, "times": 2, "retry_after": 0}, picture(4)),
    "f.png": ({"do": "redirect", "location": "a%20b.png"}, b""),
    "g.png": ({"do": "unsized"}, picture(5)),
    "h.png": ({"do": "chunked"}, picture(6)),
}


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    folder = tmp_path_factory.mktemp("web")
    (folder / "web").mkdir()
    for name, (_, body, *_) in {**FAULTS, **FINE}.items():
        (folder / "web" / name).write_bytes(body)
    (folder / "web" / "faults.json").write_text(json.dumps({n: fault for n, (fault, *_) in {**FAULTS, **FINE}.items()}))
    with MiniatureWeb(folder) as server:
        yield server


@pytest.fixture(scope="module")
def run(web, tmp_path_factory):
    """Every fault among images that are fine: one shard."""
    web.reset()
    names = [name for pair in zip(FAULTS, [*FINE] * 3, strict=False) for name in pair]
    urls = [f"{web.url}/{name}?{i}" for i, name in enumerate(names)]
    tmp_path = tmp_path_factory.mktemp("run")
    limits = {"max_bytes": 300_000, "max_pixels": 50_000, "max_redirects": 3}
    return urls, *fetched(tmp_path, urls, **limits), web.hits


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_has_its_reason_and_leaves_its_first_bytes(run, name):
    urls, _, _, rejects, hits = run
    _, _, reason, requests, first_bytes = FAULTS[name]
    (row,) = [row for row in rejects if f"/{name}?" in row["key"]]
    assert (row["reason"], row["state"]) == (reason, "failed")
    assert row["row"] == urls.index(row["key"])
    assert row["error"] and "\n" not in row["error"]
    assert row["bytes"].startswith(first_bytes) and bool(row["bytes"]) == bool(first_bytes)
    # libcurl repeats a request by itself if a used connection was closed: at most five times
    assert requests <= hits[name] <= requests * (6 if name == "reset.png" else 1)


def test_the_faults_cost_no_other_row(run):
    urls, ref, images, rejects, _ = run
    assert ref.rows == len(images) == len(urls) - len(FAULTS)
    assert len(rejects) == len(FAULTS)
    assert [row["key"] for row in images] == [url for url in urls if not any(f"/{name}?" in url for name in FAULTS)]


def test_the_bytes_are_kept_as_they_came(run):
    _, ref, images, _, _ = run
    assert read_table(ref).schema.equals(schemas.IMAGES)
    for row in images:
        name = row["image"]["path"]
        data = FINE["a b.png" if name == "f.png" else name][1]
        assert row["image"]["bytes"] == data
        assert row["image_id"] == hashlib.sha256(data).hexdigest()[:32]
        assert row["num_bytes"] == len(data)
        size = (64, 48, "JPEG") if name == "c.jpg" else (24, 16, "PNG")
        assert (row["width"], row["height"], row["format"], row["frames"]) == (*size, 1)
        assert (row["url"], row["domain"], row["source"]) == (row["key"], "127.0.0.1", None)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "2130706433", "0x7f.1", "0177.1", "localhost", "[::ffff:127.0.0.1]", "[::1]"]
)
def test_loopback_is_refused_in_every_spelling(web, tmp_path, host):
    web.reset()
    _, images, rejects = fetched(tmp_path, [web.url.replace("127.0.0.1", host) + "/a b.png"], allow_loopback=False)
    assert images == []
    assert [row["reason"] for row in rejects] == ["blocked_address"]
    assert web.requests == 0


def test_a_proxy_of_the_environment_is_not_used(web, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert len(fetched(tmp_path, [f"{web.url}/a b.png"])[1]) == 1


def test_nobody_there_is_a_failed_connection(tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        port = server.server_address[1]
    _, _, rejects = fetched(tmp_path, [f"http://127.0.0.1:{port}/a.png", "http://no-such-host.invalid/a.png"])
    assert [row["reason"] for row in rejects] == ["connection_failed", "no_such_host"]


@contextmanager
def serving(answer):
    """A server whose GET is `answer(handler)`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self):
            body, headers = answer(self)
            self.send_response(200)
            for name, value in {"Content-Length": len(body), **headers}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_the_bytes_of_a_shard_do_not_depend_on_the_speed_of_the_servers(tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "Flights", partial(Flights, max_bytes=2_000))  # pauses all the time
    monkeypatch.setattr(fetching, "Backlog", partial(Backlog, max_bytes=20_000))  # most wait in a file
    monkeypatch.setattr(fetching, "MAX_UNDER_WAY", 32)
    bodies = [picture(seed, (40, 30)) if seed % 7 else b"no image" for seed in range(120)]
    bodies[50] = picture(50, (200, 100))  # by itself more than may be held
    delays_s = {}

    def answer(handler):
        number = int(handler.path[1:])
        time.sleep(delays_s[number])
        return bodies[number], {}

    found = []
    with serving(answer) as url:
        for seed, connections in ((1, 4), (2, 16)):
            delays_s.update(enumerate(np.random.default_rng(seed).exponential(0.01, size=len(bodies)).tolist()))
            delays_s[0] = 0.1 * seed  # the first row holds up all others
            urls = [f"{url}/{i}" for i in range(len(bodies))]
            _, images, rejects = fetched(tmp_path, urls, name=str(seed), connections=connections, timeout_s=20)
            assert [row["key"] for row in images] == [u for i, u in enumerate(urls) if i % 7 or i == 50]
            assert [row["row"] for row in rejects] == [i for i in range(len(bodies)) if i % 7 == 0 and i != 50]
            found.append((images, rejects))
    assert found[0] == found[1]


def test_a_slow_first_row_holds_up_no_other_and_the_others_wait_on_disk(tmp_path, monkeypatch):
    backlogs = []

    class Watched(Backlog):
        def __init__(self, folder):
            super().__init__(folder, max_bytes=20 * len(PNG))
            self.most = 0
            backlogs.append(self)

        def put(self, index, data):
            super().put(index, data)
            self.most = max(self.most, self.in_memory)

    monkeypatch.setattr(fetching, "Backlog", Watched)
    requests, at_release, others = [], [], threading.Event()

    def answer(handler):
        requests.append(handler.path)
        if len(requests) == 150:
            others.set()
        if handler.path == "/0":
            others.wait(9)
            at_release.append(len(requests))
        return PNG, {}

    with serving(answer) as url:
        _, images, _ = fetched(tmp_path, [f"{url}/{i}" for i in range(150)], connections=4, timeout_s=10)
    assert [row["image"]["bytes"] for row in images] == [PNG] * 150
    assert at_release == [150]
    assert 0 < backlogs[0].most <= 20 * len(PNG)


def test_what_unpacks_to_more_than_the_limit_is_unpacked_no_further():
    assert len(decompressed(gzip.compress(bytes(10**6)), "gzip", 1000)) == 1001


def test_two_runs_of_one_configuration_write_the_same_files(web, tmp_path):
    urls = [f"{web.url}/{name}" for name in ("a b.png", "absent.png", "c.jpg", "page.jpg", "f.png", "cut.png")]
    files = []
    for name in ("one", "two"):
        web.reset()
        ref, _, _ = fetched(tmp_path, urls, name=name)
        folder = tmp_path / name
        files.append([(folder / ref.name(kind)).read_bytes() for kind in ("data", "rejects")])
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("encoding", "body", "reason"),
    [
        ("gzip", gzip.compress(PNG), None),
        ("deflate", zlib.compress(PNG), None),
        ("gzip", PNG, None),  # says so, but is not
        ("gzip", gzip.compress(bytes(10**8)), "too_large"),  # 97 kB that become 100 MB
        ("br", PNG[1:], "not_an_image"),  # not known: taken as it is
    ],
)
def test_an_encoding_that_nobody_asked_for_is_undone(tmp_path, encoding, body, reason):
    asked = []

    def answer(handler):
        asked.append(dict(handler.headers))
        return body, {"Content-Encoding": encoding}

    with serving(answer) as url:
        _, images, rejects = fetched(tmp_path, [f"{url}/a.png"], max_bytes=1_000_000, user_agent="someone")
    assert [row["image"]["bytes"] for row in images] == ([PNG] if reason is None else [])
    assert [row["reason"] for row in rejects] == ([reason] if reason else [])
    assert asked[0]["Accept-Encoding"] == "identity"
    assert asked[0]["User-Agent"] == "someone"


def test_headers_without_end_are_cut(tmp_path):
    def answer(handler):
        return PNG, {f"X-{i}": "x" * 8000 for i in range(2_000)}

    with serving(answer) as url:
        _, images, rejects = fetched(tmp_path, [f"{url}/a.png"], timeout_s=10)
    assert images == []
    assert [row["reason"] for row in rejects] == ["bad_response"]


def test_no_more_than_the_given_connections_are_open(tmp_path):
    lock, now, most = threading.Lock(), [0], [0]

    def answer(handler):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        with lock:
            now[0] -= 1
        return PNG, {}

    with serving(answer) as url:
        assert len(fetched(tmp_path, [f"{url}/{i}" for i in range(30)], connections=3)[1]) == 30
    assert most[0] == 3


def test_files_tars_and_datasets_are_read_from_where_they_are(tmp_path):
    import datasets

    folder = tmp_path / "photos"
    (folder / "cat").mkdir(parents=True)
    (folder / "cat" / "1.png").write_bytes(PNG)
    (folder / "cat" / "2.png").write_bytes(b"")
    (folder / "cat" / "3.png").write_bytes(b"no image")
    (folder / "cat" / "4.png").write_bytes(picture(7, (300, 300)))
    (folder / "cat" / "5.png").symlink_to("nowhere")
    (folder / "dog.jpg").write_bytes(JPEG)
    _, images, rejects = downloaded(tmp_path, sources.Images(path=str(folder)), name="images", max_bytes=100_000)
    assert [(row["key"], row["label"], row["image"]["path"]) for row in images] == [
        ("photos/cat/1.png", "cat", "1.png"),
        ("photos/dog.jpg", None, "dog.jpg"),
    ]
    assert [row["image"]["bytes"] for row in images] == [PNG, JPEG]
    assert [(row["row"], row["reason"]) for row in rejects] == [
        (1, "empty_body"),
        (2, "not_an_image"),
        (3, "too_large"),
        (4, "unreadable"),
    ]

    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        archive.add(folder / "cat" / "1.png", "1.png")
    (row,) = downloaded(tmp_path, sources.WebDataset(path=str(tmp_path / "0.tar")), name="tar")[1]
    assert (row["key"], row["image"]["bytes"], row["url"]) == ("0.tar/1.png", PNG, None)

    datasets.Dataset.from_dict({"image": [PNG, JPEG]}).save_to_disk(tmp_path / "set")
    images = downloaded(tmp_path, sources.HuggingFace(path=str(tmp_path / "set")), name="set")[1]
    assert [row["image"]["bytes"] for row in images] == [PNG, JPEG]


def test_rows_are_counted_over_the_shards_of_the_manifest(tmp_path):
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(PNG if i != 4 else b"no image")
    (partition,) = sources.partitions(sources.Images(path=str(tmp_path)))
    _, last = planted.manifest(str(tmp_path / "root"), partition, rows_per_shard=3)
    target = StageDir(root=str(tmp_path / "root"), stage="download", fingerprint="f").planned(2)[1]
    ref = download_shard.fn(last, target, Config())  # in a process of its own
    assert ref.rows == 1
    assert read_table(ref, kind="rejects")["row"].to_pylist() == [4]


def test_a_failure_of_the_writer_ends_the_shard_and_leaves_nothing(web, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetching.Shard, "keep", full)
    with pytest.raises(OSError, match="No space"):
        fetched(tmp_path, [f"{web.url}/{name}" for name in ("a b.png", "silent.png", "c.jpg")])
    assert list((tmp_path / "run" / "download").rglob("*")) == []
    assert list((tmp_path / "run" / ".tmp").iterdir()) == []
