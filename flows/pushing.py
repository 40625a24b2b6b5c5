"""A published version on a hub of datasets: exported, uploaded, and shown there in one commit.

Uploads go file by file before that commit, so that a push that was interrupted goes on with what the hub does not
have, and whoever reads the repository sees the old version or the new one. The token is the hub's own: HF_TOKEN, or its
login. Cost at 1.4 × 10^8 images of 110 kB: an export (see tasks/export.py), and 15.4 TB sent; without `--export`, as
much room in the temporary folder.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lvd.flows.export_asked import ask, version_at
from lvd.flows.export_place import CARD, MANIFEST, SUMS, begun
from lvd.flows.export_records import record, remove, without_user
from lvd.flows.exporting import export_version
from lvd.flows.hub_answers import answered
from lvd.infra.errors import InputError, ShardError
from lvd.infra.lease import lease
from lvd.infra.shards import StageDir, fingerprint
from lvd.infra.storage import Storage
from lvd.tasks import export as export_stage

DATASET = "dataset"  # what the hub calls the kind of repository
MAX_FILES = 20_000  # of one commit; the hub takes 25,000
SMALL_BYTES = 10 << 20  # up to which a hub may take a file as a text, and not as large
PARQUET = export_stage.Config(kind="parquet")
UPLOADED_AT_ONCE = 2 << 30  # bytes of an export on a bucket that lie here at a time, or one file


class Pushed(BaseModel, frozen=True):
    """What a push came to."""

    url: str
    version: str
    images: int
    files: int
    num_bytes: int
    uploaded: int  # files that the hub did not have
    removed: int  # shards of what was there before


def push(
    root: str,
    repo_id: str,
    *,
    version: str | None = None,
    private: bool = False,
    export: str | None = None,
    settings: tuple[str, ...] = (),
    api: Any = None,
) -> Pushed:
    """Pushes a version, the newest if none is named, as Parquet or as the finished export at `export`.

    export: where an export lies, or is made and stays; without it one is made in the temporary folder, and removed.
    api: a `huggingface_hub.HfApi`; by default the hub of HF_ENDPOINT. Raises InputError if the hub refuses.
    """
    from huggingface_hub import HfApi

    dataset, api = version_at(root, version), api or HfApi()
    if export is not None:
        return exported_and_uploaded(dataset, export, repo_id, api, private=private, settings=settings)
    own = Path(tempfile.gettempdir()) / "lvd" / f"push-{fingerprint(dataset.root, dataset.fingerprint)[:16]}"
    with lease(Storage(str(own))):
        out = own / "export"
        found = begun(Storage(str(out)))
        if found and found["identity"] != ask(root, str(out), PARQUET, dataset.fingerprint).identity:
            shutil.rmtree(out)  # of before images were taken down
        pushed = exported_and_uploaded(dataset, str(out), repo_id, api, private=private, settings=settings)
        remove(dataset, str(out), Storage(str(out)).read_json(MANIFEST))
        shutil.rmtree(own)
    return pushed


def exported_and_uploaded(
    dataset: StageDir, out: str, repo_id: str, api: Any, *, private: bool, settings: tuple[str, ...]
) -> Pushed:
    """Uploads the finished export that lies at a place, or is made there, as Parquet."""
    if not Storage(out).exists(MANIFEST):
        with answered(repo_id):
            head(api, repo_id, private=private)  # before hours of work
        export_version(dataset.root, out, PARQUET, version=dataset.fingerprint, settings=settings)
    return upload(dataset, Storage(out), repo_id, api, private=private)


def upload(dataset: StageDir, storage: Storage, repo_id: str, api: Any, *, private: bool) -> Pushed:
    """A finished export as what the repository holds."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    manifest = storage.read_json(MANIFEST)
    check(manifest, dataset, storage)
    place = without_user(f"{api.endpoint}/datasets/{repo_id}")
    said = {name: manifest[name] for name in ("kind", "identity", "seed", "shuffle", "images")}
    with answered(repo_id):
        parent = head(api, repo_id, private=private)
        there = contents(api, repo_id)
        if MANIFEST not in there and (other := next(filter(is_shard, there), None)):
            raise InputError(
                f"REPO_ID must be empty or hold what lvd pushed, {repo_id!r} has {other} of another origin: "
                "name another, or remove it there"
            )
        record(dataset, place, said)
        missing = [one for one in manifest["files"] if there.get(one["name"]) != one["sha256"]]
        additions: list[Any] = []
        for group in groups(missing):
            with local(storage, [one["name"] for one in group]) as paths:
                some = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=held(path)) for name, path in paths]
                check_digests(some, group, storage)
                api.preupload_lfs_files(repo_id, additions=some, repo_type=DATASET)
                additions += some
        mine = {one["name"] for one in manifest["files"]}
        stale = sorted(name for name in there if is_shard(name) and name not in mine)
        with local(storage, [CARD, SUMS, MANIFEST]) as paths:
            about = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path)) for name, path in paths]
            operations = [*additions, *about, *(CommitOperationDelete(path_in_repo=name) for name in stale)]
            api.create_commit(
                repo_id, operations, commit_message=manifest["said"], repo_type=DATASET, parent_commit=parent
            )
        there = contents(api, repo_id)
    if wrong := [one["name"] for one in manifest["files"] if there.get(one["name"]) != one["sha256"]]:
        raise ShardError(
            f"{place} must hold what was uploaded, {len(wrong)} files differ, first {wrong[0]}: push again"
        )
    record(dataset, place, said, is_finished=True)
    return Pushed(
        url=place,
        version=dataset.fingerprint,
        images=manifest["images"],
        files=len(manifest["files"]),
        num_bytes=manifest["bytes"],
        uploaded=len(missing),
        removed=len(stale),
    )


def head(api: Any, repo_id: str, *, private: bool) -> str | None:
    """The commit that the repository is at, which is made if there is none. Raises InputError if all can see it."""
    api.create_repo(repo_id, repo_type=DATASET, private=private or None, exist_ok=True)
    found = api.repo_info(repo_id, repo_type=DATASET)
    if private and not found.private:
        raise InputError(
            f"REPO_ID must be private for --private, {repo_id!r} is there and public: change that on the hub, or name "
            "another"
        )
    return found.sha


def check_digests(additions: list[Any], files: list[dict[str, Any]], storage: Storage) -> None:
    """Raises InputError for a file that is not what was exported, before anybody sees it."""
    for addition, one in zip(additions, files, strict=True):
        if addition.upload_info.sha256.hex() != one["sha256"]:
            raise InputError(
                f"{storage.uri(one['name'])} must have the SHA-256 that {MANIFEST} says, has another: "
                "remove the export, and export again"
            )


def check(manifest: dict[str, Any], dataset: StageDir, storage: Storage) -> None:
    """Raises InputError if this export is not of that version as it is now, or not for a hub."""
    if manifest["version"] != dataset.fingerprint:
        raise InputError(
            f"--export must hold an export of {dataset.fingerprint}, {storage.root!r} holds one of "
            f"{manifest['version']}: name the version with --version, or another place"
        )
    if manifest["kind"] == "imagefolder" or len(manifest["files"]) > MAX_FILES:
        raise InputError(
            f"--export must be of kind parquet or webdataset with up to {MAX_FILES:,} files, {storage.root!r} is "
            f"{manifest['kind']} with {manifest['num_files']:,}: hubs refuse more; export with larger shards"
        )
    config = export_stage.Config(**{name: manifest[name] for name in export_stage.Config.model_fields})
    asked = ask(dataset.root, storage.root, config, dataset.fingerprint)
    if asked.identity != manifest["identity"]:
        raise InputError(
            f"--export must hold an export of {dataset.fingerprint} as it is now, {asked.place!r} holds one of before "
            "images were taken down: export it again, to another place"
        )


def contents(api: Any, repo_id: str) -> dict[str, str | None]:
    """File of the repository → SHA-256 of its bytes; None for a small text, of which the hub tells none."""
    files = api.list_repo_tree(repo_id, repo_type=DATASET, recursive=True)
    return {one.path: one.lfs.sha256 if one.lfs else None for one in files if hasattr(one, "lfs")}


def is_shard(name: str) -> bool:
    """Whether a file of that name is a shard of an export."""
    folder, _, file = name.rpartition("/")
    return (folder, file[:6], file[-8:]) == ("data", "train-", ".parquet") or (
        not folder and file.startswith("lvd-") and file.endswith(".tar")
    )


def held(path: Path) -> str | bytes:
    """The path, or the bytes of a file that the hub may take into the commit itself, when its copy here is gone."""
    return path.read_bytes() if path.stat().st_size <= SMALL_BYTES else str(path)


def groups(files: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Files of up to UPLOADED_AT_ONCE bytes together, or one."""
    some: list[dict[str, Any]] = []
    for one in files:
        if some and sum(f["bytes"] for f in some) + one["bytes"] > UPLOADED_AT_ONCE:
            yield some
            some = []
        some.append(one)
    if some:
        yield some


@contextmanager
def local(storage: Storage, names: list[str]) -> Iterator[list[tuple[str, Path]]]:
    """(name, path on this machine) of files; those on a bucket are copied here meanwhile."""
    if storage.is_local:
        yield [(name, Path(storage.locate(name))) for name in names]
        return
    with tempfile.TemporaryDirectory(prefix="lvd-push-") as folder:
        paths = [(name, Path(folder) / str(number)) for number, name in enumerate(names)]
        for name, path in paths:
            with storage.open(name) as file, path.open("wb") as copy:
                shutil.copyfileobj(file, copy, 8 << 20)
        yield paths
