"""What a server on somebody's own machine refuses, and the headers of all that it answers.

A page of another site must not read from it (a name that leads to loopback: DNS rebinding), write to it (a form of
another site), or show its pictures; and nothing that comes from the web may run in its own pages.
"""

import ipaddress
import socket
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OWN_PAGES = (
    "default-src 'none'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
SELF_CONTAINED = (
    "sandbox allow-scripts; default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
)
"""Of a page with everything in it: it runs apart from the origin that it is served from."""

ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
OPENER = "Cross-Origin-Opener-Policy"
UNLESS_GIVEN = {"Content-Security-Policy": OWN_PAGES, "Cache-Control": "no-store", OPENER: "same-origin"}
APART = {"Content-Security-Policy": SELF_CONTAINED, OPENER: "unsafe-none"}
"""Headers of a SELF_CONTAINED page: browsers may refuse to show what is in a sandbox and has an opener policy."""


class Guard:
    """The application behind its rules. host: what the server is bound to."""

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app, self._host = app, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(ALWAYS)
                for name, value in UNLESS_GIVEN.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = refused(scope["method"], Headers(scope=scope), self._host)
        answering: Any = PlainTextResponse(refusal[1] + "\n", refusal[0]) if refusal else self._app
        await answering(scope, receive, with_headers)


def refused(method: str, headers: Headers, bound_to: str) -> tuple[int, str] | None:
    """(status, one line) for a request that is not answered; None for one that is.

    bound_to: what the server was told to listen at.
    """
    asked = headers.getlist("host")
    if len(asked) != 1 or not is_own(host_of(asked[0]), bound_to):
        return 400, "Host must be this server's own name or address: open the address that `lvd serve` printed"
    is_opened = method == "GET" and headers.get("sec-fetch-dest") == "document"  # a link that somebody followed
    if not is_opened and not is_same_site(method, headers):
        return 403, "the request must come from this server's own pages, it came from another site"
    return None


def host_of(header: str) -> str:
    """The host without its port, in lower case; an IPv6 address keeps its brackets."""
    if header.startswith("["):
        return header.partition("]")[0].lower() + "]"
    return header.partition(":")[0].lower().rstrip(".")


def is_own(host: str, bound_to: str) -> bool:
    """Whether a request for this host is meant for a server bound to that one.

    A name that somebody else owns can be made to lead here; an address can not, so beyond loopback any address is.
    """
    if is_loopback(host) or is_loopback(bound_to):
        return is_loopback(host)
    return host in {bound_to.lower(), socket.gethostname().lower()} or is_address(host)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what is bound to it."""
    if host == "localhost":
        return True
    return is_address(host) and ipaddress.ip_address(host.strip("[]")).is_loopback


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def is_same_site(method: str, headers: Headers) -> bool:
    """Whether the browser says that the request is its user's or this server's own, or no browser sent it."""
    if (site := headers.get("sec-fetch-site")) is not None:
        return site in ("same-origin", "none")
    if method not in ("GET", "HEAD") and (origin := headers.get("origin")) is not None:
        return origin.partition("://")[2].lower() == headers["host"].lower()
    return True
