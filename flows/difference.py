"""What two versions of a root differ in: the images that came, those that went and why, those that changed.

Shards that both have are not read. Cost: the other shards of both, those of the older one twice if something went, and
the older ledger if something came, the newer one if something went. Memory: some 120 bytes for every image of the
shards that only the older version has, and some 500 bytes for every image that came or went, or 4 kB if every image is
listed; of the images' bytes one batch.
"""

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from lvd.flows.versions import Version, named
from lvd.infra.shards import ShardRef, StageDir, read_batches, read_schema, read_table
from lvd.tasks.comparing import Fate, Wanted, compared, digests, place, read_rows, texts, value_hashes
from lvd.tasks.source_rows import domain

EXAMPLES = 3  # of every reason
TOLD = ["image_id", "key", "url", "source", "role", "retrieved_for"]  # of an image that came or went
FATES = ["image_id", "key", "source", "state", "stage", "reason", "because_of"]
OWN = pa.schema([*((name, pa.string()) for name in TOLD[:-1]), (TOLD[-1], pa.list_(pa.string()))])


class Moved(BaseModel, frozen=True, extra="forbid"):
    """An image that came or went."""

    image_id: str
    key: str
    domain: str | None
    source: str | None
    role: str
    retrieved_for: tuple[str, ...]
    fate: Fate  # an image that went: in the newer version; one that came: in the older one


class Changed(BaseModel, frozen=True):
    """An image that both have, and the columns in which they differ."""

    image_id: str
    key: str
    columns: tuple[str, ...]


class Group(BaseModel, frozen=True):
    """Images that came, went or changed for the same reason."""

    why: str
    images: int
    examples: tuple[str, ...]  # their keys


class Balance(BaseModel, frozen=True):
    """Images that came and went of one role, collection or domain."""

    name: str
    added: int
    removed: int


class Difference(BaseModel, frozen=True):
    """All that two versions differ in; the images themselves only if they were asked for."""

    older: str
    newer: str
    images: tuple[int, int]  # of either
    shards: tuple[int, int, int]  # of both, of the older only, of the newer only
    kept: int  # images that both have
    changed: int  # of these, with another value in some column
    columns: dict[str, int]  # in which changed images differ
    changes: tuple[Group, ...]  # by the columns in which they differ together
    added: tuple[Group, ...]  # by what the older version said of them
    removed: tuple[Group, ...]  # by what the newer version says of them
    roles: tuple[Balance, ...]
    collections: tuple[Balance, ...]  # that they were retrieved for; an image can count for several
    sources: tuple[Balance, ...]  # as the recipe names them
    domains: tuple[Balance, ...]
    added_images: tuple[Moved, ...] = ()
    removed_images: tuple[Moved, ...] = ()
    changed_images: tuple[Changed, ...] = ()


def difference(root: str, older: str, newer: str, *, all_images: bool = False) -> Difference:
    """What the version `newer` has beside `older`. all_images: every image is listed, beside counts and examples.

    Raises InputError if the root has no such versions.
    """
    first, second = named(root, {"V1": older, "V2": newer})
    mine, others = only(root, first, second), only(root, second, first)
    comparison = Comparison(mine, others, all_images)
    added = Movement(comparison.added(), first.ledger(root), all_images)
    removed = Movement(comparison.removed(), second.ledger(root), all_images)
    return Difference(
        older=first.name,
        newer=second.name,
        images=(first.images, second.images),
        shards=(len(first.shards) - len(mine), len(mine), len(others)),
        kept=second.images - len(added),
        changed=comparison.changed,
        columns=dict(comparison.columns.most_common()),
        changes=comparison.groups(),
        added=added.groups(),
        removed=removed.groups(),
        roles=balances(added.counts("role"), removed.counts("role")),
        collections=balances(added.counts("retrieved_for"), removed.counts("retrieved_for")),
        sources=balances(added.counts("source"), removed.counts("source")),
        domains=balances(added.counts("url", domain), removed.counts("url", domain)),
        added_images=tuple(added.images()) if all_images else (),
        removed_images=tuple(removed.images()) if all_images else (),
        changed_images=tuple(comparison.images),
    )


def only(root: str, version: Version, other: Version) -> list[ShardRef]:
    """The shards that the version does not share with the other."""
    shared = set(other.shards)
    return [ref for ref in version.dataset(root).shards() if ref.name() not in shared]


class Comparison:
    """Images of the shards that only one version has, compared as they pass by."""

    def __init__(self, older: list[ShardRef], newer: list[ShardRef], all_images: bool) -> None:
        self._older, self._newer, self._all_images = older, newer, all_images
        self._names = [read_schema(refs[0]).names if refs else [] for refs in (older, newer)]
        self._columns = [name for name in compared(self._names[0]) if name in self._names[1]]
        self._before = read_rows(older, self._columns)
        self._stays = np.zeros(len(self._before.images), dtype=bool)
        self.columns: Counter[str] = Counter()
        self._changes: dict[tuple[str, ...], tuple[int, tuple[str, ...]]] = {}
        self.changed, self.images = 0, []

    def added(self) -> pa.Table:
        """The rows of the newer version that the older one does not have; counts what changed on the way."""
        found = [OWN.empty_table()]
        for ref in self._newer:
            table = read_table(ref, [name for name in self._names[1] if name != "image"])
            places = place(self._before.images, digests(texts(table["image_id"])))
            found.append(told(table.filter(pa.array(places < 0))))
            self._stays[places[places >= 0]] = True
            self._compare(table.filter(pa.array(places >= 0)), self._before.values[places[places >= 0]])
        return pa.concat_tables(found)

    def removed(self) -> pa.Table:
        """The rows of the older version that the newer one does not have. Call `added` first."""
        found = [OWN.empty_table()]
        for ref in self._older if not self._stays.all() else ():
            table = read_table(ref, [name for name in self._names[0] if name in TOLD])
            places = place(self._before.images, digests(texts(table["image_id"])))
            found.append(told(table.filter(pa.array(~self._stays[places]))))
        return pa.concat_tables(found)

    def _compare(self, table: pa.Table, before: np.ndarray) -> None:
        """Rows that both have, and the hashes that their values had in the older version."""
        differs = value_hashes(table.select(self._columns)) != before
        hits = np.flatnonzero(differs.any(axis=1))
        self.changed += len(hits)
        for row, flags in zip(told(table.take(pa.array(hits))).to_pylist(), differs[hits], strict=True):
            columns = tuple(name for name, flag in zip(self._columns, flags, strict=True) if flag)
            number, examples = self._changes.get(columns, (0, ()))
            self.columns.update(columns)
            self._changes[columns] = number + 1, (examples if number >= EXAMPLES else (*examples, row["key"]))
            if self._all_images:
                self.images.append(Changed(image_id=row["image_id"], key=row["key"], columns=columns))

    def groups(self) -> tuple[Group, ...]:
        """Changed images by the columns in which they differ, the most frequent first."""
        order = sorted(self._changes.items(), key=lambda item: (-item[1][0], item[0]))
        return tuple(Group(why=", ".join(names), images=number, examples=keys) for names, (number, keys) in order)


def told(table: pa.Table) -> pa.Table:
    """The columns OWN of published images; what a run over vectors does not have is null, the key its image id."""
    names = table.column_names
    if "key" not in names:
        table = table.append_column("key", table["image_id"])
    columns = [table[f.name] if f.name in table.column_names else pa.nulls(len(table), f.type) for f in OWN]
    return pa.Table.from_arrays(columns, schema=OWN)


class Movement:
    """The images that came or went, with their fates in the ledger of the version that does not have them."""

    def __init__(self, rows: pa.Table, ledger: StageDir, has_causes: bool) -> None:
        self._rows, self._wanted = rows, Wanted(rows, has_causes=has_causes)
        for ref in ledger.shards() if len(rows) else ():
            for batch in read_batches(ref, FATES):
                self._wanted.look(pa.Table.from_batches([batch]))

    def __len__(self) -> int:
        return len(self._rows)

    def groups(self) -> tuple[Group, ...]:
        """The images by their fates, the most frequent first, each with its first keys."""
        fates, found = self._wanted.fates(), []
        for number, kind in enumerate(self._wanted.kinds):
            rows = np.flatnonzero(fates == number)
            if len(rows):
                keys = self._rows["key"].take(pa.array(rows[:EXAMPLES])).to_pylist()
                found.append(Group(why=kind.words, images=len(rows), examples=tuple(keys)))
        return tuple(sorted(found, key=lambda group: (-group.images, group.why)))

    def counts(self, column: str, name: Callable[[str], str | None] | None = None) -> Counter[str]:
        """How many of the images have each value of a column, or of what `name` makes of it; null has none."""
        found: Counter[str] = Counter()
        for chunk in self._rows[column].chunks:
            values = (chunk.flatten() if pa.types.is_list(chunk.type) else chunk).to_pylist()
            found.update(value if name is None else name(value) for value in values if value is not None)
        found.pop(None, None)
        return found

    def images(self) -> Iterator[Moved]:
        for number, row in enumerate(row for batch in self._rows.to_batches() for row in batch.to_pylist()):
            own = {"domain": domain(row.pop("url")), **row, "retrieved_for": tuple(row["retrieved_for"] or ())}
            yield Moved(**own, fate=self._wanted.fate(number))


def balances(came: Counter[str], went: Counter[str]) -> tuple[Balance, ...]:
    """How many images of each name came and went, those with the most first."""
    order = sorted(came | went, key=lambda name: (-came[name] - went[name], name))
    return tuple(Balance(name=name, added=came[name], removed=went[name]) for name in order)
