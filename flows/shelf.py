"""The published versions of a root as they stand now, each opened once and read as long as nothing of it changes."""

import hashlib
import json
import math
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

from lvd.flows.veiling import Veil, said
from lvd.infra.errors import InputError
from lvd.infra.places import Batches
from lvd.infra.shards import READERS, ShardRef, StageDir
from lvd.infra.storage import Storage
from lvd.tasks import schemas, tallies
from lvd.tasks.scanning import Columns, equal, holding

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


class once(cached_property):
    """A property that one thread makes while all others that ask for it wait."""

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        with instance.making:
            return super().__get__(instance, owner)


class Edition:
    """One published version: its ledger, its images, and the record of the run that made it.

    state: what tells it from the same version before or after something of it was changed.
    """

    def __init__(self, root: str, number: int, record: dict[str, Any], state: str) -> None:
        self.root, self.number, self.record, self.state = root, number, record, state
        self.version, self.making = f"v{number}", threading.RLock()
        directories = record["directories"]
        self.batches = Batches()
        self.has_images = "imported" not in directories and "download" in directories

    def at(self, directory: str) -> StageDir:
        stage, name = directory.rsplit("/", 1)
        return StageDir(root=self.root, stage=stage, fingerprint=name)

    @once
    def ledger_dir(self) -> StageDir:
        return StageDir(root=self.root, stage=f"{FOLDER}/{self.version}", fingerprint="ledger")

    @once
    def ledger(self) -> Columns:
        return Columns(self.ledger_dir.shards(), schemas.LEDGER.names)

    @once
    def dataset(self) -> list[ShardRef]:
        return StageDir(root=self.root, stage=FOLDER, fingerprint=self.version).shards()

    @once
    def published(self) -> Columns:
        return Columns(self.dataset, PUBLISHED)

    @once
    def cells(self) -> Columns | None:
        """The cluster of every pool image that was left to cluster."""
        found = self.record["directories"].get("cluster", [])
        refs = [ref for directory in found for ref in self.at(directory).shards()]
        return Columns(refs, ["image_id", "cluster_id", "similarity"]) if refs else None

    @property
    def states(self) -> dict[str, int]:
        """State → candidates, as the ledger has them: a takedown counts anew."""
        return self.record["ledger"]

    @once
    def stored(self) -> list[tuple[str, list[ShardRef], ShardRef]]:
        """For each shard of the ledger the images that came of it: their directory, all its shards, their shard."""
        directories = self.ledger_dir.account()["inputs"].get("images", ()) if self.has_images else ()
        shards = {directory: self.at(directory).shards() for directory in directories}
        return [(directory, refs, ref) for directory, refs in shards.items() for ref in refs]

    @once
    def content(self) -> dict[str, list[ShardRef]]:
        """Directory of images → what was seen in them, where a model looked for faces."""
        looked = map(self.at, self.record["directories"].get("content", ()))
        return {target.account()["inputs"]["images"]: target.shards() for target in looked}

    @once
    def others(self) -> list[tuple[str, str, Columns]]:
        """The images of the benchmarks and curated collections: what they are, where they lie, ids and keys."""
        if not self.has_images:
            return []
        collections = [one for one in self.record["collections"] if one["role"] != "pool"]
        names = {d: f"{one['role']} {one['name']}" for one in collections for d in one["images"]}
        return [(name, d, Columns(self.at(d).shards(), ["image_id", "key"])) for d, name in names.items()]

    @once
    def veil(self) -> Veil:
        """The takedowns, whatever the version knows of them."""
        return Veil(self.root)

    @once
    def endings(self) -> list[dict[str, Any]]:
        """How many candidates ended in each way; nothing for a ledger too long to count while somebody waits."""
        if self.ledger.rows > MAX_COUNTED:
            return []
        names, counts = ["stage", "state", "reason"], Counter()
        for _, table in self.ledger.tables():
            for row in table.group_by(names).aggregate([([], "count_all")]).to_pylist():
                counts[tuple(row[name] or "" for name in names)] += row["count_all"]
        return [dict(zip(names, ending, strict=True), count=count) for ending, count in counts.most_common()]

    @once
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
        return self.ledger.of_id(image_id, MAX_ROWS_OF_ONE)

    def fates(self, image_id: str) -> list[dict[str, Any]]:
        """These rows with `cause`: what the image is, in words, that each was dropped because of."""

        rows = self.rows_of(image_id)
        causes: dict[str, str] = {}
        for cause in {row["because_of"] for row in rows if row["because_of"]}:
            if words := self.reference(cause) or self._candidate(cause):
                causes[cause] = words
        return [{**row, "cause": causes.get(row["because_of"])} for row in rows]

    def reference(self, image_id: str) -> str | None:
        """The key and the collection of an image of a benchmark or curated collection; None if it is none."""
        for collection, _, images in reversed(self.others):
            if found := images.of_id(image_id, 1):
                record = self.veil.record_of_row(found[0])
                return said(record) if record else f"{found[0]['key']} ({collection})"
        return None

    def _candidate(self, image_id: str) -> str | None:
        """What a candidate with these bytes is, in words; None if there is none."""
        from lvd.flows.inquiry import described

        found = sorted(self.rows_of(image_id), key=lambda row: row["state"] == "kept")
        record = self.veil.record_of_row(found[-1]) if found else None
        return said(record) if record else described(found[-1]) if found else None

    def published_row(self, image_id: str) -> dict[str, Any] | None:
        """What was published of an image, with its position; None if it was not."""
        return next(iter(self.published.of_id(image_id, 1)), None) if self.has_images else None

    def cell_of(self, image_id: str) -> dict[str, Any] | None:
        """The cluster of an image and its similarity to the centroid; None for one that was not clustered."""
        found = self.cells.of_id(image_id, 1) if self.cells else []
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
        self._open: dict[int, Edition] = {}
        self._known: dict[str, tuple[float, Any]] = {}
        self._looking = threading.RLock()

    def _recent(self, name: str, look: Callable[[], Any]) -> Any:
        """What a look at the storage says, or said less than CHECK_S ago; one thread looks, others wait for it."""
        with self._looking:
            looked, found = self._known.get(name, (-math.inf, None))
            if time.monotonic() - looked >= CHECK_S:
                found = look()
                self._known[name] = (time.monotonic(), found)
            return found

    def runs(self) -> dict[str, int]:
        """The id of every finished run and the number of the version that it published, the latest first."""

        def look() -> dict[str, int]:
            found = (RUN.fullmatch(name) for name in reversed(self.storage.names("runs")))
            return {match["run_id"]: int(match["number"]) for match in found if match}

        return self._recent("runs", look)

    def record(self, run_id: str) -> dict[str, Any]:
        """What a run was asked, did and cost. Raises NotThere."""
        if run_id not in self.runs():
            raise NotThere(f"no run is called {run_id[:80]!r}: see /runs")
        return self.storage.read_json(f"runs/{run_id}.json")

    def records(self, run_ids: list[str]) -> list[dict[str, Any]]:
        """The same of several runs, in their order."""
        with ThreadPoolExecutor(READERS) as readers:
            return list(readers.map(self.record, run_ids))

    def numbers(self) -> list[int]:
        """The numbers of the published versions, the highest first."""
        return sorted(set(self.runs().values()), reverse=True)

    def newest(self) -> int:
        """The number of the version that `latest.json` names. Raises InputError if nothing was published."""

        def look() -> int:
            name = f"{FOLDER}/latest.json"
            if not self.storage.exists(name):
                remedy = f"run `lvd run RECIPE --root {self.root}` first"
                raise InputError(f"root must hold a published version, {self.root!r} has none: {remedy}")
            return int(self.storage.read_json(name)["version"][1:])

        return self._recent("newest", look)

    def edition(self, number: int | None = None) -> Edition:
        """A version as it stands, the newest if none is named. Raises NotThere for one that is not published."""
        number = self.newest() if number is None else number
        with self._looking:
            state, run_id = self._recent(f"v{number}", lambda: self._state(number))
            if number not in self._open or self._open[number].state != state:
                self._open.pop(number, None)
                while len(self._open) >= OPEN:
                    del self._open[next(iter(self._open))]
                self._open[number] = Edition(self.root, number, self.storage.read_json(f"runs/{run_id}.json"), state)
            return self._open[number]

    def _state(self, number: int) -> tuple[str, str]:
        """What changes when anything of a version does, and the last run that came to it."""
        mine = next((run_id for run_id, published in self.runs().items() if published == number), None)
        directory = f"{FOLDER}/v{number}"
        if mine is None or not self.storage.exists(f"{directory}/ledger/stage.json"):
            raise NotThere(f"version v{number} is not published: see / for those that are")
        names = [f"{directory}/{name}.json" for name in ("stage", "state", "ledger/stage", "ledger/state")]
        said = map(self.storage.read_bytes, [f"runs/{mine}.json", *names])
        takedowns = json.dumps([mine, self.storage.names(FORGOTTEN)]).encode()
        return hashlib.sha256(b"\0".join([takedowns, *said])).hexdigest(), mine
