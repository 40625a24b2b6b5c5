"""What a recipe comes to before anything is run: what it gives, what every step needs, how long the pool takes."""

from pydantic import BaseModel

from lvd.flows import composition as table_15
from lvd.flows import from_vectors
from lvd.flows.composition import Row
from lvd.flows.loads import Load, loads
from lvd.flows.miniature import is_drawn
from lvd.flows.recipe import Recipe
from lvd.flows.schedule import Schedule, schedule
from lvd.infra.errors import InputError
from lvd.tasks.source_rows import num_rows
from lvd.tasks.sources import partitions


class Plan(BaseModel, frozen=True):
    """All that `lvd plan` says of a recipe."""

    recipe: Recipe  # with what was counted
    composition: tuple[Row, ...]
    loads: tuple[Load, ...]
    schedule: Schedule


def planned(recipe: Recipe) -> Plan:
    """The plan of a recipe.

    Raises InputError if a source is not there, or if nodes fail faster than a shard is computed.
    """
    known = counted(recipe)
    found = loads(known)
    return Plan(
        recipe=known,
        composition=tuple(table_15.composition(known)),
        loads=tuple(found),
        schedule=schedule(found, known.plan, seed=known.seed),
    )


def check_drawn(recipe: Recipe) -> None:
    """Raises InputError if the recipe's sources are in a miniature web that is not there yet."""
    if not is_drawn(recipe):
        raise InputError("recipe.miniature is drawn by its first run: run it once, then plan it")


def counted(recipe: Recipe) -> Recipe:
    """The recipe with the images of every source counted, where it does not say how many there are.

    Raises InputError if a source is not there.
    """
    check_drawn(recipe)
    if recipe.has_own_vectors:
        return counted_vectors(recipe)
    counts: dict[str, int] = {}  # of archives nobody knows: for them the recipe says it
    entries = [(f"recipe.curated[{i}]", c.name, c.source) for i, c in enumerate(recipe.curated) if c.num_images is None]
    pool = recipe.plan.pool_images == 0
    entries += [(f"recipe.pool[{i}]", "pool", source) for i, source in enumerate(recipe.pool) if pool]
    for where, name, source in entries:
        try:
            found = [num_rows(partition) for partition in partitions(source)] if source else []
        except InputError as error:
            raise InputError(f"{where}.{error}") from error
        counts[name] = counts.get(name, 0) + sum(filter(None, found))
    curated = tuple(c.model_copy(update={"num_images": counts.get(c.name, c.num_images)}) for c in recipe.curated)
    plan = recipe.plan.model_copy(update={"pool_images": counts.get("pool", recipe.plan.pool_images)})
    return recipe.model_copy(update={"curated": curated, "plan": plan})


def counted_vectors(recipe: Recipe) -> Recipe:
    """The same of a recipe whose sources hold vectors, and of how many values these are."""
    pieces = from_vectors.listed(recipe)
    rows = {name: sum(piece.rows for piece in mine) for name, mine in pieces.items()}
    curated = tuple(c.model_copy(update={"num_images": rows[c.name]}) for c in recipe.curated)
    told = {"pool_images": rows[from_vectors.POOL], "vector_values": pieces[from_vectors.POOL][0].dim}
    return recipe.model_copy(update={"curated": curated, "plan": recipe.plan.model_copy(update=told)})
