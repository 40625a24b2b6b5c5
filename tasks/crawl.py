"""Manifest: the candidates of one partition of a source, one row each, before anything is fetched.

Links are judged by the rules, shard by shard; of several equal URLs the first stays, and of every domain no more than
the recipe allows. At 10^9 links: read twice (200 GB each time), 30 GB of verdicts and 150 GB of manifest written, about
20 µs of one core per link, side by side; the choice between equal URLs is one process of 3 GB that reads 16 GB eight
times. Equal means equal 64-bit hashes: of 10^9 different URLs one is lost with a probability of 0.03.
"""

from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, Field

from lvd.infra.shards import ShardRef, StageDir, is_written, read_batches, read_table
from lvd.infra.writing import write_shard
from lvd.tasks import robots, schemas, source_rows
from lvd.tasks.algorithms.firsts import first_of_each
from lvd.tasks.sources import Partition
from lvd.tasks.url_rules import Rules, UrlRules
from lvd.tasks.urls import domain_of, host_of, normalized_url

SCHEMA = schemas.MANIFEST
VERSION = 3
BUCKET_ROWS = 1 << 27  # hashes that are compared at once: 24 bytes of memory each


class Config(BaseModel, frozen=True, extra="forbid"):
    rows_per_shard: int = Field(10_000, ge=1, le=1_000_000)  # more: fewer files, longer tasks, more to do again
    rules: Rules = Rules()
    opt_out: tuple[str, ...] = robots.OPT_OUT  # what a page says to robots that keeps its images out; [] to ignore it


def verdict(link: dict[str, Any], rules: UrlRules, config: Config, user_agent: str) -> dict[str, Any]:
    """The row of schemas.VERDICTS for one link."""
    try:
        normalized = normalized_url(link["url"], max_length=config.rules.max_length)
    except ValueError as error:
        return _refused("invalid_url", str(error))
    host = host_of(normalized)
    problem = rules.broken(normalized, host)
    if problem:
        return _refused(*problem)
    directive = robots.opted_out(link["robots"] or (), config.opt_out, user_agent)
    if directive:
        return _refused("page_opted_out", f"{link['page_url']} says {directive}")
    hashes = {"url_hash": _hash(normalized), "domain_hash": _hash(domain_of(host))}
    return {**hashes, "reason": None, "error": None}


@lru_cache(maxsize=1)
def _loaded(rules: Rules, digest: str) -> UrlRules:
    """The rules with their lists, which can be large: read once in a process for each content."""
    return UrlRules(rules)


def _refused(reason: str, error: str) -> dict[str, Any]:
    return {"url_hash": 0, "domain_hash": 0, "reason": reason, "error": error}


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


def leave_first(refs: list[ShardRef], column: str, limit: int, left: list[np.ndarray]) -> None:
    """Clears `left` of every row but the first `limit` of each value of the column.

    left: (n,) bool of every shard, the rows that are still in. Memory: BUCKET_ROWS hashes, and a byte a row.
    """
    buckets = max(1, -(-sum(map(len, left)) // BUCKET_ROWS))
    for bucket in range(buckets):
        values, rows = [], []
        for ref, mask in zip(refs, left, strict=True):
            found = read_table(ref, [column])[column].to_numpy()
            rows.append(np.flatnonzero(mask & (found % buckets == bucket)))
            values.append(found[rows[-1]])
        first = first_of_each(np.concatenate(values), limit)
        for mask, mine, stays in zip(left, rows, np.split(first, np.cumsum(list(map(len, rows)))[:-1]), strict=True):
            mask[mine[~stays]] = False


@task(name="verdicts", persist_result=False, cache_policy=NO_CACHE)
def verdicts_shard(links: ShardRef, target: ShardRef, config: Config, user_agent: str, digest: str) -> ShardRef:
    """Judges every link of a shard. digest: of the rules with the content of their files."""
    rules = _loaded(config.rules, digest)
    with write_shard(target, schemas.VERDICTS, {"version": VERSION, "rules": digest}) as shard:
        for batch in read_batches(links, ["url", "page_url", "robots"]):
            for link in batch.to_pylist():
                shard.keep(verdict(link, rules, config, user_agent))
    return target.model_copy(update={"rows": shard.kept.rows})


@task(name="choose-urls", persist_result=False, cache_policy=NO_CACHE)
def choose(verdicts: list[ShardRef], target: StageDir, config: Config) -> int:
    """Why each link is left out: the rule that it breaks, an equal URL before it, or a domain that has enough."""
    left = [pc.is_null(read_table(ref, ["reason"])["reason"]).to_numpy(zero_copy_only=False) for ref in verdicts]
    lawful = [np.packbits(mask) for mask in left]
    leave_first(verdicts, "url_hash", 1, left)
    unique = [np.packbits(mask) for mask in left]
    if config.rules.max_per_domain is not None:
        leave_first(verdicts, "domain_hash", config.rules.max_per_domain, left)
    for ref, verdict_ref, *masks in zip(target.planned(len(verdicts)), verdicts, lawful, unique, left, strict=True):
        was_lawful, was_unique = (np.unpackbits(mask, count=len(masks[2])).astype(bool) for mask in masks[:2])
        reason = read_table(verdict_ref, ["reason"])["reason"].to_numpy().astype(object)
        reason[was_lawful & ~was_unique] = "duplicate_url"
        reason[was_unique & ~masks[2]] = "domain_full"
        with write_shard(ref, schemas.CHOICES, {"version": VERSION}) as shard:
            shard.keep_table(pa.table({"reason": pa.array(reason, pa.string())}))
    return len(verdicts)


@task(name="crawl", persist_result=False, cache_policy=NO_CACHE)
def manifest_shards(
    target: list[ShardRef], links: list[ShardRef], verdicts: list[ShardRef], choices: list[ShardRef], config: Config
) -> list[ShardRef]:
    """Writes these manifest shards, `rows_per_shard` links each; they come in their order.

    What could not be read of the files is in the first shard of all.
    """
    rows, position = _judged(links, verdicts, choices, target[0].index * config.rows_per_shard, config), target[0].index
    for ref in target:
        deque(islice(rows, (ref.index - position) * config.rows_per_shard), maxlen=0)
        position = ref.index + 1
        with write_shard(ref, SCHEMA, {"version": VERSION, **config.model_dump(mode="json")}) as shard:
            for link, reason, error in islice(rows, config.rows_per_shard):
                if reason:
                    shard.reject(link["key"], reason, state="dropped", error=error)
                else:
                    shard.keep({name: link.get(name) for name in SCHEMA.names})
            for broken in _unreadable(links) if ref.index == 0 else ():
                shard.reject(broken["key"], broken["reason"], error=broken["error"])
    return target


def _judged(
    links: list[ShardRef], verdicts: list[ShardRef], choices: list[ShardRef], first_row: int, config: Config
) -> Iterator[tuple[dict[str, Any], str | None, str]]:
    """(link, reason, error) of every link from that row on. Memory: the small columns of one shard of links."""
    for ref, verdict_ref, choice_ref in zip(links, verdicts, choices, strict=True):
        position = ref.first_row
        if position + ref.rows <= first_row:
            continue
        reasons = read_table(choice_ref)["reason"]
        errors = read_table(verdict_ref, ["error"])["error"]
        for batch in read_batches(ref):
            skipped = min(max(0, first_row - position), batch.num_rows)
            for index, link in enumerate(batch.slice(skipped).to_pylist(), position + skipped - ref.first_row):
                reason = reasons[index].as_py()
                yield link, reason, errors[index].as_py() or _explained(link["url"], reason, config)
            position += batch.num_rows


def _explained(url: str, reason: str | None, config: Config) -> str:
    """The error of a link that breaks no rule by itself."""
    if reason == "duplicate_url":
        return f"an earlier row has {normalized_url(url, max_length=config.rules.max_length)}"
    return f"a domain must have at most {config.rules.max_per_domain} URLs, was full" if reason else ""


def _unreadable(links: list[ShardRef]) -> Iterator[dict[str, Any]]:
    for ref in links:
        yield from read_table(ref, ["key", "reason", "error"], kind="rejects").to_pylist()


@task(name="list-images", persist_result=False, cache_policy=NO_CACHE)
def listed_shards(target: StageDir, partition: Partition, config: Config) -> int:
    """The manifest of images that lie in folders, tars or datasets; returns how many shards it has."""
    count = max(1, -(-source_rows.num_rows(partition) // config.rows_per_shard))
    rows = source_rows.rows(partition)
    for ref in target.planned(count):
        mine = islice(rows, config.rows_per_shard)
        if is_written(ref):
            deque(mine, maxlen=0)
            continue
        with write_shard(ref, SCHEMA, {"version": VERSION, "rows_per_shard": config.rows_per_shard}) as shard:
            for row in mine:
                shard.keep(row)
    return count
