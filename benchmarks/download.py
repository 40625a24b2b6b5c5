"""Downloading against img2dataset: the same photographs from the same server, kept as they are or re-encoded.

    python benchmarks/download.py [--photos DIR] [--environment DIR] [--quick]

5,000 URLs of one nginx on loopback (where there is none, of a small asyncio server), 160 photographs under many names;
the server's CPU time is not counted. Each side runs as a whole process with its children, the sides in turn, both with
their bytecode at hand; of both the best run counts, of img2dataset the best of all settings tried: two processes with
32, 64 or 128 threads each, or one; no EXIF; and where nothing is re-encoded also without writing anything (`dummy`),
which ours always does. Ours is a node of one or two workers, a process each, which are handed their manifest shards and
their schema as in a run. Before a figure is printed, every run was found to have every image, and both sides' outputs
were compared: the same SHA-256 where nothing is re-encoded, else the same sizes and nearly the same pixels.
`after_start` leaves out what a run of 64 URLs takes, as a run without end would.
"""

import argparse
import hashlib
import io
import json
import math
import pickle
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from measuring import Run, adopt_orphans, expect, peer_environment, run_whole
from PIL import Image
from serving import served

from lvd.infra.shards import ShardRef, StageDir, read_batches
from lvd.infra.writing import with_features
from lvd.tasks import schemas, sources
from lvd.tasks.fetching import Config
from lvd.tasks.hosts import Politeness
from lvd.tests.tasks import planted

PEER = "img2dataset==1.47.0"
PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data" / "photos"
FEW = 64  # URLs of a run that shows what the start takes
WORKERS = (1, 2)  # of ours: what is tried
CONNECTIONS = 64  # of each
JPEG_QUALITY = 95
MIN_PSNR_DB = 30

NODE = """
import pickle, sys
from concurrent.futures import ThreadPoolExecutor
from lvd.tasks.fetching import fetch_apart
with open(sys.argv[1], "rb") as file:
    shards = pickle.load(file)
with ThreadPoolExecutor(len(shards)) as workers:
    list(workers.map(lambda shard: fetch_apart(*shard), shards))
"""


class Setting(NamedTuple):
    """How img2dataset is run."""

    output_format: str
    processes: int
    threads: int

    def __str__(self) -> str:
        return f"{self.output_format} {self.processes}x{self.threads}"


class Target(NamedTuple):
    """What a row must reach."""

    figure: str  # of a run
    unit: str
    value: float
    of: Literal["ours", "ratio"]
    is_ceiling: bool = False

    def best(self, runs: Iterable[Run]) -> float:
        return (min if self.is_ceiling else max)(getattr(run, self.figure) for run in runs)

    def is_met(self, ours: float, peer: float) -> bool:
        reached = ours if self.of == "ours" else ours / peer
        return reached <= self.value if self.is_ceiling else reached >= self.value


class Mode(NamedTuple):
    """What both sides do with an image."""

    name: str
    short_edge_px: int | None  # None: nothing
    tried: list[Setting]  # of img2dataset; the first with Parquet is the one that is compared
    targets: list[Target]


THRIFT, SPEED, MEMORY = ("per_cpu_s", "images/CPU s"), ("per_s", "images/s"), ("peak_mb", "MB")
MODES = [
    Mode(
        "download_original",
        None,
        [Setting("parquet", 2, 64), *(Setting("dummy", n, k) for n, k in ((1, 64), (2, 64), (2, 32), (2, 128)))],
        [Target(*THRIFT, 1000, "ours"), Target(*SPEED, 4, "ratio"), Target(*MEMORY, 1, "ratio", is_ceiling=True)],
    ),
    Mode(
        "download_reencoded",
        256,
        [Setting("parquet", n, k) for n, k in ((2, 64), (1, 64), (2, 32), (2, 128))],
        [Target(*THRIFT, 1.5, "ratio"), Target(*SPEED, 1, "ratio"), Target(*MEMORY, 1, "ratio", is_ceiling=True)],
    ),
]
QUICKLY_TRIED = 2  # settings of each mode


class Stored(NamedTuple):
    """What a side keeps of one URL."""

    sha256: str
    size: tuple[int, int]
    data: bytes  # of the first name of every photograph only


def photographs(folder: Path | None) -> tuple[list[bytes], str]:
    """The files to serve, and what they are."""
    if folder is None:
        photos, kind = [drawn(number) for number in range(160)], "drawn JPEGs"
    else:
        photos, kind = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))], "photographs"
    expect(bool(photos), f"--photos must name a folder with photographs (*.jpg), was {folder}")
    return photos, f"{len(photos)} {kind} of {sum(map(len, photos)) / len(photos) / 1000:.0f} kB"


def drawn(number: int) -> bytes:
    """A JPEG of 500 x 375 pixels and about 110 kB: smooth colours and noise."""
    rng = np.random.default_rng([0, number])
    colours = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(colours.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.float64)
    file = io.BytesIO()
    noisy = (smooth + rng.normal(0, 20, (375, 500, 1))).clip(0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(file, "JPEG", quality=92)
    return file.getvalue()


def peer_python(folder: Path) -> Path:
    """The Python of an environment with img2dataset."""
    found, needed = sys.version.split()[0], f"{PEER} needs a Python below 3.13, which still has imghdr"
    there = (folder / "bin" / "python").exists() or sys.version_info < (3, 13)
    expect(there, f"{needed}, was {found}: install it in one, and name that with --environment")
    return peer_environment(folder, [PEER])


def peer_versions(python: Path) -> dict[str, str]:
    """The libraries that do the peer's work."""
    names = ["img2dataset", "opencv-python-headless", "albumentations", "pyarrow"]
    script = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {names}}}))"
    return json.loads(subprocess.run([str(python), "-c", script], check=True, capture_output=True, text=True).stdout)


def run_ours(folder: Path, urls: list[str], short_edge_px: int | None, workers: int) -> tuple[Run, list[ShardRef]]:
    """A run of ours, and the shards that it wrote."""
    (folder / "urls.txt").write_text("\n".join(urls))
    (partition,) = sources.partitions(sources.Urls(path=str(folder / "urls.txt")))
    manifest = planted.manifest(str(folder), partition, rows_per_shard=math.ceil(len(urls) / workers))
    stage = StageDir(root=str(folder), stage="download", fingerprint="benchmark")
    config = Config(
        connections=CONNECTIONS,
        politeness=Politeness(connections_per_host=workers * CONNECTIONS),
        short_edge_px=short_edge_px,
        quality=JPEG_QUALITY,
        allow_loopback=True,
    )
    schema, targets = with_features(schemas.IMAGES), list(stage.planned(len(manifest)))
    shards = [(source, target, schema, config, workers) for source, target in zip(manifest, targets, strict=True)]
    (folder / "shards.pickle").write_bytes(pickle.dumps(shards))
    run = run_whole([sys.executable, "-c", NODE, str(folder / "shards.pickle")], folder, len(urls))
    rows = [stage.storage.read_json(target.name("account", "json"))["rows"] for target in targets]
    expect(sum(rows) == len(urls), f"ours must have {len(urls)} images, was {rows}")
    return run, targets


def run_peer(folder: Path, python: Path, urls: list[str], short_edge_px: int | None, setting: Setting) -> Run:
    """A run of img2dataset, which writes to `out` in the folder."""
    (folder / "urls.txt").write_text("\n".join(urls))
    options = {
        "url_list": folder / "urls.txt",
        "input_format": "txt",
        "output_folder": folder / "out",
        "output_format": setting.output_format,
        "processes_count": setting.processes,
        "thread_count": setting.threads,
        "number_sample_per_shard": math.ceil(len(urls) / setting.processes),
        "compute_hash": "sha256",
        "extract_exif": False,
    }
    if short_edge_px is None:
        options["disable_all_reencoding"] = True
    else:
        options |= {"image_size": short_edge_px, "resize_mode": "keep_ratio", "resize_only_if_bigger": True}
        options["encode_quality"] = JPEG_QUALITY
    command = [str(python.with_name("img2dataset")), *(f"--{name}={value}" for name, value in options.items())]
    run = run_whole(command, folder, len(urls))
    found = sum(json.loads(path.read_text())["successes"] for path in (folder / "out").glob("*_stats.json"))
    expect(found == len(urls), f"img2dataset ({setting}) must have {len(urls)} images, was {found}")
    return run


def stored_by_ours(shards: list[ShardRef], whole: set[str]) -> dict[str, Stored]:
    """What ours keeps, by URL."""
    rows = (row for ref in shards for batch in read_batches(ref, ["url", "image"]) for row in batch.to_pylist())
    return {row["url"]: stored(row["image"]["bytes"], row["url"] in whole) for row in rows}


def stored_by_peer(folder: Path, whole: set[str]) -> dict[str, Stored]:
    """What img2dataset keeps in its Parquet files, by URL."""
    files = [pq.ParquetFile(path) for path in folder.glob("*.parquet")]
    rows = (
        row for file in files for batch in file.iter_batches(256, columns=["url", "jpg"]) for row in batch.to_pylist()
    )
    return {row["url"]: stored(row["jpg"], row["url"] in whole) for row in rows}


def stored(data: bytes, is_kept: bool) -> Stored:
    with Image.open(io.BytesIO(data)) as image:
        return Stored(hashlib.sha256(data).hexdigest(), image.size, data if is_kept else b"")


def compared(
    ours: dict[str, Stored], peer: dict[str, Stored], urls: list[str], photos: list[bytes], is_reencoded: bool
) -> dict[str, Any]:
    """How the outputs agree. Ends the benchmark where they do not."""
    expect(set(ours) == set(peer) == set(urls), f"{len(ours)} and {len(peer)} URLs, must be {len(urls)}")
    if not is_reencoded:
        served = [hashlib.sha256(photo).hexdigest() for photo in photos]
        for i, url in enumerate(urls):
            found = {ours[url].sha256, peer[url].sha256}
            expect(found == {served[i % len(photos)]}, f"{url}: bytes must be those that were served")
        return {"equal_sha256": len(urls)}
    apart = [max(abs(a - b) for a, b in zip(ours[url].size, peer[url].size, strict=True)) for url in urls]
    expect(max(apart) <= 1, f"sizes must differ by at most 1 px, was {max(apart)}")
    psnr = [psnr_db(ours[url].data, peer[url].data) for url in urls[: len(photos)]]
    expect(min(psnr) >= MIN_PSNR_DB, f"PSNR must be at least {MIN_PSNR_DB} dB, was {min(psnr):.1f}")
    found = {"images": len(psnr), "min": round(min(psnr), 1), "median": round(statistics.median(psnr), 1)}
    return {"equal_sizes": apart.count(0), "within_1_px": apart.count(1), "psnr_db": found}


def psnr_db(ours: bytes, peer: bytes) -> float:
    """Of one picture against the other, which is brought to its size."""
    left, right = (Image.open(io.BytesIO(data)).convert("RGB") for data in (ours, peer))
    right = right if right.size == left.size else right.resize(left.size, Image.Resampling.BICUBIC)
    error = np.mean((np.asarray(left, dtype=np.float64) - np.asarray(right, dtype=np.float64)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-3)))


class Contest:
    """The runs of both sides in one mode."""

    def __init__(self, base: Path, python: Path, mode: Mode, urls: list[str], photos: list[bytes]) -> None:
        self._base, self._python, self._mode, self._urls, self._photos = base, python, mode, urls, photos
        self.ours: dict[int, list[Run]] = {workers: [] for workers in WORKERS}
        self.peer: dict[Setting, list[Run]] = {}
        self.quality: dict[str, Any] = {}

    def run(self, tried: list[Setting], times: int) -> None:
        """Every setting once; as often as ours, the one that is compared and those that do best."""
        self._few_by_ours(), self._few_by_peer(tried[0])  # leave their bytecode
        px, whole = self._mode.short_edge_px, set(self._urls[: len(self._photos)])
        for number in range(times):
            for workers, runs in self.ours.items():
                with tempfile.TemporaryDirectory(dir=self._base) as folder:
                    run, shards = run_ours(Path(folder), self._urls, px, workers)
                    runs.append(run)
                    ours = {} if self.quality else stored_by_ours(shards, whole)
            for setting in tried if number == 0 else [s for s in tried if s in {tried[0], *self._best_settings()}]:
                with tempfile.TemporaryDirectory(dir=self._base) as folder:
                    run = run_peer(Path(folder), self._python, self._urls, px, setting)
                    self.peer.setdefault(setting, []).append(run)
                    if setting == tried[0] and not self.quality:
                        peer = stored_by_peer(Path(folder) / "out", whole)
                        self.quality = compared(ours, peer, self._urls, self._photos, px is not None)

    def _best_settings(self) -> list[Setting]:
        """The thriftiest and the fastest."""
        return [max(self.peer, key=lambda s: target.best(self.peer[s])) for target in self._mode.targets[:2]]

    def run_few(self) -> None:
        """What the start takes, and what a run without end would do per CPU second."""
        thriftiest, _ = self._best_settings()
        sides = {"ours, 1 worker": (self.ours[1], self._few_by_ours())}
        for setting in dict.fromkeys([thriftiest, next(iter(self.peer))]):
            sides[str(setting)] = self.peer[setting], self._few_by_peer(setting)
        self.quality["after_start"] = {
            side: {
                "start_cpu_s": round(few.cpu_s, 2),
                "per_cpu_s": round((len(self._urls) - FEW) / (min(run.cpu_s for run in runs) - few.cpu_s)),
            }
            for side, (runs, few) in sides.items()
        }

    def _few_by_ours(self) -> Run:
        with tempfile.TemporaryDirectory(dir=self._base) as folder:
            return run_ours(Path(folder), self._urls[:FEW], self._mode.short_edge_px, 1)[0]

    def _few_by_peer(self, setting: Setting) -> Run:
        with tempfile.TemporaryDirectory(dir=self._base) as folder:
            return run_peer(Path(folder), self._python, self._urls[:FEW], self._mode.short_edge_px, setting)

    def rows(self, told: str) -> Iterator[dict[str, Any]]:
        """The lines of the results, as DESIGN.md section 8 says."""
        ours = {f"ours, {n} worker{'s' if n > 1 else ''}": runs for n, runs in self.ours.items()}
        runs = {**ours, **{str(setting): runs for setting, runs in self.peer.items()}}
        for target in self._mode.targets:
            ours, peer = (target.best(chain.from_iterable(side.values())) for side in (self.ours, self.peer))
            quality = {side: [round(getattr(run, target.figure), 1) for run in own] for side, own in runs.items()}
            if target.figure == "per_cpu_s":
                quality = {**self.quality, **quality}
            bound = f"{'at most' if target.is_ceiling else 'at least'} {target.value:g}"
            yield {
                "name": f"{self._mode.name}/{target.figure}", "ours": round(ours, 1), "peer": round(peer, 1),
                "unit": target.unit, "ratio": round(ours / peer, 3), "target": target.value,
                "met": target.is_met(ours, peer), "quality": quality,
                "counted": f"{told}; best runs; {target.of} to be {bound}",
            }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=PHOTOS if PHOTOS.is_dir() else None, metavar="DIR")
    parser.add_argument("--environment", type=Path, metavar="DIR", help="where img2dataset is, or is to be installed")
    parser.add_argument("--quick", action="store_true", help="1,000 URLs, fewer settings; the start weighs more")
    options = parser.parse_args()
    adopt_orphans()
    names = [f"{i:05d}.jpg" for i in range(1_000 if options.quick else 5_000)]
    photos, kind = photographs(options.photos)
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        python = peer_python(options.environment or base / "environment")
        versions = ", ".join(f"{name} {version}" for name, version in peer_versions(python).items())
        with served(base / "server", photos, names) as (url, server):
            told = f"{len(names)} URLs of {kind} from {server} on loopback; whole processes; peer: {versions}"
            for mode in MODES:
                contest = Contest(base, python, mode, [f"{url}/{name}" for name in names], photos)
                if options.quick:
                    contest.run(mode.tried[:QUICKLY_TRIED], times=2)
                else:
                    contest.run(mode.tried, times=3)
                    contest.run_few()
                lines += contest.rows(told)
    sys.stdout.writelines(json.dumps(line) + "\n" for line in lines)
    return 0 if all(line["met"] for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
