"""The faulty server, as clients of several manners see it."""

import gc
import http.client
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from urllib.parse import urlsplit

import pytest

from lvd.tests.web import MiniatureWeb

BODY = bytes(range(256)) * 40
FAULTS = {
    "gone.jpg": {"do": "status", "status": 410},
    "flaky.jpg": {"do": "flaky", "status": 503, "times": 2, "retry_after": 7},
    "silent.jpg": {"do": "silent"},
    "drip.jpg": {"do": "drip"},
    "away.jpg": {"do": "redirect", "location": "/plain.jpg"},
    "type.jpg": {"do": "type", "content_type": "text/plain"},
    "cut.jpg": {"do": "cut", "missing_bytes": 5},
    "cut-chunks.jpg": {"do": "cut_chunks"},
    "reset.jpg": {"do": "reset"},
    "huge.jpg": {"do": "huge", "num_bytes": 1_000_000_000},
    "endless.jpg": {"do": "endless", "num_bytes": 64_000_000},
    "unsized.jpg": {"do": "unsized"},
    "chunked.jpg": {"do": "chunked"},
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "web" / "with space").mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("not for the web")
    (tmp_path / "web" / "faults.json").write_text(json.dumps(FAULTS))
    for name in [*FAULTS, "plain.jpg", "with space/ä.png"]:
        (tmp_path / "web" / name).write_bytes(BODY)
    return tmp_path


@pytest.fixture
def web(folder):
    with MiniatureWeb(folder) as running:
        yield running


def connect(web: MiniatureWeb, timeout_s: float = 10.0):
    """A connection that is closed at the end of a with block."""
    return closing(http.client.HTTPConnection("127.0.0.1", urlsplit(web.url).port, timeout=timeout_s))


def fetch(web: MiniatureWeb, path: str, timeout_s: float = 10.0) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Status, headers and body, on a connection of its own."""
    with connect(web, timeout_s) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.headers, response.read()


@pytest.mark.parametrize(
    ("path", "status", "headers"),
    [
        ("/plain.jpg", 200, {"Content-Type": "image/jpeg", "Content-Length": str(len(BODY))}),
        ("/plain.jpg?w=640", 200, {"Content-Length": str(len(BODY))}),
        ("/with%20space/%C3%A4.png", 200, {"Content-Type": "image/png"}),
        ("/type.jpg", 200, {"Content-Type": "text/plain"}),
        ("/unsized.jpg", 200, {"Content-Length": None, "Transfer-Encoding": None}),
        ("/chunked.jpg", 200, {"Content-Length": None, "Transfer-Encoding": "chunked"}),
        ("/gone.jpg", 410, {"Content-Type": "text/html"}),
        ("/flaky.jpg", 503, {"Retry-After": "7"}),
        ("/away.jpg", 302, {"Location": "/plain.jpg"}),
        ("/nothing.jpg", 404, {}),
        ("/with%20space", 404, {}),
        ("/../secret.txt", 404, {}),
        ("/%2e%2e/secret.txt", 404, {}),
    ],
)
def test_whole_answers(web, path, status, headers):
    got, got_headers, body = fetch(web, path)
    assert got == status and {name: got_headers[name] for name in headers} == headers
    assert (body == BODY) == (status == 200)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/cut.jpg", http.client.IncompleteRead),
        ("/cut-chunks.jpg", http.client.IncompleteRead),
        ("/reset.jpg", ConnectionResetError),
        ("/silent.jpg", TimeoutError),
        ("/drip.jpg", None),
    ],
)
def test_broken_answers(web, path, error):
    if error is None:  # the body comes, two bytes of it at least, and each is the right one
        with connect(web) as connection:
            connection.request("GET", path)
            with connection.getresponse() as response:
                assert response.read(2) == BODY[:2] and response.length == len(BODY) - 2
        return
    with pytest.raises(error) as caught:
        fetch(web, path, timeout_s=10 if error is not TimeoutError else 0.3)
    # http.client calls a connection that merely ends a reset as well.
    assert not isinstance(caught.value, http.client.RemoteDisconnected)


def test_a_client_may_leave_a_body_of_any_length(web):
    for path, length in (("/huge.jpg", 1_000_000_000 - 25_000_000), ("/endless.jpg", None)):
        with connect(web) as connection:
            connection.request("GET", path)
            with connection.getresponse() as response:
                assert len(response.read(25_000_000)) == 25_000_000
                assert response.length == length
    with pytest.raises(http.client.IncompleteRead):
        fetch(web, "/endless.jpg")
    assert fetch(web, "/plain.jpg")[0] == 200


def test_flaky_paths_recover_and_reset_forgets(web):
    for _ in range(2):
        assert [fetch(web, "/flaky.jpg")[0] for _ in range(4)] == [503, 503, 200, 200]
        assert web.requests == 4 and web.hits == {"flaky.jpg": 4}
        web.reset()
        assert web.requests == 0


def test_a_connection_serves_many_requests(web):
    with connect(web) as connection:
        connection.request("GET", "/plain.jpg")
        first = connection.sock
        for path in ("/gone.jpg", "/away.jpg", "/chunked.jpg", "/nothing.jpg", "/plain.jpg"):
            connection.getresponse().read()
            connection.request("GET", path)
            assert connection.sock is first
        assert connection.getresponse().read() == BODY


def test_a_server_may_start_before_its_folder_is_filled(tmp_path):
    with MiniatureWeb(tmp_path) as web:
        assert fetch(web, "/late.jpg")[0] == 404
        (tmp_path / "web").mkdir()
        (tmp_path / "web" / "late.jpg").write_bytes(BODY)
        assert fetch(web, "/late.jpg")[2] == BODY
        (tmp_path / "web" / "faults.json").write_text('{"late.jpg": {"do": "status", "status": 451}}')
        assert fetch(web, "/late.jpg")[0] == 451


def test_sixty_four_connections_at_once_are_answered(web):
    together = threading.Barrier(64)

    def worker(_: int) -> list[bytes]:
        with connect(web, 30) as connection:
            connection.connect()
            together.wait(timeout=30)  # all 64 are connected now
            bodies = []
            for _ in range(4):
                connection.request("GET", "/plain.jpg")
                bodies.append(connection.getresponse().read())
            return bodies

    with ThreadPoolExecutor(64) as pool:
        bodies = [body for some in pool.map(worker, range(64)) for body in some]
    assert bodies == [BODY] * 256 and web.requests == 256


def test_stopping_ends_waiting_connections_and_leaves_no_thread(folder):
    before = set(threading.enumerate())
    connections = []
    with MiniatureWeb(folder) as web:
        for path in ("/plain.jpg", "/silent.jpg", "/drip.jpg", "/huge.jpg"):
            connections.append(http.client.HTTPConnection("127.0.0.1", urlsplit(web.url).port, timeout=10))
            connections[-1].request("GET", path)
        assert connections[0].getresponse().read() == BODY  # and the connection stays open
        for connection in connections[2:]:
            assert connection.sock.recv(1)  # the answer has begun
    assert set(threading.enumerate()) == before
    for connection in connections:
        connection.close()
    with pytest.raises(ConnectionRefusedError):
        fetch(web, "/plain.jpg")
    gc.collect()  # a socket that was left open warns now, and warnings are errors
