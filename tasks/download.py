"""Images: the bytes of every candidate as they came, with what their header says; fetched over HTTP or read from disk.

At 10^9 images of 110 kB: 110 TB fetched and 110 TB written, about 1 ms of one core per image (SHA-256, header, HTTP),
memory per worker at most HELD_BYTES and one image per reader.
"""

import asyncio
import hashlib
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from socket import EAI_NONAME
from typing import Any
from urllib.parse import unquote, urlsplit

import aiohttp
import xxhash
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, Field
from yarl import URL

from lvd.infra.safety import BlockedAddressError, PublicResolver, safe_url
from lvd.infra.shards import REJECT_BYTES, Shard, ShardRef, read_batches, write_shard
from lvd.tasks import schemas
from lvd.tasks.decode import DecodeError, read_header
from lvd.tasks.locations import Opened, read_bytes

SCHEMA = schemas.IMAGES
VERSION = 1
HELD_BYTES = 256 << 20  # of images that wait for their turn to be written; reading pauses above it
WINDOW_ROWS = 1024  # rows under way at least; more: a slow server holds up fewer others
DISK_READERS = 16
ERROR_PAGE_BYTES = 2 << 10  # of the page that comes with an HTTP error
MAX_RETRY_AFTER_S = 30.0
REDIRECTS = frozenset({301, 302, 303, 307, 308})
MAX_HEADER_BYTES = 8190  # of one header line


class Config(BaseModel, frozen=True, extra="forbid"):
    connections: int = Field(64, ge=1, le=4096)  # at once per shard; usual: 64 to 512
    timeout_s: float = Field(30.0, gt=0, le=3600)  # of one attempt, from the name's resolution to the last byte
    connect_timeout_s: float = Field(10.0, gt=0, le=3600)
    retries: int = Field(2, ge=0, le=10)  # after the first attempt, where another can help; a time-out is retried once
    backoff_s: float = Field(0.5, ge=0, le=60)  # doubles with every retry
    max_bytes: int = Field(50_000_000, ge=1)
    max_pixels: int = Field(178_956_970, ge=1)
    max_redirects: int = Field(5, ge=0, le=50)
    user_agent: str = Field("lvd/0.1 (+image dataset curation)", min_length=1, pattern=r"^[\x20-\x7e]+$")
    allow_loopback: bool = False  # lets 127.0.0.0/8 and ::1 through, for tests and the miniature web

    def deciding(self) -> dict[str, Any]:
        """What decides which bytes are kept. A change of the rest, such as more connections, fetches nothing again."""
        return self.model_dump(include={"max_bytes", "max_pixels", "max_redirects", "allow_loopback"})


class Rejected(Exception):
    """Why one candidate gives no image."""

    def __init__(
        self, reason: str, error: object, *, data: bytes = b"", retryable: bool = False, retry_after_s: float = 0.0
    ) -> None:
        super().__init__(reason)
        self.reason, self.error = reason, " ".join(str(error).split())
        self.data, self.retryable, self.retry_after_s = data[:REJECT_BYTES], retryable, retry_after_s


def image_row(row: dict[str, Any], data: bytes, *, max_bytes: int, max_pixels: int) -> dict[str, Any]:
    """The row of schemas.IMAGES for a manifest row and its bytes.

    Raises Rejected if the bytes are none, too many, or no image.
    """
    if not data:
        raise Rejected("empty_body", "image must have at least 1 byte, had 0")
    if len(data) > max_bytes:
        raise Rejected("too_large", f"image must have at most {max_bytes} bytes, had more", data=data)
    try:
        header = read_header(data, max_pixels=max_pixels)
    except DecodeError as error:
        raise Rejected(error.reason, error, data=data) from error
    return {
        **{name: row[name] for name in ("key", "url", "page_url", "alt", "source", "domain", "label")},
        "image_id": hashlib.sha256(data).hexdigest()[:32],
        "image": {"bytes": data, "path": file_name(row)},
        "width": header.width,
        "height": header.height,
        "frames": header.frames,
        "format": header.format,
        "num_bytes": len(data),
    }


def file_name(row: dict[str, Any]) -> str:
    """The last part of the source path or of the URL's path."""
    path = row["key"] if row["location"] else unquote(urlsplit(row["url"]).path)
    return path.rpartition("/")[2]


def pause_s(url: str, attempt: int, *, backoff_s: float, retry_after_s: float = 0.0) -> float:
    """Seconds before the next attempt: exponential, spread by 0.5 to 1.5 in a way that the URL and attempt decide."""
    spread = 0.5 + xxhash.xxh3_64_intdigest(f"{attempt} {url}".encode()) / 2**64
    return max(backoff_s * 2**attempt * spread, min(retry_after_s, MAX_RETRY_AFTER_S))


def retry_after_s(header: str | None) -> float:
    """Seconds that a Retry-After header asks for, as a number or a date; 0 if it is neither."""
    try:
        return max(0.0, float(int(header or "0")))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    return max(0.0, (when - datetime.now(UTC)).total_seconds()) if when.tzinfo else 0.0


class Window:
    """Bytes of the rows that are under way or wait for their turn.

    Above the limit every row pauses but the first one still to be written, so that the window always drains.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._first = max_bytes, 0
        self._held: dict[int, int] = {}
        self._total = 0
        self._changed = asyncio.Event()

    def hold(self, index: int, num_bytes: int) -> None:
        """Row `index` holds num_bytes from now on."""
        self._total += num_bytes - self._held.get(index, 0)
        self._held[index] = num_bytes

    def is_full(self, index: int) -> bool:
        return self._total > self._max_bytes and index > self._first

    async def room(self, index: int) -> None:
        while self.is_full(index):
            await self._changed.wait()

    def written(self, index: int) -> None:
        """Row `index` is on disk and its successor is the first one."""
        self._first = index + 1
        self._total -= self._held.pop(index, 0)
        self._changed.set()
        self._changed = asyncio.Event()


class Downloader:
    """Turns manifest rows into image rows, many at once. One event loop, one shard.

    Turns are given in the order of the rows, so the first one to be written never waits for a later one. The TLS
    context is aiohttp's own, one per process.
    """

    def __init__(self, config: Config, window: Window) -> None:
        self._config, self._window = config, window
        self._turns = asyncio.Semaphore(config.connections)
        self._opened, self._readers = Opened(), ThreadPoolExecutor(DISK_READERS, "read")
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(min(config.connections, 64), "resolve"))
        self._session = aiohttp.ClientSession(
            auto_decompress=False,
            connector=aiohttp.TCPConnector(
                limit=0, ttl_dns_cache=300, resolver=PublicResolver(allow_loopback=config.allow_loopback)
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": config.user_agent, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"},
            max_field_size=MAX_HEADER_BYTES,
            max_line_size=MAX_HEADER_BYTES,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=config.connect_timeout_s),
            trust_env=False,  # no proxy: it would connect where nobody checked the address
        )

    async def __aenter__(self) -> "Downloader":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        self._readers.shutdown()

    async def image(self, row: dict[str, Any], index: int) -> dict[str, Any] | Rejected:
        """The image row, or why there is none. index: the row's place in the shard."""
        config = self._config
        try:
            async with self._turns:
                await self._window.room(index)
                data = await (self._read(row["location"]) if row["location"] else self._fetch(row["url"], index))
            self._window.hold(index, len(data))
            return image_row(row, data, max_bytes=config.max_bytes, max_pixels=config.max_pixels)
        except Rejected as rejected:
            problem = rejected
        except Exception as error:  # noqa: BLE001 - one bad candidate costs one row
            reason = "unreadable" if row["location"] else "connection_failed"
            problem = Rejected(reason, f"{type(error).__name__}: {error}")
        self._window.hold(index, len(problem.data))
        return problem

    async def _read(self, location: str) -> bytes:
        loop, limit = asyncio.get_running_loop(), self._config.max_bytes
        return await loop.run_in_executor(self._readers, lambda: read_bytes(location, self._opened, max_bytes=limit))

    async def _fetch(self, url: str, index: int) -> bytes:
        timeouts = 0
        for attempt in range(self._config.retries + 1):
            try:
                return await self._attempt(url, index)
            except Rejected as rejected:
                problem = rejected
            timeouts += problem.reason == "timeout"
            if not problem.retryable or timeouts > 1:
                break
            if attempt < self._config.retries:
                self._window.hold(index, 0)
                backoff_s = self._config.backoff_s
                await asyncio.sleep(pause_s(url, attempt, backoff_s=backoff_s, retry_after_s=problem.retry_after_s))
        raise problem

    async def _attempt(self, url: str, index: int) -> bytes:
        clock = asyncio.timeout(self._config.timeout_s)
        try:
            async with clock:
                return await self._follow(url, index, clock)
        except TimeoutError as error:
            text = str(error) or f"no whole answer within {self._config.timeout_s} s"
            raise Rejected("timeout", text, retryable=True) from error
        except BlockedAddressError as error:
            raise Rejected("blocked_address", error) from error
        except ValueError as error:
            raise Rejected("invalid_url", error) from error
        except (aiohttp.ClientError, OSError) as error:
            raise Rejected("connection_failed", error, retryable=_may_pass(error)) from error

    async def _follow(self, url: str, index: int, clock: asyncio.Timeout) -> bytes:
        """The body at the end of the redirects, every hop checked like the first."""
        target = url
        for _ in range(self._config.max_redirects + 1):
            safe = safe_url(target, allow_loopback=self._config.allow_loopback)
            async with self._session.get(safe, allow_redirects=False) as response:
                location = response.headers.get("Location")
                if response.status in REDIRECTS and location:
                    target = response.url.join(URL(location))
                elif 200 <= response.status < 300:
                    return await self._body(response, index, clock)
                else:
                    raise await self._refusal(response)
        raise Rejected("too_many_redirects", f"more than {self._config.max_redirects} redirects, the last to {target}")

    async def _refusal(self, response: aiohttp.ClientResponse) -> Rejected:
        status = response.status
        return Rejected(
            f"http_{status}",
            f"{status} {response.reason or ''}",
            data=await _first_bytes(response, ERROR_PAGE_BYTES),
            retryable=status in (408, 429) or status >= 500,
            retry_after_s=retry_after_s(response.headers.get("Retry-After")),
        )

    async def _body(self, response: aiohttp.ClientResponse, index: int, clock: asyncio.Timeout) -> bytes:
        """The body in pieces, no further than max_bytes; the clock stands still while the window is full."""
        max_bytes, announced = self._config.max_bytes, response.content_length
        if announced is not None and announced > max_bytes:
            error = f"image must have at most {max_bytes} bytes, Content-Length was {announced}"
            raise Rejected("too_large", error, data=await _first_bytes(response, REJECT_BYTES))
        pieces: list[bytes] = []
        num_bytes = 0
        try:
            async for piece in response.content.iter_any():
                pieces.append(piece)
                num_bytes += len(piece)
                self._window.hold(index, num_bytes)
                if num_bytes > max_bytes:
                    break
                if self._window.is_full(index):
                    await self._paused(index, clock)
        except (aiohttp.ClientError, ConnectionError) as error:
            raise Rejected("incomplete_body", error, data=b"".join(pieces), retryable=True) from error
        return _decompressed(b"".join(pieces), response.headers.get("Content-Encoding", ""), max_bytes)

    async def _paused(self, index: int, clock: asyncio.Timeout) -> None:
        now = asyncio.get_running_loop().time
        left_s = clock.when() - now()
        clock.reschedule(None)
        await self._window.room(index)
        clock.reschedule(now() + left_s)


def _may_pass(error: Exception) -> bool:
    """False for what another attempt meets again: no such name, a certificate that does not hold, no HTTP."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return error.os_error.errno != EAI_NONAME
    return not isinstance(error, aiohttp.ClientResponseError | aiohttp.ClientSSLError)


async def _first_bytes(response: aiohttp.ClientResponse, num_bytes: int) -> bytes:
    try:
        return await response.content.readexactly(num_bytes)
    except asyncio.IncompleteReadError as error:
        return error.partial
    except (aiohttp.ClientError, ConnectionError):
        return b""


def _decompressed(data: bytes, encoding: str, max_bytes: int) -> bytes:
    """The body without the encoding that a server put on it although it was asked not to; at most max_bytes + 1."""
    if encoding.lower() not in ("gzip", "x-gzip", "deflate"):
        return data
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(data, max_bytes + 1)
    except zlib.error:  # said so, but sent it plain
        return data


@task(name="download", persist_result=False, cache_policy=NO_CACHE)
def download_shard(source: ShardRef, target: ShardRef, config: Config) -> ShardRef:
    """Writes the images of one manifest shard, in its order; returns the target with its rows."""
    with write_shard(target, SCHEMA, {"version": VERSION, **config.deciding()}) as shard:
        asyncio.run(_fill(shard, source, config))
    return target.model_copy(update={"rows": shard.kept.rows})


async def _fill(shard: Shard, source: ShardRef, config: Config) -> None:
    """Starts rows ahead of the one whose turn it is to be written, and writes them in the order of the manifest."""
    window, window_rows = Window(HELD_BYTES), max(WINDOW_ROWS, 4 * config.connections)
    under_way: deque[tuple[int, dict[str, Any], asyncio.Task]] = deque()

    async def write_first() -> None:
        index, row, job = under_way[0]
        outcome = await job
        under_way.popleft()
        if isinstance(outcome, Rejected):
            place = source.first_row + index
            shard.reject(row["key"], outcome.reason, row=place, error=outcome.error, data=outcome.data)
        else:
            shard.keep(outcome, outcome["num_bytes"])
        window.written(index)

    async with Downloader(config, window) as downloader:
        try:
            for index, row in enumerate(_manifest_rows(source)):
                under_way.append((index, row, asyncio.create_task(downloader.image(row, index))))
                while under_way and (len(under_way) >= window_rows or under_way[0][2].done()):
                    await write_first()
            while under_way:
                await write_first()
        finally:
            for _, _, job in under_way:
                job.cancel()
            await asyncio.gather(*(job for _, _, job in under_way), return_exceptions=True)


def _manifest_rows(source: ShardRef) -> Iterator[dict[str, Any]]:
    for batch in read_batches(source):
        yield from batch.to_pylist()
