"""The images that an HTML page shows, one URL per <img>, as a large screen would load them, lazy ones included.

Resiliparse parses as a browser without scripts does, so that what stands in <noscript> is found too. At 10^9 pages of
100 kB with 75 images each: 1.6 ms of one core per page, half of it the parser's; one page and its tree in memory.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from lvd.tasks.pages import media_queries
from lvd.tasks.pages.markup import readable, tame
from lvd.tasks.pages.web_urls import MAX_URL_CHARS, absolute_url, document_base

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
    license: str | None  # where the first link with rel="license" leads, <a> or <link>


def parsed(html: bytes, page_url: str, *, charset: str | None = None) -> ParsedPage:
    """The images of a page and what it tells robots; never raises, whatever the bytes are.

    html: may be cut anywhere; MAX_PAGE_BYTES and MAX_TAGS say how much of a large page is read. page_url: of the page,
    against which its URLs are resolved; if it is no http or https URL, absolute URLs are found only.
    charset: of the Content-Type. A byte order mark overrides it; without both, a <meta> of the page tells, or the
    bytes themselves.
    """
    from resiliparse.parse.html import HTMLTree

    html, codec = readable(html, charset)
    document = HTMLTree.parse(tame(html).decode(codec, "replace")).document
    bases = document.query_selector_all("base[href]").values()
    base_url = document_base(bases[0].get_attribute("href"), page_url) if bases else page_url
    of_pictures = _chosen_of_pictures(document)
    images = []
    for element in document.get_elements_by_tag_name("img").values():  # .values(): iteration takes quadratic time
        img = _attributes(element, _IMG_ATTRIBUTES)
        chosen = (of_pictures and of_pictures.get(element)) or chosen_source(img)
        url = absolute_url(chosen, base_url, encoding=codec) if chosen else None
        if url:
            images.append(PageImage(url, " ".join(img.get("alt", "").split()) or None))
    metas = document.query_selector_all('meta[name="robots" i]').values()
    licenses = document.query_selector_all('[rel~="license" i][href]').values()
    return ParsedPage(
        images,
        [content for meta in metas if (content := meta.get_attribute("content"))],
        absolute_url(licenses[0].get_attribute("href"), base_url, encoding=codec) if licenses else None,
    )


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
    return (not kind or kind.partition(";")[0].strip(_WS).lower() in TYPES) and media_queries.is_met(media)
