"""Folders with a subfolder for each class."""

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lvd.flows.study_samples import image_files
from lvd.infra.errors import InputError

MAX_LABELLED = 10_000  # images of a labelled collection
SIDES = re.compile(r"^(?P<stem>.*?)[ ._-]*(?P<side>train|training|test|val|validation)$", re.IGNORECASE)


class FolderImages(NamedTuple):
    """Labelled files, each content once. is_test: None if the folder has no sides."""

    paths: list[Path]
    labels: list[str]
    image_ids: list[str]
    is_test: np.ndarray | None


def folder_images(folder: str, rng: np.random.Generator) -> FolderImages:
    """A sample of the files of a folder that has a subfolder for each class, or such subfolders in `train` and `test`.

    Raises InputError if there is no such folder, or it has fewer than two classes.
    """
    base, found = Path(folder), []
    if not base.is_dir():
        raise InputError(f"--labelled must be a folder with a subfolder for each class, was {folder!r}: check the path")
    below = {path.name: SIDES.match(path.name) for path in base.iterdir() if path.is_dir()}
    sides = {name for name, match in below.items() if match and not match["stem"]}
    has_sides = len(sides) > 1 and sides == below.keys()
    for path in image_files(folder):
        parts = path.relative_to(base).parts
        if len(parts) > 1 + has_sides:
            found.append((path, parts[int(has_sides)], has_sides and not parts[0].lower().startswith("train")))
    if len({label for _, label, _ in found}) < 2:
        raise InputError(
            f"--labelled must hold at least two classes, {folder!r} has images in "
            f"{len({label for _, label, _ in found})}: put those of each class into a subfolder of its name"
        )
    kept, seen = [], set()
    for place in np.sort(rng.permutation(len(found))[:MAX_LABELLED]):
        image_id = hashlib.sha256(found[place][0].read_bytes()).hexdigest()[:32]
        if image_id not in seen:
            seen.add(image_id)
            kept.append((*found[place], image_id))
    paths, labels, is_test, image_ids = (list(column) for column in zip(*kept, strict=True))
    return FolderImages(paths, labels, image_ids, np.array(is_test) if has_sides else None)
