"""The composition against PAPER.md's Table 15."""

from pathlib import Path

import pytest

from lvd.flows.plan import CORE_FLOPS, GPU_FLOPS, composition, counted, loads
from lvd.flows.recipe import load
from lvd.flows.show import hours_said, show_plan

TABLE_15_FINAL = 142_109_386


def test_the_plan_of_lvd142m_is_table_15() -> None:
    rows = composition(load("lvd142m-plan"))
    assert sum(row.final for row in rows) == TABLE_15_FINAL
    by_name = {(row.name, row.retrieval.split(",")[0]): row for row in rows}
    assert by_name["ImageNet-22k", "as is"].final == 14_197_086
    assert by_name["ImageNet-22k", "sample"].final == 56_788_344
    assert by_name["ImageNet-1k train", "sample"].final == 40_997_344
    assert by_name["Google Landmarks v2 train (clean)", "sample"].final == 6_321_880
    assert by_name["Met train", "cluster"].retrieved == 62_860_000
    assert by_name["Met train", "cluster"].final == 1_000_000
    assert by_name["AmsterTime new", "cluster"].final == 960_000
    assert len(rows) == 27


def test_the_composition_follows_the_rules_of_the_recipe() -> None:
    doubled = load(
        "lvd142m-plan", settings=["curated=[{name: a, num_images: 10, retrieve: {kind: sample, neighbors: 3}}]"]
    )
    assert [(row.retrieval, row.final) for row in composition(doubled)] == [("as is", 10), ("sample, N = 3", 30)]


@pytest.mark.parametrize(
    ("eligible", "cap", "final"),
    [(5, 1_000_000, 50_000), (5, 20_000, 20_000), (0, 1_000_000, 0), (None, 1_000_000, 1_000_000)],
)
def test_cluster_retrieval_is_capped(eligible: int | None, cap: int, final: int) -> None:
    clusters = "" if eligible is None else f"eligible_clusters: {eligible}, "
    entry = f"name: a, num_images: 1000, include: false, {clusters}retrieve: {{kind: cluster, max_images: {cap}}}"
    text = f"curated=[{{{entry}}}]"
    assert [row.final for row in composition(load("lvd142m-plan", settings=[text]))] == [final]


def test_loads_follow_the_expected_shares() -> None:
    recipe = load("lvd142m-plan")
    by_stage = {row.stage: row for row in loads(recipe)}
    assert by_stage["download"].shards == 130_000
    assert by_stage["embed"].images == round(1_300_000_000 * 0.572)
    assert by_stage["embed"].written_bytes == by_stage["embed"].images * 1280 * 2
    assert by_stage["neighbours"].shards == 160
    assert by_stage["neighbours"].read_bytes == 1_300_000_000 * 512 * 2 * 162
    assert by_stage["neighbours"].memory_bytes == 1_300_000_000 * 512 * 2 // 160
    assert by_stage["publish"].images == TABLE_15_FINAL
    assert by_stage["screen"].gpu_hours is None
    assert by_stage["embed"].hours == pytest.approx(by_stage["embed"].gpu_hours / 160)
    assert by_stage["publish"].shards == -(-TABLE_15_FINAL // 10_000)


def test_hours_are_of_gpus_or_of_cores_as_the_paces_are() -> None:
    paces = {"screened_per_core_second": 100, "descriptors_per_core_second": 10}
    settings = [f"plan.{name}={value}" for name, value in {**paces, "cores": 50}.items()]
    rows = {row.stage: row for row in loads(load("lvd142m-plan", settings=settings))}
    assert (rows["screen"].gpu_hours, rows["copies"].gpu_hours, rows["embed"].cpu_hours) == (None, None, None)
    assert rows["screen"].cpu_hours == pytest.approx(1.3e9 / 100 / 3600)
    assert rows["copies"].cpu_hours == pytest.approx(1.3e9 / 10 / 3600)
    assert rows["copies"].hours == pytest.approx(rows["copies"].cpu_hours / 50)
    assert rows["embed"].gpu_hours == pytest.approx(1.3e9 * 0.572 / 100 / 3600)
    assert rows["neighbours"].gpu_hours > 0  # there are GPUs
    settings += ["plan.embeddings_per_core_second=5", "plan.gpus=0"]
    without = {row.stage: row for row in loads(load("lvd142m-plan", settings=settings))}
    assert all(row.gpu_hours is None for row in without.values())
    ratio = without["neighbours"].cpu_hours / rows["neighbours"].gpu_hours
    assert ratio == pytest.approx(GPU_FLOPS / CORE_FLOPS)
    assert without["embed"].hours == pytest.approx(1.3e9 * 0.572 / 5 / 3600 / 50)


@pytest.mark.parametrize(
    ("settings", "heading"),
    [
        ([], "load, with 160 GPUs"),
        (["plan.screened_per_core_second=1", "plan.gpus=1", "plan.cores=8"], "load, with 1 GPU and 8 cores"),
    ],
)
def test_the_table_says_what_hours_are_reckoned_with(
    settings: list[str], heading: str, capsys: pytest.CaptureFixture[str]
) -> None:
    show_plan(load("lvd142m-plan", settings=settings))
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    head = lines[lines.index(heading) + 1]
    assert ("CPU-hours" in head, "GPU-hours" in head) == (bool(settings), True)


def test_hours_have_as_many_digits_as_they_need() -> None:
    assert [hours_said(hours) for hours in (None, 0, 0.001, 0.18, 12.34, 2065.6)] == [
        *("–", "0.0", "< 0.01", "0.18", "12.3", "2,065.6")
    ]


def test_sources_are_counted_where_the_recipe_gives_no_number(tmp_path: Path) -> None:
    (tmp_path / "urls.txt").write_text("http://a.example/1.jpg\nhttp://a.example/2.jpg\n")
    settings = [
        f"pool=[{{kind: urls, path: {tmp_path / 'urls.txt'}}}]",
        f"curated=[{{name: a, kind: urls, path: {tmp_path / 'urls.txt'}, retrieve: {{kind: sample, neighbors: 4}}}}]",
        "plan.pool_images=0",
    ]
    recipe = counted(load("lvd142m-plan", settings=settings))
    assert [row.final for row in composition(recipe)] == [2, 8]
    assert loads(recipe)[0].images == 2
