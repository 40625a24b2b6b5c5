"""Generations: the pool's partitions in the order in which finished runs first saw them, night by night.

What is compared with what is found by generations: a night's images with one another, and with those of the nights
before, never old ones with old ones. A pool that was there at the first run is one generation, however many partitions
it has. A partition that is no longer among the sources leaves its generation; one whose content changed is a new one.

A root has one order of nights, whatever the recipes that are run there: one that names a further source finds what it
had in its old places. What a run began with is a partition from then on, though it may not come to its end.
"""

from collections.abc import Callable, Iterable
from itertools import chain

from pydantic import BaseModel

from lvd.flows.collected import Gathered, Part
from lvd.flows.recipe import Recipe
from lvd.infra.storage import Storage
from lvd.tasks.sources import Partition

NAME = "generations/pool.json"


class Seen(BaseModel, frozen=True):
    """The partitions that finished runs have seen, night by night, and those of runs that have begun since."""

    nights: tuple[tuple[Partition, ...], ...] = ()
    begun: tuple[Partition, ...] = ()


def seen(recipe: Recipe) -> Seen:
    """What the root says of the sources of this recipe."""
    return _only(_read(recipe), lambda one: one.source in recipe.pool)


def ordered(recipe: Recipe, parts: list[Part]) -> Gathered:
    """The pool: the partitions that finished runs have seen in their generations, then those that are new as one."""
    waiting = {part.partition.identity: part for part in parts}
    nights = [[one.identity for one in night] for night in seen(recipe).nights]
    found = [[waiting.pop(one) for one in night if one in waiting] for night in nights]
    found = [night for night in (*found, list(waiting.values())) if night]
    return Gathered(
        role="pool",
        name="pool",
        parts=tuple(part for night in found for part in night),
        generations=tuple(map(len, found)),
    )


def new_among(recipe: Recipe, partitions: Iterable[Partition]) -> list[Partition]:
    """Those that no finished run has seen."""
    known = {one.identity for one in chain(*seen(recipe).nights)}
    return [one for one in partitions if one.identity not in known]


def num_new(recipe: Recipe, pool: Gathered) -> int:
    """The pool's partitions that no finished run has seen; 0 before there was one."""
    return len(new_among(recipe, (part.partition for part in pool.parts))) if seen(recipe).nights else 0


def begin(recipe: Recipe, partitions: Iterable[Partition]) -> None:
    """Remembers the partitions that are new, so that more files beside them do not make others of them."""
    before, new = _read(recipe), new_among(recipe, partitions)
    others = [one for one in before.begun if one.source not in recipe.pool]
    _write(recipe, before, before.model_copy(update={"begun": (*others, *new)}))


def keep(recipe: Recipe, pool: Gathered) -> None:
    """Remembers the generations, for the runs to come."""
    before, there = _read(recipe), {part.partition.identity: part.partition for part in pool.parts}
    new = tuple(new_among(recipe, there.values()))
    left = _only(before, lambda one: one.source not in recipe.pool or one.identity in there)
    nights = [tuple(there.get(one.identity, one) for one in night) for night in left.nights]
    begun = tuple(one for one in before.begun if one.source not in recipe.pool)
    _write(recipe, before, Seen(nights=(*nights, new) if new else tuple(nights), begun=begun))


def _only(known: Seen, wanted: Callable[[Partition], bool]) -> Seen:
    nights = (tuple(filter(wanted, night)) for night in known.nights)
    return Seen(nights=tuple(filter(None, nights)), begun=tuple(filter(wanted, known.begun)))


def _read(recipe: Recipe) -> Seen:
    storage = Storage(recipe.root)
    return Seen.model_validate(storage.read_json(NAME)) if storage.exists(NAME) else Seen()


def _write(recipe: Recipe, before: Seen, now: Seen) -> None:
    if now != before:
        Storage(recipe.root).write_json(NAME, now.model_dump(mode="json"))
