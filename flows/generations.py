"""Generations: the pool's partitions in the order in which finished runs first saw them, night by night.

What is compared with what is found by generations: a night's images with one another, and with those of the nights
before, never old ones with old ones. A pool that was there at the first run is one generation, however many partitions
it has. A partition that is no longer among the sources leaves its generation; one whose content changed is a new one.
"""

from typing import Any

from lvd.flows.collected import Gathered, Part
from lvd.flows.recipe import Recipe
from lvd.infra.shards import fingerprint
from lvd.infra.storage import Storage


def name_of(recipe: Recipe) -> str:
    """The file of the root that keeps the generations of these sources."""
    return f"generations/{fingerprint('generations', [source.model_dump(mode='json') for source in recipe.pool])}.json"


def known_files(recipe: Recipe) -> list[tuple[str, ...]]:
    """The files of every partition that finished runs have seen."""
    return [tuple(one["files"]) for night in _read(recipe) for one in night]


def ordered(recipe: Recipe, parts: list[Part]) -> Gathered:
    """The pool: the partitions that finished runs have seen in their generations, then those that are new as one."""
    known = [[one["manifest"] for one in night] for night in _read(recipe)]
    waiting = {part.manifest.directory: part for part in parts}
    found = [[waiting.pop(manifest) for manifest in night if manifest in waiting] for night in known]
    found = [night for night in (*found, list(waiting.values())) if night]
    return Gathered(
        role="pool",
        name="pool",
        parts=tuple(part for night in found for part in night),
        generations=tuple(map(len, found)),
    )


def num_new(recipe: Recipe, pool: Gathered) -> int:
    """The pool's partitions that no finished run has seen; 0 before there was one."""
    known = {one["manifest"] for night in _read(recipe) for one in night}
    return sum(part.manifest.directory not in known for part in pool.parts) if known else 0


def keep(recipe: Recipe, pool: Gathered) -> None:
    """Remembers the generations, for the runs to come."""
    nights, parts = [], iter(pool.parts)
    for count in pool.generations:
        night = [next(parts) for _ in range(count)]
        nights.append([{"manifest": p.manifest.directory, "files": list(p.partition.files)} for p in night])
    Storage(recipe.root).write_json(name_of(recipe), {"generations": nights})


def _read(recipe: Recipe) -> list[list[dict[str, Any]]]:
    storage, name = Storage(recipe.root), name_of(recipe)
    return storage.read_json(name)["generations"] if storage.exists(name) else []
