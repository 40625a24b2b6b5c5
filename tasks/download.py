"""Images: the bytes of every candidate as they came, with what their header says; fetched over HTTP or read from disk.

At 10^9 images of 110 kB: 110 TB fetched and 110 TB written, about 0.8 ms of one core per image (SHA-256, header, HTTP),
memory per worker at most HELD_BYTES, some kilobytes per row under way and one image per reader. Every shard is fetched
in a process of its own; one that is killed costs its shard only, which is fetched again.
"""

from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from lvd.infra.errors import RetryableError
from lvd.infra.shards import ShardRef
from lvd.infra.storage import Storage
from lvd.infra.writing import log_account, with_features
from lvd.tasks import fetching, schemas

SCHEMA = schemas.IMAGES
VERSION = fetching.VERSION
Config = fetching.Config  # it lies where the process that fetches can import it without Prefect


def is_retryable(_task: Any, _run: Any, state: Any) -> bool:
    """Only a process that ended without a word is started again."""
    return isinstance(state.result(raise_on_failure=False), RetryableError)


@task(name="download", persist_result=False, cache_policy=NO_CACHE, retries=2, retry_condition_fn=is_retryable)
def download_shard(source: ShardRef, target: ShardRef, config: Config, share: int = 1) -> ShardRef:
    """Writes the images of one manifest shard, in its order; returns the target with its rows.

    share: how many such tasks run at once; the limits per host are divided among them.
    """
    rows = fetching.fetch_apart(source, target, with_features(SCHEMA), config, share)
    log_account(target, Storage(target.root).read_json(target.name("account", "json")))
    return target.model_copy(update={"rows": rows})
