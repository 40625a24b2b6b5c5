"""A second run of the same recipe against the first, on the miniature web.

    python benchmarks/chain_rerun.py [--times 3] [--quick]

Ours: seconds of the second run; peer: seconds of the first, each a whole process, taken in turn.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from lvd.flows.inquiry import last_run
from lvd.infra.storage import Storage
from lvd.tests.running import data_files, free_port, lvd


def timed(*args: str, home: Path) -> tuple[float, str]:
    """(seconds, what was printed) of `lvd …`."""
    started = time.perf_counter()
    process = lvd(*args, home=home)
    process.check_returncode()
    return time.perf_counter() - started, process.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="once")
    options = parser.parse_args()
    first_s, second_s = [], []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "prefect"
        for number in range(1 if options.quick else options.times):
            root = Path(folder) / str(number)
            args = ("run", "mini", "--root", str(root), "--set", f"miniature.port={free_port()}")
            first_s.append(timed(*args, home=home)[0])
            before = data_files(root)
            seconds, printed = timed(*args, home=home)
            second_s.append(seconds)
            if "nothing was computed" not in printed or data_files(root) != before:
                raise SystemExit("the second run computed something")
        computed = sum(last_run(Storage(str(root)))["computed"].values())
    first, second = statistics.median(first_s), statistics.median(second_s)
    line = {
        "name": "chain_rerun", "ours": round(second, 2), "peer": round(first, 2), "unit": "s",
        "ratio": round(second / first, 3), "target": 0.1, "met": second / first < 0.1,
        "quality": {"shards_computed_first": computed, "shards_computed_second": 0},
        "counted": f"whole processes, median of {len(first_s)}; the miniature web is drawn in the first",
    }  # fmt: skip
    sys.stdout.write(json.dumps(line) + "\n")
    return 0 if line["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
