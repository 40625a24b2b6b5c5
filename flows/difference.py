"""What two versions of a root differ in: the images that came, those that went and why, those that changed.

Shards that both have are not read. Cost: the other shards of both, those of the older one twice if something went, and
the older ledger if something came, the newer one if something went. Memory: some 120 bytes for every image of the
shards that only the older version has, and some 2 kB for every image that came or went; of the images' bytes one batch.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from lvd.flows.versions import Version, published_versions, version_named
from lvd.infra.shards import ShardRef, StageDir, read_schema, read_table
from lvd.tasks.comparing import Wanted, compared_columns, digests, place, read_rows, value_hashes
from lvd.tasks.sources import domain

EXAMPLES = 3  # of every reason
TOLD = ["image_id", "key", "url", "source", "role", "retrieved_for"]  # of an image that came or went
FATES = ["image_id", "key", "source", "state", "stage", "reason", "because_of"]
ABSENT, REPLACED = "absent", "replaced"


class Fate(BaseModel, frozen=True):
    """What became of an image in the version that does not have it.

    state: dropped or failed, as the ledger has it; absent: it is no candidate there; replaced: the candidate of its
    name has other bytes, those of `because_of`.
    """

    state: str
    stage: str | None = None
    reason: str | None = None
    because_of: str | None = None

    @property
    def words(self) -> str:
        """The state and the reason, without the image that is the cause."""
        if self.state == ABSENT:
            return "no candidate"
        if self.state == REPLACED:
            return "other bytes under its name"
        return f"{self.state} at {self.stage}: {self.reason}"


class Moved(BaseModel, frozen=True):
    """An image that came or went."""

    image_id: str
    key: str
    domain: str | None
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
    domains: tuple[Balance, ...]
    added_images: tuple[Moved, ...] = ()
    removed_images: tuple[Moved, ...] = ()
    changed_images: tuple[Changed, ...] = ()


def difference(root: str, older: str, newer: str, *, all_images: bool = False) -> Difference:
    """What the version `newer` has beside `older`. all_images: every image is listed, beside counts and examples.

    Raises InputError if the root has no such versions.
    """
    there = published_versions(root)
    first, second = version_named(there, older, "V1"), version_named(there, newer, "V2")
    mine, others = only(root, first, second), only(root, second, first)
    comparison = Comparison(mine, others, all_images)
    came, went = comparison.added(), comparison.removed()
    added = moved(came, first.ledger(root))
    removed = moved(went, second.ledger(root))
    return Difference(
        older=first.name,
        newer=second.name,
        images=(first.images, second.images),
        shards=(len(first.shards) - len(mine), len(mine), len(others)),
        kept=second.images - len(added),
        changed=comparison.changed,
        columns=dict(comparison.columns.most_common()),
        changes=comparison.groups(),
        added=groups((image.fate.words, image.key) for image in added),
        removed=groups((image.fate.words, image.key) for image in removed),
        roles=balances(added, removed, lambda image: (image.role,)),
        collections=balances(added, removed, lambda image: image.retrieved_for),
        domains=balances(added, removed, lambda image: (image.domain,) if image.domain else ()),
        added_images=tuple(added) if all_images else (),
        removed_images=tuple(removed) if all_images else (),
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
        there = [compared_columns(refs[0]) if refs else [] for refs in (older, newer)]
        self._columns = [name for name in there[0] if name in there[1]]
        self._before = read_rows(older, self._columns)
        self._stays = np.zeros(len(self._before.images), dtype=bool)
        self.columns: Counter[str] = Counter()
        self._changes: dict[tuple[str, ...], tuple[int, tuple[str, ...]]] = {}
        self.changed, self.images = 0, []

    def added(self) -> list[dict[str, Any]]:
        """The rows of the newer version that the older one does not have; counts what changed on the way."""
        rows = []
        for ref in self._newer:
            table = read_table(ref, [name for name in read_schema(ref).names if name != "image"])
            places = place(self._before.images, digests(table["image_id"].to_pylist()))
            rows += told(table.filter(pa.array(places < 0)))
            self._stays[places[places >= 0]] = True
            self._compare(table.filter(pa.array(places >= 0)), self._before.values[places[places >= 0]])
        return rows

    def removed(self) -> list[dict[str, Any]]:
        """The rows of the older version that the newer one does not have. Call `added` first."""
        rows = []
        for ref in self._older if not self._stays.all() else ():
            table = read_table(ref, [name for name in read_schema(ref).names if name in TOLD])
            places = place(self._before.images, digests(table["image_id"].to_pylist()))
            rows += told(table.filter(pa.array(~self._stays[places])))
        return rows

    def _compare(self, table: pa.Table, before: np.ndarray) -> None:
        """Rows that both have, and the hashes that their values had in the older version."""
        differs = value_hashes(table.select(self._columns)) != before
        hits = np.flatnonzero(differs.any(axis=1))
        self.changed += len(hits)
        for row, flags in zip(told(table.take(pa.array(hits))), differs[hits], strict=True):
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


def told(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of published images with TOLD; what a run over vectors does not have is null, the key its image id."""
    rows = table.select([name for name in TOLD if name in table.column_names]).to_pylist()
    return [{**dict.fromkeys(TOLD), **row, "key": row.get("key", row["image_id"])} for row in rows]


def moved(rows: list[dict[str, Any]], ledger: StageDir) -> list[Moved]:
    """The images of these rows, with their fates in the ledger of the version that does not have them."""
    wanted = Wanted(rows)
    for ref in ledger.shards() if rows else ():
        wanted.look(read_table(ref, FATES))
    return [
        Moved(
            image_id=row["image_id"],
            key=row["key"],
            domain=domain(row["url"]),
            role=row["role"],
            retrieved_for=tuple(row["retrieved_for"] or ()),
            fate=fate_of(row["image_id"], wanted.fate(number)),
        )
        for number, row in enumerate(rows)
    ]


def fate_of(image_id: str, row: dict[str, Any] | None) -> Fate:
    """The fate of an image by the ledger's row of its bytes or of its name."""
    if row is None:
        return Fate(state=ABSENT)
    if row["image_id"] not in (None, image_id):
        return Fate(state=REPLACED, because_of=row["image_id"])
    return Fate(**{name: row[name] for name in Fate.model_fields})


def groups(found: Iterable[tuple[str, str]]) -> tuple[Group, ...]:
    """(reason, key) of images as groups, the most frequent first, each with its first keys."""
    keys: dict[str, list[str]] = {}
    for why, key in found:
        keys.setdefault(why, []).append(key)
    order = sorted(keys.items(), key=lambda item: (-len(item[1]), item[0]))
    return tuple(Group(why=why, images=len(mine), examples=tuple(mine[:EXAMPLES])) for why, mine in order)


def balances(added: list[Moved], removed: list[Moved], names: Callable[[Moved], Iterable[str]]) -> tuple[Balance, ...]:
    """How many images of each name came and went, those with the most first."""
    came, went = (Counter(name for image in images for name in names(image)) for images in (added, removed))
    order = sorted(came | went, key=lambda name: (-came[name] - went[name], name))
    return tuple(Balance(name=name, added=came[name], removed=went[name]) for name in order)
