import asyncio
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from pydantic import ValidationError

from lvd.tasks.download import Config, Window, file_name, pause_s, retry_after_s


def test_the_window_holds_back_every_row_but_the_first():
    async def drained():
        window, order = Window(max_bytes=10), []

        async def row(index):
            await window.room(index)
            order.append(index)

        window.hold(0, 11)
        rows = [asyncio.create_task(row(index)) for index in (3, 1, 0)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert order == [0]
        window.written(0)
        await asyncio.gather(*rows)
        return order

    assert asyncio.run(drained()) == [0, 3, 1]


def test_pauses_double_and_are_the_same_for_the_same_url():
    pauses = [[pause_s(f"http://a.org/{i}", attempt, backoff_s=0.5) for i in range(200)] for attempt in range(3)]
    for attempt, found in enumerate(pauses):
        assert all(0.25 * 2**attempt <= pause < 0.75 * 2**attempt for pause in found)
        assert len(set(found)) == 200
    assert pauses[0] == [pause_s(f"http://a.org/{i}", 0, backoff_s=0.5) for i in range(200)]
    assert pause_s("http://a.org/", 0, backoff_s=0.5, retry_after_s=7) == 7
    assert pause_s("http://a.org/", 0, backoff_s=0.5, retry_after_s=3600) == 30


def test_retry_after_is_read_as_seconds_or_as_a_date():
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    assert 15 < retry_after_s(soon) <= 20
    past = format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True)
    cases = {"7": 7, None: 0, "": 0, "-5": 0, past: 0, "soon": 0, "1.5e400": 0, "Mon, 99 Foo 2026": 0, "9" * 5000: 0}
    assert {header: retry_after_s(header) for header in cases} == cases


def test_the_file_name_is_the_last_part_of_the_path():
    url = {"key": "x", "location": None}
    assert file_name({**url, "url": "http://a.org/b/c%20d.jpg?e=/f.png#g"}) == "c d.jpg"
    assert file_name({**url, "url": "http://a.org"}) == ""
    assert file_name({"key": "0.tar/a/b.jpg", "location": "{}", "url": "http://a.org/c.jpg"}) == "b.jpg"


def test_a_configuration_out_of_range_is_refused():
    wrong = ({"connections": 0}, {"retries": -1}, {"timeout_s": 0}, {"user_agent": "a\r\nb"}, {"typo": 1})
    for options in wrong:
        with pytest.raises(ValidationError):
            Config(**options)
