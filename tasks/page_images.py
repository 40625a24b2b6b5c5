"""The images that an HTML page shows, one URL per <img>, as a large screen would load them, lazy ones included.

Resiliparse parses as a browser without scripts does, so that what stands in <noscript> is found too. At 10^9 pages of
100 kB with 75 images each: 1.6 ms of one core per page, half of it the parser's; one page and its tree in memory.
"""

import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, utf_8_decode
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from ipaddress import IPv6Address
from typing import Any, NamedTuple
from urllib.parse import unquote

import idna
import numpy as np

from lvd.infra.safety import BlockedAddressError, literal_address

MAX_URL_CHARS = 16_384  # servers take 8,192 at most, as a rule; what is longer is passed by as `data:` is
WIDTH_PX, HEIGHT_PX, DEVICE_PIXELS_PER_PX = 8000.0, 6000.0, 8.0
"""The screen for which `media` is judged: so large that every `min-width` in use is met and no `max-width` is."""

TYPES = frozenset(
    f"image/{name}" for name in ("jpeg", "jpg", "pjpeg", "png", "x-png", "apng", "gif", "webp", "avif", "bmp")
)
"""Those of <source type> that browsers show and `decode.FORMATS` holds: no SVG, no icon, no JPEG XL."""

LAZY_SRCSETS = (
    "data-srcset",  # lazysizes, vanilla-lazyload, lozad, yall, Swiper, Owl Carousel
    "data-lazy-srcset",  # WP Rocket, Jetpack, BJ Lazy Load
    "data-original-set",  # vanilla-lazyload, older
    "data-original-srcset",
    "data-pagespeed-lazy-srcset",  # mod_pagespeed
    "data-ezsrcset",  # Ezoic
    "data-wpfc-original-srcset",  # WP Fastest Cache
    "data-nectar-img-srcset",  # Salient
    "data-tf-srcset",  # Themify
    "data-brsrcset",  # Breeze
    "fifu-data-srcset",  # Featured Image from URL
    "data-flickity-lazyload-srcset",
    "data-splide-lazy-srcset",
    "nitro-lazy-srcset",  # NitroPack
    "lazy-srcset",
)
"""Where lazy loaders keep `srcset`; of two the first counts."""

LAZY_SRCS = (
    "data-src-retina",  # unveil, Owl Carousel: for dense screens
    "data-retina",  # jQuery.Lazy, likewise
    "data-src",  # lazysizes, vanilla-lazyload, lozad, yall, unveil, bLazy, jQuery.Lazy, Smush, LiteSpeed, WeChat
    "data-lazy-src",  # WP Rocket, Jetpack, BJ Lazy Load
    "data-original",  # jquery.lazyload
    "data-lazy",  # Slick
    "data-lazyload",  # Slider Revolution
    "data-lazy-load",
    "data-lazyload-src",
    "data-hi-res-src",
    "data-pagespeed-lazy-src",
    "pagespeed_lazy_src",  # mod_pagespeed, older
    "data-ezsrc",
    "data-wpfc-original-src",
    "data-nectar-img-src",
    "data-tf-src",
    "data-opt-src",  # Optimole
    "data-orig-src",  # Avada, Adobe Muse
    "data-breeze",
    "fifu-data-src",
    "data-flickity-lazyload-src",
    "data-flickity-lazyload",
    "data-splide-lazy",
    "data-cfsrc",  # Cloudflare Mirage
    "nitro-lazy-src",
    "data-frz-src",  # Fasterize
    "data-original-src",
    "data-echo",  # echo.js
    "data-defer-src",
    "data-delayed-url",  # LinkedIn
    "data-actualsrc",  # Zhihu
    "data-lazy-img",  # JD
    "data-ks-lazyload",  # Taobao
    "data-real-src",
    "data-img-src",
    "data-image-src",
    "data-lazysrc",
    "lazy-src",
    "lazysrc",
    "loadlate",  # IMDb
    "real_src",  # Sina
    "original",  # jquery.lazyload, older
    "file",  # Discuz!
)
"""Where lazy loaders keep `src`; of several the first counts. What names another image than the one that is shown
(`data-large-file`, `data-zoom-image`), or often no image at all (`data-url`, `data-image`), is not here."""

MAX_PAGE_BYTES = 1 << 20  # of a longer page, what is left without scripts, comments and `data:` is read so far
MAX_TAGS = 40_000  # of a page; with each the parser may have to go through all the open ones
MAX_REOPENED = 1 << 20  # nodes; a parser needs 0.4 kB of memory for each
MAX_ATTRIBUTES = 2000  # of one tag
LONG_TAG_BYTES = 1 << 13  # without < and >; attributes in such a tag are counted
CHECKED_PAGE_BYTES = 1 << 18  # of a longer page every tag's attributes are counted
MAX_DESCRIPTOR_CHARS = 100  # of a candidate; one with more is passed by
MAX_CONDITION_CHARS = 1000  # of `type` and `media`; a <source> with more is passed by

_WS = " \t\n\f\r"
_LAZY_SRC_SET = frozenset(LAZY_SRCS)
_SRCSETS = (*LAZY_SRCSETS, "srcset")
_IMG_ATTRIBUTES = frozenset([*LAZY_SRCSETS, *LAZY_SRCS, "src", "srcset", "alt", "data-widths"])
_SOURCE_ATTRIBUTES = frozenset([*LAZY_SRCSETS, "srcset", "media", "type"])
_NO_FILE = re.compile(r"\s*(?:(?:data|blob|javascript|about):|\Z)", re.IGNORECASE)
_NO_URL = re.compile(r"[{\[<]|[\d.]*\Z")  # a setting of the loader: true, 0.5, {"width": 5}
_NUMBER = re.compile(r"[0-9]+")


class PageImage(NamedTuple):
    url: str  # absolute, http or https
    alt: str | None  # white space collapsed; None if there is none


class ParsedPage(NamedTuple):
    images: list[PageImage]  # in document order, repeats too
    robots: list[str]  # the contents of <meta name="robots">, in order


def parsed(html: bytes, page_url: str, *, charset: str | None = None) -> ParsedPage:
    """The images of a page and what it tells robots; never raises, whatever the bytes are.

    html: may be cut anywhere; MAX_PAGE_BYTES and MAX_TAGS say how much of a large page is read. page_url: of the page,
    against which its URLs are resolved; if it is no http or https URL, absolute URLs are found only.
    charset: of the Content-Type. A byte order mark overrides it; without both, a <meta> of the page tells, or the
    bytes themselves.
    """
    from resiliparse.parse.html import HTMLTree

    html, codec = _readable(html, charset)
    document = HTMLTree.parse(_tame(html).decode(codec, "replace")).document
    bases = document.query_selector_all("base[href]").values()
    base_url = _document_base(bases[0].get_attribute("href"), page_url) if bases else page_url
    of_pictures = _chosen_of_pictures(document)
    images = []
    for element in document.get_elements_by_tag_name("img").values():  # .values(): iteration takes quadratic time
        img = _attributes(element, _IMG_ATTRIBUTES)
        chosen = (of_pictures and of_pictures.get(element)) or chosen_source(img)
        url = absolute_url(chosen, base_url, encoding=codec) if chosen else None
        if url:
            images.append(PageImage(url, " ".join(img.get("alt", "").split()) or None))
    metas = document.query_selector_all('meta[name="robots" i]').values()
    return ParsedPage(images, [content for meta in metas if (content := meta.get_attribute("content"))])


def _attributes(element: Any, wanted: frozenset[str]) -> dict[str, str]:
    return {name: element.get_attribute(name) for name in element.attribute_names if name in wanted}


def _chosen_of_pictures(document: Any) -> dict[Any, str | None]:
    """Of every <img> that is a child of a <picture>: what the <source> children before it give."""
    found = {}
    for picture in document.get_elements_by_tag_name("picture").values():
        chosen = None
        child = picture.first_element_child
        while child is not None:
            if child.local_name == "img":
                found[child] = chosen
            elif chosen is None and child.local_name == "source":
                chosen = _of_source(_attributes(child, _SOURCE_ATTRIBUTES))
            child = child.next_element_sibling
    return found


# ---- which of its URLs an <img> stands for


def chosen_source(img: Mapping[str, str], sources: Sequence[Mapping[str, str]] = ()) -> str | None:
    """The URL as written that one <img> stands for, on a very large, light screen in landscape; None if it has none.

    img: its attributes, names in lower case; sources: those of the <source> elements before it in its <picture>.
    In order: the first <source> whose `media` and `type` fit, the largest candidate of a lazy `srcset`, of `srcset`,
    a lazy `src`, `src`. What is no file (`data:`, `blob:`, `javascript:`, `about:`) is passed by.
    """
    for source in sources:
        if chosen := _of_source(source):
            return chosen
    src = img.get("src", "")
    if not _is_file(src):
        src = ""
    if found := _largest_of(img):  # `src` is a candidate too where no other has a width
        return src if src and found[1] < _SRC_SIZE else found[0]
    if not _LAZY_SRC_SET.isdisjoint(img):
        for name in LAZY_SRCS:
            if name in img and (url := _lazy_url(img[name], img.get("data-widths", ""))):
                return url
    return src or None


def _of_source(source: Mapping[str, str]) -> str | None:
    kind, media = source.get("type", ""), source.get("media", "")
    fits = len(kind) + len(media) <= MAX_CONDITION_CHARS and _fits(kind, media)
    found = _largest_of(source) if fits else None
    return found[0] if found else None


def largest_candidate(srcset: str) -> str | None:
    """The URL as written of the largest image in a `srcset`: by width, else by density; None if it has none.

    Of equals the first; candidates that break the rules, and those that are no files, are passed by.
    Source: WHATWG HTML, "parse a srcset attribute".
    """
    found = _largest(srcset)
    return found[0] if found else None


_SRC_SIZE = 0.5  # as a density of 1
_CANDIDATE = re.compile(  # a URL; a width, or what else follows it up to a comma that is not in parentheses
    rf"[{_WS},]*([^{_WS}]+)(?:(?<=,)|[{_WS}]+([0-9]+)w[{_WS}]*(?:,|\Z)|((?:[^(,]++|\([^)]*+\)?+)*+),?)"
)
_WIDTH = re.compile(rf"([0-9]+)w[{_WS}]+[0-9]*[1-9][0-9]*h|[0-9]*[1-9][0-9]*h[{_WS}]+([0-9]+)w")
_DENSITY = re.compile(r"((?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|-0+(?:\.0+)?)x")


def _largest(srcset: str) -> tuple[str, float] | None:
    """The largest candidate and its size: the width, or of a density what is below 1 and grows with it."""
    candidates = _CANDIDATE.findall(srcset.rstrip(_WS + ","))
    found = _best(candidates)
    if found and not _is_file(found[0]):
        found = _best([candidate for candidate in candidates if _is_file(candidate[0])])
    return found


def _best(candidates: list[tuple[str, str, str]]) -> tuple[str, float] | None:
    best, best_size = "", -1.0
    for url, width, descriptors in candidates:
        size = float(width) or -1.0 if width else _size(descriptors.strip(_WS))
        if size > best_size:
            best, best_size = url, size
    return (best.rstrip(","), best_size) if best else None


def _size(descriptors: str) -> float:
    """Below 0 if they break the rules. A height is allowed beside a width, and says nothing."""
    if not descriptors:
        return _SRC_SIZE
    if len(descriptors) > MAX_DESCRIPTOR_CHARS:
        return -1.0
    if found := _DENSITY.fullmatch(descriptors):
        return 1.0 - 1.0 / (1.0 + float(found[1]))
    if found := _WIDTH.fullmatch(descriptors):
        return float(found[1] or found[2]) or -1.0
    return -1.0


def _largest_of(attributes: Mapping[str, str]) -> tuple[str, float] | None:
    """The largest candidate of the first `srcset`, lazy ones before, that has one."""
    for name in _SRCSETS:
        if name in attributes and (found := _largest(attributes[name])):
            return found
    return None


def _lazy_url(value: str, widths: str) -> str | None:
    """The URL that an attribute of a lazy loader holds, or None if it holds something else."""
    value = value.strip(_WS)
    if "{width}" in value:  # Shopify's themes, with lazysizes
        value = value.replace("{width}", max(_NUMBER.findall(widths[:1000]), key=int, default="2048"))
    is_url = ("/" in value or "." in value) and not _NO_URL.match(value) and _is_file(value)
    return value if is_url else None


def _is_file(url: str) -> bool:
    return not _NO_FILE.match(url) and len(url) <= MAX_URL_CHARS


@lru_cache(maxsize=4096)
def _fits(kind: str, media: str) -> bool:
    """Whether the screen shows a <source> of that `type` and `media`."""
    return (not kind or kind.partition(";")[0].strip(_WS).lower() in TYPES) and _matches(media)


# ---- media queries


_TRUE, _FALSE, _UNKNOWN = "\ue000\ue001\ue002"  # stand for what has been in parentheses
_VALUES = {_TRUE: True, _FALSE: False, _UNKNOWN: None}
_VALUE_OF = {True: _TRUE, False: _FALSE, None: _UNKNOWN}
_ONE = rf"[{_TRUE}{_FALSE}{_UNKNOWN}]"
_INNERMOST = re.compile(r"\(([^()]*)\)")
_NOT = re.compile(rf"\s*not\s+{_ONE}\s*")
_AND = re.compile(rf"\s*{_ONE}(?:\s*and\s+{_ONE})*\s*")
_OR = re.compile(rf"\s*{_ONE}(?:\s*or\s+{_ONE})*\s*")
_OF_TYPE = re.compile(
    rf"\s*(?:(not|only)\s+)?(?!(?:not|only|and|or)\b)([a-z-]+)(?:\s+and\s+({_NOT.pattern}|{_AND.pattern}))?\s*"
)
_COMMENT = re.compile(r"/\*.*?(?:\*/|\Z)", re.DOTALL)
_FEATURE = re.compile(r"\s*([a-z-]+)\s*(?::\s*([^:<>=]+?))?\s*")
_RANGE = re.compile(r"\s*([^<>=:]+?)\s*(<=|>=|<|>|=)\s*([^<>=:]+?)\s*(?:(<=|>=|<|>)\s*([^<>=:]+?)\s*)?")
_QUANTITY = re.compile(r"([+-]?(?:\d+(?:\.\d+)?|\.\d+)(?:e[+-]?\d+)?)([a-z]*)")
_RATIO = re.compile(r"(\d+(?:\.\d+)?)\s*(?:/\s*(\d+(?:\.\d+)?))?")

_LENGTHS = {"px": 1.0, "em": 16.0, "rem": 16.0, "ex": 8.0, "ch": 8.0, "in": 96.0, "cm": 96 / 2.54, "mm": 96 / 25.4}
_LENGTHS |= {"q": 96 / 101.6, "pt": 96 / 72, "pc": 16.0, "vw": WIDTH_PX / 100, "vh": HEIGHT_PX / 100}
_RESOLUTIONS = {"dppx": 1.0, "x": 1.0, "dpi": 1 / 96, "dpcm": 2.54 / 96}
_UNITLESS = {"": 1.0}
_MEASURED = {
    **dict.fromkeys(("width", "device-width"), (WIDTH_PX, _LENGTHS)),
    **dict.fromkeys(("height", "device-height"), (HEIGHT_PX, _LENGTHS)),
    **dict.fromkeys(("aspect-ratio", "device-aspect-ratio"), (WIDTH_PX / HEIGHT_PX, None)),
    "resolution": (DEVICE_PIXELS_PER_PX, _RESOLUTIONS),
    "-webkit-device-pixel-ratio": (DEVICE_PIXELS_PER_PX, _UNITLESS),
    "color": (8.0, _UNITLESS),
    **dict.fromkeys(("color-index", "monochrome", "grid"), (0.0, _UNITLESS)),
}
"""What can be compared: the screen's value, and the units with their factors (None: a ratio)."""

_STATED = {
    "orientation": ("landscape",),
    "prefers-color-scheme": ("light",),
    "prefers-reduced-motion": ("no-preference",),
    "prefers-reduced-transparency": ("no-preference",),
    "prefers-reduced-data": ("no-preference",),
    "prefers-contrast": ("no-preference",),
    **dict.fromkeys(("hover", "any-hover"), ("hover",)),
    **dict.fromkeys(("pointer", "any-pointer"), ("fine",)),
    "scripting": ("enabled",),
    "update": ("fast",),
    "color-gamut": ("srgb",),
    **dict.fromkeys(("dynamic-range", "video-dynamic-range"), ("standard",)),
    "display-mode": ("browser",),
    "forced-colors": ("none",),
    "overflow-block": ("scroll",),
    "overflow-inline": ("scroll",),
}
"""What is one of several words: those that are true of the screen."""

_FALSE_WORDS = ("none", "no-preference")  # of which `(feature)` alone is false
_COMPARE = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "=": lambda a, b: a == b,
}


def _matches(media: str) -> bool:
    """Whether a media query list is true of the screen. Source: W3C Media Queries 4; what is unknown is not true."""
    media = _COMMENT.sub(" ", media.lower())
    if not media.strip():
        return True
    media += ")" * (media.count("(") - media.count(")"))
    while (inner := _INNERMOST.sub(lambda found: _VALUE_OF[_in_parentheses(found[1])], media)) != media:
        media = inner
    return any(_query(query) is True for query in media.split(","))


def _query(query: str) -> bool | None:
    found = _OF_TYPE.fullmatch(query)
    if found is None:
        return _condition(query)
    value = found[2] in ("all", "screen")
    if value and found[3]:
        value = _condition(found[3])
    return value if value is None or found[1] != "not" else not value


def _in_parentheses(text: str) -> bool | None:
    return _feature(text) if _VALUES.keys().isdisjoint(text) else _condition(text)


def _condition(text: str) -> bool | None:
    """None if it is unknown or no condition."""
    values = [_VALUES[char] for char in text if char in _VALUES]
    if _NOT.fullmatch(text):
        return None if values[0] is None else not values[0]
    if _AND.fullmatch(text):
        return False if False in values else None if None in values else True
    if _OR.fullmatch(text):
        return True if True in values else None if None in values else False
    return None


def _feature(text: str) -> bool | None:
    if found := _FEATURE.fullmatch(text):
        name, value = found[1], found[2]
        if value is None:
            return _is_set(name)
        if name in _STATED:
            return value in _STATED[name]
        for prefix, operator in (("min-", ">="), ("max-", "<=")):
            bare = name.replace(prefix, "", 1)
            if bare != name and name in (prefix + bare, f"-webkit-{prefix}{bare.removeprefix('-webkit-')}"):
                return _compared(bare, operator, value)
        return _compared(name, "=", value)
    if found := _RANGE.fullmatch(text):
        left, operator, middle, second, right = found.groups()
        if second:
            if operator[0] != second[0]:
                return None
            both = _compared(middle, _MIRRORED[operator], left), _compared(middle, second, right)
            return None if None in both else all(both)
        if left in _MEASURED:
            return _compared(left, operator, middle)
        return _compared(middle, _MIRRORED[operator], left)
    return None


_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "=": "="}


def _is_set(name: str) -> bool | None:
    if name in _MEASURED:
        return _MEASURED[name][0] > 0
    return _STATED[name][0] not in _FALSE_WORDS if name in _STATED else None


def _compared(name: str, operator: str, text: str) -> bool | None:
    if name not in _MEASURED:
        return None
    screen, units = _MEASURED[name]
    if units is None:
        ratio = _RATIO.fullmatch(text)
        wanted = float(ratio[1]) / (float(ratio[2] or 1) or 1e-9) if ratio else None
    else:
        quantity = _QUANTITY.fullmatch(text)
        wanted = _in_units(float(quantity[1]), quantity[2], units) if quantity else None
    return None if wanted is None else _COMPARE[operator](screen, wanted)


def _in_units(number: float, unit: str, units: Mapping[str, float]) -> float | None:
    if unit in units:
        return number * units[unit]
    return 0.0 if number == 0 and not unit and units is _LENGTHS else None


# ---- URLs


class _Url(NamedTuple):
    scheme: str
    authority: str
    path: str
    query: str | None


_PORTS = {"http": "80", "https": "443"}
_C0_AND_SPACE = "".join(map(chr, range(33)))
_PATH_CHARS = r"A-Za-z0-9!$%&'()*+,\-.;=@_~\[\]"
_QUERY_CHARS = r"A-Za-z0-9!$%&()*+,\-.:;=@_~\[\]/?"
_CLEAN = re.compile(  # stays as it is but for what stands before it in a relative URL
    rf"(?:(https?://(?:[a-z0-9-]+\.)+[a-z][a-z0-9]+)?(/(?!/)[{_PATH_CHARS}:/]*)|[{_PATH_CHARS}]+(?:/[{_PATH_CHARS}:/]*)?)"
    rf"(?:\?[{_QUERY_CHARS}]*)?"
)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_IN_PATH = re.compile(r"[^!$-;=@-\]_a-z~]+")  # to be percent-encoded, as below; `|` as browsers do it
_IN_USER = re.compile(r"[^!$-.0-9A-Z_a-z~]+")
_IN_QUERY = re.compile(r"[^!$-&(-;=?-~]+")
_IN_FRAGMENT = re.compile(r"[^!#-;=?-_a-~]+")
_NO_HOST = re.compile(r"[\x00-\x20#%/:<>?@\[\\\]^|\x7f]")


def absolute_url(url: str, base_url: str, *, encoding: str = "utf-8") -> str | None:
    """The URL resolved as a browser resolves it; None if that gives no http or https URL.

    url: as written, entities decoded; one longer than MAX_URL_CHARS is none. base_url: of the page or its <base>; if it
    is no http or https URL, only an absolute `url` is resolved. encoding: of the page, in which its queries are.
    Source: WHATWG URL standard, basic URL parser.
    """
    base = _base(base_url)
    if base and len(url) <= MAX_URL_CHARS and "/." not in url and "%2" not in url and (clean := _CLEAN.fullmatch(url)):
        if clean[1]:
            return url
        if clean[2]:
            return f"{base.scheme}://{base.authority}{url}"
        if not url.startswith("."):
            return f"{base.scheme}://{base.authority}{base.path[: base.path.rindex('/') + 1]}{url}"
    url = url.strip(_C0_AND_SPACE)
    if len(url) > MAX_URL_CHARS:
        return None
    url, sharp, fragment = url.replace("\t", "").replace("\n", "").replace("\r", "").partition("#")
    found = _resolved(url, base, encoding)
    if found is None:
        return None
    query = "" if found.query is None else f"?{found.query}"
    fragment = sharp + _IN_FRAGMENT.sub(_percent_encoded, fragment)
    return f"{found.scheme}://{found.authority}{found.path}{query}{fragment}"


@lru_cache(maxsize=64)
def _base(base_url: str) -> _Url | None:
    url = base_url.strip(_C0_AND_SPACE).translate({9: None, 10: None, 13: None}).partition("#")[0]
    return _resolved(url, None, "utf-8") if len(url) <= MAX_URL_CHARS else None


def _document_base(href: str, page_url: str) -> str:
    """What URLs are resolved against; "" where the page's <base> makes something of them that is not on the web."""
    scheme = _SCHEME.match(href.strip(_C0_AND_SPACE))
    if scheme and scheme[1].lower() not in (*_PORTS, "data", "javascript"):
        return ""
    return absolute_url(href, page_url) or page_url


def _resolved(url: str, base: _Url | None, encoding: str) -> _Url | None:
    """url: without fragment, and without what a browser removes."""
    rest, mark, query = url.partition("?")
    scheme = _SCHEME.match(rest)
    name = scheme[1].lower() if scheme else base.scheme if base else ""
    if name not in _PORTS:
        return None
    rest = rest[scheme.end() if scheme else 0 :].replace("\\", "/")
    query = _IN_QUERY.sub(lambda run: _query_encoded(run[0], encoding), query) if mark else None
    if rest.startswith("//") or (scheme and (base is None or base.scheme != name)):
        authority, _, path = rest.lstrip("/").partition("/")
        authority = _authority(authority, _PORTS[name])
        return authority and _Url(name, authority, _path(f"/{path}"), query)
    if not rest:
        return base._replace(query=query if mark else base.query)
    if not rest.startswith("/"):
        rest = base.path[: base.path.rindex("/") + 1] + rest
    return _Url(name, base.authority, _path(rest), query)


def _path(path: str) -> str:
    path = _IN_PATH.sub(_percent_encoded, path)
    if "/." not in path and "/%2" not in path:
        return path
    kept: list[str] = []
    for segment in path.split("/")[1:]:
        name = segment.lower().replace("%2e", ".")
        if name == "..":
            del kept[-1:]
        elif name != ".":
            kept.append(segment)
    if name in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)


def _authority(text: str, default_port: str) -> str | None:
    credentials, _, host_port = text.rpartition("@")
    user, _, password = (_IN_USER.sub(_percent_encoded, part) for part in credentials.partition(":"))
    host, bracket, port = host_port.partition("]") if host_port.startswith("[") else (host_port, "", "")
    if not bracket:
        host, colon, port = host.partition(":")
        port = colon + port
    port = port.removeprefix(":") if not port or port.startswith(":") else "invalid"
    if port:
        if not (port.isascii() and port.isdecimal()) or len(port.lstrip("0")) > 5 or int(port) > 65_535:
            return None
        port = "" if str(int(port)) == default_port else f":{int(port)}"
    host = _host(host + bracket)
    if not host:
        return None
    user = f"{user}:{password}@" if password else f"{user}@" if user else ""
    return f"{user}{host}{port}"


@lru_cache(maxsize=4096)
def _host(host: str) -> str | None:
    """The host in ASCII and lower case, an address in its canonical form; None if it is none."""
    if len(host) > 255:
        return None
    try:
        if host.startswith("["):
            return f"[{IPv6Address(host[1:-1])}]" if host.endswith("]") and "%" not in host else None
        host = unquote(host)
        host = host.lower() if host.isascii() else _punycode(host)
        return (literal_address(host) or host) if host and not _NO_HOST.search(host) else None
    except (ValueError, BlockedAddressError):
        return None


def _punycode(host: str) -> str:
    """Source: UTS 46, non-transitional, without checks of validity, as browsers do. Raises UnicodeError."""
    labels = idna.uts46_remap(host, std3_rules=False, transitional=False).split(".")
    return ".".join(label if label.isascii() else "xn--" + label.encode("punycode").decode() for label in labels)


def _percent_encoded(run: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in run[0].encode("utf-8", "replace"))


def _query_encoded(run: str, encoding: str) -> str:
    """What a browser sends of characters in a query: bytes of the page's encoding, references for what it lacks."""
    encoded = run.encode(encoding, "xmlcharrefreplace")
    return "".join(chr(byte) if 0x30 <= byte <= 0x39 or 0x40 <= byte <= 0x7E else f"%{byte:02X}" for byte in encoded)


# ---- from bytes to what can be parsed


_MARKS = ((BOM_UTF8, "utf-8"), (BOM_UTF16_LE, "utf-16-le"), (BOM_UTF16_BE, "utf-16-be"))
_DECLARED = re.compile(rb"""<meta\s[^>]*?charset\s*=\s*["']?\s*([^\s"'/>;]+)""", re.IGNORECASE)
_DECLARED_WITHIN_BYTES = 4096
_XML = re.compile(rb"""<\?xml\s[^>]*?encoding\s*=\s*["']([^"'>]+)""")
_CODECS = {"shift_jis": "cp932", "gbk": "gb18030", "euc_kr": "cp949", "big5": "big5hkscs"}
"""Python's names for what browsers mean by these."""


def _readable(html: bytes, charset: str | None) -> tuple[bytes, str]:
    """The page in an encoding that has ASCII in its usual place, and the codec of that encoding."""
    html, codec = _encoding(html, charset)
    if codec.startswith("utf-16"):
        return html.decode(codec, "replace").encode(), "utf-8"
    return html, codec


def _encoding(html: bytes, charset: str | None) -> tuple[bytes, str]:
    """The page without a byte order mark, and its codec. Source: WHATWG HTML, "determining the character encoding"."""
    from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

    for mark, codec in _MARKS:
        if html.startswith(mark):
            return html[len(mark) :], codec
    is_label = charset is not None and charset.isascii()
    codec = map_encoding_to_html5(charset.strip(), fallback_utf8=False) if is_label else None
    found = _DECLARED.search(html, 0, _DECLARED_WITHIN_BYTES) or _XML.match(html)
    if codec is None and found:
        codec = map_encoding_to_html5(found[1].decode("ascii", "replace"), fallback_utf8=False)
        if codec and codec.startswith("utf-16"):
            codec = "utf-8"  # or it could not have been read
    if codec is None:
        try:
            utf_8_decode(html, "strict", False)
            codec = "utf-8"
        except UnicodeDecodeError:
            codec = detect_encoding(html)
    return html, _CODECS.get(codec, codec)


_COSTLY = rb"b|big|code|em|font|i|s|small|strike|strong|tt|u", rb"rb|rp|rt|rtc", rb"html|body"
_COSTLY_TAG = re.compile(
    rb"<(?:(?:%b|%b)(?=[\s/])|(?:%b)(?=[\s/>]))" % (_COSTLY[0], _COSTLY[2], _COSTLY[1]), re.IGNORECASE
)
_COSTLY_NAME = re.compile(rb"<(/?)(?:%b)(?=[\s/>])" % b"|".join(_COSTLY), re.IGNORECASE)
_ALIKE = 36  # open <b>, <i> … without attributes: a parser keeps three of each name

_RAW_NAMES = b"script style textarea title xmp iframe noembed noframes".split()
_RAW = re.compile(  # comments, and what holds no tags
    rb"<!--(?:-?>|.*?(?:--!?>|\Z))|"
    + b"|".join(rb"<%b(?=[\s/>])[^<]*+(?:<(?!/%b)[^<]*+)*+" % (name, name) for name in _RAW_NAMES),
    re.IGNORECASE | re.DOTALL,
)
_DATA_URL = re.compile(rb"""data:[^"'<>\s]{100,}""", re.IGNORECASE)
_VALUE = rb"""\s*+=\s*+(?:"[^"]*+(?:"|\Z)|'[^']*+(?:'|\Z)|(?!["'])[^\s>]*+)"""
_ATTRIBUTE = rb"[\s/]*+(?:=[^\s/>=]*+|[^\s/>=]++)(?:" + _VALUE + rb"|(?!\s*+=))"  # of its choices only one can fit
_TAG = re.compile(  # with its attributes, one of too many in the group
    rb"<[a-z][^\s/>]*+(?:%b){0,%d}(%b)?" % (_ATTRIBUTE, MAX_ATTRIBUTES, _ATTRIBUTE), re.IGNORECASE
)


def _tame(html: bytes) -> bytes:
    """The page without what a parser needs much more than linear time and memory for; of usual pages, the page.

    Large pages end early. Unclosed elements of formatting are opened again in every paragraph that follows (30 kB can
    make 10^6 nodes): they are renamed to <span>, which no image depends on. The attributes of one tag are compared with
    each other (10^5 take half a minute): the page ends before a tag with too many.
    What is left takes seconds at worst, and 20 s if 10^5 attributes have different names.
    """
    codes, marks, tags = _brackets(html)
    if len(html) > MAX_PAGE_BYTES or len(tags) > MAX_TAGS:
        html = _DATA_URL.sub(b"data:,", _RAW.sub(b"", html))[:MAX_PAGE_BYTES]
        tags = _brackets(html)[2]
        html = html[: tags[MAX_TAGS]] if len(tags) > MAX_TAGS else html
        codes, marks, tags = _brackets(html)
    num_costly = np.count_nonzero(_costly_beginnings()[codes[tags + 1], codes[tags + 2]])
    if (_ALIKE + num_costly) * len(tags) > MAX_REOPENED:
        num_costly = len(_COSTLY_TAG.findall(html))
        if (_ALIKE + num_costly) * len(tags) > MAX_REOPENED:
            html = _COSTLY_NAME.sub(rb"<\1span", html)
    long = marks[np.diff(marks, append=len(html)) > LONG_TAG_BYTES]
    if len(html) > CHECKED_PAGE_BYTES or (codes[long] == ord("<")).any():
        markup = _RAW.sub(b"", html)
        for tag in _TAG.finditer(markup):
            if tag[1]:
                return markup[: tag.start()]
    return html


def _brackets(html: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bytes and two more, uint8; where < and > are; where < is."""
    codes = np.frombuffer(html + b"\0\0", np.uint8)
    marks = np.flatnonzero((codes == ord("<")) | (codes == ord(">")))
    return codes, marks, marks[codes[marks] == ord("<")]


@cache
def _costly_beginnings() -> np.ndarray:
    """Whether a tag may be costly that begins with these two bytes: (256, 256) bool."""
    table = np.zeros((256, 256), bool)
    for name in b"|".join(_COSTLY).split(b"|"):
        seconds = b"\t\n\f\r /" if len(name) == 1 else name[1:2] + name[1:2].upper()
        table[np.ix_(list(name[:1] + name[:1].upper()), list(seconds))] = True
    return table
