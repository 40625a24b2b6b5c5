"""Images that a selection is judged by, in one feature space or several."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lvd.flows.embedded_rows import Sampled
from lvd.flows.evaluation_summary import Kind
from lvd.tasks import models
from lvd.tasks.finding import vectors_of

CUTS = 20  # halvings, and random selections; a halving is one bit of a hash


class Space:
    """A feature space: the root's own vectors (no spec), or those of another model, computed now."""

    def __init__(self, name: str, device: str, spec: models.Inference | None) -> None:
        self.name, self.spec, self._device = name, spec, device

    def of_rows(self, sampled: Sampled) -> np.ndarray:
        """(n, d) float16 unit rows; zeros where the model gives none."""
        if self.spec is None:
            return sampled.rows.vectors(sampled.positions)
        return vectors_of(sampled.rows.files(sampled.positions), self.spec, device=self._device)

    def of_files(self, paths: list[Path], own: models.Inference) -> np.ndarray:
        """The same of files. own: the root's own model."""
        return vectors_of((path.read_bytes() for path in paths), self.spec or own, device=self._device)


class Reference(NamedTuple):
    """Images that a selection is judged by. vectors: of each space; labels: None where there are none."""

    name: str
    kind: Kind
    image_ids: list[str]
    labels: list[str | None]
    vectors: list[np.ndarray]


def halves_of(image_ids: list[str], seed: int) -> np.ndarray:
    """(n, cuts) int64, 0 or 1: the half of each image in every cut, by a hash of its id, so that all know it."""
    key = seed.to_bytes(8, "little")
    hashes = b"".join(hashlib.blake2b(one.encode(), digest_size=8, key=key).digest() for one in image_ids)
    bits = np.unpackbits(np.frombuffer(hashes, dtype=np.uint8).reshape(len(image_ids), 8), axis=1)
    return bits[:, :CUTS].astype(np.int64)


def kept_references(reference: Reference) -> Iterator[Reference]:
    """The reference without the images that some space has no vector for; nothing if fewer than two are left."""
    usable = np.flatnonzero(np.logical_and.reduce([rows.any(axis=1) for rows in reference.vectors]))
    if len(usable) > 1:
        yield chosen_of(reference, usable)


def part_of(reference: Reference, most: int, rng: np.random.Generator) -> Reference:
    """So many images of a reference at most, two at least."""
    return chosen_of(reference, np.sort(rng.permutation(len(reference.image_ids))[: max(most, 2)]))


def chosen_of(reference: Reference, places: np.ndarray) -> Reference:
    ids, labels = ([every[place] for place in places] for every in (reference.image_ids, reference.labels))
    return reference._replace(image_ids=ids, labels=labels, vectors=[rows[places] for rows in reference.vectors])
