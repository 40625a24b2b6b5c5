"""The house: folders and packages agree, names are imported as installed, stage files have their parts in order."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = ("flows", "tasks", "infra", "tests")
STAGES = ("crawl", "download", "screen", "fingerprint", "copies", "embed", "cluster", "retrieve", "publish")
HEAVY = ("torch", "torchvision", "timm", "faiss", "datasets", "prefect", "scipy", "ray")
HOST = re.compile(
    r"\b(?:pypi|pythonhosted|anaconda|huggingface|docker|ghcr|quay|nvcr|gcr|npmjs|pytorch)\.(?:org|com|co|io)\b"
    r"|(?<!no-emit-)index[-_]ur[l]|find[-_]link[s]",
    re.IGNORECASE,
)
INFRA = Path(__file__).parents[1] / "infra"
IMAGES = [INFRA / name for name in ("Dockerfile", "compose.yaml", "ray/cluster.yaml")]  # the paths are a container's
MACHINE_PATH = re.compile(r"(?<![\w}\])$*.-])/(?:home|root|work|tmp|Users|mnt|opt|var)/\w")


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """Every file of the repository."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout: which files belong to the repository is unknown")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


def modules(*rooms: str) -> Iterator[tuple[Path, ast.Module]]:
    for room in rooms:
        for path in sorted((ROOT / room).rglob("*.py")):
            yield path, ast.parse(path.read_text(), filename=str(path))


def test_folders_and_packages_agree() -> None:
    settings = PROJECT["tool"]["setuptools"]
    assert settings["package-dir"] == {f"lvd.{room}": room for room in ROOMS}
    folders = {path.parent for room in ROOMS[:3] for path in (ROOT / room).rglob("*.py")} | {ROOT / "tests"}
    assert sorted(settings["packages"]) == sorted(
        ".".join(["lvd", *folder.relative_to(ROOT).parts]) for folder in folders
    )
    for folder in folders:
        assert (folder / "__init__.py").is_file(), f"{folder} is a package without __init__.py"


def test_bare_names_are_never_imported() -> None:
    bare = []
    for path, tree in modules(*ROOMS, "benchmarks"):
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""] if node.level == 0 else [*ROOMS]  # a relative import names its folder bare
            bare += [f"{path}:{node.lineno}" for name in names if name.split(".")[0] in ROOMS]
    assert bare == []


def parts(tree: ast.Module) -> list[str]:
    """What stands at the top of a stage file, in order: SCHEMA, VERSION, Config, task, function, other."""
    found = []
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) in ("SCHEMA", "VERSION", "Config"):
            found.append(node.targets[0].id)
        elif isinstance(node, ast.ClassDef):
            found.append("Config" if node.name == "Config" else "class")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
            found.append("task" if any(name.startswith("task(") for name in decorators) else "function")
    return found


@pytest.mark.parametrize("name", [*STAGES, "ledger"])
def test_a_stage_file_has_its_parts_in_order(name: str) -> None:
    path = ROOT / "tasks" / f"{name}.py"
    tree = ast.parse(path.read_text())
    assert "Cost" in ast.get_docstring(tree) or "At 10^9" in ast.get_docstring(tree) or name == "ledger"
    found = parts(tree)
    assert found[:2] == ["SCHEMA", "VERSION"] and found.count("SCHEMA") == 1
    assert "task" in found
    if name != "ledger":
        assert found.count("Config") == 1
        assert found.index("Config") < min(found.index(part) for part in ("function", "task") if part in found)


def test_every_task_leaves_results_to_storage() -> None:
    """Prefect's own result cache is off, and what crosses it is named."""
    seen = set()
    for _, tree in modules("tasks"):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "task":
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert (options["persist_result"], options["cache_policy"]) == ("False", "NO_CACHE"), options
                assert options["name"] not in seen
                seen.add(options["name"])
    assert len(seen) > 15


def text_of(path: Path) -> str:
    try:
        return path.read_text()
    except UnicodeDecodeError:
        return ""


def test_no_file_names_a_registry_or_a_place_of_one_machine(tracked: list[Path]) -> None:
    found = []
    for path in tracked:
        for number, line in enumerate(text_of(path).splitlines(), 1):
            is_of_an_image = path in IMAGES or INFRA / "k8s" in path.parents
            if match := HOST.search(line) or (not is_of_an_image and MACHINE_PATH.search(line)):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match[0]}")
    assert found == []
    assert "://" not in (ROOT / "requirements.lock").read_text()


@pytest.mark.parametrize(
    ("line", "is_found"),
    [
        ("RUN pip install --index-{url} x", True),
        ("--no-emit-index-{url}", False),
        ("see https://pypi.{org}/project/lvd", True),
        ("see https://files.pythonhosted.{org}/a.whl", True),
        ('open("{slash}home/me/a")', True),
        ("/tmp/", False),  # a line of .gitignore
        ("s3://bucket/root/data", False),
        ("{{root}}/work/data", False),
        ("path: {slash}work/data", True),
    ],
)
def test_what_counts_as_a_registry_or_a_machine_s_place(line: str, is_found: bool) -> None:
    line = line.format(url="url", org="org", slash="/")  # so that this file names none itself
    assert bool(HOST.search(line) or MACHINE_PATH.search(line)) == is_found


def test_no_data_is_tracked(tracked: list[Path]) -> None:
    kinds = ("jpg", "jpeg", "webp", "gif", "tar", "arrow", "parquet", "np[yz]", "pt", "safetensors", "whl", "zip", "gz")
    data = re.compile(rf"\.({'|'.join(kinds)})$", re.IGNORECASE)
    assert [str(path) for path in tracked if data.search(path.name)] == []
    assert [str(path) for path in tracked if path.stat().st_size > 2 << 20] == []


@pytest.mark.parametrize("action", ["pass", "lvd.flows.cli.main()"])
def test_the_command_line_answers_without_heavy_libraries(action: str) -> None:
    code = f"import sys, lvd.flows.cli\ntry: {action}\nexcept SystemExit as e: assert not e.code\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert "lvd" in loaded and loaded.isdisjoint(HEAVY), loaded & {*HEAVY}


def test_a_wheel_holds_every_file_and_installs_one_name(tracked: list[Path], tmp_path: Path) -> None:
    for path in tracked:  # built from a copy, as a build leaves its files in the tree
        copy = tmp_path / "tree" / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        *options,
        "--wheel-dir",
        str(tmp_path / "out"),
        str(tmp_path / "tree"),
    ]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    with zipfile.ZipFile(next((tmp_path / "out").glob("lvd-*.whl"))) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        top_level = next(name for name in wheel.namelist() if name.endswith("top_level.txt"))
        assert wheel.read(top_level).decode().split() == ["lvd"]
    inside = [path.relative_to(ROOT) for path in tracked]
    expected = {
        f"lvd/{path}"
        for path in inside
        if (path.parts[0] in ("flows", "tasks") and path.suffix in (".py", ".yaml", ".jinja", ".js", ".css"))
        or (path.suffix == ".py" and path.parent in (Path("infra"), Path("tests")))
    }
    assert names == expected
