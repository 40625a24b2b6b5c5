"""A crawl of pages as a WARC file, the same bytes for the same pages. Format: ISO 28500 (WARC 1.0)."""

import gzip
import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

BLANK = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
FORMS = (
    '<img src="{url}" alt="{alt}">',
    '<img src="/thumbs/small.jpg" srcset="/thumbs/small.jpg 160w, {url} 1280w" alt="{alt}">',
    '<img src="{blank}" data-src="{url}" alt="{alt}" loading=lazy>',
    '<picture><source srcset="{url}" type="image/jpeg"><img src="/thumbs/small.jpg" alt="{alt}"></picture>',
)
"""How the pages show an image, in turn."""


class Shown(NamedTuple):
    """An image of a page."""

    url: str
    alt: str


def save_warc(file: Path, pages: Iterable[tuple[str, datetime, Sequence[Shown]]]) -> None:
    """Writes the crawl of pages (URL, time, images); every record is a gzip member, as crawlers write them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as archive:
        for url, when, images in pages:
            body = html(url, images)
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: %d\r\n\r\n" % len(
                body
            )
            archive.write(gzip.compress(record(url, when, head + body), mtime=0))


def html(url: str, images: Sequence[Shown]) -> bytes:
    """The page: every image in one of FORMS."""
    shown = (
        form.format(url=escape(image.url), alt=escape(image.alt), blank=BLANK)
        for form, image in zip(cycle(FORMS), images, strict=False)
    )
    body = "\n".join(f"<p>{image}</p>" for image in shown)
    return f"<!doctype html>\n<html><head><title>{escape(url)}</title></head><body>\n{body}\n</body></html>\n".encode()


def record(url: str, when: datetime, content: bytes) -> bytes:
    """One response record."""
    head = {
        "WARC-Type": "response",
        "WARC-Record-ID": f"<urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'{url} {when.isoformat()}')}>",
        "WARC-Date": when.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "WARC-Target-URI": url,
        "Content-Type": "application/http; msgtype=response",
        "Content-Length": str(len(content)),
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    return f"WARC/1.0\r\n{lines}\r\n".encode() + content + b"\r\n\r\n"
