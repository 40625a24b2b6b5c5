"""The shards of complete stages, one after another. However many they are, they travel as the names of the stages."""

from itertools import pairwise

import numpy as np
from pydantic import BaseModel

from lvd.infra.shards import ShardRef, StageDir


class Series(BaseModel, frozen=True):
    """The rows of some stage directories as one sequence; row numbers of a directory go on from its base."""

    root: str
    directories: tuple[str, ...]
    bases: tuple[int, ...]

    @classmethod
    def of(cls, directories: list[StageDir], bases: list[int] | None = None) -> "Series":
        """bases: what makes a row number of each directory one of them all; 0 if left out."""
        root = directories[0].root if directories else ""
        bases = bases or [0] * len(directories)
        return cls(root=root, directories=tuple(d.directory for d in directories), bases=tuple(bases))

    def stage_dirs(self) -> list[StageDir]:
        parts = [name.rsplit("/", 1) for name in self.directories]
        return [StageDir(root=self.root, stage=stage, fingerprint=name) for stage, name in parts]

    def shards(self) -> list[ShardRef]:
        """Every shard, with its rows: one read for each directory."""
        pairs = zip(self.stage_dirs(), self.bases, strict=True)
        return [ref for directory, base in pairs for ref in directory.shards(base=base)]


def grouped(refs: list[ShardRef], rows: int) -> list[slice]:
    """Groups of neighbouring shards that hold at least so many rows, but for the last; one group at least."""
    begins, held = [0], 0
    for number, ref in enumerate(refs):
        if number > begins[-1] and held >= rows:
            begins.append(number)
            held = 0
        held += ref.rows
    return [slice(begin, end) for begin, end in pairwise([*begins, len(refs)])]


def first_positions(refs: list[ShardRef]) -> np.ndarray:
    """(shards + 1,) int64: how many rows lie before each shard, and all of them."""
    return np.cumsum([0, *(ref.rows for ref in refs)], dtype=np.int64)
