"""The bytes of a page as what a parser reads in bounded time and memory: its encoding, and what is left out."""

import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, utf_8_decode
from functools import cache

import numpy as np

MAX_PAGE_BYTES = 1 << 20  # of a longer page, what is left without scripts, comments and `data:` is read so far
MAX_TAGS = 40_000  # of a page; with each the parser may have to go through all the open ones
MAX_REOPENED = 1 << 20  # nodes; a parser needs 0.4 kB of memory for each
MAX_ATTRIBUTES = 2000  # of one tag
LONG_TAG_BYTES = 1 << 13  # without < and >; attributes in such a tag are counted
CHECKED_PAGE_BYTES = 1 << 18  # of a longer page every tag's attributes are counted

_MARKS = ((BOM_UTF8, "utf-8"), (BOM_UTF16_LE, "utf-16-le"), (BOM_UTF16_BE, "utf-16-be"))
_DECLARED = re.compile(rb"""<meta\s[^>]*?charset\s*=\s*["']?\s*([^\s"'/>;]+)""", re.IGNORECASE)
_DECLARED_WITHIN_BYTES = 4096
_XML = re.compile(rb"""<\?xml\s[^>]*?encoding\s*=\s*["']([^"'>]+)""")
_CODECS = {"shift_jis": "cp932", "gbk": "gb18030", "euc_kr": "cp949", "big5": "big5hkscs"}
"""Python's names for what browsers mean by these."""


def readable(html: bytes, charset: str | None) -> tuple[bytes, str]:
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


def tame(html: bytes) -> bytes:
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
