"""Erasing: images that were taken down leave the published versions and the stored bytes of a root.

Rows of the stages stay where they are, so that the numbers of all others hold; they lose their bytes and their names. A
published version loses the rows. Interrupted, it is run again: what is done is found done. The stored images come last,
as everything else is found by what they say. A storage that keeps old versions of its files has them still.
Cost: every shard of images, manifests, rejects and versions is read once, and those that hold such an image are written
anew; memory: two batches, and the names of what is erased.
"""

import io
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from lvd.flows.inquiry import NOT_STAGES
from lvd.flows.leftovers import remove_directory
from lvd.infra.shards import ShardRef, StageDir, fingerprint, read_table
from lvd.infra.storage import Storage
from lvd.tasks import card, tallies
from lvd.tasks.erased_page import with_notice, without_names, without_pictures
from lvd.tasks.erasing import Change, are_aliases, rewritten, tables, with_fates, without_rows
from lvd.tasks.erasing import without_names as without_names_in
from lvd.tasks.takedowns import FORGOTTEN, Takedowns, is_among, url_digest
from lvd.tasks.wording import without_credentials

VERSIONS, SHARED, PATCHES = "curated", "published", "patches"


class Erased(BaseModel, frozen=True):
    """What was erased now; what was erased before counts no more."""

    versions: dict[str, int] = {}  # version → images that it has lost
    images: int = 0  # rows of stored images that lost their bytes
    files: int = 0


class Gone:
    """What is erased: by image id, by what records say of a row, and by the keys of such rows in their directories.

    Memory: the names of what is erased.
    """

    def __init__(self, storage: Storage, known: Takedowns, image_ids: set[str]) -> None:
        self.image_ids, self._known = image_ids, known
        self.keys: dict[str, set[str]] = defaultdict(set)  # directory of images → hashes of keys
        self.every: set[tuple[str, str]] = set()  # hash of the key, image id
        self.urls: set[str] = set()  # hashes
        self.names: set[str] = set()  # keys and URLs as they stand
        self.found = set(image_ids)  # with those that lie on a domain
        for name in files(storage, "download", "data"):
            for table in tables(storage, name):
                self._learn(name.rpartition("/")[0], table)
        for name in (name for stage in ("crawl", "download") for name in files(storage, stage, "rejects")):
            for table in tables(storage, name):  # what gave no image; pages name some of it
                self._name(table["key"].filter(pa.array(self.among(table))).to_pylist())

    def _learn(self, directory: str, table: pa.Table) -> None:
        rows = table.filter(pa.array(self.among(table))).select(["image_id", "key", "url"]).to_pylist()
        for row in rows:
            digest = url_digest(row["key"])
            self.keys[directory].add(digest)
            self.every.add((digest, row["image_id"]))
            self.found.add(row["image_id"])
            self.urls |= {url_digest(url) for url in (row["url"],) if url}
            self._name([row["key"], row["url"]])

    def _name(self, names: list[str | None]) -> None:
        named = [name for name in names if name and not name.startswith(f"{FORGOTTEN}:")]
        self.names |= {*named, *map(without_credentials, named)}  # as pages show them

    def among(self, table: pa.Table) -> np.ndarray:
        """(n,) bool: the row is of such an image, as far as it says itself."""
        meant = self._known.kinds(table).astype(bool)
        return meant | is_among(table["image_id"], self.image_ids) if "image_id" in table.schema.names else meant

    def named(self, table: pa.Table, keys: set[str]) -> np.ndarray:
        """The same, or its key is one of these."""
        return self.among(table) | np.array([url_digest(key) in keys for key in table["key"].to_pylist()], dtype=bool)

    def entered(self, table: pa.Table) -> np.ndarray:
        """The same, of rows of a ledger."""
        pairs = zip(table["key"].to_pylist(), table["image_id"].to_pylist(), strict=True)
        return self.among(table) | np.array([(url_digest(k), i) in self.every for k, i in pairs], dtype=bool)


def erase(storage: Storage, known: Takedowns, image_ids: set[str]) -> Erased:
    """Erases what records mean, and the images of these ids. Only the holder of the root's lease may call it."""
    eraser = Eraser(storage, Gone(storage, known, image_ids))
    versions = {}
    for version in sorted((name for name in storage.names(VERSIONS) if name[1:].isdigit()), key=lambda v: int(v[1:])):
        if lost := eraser.version(version):
            versions[version] = lost
    for name in storage.names(SHARED):  # what no version has any more
        eraser.published(StageDir(root=storage.root, stage=SHARED, fingerprint=name))
    for name in storage.names(PATCHES):  # pixels of a few published images, for reports that are there already
        remove_directory(storage, f"{PATCHES}/{name}")
    eraser.sidecars()
    images = eraser.images()
    return Erased(versions=versions, images=images, files=eraser.files)


class Eraser:
    """Writes anew whatever names an image that is gone."""

    def __init__(self, storage: Storage, gone: Gone) -> None:
        self._storage, self._gone, self.files = storage, gone, 0
        self._rows: dict[str, int] = {}  # file of a published shard → its rows now

    def version(self, version: str) -> int:
        """How many images a version has lost now: in its report, its lists, its ledger, its rows and its card."""
        target = StageDir(root=self._storage.root, stage=VERSIONS, fingerprint=version)
        folder = target.directory
        self._page(f"{folder}/report.html", has_lost=self._loses(f"{folder}/ledger"))
        self._decontaminated(f"{folder}/decontaminated.parquet")
        for name in files(self._storage, f"{folder}/ledger", "data", below=False):
            self._rewrite(name, lambda table: with_fates(table, self._gone.entered(table)))
        for name in files(self._storage, f"{folder}/ledger", "rejects", below=False):
            self._rewrite(name, lambda table: without_names_in(table, self._gone.entered(table)))
        lost = self.published(target)
        if target.is_complete():
            self._counts(target)
        return lost

    def published(self, target: StageDir) -> int:
        """How many rows the shards of published images have lost; every count of them is that of the rows."""
        refs = target.shards() if target.is_complete() else []
        names = [ref.name() for ref in refs] or list(files(self._storage, target.directory, "data", below=False))
        lost, directories = 0, {target.directory, *(ref.directory for ref in refs)}
        before = {ref.name(): ref.rows for ref in refs}
        for name in names:
            if name not in self._rows:
                self._rows[name] = self._rewrite(
                    name, lambda table: without_rows(table, self._gone.named(table, set()))
                )
                self._account(name)
            lost += max(0, before.get(name, self._rows[name]) - self._rows[name])
        for directory in sorted(directories):
            self._recount(directory)
        return lost

    def _rewrite(self, name: str, change: Change) -> int:
        is_new, rows = rewritten(self._storage, name, change)
        self.files += is_new
        return rows

    def _put(self, name: str, old: Any, new: Any) -> None:
        """A file of JSON, if it has to change."""
        if new != old:
            self._storage.write_json(name, new)
            self.files += 1

    def _account(self, shard: str) -> None:
        """The account beside a shard has its rows."""
        folder, _, name = shard.rpartition("/")
        beside = f"{folder}/{name.replace('data-', 'account-').replace('.arrow', '.json')}"
        if self._storage.exists(beside):
            old = self._storage.read_json(beside)
            self._put(beside, old, {**old, "rows": self._rows[shard]})

    def _recount(self, directory: str) -> None:
        """stage.json and state.json of a directory have the rows of its shards."""
        name = f"{directory}/stage.json"
        if not self._storage.exists(name):
            return
        stage, _, last = directory.rpartition("/")
        refs = StageDir(root=self._storage.root, stage=stage, fingerprint=last).shards()
        counts = [self._rows.get(ref.name(), ref.rows) for ref in refs]
        if counts == [ref.rows for ref in refs]:
            return
        old, state = self._storage.read_json(name), self._storage.read_json(f"{directory}/state.json")
        said = fingerprint(directory, counts)[:16]  # so that nobody's cache takes it for the old one
        self._put(f"{directory}/state.json", state, {**state, "_fingerprint": said})
        self._put(name, old, {**old, "rows": sum(counts), "shard_rows": counts})

    def _loses(self, ledger: str) -> bool:
        """Whether a ledger has a published image that is gone; not any more once it was written anew."""
        for name in files(self._storage, ledger, "data", below=False):
            for table in tables(self._storage, name):
                if (self._gone.entered(table) & (table["state"].to_numpy() == "kept")).any():
                    return True
        return False

    def _page(self, name: str, *, has_lost: bool) -> None:
        if self._storage.exists(name):
            old = self._storage.read_bytes(name).decode()
            new = without_names(without_pictures(old, self._gone.found), self._gone.names)
            new = with_notice(new) if has_lost else new
            if new != old:
                self._storage.write_bytes(name, new.encode())
                self.files += 1

    def _decontaminated(self, name: str) -> None:
        """The list of images that copy a reference, without those that are gone, nor keys of such references."""
        if not self._storage.exists(name):
            return
        old = pq.read_table(io.BytesIO(self._storage.read_bytes(name)))
        table = without_rows(old, self._gone.named(old, set()))
        names = is_among(table["reference_id"], self._gone.image_ids) & table["reference_key"].is_valid().to_numpy()
        if names.any():
            keys = [None if gone else key for key, gone in zip(table["reference_key"].to_pylist(), names, strict=True)]
            place = table.schema.get_field_index("reference_key")
            table = table.set_column(place, "reference_key", pa.array(keys, pa.string()))
        if table is not old:
            sink = io.BytesIO()
            pq.write_table(table, sink)
            self._storage.write_bytes(name, sink.getvalue())
            self.files += 1

    def _counts(self, target: StageDir) -> None:
        """The card, README.md, by the facts beside it, and the records of the runs that published this version."""
        ledger = StageDir(root=target.root, stage=target.directory, fingerprint="ledger").shards()
        endings, (roles, retrieved_for) = tallies.endings(ledger), tallies.published_counts(target.shards())
        facts, readme = f"{target.directory}/{card.FACTS_FILE}", f"{target.directory}/README.md"
        if self._storage.exists(facts):
            said = card.Facts(**self._storage.read_json(facts))
            new = card.recounted(said, endings, self._kept(target), dict(roles), dict(retrieved_for))
            if new != said:  # which are written last
                self._storage.write_bytes(readme, card.render(new).encode())
                self._storage.write_bytes(facts, new.model_dump_json(indent=1).encode())
                self.files += 2
        self._renamed(f"{target.directory}/ledger/state.json", ledger)
        states = card.states_of(endings)
        for name in self._storage.names("runs"):
            if name.endswith(f"-{target.fingerprint}.json"):
                old = self._storage.read_json(f"runs/{name}")
                new = {**old, "ledger": {state: states[state] for state in old["ledger"]}}
                self._put(f"runs/{name}", old, new)

    def _renamed(self, name: str, ledger: list[ShardRef]) -> None:
        """state.json of a ledger tells it from what it was before candidates lost their names, for all who keep it."""
        if aliases := sum(int(are_aliases(read_table(ref, ["key"])["key"]).sum()) for ref in ledger):
            old = self._storage.read_json(name)
            self._put(name, old, {**old, "_fingerprint": fingerprint(name, aliases)[:16]})

    def _kept(self, target: StageDir) -> Counter[str]:
        """Directory of images → images of it that a version has: its ledger has a shard for each of their shards."""
        ledger, kept = StageDir(root=target.root, stage=target.directory, fingerprint="ledger"), Counter()
        refs = iter(ledger.shards())
        for directory in ledger.account()["inputs"]["images"]:
            stage, _, name = directory.rpartition("/")
            for _ in StageDir(root=target.root, stage=stage, fingerprint=name).shards():
                states = read_table(next(refs), ["state"])["state"].to_numpy()
                kept[directory] += int((states == "kept").sum())
        return kept

    def sidecars(self) -> None:
        """Rejects of all stages, links and manifests have no name of it."""
        for stage in self._storage.names(""):
            if stage in (*NOT_STAGES, VERSIONS) or stage.startswith("miniature"):
                continue
            for name in files(self._storage, stage, "rejects"):
                self._rewrite(name, self._of_rejects)
        for name in files(self._storage, "links", "data"):
            self._rewrite(name, lambda table: without_names_in(table, self._gone.named(table, self._gone.urls)))
        for images, keys in self._gone.keys.items():
            stage, _, last = images.rpartition("/")
            target = StageDir(root=self._storage.root, stage=stage, fingerprint=last)
            manifest = target.account()["inputs"]["manifest"] if target.is_complete() else None
            for kind in ("data", "rejects") if manifest else ():
                for name in files(self._storage, manifest, kind, below=False):
                    self._rewrite(name, lambda table, keys=keys: without_names_in(table, self._gone.named(table, keys)))
        for name in files(self._storage, "crawl", "data"):
            self._rewrite(name, lambda table: without_names_in(table, self._gone.among(table)))

    def _of_rejects(self, table: pa.Table) -> pa.Table:
        return without_names_in(table, self._gone.named(table, self._gone.urls))

    def images(self) -> int:
        """How many stored images lost their bytes."""
        emptied = 0

        def change(table: pa.Table) -> pa.Table:
            return without_names_in(table, self._gone.among(table))

        for name in files(self._storage, "download", "data"):
            new = sum(
                int((change(table)["key"].to_numpy() != table["key"].to_numpy()).sum())
                for table in tables(self._storage, name)
            )
            emptied += new
            self._rewrite(name, change)
        return emptied


def files(storage: Storage, folder: str, kind: str, *, below: bool = True) -> Iterator[str]:
    """The Arrow files of a kind in the folders of a folder, or in the folder itself."""
    for directory in [f"{folder}/{name}" for name in storage.names(folder)] if below else [folder]:
        if below and directory.endswith((".json", ".arrow", ".npz")):
            continue
        for name in storage.names(directory):
            if name.startswith(f"{kind}-") and name.endswith(".arrow"):
                yield f"{directory}/{name}"
