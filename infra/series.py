"""The shards of complete stages, one after another. However many they are, they travel as the names of the stages."""

from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, pairwise

import numpy as np
from pydantic import BaseModel

from lvd.infra.shards import READERS, ShardRef, StageDir, read_schema


class Series(BaseModel, frozen=True):
    """The rows of some stage directories as one sequence; row numbers of a directory go on from its base."""

    root: str
    directories: tuple[str, ...]
    bases: tuple[int, ...]
    generations: tuple[int, ...] = ()  # how many directories came together, night by night; all of them if empty

    @classmethod
    def of(
        cls, directories: list[StageDir], bases: list[int] | None = None, generations: tuple[int, ...] = ()
    ) -> "Series":
        """bases: what makes a row number of each directory one of them all; 0 if left out."""
        root = directories[0].root if directories else ""
        bases = bases or [0] * len(directories)
        names = tuple(d.directory for d in directories)
        return cls(root=root, directories=names, bases=tuple(bases), generations=generations)

    def by_generation(self) -> list["Series"]:
        """The directories that came together, in the order in which they came; one at least."""
        return [self._part(begin, end) for begin, end in pairwise([0, *self._ends()])]

    def until(self, generation: int) -> "Series":
        """All directories of the generations before this one."""
        return self._part(0, [0, *self._ends()][generation])

    def each(self) -> list["Series"]:
        """Every directory on its own."""
        return [self._part(number, number + 1) for number in range(len(self.directories))]

    def identity(self) -> list[tuple[str, int]]:
        """What tells these rows from others."""
        return list(zip(self.directories, self.bases, strict=True))

    def num_rows(self) -> int:
        """All rows. One read for each directory, so not to be asked in a loop over what grows."""
        return sum(ref.rows for ref in self.shards())

    def dim(self) -> int:
        """Values of the column `vector`. Reads the head of a shard."""
        first = self.stage_dirs()[0].shards()[0]
        return read_schema(first).field("vector").type.list_size

    def _ends(self) -> list[int]:
        return list(accumulate(self.generations)) or [len(self.directories)]

    def _part(self, begin: int, end: int) -> "Series":
        part = slice(begin, end)
        return Series(root=self.root, directories=self.directories[part], bases=self.bases[part])

    def stage_dirs(self) -> list[StageDir]:
        parts = [name.rsplit("/", 1) for name in self.directories]
        return [StageDir(root=self.root, stage=stage, fingerprint=name) for stage, name in parts]

    def shards(self) -> list[ShardRef]:
        """Every shard, with its rows: one read for each directory, many of them at once."""
        pairs = list(zip(self.stage_dirs(), self.bases, strict=True))
        if len(pairs) < 2:
            return [ref for directory, base in pairs for ref in directory.shards(base=base)]
        with ThreadPoolExecutor(READERS) as readers:
            return [ref for refs in readers.map(lambda pair: pair[0].shards(base=pair[1]), pairs) for ref in refs]


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
