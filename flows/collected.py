"""What travels between the stages: collections on their way, and where their results lie."""

from pydantic import BaseModel

from lvd.infra.series import Series
from lvd.infra.shards import ShardRef, StageDir
from lvd.tasks.sources import Partition


class Part(BaseModel, frozen=True):
    """One partition of a collection, and where its manifest, its images and what models saw in them lie."""

    partition: Partition
    manifest: StageDir
    images: StageDir | None = None
    content: StageDir | None = None  # None if no model looks


class Gathered(BaseModel, frozen=True):
    """One collection on its way: the pool, a benchmark, or a curated collection."""

    role: str  # pool, benchmark or curated
    name: str
    parts: tuple[Part, ...]
    generations: tuple[int, ...] = ()  # of the pool: how many parts came together, night by night

    def images(self) -> list[ShardRef]:
        """All shards of images; `base` makes a row of a partition a row of the collection."""
        refs, base = [], 0
        for part in self.parts:
            own = part.images.shards(base=base)
            refs += own
            base += sum(ref.rows for ref in own)
        return refs


class Sources(BaseModel, frozen=True):
    """Everything that goes in."""

    pool: Gathered
    benchmarks: tuple[Gathered, ...]
    curated: tuple[Gathered, ...]

    @property
    def references(self) -> tuple[Gathered, ...]:
        return (*self.benchmarks, *self.curated)

    def all(self) -> tuple[Gathered, ...]:
        return (self.pool, *self.references)


class Embedded(BaseModel, frozen=True):
    """The vectors of the pool, and of each curated collection."""

    pool: Series
    curated: dict[str, Series]


class Cells(BaseModel, frozen=True):
    """Centroids, the cell of every pool vector that is left, and the images of every cell."""

    centroids: StageDir
    cells: Series  # one directory for each of the vectors'
    sizes: StageDir
    parents: StageDir | None = None  # of a hierarchy: a shard for each level above the first
    duplicates: StageDir | None = None  # the images that went because another one of their cell means the same


class Matches(BaseModel, frozen=True):
    """What each retrieving collection retrieved: its name → the directory of its matches."""

    by_collection: dict[str, StageDir]


def series_of(directories: list[StageDir], collection: Gathered) -> Series:
    """One directory per partition, with the row that each partition starts at."""
    return Series.of(directories, bases_of(collection), collection.generations)


def bases_of(collection: Gathered) -> list[int]:
    """The row of the collection that each of its partitions starts at."""
    bases, base = [], 0
    for part in collection.parts:
        bases.append(base)
        base += part.images.account()["rows"]
    return bases


def shards_of(directories: list[StageDir], collection: Gathered | None = None) -> list[ShardRef]:
    """Shards of one directory per partition, with the row that each partition starts at."""
    bases = bases_of(collection) if collection else []
    return [ref for i, d in enumerate(directories) for ref in d.shards(base=bases[i] if collection else 0)]
