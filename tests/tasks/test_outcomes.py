"""Outcomes by domain: every candidate is counted once, and none that no server was asked for counts as an answer."""

import io
from collections import Counter

import pyarrow.parquet as pq
import pytest

from lvd.tasks import outcomes, schemas
from lvd.tests.tasks import planted

HOSTS = ("a.org", "a.org", "b.org", "b.org", "a.org", "c.org", None)


@pytest.fixture
def table(local_root):
    """Seven candidates in two shards, two of them local, three not fetched, and two that the crawl left out."""
    rows = [{"key": f"key-{n}", "domain": host, "url": f"http://{host}/{n}"} for n, host in enumerate(HOSTS)]
    rows[5]["location"] = rows[6]["location"] = "{}"
    manifest = planted.stage(
        local_root, "crawl", schemas.MANIFEST, dict(enumerate(rows)), ((4, 3),), rejects={2: "duplicate_url"}
    )
    fetched = {n: {"key": f"key-{n}", "domain": HOSTS[n]} for n in (0, 3, 5)}
    rejects = {1: "http_404", 2: "timeout", 4: "http_404", 6: "unreadable"}
    images = planted.stage(local_root, "download", schemas.IMAGES, fetched, ((4, 3),), rejects=rejects)
    return outcomes.outcomes(zip(manifest, images, strict=True))


def test_every_candidate_is_counted_once(table) -> None:
    assert table.schema.equals(outcomes.OUTCOMES)
    assert sum(table["candidates"].to_pylist()) == len(HOSTS) + 1
    assert outcomes.per_domain(table) == {
        "a.org": Counter({"http_404": 2, "fetched": 1}),
        "b.org": Counter({"fetched": 1, "timeout": 1}),
        "c.org": Counter({"fetched": 1}),
    }
    assert list(outcomes.per_domain(table)) == ["a.org", "b.org", "c.org"]


def test_only_what_a_server_was_asked_for_is_an_answer(table) -> None:
    assert outcomes.per_error(table) == [("fetched", 2, 2), ("http_404", 2, 1), ("timeout", 1, 1)]


def test_the_rarest_are_let_go_when_there_are_too_many(local_root, monkeypatch) -> None:
    monkeypatch.setattr(outcomes, "MAX_ROWS", 2)
    hosts = [f"h{n}.org" for n in range(8) for _ in range(n + 1)]
    rows = [{"key": str(i), "domain": host, "url": f"http://{host}/{i}"} for i, host in enumerate(hosts)]
    layout = ((20, 16),)
    manifest = planted.stage(local_root, "crawl", schemas.MANIFEST, rows, layout)
    images = planted.stage(local_root, "download", schemas.IMAGES, [{"key": r["key"]} for r in rows], layout)
    found = outcomes.per_domain(outcomes.outcomes(zip(manifest, images, strict=True)))
    assert list(found.items())[:1] == [("h7.org", Counter({"fetched": 8}))]
    assert len(found) <= 4


def test_the_table_is_a_parquet_file(table) -> None:
    assert pq.read_table(io.BytesIO(outcomes.parquet(table))).equals(table)
