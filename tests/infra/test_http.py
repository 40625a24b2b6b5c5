"""The HTTP client against real servers on loopback: MiniatureWeb, and small ones for what it never says."""

import asyncio
import gc
import ipaddress
import json
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import certifi
import h2.config
import h2.connection
import h2.events
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from lvd.infra import http as http_room
from lvd.infra.http import Client, HttpError, Response
from lvd.tests.web import MiniatureWeb

LIMITS = {"timeout_s": 20.0, "max_bytes": 1_000_000}
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def client(**options: object) -> Client:
    return Client(**{"user_agent": "lvd-test", "allow_loopback": True, **options})


def run(scenario: Awaitable) -> object:
    """The scenario's result; it fails if what it left behind cannot be ended, or ends in a complaint of the loop."""
    complaints = []

    async def watched() -> object:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        return await asyncio.wait_for(scenario, 25)

    result = asyncio.run(watched())
    gc.collect()
    assert complaints == []
    return result


class Server:
    """Calls `answer` with each connection, on loopback, in the test's own loop; leaving it waits for all of them."""

    def __init__(self, answer: Answer, *, tls: ssl.SSLContext | None = None) -> None:
        self._answer, self._tls = answer, tls
        self._jobs: set[asyncio.Task] = set()
        self.connections = 0

    async def __aenter__(self) -> "Server":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        if self._jobs:
            await asyncio.wait(self._jobs)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._jobs.add(asyncio.current_task())
        try:
            await self._answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):  # the client left: that is what tests are for
            pass
        finally:
            writer.close()


def saying(data: bytes, *, heads: list[bytes] | None = None, close: bool = False) -> Answer:
    """An answer that is the same to every request of the connection."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if heads is not None:
                heads.append(head)
            writer.write(data)
            await writer.drain()
            if close:
                return

    return answer


async def keep_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(1 << 16):
        continue


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def outcome_of(asked: Client, url: str, **limits: object) -> Response | HttpError:
    try:
        return await asked.get(url, **{**LIMITS, **limits})
    except HttpError as error:
        return error


async def answer_to(data: bytes, **limits: object) -> Response | HttpError:
    """What becomes of an answer after which the server hangs up."""
    async with Server(saying(data, close=True)) as server, client() as asked:
        return await outcome_of(asked, f"{server.url}/a.jpg", **limits)


# Answers, whole and not


def test_an_answer_has_its_parts() -> None:
    head = b"HTTP/1.1 404 Gone Fishing\r\nX-A: 1\r\nSet-Cookie: a=b\r\nx-a:  two  \r\nContent-Length: 3\r\n\r\n"
    response = run(answer_to(head + b"no!"))
    assert (response.status, response.body, response.whole, response.version) == (404, b"no!", True, "1.1")
    assert response.url.endswith("/a.jpg")
    assert response.headers == [("x-a", "1"), ("set-cookie", "a=b"), ("x-a", "two"), ("content-length", "3")]
    assert response.header("x-a") == "1" and response.header("x-b") is None
    assert response.values("x-a") == ["1", "two"] and response.values("x-b") == []


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
WHOLE = {
    "with its length": (OK, b"hi", "1.1"),
    "in chunks": (CHUNKED + b"1\r\nh\r\n1;x=y\r\ni\r\n0\r\n\r\n", b"hi", "1.1"),
    "until the end": (b"HTTP/1.1 200 OK\r\n\r\nhi", b"hi", "1.1"),
    "of the old version": (b"HTTP/1.0 200 OK\r\n\r\nhi", b"hi", "1.0"),
    "without a body": (b"HTTP/1.1 204 No Content\r\n\r\n", b"", "1.1"),
    "of no bytes": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"", "1.1"),
    "after hints": (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 3 + OK, b"hi", "1.1"),
    "with line feeds only": (OK.replace(b"\r", b""), b"hi", "1.1"),
    "with a folded header": (OK.replace(b"\r\n", b"\r\nX-A: 1\r\n  2\r\n", 1), b"hi", "1.1"),
    "followed by more": (OK + b"HTTP/1.1 500 x\r\n\r\n", b"hi", "1.1"),
    "with a length that counts for nothing": (CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Length: 9\r\n\r\n")
                                              + b"2\r\nhi\r\n0\r\n\r\n", b"hi", "1.1"),
    "with a header that looks like a status": (OK.replace(b"\r\n", b"\r\nHTTP/1.1: 404\r\n", 1), b"hi", "1.1"),
    "with a trailer that looks like a status": (CHUNKED + b"0\r\nHTTP/1.1: 404\r\n\r\n", b"", "1.1"),
    "with an encoding that stays": (OK.replace(b"\r\n", b"\r\nContent-Encoding: gzip\r\n", 1), b"hi", "1.1"),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_answer(name: str) -> None:
    data, body, version = WHOLE[name]
    response = run(answer_to(data))
    assert (response.body, response.whole, response.version) == (body, True, version)
    assert response.status // 100 == 2
    assert "link" not in dict(response.headers)  # the final answer's headers only


BROKEN = {
    "too short": (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi", "incomplete_body", b"hi"),
    "without its last chunk": (CHUNKED + b"2\r\nhi\r\n", "incomplete_body", b"hi"),
    "with a chunk that breaks off": (CHUNKED + b"9\r\nhi", "incomplete_body", b"hi"),
    "with a chunk that is none": (CHUNKED + b"2\r\nhi\r\nzz\r\n", "incomplete_body", b"hi"),
    "an error page too short": (b"HTTP/1.1 500 x\r\nContent-Length: 9\r\n\r\nhi", "incomplete_body", b"hi"),
    "without a word": (b"", "connection_failed", b""),
    "with a head that breaks off": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n", "connection_failed", b""),
    "after hints nothing": (b"HTTP/1.1 103 Early Hints\r\n\r\n", "connection_failed", b""),
    "that is no HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n" * 9, "bad_response", b""),
    "that is bytes": (bytes(range(256)), "bad_response", b""),
    "with a status that is none": (b"HTTP/1.1 abc OK\r\n\r\n", "bad_response", b""),
    "with status 0": (OK.replace(b"200", b"000"), "bad_response", b""),
    "with an upgrade nobody wanted": (b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\n\r\n", "bad_response", b""),
    "with a header that is none": (OK.replace(b"\r\n", b"\r\nrubbish\r\n", 1), "bad_response", b""),
    "with a zero byte": (OK.replace(b"\r\n", b"\r\nX-A: a\0b\r\n", 1), "bad_response", b""),
    "with two lengths": (OK.replace(b"\r\n", b"\r\nContent-Length: 9\r\n", 1), "bad_response", b""),
    "with a negative length": (OK.replace(b": 2", b": -2"), "bad_response", b""),
    "with an unknown transfer encoding": (CHUNKED.replace(b"chunked", b"gzip, chunked") + b"0\r\n\r\n", "bad_response",
                                          b""),
    "of another version": (OK.replace(b"/1.1", b"/2"), "bad_response", b""),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_answer(name: str) -> None:
    data, reason, body = BROKEN[name]
    error = run(answer_to(data))
    assert isinstance(error, HttpError), error
    assert (error.reason, error.body, error.connected) == (reason, body, True), error
    assert error.may_pass == (reason != "bad_response")
    assert str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    ("headers", "is_fine"),
    [
        (b"a: b\r\n" * 99, True),  # one hundred with Content-Length
        (b"a: b\r\n" * 100, False),
        (b"a: " + b"b" * 60_000 + b"\r\n", True),
        (b"a: " + b"b" * 70_000 + b"\r\n", False),
        (b"a: " + b"b" * 700_000 + b"\r\n", False),  # longer than libcurl bears
        (b"a: " + b"b" * 1_000 + b"\r\n" + b"b: " + b"b" * 64_000 + b"\r\n" + b"c: " + b"c" * 1_000 + b"\r\n", False),
        (b"a: b\r\n" * 100_000, False),
    ],
)
def test_headers_are_bounded(headers: bytes, is_fine: bool) -> None:
    outcome = run(answer_to(OK.replace(b"\r\n", b"\r\n" + headers, 1)))
    assert isinstance(outcome, Response) if is_fine else outcome.reason == "bad_response", outcome


@pytest.mark.parametrize("endless", [b"HTTP/1.1 103 x\r\n\r\n", b"HTTP/1.1 103 x\r\nLink: </a>\r\n\r\n"])
def test_hints_without_end_are_bounded(endless: bytes) -> None:
    assert run(answer_to(endless * 100_000)).reason == "bad_response"


def test_trailers_are_bounded_and_no_headers() -> None:
    body = b"2\r\nhi\r\n0\r\n"
    response = run(answer_to(CHUNKED + body + b"Location: /elsewhere\r\n\r\n"))
    assert (response.body, response.header("location")) == (b"hi", None)
    response = run(answer_to(CHUNKED + b"0\r\nLocation: /elsewhere\r\n\r\n"))
    assert (response.body, response.header("location")) == (b"", None)
    assert run(answer_to(CHUNKED + body + b"a: b\r\n" * 1000 + b"\r\n")).reason == "bad_response"


@pytest.mark.parametrize(("sent", "read"), [("/é".encode(), "/é"), (b"/\xe9", "/é"), (b"/%C3%A9", "/%C3%A9")])
def test_a_header_is_read_as_utf_8_or_else_as_latin_1(sent: bytes, read: str) -> None:
    response = run(answer_to(b"HTTP/1.1 302 x\r\nLocation: " + sent + b"\r\nContent-Length: 0\r\n\r\n"))
    assert (response.status, response.header("location")) == (302, read)


@pytest.mark.parametrize(
    ("status", "num_bytes", "announced", "kept", "whole"),
    [
        (200, 5_000, True, 5_000, True),
        (200, 5_000, False, 5_000, True),
        (200, 5_001, True, 50, False),  # announced: no more than of an error page
        (200, 5_001, False, 5_000, False),
        (206, 90_000, False, 5_000, False),
        (200, 900_000, True, 50, False),
        (404, 50, True, 50, True),
        (404, 51, True, 50, False),
        (404, 51, False, 50, False),
        (302, 900_000, False, 50, False),
    ],
)
def test_a_body_is_cut_at_its_limit(status: int, num_bytes: int, announced: bool, kept: int, whole: bool) -> None:
    body = bytes(range(1, 251)) * (num_bytes // 250 + 1)
    length = f"Content-Length: {num_bytes}\r\n" if announced else ""
    head = f"HTTP/1.1 {status} x\r\n{length}\r\n".encode()
    response = run(answer_to(head + body[:num_bytes], max_bytes=5_000, max_other_bytes=50))
    assert (response.status, response.whole) == (status, whole)
    assert response.body == body[:kept]


def test_the_faults_of_the_web(tmp_path: Path) -> None:
    body = os.urandom(50_000)
    faults = {
        "redirect": {"do": "redirect", "location": "http://10.0.0.1/"},
        "status": {"do": "status", "status": 503},
        "huge": {"do": "huge", "num_bytes": 1 << 40},
        "endless": {"do": "endless", "num_bytes": 1 << 40},
        "cut": {"do": "cut", "missing_bytes": 10},
        **{name: {"do": name} for name in ("chunked", "unsized", "cut_chunks", "reset", "silent", "drip")},
    }
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "faults.json").write_text(json.dumps(faults))
    for name in ("plain", *faults):
        (tmp_path / "web" / name).write_bytes(body)

    async def ask_all() -> dict[str, Response | HttpError]:
        short = {"silent": 0.4, "drip": 0.8}
        async with client() as asked:
            names = ["plain", "nothing", *faults]
            asking = [outcome_of(asked, f"{web.url}/{name}", timeout_s=short.get(name, 20.0)) for name in names]
            return dict(zip(names, await asyncio.gather(*asking), strict=True))

    with MiniatureWeb(tmp_path) as web:
        outcomes = run(ask_all())
    for name in ("plain", "chunked", "unsized"):
        assert (outcomes[name].status, outcomes[name].whole) == (200, True)
        assert outcomes[name].body == body
    assert (outcomes["nothing"].status, outcomes["status"].status) == (404, 503)
    assert (outcomes["redirect"].status, outcomes["redirect"].header("location")) == (302, "http://10.0.0.1/")
    assert (len(outcomes["huge"].body), outcomes["huge"].whole) == (2048, False)
    assert (len(outcomes["endless"].body), outcomes["endless"].whole) == (1_000_000, False)
    for name in ("cut", "cut_chunks"):
        assert (outcomes[name].reason, outcomes[name].body) == ("incomplete_body", body)
    assert (outcomes["reset"].reason, outcomes["reset"].connected) == ("connection_failed", True)
    assert (outcomes["silent"].reason, outcomes["silent"].body) == ("timeout", b"")
    assert outcomes["drip"].reason == "timeout" and body.startswith(outcomes["drip"].body) and outcomes["drip"].body
    assert all(outcomes[name].may_pass for name in ("cut", "reset", "silent", "drip"))


# Requests


def head_sent(url: str, **options: object) -> list[str]:
    """The lines of the second of two equal requests, to `url` with the server's port for PORT."""
    heads: list[bytes] = []
    cookie = OK.replace(b"\r\n", b'\r\nSet-Cookie: a=b; Path=/\r\nAlt-Svc: h2=":1"\r\n', 1)

    async def ask() -> None:
        async with Server(saying(cookie, heads=heads)) as server, client(**options) as asked:
            for _ in range(2):
                await asked.get(url.replace("PORT", str(server.port)), **LIMITS)

    run(ask())
    return heads[1].decode().split("\r\n")[:-2]


def test_a_request_says_who_asks_and_nothing_else() -> None:
    request, *headers = head_sent("http://127.0.0.1:PORT/a%2Fb/ü.jpg?x=%20y&z#part", user_agent="lvd/1 (+about)")
    assert request == "GET /a%2Fb/%C3%BC.jpg?x=%20y&z HTTP/1.1"
    assert headers[0].startswith("Host: 127.0.0.1:")
    assert sorted(headers[1:]) == [
        "Accept-Encoding: identity",
        "Accept: image/*,*/*;q=0.5",
        "User-Agent: lvd/1 (+about)",
    ]
    assert "Accept: text/plain" in head_sent("http://127.0.0.1:PORT/", accept="text/plain")


def test_a_user_in_a_url_is_sent_to_that_url_only() -> None:
    heads: list[bytes] = []

    async def ask() -> None:
        async with Server(saying(OK, heads=heads)) as server, client() as asked:
            await asked.get(f"http://someone:secret@127.0.0.1:{server.port}/", **LIMITS)
            await asked.get(f"http://127.0.0.1:{server.port}/", **LIMITS)

    run(ask())
    assert [b"Authorization: Basic c29tZW9uZTpzZWNyZXQ=" in head for head in heads] == [True, False]
    assert b"uthorization" not in heads[1]


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"])
def test_no_proxy_of_the_environment_is_used(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> int:
        async with Server(saying(OK)) as proxy, Server(saying(OK)) as server:
            monkeypatch.setenv(name, proxy.url)
            async with client() as asked:
                await asked.get(server.url, **LIMITS)
            return proxy.connections

    assert run(ask()) == 0


NO_URLS = [
    "",
    "a.jpg",
    "http://",
    "http:///a",
    "http://[1",
    "http://a:99999/",
    "http://a b/",
    "http://*/",  # to libcurl's cache every name
    "http://a,b/",
    "http://a%2eb/",
    "http://a\\b/",
    "http://-a/",
    "http://a\0b/",
]


@pytest.mark.parametrize("url", NO_URLS)
def test_what_is_no_url_is_a_value_error(url: str) -> None:
    async def ask() -> None:
        async with client() as asked:
            await asked.get(url, **LIMITS)

    with pytest.raises((ValueError, HttpError)) as raised:
        run(ask())
    assert isinstance(raised.value, ValueError) or raised.value.reason == "blocked_address"  # no scheme, no http


# Time


@asynccontextmanager
async def unanswering() -> AsyncIterator[str]:
    """The URL of a port whose connections are never made: the queue of its listener is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for connection in waiting:
            connection.setblocking(False)
            connection.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        for connection in waiting:
            connection.close()


@pytest.mark.parametrize(("connect_timeout_s", "timeout_s"), [(0.3, 20.0), (20.0, 0.3)])
def test_a_connection_that_is_not_made_times_out(connect_timeout_s: float, timeout_s: float) -> None:
    async def ask() -> HttpError:
        async with unanswering() as url, client(connect_timeout_s=connect_timeout_s) as asked:
            return await outcome_of(asked, url, timeout_s=timeout_s)

    started = time.monotonic()
    error = run(ask())
    assert (error.reason, error.may_pass, error.connected) == ("timeout", True, False), error
    assert 0.2 < time.monotonic() - started < 5


@pytest.mark.parametrize(("scheme", "timeout_s"), [("http", 0.3), ("https", 0.3), ("https", 20.0)])
def test_a_server_that_keeps_silent_times_out(scheme: str, timeout_s: float) -> None:
    async def ask() -> HttpError:
        async with Server(keep_silent) as server, client(connect_timeout_s=0.5) as asked:
            return await outcome_of(asked, f"{scheme}://127.0.0.1:{server.port}/", timeout_s=timeout_s)

    started = time.monotonic()
    error = run(ask())
    assert (error.reason, error.may_pass) == ("timeout", True), error
    assert error.connected == ((scheme, timeout_s) != ("https", 0.3))  # in the middle of a handshake nobody knows
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_connection_that_is_refused(scheme: str) -> None:
    async def ask() -> HttpError:
        async with Server(keep_silent) as server:
            port = server.port
        async with client() as asked:
            return await outcome_of(asked, f"{scheme}://127.0.0.1:{port}/")

    error = run(ask())
    assert (error.reason, error.may_pass, error.connected) == ("connection_failed", True, False), error
    assert "connect" in str(error)


def test_the_loop_goes_on_while_servers_keep_silent() -> None:
    async def ask() -> list[float]:
        ticks = []

        async def tick() -> None:
            while True:
                ticks.append(time.monotonic())
                await asyncio.sleep(0.01)

        ticking = asyncio.create_task(tick())
        async with Server(keep_silent) as server, client() as asked:
            await asyncio.gather(*(outcome_of(asked, server.url, timeout_s=0.5) for _ in range(50)))
        ticking.cancel()
        return ticks

    assert len(run(ask())) > 10


class Door:
    """A gate that the test opens; `reached` is set when somebody waits at it."""

    def __init__(self, *, full_above: int) -> None:
        self._full_above = full_above
        self.held: list[int] = []
        self.opened, self.reached = asyncio.Event(), asyncio.Event()

    def hold(self, num_bytes: int) -> None:
        self.held.append(num_bytes)

    def is_full(self) -> bool:
        return not self.opened.is_set() and sum(self.held[-1:]) > self._full_above

    async def room(self) -> None:
        self.reached.set()
        await self.opened.wait()


def pouring(num_bytes: int, sent: list[int]) -> Answer:
    """A body that is counted while it is sent."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % num_bytes)
        for start in range(0, num_bytes, 1 << 16):
            writer.write(bytes(min(1 << 16, num_bytes - start)))
            await writer.drain()
            sent.append(1 << 16)

    return answer


def test_a_full_gate_holds_the_server_back_and_stops_the_clock() -> None:
    num_bytes, sent = 30_000_000, []

    async def ask() -> tuple[Response, int, list[int]]:
        async with Server(pouring(num_bytes, sent)) as server, client() as asked:
            door = Door(full_above=100_000)
            asking = asyncio.create_task(asked.get(server.url, timeout_s=1.5, max_bytes=num_bytes, gate=door))
            await door.reached.wait()
            await asyncio.sleep(2)  # longer than the request may take
            held_back = sum(sent)
            door.opened.set()
            return await asking, held_back, door.held

    response, held_back, held = run(ask())
    assert len(response.body) == num_bytes and response.whole
    assert held_back < num_bytes / 2
    assert held == sorted(held) and held[-1] == num_bytes


def test_after_a_wait_at_the_gate_the_clock_has_the_time_that_was_left() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi")
        await keep_silent(reader, writer)

    async def ask() -> tuple[HttpError, float]:
        async with Server(answer) as server, client() as asked:
            door = Door(full_above=-1)
            asking = asyncio.create_task(outcome_of(asked, server.url, timeout_s=0.4, gate=door))
            await door.reached.wait()
            await asyncio.sleep(0.8)
            assert not asking.done()
            door.opened.set()
            started = time.monotonic()
            return await asking, time.monotonic() - started

    error, waited_s = run(ask())
    assert (error.reason, error.body) == ("timeout", b"hi")
    assert waited_s < 5


def test_one_that_waits_at_the_gate_can_be_cancelled() -> None:
    async def ask() -> None:
        async with Server(pouring(10_000_000, [])) as server, client() as asked:
            door = Door(full_above=0)
            asking = asyncio.create_task(asked.get(server.url, timeout_s=20, max_bytes=10_000_000, gate=door))
            await door.reached.wait()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            assert (await asked.get(server.url, timeout_s=20, max_bytes=10_000_000)).whole

    run(ask())


# The end of a transfer, the end of the client


def test_a_cancelled_request_leaves_its_server_at_once() -> None:
    async def ask() -> None:
        asked_for, left = asyncio.Event(), asyncio.Event()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            asked_for.set()
            await reader.read()
            left.set()

        async with Server(answer) as server, client() as asked:
            asking = asyncio.create_task(asked.get(server.url, **LIMITS))
            await asked_for.wait()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await asyncio.wait_for(left.wait(), 5)

    run(ask())


def test_requests_that_are_cancelled_at_any_time_disturb_no_others() -> None:
    async def ask() -> list[Response]:
        async with Server(saying(OK)) as server, client() as asked:
            for number in range(300):
                asking = asyncio.create_task(asked.get(f"{server.url}/{number}", **LIMITS))
                for _ in range(number % 12):  # turns of the loop
                    await asyncio.sleep(0)
                asking.cancel()
            return await asyncio.gather(*(asked.get(server.url, **LIMITS) for _ in range(50)))

    assert [response.body for response in run(ask())] == [b"hi"] * 50


def test_closing_ends_what_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    answering = threading.Event()
    real = socket.getaddrinfo

    def look_up(host: object, *args: object, **options: object) -> list:
        if host == b"slow.test":
            answering.wait(20)
        return real(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)

    async def ask() -> tuple[list[HttpError], float]:
        asked_for = asyncio.Event()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            asked_for.set()
            await keep_silent(reader, writer)

        async with Server(answer) as server, unanswering() as nowhere:
            async with client(max_connections=6) as asked:
                urls = (server.url, nowhere, "http://slow.test/", server.url, server.url)
                urls += (nowhere.replace("http", "https"),) * 2  # of which the second waits for the first
                jobs = [asyncio.create_task(outcome_of(asked, url)) for url in urls]
                await asked_for.wait()
                started = time.monotonic()
            lasted_s = time.monotonic() - started
            errors = await asyncio.gather(*jobs, outcome_of(asked, "http://slow.test/"), outcome_of(asked, server.url))
            answering.set()
            return errors, lasted_s

    errors, lasted_s = run(ask())
    assert [(error.reason, str(error)) for error in errors] == [("connection_failed", http_room.CLOSED)] * 9
    assert lasted_s < 5


def test_a_body_is_held_by_its_response_only() -> None:
    async def ask() -> tuple[Client, Response]:
        answer = OK.replace(b"hi", b"not an interned string").replace(b": 2", b": 22")
        async with Server(saying(answer)) as server, client() as asked:
            return asked, await asked.get(server.url, **LIMITS)

    _, response = run(ask())
    assert gc.get_referrers(response.body) == [response]


# Names


class Names:
    """Stands for the system's resolver; counts. A name's answers are used in turn, the last one for ever."""

    def __init__(self, **answers: list) -> None:
        self._answers = {f"{name}.test": answer for name, answer in answers.items()}
        self.asked: list[str] = []

    def __call__(self, host: bytes, port: object, **options: object) -> list:
        self.asked.append(name := host.decode())
        answers = self._answers[name.rstrip(".")]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, OSError):
            raise answer
        families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in answer]
        return [
            (family, socket.SOCK_STREAM, 6, "", (address, 0)) for family, address in zip(families, answer, strict=True)
        ]


def ask_names(monkeypatch: pytest.MonkeyPatch, names: Names, hosts: list[str], **options: object) -> list:
    """What becomes of one request after the other."""
    monkeypatch.setattr(socket, "getaddrinfo", names)

    async def ask() -> list[Response | HttpError]:
        async with Server(saying(OK)) as server, client(**options) as asked:
            return [await outcome_of(asked, f"http://{host}:{server.port}/") for host in hosts]

    return run(ask())


@pytest.mark.parametrize(
    ("errno", "may_pass"),
    [(socket.EAI_NONAME, False), (socket.EAI_NODATA, False), (socket.EAI_AGAIN, True), (socket.EAI_FAIL, True)],
)
def test_a_name_that_does_not_resolve(errno: int, may_pass: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(gone=[socket.gaierror(errno, "no answer"), ["127.0.0.1"]])
    error, later = ask_names(monkeypatch, names, ["gone.test", "gone.test"])
    assert (error.reason, error.may_pass, error.connected) == ("no_such_host", may_pass, False)
    assert str(error) == "no answer: gone.test"
    assert isinstance(later, Response) == may_pass  # what may pass is not remembered


def test_addresses_are_remembered_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(a=[["127.0.0.1"]])
    assert all(response.body == b"hi" for response in ask_names(monkeypatch, names, ["a.test"] * 3))
    assert names.asked == ["a.test"]
    names = Names(a=[["127.0.0.1"]])
    ask_names(monkeypatch, names, ["a.test"] * 3, dns_cache_s=0)
    assert names.asked == ["a.test"] * 3
    monkeypatch.setattr(http_room, "MAX_NAMES", 2)
    names = Names(a=[["127.0.0.1"]], b=[["127.0.0.1"]], c=[["127.0.0.1"]])
    ask_names(monkeypatch, names, ["a.test", "b.test", "a.test", "c.test", "a.test"])
    assert names.asked == ["a.test", "b.test", "c.test", "a.test"]


def test_those_who_ask_for_one_name_share_its_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(a=[["127.0.0.1"]])
    monkeypatch.setattr(socket, "getaddrinfo", names)

    async def ask() -> list[Response]:
        async with Server(saying(OK)) as server, client() as asked:
            first = asyncio.create_task(asked.get(f"http://a.test:{server.port}/", **LIMITS))
            others = [asked.get(f"http://a.test:{server.port}/", **LIMITS) for _ in range(9)]
            asyncio.get_running_loop().call_soon(first.cancel)  # which is not the end of the look-up
            return await asyncio.gather(*others)

    assert len(run(ask())) == 9
    assert names.asked == ["a.test"]


def test_a_look_up_that_hangs_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    answering = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answering.wait(20) and [])

    async def ask() -> HttpError:
        async with client() as asked:
            return await outcome_of(asked, "http://a.test/", timeout_s=0.3)

    error = run(ask())
    answering.set()
    assert (error.reason, error.may_pass, error.connected) == ("timeout", True, False)


@pytest.mark.parametrize("host", ["a.test", "A.TEST", "a.test.", "a-b.test", "a_b.test", "xn--bcher-kva.test"])
def test_a_name_in_any_spelling_is_looked_up_by_nobody_else(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = [["127.0.0.1"]]
    names = Names(**{"a": answer, "a-b": answer, "a_b": answer, "xn--bcher-kva": answer})
    assert ask_names(monkeypatch, names, [host])[0].body == b"hi"  # libcurl itself could not have found it


def test_every_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(a=[["10.0.0.1", "::1", "0.0.0.0", "fe80::1%lo", "127.0.0.1"]])  # nobody listens on ::1
    assert ask_names(monkeypatch, names, ["a.test"])[0].body == b"hi"
    names = Names(a=[["10.0.0.1", "fe80::1%lo", "0.0.0.0"]])
    error = ask_names(monkeypatch, names, ["a.test"])[0]
    assert (error.reason, error.may_pass, error.connected) == ("blocked_address", False, False)
    assert all(address in str(error) for address in ("10.0.0.1", "fe80::1", "0.0.0.0"))
    names = Names(a=[["10.0.0.1", "127.0.0.2"]])  # nobody listens on the second
    error = ask_names(monkeypatch, names, ["a.test"])[0]
    assert (error.reason, error.may_pass, error.connected) == ("connection_failed", True, False)


# Connections


def test_a_connection_is_used_again() -> None:
    async def ask() -> tuple[int, list[Response]]:
        async with Server(saying(OK)) as server, client() as asked:
            return server, [await asked.get(f"{server.url}/{number}", **LIMITS) for number in range(20)]

    server, responses = run(ask())
    assert server.connections == 1
    assert [response.body for response in responses] == [b"hi"] * 20


def test_a_connection_that_ended_meanwhile_costs_no_request() -> None:
    async def ask() -> tuple[int, list[bytes]]:
        async with Server(saying(OK, close=True)) as server, client() as asked:
            return server.connections, [(await asked.get(server.url, **LIMITS)).body for _ in range(20)]

    assert run(ask())[1] == [b"hi"] * 20


def test_idle_connections_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"n{number}" for number in range(24)]
    monkeypatch.setattr(socket, "getaddrinfo", Names(**{name: [["127.0.0.1"]] for name in names}))
    open_now, most = 0, 0

    async def ask() -> None:
        together = asyncio.Barrier(8)

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal open_now, most
            open_now += 1
            try:
                while True:
                    await reader.readuntil(b"\r\n\r\n")
                    await together.wait()
                    await asyncio.sleep(0.05)  # so that the ends of others are heard
                    most = max(most, open_now)
                    writer.write(OK)
            finally:
                open_now -= 1

        async with Server(answer) as server, client(max_connections=8) as asked:
            for start in range(0, len(names), 8):
                urls = [f"http://{name}.test:{server.port}/" for name in names[start : start + 8]]
                await asyncio.gather(*(asked.get(url, **LIMITS) for url in urls))

    run(ask())
    assert most == 8


def test_a_reset_is_worth_another_attempt() -> None:
    async def ask(scheme: str) -> HttpError:
        async with Server(reset) as server, client() as asked:
            return await outcome_of(asked, f"{scheme}://127.0.0.1:{server.port}/")

    for scheme, reason in (("http", "connection_failed"), ("https", "tls_failed")):
        error = run(ask(scheme))
        assert (error.reason, error.may_pass, error.connected) == (reason, True, True), error


# TLS, HTTP/2


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate of 127.0.0.1, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "lvd test")])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    signed = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(secret + signed.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def tls(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's side of TLS; clients made in the test trust it."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def ask_tls(tls: ssl.SSLContext, host: str = "127.0.0.1") -> Response | HttpError:
    async def ask() -> Response | HttpError:
        async with Server(saying(OK), tls=tls) as server, client() as asked:
            return await outcome_of(asked, f"https://{host}:{server.port}/")

    return run(ask())


def test_a_server_whose_certificate_is_trusted(tls: ssl.SSLContext) -> None:
    response = ask_tls(tls)
    assert (response.status, response.body, response.version) == (200, b"hi", "1.1")


@pytest.mark.parametrize(
    ("is_tls", "max_connections", "at_once"),
    [(False, 1, 1), (False, 8, 8), (False, 4096, 40), (True, 8, 8), (True, 4096, 40)],
)
def test_as_many_connections_as_are_allowed(
    is_tls: bool, max_connections: int, at_once: int, tls: ssl.SSLContext
) -> None:
    """None waits for another's answer, and a wait for a place is no time to connect."""

    async def ask() -> list[Response | HttpError]:
        together = asyncio.Barrier(at_once)

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                await together.wait()
                await asyncio.sleep(0.04)  # in all longer than a connection may take
                writer.write(OK)

        options = {"max_connections": max_connections, "connect_timeout_s": 1.0}
        async with Server(answer, tls=tls if is_tls else None) as server, client(**options) as asked:
            outcomes = await asyncio.gather(*(outcome_of(asked, server.url) for _ in range(40)))
            assert server.connections == at_once
            return outcomes

    assert [getattr(outcome, "status", outcome) for outcome in run(ask())] == [200] * 40


def test_those_who_wait_for_a_first_connection_wait_once() -> None:
    async def ask() -> list[HttpError]:
        async with unanswering() as url, client(connect_timeout_s=0.4) as asked:
            return await asyncio.gather(*(outcome_of(asked, url.replace("http", "https")) for _ in range(10)))

    started = time.monotonic()
    assert {error.reason for error in run(ask())} == {"timeout"}
    assert time.monotonic() - started < 3


def test_a_server_whose_certificate_is_not_trusted(tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", certifi.where())
    for _ in range(2):
        error = ask_tls(tls)
        assert (error.reason, error.may_pass, error.connected) == ("tls_failed", False, True), error
        assert "certificate" in str(error)
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)


def test_a_certificate_of_another_name(tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", Names(other=[["127.0.0.1"]]))
    error = ask_tls(tls, "other.test")
    assert (error.reason, error.may_pass) == ("tls_failed", False), error


@pytest.mark.parametrize("refusal", [b"\x15\x03\x03\x00\x02\x02\x28", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_a_server_that_refuses_to_speak_tls(refusal: bytes) -> None:
    """With an alert that there is no common cipher, or in plain HTTP."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(refusal)
        await keep_silent(reader, writer)

    async def ask() -> HttpError:
        async with Server(answer) as server, client() as asked:
            return await outcome_of(asked, f"https://127.0.0.1:{server.port}/")

    error = run(ask())
    assert (error.reason, error.may_pass, error.connected) == ("tls_failed", False, True), error


OnRequest = Callable[[h2.connection.H2Connection, int, str], None]


def http2(on_request: OnRequest) -> Answer:
    """Speaks HTTP/2; on_request is called with the connection, the number of the stream and the path."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        connection.initiate_connection()
        writer.write(connection.data_to_send())
        while data := await reader.read(1 << 16):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    on_request(connection, event.stream_id, dict(event.headers)[b":path"].decode())
            writer.write(connection.data_to_send())
            await writer.drain()

    return answer


@pytest.fixture
def tls2(tls: ssl.SSLContext) -> ssl.SSLContext:
    tls.set_alpn_protocols(["h2"])
    return tls


def test_requests_to_one_host_share_a_connection_of_http_2(tls2: ssl.SSLContext) -> None:
    waiting: dict[int, str] = {}

    def answer_thirty(connection: h2.connection.H2Connection, stream: int, path: str) -> None:
        waiting[stream] = path
        if len(waiting) == 30:  # none is answered before all have been asked
            for stream, path in waiting.items():
                connection.send_headers(stream, [(":status", "200"), ("X-Path".lower(), path)])
                connection.send_data(stream, path.encode() * 500, end_stream=True)

    async def ask() -> tuple[int, list[Response]]:
        async with Server(http2(answer_thirty), tls=tls2) as server, client() as asked:
            responses = await asyncio.gather(*(asked.get(f"{server.url}/{n}", **LIMITS) for n in range(30)))
            return server.connections, responses

    connections, responses = run(ask())
    assert connections == 1
    for number, response in enumerate(responses):
        assert (response.status, response.version, response.header("x-path")) == (200, "2", f"/{number}")
        assert response.body == f"/{number}".encode() * 500


def test_one_of_many_on_a_connection_of_http_2_ends_alone(tls2: ssl.SSLContext) -> None:
    async def ask() -> tuple[int, dict[str, Response | HttpError]]:
        late: list[tuple[h2.connection.H2Connection, int]] = []

        def answer(connection: h2.connection.H2Connection, stream: int, path: str) -> None:
            if path == "/last":  # then the one that has waited all the time is answered
                for on, first in [*late, (connection, stream)]:
                    on.send_headers(first, [(":status", "200")], end_stream=True)
            elif path == "/first":
                late.append((connection, stream))
            elif path == "/broken":
                connection.send_headers(stream, [(":status", "200"), ("content-length", "9")])
                connection.send_data(stream, b"hi")
                connection.reset_stream(stream, 2)  # internal error
            elif path == "/reset":
                connection.reset_stream(stream, 2)
            elif path == "/long":
                connection.send_headers(stream, [(":status", "200")])
                connection.send_data(stream, bytes(5_000))

        async with Server(http2(answer), tls=tls2) as server, client() as asked:
            first = asyncio.create_task(asked.get(f"{server.url}/first", **LIMITS))
            limits = {"max_bytes": 1_000, "timeout_s": 0.8}
            paths = ("broken", "reset", "long", "silent")
            outcomes = {path: await outcome_of(asked, f"{server.url}/{path}", **limits) for path in paths}
            outcomes["last"] = await outcome_of(asked, f"{server.url}/last")
            return server.connections, outcomes | {"first": await first}

    connections, outcomes = run(ask())
    assert connections == 1
    assert outcomes["first"].status == outcomes["last"].status == 200
    assert (outcomes["broken"].reason, outcomes["broken"].body) == ("incomplete_body", b"hi")
    assert (outcomes["reset"].reason, outcomes["reset"].connected) == ("connection_failed", True)
    assert (len(outcomes["long"].body), outcomes["long"].whole) == (1_000, False)
    assert (outcomes["silent"].reason, outcomes["silent"].connected) == ("timeout", True)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of the machine that runs the tests; the tests of proxies set their own."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    yield
