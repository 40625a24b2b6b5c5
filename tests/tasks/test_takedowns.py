"""Records of takedowns: one spelling, hashes only, and which rows they mean."""

import hashlib

import pyarrow as pa
import pytest

from lvd.infra.errors import InputError
from lvd.infra.storage import Storage
from lvd.tasks import takedowns
from lvd.tasks.takedowns import Record, Takedowns, alias_of, domain_digest, domain_name, url_digest

DAY = "2026-03-01T10:00:00Z"


def rows(*rows: dict) -> pa.Table:
    names = {"image_id": None, "key": None, "url": None}
    return pa.Table.from_pylist([names | row for row in rows], pa.schema([(name, pa.string()) for name in names]))


@pytest.mark.parametrize(
    "spelling",
    ["HTTPS://Example.org:443/a%7Eb.jpg", "https://example.org/a~b.jpg#top", "https://example.org/x/../a~b.jpg"],
)
def test_a_url_has_one_hash_in_all_its_spellings(spelling: str) -> None:
    assert url_digest(spelling) == hashlib.sha256(b"https://example.org/a~b.jpg").hexdigest()
    assert url_digest(alias_of(spelling)) == url_digest(spelling)  # also once only the hash is left of it


def test_a_source_path_is_taken_as_it_stands() -> None:
    assert url_digest("photos/A.jpg") == hashlib.sha256(b"photos/A.jpg").hexdigest() != url_digest("photos/a.jpg")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Example.ORG.", "example.org"),
        ("www.example.org", "example.org"),
        ("*.example.org", "example.org"),
        ("bücher.example", "xn--bcher-kva.example"),
    ],
)
def test_a_domain_in_one_spelling(text: str, name: str) -> None:
    assert domain_name(text) == name


@pytest.mark.parametrize("text", ["", "example", "https://example.org", "example.org/a", "a b.org", "." * 5, "-a.org"])
def test_what_is_no_domain_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="domain must be a name such as"):
        domain_name(text)


def test_which_rows_are_meant_and_why() -> None:
    record = Record(
        date=DAY,
        urls=(url_digest("https://a.org/1.jpg"),),
        domains=(domain_digest("b.org"),),
        image_ids=("1" * 32,),
        images=("2" * 32,),
        found=("3" * 32,),
    )
    table = rows(
        {"key": "https://A.org/1.jpg"},
        {"key": "tar/1.jpg", "url": "https://a.org/1.jpg"},
        {"key": "https://b.org/x.jpg"},
        {"key": "tar/2.jpg", "url": "http://deep.img.b.org:8080/x.jpg"},
        {"key": "https://notb.org/x.jpg"},
        {"key": "https://a.org/b.org"},
        {"key": "k", "image_id": "1" * 32},
        {"key": "k", "image_id": "2" * 32},
        {"key": "k", "image_id": "3" * 32},
        {"key": "k", "image_id": "4" * 32},
        {"key": "https://b.org/y.jpg", "image_id": "3" * 32},  # known by its content: takes its copies with it
        {"key": alias_of("https://c.org/z.jpg")},  # a row that was erased for a domain: its name is gone
        {"key": "forgotten:no hash"},
    )
    found = [*["asked"] * 2, *["domain"] * 2, None, None, "asked", "asked", "found", None, "found", "domain", None]
    assert Takedowns([record]).kinds(table).tolist() == found
    assert Takedowns([record]).kinds(table.select(["key"])).tolist()[:4] == ["asked", None, "domain", None]


def test_a_record_is_found_by_whatever_it_means() -> None:
    old, new = (Record(date=date, urls=(url_digest("https://a.org/1.jpg"),)) for date in ("2026-01-01", "2026-02-01"))
    known = Takedowns([new, old])
    assert known.record_of(None, "https://a.org/1.jpg#x") is old  # the first that asked for it
    assert known.record_of("0" * 32, "https://a.org/2.jpg") is None
    assert known.record_of(None, None) is None


def test_records_are_read_as_they_were_written_and_told_by_their_content(local_root: str) -> None:
    storage = Storage(local_root)
    assert not Takedowns.read(storage)
    record = Record(date=DAY, image_ids=("1" * 32,), by="a", reason="b")
    takedowns.write_record(storage, record)
    (name,) = takedowns.record_names(storage)
    assert name.startswith("forgotten/20260301T100000Z-") and takedowns.read_record(storage, name) == record
    once = Takedowns.read(storage)
    takedowns.write_record(storage, record.model_copy(update={"date": "2026-04-01T00:00:00Z", "by": None}))
    assert Takedowns.read(storage).digest == once.digest  # asked for again: nothing else is asked for
    takedowns.write_record(storage, record.model_copy(update={"found": ("2" * 32,)}))
    assert Takedowns.read(storage).digest != once.digest
    storage.write_bytes("forgotten/x.json", b"{}")
    with pytest.raises(
        InputError, match="must be a record that `lvd forget` wrote, was changed: put it back or remove"
    ):
        Takedowns.read(storage)
