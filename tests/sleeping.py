"""Shards that take time and nothing else, for tests and benchmarks of how work is spread."""

import os
import time
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from lvd.infra.errors import RetryableError
from lvd.infra.shards import ShardRef
from lvd.infra.writing import write_shard
from lvd.tasks import schemas


@task(name="sleep", persist_result=False, cache_policy=NO_CACHE)
def sleep(number: int, seconds: float) -> tuple[int, int]:
    """(number, process id) after so many seconds."""
    time.sleep(seconds)
    return number, os.getpid()


@task(name="fail", persist_result=False, cache_policy=NO_CACHE)
def fail(error: Exception) -> None:
    raise error


@task(name="flaky", persist_result=False, cache_policy=NO_CACHE)
def flaky(path: str, failures: int) -> int:
    """The number of this attempt, once so many have failed."""
    log = Path(path)
    attempts = len(log.read_text()) + 1 if log.exists() else 1
    log.write_text("x" * attempts)
    if attempts <= failures:
        raise RetryableError("busy")
    return attempts


@task(name="write-together", persist_result=False, cache_policy=NO_CACHE)
def write_together(jobs: list[tuple[int, ShardRef]], *, log: str, busy: int = -1) -> list[int | Exception]:
    """Writes an empty shard for every job, and gives its number, or an error for a negative one; logs each call.

    busy: this number fails in its first call, in a way that can pass.
    """
    is_first = not Path(log).exists()
    with Path(log).open("a") as lines:
        lines.write(f"{[number for number, _ in jobs]}\n")
    late = busy if is_first else -1
    for number, ref in jobs:
        if number >= 0 and number != late:
            with write_shard(ref, schemas.FATES, {}):
                pass
    errors = {late: RetryableError("busy")}
    return [errors.get(number, number) if number >= 0 else ValueError("negative") for number, _ in jobs]
