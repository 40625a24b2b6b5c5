"""A version on a hub: what it holds afterwards, what is not sent again, what a newer one replaces, what is refused."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lvd.flows import pushing
from lvd.flows.export_records import records
from lvd.flows.pushing import groups, is_shard, push
from lvd.infra.errors import InputError, RetryableError
from lvd.infra.storage import Storage
from lvd.tasks import export as export_stage
from lvd.tasks.takedowns import Record, write_record
from lvd.tests import hub as hubs
from lvd.tests import versions_planted
from lvd.tests.exports import exported_here

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the hub's own library


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[hubs.Hub]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its server is none that can be had here
    with hubs.served() as hub:
        yield hub


def api_of(hub: hubs.Hub, token: str | bool = hubs.TOKEN) -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub.endpoint, token=token)


def finished(root: str, out: str, version: str, **said: Any) -> None:
    exported_here(root, out, export_stage.Config(**{"kind": "parquet", "shard_images": 9, **said}), version)


def test_the_hub_holds_the_export_and_its_card_and_nothing_is_sent_twice(
    root: str, hub: hubs.Hub, capfd: pytest.CaptureFixture[str]
) -> None:
    versions_planted.published(root)
    out = f"{root}-out"
    finished(root, out, "v1")
    pushed = push(root, "me/set", export=out, private=True, api=api_of(hub))
    assert (pushed.uploaded, pushed.removed, pushed.images, pushed.version) == (3, 0, 24, "v1")
    storage = Storage(out)
    names = [*(f"data/train-{n:05d}-of-00003.parquet" for n in range(3)), "README.md", "SHA256SUMS", "export.json"]
    assert {name: data for name, (data, _) in hub.files.items()} == {name: storage.read_bytes(name) for name in names}
    assert hub.repos["me/set"]["visibility"] == "private" and len(hub.commits) == 1
    head = yaml.safe_load(hub.files["README.md"][0].split(b"---\n")[1])
    assert head["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    again = push(root, "me/set", export=out, api=api_of(hub))
    assert (again.uploaded, again.files) == (0, 3)
    (hub_record,) = [one for one in records(root) if one["out"].startswith(hub.endpoint)]
    assert hub_record["finished_at"] and hub_record["version"] == "v1"
    seen = capfd.readouterr()
    assert hub.tokens == {f"Bearer {hubs.TOKEN}"}
    assert hubs.TOKEN not in json.dumps(records(root)) + seen.out + seen.err


def test_an_interrupted_push_goes_on_and_shows_nothing_until_it_is_whole(
    local_root: str, hub: hubs.Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    versions_planted.published(local_root)
    out = str(tmp_path / "out")
    finished(local_root, out, "v1")
    monkeypatch.setattr(pushing, "UPLOADED_AT_ONCE", 1)  # file by file
    api = api_of(hub)
    upload, sent = api.preupload_lfs_files, []

    def cut(*args: Any, **options: Any) -> None:
        if len(sent) == 2:
            raise KeyboardInterrupt
        sent.append(args)
        upload(*args, **options)

    api.preupload_lfs_files = cut
    with pytest.raises(KeyboardInterrupt):
        push(local_root, "me/set", export=out, api=api)
    assert len(hub.lfs) == 2 and hub.files == {}
    there = dict(hub.lfs)
    assert push(local_root, "me/set", export=out, api=api_of(hub)).files == 3
    assert len(hub.lfs) == 3 and {digest: hub.lfs[digest] for digest in there} == there
    assert len([name for name in hub.files if is_shard(name)]) == 3


def test_a_newer_version_takes_the_place_of_the_older_one(local_root: str, hub: hubs.Hub, tmp_path: Path) -> None:
    versions_planted.published(local_root)
    finished(local_root, str(tmp_path / "one"), "v1", kind="webdataset", shard_images=5)
    push(local_root, "me/set", export=str(tmp_path / "one"), api=api_of(hub))
    hub.files["notes.md"] = (b"mine", None)
    versions_planted.published(local_root, "v2", first=100)
    finished(local_root, str(tmp_path / "two"), "v2")
    with pytest.raises(InputError, match="--export must hold an export of v2"):
        push(local_root, "me/set", export=str(tmp_path / "one"), api=api_of(hub))
    pushed = push(local_root, "me/set", export=str(tmp_path / "two"), api=api_of(hub))
    assert (pushed.version, pushed.removed) == ("v2", 5)
    assert {name for name in hub.files if is_shard(name)} == {f"data/train-{n:05d}-of-00003.parquet" for n in range(3)}
    assert hub.files["notes.md"] == (b"mine", None)


def test_a_hub_that_refuses_or_is_away_is_one_line(local_root: str, hub: hubs.Hub, tmp_path: Path) -> None:
    versions_planted.published(local_root)
    out = str(tmp_path / "out")
    finished(local_root, out, "v1")
    cases = [
        (api_of(hub, "another"), None, InputError, "401.*set HF_TOKEN"),
        (api_of(hub), 403, InputError, "403 .*set HF_TOKEN"),
        (api_of(hub), 422, InputError, "must take what is pushed"),
    ]
    for api, refuses, error, said in cases:
        hub.refuses = refuses
        with pytest.raises(error, match=said) as raised:
            push(local_root, "me/set", export=out, api=api)
        assert "\n" not in str(raised.value) and hubs.TOKEN not in str(raised.value)
    away = api_of(hub)
    away.endpoint = "http://127.0.0.1:9"
    with pytest.raises(RetryableError, match="must answer"):
        push(local_root, "me/set", export=out, api=away)
    with pytest.raises(InputError, match="REPO_ID must be"):
        push(local_root, "me/no set", export=out, api=api_of(hub))


def test_an_image_folder_is_not_for_a_hub(local_root: str, hub: hubs.Hub, tmp_path: Path) -> None:
    versions_planted.published(local_root)
    finished(local_root, str(tmp_path / "out"), "v1", kind="imagefolder")
    with pytest.raises(InputError, match="must be of kind parquet or webdataset"):
        push(local_root, "me/set", export=str(tmp_path / "out"), api=api_of(hub))


def test_a_temporary_export_leaves_nothing_behind(
    local_root: str, hub: hubs.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions_planted.published(local_root)
    monkeypatch.setattr(pushing.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))

    def export(root: str, out: str, config: export_stage.Config, *, version: str, settings: tuple[str, ...]) -> None:
        exported_here(root, out, config, version)

    monkeypatch.setattr(pushing, "export_version", export)
    hub.refuses_after = 3  # the repository, the same again, what it holds
    with pytest.raises(InputError, match="403"):
        push(local_root, "me/set", api=api_of(hub))
    (own,) = (tmp_path / "temporary/lvd").iterdir()
    assert (own / "export/export.json").exists()
    versions_planted.published(local_root, shards=(7, 0, 11, 5))  # as `forget --now` leaves it
    hub.refuses_after = None
    pushed = push(local_root, "me/set", api=api_of(hub))
    assert (pushed.uploaded, pushed.images) == (1, 23)
    assert list((tmp_path / "temporary/lvd").iterdir()) == []
    places = [one["out"] for one in records(local_root) if one["finished_at"]]
    assert places == [f"{hub.endpoint}/datasets/me/set"]


def test_files_go_together_up_to_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pushing, "UPLOADED_AT_ONCE", 10)
    files = [{"name": str(n), "bytes": n} for n in (4, 6, 1, 30, 2, 2)]
    assert [[one["bytes"] for one in group] for group in groups(files)] == [[4, 6], [1], [30], [2, 2]]
    assert list(groups([])) == []


def test_what_was_taken_down_since_an_export_is_not_pushed(local_root: str, hub: hubs.Hub, tmp_path: Path) -> None:
    rows = versions_planted.published(local_root)
    out = str(tmp_path / "out")
    finished(local_root, out, "v1")
    write_record(Storage(local_root), Record(date="2026-01-01T00:00:00Z", image_ids=(rows[5]["image_id"],)))
    with pytest.raises(InputError, match="must hold no image that was taken down, v1 has 1"):
        push(local_root, "me/set", export=out, api=api_of(hub))
    Storage(local_root).remove("forgotten")
    versions_planted.published(local_root, shards=(7, 0, 11, 5))  # as `forget --now` leaves it
    with pytest.raises(InputError, match="holds one of before images were taken down: export it again"):
        push(local_root, "me/set", export=out, api=api_of(hub))
    assert hub.lfs == {} and hub.repos == {}


def test_private_is_not_public(local_root: str, hub: hubs.Hub, tmp_path: Path) -> None:
    versions_planted.published(local_root)
    hub.repos["me/set"] = {"visibility": "public"}
    finished(local_root, str(tmp_path / "out"), "v1")
    with pytest.raises(InputError, match="must be private for --private, 'me/set' is there and public"):
        push(local_root, "me/set", export=str(tmp_path / "out"), private=True, api=api_of(hub))
    assert hub.lfs == {}


def test_shards_of_another_origin_are_not_removed(local_root: str, hub: hubs.Hub, tmp_path: Path) -> None:
    versions_planted.published(local_root)
    finished(local_root, str(tmp_path / "out"), "v1")
    theirs = {"data/train-00000-of-00001.parquet": (b"theirs", "0" * 64)}
    hub.repos["me/set"], hub.files = {}, dict(theirs)
    with pytest.raises(InputError, match=r"has data/train-00000-of-00001\.parquet of another origin"):
        push(local_root, "me/set", export=str(tmp_path / "out"), api=api_of(hub))
    assert hub.files == theirs and hub.lfs == {}


def test_a_damaged_export_is_seen_before_the_hub_shows_it(local_root: str, hub: hubs.Hub, tmp_path: Path) -> None:
    versions_planted.published(local_root)
    finished(local_root, str(tmp_path / "out"), "v1")
    path = tmp_path / "out/data/train-00001-of-00003.parquet"
    path.write_bytes(path.read_bytes()[:-9] + b"?" + path.read_bytes()[-8:])
    with pytest.raises(InputError, match=r"train-00001-of-00003\.parquet must have the SHA-256 that export\.json says"):
        push(local_root, "me/set", export=str(tmp_path / "out"), api=api_of(hub))
    assert hub.files == {} and hub.lfs == {}


def test_two_pushes_at_once_do_not_mix(local_root: str, hub: hubs.Hub, tmp_path: Path) -> None:
    versions_planted.published(local_root)
    finished(local_root, str(tmp_path / "out"), "v1")
    api = api_of(hub)
    upload = api.preupload_lfs_files

    def slow(*args: Any, **options: Any) -> None:
        upload(*args, **options)
        hub.commits.append("somebody else's")

    api.preupload_lfs_files = slow
    with pytest.raises(RetryableError, match="'me/set' was changed on the hub meanwhile, it said 412"):
        push(local_root, "me/set", export=str(tmp_path / "out"), api=api)
    assert hub.files == {}
    assert push(local_root, "me/set", export=str(tmp_path / "out"), api=api_of(hub)).files == 3


def test_large_files_of_a_bucket_are_copied_for_as_long_as_they_are_sent(
    root: str, hub: hubs.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions_planted.published(root)
    monkeypatch.setattr(pushing, "SMALL_BYTES", 0)
    monkeypatch.setattr(pushing, "UPLOADED_AT_ONCE", 1)
    finished(root, f"{root}-out", "v1")
    assert push(root, "me/set", export=f"{root}-out", api=api_of(hub)).uploaded == 3
    storage = Storage(f"{root}-out")
    assert all(storage.read_bytes(name) == data for name, (data, _) in hub.files.items())


def test_offline_is_one_line(local_root: str, hub: hubs.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import OfflineModeIsEnabled

    versions_planted.published(local_root)
    finished(local_root, str(tmp_path / "out"), "v1")
    api = api_of(hub)

    def refuse(*args: Any, **options: Any) -> None:
        raise OfflineModeIsEnabled("offline mode is enabled")

    monkeypatch.setattr(api, "create_repo", refuse)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE must not be set"):
        push(local_root, "me/set", export=str(tmp_path / "out"), api=api)
