"""Pages of a web crawl per CPU second of one core, against the plain cost of decompressing the same file.

    python benchmarks/crawl.py [--pages 2000] [--environment DIR] [--quick]

A WARC of made pages, and a WAT of the same pages with what Common Crawl's extractor writes. Every side found exactly
the planted images before it is measured; then the sides run in turn, and of each the best run counts. Peers: gzip as
fsspec opens it, which looks at nothing; and warcio with selectolax (lexbor), in an environment of its own, which takes
`src` of every <img> and resolves it, while ours also reads srcset, <picture>, lazy attributes, robots and alt.
"""

import argparse
import gzip
import hashlib
import io
import json
import platform
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import numpy as np
from measuring import peer_environment

from lvd.tasks.archives import Page, pages

PEERS = ["warcio==1.8.1", "selectolax==1.0.2"]
COMMON_WORDS, OWN_WORDS = 200, 1_500
LETTERS = np.array(list("etaoinshrdlcumwfgypbvkjxqz"))
READ_BYTES = 1 << 20
BLANK = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
CARD = """<div class="card card--{style} col-xs-12 col-sm-6 col-md-{column}" data-post="{id}" data-tracking="card">
  <div class="card__media"><a class="card__link" href="{link}" aria-hidden="true" tabindex="-1">{image}</a></div>
  <div class="card__body">
    <h3 class="card__title"><a href="{link}" rel="bookmark">{title}</a></h3>
    <p class="card__text">{text} …</p>
    <ul class="card__tags"><li class="tag"><a class="tag__link" href="/tag/{tag}/" rel="tag">{tag}</a></li></ul>
    <button class="card__save" type="button" aria-label="Save for later"><svg class="icon icon--heart" width="16" \
height="16" viewBox="0 0 16 16" aria-hidden="true" focusable="false"><use xlink:href="#icon-heart"></use></svg></button>
  </div>
</div>
"""
ROW = """<li class="archive__item archive__item--post"><a class="archive__link" href="/{year}/{slug}/">{title}</a> \
<time class="archive__date" datetime="{year}-05-18T01:58:10+00:00">{year}</time> <span class="archive__by">{text}</span>
</li>
"""

PEER = """
import hashlib, json, sys, time
from urllib.parse import urljoin
from selectolax.lexbor import LexborHTMLParser
from warcio.archiveiterator import ArchiveIterator

found, start = hashlib.sha256(), time.process_time()
with open(sys.argv[1], "rb") as file:
    for record in ArchiveIterator(file):
        if record.rec_type != "response" or "text/html" not in record.http_headers.get_header("Content-Type", ""):
            continue
        url = record.rec_headers.get_header("WARC-Target-URI")
        tree = LexborHTMLParser(record.content_stream().read())
        urls = [urljoin(url, image.attributes["src"]) for image in tree.css("img[src]")]
        found.update(json.dumps([url, [image for image in urls if image.startswith("http")]]).encode())
print(json.dumps([time.process_time() - start, found.hexdigest()]))
"""


class Made(NamedTuple):
    """A page and its planted images, as (URL, alt)."""

    url: str
    html: bytes
    shown: list[tuple[str, str | None]]
    links: list[dict[str, str]]  # of its WAT

    @property
    def sources(self) -> list[tuple[str, str | None]]:
        """What <img src> alone says."""
        return [
            (link["url"], link["alt"]) for link in self.links if link["path"] == "IMG@/src" and "://" in link["url"]
        ]


class Words:
    """Words of a page: some common ones often, some of its own, letters as often as in a language."""

    def __init__(self, rng: np.random.Generator, common: list[str]) -> None:
        self._words = [*common, *drawn_words(rng, OWN_WORDS)]
        self._often = np.cumsum(1 / (np.arange(len(self._words)) + 2.7))
        self._rng = rng

    def text(self, count: int) -> str:
        picked = np.searchsorted(self._often, self._rng.random(count) * self._often[-1])
        return " ".join(map(self._words.__getitem__, picked.tolist()))


def drawn_words(rng: np.random.Generator, count: int) -> list[str]:
    often = 1 / (np.arange(len(LETTERS)) + 3.0)
    letters = rng.choice(LETTERS, (count, 10), p=often / often.sum())
    return ["".join(word[:length]) for word, length in zip(letters, rng.integers(2, 11, count), strict=True)]


def made_page(number: int, common: list[str]) -> Made:
    """A page of 20 to 200 kB with 20 to 100 images, the same for a number."""
    rng = np.random.default_rng([1, number])
    words = Words(rng, common)
    url = f"https://site-{number % 97}.example.org/{words.text(1)}/{number}.html"
    num_images = int(rng.integers(20, 101))
    size = int(rng.integers(max(20_000, 1_450 * num_images), 200_001))
    parts, shown, links = [head(words)], [], []
    for _ in range(num_images):
        link, alt = f"/{words.text(1)}/{rng.integers(1 << 40):x}.html", words.text(int(rng.integers(2, 9)))
        image, chosen, src = image_tag(rng, alt)
        shown.append((chosen, alt))
        title = words.text(6)
        links += [
            {"path": "IMG@/src", "url": src, "alt": alt},
            {"path": "A@/href", "url": link},
            {"path": "A@/href", "url": link, "rel": "bookmark", "text": title},
        ]
        style, column = ("plain", "wide", "dark")[rng.integers(3)], rng.integers(3, 7)
        of_card = {"link": link, "image": image, "title": title, "text": words.text(30), "tag": words.text(1)}
        parts.append(CARD.format(style=style, column=column, id=rng.integers(1 << 30), **of_card))
    room = size - sum(map(len, parts))
    while room > 0:
        slug, title, year = words.text(4).replace(" ", "-"), words.text(9), rng.integers(2010, 2025)
        links.append({"path": "A@/href", "url": f"/{year}/{slug}/", "text": title})
        parts.append(ROW.format(year=year, slug=slug, title=title, text=words.text(2)))
        room -= len(parts[-1])
    parts.append("</main></body></html>\n")
    return Made(url, "".join(parts).encode(), shown, links)


def head(words: Words) -> str:
    metas = "".join(f'<meta property="og:{words.text(1)}" content="{words.text(8)}">\n' for _ in range(8))
    script = "".join(f"window.{words.text(1)}=function(a){{return a.{words.text(1)}}};\n" for _ in range(30))
    items = "".join(f'<li class="nav__item"><a href="/{words.text(1)}/">{words.text(2)}</a></li>\n' for _ in range(20))
    start = f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{words.text(6)}</title>\n{metas}'
    return f"{start}<script>{script}</script></head>\n<body>\n<nav><ul>{items}</ul></nav><main class='grid'>\n"


def image_tag(rng: np.random.Generator, alt: str) -> tuple[str, str, str]:
    """(the element, the URL that it stands for, its src) in one of the ways in which pages show images."""
    base = f"https://cdn{rng.integers(4)}.example.net/media/{rng.integers(1 << 44):011x}"
    small, large = f"{base}-300x200.jpg", f"{base}-1536x1024.jpg"
    size = f'alt="{escape(alt)}" width="300" height="200" loading="lazy" decoding="async"'
    srcset = f"{small} 300w, {base}-768x512.jpg 768w, {large} 1536w"
    match rng.integers(10):
        case 0 | 1 | 2:
            return (
                f'<img class="thumb" src="{small}" srcset="{srcset}" sizes="(max-width: 300px) 100vw" {size}>',
                large,
                small,
            )
        case 3 | 4:
            return f'<img class="thumb lazyload" src="{BLANK}" data-src="{large}" {size}>', large, BLANK
        case 5:
            source = f'<source type="image/webp" srcset="{large}.webp"><source type="image/jpeg" srcset="{large}">'
            return f'<picture>{source}<img src="{small}" {size}></picture>', f"{large}.webp", small
        case _:
            return f'<img class="thumb" src="{large}" {size}>', large, large


def record(kind: str, url: str, content_type: str, block: bytes) -> bytes:
    """A member with one record, as Common Crawl writes them."""
    fields = {
        "WARC-Type": kind, "WARC-Date": "2024-05-18T01:58:10Z", "WARC-Record-ID": f"<urn:uuid:{digest(block)}>",
        "Content-Length": len(block), "Content-Type": content_type, "WARC-Target-URI": url,
        "WARC-Payload-Digest": f"sha1:{digest(url.encode())}",
    }  # fmt: skip
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return gzip.compress(f"WARC/1.0\r\n{lines}\r\n".encode() + block + b"\r\n\r\n", compresslevel=6, mtime=0)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def save(folder: Path, num_pages: int) -> tuple[Path, Path, list[Made]]:
    """The WARC and the WAT; the pages without their HTML."""
    common, planted = drawn_words(np.random.default_rng(0), COMMON_WORDS), []
    warc, wat = folder / "made.warc.gz", folder / "made.warc.wat.gz"
    with warc.open("wb") as pages_file, wat.open("wb") as links_file:
        for number in range(num_pages):
            page = made_page(number, common)
            response = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nServer: nginx\r\n\r\n" + page.html
            request = f"GET {page.url} HTTP/1.1\r\nUser-Agent: made/1.0\r\nAccept: text/html\r\n\r\n".encode()
            pages_file.write(record("request", page.url, "application/http; msgtype=request", request))
            pages_file.write(record("response", page.url, "application/http; msgtype=response", response))
            pages_file.write(record("metadata", page.url, "application/warc-fields", b"fetchTimeMs: 291\r\n"))
            links_file.write(record("metadata", page.url, "application/json", json.dumps(envelope(page)).encode()))
            planted.append(page._replace(html=b""))
    return warc, wat, planted


def envelope(page: Made) -> dict[str, Any]:
    """The JSON of a WAT record."""
    response = {
        "Response-Message": {"Status": "200", "Version": "HTTP/1.1", "Reason": "OK"},
        "Headers": {"Content-Type": "text/html; charset=utf-8", "Server": "nginx"},
        "HTML-Metadata": {"Head": {"Metas": [{"name": "generator", "content": "made"}]}, "Links": page.links},
        "Entity-Length": str(len(page.html)),
    }
    about = {"WARC-Type": "response", "WARC-Target-URI": page.url, "WARC-Date": "2024-05-18T01:58:10Z"}
    payload = {"Actual-Content-Type": "application/http; msgtype=response", "HTTP-Response-Metadata": response}
    container = {"Filename": "made.warc.gz", "Compressed": True, "Offset": "0"}
    return {"Container": container, "Envelope": {"WARC-Header-Metadata": about, "Payload-Metadata": payload}}


def cpu_s(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def decompress(path: Path) -> int:
    """How many bytes the file holds, read as fsspec opens it."""
    size = 0
    with fsspec.open(str(path), "rb", compression="gzip") as file:
        while data := file.read(READ_BYTES):
            size += len(data)
    return size


def read(path: Path, kind: str) -> int:
    return sum(len(page.images) for page in pages(str(path), kind))


def check(path: Path, kind: str, planted: list[tuple[str, list[tuple[str, str | None]]]]) -> None:
    """Raises SystemExit unless the pages, and their images, are the planted ones."""
    found = list(pages(str(path), kind))
    for page, (url, images) in zip(found, planted, strict=True):
        if not (isinstance(page, Page) and page.url == url and [tuple(image) for image in page.images] == images):
            raise SystemExit(f"{path.name}: {url} must show {images[:3]} …, was {page}")


def peer_cpu_s(python: Path, warc: Path, planted: list[Made]) -> float:
    """CPU seconds of the peer without its imports. Raises SystemExit if it found other images."""
    done = subprocess.run([str(python), "-c", PEER, str(warc)], check=True, capture_output=True, text=True)
    seconds, found = json.loads(done.stdout)
    expected = hashlib.sha256()
    for page in planted:
        expected.update(json.dumps([page.url, [url for url, _ in page.sources]]).encode())
    if found != expected.hexdigest():
        raise SystemExit(f"{', '.join(PEERS)}: must find the src of every image, found something else")
    return seconds


def rows(warc: Path, wat: Path, planted: list[Made], python: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """The lines of the results, as DESIGN.md section 8 says."""
    check(warc, "warc", [(page.url, page.shown) for page in planted])
    check(wat, "wat", [(page.url, page.sources) for page in planted])
    sides: dict[str, Callable[[], float]] = {
        "warc": lambda: cpu_s(lambda: read(warc, "warc")),
        "warc decompressed": lambda: cpu_s(lambda: decompress(warc)),
        "warcio + selectolax": lambda: peer_cpu_s(python, warc, planted),
        "wat": lambda: cpu_s(lambda: read(wat, "wat")),
        "wat decompressed": lambda: cpu_s(lambda: decompress(wat)),
    }
    runs: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            runs[name].append(side())
    rates = {name: [len(planted) / seconds for seconds in own] for name, own in runs.items()}
    gunzip = type(fsspec.compression.compr["gzip"](io.BytesIO(), mode="rb"))
    told = (
        f"{len(planted)} pages; CPU seconds of one process, best of {rounds} runs; decompressed by fsspec's "
        f"{gunzip.__module__}.{gunzip.__name__}, zlib {zlib.ZLIB_RUNTIME_VERSION}, Python {platform.python_version()}"
    )
    for name, ours, peer, path, target in (
        ("crawl_warc/decompressed", "warc", "warc decompressed", warc, 0.1),
        ("crawl_warc/warcio_selectolax", "warc", "warcio + selectolax", warc, 1.0),
        ("crawl_wat/decompressed", "wat", "wat decompressed", wat, 0.2),
    ):
        size, best, other = decompress(path), max(rates[ours]), max(rates[peer])
        quality = {
            "images": sum(len(page.shown if path == warc else page.sources) for page in planted),
            "mb": round(size / 1e6, 1),
            "compressed": round(size / path.stat().st_size, 2),
            "mb_per_cpu_s": round(size / 1e6 / min(runs[ours]), 1),
            **{side: [round(rate) for rate in rates[side]] for side in (ours, peer)},
        }
        yield {
            "name": name, "ours": round(best), "peer": round(other), "unit": "pages/CPU s",
            "ratio": round(best / other, 3), "target": target, "met": best / other >= target, "quality": quality,
            "counted": f"{told}; peer: {peer}; the ratio to be at least {target:g}",
        }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=2_000)
    parser.add_argument("--environment", type=Path, metavar="DIR", help="where the peers are, or are to be installed")
    parser.add_argument("--quick", action="store_true", help="300 pages, twice")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        python = peer_environment(options.environment or base / "environment", PEERS)
        warc, wat, planted = save(base, 300 if options.quick else options.pages)
        lines = list(rows(warc, wat, planted, python, 2 if options.quick else 5))
    sys.stdout.writelines(json.dumps(line) + "\n" for line in lines)
    return 0 if all(line["met"] for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
