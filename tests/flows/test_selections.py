"""A balanced sample over levels of clusters, then a mixture in the same root: how many, which, and counted once."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from datasets import load_from_disk

from lvd.flows.inquiry import last_run
from lvd.infra.shards import StageDir, read_table
from lvd.infra.storage import Storage
from lvd.tasks.algorithms.evenness import entropy_bits
from lvd.tests.running import lvd

DIM, GROUPS, LARGE, SMALL = 16, 20, 250, 25  # half of the groups have ten times as many rows
LEVELS, BALANCED, MIXTURE = [60, 15, 5], 240, 300
WEIGHTS = {"balanced": 0.5, "near": 0.3, "shares": 0.2, "unused": 0}
PARTS = {"near": 90, "shares": 60, "balanced": 150}


class Selections:
    """An uneven pool, three collections, and the two recipes."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(0)
        middle = rng.normal(size=(GROUPS, DIM))
        sizes = np.where(np.arange(GROUPS) % 2, SMALL, LARGE)
        self.folder, self.root = folder, folder / "root"
        self.group = rng.permutation(np.repeat(np.arange(GROUPS), sizes))
        files = {"pool": self.group, "near": rng.integers(4, size=60), "shares": rng.integers(4, size=60)}
        for name, group in {**files, "unused": rng.integers(GROUPS, size=30)}.items():
            np.save(folder / f"{name}.npy", middle[group] + 0.2 * rng.normal(size=(len(group), DIM)))

    def run(self, name: str, *curated: dict[str, Any], **retrieve: Any) -> Any:
        """Runs a recipe with these collections and settings of `retrieve`."""
        tree = {
            "name": name,
            "pool": [self.source("pool")],
            "curated": [{**self.source(one.pop("name")), "include": False, **one} for one in map(dict, curated)],
            "cluster": {"kind": "hierarchical", "levels": LEVELS, "iterations": 5, "resample_steps": 2},
            "retrieve": retrieve,
            "compute": {"gpus": 0},
        }
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
        args = ("run", str(self.folder / f"{name}.yaml"), "--root", str(self.root))
        process = lvd(*args, home=self.folder / "prefect")
        assert process.returncode == 0, process.stderr[-4000:]
        return process

    def source(self, name: str) -> dict[str, Any]:
        named = {} if name == "pool" else {"name": name}
        return {**named, "kind": "vectors", "path": str(self.folder / f"{name}.npy")}

    def published(self, version: str) -> list[dict[str, Any]]:
        return load_from_disk(str(self.root / "curated" / version)).to_list()

    def ledger(self, version: str) -> list[dict[str, Any]]:
        return load_from_disk(str(self.root / "curated" / version / "ledger")).to_list()


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory) -> Selections:
    found = Selections(tmp_path_factory.mktemp("selections"))
    found.run("balanced", kind="balanced", target_images=BALANCED)
    return found


@pytest.fixture(scope="module")
def cells(balanced: Selections) -> dict[str, Any]:
    """The cluster of every row, and of every cluster the one above: from the lowest level up."""
    used = last_run(Storage(str(balanced.root)))["directories"]

    def shards(stage: str) -> list[Any]:
        (name,) = used[stage]
        return StageDir(root=str(balanced.root), stage=stage, fingerprint=name.rsplit("/", 1)[1]).shards()

    parents = [read_table(ref)["parent"].to_numpy() for ref in shards("parents")]
    home = np.concatenate([read_table(ref)["cluster_id"].to_numpy() for ref in shards("cluster")])
    return {"home": home, "parents": parents}


@pytest.fixture(scope="module")
def mixed(balanced: Selections, cells: dict[str, Any]) -> Selections:
    """After the balanced run; the cells are read before it."""
    near, share = {"kind": "sample", "neighbors": 4}, {"kind": "cluster", "min_queries": 3, "per_cluster": 30}
    collections = [{"name": n, "retrieve": r} for n, r in (("near", near), ("shares", share), ("unused", near))]
    process = balanced.run("mixture", *collections, kind="mixture", target_images=MIXTURE, weights=WEIGHTS)
    assert "fit" not in process.stdout.split("(")[1].split(")")[0], "the clusters are those of the other run"
    return balanced


def evenness(groups: np.ndarray) -> float:
    return entropy_bits(np.bincount(groups, minlength=GROUPS))


def test_the_balanced_sample_is_as_large_as_asked_and_more_even(balanced: Selections) -> None:
    rows = balanced.published("v1")
    assert len({row["row"] for row in rows}) == len(rows) == BALANCED
    assert {(row["role"], *row["retrieved_for"]) for row in rows} == {("retrieved", "balanced")}
    assert {row["query_id"] for row in rows} == {None}, "nobody asked for them"
    group = balanced.group[[row["row"] for row in rows]]
    rng = np.random.default_rng(0)
    drawn = [evenness(rng.choice(balanced.group, BALANCED, replace=False)) for _ in range(100)]
    assert evenness(group) > max(drawn)
    assert evenness(group) > (np.mean(drawn) + np.log2(GROUPS)) / 2, "half the way to evenness"
    assert (np.bincount(group, minlength=GROUPS) > 0).all()
    small = np.isin(group, np.arange(1, GROUPS, 2)).mean()
    assert small > 0.3, "a random sample has 9 %"


def test_all_levels_are_balanced(balanced: Selections, cells: dict[str, Any]) -> None:
    """At every level, the clusters of one parent give all that they have, or as many as each other but for one."""
    rows = [row["row"] for row in balanced.published("v1")]
    home = cells["home"]
    has, gives = (np.bincount(home[chosen], minlength=LEVELS[0]) for chosen in (slice(None), rows))
    for parent in [*cells["parents"], np.zeros(LEVELS[-1], dtype=np.int64)]:
        for number in range(parent.max() + 1):
            part = gives[(parent == number) & (gives < has)]
            assert not len(part) or part.max() - part.min() <= 1
            if len(part):
                assert gives[parent == number].max() <= part.max()
        has, gives = (np.bincount(parent, weights=counts).astype(np.int64) for counts in (has, gives))
    assert gives.tolist() == [BALANCED]


def test_every_cluster_has_a_parent(cells: dict[str, Any]) -> None:
    assert [len(parent) for parent in cells["parents"]] == LEVELS[:-1]
    assert [parent.max() < above for parent, above in zip(cells["parents"], LEVELS[1:], strict=True)] == [True] * 2


def test_the_card_tells_how_even_it_is(balanced: Selections, cells: dict[str, Any]) -> None:
    card = (balanced.root / "curated/v1/README.md").read_text()
    assert f"{BALANCED} vectors, chosen from {len(balanced.group):,} by `lvd`." in card
    assert f"| balanced | balanced | 0 | {BALANCED} | {BALANCED} | {BALANCED} |" in card
    home, said = cells["home"], []
    rows = [row["row"] for row in balanced.published("v1")]
    counts = [np.bincount(home[some], minlength=LEVELS[0]) for some in (slice(None), rows)]
    for parent in [*cells["parents"], None]:
        before, after = map(entropy_bits, counts)
        assert after > before, "every level is more even than it was"
        said.append(f"{before:.2f} to {after:.2f}")
        counts = [np.bincount(parent, weights=one) for one in counts] if parent is not None else []
    assert f"in bits, from {', '.join(said)} |" in card


def test_a_mixture_has_its_shares_and_counts_an_image_once(mixed: Selections) -> None:
    rows = mixed.published("v2")
    assert Counter(name for row in rows for name in row["retrieved_for"]) == PARTS
    numbers = [row["row"] for row in rows]
    assert numbers == sorted({*numbers})
    both = [row for row in rows if len(row["retrieved_for"]) > 1]
    assert both and len(rows) < MIXTURE
    assert len(rows) == MIXTURE - sum(len(row["retrieved_for"]) - 1 for row in both)
    for row in rows:
        if row["query_id"] is not None:
            assert Path(row["query_id"]).parent.name in {f"{name}.npy" for name in row["retrieved_for"]}
    assert len(mixed.published("v1")) == BALANCED, "the version before is as it was"


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_ledger_says_what_is_published(mixed: Selections, version: str) -> None:
    ledger = mixed.ledger(version)
    names = [f"{mixed.folder}/pool.npy/{n:010d}" for n in range(len(mixed.group))]
    assert sorted(row["key"] for row in ledger) == names
    kept = {row["key"]: row for row in ledger if row["state"] == "kept"}
    published = {row["image_id"]: row for row in mixed.published(version)}
    assert kept.keys() == published.keys()
    assert {(row["stage"], row["reason"]) for row in kept.values()} == {("publish", "retrieved")}
    assert all(kept[n]["score"] == row["similarity"] for n, row in published.items())
    assert all(kept[n]["because_of"] == row["query_id"] for n, row in published.items())
    rest = {(row["state"], row["stage"], row["reason"]) for row in ledger if row["key"] not in kept}
    assert rest == {("dropped", "retrieve", "not_retrieved")}


def test_the_card_tells_the_weights(mixed: Selections) -> None:
    card = (mixed.root / "curated/v2/README.md").read_text()
    for name, kind in (("near", "sample"), ("shares", "cluster"), ("balanced", "balanced")):
        (line,) = [line for line in card.splitlines() if line.startswith(f"| {name} | {kind} |")]
        assert f"| {PARTS[name]} | weight {WEIGHTS[name]:g}, " in line
    assert "unused" not in card
