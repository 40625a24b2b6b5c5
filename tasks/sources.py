"""What a source of candidates is, and the partitions it falls into; `source_rows` reads them."""

import glob
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple

import fsspec
from pydantic import BaseModel, Field

from lvd.infra.errors import InputError
from lvd.infra.object_store import errors_of
from lvd.infra.shards import fingerprint
from lvd.tasks import archives, url_lists
from lvd.tasks.locations import load_dataset

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
    license: str | None = None  # what the source states for all images that have none of their own


class Urls(_Source):
    """Lists of URLs: a file, a folder or a glob of Parquet, CSV, JSONL or text, one URL a line."""

    kind: Literal["urls"] = "urls"
    url_column: str = "url"
    page_url_column: str | None = None
    alt_column: str | None = None
    license_column: str | None = None
    sha256_column: str | None = None  # the hexadecimal digest that the image must have; another image is rejected
    md5_column: str | None = None

    @property
    def columns(self) -> dict[str, str]:
        fields = ("url_column", "page_url_column", "alt_column", "license_column", "sha256_column", "md5_column")
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
    license_column: str | None = None


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


def unchanged_files(partition: Partition) -> list[str]:
    """The files of a folder of images. Raises InputError if they are no longer those that the partition was made of."""
    fs, path = _locate(partition.files[0])
    found = _files(partition.source, fs, path)
    if _digest(partition.source, fs, path, found) != partition.digest:
        raise InputError(f"{partition.files[0]} must not change while it is read: run again when it is at rest")
    return [_uri(fs, file.path) for file in found]


def source_folder(partition: Partition) -> str:
    """The folder that keys are relative to: the fixed part of a glob, or what holds the file or folder that is named
    (for a folder of tars the folder itself)."""
    fs, path = _locate(partition.source.path)
    path, first = _uri(fs, path).rstrip("/"), partition.files[0]
    if first.startswith(f"{path}/"):
        return path
    fixed = path if first == path else path[: re.search(r"[*?[]", path).start()]
    return fixed.rpartition("/")[0]


def below(folder: str, path: str) -> str:
    """The path without the folder."""
    return path[len(folder) :].lstrip("/")
