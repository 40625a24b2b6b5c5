"""The place of an export: whose it is, what of it is whole, and what may not go there any more."""

import shutil
from pathlib import Path

import pytest

from lvd.flows import exporting
from lvd.flows.export_asked import ask, asked_config, compute_of, version_at
from lvd.flows.export_place import WORK, claim, is_finished
from lvd.flows.export_records import record, records, without_user
from lvd.infra.errors import InputError
from lvd.infra.shards import StageDir
from lvd.infra.storage import Storage
from lvd.tasks import export as export_stage
from lvd.tests import versions_planted
from lvd.tests.exports import exported_here

KINDS = ("webdataset", "imagefolder", "parquet")
TOTAL = sum(versions_planted.SHARDS)


def test_what_cannot_be_exported_is_refused_in_one_line(local_root: str, tmp_path: Path) -> None:
    versions_planted.published(local_root)
    config = export_stage.Config(kind="parquet")
    exported_here(local_root, str(tmp_path / "out"), config)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    (tmp_path / "file").write_text("a file")
    other = config.model_copy(update={"seed": 1})
    for out, asked, said in (
        ("out", other, r"holds another \(parquet of v1, shuffled with seed 0\)"),
        ("out", config.model_copy(update={"kind": "webdataset"}), "holds another"),
        ("full", config, "has 'notes.txt'"),
        ("file", config, "--out must"),
        ("root/exports", config, "outside of the root"),
        ("", config, "outside of the root"),
    ):
        with pytest.raises(InputError, match=said) as error:
            exported_here(local_root, str(tmp_path / out), asked)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"--version must be one of v1 or latest, was 'v7'"):
        version_at(local_root, "v7")
    assert {version_at(local_root, name).fingerprint for name in (None, "1", "v1", "latest")} == {"v1"}
    with pytest.raises(InputError, match="must hold a published version"):
        version_at(str(tmp_path / "none"), None)
    with pytest.raises(InputError, match="--columns must name columns"):
        ask(local_root, str(tmp_path / "new"), asked_config(kind="parquet", columns="key, colour"), None)
    with pytest.raises(InputError, match=r"--to: .*'webdataset', 'imagefolder' or 'parquet'.*was 'zip'"):
        asked_config(kind="zip")
    with pytest.raises(InputError, match="must be of compute"):
        compute_of(("copies.min_similarity=0.5",))
    assert compute_of(("compute.cpu_workers=2",)) == {"cpu_workers": 2}


def test_the_root_knows_its_exports_and_no_password(local_root: str) -> None:
    dataset = StageDir(root=local_root, stage="curated", fingerprint="v1")
    said = {"kind": "parquet", "identity": "a"}
    record(dataset, "ftp://me:secret@host/folder", said)
    (begun,) = records(local_root)
    assert begun["out"] == "ftp://host/folder" and begun["finished_at"] is None
    record(dataset, "ftp://me:secret@host/folder", said, is_finished=True)
    record(dataset, "s3://bucket/folder", said)
    finished, other = sorted(records(local_root), key=lambda one: one["out"])
    assert finished["begun_at"] == begun["begun_at"] and finished["finished_at"] and not other["finished_at"]
    assert without_user("C:/me@home") == "C:/me@home"


def test_of_two_exports_to_one_place_one_claims_it(local_root: str, tmp_path: Path) -> None:
    versions_planted.published(local_root)
    asked = [ask(local_root, str(tmp_path / "out"), export_stage.Config(kind="parquet", seed=n), None) for n in (1, 2)]
    storage, work = Storage(asked[0].out), Storage(f"{asked[0].out}/{WORK}")
    assert not any([is_finished(one, storage) for one in asked])  # both have looked
    claim(asked[0], storage, work)
    with pytest.raises(InputError, match=r"holds another \(parquet of v1, shuffled with seed 1\)"):
        claim(asked[1], storage, work)
    claim(asked[0], storage, work)
    assert not is_finished(asked[0], storage)
    assert [one["seed"] for one in records(local_root)] == [1]


def test_a_takedown_while_an_export_is_under_way_ends_it(local_root: str, tmp_path: Path) -> None:
    versions_planted.published(local_root)
    asked = ask(local_root, str(tmp_path / "out"), export_stage.Config(kind="parquet"), None)
    planted = StageDir(root=local_root, stage="curated", fingerprint="v1")
    versions_planted.published(local_root, shards=(7, 0, 11, 5))  # as `forget --now` leaves it
    with pytest.raises(InputError, match="images were taken down from it: remove what is at"):
        exporting.finish(asked, Storage(asked.out), planted)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_with_a_file_cut_short_is_not_taken_for_whole(local_root: str, tmp_path: Path, kind: str) -> None:
    versions_planted.published(local_root)
    config, out = export_stage.Config(kind=kind, shard_images=9), tmp_path / "out"
    exported_here(local_root, str(out), config)
    cut = max((path for path in out.rglob("*") if path.suffix in (".tar", ".parquet", ".png")), key=str)
    (out / "notes.txt").write_text("mine")
    assert exported_here(local_root, str(out), config) == {}
    cut.write_bytes(cut.read_bytes()[:-1])
    with pytest.raises(InputError, match="is gone or cut short: remove what is there"):
        exported_here(local_root, str(out), config)


def test_the_root_knows_of_a_place_what_is_there_now(local_root: str, tmp_path: Path) -> None:
    versions_planted.published(local_root)
    out = str(tmp_path / "out")
    for seed in range(2):
        exported_here(local_root, out, export_stage.Config(kind="parquet", seed=seed))
        shutil.rmtree(out)
    assert [(one["out"], one["seed"]) for one in records(local_root)] == [(out, 1)]


def test_no_message_has_the_password_of_a_place(local_root: str) -> None:
    versions_planted.published(local_root)
    config = export_stage.Config(kind="parquet")
    asked = ask(local_root, "memory://me:secret@host/x", config, None)
    Storage(asked.out).write_bytes("notes.txt", b"mine")
    with pytest.raises(InputError, match=r"notes\.txt") as error:
        is_finished(asked, Storage(asked.out))
    assert "secret" not in str(error.value)
