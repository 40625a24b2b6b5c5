"""Lists of URLs, read row by row: Parquet, CSV, JSONL, or text with one URL a line, plain or compressed."""

import csv
import io
import json
import zlib
from collections.abc import Iterator
from gzip import BadGzipFile
from lzma import LZMAError
from pathlib import PurePosixPath
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from lvd.infra.errors import InputError

FORMATS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "text"}
COMPRESSIONS = (".gz", ".bz2", ".xz")
BATCH_ROWS = 8192


def list_format(path: str) -> str | None:
    """parquet, csv, jsonl or text, by the suffix; None if it is none of them."""
    for compression in COMPRESSIONS:
        path = path.removesuffix(compression)
    return FORMATS.get(PurePosixPath(path).suffix.lower())


def num_records(path: str, columns: dict[str, str]) -> int:
    """How many records `records` gives: from the footer of a Parquet file, else by reading the list."""
    if list_format(path) == "parquet":
        with fsspec.open(path, "rb") as file:
            return pq.ParquetFile(file).metadata.num_rows
    return sum(1 for _ in records(path, columns))


def records(path: str, columns: dict[str, str]) -> Iterator[dict[str, Any]]:
    """One mapping per row of a list, streamed.

    columns: the column for each of the recipe's fields `url_column`, `page_url_column`, `alt_column` that is set.
    Raises InputError if such a column is not there, or the file is not what its suffix says.
    """
    kind = list_format(path)
    try:
        with fsspec.open(path, "rb", compression=None if kind == "parquet" else "infer") as file:
            yield from _READERS[kind](file, columns, path)
    except (pa.ArrowInvalid, csv.Error, EOFError, BadGzipFile, LZMAError, zlib.error) as error:
        raise InputError(f"{path} must be readable as {kind}: {error}") from error


def missing_column(field: str, column: str, there: list[str], path: str) -> InputError:
    return InputError(f"{field} must be one of {', '.join(map(repr, there)) or '(no columns)'}, was {column!r}: {path}")


def _check(columns: dict[str, str], there: list[str], path: str) -> None:
    for field, column in columns.items():
        if column not in there:
            raise missing_column(field, column, there, path)


def _parquet(file: Any, columns: dict[str, str], path: str) -> Iterator[dict[str, Any]]:
    table = pq.ParquetFile(file)
    _check(columns, table.schema_arrow.names, path)
    for batch in table.iter_batches(BATCH_ROWS, columns=sorted(set(columns.values()))):
        yield from batch.to_pylist()


def _csv(file: Any, columns: dict[str, str], path: str) -> Iterator[dict[str, Any]]:
    with io.TextIOWrapper(file, "utf-8-sig", errors="replace", newline="") as text:
        reader = csv.DictReader(text)
        _check(columns, list(reader.fieldnames or ()), path)
        yield from reader


def _jsonl(file: Any, columns: dict[str, str], path: str) -> Iterator[dict[str, Any]]:
    """A line that is no JSON object is a record too: its URL is the line, which no check of URLs lets through."""
    checked = False
    for line in _lines(file):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            yield {columns["url_column"]: line}
            continue
        if not checked:
            _check(columns, list(value), path)
            checked = True
        yield value


def _text(file: Any, columns: dict[str, str], path: str) -> Iterator[dict[str, Any]]:
    _check({field: column for field, column in columns.items() if field != "url_column"}, [], path)
    for line in _lines(file):
        yield {columns["url_column"]: line}


def _lines(file: Any) -> Iterator[str]:
    with io.TextIOWrapper(file, "utf-8-sig", errors="replace") as text:
        yield from filter(None, map(str.strip, text))


_READERS = {"parquet": _parquet, "csv": _csv, "jsonl": _jsonl, "text": _text}
