"""The published versions of a root as they stand now, each opened once and read as long as nothing of it changes."""

import hashlib
import json
import re
import threading
import time
from collections import Counter
from functools import cached_property
from typing import Any

from lvd.flows.veiling import Veil, said
from lvd.infra.errors import InputError
from lvd.infra.places import Batches
from lvd.infra.shards import ShardRef, StageDir
from lvd.infra.storage import Storage
from lvd.tasks import schemas, tallies
from lvd.tasks.scanning import Columns, among, equal, holding, scan

FOLDER = "curated"  # of the versions, as `versions` has it
FORGOTTEN = "forgotten"  # the folder of takedowns, and the reason in the ledger
CHECK_S = 1.0  # for which a version is taken to be as it was
OPEN = 2  # versions that are held at once
PUBLISHED = [
    *("image_id", "key", "url", "source", "role", "retrieved_for", "query_id", "similarity", "cluster_id", "label"),
    *("width", "height"),
]
RUN = re.compile(r"(?P<run_id>[0-9]{8}T[0-9]{6}Z-v(?P<number>[1-9][0-9]*))\.json")
MAX_COUNTED = 5_000_000  # rows of a ledger whose reasons are counted when somebody first asks
MAX_ROWS_OF_ONE = 200  # of the ledger, of one image


class NotThere(Exception):
    """What was asked for is not on this root."""


class Edition:
    """One published version: its ledger, its images, and the record of the run that made it."""

    def __init__(self, root: str, number: int, record: dict[str, Any]) -> None:
        self.root, self.number, self.record = root, number, record
        self.version = f"v{number}"
        directories = record["directories"]
        self.batches = Batches()
        self.has_images = "imported" not in directories and "download" in directories

    def at(self, directory: str) -> StageDir:
        stage, name = directory.rsplit("/", 1)
        return StageDir(root=self.root, stage=stage, fingerprint=name)

    @cached_property
    def ledger_dir(self) -> StageDir:
        return StageDir(root=self.root, stage=f"{FOLDER}/{self.version}", fingerprint="ledger")

    @cached_property
    def ledger(self) -> Columns:
        return Columns(self.ledger_dir.shards(), schemas.LEDGER.names)

    @cached_property
    def dataset(self) -> list[ShardRef]:
        return StageDir(root=self.root, stage=FOLDER, fingerprint=self.version).shards()

    @cached_property
    def published(self) -> Columns:
        return Columns(self.dataset, PUBLISHED)

    @cached_property
    def cells(self) -> Columns | None:
        """The cluster of every pool image that was left to cluster."""
        found = self.record["directories"].get("cluster", [])
        refs = [ref for directory in found for ref in self.at(directory).shards()]
        return Columns(refs, ["image_id", "cluster_id", "similarity"]) if refs else None

    @cached_property
    def states(self) -> dict[str, int]:
        """State → candidates, as the ledger has them now."""
        counted = {state: self.ledger_dir.account()["reasons"].get(state, 0) for state in ("kept", "dropped", "failed")}
        return counted if sum(counted.values()) == self.ledger.rows else self.record["ledger"]

    @cached_property
    def veil(self) -> Veil:
        """The takedowns, whatever the version knows of them."""
        return Veil(self.root)

    @cached_property
    def endings(self) -> list[dict[str, Any]]:
        """How many candidates ended in each way; nothing for a ledger too long to count while somebody waits."""
        if self.ledger.rows > MAX_COUNTED:
            return []
        names, counts = ["stage", "state", "reason"], Counter()
        for _, table in self.ledger.tables():
            for row in table.group_by(names).aggregate([([], "count_all")]).to_pylist():
                counts[tuple(row[name] or "" for name in names)] += row["count_all"]
        return [dict(zip(names, ending, strict=True), count=count) for ending, count in counts.most_common()]

    @cached_property
    def collections(self) -> tuple[Counter[str], Counter[str]]:
        """Published images by role, and by the collection that retrieved them."""
        if not self.has_images:
            return Counter(), Counter()
        if Storage(self.root).is_local:
            return tallies.published_counts(self.dataset)
        # The same columns without the bytes of the images, which a bucket would have to send.
        chosen = [ref for name in self.record["directories"]["selection"] for ref in self.at(name).shards()]
        roles, collections = tallies.published_counts(chosen)
        del roles[schemas.REPEATED]
        return roles, collections

    def rows_of(self, image_id: str) -> list[dict[str, Any]]:
        """The ledger's rows with these bytes, each with its position."""
        return scan(self.ledger, equal("image_id", image_id), limit=MAX_ROWS_OF_ONE).rows

    def fates(self, image_id: str) -> list[dict[str, Any]]:
        """These rows with `cause`: what the image is, in words, that each was dropped because of."""
        from lvd.flows.inquiry import described

        rows = self.rows_of(image_id)
        wanted = {row["because_of"] for row in rows if row["because_of"]}
        causes = self.references(wanted)
        if others := wanted - causes.keys():
            found = scan(self.ledger, among("image_id", others), limit=MAX_ROWS_OF_ONE).rows
            for row in sorted(found, key=lambda r: r["state"] == "kept"):
                record = self.veil.record_of_row(row)
                causes[row["image_id"]] = said(record) if record else described(row)
        return [{**row, "cause": causes.get(row["because_of"])} for row in rows]

    def references(self, image_ids: set[str]) -> dict[str, str]:
        """image id → its key and collection, of images of the benchmarks and the curated collections."""
        from lvd.flows.inquiry import named_references

        if not self.has_images:
            return {}
        found = named_references(self.root, self.record["collections"], image_ids)
        rows = {one: {"image_id": one, "key": words.rpartition(" (")[0]} for one, words in found.items()}
        gone = {one: record for one, row in rows.items() if (record := self.veil.record_of_row(row))}
        return found | {one: said(record) for one, record in gone.items()}

    def published_row(self, image_id: str) -> dict[str, Any] | None:
        """What was published of an image, with its position; None if it was not."""
        found = scan(self.published, equal("image_id", image_id), limit=1, counted=False) if self.has_images else None
        return found.rows[0] if found and found.rows else None

    def cell_of(self, image_id: str) -> dict[str, Any] | None:
        """The cluster of an image and its similarity to the centroid; None for one that was not clustered."""
        found = scan(self.cells, equal("image_id", image_id), limit=1, counted=False).rows if self.cells else []
        return {name: found[0][name] for name in ("cluster_id", "similarity")} if found else None

    def of_cluster(self, cluster_id: int) -> set[str]:
        """The ids of the pool images of a cluster."""
        found: set[str] = set()
        for _, table in self.cells.tables() if self.cells else ():
            places = holding(equal("cluster_id", cluster_id), table)
            found |= set(table["image_id"].take(places).to_pylist())
        return found


class Shelf:
    """The versions of a root. Reads only; what was published since is there at the next question."""

    def __init__(self, root: str) -> None:
        self.storage = Storage(root)
        self.root = self.storage.root
        self._open: dict[int, tuple[str, Edition]] = {}
        self._seen: dict[int, tuple[float, Edition]] = {}  # when it was last compared with what is on storage
        self._opening = threading.Lock()

    def runs(self) -> dict[str, int]:
        """The id of every finished run and the number of the version that it published, the latest first."""
        found = (RUN.fullmatch(name) for name in reversed(self.storage.names("runs")))
        return {match["run_id"]: int(match["number"]) for match in found if match}

    def record(self, run_id: str) -> dict[str, Any]:
        """What a run was asked, did and cost. Raises NotThere."""
        if run_id not in self.runs():
            raise NotThere(f"no run is called {run_id[:80]!r}: see /runs")
        return self.storage.read_json(f"runs/{run_id}.json")

    def numbers(self) -> list[int]:
        """The numbers of the published versions, the highest first."""
        return sorted(set(self.runs().values()), reverse=True)

    def newest(self) -> int:
        """The number of the version that `latest.json` names. Raises InputError if nothing was published."""
        name = f"{FOLDER}/latest.json"
        if not self.storage.exists(name):
            remedy = f"run `lvd run RECIPE --root {self.root}` first"
            raise InputError(f"root must hold a published version, {self.root!r} has none: {remedy}")
        return int(self.storage.read_json(name)["version"][1:])

    def edition(self, number: int | None = None) -> Edition:
        """A version, the newest if none is named. Raises NotThere for one that is not published."""
        number = self.newest() if number is None else number
        seen, edition = self._seen.get(number, (-CHECK_S, None))
        if edition is None or time.monotonic() - seen >= CHECK_S:
            edition = self._as_it_stands(number)
            self._seen[number] = (time.monotonic(), edition)
        return edition

    def _as_it_stands(self, number: int) -> Edition:
        """The version, opened anew if anything of it has changed."""
        mine = next((run_id for run_id, published in self.runs().items() if published == number), None)
        directory = f"{FOLDER}/v{number}"
        if mine is None or not self.storage.exists(f"{directory}/ledger/stage.json"):
            raise NotThere(f"version v{number} is not published: see / for those that are")
        said = [self.storage.read_bytes(f"{name}/stage.json") for name in (directory, f"{directory}/ledger")]
        state = hashlib.sha256(json.dumps([mine, self.takedowns()]).encode() + b"".join(said)).hexdigest()
        with self._opening:
            if number not in self._open or self._open[number][0] != state:
                self._open.pop(number, None)
                while len(self._open) >= OPEN:
                    oldest = next(iter(self._open))
                    del self._open[oldest]
                    self._seen.pop(oldest, None)
                record = self.storage.read_json(f"runs/{mine}.json")
                self._open[number] = (state, Edition(self.root, number, record))
            return self._open[number][1]

    def takedowns(self) -> list[str]:
        """The names of the records of takedowns."""
        return self.storage.names(FORGOTTEN)
