"""The rules of a recipe that a URL can break before anything is fetched.

At 10^9 URLs: 1 to 8 µs of one core each. A list of domains or URLs is held as 64-bit hashes, 12 bytes an entry, so that
5 x 10^6 domains stay in 60 MB. A host that is on no list shares a hash with an entry in about one of 10^3 such runs.
"""

import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Annotated
from urllib.parse import unquote

import numpy as np
import xxhash
from pydantic import AfterValidator, BaseModel, Field

from lvd.infra.shards import fingerprint
from lvd.tasks.blocklists import (
    LISTS,
    WEB_HOST,
    domain_blocks,
    entries_of,
    list_digest,
    list_files,
    phrases_of,
    url_entries,
    words_of,
)
from lvd.tasks.urls import CACHED_HOSTS, path_of

LONGEST_EXTENSION = 5  # `.jpeg`, `.xhtml`; what is longer is part of a name, as in `/mr.robinson`
NEVER_AN_IMAGE = (
    *("svg", "svgz", "ico", "cur", "icns", "eps", "swf"),
    *("mp4", "m4v", "mov", "avi", "mkv", "webm", "flv", "wmv", "mpg", "mpeg", "ogv", "3gp"),
    *("mp3", "m4a", "wav", "flac", "ogg", "oga", "aac", "wma", "mid"),
    *("woff", "woff2", "ttf", "otf", "eot"),
    *("css", "js", "mjs", "json", "xml", "csv"),
    *("doc", "docx", "xls", "xlsx", "ppt", "pptx", "epub"),
    *("zip", "gz", "tgz", "bz2", "xz", "7z", "rar", "tar", "exe", "dmg", "apk", "iso"),
)
"""Extensions that no image format of `decode.FORMATS` bears, nor pages and scripts (`.html`, `.php`), which do answer
with images, nor what image servers convert on the way (`.heic`, `.psd`, `.pdf`)."""
_EXTENSION = re.compile(r"[A-Za-z0-9]+")
_WORD = re.compile(r"[a-z0-9]+")


def _extension(value: str) -> str:
    extension = value.lower().removeprefix(".")
    if not _EXTENSION.fullmatch(extension):
        raise ValueError(f"an extension must be letters and digits, such as jpg, was {value!r}")
    return extension


Extension = Annotated[str, AfterValidator(_extension)]
ListPath = Annotated[str, Field(min_length=1)]  # of a file or a folder, or its URI


class Rules(BaseModel, frozen=True, extra="forbid"):
    """The section `crawl.rules` of a recipe. Lists are files, plain or compressed, or folders with such files below."""

    max_length: int = Field(4096, ge=16, le=65_536)  # characters
    extensions: tuple[Extension, ...] | None = Field(None, min_length=1)  # of a path that has one; others pass
    blocked_extensions: tuple[Extension, ...] = NEVER_AN_IMAGE
    blocked_domains: tuple[ListPath, ...] = ()  # a domain stands for itself and everything below it
    blocked_urls: tuple[ListPath, ...] = ()  # `host/path` stands for what begins with it
    unsafe_words: tuple[ListPath, ...] = ()  # one word or phrase a line
    allowed_domains: tuple[ListPath, ...] | None = Field(None, min_length=1)  # if given, no other domain passes
    max_per_domain: int | None = Field(None, ge=1)  # URLs


class UrlRules:
    """The rules of a recipe with their lists read, to be asked about one URL after another."""

    def __init__(self, rules: Rules) -> None:
        """Raises InputError for a list that is not there, cannot be read or holds no entry."""
        self._extensions = None if rules.extensions is None else frozenset(rules.extensions)
        self._blocked_extensions = frozenset(rules.blocked_extensions)
        self._blocked_domain = self._blocked_url = self._unsafe_phrase = self._allowed_domain = None
        if rules.blocked_domains:
            self._blocked_domain = _domain_matcher(domain_blocks("blocked_domains", rules.blocked_domains))
        if rules.blocked_urls:
            self._blocked_url = _url_matcher(entries_of("blocked_urls", rules.blocked_urls, url_entries))
        if rules.unsafe_words:
            self._unsafe_phrase = _phrase_matcher(entries_of("unsafe_words", rules.unsafe_words, phrases_of))
        if rules.allowed_domains is not None:
            self._allowed_domain = _domain_matcher(domain_blocks("allowed_domains", rules.allowed_domains))

    def broken(self, normalized: str, host: str) -> tuple[str, str] | None:
        """Reason and error of the first rule that a URL breaks, or None if it passes.

        normalized: as `normalized_url` gives it; host: its host, without port.
        """
        extension = _extension_of(normalized)
        if extension in self._blocked_extensions:
            return "blocked_extension", f"the path ends in .{extension}, which is one of blocked_extensions"
        if self._extensions is not None and extension not in self._extensions and _is_extension(extension):
            return "extension", f"the path ends in .{extension}, which is none of extensions"
        if self._blocked_domain and (domain := self._blocked_domain(host)):
            return "blocked_domain", f"{host} is, or is below, {domain} of blocked_domains"
        if self._blocked_url and (prefix := self._blocked_url(normalized, host)):
            return "blocked_url", f"the URL begins with {prefix} of blocked_urls"
        if self._unsafe_phrase and (phrase := self._unsafe_phrase(normalized)):
            return "unsafe_word", f"the URL holds '{phrase}' of unsafe_words"
        if self._allowed_domain and not self._allowed_domain(host):
            return "domain_not_allowed", f"{host} is, or is below, no entry of allowed_domains"
        return None


def rules_digest(rules: Rules) -> str:
    """32 hex characters that change with the settings and with what the lists hold, not with where they lie.

    Raises InputError for a list that is not there or cannot be read.
    """
    settings = rules.model_dump(exclude=set(LISTS))
    for field in ("extensions", "blocked_extensions"):
        settings[field] = settings[field] and sorted(set(settings[field]))
    lists = {
        field: paths and sorted({list_digest(field, uri) for path in paths for uri in list_files(field, path)})
        for field in LISTS
        for paths in [getattr(rules, field)]
    }
    return fingerprint(settings, lists)


def _extension_of(normalized: str) -> str:
    """The letters and digits behind the last dot of the path's last part, in lower case; empty if there are none."""
    end = normalized.find("?")
    start = normalized.rfind("/", 0, end if end >= 0 else None)
    dot = normalized.rfind(".", start, end if end >= 0 else None)
    found = _EXTENSION.match(normalized, dot + 1) if dot >= 0 else None
    return found[0].lower() if found else ""


def _is_extension(text: str) -> bool:
    return 0 < len(text) <= LONGEST_EXTENSION and not text.isdigit()


def _hashed(texts: Sequence[bytes]) -> np.ndarray:
    """(n,) uint64."""
    return np.fromiter(map(xxhash.xxh3_64_intdigest, texts), np.uint64, len(texts))


class _Hashes:
    """A set of texts, of which only the 64-bit hashes are kept: sorted, and where those begin that share their first
    bits, so many that a start is followed by one or two."""

    def __init__(self, hashes: Sequence[np.ndarray]) -> None:
        found = np.concatenate(hashes)
        found.sort()
        bits = max(len(found).bit_length() - 1, 1)
        self._shift = 64 - bits
        firsts = np.arange(1 << bits, dtype=np.uint64) << np.uint64(self._shift)
        starts = np.append(np.searchsorted(found, firsts), len(found)).astype(np.uint32)
        self._sorted, self._starts = array("Q", found.tobytes()), array("I", starts.tobytes())

    def __contains__(self, text: bytes) -> bool:
        value = xxhash.xxh3_64_intdigest(text)
        place = value >> self._shift
        return value in self._sorted[self._starts[place] : self._starts[place + 1]]


def _domain_matcher(blocks: Iterable[Sequence[bytes]]) -> Callable[[str], str | None]:
    """A function from a host to the longest domain of a list that the host is, or is below."""
    domains = _Hashes([_hashed(block) for block in blocks])

    @lru_cache(maxsize=CACHED_HOSTS)
    def match(host: str) -> str | None:
        rest = host.encode()
        while rest not in domains:
            _, _, rest = rest.partition(b".")
            if not rest:
                return None
        return rest.decode()

    return match


def _url_matcher(blocks: Iterable[Sequence[bytes]]) -> Callable[[str, str], str | None]:
    """A function from a URL and its host to the shortest entry of the `urls` layout that it begins with.

    An entry ends where a word ends: `host/bad` is `host/bad/x` and `host/bad.jpg`, but not `host/badge`. Case does not
    count, as in squidGuard, which such lists are made for.
    """
    entry_hashes, host_hashes = [], []
    for block in blocks:
        entry_hashes.append(_hashed(block))
        host_hashes.append(_hashed([entry.partition(b"/")[0] for entry in block]))
    entries, hosts = _Hashes(entry_hashes), _Hashes(host_hashes)

    @lru_cache(maxsize=CACHED_HOSTS)
    def listed(host: str) -> str | None:
        host = WEB_HOST.sub("", host)
        return host if host.encode() in hosts else None

    def match(normalized: str, host: str) -> str | None:
        host = listed(host)
        if host is None:
            return None
        url = f"{host}{path_of(normalized)}".lower()
        ends = (found.end() for found in _WORD.finditer(url, len(host)))
        for prefix in (host, *(url[:end] for end in ends)):
            if prefix.encode() in entries:
                return prefix
        return None

    return match


def _phrase_matcher(blocks: Iterable[Sequence[bytes]]) -> Callable[[str], str | None]:
    """A function from a URL to the first phrase of a list among the words of the decoded URL."""
    phrases = frozenset(phrase for block in blocks for phrase in block)
    lengths: dict[bytes, set[int]] = {}
    for phrase in phrases:
        words = phrase.split()
        lengths.setdefault(words[0], set()).add(len(words))
    first_words = frozenset(lengths)

    def match(normalized: str) -> str | None:
        words = words_of(_decoded(normalized))
        if first_words.isdisjoint(words):
            return None
        for start, word in enumerate(words):
            for length in sorted(lengths.get(word, ())):
                phrase = b" ".join(words[start : start + length])
                if phrase in phrases:
                    return phrase.decode()
        return None

    return match


def _decoded(normalized: str) -> str:
    """A URL without its scheme as a reader would see it, percent-encoding as UTF-8 or else Latin-1."""
    text = normalized[normalized.index("/") + 2 :]
    if "xn--" in text:
        host, slash, rest = text.partition("/")
        text = f"{'.'.join(map(_label, host.split('.')))}{slash}{rest}"
    if "%" not in text:
        return text
    decoded = unquote(text)
    return unquote(text, "latin-1") if "\ufffd" in decoded else decoded


def _label(label: str) -> str:
    try:
        return label[4:].encode().decode("punycode") if label.startswith("xn--") else label
    except UnicodeError:
        return label
