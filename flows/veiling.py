"""What was taken down is not shown to whoever asks: it is said that it was, and when."""

from typing import Any

from lvd.infra.storage import Storage
from lvd.tasks.takedowns import FORGOTTEN, Record, Takedowns


class Veil:
    """The takedowns of a root, and which images they mean."""

    def __init__(self, root: str) -> None:
        self._takedowns = Takedowns.read(Storage(root))

    def __bool__(self) -> bool:
        return bool(self._takedowns)

    def record(self, image_id: str | None, rows: list[dict[str, Any]]) -> Record | None:
        """The record that means an image. rows: of the ledger, with its bytes."""
        found = self._takedowns.record_of(image_id, None)
        for row in rows if found is None else ():
            found = found or self.record_of_row(row)
        return found

    def record_of_row(self, row: dict[str, Any]) -> Record | None:
        """The record that means a row of the ledger: by its key or its image, or those of what it is a copy of."""
        found = self._takedowns.record_of(row["image_id"], row["key"])
        if found is None and row["stage"] == FORGOTTEN:
            found = self._takedowns.record_of(row["because_of"], None)
        return found


def said(record: Record) -> str:
    """When it was taken down, by whom and why."""
    by = f" by {record.by}" if record.by else ""
    return f"taken down on {record.date[:10]}{by}" + (f": {record.reason}" if record.reason else "")
