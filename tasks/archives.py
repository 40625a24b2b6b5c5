"""The HTML pages of web archives and the images that they name: WARC, and WAT as Common Crawl makes them of WARC.

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
from typing import Any, Literal, NamedTuple

import fsspec

from lvd.infra.errors import InputError
from lvd.tasks.pages.images import PageImage, chosen_source, parsed
from lvd.tasks.pages.web_urls import absolute_url
from lvd.tasks.records import MAX_HEADER_BYTES, MAX_PAGE_BYTES, STEP_BYTES, Broken, Record, records

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
    license: str | None  # what the page names with rel="license": of the page, and so of most images that are its own


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
        for record in records(path, file):
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


_Attributes = dict[str, str]


def _warc_page(record: Record) -> Page | None:
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
    return Page(url, _utc(warc.headers.get("WARC-Date")), [*tags, *page.robots], page.images, page.license)


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


def _wat_page(record: Record) -> Page | None:
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
        license=_wat_license([*_sequence(head.get("Link")), *_sequence(html.get("Links"))], base or url),
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


def _wat_license(links: list[Any], base: str) -> str | None:
    """Where the first link with rel="license" leads; <link> elements come first."""
    for link in filter(_is_entry, links):
        if link["path"] in ("LINK@/href", "A@/href") and "license" in str(link.get("rel")).lower().split():
            return absolute_url(link["url"].replace("&amp;", "&"), base)
    return None


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
