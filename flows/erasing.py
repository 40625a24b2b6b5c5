"""Erasing: images that were taken down leave the published versions and the stored bytes of a root.

Rows of the stages stay where they are, so that the numbers of all others hold; they lose their bytes, their thumbnails
and their names. A published version loses the rows. Interrupted, it is run again: what is done is found done. The
stored images come last, as everything else is found by what they say. A storage that keeps old versions of its files
has them still.
Cost: every shard of images, measures, manifests, rejects and versions is read once, and those that hold such an image
are written anew; memory: two batches, and the names of what is erased.
"""

import io
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from lvd.flows.gone import Gone, files
from lvd.flows.inquiry import NOT_STAGES
from lvd.flows.leftovers import remove_directory
from lvd.infra.shards import ShardRef, StageDir, fingerprint, read_table
from lvd.infra.storage import Storage
from lvd.tasks import card, tallies
from lvd.tasks.erased_page import with_notice, without_names, without_pictures
from lvd.tasks.erasing import Change, are_aliases, rewritten, tables, with_fates, without_rows, without_thumbnails
from lvd.tasks.erasing import without_names as without_names_in
from lvd.tasks.takedowns import Takedowns, alias_of

VERSIONS, SHARED, PATCHES = "curated", "published", "patches"
BEGUN = "erasing"  # the name that `datasets` knows a ledger by, while candidates lose theirs


class Erased(BaseModel, frozen=True):
    """What was erased now; what was erased before counts no more."""

    versions: dict[str, int] = {}  # version → images that it has lost
    images: int = 0  # rows of stored images that lost their bytes
    files: int = 0


def erase(storage: Storage, known: Takedowns, image_ids: set[str], groups: dict[str, str]) -> Erased:
    """Erases what records mean, and the images of these ids. Only the holder of the root's lease may call it.

    groups: image id → that of the image that it is a near duplicate of.
    """
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
    eraser.thumbnails(groups)
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
        domains = self._domains(f"{folder}/domains.parquet")
        self._page(f"{folder}/report.html", self._gone.names | domains, has_lost=self._loses(f"{folder}/ledger"))
        self._rename(f"{folder}/domains.parquet", domains)
        self._decontaminated(f"{folder}/decontaminated.parquet")
        self._begin(f"{folder}/ledger")
        for name in files(self._storage, f"{folder}/ledger", "data", below=False):
            self._rewrite(name, self._of_ledger)
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
                self._rows[name] = self._rewrite(name, lambda table: without_rows(table, self._gone.among(table)))
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

    def _page(self, name: str, names: set[str], *, has_lost: bool) -> None:
        if self._storage.exists(name):
            old = self._storage.read_bytes(name).decode()
            new = without_names(without_pictures(old, self._gone.found), names)
            new = with_notice(new) if has_lost else new
            if new != old:
                self._storage.write_bytes(name, new.encode())
                self.files += 1

    def _decontaminated(self, name: str) -> None:
        """The list of images that copy a reference, without those that are gone, nor keys of such references."""
        if not self._storage.exists(name):
            return
        old = self._parquet(name)
        table = without_rows(old, self._gone.among(old))
        names = self._gone.has(table["reference_id"]) & table["reference_key"].is_valid().to_numpy()
        if names.any():
            keys = [None if gone else key for key, gone in zip(table["reference_key"].to_pylist(), names, strict=True)]
            place = table.schema.get_field_index("reference_key")
            table = table.set_column(place, "reference_key", pa.array(keys, pa.string()))
        if table is not old:
            self._put_parquet(name, table)

    def _domains(self, name: str) -> set[str]:
        """The domains of a list that were taken down."""
        return self._gone.domains(self._parquet(name)["domain"].to_pylist()) if self._storage.exists(name) else set()

    def _rename(self, name: str, domains: set[str]) -> None:
        """The list of domains with a hash for each of these."""
        if domains:
            old = self._parquet(name)
            values = [alias_of(value) if value in domains else value for value in old["domain"].to_pylist()]
            place = old.schema.get_field_index("domain")
            self._put_parquet(name, old.set_column(place, old.schema.field(place), pa.array(values, pa.string())))

    def _parquet(self, name: str) -> pa.Table:
        return pq.read_table(io.BytesIO(self._storage.read_bytes(name)))

    def _put_parquet(self, name: str, table: pa.Table) -> None:
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
            licenses = card.ranked(tallies.licenses(target.shards()))
            new = card.recounted(said, endings, self._kept(target), dict(roles), dict(retrieved_for), licenses)
            if new != said:  # which are written last
                self._storage.write_bytes(readme, card.render(new).encode())
                self._storage.write_bytes(facts, new.model_dump_json(indent=1).encode())
                self.files += 2
        self._end(f"{target.directory}/ledger", ledger)
        states = card.states_of(endings)
        for name in self._storage.names("runs"):
            if name.endswith(f"-{target.fingerprint}.json"):
                old = self._storage.read_json(f"runs/{name}")
                counted = {
                    "ledger": {state: states[state] for state in old["ledger"]},
                    "endings": [[*ending, count] for ending, count in sorted(endings.items())],
                    "published": sum(roles.values()),
                }
                new = old | {key: value for key, value in counted.items() if key in old}
                self._put(f"runs/{name}", old, new)

    def _of_ledger(self, table: pa.Table) -> pa.Table:
        return with_fates(table, self._gone.entered(table))

    def _begin(self, ledger: str) -> None:
        """state.json of a ledger says that candidates lose their names, before the first one does."""
        state, names = f"{ledger}/state.json", files(self._storage, ledger, "data", below=False)
        every = (table for name in names for table in tables(self._storage, name))
        if self._storage.exists(state) and any(self._of_ledger(table) is not table for table in every):
            old = self._storage.read_json(state)
            self._put(state, old, {**old, "_fingerprint": BEGUN})

    def _end(self, ledger: str, refs: list[ShardRef]) -> None:
        """state.json tells a ledger from what it was before candidates lost their names, for all who keep it."""
        old = self._storage.read_json(f"{ledger}/state.json")
        if old["_fingerprint"] == BEGUN:
            aliases = sum(int(are_aliases(read_table(ref, ["key"])["key"]).sum()) for ref in refs)
            self._put(f"{ledger}/state.json", old, {**old, "_fingerprint": fingerprint(ledger, aliases)[:16]})

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

    def thumbnails(self, groups: dict[str, str]) -> None:
        """The 32 × 32 pixels by which near duplicates are known are noise; descriptors and hashes stay."""
        for directory in self._storage.names("screen"):
            target = StageDir(root=self._storage.root, stage="screen", fingerprint=directory)
            images = target.account()["inputs"]["images"] if target.is_complete() else None
            for name in files(self._storage, target.directory, "data", below=False):
                self._rewrite(
                    name,
                    lambda table, images=images: without_thumbnails(table, self._gone.measured(table, images), groups),
                )

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
