"""What a root can be asked: what is on it, and what became of an image."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from lvd.flows.versions import FOLDER, SHARDS, latest
from lvd.infra.errors import InputError
from lvd.infra.shards import ShardRef, StageDir, read_batches, read_table
from lvd.infra.storage import TEMPORARY, Storage
from lvd.tasks import takedowns

NOT_STAGES = ("runs", "leases", "generations", "exports", "metrics", takedowns.FOLDER, TEMPORARY)


class Directory(BaseModel, frozen=True):
    """One stage directory of a root; of the shards that versions share, all that are alike in state and use."""

    stage: str
    name: str
    state: str  # complete or unfinished
    used: bool  # by the last run
    rows: int
    seconds: float


def directories(root: str) -> list[Directory]:
    """Every stage directory of a root. Raises InputError if nothing was ever run there."""
    storage = Storage(root)
    last = last_run(storage)
    used = {d for found in last["directories"].values() for d in found} if last else set()
    result, shard_rows = [], {}
    for stage in storage.names(""):
        if stage in (*NOT_STAGES, SHARDS) or stage.startswith("miniature"):
            continue
        for name in storage.names(stage):
            target = StageDir(root=root, stage=stage, fingerprint=name)
            if name == "latest.json":
                continue
            complete = target.is_complete()
            account = target.account() if complete else {"rows": 0, "seconds": 0.0}
            if complete and stage == FOLDER:
                rows = {ref.directory: ref.rows for ref in target.shards()}
                shard_rows |= rows
                used |= rows.keys() if target.directory in used else set()
            result.append(
                Directory(
                    stage=stage,
                    name=name,
                    state="complete" if complete else "unfinished",
                    used=target.directory in used,
                    rows=account["rows"],
                    seconds=account["seconds"],
                )
            )
    result += shared_shards(storage, shard_rows, used)
    if not result:
        raise InputError(
            f"root must be one that lvd has written to, was {root!r}: run `lvd run RECIPE --root {root}` first"
        )
    return result


def shared_shards(storage: Storage, rows: dict[str, int], used: set[str]) -> list[Directory]:
    """The shards that versions share: those of the last run, those of other versions, and those of none.

    rows: directory of a shard → its rows, for the shards of all versions. Their seconds count for the versions.
    """
    groups: dict[tuple[str, bool], list[int]] = {}
    for name in storage.names(SHARDS):
        directory = f"{SHARDS}/{name}"
        state = "complete" if directory in rows else "unfinished"
        groups.setdefault((state, directory in used), []).append(rows.get(directory, 0))
    return [
        Directory(stage=SHARDS, name=f"{len(found)} shards", state=state, used=is_used, rows=sum(found), seconds=0)
        for (state, is_used), found in sorted(groups.items())
    ]


def last_run(storage: Storage) -> dict[str, Any] | None:
    """The snapshot of the last finished run, or None."""
    published = latest(storage)
    return storage.read_json(published["run"]) if published else None


def fates_of(root: str, key: str) -> list[dict[str, Any]]:
    """The ledger's rows whose key or image id is `key`, each with `cause`: what the image that caused it is, in words.

    A candidate that was taken down is found by the hash of its key; there are no rows if it is in a record alone.
    Raises InputError if nothing was published, or no candidate is called so.
    """
    storage = Storage(root)
    last = last_run(storage)
    if last is None:
        raise InputError(
            f"root must hold a published version, {root!r} has none: run `lvd run RECIPE --root {root}` first"
        )
    ledger = StageDir(root=root, stage=last["curated"], fingerprint="ledger")
    found = ledger_rows(ledger, {key, takedowns.alias_of(key)})
    if not found and takedowns.Takedowns.read(storage).record_of(key, key):
        return []
    if not found:
        raise InputError(
            f"key must be a URL, a source path or an image id of the ledger, was {key!r}: "
            f"see the column `key` in {ledger.directory}"
        )
    wanted = {row["because_of"] for row in found if row["because_of"]}
    causes = named_references(root, last["collections"], wanted)
    causes |= {row["image_id"]: described(row) for row in ledger_rows(ledger, wanted) if row["image_id"] not in causes}
    return [{**row, "cause": causes.get(row["because_of"])} for row in found]


def described(row: dict[str, Any]) -> str:
    """A row of the ledger in words."""
    return f"{row['key']} ({row['state']} at {row['stage']}: {row['reason']})"


def named_references(root: str, collections: list[dict[str, Any]], image_ids: set[str]) -> dict[str, str]:
    """image id → its key and collection, for images of the benchmarks and the curated collections."""
    found: dict[str, str] = {}
    for collection in collections:
        for directory in collection["images"] if collection["role"] != "pool" and image_ids else ():
            stage, name = directory.split("/")
            keys = keys_of(StageDir(root=root, stage=stage, fingerprint=name).shards(), image_ids)
            said = f"{collection['role']} {collection['name']}"
            found |= {image_id: f"{key} ({said})" for image_id, key in keys.items()}
    return found


def keys_of(images: list[ShardRef], image_ids: set[str]) -> dict[str, str]:
    """image id → key, of those of these images that are there."""
    wanted, found = pa.array(sorted(image_ids), pa.string()), {}
    for ref in images if image_ids else ():
        table = read_table(ref, ["image_id", "key"])
        mine = table.filter(pc.is_in(table["image_id"], value_set=wanted))
        found |= dict(zip(mine["image_id"].to_pylist(), mine["key"].to_pylist(), strict=True))
    return found


def ledger_rows(ledger: StageDir, names: set[str]) -> list[dict[str, Any]]:
    """The ledger's rows whose key or image id is one of these."""
    if not names:
        return []
    wanted, found = list(names), []

    values = pa.array(wanted, type=pa.string())
    for ref in ledger.shards():
        for batch in read_batches(ref):
            hit = pc.or_(
                pc.is_in(batch["key"], value_set=values),
                pc.fill_null(pc.is_in(batch["image_id"], value_set=values), False),
            )
            found += batch.filter(hit).to_pylist()
    return found
