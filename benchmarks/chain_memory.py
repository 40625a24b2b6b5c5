"""Peak memory of the chain with about 8 times the images, in shards of the same size.

    python benchmarks/chain_memory.py [--scale 14] [--quick]

Ours: peak resident memory of the run's process with the larger miniature web; peer: with the ordinary one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from lvd.flows.inquiry import last_run
from lvd.infra.storage import Storage
from lvd.tests.running import LVD, environment, free_port


def peak_mb(root: Path, scale: int, home: Path) -> tuple[float, int]:
    """(peak resident memory of the process in MB, candidates) of a miniature run of that scale."""
    settings = [f"miniature.port={free_port()}", f"miniature.scale={scale}", "crawl.rows_per_shard=100"]
    command = [str(LVD), "run", "mini", "--root", str(root), *(word for s in settings for word in ("--set", s))]
    process = subprocess.Popen(command, env=environment(home), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {status}")
    return usage.ru_maxrss / 1024, last_run(Storage(str(root)))["candidates"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--scale", type=int, default=14, help="of the unrelated images; 14 gives 8 times the candidates"
    )
    parser.add_argument("--quick", action="store_true", help="scale 4")
    options = parser.parse_args()
    scale = 4 if options.quick else options.scale
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        peer, few = peak_mb(base / "one", 1, base / "prefect")
        ours, many = peak_mb(base / "more", scale, base / "prefect")
    line = {
        "name": "chain_memory", "ours": round(ours), "peer": round(peer), "unit": "MB", "ratio": round(ours / peer, 3),
        "target": 1.1, "met": ours / peer <= 1.1, "quality": {"candidates": [few, many]},
        "counted": "peak resident memory of the run's process, which draws and serves the miniature web as well",
    }  # fmt: skip
    sys.stdout.write(json.dumps(line) + "\n")
    return 0 if line["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
