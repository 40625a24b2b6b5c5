"""URLs in one spelling, by which repeats are found and rules are asked.

At 10^9 URLs: 0.6 µs of one core for a URL that is in its one spelling already, 3 to 9 µs for another.
"""

import re
from functools import lru_cache
from urllib.parse import quote, urlsplit

import idna

DEFAULT_PORTS = {"http": 80, "https": 443}
CACHED_HOSTS = 1 << 14  # whose answers are remembered; a crawl asks for the same host many times
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
_AUTHORITY = re.compile(r"https?://(?:[^/]*@)?(\[[^/]*\]|[^/:]*)")


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
        host = punycode(host).rstrip(".")
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
def punycode(host: str) -> str:
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


def path_of(normalized: str) -> str:
    """Path and query."""
    return normalized[normalized.index("/", 8) :]
