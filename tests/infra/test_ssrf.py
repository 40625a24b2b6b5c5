"""No spelling of an address, and no name, makes the HTTP client connect to what is not on the public internet.

Everything is tried against listening servers that count: on 127.0.0.1, on ::1, and on every address of this machine.
The resolver is hostile: every name that is not in `ANSWERS` is one of this machine. `HOSTS` are never asked; `LOOPBACK`
and `NAMES` are asked if loopback is allowed, which shows that the servers hear. Nothing leaves this machine.
"""

import asyncio
import socket
from collections.abc import Awaitable

import pytest

from lvd.infra.http import Client, HttpError
from lvd.infra.safety import is_public

LIMITS = {"timeout_s": 20.0, "max_bytes": 1000}
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"
LISTEN = ("127.0.0.1", "::1", "0.0.0.0", "::")

LOOPBACK = [
    "127.0.0.1",
    "127.0.0.2",
    "127.255.255.254",
    "127.0.0.1.",  # the root of names
    "2130706433",
    "0x7f000001",
    "0X7F000001",
    "0x000000007f000001",
    "017700000001",
    "0177.0.0.1",  # octal: read as decimal it would be the public 177.0.0.1
    "0177.0.0.01",
    "0000000000177.0.0.1",
    "0x7f.0.0.1",
    "0x7F.0x0.0x0.0x1",
    "0x7f.1",
    "127.1",
    "127.0.1",
    "127.0x1",
    "127.65530",
    "0177.0x1",
    "127.000.000.001",
    "１２７.０.０.１",  # full-width digits
    "127．0．0．1",  # full-width dots
    "127。0。0。1",  # ideographic dots
    "127｡0｡0｡1",
    "①②⑦.⓪.⓪.①",
    "𝟏𝟐𝟕.𝟎.𝟎.𝟏",  # mathematical digits
    "１２７。1",
    "127.0.0\t.1",  # a tab counts for nothing in a URL
    "someone@127.0.0.1",
    "someone:secret@127.0.0.1",
    "8.8.8.8@127.0.0.1",
    "8.8.8.8:80@127.0.0.1",
    "example.org%2f@127.0.0.1",
    "a@b@127.0.0.1",
    "@127.0.0.1",
    ":@127.0.0.1",
    "8.8.8.8%23@2130706433",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[0000:0000:0000:0000:0000:0000:0000:0001]",
    "[0::0001]",
    "[::0.0.0.1]",
    "8.8.8.8@[::1]",
    "[::1%25lo]",
    "[::1%lo]",
    "[::1%2525lo]",
]
HOSTS = [
    # this host, in every network
    "0.0.0.0",
    "0",
    "0x",
    "0x0",
    "00000",
    "0.0",
    "0.0.0.1",
    "[::]",
    "[0:0:0:0:0:0:0:0]",
    "[::0.0.0.0]",
    # an IPv4 address inside an IPv6 address: mapped, compatible, translated, NAT64, 6to4, Teredo, ISATAP
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::FFFF:127.0.0.1]",
    "[0:0:0:0:0:ffff:127.0.0.1]",
    "[::ffff:0.0.0.0]",
    "[::ffff:169.254.169.254]",
    "[::ffff:10.0.0.1]",
    "[::127.0.0.1]",
    "[::7f00:1]",
    "[::ffff:0:127.0.0.1]",
    "[64:ff9b::127.0.0.1]",
    "[64:ff9b::a9fe:a9fe]",
    "[64:ff9b:1::127.0.0.1]",
    "[2002:7f00:1::]",
    "[2002:7f00:1::1]",
    "[2002:a9fe:a9fe::1]",
    "[2001:0:7f00:1::]",
    "[2001:0:4136:e378:8000:63bf:80ff:fffe]",
    "[fe80::5efe:127.0.0.1]",
    # what clouds tell their own guests
    "169.254.169.254",
    "2852039166",
    "0xa9fea9fe",
    "0251.0376.0251.0376",
    "169.254.43518",
    "0xa9.254.0251.0xfe",
    "169。254。169。254",
    "169.254.170.2",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "[fd00:ec2::254]",
    "[fd20:ce::254]",
    "someone@169.254.169.254",
    # private, shared, link-local, documentation, benchmarking, reserved, broadcast, multicast
    "10.0.0.1",
    "012.0.0.1",
    "167772161",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "192.168.257",
    "100.64.0.1",
    "169.254.0.1",
    "192.0.2.1",
    "198.51.100.1",
    "203.0.113.1",
    "198.18.0.1",
    "192.88.99.1",
    "240.0.0.1",
    "255.255.255.255",
    "4294967295",
    "0xffffffff",
    "224.0.0.1",
    "239.255.255.250",
    "[fc00::1]",
    "[fd00::1]",
    "[fe80::1]",
    "[fe80::1%25eth0]",
    "[fe80::1%lo]",
    "[fec0::1]",
    "[ff02::1]",
    "[100::1]",
    "[2001:db8::1]",
    "[3fff::1]",
    "[5f00::1]",
    "[2606:4700::1111%25lo]",  # a zone makes no sense on a public address
    # no address and no name
    "127.0.0.1.1",
    "127.0.0.256",
    "4294967296",
    "0x100000000",
    "08.0.0.1",
    "127..1",
    "a.1",
    "127%2e0%2e0%2e1",
    "%31%32%37.0.0.1",
    "example.org%00@127.0.0.1",
    "127.0.0.1%20",
    "127.0.0.1%00",
    "127.0.0.1%00.example.org",
    "127.0.0.1%0d%0aX-A:1",
    "127.0.0.1 ",
    "127.0.0.1\\",
    "127.0.0.1\\@8.8.8.8",
    "%6c%6fcalhost",
    "loc\xadalhost",
    "[127.0.0.1]",
    "[::1",
    "::1",
    "[::1]x",
    "[v1.127.0.0.1]",
    "[::ffff:127.1]",
    "*",
    "127.0.0.1..",
]
NAMES = [
    "localhost",
    "LOCALHOST",
    "localhost.",
    "ip6-localhost",
    "a.localhost",
    "ⓛocalhost",
    "127.0.0.1.example.org",
    "0x7f.example.org",
    "metadata.google.internal",
    "someone@localhost",
    "8.8.8.8@localhost",
    "xn--ls8h.example",
    "_service.example",
]
URLS = [
    "http://127.0.0.1:{port}#@8.8.8.8/",
    "http://127.0.0.1:{port}?@8.8.8.8/",
    "http://127.0.0.1:0{port}/",
    "HTTP://127.0.0.1:{port}/",
    " http://127.0.0.1:{port}/",
    "http:/127.0.0.1:{port}/",
    "http:127.0.0.1:{port}/",
    "http:////127.0.0.1:{port}/",
    "http:\\\\127.0.0.1:{port}\\",
    "http://\\127.0.0.1:{port}/",
    "//127.0.0.1:{port}/",
    "127.0.0.1:{port}/",
    "https://127.0.0.1:{port}/",
    "https://localhost:{port}/",
    "ftp://127.0.0.1:{port}/",
    "ws://127.0.0.1:{port}/",
    "gopher://127.0.0.1:{port}/_GET",
    "dict://127.0.0.1:{port}/d:a",
    "telnet://127.0.0.1:{port}/",
    "smtp://127.0.0.1:{port}/",
    "file:///etc/passwd",
    "file://127.0.0.1:{port}/",
    "javascript:127.0.0.1:{port}",
]
ANSWERS = {
    "both.example": ["127.0.0.1", "::1"],
    "this.example": ["0.0.0.0"],
    "that.example": ["::"],
    "mapped.example": ["::ffff:127.0.0.1"],
    "compatible.example": ["::127.0.0.1"],
    "translated.example": ["64:ff9b::7f00:1"],
    "tunnelled.example": ["2002:7f00:1::1"],
    "zoned.example": ["fe80::1%lo", "::1%lo"],
    "metadata.example": ["169.254.169.254", "fd00:ec2::254"],
    "private.example": ["10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "fd00::1"],
    "broadcast.example": ["255.255.255.255", "224.0.0.1", "ff02::1"],
}


class Servers:
    """Counts the connections that reach this machine: 127.0.0.1, ::1, every IPv4 address, every IPv6 address."""

    async def __aenter__(self) -> "Servers":
        self.counts = dict.fromkeys(LISTEN, 0)
        self._servers = [await asyncio.start_server(self._counter(host), host, 0) for host in LISTEN]
        self.ports = {
            host: server.sockets[0].getsockname()[1] for host, server in zip(LISTEN, self._servers, strict=True)
        }
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self._servers:
            server.close()
            await server.wait_closed()

    def _counter(self, host: str) -> object:
        async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.counts[host] += 1
            await reader.read(1 << 16)
            writer.write(OK)
            writer.close()

        return count

    async def heard(self) -> int:
        """Connections so far, those that nobody has accepted yet included."""
        for host, port in self.ports.items():  # a last one, which all others come before
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            with socket.socket(family) as last:
                last.settimeout(10)
                before = self.counts[host]
                last.connect((host, port))
                while self.counts[host] == before:
                    await asyncio.sleep(0.001)
        return sum(self.counts.values()) - len(self.ports)


def hostile(host: bytes, port: object, **options: object) -> list:
    """Stands for the system's resolver."""
    addresses = ANSWERS.get(host.decode(), ["127.0.0.1", "::1", "0.0.0.0", "::ffff:127.0.0.1"])
    families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in addresses]
    return [
        (family, socket.SOCK_STREAM, 6, "", (address, 0)) for family, address in zip(families, addresses, strict=True)
    ]


@pytest.fixture(autouse=True)
def hostile_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", hostile)


def run(scenario: Awaitable) -> object:
    return asyncio.run(asyncio.wait_for(scenario, 25))


async def outcome_of(asked: Client, url: str) -> str | int:
    """The status, or why there is none."""
    try:
        return (await asked.get(url, **LIMITS)).status
    except HttpError as error:
        assert not error.connected and not error.may_pass
        return error.reason
    except ValueError:
        return "ValueError"


async def try_everywhere(url: str, *, allow_loopback: bool) -> tuple[set[str | int], int]:
    """What became of it with the port of every server, and how many connections the servers heard."""
    async with Servers() as servers, Client(user_agent="lvd-test", allow_loopback=allow_loopback) as asked:
        outcomes = {await outcome_of(asked, url.replace("{port}", str(port))) for port in servers.ports.values()}
        return outcomes, await servers.heard()


@pytest.mark.parametrize("host", [*LOOPBACK, *NAMES, *ANSWERS])
def test_this_machine_is_not_asked(host: str) -> None:
    assert run(try_everywhere(f"http://{host}:{{port}}/", allow_loopback=False)) == ({"blocked_address"}, 0)


@pytest.mark.parametrize("allow_loopback", [False, True])
@pytest.mark.parametrize("host", HOSTS)
def test_what_is_not_public_is_not_asked(host: str, allow_loopback: bool) -> None:
    outcomes, heard = run(try_everywhere(f"http://{host}:{{port}}/", allow_loopback=allow_loopback))
    assert heard == 0
    assert outcomes in ({"blocked_address"}, {"ValueError"})


@pytest.mark.parametrize("url", URLS)
def test_no_url_leads_to_this_machine(url: str) -> None:
    outcomes, heard = run(try_everywhere(url, allow_loopback=False))
    assert heard == 0
    assert outcomes in ({"blocked_address"}, {"ValueError"})


@pytest.mark.parametrize("host", [*LOOPBACK, *NAMES, "both.example"])
def test_loopback_is_asked_if_it_is_allowed(host: str) -> None:
    async def ask() -> tuple[str | int, int]:
        async with Servers() as servers, Client(user_agent="lvd-test", allow_loopback=True) as asked:
            port = servers.ports["::1" if "[" in host else "0.0.0.0"]
            return await outcome_of(asked, f"http://{host}:{port}/"), await servers.heard()

    assert run(ask()) == (200, 1)


def own_addresses() -> list[str]:
    """Those from which this machine reaches other networks, where they are private; nothing is sent."""
    found = []
    for family, elsewhere in ((socket.AF_INET, "198.51.100.1"), (socket.AF_INET6, "2001:db8::1")):
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((elsewhere, 9))
            except OSError:  # there is no such network
                continue
            found.append(probe.getsockname()[0])
    return [address for address in found if not is_public(address)]


@pytest.mark.parametrize("allow_loopback", [False, True])
def test_the_addresses_of_this_machine_are_not_asked(allow_loopback: bool) -> None:
    for address in [*own_addresses(), "0.0.0.0", "::"]:  # the last two are this machine wherever the tests run
        host = f"[{address}]" if ":" in address else address
        found = run(try_everywhere(f"http://{host}:{{port}}/", allow_loopback=allow_loopback))
        assert found == ({"blocked_address"}, 0), address


class Turning:
    """A name whose addresses are others every time it is looked up."""

    def __init__(self, *answers: str) -> None:
        self._answers, self.num_asked = answers, 0

    def __call__(self, host: bytes, port: object, **options: object) -> list:
        address = self._answers[self.num_asked % len(self._answers)]
        self.num_asked += 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))]


@pytest.mark.parametrize("dns_cache_s", [0, 300])
def test_a_name_that_turns_to_this_machine(dns_cache_s: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback stands for the public internet here, and 0.0.0.0, which leads to the same servers, is forbidden."""
    turning = Turning("127.0.0.1", "0.0.0.0")
    monkeypatch.setattr(socket, "getaddrinfo", turning)

    async def ask() -> tuple[list[str | int], int]:
        options = {"user_agent": "lvd-test", "allow_loopback": True, "dns_cache_s": dns_cache_s}
        async with Servers() as servers, Client(**options) as asked:
            url = f"http://turning.example:{servers.ports['0.0.0.0']}/"
            return [await outcome_of(asked, url) for _ in range(6)], await servers.heard()

    # one look-up per request at most: what was checked is not asked for again before the connection
    expected = ([200, "blocked_address"] * 3, 3, 6) if dns_cache_s == 0 else ([200] * 6, 6, 1)
    assert (*run(ask()), turning.num_asked) == expected


def test_a_refused_address_is_named() -> None:
    async def ask(url: str) -> str:
        async with Client(user_agent="lvd-test") as asked:
            with pytest.raises(HttpError) as raised:
                await asked.get(url, **LIMITS)
            return str(raised.value)

    assert "127.0.0.1" in run(ask("http://2130706433/"))
    for address in ANSWERS["private.example"]:
        assert address in run(ask("http://private.example/"))
