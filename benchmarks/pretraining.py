"""k-NN accuracy of a ViT-Tiny that was trained without labels on a selection, and on a random one of the same size.

    .venv/bin/python benchmarks/pretraining.py --labelled DIR (--root ROOT | --pool DIR) [--device cpu|cuda] [--quick]

An example of what a selection is for, at a scale at which nothing is settled. Ours is the selection: what was retrieved
and published on ROOT; or of a folder of images, the nearest ones to curated images, which are labelled images of some
classes. Peer: as many images drawn from what deduplication left, or from that folder. If DIR is the pool too, a third
of each class is the pool, a third is learnt from by k-NN, a third is tested.

Both are trained alike, with the same seeds, for as many steps: DINO's loss on crops, iBOT's on masked patches, KoLeo on
class tokens, all from lightly, which is installed into a folder of its own; the model is timm's. Then k-NN by the
teacher's class tokens on DIR. Quality: the difference with its paired interval over test images, the accuracy before
training, and that with another random selection, which tells how much is chance. On a GPU wherever there is one.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch loads: on a busy machine its threads spin

import numpy as np
import torch
from measuring import expect
from torch.nn import functional

from lvd.flows.evaluating import Evaluation, Sampled, Space, folder_images
from lvd.flows.stored import Stored
from lvd.flows.study_samples import image_files
from lvd.tasks import evaluation, models
from lvd.tasks.decode import DecodeError, decode_rgb
from lvd.tasks.finding import vectors_of

PEER = "lightly==1.6.0"
ARCHITECTURE = "vit_tiny_patch16_224"
OUTPUTS = 1024  # of a head; DINO's 65,536 are for millions of images
KOLEO_WEIGHT = 0.1  # Oquab et al., DINOv2, 2023
TEACHER_MOMENTUM = 0.99
K = 5
SELECTIONS = ("selection", "random", "another random")


class Settings(NamedTuple):
    """How long and how large."""

    input_px: int
    patch_px: int
    steps: int
    batch: int
    local_crops: int
    images: int  # of a selection, at most
    runs: int  # seeds


class Images(NamedTuple):
    """The images of both selections and of the test, (n, 3, s, s) uint8, and the classes of those that have them."""

    selected: torch.Tensor
    pool: torch.Tensor
    train: torch.Tensor
    test: torch.Tensor
    train_classes: np.ndarray
    test_classes: np.ndarray
    concepts: np.ndarray  # the classes that the selection was made for; all of them if that is not known


def installed(folder: Path) -> None:
    """Puts lightly on the path, from a folder of its own, without the libraries that its losses do not need."""
    if not (folder / "lightly").is_dir():
        beside = Path(sys.executable).with_name("uv")
        uv = str(beside) if beside.exists() else shutil.which("uv")
        install = [uv, "pip", "install"] if uv else [sys.executable, "-m", "pip", "install"]
        subprocess.run([*install, "--quiet", "--no-deps", "--target", str(folder), PEER], check=True)
    sys.path.append(str(folder))


def pixels(files: list[bytes], size_px: int) -> torch.Tensor:
    """(n, 3, s, s) uint8: the middle square of each image that can be decoded."""
    from PIL import ImageOps

    found = []
    for data in files:
        try:
            image = ImageOps.fit(decode_rgb(data), (size_px, size_px))
        except DecodeError:
            continue
        found.append(np.asarray(image).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(found))


def of_root(root: str, settings: Settings, seed: int) -> tuple[list[bytes], list[bytes]]:
    """The files of what was retrieved, and of a sample of the pool."""
    stored = Stored(root)
    evaluated = Evaluation(stored, [Space("own", "cpu", None)], settings.images, seed)
    places, _ = evaluated.selected_positions()
    expect(len(places) > 1, f"{root} must have published images that were retrieved, had {len(places)}")
    selected = Sampled(evaluated.pool, places, evaluated.pool.ids(places))
    sample = evaluated.pool_sample(4 * len(places))
    return [list(evaluated.pool.files(one.positions)) for one in (selected, sample)]


def of_folder(pool: list[Path], queries: list[Path], settings: Settings) -> tuple[list[bytes], list[bytes]]:
    """The files nearest to the queries, each query having its nearest that is left in turn, and those of the pool."""
    inference = models.Inference(model="builtin:color_texture", batch_size=64, precision="float32")
    left, right = (
        vectors_of((path.read_bytes() for path in paths), inference, device="cpu").astype(np.float32)
        for paths in (queries, pool)
    )
    similarity, chosen = left @ right.T, []
    size = min(settings.images, len(pool) // 3)
    for turn in range(size):
        best = int(similarity[turn % len(queries)].argmax())
        similarity[:, best] = -np.inf
        chosen.append(best)
    return [pool[place].read_bytes() for place in chosen], [path.read_bytes() for path in pool]


def images_of(options: argparse.Namespace, settings: Settings) -> Images:
    """What is trained on and tested with."""
    rng = np.random.default_rng(options.seed)
    labelled = folder_images(str(options.labelled), rng)
    names, classes = np.unique(labelled.labels, return_inverse=True)
    paths, concepts = np.array(labelled.paths, dtype=object), np.arange(len(names))
    is_test = labelled.is_test
    if is_test is None:
        is_test = evaluation.held_out(classes, 1 / 3 if options.pool == options.labelled else 1 / 2, rng=rng)
    is_train = ~is_test
    if options.root:
        selected, pool = of_root(options.root, settings, options.seed)
    else:
        pool_paths = image_files(str(options.pool))
        if options.pool == options.labelled:
            rest = np.flatnonzero(is_train)
            is_train[rest[evaluation.held_out(classes[rest], 1 / 2, rng=rng)]] = False
            pool_paths = paths[~is_train & ~is_test].tolist()
        concepts = concepts[: options.concepts]
        selected, pool = of_folder(pool_paths, paths[is_train & np.isin(classes, concepts)].tolist(), settings)
    sides = (paths[side].tolist() for side in (is_train, is_test))
    train, test = (pixels([path.read_bytes() for path in side], settings.input_px) for side in sides)
    expect(len(train) + len(test) == int((is_train | is_test).sum()), "every labelled image must be decodable")
    both = pixels(selected, settings.input_px), pixels(pool, settings.input_px)
    return Images(*both, train, test, classes[is_train], classes[is_test], concepts)


def crops(images: torch.Tensor, size_px: int, scale: tuple[float, float], generator: torch.Generator) -> torch.Tensor:
    """(b, 3, s, s) float32 crops of random places and sizes, mirrored, with other colours, some of them grey."""

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        drawn = torch.rand(len(images), *shape, generator=generator) * (high - low) + low
        return drawn.to(images.device)

    edge = uniform(*scale).sqrt()
    place = uniform(-1, 1, 2) * (1 - edge)[:, None]
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    empty = torch.zeros_like(edge)
    affine = torch.stack(
        [torch.stack([edge * flip, empty, place[:, 0]], 1), torch.stack([empty, edge, place[:, 1]], 1)], 1
    )
    grid = functional.affine_grid(affine, [len(images), 3, size_px, size_px], align_corners=False)
    seen = functional.grid_sample(images.float() / 255, grid, align_corners=False, padding_mode="reflection")
    seen = seen * uniform(0.6, 1.4, 1, 1, 1) + uniform(-0.2, 0.2, 1, 1, 1)
    grey = seen.mean(dim=1, keepdim=True)
    saturation = torch.where(uniform(0, 1, 1, 1, 1) < 0.2, 0.0, uniform(0.6, 1.4, 1, 1, 1))
    return ((grey + (seen - grey) * saturation).clamp(0, 1) - 0.45) / 0.25


class Student(torch.nn.Module):
    """A ViT with a head for class tokens and one for patches."""

    def __init__(self, settings: Settings) -> None:
        import timm
        from lightly.models.modules import MaskedVisionTransformerTIMM
        from lightly.models.modules.heads import DINOv2ProjectionHead

        super().__init__()
        self.patch_px = settings.patch_px
        size = {"img_size": settings.input_px, "patch_size": settings.patch_px, "dynamic_img_size": True}
        self.backbone = MaskedVisionTransformerTIMM(timm.create_model(ARCHITECTURE, num_classes=0, **size))
        dim = self.backbone.vit.embed_dim
        self.head, self.patch_head = (
            DINOv2ProjectionHead(dim, hidden_dim=512, bottleneck_dim=64, output_dim=OUTPUTS) for _ in range(2)
        )

    def tokens(self, images: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(b, 1 + patches, d), the class token first. mask: (b, h, w) bool of patches that are hidden."""
        if mask is not None:
            mask = functional.pad(mask.flatten(1), (1, 0), value=False)
        return self.backbone.encode(images, mask=mask)


def trained(images: torch.Tensor, settings: Settings, seed: int, device: str) -> tuple[Student, list[float]]:
    """(the teacher, the loss of each step). Without steps as it began."""
    from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss
    from lightly.models.utils import random_block_mask

    torch.manual_seed(seed)
    random.seed(seed)  # lightly draws its masks by it
    generator = torch.Generator().manual_seed(seed)
    student = Student(settings).to(device)
    teacher = Student(settings).to(device).requires_grad_(False).eval()
    teacher.load_state_dict(student.state_dict())
    dino, ibot, koleo = DINOLoss(OUTPUTS).to(device), IBOTPatchLoss(OUTPUTS).to(device), KoLeoLoss()
    rate = 5e-4 * settings.batch / 256 if settings.batch >= 256 else 5e-4
    optimizer = torch.optim.AdamW(student.parameters(), lr=rate, weight_decay=0.04)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=max(settings.steps, 1), pct_start=0.1)
    images, losses = images.to(device), []
    grid = settings.input_px // settings.patch_px
    local_px = max(settings.input_px // 2 // settings.patch_px, 1) * settings.patch_px
    for _ in range(settings.steps):
        rows = torch.randint(len(images), (settings.batch,), generator=generator)
        batch = images[rows.to(device)]
        whole = [crops(batch, settings.input_px, (0.4, 1.0), generator) for _ in range(2)]
        local = [crops(batch, local_px, (0.1, 0.4), generator) for _ in range(settings.local_crops)]
        mask = random_block_mask((2 * len(batch), grid, grid), min_num_masks_per_block=1, device=device)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            with torch.no_grad():
                taught = teacher.tokens(torch.cat(whole))
                class_targets = teacher.head(taught[:, 0]).float().chunk(2)
                patch_targets = teacher.patch_head(taught[:, 1:][mask.flatten(1)]).float()
            seen = student.tokens(torch.cat(whole), mask)
            classes = [seen[:, 0], *(student.tokens(one)[:, 0] for one in local)]
            said = [head for part in classes for head in student.head(part).float().split(len(batch))]
            patches = student.patch_head(seen[:, 1:][mask.flatten(1)]).float()
        loss = dino(list(class_targets), said) + ibot(patch_targets, patches, mask)
        loss = loss + KOLEO_WEIGHT * sum(koleo(part.float()) for part in seen[:, 0].chunk(2))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 3.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for kept, new in zip(teacher.parameters(), student.parameters(), strict=True):
                kept.lerp_(new, 1 - TEACHER_MOMENTUM)
        losses.append(float(loss.detach()))
    return teacher, losses


@torch.inference_mode()
def features(teacher: Student, images: torch.Tensor, device: str) -> np.ndarray:
    """(n, d) float32 unit rows: the class tokens."""
    parts = ((part.to(device).float() / 255 - 0.45) / 0.25 for part in images.split(256))
    rows = torch.cat([teacher.tokens(part)[:, 0].float() for part in parts])
    return functional.normalize(rows).cpu().numpy()


def hits(teacher: Student, images: Images, device: str) -> np.ndarray:
    """(m,) float64: 1 for each test image whose class k-NN tells."""
    train, test = (features(teacher, side, device) for side in (images.train, images.test))
    found = evaluation.knn_predicted(train, images.train_classes, test)
    return (found[min(K, max(found))] == images.test_classes).astype(np.float64)


def line(name: str, right: dict[str, np.ndarray], shown: np.ndarray, quality: dict[str, Any]) -> None:
    """One row of results, of the test images that are shown. right: selection → (runs, m)."""
    rng = np.random.default_rng(0)
    ours, peer, again, before = (
        right[what][:, shown] for what in ("selection", "random", "another random", "untrained")
    )
    difference = evaluation.mean_of((ours - peer).mean(axis=0, keepdims=True), rng=rng)
    row = {"name": name, "ours": round(float(ours.mean()), 4), "peer": round(float(peer.mean()), 4)}
    row |= {"unit": f"share right of {int(shown.sum())} test images", "ratio": round(ours.mean() / peer.mean(), 3)}
    row |= {
        "target": None,
        "met": None,
        "quality": {
            "difference": [round(value, 4) for value in (difference.value, difference.low, difference.high)],
            "another_random": round(float(again.mean()), 4),
            "untrained": round(float(before.mean()), 4),
            "of_each_run": [[round(float(one.mean()), 4) for one in rows] for rows in (ours, peer, again)],
            **quality,
        },
        "counted": f"{K}-NN by class tokens, mean of the runs; the interval is over test images, not over runs",
    }
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labelled", type=Path, required=True, help="a folder with a subfolder for each class")
    parser.add_argument("--root", help="a root that was run")
    parser.add_argument("--pool", type=Path, help="a folder of images, instead of a root")
    parser.add_argument("--concepts", type=int, default=3, help="with --pool: so many classes are curated")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--environment", type=Path, help="where lightly is, or is to be installed")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--input-px", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--quick", action="store_true", help="few steps of small crops: that it runs, not what it gives"
    )
    options = parser.parse_args()
    expect(bool(options.root) != bool(options.pool), "give one of --root and --pool")
    if options.quick:
        settings = Settings(32, 8, 12, 16, 2, 200, 1)
    elif options.device == "cuda":
        settings = Settings(64, 8, 4000, 256, 6, 100_000, 3)
    else:
        settings = Settings(32, 4, 600, 64, 2, 10_000, 2)
    settings = settings._replace(
        steps=settings.steps if options.steps is None else options.steps,
        input_px=options.input_px or settings.input_px,
    )
    with tempfile.TemporaryDirectory() as folder:
        installed(options.environment or Path(folder))
        images, began = images_of(options, settings), time.perf_counter()
        size = min(len(images.selected), len(images.pool))
        right: dict[str, list[np.ndarray]] = {name: [] for name in (*SELECTIONS, "untrained")}
        ends: dict[str, list[float]] = {name: [] for name in SELECTIONS}
        for run in range(settings.runs):
            drawn = np.random.default_rng([options.seed, run])
            chosen = [torch.from_numpy(drawn.permutation(len(images.pool))[:size]) for _ in range(2)]
            of = [images.selected[:size], *(images.pool[rows] for rows in chosen)]
            right["untrained"].append(
                hits(trained(of[0], settings._replace(steps=0), run, options.device)[0], images, options.device)
            )
            for name, source in zip(SELECTIONS, of, strict=True):
                teacher, losses = trained(source, settings, run, options.device)
                expect(
                    bool(np.isfinite(losses).all()), f"the loss of {name} must stay finite, run {run}: {losses[-3:]}"
                )
                right[name].append(hits(teacher, images, options.device))
                ends[name].append(round(float(np.mean(losses[-10:])), 3))
        seconds = time.perf_counter() - began
    where = torch.cuda.get_device_name() if options.device == "cuda" else "processor"
    quality = {"images": size, "drawn_from": len(images.pool), "last_loss": ends, "seconds": round(seconds, 1)}
    quality |= {"settings": settings._asdict(), "on": where}
    rows = {name: np.stack(found) for name, found in right.items()}
    every = np.ones(len(images.test), dtype=bool)
    line("pretraining, all classes", rows, every, quality)
    if len(images.concepts) < len(np.unique(images.test_classes)):
        line("pretraining, curated classes", rows, np.isin(images.test_classes, images.concepts), {})


if __name__ == "__main__":
    main()
