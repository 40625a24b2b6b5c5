"""An export of a published version: the run, from the version's shards to files, and what it came to.

`{root}/exports/` has a record of every export that was begun, so that a takedown can name it.
"""

import time

from pydantic import BaseModel

from lvd.flows import pool
from lvd.flows.export_asked import Asked, ask, compute_of
from lvd.flows.export_closing import close
from lvd.flows.export_place import MANIFEST, WORK, claim, is_finished, reached
from lvd.flows.export_records import record
from lvd.flows.group import Call, call
from lvd.flows.progress import shown
from lvd.flows.recipe import parse
from lvd.flows.run import Run, Work
from lvd.flows.server import prefect_server
from lvd.flows.stage import stage
from lvd.infra.errors import InputError
from lvd.infra.lease import lease
from lvd.infra.logs import log_format, log_to_stderr
from lvd.infra.shards import ShardRef, StageDir
from lvd.infra.storage import TEMPORARY, Storage
from lvd.tasks import export as export_stage


class Summary(BaseModel, frozen=True):
    """What an export came to."""

    out: str  # without a password
    kind: str
    version: str
    images: int
    shards: int
    files: int
    num_bytes: int
    computed: int  # shards that were written now
    seconds: float


class Unobserved:
    """Tells nobody of a stage: what is made on the way is gone afterwards, and metrics are of the runs of a root."""

    def stage_ended(self, stage: str, before: dict[str, int]) -> None:
        """Nothing."""


class ExportRun(Run):
    """A run whose root is the work below an export."""

    observer = Unobserved()


def export_version(
    root: str,
    out: str,
    config: export_stage.Config,
    *,
    version: str | None = None,
    settings: tuple[str, ...] = (),
) -> Summary:
    """Exports a version, the newest if none is named; what is there is not written again.

    settings: `compute.…=…`, as for a run. Raises InputError if there is no such version, `out` holds anything else, or
    an image of the version was taken down since.
    """
    log_format()
    began, asked = time.time(), ask(root, out, config, version)
    storage, work = Storage(asked.out), Storage(f"{asked.out}/{WORK}")
    run = ExportRun(parse({"name": "export", "root": work.root, "compute": compute_of(settings)}))
    if not is_finished(asked, storage):
        log_to_stderr()
        claim(asked, storage, work)
        with prefect_server(), shown() as progress, lease(work), pool.cluster(run.recipe.compute):
            if not is_finished(asked, storage):  # another may have ended meanwhile
                run = ExportRun(run.recipe, progress=progress)
                work.remove_temporary()
                storage.remove_temporary()
                finish(asked, storage, export(run, asked))
    with reached(asked, storage):
        for left in (WORK, TEMPORARY):
            storage.remove(left)
        manifest = storage.read_json(MANIFEST)
    record(asked.dataset, asked.out, asked.facts, is_finished=True)
    return Summary(
        out=asked.place,
        kind=config.kind,
        version=asked.dataset.fingerprint,
        **{name: manifest[name] for name in ("images", "shards")},
        files=manifest["num_files"],
        num_bytes=manifest["bytes"],
        computed=run.computed.get("export", 0),
        seconds=round(time.time() - began, 3),
    )


@stage
def export(run: Run, asked: Asked) -> StageDir:
    """The files of all shards; the directory that is returned lists them."""
    config, dataset = asked.config, asked.dataset
    groups = runs_of(dataset.shards())
    order = run.named("order", asked.identity)

    def ordering(ref: ShardRef) -> Call:
        return call(export_stage.order_shard, dataset, *groups[ref.index], ref, config)

    run.complete("order", [Work(target=order, count=len(groups), call=ordering)])
    image_bytes = sum(notes["image_bytes"] for notes in order.account()["shard_notes"])
    each = config.images_per_shard(asked.images, image_bytes)
    files = run.named("export", asked.identity)

    def writing(ref: ShardRef) -> Call:
        first, stop = ref.index * each, min((ref.index + 1) * each, asked.images)
        return call(export_stage.export_shard, dataset, order, asked.out, first, stop, ref, config)

    run.complete("export", [Work(target=files, count=-(-asked.images // each), call=writing)])
    return files


def runs_of(refs: list[ShardRef]) -> list[tuple[int, int]]:
    """[first, stop) of the shards that are put in order together, up to ROWS_PER_RUN rows or one shard."""
    cuts, rows = [0], 0
    for number, ref in enumerate(refs):
        if number > cuts[-1] and rows + ref.rows > export_stage.ROWS_PER_RUN:
            cuts.append(number)
            rows = 0
        rows += ref.rows
    return list(zip(cuts, [*cuts[1:], len(refs)], strict=True))


def finish(asked: Asked, storage: Storage, files: StageDir) -> None:
    """Closes the export, if the version still is, and still may be, what it was when the export was asked for."""
    now = ask(asked.dataset.root, asked.out, asked.config, asked.dataset.fingerprint)
    if now.identity != asked.identity:
        raise InputError(
            f"{asked.dataset.fingerprint} must stay as it is while it is exported, images were taken down from it: "
            f"remove what is at {asked.place!r}, and export again"
        )
    close(asked, storage, files)
