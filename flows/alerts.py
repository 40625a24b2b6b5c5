"""What of a run is unusual: fewer downloads than allowed, another share of drops than in the runs before."""

from itertools import pairwise
from statistics import median
from typing import Any

from pydantic import BaseModel, Field

DOWNLOADS, LEDGER = "lvd.downloads.low", "lvd.ledger.unusual"  # names of Prefect events; infra/automations.yaml
LOST = ("dropped", "failed")  # states of the ledger


class Bounds(BaseModel, frozen=True, extra="forbid"):
    """When a run tells of itself."""

    min_download_success: float = Field(0.5, ge=0, le=1)  # of the URLs asked in this run; 0 never tells
    # Of the ledger, and of what came in since the run before, beside the median of the runs before; 1 never tells.
    max_drop_share_change: float = Field(0.1, ge=0, le=1)
    runs: int = Field(7, ge=1, le=1000)  # before this one, of the same recipe; more are steadier, and slower to follow
    min_candidates: int = Field(100, ge=1)  # of fewer nothing is told


class Told(BaseModel, frozen=True):
    """What one run says of its candidates."""

    candidates: int
    ledger: dict[str, int]  # state → candidates
    asked: int = 0  # URLs, in this run
    fetched: int = 0

    @classmethod
    def of(cls, record: dict[str, Any]) -> "Told":
        """record: `runs/…json`."""
        new = record.get("downloads", {}).get("new", {})
        return cls(candidates=record["candidates"], ledger=record["ledger"], **new)

    def share(self, state: str) -> float:
        return self.ledger.get(state, 0) / self.candidates if self.candidates else 0.0

    def since(self, before: "Told") -> "Told":
        """What came in since another run; counts below 0 where what was there came to another end."""
        states = {**before.ledger, **self.ledger}
        added = {state: self.ledger.get(state, 0) - before.ledger.get(state, 0) for state in states}
        return Told(candidates=self.candidates - before.candidates, ledger=added)


class Alert(BaseModel, frozen=True):
    """Something unusual. event: a name for machines; line: one for people."""

    event: str
    line: str
    numbers: dict[str, float | int | str]


def alerts(now: Told, before: list[Told], bounds: Bounds) -> list[Alert]:
    """What is unusual about a run. before: the runs before it, the oldest first."""
    before = before[-bounds.runs - 1 :]  # one more: what the oldest that counts had added
    found = [low_downloads(now, bounds)]
    whole = unusual("the ledger", now, before[-bounds.runs :], bounds)
    added = [later.since(earlier) for earlier, later in pairwise(before)]
    usual = [one for one in added if _tells(one, bounds)]
    fresh = unusual("what is new", now.since(before[-1]), usual, bounds) if before else None
    found.append(whole or fresh)
    return [alert for alert in found if alert]


def low_downloads(now: Told, bounds: Bounds) -> Alert | None:
    """Whether too few of the URLs that were asked in this run gave an image."""
    if now.asked < bounds.min_candidates:
        return None
    success = now.fetched / now.asked
    if success >= bounds.min_download_success:
        return None
    return Alert(
        event=DOWNLOADS,
        line=f"{success:.1%} of {now.asked:,} URLs gave an image, at least {bounds.min_download_success:.1%} must: "
        "see the report's table of what asking came to",
        numbers={
            "success": round(success, 6),
            "min_download_success": bounds.min_download_success,
            "asked": now.asked,
            "fetched": now.fetched,
        },
    )


def unusual(what: str, now: Told, before: list[Told], bounds: Bounds) -> Alert | None:
    """Whether the share of a state has moved too far from the median of the runs before; of two, the one that did most.

    None if there is no run to compare with, or too few candidates.
    """
    if not before or not _tells(now, bounds):
        return None
    usual = {state: median(one.share(state) for one in before) for state in LOST}
    state = max(LOST, key=lambda name: abs(now.share(name) - usual[name]))
    share, change = now.share(state), abs(now.share(state) - usual[state])
    if change <= bounds.max_drop_share_change:
        return None
    return Alert(
        event=LEDGER,
        line=f"{share:.1%} of {what} {state}, {usual[state]:.1%} in the runs before, "
        f"{bounds.max_drop_share_change:.1%} of change are allowed: see the report's table of reasons",
        numbers={
            "of": what,
            "state": state,
            "share": round(share, 6),
            "usual_share": round(usual[state], 6),
            "change": round(change, 6),
            "max_drop_share_change": bounds.max_drop_share_change,
            "candidates": now.candidates,
            "runs_before": len(before),
        },
    )


def _tells(told: Told, bounds: Bounds) -> bool:
    """Whether there are candidates enough, and each of them in one state."""
    return told.candidates >= bounds.min_candidates and min(told.ledger.values(), default=0) >= 0
