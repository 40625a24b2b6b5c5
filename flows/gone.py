"""What is erased: which rows of which files tell of images that were taken down."""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from lvd.infra.shards import StageDir
from lvd.infra.storage import Storage
from lvd.tasks.erasing import tables
from lvd.tasks.takedowns import FORGOTTEN, Takedowns, is_among, texts, url_digest
from lvd.tasks.wording import without_credentials


class Gone:
    """What is erased: by image id, by what records say of a row, and by the places and keys of such rows.

    Memory: the names of what is erased.
    """

    def __init__(self, storage: Storage, known: Takedowns, image_ids: set[str]) -> None:
        self._storage, self._known, self._ids = storage, known, texts(image_ids)
        self.rows: dict[str, set[int]] = defaultdict(set)  # directory of images → rows, if it is complete
        self.keys: dict[str, set[str]] = defaultdict(set)  # directory of images → hashes of keys
        self.every: set[tuple[str, str]] = set()  # hash of the key, image id
        self.urls: set[str] = set()  # hashes
        self.names: set[str] = set()  # keys and URLs as they stand
        self.found = set(image_ids)  # with those that lie on a domain
        for directory in storage.names("download"):
            self._learn(StageDir(root=storage.root, stage="download", fingerprint=directory))
        self._found = texts(self.found)
        for name in (name for stage in ("crawl", "download") for name in files(storage, stage, "rejects")):
            for table in tables(storage, name):  # what gave no image; pages name some of it
                self._name(table["key"].filter(pa.array(self.among(table))).to_pylist())

    def _learn(self, images: StageDir) -> None:
        is_whole, first = images.is_complete(), 0
        for name in files(self._storage, images.directory, "data", below=False):  # in the order of their rows
            for table in tables(self._storage, name):
                places = np.flatnonzero(self.among(table))
                if is_whole:
                    self.rows[images.directory].update((first + places).tolist())
                for row in table.select(["image_id", "key", "url"]).take(pa.array(places)).to_pylist():
                    digest = url_digest(row["key"])
                    self.keys[images.directory].add(digest)
                    self.every.add((digest, row["image_id"]))
                    self.found.add(row["image_id"])
                    self.urls |= {url_digest(url) for url in (row["url"],) if url}
                    self._name([row["key"], row["url"]])
                first += len(table)

    def _name(self, names: list[str | None]) -> None:
        named = [name for name in names if name and not name.startswith(f"{FORGOTTEN}:")]
        self.names |= {*named, *map(without_credentials, named)}  # as pages show them

    def domains(self, names: list[str | None]) -> set[str]:
        """Those of these domains that were taken down."""
        return {name for name in names if name and self._known.means_domain(name)}

    def has(self, column: pa.ChunkedArray) -> np.ndarray:
        """(n,) bool: the image id is of an image that is gone wherever it lies."""
        return is_among(column, self._ids)

    def among(self, table: pa.Table) -> np.ndarray:
        """(n,) bool: the row is of such an image, as far as it says itself."""
        meant = self._known.kinds(table).astype(bool)
        return meant | self.has(table["image_id"]) if "image_id" in table.schema.names else meant

    def named(self, table: pa.Table, keys: set[str]) -> np.ndarray:
        """The same, or its key is one of these."""
        meant = self.among(table)
        return meant | np.array([url_digest(key) in keys for key in table["key"].to_pylist()], bool) if keys else meant

    def entered(self, table: pa.Table) -> np.ndarray:
        """The same, of rows of a ledger."""
        meant = self.among(table)
        open_ = np.flatnonzero(~meant & is_among(table["image_id"], self._found))
        rows = table.select(["key", "image_id"]).take(pa.array(open_)).to_pylist()
        meant[open_] = [(url_digest(row["key"]), row["image_id"]) in self.every for row in rows]
        return meant

    def measured(self, table: pa.Table, images: str | None) -> np.ndarray:
        """The same, of rows of a sidecar of the images in a directory; None if that is not known."""
        mine = self.rows.get(images or "", ())
        return self.has(table["image_id"]) | np.isin(table["row"].to_numpy(), np.fromiter(mine, np.int64, len(mine)))


def files(storage: Storage, folder: str, kind: str, *, below: bool = True) -> Iterator[str]:
    """The Arrow files of a kind in the folders of a folder, or in the folder itself."""
    for directory in [f"{folder}/{name}" for name in storage.names(folder)] if below else [folder]:
        if below and directory.endswith((".json", ".arrow", ".npz")):
            continue
        for name in storage.names(directory):
            if name.startswith(f"{kind}-") and name.endswith(".arrow"):
                yield f"{directory}/{name}"
