"""The files of the node pool: they parse, they name what exists, they publish nothing and hold no secret."""

import importlib
import re
import shlex
import tomllib
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
INFRA = REPOSITORY / "infra"
YAML_FILES = sorted(INFRA.rglob("*.yaml"))
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|AUTH_STRING|ACCESS_KEY|API_KEY")
IMAGES = re.compile(r"^[a-z0-9._-]+(/[a-z0-9._-]+)?:[A-Za-z0-9._-]+$")


def read(name: str) -> Any:
    return yaml.safe_load((INFRA / name).read_text())


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, continued lines joined, comments left out."""
    lines = [line for line in (INFRA / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def targets() -> dict[str, list[tuple[str, str]]]:
    """Stage → its instructions, those of the stages that it starts from first."""
    stages: dict[str, list[tuple[str, str]]] = {}
    for word, rest in instructions():
        if word == "FROM":
            source, name = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()
            stages[name] = current = list(stages.get(source, []))
        else:
            current.append((word, rest))
    return stages


def commands_of(service: dict[str, Any]) -> list[str]:
    """The programs that a service starts; of a shell's script, the first word of every command."""
    command = service.get("command", [])
    if command[:1] != ["sh"]:
        return command[:1]
    parts = re.split(r"[\n;]|&&|\bdo\b", command[-1])
    words = [shlex.split(part)[0:2] for part in parts if part.strip()]
    return [pair[1] if pair[0] == "exec" else pair[0] for pair in words if pair[0] not in ("for", "done")]


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: str(path.relative_to(INFRA)))
def test_every_yaml_file_parses_and_names_no_registry_and_no_address(path: Path) -> None:
    assert list(yaml.safe_load_all(path.read_text()))
    for line in path.read_text().splitlines():
        if found := re.search(r"\bimage: ([^{\s]\S*)", line):
            assert IMAGES.match(found.group(1)), (
                f"{path.name}: an image has a repository, a tag and no registry: {line}"
            )
        for host in re.findall(r"https?://([a-z0-9.-]+)", line):
            inside = ("127.0.0.1", "s3", "prefect", "prefect-server.lvd.svc.cluster.local")
            assert host in inside, f"{path.name}: nothing is downloaded by these files: {line}"


def test_the_deployments_are_flows_in_pools_that_the_readme_names() -> None:
    from prefect import Flow

    deployments = read("prefect.yaml")["deployments"]
    names = set()
    for one in deployments:
        module, _, name = one["entrypoint"].rpartition(".")
        flow = getattr(importlib.import_module(module), name)
        assert isinstance(flow, Flow)
        names.add(f"{flow.name}/{one['name']}")
        assert set(one["parameters"]) <= set(flow.parameters.properties), one["name"]
        assert one["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}, one["name"]
    assert names == {"curate/lvd", "curate/lvd-gpu", "curate/mini", "nightly/lvd"}
    pools = {one["work_pool"]["name"] for one in deployments}
    assert pools == {"lvd-cpu", "lvd-gpu"}
    head = (INFRA / "prefect.yaml").read_text().partition("name: lvd\n")[0]
    assert all(f"prefect work-pool create {pool} --type process" in head for pool in pools)


def test_the_pool_of_one_machine_makes_the_same_work_pools() -> None:
    from lvd.infra import pool

    assert set(pool.POOLS) == {one["work_pool"]["name"] for one in read("prefect.yaml")["deployments"]}
    assert pool.DEPLOYMENTS == INFRA / "prefect.yaml"


def test_services_wait_for_services_that_exist_and_can_be_waited_for() -> None:
    services = read("compose.yaml")["services"]
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            assert other in services, f"{name} waits for {other}"
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[other], f"{name} waits for {other}, which is never healthy"
            else:
                assert services[other]["restart"] == "no", f"{other} never completes"


def test_nothing_is_published_but_on_loopback() -> None:
    for name, service in read("compose.yaml")["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert not {"privileged", "network_mode", "pid"} & set(service), name


def test_every_volume_is_named_and_declared() -> None:
    compose = read("compose.yaml")
    used = {volume.split(":")[0] for service in compose["services"].values() for volume in service.get("volumes", [])}
    assert used == set(compose["volumes"])


def test_a_secret_is_asked_for_and_never_baked_in() -> None:
    text = (INFRA / "compose.yaml").read_text()
    for variable in re.findall(r"\$\{([^}]*)\}", text.replace("$${", "")):
        assert re.fullmatch(r"[A-Z_]+:\?set it in infra/\.env", variable), variable
    for service in read("compose.yaml")["services"].values():
        for name, value in service.get("environment", {}).items():
            if SECRET.search(name):
                assert value.startswith("${"), name
    for path in sorted((INFRA / "k8s").glob("*.yaml")):
        for line in path.read_text().splitlines():
            if found := re.search(r"name: ([A-Z_]+), value: (\S+)", line):
                assert not SECRET.search(found.group(1)), line
            assert "authString:" not in line and "password:" not in line, line


def test_services_start_programs_that_the_image_has() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lock = (REPOSITORY / "requirements.lock").read_text()
    scripts = {point.name: point.dist.name for point in entry_points(group="console_scripts")}
    for name, service in read("compose.yaml")["services"].items():
        if service["image"].startswith("lvd:"):
            for command in commands_of(service):
                installed = command in project["scripts"] or re.search(rf"(?m)^{scripts.get(command)}==", lock)
                assert installed, f"{name} starts {command}"


def test_the_image_drops_root_and_takes_in_what_exists() -> None:
    stages = targets()
    for target in ("cpu", "gpu"):
        users = [rest for word, rest in stages[target] if word == "USER"]
        assert users and users[-1].split(":")[0] not in ("root", "0"), target
        assert [word for word, _ in stages[target]][-2:] == ["USER", "CMD"], target
    for word, rest in instructions():
        assert word not in ("ADD", "ARG"), rest
        if word == "ENV":
            assert not SECRET.search(rest.upper()), rest
        if word == "COPY" and not rest.startswith("--from="):
            assert all((REPOSITORY / source).exists() for source in rest.split()[:-1]), rest
        if word == "COPY" and (found := re.match(r"--from=(\S+)", rest)):
            assert found.group(1) in stages, rest


def test_the_image_is_of_the_lock() -> None:
    install = [rest for word, rest in instructions() if word == "RUN" and "requirements.lock" in rest]
    assert install and all("--require-hashes" in rest for rest in install)
    lock = (REPOSITORY / "requirements.lock").read_text()
    assert re.search(r"(?m)^faiss-cpu==", lock)
    swap = next(rest for word, rest in instructions() if word == "RUN" and "faiss-gpu" in rest)
    version = re.search(r"(?m)^faiss-cpu==(\S+)", lock).group(1)
    assert "uninstall" in swap and "faiss-cpu" in swap and f"faiss-gpu=={version}" in swap


def test_the_compose_file_builds_a_target_of_the_dockerfile() -> None:
    for service in read("compose.yaml")["services"].values():
        if build := service.get("build"):
            assert build["target"] in targets()
            assert (INFRA / build["context"] / build["dockerfile"]).resolve() == INFRA / "Dockerfile"


def test_ray_is_of_one_version_everywhere() -> None:
    lock = (REPOSITORY / "requirements.lock").read_text()
    cluster = read("k8s/raycluster.yaml")["spec"]
    assert cluster["rayVersion"] == re.search(r"(?m)^ray==(\S+)", lock).group(1)
    tag = read("k8s/prefect-server-values.yaml")["global"]["prefect"]["image"]["prefectTag"]
    assert tag.startswith(re.search(r"(?m)^prefect==(\S+)", lock).group(1))


def test_the_ray_cluster_of_kubernetes_bounds_what_it_takes() -> None:
    manifest = read("k8s/raycluster.yaml")
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayCluster")
    spec = manifest["spec"]
    assert spec["enableInTreeAutoscaling"] and spec["authOptions"]["mode"] == "token"
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert set(groups) == {"cpu", "gpu"}
    for group in groups.values():
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (spec["headGroupSpec"], *groups.values()):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert "memory" in container["resources"]["limits"]
            assert not container["securityContext"]["allowPrivilegeEscalation"]
    [gpu] = groups["gpu"]["template"]["spec"]["containers"]
    assert gpu["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert gpu["image"] == "lvd:gpu"


def test_the_worker_of_kubernetes_polls_a_pool_with_deployments() -> None:
    worker = read("k8s/prefect-worker-values.yaml")["worker"]
    pools = {one["work_pool"]["name"] for one in read("prefect.yaml")["deployments"]}
    assert worker["config"]["workPool"] in pools and worker["config"]["type"] == "process"
    assert {"requests", "limits"} <= set(worker["resources"])
    assert worker["apiConfig"] == "selfHostedServer"
    assert {"requests", "limits"} <= set(read("k8s/prefect-server-values.yaml")["server"]["resources"])


def test_the_machines_of_the_launcher_start_with_options_that_ray_knows() -> None:
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    cluster = read("ray/cluster.yaml")
    assert cluster["provider"]["type"] == "local"
    assert cluster["min_workers"] == cluster["max_workers"] == len(cluster["provider"]["worker_ips"])
    starts = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    compose = [" ".join(service.get("command", [])) for service in read("compose.yaml")["services"].values()]
    lines = [line for text in (*starts, *compose) for line in text.splitlines() if "ray start" in line]
    assert len(lines) == 5
    for line in lines:
        used = {word for word in shlex.split(line.partition("ray start")[2]) if word.startswith("--")}
        assert used <= known, line
