"""The rows of a partition of a source: one candidate each, as the source has it; nothing is judged or fetched yet."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from lvd.infra.errors import InputError
from lvd.tasks import schemas, url_lists
from lvd.tasks.locations import Member, is_image, load_dataset, tar_members
from lvd.tasks.sources import (
    IMAGE_SUFFIXES,
    HuggingFace,
    Images,
    Partition,
    Source,
    Urls,
    Warc,
    WebDataset,
    below,
    source_folder,
    unchanged_files,
)


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
    for field in ("image_column", "label_column", "license_column"):
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
        return len(unchanged_files(partition))
    if isinstance(source, WebDataset):
        return sum(_is_row(member) for path in files for member in tar_members(path, with_text=False))
    return len(load_dataset(files[0], source.split))


def rows(partition: Partition) -> Iterator[dict[str, Any]]:
    """Rows of schemas.MANIFEST, streamed, always in the same order. URLs are as given: crawl checks them."""
    readers = {"urls": _url_rows, "images": _image_rows, "webdataset": _tar_rows, "dataset": _dataset_rows}
    for row in readers[partition.source.kind](partition):
        yield dict.fromkeys(schemas.MANIFEST.names) | stated(partition.source) | row


def stated(source: Source) -> dict[str, Any]:
    """What a source says of all its images, unless a row says more."""
    return {"source": source.source, "license": source.license}


def _license(value: Any) -> dict[str, str]:
    """What a row says of its own; nothing if it is silent."""
    text = (_text(value) or "").strip()
    return {"license": text} if text else {}


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
            **_license(record.get(source.license_column)),
        }


def _expected_digest(source: Urls, record: dict[str, Any]) -> str | None:
    """`sha256:…` or `md5:…` in lower case, of the column that the source names; None where the row has none."""
    for name, column in (("sha256", source.sha256_column), ("md5", source.md5_column)):
        value = _text(record.get(column)) if column else None
        if value:
            return f"{name}:{value.strip().lower()}"
    return None


def _image_rows(partition: Partition) -> Iterator[dict[str, Any]]:
    home, folder = source_folder(partition), partition.files[0]
    for path in unchanged_files(partition):
        label = str(PurePosixPath(below(folder, path)).parent)
        yield {
            "key": _text(below(home, path)),
            "label": None if label == "." else _text(label),
            "location": json.dumps({"file": path}),
        }


def _tar_rows(partition: Partition) -> Iterator[dict[str, Any]]:
    home = source_folder(partition)
    for path in partition.files:
        tar = _text(below(home, path))
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
                    **_license(known.get("license")),
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
    name = path if path == source.path and not path.startswith("/") else below(source_folder(partition), path)
    if split := dataset.split or source.split:
        name = f"{name}/{split}"
    label_of, license_of = (_value_reader(dataset, column) for column in (source.label_column, source.license_column))
    for row in range(len(dataset)):
        location = {"dataset": path, "split": source.split, "column": source.image_column, "row": row}
        found = {"key": f"{name}/{row}", "label": label_of(row), "location": json.dumps(location)}
        yield found | _license(license_of(row))


def _value_reader(dataset: Any, column: str | None) -> Callable[[int], str | None]:
    """The value of a row as text, by the class names where the dataset has them."""
    if column is None:
        return lambda row: None
    from datasets import ClassLabel

    feature, values = dataset.features[column], dataset.select_columns([column]).with_format(None)

    def value_of(row: int) -> str | None:
        value = values[row][column]
        if isinstance(feature, ClassLabel) and isinstance(value, int):
            return feature.int2str(value) if value >= 0 else None
        return _text(value)

    return value_of


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
