"""How well the models without weights tell classes: leave-one-out k-NN on folders of labelled images; peer: chance.

    python benchmarks/class_quality.py --images DIR [MORE …] [--torchscript FILE --input-px 32] [--quick]

Each folder has a subfolder for each class. `copies.py` measures how well models tell copies.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lvd.tasks import models
from lvd.tasks.decode import decode_rgb

NEIGHBORS = 5


def vectors(model: models.ImageModel, images: list[Image.Image], batch_size: int = 64) -> np.ndarray:
    """(n, dim) unit rows."""
    inputs = [np.asarray(model.preprocess(image)) for image in images]
    return np.concatenate(
        [model.embed(np.stack(inputs[i : i + batch_size])) for i in range(0, len(inputs), batch_size)]
    )


def row(name: str, ours: float, peer: float | None, unit: str, target: float, met: bool, **more: Any) -> dict[str, Any]:
    """One line of the results, as DESIGN.md section 8 says."""
    ratio = round(ours / peer, 3) if peer else None
    values = {"ours": round(ours, 6), "peer": None if peer is None else round(peer, 6)}
    return {"name": name, **values, "unit": unit, "ratio": ratio, "target": target, "met": met, **more}


def class_row(spec: models.ModelSpec, folder: str, images: list[Image.Image], labels: np.ndarray) -> dict[str, Any]:
    """Leave-one-out k-NN accuracy by cosine, the nearest neighbour breaking ties."""
    rows = vectors(models.load(spec), images)
    similarity = rows @ rows.T
    np.fill_diagonal(similarity, -2)
    nearest = labels[np.argsort(-similarity, axis=1, kind="stable")[:, :NEIGHBORS]]
    votes = [
        np.bincount(found, minlength=labels.max() + 1) + np.eye(labels.max() + 1)[found[0]] * 0.5 for found in nearest
    ]
    ours, chance = float((np.argmax(votes, axis=1) == labels).mean()), float(np.bincount(labels).max() / len(labels))
    name, quality = f"knn/{folder}/{spec.model}", {"top_1": round(float((nearest[:, 0] == labels).mean()), 4)}
    counted = f"{len(labels)} images, {labels.max() + 1} classes, k = {NEIGHBORS}"
    return row(name, ours, chance, "share", 2 * chance, ours >= 2 * chance, quality=quality, counted=counted)


def read_folder(folder: Path, limit: int | None) -> tuple[list[Image.Image], list[str]]:
    """The images and the names of their subfolders, every k-th of them if there are more than `limit`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    paths = paths[:: max(1, len(paths) // limit)] if limit else paths
    return [decode_rgb(path.read_bytes()) for path in paths], [path.parent.name for path in paths]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="+", type=Path, required=True, metavar="DIR")
    parser.add_argument("--torchscript", metavar="FILE", help="another model for the classes")
    parser.add_argument("--input-px", type=int, default=32)
    parser.add_argument("--quick", action="store_true", help="at most 100 images of a folder")
    options = parser.parse_args()

    specs = [models.ModelSpec(model="builtin:color_texture"), models.ModelSpec(model="builtin:dct")]
    if options.torchscript:
        specs.append(models.ModelSpec(model="torchscript", path=options.torchscript, input_px=options.input_px))
    rows = []
    for folder in options.images:
        images, names = read_folder(folder, 100 if options.quick else None)
        labels = np.unique(names, return_inverse=True)[1]
        rows += [class_row(spec, folder.name, images, labels) for spec in specs]
    sys.stdout.writelines(json.dumps(line) + "\n" for line in rows)
    return 0 if all(line["met"] for line in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
