"""From the moment on that a takedown has its record, no page of `lvd serve` shows or names what it means."""

import json

import pytest

from lvd.flows import veiling
from lvd.flows.shelf import CHECK_S
from lvd.flows.veiling import Veil, nameless, said
from lvd.infra.errors import InputError
from lvd.infra.shards import StageDir
from lvd.infra.storage import Storage
from lvd.tasks.erased_page import TAKEN_DOWN
from lvd.tasks.takedowns import Record, alias_of, domain_digest, url_digest, write_record
from lvd.tests.running import wait_until
from lvd.tests.shelved import Served, row_of, served, write_version

DAY = "2026-03-01T10:00:00Z"
BY_URL, BY_DOMAIN, BY_ID, IN_TAR = "https://a.example/u.jpg", "https://b.gone.example/d.jpg", "i.jpg", "one.tar/t.jpg"
STAYS = "https://a.example/u.jpg2"  # begins as one that goes
ROWS = [
    row_of(BY_URL, number=1, page_url="https://a.example/page", alt="the words"),
    row_of(BY_DOMAIN, number=2),
    row_of(BY_ID, number=3),
    row_of(IN_TAR, number=4, url="https://gone.example/t.jpg"),
    row_of(STAYS, number=5),
]
LOST = {**row_of("s.jpg", "copy", 6), "because_of": ROWS[2]["image_id"]}
RECORD = Record(
    date=DAY, urls=(url_digest(BY_URL),), domains=(domain_digest("gone.example"),), image_ids=(ROWS[2]["image_id"],)
)
GONE = [BY_URL, BY_DOMAIN, BY_ID, "https://a.example/page", "the words", "https://gone.example/t.jpg"]


def page_of(rows: list[dict]) -> bytes:
    figures = "".join(
        f'<figure class="pic" title="{row["key"]} · 60"><img src="data:x,{row["image_id"]}"'
        f' data-image-id="{row["image_id"]}"></figure><li>{row["key"]}</li>'
        for row in rows
    )
    lines = "".join(json.dumps([row["image_id"], row["key"], "kept"]) + ",\n" for row in rows)
    failed = json.dumps(["", "https://x.gone.example/404", "failed"])
    table = '<table><th scope="row">gone.example</th></table>'
    return f"<main>{table}{figures}</main><script>[\n{lines}{failed},\nnull]</script>".encode()


@pytest.fixture
def root(local_root: str) -> str:
    write_version(local_root, 1, [[*ROWS[:3], LOST], ROWS[3:]])
    Storage(local_root).write_bytes("curated/v1/report.html", page_of(ROWS))
    return local_root


def texts(site: Served) -> str:
    """All that the pages say, in both forms."""
    own = [f"/image/{row['image_id']}" for row in (*ROWS, LOST)]
    paths = ["/", "/ledger", "/v/1/images", *own]
    answers = [site.ask(path).text for path in [*paths, *(f"/api{path}" for path in paths[1:])]]
    return "\n".join([*answers, site.ask("/v/1/report").text])


def test_pages_and_pictures_are_veiled_at_once(root: str) -> None:
    with served(root) as site:
        before = texts(site)
        assert all(name in before for name in (*GONE, STAYS))
        assert {site.ask(f"/picture/{row['image_id']}").status for row in ROWS} == {200}
        write_record(Storage(root), RECORD)
        wait_until(
            lambda: site.ask(f"/picture/{ROWS[0]['image_id']}").status == 404, 10 * CHECK_S, "the record is seen"
        )
        after = texts(site)
        assert [site.ask(f"/picture/{row['image_id']}").status for row in ROWS] == [404] * 4 + [200]
    assert not [name for name in GONE if name in after.replace(STAYS, "")]
    assert STAYS in after and alias_of(BY_URL) in after


def test_the_report_of_the_day_is_shown_without_them(root: str) -> None:
    write_record(Storage(root), RECORD)
    with served(root) as site:
        page = site.page("/v/1/report")
    kept = ROWS[4]
    assert page.count("<figure") == 5 and page.count("data-image-id") == 1 and f"data:x,{kept['image_id']}" in page
    assert "Images were taken down after this page was written" in page and page.count(kept["key"]) == 3
    left = page.replace(kept["key"], "")
    assert not [word for word in ("gone.example", BY_URL, BY_ID, "x.gone", IN_TAR) if word in left]
    assert TAKEN_DOWN in page


def test_a_page_that_shows_none_of_them_is_as_it_was(root: str) -> None:
    storage, page = Storage(root), page_of(ROWS[4:])
    storage.write_bytes("curated/v1/report.html", page.replace(b"gone.example", b"here.example"))
    write_record(storage, RECORD)
    with served(root) as site:
        assert site.ask("/v/1/report").body == storage.read_bytes("curated/v1/report.html")


def test_what_is_in_no_record_by_itself_is_veiled_by_its_end(root: str) -> None:
    """A copy that a later crawl brought, or what was asked for by the URL that a tar tells, has a hash for its key."""
    write_record(Storage(root), RECORD)
    veil = Veil(root)
    row = {"image_id": "0" * 32, "key": alias_of("new.tar/1.jpg"), "stage": "forgotten", "because_of": None}
    assert said(veil.record_of_row(row)) == "taken down"
    assert said(veil.record_of_row({**row, "because_of": ROWS[2]["image_id"]})) == "taken down on 2026-03-01"
    assert veil.record_of_row({**row, "key": "new.tar/1.jpg", "stage": "retrieve"}) is None
    assert nameless({"key": "a", "url": "b", "width": 1}) == {"key": alias_of("a"), "url": None, "width": 1}


def test_a_version_that_has_them_is_not_given_away(root: str) -> None:
    version = StageDir(root=root, stage="curated", fingerprint="v1")
    veiling.check_without(version)
    write_record(Storage(root), RECORD)
    with pytest.raises(InputError, match="must hold no image that was taken down, v1 has 4: run the recipe again"):
        veiling.check_without(version)
