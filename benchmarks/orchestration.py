"""What spreading the work costs: simulated shards that sleep, through Prefect and the task runner, against sleep alone.

    .venv/bin/python benchmarks/orchestration.py [--quick] [--runner local|ray]

2,000 shards of 10 s (10,000 images at 1,000 images/s) on 64 workers; with `ray` shards of 5 s on 32 processes of
this machine. Counted: wall time beyond that of the sleeping, which is that of the worker with most shards; and how the
memory of the flow's process grows between the first tenth and the end.
"""

import argparse
import json
import os
import sys
import time

from measuring import memory_mb
from prefect import flow

from lvd.flows import dispatch, pool
from lvd.flows.group import call
from lvd.flows.recipe import Compute
from lvd.flows.server import prefect_server
from lvd.tests.sleeping import sleep

TARGET = 0.05  # of the wall time
SHARDS, QUICK_SHARDS = 2000, 200
WORKERS = {"local": (64, 10.0), "ray": (32, 5.0)}  # how many, and the seconds of a shard


def spread(number: int, seconds: float, compute: Compute) -> dict[str, float]:
    """The wall time of so many sleeping shards, and the memory of this process in MB at a tenth and at the end."""
    memory = []

    @flow(task_runner=pool.task_runner(compute), persist_result=False, validate_parameters=False)
    def sleeping() -> float:
        began = time.perf_counter()
        calls = (call(sleep, place, seconds) for place in range(number))
        seen = set()
        for outcome in dispatch.outcomes(calls, compute, "screen", "cpu", number):
            assert outcome.error is None
            seen.add(outcome.value[0])
            memory.append(memory_mb(os.getpid()))
        assert seen == set(range(number))
        return time.perf_counter() - began

    wall = sleeping()
    return {"wall_s": wall, "memory_at_a_tenth_mb": memory[number // 10], "memory_at_the_end_mb": memory[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="200 shards")
    parser.add_argument("--runner", choices=["local", "ray"], default="local")
    options = parser.parse_args()
    number = QUICK_SHARDS if options.quick else SHARDS
    workers, seconds = WORKERS[options.runner]
    compute = Compute(runner=options.runner, cpu_workers=workers, gpus=0)
    with prefect_server(), pool.cluster(compute):
        spread(2 * workers, 0.1, compute)  # starts the processes
        found = spread(number, seconds, compute)
    least = -(-number // workers) * seconds
    overhead = found["wall_s"] / least - 1
    row = {
        "name": f"orchestration, {options.runner}, {number} shards of {seconds:g} s on {workers} workers",
        "ours": round(found["wall_s"], 1),
        "peer": round(least, 1),
        "unit": "s",
        "ratio": round(1 + overhead, 4),
        "target": 1 + TARGET,
        "met": overhead <= TARGET,
        "quality": {name: round(value) for name, value in found.items() if name != "wall_s"},
        "counted": "wall time of the flow against the sleeping alone, of the worker with most of it",
    }
    sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
