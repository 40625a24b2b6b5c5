"""URLs in one spelling, and the rules of a recipe that a URL can break before anything is fetched.

At 10^9 URLs: 0.6 µs of one core for a URL that is in its one spelling already, 3 to 9 µs for another; 1 to 8 µs for
the rules. A list of domains or URLs is held as 64-bit hashes, 12 bytes an entry, so that 5 x 10^6 domains are read in
3 s and stay in 60 MB. A host that is on no list shares a hash with an entry in about one of 10^3 such runs.
"""

import hashlib
import logging
import re
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from gzip import BadGzipFile
from lzma import LZMAError
from typing import Annotated
from unicodedata import normalize
from urllib.parse import quote, unquote, urlsplit

import fsspec
import idna
import numpy as np
import xxhash
from pydantic import AfterValidator, BaseModel, Field

from lvd.infra.errors import InputError
from lvd.infra.shards import fingerprint

logger = logging.getLogger("lvd")

DEFAULT_PORTS = {"http": 80, "https": 443}
BYTE_ORDER_MARK = "\ufeff"
BLOCK_BYTES = 4 << 20  # of a list that are read at once
CACHED_HOSTS = 1 << 14  # whose answers are remembered; a crawl asks for the same host many times
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

_HOST = re.compile(r"[^\s\x00-\x1f\x7f/\\?#@%<>^|\"{}`\[\]]{1,253}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_RAW = r"A-Za-z0-9._~!$&'()*+,;=:@/\[\]\-"  # what stands for itself in a path (RFC 3986), and the brackets
_ESCAPE = r"%(?:[0189A-F][0-9A-F]|2[0-9A-CF]|3[A-F]|40|5[B-E]|60|7[B-DF])"  # of what is not unreserved
_CANONICAL = re.compile(
    rf"https?://[a-z0-9_.-]{{1,253}}(?<!\.)/[{_RAW}]*(?:{_ESCAPE}[{_RAW}]*)*"
    rf"(?:\?(?!\Z)[{_RAW}?]*(?:{_ESCAPE}[{_RAW}?]*)*)?"
)
_PLAIN_ORIGIN = re.compile(r"(?ai)(http(s)?://[a-z0-9_.-]{1,253}(?<!\.))(?::(?(2)443|80))?(?=[/?#]|\Z)")
_TO_ESCAPE = re.compile(rf"[^{_RAW}?%]+")
_ESCAPES = re.compile(r"(?:%[0-9A-Fa-f]{2})+")
_NEEDLESS_ESCAPE = re.compile(r"(?<!%)(?<!%[0-9A-Fa-f])%(2[DE]|3[0-9]|4[1-9A-F]|5[0-9AF]|6[1-9A-F]|7[0-9AE])")

_DOMAIN = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
_DOMAIN_LINE = re.compile(  # what nearly all lines of the lists in use are
    rb"(?m)^(?:0\.0\.0\.0 |127\.0\.0\.1 |\|\||\*\.)?(?:www\.)?([a-z0-9_-]+(?:\.[a-z0-9_-]+)+)\^?\n"
)
_DOMAIN_ENTRY = re.compile(
    r"(?:https?://)?(?P<below>(?:\|\|)?(?:\*?\.)?)(?P<name>[^\s/|^$*#@%:?=,;]+?)\.?/?(?:\^\|?)?(?:\$(?P<options>.+))?"
)
_WHOLE_DOMAIN = frozenset(["all", "doc", "document", "image", "important", "third-party", "3p"])
_ADDRESS = re.compile(r"[0-9.]+|[0-9a-f:.]*:[0-9a-f:.]*(?:%\w+)?")
_COMMENT = re.compile(r"^\s*[#!\[].*|\s#.*")
_SCHEME = re.compile(r"(?i)https?://")
_AUTHORITY = re.compile(r"https?://(?:[^/]*@)?(\[[^/]*\]|[^/:]*)")
_WEB_HOST = re.compile(r"^(?:www|web|ftp)[0-9]*\.(?=[^.]+\.)")  # what squidGuard leaves out of the `urls` layout
_EXTENSION = re.compile(r"[A-Za-z0-9]+")
_WORD = re.compile(r"[a-z0-9]+")
_NO_WORD_AT_END = re.compile(r"[^a-z0-9]+\Z")
_NO_WORD = re.compile(r"[\W_]+")
_SPACED = bytes(code if code >= 128 or chr(code).isalnum() else 32 for code in range(256))
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")


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


_LISTS = {"blocked_domains": "domains", "blocked_urls": "urls", "unsafe_words": None, "allowed_domains": "domains"}
"""The fields that name lists, and what the files are called that are read of a folder, as in UT1's collection."""

_LAYOUTS = {
    "domains": "one a line, as example.com, *.example.com, ||example.com^ or 0.0.0.0 example.com",
    "urls": "one a line, as example.com/path",
    None: "one word or phrase a line",
}


def normalized_url(url: str | None, *, max_length: int) -> str:
    """The URL by which repeats are found, as a browser would ask for it: in ASCII, without default port and fragment.

    Scheme and host are in lower case, an international host in Punycode (UTS 46), `.` and `..` are resolved. What has
    to be percent-encoded is, as UTF-8, in upper case; what need not be (letters, digits, `-._~`) is not. All else,
    such as the order of a query and repeated slashes, stays: a server may tell the difference.
    Raises ValueError if it is no http or https URL with a host, or longer than max_length.
    Source: RFC 3986, section 6.2.2.
    """
    if not url:
        raise ValueError("url must not be empty")
    if len(url) > max_length:
        raise ValueError(f"url must have at most {max_length} characters, had {len(url)}")
    if _CANONICAL.fullmatch(url) and "/." not in url:
        return url
    if _CONTROL.search(url):
        raise ValueError(f"url must not hold control characters, was {url!r}")
    origin, path, query = _split(url.strip())
    path = _escaped(path)
    path = _without_dots(path) if "/." in path else path or "/"
    return f"{origin}{path}?{_escaped(query)}" if query else f"{origin}{path}"


def _split(url: str) -> tuple[str, str, str]:
    """Scheme, host and what stands between them in one spelling, and the path and the query as they are."""
    if plain := _PLAIN_ORIGIN.match(url):
        path, _, query = url[plain.end() :].partition("#")[0].partition("?")
        return plain[1].lower(), path, query
    parts = urlsplit(url)
    if parts.scheme not in DEFAULT_PORTS:
        raise ValueError(f"url must begin with http:// or https://, was {url!r}")
    host = (parts.hostname or "").rstrip(".")
    if not host.isascii():
        host = _punycode(host).rstrip(".")
    if not _HOST.fullmatch(host):
        raise ValueError(f"url must name a host, was {url!r}")
    user = _escaped(parts.netloc.rpartition("@")[0])
    user = f"{user}@" if user else ""
    host = f"[{host}]" if ":" in host else host
    port = "" if parts.port in (None, DEFAULT_PORTS[parts.scheme]) else f":{parts.port}"
    return f"{parts.scheme}://{user}{host}{port}", parts.path, parts.query


def _escaped(text: str) -> str:
    """Part of a URL with what is not ASCII, or not allowed as it is, as UTF-8 in percent-encoding."""
    if "%" in text:
        text = _ESCAPES.sub(lambda found: found[0].upper(), text)
        text = _NEEDLESS_ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)
    return _TO_ESCAPE.sub(lambda found: quote(found[0], safe=""), text.replace(" ", "%20"))


def _without_dots(path: str) -> str:
    """Source: RFC 3986, section 5.2.4."""
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)


@lru_cache(maxsize=CACHED_HOSTS)
def _punycode(host: str) -> str:
    """An international host in ASCII: by IDNA 2008, or else 2003, which has names that are in use (emoji); empty if it
    is none."""
    try:
        return idna.encode(host, uts46=True).decode()
    except UnicodeError:  # idna.IDNAError is one
        pass
    try:
        return host.encode("idna").decode().lower()
    except UnicodeError:
        return ""


def host_of(normalized: str) -> str:
    """The host of a URL that `normalized_url` gave, without port and brackets."""
    return _AUTHORITY.match(normalized)[1].strip("[]")


def domain_of(host: str) -> str:
    """The host without a leading `www.`, unless only a top-level domain would be left."""
    rest = host.removeprefix("www.")
    return rest if "." in rest else host


class UrlRules:
    """The rules of a recipe with their lists read, to be asked about one URL after another."""

    def __init__(self, rules: Rules) -> None:
        """Raises InputError for a list that is not there, cannot be read or holds no entry."""
        self._extensions = None if rules.extensions is None else frozenset(rules.extensions)
        self._blocked_extensions = frozenset(rules.blocked_extensions)
        self._blocked_domain = self._blocked_url = self._unsafe_phrase = self._allowed_domain = None
        if rules.blocked_domains:
            self._blocked_domain = _domain_matcher(_domains("blocked_domains", rules.blocked_domains))
        if rules.blocked_urls:
            self._blocked_url = _url_matcher(_entries("blocked_urls", rules.blocked_urls, _url_entries))
        if rules.unsafe_words:
            self._unsafe_phrase = _phrase_matcher(_entries("unsafe_words", rules.unsafe_words, _phrases))
        if rules.allowed_domains is not None:
            self._allowed_domain = _domain_matcher(_domains("allowed_domains", rules.allowed_domains))

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
    settings = rules.model_dump(exclude=set(_LISTS))
    for field in ("extensions", "blocked_extensions"):
        settings[field] = settings[field] and sorted(set(settings[field]))
    lists = {
        field: paths and sorted({_sha256(field, uri) for path in paths for uri in _files(field, path)})
        for field in _LISTS
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


def _path(normalized: str) -> str:
    """Path and query."""
    return normalized[normalized.index("/", 8) :]


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
        host = _WEB_HOST.sub("", host)
        return host if host.encode() in hosts else None

    def match(normalized: str, host: str) -> str | None:
        host = listed(host)
        if host is None:
            return None
        url = f"{host}{_path(normalized)}".lower()
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
        words = _words(_decoded(normalized))
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


def _words(text: str) -> list[bytes]:
    """The runs of letters and digits, in lower case."""
    text = text if text.isascii() else _NO_WORD.sub(" ", normalize("NFKC", text))
    return text.lower().encode().translate(_SPACED).split()


def _domains(field: str, paths: Sequence[str]) -> Iterator[Sequence[bytes]]:
    return _entries(field, paths, _domain_entries, _DOMAIN_LINE)


def _domain_entries(line: str) -> list[str] | None:
    """The domains of a line: of a hosts file, `||example.com^`, `*.example.com` or the name alone; None if it is none
    of these."""
    first, *names = line.lower().split()
    if names:  # an address and its names, those without a dot being the machine's own: localhost, ip6-allnodes
        found = [_domain(name) for name in names if "." in name] if _ADDRESS.fullmatch(first) else [None]
        return None if None in found else found
    entry = _DOMAIN_ENTRY.fullmatch(first)
    if not entry or not _WHOLE_DOMAIN.issuperset((entry["options"] or "all").split(",")):
        return None
    name = _domain(entry["name"])
    return [name] if name and ("." in name or entry["below"]) else None


def _domain(name: str) -> str | None:
    name = name if name.isascii() else _punycode(name)
    return domain_of(name) if _DOMAIN.fullmatch(name) else None


def _url_entries(line: str) -> list[str] | None:
    """The prefix that a line `host/path` stands for, which may have a scheme, a port and `/*` at its end."""
    try:
        url = normalized_url(line if _SCHEME.match(line) else f"http://{line}", max_length=len(line) + 7)
    except ValueError:
        return None
    host = _WEB_HOST.sub("", host_of(url))
    if "." not in host or not _DOMAIN.fullmatch(host):
        return None
    return [_NO_WORD_AT_END.sub("", f"{host}{_path(url)}".lower())]


def _phrases(line: str) -> list[str] | None:
    return [b" ".join(words).decode()] if (words := _words(line)) else None


def _entries(
    field: str,
    paths: Sequence[str],
    layout: Callable[[str], list[str] | None],
    common_line: re.Pattern[bytes] | None = None,
) -> Iterator[Sequence[bytes]]:
    """The entries of all lists of a field, those of some megabytes at a time.

    layout: the entries of a line, None if it knows no such line. common_line: matches lines whose one group is the
    entry, to be spared the layout. Raises InputError for a list that cannot be read or holds no entry.
    """
    for path in paths:
        num_entries = num_unknown = 0
        example = ""
        for uri in _files(field, path):
            for block in _blocks(field, uri):
                parts = common_line.split(block) if common_line else [block]
                found = parts[1::2]
                for raw in b"".join(parts[::2]).split(b"\n"):
                    line = _COMMENT.sub("", _text(raw).lstrip(BYTE_ORDER_MARK)).strip()
                    entries = layout(line) if line else []
                    if entries is None:
                        num_unknown += 1
                        example = example or line
                    else:
                        found += [entry.encode() for entry in entries]
                num_entries += len(found)
                yield found
        if not num_entries:
            seen = f"{num_unknown} lines such as {example[:80]!r}" if num_unknown else "nothing"
            raise _error(field, path, "hold entries", f"it holds {seen}: give {_LAYOUTS[_LISTS[field]]}")
        if num_unknown:
            logger.warning(
                "%s: %d lines of %s are passed by, as they have no known layout, the first is %r (%d entries are read)",
                *(field, num_unknown, path, example[:80], num_entries),
            )


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _error(field: str, path: str, must: str, remedy: str) -> InputError:
    return InputError(f"recipe.crawl.rules.{field} must {must}, was {path!r}: {remedy}")


def _unreadable(field: str, path: str, error: Exception) -> InputError:
    remedy = f"{' '.join(str(error).split())}: correct the path or the access to it"
    return _error(field, path, "name files that can be read", remedy)


def _files(field: str, path: str) -> list[str]:
    """The URIs of the lists at a path, sorted. Raises InputError if there is none."""
    name = _LISTS[field]
    try:
        fs, place = fsspec.core.url_to_fs(path)
        fs.invalidate_cache()
        is_folder = fs.info(place)["type"] == "directory"
        inside = fs.find(place) if is_folder and name else []
    except FileNotFoundError as error:
        raise _error(field, path, "name files that are there", "correct the path, or fetch the list first") from error
    except (OSError, ValueError, ImportError) as error:
        raise _unreadable(field, path, error) from error
    if path.endswith(_ARCHIVES):
        raise _error(field, path, "name lists, not archives", "unpack it and name the folder")
    if not is_folder:
        return [path]
    found = [uri for uri in inside if name and _stem(uri) == name]
    if not found:
        remedy = f"no file below it is called '{name}': name the files" if name else "it is a folder: name the files"
        raise _error(field, path, "name lists", remedy)
    return sorted(fs.unstrip_protocol(uri) for uri in found)


def _stem(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".gz")


def _blocks(field: str, uri: str) -> Iterator[bytes]:
    """Whole lines that end in a line feed, some megabytes at a time."""
    rest = b""
    for block in _raw_blocks(field, uri):
        block = (rest + block).replace(b"\r", b"\n")
        end = block.rfind(b"\n") + 1
        rest = block[end:]
        yield block[:end]
    if rest:
        yield rest + b"\n"


def _raw_blocks(field: str, uri: str) -> Iterator[bytes]:
    try:
        with fsspec.open(uri, "rb", compression="infer") as file:
            while block := file.read(BLOCK_BYTES):
                yield block
    except (OSError, EOFError, BadGzipFile, LZMAError, zlib.error) as error:
        raise _unreadable(field, uri, error) from error


def _sha256(field: str, uri: str) -> str:
    digest = hashlib.sha256()
    for block in _raw_blocks(field, uri):
        digest.update(block)
    return digest.hexdigest()
