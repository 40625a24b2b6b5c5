"""Versions as runs leave them, without runs: shards that versions share, ledgers, records."""

import hashlib
from typing import Any

from lvd.infra.committing import commit, commit_lent
from lvd.infra.shards import ShardRef, StageDir, unwritten
from lvd.infra.storage import Storage
from lvd.infra.writing import write_shard
from lvd.tasks import schemas


def image_id(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def published(key: str, **columns: Any) -> dict[str, Any]:
    """A row of a published shard."""
    own = {"image_id": image_id(key), "image": {"bytes": key.encode(), "path": ""}, "key": key, "source": "web"}
    url = f"http://{key}" if "/" in key else None
    return {**own, "url": url, "role": "retrieved", "retrieved_for": ["birds"], "width": 1, "height": 1, **columns}


def kept(row: dict[str, Any]) -> dict[str, Any]:
    """What the ledger says of a published row."""
    fate = {"state": "kept", "stage": "publish", "reason": row["role"]}
    return {**{name: row[name] for name in ("key", "source", "image_id")}, "role": "pool", **fate}


def lost(key: str, stage: str, reason: str, **columns: Any) -> dict[str, Any]:
    """What the ledger says of a candidate that was not published."""
    state = "failed" if stage == "download" else "dropped"
    own = {"key": key, "role": "pool", "source": "web", "image_id": None if state == "failed" else image_id(key)}
    return {**own, "state": state, "stage": stage, "reason": reason, **columns}


class Shelf:
    """A root with versions."""

    def __init__(self, root: str) -> None:
        self.root, self.storage, self.shards = root, Storage(root), {}

    def shard(self, name: str, *rows: dict[str, Any]) -> ShardRef:
        """A shard that versions can share."""
        ref = ShardRef(root=self.root, directory=f"published/{image_id(name)}", index=0, count=1)
        assert unwritten([ref])
        with write_shard(ref, schemas.CURATED, {}) as shard:
            for row in rows:
                shard.keep(row)
        self.shards[ref.directory] = rows
        return ref

    def stage(self, name: str, key: str, *, is_complete: bool = True, **notes: Any) -> str:
        """A stage's directory."""
        target = StageDir(root=self.root, stage=name, fingerprint=image_id(key))
        with write_shard(target.planned(1)[0], schemas.SIZES, {}) as shard:
            shard.keep({"cluster_id": 1, "size": 1})
        if is_complete:
            commit(target, 1, config={}, inputs={}, notes=notes)
        return target.directory

    def version(
        self,
        number: int,
        shards: list[ShardRef],
        *others: dict[str, Any],
        directories: list[str] | None = None,
        is_latest: bool = True,
        ended: bool = True,
    ) -> StageDir:
        """A version of these shards, whose ledger also has the others. ended: its run has left a record."""
        rows = [row for ref in shards for row in self.shards[ref.directory]]
        dataset = StageDir(root=self.root, stage="curated", fingerprint=f"v{number}")
        self.storage.write_json(f"{dataset.directory}/version.json", {"identity": str(number)})
        self.storage.write_bytes(f"{dataset.directory}/README.md", b"card")
        ledger = StageDir(root=self.root, stage=dataset.directory, fingerprint="ledger")
        with write_shard(ledger.planned(1)[0], schemas.LEDGER, {}) as shard:
            for row in (*map(kept, rows), *others):
                shard.keep(row)
        commit(ledger, 1, config={}, inputs={})
        commit_lent(dataset, shards, config={}, inputs={})
        if ended:
            self.record(number, [*(directories or []), dataset.directory, ledger.directory], len(rows), len(others))
        if is_latest:
            said = {"version": f"v{number}", "directory": dataset.directory, "run": self.run_name(number)}
            self.storage.write_json("curated/latest.json", said)
        return dataset

    def record(self, number: int, directories: list[str], kept: int, others: int) -> None:
        found: dict[str, list[str]] = {}
        for directory in directories:
            found.setdefault(directory.rsplit("/", 1)[0], []).append(directory)
        run_id = self.run_name(number).removeprefix("runs/").removesuffix(".json")
        states = {"kept": kept, "dropped": others, "failed": 0}
        about = {"run_id": run_id, "version": f"v{number}", "directories": found, "candidates": kept + others}
        self.storage.write_json(self.run_name(number), {**about, "ledger": states, "curated": f"curated/v{number}"})

    def run_name(self, number: int) -> str:
        return f"runs/2026010{number}T000000Z-v{number}.json"
