"""The rows of the ledger that the report lets people search: all of a small one, a sample of a large one."""

import math

import numpy as np
import pyarrow as pa
from jinja2.utils import htmlsafe_json_dumps
from pydantic import BaseModel

from lvd.tasks.contact_sheets import Reservoir
from lvd.tasks.takedowns import FORGOTTEN
from lvd.tasks.wording import without_credentials

MAX_ROWS = 5_000  # a ledger of so many is there whole
EACH = 20  # rows of every reason at least, as far as there are so many
MAX_KEY = 300  # characters of a key
MAX_CHARACTERS = 1_500_000  # of all keys and ids together, as the page has them
COLUMNS = ["key", "role", "image_id", "state", "stage", "reason", "score", "because_of"]


class Entry(BaseModel, frozen=True):
    """One candidate: what it was, and how it ended."""

    key: str
    role: str
    image_id: str
    state: str
    stage: str
    reason: str
    score: float | None
    because_of: str


class LedgerSample(BaseModel, frozen=True):
    """Some candidates in the order of the ledger, of so many."""

    entries: tuple[Entry, ...] = ()
    total: int = 0

    @property
    def is_whole(self) -> bool:
        return len(self.entries) == self.total


class Sampler:
    """A uniform seeded sample of the ledger, and a few rows of every reason, from tables that pass by once."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._any, self._each = Reservoir(MAX_ROWS, rng), Reservoir(EACH, rng)
        self._total = 0

    def offer(self, table: pa.Table) -> None:
        """table: with COLUMNS."""
        places = pa.array(np.arange(self._total, self._total + len(table)))
        self._total += len(table)
        table = table.select(COLUMNS).append_column("place", places)
        self._any.offer(np.full(len(table), "any", dtype=object), table)
        self._each.offer(table["reason"].to_numpy(), table)

    def sample(self) -> LedgerSample:
        """What was drawn, cut where the keys would take too much of the page."""
        drawn = [row for name in self._each.names() for row in self._each.rows(name)] + self._any.rows("any")
        rows: dict[int, Entry] = {}
        characters = 0
        for row in drawn:
            entry = _entry(row)
            texts = [entry.key, entry.image_id, entry.because_of]
            characters += 0 if row["place"] in rows else len(htmlsafe_json_dumps(texts))
            if characters > MAX_CHARACTERS:
                break
            rows[row["place"]] = entry
        return LedgerSample(entries=tuple(rows[place] for place in sorted(rows)), total=self._total)


def _entry(row: dict) -> Entry:
    if row["reason"] == FORGOTTEN:
        row = {**row, "key": "taken down", "image_id": None, "because_of": None}
    texts = {name: row[name] or "" for name in COLUMNS if name not in ("score", "key")}
    score = row["score"]
    return Entry(
        key=cut(without_credentials(row["key"])),
        score=round(score, 4) if score is not None and math.isfinite(score) else None,
        **texts,
    )


def cut(key: str) -> str:
    """The beginning of a key, MAX_KEY characters at most: the one way in which pages shorten keys outside of figures.

    A page is searched for it when an image is taken down.
    """
    return key if len(key) <= MAX_KEY else key[: MAX_KEY - 1] + "…"
