"""Own vectors: embeddings that somebody has already, in place of images; and what is chosen of them.

Files of vectors are cut into pieces, each of which becomes a shard as `embed` writes them: unit float16, a row for each
vector that is finite and not zero. What is published of them are their names and why they are in.
Cost at 10^9 x 1,280: reads 5.1 TB of float32, writes 2.6 TB. Memory: one piece, twice; of Parquet one row group more,
which is read anew for every piece that has rows of it.
"""

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, Field

from lvd.infra.errors import InputError
from lvd.infra.object_store import errors_of
from lvd.infra.runs import SortedRun, read_range
from lvd.infra.shards import ShardRef, read_table
from lvd.infra.writing import write_shard
from lvd.tasks import schemas
from lvd.tasks.matched import Matched, retrieved, survivors

VERSION = 2
ROWS_PER_PIECE = 50_000
SUFFIXES = (".npy", ".parquet")
DRAW = 0x5E
CHOSEN = pa.schema([schemas.MATCHES.field("row"), *(f for f in schemas.CURATED if f.name in (
    "image_id", "role", "retrieved_for", "query_id", "similarity", "cluster_id"))])  # fmt: skip


class Vectors(BaseModel, frozen=True, extra="forbid"):
    """Vectors in files of NumPy (rows by values) or Parquet: a file, a folder or a glob."""

    kind: Literal["vectors"] = "vectors"
    path: str = Field(min_length=1)
    source: str | None = None
    vector_column: str = "vector"  # of Parquet
    id_column: str | None = None  # of Parquet, what the vectors are called; null: by file and row


class Synthetic(BaseModel, frozen=True, extra="forbid"):
    """Vectors that are drawn: unit vectors around groups, for trials of the search."""

    kind: Literal["synthetic"] = "synthetic"
    rows: int = Field(ge=1)
    dim: int = Field(ge=2, le=8192)
    groups: int = Field(1000, ge=1)
    spread: float = Field(0.7, ge=0)  # length of what is added to a group's direction
    seed: int = Field(0, ge=0)  # of the groups; two sources with one seed have the same
    draw: int = Field(0, ge=0)  # of the rows
    source: str | None = None


VectorSource = Annotated[Vectors | Synthetic, Field(discriminator="kind")]


class Piece(BaseModel, frozen=True):
    """Neighbouring rows of one file, or of what is drawn; `start` is the number of the first in the collection."""

    source: VectorSource
    file: str
    first: int
    rows: int
    start: int
    dim: int  # values of a vector


def pieces(source: VectorSource, start: int = 0) -> list[Piece]:
    """All rows of a source in pieces, one at least. start: the rows of the collection before it.

    Raises InputError if there is nothing at the path, no vector in it, or vectors of unlike lengths.
    """
    found: list[Piece] = []
    heads = [("", source.rows, source.dim)] if isinstance(source, Synthetic) else files_of(source)
    for file, rows, dim in heads:
        if found and dim != found[0].dim:
            raise InputError(
                f"path must lead to vectors of one length, {found[0].file} has {found[0].dim} values, {file} {dim}: "
                "leave one out"
            )
        for first in range(0, rows, ROWS_PER_PIECE):
            number = min(ROWS_PER_PIECE, rows - first)
            found.append(Piece(source=source, file=file, first=first, rows=number, start=start, dim=dim))
            start += number
    if not found:
        raise InputError(f"path must lead to files with at least 1 vector, was {source.path!r}: all are empty")
    return found


def files_of(source: Vectors) -> list[tuple[str, int, int]]:
    """(URI, rows, values of a row) of every file that has vectors, in sorted order."""
    try:
        fs, path = fsspec.core.url_to_fs(source.path)
        fs.invalidate_cache()
        names = fs.find(path) if fs.isdir(path) else sorted(fs.glob(path)) if "*" in path else [path]
        names = [name for name in names if PurePosixPath(name).suffix in SUFFIXES and fs.exists(name)]
        heads = [(file, *head(source, file)) for file in map(fs.unstrip_protocol, names)]
    except (ValueError, ImportError, *errors_of(source.path.partition("://")[0])) as error:
        raise InputError(f"path must be readable, was {source.path!r}: {error}") from error
    if not heads:
        raise InputError(f"path must lead to files that end in .npy or .parquet, was {source.path!r}: there is none")
    return [(file, rows, dim) for file, rows, dim in heads if rows]


def identity(file: str) -> Any:
    """What changes when a file does."""
    if not file:
        return None
    fs, path = fsspec.core.url_to_fs(file)
    info = fs.info(path)
    return [file, info["size"], str(info.get("ETag") or info.get("mtime") or info.get("LastModified"))]


def head(source: Vectors, file: str) -> tuple[int, int]:
    """(rows, values of a row) of a file. Raises InputError if it is none of vectors, or not whole."""
    with fsspec.open(file, "rb") as opened:
        if not file.endswith(".npy"):
            return parquet_head(source, opened, file)
        (rows, dim), dtype = npy_head(opened, file)
        begin, size = opened.tell(), rows * dim * dtype.itemsize
        held = opened.seek(0, 2) - begin
    if held < size:
        raise InputError(f"path must lead to whole files, {file} has {held} of {size} bytes of values: copy it again")
    return rows, dim


def parquet_head(source: Vectors, opened: Any, file: str) -> tuple[int, int]:
    """(rows, values of a row); of a column of lists, those of the first vector."""
    try:
        table = pq.ParquetFile(opened, buffer_size=1 << 20)
    except pa.ArrowInvalid as error:
        raise InputError(f"path must lead to files of Parquet, {file} is none: {error}") from error
    for name, column in (("vector_column", source.vector_column), ("id_column", source.id_column)):
        if column is not None and column not in table.schema_arrow.names:
            known = ", ".join(table.schema_arrow.names)
            raise InputError(f"{name} must be a column of {file}, was {column!r}: it has {known}")
    kind = table.schema_arrow.field(source.vector_column).type
    if not is_list(kind) or not pa.types.is_floating(kind.value_type):
        raise InputError(
            f"vector_column must have lists of floating-point values, {source.vector_column!r} of {file} has {kind}"
        )
    if pa.types.is_fixed_size_list(kind):
        return table.metadata.num_rows, kind.list_size
    for batch in table.iter_batches(1, columns=[source.vector_column]):
        if batch.column(0).null_count == 0:
            return table.metadata.num_rows, len(batch.column(0)[0])
    return 0, 0


def is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def npy_head(opened: Any, file: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of a file of NumPy, which is then at its first value. Raises InputError for what is no matrix."""
    try:
        version = np.lib.format.read_magic(opened)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(opened)
    except ValueError as error:
        raise InputError(f"path must lead to files of NumPy, {file} is none: {error}") from error
    if len(shape) != 2 or shape[1] == 0 or is_fortran or dtype.kind != "f":
        order = ", column by column" if is_fortran else ""
        raise InputError(
            f"path must lead to rows of floating-point values, {file} has {dtype} of shape {shape}{order}: "
            "save it as numpy.ascontiguousarray(rows, dtype='float32')"
        )
    return shape, dtype


def read_piece(piece: Piece) -> tuple[np.ndarray, list[str]]:
    """(n, d) floating-point values and the names of the rows."""
    source, stop = piece.source, piece.first + piece.rows
    if isinstance(source, Synthetic):
        return drawn(source, piece.first, piece.rows), [
            f"synthetic-{source.seed}-{source.draw}/{n:010d}" for n in range(piece.first, stop)
        ]
    path = piece.file.split("://", 1)[-1]
    named = [f"{path}/{n:010d}" for n in range(piece.first, stop)]
    with fsspec.open(piece.file, "rb") as opened:
        if piece.file.endswith(".npy"):
            dtype = npy_head(opened, piece.file)[1]
            opened.seek(piece.first * piece.dim * dtype.itemsize, 1)
            held = opened.read(piece.rows * piece.dim * dtype.itemsize)
            return np.frombuffer(held, dtype).reshape(piece.rows, piece.dim), named
        columns = list(filter(None, (source.vector_column, source.id_column)))
        table = read_rows(pq.ParquetFile(opened), columns, piece.first, stop)
    if source.id_column:
        given = table[source.id_column].to_pylist()
        named = [name if value is None else str(value) for name, value in zip(named, given, strict=True)]
    return matrix(table[source.vector_column].combine_chunks(), piece), named


def matrix(column: pa.Array, piece: Piece) -> np.ndarray:
    """(n, d) values of a column of lists; not a number where it has null."""
    length = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    is_there = column.is_valid().to_numpy(zero_copy_only=False)
    unlike = np.flatnonzero(is_there & (length != piece.dim))
    if len(unlike):
        raise InputError(
            f"{piece.file}: all vectors must have {piece.dim} values, as the first, row {piece.first + unlike[0]} has "
            f"{int(length[unlike[0]])}: mend or leave out the file"
        )
    values = column.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, piece.dim)
    if is_there.all():
        return values
    found = np.full((len(column), piece.dim), np.nan, values.dtype)
    found[is_there] = values
    return found


def read_rows(file: pq.ParquetFile, columns: list[str], first: int, stop: int) -> pa.Table:
    """The rows [first, stop), of the row groups that have them."""
    parts, start = [], 0
    for number in range(file.num_row_groups):
        rows = file.metadata.row_group(number).num_rows
        if start < stop and start + rows > first:
            group = file.read_row_group(number, columns)
            begin = max(first - start, 0)
            parts.append(group.slice(begin, min(stop - start, rows) - begin))
        start += rows
    return pa.concat_tables(parts)


def drawn(source: Synthetic, first: int, rows: int) -> np.ndarray:
    """(n, d) float32. first: a multiple of ROWS_PER_PIECE."""
    centres = np.random.default_rng([source.seed, DRAW]).standard_normal((source.groups, source.dim), dtype=np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    rng = np.random.default_rng([source.seed, DRAW, source.draw, first])
    group = rng.integers(source.groups, size=rows)
    noise = rng.standard_normal((rows, source.dim), dtype=np.float32)
    return centres[group] + noise * np.float32(source.spread / source.dim**0.5)


@task(name="import-vectors", persist_result=False, cache_policy=NO_CACHE)
def import_shard(piece: Piece, target: ShardRef) -> ShardRef:
    """The vectors of one piece as unit float16; one that is zero or not finite is a reject."""
    values, names = read_piece(piece)
    good, unit = unit_rows(values)
    rows, schema = piece.start + np.arange(piece.rows), schemas.vectors(piece.dim)
    with write_shard(target, schema, {"version": VERSION}) as shard:
        for index in np.flatnonzero(~good).tolist():
            error = "the vector is zero or not finite"
            shard.reject(names[index], "not_finite", row=int(rows[index]), image_id=names[index], error=error)
        ids = pa.array(names, type=pa.string()).filter(pa.array(good))
        column = pa.FixedSizeListArray.from_arrays(pa.array(unit.ravel()), piece.dim)
        shard.keep_table(pa.Table.from_arrays([pa.array(rows[good]), ids, column], schema=schema))
    return target.model_copy(update={"rows": shard.kept.rows})


def unit_rows(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which rows have a direction, (n,) bool, and these with length 1, (m, d) float16. values: (n, d) of any float."""
    values = values.astype(np.promote_types(values.dtype, np.float32), copy=False)
    largest = np.abs(values).max(axis=1, keepdims=True)  # by which rows are divided first, so that no square overflows
    good = np.isfinite(largest[:, 0]) & (largest[:, 0] > 0)
    rows = (values[good] / largest[good]).astype(np.float32)
    return good, (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


@task(name="choose-vectors", persist_result=False, cache_policy=NO_CACHE)
def choose(matched: list[Matched], left: list[ShardRef] | None, target: ShardRef) -> ShardRef:
    """What was retrieved, by pool row; with `left`, all that is left besides. Memory: 160 bytes a row.

    left: the cells of the pool, if all that have one are chosen.
    """
    table = retrieved(matched) if left is None else survivors(left, matched)
    table = table.select(CHOSEN.names).cast(CHOSEN)
    with write_shard(target, CHOSEN, {"version": VERSION}) as shard, SortedRun(target, shard, "row") as run:
        run.keep(table)
    return target.model_copy(update={"rows": shard.kept.rows})


@task(name="publish-curated-vectors", persist_result=False, cache_policy=NO_CACHE)
def publish_included(vectors: ShardRef, target: ShardRef) -> ShardRef:
    """One shard of an included collection as what is published of it."""
    table = read_table(vectors, ["row", "image_id"])
    none = pa.array([[]] * len(table), type=pa.list_(pa.string()))
    table = table.append_column("role", pa.repeat("curated", len(table))).append_column("retrieved_for", none)
    return _published(table, target)


@task(name="publish-vectors", persist_result=False, cache_policy=NO_CACHE)
def publish_chosen(chosen: ShardRef, target: ShardRef, first: int, stop: int) -> ShardRef:
    """The rows of the pool in [first, stop) that were chosen as what is published of them."""
    return _published(read_range(chosen, first, stop), target)


def _published(table: pa.Table, target: ShardRef) -> ShardRef:
    with write_shard(target, CHOSEN, {"version": VERSION}) as shard:
        arrays = [table[f.name] if f.name in table.column_names else pa.nulls(len(table), f.type) for f in CHOSEN]
        shard.keep_table(pa.table(arrays, names=CHOSEN.names).cast(CHOSEN))
    return target.model_copy(update={"rows": shard.kept.rows})


@task(name="ledger-vectors", persist_result=False, cache_policy=NO_CACHE)
def ledger_shard(
    piece: Piece, vectors: ShardRef, chosen: ShardRef | None, duplicates: ShardRef | None, target: ShardRef
) -> ShardRef:
    """The ledger of one piece: of the pool by what was chosen, of an included collection (chosen: None) all.

    duplicates: the rows of the pool that mean the same as another, if any were looked for.
    """
    table = read_table(vectors, ["row", "image_id"])
    role = "curated" if chosen is None else "pool"
    with write_shard(target, schemas.LEDGER, {"version": VERSION}) as shard:
        for reject in read_table(vectors, ["key", "image_id", "state", "reason"], kind="rejects").to_pylist():
            shard.keep({"role": role, "source": piece.source.source or "", "stage": "embed", **reject})
        for part in _fates(table, chosen, duplicates, piece):
            num = len(part)
            given = {
                "key": part["image_id"],
                "role": pa.repeat(role, num),
                "source": pa.repeat(piece.source.source or "", num),
            }
            given |= {name: part[name] for name in part.column_names}
            arrays = [given[f.name] if f.name in given else pa.nulls(num, f.type) for f in schemas.LEDGER]
            shard.keep_table(pa.table(arrays, names=schemas.LEDGER.names).cast(schemas.LEDGER))
    return target.model_copy(update={"rows": shard.kept.rows})


def _fates(table: pa.Table, chosen: ShardRef | None, duplicates: ShardRef | None, piece: Piece) -> Iterator[pa.Table]:
    """The rows with state, stage, reason, score and because_of."""

    def ended(some: pa.Table, state: str, stage: str, reason: str | None = None) -> pa.Table:
        for name, value in (("state", state), ("stage", stage), ("reason", reason)):
            some = some if value is None else some.append_column(name, pa.repeat(value, len(some)))
        return some

    if chosen is None:
        yield ended(table, "kept", "publish", "curated")
        return
    rows, stop = table["row"].to_numpy(), piece.start + piece.rows
    if duplicates is not None:
        gone = read_range(duplicates, piece.start, stop)
        is_gone = np.isin(rows, gone["row"].to_numpy())
        named = gone.append_column("image_id", table["image_id"].filter(pa.array(is_gone)))
        named = named.rename_columns({"similarity": "score"})
        yield ended(named, "dropped", "cluster", "semantic_duplicate")
        table, rows = table.filter(pa.array(~is_gone)), rows[~is_gone]
    kept = read_range(chosen, piece.start, stop)
    is_kept = np.isin(rows, kept["row"].to_numpy())
    yield ended(table.filter(pa.array(~is_kept)), "dropped", "retrieve", "not_retrieved")
    named = ["row", "image_id", "score", "because_of", "reason"]
    found = kept.select(["row", "image_id", "similarity", "query_id", "role"]).rename_columns(named)
    yield ended(found, "kept", "publish")
