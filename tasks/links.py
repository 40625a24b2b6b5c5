"""Links: every image that the files of a source name, one row each, as they stand; nothing is judged yet.

At 10^9 pages of a web crawl with 25 images each (60,000 WAT files, 15 TB compressed): every file is read once by one
task, about 0.3 ms of one core per page, 5 TB written; memory per worker: one page and one batch of rows.
"""

from collections.abc import Iterator
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from lvd.infra.shards import ShardRef
from lvd.infra.writing import write_shard
from lvd.tasks import archives, schemas
from lvd.tasks.source_rows import domain, stated, url_rows
from lvd.tasks.sources import Partition, Urls

SCHEMA = schemas.LINKS
VERSION = 2


def links(partition: Partition, path: str) -> Iterator[dict[str, Any] | archives.Broken]:
    """Rows of schemas.LINKS of one list of URLs or one archive, streamed; what of an archive cannot be read as Broken.

    Raises InputError for a list that cannot be read.
    """
    source = partition.source
    empty = dict.fromkeys(SCHEMA.names) | stated(source)
    if isinstance(source, Urls):
        yield from (empty | row for row in url_rows(source, path))
        return
    for page in archives.pages(path, source.kind):
        if isinstance(page, archives.Broken):
            yield page
            continue
        of_page = empty | {"page_url": page.url, "discovered_at": page.crawled_at, "robots": page.robots or None}
        of_page |= {"license": page.license} if page.license else {}
        for image in page.images:
            yield of_page | {"key": image.url, "url": image.url, "alt": image.alt, "domain": domain(image.url)}


@task(name="links", persist_result=False, cache_policy=NO_CACHE)
def links_shard(partition: Partition, target: ShardRef) -> ShardRef:
    """Writes the links of the partition's file of that number; what cannot be read is a reject."""
    with write_shard(target, SCHEMA, {"version": VERSION}) as shard:
        for link in links(partition, partition.files[target.index]):
            if isinstance(link, archives.Broken):
                shard.reject(link.key, link.reason, error=link.error)
            else:
                shard.keep(link)
    return target.model_copy(update={"rows": shard.kept.rows})
