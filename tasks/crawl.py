"""Manifest: the candidates of one partition of a source, one row each, before anything is fetched.

At 10^9 URLs: the lists are read twice (about 100 GB each time), 150 GB of manifest are written, 8 bytes of memory per
URL of the partition and the text of the repeated ones, about 20 µs of one core per URL; partitions run side by side.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import xxhash
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, Field

from lvd.infra.shards import StageDir, write_shard
from lvd.tasks import schemas, sources
from lvd.tasks.sources import Partition

SCHEMA = schemas.MANIFEST
VERSION = 1
DEFAULT_PORTS = {"http": 80, "https": 443}

_HOST = re.compile(r"[^\s\x00-\x1f\x7f/\\?#@%<>^|\"{}`\[\]]{1,253}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Config(BaseModel, frozen=True, extra="forbid"):
    rows_per_shard: int = Field(10_000, ge=1, le=1_000_000)  # more: fewer files, longer tasks, more to do again
    max_url_length: int = Field(4096, ge=16, le=65_536)  # characters


def normalized_url(url: str | None, *, max_length: int) -> str:
    """The URL by which repeats are found: scheme and host in lower case, without default port and fragment.

    Raises ValueError if it is no http or https URL with a host, or longer than max_length.
    """
    if not url:
        raise ValueError("url must not be empty")
    if len(url) > max_length:
        raise ValueError(f"url must have at most {max_length} characters, had {len(url)}")
    if _CONTROL.search(url):
        raise ValueError(f"url must not hold control characters, was {url!r}")
    parts = urlsplit(url.strip())
    if parts.scheme not in DEFAULT_PORTS:
        raise ValueError(f"url must begin with http:// or https://, was {url!r}")
    host = (parts.hostname or "").rstrip(".")
    if not _HOST.fullmatch(host):
        raise ValueError(f"url must name a host, was {url!r}")
    user = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    port = "" if parts.port in (None, DEFAULT_PORTS[parts.scheme]) else f":{parts.port}"
    host = f"[{host}]" if ":" in host else host
    return parts._replace(netloc=f"{user}{host}{port}", path=parts.path or "/", fragment="").geturl()


def repeated_hashes(urls: Iterable[str | None], *, max_length: int) -> tuple[int, set[int]]:
    """How many URLs there are, and the 64-bit hashes that more than one valid URL has: 8 bytes of memory per URL."""
    num_urls = 0

    def hashes() -> Iterator[int]:
        nonlocal num_urls
        for url in urls:
            num_urls += 1
            try:
                yield xxhash.xxh3_64_intdigest(normalized_url(url, max_length=max_length).encode())
            except ValueError:
                continue

    found = np.fromiter(hashes(), dtype=np.uint64)
    found.sort()
    return num_urls, set(found[1:][found[1:] == found[:-1]].tolist())


class UrlCheck:
    """Why a row of a URL list is dropped; asked in the order of the rows, the first of several equal URLs stays."""

    def __init__(self, repeated: set[int], *, max_length: int) -> None:
        self._repeated, self._max_length = repeated, max_length
        self._seen: set[str] = set()

    def problem(self, url: str | None) -> tuple[str, str] | None:
        """Reason and error, or None for a URL that is kept."""
        try:
            normalized = normalized_url(url, max_length=self._max_length)
        except ValueError as error:
            return "invalid_url", str(error)
        if xxhash.xxh3_64_intdigest(normalized.encode()) not in self._repeated:
            return None
        if normalized in self._seen:
            return "duplicate_url", f"an earlier row has {normalized}"
        self._seen.add(normalized)
        return None


@task(name="crawl", persist_result=False, cache_policy=NO_CACHE)
def manifest_shards(target: StageDir, partition: Partition, config: Config) -> int:
    """Writes every manifest shard of the partition that is not there yet; returns how many shards it has."""
    check = None
    if partition.source.kind == "urls":
        urls = (row["url"] for row in sources.rows(partition))
        num_rows, repeated = repeated_hashes(urls, max_length=config.max_url_length)
        check = UrlCheck(repeated, max_length=config.max_url_length)
    else:
        num_rows = sources.num_rows(partition)
    count = max(1, -(-num_rows // config.rows_per_shard))
    missing = {ref.index for ref in target.missing(count)}
    rows = sources.rows(partition)
    for ref in target.planned(count):
        write = (
            write_shard(ref, SCHEMA, {"version": VERSION, **config.model_dump()})
            if ref.index in missing
            else nullcontext()
        )
        with write as shard:
            _fill(shard, islice(rows, config.rows_per_shard), check)
    return count


def _fill(shard: Any, rows: Iterable[dict[str, Any]], check: UrlCheck | None) -> None:
    """shard: None if it is on storage already; its rows are then only remembered, for repeats in later shards."""
    for row in rows:
        problem = check.problem(row["url"]) if check else None
        if shard is None:
            continue
        if problem:
            shard.reject(row["key"], problem[0], state="dropped", error=problem[1])
        else:
            shard.keep(row)
