"""Forgetting: which images are taken down, and everything that is a copy of one.

What was measured of a forgotten image stays, so that it goes on attracting its copies: it is hashed, described and
compared as if nothing had happened, and dropped after that, together with every image that exact bytes, the hash or the
descriptor joined it to. What lies on a domain is dropped before anything is compared, so that a copy elsewhere is free
to stay.
Cost at 10^9 images: keys and URLs are read once for every new record, 5 us of one core each; the decision reads the
fates of the pool, which have 100 bytes a row, up to ten times, and holds them once.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel

from lvd.infra.shards import ShardRef, StageDir, gather_rows, read_column, read_table
from lvd.infra.storage import Storage
from lvd.infra.writing import write_shard
from lvd.tasks import schemas
from lvd.tasks.components import Edges
from lvd.tasks.fates import Decision, Fates
from lvd.tasks.takedowns import ASKED, DOMAIN, FORGOTTEN, FOUND, Takedowns, is_among, texts

SCHEMA = schemas.MARKS
VERSION = 1
JOINED = ("exact_duplicate", "near_duplicate", "copy")  # reasons that name an image of the pool

Pairs = Iterable[tuple[str, str]]  # image ids of two copies


class Across(BaseModel, frozen=True):
    """The edges between the pool and its references, and the references' image ids in their order."""

    edges: tuple[ShardRef, ...]
    references: tuple[ShardRef, ...]
    min_similarity: float


class Other(BaseModel, frozen=True):
    """A partition of a benchmark or a curated collection. target: what of it is withdrawn, if anything is."""

    images: tuple[ShardRef, ...]
    marked: tuple[ShardRef, ...]
    target: StageDir


class Withdrawal(Decision, frozen=True):
    """What was forgotten. withdrawn: a directory of images that are no pool → what of it is withdrawn."""

    withdrawn: dict[str, str]


def marks(images: ShardRef, takedowns: Takedowns) -> pa.Table:
    """The rows of one shard of images that a record means: row, image_id, kind."""
    table = read_table(images, ["image_id", "key", "url"])
    kinds = takedowns.kinds(table)
    rows = np.flatnonzero(kinds.astype(bool))
    columns = [rows + images.first_row, table["image_id"].take(pa.array(rows)), kinds[rows]]
    return pa.table([pa.array(columns[0]), columns[1], pa.array(columns[2], pa.string())], schema=SCHEMA)


def closure(seeds: Iterable[str], copies: Callable[[set[str]], Pairs]) -> dict[str, str]:
    """image id → the seed that it goes with, of the seeds and of all that is joined to them, by however many copies.

    copies: the pairs that have one of these ids. Memory: what is found.
    """
    found, grows = {seed: seed for seed in seeds}, True
    while grows:
        grows = False
        for pair in copies(set(found)):
            for known, new in (pair, pair[::-1]):
                if known in found and new not in found:
                    found[new], grows = found[known], True
    return found


def copies_in(fates: list[ShardRef], wanted: set[str], reasons: tuple[str, ...] = JOINED) -> Iterator[tuple[str, str]]:
    """Every image that was dropped because of another one of the pool, and that one; of pairs that have a wanted id."""
    ids = texts(wanted)
    for ref in fates:
        table = read_table(ref, ["image_id", "reason", "because_of"])
        table = table.filter(pc.is_in(table["reason"], value_set=pa.array(reasons)))
        near = is_among(table["image_id"], ids) | is_among(table["because_of"], ids)
        mine = table.filter(pa.array(near))
        yield from zip(mine["image_id"].to_pylist(), mine["because_of"].to_pylist(), strict=True)


def copies_across(fates: list[ShardRef], across: Across | None) -> list[tuple[str, str]]:
    """Every image of the pool that copies a reference, and the reference."""
    if across is None:
        return []
    pairs, _ = Edges(list(across.edges), across.min_similarity).all()
    if not len(pairs):
        return []
    ends = ((fates, pairs[:, 0]), (list(across.references), pairs[:, 1]))
    left, right = (gather_rows(refs, at, ["image_id"])["image_id"].to_pylist() for refs, at in ends)
    return list(zip(left, right, strict=True))


def gone_with(
    marked: list[pa.Table], fates: list[ShardRef], across: Across | None, known: Iterable[str] = ()
) -> dict[str, str]:
    """image id → the image that it is forgotten because of, itself if it was asked for or was found before.

    marked: of all collections; fates: those after copies were found; known: more images that are forgotten.
    """
    to_references = copies_across(fates, across)
    seeds = [*(one for kind in (ASKED, FOUND) for one in _ids(marked, kind)), *known]
    return closure(seeds, lambda wanted: chain(copies_in(fates, wanted), to_references))


def _ids(marked: list[pa.Table], kind: str) -> list[str]:
    tables = [table.filter(pc.equal(table["kind"], kind)) for table in marked]
    return sorted({one for table in tables for one in table["image_id"].to_pylist()})


def read_marks(refs: Iterable[ShardRef]) -> pa.Table:
    """All marks of some shards, `row` counted over the collection."""
    tables = [SCHEMA.empty_table()]
    for ref in refs:
        table = read_table(ref)
        tables.append(table.set_column(0, SCHEMA.field("row"), pa.array(table["row"].to_numpy() + ref.base)))
    return pa.concat_tables(tables)


@task(name="mark", persist_result=False, cache_policy=NO_CACHE)
def mark_shard(images: ShardRef, target: ShardRef, records: tuple[str, ...]) -> ShardRef:
    """The rows of one shard of images that these records mean."""
    table = marks(images, Takedowns.read(Storage(target.root), records))
    with write_shard(target, SCHEMA, {"version": VERSION}) as shard:
        shard.keep_table(table)
        if len(table):
            is_domain = np.array(table["kind"].to_pylist()) == DOMAIN
            shard.notes |= {"domain": _said(table, is_domain), "spread": _said(table, ~is_domain)}
    return target.model_copy(update={"rows": shard.kept.rows})


def _said(table: pa.Table, chosen: np.ndarray) -> str | None:
    """What tells these rows from others; None if there are none."""
    rows = table.filter(pa.array(chosen)).select(["row", "image_id"])
    return hashlib.sha256(repr(rows.to_pydict()).encode()).hexdigest()[:16] if len(rows) else None


@task(name="decide-withheld", persist_result=False, cache_policy=NO_CACHE)
def withhold(images: list[ShardRef], fates: list[ShardRef], marked: list[ShardRef], target: StageDir) -> Decision:
    """The fates without what lies on a domain that was taken down."""
    current, table = Fates.read(fates), read_marks(marked)
    rows = table.filter(pc.equal(table["kind"], DOMAIN))["row"].to_numpy()
    current.overrule(rows, FORGOTTEN, FORGOTTEN)
    return current.write(target, images, {"version": VERSION}, FORGOTTEN)


@task(name="decide-forgotten", persist_result=False, cache_policy=NO_CACHE)
def forget(
    images: list[ShardRef],
    fates: list[ShardRef],
    marked: list[ShardRef],
    others: list[Other],
    across: Across | None,
    target: StageDir,
) -> Withdrawal:
    """The fates without the images that were taken down and all copies of them; what of the others is withdrawn."""
    own, theirs = read_marks(marked), [read_marks(other.marked) for other in others]
    gone = gone_with([own, *theirs], fates, across)
    current = Fates.read(fates)
    rows = np.flatnonzero(is_among(pa.chunked_array([pa.array(current.image_id, pa.string())]), gone))
    current.overrule(rows, FORGOTTEN, FORGOTTEN, because_of=causes(current.image_id[rows], gone))
    withdrawn = {}
    for other, table in zip(others, theirs, strict=True):
        if write_withdrawn(other, table, gone):
            withdrawn[other.images[0].directory] = other.target.directory
    decision = current.write(target, images, {"version": VERSION}, FORGOTTEN)
    return Withdrawal(**decision.model_dump(), withdrawn=withdrawn)


def causes(image_ids: np.ndarray, gone: dict[str, str]) -> np.ndarray:
    """(n,) object: the image that each is forgotten because of; None of those that were asked for themselves."""
    return np.array([cause if (cause := gone[one]) != one else None for one in image_ids.tolist()], dtype=object)


def write_withdrawn(other: Other, marked: pa.Table, gone: dict[str, str]) -> int:
    """How many images of a partition are withdrawn; their rows are written if there are any."""
    ids = read_column(list(other.images), "image_id")
    rows = np.union1d(np.flatnonzero(is_among(ids, gone)), marked["row"].to_numpy())
    if not len(rows):
        return 0
    mine = ids.take(pa.array(rows)).to_numpy()
    cause = causes(mine, gone | {one: one for one in mine.tolist() if one not in gone})
    for ref, image in zip(other.target.planned(len(other.images)), other.images, strict=True):
        here = (rows >= image.first_row) & (rows < image.first_row + image.rows)
        with write_shard(ref, schemas.WITHDRAWN, {"version": VERSION}) as shard:
            columns = [rows[here], mine[here], cause[here]]
            arrays = [pa.array(c, f.type) for c, f in zip(columns, schemas.WITHDRAWN, strict=True)]
            shard.keep_table(pa.Table.from_arrays(arrays, schema=schemas.WITHDRAWN))
    return len(rows)
