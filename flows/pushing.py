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

from lvd.flows.export_records import record, remove
from lvd.flows.exporting import CARD, MANIFEST, SUMS, asked_config, export_version, version_at
from lvd.flows.veiling import check_without
from lvd.infra.errors import InputError, RetryableError, ShardError
from lvd.infra.shards import StageDir, fingerprint
from lvd.infra.storage import Storage

DATASET = "dataset"  # what the hub calls the kind of repository
MAX_FILES = 20_000  # of one commit; the hub takes 25,000
SMALL_BYTES = 10 << 20  # up to which a hub may take a file as a text, and not as large
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
    own = Path(tempfile.gettempdir()) / "lvd" / f"push-{fingerprint(dataset.root, dataset.fingerprint)[:16]}"
    out = export or str(own)
    if not Storage(out).exists(MANIFEST):
        with answered(repo_id):
            api.create_repo(repo_id, repo_type=DATASET, private=private or None, exist_ok=True)  # before hours of work
        export_version(root, out, asked_config(kind="parquet"), version=dataset.fingerprint, settings=settings)
    pushed = upload(dataset, Storage(out), repo_id, api, private=private)
    if export is None:
        remove(dataset, out, Storage(out).read_json(MANIFEST))
        shutil.rmtree(own)
    return pushed


def upload(dataset: StageDir, storage: Storage, repo_id: str, api: Any, *, private: bool) -> Pushed:
    """A finished export as what the repository holds."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    manifest = storage.read_json(MANIFEST)
    check_without(dataset)
    check(manifest, dataset, storage)
    place = f"{api.endpoint}/datasets/{repo_id}"
    said = {name: manifest[name] for name in ("kind", "identity", "seed", "shuffle", "images")}
    with answered(repo_id):
        api.create_repo(repo_id, repo_type=DATASET, private=private or None, exist_ok=True)
        record(dataset, place, said)
        there = contents(api, repo_id)
        missing = [one for one in manifest["files"] if there.get(one["name"]) != one["sha256"]]
        additions: list[Any] = []
        for group in groups(missing):
            with local(storage, [one["name"] for one in group]) as paths:
                some = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=held(path)) for name, path in paths]
                api.preupload_lfs_files(repo_id, additions=some, repo_type=DATASET)
                additions += some
        stale = sorted(name for name in there if is_shard(name) and name not in {f["name"] for f in manifest["files"]})
        with local(storage, [CARD, SUMS, MANIFEST]) as paths:
            about = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path)) for name, path in paths]
            operations = [*additions, *about, *(CommitOperationDelete(path_in_repo=name) for name in stale)]
            api.create_commit(repo_id, operations, commit_message=manifest["said"], repo_type=DATASET)
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


def check(manifest: dict[str, Any], dataset: StageDir, storage: Storage) -> None:
    """Raises InputError if this export is not of that version, or not for a hub."""
    if manifest["version"] != dataset.fingerprint:
        raise InputError(
            f"--export must hold an export of {dataset.fingerprint}, {storage.root!r} holds one of "
            f"{manifest['version']}: name the version with --version, or another place"
        )
    if manifest["images"] != (now := sum(ref.rows for ref in dataset.shards())):
        raise InputError(
            f"--export must hold the images that {dataset.fingerprint} has now, {now:,}, {storage.root!r} has "
            f"{manifest['images']:,} as some were taken down since: export it again"
        )
    if manifest["kind"] == "imagefolder" or len(manifest["files"]) > MAX_FILES:
        raise InputError(
            f"--export must be of kind parquet or webdataset with up to {MAX_FILES:,} files, {storage.root!r} is "
            f"{manifest['kind']} with {manifest['num_files']:,}: hubs refuse more; export with larger shards"
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


@contextmanager
def answered(repo_id: str) -> Iterator[None]:
    """Raises InputError, in one line, where the hub refuses what is inside, RetryableError where it does not answer."""
    from huggingface_hub.errors import HTTPError  # of the library that it asks with

    try:
        yield
    except (HTTPError, OSError, ValueError, RuntimeError) as error:  # uploads come wrapped in a RuntimeError
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        if (told := told_by_hub(cause, repo_id)) is None:
            raise
        raise told from error


def told_by_hub(error: BaseException, repo_id: str) -> InputError | RetryableError | None:
    """What an error of the hub's library says to the user, in one line; None if it is no such error."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, LocalTokenNotFoundError

    if isinstance(error, HFValidationError):
        return InputError(f"REPO_ID must be as name/dataset, was {repo_id!r}: {' '.join(str(error).split())}")
    if isinstance(error, LocalTokenNotFoundError):
        return InputError("the hub must know you: set HF_TOKEN, or log in with `hf auth login`")
    if not isinstance(error, HfHubHTTPError):
        is_away = isinstance(error, HTTPError)
        said = f"the hub must answer, was asked in vain ({type(error).__name__}): push again, what it has stays there"
        return RetryableError(said) if is_away else None
    status = error.response.status_code
    said = f"{status} {' '.join((error.server_message or error.response.reason_phrase).split())}"
    if status in (401, 403):
        return InputError(
            f"the hub must let you write {repo_id!r}, it said {said}: set HF_TOKEN to a token that may, "
            "or log in with `hf auth login`"
        )
    if 400 <= status < 500 and status != 429:
        return InputError(f"the hub must take what is pushed to {repo_id!r}, it said {said}")
    return RetryableError(f"the hub said {said}: push again, what it has stays there")
