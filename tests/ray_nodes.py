"""A run of the miniature web on a Ray cluster of two nodes of one CPU, the second of which is killed again and again.

    python -m lvd.tests.ray_nodes ROOT FOLDER PORT STAGE...

The second node gets SIGKILL as soon as the first shard of each named stage is done, and a fresh one joins. Prints one
JSON line: the exit code, the stages in which a node died, the shards that were there when one died and were written
again, the nodes that shards name, and what the run said. Run it in a network and a process namespace of its own
(`in_own_namespace`): Ray's ports are fixed, and nothing may be left.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from lvd.tests.running import LVD, environment

SETTLED = ("data-", "rejects-")


def in_own_namespace(command: list[str]) -> list[str]:
    """The command in a network, PID and mount namespace of its own, where all that it starts ends with it."""
    inside = f"hostname localhost; ip link set lo up; exec {shlex.join(command)}"
    return ["unshare", "-nupf", "--mount-proc", "--kill-child=KILL", "sh", "-c", inside]


def written(root: Path) -> dict[str, int]:
    """Name of every shard on storage → when it was written."""
    files = (path for path in root.rglob("*.arrow") if path.name.startswith(SETTLED) and ".tmp" not in path.parts)
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in files}


def main() -> None:
    from ray.cluster_utils import Cluster

    root, folder, port, *stages = Path(sys.argv[1]), *sys.argv[2:]
    quick = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "_system_config": quick},
    )
    node = cluster.add_node(num_cpus=1)
    settings = {
        "compute.runner": "ray", "compute.address": cluster.address, "compute.gpus": 0,
        "miniature.folder": folder, "miniature.port": port,
    }  # fmt: skip
    command = [str(LVD), "run", "mini", "--root", str(root)]
    command += [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    died, again, nodes, said = [], [], set(), []
    with subprocess.Popen(
        command, env=environment(root.parent / "prefect"), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as run:
        for line in run.stderr:
            said.append(line.rstrip())
            stage = line.split(" ", 2)[-1].partition("/")[0]
            if '"node"' in line:
                nodes.add(json.loads(line[line.index("{") :])["node"])
            if stage in stages and stage not in died:
                died.append(stage)
                there = written(root)
                os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
                node = cluster.add_node(num_cpus=1)
                again.append(there)
    now = written(root)
    result = {
        "code": run.returncode,
        "died": died,
        "again": sorted({name for there in again for name, when in there.items() if now.get(name) != when}),
        "nodes": sorted(nodes),
        "said": said[-40:],
    }
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()
    os._exit(0)  # the namespace takes the cluster with it


if __name__ == "__main__":
    main()
