"""Copies that only an older run knows, of images that are no longer among the sources; and a root that is in use."""

import pytest

from lvd.flows.takedown import Asked, forget, gone_in, near_groups, runs_to_ask
from lvd.infra.committing import commit
from lvd.infra.errors import InputError
from lvd.infra.lease import lease
from lvd.infra.shards import StageDir
from lvd.infra.storage import Storage
from lvd.tasks import schemas
from lvd.tasks.takedowns import Record, Takedowns
from lvd.tests.tasks import planted

ids = [planted.identity(n) for n in range(6)]
COPY = {"state": "dropped", "stage": "copies", "reason": "copy"}


def kept(directory: str, root: str, rows: int, **inputs: list[str]) -> str:
    stage, name = directory.split("/")
    target = StageDir(root=root, stage=stage, fingerprint=name)
    commit(target, 1, config={}, inputs={"directories": ["references/none"], **inputs}, notes={"thresholds": {}})
    assert target.account()["rows"] == rows
    return directory


def run(root: str, version: str, found: list[tuple[int, int | None]], *, reason: str = "copy") -> dict:
    """A run over these images, each with the one that it copies; what it left of them and its record."""
    images = [{"image_id": ids[n], "key": f"{n}.jpg"} for n, _ in found]
    fates = [
        {"image_id": ids[n], "state": "kept"}
        if cause is None
        else {"image_id": ids[n], **COPY, "reason": reason, "because_of": ids[cause]}
        for n, cause in found
    ]
    layout = ((len(found),),)
    stored = planted.images(root, images, layout, f"download-{version}")[0].directory
    decided = planted.stage(root, f"copies-{version}", schemas.FATES, fates, layout)[0].directory
    for directory in (stored, decided):
        kept(directory, root, len(found))
    record = {
        "version": version,
        "collections": [{"role": "pool", "name": "pool", "images": [stored]}],
        "directories": {"copies": [decided]},
    }
    Storage(root).write_json(f"runs/2026010{version[1:]}T000000Z-{version}.json", record)
    return record


def test_a_copy_is_known_by_the_run_that_had_it(local_root: str) -> None:
    storage = Storage(local_root)
    references = StageDir(root=local_root, stage="references", fingerprint="none")
    planted.stage(local_root, "references", schemas.EDGES, [], ((0,),))
    commit_empty(references)
    first = run(local_root, "v1", [(0, None), (1, 0), (2, None)])
    second = run(local_root, "v2", [(1, None), (3, 1), (4, None)], reason="near_duplicate")
    same = {**second, "version": "v3"}
    storage.write_json("runs/20260104T000000Z-v3.json", same)
    storage.write_json("runs/20260105T000000Z-v4.json", {"version": "v4", "collections": [], "directories": {}})
    gone = {"version": "v5", "collections": [{"images": ["download/gone"]}], "directories": {"copies": ["copies/gone"]}}
    storage.write_json("runs/20260100T000000Z-v0.json", gone)
    runs = runs_to_ask(storage, same)
    assert [one["version"] for one in runs] == ["v3", "v1"]
    known = Takedowns([Record(date="2026-03-01", image_ids=(ids[3],))])
    assert gone_in(storage, runs, known) == {ids[3], ids[1], ids[0]}  # by v3 1, and by v1 what that one copied
    assert gone_in(storage, runs[:1], known) == {ids[3], ids[1]}
    assert near_groups(storage, runs, {ids[3]}) == {ids[3]: ids[1]}
    assert first["directories"] != same["directories"]


def test_a_root_in_use_is_said_before_there_is_a_record(root: str) -> None:
    storage, asked = Storage(root), Asked(urls=("https://a.example/1.jpg",))
    storage.write_json("crawl/a/stage.json", {})
    with lease(storage):
        with pytest.raises(InputError, match="is in use by process"):
            forget(root, asked, now=True)
        assert storage.names("forgotten") == []
        assert forget(root, asked).record  # the run that holds it need not know of it
    assert len(storage.names("forgotten")) == 1


def commit_empty(target: StageDir) -> None:
    target.storage.write_json(f"{target.directory}/stage.json", {"inputs": {"others": []}, "shard_rows": []})
