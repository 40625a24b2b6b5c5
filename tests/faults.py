"""An HTTP proxy on loopback that does to requests what a night does: 503, cut bodies, resets, lost answers, silence.

    with Proxy(endpoint) as proxy:
        proxy.choose = first(2, "slow_down")

`choose` gets every request's method and path and says what becomes of it: "pass", a name in ANSWERS, or one of

cut: the head of the answer and half of its body, then the end of the connection.
short: half of the body, with a Content-Length that says so.
reset: as `cut`, but the connection is reset.
lost: the request is done, its answer is not sent.
stall: the request is done, and nothing comes until the proxy ends.
flip: the last byte of the body is another.
"""

import http.client
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import urlsplit

Choice = Callable[[str, str], str]
XML = "<?xml version='1.0'?><Error><Code>{}</Code><Message>{}</Message></Error>"
ANSWERS = {
    "slow_down": (503, XML.format("SlowDown", "Please reduce your request rate.")),
    "internal_error": (500, XML.format("InternalError", "We encountered an internal error.")),
    "gateway": (502, "<html><body>Bad Gateway</body>"),
    "incomplete_body": (400, XML.format("IncompleteBody", "You did not provide the number of bytes you promised.")),
    "error_in_200": (200, XML.format("InternalError", "We encountered an internal error.")),
    "denied": (403, XML.format("AccessDenied", "Access Denied")),
    "unknown_key": (403, XML.format("InvalidAccessKeyId", "The key you provided does not exist in our records.")),
}
BREAKS = ("cut", "short", "reset", "lost", "stall", "flip")
HOP = frozenset({"connection", "content-length", "transfer-encoding", "date", "server"})


def always(kind: str, method: str = "") -> Choice:
    """The same for every request, or for those of one method."""
    return lambda asked, path: kind if asked == (method or asked) else "pass"


def first(times: int, kind: str, method: str = "") -> Choice:
    """The same for so many requests, or for those of one method; the others pass."""
    left, lock = [times], threading.Lock()

    def choose(asked: str, path: str) -> str:
        with lock:
            if asked != (method or asked) or not left[0]:
                return "pass"
            left[0] -= 1
            return kind

    return choose


def now_and_then(rng: random.Random, kinds: Sequence[str], share: float) -> Choice:
    """One of the kinds, drawn, for that share of the requests."""
    lock = threading.Lock()

    def choose(asked: str, path: str) -> str:
        with lock:
            return rng.choice(kinds) if rng.random() < share else "pass"

    return choose


class Proxy:
    """In front of one server; `seen` counts what was done to requests, by kind."""

    def __init__(self, target: str) -> None:
        self.choose: Choice = always("pass")
        self.seen: Counter[str] = Counter()
        self.released = threading.Event()
        address = urlsplit(target)

        class Handler(_Handler):
            proxy, host, port = self, address.hostname, address.port

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy
    host: str
    port: int

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def _do(self) -> None:
        kind = self.proxy.choose(self.command, self.path)
        self.proxy.seen[kind] += 1
        self.close_connection = kind != "pass"
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with suppress(ConnectionError):
            if kind in ANSWERS:
                status, text = ANSWERS[kind]
                self._send(status, [("Content-Type", "application/xml")], text.encode())
            else:
                self._forward(kind, data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _do

    def _forward(self, kind: str, data: bytes) -> None:
        behind = http.client.HTTPConnection(self.host, self.port, timeout=60)
        try:
            behind.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    behind.putheader(name, value)
            behind.putheader("Connection", "close")
            behind.endheaders(data)
            response = behind.getresponse()
            body, headers = response.read(), response.getheaders()
        finally:
            behind.close()
        if kind == "lost":
            return
        if kind == "stall":
            self.proxy.released.wait()
            return
        if kind == "flip" and body:
            body = body[:-1] + bytes([body[-1] ^ 1])
            headers = [(name, value) for name, value in headers if "checksum" not in name.lower()]
        if self.command == "HEAD" and kind in ("cut", "short", "reset"):
            return
        half = body[: len(body) // 2] if kind in ("cut", "short", "reset") else body
        length = len(half) if kind == "short" else len(body)
        if self.command == "HEAD":
            length = int(response.getheader("Content-Length") or 0)
        self._send(response.status, headers, half, length)
        if kind == "reset":
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _send(self, status: int, headers: list[tuple[str, str]], body: bytes, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
