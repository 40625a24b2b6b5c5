"""Which images a study looks at: a sample of a root's pool or of a folder, or pairs that a person labelled."""

import csv
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lvd.flows.inquiry import last_run
from lvd.flows.recipe import Compute, load, parse
from lvd.infra.errors import InputError
from lvd.infra.shards import StageDir, read_batches, read_column
from lvd.infra.storage import Storage
from lvd.tasks import copies as copies_stage
from lvd.tasks import fingerprint as fingerprint_stage
from lvd.tasks.fates import KEPT
from lvd.tasks.sources import IMAGE_SUFFIXES

TRUE_WORDS, FALSE_WORDS = ("1", "true", "yes"), ("0", "false", "no")


class Place(NamedTuple):
    """Where the images are, and what is asked of them now. root: the storage of a root that has a run, else None."""

    name: str
    root: Storage | None
    run: dict[str, Any] | None
    copies: copies_stage.Config
    fingerprint: fingerprint_stage.Config
    compute: Compute


class Picture(NamedTuple):
    """One image of the sample: its key for a person, and its file."""

    key: str
    data: bytes


def place_of(where: str, recipe: str | None) -> Place:
    """The root or the folder of that name, with the recipe named, else of the last run, else the built-in model."""
    storage = Storage(where)
    run = last_run(storage)
    if run is None and not Path(where).is_dir():
        raise InputError(
            f"where must be a root with a finished run or a folder of images, was {where!r}: check the path"
        )
    if recipe is None and run is None:
        config = copies_stage.Config(model="builtin:dct")
        return Place(where, None, None, config, fingerprint_stage.Config(), Compute(gpus=0))
    chosen = load(recipe) if recipe is not None else parse(run["recipe"])
    return Place(where, storage if run else None, run, chosen.copies, chosen.fingerprint, chosen.compute)


def image_dirs(place: Place) -> list[StageDir]:
    """The directories of the pool's images."""
    pool_ = next(c for c in place.run["collections"] if c["role"] == "pool")
    named = (directory.split("/") for directory in pool_["images"])
    return [StageDir(root=place.root.root, stage=stage, fingerprint=name) for stage, name in named]


def image_files(folder: str) -> list[Path]:
    """The image files below a folder, sorted, hidden ones left out."""
    found = (path for path in Path(folder).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    return sorted(path for path in found if not path.name.startswith("."))


def sampled(place: Place, size: int, seed: int) -> tuple[list[Picture], int]:
    """(a seeded sample of different files, images of the pool).

    Of a root only images that its last run left after deduplication: the copies that it found would count as false
    pairs, and so would images without content, which are all alike once they have a border.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0x57D]))

    def chosen(total: int) -> np.ndarray:
        return np.sort(rng.choice(total, size=min(size, total), replace=False))

    if place.root is None:
        paths = image_files(place.name)
        found = (Picture(str(paths[i].relative_to(place.name)), paths[i].read_bytes()) for i in chosen(len(paths)))
        total = len(paths)
    else:
        refs = [ref for directory in image_dirs(place) for ref in directory.shards()]
        total, left = sum(ref.rows for ref in refs), survivors(place)
        found = _rows(refs, left[chosen(len(left))])
    different: dict[bytes, Picture] = {}
    for picture in found:
        different.setdefault(hashlib.sha256(picture.data).digest(), picture)
    return list(different.values()), total


def survivors(place: Place) -> np.ndarray:
    """(n,) int64: the pool rows that are left after deduplication."""
    found = place.run["directories"]
    (directory,) = found.get("remaining") or found["copies"]  # the first if images were taken down
    stage, name = directory.split("/")
    fates = StageDir(root=place.root.root, stage=stage, fingerprint=name).shards()
    return np.flatnonzero(read_column(fates, "state").to_numpy() == KEPT)


def _rows(refs: list[Any], positions: np.ndarray) -> Iterator[Picture]:
    """The images at ascending positions of all shards together. Memory: one batch."""
    first = 0
    for ref in refs:
        if np.searchsorted(positions, first) == np.searchsorted(positions, first + ref.rows):
            first += ref.rows
            continue
        for batch in read_batches(ref, ["key", "image"]):
            inside = slice(*np.searchsorted(positions, [first, first + batch.num_rows]))
            for row in batch.take(positions[inside] - first).to_pylist():
                yield Picture(row["key"], row["image"]["bytes"])
            first += batch.num_rows


def read_pairs(path: str) -> list[dict[str, Any]]:
    """Rows with `left`, `right`, `is_copy` (bool) and `kind` ("labelled" where it is not given).

    Raises InputError if the file cannot be read, a column is missing or a label is not 0 or 1.
    """
    try:
        if path.endswith(".parquet"):
            import pyarrow.parquet as pq

            rows = pq.read_table(path).to_pylist()
        else:
            rows = list(csv.DictReader(io.StringIO(Path(path).read_text(encoding="utf-8-sig"))))
    except (OSError, ValueError) as error:
        raise InputError(f"pairs must be a CSV or Parquet file, was {path!r}: {error}") from error
    missing = {"left", "right", "is_copy"} - set(rows[0] if rows else {})
    if missing:
        raise InputError(f"{path} must have the columns left, right and is_copy, had no {', '.join(sorted(missing))}")
    return [
        {
            "left": str(row["left"]),
            "right": str(row["right"]),
            "kind": str(row.get("kind") or "labelled"),
            "is_copy": label(row["is_copy"], f"{path}, pair {number}"),
        }
        for number, row in enumerate(rows, 1)
    ]


def label(value: Any, where: str) -> bool:
    """Whether a label says copy. Raises InputError if it says neither."""
    text = str(value).strip().lower()
    if text not in TRUE_WORDS + FALSE_WORDS:
        raise InputError(f"{where}: is_copy must be 0 or 1, was {value!r}")
    return text in TRUE_WORDS


def pictures_named(place: Place, names: set[str], pairs: str) -> dict[str, Picture]:
    """name → image: an id or a key of the root's pool, else a path, from the folder or from where the pairs lie.

    Raises InputError naming the first that is not there.
    """
    found: dict[str, Picture] = {}
    if place.root is not None:
        for ref in (ref for directory in image_dirs(place) for ref in directory.shards()):
            for batch in read_batches(ref, ["image_id", "key", "image"]):
                ids, keys = (batch[name].to_pylist() for name in ("image_id", "key"))
                for row, names_of in enumerate(zip(ids, keys, strict=True)):
                    for name in names.intersection(names_of) - found.keys():
                        found[name] = Picture(keys[row], batch["image"][row].as_py()["bytes"])
    for name in sorted(names - found.keys()):
        tried = [Path(place.name, name), Path(pairs).parent / name]
        path = next((path for path in tried if path.is_file()), None)
        if path is None:
            raise InputError(f"{pairs}: left and right must be paths or image ids, found no {name!r} in {place.name!r}")
        found[name] = Picture(name, path.read_bytes())
    return found
