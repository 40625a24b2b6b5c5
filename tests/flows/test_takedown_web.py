"""A picture of the miniature web and its copies, taken down by an address: erased from lists, rejects and versions."""

import shutil
from pathlib import Path

import pytest

from lvd.flows import takedown
from lvd.flows.inquiry import fates_of
from lvd.flows.shelf import Shelf
from lvd.flows.takedown import Asked
from lvd.infra.shards import StageDir, read_table
from lvd.infra.storage import Storage
from lvd.tasks.scanning import MATCHES, scan
from lvd.tasks.takedowns import alias_of
from lvd.tests.miniature import Miniature
from lvd.tests.running import Curated


@pytest.fixture
def root(curated: Curated, tmp_path: Path) -> str:
    shutil.copytree(curated.root, tmp_path / "root")
    return str(tmp_path / "root")


def stored(root: str) -> dict[str, bytes]:
    """Key → bytes of every stored image."""
    directories = [StageDir(root=root, stage="download", fingerprint=name) for name in Storage(root).names("download")]
    tables = (read_table(ref, ["key", "image"]) for directory in directories for ref in directory.shards())
    return {row["key"]: row["image"]["bytes"] for table in tables for row in table.to_pylist()}


def test_by_an_address_with_all_copies_out_of_everything(curated: Curated, root: str) -> None:
    answers = Miniature.load(curated.folder).answers
    groups = [
        [a for a in answers if a.group == one] for one in sorted({a.group for a in answers if a.kind == "near_copy"})
    ]
    group = next(g for g in groups if sum(a.key.startswith("http") for a in g) > 4)
    url = next(a.key for a in group if a.key.startswith("http"))
    data = {key: value for key, value in stored(root).items() if key in {a.key for a in group}}
    places = {
        path.relative_to(root).parts[0] for path in Path(root).rglob("*.arrow") if url.encode() in path.read_bytes()
    }
    assert places >= {"links", "crawl", "download", "curated"}

    taken = takedown.forget(root, Asked(urls=(url,)), now=True, reason="it is mine")
    (counted,) = taken.counts
    assert counted.images >= len(group) - 1  # a copy of a hundred may not be found
    gone = {key for key, value in stored(root).items() if not value}
    assert len(gone) == counted.images == taken.erased.images and gone <= {alias_of(key) for key in data}
    sought = [
        one
        for key, value in data.items()
        if alias_of(key) in gone
        for one in (key.encode(), value[len(value) // 2 :][:100])
    ]
    for path in (path for path in Path(root).rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert not [one for one in sought if one in content], path
    (row,) = fates_of(root, url)
    assert (row["state"], row["stage"], row["key"]) == ("dropped", "forgotten", alias_of(url))


def test_an_address_that_gave_no_image_is_erased_as_well(
    curated: Curated, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = next(a.key for a in Miniature.load(curated.folder).answers if a.transform == "http_404")
    assert fates_of(root, url)[0]["state"] == "failed"
    monkeypatch.setattr("lvd.flows.shelf.CHECK_S", 0.0)
    shelf, exactly = Shelf(root), MATCHES["exactly"](url)
    takedown.forget(root, Asked(urls=(url,)))
    assert len(scan(shelf.edition().ledger, exactly).rows) == 1
    taken = takedown.forget(root, Asked(), now=True)
    assert scan(shelf.edition().ledger, exactly).rows == []  # a server that runs meanwhile does not name it either
    assert (taken.counts, taken.erased.images, taken.erased.versions) == ((), 0, {})
    assert not [path for path in Path(root).rglob("*") if path.is_file() and url.encode() in path.read_bytes()]
    (row,) = fates_of(root, url)
    assert (row["state"], row["reason"]) == ("failed", "http_404")
