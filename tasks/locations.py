"""Where the bytes lie of images that are not fetched, and how they are read.

A location is JSON, one of `{"file": path}`, `{"tar": path, "offset": n, "size": n}`,
`{"dataset": path, "split": …, "column": …, "row": n}`, and `{"broken": error}`, which stands for what could not be
listed.
"""

import json
import os
import re
import tarfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import fsspec

from lvd.infra.errors import InputError

MAX_TEXT_BYTES = 1 << 20  # of a tar member that is a caption, a class or their JSON

# A WebDataset sample: the members in a row that share the path up to the first dot of the file name.
_MEMBER = re.compile(r"((?:.*/|)[^./][^./]*)[.]([^/]*)", re.DOTALL)


class Opened:
    """What the last locations were read from, held open for the next ones. Safe to share between threads."""

    def __init__(self) -> None:
        self.tar = lru_cache(maxsize=8)(_LocalFile)
        self.dataset = lru_cache(maxsize=2)(_images)
        self.lock = Lock()


class _LocalFile:
    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, offset)

    def __del__(self) -> None:  # the last reader closes it, whenever it fell out of the cache
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


def read_bytes(location: str, opened: Opened, *, max_bytes: int | None = None) -> bytes:
    """The image's bytes as they are stored; of more than max_bytes, the first max_bytes + 1.

    Raises OSError or ValueError if they cannot be read whole.
    """
    place = json.loads(location)
    if "broken" in place:
        raise ValueError(place["broken"])
    if "tar" in place:
        size = place["size"] if max_bytes is None else min(place["size"], max_bytes + 1)
        data = _range(place["tar"], place["offset"], size, opened)
        if len(data) < size:
            raise ValueError(f"{place['tar']}: {size} bytes must follow byte {place['offset']}, were {len(data)}")
        return data
    if "dataset" in place:
        with opened.lock:
            images = opened.dataset(place["dataset"], place["split"], place["column"])
            return _stored(images[place["row"]][place["column"]], max_bytes, place["dataset"])
    return _first(place["file"], max_bytes)


def _first(path: str, max_bytes: int | None) -> bytes:
    size = -1 if max_bytes is None else max_bytes + 1
    with fsspec.open(path, "rb") if "://" in path else Path(path).open("rb") as file:
        return file.read(size)


def _range(path: str, offset: int, size: int, opened: Opened) -> bytes:
    if "://" not in path:
        return opened.tar(path).read(offset, size)
    fs, name = fsspec.core.url_to_fs(path)
    return fs.cat_file(name, start=offset, end=offset + size)


class Member(NamedTuple):
    name: str
    sample: str
    suffix: str
    offset: int = 0
    size: int = 0
    text: str | None = None
    error: str = ""  # of the tar itself: the row that stands for the members that were not found


def tar_members(path: str, *, with_text: bool) -> Iterator[Member]:
    """The files of a tar by one pass over its headers, its short text members with what they say.

    A tar that breaks off ends in a member with the error. Source: WebDataset, grouping by the first dot of the name.
    """
    with fsspec.open(path, "rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                while (found := archive.next()) is not None:
                    archive.members.clear()  # tarfile keeps every header it has seen
                    match = _MEMBER.fullmatch(found.name)
                    if not (found.isreg() and match):
                        continue
                    sample, suffix = match[1], match[2].lower()
                    text = None
                    if with_text and suffix in ("json", "txt", "cls") and found.size <= MAX_TEXT_BYTES:
                        file.seek(found.offset_data)
                        text = file.read(found.size).decode("utf-8", "replace").strip()
                    yield Member(found.name, sample, suffix, found.offset_data, found.size, text)
                file.seek(archive.offset)
                if any(end := file.read(tarfile.BLOCKSIZE)) or not end:  # tarfile takes a broken header for the end
                    raise tarfile.ReadError(f"no header and no end at byte {archive.offset}")
        except tarfile.TarError as error:
            yield Member("", "", "", error=f"must be a whole tar: {error}")


def load_dataset(path: str, split: str | None) -> Any:
    """The `datasets.Dataset` in a folder that `save_to_disk` made, or of a name on the hub.

    split: may be None if there is but one. Raises InputError if there is no such dataset or split.
    """
    import datasets

    fs, folder = fsspec.core.url_to_fs(path)
    try:
        saved = fs.isdir(folder)
        found = datasets.load_from_disk(path) if saved else datasets.load_dataset(path, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        remedy = "name a folder that Dataset.save_to_disk made, or a dataset and a split of the hub that can be reached"
        raise InputError(f"path must be a dataset, was {path!r} with split {split!r}: {error}: {remedy}") from error
    if isinstance(found, dict):
        names = list(found)
        if split is None and len(names) == 1:
            split = names[0]
        if split not in names:
            raise InputError(f"split must be one of {', '.join(map(repr, names))}, was {split!r}: {path}")
        found = found[split]
    return found


def is_image(feature: Any) -> bool:
    """True for a column of images, decoded or not."""
    from datasets import Image

    return isinstance(feature, Image) or (isinstance(feature, dict) and {"bytes", "path"} <= feature.keys())


def _images(path: str, split: str | None, column: str) -> Any:
    """The one column of a dataset, images as they are stored: a mapping of bytes and path, or bytes."""
    from datasets import Image

    dataset = load_dataset(path, split).select_columns([column]).with_format(None)
    return dataset.cast_column(column, Image(decode=False)) if isinstance(dataset.features[column], Image) else dataset


def _stored(value: Any, max_bytes: int | None, dataset: str) -> bytes:
    """A dataset may name a file in place of bytes: only one inside the caches of the hub is read, so that a dataset
    cannot name any file of this machine."""
    path = None
    if isinstance(value, dict):
        value, path = value["bytes"], value["path"]
    if value is not None:
        return value
    if path is None:
        raise ValueError(f"{dataset}: the row has neither bytes nor a path")
    import datasets
    from huggingface_hub import constants

    caches = [Path(datasets.config.HF_DATASETS_CACHE).resolve(), Path(constants.HF_HUB_CACHE).resolve()]
    if not any(Path(path).resolve().is_relative_to(cache) for cache in caches):
        raise ValueError(f"{dataset}: the row has no bytes but names {path!r}, outside of the hub's cache")
    return _first(path, max_bytes)
