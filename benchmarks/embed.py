"""Images per second of the embedding engine, against a plain timm loop with a DataLoader, and the model alone.

    .venv/bin/python benchmarks/embed.py [--quick] [--model NAME] [--images N] [--device cpu|cuda] [--folder JPEGS]

All of them embed the same JPEG files by the same weights (random ones: the pace does not depend on them) at the same
batch size. Ours reads Arrow shards and writes vectors, with as many tasks at once as a local run has; the loop writes
nothing, and has the best of three numbers of workers; the model alone has its pixels on the device. On a processor in
float32, on a GPU in bfloat16, where the rate of a large matrix product is measured too, and a ViT-H/14 at 224 px counts
as 0.334 TFLOP an image. Quality: the lowest cosine of our vectors with those of the loop, which decodes every pixel.
"""

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import expect
from PIL import Image

from lvd.infra.committing import commit
from lvd.infra.shards import ShardRef, StageDir
from lvd.infra.writing import write_shard
from lvd.tasks import models, schemas
from lvd.tasks.models import engine
from lvd.tests.drawing import CLASSES, draw

VIT_H_TFLOP = 0.334  # of one image of 224 px by a ViT-H/14
SIZES_PX = ((500, 375), (375, 500), (640, 480), (1024, 768), (1600, 1200))
SHARD_ROWS = 64
ROUNDS = 3


def jpegs(number: int, folder: Path | None) -> list[bytes]:
    """That many JPEG files: of a folder, again and again, or drawn ones of the sizes that a web crawl has."""
    if folder is not None:
        files = [path.read_bytes() for path in sorted(folder.rglob("*.jp*g"))]
        return [files[n % len(files)] for n in range(number)]
    names, found = list(CLASSES), []
    for n in range(min(number, 60)):
        picture = draw(names[n % len(names)], np.random.default_rng(n), SIZES_PX[n % len(SIZES_PX)])
        file = io.BytesIO()
        picture.convert("RGB").save(file, "JPEG", quality=85)
        found.append(file.getvalue())
    return [found[n % len(found)] for n in range(number)]


def stored(root: str, files: list[bytes]) -> list[ShardRef]:
    """The files as shards of images."""
    target = StageDir(root=root, stage="download", fingerprint="images")
    parts = [files[i : i + SHARD_ROWS] for i in range(0, len(files), SHARD_ROWS)]
    for ref, part in zip(target.planned(len(parts)), parts, strict=True):
        with write_shard(ref, schemas.IMAGES, {}) as shard:
            for number, data in enumerate(part):
                row = {name: None for name in schemas.IMAGES.names}
                named = {"image_id": f"{ref.index:016x}{number:016x}", "key": str(number), "num_bytes": len(data)}
                shard.keep(row | named | {"image": {"bytes": data, "path": None}}, len(data))
    commit(target, len(parts), config={}, inputs={})
    return target.shards()


def ours(refs: list[ShardRef], inference: models.Inference, device: str, name: str) -> np.ndarray:
    """The vectors of the engine, with the tasks that a local run has at once."""
    tasks = 1 if device == "cuda" else os.cpu_count()
    decoders = os.cpu_count() if device == "cuda" else 1
    target = StageDir(root=refs[0].root, stage="embed", fingerprint=name)
    jobs = [engine.Job(images=r, fates=None, target=t) for r, t in zip(refs, target.planned(len(refs)), strict=True)]

    def embed(part: list[engine.Job]) -> list[Any]:
        return engine.vectors_of_shards(part, inference, device=device, decoders=decoders)

    with ThreadPoolExecutor(tasks) as threads:
        done = [outcome for part in threads.map(embed, [jobs[i::tasks] for i in range(tasks)]) for outcome in part]
    expect(not any(isinstance(outcome, Exception) for outcome in done), f"every shard must be done: {done}")
    return np.concatenate([engine.read_vectors(job.target) for job in jobs])


class Files(torch.utils.data.Dataset):
    """What one writes around timm: decode every pixel, timm's own transform."""

    def __init__(self, files: list[bytes], transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> torch.Tensor:
        return self.transform(Image.open(io.BytesIO(self.files[number])).convert("RGB"))


def loop(files: list[bytes], module: torch.nn.Module, transform: Any, device: str, batch: int, workers: int) -> Any:
    """The unit rows of a plain loop."""
    pinned = device == "cuda"
    loader = torch.utils.data.DataLoader(
        Files(files, transform), batch_size=batch, num_workers=workers, pin_memory=pinned
    )
    rows = []
    with torch.inference_mode(), torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
        for pixels in loader:
            rows.append(module(pixels.to(device, non_blocking=True)).float())
    return torch.nn.functional.normalize(torch.cat(rows)).cpu().numpy()


def alone(model: Any, batch: int, number: int) -> float:
    """Images per second of the model on pixels that are on the device, with nothing else to do."""
    pixels = torch.zeros((batch, *model.input_shape), dtype=torch.uint8, device=model.placement.device)
    rounds = -(-number // batch)
    model._unit_rows(pixels)
    synchronize(model.placement.device)
    began = time.perf_counter()
    for _ in range(rounds):
        model._unit_rows(pixels)
    synchronize(model.placement.device)
    return rounds * batch / (time.perf_counter() - began)


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def matrix_tflops(size: int = 8192) -> float:
    """The rate of a bfloat16 matrix product."""
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for rounds in (5, 50):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(rounds):
            left @ right
        torch.cuda.synchronize()
    return 50 * 2 * size**3 / (time.perf_counter() - began) / 1e12


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = function()
    return time.perf_counter() - began, result


def line(name: str, ours_: float, peer: float, target: float | None, quality: dict[str, Any], counted: str) -> None:
    ratio = ours_ / peer
    row = {"name": name, "ours": round(ours_, 2), "peer": round(peer, 2), "unit": "images/s", "ratio": round(ratio, 3)}
    row |= {
        "target": target,
        "met": None if target is None else ratio >= target,
        "quality": quality,
        "counted": counted,
    }
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


def main() -> None:
    import timm

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller model, fewer images")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", help="any of timm; vit_huge_patch14_gap_224 on a GPU, vit_small_patch16_224 else")
    parser.add_argument("--images", type=int)
    parser.add_argument("--folder", type=Path, help="of JPEG files; else drawn ones")
    options = parser.parse_args()
    is_gpu = options.device == "cuda"
    name = options.model or ("vit_huge_patch14_gap_224" if is_gpu else "vit_small_patch16_224")
    name = "vit_tiny_patch16_224" if options.quick and not options.model else name
    number = options.images or ((8192 if is_gpu else 512) // (8 if options.quick else 1))
    batch, workers = (256, (8, 16)) if is_gpu else (32, (0, 1, os.cpu_count()))
    with tempfile.TemporaryDirectory() as folder:
        module = timm.create_model(name, pretrained=False, num_classes=0).eval()
        weights = Path(folder) / "weights.pth"
        torch.save(module.state_dict(), weights)
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(module), is_training=False)
        files = jpegs(number, options.folder)
        refs = stored(folder, files)
        precision = "bfloat16" if is_gpu else "float32"
        inference = models.Inference(model=name, path=str(weights), batch_size=batch, precision=precision)
        model = models.load(engine.spec_of(inference), engine.placement(inference, options.device))
        module = module.to(options.device)
        ours(refs[:2], inference, options.device, "warm")  # both sides have been through their first batches
        best = min(
            workers,
            key=lambda w: timed(lambda: loop(files[: 4 * batch], module, transform, options.device, batch, w))[0],
        )
        mine, theirs = [], []
        for turn in range(ROUNDS):
            seconds, vectors = timed(lambda turn=turn: ours(refs, inference, options.device, f"turn{turn}"))
            mine.append(number / seconds)
            seconds, rows = timed(lambda: loop(files, module, transform, options.device, batch, best))
            theirs.append(number / seconds)
        pace = [alone(model, batch, number) for _ in range(ROUNDS)]
    cosine = float((vectors.astype(np.float32) * rows).sum(axis=1).min())
    expect(cosine > 0.999, f"the vectors must be those of timm within a cosine of 0.999, the lowest was {cosine:.5f}")
    where = torch.cuda.get_device_name() if is_gpu else f"{os.cpu_count()} cores"
    quality = {"lowest_cosine": round(cosine, 5), "images": number, "batch_size": batch, "loop_workers": best}
    ours_, loop_, alone_ = map(statistics.median, (mine, theirs, pace))
    line(
        f"embed {name}, {where}, against a timm loop",
        ours_,
        loop_,
        1.0,
        quality,
        "from stored bytes to written vectors",
    )
    line(
        f"embed {name}, {where}, against the model alone",
        ours_,
        alone_,
        0.9 if is_gpu else None,
        quality,
        "the data path",
    )
    if is_gpu and name.startswith("vit_huge_patch14"):
        peak = matrix_tflops()
        share = {"matrix_tflops": round(peak, 1), "tflops": round(ours_ * VIT_H_TFLOP, 1)}
        line("share of the matrix-product rate", ours_, peak / VIT_H_TFLOP, 0.6, share, "0.334 TFLOP an image")


if __name__ == "__main__":
    main()
