"""How a stage is closed: the files that make its shards a dataset, and stage.json, which says that it is complete."""

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from lvd.infra.shards import READERS, SCHEMA_VERSION, ShardRef, StageDir
from lvd.infra.storage import Storage
from lvd.infra.writing import FEATURES


def commit(
    target: StageDir, count: int, *, config: dict[str, Any], inputs: dict[str, Any], notes: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Closes a stage and returns its stage.json, which is written last; the files before it make it a dataset."""
    refs = target.planned(count)
    files = [ref.name().rsplit("/", 1)[-1] for ref in refs]
    account = _accounted(target, refs, files, {"config": config, "inputs": inputs, "notes": notes or {}})
    target.storage.write_json(f"{target.directory}/stage.json", account)
    return account


def commit_lent(
    target: StageDir, refs: list[ShardRef], *, config: dict[str, Any], inputs: dict[str, Any]
) -> dict[str, Any]:
    """Closes a stage that has no shards of its own: it consists of these, which lie in other directories of its root.

    stage.json names them, so that `shards` finds them; so does state.json, by relative names, which
    `datasets.load_from_disk` follows on a local folder. From elsewhere that copies the folder alone: for there
    data_files.json lists the files by their names below the root. A root that is moved or copied whole stays whole.
    """
    back = "../" * len(target.directory.split("/"))
    account = _accounted(target, refs, [back + ref.name() for ref in refs], {"config": config, "inputs": inputs})
    account["shards"] = [ref.model_dump(include={"directory", "index", "count"}) for ref in refs]
    target.storage.write_json(f"{target.directory}/data_files.json", [ref.name() for ref in refs])
    target.storage.write_json(f"{target.directory}/stage.json", account)
    return account


def _accounted(target: StageDir, refs: list[ShardRef], files: list[str], said: dict[str, Any]) -> dict[str, Any]:
    """What stage.json says of a stage that has these shards; writes what makes it a dataset."""
    storage = target.storage
    with ThreadPoolExecutor(READERS) as readers:
        accounts = list(readers.map(lambda ref: storage.read_json(ref.name("account", "json")), refs))
    with storage.open(refs[0].name()) as file, pa.ipc.open_stream(file) as stream:
        features = json.loads(stream.schema.metadata[FEATURES])["info"]["features"]
    write_dataset_files(storage, target.directory, features, files, target.fingerprint)
    reasons, cost = Counter(), Counter()
    for account in accounts:
        reasons.update(account["reasons"])
        cost.update(account["cost"])
    return {
        "stage": target.stage,
        "fingerprint": target.fingerprint,
        "schema_version": SCHEMA_VERSION,
        "notes": {},
        **said,
        "versions": versions(),
        "rows_in": sum(a["rows_in"] for a in accounts),
        "rows": sum(a["rows"] for a in accounts),
        "shard_rows": [a["rows"] for a in accounts],
        "reasons": dict(sorted(reasons.items())),
        "cost": {name: round(amount, 3) for name, amount in sorted(cost.items())},
        "seconds": round(sum(a["seconds"] for a in accounts), 3),
        "started_at": min((a["started_at"] for a in accounts), default=time.time()),
        "ended_at": round(time.time(), 3),
        "peak_memory_mb": max((a["peak_memory_mb"] for a in accounts), default=0),
        "shard_notes": [a["notes"] for a in accounts] if any(a["notes"] for a in accounts) else [],
    }


def write_dataset_files(
    storage: Storage, directory: str, features: dict[str, Any], files: list[str], identity: str
) -> None:
    """The two files that make a folder of Arrow streams a dataset for `datasets.load_from_disk`."""
    storage.write_json(
        f"{directory}/dataset_info.json",
        {"citation": "", "description": "", "features": features, "homepage": "", "license": ""},
    )
    state = {
        "_data_files": [{"filename": name} for name in files],
        "_fingerprint": identity[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    storage.write_json(f"{directory}/state.json", state)


def versions() -> dict[str, str]:
    """What computed a result, for the record; not part of a fingerprint."""
    from importlib.metadata import version
    from platform import machine, python_version

    names = ("lvd", "torch", "timm", "pyarrow", "datasets", "pillow", "numpy", "prefect")
    return {"python": python_version(), "machine": machine(), **{name: version(name) for name in names}}
