"""What web servers answer: an asyncio client on libcurl that connects to no address that may not be asked.

A URL goes through `safe_url`, its host is looked up, and libcurl asks for permission before it opens a socket: the
address that is checked last is the one that is connected to. Names are looked up here and not by libcurl, which does
not tell a name that does not exist from a name server that is busy, and waits for a look-up that hangs.
"""

import asyncio
import os
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import certifi
import pycurl
from yarl import URL

from lvd.infra.safety import BlockedAddressError, is_allowed, safe_url

MAX_HEADER_BYTES = 64 << 10  # of one answer, with what comes before it (1xx) and after it (trailers)
MAX_HEADER_LINES = 100
READ_BYTES = 256 << 10  # at once, into a buffer that all transfers share
MAX_NAMES = 100_000  # whose addresses are remembered
MAX_LOOKUPS = 64  # at once; a name server that keeps silent holds one for about 10 s
NAME = re.compile(r"[a-z0-9_][a-z0-9_.-]*", re.ASCII)  # libcurl reads more into the rest: %2e is a dot, * every name
NO_SUCH_NAME = frozenset({socket.EAI_NONAME, socket.EAI_NODATA})
CURLE_WEIRD_SERVER_REPLY, CURLE_TOO_LARGE = 8, 100  # pycurl does not name them
NO_HTTP = frozenset(
    {pycurl.E_UNSUPPORTED_PROTOCOL, pycurl.E_BAD_CONTENT_ENCODING, CURLE_WEIRD_SERVER_REPLY, CURLE_TOO_LARGE}
)
NO_TLS = frozenset(getattr(pycurl, name) for name in dir(pycurl) if name.startswith("E_SSL_"))
CLOSED = "the client was closed"


class HttpError(Exception):
    """A request that gave no whole answer.

    reason: blocked_address, timeout, no_such_host, connection_failed, tls_failed, bad_response or incomplete_body.
    may_pass: whether another attempt can help. connected: whether a connection was made. body: what had come of it.
    """

    def __init__(
        self, reason: str, message: str, *, may_pass: bool = False, connected: bool = False, body: bytes = b""
    ) -> None:
        super().__init__(" ".join(message.split()))
        self.reason, self.may_pass, self.connected, self.body = reason, may_pass, connected, body


class Response(NamedTuple):
    """A final answer."""

    status: int
    url: str
    headers: list[tuple[str, str]]  # names in lower case, in the order of the answer
    body: bytes  # as sent, no content encoding undone; cut at the limit
    whole: bool  # False: the body was cut, as it is longer than the limit or was announced to be
    version: str  # "1.0", "1.1" or "2"

    def header(self, name: str) -> str | None:
        """The first value of a name in lower case; None if there is none."""
        return next((value for known, value in self.headers if known == name), None)

    def values(self, name: str) -> list[str]:
        """All values of a name in lower case."""
        return [value for known, value in self.headers if known == name]


class Gate(Protocol):
    """Holds a transfer back while others go first. libcurl calls `hold` and `is_full`: they must not raise."""

    def hold(self, num_bytes: int) -> None: ...  # the transfer holds so many bytes from now on

    def is_full(self) -> bool: ...  # asked before every piece of the body

    async def room(self) -> None: ...  # returns when the transfer may go on


class Client:
    """Asks many servers at once, over connections that serve as many requests as they bear. For one event loop.

    connect_timeout_s: of a connection with its TLS handshake. max_connections: open at once, idle ones included; more
    requests wait, and their clocks with them. dns_cache_s: for how long the addresses of a name are remembered.
    """

    def __init__(
        self,
        *,
        user_agent: str,
        accept: str = "image/*,*/*;q=0.5",
        allow_loopback: bool = False,
        connect_timeout_s: float = 10.0,
        max_connections: int = 4096,
        dns_cache_s: int = 300,
    ) -> None:
        self._allow_loopback = allow_loopback
        self._options = {
            pycurl.USERAGENT: user_agent,
            pycurl.HTTPHEADER: [f"Accept: {accept}", "Accept-Encoding: identity"],
            pycurl.CONNECTTIMEOUT_MS: max(1, round(connect_timeout_s * 1000)),  # 0: libcurl's 300 s
            pycurl.CAINFO: os.environ.get("SSL_CERT_FILE") or certifi.where(),
            pycurl.PROTOCOLS: pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS,
            pycurl.PROXY: "",  # a proxy would connect where nobody checked the address
            pycurl.NOPROXY: "*",
            pycurl.HTTP_VERSION: pycurl.CURL_HTTP_VERSION_2TLS,
            pycurl.BUFFERSIZE: READ_BYTES,
            pycurl.NOSIGNAL: 1,
        }
        self._places = asyncio.Semaphore(max_connections)  # libcurl's own queue would count as time to connect
        self._names = _Names(dns_cache_s, min(max_connections, MAX_LOOKUPS))
        self._transfers = _Transfers(max_connections)
        self._met: dict[str, asyncio.Event] = {}  # servers of HTTPS
        self._idle: list[pycurl.Curl] = []

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        """Ends every transfer that is under way."""
        self._names.close()
        self._transfers.close()

    async def get(
        self, url: str, *, timeout_s: float, max_bytes: int, max_other_bytes: int = 2048, gate: Gate | None = None
    ) -> Response:
        """The answer to one request; no redirect is followed.

        timeout_s: of the look-up, the connection and the answer, less the time for which the gate is full. max_bytes:
        of the body of a 2xx answer. max_other_bytes: of any other body, and of one that is announced to be too long.
        Raises HttpError, and ValueError for what is no URL.
        """
        try:
            target = safe_url(url, allow_loopback=self._allow_loopback)
        except BlockedAddressError as error:
            raise HttpError("blocked_address", str(error)) from error
        async with self._places:
            return await self._ask(target, timeout_s, gate, (max_bytes, max_other_bytes))

    async def _ask(self, target: URL, timeout_s: float, gate: Gate | None, limits: tuple[int, int]) -> Response:
        easy = self._idle.pop() if self._idle else self._new_easy()
        exchange = _Exchange(easy, str(target), gate, limits, self._allow_loopback)
        clock = asyncio.timeout(timeout_s)
        try:
            async with clock:
                easy.setopt(pycurl.RESOLVE, await self._addresses(target))
                if target.scheme == "https":
                    await self._let_one_connect(exchange, f"{target.raw_host}:{target.port}")
                return await self._answer(exchange, clock)
        except TimeoutError as error:
            if exchange.ended is not None:  # it came while the loop was busy with others
                return exchange.response()
            raise exchange.failure("timeout", f"no whole answer within {timeout_s} s", may_pass=True) from error
        finally:
            exchange.leave()
            self._idle.append(easy)

    def _new_easy(self) -> pycurl.Curl:
        easy = pycurl.Curl()
        for option, value in self._options.items():
            easy.setopt(option, value)
        return easy

    async def _addresses(self, target: URL) -> list[str] | None:
        """What libcurl need not look up; None for a host that is an address."""
        host = target.raw_host
        if ":" in host or host.rpartition(".")[2].isdecimal():  # of a safe URL: no name ends in a number
            return None
        addresses = ",".join(f"[{found}]" if ":" in found else found for found in await self._names.addresses(host))
        return [f"+{host}:{target.port}:{addresses}"]

    async def _let_one_connect(self, exchange: "_Exchange", server: str) -> None:
        """Returns when the first request has a connection, or none: if it is HTTP/2, all others can share it.

        With libcurl's own PIPEWAIT they would wait for the first answer, however long it takes.
        """
        if (met := self._met.get(server)) is not None:
            await met.wait()
            return
        if len(self._met) >= MAX_NAMES:
            self._met.clear()
        self._met[server] = exchange.introduce()

    async def _answer(self, exchange: "_Exchange", clock: asyncio.Timeout) -> Response:
        now = asyncio.get_running_loop().time
        self._transfers.start(exchange)
        try:
            await exchange.news
            while exchange.ended is None:
                left_s = clock.when() - now()
                clock.reschedule(None)
                await exchange.gate.room()
                clock.reschedule(now() + left_s)
                exchange.go_on()
                await exchange.news
        finally:
            self._transfers.stop(exchange)
        return exchange.response()


class _Names:
    """The addresses of names, looked up by threads that nobody waits for in the end."""

    def __init__(self, cache_s: float, max_lookups: int) -> None:
        self._cache_s = cache_s
        self._known: dict[str, tuple[float, asyncio.Future[list[str] | OSError]]] = {}
        self._threads = ThreadPoolExecutor(max_lookups, "lookup")
        self._is_closed = False

    async def addresses(self, name: str) -> list[str]:
        """Raises HttpError if there are none, ValueError for no name. Those who ask for one name share a look-up."""
        if not NAME.fullmatch(name):
            raise ValueError(f"host must be a name or an address, was {name!r}")
        loop = asyncio.get_running_loop()
        until, found = self._known.get(name, (0.0, None))
        if until <= loop.time() and not self._is_closed:
            if len(self._known) >= MAX_NAMES:
                self._known.clear()
            found = loop.run_in_executor(self._threads, _looked_up, name)
            self._known[name] = (loop.time() + self._cache_s, found)
        if found and not found.done():
            await asyncio.wait([found])
        if self._is_closed:
            raise HttpError("connection_failed", CLOSED, may_pass=True)
        if isinstance(outcome := found.result(), OSError):
            is_final = outcome.errno in NO_SUCH_NAME
            if not is_final:
                self._known.pop(name, None)
            raise HttpError("no_such_host", f"{outcome.strerror}: {name}", may_pass=not is_final)
        return outcome

    def close(self) -> None:
        """Those who still wait are told."""
        self._is_closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for _, found in self._known.values():
            found.cancel()


def _looked_up(name: str) -> list[str] | OSError:
    """Addresses without their zones, which no address that may be asked has."""
    try:
        found = socket.getaddrinfo(name.encode(), None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    except OSError as error:
        return error
    return list(dict.fromkeys(place[0].partition("%")[0] for *_, place in found))


class _Transfers:
    """libcurl's multi handle, driven by the event loop."""

    def __init__(self, max_connections: int) -> None:
        self._running: dict[pycurl.Curl, _Exchange] = {}
        self._watched: dict[int, int] = {}  # file descriptors, for what
        self._timer: asyncio.Handle | None = None
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._set_timer)
        self._multi.setopt(pycurl.M_MAX_TOTAL_CONNECTIONS, max_connections)
        self._multi.setopt(pycurl.M_MAXCONNECTS, max_connections)

    def start(self, exchange: "_Exchange") -> None:
        if self._multi.closed:
            exchange.end(pycurl.E_ABORTED_BY_CALLBACK, CLOSED)
        else:
            self._running[exchange.easy] = exchange
            self._multi.add_handle(exchange.easy)

    def stop(self, exchange: "_Exchange") -> None:
        """Nothing more happens to it, whether it has ended or not."""
        if self._running.pop(exchange.easy, None) is not None:
            self._multi.remove_handle(exchange.easy)
            exchange.connected = bool(exchange.easy.getinfo(pycurl.PRIMARY_IP))

    def close(self) -> None:
        """Those that are under way are told."""
        for exchange in list(self._running.values()):
            self.stop(exchange)
            exchange.end(pycurl.E_ABORTED_BY_CALLBACK, CLOSED)
        self._multi.close()  # which ends its timer and what it watches

    def _watch(self, events: int, fd: int, *_: object) -> None:
        """Called by libcurl, which may not be called from here."""
        loop = asyncio.get_running_loop()
        changed = events ^ self._watched.pop(fd, pycurl.POLL_NONE)
        if events & changed & pycurl.POLL_IN:
            loop.add_reader(fd, self._act, fd, pycurl.CSELECT_IN)
        elif changed & pycurl.POLL_IN:
            loop.remove_reader(fd)
        if events & changed & pycurl.POLL_OUT:
            loop.add_writer(fd, self._act, fd, pycurl.CSELECT_OUT)
        elif changed & pycurl.POLL_OUT:
            loop.remove_writer(fd)
        if events != pycurl.POLL_REMOVE:
            self._watched[fd] = events

    def _set_timer(self, timeout_ms: int) -> None:
        """Called by libcurl, which may not be called from here."""
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        if timeout_ms == 0:
            self._timer = loop.call_soon(self._act, pycurl.SOCKET_TIMEOUT, 0)
        elif timeout_ms > 0:
            self._timer = loop.call_later(timeout_ms / 1000, self._act, pycurl.SOCKET_TIMEOUT, 0)

    def _act(self, fd: int, what: int) -> None:
        self._multi.socket_action(fd, what)
        _, succeeded, failed = self._multi.info_read()
        for easy in succeeded:
            self._running[easy].end(pycurl.E_OK, "")
        for easy, code, message in failed:
            self._running[easy].end(code, message)


class _Head(NamedTuple):
    status: int
    version: str
    headers: list[tuple[str, str]]
    is_whole: bool


class _Exchange:
    """One request and what comes of it."""

    def __init__(
        self, easy: pycurl.Curl, url: str, gate: Gate | None, limits: tuple[int, int], allow_loopback: bool
    ) -> None:
        self.easy, self.gate, self.connected = easy, gate, False
        self.news = asyncio.get_running_loop().create_future()  # done when it has ended or waits for the gate
        self.ended: tuple[int, str] | None = None  # libcurl's code and words
        self._url, self._limits, self._allow_loopback = url, limits, allow_loopback
        self._met: asyncio.Event | None = None
        self._num_allowed, self._refused = 0, []  # addresses
        self._lines: list[bytes] = []  # of headers; libcurl ends it at 300 KiB
        self._head: _Head | None = None
        self._pieces: list[bytes] = []  # of the body
        self._num_bytes, self._max_bytes, self._is_cut = 0, 0, False
        easy.setopt(pycurl.URL, url)
        easy.setopt(pycurl.OPENSOCKETFUNCTION, self._open_socket)
        easy.setopt(pycurl.HEADERFUNCTION, self._lines.append)
        easy.setopt(pycurl.WRITEFUNCTION, self._take)

    def end(self, code: int, message: str) -> None:
        self.ended = code, message
        if not self.news.done():
            self.news.set_result(None)

    def go_on(self) -> None:
        """After a wait for the gate."""
        if self.ended is None:
            self.news = asyncio.get_running_loop().create_future()
            self.easy.pause(pycurl.PAUSE_CONT)

    def introduce(self) -> asyncio.Event:
        """Set as soon as there is a connection, or will be none."""
        self._met = asyncio.Event()
        self.easy.setopt(pycurl.PREREQFUNCTION, lambda *_: self._met.set() or pycurl.PREREQFUNC_OK)
        return self._met

    def leave(self) -> None:
        """The handle keeps the exchange until its next one, but not the body."""
        self._pieces = []
        if self._met is not None:
            self._met.set()
            self.easy.unsetopt(pycurl.PREREQFUNCTION)

    def response(self) -> Response:
        """The answer. Raises HttpError if there is no whole one, ValueError if the URL is none for libcurl."""
        code, message = self.ended
        if code == pycurl.E_URL_MALFORMAT:
            raise ValueError(message)
        head = self._head or _final_head(self._lines)
        error = self._error(pycurl.E_OK if self._is_cut else code, message, head)
        if error is not None:
            raise error
        return Response(head.status, self._url, head.headers, b"".join(self._pieces), not self._is_cut, head.version)

    def failure(self, reason: str, message: str, *, may_pass: bool = False) -> HttpError:
        """The error with what is known of the connection and the body."""
        return HttpError(reason, message, may_pass=may_pass, connected=self.connected, body=b"".join(self._pieces))

    def _error(self, code: int, message: str, head: _Head) -> HttpError | None:
        if self._refused and not self._num_allowed:
            return self.failure("blocked_address", f"address must be public, was {', '.join(self._refused)}")
        if len(self._lines) - 2 > MAX_HEADER_LINES or sum(map(len, self._lines)) > MAX_HEADER_BYTES:
            most = f"{MAX_HEADER_LINES} lines and {MAX_HEADER_BYTES} bytes"
            return self.failure("bad_response", f"headers must have at most {most}, had more")
        is_answer = head.is_whole and head.status >= 200
        match code:
            case pycurl.E_OK if is_answer:
                return None
            case pycurl.E_OPERATION_TIMEDOUT:
                return self.failure("timeout", message, may_pass=True)
            case pycurl.E_SSL_CONNECT_ERROR:  # not a certificate: a handshake that broke off, or could not agree
                is_broken = self.easy.getinfo(pycurl.OS_ERRNO) != 0 or "unexpected eof" in message
                return self.failure("tls_failed", message, may_pass=is_broken)
            case _ if code in NO_TLS:
                return self.failure("tls_failed", message)
            case _ if code in NO_HTTP or head.status == 101:
                return self.failure("bad_response", message or "this is no HTTP that was asked for")
            case _ if is_answer:
                return self.failure("incomplete_body", message, may_pass=True)
            case _:
                return self.failure("connection_failed", message or "the headers broke off", may_pass=True)

    def _open_socket(self, purpose: int, place: pycurl.CurlSockAddr) -> socket.socket | int:
        """libcurl asks before it connects."""
        address = place.addr[0]
        if not is_allowed(address, allow_loopback=self._allow_loopback):
            self._refused.append(address)
            return pycurl.SOCKET_BAD
        self._num_allowed += 1
        opened = socket.socket(place.family, place.socktype, place.protocol)
        asyncio.get_running_loop().call_soon(opened.close)  # pycurl gives libcurl a duplicate
        return opened

    def _take(self, piece: bytes) -> int | None:
        """libcurl has a piece of the body; with a full gate it keeps it and brings it again."""
        if self._head is None:
            self._head = _final_head(self._lines)
            self._max_bytes = _max_bytes(self._head, *self._limits)
        if self.gate is not None and self.gate.is_full():
            if not self.news.done():
                self.news.set_result(None)
            return pycurl.WRITEFUNC_PAUSE
        left = self._max_bytes - self._num_bytes
        self._is_cut = len(piece) > left
        self._pieces.append(piece[:left] if self._is_cut else piece)
        self._num_bytes += len(self._pieces[-1])
        if self.gate is not None:
            self.gate.hold(self._num_bytes)
        return 0 if self._is_cut else None  # 0 ends the transfer


def _final_head(lines: list[bytes]) -> _Head:
    """The head of the answer, which follows those of 1xx answers; trailers are left out."""
    status, version, headers, is_whole = 0, "", [], True
    for line in lines:
        try:
            text = line.decode().strip()
        except UnicodeDecodeError:
            text = line.decode("latin-1").strip()
        if is_whole and status < 200 and text.startswith("HTTP/"):
            status, version, headers, is_whole = int(text.split()[1]), text[5:].split()[0], [], False
        elif not text:
            is_whole = True
        elif not is_whole:
            name, _, value = text.partition(":")
            headers.append((name.rstrip().lower(), value.lstrip()))
    return _Head(status, version, headers, is_whole)


def _max_bytes(head: _Head, max_bytes: int, max_other_bytes: int) -> int:
    """Of the body."""
    if not 200 <= head.status < 300:
        return max_other_bytes
    announced = next((value for name, value in head.headers if name == "content-length"), "")
    is_too_long = announced.isdecimal() and int(announced) > max_bytes
    return min(max_bytes, max_other_bytes) if is_too_long else max_bytes
