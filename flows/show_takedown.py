"""What the command line shows of takedowns."""

from typing import Any

from rich.markup import escape

from lvd.flows.show import console, table
from lvd.flows.takedown import Taken
from lvd.flows.veiling import Veil, said


def show_taken(taken: Taken) -> None:
    """What was found, in numbers, where the record lies, and what was erased. No picture, no name."""
    if taken.counts:
        rows = table(f"{taken.contents:,} different images", "collection", "role", "images", numbers=("images",))
        for found in taken.counts:
            rows.add_row(escape(found.name), found.role, f"{found.images:,}")
        console.print(rows)
        console.print(f"{taken.published:,} of them in {taken.version}, the last version that was published")
    elif taken.record:
        console.print("nothing of it is in the last run; it is left out if it comes")
    if taken.record:
        console.print(f"record   {escape(taken.record)}")
    if taken.erased:
        for version, images in taken.erased.versions.items():
            console.print(f"{version:8} lost {images:,}")
        console.print(f"erased   {taken.erased.images:,} stored images; {taken.erased.files:,} files were written anew")
    elif taken.record:
        console.print("the next version is without them; --now takes them out of those that are there")
    for export in taken.exports:
        console.print(f"export   {escape(export)} has some: once the versions have none, `lvd export` makes it anew")


def show_record(root: str, row: dict[str, Any]) -> None:
    """The takedown that a row of the ledger ended by, or will end by in the next version; nothing if there is none."""
    if record := Veil(root).record_of_row({"because_of": None, **row}):
        later = ": the next version is without it" if row["state"] == "kept" else ""
        console.print(f"  {escape(said(record))}{later}")
