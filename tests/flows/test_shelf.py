"""Versions that change, come and go while they are read; small roots written by hand."""

import gc
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from lvd.flows import pages
from lvd.flows.questions import Asked
from lvd.flows.shelf import OPEN, Shelf
from lvd.infra.storage import Storage
from lvd.tasks import schemas
from lvd.tasks.scanning import Columns
from lvd.tests.answers import image_id
from lvd.tests.shelved import picture, row_of, write_version, written


def test_what_changes_in_place_is_read_anew(local_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `lvd forget --now` changes a ledger, whose rows stay as many."""
    monkeypatch.setattr("lvd.flows.shelf.CHECK_S", 0.0)
    rows = [row_of("a", number=1), row_of("secret", "copy", 2)]
    write_version(local_root, 1, [rows])
    shelf, storage = Shelf(local_root), Storage(local_root)
    before = shelf.edition()
    assert [row["key"] for row in before.rows_of(rows[1]["image_id"])] == ["secret"]
    assert shelf.edition() is before
    account = storage.read_bytes("curated/v1/ledger/stage.json")
    written(local_root, "curated/v1", "ledger", schemas.LEDGER, [[rows[0], {**rows[1], "key": "forgotten:x"}]])
    storage.write_bytes("curated/v1/ledger/stage.json", account)
    state = storage.read_json("curated/v1/ledger/state.json")
    storage.write_json("curated/v1/ledger/state.json", {**state, "_fingerprint": "another"})
    assert [row["key"] for row in shelf.edition().rows_of(rows[1]["image_id"])] == ["forgotten:x"]
    (run_id,) = shelf.runs()
    record = storage.read_json(f"runs/{run_id}.json")
    storage.write_json(f"runs/{run_id}.json", {**record, "ledger": {"kept": 0, "dropped": 2, "failed": 0}})
    assert shelf.edition().states == {"kept": 0, "dropped": 2, "failed": 0}


def test_versions_that_are_closed_are_let_go(local_root: str) -> None:
    """Whatever pictures of them are still at hand."""
    for number in range(1, OPEN + 2):
        write_version(local_root, number, [[row_of("a", number=number)]], minute=number)
    site = pages.Site(local_root)
    first = site.shelf.edition(1)
    assert site.pictures.webp(first, image_id(picture(1)))
    held = weakref.ref(first)
    del first
    for number in range(2, OPEN + 2):
        site.shelf.edition(number)
    gc.collect()
    assert held() is None


def test_many_that_come_at_once_share_what_is_read(local_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_version(local_root, 1, [[row_of(f"{n}.jpg", number=n) for n in range(20)]])
    opened: list[str] = []

    class Slow(Columns):
        def __init__(self, refs: list, names: list[str]) -> None:
            opened.append(refs[0].directory)
            time.sleep(0.1)
            super().__init__(refs, names)

    monkeypatch.setattr("lvd.flows.shelf.Columns", Slow)
    site = pages.Site(local_root)
    with ThreadPoolExecutor(20) as browser:
        asked = [browser.submit(site.pictures.webp, site.shelf.edition(), image_id(picture(n))) for n in range(20)]
        assert all(one.result() for one in asked)
    assert sorted(opened) == ["curated/v1", "curated/v1/ledger"]


def test_a_bucket_is_asked_little_for_many_versions(local_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1, 9):
        write_version(local_root, number, [[row_of("a", number=number)]], minute=number)
    listed, names = [], Storage.names

    def counted(storage: Storage, folder: str) -> list[str]:
        listed.append(folder)
        return names(storage, folder)

    monkeypatch.setattr(Storage, "names", counted)
    said = pages.overview(pages.Site(local_root), Asked({}))
    assert [version["number"] for version in said["versions"]] == list(range(8, 0, -1))
    assert listed.count("runs") <= 2, listed
