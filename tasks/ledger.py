"""The ledger: the fate of every candidate, which ends in exactly one state; the states sum to the candidates."""

from collections.abc import Iterable
from itertools import count
from typing import Any

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE

from lvd.infra.runs import read_range
from lvd.infra.shards import ShardRef, read_column, read_table
from lvd.infra.writing import Shard, write_shard
from lvd.tasks import schemas
from lvd.tasks.takedowns import FORGOTTEN, alias_of

SCHEMA = schemas.LEDGER
VERSION = 1
STATES = ("kept", "dropped", "failed")
SELECTED = ["part", "row", "role", "query_id", "similarity"]


class LedgerError(Exception):
    """The ledger does not balance: a defect, never the user's."""


@task(name="ledger-pool", persist_result=False, cache_policy=NO_CACHE)
def pool_shard(
    manifest: ShardRef,
    images: ShardRef,
    fates: ShardRef,
    vectors: ShardRef,
    selection: list[ShardRef],
    part: int,
    target: ShardRef,
    duplicates: ShardRef | None = None,
) -> ShardRef:
    """The ledger of one shard of pool candidates: rejected on the way in, ended by a decision, or settled by retrieval.

    selection: the shards that can hold one of these images; part: the number of the partition's images in it.
    duplicates: the images that mean the same as another, if any were looked for.
    """
    chosen = _chosen(selection, part)
    failed, same = _rejected(vectors), _same(duplicates, vectors.base + images.first_row, images.rows)
    keys, sources = read_table(images, ["key", "source"]).to_pydict().values()
    with write_shard(target, SCHEMA, {"version": VERSION}) as shard:
        _keep_rejects(shard, manifest, "crawl", "pool")
        _keep_rejects(shard, images, "download", "pool")
        for index, fate in enumerate(read_table(fates).to_pylist()):
            row = images.first_row + index
            if fate["state"] == "kept":
                fate |= same.get(row + vectors.base) or _settled(chosen.get(row), failed.get(row), fate["image_id"])
            shard.keep({"key": _named(keys[index], fate), "role": "pool", "source": sources[index], **fate})
            shard.reasons[fate["state"]] += 1
    return target.model_copy(update={"rows": shard.kept.rows})


def _chosen(selection: list[ShardRef], part: int) -> dict[int, dict[str, Any]]:
    """row → its row of the selection, for the images of one partition."""
    rows = (row for ref in selection for row in read_table(ref, SELECTED).to_pylist())
    return {row["row"]: row for row in rows if row["part"] == part}


def _same(duplicates: ShardRef | None, first: int, rows: int) -> dict[int, dict[str, Any]]:
    """pool row → what became of it, for the images that mean the same as another one of their cluster."""
    if duplicates is None:
        return {}
    fate = {"state": "dropped", "stage": "cluster", "reason": "semantic_duplicate"}
    return {
        row["row"]: {**fate, "score": row["similarity"], "because_of": row["because_of"]}
        for row in read_range(duplicates, first, first + rows).to_pylist()
    }


def _rejected(ref: ShardRef) -> dict[int, str]:
    """row → reason of the images that a sidecar rejected."""
    return {row["row"]: row["reason"] for row in read_table(ref, ["row", "reason"], kind="rejects").to_pylist()}


def _withdrawn(refs: Iterable[ShardRef]) -> dict[int, dict[str, Any]]:
    """row → what became of it, for the images of a curated collection that were taken down."""
    fate = {"state": "dropped", "stage": FORGOTTEN, "reason": FORGOTTEN}
    return {
        row["row"]: {**fate, "because_of": row["because_of"]} for ref in refs for row in read_table(ref).to_pylist()
    }


def _named(key: str, fate: dict[str, Any]) -> str:
    """The key of a candidate; of one that was taken down a hash of it."""
    return alias_of(key) if fate["stage"] == FORGOTTEN else key


def _published_already(image_id: str) -> dict[str, Any]:
    """What becomes of an image whose content is in the published set from elsewhere."""
    reason = {"reason": "exact_duplicate", "score": 1.0, "because_of": image_id}
    return {"state": "dropped", "stage": "publish", **reason}


def _settled(match: dict[str, Any] | None, failure: str | None, image_id: str) -> dict[str, Any]:
    """What became of an image that survived deduplication."""
    if failure is not None:
        return {"state": "failed", "stage": "embed", "reason": failure}
    if match is None:
        return {"state": "dropped", "stage": "retrieve", "reason": "not_retrieved"}
    if match["role"] == schemas.REPEATED:
        return _published_already(image_id)
    return {
        "state": "kept",
        "stage": "publish",
        "reason": match["role"],
        "score": match["similarity"],
        "because_of": match["query_id"],
    }


@task(name="ledger-curated", persist_result=False, cache_policy=NO_CACHE)
def curated_shard(
    manifest: ShardRef,
    images: ShardRef,
    content: list[ShardRef],
    selection: list[ShardRef],
    part: int,
    target: ShardRef,
    withdrawn: Iterable[ShardRef] = (),
) -> ShardRef:
    """The ledger of one shard of an included collection: published as it is, unless its content is there already.

    content: the shard with what models saw in these images, if any looked; what they could not look at has failed.
    withdrawn: the shard with those of them that were taken down, if there are any.
    """
    chosen, gone = list(_chosen(selection, part)), _withdrawn(withdrawn)
    rows = read_table(images, ["key", "source", "image_id"]).to_pylist()
    unseen = _rejected(*content) if content else {}
    published = np.isin(np.arange(images.first_row, images.first_row + len(rows)), chosen)
    with write_shard(target, SCHEMA, {"version": VERSION}) as shard:
        _keep_rejects(shard, manifest, "crawl", "curated")
        _keep_rejects(shard, images, "download", "curated")
        for number, row, keep in zip(count(images.first_row), rows, published.tolist(), strict=False):
            kept = {"state": "kept", "stage": "publish", "reason": "curated"}
            fate = kept if keep else _published_already(row["image_id"])
            if number in unseen:
                fate = {"state": "failed", "stage": "screen", "reason": unseen[number]}
            fate = gone.get(number, fate)
            shard.keep({**row, "key": _named(row["key"], fate), "role": "curated", **fate})
            shard.reasons[fate["state"]] += 1
    return target.model_copy(update={"rows": shard.kept.rows})


def _keep_rejects(shard: Shard, ref: ShardRef, stage: str, role: str) -> None:
    for reject in read_table(ref, ["key", "image_id", "state", "reason"], kind="rejects").to_pylist():
        shard.keep({"role": role, "stage": stage, **reject})
        shard.reasons[reject["state"]] += 1


def check_balance(refs: list[ShardRef], candidates: int) -> dict[str, int]:
    """Rows in each state.

    Raises LedgerError if a row has no state, or the states do not sum to the candidates that crawl counted.
    """
    states = {str(entry["values"]): entry["counts"] for entry in read_column(refs, "state").value_counts().to_pylist()}
    if set(states) - set(STATES) or sum(states.values()) != candidates:
        raise LedgerError(f"the ledger does not balance: {candidates} candidates, but the states are {states}")
    return {state: states.get(state, 0) for state in STATES}
