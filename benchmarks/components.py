"""Edges per CPU second of one core that `algorithms/graph.py` joins into components, and its memory, beside SciPy's.

    python benchmarks/components.py [--quick]

Edges are drawn with a seed, each between any two nodes, which is the worst case for the caches: the edges of a pool
come in the order of their left image. Every figure is of a process of its own on one thread, after a first call on
three edges, which compiles. Large: 100 M edges over 50 M nodes, drawn block by block, the time of drawing not counted;
the peak memory is that of the whole process. Peer: `scipy.sparse.csgraph.connected_components` with the making of its
matrix, on edges that lie in memory; no figure is given unless both found the same components.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np

from lvd.tasks.algorithms import graph

BLOCK = 1 << 22
MAX_GIB = 4.0
MIN_RATE = 6e6
MIN_RATIO = 3.0


class Measured(NamedTuple):
    """One process. labels: the smallest node of every node's component, where they are to be compared."""

    cpu_s: float
    peak_gib: float  # resident, with the interpreter and its libraries
    labels: np.ndarray | None
    components: int


def drawn(num_edges: int, num_nodes: int, seed: int) -> Iterator[np.ndarray]:
    """The edges in blocks of (BLOCK, 2) int64."""
    for block, start in enumerate(range(0, num_edges, BLOCK)):
        rng = np.random.default_rng(np.random.SeedSequence([seed, block]))
        yield rng.integers(0, num_nodes, (min(BLOCK, num_edges - start), 2), dtype=np.int64)


def ours_streamed(num_edges: int, num_nodes: int) -> Measured:
    """CPU seconds of ours less those of drawing."""
    drawing_s = 0.0

    def blocks() -> Iterator[np.ndarray]:
        nonlocal drawing_s
        source = drawn(num_edges, num_nodes, seed=0)
        while True:
            start = time.process_time()
            block = next(source, None)
            drawing_s += time.process_time() - start
            if block is None:
                return
            yield block

    graph.connected_components(np.array([[0, 1], [1, 2], [0, 2]]), 3)
    start = time.process_time()
    labels = graph.connected_components(blocks(), num_nodes)
    cpu_s = time.process_time() - start - drawing_s
    peak = peak_gib()
    return Measured(cpu_s, peak, None, int(np.count_nonzero(labels == np.arange(num_nodes))))


def ours(num_edges: int, num_nodes: int) -> Measured:
    graph.connected_components(np.array([[0, 1], [1, 2], [0, 2]]), 3)
    edges = np.concatenate(list(drawn(num_edges, num_nodes, seed=1)))
    start = time.process_time()
    labels = graph.connected_components(edges, num_nodes)
    cpu_s = time.process_time() - start
    return Measured(cpu_s, peak_gib(), labels, int(np.count_nonzero(labels == np.arange(num_nodes))))


def scipys(num_edges: int, num_nodes: int) -> Measured:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = np.concatenate(list(drawn(num_edges, num_nodes, seed=1)))
    start = time.process_time()
    matrix = coo_array((np.ones(num_edges, dtype=bool), (edges[:, 0], edges[:, 1])), shape=(num_nodes, num_nodes))
    number, labels = connected_components(matrix, directed=False)
    cpu_s = time.process_time() - start
    return Measured(cpu_s, peak_gib(), graph.first_seen(labels), number)


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30


def alone(side: Callable[[int, int], Measured], num_edges: int, num_nodes: int) -> Measured:
    """What the side measured in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(side, (num_edges, num_nodes))


def rows(large: tuple[int, int], fits: tuple[int, int], rounds: int) -> Iterator[dict[str, Any]]:
    """The lines of the results."""
    runs: dict[Callable[[int, int], Measured], list[Measured]] = {ours: [], scipys: []}
    for _ in range(rounds):
        for side, own in runs.items():
            own.append(alone(side, *fits))
    own, other = (min(found, key=lambda run: run.cpu_s) for found in runs.values())
    if not np.array_equal(own.labels, other.labels):
        raise SystemExit("the components of ours and of SciPy must be the same, were not")
    streamed = min((alone(ours_streamed, *large) for _ in range(rounds)), key=lambda run: run.cpu_s)
    machine = (
        f"CPU seconds of one process, best of {rounds} runs; Python {platform.python_version()}, "
        f"NumPy {np.__version__}, numba {version('numba')}, SciPy {version('scipy')}"
    )
    rates = {name: run_edges / run.cpu_s for name, run_edges, run in (
        ("large", large[0], streamed), ("ours", fits[0], own), ("scipy", fits[0], other)
    )}  # fmt: skip
    yield {
        "name": "components_rate", "ours": round(rates["large"]), "peer": None, "unit": "edges/CPU s",
        "ratio": None, "target": MIN_RATE, "met": rates["large"] >= MIN_RATE,
        "quality": {"edges": large[0], "nodes": large[1], "components": streamed.components},
        "counted": f"{machine}; drawn edges in blocks of {BLOCK}, their drawing not counted",
    }  # fmt: skip
    yield {
        "name": "components_memory", "ours": round(streamed.peak_gib, 3), "peer": None, "unit": "GiB",
        "ratio": None, "target": MAX_GIB, "met": streamed.peak_gib <= MAX_GIB,
        "quality": {"edges": large[0], "nodes": large[1]},
        "counted": "peak resident memory of the process of components_rate, the blocks of edges included",
    }  # fmt: skip
    yield {
        "name": "components/scipy", "ours": round(rates["ours"]), "peer": round(rates["scipy"]),
        "unit": "edges/CPU s", "ratio": round(rates["ours"] / rates["scipy"], 2), "target": MIN_RATIO,
        "met": rates["ours"] / rates["scipy"] >= MIN_RATIO,
        "quality": {
            "edges": fits[0], "nodes": fits[1], "components": own.components, "labels_equal": True,
            "peak_gib": [round(own.peak_gib, 3), round(other.peak_gib, 3)],
        },
        "counted": f"{machine}; edges in memory, SciPy's matrix included; the ratio to be at least {MIN_RATIO:g}",
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the edges and nodes, once")
    options = parser.parse_args()
    part, rounds = (20, 1) if options.quick else (1, 2)
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = "1"  # of the processes to come
    lines = list(rows((100_000_000 // part, 50_000_000 // part), (10_000_000 // part, 10_000_000 // part), rounds))
    sys.stdout.writelines(json.dumps(line) + "\n" for line in lines)
    return 0 if all(line["met"] for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
