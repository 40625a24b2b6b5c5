import socket

import pytest

from lvd.infra.safety import BlockedAddressError, is_allowed, is_public, literal_address, safe_url

PUBLIC = [
    "8.8.8.8",
    "1.0.0.1",
    "100.63.255.255",  # one below carrier-grade NAT
    "100.128.0.0",  # one above it
    "172.15.255.255",
    "172.32.0.0",
    "223.255.255.255",  # the last before multicast
    "2606:4700::1111",
    "2a00:1450:4001::1",
    "::ffff:8.8.8.8",  # mapped
    "2002:808:808::1",  # 6to4 of 8.8.8.8
    "64:ff9b::808:808",  # NAT64 of 8.8.8.8
]
NOT_PUBLIC = [
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "100.100.100.200",  # a cloud's metadata service inside carrier-grade NAT
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",  # a public address that a cloud answers itself
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.2.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.7",
    "203.0.113.7",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",  # IPv4-compatible, deprecated
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",  # NAT64 of 127.0.0.1
    "64:ff9b:1::808:808",  # local-use NAT64
    "2002:7f00:1::",  # 6to4 of 127.0.0.1
    "2002:a9fe:a9fe::1",  # 6to4 of 169.254.169.254
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",  # Teredo
    "2001:db8::1",
    "3fff::1",
    "100::1",  # discard
    "fc00::1",
    "fd00:ec2::254",  # a cloud's metadata service
    "fe80::1",
    "fe80::1%eth0",
    "2606:4700::1111%eth0",  # a zone makes no sense on a public address
    "fec0::1",
    "ff02::1",
    "5f00::1",
    "",
    "example.org",
    "2130706433",  # only canonical spellings are addresses here
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_public(address):
    assert is_public(address)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_other_addresses_are_not_public(address):
    assert not is_public(address)


def test_loopback_is_the_only_exception_that_can_be_allowed():
    let_through = {address for address in NOT_PUBLIC if is_allowed(address, allow_loopback=True)}
    assert let_through == {"127.0.0.1", "127.255.255.254", "::1"}
    assert not any(is_allowed(address) for address in NOT_PUBLIC)
    assert all(is_allowed(address) for address in PUBLIC)


LITERALS = {
    "127.0.0.1": "127.0.0.1",
    "127.0.0.1.": "127.0.0.1",
    "2130706433": "127.0.0.1",
    "0x7f.1": "127.0.0.1",
    "0X7F000001": "127.0.0.1",
    "0177.0.0.1": "127.0.0.1",  # octal: read as decimal it would be the public 177.0.0.1
    "127.1": "127.0.0.1",
    "10.0.258": "10.0.1.2",
    "0": "0.0.0.0",
    "0x": "0.0.0.0",
    "4294967295": "255.255.255.255",
    "::1": "::1",
    "0:0:0:0:0:FFFF:7f00:1": "::ffff:7f00:1",
    "example.org": None,
    "0x7f.example": None,
    "1.2.3.4.example.org": None,
    "localhost": None,
}


@pytest.mark.parametrize("host", LITERALS)
def test_an_address_is_recognised_in_every_spelling(host):
    found = literal_address(host)
    assert found == LITERALS[host]
    if found and ":" not in host and host not in ("127.0.0.1.", "0x"):  # glibc refuses these two spellings
        assert socket.inet_ntoa(socket.inet_aton(host)) == found


@pytest.mark.parametrize("host", ["1.2.3.4.5", "256.1.1.1", "4294967296", "1.2.3.256", "08.1.1.1", "a.1", "..1", "1:2"])
def test_a_host_that_ends_in_a_number_but_is_no_address_is_refused(host):
    with pytest.raises(BlockedAddressError, match="must be an address or a name"):
        literal_address(host)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://0177.0.0.1/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://user:password@10.0.0.1/",
        "http://①②⑦.0.0.1/",  # digits that IDNA turns into ASCII
        "http://127。0。0。1/",  # dots that IDNA turns into ASCII
        "file:///etc/passwd",
        "ftp://example.org/a.jpg",
    ],
)
def test_a_url_outside_the_public_web_is_refused(url):
    with pytest.raises(BlockedAddressError):
        safe_url(url)


def test_a_safe_url_connects_to_the_address_that_was_checked():
    assert str(safe_url("http://0x8.8.8.8:81/a%20b%2F?c=d")) == "http://8.8.8.8:81/a%20b%2F?c=d"
    assert str(safe_url("http://2130706433:8080/x", allow_loopback=True)) == "http://127.0.0.1:8080/x"
    assert str(safe_url("https://example.org/x")) == "https://example.org/x"
    for url in ("/relative", "", "http://[1"):
        with pytest.raises((ValueError, BlockedAddressError)):
            safe_url(url)
