"""The neighbour graph through cells against the exact join: speed, recall, and what is removed.

    python benchmarks/neighbours.py [--rows 1000000] [--whole-rows 200000] [--quick]

Seeded clustered unit vectors of 512 values in float16 shards, three tenths of them copies in planted groups, the
largest of them a 209th of all rows; edges are pairs above 0.6. Ours is all that lies between descriptors and edges:
cells fitted, probes found, the recall of seeded queries certified, cells scored, on two threads. The peer is our exact
join, which uses symmetry: some of its shards, seeded, for the whole of it (`counted` says how many), and against plain
matrix products of the same tiles. With --whole-rows both graphs are made whole, and the rows that go are compared.
Recall is that of other seeded rows than those that were certified, answered by plain products in float64.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from lvd.infra.committing import commit
from lvd.infra.series import Series
from lvd.infra.shards import ShardRef, StageDir, read_table
from lvd.infra.writing import write_shard
from lvd.tasks import neighbours, schemas
from lvd.tasks.algorithms import cells, graph, pairs
from lvd.tasks.models.engine import vector_column
from lvd.tasks.neighbours import Cells
from lvd.tasks.recall import Recall, Search

DIM, FLOOR, K = 512, 0.6, 64
ROWS_PER_SHARD = 20_000
CONCEPTS, POPULARITY = 2000, 0.7  # the k-th one holds a share like k to the power of -POPULARITY
COPIES, LARGEST, TAIL = 0.3, 1 / 209, 0.76  # of the rows; the k-th group is LARGEST x k to the power of -TAIL
WORKERS = 2
EXACT_TASKS = 3
ASKED = 1000  # rows whose neighbours are looked up again
CHECKED_EDGES = 200_000
SEED = 0


def clustered(num_rows: int, rng: np.random.Generator) -> np.ndarray:
    """(n, DIM) float16 unit rows: pictures around concepts, some of them popular, and copies of some of them."""
    sizes = np.maximum((num_rows * LARGEST * np.arange(1, num_rows) ** -TAIL).astype(int), 1)
    sizes = sizes[: np.searchsorted(np.cumsum(sizes), num_rows * COPIES)]
    num_own = num_rows - int(sizes.sum())
    centres = unit(rng.standard_normal((CONCEPTS, DIM), dtype=np.float32))
    popularity = np.arange(1, CONCEPTS + 1) ** -POPULARITY
    concept = rng.choice(CONCEPTS, num_own, p=popularity / popularity.sum())
    rows = np.empty((num_rows, DIM), dtype=np.float16)
    for part in blocks(0, num_own):
        rows[part] = beside(centres[concept[part]], rng.uniform(0.2, 0.6, len(concept[part])), rng)
    originals = np.repeat(np.arange(len(sizes)), sizes)
    for part in blocks(0, len(originals)):
        own = slice(num_own + part.start, num_own + part.stop)
        rows[own] = beside(rows[originals[part]].astype(np.float32), rng.uniform(0.72, 1, own.stop - own.start), rng)
    return rows[rng.permutation(num_rows)]


def blocks(start: int, stop: int) -> list[slice]:
    return [slice(first, min(first + 65_536, stop)) for first in range(start, stop, 65_536)]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def beside(rows: np.ndarray, similarity: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Unit rows with about these similarities to the given ones, in random directions from them."""
    share = similarity.astype(np.float32)[:, None]
    noise = unit(rng.standard_normal(rows.shape, dtype=np.float32))
    return unit(share * rows + np.sqrt(1 - share**2) * noise).astype(np.float16)


def described(root: str, rows: np.ndarray) -> list[ShardRef]:
    target = StageDir(root=root, stage="descriptors", fingerprint="a")
    count = -(-len(rows) // ROWS_PER_SHARD)
    for ref in target.planned(count):
        first = ref.index * ROWS_PER_SHARD
        mine = rows[first : first + ROWS_PER_SHARD]
        with write_shard(ref, schemas.vectors(DIM), {}) as shard:
            values = pa.FixedSizeListArray.from_arrays(pa.array(mine.ravel()), DIM)
            numbers = np.arange(first, first + len(mine))
            ids = pa.array([f"{n:032x}" for n in numbers.tolist()])
            shard.keep_table(pa.Table.from_arrays([pa.array(numbers), ids, values], schema=schemas.vectors(DIM)))
    commit(target, count, config={}, inputs={})
    return target.shards()


def made(root: str, stage: str, count: int, task: Any) -> list[ShardRef]:
    """The shards of a stage, WORKERS at once."""
    target = StageDir(root=root, stage=stage, fingerprint="a")
    with ThreadPoolExecutor(WORKERS) as workers:
        list(workers.map(task, target.planned(count)))
    commit(target, count, config={}, inputs={})
    return target.shards()


def series(refs: list[ShardRef]) -> Series:
    """The shards of one directory, as they travel."""
    stage, name = refs[0].directory.split("/")
    return Series.of([StageDir(root=refs[0].root, stage=stage, fingerprint=name)])


def through_cells(root: str, pool: list[ShardRef]) -> tuple[list[ShardRef], Recall, dict[str, float]]:
    """The edges, what they were certified for, and seconds by step."""
    search, total = Search(), sum(ref.rows for ref in pool)
    seconds, started = {}, time.perf_counter()

    def lap(step: str) -> None:
        seconds[step] = round(time.perf_counter() - started - sum(seconds.values()), 1)

    number = cells.usual_number(total)
    (centroids,) = made(root, "cells", 1, lambda ref: neighbours.fit_cells.fn(series(pool), ref, number, SEED))
    lap("fit")
    probes = made(
        root,
        "probes",
        len(pool),
        lambda ref: neighbours.probe_shard.fn(
            pool[ref.index], centroids, ref, max_probes=search.max_probes, device="cpu"
        ),
    )
    of = Cells(centroids=centroids, descriptors=series(pool), probes=series(probes))
    lap("probe")
    (asked,) = made(root, "queries", 1, lambda ref: neighbours.draw_queries.fn(of, ref, search.recall_queries, SEED))
    truth = made(
        root,
        "truth",
        len(pool),
        lambda ref: neighbours.true_pairs_shard.fn(asked, of, ref, min_similarity=FLOOR, device="cpu"),
    )
    recall = neighbours.certified(truth, asked.rows, search, min_similarity=FLOOR, seed=SEED)
    lap("certify")
    edges = made(
        root,
        "edges",
        cells.num_groups(total),
        lambda ref: neighbours.cells_group.fn(of, ref, probes=recall.probes, min_similarity=FLOOR, k=K, device="cpu"),
    )
    lap("score")
    return edges, recall, seconds


def exact_edges(root: str, pool: list[ShardRef], only: list[int] | None = None) -> tuple[list[ShardRef], float]:
    """The edges of the exact join, or of some of its tasks, and the seconds that they took."""
    target = StageDir(root=root, stage="exact", fingerprint="a" if only is None else "some")
    asked = [ref for ref in target.planned(len(pool)) if only is None or ref.index in only]
    started = time.perf_counter()
    options = {"min_similarity": FLOOR, "k": K, "device": "cpu", "is_pool": True}
    with ThreadPoolExecutor(WORKERS) as workers:
        refs = list(workers.map(lambda ref: neighbours.exact_shard.fn(series(pool), None, ref, **options), asked))
    return refs, time.perf_counter() - started


def products_s(rows: np.ndarray, num_products: int) -> float:
    """Seconds of plain float32 products of as many rows against rows, in the tiles of the join."""
    left, right = (torch.from_numpy(rows[:n].astype(np.float32)) for n in (pairs.LEFT_TILE, pairs.RIGHT_TILE))
    left @ right.T
    tiles = max(1, min(200, num_products // (len(left) * len(right))))
    started = time.perf_counter()
    for _ in range(tiles):
        left @ right.T
    return (time.perf_counter() - started) * num_products / (tiles * len(left) * len(right))


def removed(edges: list[ShardRef], num_rows: int) -> np.ndarray:
    """(n,) bool: rows that are not the first of their component."""
    blocks = (np.column_stack([t["left"].to_numpy(), t["right"].to_numpy()]) for t in map(read_table, edges))
    return graph.connected_components(blocks, num_rows) != np.arange(num_rows)


def recall_of(rows: np.ndarray, of: list[ShardRef], probes: int) -> dict[str, Any]:
    """The share of the pairs of seeded rows, by plain products in float64, of which one row probes the other's cell."""
    rng = np.random.default_rng(SEED + 1)
    asked = np.sort(rng.choice(len(rows), ASKED, replace=False))
    near = np.concatenate([vector_column(read_table(ref, ["probes"]), "probes")[:, :probes] for ref in of])
    found, bands = [], []
    left = rows[asked].astype(np.float64)
    for part in blocks(0, len(rows)):
        similarity = (left @ rows[part].astype(np.float64).T).round(5)
        query, other = np.nonzero(similarity >= FLOOR)
        value, query, other = similarity[query, other], asked[query], other + part.start
        apart = query != other
        value, query, other = value[apart], query[apart], other[apart]
        is_near = (near[query] == near[other][:, :1]).any(axis=1) | (near[other] == near[query][:, :1]).any(axis=1)
        found.append(is_near)
        bands.append(np.floor(value / 0.05 + 1e-6) * 0.05)
    hits, band = np.concatenate(found), np.concatenate(bands)
    return {
        "pairs": len(hits),
        "recall": round(float(hits.mean()), 5),
        "by_similarity": {f"{b:.2f}": round(float(hits[band == b].mean()), 4) for b in np.unique(band)},
    }


def false_edges(rows: np.ndarray, edges: list[ShardRef]) -> int:
    """Of some seeded edges, those whose similarity is another one in float64."""
    table = pa.concat_tables([read_table(ref) for ref in edges])
    left, right, similarity = (table[name].to_numpy() for name in schemas.EDGES.names)
    some = np.random.default_rng(SEED).choice(len(left), min(CHECKED_EDGES, len(left)), replace=False)
    wrong = 0
    for part in np.array_split(some, 50):
        product = np.einsum("nd,nd->n", rows[left[part]].astype(np.float64), rows[right[part]].astype(np.float64))
        wrong += int((product.round(5).astype(np.float32) != similarity[part]).sum())
    return wrong


def line(name: str, ours: float, peer: float, unit_: str, target: float, ratio: float, **told: Any) -> str:
    row = {
        "name": f"neighbours/{name}", "ours": ours, "peer": peer, "unit": unit_, "ratio": round(ratio, 4),
        "target": target, "met": ratio >= target, **told,
    }  # fmt: skip
    return json.dumps(row)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--whole-rows", type=int, default=200_000, help="of which the exact graph is made whole")
    parser.add_argument("--quick", action="store_true", help="200,000 rows, 50,000 whole")
    options = parser.parse_args()
    num, whole = (200_000, 50_000) if options.quick else (options.rows, options.whole_rows)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        rows = clustered(num, np.random.default_rng(SEED))
        pool = described(f"{folder}/large", rows)
        warm_up(f"{folder}/warm", rows)
        edges, recall, seconds = through_cells(f"{folder}/large", pool)
        ours_s = sum(seconds.values())
        only = np.linspace(0, len(pool) - 1, min(EXACT_TASKS, len(pool))).astype(int).tolist()
        _, some_s = exact_edges(f"{folder}/large", pool, only)
        num_products = sum(pool[i].rows * sum(r.rows for r in neighbours.half_of(pool, i)) for i in only)
        plain_s = products_s(rows, num_products)
        exact_s = some_s * num * (num + ROWS_PER_SHARD) / 2 / num_products
        probes = StageDir(root=f"{folder}/large", stage="probes", fingerprint="a").shards()
        checked = recall_of(rows, probes, recall.probes)
        wrong = false_edges(rows, edges)
        counted = f"{num} x {DIM}, {sum(r.rows for r in edges)} edges kept; exact: {len(only)} of {len(pool)} tasks"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        quality = {"seconds": seconds, "certified": recall.model_dump(), "peak_mb": peak}
        lines += [
            line(
                "speed",
                round(ours_s, 1),
                round(exact_s, 1),
                "s",
                15,
                exact_s / ours_s,
                quality=quality,
                counted=counted,
            ),
            line("recall", checked["recall"], 1, "share", 0.99, checked["recall"], quality=checked, counted=counted),
            line("false_edges", wrong, 0, "edges", 1, float(wrong == 0), counted=f"of {CHECKED_EDGES}"),
            line("exact_rate", round(some_s, 1), round(plain_s, 1), "s", 0.7, plain_s / some_s, counted=counted),
        ]
        rows = clustered(whole, np.random.default_rng(SEED))
        pool = described(f"{folder}/whole", rows)
        edges, recall, seconds = through_cells(f"{folder}/whole", pool)
        every, exact_s = exact_edges(f"{folder}/whole", pool)
        ours, exact = removed(edges, whole), removed(every, whole)
        quality = {
            "seconds": seconds, "exact_s": round(exact_s, 1), "removed_by_ours_only": int((ours & ~exact).sum()),
            "certified": recall.model_dump(),
        }  # fmt: skip
        share = (ours & exact).sum() / exact.sum()
        told = {"quality": quality, "counted": f"{whole} x {DIM}, both graphs whole"}
        lines.append(line("removals", int(ours.sum()), int(exact.sum()), "rows", 0.99, float(share), **told))
    sys.stdout.write("\n".join(lines) + "\n")
    return 0 if all(json.loads(found)["met"] for found in lines) else 1


def warm_up(root: str, rows: np.ndarray) -> None:
    """Compiles what is compiled at its first call."""
    exact_edges(root, described(root, rows[:2000]))


if __name__ == "__main__":
    sys.exit(main())
