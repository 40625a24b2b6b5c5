"""Politeness: when a host may be asked, and which request is the next one that asks it.

Nothing is read or written here: whoever asks says what came of it. At 10^9 requests: 5 us of one core per turn that is
free, 30 us per turn that is waited for; 0.3 kB per host with a pause, a pace or failures to remember, nothing per idle
host.
"""

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from pydantic import BaseModel, Field


class Politeness(BaseModel, frozen=True, extra="forbid"):
    """What one host is asked at most, by all processes of a run together."""

    connections_per_host: int = Field(8, ge=1, le=4096)  # requests at once; usual: 2 to 16, a browser has 6
    requests_per_second_per_host: float | None = Field(None, ge=1e-4, le=1e6)  # null: no pace; usual: 1 to 50
    max_retry_after_s: float = Field(60.0, ge=0, le=1e6)  # a longer pause ends the requests to the host
    dead_after: int = Field(8, ge=0, le=10**6)  # attempts in a row without an answer; 0: a host is never dead
    dead_after_s: float = Field(10.0, ge=0, le=1e6)  # and so long without one, so that a restart is no death


class HostGone(Exception):
    """This host is not asked now. `reason` is one word for the ledger, the message says what the host did."""

    def __init__(self, reason: Literal["dead_host", "retry_later"], message: str) -> None:
        super().__init__(message)
        self.reason = reason


class _Host:
    """What is known of one host. Times are the event loop's."""

    __slots__ = (
        "asking",
        "error",
        "failing_since",
        "failures",
        "paced_until",
        "pause_s",
        "paused_until",
        "timer",
        "waiting",
    )

    def __init__(self) -> None:
        self.asking = 0  # requests that have a turn
        self.waiting: list[tuple[int, int, float, asyncio.Future]] = []  # a heap, the lowest index first
        self.paced_until = self.paused_until = 0.0
        self.pause_s = 0.0  # what the pause was when the host asked for it
        self.failures, self.error, self.failing_since = 0, "", 0.0
        self.timer: asyncio.TimerHandle | None = None


class Hosts:
    """Turns to ask hosts. One event loop; hosts do not hold each other up."""

    def __init__(self, politeness: Politeness, *, share: int = 1) -> None:
        """share: how many processes of this run ask at once, each with the same one.

        The limits are divided by it: connections to the whole number below, at least 1; the pace exactly.
        """
        if share < 1:
            raise ValueError(f"share must be at least 1, was {share}")
        self._politeness, self._share = politeness, share
        self._connections = max(1, politeness.connections_per_host // share)
        rate = politeness.requests_per_second_per_host
        self._interval_s = share / rate if rate else 0.0
        self._hosts: dict[str, _Host] = {}
        self._arrivals = itertools.count()

    def __len__(self) -> int:
        """Hosts that are remembered."""
        return len(self._hosts)

    @asynccontextmanager
    async def turn(self, host: str, index: int, *, delay_s: float = 0.0) -> AsyncIterator[None]:
        """Waits until the host may be asked: it has a free connection, and its pace and its pauses are over.

        index: the request's place in the shard; of those that wait, the lowest goes first.
        delay_s: the host's own Crawl-delay: nobody asks it for so long after this request, divided like the pace.
        Say before you leave the turn what came of it (answered, unreachable, wait): leaving it lets the next one in.
        Leave it before you sleep until a retry, and before you take another one, as a redirect to another host
        does: those who hold one turn and wait for the next could wait for each other.
        Raises HostGone if the host is dead, or has asked for a pause of more than max_retry_after_s that is not over.
        """
        ticket = asyncio.get_running_loop().create_future()
        known = self._known(host)
        heapq.heappush(known.waiting, (index, next(self._arrivals), delay_s, ticket))
        self._serve(host, known)
        try:
            gone = await ticket
        except asyncio.CancelledError:
            if not ticket.cancelled() and ticket.result() is None:  # cancelled between the grant and the waking up
                self._leave(host, known)
            raise
        if gone is not None:
            raise gone
        try:
            yield
        finally:
            self._leave(host, known)

    def wait(self, host: str, seconds: float) -> None:
        """The host has asked for a pause (429 or 503 with Retry-After): nobody asks it before that is over.

        Pauses do not add up: the one that ends last counts. Requests that have a turn go on.
        """
        known, until = self._known(host), asyncio.get_running_loop().time() + seconds
        if until > known.paused_until:
            known.paused_until, known.pause_s = until, seconds
        self._serve(host, known)

    def answered(self, host: str) -> None:
        """The host has answered, whatever it was: its failures are forgotten, and a dead one lives again."""
        known = self._hosts.get(host)
        if known is not None:
            known.failures, known.error = 0, ""
            self._serve(host, known)

    def unreachable(self, host: str, error: str) -> None:
        """An attempt ended without an answer. dead_after of them in a row, over dead_after_s, end all that wait."""
        known = self._known(host)
        if not known.failures:
            known.failing_since = asyncio.get_running_loop().time()
        known.failures, known.error = known.failures + 1, error
        self._serve(host, known)

    def _known(self, host: str) -> _Host:
        known = self._hosts.get(host)
        if known is None:
            known = self._hosts[host] = _Host()
        return known

    def _leave(self, host: str, known: _Host) -> None:
        known.asking -= 1
        self._serve(host, known)

    def _wake(self, host: str, known: _Host) -> None:
        known.timer = None
        self._serve(host, known)

    def _serve(self, host: str, known: _Host) -> None:
        """Gives the turns that may be given now; after it, a timer is set or the host forgotten if it is to be."""
        loop = asyncio.get_running_loop()
        now, waiting = loop.time(), known.waiting
        if waiting and self._gone(host, known, now):
            known.waiting = []
            for *_, ticket in waiting:
                if not ticket.done():
                    ticket.set_result(self._gone(host, known, now))
        while known.waiting and known.asking < self._connections and now >= _ready_at(known):
            *_, delay_s, ticket = heapq.heappop(known.waiting)
            if not ticket.done():
                known.asking += 1
                known.paced_until = now + max(self._interval_s, delay_s * self._share)
                ticket.set_result(None)
        if now < _ready_at(known):
            if known.timer is None:  # an earlier one is set again when it fires
                known.timer = loop.call_at(_ready_at(known), self._wake, host, known)
        elif not (known.asking or known.waiting or known.failures):
            if known.timer is not None:
                known.timer.cancel()
            del self._hosts[host]

    def _gone(self, host: str, known: _Host, now: float) -> HostGone | None:
        """Why nobody asks this host now; None if it may be asked, at once or later."""
        dead_after, max_pause_s = self._politeness.dead_after, self._politeness.max_retry_after_s
        silent_s = now - known.failing_since
        if 0 < dead_after <= known.failures and silent_s >= self._politeness.dead_after_s:
            tried = f"gave none in {known.failures} and {silent_s:.0f} s, the last error: {known.error}"
            return HostGone("dead_host", f"{host} must answer within {dead_after} attempts, {tried}")
        if known.pause_s > max_pause_s and now < known.paused_until:
            asked = f"must be at most max_retry_after_s = {max_pause_s:g} s, was {known.pause_s:g} s"
            return HostGone("retry_later", f"the pause that {host} asked for {asked}")
        return None


def _ready_at(known: _Host) -> float:
    return max(known.paced_until, known.paused_until)
