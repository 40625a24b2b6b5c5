"""What is told of as unusual, by table."""

import pytest
from pydantic import ValidationError

from lvd.flows.alerts import DOWNLOADS, LEDGER, Bounds, Told, alerts


def told(kept: int, dropped: int, failed: int = 0, **downloads: int) -> Told:
    states = {"kept": kept, "dropped": dropped, "failed": failed}
    return Told(candidates=kept + dropped + failed, ledger=states, **downloads)


USUAL = [told(400, 600), told(410, 600), told(390, 610)]
NIGHTS = [told(1000, 1000), told(1500, 1500), told(2000, 2000)]  # each added 1000, half of them dropped
CASES = {
    "the first run": (told(0, 1000), [], []),
    "as usual": (told(400, 600), USUAL, []),
    "many drops": (told(200, 800), USUAL, [LEDGER]),
    "few drops": (told(800, 200), USUAL, [LEDGER]),
    "at the bound": (told(300, 700), [told(400, 600)], []),
    "many failures": (told(400, 400, 200), USUAL, [LEDGER]),
    "too few candidates to tell": (told(0, 99), USUAL, []),
    "no candidates": (told(0, 0), USUAL, []),
    "one odd run before does not count": (told(400, 600), [*USUAL, told(0, 1000)], []),
    # all of what came in tonight went, which the ledger of all nights hardly shows
    "a bad night": (told(2000, 2400), NIGHTS, [LEDGER]),
    "a good night": (told(2200, 2200), NIGHTS, []),
    "a night that added too little": (told(2000, 2050), NIGHTS, []),
    "sources were taken away": (told(1000, 1050), NIGHTS, []),
    # images of before came to another end: what is new cannot be told apart
    "another choice": (told(1900, 2500), NIGHTS, []),
    "low downloads": (told(400, 600, asked=200, fetched=99), USUAL, [DOWNLOADS]),
    "downloads at the bound": (told(400, 600, asked=200, fetched=100), USUAL, []),
    "few downloads": (told(400, 600, asked=99, fetched=0), USUAL, []),
    "both": (told(0, 1000, asked=1000, fetched=0), USUAL, [DOWNLOADS, LEDGER]),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_told(case: str) -> None:
    now, before, events = CASES[case]
    assert [alert.event for alert in alerts(now, before, Bounds())] == events


def test_an_alert_says_its_numbers_and_its_bound() -> None:
    (downloads, ledger) = alerts(told(100, 700, 200, asked=1000, fetched=250), USUAL, Bounds())
    assert downloads.line.startswith("25.0% of 1,000 URLs gave an image, at least 50.0% must")
    assert downloads.numbers == {"success": 0.25, "min_download_success": 0.5, "asked": 1000, "fetched": 250}
    assert ledger.line.startswith("20.0% of the ledger failed, 0.0% in the runs before, 10.0% of change are allowed")
    assert ledger.numbers["of"] == "the ledger" and ledger.numbers["runs_before"] == 3
    (night,) = alerts(told(2000, 2400), NIGHTS, Bounds())
    assert night.line.startswith("100.0% of what is new dropped, 50.0% in the runs before")


def test_bounds_decide() -> None:
    now = told(0, 1000, asked=1000, fetched=0)
    assert alerts(now, USUAL, Bounds(min_download_success=0, max_drop_share_change=1)) == []
    assert alerts(now, USUAL, Bounds(min_candidates=1001)) == []
    # only the last run counts: it was as this one
    assert [a.event for a in alerts(now, [*USUAL, told(0, 1000)], Bounds(runs=1))] == [DOWNLOADS]
    with pytest.raises(ValidationError, match="min_download_succes"):
        Bounds(min_download_succes=0.5)


def test_a_record_of_before_there_were_alerts_can_be_compared_with() -> None:
    record = {"candidates": 3, "ledger": {"kept": 3}}
    assert Told.of(record) == Told(candidates=3, ledger={"kept": 3})
    record["downloads"] = {"new": {"asked": 2, "fetched": 1}, "all": {"asked": 9, "fetched": 9}}
    assert (Told.of(record).asked, Told.of(record).fetched) == (2, 1)
