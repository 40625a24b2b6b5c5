"""The published set in an explorer: a sample with its vectors as Parquet, and Embedding Atlas on it, on loopback."""

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lvd.flows.inquiry import last_run
from lvd.flows.veiling import check_without
from lvd.flows.versions import FOLDER
from lvd.infra.errors import InputError
from lvd.infra.shards import ShardRef, StageDir
from lvd.infra.storage import Storage
from lvd.tasks import exploring

RUNS = "runs"
EXPLORER = "embedding_atlas"  # the module of the extra `explore`
HOST = "127.0.0.1"
# The picture of every image, the place of its vector; nothing from the network, nothing to it, the same map every time.
OPTIONS = ("--vector", "vector", "--image", "image", "--umap-metric", "cosine", "--umap-random-state", "0")
STAYS = ("--no-mcp", "--no-auto-port")  # no other program is let in, and no other port is taken


def explore(
    root: str, *, version: str | None, sample: int | None, seed: int, port: int, say: Callable[[str], None]
) -> None:
    """Shows a published version, or a sample of it, in Embedding Atlas until it is interrupted.

    Raises InputError if that is not installed, or as `export` does.
    """
    if importlib.util.find_spec(EXPLORER) is None:
        raise InputError(
            "lvd explore needs Embedding Atlas, which is not installed: install the extra `explore` of lvd, or write "
            f"a file with --export and run `uvx embedding-atlas {' '.join(arguments('FILE.parquet', port))}`"
        )
    with tempfile.TemporaryDirectory(prefix="lvd-explore-") as folder:
        file = Path(folder) / "published.parquet"
        rows = export(root, file, version=version, sample=sample, seed=seed)
        say(f"{rows:,} images; the map of them is made, then the page is at http://{HOST}:{port} (Ctrl-C ends it)")
        try:
            command = [sys.executable, "-m", f"{EXPLORER}.cli", *arguments(str(file), port)]
            done = subprocess.run(command, check=False)
        except KeyboardInterrupt:
            return
    if done.returncode:
        raise InputError(
            f"Embedding Atlas ended with {done.returncode}, see above; another --port than {port} may help"
        )


def arguments(file: str, port: int) -> list[str]:
    """What Embedding Atlas is given to show a file."""
    return [file, *OPTIONS, *STAYS, "--host", HOST, "--port", str(port)]


def export(root: str, file: Path, *, version: str | None = None, sample: int | None = None, seed: int = 0) -> int:
    """Writes a published version, or a sample of it, to a Parquet file; returns the rows written.

    Raises InputError if that version is not there, if it has no images, or if the file cannot be written.
    """
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise InputError(f"--export must be a file in a folder that exists, was {str(file)!r}: name another")
    record = record_of(root, version)
    curated, embedded = parts(root, record)
    total = sum(ref.rows for ref in curated)
    rows = exploring.sampled(total, sample, np.random.default_rng(np.random.SeedSequence([seed, 0xE7])))
    ids = {row["image_id"] for row in exploring.published(curated, rows, ["image_id"])}
    vectors = exploring.vectors_of(embedded, ids)
    if not vectors:
        raise InputError(
            f"version {record['version']} must have images that are embedded, none of the {len(ids):,} chosen is: "
            "choose more with --sample, or run the recipe again"
        )
    try:
        return exploring.write(exploring.published(curated, rows), vectors, file)
    except OSError as error:
        raise InputError(f"--export must be a file that can be written, was {str(file)!r}: {error}") from error


def record_of(root: str, version: str | None) -> dict[str, Any]:
    """What the run said that published a version; the last run's by default.

    Raises InputError if there is none.
    """
    storage = Storage(root)
    last = last_run(storage)
    if last is None:
        raise InputError(
            f"root must hold a published version, {root!r} has none: run `lvd run RECIPE --root {root}` first"
        )
    if version is None or last["version"] == version:
        return last
    names = [name for name in storage.names(RUNS) if name.endswith(f"-{version}.json")]
    if not names:
        known = sorted({name.rsplit("-", 1)[-1].removesuffix(".json") for name in storage.names(RUNS)})
        raise InputError(f"--version must be one of {', '.join(known)}, was {version!r}: choose one of these")
    return storage.read_json(f"{RUNS}/{names[-1]}")


def parts(root: str, record: dict[str, Any]) -> tuple[list[ShardRef], list[ShardRef]]:
    """The shards of the published dataset, and of all embeddings.

    Raises InputError for a run over vectors alone, and for a version with images that were taken down.
    """
    if "imported" in record["directories"]:
        raise InputError(
            f"root must hold a run over images, that of {record['version']} was over vectors: name a root with images"
        )

    def shards(directory: str) -> list[ShardRef]:
        stage, name = directory.rsplit("/", 1)
        return StageDir(root=root, stage=stage, fingerprint=name).shards()

    check_without(StageDir(root=root, stage=FOLDER, fingerprint=record["version"]))
    return shards(record["curated"]), [ref for name in record["directories"]["embed"] for ref in shards(name)]
