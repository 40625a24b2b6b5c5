import asyncio
import hashlib
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from pydantic import ValidationError

from lvd.tasks.backlog import Backlog, Flights
from lvd.tasks.fetching import Config, Rejected, check_digest, file_name, pause_s, retry_after_s


def test_above_the_limit_only_the_first_row_under_way_goes_on():
    async def drained():
        flights, order = Flights(max_bytes=10), []

        async def row(index):
            await flights.room(index)
            order.append(index)
            flights.landed(index)

        for index in (4, 2, 7):
            flights.hold(index, 11)
        await asyncio.gather(*(row(index) for index in (7, 4, 2)))
        return order

    assert asyncio.run(drained()) == [2, 4, 7]


def test_the_backlog_gives_back_what_was_put_from_memory_and_from_its_file(tmp_path):
    backlog = Backlog(tmp_path / "made", max_bytes=100)
    images = {index: bytes([index]) * (index * 7 % 60) for index in range(40)}
    for index in (*range(20), *range(30, 40)):
        backlog.put(index, images[index])
    assert [backlog.take(index) for index in range(10)] == [images[index] for index in range(10)]
    for index in range(20, 30):
        backlog.put(index, images[index])
    assert backlog.in_memory <= 100
    assert [backlog.take(index) for index in range(10, 40)] == [images[index] for index in range(10, 40)]
    assert backlog.in_memory == 0
    backlog.close()


def test_pauses_double_and_are_the_same_for_the_same_url():
    pauses = [[pause_s(f"http://a.org/{i}", attempt, backoff_s=0.5) for i in range(200)] for attempt in range(3)]
    for attempt, found in enumerate(pauses):
        assert all(0.25 * 2**attempt <= pause < 0.75 * 2**attempt for pause in found)
        assert len(set(found)) == 200
    assert pauses[0] == [pause_s(f"http://a.org/{i}", 0, backoff_s=0.5) for i in range(200)]


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


def test_another_image_than_the_list_names_is_rejected():
    data = b"the poisoned one"
    check_digest(data, None)
    check_digest(data, f"sha256:{hashlib.sha256(data).hexdigest()}")
    check_digest(data, f"md5:{hashlib.md5(data).hexdigest()}")
    for expected in (f"sha256:{'0' * 64}", f"md5:{'0' * 32}", "sha256:nonsense"):
        with pytest.raises(Rejected) as rejected:
            check_digest(data, expected)
        assert (rejected.value.reason, rejected.value.data) == ("wrong_digest", data)
