"""URLs in one spelling against the original and itself, and rules against the layouts that lists are published in."""

import bz2
import gzip
import logging
import lzma
import re
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

import fsspec
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from lvd.infra.errors import InputError
from lvd.tasks import blocklists, decode
from lvd.tasks import urls as url_spelling
from lvd.tasks.url_rules import Rules, UrlRules, rules_digest
from lvd.tasks.urls import domain_of, host_of, normalized_url

NORMALIZED = {
    "http://a.org/x": "http://a.org/x",
    " HTTP://A.Org:80/X?b=C#part ": "http://a.org/X?b=C",
    "https://a.org:443": "https://a.org/",
    "https://a.org:8443/": "https://a.org:8443/",
    "http://a.org:443/": "http://a.org:443/",  # the other scheme's port
    "http://a.org:0080/": "http://a.org/",
    "http://a.org:/": "http://a.org/",
    "http://a.org./x": "http://a.org/x",  # the root's dot
    "http://User:Pw@A.org/x": "http://User:Pw@a.org/x",
    "http://u:p@ss@a.org/x": "http://u:p@ss@a.org/x",
    "http://@a.org/x": "http://a.org/x",
    "https://a.org:80/": "https://a.org:80/",
    "http://a.org:8/": "http://a.org:8/",
    "http://[2606:4700::ABCD]:80/x": "http://[2606:4700::abcd]/x",
    "http://a.org?": "http://a.org/",
    "http://a.org/x?": "http://a.org/x",
    "http://a.org?x=/": "http://a.org/?x=/",
    "http://a.org#x": "http://a.org/",
    "http://a.org/x#a?b": "http://a.org/x",
    "http://a_b.org/x": "http://a_b.org/x",  # no host name, but in use
    # International hosts: as in the DNS, by UTS 46
    "http://bücher.example/": "http://xn--bcher-kva.example/",
    "http://BÜCHER.example.:80/": "http://xn--bcher-kva.example/",
    "http://XN--BCHER-KVA.example/": "http://xn--bcher-kva.example/",
    "http://faß.de/": "http://xn--fa-hia.de/",
    "http://例え。jp/": "http://xn--r8jz45g.jp/",  # the ideographic full stop
    "http://ｅｘａｍｐｌｅ.com/": "http://example.com/",
    "http://💩.la/": "http://xn--ls8h.la/",  # not in IDNA 2008, but there are such names
    # Percent-encoding
    "http://a.org/ä b": "http://a.org/%C3%A4%20b",
    "http://a.org/%c3%a4%20b": "http://a.org/%C3%A4%20b",
    "http://a.org/日本?ü=日": "http://a.org/%E6%97%A5%E6%9C%AC?%C3%BC=%E6%97%A5",
    "http://a.org/%7emedia/%41%2d%5f": "http://a.org/~media/A-_",
    "http://a.org/%2f%3f%23%25%2b%26": "http://a.org/%2F%3F%23%25%2B%26",  # these stand for something else than bare
    "http://a.org/?a=%2b+%20&b=%26": "http://a.org/?a=%2B+%20&b=%26",
    'http://a.org/"<>\\^`{|}': "http://a.org/%22%3C%3E%5C%5E%60%7B%7C%7D",
    "http://a.org/!$&'()*+,;=:@[]": "http://a.org/!$&'()*+,;=:@[]",
    "http://a.org/100%/%zz/%4": "http://a.org/100%/%zz/%4",  # a bare percent sign goes as it is, as in browsers
    "http://a.org/%%34%31": "http://a.org/%%341",  # no new escape comes of decoding
    "http://a.org/%4%31": "http://a.org/%4%31",
    # Dot segments
    "http://a.org/a/./b/../c": "http://a.org/a/c",
    "http://a.org/../../x": "http://a.org/x",
    "http://a.org/a/..": "http://a.org/",
    "http://a.org/a/.": "http://a.org/a/",
    "http://a.org/a/%2E%2e/x": "http://a.org/x",
    "http://a.org/a//../b": "http://a.org/a/b",
    "http://a.org/.well-known/...": "http://a.org/.well-known/...",
    "http://a.org/x?p=/../": "http://a.org/x?p=/../",
    # What a server may tell apart
    "http://a.org//x//": "http://a.org//x//",
    "http://a.org/?b=2&a=1&&b=2": "http://a.org/?b=2&a=1&&b=2",
    "http://a.org/X;v=1/index.html": "http://a.org/X;v=1/index.html",
    "http://www.a.org/": "http://www.a.org/",
}
INVALID = [
    None,
    "",
    " ",
    "a.org/x.jpg",
    "//a.org/x.jpg",
    "ftp://a.org/x.jpg",
    "file:///etc/passwd",
    "data:image/png;base64,AAAA",
    "javascript:alert(1)",
    "http:a.org",
    "http://",
    "http://.",
    "http:///x.jpg",
    "http://?x",
    "http://a b.org/x",
    "http://a%2eorg/x",
    "http://a.org\\x",
    "http://℀.org/x",  # a/c in compatibility form
    "http://ü..org/x",
    "http://a.org:99999/x",
    "http://a.org:port/x",
    "http://[::1/x",
    "http://a.org/\x00",
    "http://a.org/\nHost: b.org",
    "http://a.org/\ud800",
    "http://\ud800.org/",
    "http://" + "a" * 254 + "/",
    "http://a.org/" + "x" * 5000,
]
PIECES = [
    "a",
    "B7",
    "é",
    " ",
    "日",
    "%20",
    "%2f",
    "%7e",
    "%C3%a9",
    "%",
    "/",
    "/./",
    "/../",
    "/.",
    "//",
    "?",
    "&",
    "=",
    "+",
]
PIECES += ["'", "|", "{", '"', "[", "\\", ";", ":", "@", "!", "~", ".", "%2e", "#", "-", "_", "jpg", "%2"]


def normal(url: str) -> str:
    return normalized_url(url, max_length=4096)


@pytest.fixture(scope="module")
def urls() -> list[str]:
    """Random valid URLs, most of them in no usual form."""
    rng = np.random.default_rng(0)
    hosts = ["a.org", "A.org:80", "bücher.de", "a.org:8080", "u:p@a.org", "[::1]:80"]
    texts = [
        f"http://{rng.choice(hosts)}{rng.choice(['/', '?', '/x/'])}{''.join(rng.choice(PIECES, rng.integers(9)))}"
        for _ in range(4000)
    ]
    return [*texts, *NORMALIZED]


@pytest.mark.parametrize("url", NORMALIZED)
def test_urls_are_compared_without_what_does_not_matter(url):
    assert normal(url) == NORMALIZED[url]


@pytest.mark.parametrize("url", INVALID)
def test_what_is_no_web_url_is_refused(url):
    with pytest.raises(ValueError):
        normal(url)


@pytest.mark.parametrize(
    ("url", "error"),
    [
        (None, "url must not be empty"),
        ("http://a.org/" + "x" * 4, "url must have at most 16 characters, had 17"),
        ("http://a.org/\t", r"url must not hold control characters, was 'http://a.org/\t'"),
        ("ftp://a.org/", "url must begin with http:// or https://, was 'ftp://a.org/'"),
        ("http://a|b/", "url must name a host, was 'http://a|b/'"),
    ],
)
def test_the_error_says_what_a_url_must_be(url, error):
    with pytest.raises(ValueError, match=f"^{re.escape(error)}$"):
        normalized_url(url, max_length=16)


def test_a_url_in_its_one_spelling_stays_and_goes_the_short_way(urls, monkeypatch):
    once = [normal(url) for url in urls]
    assert [normal(url) for url in once] == once
    assert all(url.isascii() for url in once)
    with monkeypatch.context() as patch:
        patch.setattr(url_spelling, "_CANONICAL", re.compile(r"(?!)"))
        assert [normal(url) for url in urls] == once
    monkeypatch.setattr(url_spelling, "_split", None)  # the long way
    assert normal("https://i2.a.org/x/IMG_1.jpg?w=3%2C2&q=%C3%A9") == "https://i2.a.org/x/IMG_1.jpg?w=3%2C2&q=%C3%A9"


def test_what_a_server_is_asked_for_stays(urls):
    for url in urls:
        parts, after = urlsplit(url.strip()), urlsplit(normal(url))
        assert unquote_to_bytes(after.query) == unquote_to_bytes(parts.query), url
        if "." not in parts.path and "%2e" not in parts.path.lower():
            assert unquote_to_bytes(after.path) == unquote_to_bytes(parts.path or "/"), url


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://a.org/x@y:1", "a.org"),
        ("https://u:p@ss@a.org:81/", "a.org"),
        ("http://[::1]:81/x", "::1"),
        ("http://u@[::1]/x", "::1"),
    ],
)
def test_the_host_of_a_url(url, host):
    assert host_of(normal(url)) == host == urlsplit(url).hostname


def test_the_domain_of_a_host():
    assert domain_of("www.a.org") == "a.org"
    assert domain_of("www.www.a.org") == "www.a.org"
    assert domain_of("www.org") == "www.org"  # a domain of its own
    assert domain_of("www2.a.org") == "www2.a.org"
    assert domain_of("a.org") == "a.org"


@pytest.fixture
def listed(tmp_path):
    """Writes a list and returns its path."""

    def write(content: str | bytes, name: str = "list") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


def reason(rules: Rules | UrlRules, url: str) -> str | None:
    rules = rules if isinstance(rules, UrlRules) else UrlRules(rules)
    normalized = normal(url)
    broken = rules.broken(normalized, host_of(normalized))
    return broken and broken[0]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/x.jpg", None),
        ("/x.JPG", None),
        ("/x.jpeg?y.php", None),
        ("/x", None),  # no extension
        ("/", None),
        ("/x.jpg/", None),
        ("/v1.2", None),  # a number is none
        ("/mr.robinson", None),  # nor is what is long
        ("/x.", None),
        ("/x.php/photo", None),  # not in the last part
        ("/x.jpg:large", None),
        ("/x.jpg!w640", None),
        ("/x.jpg_640x640.jpg_", None),
        ("/x.php", "extension"),
        ("/x.php?file=x.jpg", "extension"),
        ("/x.jpg.webp", "extension"),
        ("/x%2Epng", "extension"),
        ("/x.svg", "blocked_extension"),
        ("/x.SVG?x#y", "blocked_extension"),
        ("/x.svg.jpg", None),
        ("/x.svg/y.jpg", None),
        ("/svg", None),
        (".svg", None),  # of the host a.org.svg
    ],
)
def test_extensions(path, expected):
    rules = UrlRules(Rules(extensions=[".JPG", "jpeg"]))
    assert reason(rules, f"http://a.org{path}") == expected
    if expected != "blocked_extension":
        assert reason(Rules(), f"http://a.org{path}") is None


def test_no_extension_is_blocked_that_a_decoded_format_bears():
    Image.init()
    formats = {*decode.FORMATS, "MPO"}
    known = {extension[1:] for extension, name in Image.registered_extensions().items() if name in formats}
    assert {"jpg", "jfif", "apng", "tif", "webp", "avif"} <= known
    assert known.isdisjoint(Rules().blocked_extensions)
    assert {"svg", "ico"} <= set(Rules().blocked_extensions)


LINES = {
    # a line of a list of domains: what it stands for; () for none; None for a line of no known layout
    "example.com": ["example.com"],
    "  Example.COM\t": ["example.com"],
    "example.com.": ["example.com"],
    "www.example.com": ["example.com"],
    "www.com": ["www.com"],
    ".example.com": ["example.com"],
    "*.example.com": ["example.com"],
    "*.www.example.com": ["example.com"],
    "-a_b-.tumblr.com": ["-a_b-.tumblr.com"],
    "12.41.90.72": ["12.41.90.72"],
    "bücher.example": ["xn--bcher-kva.example"],
    "xn--bcher-kva.example": ["xn--bcher-kva.example"],
    "example.com # why": ["example.com"],
    "http://example.com/": ["example.com"],
    "https://www.example.com": ["example.com"],
    ".xxx": ["xxx"],
    "0.0.0.0 ads.example": ["ads.example"],
    "127.0.0.1\tads.example  www.b.example # two": ["ads.example", "b.example"],
    "::1 ads.example": ["ads.example"],
    "0.0.0.0 www.ads.example": ["ads.example"],
    "127.0.0.1 localhost": [],
    "::1 ip6-localhost ip6-loopback": [],
    "fe80::1%lo0 localhost": [],
    "||example.com^": ["example.com"],
    "||www.example.com^": ["example.com"],
    "||example.com^|": ["example.com"],
    "||*.example.com^": ["example.com"],
    "||example.com^$third-party,important": ["example.com"],
    "||xxx^": ["xxx"],
    "": [],
    "# example.com": [],
    "  ! example.com": [],
    "[Adblock Plus 2.0]": [],
    "\ufeffexample.com": ["example.com"],
    "@@||example.com^": None,  # an exception
    "||example.com^$script": None,  # blocks no image
    "||example.com/banner^": None,
    "||ads.*^": None,
    "example.com##.banner": None,
    "/ads[0-9]+/": None,
    "http://example.com/page": None,
    "word": None,  # a top-level domain is written .word
    "two words.example": None,
    "0.0.0.0 a/b.example": None,
    "a,example.com": None,
    "<html>": None,
    "a..example": None,
}


@pytest.mark.parametrize("line", LINES)
def test_the_layouts_of_domains(line, listed, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("lvd"), "propagate", True)
    rules = UrlRules(Rules(blocked_domains=[listed(f"other.example\n{line}\nlast.example")]))
    for domain in LINES[line] or ():
        assert reason(rules, f"http://{domain}/") == "blocked_domain"
        assert reason(rules, f"http://x.{domain}/") == "blocked_domain"
        assert reason(rules, f"http://x{domain}/") is None
    for host in ("localhost", "ip6-loopback", "com", "b.org", "page"):
        assert reason(rules, f"http://{host}/") is None
    assert reason(rules, "http://last.example/") == "blocked_domain"
    assert [record.args[1] for record in caplog.records] == ([1] if LINES[line] is None else [])


def test_the_common_line_and_the_layout_agree():
    rng = np.random.default_rng(0)
    pieces = ["www.", "a", "b-", "_c", ".", "x.com", "||", "*.", "0.0.0.0 ", "127.0.0.1 ", "^", " ", "#", "$", "/"]
    agreed = 0
    for _ in range(30_000):
        line = "".join(rng.choice(pieces, rng.integers(1, 6)))
        common = blocklists._DOMAIN_LINE.fullmatch(f"{line}\n".encode())
        if common and not re.fullmatch(r"[0-9.]+ .*\^", line):  # a name in a hosts file, which has no such end
            assert blocklists._domain_entries(line) == [common[1].decode()], line
            agreed += 1
    assert agreed > 1000


def test_domains_match_at_the_borders_of_labels_as_brute_force_does(listed):
    rng = np.random.default_rng(0)
    domains = {".".join(rng.choice(["a", "b", "ab", "c"], rng.integers(2, 5))) for _ in range(60)}
    rules = UrlRules(Rules(blocked_domains=[listed("\n".join(domains))]))
    allowing = UrlRules(Rules(allowed_domains=[listed("\n".join(domains))]))
    outcomes = []
    for _ in range(2000):
        host = ".".join(rng.choice(["a", "b", "ab", "c"], rng.integers(1, 7)))
        above = [domain for domain in domains if f".{host}".endswith(f".{domain}")]
        longest = max(above, key=len, default=None)
        expected = ("blocked_domain", f"{host} is, or is below, {longest} of blocked_domains")
        assert rules.broken(f"http://{host}/", host) == (expected if above else None)
        assert (allowing.broken(f"http://{host}/", host) is None) == bool(above)
        outcomes.append(bool(above))
    assert 100 < sum(outcomes) < 1900


@pytest.mark.parametrize("count", [1, 2, 3, 1000])
def test_a_list_of_any_length_is_looked_up(count, listed):
    domains = [f"d{i}.example" for i in range(count)]
    rules = UrlRules(Rules(blocked_domains=[listed("\n".join(domains * 2))]))
    assert all(rules.broken(f"http://{domain}/", domain) for domain in domains)
    assert not any(rules.broken(f"http://d{i}.example/", f"d{i}.example") for i in range(count, 3000))


@pytest.mark.parametrize(
    ("line", "path", "is_blocked"),
    [
        ("a.org/bad", "a.org/bad", True),
        ("a.org/bad", "a.org/bad/x.jpg", True),
        ("a.org/bad", "a.org/bad.jpg", True),
        ("a.org/bad", "a.org/bad?x", True),
        ("a.org/bad", "a.org/badge.jpg", False),  # words are whole
        ("a.org/bad", "a.org/ba", False),
        ("a.org/bad", "a.org/x/bad", False),
        ("a.org/bad", "b.a.org/bad", False),  # another host
        ("a.org/bad", "ba.org/bad", False),
        ("a.org/bad", "WWW.A.org:8080/BAD", True),
        ("a.org/bad", "www3.a.org/bad", True),  # as squidGuard does
        ("a.org/bad", "www3.org/bad", False),
        ("a.org/bad/", "a.org/bad", True),
        ("a.org/bad/*", "a.org/bad/x", True),
        ("A.org/Bad", "a.org/bad", True),
        ("http://www.a.org:81/bad", "a.org/bad", True),
        ("a.org/%7eme", "a.org/~me/x", True),
        ("a.org/~me", "a.org/%7Eme/x", True),
        ("a.org/é", "a.org/%c3%a9.jpg", True),
        ("a.org/x?id=7", "a.org/x?id=7&y", True),
        ("a.org/x?id=7", "a.org/x?id=70", False),
        ("a.org/bad-", "a.org/bad-boys", True),
        ("a.org/#info", "a.org/x", True),  # the whole host
        ("a.org", "a.org/x", True),
        ("a.org", "b.a.org/x", False),
        ("bücher.example/bad", "bücher.example/bad", True),
        ("12.41.90.72/bad", "12.41.90.72/bad", True),
        ("a.org/bad # why", "a.org/bad", True),
        ("a.org/b d", "a.org/b%20d", True),
        ("ftp://a.org/bad", "a.org/bad", None),  # None: a line of no known layout
        ("http://[::1]/bad", "a.org/bad", None),
        ("*.a.org/bad", "a.org/bad", None),
        ("||a.org/bad^", "a.org/bad", None),
        ("localhost/bad", "a.org/bad", None),
        ("<p>", "a.org/bad", None),
    ],
)
def test_the_layout_of_urls(line, path, is_blocked, listed, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("lvd"), "propagate", True)
    rules = UrlRules(Rules(blocked_urls=[listed(f"other.example/x\r\n{line}\r\n")]))
    assert reason(rules, f"http://{path}") == ("blocked_url" if is_blocked else None)
    assert reason(rules, "http://user:word@other.example:81/x/y") == "blocked_url"
    unknown = [record.getMessage() for record in caplog.records]
    assert len(unknown) == (is_blocked is None)
    assert all("blocked_urls: 1 lines of" in message for message in unknown)


@pytest.mark.parametrize(
    ("word", "path", "is_unsafe"),
    [
        ("sex", "/sex/x.jpg", True),
        ("sex", "/essex/x.jpg", False),
        ("sex", "/sexy", False),
        ("sex", "/SEX.jpg", True),
        ("Sex", "/a-sex_b", True),
        ("sex", "/x?q=sex", True),
        ("sex", "/%73ex", True),
        ("sex", "/x%20sex", True),
        ("sex", "/x%C3%A9sex", False),  # é is a letter
        ("sex", "/x%E9sex", False),  # in Latin-1 too
        ("sex", "/x%E2%80%94sex", True),  # a dash is none
        ("sex", "/ｓｅｘ", True),
        ("http", "/x", False),  # the scheme is no part
        ("hot girls", "/hot-girls.jpg", True),
        ("hot girls", "/hot/girls", True),
        ("Hot  Girls!", "/x?q=hot+girls", True),
        ("hot girls", "/hotgirls", False),
        ("hot girls", "/hot/x/girls", False),
        ("hot girls", "/girls/hot", False),
        ("hot girls", "/hot", False),
        ("hot girls", "/hot-hot-girls", True),
        ("2 girls 1 cup", "/2-girls-1-cup", True),
        ("café", "/caf%C3%A9", True),
        ("café", "/caf%E9", True),
        ("cafe\u0301", "/caf%c3%a9", True),  # composed or not
        ("порно", "/%D0%9F%D0%9E%D0%A0%D0%9D%D0%9E", True),
    ],
)
def test_words_are_whole_tokens(word, path, is_unsafe, listed):
    rules = UrlRules(Rules(unsafe_words=[listed(f"# words\nother\nhot dogs\n{word}\n")]))
    assert reason(rules, f"http://a.org{path}") == ("unsafe_word" if is_unsafe else None)


def test_words_of_the_host_count(listed):
    rules = UrlRules(Rules(unsafe_words=[listed("sex\nbücher\n")]))
    assert reason(rules, "http://best-sex.example/") == "unsafe_word"
    assert reason(rules, "http://essex.example/") is None
    assert reason(rules, "http://bücher.example/") == "unsafe_word"
    assert reason(rules, "http://xn--.example/") is None  # no Punycode
    broken = rules.broken("http://a.org/sex", "a.org")
    assert broken == ("unsafe_word", "the URL holds 'sex' of unsafe_words")


def test_the_first_rule_that_is_broken_is_named(listed):
    parts = {
        "blocked_extension": {"blocked_extensions": ["php"]},
        "extension": {"extensions": ["jpg"]},
        "blocked_domain": {"blocked_domains": [listed("a.org", "1")]},
        "blocked_url": {"blocked_urls": [listed("a.org/bad", "2")]},
        "unsafe_word": {"unsafe_words": [listed("bad", "3")]},
        "domain_not_allowed": {"allowed_domains": [listed("b.org", "4")]},
    }
    names = {**dict.fromkeys(parts, "a.org"), "blocked_extension": ".php", "extension": ".php", "unsafe_word": "bad"}
    for number, name in enumerate(parts):
        settings = {field: value for part in list(parts.values())[number:] for field, value in part.items()}
        found, error = UrlRules(Rules(**settings)).broken("http://a.org/bad/x.php", "a.org")
        assert found == name
        assert names[name] in error and next(iter(parts[name])) in error
    assert UrlRules(Rules()).broken("http://a.org/bad/x.php", "a.org") is None


@pytest.mark.parametrize(
    ("name", "pack"),
    [("list.gz", gzip.compress), ("list.bz2", bz2.compress), ("list.xz", lzma.compress), ("list", bytes)],
)
def test_packed_lists_and_odd_bytes(name, pack, listed):
    lines = [
        b"\xef\xbb\xbffirst.example",
        b"b\xfccher.example",
        "grün.example".encode(),
        b"",
        b"# \xe9",
        b"last.example",
    ]
    rules = UrlRules(Rules(blocked_domains=[listed(pack(b"\r\n".join(lines)), name)]))
    old = UrlRules(Rules(blocked_domains=[listed(pack(b"first.example\rlast.example\r"), f"old-{name}")]))
    assert reason(old, "http://first.example/") == reason(old, "http://last.example/") == "blocked_domain"
    for host in ("first", "bücher", "grün", "last"):  # with a mark, in Latin-1, in UTF-8, without an end of line
        assert reason(rules, f"http://{host}.example/") == "blocked_domain"


@pytest.mark.parametrize("block_bytes", [1, 2, 7, 30])
def test_blocks_may_end_anywhere(block_bytes, listed, monkeypatch):
    domains = [f"d{i}.example" for i in range(20)]
    monkeypatch.setattr(blocklists, "BLOCK_BYTES", block_bytes)
    rules = UrlRules(Rules(blocked_domains=[listed("\r\n".join(["\ufeff0.0.0.0 x.example", *domains]))]))
    assert all(reason(rules, f"http://{domain}/") for domain in ["x.example", *domains])
    assert not any(reason(rules, f"http://{'d1.example'[start:end]}/") for start in (0, 1, 2, 3) for end in (8, 9))
    assert not any(reason(rules, f"http://{'d1.example'[start:]}/") for start in (1, 2, 3))


def test_a_folder_stands_for_the_files_of_its_field(tmp_path, listed):
    listed("porn.example", "ut1/adult/domains")
    listed(gzip.compress(b"bet.example"), "ut1/gambling/domains.gz")
    listed("mixed.example/porn", "ut1/adult/urls")
    listed("(porn|xxx)", "ut1/adult/expressions")
    listed("readme.example", "ut1/README")
    folder = str(tmp_path / "ut1")
    rules = UrlRules(Rules(blocked_domains=[folder], blocked_urls=[folder]))
    assert [
        reason(rules, f"http://{url}")
        for url in ("a.porn.example", "bet.example", "mixed.example/porn/1", "mixed.example/", "readme.example")
    ] == ["blocked_domain", "blocked_domain", "blocked_url", None, None]
    only = UrlRules(Rules(allowed_domains=[folder]))
    assert reason(only, "http://bet.example") is None
    assert reason(only, "http://mixed.example/porn") == "domain_not_allowed"


def test_lists_on_object_storage(s3_root):
    fs, path = fsspec.core.url_to_fs(s3_root)
    fs.pipe_file(f"{path}/lists/adult/domains", b"porn.example\n")
    fs.pipe_file(f"{path}/lists/words.gz", gzip.compress(b"bad\n"))
    rules = Rules(blocked_domains=[f"{s3_root}/lists"], unsafe_words=[f"{s3_root}/lists/words.gz"])
    assert reason(rules, "http://porn.example/") == "blocked_domain"
    assert reason(rules, "http://a.org/bad") == "unsafe_word"
    assert rules_digest(rules) == rules_digest(rules)
    with pytest.raises(InputError, match="are there"):
        UrlRules(Rules(blocked_urls=[f"{s3_root}/lists/none"]))


@pytest.mark.parametrize(
    ("field", "name", "content", "error"),
    [
        ("blocked_domains", "none", None, "must name files that are there, was"),
        ("blocked_urls", "none", None, "must name files that are there, was"),
        ("allowed_domains", "empty", "", "it holds nothing: give one a line, as example.com"),
        ("blocked_domains", "comments", "# a\n\n! b\n", "it holds nothing"),
        ("blocked_domains", "hosts", "127.0.0.1 localhost\n", "it holds nothing"),
        ("blocked_domains", "page", "<html>\n<p>no\n", "it holds 2 lines such as '<html>'"),
        ("blocked_urls", "words", "sex\n", "it holds 1 lines such as 'sex': give one a line, as example.com/path"),
        ("unsafe_words", "signs", "???\n", "give one word or phrase a line"),
        ("blocked_domains", "wide", "a.org\r\n".encode("utf-16"), "it holds"),
        ("blocked_domains", "a.tar.gz", b"", "unpack it and name the folder"),
        ("blocked_domains", "a.gz", b"no gzip", "must name files that can be read"),
        ("blocked_domains", "b.gz", gzip.compress(b"a.org\n" * 100)[:-9], "must name files that can be read"),
        ("blocked_domains", "c.xz", b"no xz", "must name files that can be read"),
        ("blocked_domains", "folder/urls", "a.org\n", "no file below it is called 'domains'"),
        ("unsafe_words", "folder/domains", "a.org\n", "it is a folder: name the files"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_list_that_is_none_is_an_error_with_a_remedy(field, name, content, error, listed, tmp_path):
    if content is not None:
        listed(content, name)
    path = str(tmp_path / name.partition("/")[0])
    with pytest.raises(InputError, match=re.escape(error)) as caught:
        UrlRules(Rules(**{field: [path]}))
    assert str(caught.value).startswith(f"recipe.crawl.rules.{field} must ") and name.partition("/")[0] in str(
        caught.value
    )


def test_a_list_without_entries_is_found_beside_others(listed):
    with pytest.raises(InputError, match="must hold entries"):
        UrlRules(Rules(blocked_domains=[listed("a.org", "1"), listed("", "2")]))
    with pytest.raises(InputError, match="can be read"):
        UrlRules(Rules(blocked_domains=["nosuchscheme://x/y"]))


def test_lines_of_no_layout_are_counted_and_told(listed, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("lvd"), "propagate", True)
    path = listed("a.org\n@@||b.org^\n||c.org/x^\nd.org\n")
    UrlRules(Rules(blocked_domains=[path]))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(f"blocked_domains: 2 lines of {path} ")
    assert "'@@||b.org^'" in record.getMessage() and "2 entries" in record.getMessage()


def test_the_digest_is_of_settings_and_contents(listed):
    def digest(**settings) -> str:
        return rules_digest(Rules(**settings))

    one, two = listed("a.org\n", "1"), listed("b.org\n", "2")
    same = listed(gzip.compress(b"a.org\n"), "elsewhere/1.gz")
    before = digest(blocked_domains=[one, two])
    assert before == digest(blocked_domains=[two, same])
    assert re.fullmatch(r"[0-9a-f]{32}", before)
    others = [
        digest(),
        digest(blocked_domains=[one]),
        digest(allowed_domains=[one]),
        digest(blocked_urls=[one]),
        digest(unsafe_words=[one]),
        digest(max_length=100),
        digest(max_per_domain=100),
        digest(extensions=["jpg", "png"]),
        digest(blocked_extensions=["jpg", "png"]),
        before,
    ]
    assert len(set(others)) == len(others)
    assert digest(extensions=["png", ".JPG"]) == digest(extensions=["jpg", "png"])
    Path(two).write_text("c.org\n")
    assert digest(blocked_domains=[one, two]) not in others
    with pytest.raises(InputError):
        digest(blocked_domains=[f"{one}x"])


@pytest.mark.parametrize(
    "settings",
    [
        {"max_length": 15},
        {"max_length": 65_537},
        {"extensions": []},
        {"extensions": ["tar.gz"]},
        {"extensions": [""]},
        {"blocked_extensions": ["*.svg"]},
        {"allowed_domains": []},
        {"blocked_domains": [""]},
        {"max_per_domain": 0},
        {"opt_out": []},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValidationError):
        Rules(**settings)
