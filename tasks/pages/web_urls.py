"""URLs of a page resolved as a browser resolves them. Source: WHATWG URL standard."""

import re
from functools import lru_cache
from ipaddress import IPv6Address
from typing import NamedTuple
from urllib.parse import unquote

import idna

from lvd.infra.safety import BlockedAddressError, literal_address

MAX_URL_CHARS = 16_384  # servers take 8,192 at most, as a rule; what is longer is passed by as `data:` is


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


def document_base(href: str, page_url: str) -> str:
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
