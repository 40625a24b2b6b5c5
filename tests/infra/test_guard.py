"""Who may ask a server on somebody's own machine."""

import socket

import pytest
from starlette.datastructures import Headers

from lvd.infra.guard import host_of, is_loopback, refused


def asked(method: str, bound_to: str = "127.0.0.1", **headers: str) -> int | None:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    refusal = refused(method, Headers(named), bound_to)
    return refusal[0] if refusal else None


@pytest.mark.parametrize(
    ("bound_to", "host", "is_answered"),
    [
        ("127.0.0.1", "127.0.0.1:8470", True),
        ("127.0.0.1", "localhost:9000", True),  # through a tunnel, whose port is another one
        ("127.0.0.1", "LOCALHOST", True),
        ("127.0.0.1", "[::1]:8470", True),
        ("127.0.0.2", "127.0.0.2:8470", True),
        ("::1", "127.0.0.1:8470", True),
        ("127.0.0.1", "evil.example:8470", False),  # a name that was made to lead to 127.0.0.1
        ("127.0.0.1", "localhost.evil.example", False),
        ("127.0.0.1", "127.0.0.1.evil.example", False),
        ("127.0.0.1", "10.0.0.7", False),
        ("127.0.0.1", "", False),
        ("localhost", "evil.example", False),
        ("::1", "evil.example", False),
        ("0.0.0.0", "10.0.0.7:8470", True),
        ("0.0.0.0", "[fd00::1]:8470", True),
        ("0.0.0.0", socket.gethostname(), True),
        ("0.0.0.0", "evil.example", False),
        ("box.lan", "BOX.lan:8470", True),
    ],
)
def test_hosts(bound_to: str, host: str, is_answered: bool) -> None:
    assert asked("GET", bound_to, host=host) == (None if is_answered else 400)


def test_a_request_names_one_host() -> None:
    assert refused("GET", Headers({}), "127.0.0.1")[0] == 400
    two = Headers(raw=[(b"host", b"127.0.0.1"), (b"host", b"evil.example")])
    assert refused("GET", two, "127.0.0.1")[0] == 400


@pytest.mark.parametrize(
    ("headers", "is_answered"),
    [
        ({}, True),  # no browser
        ({"sec_fetch_site": "same-origin"}, True),
        ({"sec_fetch_site": "none"}, True),
        ({"sec_fetch_site": "cross-site"}, False),
        ({"sec_fetch_site": "same-site"}, False),  # another port of this machine
        ({"sec_fetch_site": "cross-site", "origin": "http://127.0.0.1:1"}, False),
        ({"origin": "http://127.0.0.1:1"}, True),
        ({"origin": "http://127.0.0.1:2"}, False),
        ({"origin": "https://evil.example"}, False),
        ({"origin": "null"}, False),
    ],
)
def test_what_writes_must_come_from_here(headers: dict[str, str], is_answered: bool) -> None:
    assert asked("POST", host="127.0.0.1:1", **headers) == (None if is_answered else 403)


@pytest.mark.parametrize(
    ("headers", "is_answered"),
    [
        ({}, True),  # no browser
        ({"sec_fetch_site": "none", "sec_fetch_dest": "document"}, True),
        ({"sec_fetch_site": "same-origin", "sec_fetch_dest": "image"}, True),
        ({"sec_fetch_site": "cross-site", "sec_fetch_dest": "document"}, True),  # a link on a page of notes
        ({"sec_fetch_site": "cross-site", "sec_fetch_dest": "image"}, False),  # costs time, and tells what is there
        ({"sec_fetch_site": "same-site", "sec_fetch_dest": "script"}, False),
        ({"sec_fetch_site": "cross-site", "sec_fetch_dest": "iframe"}, False),
        ({"sec_fetch_site": "cross-site", "sec_fetch_dest": "empty"}, False),
        ({"origin": "https://evil.example"}, True),  # an old browser; it cannot read the answer
    ],
)
def test_what_reads_may_come_from_elsewhere_only_by_a_link(headers: dict[str, str], is_answered: bool) -> None:
    for method in ("GET", "HEAD"):
        expected = is_answered and not (method == "HEAD" and "cross-site" in headers.values())
        assert asked(method, host="127.0.0.1:1", **headers) == (None if expected else 403)


def test_hosts_and_loopback_are_told_apart() -> None:
    assert [host_of(text) for text in ("A.b:1", "[::1]:80", "a.", "[::1")] == ["a.b", "[::1]", "a", "[::1]"]
    assert [is_loopback(host) for host in ("127.0.0.9", "::1", "localhost", "0.0.0.0", "::", "box.lan")] == (
        [True] * 3 + [False] * 3
    )
