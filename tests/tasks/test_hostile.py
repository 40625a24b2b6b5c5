"""One shard among servers that do what they can to hold it up, to fill its memory or to lead it astray."""

import asyncio
import csv
import hashlib
import io
import ipaddress
import socket
import ssl
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from PIL import Image

from lvd.infra.shards import StageDir, read_table
from lvd.infra.storage import Storage
from lvd.tasks import sources
from lvd.tasks.download import Config, download_shard
from lvd.tasks.hosts import Politeness
from lvd.tests.tasks import planted

NUM_GOOD, NUM_OF_A_KIND, NUM_HANGING = 2_000, 2, 24
POLITENESS = Politeness(connections_per_host=8, dead_after=8, dead_after_s=1, max_retry_after_s=5)
CONFIG = Config(
    timeout_s=2,
    connect_timeout_s=1,
    max_bytes=8_000_000,
    politeness=POLITENESS,
    user_agent="lvd-test/1",
    allow_loopback=True,
)
MAX_SECONDS = 60  # of the fetching; about 7 alone
MAX_MEMORY_MB = 450  # about 190; what the bombs unpack to is 1 GB and 7 GB, and endless bodies have no size
DRIP_S = 0.1
DAY_S = 86_400


def picture(seed: int, form: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 24, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of_zeros(edge_px: int) -> bytes:
    """A PNG of that size, of one colour, that ends too early; its first rows are there."""
    header = struct.pack(">IIBBBBB", edge_px, edge_px, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 20))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def gzip_of_zeros(megabytes: int) -> bytes:
    """About a thousandth of what it unpacks to."""
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    first, later = (packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return first + later * (megabytes - 1)


PNG = picture(0)
FRAME = b"%x\r\n%b\r\n" % (len(PNG), PNG)  # in a chunked body
NOISE = np.random.default_rng(1).bytes(300)
MOST_REQUESTS = {
    **dict.fromkeys(["connection_failed", "incomplete_body", "http_429", "http_503", "tls_failed"], 3),
    **{"timeout": 2, "dead_host": 2, "too_many_redirects": 12},
}  # for one URL, by its reason; for every other reason two: a slow machine may take one for a timeout
ELSEWHERE = hashlib.sha256(b"another image").hexdigest()


# Servers


class Asked(NamedTuple):
    host: str
    path: str
    seen: int  # requests for this path so far, with this one
    head: bytes
    at: float  # time.monotonic()


LEFT = (OSError, EOFError, asyncio.LimitOverrunError, asyncio.CancelledError)  # the client, or the test
Answer = Callable[[Asked, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bool | None]]


class Servers:
    """Servers on loopback in a thread of their own, each on a port of its own; leaving the block ends them all."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="hostile")
        self._jobs: set[asyncio.Task] = set()
        self._listening: list[asyncio.Server] = []
        self._seen: Counter[tuple[str, str]] = Counter()
        self.asked: list[Asked] = []
        self.left: list[tuple[str, float]] = []  # of each connection that ended: its host, and when

    def __enter__(self) -> "Servers":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        for server in self._listening:
            server.close()
        for job in self._jobs:
            job.cancel()
        while self._jobs:
            await asyncio.wait(self._jobs)

    def listen(self, answer: Answer, address: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> str:
        """The host, `address:port`, of a new server that calls `answer` with each request. Its connection stays open
        for another one if that returns True."""
        return asyncio.run_coroutine_threadsafe(self._listen(answer, address, tls), self._loop).result()

    async def _listen(self, answer: Answer, address: str, tls: ssl.SSLContext | None) -> str:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            job = asyncio.current_task()
            self._jobs.add(job)
            try:
                while await answer(await self._next(host, reader), reader, writer):
                    continue
                writer.close()
                await writer.wait_closed()
            except LEFT:
                pass
            finally:
                self.left.append((host, time.monotonic()))
                writer.transport.abort()
                self._jobs.discard(job)

        server = await asyncio.start_server(accept, address, 0, ssl=tls, backlog=256)
        self._listening.append(server)
        host = f"{address}:{server.sockets[0].getsockname()[1]}"
        return host

    async def _next(self, host: str, reader: asyncio.StreamReader) -> Asked:
        head = await reader.readexactly(1)
        is_tls = head == b"\x16"  # of a handshake
        head += b" / " if is_tls else await reader.readuntil(b"\r\n\r\n")
        path = head.split()[1].decode()
        self._seen[host, path] += 1
        self.asked.append(Asked(host, path, self._seen[host, path], head, time.monotonic()))
        return self.asked[-1]


# Answers


def reply(body: bytes = b"", *headers: str, status: str = "200 OK", length: object = None) -> bytes:
    """A whole answer. length: what is announced instead of the length, "" for nothing."""
    announced = f"Content-Length: {len(body) if length is None else length}"
    lines = [f"HTTP/1.1 {status}", *headers, *([announced] if length != "" else []), "Connection: close"]
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + body


def saying(*answers: bytes) -> Answer:
    """The answers in turn to the requests of one path, the last one to all that follow."""

    async def answer(asked: Asked, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answers[min(asked.seen, len(answers)) - 1])
        await writer.drain()

    return answer


def pouring(head: bytes, piece: bytes, every_s: float = 0.0) -> Answer:
    """The piece without end, for as long as the client reads."""

    async def answer(_: Asked, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(every_s)

    return answer


def then_silence(data: bytes) -> Answer:
    """These bytes, and nothing more until the client leaves."""

    async def answer(_: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await reader.read()

    return answer


def then_reset(data: bytes) -> Answer:
    """These bytes and a reset."""

    async def answer(_: Asked, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    return answer


def after(hops: int) -> Answer:
    """So many redirects, and then an image."""

    async def answer(asked: Asked, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        url, _, hop = asked.path.partition("&")
        number = int(hop or 0)
        writer.write(reply(PNG) if number == hops else reply(b"", f"Location: {url}&{number + 1}", status=FOUND))
        await writer.drain()

    return answer


def elsewhere(location: str, body: bytes = b"") -> Answer:
    return saying(reply(body, f"Location: {location}", status="302 Found"))


def busy(status: str, retry_after: object) -> bytes:
    return reply(b"busy", f"Retry-After: {retry_after}", status=status)


def in_s(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


def until_in(seconds: float) -> Answer:
    """Unavailable until a date, so long after the first request for a path; then an image."""

    async def answer(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await saying(busy(UNAVAILABLE, in_s(seconds)), reply(PNG))(asked, reader, writer)

    return answer


HINT = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"
CHUNKED = reply(b"", "Transfer-Encoding: chunked", length="")
FOUND, UNAVAILABLE, MANY = "302 Found", "503 Service Unavailable", "429 Too Many Requests"
ENDLESS = (reply(b"", length=""), bytes(1 << 16))

KEPT: dict[str, Answer] = {
    # a nuisance, and an image all the same: what each of them does
    "hints before it": saying(HINT * 3 + reply(PNG)),
    "a cookie": saying(reply(b"take it", "Set-Cookie: id=1; Path=/", status=UNAVAILABLE), reply(PNG)),
    "partial content, but whole": saying(reply(PNG, status="206 Partial Content")),
    "a directive for another bot": saying(reply(PNG, "X-Robots-Tag: otherbot: noai, noindex")),
    "five redirects": after(5),
    "a redirect with a body without end": saying(
        reply(bytes(1 << 20), "Location: ?there", status=FOUND, length=10**12), reply(PNG)
    ),
    "busy for a second": saying(busy(MANY, 1), reply(PNG)),
    "unavailable until a date": until_in(3),
    "busy since a date": saying(busy(UNAVAILABLE, in_s(-DAY_S)), reply(PNG)),
    "more than announced": saying(reply(PNG + NOISE, length=len(PNG))),
    "chunks": saying(CHUNKED + FRAME + b"0\r\n\r\n"),
    "chunks and a length": saying(
        reply(FRAME + b"0\r\n\r\n", "Transfer-Encoding: chunked", "Content-Length: 5", length="")
    ),
    "gzip that is none": saying(reply(PNG, "Content-Encoding: gzip")),
    "once broken": saying(reply(b"no", status="500 No"), reply(PNG)),
    "once reset": saying(b"", reply(PNG)),
}  # fmt: skip

REJECTED: dict[str, tuple[Answer, str]] = {
    # time
    "a body that drips": (pouring(reply(b"", length=10**6), b"x", DRIP_S), "timeout"),
    "chunks that drip": (pouring(CHUNKED, b"1\r\nx\r\n", DRIP_S), "timeout"),
    "headers that drip": (pouring(b"HTTP/1.1 200 OK\r\n", b"a", DRIP_S), "timeout"),
    "hints that drip": (pouring(b"", HINT, DRIP_S), "timeout"),
    "much, then silence": (then_silence(reply(bytes(4 << 20), length=5 << 20)), "timeout"),
    "a status line, then silence": (then_silence(b"HTTP/1.1 200 OK\r\n"), "timeout"),
    # size
    "a body without end": (pouring(*ENDLESS), "too_large"),
    "chunks without end": (pouring(CHUNKED, b"10000\r\n%b\r\n" % bytes(1 << 16)), "too_large"),
    "a huge length": (pouring(reply(b"", length=10**15), bytes(1 << 16)), "too_large"),
    "a length past 64 bits": (pouring(reply(b"", length=10**30), bytes(1 << 16)), "too_large"),
    "an error page without end": (pouring(reply(b"", status="404 No", length=""), bytes(1 << 16)), "http_404"),
    "headers without end": (pouring(b"HTTP/1.1 200 OK\r\n", b"X-A: %b\r\n" % (b"a" * 900)), "bad_response"),
    "a header without end": (pouring(b"HTTP/1.1 200 OK\r\nX-A: ", b"a" * 900), "bad_response"),
    "10,000 headers": (saying(reply(PNG, *(f"X-{i}: a" for i in range(10_000)))), "bad_response"),
    "hints without end": (pouring(b"", HINT * 20), "bad_response"),
    "a gzip bomb": (saying(reply(gzip_of_zeros(1024), "Content-Encoding: gzip")), "too_large"),
    "a png bomb": (saying(reply(png_of_zeros(50_000))), "too_many_pixels"),
    # lengths
    "a length too large": (saying(reply(PNG, length=len(PNG) + 10)), "incomplete_body"),
    "a length too small": (saying(reply(PNG, length=40)), "truncated"),
    "a length of one": (saying(reply(PNG, length=1)), "not_an_image"),
    "a negative length": (saying(reply(PNG, length=-5)), "bad_response"),
    "two lengths": (saying(reply(PNG, f"Content-Length: {len(PNG) + 10}")), "bad_response"),
    "a length that is none": (saying(reply(PNG, length="many")), "bad_response"),
    "a chunk of no size": (saying(CHUNKED + FRAME + b"zz\r\n"), "incomplete_body"),
    "a chunk past 64 bits": (saying(CHUNKED + b"f" * 40 + b"\r\n" + PNG), "incomplete_body"),
    "a chunk of a negative size": (saying(CHUNKED + b"-5\r\n" + PNG), "incomplete_body"),
    "no last chunk": (saying(CHUNKED + FRAME), "incomplete_body"),
    # connections
    "nothing": (saying(b""), "connection_failed"),
    "a reset": (then_reset(b""), "connection_failed"),
    "a reset amid the headers": (then_reset(b"HTTP/1.1 200 OK\r\nX-A: a"), "connection_failed"),
    "a reset amid the body": (then_reset(reply(PNG, length=10**6)), "incomplete_body"),
    # redirects
    "a loop": (elsewhere("?"), "too_many_redirects"),
    "a chain": (after(6), "too_many_redirects"),
    "to a private address": (elsewhere("http://10.0.0.1/a.png"), "blocked_address"),
    "to the metadata": (elsewhere("http://169.254.169.254/latest/meta-data"), "blocked_address"),
    "to the metadata, disguised": (elsewhere("//0xa9fea9fe/latest"), "blocked_address"),
    "to a file": (elsewhere("file:///etc/passwd"), "blocked_address"),
    "to a gopher": (elsewhere("gopher://127.0.0.1:70/_x"), "blocked_address"),
    "to nowhere": (elsewhere("http://[1"), "invalid_url"),
    "without a location": (saying(reply(b"", status=FOUND)), "http_302"),
    # no HTTP
    "HTTP/0.9": (saying(PNG), "bad_response"),
    "noise": (saying(NOISE), "bad_response"),
    "another protocol": (saying(b"SSH-2.0-OpenSSH_9.6\r\n"), "bad_response"),
    "an upgrade": (saying(b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\n\r\n"), "bad_response"),
    # answers without an image
    "no content": (saying(b"HTTP/1.1 204 No Content\r\n\r\n"), "empty_body"),
    "not modified": (saying(b"HTTP/1.1 304 Not Modified\r\n\r\n"), "http_304"),
    "an empty body": (saying(reply()), "empty_body"),
    "a page": (saying(reply(b"<html>Log in</html>", "Content-Type: image/png")), "not_an_image"),
    "partial content": (saying(reply(PNG[:40], status="206 Partial Content")), "truncated"),
    "opted out": (saying(reply(PNG, "X-Robots-Tag: noai")), "opted_out"),
    "another image": (saying(reply(PNG)), "wrong_digest"),
    # busy
    "always busy": (saying(busy(MANY, 0)), "http_429"),
    "busy for a word": (saying(busy(UNAVAILABLE, "soon")), "http_503"),
    "busy for a day": (saying(busy(UNAVAILABLE, DAY_S)), "retry_later"),
    "busy for ever": (saying(busy(MANY, "9" * 30)), "retry_later"),
    "busy until tomorrow": (saying(busy(UNAVAILABLE, in_s(DAY_S))), "retry_later"),
}  # fmt: skip


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """Of a server whose certificate nobody trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hostile")]), datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.4"))])
    signed = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, *form) + signed.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


@contextmanager
def closed_port() -> Iterator[str]:
    """A host that refuses every connection."""
    with socket.socket() as held:
        held.bind(("127.0.0.5", 0))  # and does not listen
        yield f"127.0.0.5:{held.getsockname()[1]}"


@contextmanager
def full_port() -> Iterator[str]:
    """A host where connections are never made: the queue of its listener is full."""
    with socket.socket() as listener, ExitStack() as waiting:
        listener.bind(("127.0.0.6", 0))
        listener.listen(0)
        for _ in range(4):
            connection = waiting.enter_context(socket.socket())
            connection.setblocking(False)
            connection.connect_ex(listener.getsockname())
        yield f"127.0.0.6:{listener.getsockname()[1]}"


# Runs


class Run(NamedTuple):
    images: list[dict[str, Any]]
    rejects: list[dict[str, Any]]
    account: dict[str, Any]


def fetched(tmp_path: Path, rows: list[tuple[str, str]], config: Config) -> Run:
    """What comes of these URLs, each with a digest or "", in a process of its own."""
    with (tmp_path / "urls.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("url", "sha256"), *rows])
    (partition,) = sources.partitions(sources.Urls(path=str(tmp_path / "urls.csv"), sha256_column="sha256"))
    (manifest,) = planted.manifest(str(tmp_path / "run"), partition)
    assert manifest.rows == len(rows)
    (target,) = StageDir(root=str(tmp_path / "run"), stage="download", fingerprint="f").planned(1)
    ref = download_shard.fn(manifest, target, config)
    account = Storage(ref.root).read_json(ref.name("account", "json"))
    return Run(read_table(ref).to_pylist(), read_table(ref, kind="rejects").to_pylist(), account)


class Hostile(NamedTuple):
    run: Run
    urls: list[str]  # in the order of the manifest
    good: dict[str, bytes]  # what comes of a URL
    bad: dict[str, tuple[str, str]]  # reason and state
    hanging: str  # hosts
    best: str
    servers: Servers


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, tls: ssl.SSLContext) -> Iterator[Hostile]:
    """Good images with everything else between them: one shard."""
    bodies = {f"/{i}": picture(i, ("PNG", "JPEG")[i % 2]) for i in range(NUM_GOOD)}

    async def serve(asked: Asked, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        body = bodies[asked.path]
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        return True

    with Servers() as servers, closed_port() as closed, full_port() as full:
        best = servers.listen(serve)
        hanging = servers.listen(then_silence(b""), "127.0.0.2")
        bases = {name: (f"http://{servers.listen(answer, '127.0.0.3')}", "") for name, answer in KEPT.items()}
        for name, (answer, reason) in REJECTED.items():
            bases[name] = (f"http://{servers.listen(answer, '127.0.0.3')}", reason)
        bases |= {
            "a certificate of its own": (f"https://{servers.listen(saying(PNG), '127.0.0.4', tls)}", "tls_failed"),
            "no TLS": (f"https://{servers.listen(saying(reply(status='400 No')), '127.0.0.4')}", "tls_failed"),
            "TLS": (f"http://{servers.listen(saying(PNG), '127.0.0.4', tls)}", "connection_failed"),
            "a silent handshake": (f"https://{servers.listen(then_silence(b''), '127.0.0.4')}", "timeout"),
            "a closed port": (f"http://{closed}", "connection_failed"),
            "a full port": (f"http://{full}", "timeout"),
            "a private address": ("http://10.0.0.1", "blocked_address"),
        }
        at_once = POLITENESS.connections_per_host  # these fail together, before one of them tries again
        hung = [(f"http://{hanging}/{i}", "dead_host") for i in range(NUM_HANGING)]
        others = hung[at_once:]
        for i in range(NUM_OF_A_KIND):
            others += [(f"{base}/{quote(name)}?{i}", reason) for name, (base, reason) in bases.items()]
        between = np.linspace(0, NUM_GOOD, len(others), endpoint=False).astype(int).tolist()
        there = dict(zip(between, others, strict=True))
        urls = hung[:at_once]
        for i, path in enumerate(bodies):
            urls += [*([there[i]] if i in there else []), (f"http://{best}{path}", "")]
        rows = [(url, ELSEWHERE if "another%20image" in url else "") for url, _ in urls]

        run = fetched(tmp_path_factory.mktemp("hostile"), rows, CONFIG)
        good = {url: bodies.get(url.removeprefix(f"http://{best}"), PNG) for url, reason in urls if not reason}
        bad = {url: (reason, "dropped" if reason == "opted_out" else "failed") for url, reason in urls if reason}
        yield Hostile(run, [url for url, _ in urls], good, bad, hanging, best, servers)


def test_every_good_image_arrives_in_the_order_of_the_manifest(hostile: Hostile) -> None:
    images = [(row["key"], row["image"]["bytes"]) for row in hostile.run.images]
    assert images == [(url, hostile.good[url]) for url in hostile.urls if url in hostile.good]
    assert len(set(hostile.good.values())) == NUM_GOOD  # PNG is the first of them


def test_every_other_url_has_its_reason(hostile: Hostile) -> None:
    found = {row["key"]: (row["reason"], row["state"]) for row in hostile.run.rejects}
    wrong = {url: (found.get(url), hostile.bad.get(url)) for url in hostile.bad | found}
    assert {url: both for url, both in wrong.items() if both[0] != both[1]} == {}
    assert [row["row"] for row in hostile.run.rejects] == [
        i for i, url in enumerate(hostile.urls) if url in hostile.bad
    ]
    assert all(row["error"] and "\n" not in row["error"] for row in hostile.run.rejects)


def test_nothing_is_lost_and_nothing_is_counted_twice(hostile: Hostile) -> None:
    account = hostile.run.account
    assert account["rows_in"] == len(hostile.urls) == account["rows"] + sum(account["reasons"].values())
    assert account["reasons"] == Counter(reason for reason, _ in hostile.bad.values())
    assert account["rows"] == len(hostile.run.images)


def test_memory_and_time_are_bounded(hostile: Hostile) -> None:
    assert hostile.run.account["peak_memory_mb"] < MAX_MEMORY_MB
    assert hostile.run.account["seconds"] < MAX_SECONDS


def test_a_host_that_hangs_holds_up_nobody(hostile: Hostile) -> None:
    began = min(asked.at for asked in hostile.servers.asked if asked.host == hostile.hanging)
    given_up = max(at for host, at in hostile.servers.left if host == hostile.hanging)
    last = {asked.path: asked.at for asked in hostile.servers.asked if asked.host == hostile.best}
    assert len(last) == NUM_GOOD
    assert sum(began < at < given_up for at in last.values()) > NUM_GOOD / 4  # all of them, on a machine at rest


def test_nobody_is_asked_too_often_or_told_what_another_answer_said(hostile: Hostile) -> None:
    asked = Counter(asked.host for asked in hostile.servers.asked)
    allowed: Counter[str] = Counter()
    for url, (reason, _) in hostile.bad.items():
        allowed[urlsplit(url).netloc] += MOST_REQUESTS.get(reason, 2)
    assert {host: number for host, number in asked.items() if host in allowed and number > allowed[host]} == {}
    assert not any(b"\r\ncookie:" in asked.head.lower() for asked in hostile.servers.asked)
    assert any(b"/a%20cookie" in asked.head and asked.seen == 2 for asked in hostile.servers.asked)


# robots.txt


def under(robots_txt: Answer, rest: Answer) -> Answer:
    """A server with a robots.txt."""

    async def answer(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await (robots_txt if asked.path == "/robots.txt" else rest)(asked, reader, writer)

    return answer


def rules(*lines: str) -> Answer:
    return saying(reply("\n".join(lines).encode(), "Content-Type: text/plain"))


EVERYONE = "User-agent: *"
DELAY_S, NUM_SLOW = 0.3, 4


def test_robots_txt_is_asked_for_once_and_obeyed(tmp_path: Path) -> None:
    image = saying(reply(PNG))
    with Servers() as servers, closed_port() as closed:
        slow = servers.listen(under(rules(EVERYONE, f"Crawl-delay: {DELAY_S}", "Disallow: /private/"), image))
        allowing = {
            "none": saying(reply(b"no", status="404 No")),
            "for another": rules("User-agent: otherbot", "Disallow: /"),
            "unpacked": saying(reply(gzip_of_zeros(1024), "Content-Encoding: gzip")),
            "endless": pouring(reply(b"", length=""), b"# and so on\n" * 1000),
            "noise": saying(reply(NOISE)),
        }
        forbidding = {
            "for us": rules("User-agent: lvd-test", "Disallow: /", EVERYONE, "Allow: /"),
            "broken": saying(reply(b"no", status="500 No")),
            "hanging": then_silence(b""),
            "reset": then_reset(b""),
            "elsewhere": elsewhere("http://10.0.0.1/robots.txt"),
            "in the end endless": pouring(reply(f"{EVERYONE}\nDisallow: /\n".encode(), length=""), b"# x\n" * 9999),
        }
        free = [servers.listen(under(answer, image), "127.0.0.2") for answer in allowing.values()]
        shut = [servers.listen(under(answer, image), "127.0.0.3") for answer in forbidding.values()]
        leading = servers.listen(under(allowing["none"], elsewhere(f"http://{slow}/private/b.png")), "127.0.0.4")

        kept = [f"http://{slow}/{i}.png" for i in range(NUM_SLOW)]
        kept += [f"http://{host}/{i}.png" for host in free for i in range(3)]
        dropped = [f"http://{slow}/private/a.png", f"http://{leading}/a.png"]
        dropped += [f"http://{host}/{i}.png" for host in [*shut, closed] for i in range(3)]
        config = CONFIG.model_copy(update={"robots_txt": True})
        run = fetched(tmp_path, [(url, "") for url in [*kept, *dropped]], config)

    assert [row["key"] for row in run.images] == kept
    assert [(row["key"], row["reason"], row["state"]) for row in run.rejects] == [
        (url, "robots_txt", "dropped") for url in dropped
    ]
    paths = Counter((asked.host, asked.path) for asked in servers.asked)
    assert {host for host, path in paths if path == "/robots.txt"} == {slow, leading, *free, *shut}
    assert set(paths.values()) <= {1, 3}  # three attempts where a server breaks off
    fetched_urls = {f"http://{host}{path}" for host, path in paths if path != "/robots.txt"}
    assert fetched_urls == {*kept, f"http://{leading}/a.png"}
    times = [asked.at for asked in servers.asked if asked.host == slow and asked.path != "/robots.txt"]
    assert times[-1] - times[0] > (NUM_SLOW - 1) * DELAY_S / 2
