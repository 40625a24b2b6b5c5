"""The first and the last stage for people who have embeddings already. No image is looked at."""

from typing import Any

from lvd.flows import versions
from lvd.flows.collected import Cells, Embedded, Matches
from lvd.flows.group import Call, call
from lvd.flows.recipe import Recipe
from lvd.flows.run import Run, Work
from lvd.flows.stage import stage
from lvd.infra.errors import InputError
from lvd.infra.series import Series
from lvd.infra.shards import ShardRef, StageDir, fingerprint
from lvd.tasks import ledger as ledger_stage
from lvd.tasks import own_vectors, vectors_card
from lvd.tasks.matched import Matched
from lvd.tasks.own_vectors import Piece
from lvd.tasks.reached import Rows, overlaps

POOL = "pool"


def listed(recipe: Recipe) -> dict[str, list[Piece]]:
    """The pieces of the pool and of each curated collection. Raises InputError naming the field that is wrong."""
    found: dict[str, list[Piece]] = {}
    first = None
    entries = [(POOL, f"recipe.pool[{i}]", source) for i, source in enumerate(recipe.pool)]
    entries += [(c.name, f"recipe.curated[{i}]", c.source) for i, c in enumerate(recipe.curated)]
    for name, where, source in entries:
        if source is None:
            raise InputError(f"{where} must have a source to be run: give its kind and path")
        mine = found.setdefault(name, [])
        try:
            more = own_vectors.pieces(source, sum(piece.rows for piece in mine))
        except InputError as error:
            raise InputError(f"{where}.{error}") from error
        first = first or more[0]
        if more[0].dim != first.dim:
            raise InputError(f"{where} must have vectors of {first.dim} values, as recipe.pool[0], has {more[0].dim}")
        mine += more
    return found


@stage
def embed(run: Run, pieces: dict[str, list[Piece]]) -> Embedded:
    """The vectors of all collections as shards; the flow has the name of the stage whose place it takes."""
    works = []
    for mine in pieces.values():
        files = {piece.file: own_vectors.identity(piece.file) for piece in mine}
        said = [piece.model_dump() for piece in mine]
        target = run.target("imported", own_vectors.VERSION, said, files)

        def importing(ref: ShardRef, mine: list[Piece] = mine) -> Call:
            return call(own_vectors.import_shard, mine[ref.index], ref)

        works.append(Work(target=target, count=len(mine), call=importing, inputs={"files": list(files)}))
    run.complete("embed", works)
    series = {name: Series.of([work.target]) for name, work in zip(pieces, works, strict=True)}
    return Embedded(pool=series.pop(POOL), curated=series)


@stage
def publish(
    run: Run, pieces: dict[str, list[Piece]], vectors: Embedded, cells: Cells, matches: Matches
) -> versions.Published:
    """What was chosen, with its ledger and its card, as the next version unless the same one is there."""
    found = [Matched(name=name, shards=tuple(d.shards())) for name, d in matches.by_collection.items()]
    inputs = {"matches": [d.directory for d in matches.by_collection.values()], "pool": list(vectors.pool.directories)}
    left = cells.cells if run.recipe.publish.images == "survivors" else None
    if left:
        inputs["left"] = list(left.directories)
    chosen = run.target("selection", own_vectors.VERSION, inputs)

    def choosing(ref: ShardRef) -> Call:
        return call(own_vectors.choose, found, left.shards() if left else None, ref)

    run.complete("publish", [Work(target=chosen, count=1, call=choosing, inputs=inputs)])
    (picked,) = chosen.shards()
    included = [c.name for c in run.recipe.curated if c.include]
    said = run.recipe.model_dump(mode="json", exclude={"root", "compute", "plan", "alerts", "metrics_file"})
    version = versions.version_of(run, fingerprint("version", own_vectors.VERSION, chosen.directory, said))
    ledger, states, candidates = accounted(run, version, pieces, vectors, cells, picked, included)
    dataset = published(run, version, vectors, picked, included, inputs)
    result = versions.Published(version=version, dataset=dataset, ledger=ledger, states=states, candidates=candidates)
    if not run.looking:
        facts = vectors_card.Facts(
            title=run.recipe.publish.title or run.recipe.name,
            states=states,
            images=dataset.account()["rows"],
            clusters=cells.centroids.account()["shard_notes"][0],
            retrievals={name: d.account()["notes"] for name, d in matches.by_collection.items()},
            overlaps=overlaps([Rows.of(one.name, list(one.shards)) for one in found]),
        )
        run.storage.write_bytes(f"{dataset.directory}/README.md", vectors_card.render(facts).encode())
    return result


def accounted(
    run: Run,
    version: str,
    pieces: dict[str, list[Piece]],
    vectors: Embedded,
    cells: Cells,
    chosen: ShardRef,
    included: list[str],
) -> tuple[StageDir, dict[str, int], int]:
    """The ledger of the included collections and of the pool; it must balance."""
    gone = cells.duplicates.shards()[0] if cells.duplicates else None
    parts = [
        (piece, ref, chosen if name == POOL else None, gone)
        for name in (*included, POOL)
        for piece, ref in zip(pieces[name], shards(vectors, name), strict=True)
    ]
    target = run.named(f"curated/{version}", "ledger")

    def accounting(ref: ShardRef) -> Call:
        return call(own_vectors.ledger_shard, *parts[ref.index], ref)

    run.complete("publish", [Work(target=target, count=len(parts), call=accounting)])
    candidates = sum(piece.rows for piece, *_ in parts)
    return target, ledger_stage.check_balance(target.shards(), candidates), candidates


def published(
    run: Run, version: str, vectors: Embedded, chosen: ShardRef, included: list[str], inputs: dict[str, Any]
) -> StageDir:
    """The dataset: the included collections, then what was chosen of the pool, ROWS_PER_PIECE pool rows a shard."""
    curated = [ref for name in included for ref in shards(vectors, name)]
    total = max((ref.first_row + ref.rows for ref in shards(vectors, POOL)), default=0)
    total += sum(directory.account()["reasons"].get("not_finite", 0) for directory in vectors.pool.stage_dirs())
    rows = max(own_vectors.ROWS_PER_PIECE, -(-total // 100))
    target = run.named("curated", version)

    def writing(ref: ShardRef) -> Call:
        if ref.index < len(curated):
            return call(own_vectors.publish_included, curated[ref.index], ref)
        first = (ref.index - len(curated)) * rows
        return call(own_vectors.publish_chosen, chosen, ref, first, first + rows)

    count = len(curated) + max(1, -(-total // rows))
    run.complete("publish", [Work(target=target, count=count, call=writing, inputs=inputs)])
    return target


def shards(vectors: Embedded, name: str) -> list[ShardRef]:
    return (vectors.pool if name == POOL else vectors.curated[name]).shards()
