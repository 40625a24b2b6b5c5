"""What no version needs: found without a change, removed in an order that leaves no half of anything that is taken."""

import re
from pathlib import Path

import pytest

from lvd.flows import export_records
from lvd.flows import leftovers as room
from lvd.flows.inquiry import directories
from lvd.flows.leftovers import leftovers, remove_leftovers
from lvd.flows.versions import published_versions
from lvd.infra.errors import InputError
from lvd.infra.lease import lease
from lvd.infra.shards import StageDir, read_column, unwritten
from lvd.infra.storage import Storage
from lvd.tests.flows.shelf import Shelf, published
from lvd.tests.flows.test_cli import lvd
from lvd.tests.flows.test_nights import Clustered
from lvd.tests.plain import without_prefect

ELSEWHERE = ("exporting.py", "profile.py")  # whose stages lie in places of their own


@pytest.fixture
def shelf(local_root: str) -> Shelf:
    return versions(local_root)


def versions(root: str) -> Shelf:
    """A root with three versions, of which the first two share a shard and an embedding; each has a fit of its own."""
    shelf = Shelf(root)
    both, first, second, third = (shelf.shard(name, published(f"{name}.jpg")) for name in ("both", "1", "2", "3"))
    embedded = shelf.stage("embed", "of v1 and v2")
    for number, shards in ((1, [both, first]), (2, [both, second]), (3, [third])):
        own = [shelf.stage("cluster", f"of v{number}"), shelf.stage("hash-fit", f"of v{number}")]
        shelf.version(number, shards, directories=[*own, *([embedded] if number < 3 else [])])
    return shelf


def litter(shelf: Shelf) -> set[str]:
    """What interrupted runs and other settings leave; its directories."""
    left = {
        shelf.stage("embed", "begun", is_complete=False),
        shelf.stage("unique", "of other settings"),
        shelf.stage("centroids", "of a fit that no run assigns to any more"),
        shelf.shard("of no version", published("lost.jpg")).directory,
        shelf.version(4, [shelf.shard("of no run", published("4.jpg"))], is_latest=False, ended=False).directory,
    }
    left |= {directory for directory in shelf.shards if directory not in used_shards(shelf)}
    shelf.stage("background", "of other settings")  # stays, whoever made it
    shelf.stage("centroids", "of an earlier fit that the root keeps", fitted_on=["embed/one"])
    for folder in ("forgotten", "generations", "metrics", "somebody's"):  # what is no stage's stays
        shelf.storage.write_json(f"{folder}/notes.json", [])
    shelf.storage.write_json("embed/notes.json", [])
    return left


def used_shards(shelf: Shelf) -> set[str]:
    return {ref.directory for v in published_versions(shelf.root) for ref in v.dataset(shelf.root).shards()}


def files(shelf: Shelf) -> dict[str, int]:
    return {name: size for name, size in shelf.storage.files("") if not name.startswith(".tmp")}


def test_a_root_without_leftovers(shelf: Shelf) -> None:
    found = leftovers(shelf.root)
    assert (found.directories, found.records, found.versions, found.unknown) == ((), (), (), ())
    assert found.kept == ("v1", "v2", "v3") and found.needed_bytes > 0


def test_without_delete_nothing_changes(shelf: Shelf) -> None:
    left, before = litter(shelf), files(shelf)
    found = leftovers(shelf.root)
    assert {one.directory for one in found.directories} == left
    sizes = {d: sum(n for name, n in before.items() if name.startswith(f"{d}/")) for d in left}
    assert {one.directory: one.num_bytes for one in found.directories} == sizes
    assert found.unknown == ("somebody's",)
    states = {one.directory: one.state for one in found.directories}
    assert [stage for stage, _ in (d.split("/") for d in states if states[d] == "unfinished")] == ["embed"]
    assert files(shelf) == before


def test_leftovers_go_and_all_versions_stay(root: str) -> None:
    shelf = versions(root)
    before = files(shelf)
    left = litter(shelf)
    more = set(files(shelf)) - set(before)
    removed = remove_leftovers(shelf.root)
    assert {one.directory for one in removed.directories} == left
    stays = {name for name in more if not any(name.startswith(f"{directory}/") for directory in left)}
    assert set(files(shelf)) == set(before) | stays
    assert {name.split("/")[0] for name in stays} == {
        *("background", "centroids", "embed", "forgotten", "generations", "metrics", "somebody's")
    }
    assert leftovers(shelf.root).directories == ()
    assert {found.state for found in directories(shelf.root) if found.stage == "published"} == {"complete"}
    assert not set(shelf.storage.names("leases"))


@pytest.mark.parametrize(
    ("keep", "kept", "gone"),
    [
        (1, ["v3"], {"embed": 1, "cluster": 2, "published": 3, "curated": 2}),
        (2, ["v2", "v3"], {"cluster": 1, "published": 1, "curated": 1}),
        (9, ["v1", "v2", "v3"], {}),
    ],
)
def test_versions_that_are_not_kept_go(shelf: Shelf, keep: int, kept: list[str], gone: dict[str, int]) -> None:
    found = remove_leftovers(shelf.root, keep)
    counted = {stage: sum(one.stage == stage for one in found.directories) for stage in gone}
    assert counted == gone and len(found.directories) == sum(gone.values())
    there = published_versions(shelf.root)
    assert [version.name for version in there] == kept
    assert len(shelf.storage.names("runs")) == len(kept)
    assert len(shelf.storage.names("hash-fit")) == 3, "what a root keeps for later runs"
    for version in there:
        assert len(read_column(version.dataset(shelf.root).shards(), "image_id")) == version.images


def test_the_latest_version_stays_though_others_are_newer(shelf: Shelf) -> None:
    said = {"version": "v1", "directory": "curated/v1", "run": shelf.run_name(1)}
    shelf.storage.write_json("curated/latest.json", said)
    assert remove_leftovers(shelf.root, 1).versions == ("v2",)
    assert [version.name for version in published_versions(shelf.root)] == ["v1", "v3"]


def test_interrupted_anywhere_it_can_be_called_again(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stage.json or shard is there was not begun to be removed, or all that makes it up is there."""
    litter(shelf)
    plain, step, left = Storage.remove_files, 0, [0]

    def dying(storage: Storage, names: list[str]) -> None:
        left[0] -= 1
        plain(storage, names if left[0] >= 0 else names[: len(names) // 2])
        if left[0] < 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(room, "READERS", 1)
    monkeypatch.setattr(Storage, "remove_files", dying)
    while step < 100:
        left[0] = step
        step += 3
        try:
            remove_leftovers(shelf.root, 1)
        except KeyboardInterrupt:
            there = files(shelf)
            for name in there:
                folder, own = name.rsplit("/", 1)
                if own.startswith("data-"):
                    assert f"{folder}/{own.replace('data-', 'account-').replace('.arrow', '.json')}" in there
                if own == "stage.json" and not folder.startswith("curated/v"):
                    assert any(other.startswith(f"{folder}/data-") for other in there)
            for name in shelf.storage.names("curated"):
                dataset = StageDir(root=shelf.root, stage="curated", fingerprint=name)
                assert not dataset.is_complete() or not unwritten(dataset.shards())
            assert "v3" in [version.name for version in published_versions(shelf.root)]
        else:
            break
    assert step > 6
    monkeypatch.undo()
    assert remove_leftovers(shelf.root, 1).directories == ()
    assert [version.name for version in published_versions(shelf.root)] == ["v3"]


@pytest.mark.parametrize("act", [leftovers, remove_leftovers])
def test_it_refuses_while_a_run_holds_the_root(shelf: Shelf, act) -> None:
    before = files(shelf)
    with lease(shelf.storage), pytest.raises(InputError, match="is in use by process"):
        act(shelf.root)
    assert files(shelf) == before


@pytest.mark.parametrize("act", [leftovers, remove_leftovers])
def test_a_root_where_nothing_was_published_keeps_all(local_root: str, act) -> None:
    shelf = Shelf(local_root)
    shelf.stage("embed", "begun", is_complete=False)
    before = files(shelf)
    with pytest.raises(InputError, match="root must hold a published version"):
        act(local_root)
    assert files(shelf) == before


def test_every_stage_of_a_run_is_known() -> None:
    """What gc does not know it leaves alone, for ever."""
    flows = Path(room.__file__).parent
    sources = [file.read_text() for file in flows.glob("*.py") if file.name not in ELSEWHERE]
    named = re.compile(r"""(?:\.target\(|\.named\(|stage=)[\s*(]*"([^"{]+)\"""")
    stages = {stage for source in sources for stage in named.findall(source)}
    assert {"crawl", "curated", "patches", "background", "centroids"} < stages
    assert stages <= room.OWNED | room.KEPT_FOR_LATER.keys() | {"ledger"}


def test_a_version_stays_until_its_export_is_finished(shelf: Shelf, monkeypatch, capsys) -> None:
    dataset = StageDir(root=shelf.root, stage="curated", fingerprint="v1")
    said = {"identity": "a", "kind": "parquet", "images": 2}
    export_records.record(dataset, "/elsewhere", said)
    found = remove_leftovers(shelf.root, 1)
    assert (found.kept, found.held, found.versions) == (("v1", "v3"), {"v1": "/elsewhere"}, ("v2",))
    assert not unwritten(dataset.shards())
    code, out, _ = lvd(monkeypatch, capsys, "gc", shelf.root, "--keep", "1")
    assert code == 0 and "held     v1: its export to /elsewhere is not finished" in out
    export_records.record(dataset, "/elsewhere", said, is_finished=True)
    assert remove_leftovers(shelf.root, 1).versions == ("v1",)
    assert len(shelf.storage.names("exports")) == 1, "a takedown names what was exported"


def test_folders_that_an_interrupted_removal_left_empty_go(shelf: Shelf) -> None:
    for name in (f"embed/{'a' * 32}", f"published/{'b' * 32}", "curated/v7/ledger"):
        (Path(shelf.root) / name).mkdir(parents=True)
    assert {one.directory for one in remove_leftovers(shelf.root).directories} == {
        *(f"embed/{'a' * 32}", f"published/{'b' * 32}", "curated/v7")
    }
    assert {found.state for found in directories(shelf.root)} == {"complete"}


def test_what_an_interrupted_run_goes_on_with_is_told_apart(shelf: Shelf, monkeypatch, capsys) -> None:
    old = shelf.stage("download", "of other settings")
    for name, record in ((name, shelf.storage.read_json(f"runs/{name}")) for name in shelf.storage.names("runs")):
        later = {**record, "run_id": f"99990101T000000Z-{record['version']}"}
        shelf.storage.write_json(f"runs/{later['run_id']}.json", later)
        shelf.storage.remove(f"runs/{name}")
    assert {one.directory: one.why for one in leftovers(shelf.root).directories} == {old: "no kept version needs it"}
    for name in shelf.storage.names("runs"):
        shelf.storage.write_json(f"runs/20010101T000000Z-{name.split('-')[1]}", shelf.storage.read_json(f"runs/{name}"))
        shelf.storage.remove(f"runs/{name}")
    assert {one.directory: one.why for one in leftovers(shelf.root).directories} == {old: "made since the last version"}
    _, out, _ = lvd(monkeypatch, capsys, "gc", shelf.root)
    assert "1 directories were made since the last version: to keep them, run what was interrupted" in out


def test_records_of_versions_that_go_are_not_read(shelf: Shelf) -> None:
    shelf.storage.write_bytes(shelf.run_name(1), b"{")
    assert leftovers(shelf.root, 2).records == (shelf.run_name(1),)


def test_centroids_that_a_recipe_names_in_its_own_root_are_in_the_record(local_root: str, monkeypatch) -> None:
    without_prefect(monkeypatch)
    fitted = Clustered(local_root).after(1)[0].centroids
    _, run = Clustered(local_root, fit=f"{local_root}/{fitted.directory}").after(1)
    assert fitted.directory in run.directories["centroids"] and len(run.directories["centroids"]) == 2


def test_centroids_that_nights_assign_to_stay_though_no_version_that_is_kept_names_them(
    local_root: str, monkeypatch
) -> None:
    """Without the last of them a night would fit anew."""
    without_prefect(monkeypatch)
    clustered, shelf = Clustered(local_root, refit="never"), Shelf(local_root)
    centroids = clustered.after(1)[0].centroids
    shelf.version(1, [shelf.shard("1", published("1.jpg"))])
    gone = {one.stage for one in remove_leftovers(local_root).directories}
    assert {"fit", "sampled", "cluster"} <= gone
    found, run = clustered.after(1)
    assert found.centroids == centroids and not run.computed["centroids"]


def test_it_is_shown(shelf: Shelf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    left, before = litter(shelf), files(shelf)
    code, out, _ = lvd(monkeypatch, capsys, "gc", shelf.root)
    assert code == 0 and all(directory in out for directory in left)
    assert (
        f"nothing was removed: --delete removes {len(left)} directories" in out
        and "alone    somebody's: no stage wrote" in out
    )
    assert files(shelf) == before
    code, out, _ = lvd(monkeypatch, capsys, "gc", shelf.root, "--keep", "2", "--delete")
    assert code == 0 and "removed  v1" in out
    code, _, err = lvd(monkeypatch, capsys, "gc", shelf.root, "--keep", "0")
    assert (code, err) == (2, "lvd: --keep must be at least 1, was 0: the newest version always stays\n")
    code, out, _ = lvd(monkeypatch, capsys, "gc", shelf.root)
    assert code == 0 and "nothing is left over" in out
