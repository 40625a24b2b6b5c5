"""What an export is asked for: of which version, how, and to where; and whether it can be made."""

from typing import Any

from pydantic import BaseModel, ValidationError

from lvd.flows.export_records import without_user
from lvd.flows.outdated_exports import is_outdated
from lvd.flows.recipe import apply_setting
from lvd.flows.veiling import check_without
from lvd.flows.versions import FOLDER, latest
from lvd.infra.errors import InputError
from lvd.infra.pictures import IMAGE
from lvd.infra.shards import SCHEMA_VERSION, StageDir, fingerprint, read_schema
from lvd.infra.storage import Storage
from lvd.tasks import export as export_stage


class Asked(BaseModel, frozen=True):
    """One export: of which version, to where, how."""

    dataset: StageDir
    out: str  # absolute, or a URI
    config: export_stage.Config
    shards: int  # of the version
    images: int
    identity: str  # of the bytes that come out

    @property
    def place(self) -> str:
        """Where it goes, for a message: without a password."""
        return without_user(self.out)

    @property
    def said(self) -> str:
        """In words, for a message."""
        order = f"shuffled with seed {self.config.seed}" if self.config.shuffle else "not shuffled"
        return f"{self.config.kind} of {self.dataset.fingerprint}, {order}"

    @property
    def facts(self) -> dict[str, Any]:
        """What the root keeps of it."""
        return {"identity": self.identity, **self.config.model_dump(mode="json"), "images": self.images}

    def replaces(self, found: dict[str, Any]) -> bool:
        """Whether what is there is this export from before images were taken down. found: what it says of itself."""
        other = found.get("identity")
        return other not in (None, self.identity) and is_outdated(self.dataset, self.out, self.facts, other)


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
    check_without(dataset)
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
        raise InputError(f"--out must lie outside of the root, was {without_user(out)!r}: choose another place")
    return Asked(
        dataset=dataset,
        out=here,
        config=config,
        shards=len(refs),
        images=images,
        identity=fingerprint("export", export_stage.VERSION, [(r.name(), r.rows) for r in refs], config.model_dump()),
    )


def version_at(root: str, version: str | None) -> StageDir:
    """A published version of a root: `v2`, `2` or `latest`, which is taken if none is named. Raises InputError."""
    storage = Storage(root)
    newest = latest(storage)
    if newest is None:
        raise InputError(
            f"root must hold a published version, {root!r} has none: run `lvd run RECIPE --root {root}` first"
        )
    name = newest["version"] if version in (None, "latest") else f"v{version.removeprefix('v')}"
    dataset = StageDir(root=storage.root, stage=FOLDER, fingerprint=name)
    if not name[1:].isdigit() or not dataset.is_complete():
        numbers = sorted(int(one[1:]) for one in storage.names(FOLDER) if one[1:].isdigit())
        there = [f"v{number}" for number in numbers if storage.exists(f"{FOLDER}/v{number}/stage.json")]
        raise InputError(f"--version must be one of {', '.join(there)} or latest, was {version!r}: see `lvd versions`")
    return dataset


def compute_of(settings: tuple[str, ...]) -> dict[str, Any]:
    """The recipe's section `compute`, of `--set compute.…=…`. Raises InputError for another setting."""
    tree: dict[str, Any] = {}
    for setting in settings:
        if not setting.startswith("compute."):
            raise InputError(f"--set must be of compute for an export, was {setting!r}: for example compute.runner=ray")
        apply_setting(tree, setting)
    return tree.get("compute", {})
