"""A small web server on loopback whose faults are those of the real web; it needs a folder and nothing else.

`folder/web` holds the files and `folder/web/faults.json` what goes wrong with which path (no query, unquoted):
`{"site-a/photos/0012.jpg": {"do": "flaky", "status": 500, "times": 2}}`. The faults, with their fields:

| do | what a client sees |
|---|---|
| status | `status`, always, with a page of text |
| flaky | `status` for the first `times` requests of the path, with `retry_after` if given, then the file |
| silent | nothing: the connection is accepted and never answered |
| drip | the file, one byte every 0.2 s |
| redirect | 302 to `location` |
| type | the file, as `content_type` |
| cut | the announced length is longer than the body, and the connection is closed |
| cut_chunks | a chunked body without its last chunk, and the connection is closed |
| reset | the connection is reset before an answer |
| huge | `Content-Length: num_bytes` and that many zeros, for as long as the client reads |
| endless | a chunked body with no end (it is cut at `num_bytes`) |
| unsized | the file, without a length, ended by closing |
| chunked | the file, as a proper chunked body |
| headers | the file, with these `headers` more |
"""

import json
import mimetypes
import select
import socket
import struct
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

CHUNK_BYTES = 1 << 16
DRIP_INTERVAL_S = 0.2


class MiniatureWeb:
    """Serves `folder/web` on 127.0.0.1 while its `with` block lasts; the folder may be filled after the start.

    port: 0 takes a free one. `url` is the base, `requests` the number of requests so far, `hits` the same by path.
    Leaving the block ends every connection, also those that never get an answer, and every thread.
    """

    def __init__(self, folder: Path, port: int = 0) -> None:
        self._root = Path(folder) / "web"
        self._server = WebServer(("127.0.0.1", port), self._root)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="web")

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`, without a slash at the end."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def requests(self) -> int:
        """Requests received since the start or the last `reset`."""
        with self._server.lock:
            return self._server.hits.total()

    @property
    def hits(self) -> dict[str, int]:
        """Requests by path since the start or the last `reset`."""
        with self._server.lock:
            return dict(self._server.hits)

    def reset(self) -> None:
        """Forget the counts, so that a URL which recovered after two failures fails twice again."""
        with self._server.lock:
            self._server.hits.clear()

    def __enter__(self) -> "MiniatureWeb":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._server.stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.hang_up()
        self._server.server_close()


class WebServer(ThreadingHTTPServer):
    """One thread per connection; knows its open connections so that it can end them all."""

    daemon_threads = False  # so that server_close waits for every thread
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], root: Path) -> None:
        super().__init__(address, WebHandler)
        self.root = root
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        self.hits: Counter[str] = Counter()
        self._connections: set[socket.socket] = set()
        self._faults: tuple[int, dict[str, dict]] = (-1, {})

    def fault(self, path: str) -> dict:
        """What goes wrong with the path; `faults.json` is read again when it has changed."""
        file = self.root / "faults.json"
        with self.lock:
            changed = file.stat().st_mtime_ns if file.exists() else -1
            if changed != self._faults[0]:
                self._faults = (changed, json.loads(file.read_text()) if changed >= 0 else {})
            return self._faults[1].get(path, {"do": "serve"})

    def count(self, path: str) -> int:
        """How many requests of the path there have been, with this one."""
        with self.lock:
            self.hits[path] += 1
            return self.hits[path]

    def hang_up(self) -> None:
        """End every open connection, so that no thread waits for a client."""
        with self.lock:
            for connection in self._connections:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:  # the client was faster
                    continue

    def process_request(self, request, client_address) -> None:
        with self.lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request) -> None:
        with self.lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # clients leave in the middle: that is what faults are for
            super().handle_error(request, client_address)


class WebHandler(BaseHTTPRequestHandler):
    """Answers GET with the file of the path, or with its fault."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: WebServer

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).lstrip("/")
        fault = self.server.fault(path)
        seen = self.server.count(path)
        file = (self.server.root / path).resolve()
        inside = file.is_relative_to(self.server.root.resolve()) and file.is_file()
        body = file.read_bytes() if inside else b""
        match fault["do"]:
            case "status":
                self.answer_status(fault["status"])
            case "flaky" if seen <= fault["times"]:
                self.answer_status(fault["status"], retry_after=fault.get("retry_after"))
            case "redirect":
                self.answer(302, {"Location": fault["location"], "Content-Length": "0"}, b"")
            case "silent":
                self.keep_silent()
            case "reset":
                self.reset_connection()
            case "huge":
                self.pour_zeros(fault["num_bytes"], chunked=False)
            case "endless":
                self.pour_zeros(fault["num_bytes"], chunked=True)
            case _ if not inside:
                self.answer_status(404)
            case _:
                self.answer_file(fault, body, mimetypes.guess_type(path)[0] or "application/octet-stream")

    def answer_file(self, fault: dict, body: bytes, content_type: str) -> None:
        """The file, whole or as its fault says."""
        sized = {"Content-Type": content_type, "Content-Length": str(len(body))}
        chunked = {"Content-Type": content_type, "Transfer-Encoding": "chunked"}
        match fault["do"]:
            case "drip":
                self.answer(200, sized, b"")
                self.drip(body)
            case "cut":
                sized["Content-Length"] = str(len(body) + fault["missing_bytes"])
                self.answer(200, sized, body, close=True)
            case "cut_chunks":
                self.answer(200, chunked, b"%x\r\n%b\r\n" % (len(body), body), close=True)
            case "chunked":
                self.answer(200, chunked, b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
            case "unsized":
                self.answer(200, {"Content-Type": content_type, "Connection": "close"}, body, close=True)
            case "type":
                self.answer(200, {**sized, "Content-Type": fault["content_type"]}, body)
            case _:
                self.answer(200, sized | fault.get("headers", {}), body)

    def answer_status(self, status: int, *, retry_after: int | None = None) -> None:
        """A page that says the status."""
        body = f"<html><body><h1>{status}</h1></body></html>\n".encode()
        headers = {"Content-Type": "text/html", "Content-Length": str(len(body))}
        if retry_after is not None:
            headers["Retry-After"] = str(retry_after)
        self.answer(status, headers, body)

    def answer(self, status: int, headers: dict[str, str], body: bytes, *, close: bool = False) -> None:
        """Send head and body; close: end the connection without a word."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = self.close_connection or close

    def still_wanted(self, wait_s: float) -> bool:
        """False as soon as the client leaves or the server stops, True after wait_s."""
        left = bool(select.select([self.connection], [], [], wait_s)[0])
        self.close_connection = self.close_connection or left
        return not left and not self.server.stopping.is_set()

    def keep_silent(self) -> None:
        """No answer for as long as the client waits."""
        self.close_connection = True
        while self.still_wanted(DRIP_INTERVAL_S):
            continue

    def drip(self, body: bytes) -> None:
        """The body, one byte at a time."""
        for position in range(len(body)):
            self.wfile.write(body[position : position + 1])
            if not self.still_wanted(DRIP_INTERVAL_S):
                return

    def pour_zeros(self, num_bytes: int, *, chunked: bool) -> None:
        """num_bytes of zeros for as long as the client reads; chunked: as chunks, and the last one never comes."""
        length = {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(num_bytes)}
        self.answer(200, {"Content-Type": "image/jpeg", **length}, b"", close=True)
        block = b"%x\r\n%b\r\n" % (CHUNK_BYTES, bytes(CHUNK_BYTES)) if chunked else bytes(CHUNK_BYTES)
        for _ in range(num_bytes // CHUNK_BYTES):
            if self.server.stopping.is_set():
                return
            self.wfile.write(block)

    def reset_connection(self) -> None:
        """Close so that the client sees a reset: with a linger of zero seconds, before anybody shuts it down."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()  # in effect when `finish` closes the reader

    def log_message(self, format: str, *args) -> None:
        """Nothing: the requests are counted."""
