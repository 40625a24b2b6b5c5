"""Candidates to images: fetched over HTTP or read from disk, checked, and written in the order of the manifest.

One event loop per shard, in a process of its own (see `download`).
"""

import asyncio
import hashlib
import resource
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import pyarrow as pa
import xxhash
from PIL import Image
from pydantic import BaseModel, Field

from lvd.infra.http import Client, HttpError, Response
from lvd.infra.process import in_own_process
from lvd.infra.shards import ShardRef, read_batches
from lvd.infra.storage import Storage
from lvd.infra.writing import REJECT_BYTES, Shard, write_shard
from lvd.tasks import robots
from lvd.tasks.backlog import Backlog, Flight, Flights
from lvd.tasks.decode import DecodeError, read_header
from lvd.tasks.encode import shrunk
from lvd.tasks.hosts import HostGone, Hosts, Politeness
from lvd.tasks.locations import Opened, read_bytes

VERSION = 2
MAX_UNDER_WAY = 16_384  # rows; more: a slow server holds up fewer others
DISK_READERS = 16
UNENCODED_BYTES = 16 << 20  # of bodies in flight when they are re-encoded, which takes longer than to fetch them
ERROR_PAGE_BYTES = 2 << 10  # of the page that comes with an HTTP error
ROBOTS_BYTES = 500 << 10  # of a robots.txt; RFC 9309, section 2.5
REDIRECTS = frozenset({301, 302, 303, 307, 308})
BUSY = frozenset({408, 425, 429})  # and every 5xx: another attempt may get another answer


class Config(BaseModel, frozen=True, extra="forbid"):
    connections: int = Field(256, ge=1, le=4096)  # at once per shard; usual: 64 to 1,024
    politeness: Politeness = Politeness()
    opt_out: tuple[str, ...] = robots.OPT_OUT  # what an X-Robots-Tag says that leaves the image out; [] to ignore it
    robots_txt: bool = False  # asks every host for its robots.txt first, and obeys it
    timeout_s: float = Field(30.0, gt=0, le=3600)  # of one attempt, from the name's resolution to the last byte
    connect_timeout_s: float = Field(10.0, gt=0, le=3600)
    retries: int = Field(2, ge=0, le=10)  # after the first attempt, where another can help; a time-out is retried once
    backoff_s: float = Field(0.5, ge=0, le=60)  # doubles with every retry
    max_bytes: int = Field(50_000_000, ge=1)
    max_pixels: int = Field(178_956_970, ge=1)
    max_redirects: int = Field(5, ge=0, le=50)
    short_edge_px: int | None = Field(
        None, ge=16, le=16_384
    )  # stores a JPEG no larger than that; null: bytes as they came
    quality: int = Field(95, ge=1, le=100)  # of that JPEG
    user_agent: str = Field("lvd/0.1 (+image dataset curation)", min_length=1, pattern=r"^[\x20-\x7e]+$")
    allow_loopback: bool = False  # lets 127.0.0.0/8 and ::1 through, for tests and the miniature web

    def deciding(self) -> dict[str, Any]:
        """What decides which bytes are kept. A change of the rest, such as more connections, fetches nothing again."""
        limits = {"max_bytes", "max_pixels", "max_redirects", "allow_loopback", "opt_out", "robots_txt"}
        reencoding = {"short_edge_px", "quality"} if self.short_edge_px is not None else set()
        return self.model_dump(mode="json", include=limits | reencoding)


class Rejected(Exception):
    """Why one candidate gives no image."""

    def __init__(
        self, reason: str, error: object, *, data: bytes = b"", retryable: bool = False, state: str = "failed"
    ) -> None:
        super().__init__(reason)
        self.reason, self.error, self.state = reason, " ".join(str(error).split()), state
        self.data, self.retryable = data[:REJECT_BYTES], retryable


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
        **{name: row[name] for name in ("key", "url", "page_url", "alt", "source", "domain", "label", "license")},
        "image_id": hashlib.sha256(data).hexdigest()[:32],
        "image": {"bytes": data, "path": file_name(row)},
        "width": header.width,
        "height": header.height,
        "frames": header.frames,
        "format": header.format,
        "num_bytes": len(data),
    }


def check_digest(data: bytes, expected: str | None) -> None:
    """Raises Rejected if the bytes do not have the digest: `sha256:…` or `md5:…`; another image lies there now."""
    if not expected:
        return
    name, _, digest = expected.partition(":")
    found = hashlib.new(name, data, usedforsecurity=False).hexdigest()
    if found != digest:
        raise Rejected("wrong_digest", f"{name} must be {digest}, was {found}", data=data)


def redirected(url: str, location: str) -> str:
    """Where a redirect leads. Raises Rejected if that is no URL."""
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise Rejected("invalid_url", f"redirected to {location!r}: {error}") from error


def file_name(row: dict[str, Any]) -> str:
    """The last part of the source path or of the URL's path."""
    path = row["key"] if row["location"] else unquote(urlsplit(row["url"]).path)
    return path.rpartition("/")[2]


def host_of(url: str) -> str:
    """What shares the limits of a host: its name and port."""
    return urlsplit(url).netloc.rpartition("@")[2].lower()


def pause_s(url: str, attempt: int, *, backoff_s: float) -> float:
    """Seconds before the next attempt: exponential, spread by 0.5 to 1.5 in a way that the URL and attempt decide."""
    spread = 0.5 + xxhash.xxh3_64_intdigest(f"{attempt} {url}".encode()) / 2**64
    return backoff_s * 2**attempt * spread


def retry_after_s(header: str | None) -> float:
    """Seconds that a Retry-After header asks for, as a number or a date; 0 if it is neither."""
    try:
        return max(0.0, float(int(header or "0")))
    except (ValueError, OverflowError):
        pass
    try:
        when = parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    return max(0.0, (when - datetime.now(UTC)).total_seconds()) if when.tzinfo else 0.0


def decompressed(data: bytes, encoding: str, max_bytes: int) -> bytes:
    """The body without the encoding that a server put on it although it was asked not to; at most max_bytes + 1."""
    if encoding.lower() not in ("gzip", "x-gzip", "deflate"):
        return data
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(data, max_bytes + 1)
    except zlib.error:  # said so, but sent it plain
        return data


class Downloader:
    """Turns manifest rows into image rows, many at once. One event loop, one shard.

    share: how many such downloaders run at once; the limits per host are divided among them.
    """

    def __init__(self, config: Config, *, share: int = 1) -> None:
        self._config = config
        self._flights = Flights(UNENCODED_BYTES) if config.short_edge_px else Flights()
        self._hosts, self._turns = Hosts(config.politeness, share=share), asyncio.Semaphore(config.connections)
        self._robots = robots.RobotsTxt(config.user_agent, self._robots_txt) if config.robots_txt else None
        self._opened, self._readers = Opened(), ThreadPoolExecutor(DISK_READERS, "read")
        self._encoders = ThreadPoolExecutor(2, "encode")
        self._client = Client(
            user_agent=config.user_agent,
            allow_loopback=config.allow_loopback,
            connect_timeout_s=config.connect_timeout_s,
            max_connections=config.connections,
        )

    async def __aenter__(self) -> "Downloader":
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.__aexit__(*error)
        self._readers.shutdown()
        self._encoders.shutdown()

    async def image(self, row: dict[str, Any], index: int) -> dict[str, Any] | Rejected:
        """The image row, or why there is none. index: the row's place in the shard."""
        config = self._config
        try:
            data = await (self._read(row["location"]) if row["location"] else self._fetch(row["url"], index))
            check_digest(data, row["digest"])
            if config.short_edge_px is not None and data:
                self._flights.hold(index, len(data))
                data = await self._shrunk(data)
            return image_row(row, data, max_bytes=config.max_bytes, max_pixels=config.max_pixels)
        except Rejected as rejected:
            return rejected
        except Exception as error:  # noqa: BLE001 - one bad candidate costs one row
            reason = "unreadable" if row["location"] else "connection_failed"
            return Rejected(reason, f"{type(error).__name__}: {error}")
        finally:
            self._flights.landed(index)

    async def _read(self, location: str) -> bytes:
        loop, limit = asyncio.get_running_loop(), self._config.max_bytes
        async with self._turns:
            return await loop.run_in_executor(
                self._readers, lambda: read_bytes(location, self._opened, max_bytes=limit)
            )

    async def _shrunk(self, data: bytes) -> bytes:
        """The image re-encoded, off the loop."""
        loop, config = asyncio.get_running_loop(), self._config
        limits = {"short_edge_px": config.short_edge_px, "quality": config.quality, "max_pixels": config.max_pixels}
        try:
            return await loop.run_in_executor(self._encoders, lambda: shrunk(data, **limits))
        except DecodeError as error:
            raise Rejected(error.reason, error, data=data) from error

    async def _fetch(self, url: str, index: int) -> bytes:
        timeouts = 0
        for attempt in range(self._config.retries + 1):
            try:
                return await self._follow(url, index)
            except Rejected as rejected:
                problem = rejected
            timeouts += problem.reason == "timeout"
            if not problem.retryable or timeouts > 1:
                break
            if attempt < self._config.retries:
                self._flights.landed(index)
                await asyncio.sleep(pause_s(url, attempt, backoff_s=self._config.backoff_s))
        raise problem

    async def _follow(self, url: str, index: int) -> bytes:
        """The body at the end of the redirects, every hop checked like the first."""
        target = url
        for _ in range(self._config.max_redirects + 1):
            delay_s = await self._permitted(target)
            response = await self._ask(target, index, Flight(self._flights, index), delay_s=delay_s)
            location = response.header("location")
            if response.status in REDIRECTS and location:
                target = redirected(target, location)
            elif 200 <= response.status < 300:
                return self._body(response)
            else:
                raise self._refusal(response)
        raise Rejected("too_many_redirects", f"more than {self._config.max_redirects} redirects, the last to {target}")

    async def _permitted(self, url: str) -> float:
        """Seconds that robots.txt wants between two requests. Raises Rejected if it disallows this one."""
        if self._robots is None:
            return 0.0
        try:
            allowed, delay_s = await self._robots.allows(url), await self._robots.delay_s(url)
        except ValueError as error:
            raise Rejected("invalid_url", error) from error
        if not allowed:
            raise Rejected("robots_txt", f"robots.txt of {host_of(url)} disallows {url}", state="dropped")
        return min(delay_s or 0.0, self._config.politeness.max_retry_after_s)

    async def _ask(
        self, url: str, index: int, gate: Flight | None = None, *, delay_s: float = 0.0, max_bytes: int | None = None
    ) -> Response:
        """One answer of one host, which is asked no more often than it may be."""
        config, host = self._config, host_of(url)
        limits = {"max_bytes": max_bytes or config.max_bytes, "max_other_bytes": ERROR_PAGE_BYTES}
        try:
            async with self._hosts.turn(host, index, delay_s=delay_s), self._turns:
                try:
                    response = await self._client.get(url, timeout_s=config.timeout_s, gate=gate, **limits)
                except HttpError as error:
                    self._failed(host, error)
                    raise
                self._hosts.answered(host)
                if response.status in (429, 503):
                    self._hosts.wait(host, retry_after_s(response.header("retry-after")))
                return response
        except HostGone as gone:
            raise Rejected(gone.reason, gone) from gone
        except ValueError as error:
            raise Rejected("invalid_url", error) from error
        except HttpError as error:
            raise Rejected(error.reason, error, data=error.body, retryable=error.may_pass) from error

    def _failed(self, host: str, error: HttpError) -> None:
        """A host that lets a request wait for nothing is as dead as one that takes no connection."""
        if error.connected and (error.reason != "timeout" or error.body):
            self._hosts.answered(host)
        elif error.reason != "blocked_address":
            self._hosts.unreachable(host, str(error))

    def _refusal(self, response: Response) -> Rejected:
        status = response.status
        retryable = status in BUSY or status >= 500
        return Rejected(f"http_{status}", f"HTTP {status}", data=response.body, retryable=retryable)

    def _body(self, response: Response) -> bytes:
        """The body of an answer that may be used. Raises Rejected if it opts out, or is longer than max_bytes."""
        config = self._config
        directive = robots.opted_out(response.values("x-robots-tag"), config.opt_out, config.user_agent)
        if directive:
            raise Rejected("opted_out", f"X-Robots-Tag says {directive}", state="dropped")
        if not response.whole:
            announced = response.header("content-length") or "not announced"
            error = f"image must have at most {config.max_bytes} bytes, had more (Content-Length {announced})"
            raise Rejected("too_large", error, data=response.body)
        data = decompressed(response.body, response.header("content-encoding") or "", config.max_bytes)
        if len(data) > config.max_bytes:
            raise Rejected("too_large", f"image must have at most {config.max_bytes} bytes unpacked", data=data)
        return data

    async def _robots_txt(self, url: str) -> tuple[int, bytes] | None:
        """Status and body of a robots.txt at the end of its redirects; None if it cannot be had."""
        for attempt in range(self._config.retries + 1):
            try:
                return await self._robots_answer(url)
            except Rejected as rejected:
                if not rejected.retryable:
                    return None
            await asyncio.sleep(pause_s(url, attempt, backoff_s=self._config.backoff_s))
        return None

    async def _robots_answer(self, url: str) -> tuple[int, bytes]:
        for _ in range(self._config.max_redirects + 1):
            response = await self._ask(url, -1, max_bytes=ROBOTS_BYTES)
            location = response.header("location")
            if response.status not in REDIRECTS or not location:
                encoding = response.header("content-encoding") or ""
                return response.status, decompressed(response.body, encoding, ROBOTS_BYTES)
            url = redirected(url, location)
        raise Rejected("too_many_redirects", f"more than {self._config.max_redirects} redirects, the last to {url}")


def fetch_apart(source: ShardRef, target: ShardRef, schema: pa.Schema, config: Config, share: int) -> int:
    """`fetch_shard` in a process of its own. Raises RetryableError if that ends without a word."""
    slow = ["pandas"]  # pyarrow imports it at its first batch
    slow += ["simplejpeg", "torch"] if config.short_edge_px else []
    return in_own_process(fetch_shard, source, target, schema, config, share, preload=slow)


def fetch_shard(source: ShardRef, target: ShardRef, schema: pa.Schema, config: Config, share: int) -> int:
    """Writes the images of one manifest shard, in its order; returns how many there are."""
    allow_sockets(config.connections)
    Image.init()  # Pillow's plugins, which would keep the first images waiting
    with write_shard(target, schema, {"version": VERSION, **config.deciding()}) as shard:
        asyncio.run(_fill(shard, source, config, share))
    return shard.kept.rows


def allow_sockets(connections: int) -> None:
    """Raises this process's limit of open files to what so many connections need, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard) if hard >= 0 else wanted, hard))


async def _fill(shard: Shard, source: ShardRef, config: Config, share: int) -> None:
    """Starts rows far ahead of the one whose turn it is to be written, and writes them in the order of the manifest."""
    backlog = Backlog(Storage(source.root).temporary_folder())
    under_way: deque[tuple[int, dict[str, Any], asyncio.Task]] = deque()

    async def fetched(row: dict[str, Any], index: int) -> dict[str, Any] | Rejected:
        outcome = await downloader.image(row, index)
        if isinstance(outcome, Rejected):
            backlog.put(index, outcome.data)
            outcome.data, outcome.__traceback__, outcome.__cause__ = b"", None, None
        else:
            backlog.put(index, outcome["image"].pop("bytes"))
        return outcome

    async def write_first() -> None:
        index, row, job = under_way[0]
        outcome = await job
        under_way.popleft()
        data, place = backlog.take(index), source.first_row + index
        if isinstance(outcome, Rejected):
            shard.reject(row["key"], outcome.reason, state=outcome.state, row=place, error=outcome.error, data=data)
        else:
            outcome["image"]["bytes"] = data
            shard.keep(outcome, len(data))

    async with Downloader(config, share=share) as downloader:
        try:
            for index, row in enumerate(_manifest_rows(source)):
                under_way.append((index, row, asyncio.create_task(fetched(row, index))))
                while under_way and (len(under_way) >= MAX_UNDER_WAY or under_way[0][2].done()):
                    await write_first()
            while under_way:
                await write_first()
        finally:
            for _, _, job in under_way:
                job.cancel()
            await asyncio.gather(*(job for _, _, job in under_way), return_exceptions=True)
            backlog.close()


def _manifest_rows(source: ShardRef) -> Iterator[dict[str, Any]]:
    for batch in read_batches(source):
        yield from batch.to_pylist()
