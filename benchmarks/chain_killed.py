"""Killed and started again: does the miniature run end with the same bytes as one that was left alone?

    python benchmarks/chain_killed.py [--kills 10] [--quick]

Ours: files that differ after that many SIGKILLs at random moments; peer: the run that was left alone.
"""

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

from lvd.infra.storage import TEMPORARY, Storage
from lvd.tests.running import data_files, free_port, killed_runs, lvd


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="three kills")
    options = parser.parse_args()
    kills = 3 if options.quick else options.kills
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        settings = ["--set", f"miniature.port={free_port()}", "--set", f"miniature.folder={base / 'web'}"]
        alone, killed = base / "alone", base / "killed"
        lvd("run", "mini", "--root", str(alone), *settings, home=base / "prefect").check_returncode()
        args = ("run", "mini", "--root", str(killed), *settings)
        lived = killed_runs(*args, home=base / "prefect", kills=kills, longest_s=30, rng=random.Random(options.seed))
        lvd(*args, home=base / "prefect").check_returncode()
        ours, peer = data_files(killed), data_files(alone)
        differ = sorted(name for name in {*ours, *peer} if ours.get(name) != peer.get(name))
        left = [*Storage(str(killed)).names(TEMPORARY), *Storage(str(killed)).names("leases")]
    met = not differ and not left and len(lived) == kills
    line = {
        "name": "chain_killed", "ours": len(differ), "peer": 0, "unit": "files that differ", "ratio": None, "target": 0,
        "met": met, "quality": {"temporary_files_left": len(left), "killed_after_s": [round(s, 1) for s in lived]},
        "counted": f"{len(peer)} files: every Arrow shard, dataset file, fit, card and version",
    }  # fmt: skip
    sys.stdout.write(json.dumps(line) + "\n")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
