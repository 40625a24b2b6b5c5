"""The embedded images of a finished run: their vectors, ids, labels and files, by their positions."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from lvd.flows.stored import Stored
from lvd.infra.shards import ShardRef, StageDir, gather_rows, read_table
from lvd.tasks.models import engine
from lvd.tasks.publish import rows_of


class Rows:
    """The embedded images of some directories as one list of rows."""

    def __init__(self, stored: Stored, directories: list[StageDir]) -> None:
        self._parts = [(stored.at(d.account()["inputs"]["images"]), d.shards()) for d in directories]
        self.refs = [ref for _, shards in self._parts for ref in shards]
        self.total = sum(ref.rows for ref in self.refs)
        self.directories = [d.directory for d in directories]

    def gathered(self, positions: np.ndarray, name: str) -> pa.ChunkedArray:
        return gather_rows(self.refs, positions, [name])[name]

    def ids(self, positions: np.ndarray) -> list[str]:
        return self.gathered(positions, "image_id").to_pylist() if len(positions) else []

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        """(n, d) float16 of ascending positions."""
        return engine.vector_column(gather_rows(self.refs, positions, ["vector"]))

    def _image_rows(self, positions: np.ndarray) -> Iterator[tuple[list[ShardRef], np.ndarray]]:
        """For each directory its shards of images, and the rows there of ascending positions."""
        first = 0
        for images, shards in self._parts:
            rows = sum(ref.rows for ref in shards)
            inside = positions[np.searchsorted(positions, first) : np.searchsorted(positions, first + rows)] - first
            if len(inside):
                yield images.shards(), gather_rows(shards, inside, ["row"])["row"].to_numpy()
            first += rows

    def labels(self, positions: np.ndarray) -> list[str | None]:
        found = (gather_rows(shards, rows, ["label"])["label"] for shards, rows in self._image_rows(positions))
        return [label for column in found for label in column.to_pylist()]

    def files(self, positions: np.ndarray) -> Iterator[bytes]:
        """The encoded images at ascending positions."""
        for shards, rows in self._image_rows(positions):
            for image in rows_of(shards, rows):
                yield image["image"]["bytes"]

    def positions(self, wanted: dict[str, np.ndarray]) -> np.ndarray:
        """The ascending positions of rows of image directories, of those that are embedded."""
        found, first = [np.zeros(0, dtype=np.int64)], 0
        for images, shards in self._parts:
            rows = wanted.get(images.directory, np.zeros(0, dtype=np.int64))
            for ref in shards:
                here = read_table(ref, ["row"])["row"].to_numpy() if len(rows) else np.zeros(0, dtype=np.int64)
                found.append(first + np.flatnonzero(np.isin(here, rows)))
                first += ref.rows
        return np.concatenate(found)


class Sampled(NamedTuple):
    """Some images of `rows`, in ascending positions."""

    rows: Rows
    positions: np.ndarray
    image_ids: list[str]

    def without(self, image_ids: set[str]) -> "Sampled":
        """All images but those, and each content once."""
        seen, kept = set(image_ids), []
        for place, image_id in enumerate(self.image_ids):
            if image_id not in seen:
                seen.add(image_id)
                kept.append(place)
        return Sampled(self.rows, self.positions[kept], [self.image_ids[place] for place in kept])
