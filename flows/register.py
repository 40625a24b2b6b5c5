"""What became of stored images, and of those that they were dropped because of."""

from lvd.flows.found import Row, Similar
from lvd.flows.inquiry import described, ledger_rows, named_references
from lvd.flows.stored import Stored
from lvd.tasks.finding import Hit


class Register:
    """Every stored image that has to do with the pictures: its rows of the ledger, its key, what it ended because of.

    The ledger is read once for all images, and once more for each step from an image to the one that it was dropped
    because of, if that one was not read already; there are at most as many as there are kinds of duplicates.
    """

    def __init__(self, stored: Stored, image_ids: set[str], references: list[Hit]) -> None:
        self.rows: dict[str, list[Row]] = {}
        self._references: dict[str, str] = {}
        self._enter(ledger_rows(stored.ledger, image_ids))
        asked: set[str] = set()
        while wanted := {row["because_of"] for row in self._all() if row["because_of"]} - asked:
            asked |= wanted
            self._references |= named_references(stored.root, stored.last["collections"], wanted)
            self._enter(ledger_rows(stored.ledger, wanted - set(self._references) - set(self.rows)))
        self._keys = stored.reference_keys(references)
        self._owners = {directory: stored.owner(directory) for directory in {hit.directory for hit in references}}

    def _all(self) -> list[Row]:
        return [row for rows in self.rows.values() for row in rows]

    def _enter(self, rows: list[Row]) -> None:
        for row in rows:
            self.rows.setdefault(row["image_id"], []).append(row)

    def best(self, image_id: str) -> Row | None:
        """Of the rows with these bytes the one that got furthest: published, else the one that others repeat."""
        rows = self.rows.get(image_id)
        return min(rows, key=lambda r: (r["state"] != "kept", r["reason"] == "exact_duplicate")) if rows else None

    def cause(self, row: Row) -> Row | None:
        """The row of the image that this one was dropped because of; None if there is none in the ledger."""
        found = None if row["because_of"] in self._references else self.best(row["because_of"])
        return None if found is row else found

    def cause_in_words(self, row: Row) -> str | None:
        """As `lvd why` has it."""
        cause = self.cause(row)
        return described(cause) if cause else self._references.get(row["because_of"])

    def fate(self, row: Row) -> str:
        """The end of an image in words, and those of the images that it was dropped because of, one after another."""
        if row["state"] == "kept":
            return "published"
        end = f"{row['state']} at {row['stage']}: {row['reason']}"
        if not row["because_of"]:
            return end
        cause = self.cause(row)
        if cause is None:
            return f"{end}, because of {self._references.get(row['because_of'], row['because_of'])}"
        return (
            f"{end}, because of {cause['key']}, which {'is' if cause['state'] == 'kept' else 'was'} {self.fate(cause)}"
        )

    def is_published(self, row: Row | None) -> bool:
        """Whether an image, or the one that it was dropped for as a duplicate, is in the published set."""
        return row is not None and (row["state"] == "kept" or self.is_published(self.cause(row)))

    def candidates(self, image_id: str) -> tuple[Row, ...]:
        return tuple({**row, "cause": self.cause_in_words(row)} for row in self.rows.get(image_id, ()))

    def similar(self, hit: Hit, by: str) -> Similar:
        """A hit by its name, with what became of it."""
        row = self.best(hit.image_id)
        role, collection = self._owners.get(hit.directory, ("pool", "pool"))
        key = self._keys.get((hit.directory, hit.row)) or row["key"]
        seen = {"published": bool(row) and row["state"] == "kept", "fate": self.fate(row) if row else ""}
        said = {"image_id": hit.image_id, "similarity": 1.0 if by == "bytes" else hit.similarity, "by": by}
        return Similar(key=key, role=role, collection=collection, **said, **seen)
