"""An export of a version from which images were taken down makes room for itself, and for nothing else."""

from pathlib import Path

import pytest

from lvd.flows.erasing import Eraser
from lvd.flows.export_asked import ask
from lvd.flows.export_place import WORK, claim, is_finished
from lvd.flows.export_records import record, records
from lvd.flows.gone import Gone
from lvd.flows.outdated_exports import outdated
from lvd.infra.errors import InputError
from lvd.infra.shards import StageDir
from lvd.infra.storage import Storage
from lvd.tasks.export import Config
from lvd.tasks.takedowns import Record, Takedowns, write_record
from lvd.tests import versions_planted
from lvd.tests.exports import exported_here

KINDS = ("webdataset", "imagefolder", "parquet")


def exported(root: str, out: Path, kind: str) -> None:
    config = Config(kind=kind, shard_images=5)
    exported_here(root, str(out), config)
    asked = ask(root, str(out), config, None)
    record(asked.dataset, asked.out, asked.facts, is_finished=True)
    Storage(str(out)).remove(WORK)


def taken_down(root: str, *image_ids: str) -> None:
    """As `lvd forget` leaves it."""
    write_record(Storage(root), Record(date="2026-03-01T10:00:00Z", image_ids=image_ids))


def erased(root: str) -> None:
    """As `lvd forget --now` leaves the published shards."""
    storage = Storage(root)
    gone = Gone(storage, Takedowns.read(storage), set())
    assert Eraser(storage, gone).published(StageDir(root=root, stage="curated", fingerprint="v1"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_command_makes_it_anew_without_them(local_root: str, tmp_path: Path, kind: str) -> None:
    rows, out = versions_planted.published(local_root), tmp_path / "out"
    exported(local_root, out, kind)
    (out / "notes.txt").write_text("mine")
    assert outdated(Storage(local_root)) == ()
    gone = rows[3]
    taken_down(local_root, gone["image_id"])
    assert outdated(Storage(local_root)) == (f"{out} ({kind} of v1)",)
    with pytest.raises(InputError, match="must hold no image that was taken down, v1 has 1"):
        exported(local_root, out, kind)
    erased(local_root)
    assert outdated(Storage(local_root)) == (f"{out} ({kind} of v1)",)
    before = versions_planted.files_below(out)
    assert any(gone["image_id"] in name or gone["image_id"].encode() in data for name, data in before.items())
    exported(local_root, out, kind)
    after = versions_planted.files_below(out)
    assert not [n for n, d in after.items() if gone["image_id"] in n or gone["image_id"].encode() in d]
    assert after.pop("notes.txt") == b"mine"
    fresh = tmp_path / "fresh"
    exported(local_root, fresh, kind)
    assert after == versions_planted.files_below(fresh)  # nothing of the old one stays
    assert outdated(Storage(local_root)) == () and {one["images"] for one in records(local_root)} == {len(rows) - 1}


def test_one_that_was_under_way_begins_again_and_other_exports_stay(local_root: str, tmp_path: Path) -> None:
    rows, out, config = versions_planted.published(local_root), tmp_path / "out", Config(kind="webdataset")
    storage, work = Storage(str(out)), Storage(f"{out}/{WORK}")
    claim(ask(local_root, str(out), config, None), storage, work)
    storage.write_bytes("lvd-00009.tar", b"some of it")
    other = tmp_path / "other"
    exported(local_root, other, "parquet")
    taken_down(local_root, rows[0]["image_id"])
    erased(local_root)
    asked = ask(local_root, str(out), config, None)
    assert not is_finished(asked, storage)
    claim(asked, storage, work)
    assert "lvd-00009.tar" not in storage.names("") and work.read_json("export.json")["identity"] == asked.identity
    claim(asked, storage, work)  # again, after an end in the middle
    before = versions_planted.files_below(other)
    for changed in (Config(kind="parquet", shard_images=9), Config(kind="webdataset", shard_images=5)):
        with pytest.raises(InputError, match="must be empty or hold this export"):
            is_finished(ask(local_root, str(other), changed, None), Storage(str(other)))
    assert versions_planted.files_below(other) == before


def test_ended_while_it_makes_room_it_goes_on(local_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, out = versions_planted.published(local_root), tmp_path / "out"
    exported(local_root, out, "imagefolder")
    taken_down(local_root, rows[0]["image_id"])
    erased(local_root)
    remove = Storage.remove_files

    def half(storage: Storage, names: list[str]) -> None:
        remove(storage, names[: len(names) // 2])
        raise OSError("the end")

    def never(storage: Storage, name: str) -> None:
        raise OSError("the end")

    for method, ended in (("remove_files", half), ("remove", never)):
        with monkeypatch.context() as patch, pytest.raises((OSError, InputError), match="the end"):
            patch.setattr(Storage, method, ended)
            exported(local_root, out, "imagefolder")
    exported(local_root, out, "imagefolder")
    assert not list(out.rglob(f"*{rows[0]['image_id']}*")) and outdated(Storage(local_root)) == ()
