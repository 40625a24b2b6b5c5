"""Small stages on a folder, as the flows leave them: a pool of several partitions, each of several shards."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from lvd.infra.committing import commit
from lvd.infra.series import Series
from lvd.infra.shards import ShardRef, StageDir
from lvd.infra.writing import write_shard
from lvd.tasks import crawl, links, schemas
from lvd.tasks.decode import DecodeError, read_header
from lvd.tasks.sources import Partition
from lvd.tasks.url_rules import rules_digest

Layout = tuple[tuple[int, ...], ...]  # rows of every shard of every partition
Rows = Mapping[int, dict[str, Any]] | Sequence[dict[str, Any]]  # pool row → columns; what is left out is null

TWO_PARTITIONS: Layout = ((3, 0, 4), (5, 2))


def by_partition(refs: list[ShardRef]) -> list[list[ShardRef]]:
    """The shards of each partition."""
    return [list(shards) for _, shards in groupby(refs, key=lambda ref: ref.directory)]


def series(refs: list[ShardRef]) -> Series:
    """The shards of complete directories as they travel: directories by name, each with its base."""
    bases = {ref.directory: ref.base for ref in refs}
    parts = [name.rsplit("/", 1) for name in bases]
    directories = [StageDir(root=refs[0].root, stage=stage, fingerprint=name) for stage, name in parts]
    return Series.of(directories, list(bases.values()))


def computed(
    root: str, name: str, count: int, compute: Callable[[ShardRef], ShardRef], *, called: str = "a"
) -> list[ShardRef]:
    """The shards of one directory that a task fills; each tells its rows as the directory does when it is complete."""
    target = StageDir(root=root, stage=name, fingerprint=called)
    rows = [compute(ref).rows for ref in target.planned(count)]
    commit(target, count, config={}, inputs={})
    assert rows == [ref.rows for ref in target.shards()]
    return target.shards()


def cut(num_rows: int, num_shards: int) -> Layout:
    """So many rows in two partitions of uneven shards, some of which are empty; one shard is one partition."""
    if num_shards == 1:
        return ((num_rows,),)
    rng = np.random.default_rng(num_shards)
    ends = np.sort(rng.integers(0, num_rows + 1, num_shards - 1))
    sizes = np.diff(np.concatenate([[0], ends, [num_rows]])).tolist()
    return tuple(sizes[: num_shards // 2]), tuple(sizes[num_shards // 2 :])


def identity(number: int) -> str:
    """An image id that sorts as the number does."""
    return f"{number:032x}"


def places(layout: Layout) -> Iterator[tuple[int, int, range]]:
    """(partition, shard, its pool rows) of every shard."""
    row = 0
    for partition, shards in enumerate(layout):
        for shard, rows in enumerate(shards):
            yield partition, shard, range(row, row + rows)
            row += rows


def stage(
    root: str,
    name: str,
    schema: pa.Schema,
    rows: Rows,
    layout: Layout,
    *,
    rejects: Mapping[int, str] | None = None,
    state: str = "failed",
) -> list[ShardRef]:
    """The shards of a complete stage with one directory for each partition; each pool row lies where the layout says.

    A column `row` that is left out is the row in the partition. rejects: pool row → reason; state: of all of them.
    """
    rows = rows if isinstance(rows, Mapping) else dict(enumerate(rows))
    targets = [StageDir(root=root, stage=name, fingerprint=f"part{number}") for number in range(len(layout))]
    bases = np.cumsum([0, *(sum(shards) for shards in layout)]).tolist()
    for partition, index, pool_rows in places(layout):
        with write_shard(targets[partition].planned(len(layout[partition]))[index], schema, {}) as shard:
            for row in pool_rows:
                own = row - bases[partition]
                if row in rows:
                    shard.keep({"row": own, **rows[row]} if "row" in schema.names else rows[row])
                if row in (rejects or {}):
                    shard.reject(
                        f"key-{row}", rejects[row], state=state, row=own, image_id=rows.get(row, {}).get("image_id")
                    )
    for target, shards in zip(targets, layout, strict=True):
        commit(target, len(shards), config={}, inputs={})
    return [ref for target, base in zip(targets, bases, strict=False) for ref in target.shards(base=base)]


def manifest(root: str, partition: Partition, **options: Any) -> list[ShardRef]:
    """The manifest of a partition, as the flow `crawl` writes it; options: of crawl's configuration."""
    config = crawl.Config(**options)
    target = StageDir(root=root, stage="crawl", fingerprint=partition.digest)
    if not partition.is_linked:
        count = crawl.listed_shards.fn(target, partition, config)
        commit(target, count, config={}, inputs={})
        return target.shards()
    named, judged, chosen = (
        StageDir(root=root, stage=name, fingerprint=partition.digest) for name in ("links", "verdicts", "choices")
    )
    for ref in named.planned(len(partition.files)):
        links.links_shard.fn(partition, ref)
    commit(named, len(partition.files), config={}, inputs={})
    for source, ref in zip(named.shards(), judged.planned(len(partition.files)), strict=True):
        crawl.verdicts_shard.fn(source, ref, config, "lvd", rules_digest(config.rules))
    commit(judged, len(partition.files), config={}, inputs={})
    commit(chosen, crawl.choose.fn(judged.shards(), chosen, config), config={}, inputs={})
    count = max(1, -(-sum(ref.rows for ref in named.shards()) // config.rows_per_shard))
    crawl.manifest_shards.fn(target.missing(count), named.shards(), judged.shards(), chosen.shards(), config)
    commit(target, count, config={}, inputs={})
    return target.shards()


def image(data: bytes, **columns: Any) -> dict[str, Any]:
    """The row of an image, as download writes it; for bytes without a header, of 100 x 100 pixels."""
    try:
        header = read_header(data)
        said = {name: getattr(header, name) for name in ("width", "height", "frames", "format")}
    except DecodeError:
        said = {"width": 100, "height": 100, "frames": 1, "format": "JPEG"}
    image_id = hashlib.sha256(data).hexdigest()[:32]
    own = {"image_id": image_id, "image": {"bytes": data, "path": ""}, "num_bytes": len(data)}
    return {**own, **said, "source": "planted", **columns}


def images(root: str, rows: Sequence[dict[str, Any]], layout: Layout, name: str = "download") -> list[ShardRef]:
    """The images of a pool, with keys that count them."""
    keyed = [{"key": f"key-{number}", **row} for number, row in enumerate(rows)]
    return stage(root, name, schemas.IMAGES, keyed, layout)


def unit(values: np.ndarray) -> np.ndarray:
    """Rows of (n, d) values with length 1, in float16 as they are stored."""
    values = np.asarray(values, dtype=np.float64)
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)


def random_units(rng: np.random.Generator, num_rows: int, dim: int) -> np.ndarray:
    """(num_rows, dim) float16 unit rows in random directions."""
    return unit(rng.normal(size=(num_rows, dim)))


def around(rng: np.random.Generator, num_rows: int, dim: int, groups: int, *, spread: float = 0.5) -> np.ndarray:
    """(num_rows, dim) float16 unit rows about some directions, so that they have near neighbours."""
    middle = rng.normal(size=(groups, dim))
    return unit(middle[rng.integers(groups, size=num_rows)] + spread * rng.normal(size=(num_rows, dim)))


def vectors(
    root: str,
    name: str,
    values: np.ndarray,
    layout: Layout,
    *,
    left_out: Sequence[int] = (),
    rejects: Mapping[int, str] | None = None,
) -> list[ShardRef]:
    """Vectors of the pool rows that are neither left out nor rejected. Image ids are `identity(pool row)`."""
    absent = {*left_out, *(rejects or {})}
    rows = {n: {"image_id": identity(n), "vector": v} for n, v in enumerate(values) if n not in absent}
    return stage(root, name, schemas.vectors(values.shape[1]), rows, layout, rejects=rejects)


def centroids(root: str, values: np.ndarray) -> ShardRef:
    """The centroids (k, d) float32 of a fit."""
    rows = [{"cluster_id": n, "size": 1, "vector": vector} for n, vector in enumerate(values)]
    return stage(root, "centroids", schemas.centroids(values.shape[1]), rows, ((len(rows),),))[0]


def cosine(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(n, m) float64 inner products, rounded to 5 decimals as similarities are."""
    return (left.astype(np.float64) @ right.astype(np.float64).T).round(5)
