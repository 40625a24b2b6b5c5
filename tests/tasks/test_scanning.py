"""Scanning against plain Python, on small shards; pages of what is found join up."""

import time

import numpy as np
import pyarrow as pa
import pytest

from lvd.infra.committing import commit
from lvd.infra.shards import StageDir
from lvd.infra.writing import write_shard
from lvd.tasks import scanning
from lvd.tasks.scanning import Columns, among, equal, every, holds, scan

SCHEMA = pa.schema(
    [("key", pa.string()), ("image_id", pa.string()), ("state", pa.string()), ("lists", pa.list_(pa.string()))]
)
KEYS = {
    "http://Example.org/a.jpg": "00aabbccddeeff0011223344556677",
    "https://example.org:8080/b.jpg": None,
    "https://sub.example.org/c%20d.jpg": "11aabbccddeeff0011223344556677",
    "http://user:pw@example.org/e.jpg": "22aabbccddeeff0011223344556677",
    "http://notexample.org/f.jpg": "33aabbccddeeff0011223344556677",
    "http://other.net/example.org/g.jpg": "44aabbccddeeff0011223344556677",
    "http://example.org.evil.net/h.jpg": "55aabbccddeeff0011223344556677",
    "00000.tar/é (1)+[x].jpg": "66aabbccddeeff0011223344556677",
    "00aabbccdd.jpg": "77aabbccddeeff0011223344556677",
}
MINE = {"http://Example.org/a.jpg", "https://example.org:8080/b.jpg", "https://sub.example.org/c%20d.jpg"}


@pytest.fixture(scope="module")
def columns(tmp_path_factory: pytest.TempPathFactory) -> Columns:
    """Four shards, one of them empty; the states are in turn, and lists are null, empty or of one and two."""
    target = StageDir(root=str(tmp_path_factory.mktemp("scan")), stage="rows", fingerprint="x")
    rows = [{"key": key, "image_id": image_id} for key, image_id in KEYS.items()]
    for number, row in enumerate(rows):
        row["state"] = ("kept", "dropped", None)[number % 3]
        row["lists"] = (None, [], ["birds"], ["birds", "planes"])[number % 4]
    parts = [rows[:4], [], rows[4:5], rows[5:]]
    for ref, part in zip(target.planned(4), parts, strict=True):
        with write_shard(ref, SCHEMA, {}) as shard:
            for row in part:
                shard.keep(row)
    commit(target, 4, config={}, inputs={})
    return Columns(target.shards(), SCHEMA.names)


def keys(columns: Columns, condition, **options) -> list[str]:
    return [row["key"] for row in scan(columns, condition, **options).rows]


@pytest.mark.parametrize(
    ("match", "text", "found"),
    [
        (
            "domain",
            "example.org",
            MINE | {"http://user:pw@example.org/e.jpg"},
        ),  # no look-alike, no path, no longer name
        ("domain", ".EXAMPLE.org.", MINE | {"http://user:pw@example.org/e.jpg"}),
        ("domain", "sub.example.org", {"https://sub.example.org/c%20d.jpg"}),
        ("domain", "", set()),
        ("contains", "EXAMPLE.ORG/A", {"http://Example.org/a.jpg"}),
        ("contains", "É (1)+[X]", {"00000.tar/é (1)+[x].jpg"}),  # nothing in it is a pattern
        ("contains", ".*", set()),
        ("contains", "00aabbccdd", {"00aabbccdd.jpg", "http://Example.org/a.jpg"}),  # a key, and the start of an id
        ("contains", "aabbccddee", set()),  # ids are found by how they begin
        (
            "begins",
            "example.org",
            {"http://Example.org/a.jpg", "https://example.org:8080/b.jpg"} | {"http://example.org.evil.net/h.jpg"},
        ),
        ("begins", "https://", {"https://example.org:8080/b.jpg", "https://sub.example.org/c%20d.jpg"}),
        ("begins", "00000.tar/é (1)+[", {"00000.tar/é (1)+[x].jpg"}),
        ("exactly", "http://Example.org/a.jpg", {"http://Example.org/a.jpg"}),
        ("exactly", "http://example.org/a.jpg", set()),
        ("exactly", "66AABBCCDDEEFF0011223344556677", {"00000.tar/é (1)+[x].jpg"}),
    ],
)
def test_ways_to_search(columns: Columns, match: str, text: str, found: set[str]) -> None:
    assert set(keys(columns, scanning.MATCHES[match](text))) == found


def test_a_domain_is_that_of_the_url_where_one_is_known() -> None:
    names, urls = ["a.tar/1.jpg", "http://own.org/2.jpg", "a.tar/3.jpg"], ["http://img.own.org/1.jpg", None, None]
    table = pa.table({"key": names, "url": urls, "image_id": ["", "", ""]})
    assert scanning.holding(scanning.of_domain("own.org"), table).tolist() == [0, 1]
    assert scanning.holding(scanning.of_domain("own.org"), table.drop(["url"])).tolist() == [1]


@pytest.mark.parametrize("held_bytes", [0, 300, 1 << 20])  # nothing is held, one shard is, everything is
def test_the_rows_of_an_image(columns: Columns, held_bytes: int) -> None:
    mine = Columns(columns.refs, columns.names, held_bytes)
    for place, (key, image_id) in enumerate(KEYS.items()):
        found = [(row["position"], row["key"]) for row in mine.of_id(image_id)] if image_id else []
        assert found == ([(place, key)] if image_id else [])
    assert mine.of_id("0" * 32) == []


def test_conditions_together(columns: Columns) -> None:
    names = list(KEYS)
    assert keys(columns, None) == names
    assert keys(columns, every([])) == names
    assert keys(columns, equal("state", "dropped")) == names[1::3]
    assert keys(columns, every([scanning.contains("example.org"), equal("state", "kept")])) == [
        names[0],
        names[3],
        names[6],
    ]
    assert keys(columns, holds("lists", "planes")) == names[3::4]
    assert keys(columns, holds("lists", "birds")) == [n for i, n in enumerate(names) if i % 4 > 1]
    assert keys(columns, among("key", {names[2], "none"})) == [names[2]]
    assert keys(columns, among("key", set())) == []


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
@pytest.mark.parametrize("held_bytes", [0, 1 << 20])  # nothing is held, everything is
def test_pages_join_up(columns: Columns, limit: int, held_bytes: int) -> None:
    mine, found, start = Columns(columns.refs, columns.names, held_bytes), [], 0
    while start is not None:
        part = scan(mine, equal("state", "kept"), start=start, limit=limit)
        assert (len(part.rows) == limit) or part.next is None
        assert part.is_whole == (start == 0)
        found += part.rows
        start = part.next
    assert [row["position"] for row in found] == [0, 3, 6]
    assert [row["key"] for row in found] == list(KEYS)[::3]


def test_a_scan_stops_after_its_time_and_goes_on_where_it_was(columns: Columns) -> None:
    found, start, pages = [], 0, 0
    while start is not None:
        part = scan(columns, scanning.contains("evil"), start=start, seconds=0)
        found, start, pages = found + part.rows, part.next, pages + 1
        assert part.looked < part.total
    assert [row["key"] for row in found] == ["http://example.org.evil.net/h.jpg"]
    assert pages == 3  # one for each shard that has rows


def test_the_first_question_of_a_process_has_its_time_as_well(columns: Columns) -> None:
    slow = iter([0.5, 0, 0])  # as what is compared with is imported first

    def condition(table: pa.Table) -> pa.Array:
        time.sleep(next(slow))
        return scanning.equal("state", "kept")(table)

    assert scan(columns, condition, seconds=0.4).is_whole


def test_what_is_beyond_the_end_is_nothing(columns: Columns) -> None:
    for start in (len(KEYS), 10**12):
        found = scan(columns, None, start=start)
        assert (found.rows, found.next, found.looked) == ([], None, 0)


def test_a_place_is_a_shard_and_a_row(columns: Columns) -> None:
    assert [columns.shard_of(position) for position in (0, 3, 4, 5, 8)] == [(0, 0), (0, 3), (2, 0), (3, 0), (3, 3)]
    assert np.array_equal(columns.starts, [0, 4, 4, 5, 9])
