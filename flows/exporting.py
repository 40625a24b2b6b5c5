"""An export of a published version: what is asked, what is there already, the run, and the files that close it.

What is under way lies below `{out}/.lvd`, so that the same command goes on where it was; a finished export has none of
it. `{root}/exports/` has a record of every export that was begun, so that a takedown can name it.
"""

import hashlib
import time
from typing import Any

from pydantic import BaseModel, ValidationError

from lvd.flows.export_records import record
from lvd.flows.group import Call, call
from lvd.flows.recipe import apply_setting, parse
from lvd.flows.run import Run, Work
from lvd.flows.stage import stage
from lvd.flows.versions import FOLDER, latest
from lvd.infra.committing import versions
from lvd.infra.errors import InputError
from lvd.infra.lease import lease
from lvd.infra.pictures import IMAGE
from lvd.infra.shards import SCHEMA_VERSION, ShardRef, StageDir, fingerprint, read_schema, read_table
from lvd.infra.storage import TEMPORARY, Storage
from lvd.tasks import export as export_stage
from lvd.tasks import export_card

WORK = ".lvd"  # below the export while it is under way
MANIFEST, SUMS, CARD = "export.json", "SHA256SUMS", "README.md"
TOOLS = ("python", "lvd", "pyarrow", "datasets")  # whose versions the bytes can depend on


class Asked(BaseModel, frozen=True):
    """One export: of which version, to where, how."""

    dataset: StageDir
    out: str  # absolute, or a URI
    config: export_stage.Config
    shards: int  # of the version
    images: int
    identity: str  # of the bytes that come out

    @property
    def said(self) -> str:
        """In words, for a message."""
        order = f"shuffled with seed {self.config.seed}" if self.config.shuffle else "not shuffled"
        return f"{self.config.kind} of {self.dataset.fingerprint}, {order}"

    @property
    def facts(self) -> dict[str, Any]:
        """What the root keeps of it."""
        return {"identity": self.identity, **self.config.model_dump(), "images": self.images}


class Summary(BaseModel, frozen=True):
    """What an export came to."""

    out: str
    kind: str
    version: str
    images: int
    shards: int
    files: int
    num_bytes: int
    computed: int  # shards that were written now
    seconds: float


def export_version(
    root: str,
    out: str,
    config: export_stage.Config,
    *,
    version: str | None = None,
    settings: tuple[str, ...] = (),
) -> Summary:
    """Exports a version, the newest if none is named; what is there is not written again.

    settings: `compute.…=…`, as for a run. Raises InputError if there is no such version, or `out` holds anything else.
    """
    began, asked = time.time(), ask(root, out, config, version)
    storage, work = Storage(asked.out), Storage(f"{asked.out}/{WORK}")
    run = Run(parse({"name": "export", "root": work.root, "compute": compute_of(settings)}))
    if not is_finished(asked, storage):
        from lvd.flows import pool
        from lvd.flows.progress import log_lines, shown
        from lvd.flows.server import prefect_server

        log_lines()
        claim(asked, storage, work)
        with prefect_server(), shown() as progress, lease(work), pool.cluster(run.recipe.compute):
            run = Run(run.recipe, progress=progress)
            work.remove_temporary()
            storage.remove_temporary()
            close(asked, storage, export(run, asked))
    for left in (WORK, TEMPORARY):
        storage.remove(left)
    manifest = storage.read_json(MANIFEST)
    record(asked.dataset, asked.out, asked.facts, is_finished=True)
    return Summary(
        out=asked.out,
        kind=config.kind,
        version=asked.dataset.fingerprint,
        **{name: manifest[name] for name in ("images", "shards")},
        files=manifest["num_files"],
        num_bytes=manifest["bytes"],
        computed=run.computed.get("export", 0),
        seconds=round(time.time() - began, 3),
    )


def asked_config(*, columns: str | None = None, **said: Any) -> export_stage.Config:
    """The settings of the command line, checked. Raises InputError with the first that is wrong."""
    named = None if columns is None else tuple(name.strip() for name in columns.split(",") if name.strip())
    try:
        return export_stage.Config(**said, columns=named)
    except ValidationError as error:
        first = error.errors()[0]
        option = {"kind": "to"}.get(str(first["loc"][0]), str(first["loc"][0]).replace("_", "-"))
        raise InputError(f"--{option}: {first['msg']}, was {first['input']!r}") from error


def ask(root: str, out: str, config: export_stage.Config, version: str | None) -> Asked:
    """What is to be exported. Raises InputError if it cannot be. Writes nothing."""
    dataset = version_at(root, version)
    account, refs = dataset.account(), dataset.shards()
    if account["schema_version"] != SCHEMA_VERSION:
        raise InputError(
            f"{root}: schema version of {dataset.fingerprint} must be {SCHEMA_VERSION}, was "
            f"{account['schema_version']}: export it with the lvd that published it"
        )
    images = sum(ref.rows for ref in refs)
    if not images:
        raise InputError(f"--version must hold an image, {dataset.fingerprint} has none: export another one")
    names = read_schema(refs[0]).names
    if IMAGE not in names and config.kind != "parquet":
        raise InputError(
            f"--to must be parquet for a version without images, as one made from vectors is, was {config.kind}"
        )
    if unknown := [name for name in config.columns or () if name not in names]:
        raise InputError(f"--columns must name columns of the dataset, {', '.join(names)}, was {unknown[0]!r}")
    here, there = Storage(out).root, Storage(root).root
    if f"{here}/".startswith(f"{there}/") or f"{there}/".startswith(f"{here}/"):
        raise InputError(f"--out must lie outside of the root, was {out!r}: choose another place")
    identity = fingerprint("export", export_stage.VERSION, [(r.name(), r.rows) for r in refs], config.model_dump())
    return Asked(dataset=dataset, out=here, config=config, shards=len(refs), images=images, identity=identity)


def version_at(root: str, version: str | None) -> StageDir:
    """A published version of a root, the newest if none is named. Raises InputError if it is not there."""
    storage = Storage(root)
    newest = latest(storage)
    if newest is None:
        raise InputError(
            f"root must hold a published version, {root!r} has none: run `lvd run RECIPE --root {root}` first"
        )
    dataset = StageDir(root=storage.root, stage=FOLDER, fingerprint=version or newest["version"])
    if not dataset.is_complete():
        there = [name for name in storage.names(FOLDER) if storage.exists(f"{FOLDER}/{name}/stage.json")]
        raise InputError(f"--version must be one of {', '.join(there)}, was {version!r}")
    return dataset


def compute_of(settings: tuple[str, ...]) -> dict[str, Any]:
    """The recipe's section `compute`, of `--set compute.…=…`. Raises InputError for another setting."""
    tree: dict[str, Any] = {}
    for setting in settings:
        if not setting.startswith("compute."):
            raise InputError(f"--set must be of compute for an export, was {setting!r}: for example compute.runner=ray")
        apply_setting(tree, setting)
    return tree.get("compute", {})


def is_finished(asked: Asked, storage: Storage) -> bool:
    """Whether this very export is there, with all of its shards. Raises InputError if anything else is."""
    try:
        there = [name for name in storage.names("") if name not in (WORK, TEMPORARY)]
        claimed = next((name for name in (MANIFEST, f"{WORK}/{MANIFEST}") if storage.exists(name)), None)
        found = storage.read_json(claimed) if claimed else None
    except storage.errors as error:
        raise InputError(f"--out must be a place that can be read and written, was {asked.out!r}: {error}") from error
    if found is None and there:
        raise InputError(f"--out must be empty or hold this export, {asked.out!r} has {there[0]!r}: choose another")
    if found and found["identity"] != asked.identity:
        raise InputError(
            f"--out must be empty or hold this export ({asked.said}), {asked.out!r} holds another "
            f"({found['said']}): choose another place, or ask for the same"
        )
    if claimed != MANIFEST:
        return False
    for folder in sorted({one["name"].rpartition("/")[0] for one in found["files"]}):
        names = {*storage.names(folder)}
        for one in found["files"]:
            parent, _, name = one["name"].rpartition("/")
            if parent == folder and name not in names:
                raise InputError(
                    f"{asked.out!r} must have the files that its {MANIFEST} names, {one['name']} is gone: "
                    f"remove {MANIFEST}, and all files, to export again"
                )
    return True


def claim(asked: Asked, storage: Storage, work: Storage) -> None:
    """Says in the folder, and in the root, that this export is under way. Raises InputError if it cannot."""
    try:
        work.write_json(MANIFEST, {"identity": asked.identity, "said": asked.said})
    except storage.errors as error:
        raise InputError(f"--out must be a place that can be written, was {asked.out!r}: {error}") from error
    record(asked.dataset, asked.out, asked.facts)


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


def close(asked: Asked, storage: Storage, files: StageDir) -> None:
    """Writes the card, SHA256SUMS and, last, export.json. Memory: the names of one shard's files, and of all shards."""
    refs, account = files.shards(), files.account()
    suffixes: dict[str, int] = {}
    for notes in account["shard_notes"]:
        for name, count in notes["suffixes"].items():
            suffixes[name] = suffixes.get(name, 0) + count
    listed, num_bytes, images = [], 0, 0
    with storage.whole_file(SUMS) as path, path.open("w", encoding="utf-8") as sums:
        for ref in refs:
            for one in read_table(ref).to_pylist():
                sums.write(f"{one['sha256']}  {one['name']}\n")
                num_bytes += one["bytes"]
                images += one["rows"]
                if asked.config.kind != "imagefolder":
                    listed.append({"images": one.pop("rows"), **one})
        text = card(asked, len(refs), num_bytes, suffixes).encode()
        storage.write_bytes(CARD, text)
        sums.write(f"{hashlib.sha256(text).hexdigest()}  {CARD}\n")
        sums.flush()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest = {
        "identity": asked.identity,
        "said": asked.said,
        "version": asked.dataset.fingerprint,
        **asked.config.model_dump(),
        "images": images,
        "bytes": num_bytes,
        "shards": len(refs),
        "num_files": account["rows"],
        "files": listed,  # of an image folder they stand in SHA256SUMS only
        "suffixes": suffixes,
        "sha256sums": digest,
        "versions": {name: found for name, found in versions().items() if name in TOOLS},
    }
    storage.write_json(MANIFEST, manifest)


def card(asked: Asked, shards: int, num_bytes: int, suffixes: dict[str, int]) -> str:
    """The card of the version as that of the export."""
    storage, name = asked.dataset.storage, f"{asked.dataset.directory}/{CARD}"
    schema = read_schema(asked.dataset.shards()[0])
    made = export_card.Made(
        kind=asked.config.kind,
        version=asked.dataset.fingerprint,
        images=asked.images,
        shards=shards,
        num_bytes=num_bytes,
        order=f"shuffled with seed {asked.config.seed}" if asked.config.shuffle else "as published",
        suffixes=suffixes,
    )
    text = storage.read_bytes(name).decode() if storage.exists(name) else ""
    columns = [schema.field(name) for name in asked.config.chosen(schema.names)]
    return export_card.render(text, made, columns)
