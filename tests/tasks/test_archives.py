"""Archives that are whole, compressed in every way, cut and broken; pages as servers send them; WAT as it is made."""

import gzip
import io
import json
import random
import tracemalloc
import zlib
from contextlib import contextmanager
from datetime import UTC, datetime

import brotli
import fsspec
import pytest
from fastwarc.stream_io import GzipWriter, Lz4Writer, ZstdWriter
from fastwarc.warc import WarcRecord, WarcRecordType
from fsspec.implementations.local import LocalFileSystem

from lvd.infra.errors import InputError
from lvd.tasks import archives
from lvd.tasks import records as record_reader
from lvd.tasks.archives import Broken, Page, archive_files, pages
from lvd.tasks.pages.images import PageImage
from lvd.tests.web import MiniatureWeb

DATE = "2024-05-18T01:58:10Z"
HTML = {"Content-Type": "text/html; charset=utf-8"}


def record(url, block, *, kind="response", version="1.0", length=None, **headers):
    """A WARC record by hand."""
    headers = {
        "WARC-Type": kind,
        "WARC-Date": DATE,
        "WARC-Record-ID": "<urn:uuid:5f0c5ac0-5f1e-4a0c-8f06-6e9a1d3c9f01>",
        "WARC-Target-URI": url,
        "Content-Type": "application/http; msgtype=response",
        "Content-Length": str(len(block) if length is None else length),
    } | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"WARC/{version}", *(f"{name}: {value}" for name, value in headers.items() if value is not None)]
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + block + b"\r\n\r\n"


def http(body, headers=HTML, status="200 OK"):
    """An HTTP response as a record holds it."""
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers.items())]
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + body


def body_of(number):
    """A page with one image, and text that does not compress."""
    return b'<html><img src="/%d.jpg"><p>%s' % (number, random.Random(number).randbytes(400).hex().encode())


def page(number, **more):
    return record(f"http://a.org/{number}", http(body_of(number)), **more)


def read(tmp_path, data, kind="warc"):
    (tmp_path / "a.warc").write_bytes(data)
    return list(pages(str(tmp_path / "a.warc"), kind))


def found(tmp_path, data, kind="warc"):
    """A number for each page of `page`, and (offset, is it the end) for each break."""
    ours = f"{tmp_path / 'a.warc'}"
    outcome = []
    for item in read(tmp_path, data, kind):
        if isinstance(item, Broken):
            assert item.key.startswith(ours) and item.error and "\n" not in item.error
            outcome.append((item.key.removeprefix(ours), item.reason == "unreadable_archive"))
        else:
            number = int(item.url.rpartition("/")[2])
            assert item.images == [PageImage(f"http://a.org/{number}.jpg", None)]
            outcome.append(number)
    return outcome


def images_of(tmp_path, block, **headers):
    (only,) = read(tmp_path, record("http://a.org/x/", block, **headers))
    return [image.url for image in only.images]


# ---- compression and storage


def written(writer, records, **options):
    """The records as FastWARC writes them, one frame or member each."""
    file = io.BytesIO()
    stream = writer(file, **options)
    for number in records:
        made = WarcRecord()
        made.init_headers(WarcRecordType.response, record_urn=b"<urn:uuid:5f0c5ac0-5f1e-4a0c-8f06-6e9a1d3c9f01>")
        made.headers["WARC-Target-URI"] = f"http://a.org/{number}"
        made.is_http = True
        made.set_bytes_content(http(body_of(number)))
        made.write(stream)
        stream.finish()
    stream.flush()
    return file.getvalue()


def blocks(data, size):
    """Members of a fixed size, as bgzip writes them, with its empty last one."""
    return b"".join(gzip.compress(data[start : start + size]) for start in range(0, len(data), size)) + gzip.compress(
        b""
    )


ALL = range(5)
PLAIN = b"".join(map(page, ALL))
MEMBERS = [gzip.compress(page(number)) for number in ALL]
WRITTEN = {
    "plain": PLAIN,
    "1.1": b"".join(page(number, version="1.1") for number in ALL),
    "line feeds only": b"".join(
        record(f"http://a.org/{n}", http(body_of(n)).replace(b"\r", b"")).replace(b"\r", b"") for n in ALL
    ),
    "gzip, a member per record": b"".join(MEMBERS),
    "gzip, one member": gzip.compress(PLAIN),
    "gzip, small blocks": blocks(PLAIN, 300),
    "gzip, padded": b"".join(MEMBERS) + bytes(100_000),
    "FastWARC, gzip": written(GzipWriter, ALL),
    "FastWARC, Zstandard": written(ZstdWriter, ALL),
    "FastWARC, LZ4": written(Lz4Writer, ALL),
}


@pytest.mark.parametrize("data", WRITTEN.values(), ids=WRITTEN)
def test_every_page_is_found_however_the_archive_is_compressed(tmp_path, data):
    assert found(tmp_path, data) == list(ALL)


def test_a_page_larger_than_what_is_read_at_once(tmp_path):
    body = b'<img src="/0.jpg">' + random.Random(0).randbytes(3 << 20).hex().encode()
    large = record("http://a.org/0", http(body))
    for data in (large + page(1), gzip.compress(large) + MEMBERS[1], blocks(large + page(1), 1 << 16)):
        assert found(tmp_path, data) == [0, 1]


def test_an_archive_on_s3(s3_root):
    with fsspec.open(f"{s3_root}/a.warc.gz", "wb") as file:
        file.write(b"".join(MEMBERS))
    assert archive_files(s3_root) == archive_files(f"{s3_root}/*.gz") == [f"{s3_root}/a.warc.gz"]
    assert [item.url for item in pages(f"{s3_root}/a.warc.gz", "warc")] == [f"http://a.org/{n}" for n in ALL]


@pytest.fixture
def web(tmp_path):
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "a.warc.gz").write_bytes(b"".join(MEMBERS))
    with MiniatureWeb(tmp_path) as server:
        yield server


def test_an_archive_on_the_web(web):
    url = f"{web.url}/a.warc.gz?signature=1.2"
    assert archive_files(url) == [url]
    assert [item.url for item in pages(url, "warc")] == [f"http://a.org/{n}" for n in ALL]
    with pytest.raises(InputError, match=r"path must exist, was 'http://.*/b\.warc\.gz'"):
        archive_files(f"{web.url}/b.warc.gz")


@pytest.mark.parametrize("how", ["serve", "chunked"])
def test_in_a_damaged_archive_from_the_web_there_may_be_no_way_back(web, tmp_path, how):
    """To look for what a broken member has taken for its own; there is none in what comes without a length."""
    (tmp_path / "web" / "a.warc.gz").write_bytes(b"".join([MEMBERS[0], MEMBERS[1][:-30], *MEMBERS[2:]]))
    (tmp_path / "web" / "faults.json").write_text(json.dumps({"a.warc.gz": {"do": how}}))
    outcome = list(pages(f"{web.url}/a.warc.gz", "warc"))
    urls = [item.url for item in outcome if isinstance(item, Page)]
    assert urls == [f"http://a.org/{number}" for number in (ALL if how == "serve" else [0, 1])]
    assert sum(isinstance(item, Broken) for item in outcome) == 1


def test_a_connection_that_breaks_is_not_the_archive_s_fault(web, tmp_path):
    faults = {"a.warc.gz": {"do": "cut", "missing_bytes": 10}}
    (tmp_path / "web" / "faults.json").write_text(json.dumps(faults))
    with pytest.raises(Exception, match="payload"):
        list(pages(f"{web.url}/a.warc.gz", "warc"))


class Failing(io.BytesIO):
    """A file on a storage that fails instead of ending."""

    def read(self, size=-1):
        if data := super().read(size):
            return data
        raise OSError("the storage is gone")


MANY = range(300)
FAILING = {
    "plain": b"".join(map(page, MANY)),
    "gzip": b"".join(gzip.compress(page(number)) for number in MANY),
    "Zstandard": written(ZstdWriter, MANY),
    "LZ4": written(Lz4Writer, MANY),
}


@pytest.mark.parametrize("data", FAILING.values(), ids=FAILING)
def test_a_fault_of_the_storage_is_raised_after_what_came(tmp_path, monkeypatch, data):
    monkeypatch.setattr(LocalFileSystem, "open", lambda *_, **__: Failing(data))
    reading = pages(str(tmp_path / "a.warc"), "warc")
    assert [next(reading).url for _ in range(50)] == [f"http://a.org/{number}" for number in range(50)]
    with pytest.raises(OSError, match="the storage is gone"):
        list(reading)


def test_a_file_that_is_not_there_is_raised(tmp_path):
    with pytest.raises(FileNotFoundError):
        list(pages(str(tmp_path / "nowhere.warc"), "warc"))


def test_a_folder_is_no_archive(tmp_path):
    (broken,) = pages(str(tmp_path), "warc")
    assert broken[:2] == (str(tmp_path), "unreadable_archive")


# ---- what a page is


def test_a_page_is_told_in_full(tmp_path):
    body = (
        b'<head><base href="/b/"><meta name="robots" content="noindex"><meta name="ROBOTS" content="noarchive"></head>'
        b'<img src="a.jpg" alt=" An\n image "><img src="//c.org/d.png"><img src="data:image/gif;base64,R0">'
        b'<a rel="nofollow license" href="cc">terms</a>'
    )
    headers = HTML | {"X-Robots-Tag": "noai", "x-robots-tag": "googlebot: noimageindex"}
    (only,) = read(tmp_path, record("https://a.org/x/y?z", http(body, headers)))
    assert only == Page(
        url="https://a.org/x/y?z",
        crawled_at=datetime(2024, 5, 18, 1, 58, 10, tzinfo=UTC),
        robots=["noai", "googlebot: noimageindex", "noindex", "noarchive"],
        images=[PageImage("https://a.org/b/a.jpg", "An image"), PageImage("https://c.org/d.png", None)],
        license="https://a.org/b/cc",
    )


BODY = b'<img src="/1.jpg">'
RECORDS = {  # a record, and whether it is a page
    "status 203": (record("http://a.org/", http(BODY, status="203 Modified")), True),
    "no reason": (record("http://a.org/", http(BODY, status="200")), True),
    "redirect": (record("http://a.org/", http(BODY, status="301 Moved")), False),
    "not found": (record("http://a.org/", http(BODY, status="404 Not Found")), False),
    "XHTML": (record("http://a.org/", http(BODY, {"Content-Type": "application/xhtml+xml"})), True),
    "upper case": (record("http://a.org/", http(BODY, {"CONTENT-TYPE": "Text/HTML ;Charset=x"})), True),
    "twice": (record("http://a.org/", http(BODY, {"Content-Type": "text/html, text/html"})), True),
    "image": (record("http://a.org/", http(BODY, {"Content-Type": "image/png"})), False),
    "XML": (record("http://a.org/", http(BODY, {"Content-Type": "application/xml"})), False),
    "no type": (record("http://a.org/", http(BODY, {})), False),
    "type found by the crawler": (
        record("http://a.org/", http(BODY, {}), WARC_Identified_Payload_Type="text/html"),
        True,
    ),
    "the server's type counts": (
        record("http://a.org/", http(BODY, {"Content-Type": "text/plain"}), WARC_Identified_Payload_Type="text/html"),
        False,
    ),
    "resource": (record("http://a.org/", BODY, kind="resource", Content_Type="text/html"), True),
    "another resource": (record("http://a.org/", BODY, kind="resource", Content_Type="text/css"), False),
    "conversion": (record("http://a.org/", BODY, kind="conversion", Content_Type="text/html"), False),
    "revisit": (record("http://a.org/", http(BODY), kind="revisit"), False),
    "request": (record("http://a.org/", http(BODY), kind="request"), False),
    "warcinfo": (record("http://a.org/", http(BODY), kind="warcinfo"), False),
    "no HTTP": (record("dns:a.org", b"20240518 a.org. 1", Content_Type="text/dns"), False),
    "a cut page": (record("http://a.org/", http(BODY + b"<img src='/2.jp"), WARC_Truncated="length"), True),
    "URI in brackets": (record("<http://a.org/>", http(BODY)), True),
    "header of line feeds": (record("http://a.org/", http(BODY).replace(b"\r\n", b"\n")), True),
    "folded header": (record("http://a.org/", http(BODY, {"Content-Type": "text/html;\r\n charset=utf-8"})), True),
    "not UTF-8 in a header": (record("http://a.org/", http(BODY).replace(b"OK", b"\xe9")), True),
}


@pytest.mark.parametrize(("data", "is_page"), RECORDS.values(), ids=RECORDS)
def test_which_records_are_pages(tmp_path, data, is_page):
    expected = [("http://a.org/", ["http://a.org/1.jpg"])] if is_page else []
    assert [(item.url, [image.url for image in item.images]) for item in read(tmp_path, data)] == expected
    assert read(tmp_path, data + page(1))[-1].url == "http://a.org/1"


DATES = {
    "2024-05-18T01:58:10Z": datetime(2024, 5, 18, 1, 58, 10, tzinfo=UTC),
    "2024-05-18T01:58:10.123456789Z": datetime(2024, 5, 18, 1, 58, 10, 123456, tzinfo=UTC),  # WARC 1.1
    "2024-05-18": datetime(2024, 5, 18, tzinfo=UTC),
    "2024-05-18T03:58:10+02:00": datetime(2024, 5, 18, 1, 58, 10, tzinfo=UTC),
    "2024-05-18T01:58:10": datetime(2024, 5, 18, 1, 58, 10, tzinfo=UTC),
    "0001-01-01T00:00:00+14:00": None,  # before the first year that there is
    "yesterday": None,
    "": None,
}


@pytest.mark.parametrize(("text", "expected"), DATES.items())
def test_the_date_of_a_page(tmp_path, text, expected):
    (only,) = read(tmp_path, record("http://a.org/", http(BODY), WARC_Date=text))
    assert only.crawled_at == expected
    assert expected is None or only.crawled_at.tzinfo is UTC


def test_the_charset_of_the_header_is_used(tmp_path):
    """One letter, so that the bytes alone do not tell."""
    body = b'<img src="/1.jpg" alt="\xe0">'
    for content_type in ("text/html; charset=windows-1250", 'text/html;x=y; Charset = "WINDOWS-1250"; a=b'):
        (only,) = read(tmp_path, record("http://a.org/", http(body, {"Content-Type": content_type})))
        assert [image.alt for image in only.images] == ["ŕ"]


def chunked(body, size=7, extension=b""):
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in parts) + b"0\r\n\r\n"


def raw_deflate(body):
    deflate = zlib.compressobj(wbits=-15)
    return deflate.compress(body) + deflate.flush()


def zstandard(body):
    file = io.BytesIO()
    with ZstdWriter(file) as stream:
        stream.write(body)
    return file.getvalue()


LONG = b'<img src="1.jpg"><p>' + random.Random(1).randbytes(10_000).hex().encode() + b'<img src="2.jpg">'
LIKE_DEFLATE = b"""{"a":1}= mld n=ho lg laeg/ kbk/bf>b<oe c/fjdajljpiealel"d >nadj"hck>pje<l mdilkk"""
CODINGS = {  # the headers, the body as it is stored
    "none": ({}, LONG),
    "identity": ({"Content-Encoding": "identity"}, LONG),
    "unknown": ({"Content-Encoding": "sdch"}, LONG),
    "gzip": ({"Content-Encoding": "GZIP"}, gzip.compress(LONG)),
    "x-gzip": ({"content-encoding": "x-gzip"}, gzip.compress(LONG)),
    "two members": ({"Content-Encoding": "gzip"}, gzip.compress(LONG[:1000]) + gzip.compress(LONG[1000:])),
    "deflate as zlib": ({"Content-Encoding": "deflate"}, zlib.compress(LONG)),
    "deflate as it is": ({"Content-Encoding": "deflate"}, raw_deflate(LONG)),
    "brotli": ({"Content-Encoding": "br"}, brotli.compress(LONG)),
    "Zstandard": ({"Content-Encoding": "zstd"}, zstandard(LONG)),
    "two codings": ({"Content-Encoding": "gzip, br"}, brotli.compress(gzip.compress(LONG))),
    "chunked": ({"Transfer-Encoding": "chunked"}, chunked(LONG)),
    "chunks with extensions": ({"Transfer-Encoding": "chunked"}, chunked(LONG, extension=b" ;a=b")),
    "chunked gzip": ({"Content-Encoding": "gzip", "Transfer-Encoding": "chunked"}, chunked(gzip.compress(LONG))),
    "transfer coding gzip": ({"Transfer-Encoding": "gzip, chunked"}, chunked(gzip.compress(LONG))),
    **{  # as many archives store it: decoded, with the header of the server
        f"only said: {coding}": ({"Content-Encoding": coding}, LONG) for coding in ("gzip", "deflate", "br", "zstd")
    },
    "only said: chunked": ({"Transfer-Encoding": "chunked"}, LONG),
    "begins like deflate": ({"Content-Encoding": "deflate"}, LIKE_DEFLATE + b">" + LONG),
}


@pytest.mark.parametrize(("headers", "body"), CODINGS.values(), ids=CODINGS)
def test_a_body_is_decoded_as_its_headers_say(tmp_path, headers, body):
    assert images_of(tmp_path, http(body, HTML | headers)) == ["http://a.org/x/1.jpg", "http://a.org/x/2.jpg"]


@pytest.mark.parametrize(
    "name", ["gzip", "deflate as zlib", "deflate as it is", "brotli", "chunked", "chunked gzip", "two members"]
)
def test_of_a_body_that_is_cut_the_beginning_is_read(tmp_path, name):
    headers, body = CODINGS[name]
    assert images_of(tmp_path, http(body[: len(body) * 9 // 10], HTML | headers)) == ["http://a.org/x/1.jpg"]


@contextmanager
def little_memory(max_bytes):
    """Fails if Python's memory grows by more inside."""
    tracemalloc.start()
    yield
    grown = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert grown < max_bytes


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_no_more_of_a_bomb_is_decoded_than_a_page_may_have(tmp_path, monkeypatch, coding):
    monkeypatch.setattr(archives, "MAX_PAGE_BYTES", 100_000)
    compress = {"gzip": gzip.compress, "deflate": raw_deflate, "br": brotli.compress, "zstd": zstandard}[coding]
    body = compress(b'<img src="1.jpg">' + b" " * 20_000_000 + b'<img src="2.jpg">')
    data = record("http://a.org/x/", http(body, HTML | {"Content-Encoding": coding}))
    with little_memory(2_000_000):
        (only,) = read(tmp_path, data)
    assert [image.url for image in only.images] == ["http://a.org/x/1.jpg"]


@pytest.mark.parametrize(("page_bytes", "kept_bytes"), [(10_000, 11_000), (len(LONG) - 10, 100_000)])
def test_of_a_page_that_is_too_long_the_beginning_is_read(tmp_path, monkeypatch, page_bytes, kept_bytes):
    monkeypatch.setattr(archives, "MAX_PAGE_BYTES", page_bytes)
    monkeypatch.setattr(record_reader, "KEPT_BYTES", kept_bytes)
    long = record("http://a.org/x/", http(LONG))
    for data in (long + page(1), gzip.compress(long) + MEMBERS[1]):
        first, second = read(tmp_path, data)
        assert ([image.url for image in first.images], second.url) == (["http://a.org/x/1.jpg"], "http://a.org/1")


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize("content_type", ["text/html", "video/mp4"])
def test_memory_is_bounded_whatever_the_size_of_a_record(tmp_path, compress, content_type):
    large = compress(record("http://a.org/x/", bytes(60_000_000), kind="resource", Content_Type=content_type))
    (tmp_path / "a.warc").write_bytes(large + compress(page(1)))
    del large
    with little_memory(50_000_000):
        urls = [item.url for item in pages(str(tmp_path / "a.warc"), "warc")]
    assert urls[-1] == "http://a.org/1"


UNREADABLE = {
    "no address": (record("", http(BODY)), "has no WARC-Target-URI"),
    "no HTTP": (record("http://a.org/", b"<html>"), "is no HTTP response"),
    "no status": (record("http://a.org/", b"HTTP/1.1 abc\r\n\r\n"), "is no HTTP response"),
    "empty": (record("http://a.org/", b""), "is no HTTP response"),
    "endless header": (record("http://a.org/", http(BODY, {"A": "a" * 100_000})), "header length"),
}


@pytest.mark.parametrize(("data", "error"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_record_that_cannot_be_read_costs_itself(tmp_path, data, error):
    for archive in (page(0) + data + page(1), MEMBERS[0] + gzip.compress(data) + MEMBERS[1]):
        first, broken, last = read(tmp_path, archive)
        offset = len(page(0)) if archive.startswith(b"WARC") else len(MEMBERS[0])
        assert broken[:2] == (f"{tmp_path / 'a.warc'}#{offset}", "unreadable_record")
        assert error in broken.error
        assert (first.url, last.url) == ("http://a.org/0", "http://a.org/1")


# ---- broken archives


def damaged(data, start, junk):
    return data[:start] + junk + data[start + len(junk) :]


JUNK = random.Random(9).randbytes(300)
OFFSETS = [sum(map(len, MEMBERS[:number])) for number in range(6)]
RECORD_SIZE = len(page(0))
JOINED = b"".join(MEMBERS)
HEADLESS = page(2).replace(b"Content-Length", b"Content-Width")
FRAMES, FRAME_SIZE = written(ZstdWriter, ALL), len(gzip.decompress(written(GzipWriter, [0])))
BROKEN = {  # the archive, the pages and (where, is it the end) of what is broken
    "empty": (b"", [("", True)]),
    "only newlines": (b"\r\n" * 100, [("", True)]),
    "text": (b"no archive at all\n" * 1000, [("#0", True)]),
    "bytes": (JUNK * 300, [("#0", True)]),
    "a page": (body_of(0), [("#0", True)]),
    "gzip of text": (gzip.compress(b"no archive\n" * 1000), [("#0", True)]),
    "gzip of nothing": (gzip.compress(b""), [("#0", True)]),
    "Zstandard of text": (zstandard(b"no archive\n" * 1000), [("#0", True)]),
    "Zstandard, broken": (damaged(zstandard(PLAIN), 4, JUNK), [("#0", True)]),
    "cut": (PLAIN[: RECORD_SIZE * 4 + 700], [0, 1, 2, 3, (f"#{RECORD_SIZE * 4}", True)]),
    "cut in a header": (PLAIN[: RECORD_SIZE * 4 + 100], [0, 1, 2, 3, (f"#{RECORD_SIZE * 4}", True)]),
    "cut in a member": (JOINED[:-150], [0, 1, 2, 3, (f"#{OFFSETS[4]}", True)]),
    "cut in a check sum": (JOINED[:-5], [0, 1, 2, 3, (f"#{OFFSETS[4]}", True)]),
    "cut in the head of a member": (JOINED[: OFFSETS[4] + 12], [0, 1, 2, 3, (f"#{OFFSETS[4]}", True)]),
    "cut after two bytes of a member": (JOINED[: OFFSETS[4] + 2], [0, 1, 2, 3, (f"#{OFFSETS[4]}", True)]),
    "damaged member": (
        damaged(JOINED, OFFSETS[2] + 60, JUNK[:20]),
        [0, 1, (f"#{OFFSETS[2]}", False), 3, 4],
    ),
    "damaged check sum": (damaged(JOINED, OFFSETS[3] - 8, b"\0" * 4), [0, 1, (f"#{OFFSETS[2]}", False), 3, 4]),
    "damaged first member": (damaged(JOINED, 0, JUNK[:40]), [("#0", True)]),  # nothing says that it is gzip
    "junk between members": (
        MEMBERS[0] + JUNK + MEMBERS[1],
        [0, (f"#{OFFSETS[1]}", False), 1],
    ),
    "junk after members": (MEMBERS[0] + JUNK, [0, (f"#{OFFSETS[1]}", True)]),
    "a member of junk": (
        MEMBERS[0] + gzip.compress(JUNK) + MEMBERS[1],
        [0, (f"#0+{RECORD_SIZE}", False), 1],
    ),
    "junk between records": (page(0) + JUNK + page(1), [0, (f"#{RECORD_SIZE}", False), 1]),
    "junk before records": (b"junk\n" + page(0) + page(1), [("#0", False), 0, 1]),
    "junk after records": (page(0) + JUNK, [0, (f"#{RECORD_SIZE}", True)]),
    "no length": (page(0) + HEADLESS + page(1), [0, (f"#{RECORD_SIZE}", False), 1]),
    "no length, gzip": (
        MEMBERS[0] + gzip.compress(HEADLESS) + MEMBERS[1],
        [0, (f"#{OFFSETS[1]}", False), 1],
    ),
    "damaged Zstandard": (
        damaged(FRAMES, len(FRAMES) - 300, JUNK[:20]),
        [0, 1, 2, (f"#0+{FRAME_SIZE * 3}", True)],
    ),
}


@pytest.mark.parametrize(("data", "expected"), BROKEN.values(), ids=BROKEN)
def test_what_is_broken_is_told_and_the_rest_is_read(tmp_path, data, expected):
    assert found(tmp_path, data) == expected


@pytest.mark.parametrize("length", [10, 500, 3000, 10**6, 10**15, 10**30, "9" * 5000, -1, "many"])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_wrong_length_costs_its_record_only(tmp_path, length, compressed):
    """A record that announces too few bytes may still be read as a page: of the bytes that it announces."""
    archive = [page(0), page(1), page(2, length=length), page(3), page(4)]
    outcome = found(tmp_path, b"".join(map(gzip.compress, archive) if compressed else archive))
    breaks = [item for item in outcome if not isinstance(item, int)]
    assert len(breaks) == 1 and not breaks[0][1]
    assert [item for item in outcome if isinstance(item, int)] == ([0, 1, 2, 3, 4] if length == 500 else [0, 1, 3, 4])


@pytest.mark.parametrize("kept_bytes", [1000, 1 << 20])
def test_the_records_of_an_archive_within_an_archive_are_not_its_own(tmp_path, monkeypatch, kept_bytes):
    monkeypatch.setattr(record_reader, "KEPT_BYTES", kept_bytes)
    inner = record("http://a.org/9.warc", PLAIN, kind="resource", Content_Type="application/warc")
    for data in (page(0) + inner + page(1), MEMBERS[0] + gzip.compress(inner) + MEMBERS[1]):
        assert found(tmp_path, data) == [0, 1]


@pytest.mark.parametrize("size", range(200, 300))
def test_a_record_after_junk_is_found_however_the_file_is_divided_as_it_is_read(tmp_path, monkeypatch, size):
    monkeypatch.setattr(record_reader, "READ_BYTES", 100)
    assert found(tmp_path, page(0) + b"x" * size + page(1)) == [0, (f"#{RECORD_SIZE}", False), 1]
    junk = b"\x1f\x8b" * (size // 2)
    assert found(tmp_path, MEMBERS[0] + junk + MEMBERS[1]) == [0, (f"#{OFFSETS[1]}", False), 1]


def test_a_fault_in_a_file_of_one_member_leaves_what_is_before_it(tmp_path):
    whole = gzip.compress(FAILING["plain"])
    *before, (place, is_end) = found(tmp_path, damaged(whole, len(whole) // 2, JUNK))
    read_before = [item for item in before if isinstance(item, int)]
    assert 50 < len(read_before) < 200 and read_before == list(range(len(read_before)))
    assert place.startswith("#0+") and is_end


@pytest.mark.parametrize("name", ["plain", "gzip, a member per record", "gzip, small blocks"])
def test_wherever_an_archive_is_cut_what_is_before_is_read(tmp_path, name):
    data = WRITTEN[name]
    ends = OFFSETS if name == "gzip, a member per record" else []
    for size in range(1, len(data), 23):
        outcome = found(tmp_path, data[:size])
        numbers = [item for item in outcome if isinstance(item, int)]
        assert numbers == list(range(len(numbers)))
        if name == "plain":
            assert len(numbers) in (size // RECORD_SIZE, (size + 4) // RECORD_SIZE)  # four bytes end a record
        if name == "gzip, a member per record":
            assert len(numbers) == max(number for number in range(6) if OFFSETS[number] <= size)
            assert (len(outcome) > len(numbers)) == (size not in ends)


def test_nothing_that_is_damaged_raises_or_costs_other_members(tmp_path):
    rng = random.Random(0)
    for _ in range(300):
        number = rng.randrange(5)
        members = list(MEMBERS)
        text = bytearray(page(number))
        for _ in range(rng.randint(1, 3)):
            start = rng.randrange(len(text))
            text[start : start + rng.randint(0, 20)] = rng.choice([b"", b"\r\n\r\n", b"0", rng.randbytes(5)])
        members[number] = gzip.compress(bytes(text))
        if rng.random() < 0.5:
            start = rng.randrange(10, len(members[number]))
            members[number] = damaged(members[number], start, rng.randbytes(5))[: len(members[number])]
        (tmp_path / "a.warc").write_bytes(b"".join(members))
        urls = [item.url for item in pages(str(tmp_path / "a.warc"), "warc") if isinstance(item, Page)]
        assert {f"http://a.org/{n}" for n in ALL if n != number} <= {*urls}


@pytest.mark.parametrize("read_bytes", [900, 1300, 1 << 16])
def test_a_cut_member_that_reads_on_into_the_next_costs_itself(tmp_path, monkeypatch, read_bytes):
    """Without its end it takes the bytes of the next members for its own, for a while."""
    monkeypatch.setattr(record_reader, "READ_BYTES", read_bytes)
    for missing in range(9, 200, 7):
        outcome = found(tmp_path, MEMBERS[0] + MEMBERS[1][:-missing] + MEMBERS[2] + MEMBERS[3])
        assert (outcome[0], outcome[-2:]) == (0, [2, 3])
        assert any(not isinstance(item, int) and item[0].startswith(f"#{OFFSETS[1]}") for item in outcome)


# ---- WAT


def wat(links, *, url="http://a.org/x/", head=None, **more):
    """A record as Common Crawl's extractor writes it."""
    envelope = {
        "Format": "WARC",
        "WARC-Header-Metadata": {"WARC-Type": "response", "WARC-Target-URI": url, "WARC-Date": DATE},
        "Payload-Metadata": {
            "Actual-Content-Type": "application/http; msgtype=response",
            "HTTP-Response-Metadata": {
                "Response-Message": {"Status": "200", "Version": "HTTP/1.1", "Reason": "OK"},
                "Headers": {"Content-Type": "text/html; charset=utf-8"},
                "HTML-Metadata": {"Head": head or {}, "Links": links},
            }
            | more,
        },
    }
    document = {"Container": {"Filename": "a.warc.gz", "Compressed": True}, "Envelope": envelope}
    return metadata(json.dumps(document).encode())


def metadata(block):
    return record("http://a.org/x/", block, kind="metadata", Content_Type="application/json")


def of_wat(tmp_path, links, **more):
    (only,) = read(tmp_path, wat(links, **more), "wat")
    return [tuple(image) for image in only.images]


def test_a_wat_gives_the_pages_of_its_warc(tmp_path):
    head = {
        "Title": "a page",
        "Base": "/b/",
        "Link": [{"path": "LINK@/href", "url": "/site.css", "rel": "stylesheet"}],
        "Metas": [
            {"content": "text/html; charset=utf-8", "http-equiv": "content-type"},
            {"name": "Robots", "content": "noindex"},
            {"name": "description", "content": "none"},
            {"name": "robots", "content": "noai"},
            {"name": "robots"},
            {"name": "robots", "content": ""},
        ],
    }
    links = [
        {"path": "BODY@/background", "url": "/background.gif"},
        {"path": "IMG@/src", "url": "a.jpg", "alt": " An\n image ", "title": "a title"},
        {"path": "IMG@/longdesc", "url": "/about.html"},
        {"path": "A@/href", "url": "/c", "text": "a text", "rel": "licensed"},
        {"path": "A@/href", "url": "terms?a=1&amp;b=2", "rel": "nofollow License"},
        {"path": "A@/href", "url": "/later", "rel": "license"},
        {"path": "IMG@/src", "url": "//c.org/d.png"},
        {"path": "IMG@/src", "url": "https://c.org/e.png", "alt": ""},
        {"path": "STYLE/#text", "href": "f.png"},
        {"path": "INPUT@/src", "url": "g.png"},
        {"path": "SOURCE@/src", "url": "h.mp4"},
    ]
    headers = {"x-robots-tag": ["noimageai", "unavailable_after: 2030-01-01"]}
    (only,) = read(tmp_path, wat(links, head=head, Headers=headers), "wat")
    assert only == Page(
        url="http://a.org/x/",
        crawled_at=datetime(2024, 5, 18, 1, 58, 10, tzinfo=UTC),
        robots=["noimageai", "unavailable_after: 2030-01-01", "noindex", "noai"],
        images=[
            PageImage("http://a.org/b/a.jpg", "An image"),
            PageImage("http://c.org/d.png", None),
            PageImage("https://c.org/e.png", None),
        ],
        license="http://a.org/b/terms?a=1&b=2",
    )


@pytest.mark.parametrize("link", [{"path": "LINK@/href", "url": "/cc", "rel": "license"}, "no list", 7, [{"rel": 5}]])
def test_the_head_of_a_wat_names_the_licence_first(tmp_path, link):
    links = [{"path": "A@/href", "url": "/a", "rel": "license"}]
    (only,) = read(tmp_path, wat(links, head={"Link": link}), "wat")
    assert only.license == ("http://a.org/cc" if isinstance(link, dict) else "http://a.org/a")


def img(attribute, url, **more):
    return {"path": f"IMG@/{attribute}", "url": url, **more}


SRCSET = "s.jpg 100w, l.jpg 900w, m.jpg 500w"
LINKS = {  # the entries, the images
    "none": ([], []),
    "one after another": ([img("src", "1.jpg"), img("src", "2.jpg")], [("1.jpg", None), ("2.jpg", None)]),
    "the same twice": ([img("src", "1.jpg"), img("src", "1.jpg")], [("1.jpg", None), ("1.jpg", None)]),
    "src and srcset of one": ([img("src", "s.jpg", alt="a"), img("srcset", SRCSET)], [("l.jpg", "a")]),
    "of several": (
        [img("src", "s.jpg"), img("srcset", SRCSET), img("src", "2.jpg", alt="b"), img("data-src", "3.jpg")],
        [("l.jpg", None), ("3.jpg", "b")],
    ),
    "a picture after an image": (
        [img("src", "1.jpg", alt="a"), {"path": "SOURCE@/srcset", "url": SRCSET}, img("src", "s.jpg", alt="b")],
        [("1.jpg", "a"), ("l.jpg", "b")],
    ),
    "separated": (
        [img("src", "1.jpg"), {"path": "A@/href", "url": "/"}, img("srcset", SRCSET)],
        [("1.jpg", None), ("l.jpg", None)],
    ),
    "lazy": ([img("src", "data:image/gif;base64,R0"), img("data-src", "1.jpg")], [("1.jpg", None)]),
    "a picture": (
        [
            {"path": "SOURCE@/srcset", "url": SRCSET, "type": "image/jpeg"},
            img("src", "s.jpg", alt="a"),
            img("src", "2.jpg"),
        ],
        [("l.jpg", "a"), ("2.jpg", None)],
    ),
    "a video before an image": ([{"path": "SOURCE@/src", "url": "v.mp4"}, img("src", "1.jpg")], [("1.jpg", None)]),
    "no URL": ([img("src", ""), img("src", None), img("src", 1), {"path": "IMG@/src"}], []),
    "not of the web": ([img("src", "data:image/gif;base64,R0"), img("src", "ftp://a.org/1.jpg")], []),
    "as the page has it": ([img("src", "1.jpg?a=1&amp;b=2", alt="&quot;a&quot;")], [("1.jpg?a=1&b=2", '"a"')]),
    "strange entries": (
        [None, 1, "IMG@/src", [], {"path": None}, {"path": 1}, img("src", "1.jpg", alt=5)],
        [("1.jpg", "5")],
    ),
    "no list": ({"path": "IMG@/src", "url": "1.jpg"}, [("1.jpg", None)]),
}


@pytest.mark.parametrize(("links", "expected"), LINKS.values(), ids=LINKS)
def test_the_images_of_a_wat(tmp_path, links, expected):
    assert of_wat(tmp_path, links) == [(f"http://a.org/x/{name}", alt) for name, alt in expected]


def test_the_base_of_a_wat_may_be_wrong(tmp_path):
    for base in ("javascript:0", "http://[", 1, None, ""):
        assert of_wat(tmp_path, [img("src", "1.jpg")], head={"Base": base}) == [("http://a.org/x/1.jpg", None)]


NO_PAGES = {
    "status": wat([], **{"Response-Message": {"Status": "404"}}),
    "no HTML": wat([], **{"HTML-Metadata": None}),
    "request": metadata(json.dumps({"Envelope": {"Payload-Metadata": {"HTTP-Request-Metadata": {}}}}).encode()),
    "revisit": wat([]).replace(b'"WARC-Type": "response"', b'"WARC-Type": "revisit" '),
    "null": metadata(b"null"),
    "a list": metadata(b"[]"),
    "warcinfo": record("http://a.org/", b"a: b", kind="warcinfo"),
    "a page itself": page(0),
}


@pytest.mark.parametrize("data", NO_PAGES.values(), ids=NO_PAGES)
def test_what_of_a_wat_is_no_page(tmp_path, data):
    last = wat([img("src", "1.jpg")])
    assert [item.url for item in read(tmp_path, data + last, "wat")] == ["http://a.org/x/"]


BAD_JSON = {
    "cut": wat([])[:-40] + b"\r\n\r\n",
    "empty": metadata(b""),
    "no JSON": metadata(b"<html>"),
    "deep": metadata(b'{"a":' * 100_000),
    "no address": wat([], url=None),
}


@pytest.mark.parametrize("data", BAD_JSON.values(), ids=BAD_JSON)
def test_a_wat_record_that_cannot_be_read_costs_itself(tmp_path, data):
    for archive in (data + wat([]), gzip.compress(data) + gzip.compress(wat([]))):
        broken, last = read(tmp_path, archive, "wat")
        assert (broken.key, broken.reason) == (f"{tmp_path / 'a.warc'}#0", "unreadable_record")
        assert last.url == "http://a.org/x/"


def test_a_wat_record_that_is_too_long_costs_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_PAGE_BYTES", 10_000)
    broken, last = read(tmp_path, wat([img("src", "1.jpg")] * 1000) + wat([]), "wat")
    assert broken.reason == "unreadable_record" and "at most 10000 bytes" in broken.error
    assert last.url == "http://a.org/x/"


def test_bad_text_in_a_wat_is_replaced(tmp_path):
    """Half a surrogate pair, and bytes that are not UTF-8: parsers differ about both."""
    text = '{"path": "IMG@/src", "url": "1.jpg", "alt": "\\ud83d\\ude00 \\ud800 é"}'
    block = wat([0]).partition(b"\r\n\r\n")[2].replace(b"[0]", f"[{text}]".encode("latin-1"))
    (only,) = read(tmp_path, metadata(block.strip()), "wat")
    assert [image.alt for image in only.images] == ["\U0001f600 \ufffd \ufffd"]


# ---- which files


@pytest.fixture
def crawl(tmp_path):
    """A folder of archives, of what belongs to them, and of what is hidden."""
    names = ("b/2.warc.gz", "b/1.warc", "a.WARC.GZ", "a.warc.wat.gz", "c.warc.zst", "d.wat", "e.warc.lz4")
    others = ("a.warc.wet.gz", "index.cdx.gz", "warc", "f.gz", ".g.warc.gz", "b/.h/i.warc.gz", "readme.md")
    for name in (*names, *others):
        (tmp_path / "crawl" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "crawl" / name).touch()
    return str(tmp_path / "crawl"), sorted(names)


def test_a_folder_stands_for_the_archives_in_it(crawl):
    folder, names = crawl
    assert archive_files(folder) == archive_files(f"{folder}/") == [f"{folder}/{name}" for name in names]


def test_a_file_stands_for_itself(crawl):
    folder, names = crawl
    for name in (*names, ".g.warc.gz"):
        assert archive_files(f"{folder}/{name}") == [f"{folder}/{name}"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.[gG][zZ]", ["a.WARC.GZ", "a.warc.wat.gz"]),
        ("b", ["b/1.warc", "b/2.warc.gz"]),
        ("[bc]*", ["b/1.warc", "b/2.warc.gz", "c.warc.zst"]),
        ("**/*.warc*", ["a.warc.wat.gz", "b/1.warc", "b/2.warc.gz", "c.warc.zst", "e.warc.lz4"]),
    ],
)
def test_a_glob_stands_for_the_archives_that_match_and_those_in_folders_that_match(crawl, pattern, names):
    folder, _ = crawl
    assert archive_files(f"{folder}/{pattern}") == [f"{folder}/{name}" for name in names]


LINES = "\ufeffcrawl-data/2.warc.gz\r\n\n crawl-data/1.warc.gz \ns3://b/3.warc.gz\n/4.warc.gz\ncrawl-data/2.warc.gz\n"


@pytest.mark.parametrize("name", ["warc.paths", "warc.paths.gz", "files.txt", "FILES.TXT.GZ"])
@pytest.mark.parametrize("prefix", ["", "https://data.commoncrawl.org/", "s3://commoncrawl"])
def test_a_list_names_archives_in_its_order(tmp_path, name, prefix):
    compress = gzip.compress if name.lower().endswith(".gz") else bytes
    (tmp_path / name).write_bytes(compress(LINES.encode()))
    before = prefix and f"{prefix.rstrip('/')}/"
    expected = [f"{before}crawl-data/2.warc.gz", f"{before}crawl-data/1.warc.gz", "s3://b/3.warc.gz", "/4.warc.gz"]
    assert archive_files(str(tmp_path / name), prefix) == expected
    assert archives.is_list(str(tmp_path / name)) and not archives.is_list("a.warc.gz")


WRONG = {
    "nowhere.warc.gz": "path must exist, was '.*nowhere.warc.gz': name a file, a folder or a glob that matches",
    "nowhere.paths": "path must exist, was '.*nowhere.paths'",
    "no*.warc.gz": "path must hold web archives, was '.*no.*': name files like a.warc",
    "crawl/readme.md": "path must hold web archives, was '.*readme.md'",
    "empty": "path must hold web archives, was '.*empty'",
    "blank.txt": "path must hold web archives, was '.*blank.txt'",
    "cut.paths.gz": "path must be readable, was '.*cut.paths.gz': ",
    "no.paths.gz": "path must be readable, was '.*no.paths.gz': ",
    "nonsense://x": "path must be readable, was 'nonsense://x'",
}


@pytest.mark.parametrize(("name", "message"), WRONG.items())
def test_where_there_is_nothing_the_error_says_what_to_do(tmp_path, crawl, name, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "cut.paths.gz").write_bytes(gzip.compress(LINES.encode())[:-10])
    (tmp_path / "no.paths.gz").write_bytes(LINES.encode())
    with pytest.raises(InputError, match=message) as raised:
        archive_files(name if "://" in name else str(tmp_path / name))
    assert "\n" not in str(raised.value)
