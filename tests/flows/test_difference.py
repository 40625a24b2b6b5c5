"""What two versions differ in: what came, what went and why, what changed; shards of both are not read."""

import json

import pytest

from lvd.flows import difference as room
from lvd.flows.difference import Balance, difference
from lvd.infra.committing import commit
from lvd.infra.errors import InputError
from lvd.infra.shards import StageDir
from lvd.infra.writing import write_shard
from lvd.tasks.own_vectors import CHOSEN
from lvd.tests.flows.shelf import Shelf, image_id, lost, published
from lvd.tests.flows.test_cli import lvd

BIRDS, BOTH = ["birds"], ["birds", "cars"]


@pytest.fixture
def shelf(local_root: str) -> Shelf:
    return versions(local_root)


def versions(root: str) -> Shelf:
    """A root with two versions: the second one has a shard of the first again, and one with other images."""
    shelf = Shelf(root)
    shared = shelf.shard("shared", *(published(f"x.org/{n}") for n in range(4)))
    names = ("gone.org/dropped", "gone.org/failed", "gone.org/other", "gone.org/absent", "x.org/stays", "x.org/moves")
    old = shelf.shard("old", *map(published, names), published("folder.jpg", role="curated", retrieved_for=[]))
    before = [
        lost("new.org/was-dropped", "retrieve", "not_retrieved"),
        lost("new.org/again", "copies", "exact_duplicate", image_id=image_id("new.org/was-dropped")),
        lost("new.org/was-failed", "download", "http_503"),
    ]
    shelf.version(1, [shared, old], *before)
    rows = [
        published("x.org/stays"),
        published("x.org/moves", retrieved_for=BOTH, similarity=0.5),
        published("new.org/was-dropped", retrieved_for=BOTH),
        published("new.org/was-failed"),
        published("new.org/fresh", role="survivor", retrieved_for=[]),
    ]
    new = shelf.shard("new", *rows)
    after = [
        lost("gone.org/again", "fingerprint", "exact_duplicate", image_id=image_id("gone.org/dropped")),
        lost("gone.org/dropped", "copies", "benchmark_copy", because_of=image_id("test")),
        lost("gone.org/failed", "download", "http_404"),
        lost("gone.org/other", "retrieve", "not_retrieved", image_id=image_id("other bytes")),
        lost("folder.jpg", "retrieve", "not_retrieved", source="another", image_id=image_id("another's")),
    ]
    shelf.version(2, [shared, new], *after)
    return shelf


def test_what_came_and_what_went_is_told_with_the_reason(root: str) -> None:
    shelf = versions(root)
    found = difference(shelf.root, "v1", "latest", all_images=True)
    assert (found.older, found.newer, found.images, found.kept, found.changed) == ("v1", "v2", (11, 9), 6, 1)
    went = {image.key: image for image in found.removed_images}
    assert {key: image.fate.words for key, image in went.items()} == {
        "gone.org/dropped": "dropped at copies: benchmark_copy",  # not the candidate that only repeats its bytes
        "gone.org/failed": "failed at download: http_404",  # by its name: nobody knows its bytes
        "gone.org/other": "other bytes under its name",
        "gone.org/absent": "no candidate",
        "folder.jpg": "no candidate",  # the one of that name is of another source
    }
    assert went["gone.org/dropped"].fate.because_of == image_id("test")
    assert went["gone.org/other"].fate.because_of == image_id("other bytes")
    came = {image.key: image for image in found.added_images}
    assert {key: image.fate.words for key, image in came.items()} == {
        "new.org/was-dropped": "dropped at retrieve: not_retrieved",
        "new.org/was-failed": "failed at download: http_503",
        "new.org/fresh": "no candidate",
    }
    assert came["new.org/was-dropped"].domain == "new.org" and went["folder.jpg"].domain is None
    assert [(image.key, image.columns) for image in found.changed_images] == [
        ("x.org/moves", ("retrieved_for", "similarity"))
    ]


def test_it_is_counted_by_reason_role_collection_and_domain(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "Moved", None)  # of a million images nothing is made one by one unless they are listed
    found = difference(shelf.root, "1", "2")
    assert (found.added_images, found.removed_images, found.changed_images) == ((), (), ())
    assert [(group.why, group.images) for group in found.removed] == [
        ("no candidate", 2),
        ("dropped at copies: benchmark_copy", 1),
        ("failed at download: http_404", 1),
        ("other bytes under its name", 1),
    ]
    assert found.removed[0].examples == ("gone.org/absent", "folder.jpg")
    assert found.columns == {"retrieved_for": 1, "similarity": 1}
    assert found.roles == (
        Balance(name="retrieved", added=2, removed=4),
        Balance(name="curated", added=0, removed=1),
        Balance(name="survivor", added=1, removed=0),
    )
    assert found.collections == (
        Balance(name="birds", added=2, removed=4),
        Balance(name="cars", added=1, removed=0),
    )
    assert found.sources == (Balance(name="web", added=3, removed=5),)
    assert found.domains == (Balance(name="gone.org", added=0, removed=4), Balance(name="new.org", added=3, removed=0))


def test_shards_of_both_are_not_read(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    read, shared = [], set(StageDir(root=shelf.root, stage="curated", fingerprint="v1").shards()[:1])
    plain = room.read_table
    monkeypatch.setattr(room, "read_table", lambda ref, *rest: (read.append(ref.name()), plain(ref, *rest))[1])
    found = difference(shelf.root, "v1", "v2")
    assert found.shards == (1, 1, 1)
    assert read and not {ref.name() for ref in shared} & set(read)


def test_backwards_what_came_goes(shelf: Shelf) -> None:
    found = difference(shelf.root, "v2", "v1")
    assert (found.added[0].why, found.added[0].images) == ("no candidate", 2)
    assert (sum(g.images for g in found.added), sum(g.images for g in found.removed)) == (5, 3)


def test_a_version_beside_itself(shelf: Shelf) -> None:
    found = difference(shelf.root, "v2", "v2")
    assert (found.kept, found.changed, found.added, found.removed, found.shards) == (9, 0, (), (), (2, 0, 0))


def test_versions_that_share_nothing(local_root: str) -> None:
    shelf = Shelf(local_root)
    shelf.version(1, [shelf.shard("none")])
    shelf.version(2, [shelf.shard("some", published("x.org/1"))])
    found = difference(local_root, "v1", "v2")
    assert [(group.why, group.images) for group in found.added] == [("no candidate", 1)]
    assert difference(local_root, "v2", "v1").kept == 0


def test_versions_of_a_run_over_vectors(local_root: str) -> None:
    """They have shards of their own, and names in the place of keys."""
    shelf = Shelf(local_root)
    for number, names in ((1, "abc"), (2, "bcd")):
        dataset = shelf.version(number, [shelf.shard(f"none {number}")])
        with write_shard(dataset.planned(1)[0], CHOSEN, {}) as shard:
            for row, name in enumerate(names):
                own = {"role": "retrieved", "retrieved_for": [], "query_id": "q" if name == "c" else str(number)}
                shard.keep({"row": row + number, "image_id": name, **own})
        commit(dataset, 1, config={}, inputs={})
    found = difference(local_root, "v1", "v2", all_images=True)
    assert ([one.key for one in found.added_images], [one.key for one in found.removed_images]) == (["d"], ["a"])
    assert [(one.key, one.columns) for one in found.changed_images] == [("b", ("query_id",))]


@pytest.mark.parametrize("name", ["v3", "", "newest"])
def test_a_version_that_is_not_there(shelf: Shelf, name: str) -> None:
    with pytest.raises(InputError, match=r"^V2 must be a version of the root, one of v1, v2 or latest, was "):
        difference(shelf.root, "v1", name)


def test_a_root_without_versions(local_root: str) -> None:
    with pytest.raises(InputError, match="root must hold a published version"):
        difference(local_root, "v1", "v2")


def test_other_versions_are_not_read(shelf: Shelf) -> None:
    shelf.version(3, [shelf.shard("third", published("x.org/3"))], is_latest=False)
    shelf.storage.write_bytes(shelf.run_name(3), b"{")
    shelf.storage.write_bytes("curated/v3/stage.json", b"{")
    assert difference(shelf.root, "v1", "latest").newer == "v2"


def test_it_is_shown(shelf: Shelf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = lvd(monkeypatch, capsys, "diff", "v1", "v2", "--root", shelf.root)
    assert code == 0
    for words in ("v1 → v2", "11 → 9 images: 3 added, 5 removed, 6 in both, of which 1 changed", "1 shared"):
        assert words in out
    assert "failed at download: http_404" in out and "gone.org/failed" in out
    code, out, _ = lvd(monkeypatch, capsys, "diff", "v1", "v2", "--root", shelf.root, "--json")
    assert {image["key"] for image in json.loads(out)["added_images"]} == {
        *("new.org/was-dropped", "new.org/was-failed", "new.org/fresh")
    }
    code, out, _ = lvd(monkeypatch, capsys, "versions", "--root", shelf.root)
    assert [line.split() for line in out.splitlines()[2:4]] == [
        ["v1", "2026-01-01", "00:00", "UTC", "11", "14", "2", "0"],
        ["v2", "2026-01-02", "00:00", "UTC", "9", "14", "2", "1", "latest"],
    ]
