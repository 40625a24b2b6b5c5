"""The layouts of an export: WebDataset tars, a folder of images, Parquet. Each writes the files of one shard.

The bytes follow from the rows alone: no times, no owners, no order but that of the rows.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from lvd.infra.storage import Storage
from lvd.infra.writing import with_features
from lvd.tasks.decode import claimed_format
from lvd.tasks.schemas import IMAGE

Kind = Literal["webdataset", "imagefolder", "parquet"]
SPLIT = "train"  # hubs and trainers look for it
DATA_FILES = {"webdataset": "*.tar", "imagefolder": f"{SPLIT}/**", "parquet": f"data/{SPLIT}-*.parquet"}
SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tiff", "AVIF": "avif"}
FOLDERS_EACH = 1000  # of an image folder, in one folder
WRITERS = 8  # files of an image folder that are written at once
ROW_GROUP_BYTES = 64 << 20  # of a Parquet file; hubs show files whose row groups are below some 300 MB
ROW_GROUP_ROWS = 1000
ROW_GROUP_ROWS_WITHOUT_IMAGES = 100_000

Written = dict[str, Any]  # of a file: name, bytes, sha256, and the images that it holds as rows


def suffix(data: bytes) -> str:
    """The file name's ending that the format of these bytes asks for."""
    return SUFFIXES.get(claimed_format(data) or "", "img")


class Shard:
    """What one shard of an export is written from: its place among `count`, and its rows without the images."""

    def __init__(self, *, storage: Storage, index: int, count: int, rows: pa.Table) -> None:
        self.storage, self.index, self.count, self.rows = storage, index, count, rows

    def write(self, kind: Kind, columns: list[str], images: Iterator[bytes] | None) -> Iterator[Written]:
        """The files of the shard, as they are written.

        columns: those besides the image; images: of the rows, in their order; None if they have none.
        """
        layouts = {"webdataset": webdataset, "imagefolder": image_folder, "parquet": parquet}
        return layouts[kind](self, columns, images)


def webdataset(shard: Shard, columns: list[str], images: Iterator[bytes]) -> Iterator[Written]:
    """One tar: of every image `{image_id}.jpg` (or as its format asks) and `{image_id}.json`. Memory: one image."""
    name = f"lvd-{shard.index:06d}.tar"
    with shard.storage.whole_file(name) as path:
        with path.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for row, data in zip(dicts(shard.rows.select(columns)), images, strict=True):
                _add(tar, f"{row['image_id']}.{suffix(data)}", data)
                _add(tar, f"{row['image_id']}.json", json.dumps(row, ensure_ascii=False).encode())
                tar.members.clear()  # tarfile keeps every header it has written
        written = described(name, path, len(shard.rows))
    yield written


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # time, owner and group are 0
    info.size, info.mode = len(data), 0o644
    tar.addfile(info, io.BytesIO(data))


def image_folder(shard: Shard, columns: list[str], images: Iterator[bytes]) -> Iterator[Written]:
    """`train/{collection}/{000}/{000}/{image_id}.jpg` with a `metadata.parquet` in every folder of images.

    The collection: the first that the image was retrieved for, else its role; it is what torchvision's ImageFolder
    takes for the class. Memory: WRITERS images, and the rows.
    """
    members: dict[str, list[tuple[int, str]]] = {}
    place = f"{shard.index // FOLDERS_EACH:03d}/{shard.index % FOLDERS_EACH:03d}"

    def files() -> Iterator[tuple[str, bytes]]:
        names = dicts(shard.rows.select(["image_id", "role", "retrieved_for"]))
        for number, (row, data) in enumerate(zip(names, images, strict=True)):
            folder = f"{SPLIT}/{(row['retrieved_for'] or [row['role']])[0]}/{place}"
            file_name = f"{row['image_id']}.{suffix(data)}"
            members.setdefault(folder, []).append((number, file_name))
            yield f"{folder}/{file_name}", data

    def save(name: str, data: bytes, rows: int = 1) -> Written:
        shard.storage.write_bytes(name, data)
        return {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "rows": rows}

    left = files()
    with ThreadPoolExecutor(WRITERS) as writers:
        while some := list(islice(left, WRITERS)):
            yield from writers.map(lambda one: save(*one), some)
    for folder, mine in sorted(members.items()):
        numbers, names = zip(*mine, strict=True)
        table = shard.rows.select(columns).take(pa.array(numbers)).replace_schema_metadata(None)
        table = table.add_column(0, "file_name", pa.array(names, pa.string()))
        file = io.BytesIO()
        with parquet_writer(file, table.schema) as writer:
            writer.write_table(table)
        yield save(f"{folder}/metadata.parquet", file.getvalue(), rows=0)


def parquet(shard: Shard, columns: list[str], images: Iterator[bytes] | None) -> Iterator[Written]:
    """One Parquet file of row groups of ROW_GROUP_BYTES, whose images `datasets` knows for images.

    images: None where the rows have none. Memory: one row group.
    """
    name = f"data/{SPLIT}-{shard.index:05d}-of-{shard.count:05d}.parquet"
    rows = shard.rows.select(columns).replace_schema_metadata(None)
    fields = list(rows.schema)
    if images is not None:
        fields.append(pa.field("image", IMAGE))
    schema = with_features(pa.schema(fields))
    with shard.storage.whole_file(name) as path:
        with path.open("wb") as file, parquet_writer(file, schema) as writer:
            for group in _row_groups(rows, images):
                writer.write_table(group.cast(schema))
        written = described(name, path, len(rows))
    yield written


def _row_groups(rows: pa.Table, images: Iterator[bytes] | None) -> Iterator[pa.Table]:
    """The rows with their images, if there are any, in parts for a row group each."""
    if images is None:
        for start in range(0, len(rows), ROW_GROUP_ROWS_WITHOUT_IMAGES):
            yield rows.slice(start, ROW_GROUP_ROWS_WITHOUT_IMAGES)
        return
    first, held, pending = 0, 0, list[dict[str, Any]]()
    for number, (image_id, data) in enumerate(zip(rows["image_id"].to_pylist(), images, strict=True), 1):
        pending.append({"bytes": data, "path": f"{image_id}.{suffix(data)}"})
        held += len(data)
        if held >= ROW_GROUP_BYTES or len(pending) >= ROW_GROUP_ROWS or number == len(rows):
            yield rows.slice(first, len(pending)).append_column("image", pa.array(pending, IMAGE))
            first, held, pending = number, 0, []


def parquet_writer(file: Any, schema: pa.Schema) -> Any:
    """A writer with the same settings everywhere: images as they are, the rest packed, with statistics."""
    from pyarrow import parquet as pq

    leaves = [leaf for field in schema if field.name != "image" for leaf in _leaves(field)]
    images = [leaf for field in schema if field.name == "image" for leaf in _leaves(field)]
    return pq.ParquetWriter(
        file,
        schema,
        version="2.6",
        data_page_version="1.0",
        compression={**dict.fromkeys(leaves, "zstd"), **dict.fromkeys(images, "none")},
        compression_level=dict.fromkeys(leaves, 3),
        use_dictionary=leaves,
        write_statistics=leaves,
    )


def _leaves(field: pa.Field) -> list[str]:
    """The column paths of a field, as Parquet names them."""
    if pa.types.is_struct(field.type):
        return [f"{field.name}.{child.name}" for child in field.type]
    return [f"{field.name}.list.element"] if pa.types.is_list(field.type) else [field.name]


def dicts(rows: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows one by one. Memory: those of one batch."""
    for batch in rows.to_batches(max_chunksize=1000):
        yield from batch.to_pylist()


def described(name: str, path: Path, rows: int) -> Written:
    """The account of a file that is written, at a local path for now."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": name, "bytes": path.stat().st_size, "sha256": digest, "rows": rows}
