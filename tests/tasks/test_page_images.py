"""The page set against what is recorded and against a real browser, and pages that could take forever."""

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from PIL import Image

from lvd.tasks.pages.images import PageImage, ParsedPage, chosen_source, largest_candidate, parsed
from lvd.tasks.pages.markup import MAX_ATTRIBUTES, MAX_PAGE_BYTES, MAX_TAGS
from lvd.tasks.pages.web_urls import MAX_URL_CHARS, absolute_url
from lvd.tests.pages import FORMS, LOADERS, ORIGIN, SCREEN, Form, usual_page

BY = "https://creativecommons.org/licenses/by/4.0/"
URL = "http://pages.test/forms/page.html"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER_TIMEOUT_S = 120.0
CPU_S = 10.0  # what no page may take; here they take at most 2


def urls(html: str | bytes, page_url: str = URL, charset: str | None = None) -> list[str]:
    page = parsed(html if isinstance(html, bytes) else html.encode(), page_url, charset=charset)
    return [image.url for image in page.images]


def found(form: Form) -> list[str]:
    return urls(form.page(form.script), form.page_url, form.charset)


# ---- the page set


@pytest.mark.parametrize("form", FORMS, ids=[form.name for form in FORMS])
def test_a_form_gives_its_url(form: Form) -> None:
    assert found(form) == form.found_urls


def test_the_page_set_is_what_it_says() -> None:
    assert len(FORMS) >= 200
    assert len({form.name for form in FORMS}) == len(FORMS)
    for form in FORMS:
        assert (form.shown is None) == (not form.differs), f"{form.name}: what differs needs a reason"
        assert form.shown != form.urls, f"{form.name} does not differ"
    loaders = {form.loader.partition(":")[0] for form in FORMS}
    assert loaders == {"", "attribute", "attributes", *LOADERS}


class Shown(NamedTuple):
    """What a browser shows of a form."""

    urls: list[str]  # `currentSrc` of its images, those that are http or https URLs
    alts: list[str | None]  # of the same


class Browser(NamedTuple):
    version: str
    forms: dict[str, Shown]


DRIVER = """<!doctype html><meta charset="utf-8"><title>driver</title>
<style>iframe { position: fixed; inset: 0; width: WIDTHpx; height: HEIGHTpx; border: 0; visibility: hidden }</style>
<body><script>
const names = NAMES, shown = {}, pause = ms => new Promise(resolve => setTimeout(resolve, ms));
async function show(name) {
    const frame = document.createElement('iframe');
    const isLoaded = new Promise(resolve => frame.onload = resolve);
    frame.src = '/forms/' + name;
    document.body.append(frame);
    await Promise.race([isLoaded, pause(10000)]);
    const images = [...frame.contentDocument.images];
    for (let i = 0; i < 100 && !images.every(image => image.complete); i++) await pause(20);
    const isOnTheWeb = url => URL.canParse(url) && ['http:', 'https:'].includes(new URL(url).protocol);
    shown[name] = images.map(i => [i.currentSrc, i.getAttribute('alt')]).filter(([url]) => isOnTheWeb(url));
    frame.remove();
}
async function work() { while (names.length) await show(names.shift()); }
Promise.all([...Array(8).keys()].map(work)).then(
    () => fetch('/shown', {method: 'POST', body: JSON.stringify({shown, agent: navigator.userAgent})}),
    error => fetch('/shown', {method: 'POST', body: JSON.stringify({error: String(error.stack)})}));
</script>"""
"""Opens every form in a frame of the screen's size; the window itself is small, since a surface of that many device
pixels brings the browser to a halt."""


def _pictures() -> dict[str, tuple[str, bytes]]:
    """Content type and bytes of a small image by the extension that asks for it."""
    pictures = {"svg": ("image/svg+xml", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')}
    formats = {"jpg": "JPEG", "png": "PNG", "gif": "GIF", "webp": "WEBP", "avif": "AVIF", "bmp": "BMP", "ico": "ICO"}
    for extension, kind in formats.items():
        file = io.BytesIO()
        Image.new("RGB", (16, 16), "teal").save(file, kind)
        pictures[extension] = (Image.MIME[kind], file.getvalue())
    return pictures


class FormServer(ThreadingHTTPServer):
    """The forms, an image at every other path, and the page that drives the browser; it gets back what was shown."""

    daemon_threads = True

    def __init__(self) -> None:
        self.forms = {form.page_url: form for form in FORMS}
        self.pictures = _pictures()
        self.answer: dict = {}
        self.is_answered = Event()
        super().__init__(("127.0.0.1", 0), FormHandler)

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a browser hangs up when it has seen enough
            super().handle_error(request, client_address)


class FormHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FormServer

    def do_GET(self) -> None:
        form = self.server.forms.get(f"http://{self.headers['Host']}{self.path}")
        if self.path == "/driver":
            names = json.dumps([form.name for form in FORMS])
            page = DRIVER.replace("WIDTH", str(SCREEN["width"])).replace("HEIGHT", str(SCREEN["height"]))
            self._send("text/html; charset=utf-8", page.replace("NAMES", names).encode())
        elif form:
            charset = f"; charset={form.charset}" if form.charset else ""
            self._send(f"text/html{charset}", form.page(form.script))
        else:
            extension = urlsplit(self.path).path.rpartition(".")[2].lower()
            self._send(*self.server.pictures.get(extension, self.server.pictures["png"]))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._send("text/plain", b"thanks")
        if self.path == "/shown":
            self.server.answer = json.loads(body)
            self.server.is_answered.set()

    def _send(self, content_type: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None: ...


@pytest.fixture(scope="module")
def browser() -> Browser:
    """What a real browser shows of every form; the test is skipped, and says so, where there is none."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is on PATH: the page set is not compared with a browser")
    with FormServer() as server, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        with Path(profile, "log").open("w+") as log:
            process = subprocess.Popen(
                [program, *_browser_options(profile, server.server_address[1]), f"{ORIGIN}/driver"],
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=os.environ | {"TMPDIR": profile},
                start_new_session=True,
            )
            try:
                server.is_answered.wait(BROWSER_TIMEOUT_S)
            finally:
                process.terminate()  # it ends its own processes then
                with suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                server.shutdown()
                thread.join()
            log.seek(0)
            answer = server.answer
            assert "shown" in answer, answer.get("error") or f"no answer in {BROWSER_TIMEOUT_S} s: {log.read()[-2000:]}"
    forms = {
        name: Shown([url for url, _ in images], [alt for _, alt in images]) for name, images in answer["shown"].items()
    }
    return Browser(answer["agent"].rpartition("Headless")[2].partition(" ")[0], forms)


def _browser_options(profile: str, port: int) -> Iterator[str]:
    yield from ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
    yield from (f"--user-data-dir={profile}", "--disable-background-networking", "--disable-component-update")
    yield from ("--window-size=200,200", f"--force-device-scale-factor={SCREEN['pixels_per_px']}")
    yield f"--host-resolver-rules=MAP *.test 127.0.0.1:{port},MAP * ~NOTFOUND"
    yield "--disable-features=HttpsUpgrades,HttpsFirstBalancedModeAutoEnable"
    # With a mouse, which a browser without a screen has not.
    yield "--blink-settings=primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4"


def test_found_urls_are_what_a_browser_shows(browser: Browser, record_property, capsys) -> None:
    agreeing = [form for form in FORMS if found(form) == browser.forms[form.name].urls]
    on_purpose = {form.name: form.differs for form in FORMS if form.differs}
    counts = f"{len(agreeing)} of {len(FORMS)} forms agree with {browser.version}, {len(on_purpose)} differ on purpose"
    record_property("forms", counts)
    with capsys.disabled():
        sys.stdout.write(f"\n{counts}\n")
    others = [form for form in FORMS if form not in agreeing and not form.differs]
    assert {form.name: (found(form), browser.forms[form.name].urls) for form in others} == {}
    assert [form.name for form in agreeing if form.differs] == []
    assert len(agreeing) >= 200


def test_a_browser_shows_what_is_recorded(browser: Browser) -> None:
    recorded = {form.name: form.shown_urls for form in FORMS}
    shown = {name: form.urls for name, form in browser.forms.items()}
    assert {name: shown[name] for name in recorded if shown[name] != recorded[name]} == {}


def test_alt_texts_are_those_of_a_browser(browser: Browser) -> None:
    for form in FORMS:
        if not form.differs:
            page = parsed(form.page(form.script), form.page_url, charset=form.charset)
            shown = [" ".join((alt or "").split()) or None for alt in browser.forms[form.name].alts]
            assert [image.alt for image in page.images] == shown, form.name


# ---- what stands beside an image


@pytest.mark.parametrize(
    ("attribute", "alt"),
    [
        ("", None),
        ("alt", None),
        ("alt=''", None),
        ("alt=' \n '", None),
        ("alt='A cat'", "A cat"),
        ("alt='  A\n\t cat\u00a0 &amp; <b>dog</b> '", "A cat & <b>dog</b>"),
        ("alt='日本'", "日本"),
        ("title='A cat'", None),
    ],
)
def test_the_alt_text_has_its_white_space_collapsed(attribute: str, alt: str | None) -> None:
    assert parsed(f"<img src=a.jpg {attribute}>".encode(), URL).images[0].alt == alt


@pytest.mark.parametrize(
    ("html", "robots"),
    [
        ('<meta name="robots" content="noindex, nofollow">', ["noindex, nofollow"]),
        ('<META NAME="ROBOTS" CONTENT="NOAI">', ["NOAI"]),
        ('<meta content="noimageai" name=robots>', ["noimageai"]),
        ("<meta name=robots content=noai><meta name=robots content=noimageai>", ["noai", "noimageai"]),
        ("<body><p><meta name=robots content=noai>", ["noai"]),
        ("<noscript><meta name=robots content=noai></noscript>", ["noai"]),
        ("<meta name=robots>", []),
        ("<meta name=robots content=''>", []),
        ("<meta name=googlebot content=noindex><meta name=robot content=noai><meta name=x-robots content=noai>", []),
        ("<meta property=robots content=noai><meta http-equiv=robots content=noai>", []),
        ("<!-- <meta name=robots content=noai> --><script>'<meta name=robots content=noai>'</script>", []),
        ("<template><meta name=robots content=noai></template>", []),
    ],
)
def test_robots_are_the_contents_of_its_metas(html: str, robots: list[str]) -> None:
    assert parsed(html.encode(), URL) == ParsedPage([], robots, None)


@pytest.mark.parametrize(
    ("html", "license"),
    [
        ('<a rel="license" href="https://creativecommons.org/licenses/by/4.0/">', BY),
        (f'<head><link REL="Author LICENSE" href="{BY}"></head><a rel=license href=/other>', BY),
        ("<base href=https://b.org/x/><a rel=license href=terms>", "https://b.org/x/terms"),
        ("<a rel=license>terms</a>", None),
        ("<a rel=license href='javascript:show()'>", None),
        ("<a rel=licensed href=/terms><a href=/license><div rel=license>", None),
        ("<!-- <a rel=license href=/terms> -->", None),
    ],
)
def test_the_licence_is_the_first_link_that_says_so(html: str, license: str | None) -> None:
    assert parsed(html.encode(), URL).license == license


# ---- srcset and choice, without a page


@pytest.mark.parametrize(
    ("srcset", "url"),
    [
        ("", None),
        ("a", "a"),
        ("a 1x, b 2x", "b"),
        ("a 100w, b 2x", "a"),  # a width says more
        ("a 100w, b", "a"),
        ("a 2x, b 2x", "a"),
        ("a 1e999x, b 2x", "a"),
        ("a 99999999999999999999w, b 5w", "a"),
        ("data:image/png;base64,AAAA 2x, b 1x", "b"),
        (" DATA:,x 2x, \tb 1x", "b"),
        ("data:,x", None),
        ("blob:x 1x, javascript:x 2x, about:blank 3x", None),
        ("x" * (MAX_URL_CHARS + 1) + " 2x, b", "b"),
        ("a 1y", None),
        ("a ١w", None),  # a digit, but not one of HTML
    ],
)
def test_the_largest_candidate(srcset: str, url: str | None) -> None:
    assert largest_candidate(srcset) == url


@pytest.mark.parametrize("seed", range(3))
def test_the_largest_candidate_is_that_of_a_plain_reading(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(300):
        unit, sizes = rng.choice("wx"), [rng.randrange(1, 40) for _ in range(rng.randrange(1, 8))]
        candidates = [f"u{i}{' ' * rng.randrange(1, 3)}{size}{unit}" for i, size in enumerate(sizes)]
        srcset = "".join(candidate + rng.choice([",", ", ", " ,\n"]) for candidate in candidates)
        assert largest_candidate(srcset) == f"u{sizes.index(max(sizes))}", srcset


def test_a_choice_needs_attributes_only() -> None:
    assert chosen_source({}) is None
    assert chosen_source({"alt": "x"}, [{}, {"media": "all"}]) is None
    assert chosen_source({"src": "a.jpg"}, [{"srcset": "b.jpg", "media": "print"}, {"srcset": "c.jpg"}]) == "c.jpg"
    assert chosen_source({"src": "data:,x", "data-src": " b.jpg "}) == "b.jpg"
    assert chosen_source({"src": "a.jpg", "srcset": "s.jpg 9w", "data-srcset": "l.jpg 5w"}) == "l.jpg"
    assert chosen_source({"src": "a.jpg"}, [{"srcset": "b.jpg", "media": "(" * 5000}]) == "a.jpg"
    assert chosen_source({"data-src": "x" * (MAX_URL_CHARS + 1) + ".jpg", "src": "a.jpg"}) == "a.jpg"


# ---- URLs


@pytest.mark.parametrize(
    ("url", "base", "resolved"),
    [
        ("a.jpg", "http://a.test/x/y?z", "http://a.test/x/a.jpg"),
        ("a.jpg", "http://a.test", "http://a.test/a.jpg"),
        ("", "http://a.test/x?y#z", "http://a.test/x?y"),
        ("//b.test/a.jpg", "https://a.test/", "https://b.test/a.jpg"),
        ("http:a.jpg", "https://a.test/x/", "http://a.jpg/"),  # as browsers do, where the schemes differ
        ("http://b.test/a.jpg", "", "http://b.test/a.jpg"),
        ("http://b.test/a.jpg", "file:///x", "http://b.test/a.jpg"),
        ("a.jpg", "", None),
        ("a.jpg", "file:///x", None),
        ("a.jpg", "no URL", None),
        ("//b.test/a.jpg", "http://", None),
        ("a.jpg", " http://a.test/x/\n", "http://a.test/x/a.jpg"),
        ("a.jpg", "http://me:pw@A.test:80/x/", "http://me:pw@a.test/x/a.jpg"),
        ("data:,x", "http://a.test/", None),
        ("java\nscript:x", "http://a.test/", None),
        ("http://" + "a" * 300, "http://a.test/", None),
        ("http://a.test/" + "a" * MAX_URL_CHARS, "http://a.test/", None),
        (" " * MAX_URL_CHARS + "a.jpg", "http://a.test/", "http://a.test/a.jpg"),
        ("\ud800", "http://\udfff.test/", None),
    ],
)
def test_urls_are_resolved_as_in_a_browser(url: str, base: str, resolved: str | None) -> None:
    assert absolute_url(url, base) == resolved


def test_without_a_page_url_absolute_urls_are_found() -> None:
    assert urls('<img src="a.jpg"><img src="http://a.test/b.jpg">', "warcinfo:x") == ["http://a.test/b.jpg"]
    html = '<base href="http://a.test/x/"><img src="a.jpg">'
    assert urls(html, "") == ["http://a.test/x/a.jpg"]


# ---- bytes


RUSSIAN = "<p>Съешь же ещё этих мягких французских булок, да выпей чаю.</p><img src='/a.jpg' alt='Чашка чая'>"
JAPANESE = "<p>いろはにほへと ちりぬるを わかよたれそ つねならむ 有為の奥山</p><img src='/a.jpg' alt='日本の写真'>"


@pytest.mark.parametrize(
    ("html", "encoding", "charset", "alt"),
    [
        (RUSSIAN, "windows-1251", "windows-1251", "Чашка чая"),
        (RUSSIAN, "windows-1251", " CP1251 ", "Чашка чая"),
        ("<meta charset=windows-1251>" + RUSSIAN, "windows-1251", None, "Чашка чая"),
        (RUSSIAN, "windows-1251", None, "Чашка чая"),  # detected
        (RUSSIAN, "koi8-r", "no-such-charset", "Чашка чая"),  # detected
        (RUSSIAN, "utf-8", None, "Чашка чая"),
        (RUSSIAN, "utf-8-sig", "windows-1251", "Чашка чая"),  # the mark counts
        (RUSSIAN, "utf-16", "utf-8", "Чашка чая"),  # it has a mark
        (RUSSIAN, "utf-16-be", "utf-16be", "Чашка чая"),
        (JAPANESE, "shift_jis", "shift_jis", "日本の写真"),
        (
            f"<meta http-equiv=content-type content='text/html; charset=Shift_JIS'>{JAPANESE}",
            "cp932",
            None,
            "日本の写真",
        ),
        (JAPANESE, "shift_jis", None, "日本の写真"),  # detected
        (JAPANESE, "euc_jp", None, "日本の写真"),  # detected
        (JAPANESE, "iso2022_jp", "iso-2022-jp", "日本の写真"),
        ("<meta charset=utf-16>" + JAPANESE, "utf-8", None, "日本の写真"),  # or it could not have been read
        (f"<!--{'x' * 2000}--><meta charset=euc-jp>{JAPANESE}", "euc_jp", None, "日本の写真"),
        ("<img src=/a.jpg alt='① ㈱'>", "cp932", "shift_jis", "① ㈱"),  # what browsers call Shift_JIS
        ("<img src=/a.jpg alt='“x” €'>", "cp1252", "iso-8859-1", "“x” €"),
    ],
)
def test_pages_in_their_charsets(html: str, encoding: str, charset: str | None, alt: str) -> None:
    page = parsed(html.encode(encoding), URL, charset=charset)
    assert page.images == [PageImage("http://pages.test/a.jpg", alt)]


def test_a_page_cut_within_a_character_is_still_utf_8() -> None:
    html = ("<img src=a.jpg alt='日本'>" + "日本" * 50).encode()[:-1]
    assert parsed(html, URL).images[0].alt == "日本"


@pytest.mark.parametrize(
    "charset", [None, "utf-8", "shift_jis", "utf-16", "gb18030", "iso-2022-jp", "\ud800", "\0", ""]
)
def test_random_bytes_give_a_page(charset: str | None) -> None:
    rng = random.Random(1)
    for _ in range(100):
        assert isinstance(parsed(rng.randbytes(rng.randrange(3000)), URL, charset=charset), ParsedPage)


def test_damaged_pages_give_images_on_the_web() -> None:
    rng = random.Random(2)
    pages = [form.page() for form in FORMS]
    pieces = (b"<", b">", b'"', b"'", b"=", b"<img src=", b"<table>", b"<svg>", b"\0", b"\xff", b"<!--", b"&#xd800;")
    num_images = 0
    for _ in range(3000):
        page = bytearray(rng.choice(pages) + rng.choice(pages))
        for _ in range(rng.randrange(6)):
            at = rng.randrange(len(page))
            page[at : at + rng.randrange(4)] = rng.choice([*pieces, rng.randbytes(3)])
        images = parsed(bytes(page[: rng.randrange(len(page)) if rng.random() < 0.5 else None]), URL).images
        num_images += len(images)
        assert all(image.url.startswith(("http://", "https://")) and image.url.isascii() for image in images)
    assert num_images > 1000


def test_a_page_cut_anywhere_gives_the_images_before_the_cut() -> None:
    html = b"".join(b"<p>text &amp; <a href='/x'><img src='/%d.jpg' alt='x'></a></p>\n" % i for i in range(30))
    for end in range(len(html)):
        whole = html[:end].count(b"></a>") + html[:end].endswith(
            (b"alt='x'>", b"alt='x'><", b"alt='x'></", b"alt='x'></a")
        )
        assert urls(html[:end]) == [f"http://pages.test/{i}.jpg" for i in range(whole)], end


# ---- pages that must not be slow


def attributes(count: int, form: str = "a{}=1", sep: str = " ") -> str:
    return sep.join(form.format(i) for i in range(count))


FIRST = "<img src=/first.jpg>"
SLOW: dict[str, Callable[[], str]] = {
    "100,000 open tags": lambda: FIRST + "<div>" * 100_000 + "<img src=/never.jpg>",
    "deep <div>": lambda: FIRST + "<div>" * 39_000 + "<img src=/last.jpg>",
    "deep <b>": lambda: FIRST + "<b>" * 39_000 + "<img src=/last.jpg>",
    "deep <table>": lambda: FIRST + "<table>" * 100_000,
    "deep <svg>": lambda: FIRST + "<svg>" * 39_000 + "<img src=/last.jpg>",
    "deep <template>": lambda: FIRST + "<template>" * 100_000,
    "deep <rt>": lambda: FIRST + "<rt>" * 39_000 + "<img src=/last.jpg>",
    "<b> opened again": lambda: FIRST + "".join(f"<p><b c={i}>" for i in range(4_000)) + "<img src=/last.jpg>",
    "<FONT> opened again": lambda: FIRST + "".join(f"<P><FONT c={i}>" for i in range(4_000)) + "<img src=/last.jpg>",
    "alike opened again": lambda: FIRST + "<p>" + "<b><i><u><s><tt>" * 3 + "<p>" * 39_000 + "<img src=/last.jpg>",
    "many <html>": lambda: FIRST + "".join(f"<html a{i}>" for i in range(39_000)) + "<img src=/last.jpg>",
    "end tags": lambda: FIRST + "<span>" * 20_000 + "</x>" * 30_000 + "<img src=/never.jpg>",
    "options": lambda: FIRST + "<span>" * 5_000 + "<option>" * 20_000,
    "many names": lambda: FIRST + "".join(f"<p a{i} b{i} c{i}>" for i in range(10_000)) + "<img src=/last.jpg>",
    "a million attributes": lambda: f"{FIRST}<img {attributes(1_000_000)} src=/last.jpg>",
    "attributes without values": lambda: f"{FIRST}<img {attributes(300_000, 'a{}')} src=/last.jpg>",
    "attributes with > in values": lambda: FIRST + "<img " + attributes(300_000, 'a{}=">"') + " src=/last.jpg>",
    "attributes with tags in values": lambda: FIRST + "<img " + attributes(300_000, "a{}='<p>'") + " src=/last.jpg>",
    "attributes without spaces": lambda: FIRST + "<img " + attributes(300_000, 'a{}=""', "") + " src=/last.jpg>",
    "attributes between slashes": lambda: f"{FIRST}<img/{attributes(300_000, 'a{}', '/')} src=/last.jpg>",
    "one attribute again and again": lambda: f"{FIRST}<img {'a=1 ' * 1_000_000} src=/last.jpg>",
    "a src of 5 MB": lambda: f"{FIRST}<img src='{'x' * 5_000_000}'>",
    "an alt of 5 MB": lambda: f"{FIRST}<img src=/last.jpg alt='{'x ' * 2_500_000}'>",
    "a data: URL of 5 MB": lambda: f"{FIRST}<img src='data:image/png;base64,{'A' * 5_000_000}' data-src=/last.jpg>",
    "candidates": lambda: f"{FIRST}<img srcset='{','.join(f'{i} {i}w' for i in range(1, 40_001))}'>",
    "candidates that are data": lambda: f"{FIRST}<img srcset='{'data:,x 1x,' * 100_000}'>",
    "a srcset of commas": lambda: f"{FIRST}<img srcset='{',' * 2_000_000}'>",
    "a srcset of parentheses": lambda: f"{FIRST}<img srcset='a {'()' * 1_000_000}'>",
    "a srcset of open parentheses": lambda: f"{FIRST}<img srcset='a {'(' * 2_000_000}'>",
    "a srcset of spaces": lambda: f"{FIRST}<img srcset='a 1w{' ' * 2_000_000}y'>",
    "a width of zeros": lambda: f"{FIRST}<img srcset='a {'0' * 2_000_000}h 1w'>",
    "a density of digits": lambda: f"{FIRST}<img srcset='a {'9' * 2_000_000}.x'>",
    "lazy digits": lambda: f"{FIRST}<img data-src='{'1.' * 1_000_000}x'>",
    "dots": lambda: f"{FIRST}<img src='{'../' * 5_000}a.jpg'>",
    "a long host": lambda: f"{FIRST}<img src='http://{'é' * 5_000}/'>",
    "media": lambda: (
        f"{FIRST}<picture><source srcset=a media='{'(' * 900}'><source srcset=a media='{'not ' * 200}'></picture>"
    ),
    "sources": lambda: f"{FIRST}<picture>{'<source srcset=data:,x>' * 20_000}{'<img src=/last.jpg>' * 1_000}</picture>",
    "images": lambda: FIRST * 4_000,
    "metas and bases": lambda: FIRST + "<meta name=robots content=x><base href=/>" * 30_000,
    "only <": lambda: FIRST + "<" * 1_000_000,
    "only <a": lambda: FIRST + "<a" * 1_000_000,
    "quotes within quotes": lambda: FIRST + "<a x=\"<a x='" * 100_000,
    "values without end": lambda: FIRST + "<a/b=" * 300_000,
    "comments": lambda: FIRST + "<!--" * 500_000,
    "scripts": lambda: FIRST + "<script>" * 200_000,
    "ampersands": lambda: FIRST + "<img src='" + "&a" * 1_000_000,
}


@pytest.mark.parametrize("name", SLOW)
def test_no_page_is_slow(name: str) -> None:
    html = SLOW[name]().encode()
    begin = time.process_time()
    images = urls(html)
    assert time.process_time() - begin < (CPU_S / 10 if "opened again" in name else CPU_S)
    assert images[0] == "http://pages.test/first.jpg"


@pytest.mark.parametrize("name", [name for name in SLOW if name.startswith("deep") or "opened again" in name])
def test_what_costs_nothing_is_found_in_pages_that_could_be_slow(name: str) -> None:
    html = SLOW[name]()
    is_read = "last.jpg" in html[:MAX_PAGE_BYTES] and html.count("<") <= MAX_TAGS
    last = ["http://pages.test/last.jpg"] if is_read else []
    assert urls(html) == ["http://pages.test/first.jpg", *last]


def test_of_many_candidates_the_largest_is_found() -> None:
    assert urls(SLOW["candidates"]()) == ["http://pages.test/first.jpg", "http://pages.test/forms/40000"]
    begin = time.process_time()
    assert largest_candidate(", ".join(f"/{i}.jpg {i}w" for i in range(1, 100_001))) == "/100000.jpg"
    assert time.process_time() - begin < CPU_S


def test_a_page_ends_before_a_tag_with_too_many_attributes() -> None:
    html = f"{FIRST}<img {attributes(MAX_ATTRIBUTES - 10)} src=/second.jpg>{' ' * 300_000}"
    assert urls(html) == ["http://pages.test/first.jpg", "http://pages.test/second.jpg"]
    html = f"{FIRST}<img {attributes(MAX_ATTRIBUTES + 10)} src=/second.jpg>{' ' * 300_000}{FIRST}"
    assert urls(html) == ["http://pages.test/first.jpg"]


def test_a_page_ends_before_a_tag_too_many() -> None:
    html = "<img src=a.jpg>" * (MAX_TAGS + 10)
    assert len(urls(html)) == MAX_TAGS
    assert len(urls("<script>" + "<" * MAX_TAGS + "</script>" + "<br>" * (MAX_TAGS - 10) + FIRST)) == 1


def test_scripts_and_data_do_not_count_as_parts_of_a_large_page() -> None:
    script = f"<script>{'x<y;' * (MAX_PAGE_BYTES // 4)}</script><!--{FIRST * 1000}-->"
    data = f"<img src='data:image/png;base64,{'A' * MAX_PAGE_BYTES}' data-src=/second.jpg>"
    assert urls(FIRST + script + data + "<img src=/third.jpg>") == [
        f"http://pages.test/{name}.jpg" for name in ("first", "second", "third")
    ]
    assert urls(FIRST + "x" * MAX_PAGE_BYTES + FIRST) == ["http://pages.test/first.jpg"]


def test_a_large_page_loses_nothing() -> None:
    rest = b"<script>for(i=0;i<n;i++)x='<img src=no.jpg>'</script><!-- <img src=no.jpg> --><style>a>b{}</style>"
    page = usual_page(num_bytes=400_000).replace(b"</h2>", b"</h2>" + rest)
    assert len(page) > 400_000
    assert urls(page) == urls(usual_page())


def test_a_usual_page_takes_milliseconds() -> None:
    page = usual_page()
    assert 90_000 < len(page) < 110_000
    parsed(page, URL)
    begin = time.process_time()
    for _ in range(20):
        images = parsed(page, URL).images
    assert (time.process_time() - begin) / 20 < 0.02  # here: 0.0016
    assert len(images) == 60 + 15  # every fourth has a copy in <noscript>
