"""Recall of planted copies at equal precision, by transformation: ours against perceptual hashes.

    python benchmarks/copies.py [--photos DIR] [--cifar DIR] [--environment DIR] [--sscd FILE] [--quick]

Copies of the photographs by every transformation of lvd.tasks.transforms, among distractors: the other photographs,
the CIFAR-10 images, and copies of those by three transformations each. Every method compares every original with every
original and every copy. Its threshold is the loosest one with at most 1e-5 of the false pairs; where even the strictest
one has more, that is taken, which is in its favour. Ours is what the pipeline runs: a copy is found if the hash stage
at its own settings or the descriptor finds it, and the false pairs of both count together.
Peers: imagehash.phash, and imagededup's four hashes, in an environment of their own without torch, which hashing does
not use. Beside it, in `quality`: every method at zero false pairs, and at its usual threshold.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import imagehash
import numpy as np
from measuring import expect, peer_environment

from lvd.tasks import fingerprint, models, study
from lvd.tasks.algorithms import pca_hash
from lvd.tasks.decode import decode_rgb
from lvd.tasks.transforms import TRANSFORMS, Transform, copy_of

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
PEER = ["imagededup==0.3.3.post2"]  # installed without what it depends on: that has torch, which only its CNN needs
PEER_NEEDS = ["numpy", "pillow", "PyWavelets", "scipy", "scikit-learn", "tqdm"]
PEER_DISTANCE = 10  # imagededup's default
HASHES = ("PHash", "DHash", "WHash", "AHash")
MAX_FALSE_RATE = 1e-5
COPIES_OF_A_DISTRACTOR = 3
DISTRACTOR_PX = 32
CONFIG = fingerprint.Config()
PIPELINE = "pipeline, "

ENCODE = """
import importlib.util, json, sys, types
from multiprocessing import Pool
from pathlib import Path
import numpy as np
from PIL import Image

home = Path(importlib.util.find_spec("imagededup").origin).parent
for part in ("methods", "utils"):  # their __init__ imports torch and matplotlib, which hashing does not use
    package = types.ModuleType(f"imagededup.{part}")
    package.__path__ = [str(home / part)]
    sys.modules[package.__name__] = package
from imagededup.methods import hashing

METHODS = [getattr(hashing, name)(verbose=False) for name in sys.argv[2].split(",")]

def codes(path):
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    return [method.encode_image(image_array=pixels) for method in METHODS]

if __name__ == "__main__":
    with Pool() as pool:
        print(json.dumps(pool.map(codes, sorted(Path(sys.argv[1]).iterdir()), chunksize=32)))
"""


class Copy(NamedTuple):
    """A copy of the original of that number; `is_planted`: of a photograph, and so counted in the recall."""

    original: int
    transform: str
    data: bytes
    is_planted: bool


class Method(NamedTuple):
    """A similarity of pairs, (originals, originals + copies). usual: the thresholds that people use it at, by name."""

    name: str
    similarity: np.ndarray
    usual: dict[str, float]


def read(folder: Path, keep_every: int) -> list[bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix == ".jpg")[::keep_every]
    expect(len(paths) > 1, f"{folder} must hold photographs, had {len(paths)}: name another folder")
    return [path.read_bytes() for path in paths]


def planted(photos: list[bytes], distractors: list[bytes]) -> list[Copy]:
    """All copies: of a photograph by every transformation, of a distractor by a few that are drawn."""

    def of_one(number: int) -> list[Copy]:
        is_photo = number < len(photos)
        image = decode_rgb(photos[number] if is_photo else distractors[number - len(photos)])
        return [
            Copy(number, transform.name, copy_of(image, transform, seed=0, number=number), is_photo)
            for transform in (TRANSFORMS if is_photo else drawn(number))
        ]

    with ThreadPoolExecutor(os.cpu_count()) as workers:
        return [copy for found in workers.map(of_one, range(len(photos) + len(distractors))) for copy in found]


def drawn(number: int) -> list[Transform]:
    rng = np.random.default_rng([1, number])
    return [TRANSFORMS[i] for i in rng.choice(len(TRANSFORMS), COPIES_OF_A_DISTRACTOR, replace=False)]


def nearness(bits: np.ndarray, num_originals: int) -> np.ndarray:
    """Minus the Hamming distance of every original to every image. bits: (n, b) bool."""
    signs = bits * np.float32(2) - 1
    return (signs[:num_originals] @ signs.T - bits.shape[1]) / 2


def ours(files: list[bytes], num_originals: int, specs: dict[str, models.ModelSpec]) -> Iterator[Method]:
    """The hash stage, every descriptor, and both as the pipeline runs them."""
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        thumbnails = np.concatenate(list(workers.map(study.HashScorer.thumbnails, ([data] for data in files))))
        settings = {"max_distance": CONFIG.max_distance, "threshold": CONFIG.min_thumbnail_similarity}
        fit = pca_hash.fit([thumbnails[:num_originals]])
        hashed = study.HashScorer("pca_hash", fit, **settings)
        stage = hashed.matrix(thumbnails[:num_originals], thumbnails)
        codes = np.unpackbits(pca_hash.codes(fit, thumbnails), axis=1).astype(bool)
        yield Method("pca_hash", nearness(codes, num_originals), {f"{CONFIG.max_distance} bits": -CONFIG.max_distance})
        yield Method("pca_hash+thumbnail", stage, {f"{hashed.threshold}": hashed.threshold})
        for name, spec in specs.items():
            threshold = models.copy_thresholds(spec).min_similarity
            scorer = study.ModelScorer(name, models.load(spec), threshold)
            blocks = [files[start : start + 32] for start in range(0, len(files), 32)]
            features = np.concatenate(list(workers.map(scorer.features, blocks)))
            cosines = scorer.matrix(features[:num_originals], features)
            yield Method(name, cosines, {f"{threshold}": threshold})
            found = np.where(stage >= hashed.threshold, np.float32(1), cosines)
            yield Method(f"{PIPELINE}{name}", found, {f"{threshold}": threshold})


def peers(files: list[bytes], num_originals: int, python: Path) -> Iterator[Method]:
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        phash = np.stack(list(workers.map(lambda data: imagehash.phash(decode_rgb(data)).hash.ravel(), files)))
    yield Method("imagehash.phash", nearness(phash, num_originals), {"0 bits": 0, "4 bits": -4})
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(files):
            Path(folder, f"{number:06d}").write_bytes(data)
        command = [str(python), "-c", ENCODE, folder, ",".join(HASHES)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    rows = json.loads(done.stdout)
    expect(len(rows) == len(files), f"imagededup must give {len(files)} hashes, gave {len(rows)}")
    for place, name in enumerate(HASHES):
        codes = np.array([list(bytes.fromhex(row[place].zfill(16))) for row in rows], dtype=np.uint8)
        bits = np.unpackbits(codes, axis=1).astype(bool)
        yield Method(f"imagededup.{name}", nearness(bits, num_originals), {f"{PEER_DISTANCE} bits": -PEER_DISTANCE})


def loosest(false: np.ndarray, strictest: float, max_rate: float) -> float:
    """The lowest threshold with at most that share of false pairs, but no more than the strictest one.

    false: the similarities of false pairs, descending.
    """
    return min(float(np.nextafter(false[int(max_rate * len(false))], np.float32(np.inf))), strictest)


def figures(method: Method, owner: np.ndarray, masks: dict[str, np.ndarray]) -> dict[str, Any]:
    """Recall by transformation and share of false pairs, at equal precision and at the usual thresholds."""
    similarity = method.similarity
    is_own = owner[None, :] == np.arange(len(similarity))[:, None]
    false = np.sort(similarity[~is_own])[::-1]
    own = similarity[owner, np.arange(len(owner))]
    equal, zero = (loosest(false, float(own.max()), rate) for rate in (MAX_FALSE_RATE, 0))
    result = {}
    for name, threshold in {"equal": equal, "zero": zero, **method.usual}.items():
        result[name] = {
            "threshold": round(threshold, 4),
            "false_rate": float((false >= threshold).mean()),
            "recall": {kind: float((own[mask] >= threshold).mean()) for kind, mask in masks.items()},
        }
    return result


def rows(ours: dict[str, Any], peers: dict[str, Any], counted: str) -> Iterator[dict[str, Any]]:
    """A line for each transformation and method, and one that compares the best of ours with the best peer."""
    for transform in TRANSFORMS:
        recall = {name: of["equal"]["recall"][transform.name] for name, of in (ours | peers).items()}
        for name, of in (ours | peers).items():
            settings = {
                setting: {"recall": at["recall"][transform.name], "at": at["threshold"], "false": at["false_rate"]}
                for setting, at in of.items()
            }
            yield row(f"copies/{transform.name}/{name}", recall[name], None, None, settings, counted)
        pipelines = [name for name in ours if name.startswith(PIPELINE)]
        mine, best = (max(names, key=recall.__getitem__) for names in (pipelines, peers))
        quality = {"group": transform.group, "ours": mine, "peer": best}
        target = recall[best] if transform.group == "mild" else None
        yield row(f"copies/{transform.name}/best", recall[mine], recall[best], target, quality, counted)


def row(
    name: str, ours: float, peer: float | None, target: float | None, quality: dict[str, Any], counted: str
) -> dict[str, Any]:
    """One line of the results, as DESIGN.md section 8 says."""
    return {
        "name": name,
        "ours": round(ours, 4),
        "peer": None if peer is None else round(peer, 4),
        "unit": "recall",
        "ratio": round(ours / peer, 3) if peer else None,
        "target": target,
        "met": target is None or ours >= target,
        "quality": quality,
        "counted": counted,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=DATA / "photos", metavar="DIR")
    parser.add_argument("--cifar", type=Path, default=DATA / "cifar10", metavar="DIR", help="distractors")
    parser.add_argument("--environment", type=Path, metavar="DIR", help="where imagededup is, or is to be installed")
    parser.add_argument("--sscd", metavar="FILE", help="the authors' TorchScript file of sscd_disc_mixup")
    parser.add_argument("--quick", action="store_true", help="a third of the images, a ninth of the pairs")
    options = parser.parse_args()
    expect(options.photos.is_dir() and options.cifar.is_dir(), "--photos and --cifar must be folders of images")
    started = time.perf_counter()
    photos, distractors = (read(folder, 3 if options.quick else 1) for folder in (options.photos, options.cifar))
    copies = planted(photos, distractors)
    files, num_originals = [*photos, *distractors, *(copy.data for copy in copies)], len(photos) + len(distractors)
    owner = np.array([*range(num_originals), *(copy.original for copy in copies)])
    kinds = np.array([""] * num_originals + [copy.transform if copy.is_planted else "" for copy in copies])
    masks = {transform.name: kinds == transform.name for transform in TRANSFORMS}
    specs = {"builtin:dct": models.ModelSpec(model="builtin:dct")}
    if options.sscd:
        specs["sscd"] = models.ModelSpec(model="sscd_disc_mixup", path=options.sscd)
    with tempfile.TemporaryDirectory() as folder:
        python = peer_environment(options.environment or Path(folder) / "environment", ["--no-deps", *PEER], PEER_NEEDS)
        sides = ours(files, num_originals, specs), peers(files, num_originals, python)
        found = [{method.name: figures(method, owner, masks) for method in methods} for methods in sides]
    pairs = num_originals * (len(files) - 1) - len(copies)
    counted = (
        f"{len(photos)} copies each among {len(files):,} images; at most {MAX_FALSE_RATE:g} of {pairs:,} false pairs; "
        f"{time.perf_counter() - started:.0f} s"
    )
    lines = list(rows(*found, counted))
    sys.stdout.writelines(json.dumps(line) + "\n" for line in lines)
    return 0 if all(line["met"] for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
