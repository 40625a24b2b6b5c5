"""The HTML pages of web archives and the images that they name: WARC, and WAT as Common Crawl makes them of WARC.

FastWARC parses the records; where each begins and ends is found here. Its `ArchiveIterator` (2.0) stops for good at the
first broken gzip member, says nothing of a file that is cut, and lets a record that announces too many bytes take in
the records after it.

A WAT names less than its pages do: its extractor (ia-web-commons, `ExtractingParseObserver`) writes `src`, `alt`,
`title` and `longdesc` of an <img>, and of an <img> without `src` nothing: what is loaded lazily is in the WARC only.
"""

import glob
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from html import unescape
from typing import Any, Literal, NamedTuple, Protocol

import fsspec

from lvd.infra.errors import InputError
from lvd.tasks.page_images import PageImage, absolute_url, chosen_source, parsed

MAX_PAGE_BYTES = 8 << 20  # of a page's HTML or of its JSON: no more is looked at
MAX_HEADER_BYTES = 64 << 10  # of a WARC header, and of an HTTP header
KEPT_BYTES = MAX_PAGE_BYTES + MAX_HEADER_BYTES  # of a record's block
READ_BYTES = 64 << 10  # of the file at once: zlib copies what it leaves of them
INFLATED_BYTES = 64 << 10  # of a gzip member at once: at a fault so many bytes before it are lost
STEP_BYTES = 4 << 10  # of what FastWARC decompresses: at a fault it gives nothing of what was asked for
RETRIED_BYTES = 1 << 20  # before the place where a gzip member turned out to be broken
PATTERN_BYTES = 64  # more than the patterns below need in view

_RECORD = re.compile(rb"WARC/\d[.]\d{1,2}[ \t]{0,2}\r?\n")
_RECORD_AGAIN = re.compile(_RECORD.pattern + rb"(?:WARC|Content)-[A-Za-z]", re.IGNORECASE)  # amid something else
_RECORD_END = re.compile(rb"[\r\n]{0,32}(?:WARC/|\Z)")
_HEADER_END = re.compile(rb"\n\r?\n")
_FIELD = re.compile(rb"^(WARC-Type|Content-Length)[ \t]*:[ \t]*(.*?)[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_NEWLINES = re.compile(rb"[\r\n]*")
_PADDING = re.compile(rb"[\r\n\0]*")
_GZIP = re.compile(rb"\x1f\x8b\x08")
_ZSTD = re.compile(rb"\x28\xb5\x2f\xfd|\x5d\x2a\x4d\x18")  # a frame, or the dictionary before the frames
_LZ4 = re.compile(rb"\x04\x22\x4d\x18")
_CHUNK = re.compile(rb"(?:\r?\n)?([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")
_CHARSET = re.compile(r"""charset\s*=\s*["']?([^\s"';,]+)""", re.IGNORECASE)
_SURROGATE = re.compile(r"(\\u[dD][89abAB]..\\u[dD][c-fC-F]..)|\\u[dD][89a-fA-F]..")
_HTML_TYPES = frozenset(["text/html", "application/xhtml+xml"])
_WAT_IMAGE = re.compile(r"(IMG)@/|SOURCE@/(?=.*srcset)")
_URI = re.compile(r"/|[A-Za-z][A-Za-z0-9+.-]*://")
_ARCHIVE = re.compile(r"[.](?:warc|wat)(?:[.](?:gz|zst|lz4))?$", re.IGNORECASE)
_LIST = re.compile(r"[.](?:paths|txt)(?:[.]gz)?$", re.IGNORECASE)


class Page(NamedTuple):
    url: str
    crawled_at: datetime | None  # UTC
    robots: list[str]  # the values of X-Robots-Tag, then the contents of <meta name="robots">
    images: list[PageImage]


class Broken(NamedTuple):
    """A place of an archive that could not be read."""

    key: str  # "{path}#{offset}" of the record: in the file, and "+{offset}" in what is compressed there
    reason: Literal["unreadable_archive", "unreadable_record"]  # nothing more can be read from here; passed over
    error: str


def pages(path: str, kind: Literal["warc", "wat"]) -> Iterator[Page | Broken]:
    """Every HTML page of an archive file, streamed: plain, gzip (a member per record or any other), zstd or LZ4.

    Of a WARC: `response` records with a status of 2xx and `resource` records, of an HTML or XHTML content type. What is
    broken is a `Broken`, and reading goes on with the next record that can be found. Faults of the storage or of the
    network are raised as they are.
    """
    page_of = {"warc": _warc_page, "wat": _wat_page}[kind]
    fs, name = fsspec.core.url_to_fs(path)
    try:
        opened = fs.open(name, "rb")
    except (FileNotFoundError, IsADirectoryError) as error:
        if not fs.isdir(name):
            raise
        yield Broken(path, "unreadable_archive", f"is a folder: {error}")
        return
    with opened as file:
        for record in _records(path, file):
            if isinstance(record, Broken):
                yield record
                continue
            try:
                page = page_of(record)
            except Exception as error:  # noqa: BLE001 - one bad record costs one record
                yield Broken(record.key, "unreadable_record", f"{type(error).__name__}: {error}")
                continue
            if page is not None:
                yield page


# ---- from records to pages


_Attributes = dict[str, str]


class _Record(NamedTuple):
    key: str
    kind: str  # WARC-Type
    data: bytes  # the header, and of the block at most KEPT_BYTES
    header_size: int


def _warc_page(record: _Record) -> Page | None:
    from fastwarc.warc import WarcRecord

    if record.kind not in ("response", "resource"):
        return None
    warc = WarcRecord.from_reader(io.BytesIO(record.data), quirks_mode=True)
    if record.kind == "resource":
        content_type, tags, codings = warc.headers.get("Content-Type"), [], []
    elif warc.is_http:
        warc.parse_http(quirks_mode=True, max_header_len=MAX_HEADER_BYTES)
        http = warc.http_headers
        if http is None or http.status_code is None:
            raise ValueError("is no HTTP response")
        if not 200 <= http.status_code <= 299:
            return None
        content_type, tags = http.get("Content-Type"), http.get_multiple("X-Robots-Tag")
        codings = [*http.get_multiple("Content-Encoding"), *http.get_multiple("Transfer-Encoding")]
    else:
        return None
    content_type = content_type or warc.headers.get("WARC-Identified-Payload-Type") or ""
    if re.split("[;,]", content_type, maxsplit=1)[0].strip().lower() not in _HTML_TYPES:
        return None
    url, charset = _target(warc.headers.get("WARC-Target-URI")), _CHARSET.search(content_type)
    html = _decoded(warc.reader.read(), codings)[:MAX_PAGE_BYTES]
    page = parsed(html, url, charset=charset[1] if charset else None)
    return Page(url, _utc(warc.headers.get("WARC-Date")), [*tags, *page.robots], page.images)


def _target(url: object) -> str:
    if not (isinstance(url, str) and url.strip(" <>")):
        raise ValueError("has no WARC-Target-URI")
    return url.strip(" <>")  # wget, and WARC 1.0 in its grammar, write <URI>


def _utc(date: object) -> datetime | None:
    try:
        found = datetime.fromisoformat(date.strip())
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (AttributeError, ValueError, OverflowError):
        return None


def _decoded(body: bytes, values: Sequence[str]) -> bytes:
    """The body without the codings that the values of Content-Encoding and then Transfer-Encoding name.

    A coding that the body is not in is passed by: many archives keep the header of what they store decoded.
    """
    codings = [coding.strip().lower() for value in values for coding in value.split(",")]
    for coding in reversed(codings):
        body = _without_chunks(body) if coding == "chunked" else _decompressed(body, coding) or body
    return body


def _without_chunks(body: bytes) -> bytes:
    parts, position = [], 0
    while chunk := _CHUNK.match(body, position):
        position = chunk.end() + int(chunk[1], 16)
        if position == chunk.end():
            return b"".join(parts)
        parts.append(body[chunk.end() : position])
    return b"".join(parts) or body  # cut, or not chunked


def _decompressed(body: bytes, coding: str) -> bytes:
    """At most MAX_PAGE_BYTES of what the body holds; of one that is cut, what stands before; else nothing."""
    from fastwarc.stream_io import BrotliReader, GzipReader, ZstdReader

    match coding:
        case "gzip" | "x-gzip":
            return _first_bytes(GzipReader, body)
        case "deflate":  # servers send zlib's format, and what it holds
            return _first_bytes(partial(GzipReader, zlib=True), body) or _inflated(body)
        case "br":
            return _first_bytes(BrotliReader, body)
        case "zstd":
            return _first_bytes(ZstdReader, body)
    return b""


def _first_bytes(reader_of: Callable[[io.BytesIO], Any], body: bytes) -> bytes:
    parts, room = [], MAX_PAGE_BYTES
    with suppress(OSError):
        reader = reader_of(io.BytesIO(body))
        while part := reader.read(min(room, STEP_BYTES)):
            parts.append(part)
            room -= len(part)
    return b"".join(parts)


def _inflated(body: bytes) -> bytes:
    inflate, data = zlib.decompressobj(-zlib.MAX_WBITS), b""
    with suppress(zlib.error):
        data = inflate.decompress(body, MAX_PAGE_BYTES)
    return b"" if inflate.unused_data else data  # the beginning of a text, too, may look deflated


def _wat_page(record: _Record) -> Page | None:
    if record.kind != "metadata":
        return None
    envelope = _mapping(_json(record.data[record.header_size :]), "Envelope")
    response = _mapping(envelope, "Payload-Metadata", "HTTP-Response-Metadata")
    html = response.get("HTML-Metadata")
    if not isinstance(html, dict):
        return None
    status = str(_mapping(response, "Response-Message").get("Status", "200"))
    about = _mapping(envelope, "WARC-Header-Metadata")
    if not status.startswith("2") or about.get("WARC-Type", "response") != "response":
        return None
    head, headers = _mapping(html, "Head"), _mapping(response, "Headers")
    metas = [meta for meta in _sequence(head.get("Metas")) if isinstance(meta, dict)]
    robots = [value for name, given in headers.items() if name.lower() == "x-robots-tag" for value in _sequence(given)]
    robots += [meta.get("content") for meta in metas if str(meta.get("name")).strip().lower() == "robots"]
    url = _target(about.get("WARC-Target-URI"))
    base = head.get("Base")
    base = absolute_url(base.replace("&amp;", "&"), url) if isinstance(base, str) else None
    return Page(
        url=url,
        crawled_at=_utc(about.get("WARC-Date")),
        robots=[value for value in robots if value and isinstance(value, str)],
        images=list(_wat_images(_sequence(html.get("Links")), base or url)),
    )


def _json(block: bytes) -> Any:
    import orjson

    if len(block) > MAX_PAGE_BYTES:
        raise ValueError(f"must hold at most {MAX_PAGE_BYTES} bytes, holds more")
    try:
        return orjson.loads(block)
    except ValueError:  # half of a surrogate pair, or bytes that are not UTF-8: both come from real pages
        return orjson.loads(_SURROGATE.sub(lambda found: found[1] or r"\ufffd", block.decode("utf-8", "replace")))


def _mapping(value: Any, *names: str) -> dict[str, Any]:
    """What stands below the names; empty if nothing does."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _sequence(value: Any) -> list[Any]:
    """The values of a key: the extractor writes a list where there is more than one."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _wat_images(links: list[Any], base: str) -> Iterator[PageImage]:
    for img, sources, alt in _wat_elements(links):
        chosen = chosen_source(img, sources)
        if chosen and (url := absolute_url(chosen, base)):
            yield PageImage(url, alt)


def _wat_elements(links: list[Any]) -> Iterator[tuple[_Attributes, list[_Attributes], str | None]]:
    """(<img>, the <source> before it, alt) for each run of entries that one <img> can have made.

    An attribute that is there already begins the next <img>. The extractor writes no <source srcset> and no lazy
    attribute to this day; other writers of WAT files may. Old WATs have `&amp;` as the page has it.
    """
    img: _Attributes = {}
    sources: list[_Attributes] = []
    alt = None
    for link in [*links, None]:
        found = _WAT_IMAGE.match(link["path"]) if _is_entry(link) else None
        if found is None and not (img or sources):
            continue
        attribute = link["path"][found.end() :].lower() if found else ""
        if found is None or (img and (found[1] is None or attribute in img)):
            yield img, sources, alt
            img, sources, alt = {}, [], None
        if found is None:
            continue
        url = link["url"].replace("&amp;", "&")
        if found[1]:
            img[attribute] = url
            alt = alt or " ".join(unescape(str(link.get("alt") or "")).split()) or None
        else:
            sources.append({name: text for name, text in link.items() if isinstance(text, str)} | {attribute: url})


def _is_entry(link: Any) -> bool:
    return isinstance(link, dict) and isinstance(link.get("path"), str) and isinstance(link.get("url"), str)


# ---- from files to records


def _records(path: str, file: Any) -> Iterator[_Record | Broken]:
    """The records of the file; of what is broken the last is `unreadable_archive` if no record comes after it."""
    runs, fault, is_empty = _runs(file), None, True
    while runs.next_run():
        for found in _run_records(path, runs):
            if fault is not None:
                yield fault
            fault, is_empty = (found if isinstance(found, Broken) else None), False
            if fault is None:
                yield found
    if is_empty:
        yield Broken(path, "unreadable_archive", "is empty")
    if fault is not None:
        yield fault._replace(reason="unreadable_archive")


def _run_records(path: str, runs: "_Runs") -> Iterator[_Record | Broken]:
    data, told = _Bytes(runs.more), ""
    while True:
        data.skip_all(_NEWLINES)
        key = path + runs.place(data.position)
        head = _head(data)
        if head is None and not data.has(1):
            break
        if head is None:
            told = runs.error
            yield Broken(key, "unreadable_record", told or "has no WARC header with a Content-Length")
            data.skip(1)
            data.skip_to(_RECORD_AGAIN)
            continue
        kind, header_size, size = head
        inner = _inner_record(data, header_size, size)
        record = b"" if inner else data.peek(min(size, header_size + KEPT_BYTES))
        passed = data.skip(size if inner is None else inner)
        data.skip_all(_NEWLINES)
        if inner is not None:
            error = f"announces {size - header_size} bytes, but another record begins after {inner - header_size}"
            yield Broken(key, "unreadable_record", error)
        elif passed < size or (runs.error and not data.has(1)):
            told = runs.error
            error = f"announces {size - header_size} bytes, but {passed - header_size} come"
            yield Broken(key, "unreadable_record", told or error)
        else:
            yield _Record(key, kind, record, header_size)
    if runs.error != told:
        yield Broken(path + runs.place(data.position), "unreadable_record", runs.error)


def _head(data: "_Bytes") -> tuple[str, int, int] | None:
    """(WARC-Type, bytes of the header, bytes of the record) of the record that begins here."""
    end = data.search(_HEADER_END, 0, MAX_HEADER_BYTES) if data.matches(_RECORD) else None
    if end is None:
        return None
    header_size = end[1]
    fields = {name.lower(): value for name, value in _FIELD.findall(data.peek(header_size))}
    length = fields.get(b"content-length", b"")
    if not length.isdigit():
        return None
    return fields.get(b"warc-type", b"").decode("latin-1").lower(), header_size, header_size + int(length[:18])


def _inner_record(data: "_Bytes", header_size: int, size: int) -> int | None:
    """Where in the record another one begins, if it does not end where it says. A very large one is believed."""
    kept = header_size + KEPT_BYTES
    if data.has(min(size, kept)) and (size > kept or data.matches(_RECORD_END, size)):
        return None
    inner = data.search(_RECORD_AGAIN, header_size, min(size, kept))
    return inner[0] if inner else None


class _Bytes:
    """A stream that is read forward, with a view of what comes next. Offsets count from the next byte."""

    def __init__(self, more: Callable[[], bytes], seek: Callable[[int], Any] | None = None) -> None:
        self._more = more  # the next bytes, b"" at the end
        self._seek = seek
        self._has_more = True
        self._view = b""
        self._at = 0
        self.position = 0  # of the next byte

    def has(self, num_bytes: int) -> bool:
        """True if so many bytes come; they, or all that there are, are in view then."""
        left = len(self._view) - self._at
        if left >= num_bytes or not self._has_more:
            return left >= num_bytes
        parts = [self._view[self._at :]]
        while left < num_bytes and self._has_more:
            parts.append(self._more())
            left += len(parts[-1])
            self._has_more = bool(parts[-1])
        self._view, self._at = b"".join(parts), 0
        return left >= num_bytes

    def peek(self, num_bytes: int) -> bytes:
        """So many of the next bytes, fewer at the end."""
        self.has(num_bytes)
        return self._view[self._at : self._at + num_bytes]

    def in_view(self) -> memoryview:
        """The next bytes that are in view: one at least, but at the end."""
        self.has(1)
        return memoryview(self._view)[self._at :]

    def matches(self, pattern: re.Pattern[bytes], start: int = 0) -> bool:
        """True if the pattern, of at most PATTERN_BYTES, matches there."""
        self.has(start + PATTERN_BYTES)
        return pattern.match(self._view, self._at + start) is not None

    def search(self, pattern: re.Pattern[bytes], start: int, stop: int) -> tuple[int, int] | None:
        """Start and end of the pattern's first match between two offsets."""
        self.has(stop)
        found = pattern.search(self._view, self._at + start, self._at + stop)
        return (found.start() - self._at, found.end() - self._at) if found else None

    def skip(self, num_bytes: int) -> int:
        """How many bytes were passed: fewer than asked for at the end."""
        passed = 0
        while passed < num_bytes and self.has(1):
            step = min(num_bytes - passed, len(self._view) - self._at)
            self._at += step
            passed += step
        self.position += passed
        return passed

    def back_to(self, position: int) -> None:
        """Go back, where the stream can."""
        with suppress(ValueError):  # what a web server sends as a stream cannot
            self._seek(position)
            self._view, self._at, self._has_more, self.position = b"", 0, True, position

    def skip_all(self, pattern: re.Pattern[bytes]) -> None:
        """Pass the bytes that the pattern, which repeats one of several bytes, matches."""
        while self.has(1) and (size := pattern.match(self._view, self._at).end() - self._at):
            self.skip(size)

    def skip_to(self, pattern: re.Pattern[bytes]) -> bool:
        """True if the pattern, of at most PATTERN_BYTES, comes: it is next then; else nothing is left."""
        while True:
            is_end = not self.has(READ_BYTES)
            found = pattern.search(self._view, self._at)
            left = len(self._view) - self._at
            self.skip(found.start() - self._at if found else left if is_end else left - PATTERN_BYTES)
            if found or is_end:
                return found is not None


class _Runs(Protocol):
    """A file as runs of bytes that belong together. No record reaches from one run into another."""

    error: str  # why the run ends before its time

    def next_run(self) -> bool: ...
    def more(self) -> bytes: ...
    def place(self, position: int) -> str: ...  # "#{offset}" in the file, "+{offset}" in what is compressed there


def _runs(file: Any) -> _Runs:
    """The runs of a file, whose format its first bytes tell."""
    from fastwarc.stream_io import Lz4Reader, ZstdReader

    raw = _Bytes(lambda: file.read(READ_BYTES), file.seek)
    if raw.matches(_GZIP):
        return _Members(raw)
    if raw.matches(_ZSTD):
        return _OneRun(raw, ZstdReader)
    return _OneRun(raw, Lz4Reader if raw.matches(_LZ4) else None)


class _OneRun:
    """A file without compression, or in frames that a reader of FastWARC puts together."""

    def __init__(self, raw: _Bytes, reader: Callable[[Any], Any] | None) -> None:
        self.error = ""
        self._raw = raw
        self._reader = reader(self) if reader else self
        self._is_begun = False
        self._is_reading = False

    def read(self, size: int = -1) -> bytes:
        """Bytes of the file."""
        self._is_reading = True
        data = bytes(self._raw.in_view()[: size if size >= 0 else None])
        self._is_reading = False
        self._raw.skip(len(data))
        return data

    def tell(self) -> int:
        return self._raw.position

    def next_run(self) -> bool:
        is_begun, self._is_begun = self._is_begun, True
        return not is_begun

    def more(self) -> bytes:
        try:
            return self._reader.read(READ_BYTES if self._reader is self else STEP_BYTES)
        except OSError as error:
            if self._is_reading:  # the storage's fault
                raise
            self.error = str(error)
            return b""

    def place(self, position: int) -> str:
        return f"#{position}" if self._reader is self or position == 0 else f"#0+{position}"


class _Members:
    """A gzip file. Each member that begins with a record begins a run; what follows, up to the next such member,
    belongs to it, as where a file is one member or its members are blocks of a fixed size."""

    def __init__(self, raw: _Bytes) -> None:
        self.error = ""
        self._raw = raw
        self._inflate: Any = None  # of the member that is read
        self._offset = 0  # of that member
        self._run_offset = 0
        self._ahead = b""  # the beginning of the next run
        self._ahead_error = ""  # why the next run has none

    def next_run(self) -> bool:
        is_told = bool(self.error)
        self.error, self._ahead_error = self._ahead_error, ""
        if not (self.error or self._ahead):
            if is_told and self._raw.position > self._offset:  # a broken member may have taken others for its own
                self._raw.back_to(max(self._offset + 1, self._raw.position - RETRIED_BYTES))
            self._raw.skip_all(_PADDING)
            begin = self._raw.position
            is_found = self._find_record()
            if not is_told and (self._offset if is_found else self._raw.position) > begin:
                self._run_offset, self.error = begin, "is no gzip member that begins with a WARC record"
                return True
            if not is_found:
                return False
        self._run_offset = self._offset
        return True

    def more(self) -> bytes:
        if self.error:
            return b""
        data, self._ahead = self._ahead, b""
        while not data:
            data = self._inflated()
            if data or self.error or not self._raw.matches(_GZIP):
                break
            self._begin_member()
            if self.error:
                self._ahead, self._ahead_error, self.error = b"", self.error, ""
                break
            if _RECORD.match(self._ahead):
                break
            data, self._ahead = self._ahead, b""
        return data

    def place(self, position: int) -> str:
        return f"#{self._run_offset}+{position}" if position else f"#{self._run_offset}"

    def _find_record(self) -> bool:
        """True if a member that begins with a record comes: it is begun then."""
        while self._raw.skip_to(_GZIP):
            self._begin_member()
            self.error = ""
            if _RECORD.match(self._ahead):
                return True
            self._ahead = b""
            if self._raw.position == self._offset:
                self._raw.skip(1)
        return False

    def _begin_member(self) -> None:
        self._offset = self._raw.position
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS + 16)
        self._raw.has(PATTERN_BYTES)
        self._ahead = self._inflated()
        while 0 < len(self._ahead) < PATTERN_BYTES and (more := self._inflated()):
            self._ahead += more

    def _inflated(self) -> bytes:
        """More bytes of the member, b"" at its end or at its fault."""
        data = b""
        while not (data or self._inflate.eof or self.error):
            chunk = self._raw.in_view()
            try:
                data = self._inflate.decompress(chunk, INFLATED_BYTES)
            except zlib.error as error:
                self.error = str(error)
            else:
                left = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
                self._raw.skip(len(chunk) - len(left))
                if not chunk:
                    self.error = "the file ends within a gzip member"
        return data


# ---- which files


def is_list(path: str) -> bool:
    """True if the name is that of a list of archives."""
    return _names(_LIST, path)


def archive_files(path: str, prefix: str = "") -> list[str]:
    """The archive files that a path stands for: itself, those in a folder or of a glob (sorted), or those that a list
    names, one a line (in its order, each once).

    prefix: put before every line of a list that is neither an absolute path nor a URI, as Common Crawl's lists need it
    (`https://data.commoncrawl.org/`). Raises InputError if there is nothing at the path, or nothing that is an archive.
    """
    try:
        fs, name = fsspec.core.url_to_fs(path)
        fs.invalidate_cache()
        if is_list(name) and _is_file(fs, name):
            found = _listed(fs, name, prefix)
        elif (_names(_ARCHIVE, name) and _is_file(fs, name)) or fs.exists(name):
            found = sorted(_uri(fs, file) for file in _archives(fs, name))
        elif glob.has_magic(name):
            fixed = len(re.split(r"[*?[]", name, maxsplit=1)[0])
            matches = [match for match in fs.glob(name) if not _is_hidden(match[fixed:])]
            found = sorted({_uri(fs, file) for match in matches for file in _archives(fs, match)})
        else:
            raise InputError(f"path must exist, was {path!r}: name a file, a folder or a glob that matches")
    except (ValueError, ImportError, PermissionError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"path must be readable, was {path!r}: {error}") from error
    if not found:
        raise InputError(f"path must hold web archives, was {path!r}: name files like {_EXAMPLES}, or a list of them")
    return found


_EXAMPLES = "a.warc, a.warc.gz, a.warc.zst or a.warc.wat.gz"


def _names(pattern: re.Pattern[str], name: str) -> bool:
    """True if the pattern is the end of the name; what a URL asks for after `?` does not count."""
    return pattern.search(name.partition("?")[0] if name.startswith(("http://", "https://")) else name) is not None


def _is_file(fs: Any, name: str) -> bool:
    """To ask a web server whether something is a folder is to read it."""
    return fs.exists(name) if name.startswith(("http://", "https://")) else fs.isfile(name)


def _archives(fs: Any, name: str) -> list[str]:
    """The file itself if it is an archive, or the archives in the folder and its folders that are not hidden."""
    if _names(_ARCHIVE, name) and _is_file(fs, name):
        return [name]
    return [file for file in fs.find(name) if _names(_ARCHIVE, file) and not _is_hidden(file[len(name) :])]


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _listed(fs: Any, name: str, prefix: str) -> list[str]:
    if prefix and not prefix.endswith("/"):
        prefix += "/"
    with fs.open(name, "rb", compression="infer") as file:
        lines = file.read().decode("utf-8-sig", "replace").splitlines()
    paths = filter(None, map(str.strip, lines))
    return list(dict.fromkeys(path if _URI.match(path) else prefix + path for path in paths))


def _uri(fs: Any, name: str) -> str:
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return name if "file" in protocols else fs.unstrip_protocol(name)
