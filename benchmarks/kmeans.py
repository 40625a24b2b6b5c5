"""Seconds per iteration of k-means against its peers, and what stays the same however the rows are cut.

    .venv/bin/python benchmarks/kmeans.py [--quick] [--iterations N] [--rounds N] [--environment FOLDER]

Seeded clustered unit vectors of 1,280 values (k = 1,000) and of 256 values (k = 4,096). All sides begin at the same
rows and make as many updates, in turn, several times; the best round of each counts. faiss.Kmeans and the method of
ssl-data-curation (Lloyd with float32 products in chunks and float32 sums, written anew) have the rows in float32; ours
reads float16, from memory and, once more, from shards mapped into memory. scikit-learn's MiniBatchKMeans makes as many
passes over the rows, in an environment of its own, which lasts where --environment names its folder. The rate is told
beside that of `torch.mm` on the same tiles, in turn with every round. Objectives are all counted by ours, on the
centroids that each side ends with. Equal bits: a fit in child processes of one and two threads, and full passes over 1,
8 and 37 shards in each. Large cluster: 2.5 x 10^7 rows of one cluster, whose mean is known.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch and Faiss load: their pools spin against each other

import faiss
import numpy as np
import torch
from measuring import expect, peer_environment

from lvd.tasks.algorithms import kmeans
from lvd.tasks.algorithms.assignment import CENTROID_TILE, ROW_TILE

SHARDS = 8
SHARDINGS = (1, 8, 37)
CHUNK = 4096  # rows of a step of the peers that leave it open
SEED = 0
MINIBATCH = """
import json, sys, time
import numpy as np
import sklearn
from sklearn.cluster import MiniBatchKMeans
rows, start, passes, batch = np.load(sys.argv[1]), np.load(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
rows = rows.astype(np.float32)
model = MiniBatchKMeans(len(start), init=start, n_init=1, batch_size=batch, random_state=0)
began, cpu = time.perf_counter(), time.process_time()
for _ in range(passes):
    for first in range(0, len(rows), batch):
        model.partial_fit(rows[first : first + batch])
spent = time.perf_counter() - began, time.process_time() - cpu
np.save(sys.argv[5], model.cluster_centers_)
print(json.dumps({"wall_s": spent[0], "cpu_s": spent[1], "version": sklearn.__version__}))
"""


class Size(NamedTuple):
    rows: int
    dim: int
    clusters: int
    iterations: int
    rounds: int
    min_share: float  # of the rate of a matrix product

    def __str__(self) -> str:
        return f"{self.rows} x {self.dim}, k = {self.clusters}, {self.iterations} iterations, best of {self.rounds}"


class Took(NamedTuple):
    """Seconds per iteration, and the centroids at the end."""

    wall_s: float
    cpu_s: float
    centroids: np.ndarray | None = None


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def clustered(num_rows: int, dim: int, concepts: int) -> np.ndarray:
    """(n, dim) float16 unit rows around concepts, some of which are popular."""
    rng = np.random.default_rng(SEED)
    centres = unit(rng.standard_normal((concepts, dim), dtype=np.float32))
    popularity = np.arange(1, concepts + 1) ** -0.5
    rows = np.empty((num_rows, dim), dtype=np.float16)
    for first in range(0, num_rows, 65_536):
        part = rows[first : first + 65_536]
        concept = rng.choice(concepts, len(part), p=popularity / popularity.sum())
        noise = unit(rng.standard_normal(part.shape, dtype=np.float32))
        part[:] = unit(0.6 * centres[concept] + 0.8 * noise)
    return rows


def timed(work: Callable[[], np.ndarray | None], iterations: int) -> Took:
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    centroids = work()
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    return Took(wall_s / iterations, cpu_s / iterations, centroids)


def best(rounds: list[Took]) -> Took:
    return min(rounds, key=lambda took: took.wall_s)


def faiss_lloyd(rows: np.ndarray, start: np.ndarray, iterations: int) -> np.ndarray:
    peer = faiss.Kmeans(
        rows.shape[1], len(start), niter=iterations, spherical=True, seed=SEED,
        min_points_per_centroid=1, max_points_per_centroid=len(rows),
    )  # fmt: skip
    peer.train(rows, init_centroids=start)
    return peer.centroids


def float32_lloyd(rows: np.ndarray, start: np.ndarray, iterations: int) -> np.ndarray:
    """What the method of ssl-data-curation does to rows on one device."""
    data, centroids = torch.from_numpy(rows), torch.from_numpy(start)
    for _ in range(iterations):
        sums, counts = torch.zeros_like(centroids), torch.zeros(len(centroids))
        for chunk in data.split(CHUNK):
            nearest = (chunk @ centroids.T).argmax(dim=1)
            sums.index_add_(0, nearest, chunk)
            counts += torch.bincount(nearest, minlength=len(counts))
        means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centroids)
        centroids = torch.nn.functional.normalize(means)
    return centroids.numpy()


def from_shards(paths: list[Path], start: np.ndarray, iterations: int) -> np.ndarray:
    """Full passes over shards that are mapped into memory."""
    centroids = start
    for _ in range(iterations):
        sums = kmeans.pass_over(mapped(paths), centroids, spares=len(centroids))
        kmeans.iteration_of(sums, centroids)
        centroids = kmeans.updated(sums, centroids)
    return centroids


def mapped(paths: list[Path]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(row numbers, vectors) of each shard in turn."""
    first = 0
    for path in paths:
        vectors = np.load(path, mmap_mode="r")
        yield np.arange(first, first + len(vectors)), vectors
        first += len(vectors)


def plain_products(size: Size) -> None:
    """The products of one iteration on the tiles that ours takes, and nothing else."""
    clusters = min(size.clusters, CENTROID_TILE)
    tile, centroids = torch.rand(ROW_TILE, size.dim), torch.rand(clusters, size.dim)
    out = torch.empty(ROW_TILE, clusters)
    for _ in range(size.rows * size.clusters // (ROW_TILE * clusters)):
        torch.mm(tile, centroids.T, out=out)


def minibatch(folder: Path, rows: Path, start: np.ndarray, size: Size, python: Path) -> tuple[Took, str]:
    """scikit-learn's passes over the rows, and its version."""
    np.save(folder / "start.npy", start)
    given = [rows, folder / "start.npy", size.iterations, CHUNK, folder / "centres.npy"]
    done = subprocess.run([python, "-c", MINIBATCH, *map(str, given)], check=True, capture_output=True, text=True)
    told = json.loads(done.stdout)
    centroids = unit(np.load(folder / "centres.npy")).astype(np.float32)
    return Took(told["wall_s"] / size.iterations, told["cpu_s"] / size.iterations, centroids), told["version"]


def objective(paths: list[Path], centroids: np.ndarray) -> float:
    return kmeans.iteration_of(kmeans.pass_over(mapped(paths), centroids, spares=0), centroids).objective


def measured(size: Size, folder: Path, python: Path) -> Iterator[dict[str, Any]]:
    """The lines of one size."""
    rows = clustered(size.rows, size.dim, concepts=2 * size.clusters)
    start = kmeans.start(rows, size.clusters, method="random", seed=SEED)
    np.save(folder / "rows.npy", rows)
    paths = [folder / f"{number}.npy" for number in range(SHARDS)]
    for path, part in zip(paths, np.array_split(rows, SHARDS), strict=True):
        np.save(path, part)
    single = rows.astype(np.float32)
    sides: dict[str, Callable[[], np.ndarray | None]] = {
        "ours": lambda: kmeans.lloyd(rows, start, iterations=size.iterations).centroids,
        "faiss": lambda: faiss_lloyd(single, start, size.iterations),
        "ssl_data_curation": lambda: float32_lloyd(single, start, size.iterations),
        "shards": lambda: from_shards(paths, start, size.iterations),
    }
    warm_up()
    runs: dict[str, list[Took]] = {name: [] for name in (*sides, "products")}
    for _ in range(size.rounds):
        for name, work in sides.items():
            runs[name].append(timed(work, size.iterations))
        runs["products"].append(timed(lambda: plain_products(size), 1))
    took = {name: best(rounds) for name, rounds in runs.items()}
    expect(
        took["ours"].centroids.tobytes() == took["shards"].centroids.tobytes(),
        "centroids from shards must be those from memory, were not",
    )
    took["minibatch"], sklearn = minibatch(folder, folder / "rows.npy", start, size, python)
    found = {name: objective(paths, one.centroids) for name, one in took.items() if one.centroids is not None}
    counted = f"seconds per iteration: {size}; torch {torch.__version__}, {torch.get_num_threads()} threads"
    for name, target, which in (
        ("faiss", 1.0, f"Faiss {version('faiss-cpu')}"),
        ("minibatch", 1.0, f"scikit-learn {sklearn}, seconds per pass, {CHUNK} rows a batch, one run"),
        ("ssl_data_curation", 1.0, f"{CHUNK} rows a chunk"),
    ):
        speed = {
            "objective": [round(found["ours"], 6), round(found[name], 6)],
            "cpu_s": [round(took["ours"].cpu_s, 2), round(took[name].cpu_s, 2)],
        }
        ratio = took[name].wall_s / took["ours"].wall_s
        yield line(
            f"{name}_{size.dim}",
            took["ours"].wall_s,
            took[name].wall_s,
            "s",
            ratio,
            target,
            speed,
            f"{counted}; {which}",
        )
    gain = found["ours"] / found["faiss"]
    yield line(
        f"objective_{size.dim}", found["ours"], found["faiss"], "mean similarity", gain, 0.999, {},
        f"after as many iterations from the same start as Faiss: {size}",
    )  # fmt: skip
    share = took["products"].wall_s / took["ours"].wall_s
    cpu_share = took["products"].cpu_s / took["ours"].cpu_s
    yield line(
        f"sgemm_share_{size.dim}", took["ours"].wall_s, took["products"].wall_s, "s", share, size.min_share,
        {"gflops": round(2 * size.rows * size.dim * size.clusters / took["ours"].wall_s / 1e9),
         "cpu_share": round(cpu_share, 3)},
        f"{counted}; peer: torch.mm of the same tiles alone",
    )  # fmt: skip
    slower = took["ours"].wall_s / took["shards"].wall_s
    yield line(
        f"shards_{size.dim}", took["shards"].wall_s, took["ours"].wall_s, "s", slower, 1 / 1.25,
        {"equal_centroids": True, "cpu_s": [round(took["shards"].cpu_s, 2), round(took["ours"].cpu_s, 2)]},
        f"{counted}; {SHARDS} float16 .npy shards mapped into memory; peer: ours from memory",
    )  # fmt: skip


def warm_up() -> None:
    """Compiles what is compiled at its first call."""
    rows = clustered(2000, 64, concepts=40)
    kmeans.lloyd(rows, kmeans.start(rows, 20, method="random", seed=0), iterations=1)


def digests(path: Path, clusters: int) -> list[str]:
    """Of a fit, and of two full passes and the assignment after it, for each number of shards: a child's work."""
    rows = np.load(path)
    fit = kmeans.fit(rows, num_clusters=clusters, iterations=3, seed=SEED)
    found = []
    for number in SHARDINGS:
        shards = np.array_split(np.random.default_rng(number).permutation(len(rows)), number)
        centroids = fit.centroids
        for _ in range(2):
            parts = (kmeans.pass_over([(some, rows[some])], centroids, spares=clusters) for some in shards)
            centroids = kmeans.updated(kmeans.merged(parts, spares=clusters), centroids)
        cluster_id, similarity = np.empty(len(rows), np.int32), np.empty(len(rows), np.float32)
        for some in shards:
            cluster_id[some], similarity[some] = (column[:, 0] for column in kmeans.assign(rows[some], centroids))
        arrays = fit.centroids, fit.objective, centroids, cluster_id, similarity
        found.append(hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest())
    return found


def same_bits(num_rows: int, folder: Path) -> dict[str, Any]:
    np.save(folder / "bits.npy", clustered(num_rows, 256, concepts=1000))
    found = []
    for threads in ("1", "2"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        command = [sys.executable, __file__, "--digests", str(folder / "bits.npy")]
        found += json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
    return line(
        "same_bits", len(set(found)), None, "hashes", None, 1, {"runs": len(found), "hash": found[0][:12]},
        f"{num_rows} x 256, k = 500: centroids and assignments, {SHARDINGS} shards in any order, 1 and 2 threads",
        met=len(set(found)) == 1,
    )  # fmt: skip


def large_cluster() -> dict[str, Any]:
    """One cluster of 24 x 2^20 rows, three quarters of them (1, 0), the others (0, 1)."""
    size, blocks = 1 << 20, 24
    block = np.zeros((size, 2), dtype=np.float16)
    block[: size * 3 // 4, 0], block[size * 3 // 4 :, 1] = 1, 1
    start = unit(np.array([[1.0, 1.0], [-1.0, -1.0]], dtype=np.float32))
    parts = ((np.arange(i * size, (i + 1) * size), block) for i in range(blocks))
    ours = kmeans.updated(kmeans.pass_over(parts, start, spares=0), start)[0]
    peer = faiss_lloyd(np.tile(block.astype(np.float32), (blocks, 1)), start, 1)[0]
    truth = unit(np.array([[3.0, 1.0]]))[0]
    error = [float(np.degrees(np.arccos(min(1.0, truth @ unit(c[None].astype(np.float64))[0])))) for c in (ours, peer)]
    return line(
        "large_cluster", error[0], error[1], "degrees off", None, 1e-4,
        {"centroids": [ours.round(4).tolist(), peer.round(4).tolist()]},
        f"one update of a cluster of {blocks * size} rows; peer: Faiss {version('faiss-cpu')}",
        met=error[0] <= 1e-4,
    )  # fmt: skip


def line(
    name: str, ours: float, peer: float | None, unit_: str, ratio: float | None, target: float, quality: dict[str, Any],
    counted: str, *, met: bool | None = None,
) -> dict[str, Any]:  # fmt: skip
    return {
        "name": f"kmeans/{name}", "ours": round(ours, 6), "peer": None if peer is None else round(peer, 6),
        "unit": unit_, "ratio": None if ratio is None else round(ratio, 4), "target": target,
        "met": ratio >= target if met is None else met, "quality": quality, "counted": counted,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, help="of every fit")
    parser.add_argument("--rounds", type=int, help="in which each side has its turn")
    parser.add_argument("--quick", action="store_true", help="a fifth of the rows or less, fewer iterations")
    parser.add_argument("--environment", type=Path, help="where scikit-learn is, or will be, installed")
    parser.add_argument("--digests", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.digests:
        sys.stdout.write(json.dumps(digests(options.digests, clusters=500)))
        return 0
    if options.quick:
        sizes = [Size(40_000, 1280, 1000, 2, 2, 0.80), Size(50_000, 256, 4096, 2, 2, 0.65)]
    else:
        sizes = [Size(200_000, 1280, 1000, 10, 3, 0.80), Size(1_000_000, 256, 4096, 5, 2, 0.65)]
    if options.iterations:
        sizes = [size._replace(iterations=options.iterations) for size in sizes]
    if options.rounds:
        sizes = [size._replace(rounds=options.rounds) for size in sizes]
    lines = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = peer_environment(options.environment or folder / "environment", ["scikit-learn"])
        for size in sizes:
            lines += measured(size, folder, python)
        lines += [same_bits(20_000 if options.quick else 100_000, folder), large_cluster()]
    sys.stdout.writelines(json.dumps(found) + "\n" for found in lines)
    return 0 if all(found["met"] for found in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
