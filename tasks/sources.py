"""What a source of candidates is, the partitions it falls into, and how its rows are read."""

import glob
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit

import fsspec
from pydantic import BaseModel, Field

from lvd.infra.errors import InputError
from lvd.infra.object_store import errors_of
from lvd.infra.shards import fingerprint
from lvd.tasks import archives, schemas, url_lists
from lvd.tasks.locations import Member, is_image, load_dataset, tar_members

IMAGE_SUFFIXES = frozenset(
    [
        ".apng",
        ".avif",
        ".bmp",
        ".dib",
        ".gif",
        ".heic",
        ".heif",
        ".j2k",
        ".jfif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".jxl",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tga",
        ".tif",
        ".tiff",
        ".webp",
    ]
)
PACKED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


class _Source(BaseModel, frozen=True, extra="forbid"):
    path: str = Field(min_length=1)
    source: str | None = None  # the label in the manifest's column `source`


class Urls(_Source):
    """Lists of URLs: a file, a folder or a glob of Parquet, CSV, JSONL or text, one URL a line."""

    kind: Literal["urls"] = "urls"
    url_column: str = "url"
    page_url_column: str | None = None
    alt_column: str | None = None
    sha256_column: str | None = None  # the hexadecimal digest that the image must have; another image is rejected
    md5_column: str | None = None

    @property
    def columns(self) -> dict[str, str]:
        fields = ("url_column", "page_url_column", "alt_column", "sha256_column", "md5_column")
        return {field: column for field in fields if (column := getattr(self, field)) is not None}


class Images(_Source):
    """A folder of image files, or a glob of such folders. A file counts if its suffix names an image format or it has
    no suffix; hidden files do not count."""

    kind: Literal["images"] = "images"


class Warc(_Source):
    """Archives of a web crawl, plain or compressed: a file, a folder, a glob, or a list of paths such as Common Crawl's
    `warc.paths.gz`. Every image that a page shows is a candidate."""

    kind: Literal["warc"] = "warc"
    prefix: str = ""  # before each line of a list that is no absolute path or URI, e.g. https://data.commoncrawl.org/


class Wat(Warc):
    """The metadata of such archives: what the pages link to, without the pages."""

    kind: Literal["wat"] = "wat"


class WebDataset(_Source):
    """Tar shards, uncompressed: a tar, a folder of tars or a glob."""

    kind: Literal["webdataset"] = "webdataset"


class HuggingFace(_Source):
    """A Hugging Face dataset: a folder that `save_to_disk` made, a glob of such folders, or a name on the hub."""

    kind: Literal["dataset"] = "dataset"
    split: str | None = None
    image_column: str = "image"
    label_column: str | None = None


Source = Annotated[Urls | Warc | Wat | Images | WebDataset | HuggingFace, Field(discriminator="kind")]


class Partition(BaseModel, frozen=True):
    """A part of a source that is computed on its own."""

    source: Source
    files: tuple[str, ...]  # the URL lists or tars; for images and datasets the one folder, or the name on the hub
    digest: str  # of the content and of how it is read: of URL lists the bytes, of all else names, sizes and times
    stamp: str | None = None  # of URL lists, by which the same files are known again without reading them
    repeat: int = 0  # partitions of the same content before it

    @property
    def identity(self) -> tuple[Source, str, int]:
        """What tells it from all others of a root."""
        return self.source, self.digest, self.repeat

    @property
    def is_linked(self) -> bool:
        """Whether the files name images that lie elsewhere."""
        return isinstance(self.source, Urls | Warc)


class File(NamedTuple):
    path: str
    size: int
    stamp: str  # ETag or time of the last change, UNKNOWN if the filesystem tells neither


UNKNOWN = "None"


def partitions(source: Source, known: Sequence[Partition] = ()) -> list[Partition]:
    """One partition per match of a glob, in sorted order; without a glob one partition of all there is; of archives one
    of all that the path names, so that equal URLs are found across them.

    known: what was a partition before. Those of its files that are still there are one again, and what is new beside
    them is another: a list that grows, or a folder, is not read anew, and URL lists with the sizes and times that they
    had are not even opened. Not so of images and datasets, where a folder is a partition.

    Raises InputError if there is nothing at the path, or not what the source's kind asks for.
    """
    known = [one for one in known if one.source == source]
    try:
        if isinstance(source, Warc):
            return _archives(source, known)
        fs, path = _locate(source.path)
        fs.invalidate_cache()
        if fs.exists(path):
            found = _partitions(source, fs, path, known)
        elif glob.has_magic(path):
            matches = [match for match in sorted(fs.glob(path)) if not _is_hidden(match)]
            found = [partition for match in matches for partition in _partitions(source, fs, match, known)]
        elif isinstance(source, HuggingFace) and _HUB_NAME.fullmatch(source.path):
            found = [_hub_partition(source)]
        else:
            raise InputError(f"path must exist, was {source.path!r}: name a file, a folder or a glob that matches")
    except (ValueError, ImportError, *errors_of(source.path.partition("://")[0])) as error:
        raise InputError(f"path must be readable, was {source.path!r}: {error}") from error
    if not found:
        raise InputError(f"path must exist, was {source.path!r}: there is {_NOTHING[source.kind]}")
    return found


_NOTHING = {
    "urls": "no file that ends in .parquet, .csv, .jsonl or .txt",
    "images": "no folder with image files",
    "webdataset": "no file that ends in .tar",
    "dataset": "no folder that `Dataset.save_to_disk` made",
}


def _archives(source: Warc, known: Sequence[Partition]) -> list[Partition]:
    """The archives that were partitions before, and the others. Those of a list are told by their names."""
    listed, found = archives.is_list(source.path), []
    for files in _parted(archives.archive_files(source.path, source.prefix), known):
        content = None if listed else [_file(fs.info(path)) for fs, path in map(_locate, files)]
        digest = fingerprint(source.model_dump(exclude={"path"}), files, content)
        found.append(Partition(source=source, files=files, digest=digest))
    return found


def _partitions(source: Source, fs: Any, path: str, known: Sequence[Partition]) -> list[Partition]:
    """The partitions of one match; none if there is nothing that the source's kind reads."""
    found = _files(source, fs, path)
    if not found:
        return []
    if not isinstance(source, Urls | WebDataset):
        return [Partition(source=source, files=[_uri(fs, path)], digest=_digest(source, fs, path, found))]
    named, partitions_found = {_uri(fs, file.path): file for file in found}, []
    digests = {one.stamp: one.digest for one in known if one.stamp}
    for files in _parted(list(named), known):
        some = [named[file] for file in files]
        stamp = _stamp(source, some)
        digest = digests.get(stamp) or _digest(source, fs, path, some)
        partitions_found.append(Partition(source=source, files=files, digest=digest, stamp=stamp))
    return partitions_found


def _stamp(source: Source, files: list[File]) -> str | None:
    """What the listing says of URL lists; None if that does not tell when they changed."""
    is_dated = all(file.stamp != UNKNOWN for file in files)
    return fingerprint(files) if isinstance(source, Urls) and is_dated else None


def _parted(files: list[str], known: Sequence[Partition]) -> list[list[str]]:
    """The files of what was a partition before, as far as they are there, each as one again; and all others as one."""
    left, found = dict.fromkeys(files), []
    for group in known:
        if there := [file for file in group.files if file in left]:
            found.append(there)
            for file in there:
                del left[file]
    return [*found, list(left)] if left else found


def _digest(source: Source, fs: Any, path: str, found: list[File]) -> str:
    if isinstance(source, Urls):
        lists = [(url_lists.list_format(file.path), _sha256(fs, file.path)) for file in found]
        return fingerprint(source.model_dump(exclude={"path"}), lists)
    keyed_below = _locate(source.path)[1]  # the path itself, or the glob whose fixed part keys are relative to
    return fingerprint(source.model_dump(exclude={"path"}), keyed_below, _uri(fs, path), found)


def _hub_partition(source: HuggingFace) -> Partition:
    dataset = load_dataset(source.path, source.split)
    cached = [Path(file["filename"]).parts[-4:] for file in dataset.cache_files]  # configuration, version, commit, file
    return Partition(source=source, files=(source.path,), digest=fingerprint(source.model_dump(), cached, len(dataset)))


def _files(source: Source, fs: Any, path: str) -> list[File]:
    """The files of one match that the source's kind reads, in sorted order."""
    if isinstance(source, Images) and fs.isfile(path):
        return []
    if isinstance(source, HuggingFace) and not any(
        fs.exists(f"{path}/{n}") for n in ("state.json", "dataset_dict.json")
    ):
        return []
    found = _walk(fs, path)
    if isinstance(source, Urls):
        return [file for file in found if url_lists.list_format(file.path)]
    if isinstance(source, Images):
        return [file for file in found if PurePosixPath(file.path).suffix.lower() in {*IMAGE_SUFFIXES, ""}]
    if isinstance(source, WebDataset):
        packed = [file.path for file in found if file.path.endswith(PACKED_TARS)]
        if packed:
            raise InputError(f"webdataset shards must be uncompressed tars, was {packed[0]!r}: unpack it (gunzip)")
        return [file for file in found if file.path.endswith(".tar")]
    return found


def _walk(fs: Any, path: str) -> list[File]:
    """Every file below a folder, or the file itself, sorted by path; hidden files and folders are left out."""
    if fs.isfile(path):
        return [_file(fs.info(path))]
    found: list[File] = []
    for _, folders, files in fs.walk(path, detail=True, on_error="raise"):
        for hidden in filter(_is_hidden, list(folders)):
            del folders[hidden]
        found += [_file(info) for name, info in files.items() if name and not _is_hidden(name)]
    return sorted(found)


def _is_hidden(path: str) -> bool:
    return path.rpartition("/")[2].startswith(".")


def _file(info: dict[str, Any]) -> File:
    stamp = info.get("ETag") or info.get("mtime") or info.get("LastModified") or info.get("created")
    return File(info["name"], int(info["size"] or 0), str(stamp))


def _locate(uri: str) -> tuple[Any, str]:
    """The filesystem and the path on it; a local path is absolute and without `..`, so that one folder has one name."""
    fs, path = fsspec.core.url_to_fs(uri)
    return fs, os.path.normpath(path) if _is_local(fs) else path


def _is_local(fs: Any) -> bool:
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def _uri(fs: Any, path: str) -> str:
    return path if _is_local(fs) else fs.unstrip_protocol(path)


def _sha256(fs: Any, path: str) -> str:
    digest = hashlib.sha256()
    with fs.open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def check_columns(partition: Partition) -> None:
    """Raises InputError if the partition has no column of a name that its source gives."""
    source = partition.source
    if isinstance(source, Urls):
        for path in partition.files:
            with closing(url_lists.records(path, source.columns)) as records:
                next(records, None)
    if not isinstance(source, HuggingFace):
        return
    features = load_dataset(partition.files[0], source.split).features
    for field in ("image_column", "label_column"):
        if getattr(source, field) not in {None, *features}:
            raise url_lists.missing_column(field, getattr(source, field), list(features), partition.files[0])
    feature = features[source.image_column]
    if not (is_image(feature) or getattr(feature, "dtype", "") in ("binary", "large_binary")):
        raise InputError(
            f"image_column must hold images or bytes, was {source.image_column!r}, {feature}: name another"
        )


def num_rows(partition: Partition) -> int | None:
    """How many rows `rows` gives: from headers and footers where the format has them, else by reading the list; None
    for archives, whose images nobody has counted."""
    source, files = partition.source, partition.files
    if isinstance(source, Warc):
        return None
    if isinstance(source, Urls):
        return sum(url_lists.num_records(path, source.columns) for path in files)
    if isinstance(source, Images):
        return len(_listed(partition))
    if isinstance(source, WebDataset):
        return sum(_is_row(member) for path in files for member in tar_members(path, with_text=False))
    return len(load_dataset(files[0], source.split))


def rows(partition: Partition) -> Iterator[dict[str, Any]]:
    """Rows of schemas.MANIFEST, streamed, always in the same order. URLs are as given: crawl checks them."""
    readers = {"urls": _url_rows, "images": _image_rows, "webdataset": _tar_rows, "dataset": _dataset_rows}
    for row in readers[partition.source.kind](partition):
        yield dict.fromkeys(schemas.MANIFEST.names) | {"source": partition.source.source} | row


def _url_rows(partition: Partition) -> Iterator[dict[str, Any]]:
    for path in partition.files:
        yield from url_rows(partition.source, path)


def url_rows(source: Urls, path: str) -> Iterator[dict[str, Any]]:
    """The rows of one list of URLs."""
    for record in url_lists.records(path, source.columns):
        url = (_text(record.get(source.url_column)) or "").strip()
        page_url, alt = record.get(source.page_url_column), record.get(source.alt_column)
        yield {
            "key": url,
            "url": url or None,
            "page_url": _text(page_url),
            "alt": _text(alt),
            "domain": domain(url),
            "digest": _expected_digest(source, record),
        }


def _expected_digest(source: Urls, record: dict[str, Any]) -> str | None:
    """`sha256:…` or `md5:…` in lower case, of the column that the source names; None where the row has none."""
    for name, column in (("sha256", source.sha256_column), ("md5", source.md5_column)):
        value = _text(record.get(column)) if column else None
        if value:
            return f"{name}:{value.strip().lower()}"
    return None


def _image_rows(partition: Partition) -> Iterator[dict[str, Any]]:
    source_folder, folder = _source_folder(partition), partition.files[0]
    for path in _listed(partition):
        label = str(PurePosixPath(_below(folder, path)).parent)
        yield {
            "key": _text(_below(source_folder, path)),
            "label": None if label == "." else _text(label),
            "location": json.dumps({"file": path}),
        }


def _listed(partition: Partition) -> list[str]:
    fs, path = _locate(partition.files[0])
    found = _files(partition.source, fs, path)
    if _digest(partition.source, fs, path, found) != partition.digest:
        raise InputError(f"{partition.files[0]} must not change while it is read: run again when it is at rest")
    return [_uri(fs, file.path) for file in found]


def _source_folder(partition: Partition) -> str:
    """The folder that keys are relative to: the fixed part of a glob, or what holds the file or folder that is named
    (for a folder of tars the folder itself)."""
    fs, path = _locate(partition.source.path)
    path, first = _uri(fs, path).rstrip("/"), partition.files[0]
    if first.startswith(f"{path}/"):
        return path
    fixed = path if first == path else path[: re.search(r"[*?[]", path).start()]
    return fixed.rpartition("/")[0]


def _below(folder: str, path: str) -> str:
    return path[len(folder) :].lstrip("/")


def _tar_rows(partition: Partition) -> Iterator[dict[str, Any]]:
    source_folder = _source_folder(partition)
    for path in partition.files:
        tar = _text(_below(source_folder, path))
        for _, members in groupby(tar_members(path, with_text=True), key=lambda member: member.sample):
            sample = list(members)
            text = {member.suffix: member.text for member in sample}
            known = _json_object(text.get("json"))
            for member in filter(_is_row, sample):
                location = {"tar": path, "offset": member.offset, "size": member.size}
                yield {
                    "key": f"{tar}/{_text(member.name)}" if member.name else tar,
                    "url": _text(known.get("url")),
                    "domain": domain(_text(known.get("url"))),
                    "alt": _text(text.get("txt", known.get("caption"))),
                    "label": _text(text.get("cls")),
                    "location": json.dumps({"broken": f"{path}: {member.error}"} if member.error else location),
                }


def _is_row(member: Member) -> bool:
    return bool(member.error) or f".{member.suffix.rpartition('.')[2]}" in IMAGE_SUFFIXES


def _json_object(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _dataset_rows(partition: Partition) -> Iterator[dict[str, Any]]:
    source, path = partition.source, partition.files[0]
    dataset = load_dataset(path, source.split)
    name = path if path == source.path and not path.startswith("/") else _below(_source_folder(partition), path)
    if split := dataset.split or source.split:
        name = f"{name}/{split}"
    label_of = _label_reader(dataset, source.label_column)
    for row in range(len(dataset)):
        location = {"dataset": path, "split": source.split, "column": source.image_column, "row": row}
        yield {"key": f"{name}/{row}", "label": label_of(row), "location": json.dumps(location)}


def _label_reader(dataset: Any, column: str | None) -> Callable[[int], str | None]:
    """The label of a row, by the class names where the dataset has them."""
    if column is None:
        return lambda row: None
    from datasets import ClassLabel

    feature, values = dataset.features[column], dataset.select_columns([column]).with_format(None)

    def label_of(row: int) -> str | None:
        value = values[row][column]
        if isinstance(feature, ClassLabel) and isinstance(value, int):
            return feature.int2str(value) if value >= 0 else None
        return _text(value)

    return label_of


def _text(value: Any) -> str | None:
    """The value as text that UTF-8 can hold; None stays None."""
    if value is None:
        return None
    value = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return value.encode("utf-8", "backslashreplace").decode()


def domain(url: str | None) -> str | None:
    """The host of a URL in lower case; None if it names none."""
    try:
        return urlsplit(url or "").hostname or None
    except ValueError:
        return None
