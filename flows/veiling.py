"""What was taken down is not shown to whoever asks, from the moment on that its record is there: it is said that it
was, and when. What lies on storage is as it was until the next version, or `lvd forget --now`."""

from collections.abc import Callable, Iterable
from typing import Any

from lvd.infra.errors import InputError
from lvd.infra.shards import StageDir, read_schema, read_table
from lvd.infra.storage import Storage
from lvd.tasks.erased_page import named_in, pictured_in, with_notice, without_names, without_pictures
from lvd.tasks.takedowns import FORGOTTEN, Record, Takedowns, alias_of, is_alias

NAMES = ("url", "page_url", "alt", "domain", "label", "cause")  # columns that say which image a row is of, with `key`
UNDATED = Record(date="")  # of what was erased, or brought by a later crawl, and is in no record by itself

Row = dict[str, Any]  # of the ledger, of stored or of published images


class Veil:
    """The takedowns of a root, and which images they mean."""

    def __init__(self, root: str) -> None:
        self._takedowns = Takedowns.read(Storage(root))

    def __bool__(self) -> bool:
        return bool(self._takedowns)

    @property
    def asks_for_urls(self) -> bool:
        """Whether something is asked for by its URL or domain."""
        return self._takedowns.asks_for_urls

    def record(self, image_id: str | None, rows: Iterable[Row]) -> Record | None:
        """The record that means an image. rows: with its bytes."""
        found = self._takedowns.record_of(image_id)
        for row in rows if found is None else ():
            found = found or self.record_of_row(row)
        return found

    def record_of_row(self, row: Row) -> Record | None:
        """The record that means a row: by its key, its URL or its image, or by those of what it is a copy of."""
        found = self._takedowns.record_of(row.get("image_id"), row.get("key"), row.get("url"))
        if found is None and (row.get("stage") == FORGOTTEN or is_alias(row.get("key") or "")):
            found = self._takedowns.record_of(row.get("because_of")) or UNDATED
        return found

    def page(self, page: str, rows_of: Callable[[set[str], set[str]], Iterable[Row]]) -> str:
        """A report as it may be shown.

        rows_of: the rows of the ledger with one of these image ids, and those of stored images with one of the second,
        which have pictures on the page.
        """
        image_ids, names = named_in(page)
        rows = [row for row in rows_of(image_ids, pictured_in(page)) if self.record_of_row(row)]
        gone = {one for one in image_ids if self._takedowns.record_of(one)} | {row["image_id"] for row in rows}
        named = {name for name in names if self._takedowns.record_of(None, name) or self._takedowns.means_domain(name)}
        named |= {row["key"] for row in rows}
        if not (gone or named):
            return page
        return with_notice(without_names(without_pictures(page, gone), named))


def nameless(row: Row) -> Row:
    """The row with a hash for its key, and nothing that says which image it is of."""
    blank = dict.fromkeys(name for name in NAMES if name in row)
    return {**row, **blank, "key": alias_of(row["key"]) if row.get("key") else None}


def said(record: Record) -> str:
    """When it was taken down, by whom and why."""
    when, by = (f" on {record.date[:10]}" if record.date else ""), (f" by {record.by}" if record.by else "")
    return f"taken down{when}{by}" + (f": {record.reason}" if record.reason else "")


def num_taken_down(dataset: StageDir) -> int:
    """How many images of a version were taken down, and are there yet. Cost: its small columns are read."""
    known, gone = Takedowns.read(dataset.storage), 0
    for ref in dataset.shards() if known else ():
        columns = {"image_id", "key", "url"} & {*read_schema(ref).names}
        gone += int(known.kinds(read_table(ref, sorted(columns))).astype(bool).sum())
    return gone


def check_without(dataset: StageDir) -> None:
    """Raises InputError if a version still has images that were taken down: nobody may be given them."""
    if gone := num_taken_down(dataset):
        raise InputError(
            f"--version must hold no image that was taken down, {dataset.fingerprint} has {gone:,}: "
            f"run the recipe again for a version without them, or `lvd forget --now --root {dataset.root}`"
        )
