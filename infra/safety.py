"""Which addresses may be asked: no request goes to a host that is not on the public internet.

A host that is an address, in whatever spelling, is rewritten to its canonical form before it is checked. What a name
resolves to is checked by `http`, at the moment that it connects, so that a name which answers differently the second
time (DNS rebinding) gains nothing.
"""

import ipaddress
import re

from yarl import URL

# IANA IPv4 special-purpose registry, and what clouds answer on a public address to their own guests.
SPECIAL_V4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's host agent
        "169.254.0.0/16",  # link-local, metadata services
        "172.16.0.0/12",
        "192.0.0.0/24",  # IETF protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays, deprecated
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")  # the only block given out as global unicast
SPECIAL_V6 = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # IETF protocol assignments, Teredo among them
        "2001:db8::/32",  # documentation
        "3fff::/20",  # documentation
    )
)
SIX_TO_FOUR = ipaddress.IPv6Network("2002::/16")  # RFC 3056: the IPv4 address follows the prefix
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the IPv4 address is at the end
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))

_NUMBER = re.compile(r"0[xX][0-9a-fA-F]*|[0-9]+")


class BlockedAddressError(Exception):
    """A host without an address that may be asked."""


def is_public(address: str) -> bool:
    """True if the address is unicast on the public internet, and so is any IPv4 address that is embedded in it.

    address: IPv4 in four decimal parts, or IPv6. What does not parse, or names a zone, is not public.
    Source: IANA IPv4 and IPv6 special-purpose address registries.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv4Address):
        return not any(parsed in network for network in SPECIAL_V4)
    if parsed.scope_id is not None:
        return False
    embedded = _embedded_v4(parsed)
    if embedded is not None:
        return is_public(str(embedded))
    return parsed in GLOBAL_V6 and not any(parsed in network for network in SPECIAL_V6)


def _embedded_v4(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in SIX_TO_FOUR:
        return ipaddress.IPv4Address((int(address) >> 80) & 0xFFFFFFFF)
    if address in NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


def is_allowed(address: str, *, allow_loopback: bool = False) -> bool:
    """True if the address is public, or is 127.0.0.0/8 or ::1 and these are allowed."""
    if is_public(address):
        return True
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return allow_loopback and any(parsed in network for network in LOOPBACK)


def literal_address(host: str) -> str | None:
    """The address that a host spells, in canonical form; None if the host is a name.

    host: without brackets. IPv4 is read as browsers and `inet_aton` read it: one to four parts, decimal, octal (0177)
    or hexadecimal (0x7f), the last part filling what is left; a host whose last label is a number is never a name.
    Raises BlockedAddressError if it must be an address and is none. Source: WHATWG URL standard, IPv4 parser.
    """
    if ":" in host:
        try:
            return str(ipaddress.IPv6Address(host))
        except ValueError as error:
            raise BlockedAddressError(f"host must be an address or a name, was {host!r}") from error
    parts = host.removesuffix(".").split(".")
    if not _NUMBER.fullmatch(parts[-1]):
        return None
    if len(parts) > 4 or not all(_NUMBER.fullmatch(part) for part in parts):
        raise BlockedAddressError(f"host must be an address or a name, was {host!r}")
    try:
        *leading, last = (_number(part) for part in parts)
        if any(number > 255 for number in leading) or last >= 256 ** (4 - len(leading)):
            raise ValueError("a part is too large")
    except ValueError as error:
        raise BlockedAddressError(f"host must be an address or a name, was {host!r}") from error
    return str(ipaddress.IPv4Address(sum(number << (24 - 8 * i) for i, number in enumerate(leading)) + last))


def _number(part: str) -> int:
    if part[:2] in ("0x", "0X"):
        return int(part[2:] or "0", 16)
    return int(part, 8 if len(part) > 1 and part[0] == "0" else 10)


def safe_url(url: str | URL, *, allow_loopback: bool = False) -> URL:
    """The URL ready for a request, a literal host in canonical form; a name is left to the resolver.

    Raises BlockedAddressError for a scheme other than http and https and for a literal address that is not allowed,
    ValueError for what is no URL.
    """
    parsed = URL(url)
    if parsed.scheme not in ("http", "https"):
        raise BlockedAddressError(f"scheme must be http or https, was {parsed.scheme!r}")
    host = parsed.raw_host
    if not host:
        raise ValueError("URL must name a host")
    literal = literal_address(host)
    if literal is None:
        return parsed
    if not is_allowed(literal, allow_loopback=allow_loopback):
        raise BlockedAddressError(f"address must be public, was {literal}")
    return parsed.with_host(literal)
