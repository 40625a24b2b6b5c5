"""The sub-flows that take images out which nobody may have: what lies on a domain before all are compared, images and
their copies after that. A root without records of takedowns is as if there were none of them."""

from collections.abc import Iterable

from lvd.flows.collected import Gathered, Part, Sources, bases_of, shards_of
from lvd.flows.group import Call, call
from lvd.flows.run import Run, Work
from lvd.flows.stage import stage
from lvd.infra.committing import commit
from lvd.infra.shards import ShardRef, StageDir, fingerprint, read_table
from lvd.tasks import forgetting as forgetting_stage
from lvd.tasks.forgetting import Across, Other
from lvd.tasks.takedowns import Takedowns, record_names

FLOW = "screen"  # whose resources a task asks for
OF_COPIES = ("thresholds", "search", "components", "decontaminated", "per_reference")  # notes that readers go on to ask

Marked = dict[str, StageDir]  # directory of images → what of it is meant


def withhold(run: Run, sources: Sources, screened: StageDir) -> StageDir:
    """The fates without what lies on a domain that was taken down."""
    return take_down_domains(run, sources, screened) if record_names(run.storage) else screened


def forget(run: Run, sources: Sources, survivors: StageDir) -> StageDir:
    """The fates without the images that were taken down, and without any copy of them."""
    return take_down_images(run, sources, survivors) if record_names(run.storage) else survivors


@stage
def take_down_domains(run: Run, sources: Sources, screened: StageDir) -> StageDir:
    """Only of the pool: what is curated is compared with nothing of its own."""
    own = sources.pool
    marked = marks(run, (own,))
    said = told(marked, own.parts, "domain")
    if not said:
        return screened
    target = run.target("withheld", forgetting_stage.VERSION, said, screened.directory)
    if run.needs(target):
        images, refs = own.images(), shards_of([marked[part.images.directory] for part in own.parts], own)
        decision = forgetting_stage.withhold.submit(images, screened.shards(), refs, target).result()
        inputs = {"directories": [screened.directory]}
        commit(target, len(images), config={}, inputs=inputs, notes=decision.model_dump())
    return target


@stage
def take_down_images(run: Run, sources: Sources, survivors: StageDir) -> StageDir:
    """What was measured of a forgotten image stays as it is, and so goes on attracting its copies."""
    own, marked = sources.pool, marks(run, sources.all())
    others = {part.images.directory: part for gathered in sources.references for part in gathered.parts}
    said = told(marked, [*own.parts, *others.values()], "spread"), told(marked, others.values(), "domain")
    if not any(said):
        return survivors
    if absent := Takedowns.read(run.storage).image_ids - ids_of(marked):
        run.remark(
            f"{len(absent)} of the images taken down lie in no source: copies of them that come later are known by "
            "their bytes alone"
        )
    identity = forgetting_stage.VERSION, said, survivors.directory
    target = run.target("remaining", *identity)
    if run.needs(target):
        images, refs = own.images(), shards_of([marked[part.images.directory] for part in own.parts], own)
        left = [other(run, part, marked, identity) for part in others.values()]
        fates, inputs = survivors.shards(), {"directories": [survivors.directory]}
        decision = forgetting_stage.forget.submit(images, fates, refs, left, across(survivors), target).result()
        for one in left:
            if one.target.directory in decision.withdrawn.values():
                commit(one.target, len(one.images), config={}, inputs=inputs)
        before = survivors.account()["notes"]
        notes = {**decision.model_dump(), **{name: before[name] for name in OF_COPIES}}
        commit(target, len(images), config={}, inputs=inputs, notes=notes)
    for directory in target.account()["notes"]["withdrawn"].values():
        run.named(*directory.split("/"))
    return target


def other(run: Run, part: Part, marked: Marked, identity: tuple[object, ...]) -> Other:
    """A partition of a reference, and where it is written what of it is withdrawn."""
    name = fingerprint("withdrawn", *identity, part.images.directory)
    target = StageDir(root=run.storage.root, stage="withdrawn", fingerprint=name)
    return Other(images=part.images.shards(), marked=marked[part.images.directory].shards(), target=target)


def marks(run: Run, collections: Iterable[Gathered]) -> Marked:
    """Which images the records mean, of every partition."""
    names = tuple(record_names(run.storage))
    digest, works = Takedowns.read(run.storage, names).digest, {}
    for part in (part for gathered in collections for part in gathered.parts):
        images = part.images.shards()
        target = run.target("marked", forgetting_stage.VERSION, digest, part.images.directory)

        def computing(ref: ShardRef, images: list[ShardRef] = images) -> Call:
            return call(forgetting_stage.mark_shard, images[ref.index], ref, names)

        inputs = {"images": part.images.directory}
        works[part.images.directory] = Work(target=target, count=len(images), call=computing, inputs=inputs)
    run.complete(FLOW, list(works.values()))
    return {name: work.target for name, work in works.items()}


def ids_of(marked: Marked) -> set[str]:
    """The image ids of all marks."""
    refs = (ref for target in marked.values() for ref in target.shards())
    return {one for ref in refs for one in read_table(ref, ["image_id"])["image_id"].to_pylist()}


def told(marked: Marked, parts: Iterable[Part], name: str) -> list[list[object]]:
    """What tells these marks from others, of the partitions that have any. name: domain, or spread for all others."""
    found = []
    for directory in dict.fromkeys(part.images.directory for part in parts):
        notes = [shard.get(name) for shard in marked[directory].account()["shard_notes"]]
        found += [[directory, notes]] if any(notes) else []
    return found


def across(survivors: StageDir) -> Across | None:
    """What the decision about copies knew of the references; None if there were none."""
    account = survivors.account()
    nights = [at(survivors, name) for name in account["inputs"]["directories"] if name.startswith("references/")]
    references = [name for name, _ in nights[0].account()["inputs"]["others"]]
    if not references:
        return None
    refs = [ref for name in references for ref in at(survivors, name).shards()]
    edges = [ref for night in nights for ref in night.shards()]
    min_similarity = account["notes"]["thresholds"]["min_similarity"]
    return Across(edges=edges, references=refs, min_similarity=min_similarity)


def withdrawn_of(survivors: StageDir, part: Part) -> list[ShardRef]:
    """The images of a reference's partition that were taken down, in a shard for each of its shards; none if none was.

    survivors: the fates that `forget` gave.
    """
    directory = survivors.account()["notes"].get("withdrawn", {}).get(part.images.directory)
    return at(survivors, directory).shards() if directory else []


def hidden(sources: Sources, survivors: StageDir) -> dict[tuple[str, str], set[int]]:
    """(role, name) of a reference → its rows that were taken down."""
    found: dict[tuple[str, str], set[int]] = {}
    for gathered in sources.references:
        for part, base in zip(gathered.parts, bases_of(gathered), strict=True):
            rows = [row for ref in withdrawn_of(survivors, part) for row in read_table(ref, ["row"])["row"].to_pylist()]
            found.setdefault((gathered.role, gathered.name), set()).update(base + row for row in rows)
    return found


def withdrawn_ids(sources: Sources, survivors: StageDir) -> set[str]:
    """Image ids of the references that were taken down."""
    parts = (part for gathered in sources.references for part in gathered.parts)
    refs = (ref for part in parts for ref in withdrawn_of(survivors, part))
    return {one for ref in refs for one in read_table(ref, ["image_id"])["image_id"].to_pylist()}


def at(beside: StageDir, directory: str) -> StageDir:
    stage_name, name = directory.rsplit("/", 1)
    return StageDir(root=beside.root, stage=stage_name, fingerprint=name)
