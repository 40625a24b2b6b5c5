"""The composition against PAPER.md's Table 15, the loads against sums made by hand, and what is printed."""

from pathlib import Path

import pytest

from lvd.flows.composition import composition
from lvd.flows.loads import DECISION_BYTES, FACES_S, Load, loads
from lvd.flows.plan import counted, planned
from lvd.flows.plan_page import hours_said, span_said
from lvd.flows.recipe import load
from lvd.flows.schedule import step_of
from lvd.flows.show import show_plan
from lvd.infra.errors import InputError

TABLE_15_FINAL = 142_109_386
POOL, LEFT, CURATED = 1_300_000_000, round(1_300_000_000 * 0.572), 19_105_933
ONCE = "plan.simulations=1"
NO_GPUS = [
    f"plan.{setting}" for setting in ("gpus=0", "descriptors_per_core_second=10", "embeddings_per_core_second=5")
]


def by_stage(*settings: str) -> dict[str, Load]:
    return {row.stage: row for row in loads(load("lvd142m-plan", settings=settings))}


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


def test_the_steps_are_those_of_the_chain_in_its_order() -> None:
    rows = loads(load("lvd142m-plan"))
    assert list(dict.fromkeys(row.flow for row in rows)) == [
        *("crawl", "download", "content", "screen", "fingerprint", "copies", "embed", "cluster", "retrieve", "publish")
    ]
    assert len({row.stage for row in rows}) == len(rows)
    assert all(row.hours is not None and row.shards > 0 for row in rows)


def test_loads_follow_the_expected_shares() -> None:
    rows = by_stage()
    assert rows["download"].shards == 130_000
    assert rows["embed"].images == LEFT + CURATED
    assert rows["embed"].written_bytes == rows["embed"].images * 1280 * 2
    assert rows["neighbours"].shards == 160
    assert rows["neighbours"].read_bytes == POOL * (512 * 2 + 4 + 4 * 64) * 2 * 160  # each group reads all of it twice
    assert rows["neighbours"].memory_bytes == POOL * 512 * 2 // 160
    assert rows["neighbours"].node_memory_bytes == 8 * rows["neighbours"].memory_bytes
    assert rows["components"].node_memory_bytes == DECISION_BYTES * POOL
    assert rows["publish"].images == TABLE_15_FINAL
    assert rows["publish"].shards == -(-TABLE_15_FINAL // 10_000)
    assert rows["screen"].gpu_hours is None


def test_clustering_is_counted_by_its_products() -> None:
    rows, products = by_stage(), 2 * 100_000 * 1280
    assert rows["fit"].gpu_hours == pytest.approx(products * 256 * 100_000 * 21 / 1e13 / 3600)
    assert rows["fit"].hours == pytest.approx(rows["fit"].gpu_hours / 8)  # all GPUs of one node
    assert rows["fit"].memory_bytes == 2 * 25_600_000 * 2560 + 100_000 * 1280 * 4
    assert rows["passes"].gpu_hours == pytest.approx(products * LEFT / 1e13 / 3600)
    assert rows["passes"].shards == -(-LEFT // 6_400_000)
    assert rows["passes"].written_bytes == rows["passes"].shards * 8 * products / 2
    assert rows["sums"].shards == -(-rows["passes"].shards // 8)
    assert rows["cluster"].gpu_hours == rows["passes"].gpu_hours
    assert rows["cluster"].written_bytes == 60 * LEFT
    assert by_stage("cluster.next_cells=2")["cluster"].written_bytes == 68 * LEFT
    twice, without = by_stage("cluster.full_passes=2"), by_stage("cluster.full_passes=0")
    assert twice["passes"].hours == pytest.approx(2 * rows["passes"].hours)
    assert twice["passes"].read_bytes == 2 * rows["passes"].read_bytes
    assert (twice["passes"].shards, twice["passes"].rounds) == (rows["passes"].shards, 2)
    assert {*rows} - {*without} == {"passes", "sums"}


def test_retrieval_is_counted_by_its_policies() -> None:
    rows, queries = by_stage(), 14_197_086 + 1_281_167 + 1_580_470
    assert rows["nearest"].images == queries
    assert (rows["nearest"].shards, rows["nearest"].rounds) == (160, 3)
    products = 2 * 1280 * queries * (100_000 + 32 * LEFT / 100_000)
    assert rows["nearest"].gpu_hours == pytest.approx(products / 1e13 / 3600)
    assert rows["recall"].gpu_hours == pytest.approx(2 * 1280 * 12_000 * LEFT / 1e13 / 3600)
    found = 32 * (14_197_086 + 1_580_470) + 256 * 1_281_167
    assert rows["nearest"].written_bytes == pytest.approx(20 * found * 32)  # a query's cells lie in as many groups
    assert rows["candidates"].written_bytes == pytest.approx(20 * found)
    assert rows["settling"].read_bytes == pytest.approx(20 * found + 3 * 44 * LEFT)
    assert rows["settling"].memory_bytes == 100 * 14_197_086 * 4 * 8
    assert rows["shares"].read_bytes == 60 * LEFT
    through_cells = {"lists", "recall", "nearest", "candidates", "settling"}
    only = by_stage("curated=[{name: a, num_images: 10, retrieve: {kind: cluster}}]")
    assert {*rows} - {*only} == through_cells
    assert {*rows} - {*by_stage("curated=[{name: a, num_images: 10}]")} == through_cells | {"shares"}
    once = by_stage("retrieve.collisions=count")
    assert once["settling"].memory_bytes == 100 * 14_197_086 * 4


def test_few_queries_are_compared_with_all_of_the_pool() -> None:
    named = "{name: %s, num_images: %d, retrieve: {kind: sample}}"
    both = by_stage("curated=[" + ", ".join([named % ("a", 20), named % ("b", 10**6), named % ("c", 30)]) + "]")
    assert both["nearest, exact"].images == 50
    assert both["nearest, exact"].rounds == 2
    assert both["nearest, exact"].gpu_hours == pytest.approx(2 * 1280 * 50 * LEFT / 1e13 / 3600)
    assert both["nearest"].images == 10**6
    alone = by_stage("curated=[" + named % ("a", 20) + "]")
    assert {*both} - {*alone} == {"lists", "recall", "nearest", "candidates", "settling"}
    assert by_stage("curated=[" + named % ("a", 0) + "]")["candidates, exact"].hours == 0


def test_content_is_counted_if_somebody_looks() -> None:
    both, neither = by_stage(), by_stage("screen={}")
    assert {*both} - {*neither} == {"content"}
    faces = by_stage("screen={faces: {model: centerface}}")["content"]
    assert (faces.bound_by, faces.gpu_hours) == ("cores", 0)
    assert faces.cpu_hours == pytest.approx(POOL * (FACES_S + 1 / 120) / 3600)
    assert faces.hours == pytest.approx(faces.cpu_hours / 800)


@pytest.mark.parametrize(
    ("settings", "bound", "hours"),
    [
        ([], "GPU", (LEFT + CURATED) / 134 / 3600 / 160),
        (["decoded_per_core_second=10"], "cores", (LEFT + CURATED) / 10 / 3600 / 800),
        (["storage_gb_per_node_second=0.1"], "storage", (LEFT + CURATED) * (110_000 + 2560) / 1e8 / 3600 / 20),
        (["decoded_per_core_second=null"], "GPU", (LEFT + CURATED) / 134 / 3600 / 160),
    ],
)
def test_the_slowest_of_computing_decoding_and_reading_counts(settings: list[str], bound: str, hours: float) -> None:
    row = by_stage(*(f"plan.{setting}" for setting in settings))["embed"]
    assert (row.bound_by, row.hours) == (bound, pytest.approx(hours))


def test_hours_are_of_gpus_or_of_cores_as_the_paces_are() -> None:
    rows = by_stage("plan.descriptors_per_core_second=10")
    assert (rows["screen"].gpu_hours, rows["copies"].gpu_hours) == (None, None)
    assert rows["screen"].cpu_hours == pytest.approx(POOL / 220 / 3600)
    assert rows["copies"].cpu_hours == pytest.approx(POOL / 10 / 3600)
    assert rows["copies"].hours == pytest.approx(rows["copies"].cpu_hours / 800)
    without = by_stage(*NO_GPUS)
    assert all(row.gpu_hours is None for row in without.values())
    ratio = without["neighbours"].cpu_hours / rows["neighbours"].gpu_hours
    assert ratio == pytest.approx(10e12 / 30e9)  # what a GPU and a core multiply
    assert without["embed"].hours == pytest.approx((LEFT + CURATED) / 5 / 3600 / 800)
    assert by_stage("plan.screened_per_core_second=null")["screen"].hours is None


def test_a_pool_on_disk_does_not_wait_for_hosts(tmp_path: Path) -> None:
    pool = f"pool=[{{kind: images, path: {tmp_path}}}]"
    assert by_stage()["download"].bound_by == "network"
    assert by_stage()["download"].hours == pytest.approx(POOL / 1000 / 20 / 3600)
    assert by_stage(pool)["download"].bound_by == "storage"


def test_slots_are_those_of_the_nodes() -> None:
    recipe = load("lvd142m-plan", settings=["plan.nodes=3", "plan.gpus=7", "plan.cores=8"])
    rows = {row.stage: row for row in loads(recipe)}
    slots = {name: step_of(rows[name], recipe.plan).slots for name in ("embed", "screen", "unique", "fit")}
    assert slots == {"embed": (3, 2, 2), "screen": (3, 3, 2), "unique": (1, 1, 1), "fit": (1, 1, 1)}


@pytest.mark.parametrize(
    ("settings", "heading", "columns"),
    [
        ([], "load, with 160 GPUs and 800 cores on 20 nodes", (True, True)),
        (["plan.nodes=1", "plan.gpus=1", "plan.cores=8"], "load, with 1 GPU and 8 cores", (True, True)),
        ([*NO_GPUS, "plan.nodes=1"], "load, with 800 cores", (True, False)),
    ],
)
def test_the_table_says_what_hours_are_reckoned_with(
    settings: list[str], heading: str, columns: tuple[bool, bool], capsys: pytest.CaptureFixture[str]
) -> None:
    show_plan(load("lvd142m-plan", settings=[ONCE, *settings]))
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    head = lines[lines.index(heading) + 1]
    assert ("CPU-hours" in head, "GPU-hours" in head) == columns


def test_the_paper_stands_beside_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load("lvd142m-plan", settings=["plan.simulations=3"])
    show_plan(recipe)
    out = capsys.readouterr().out
    lines = out[out.index("\nbeside\n") :].splitlines()
    paper = next(line for line in lines if line.startswith("DINOv2"))
    assert paper.split()[-5:] == ["1,200,000,000", "48.0", "160", "7,680.0", "43.4"]
    found = planned(recipe).schedule
    ours = [next(line for line in lines if line.startswith(f"this plan{of}")) for of in (", all", " without")]
    hours = [float(line.split()[-4]) for line in ours]
    assert hours[0] == pytest.approx(found.hours.median, abs=0.06)
    left_out = sum(found.hours_of[name].median for name in ("crawl", "download"))
    assert hours[0] - hours[1] == pytest.approx(left_out, abs=0.11)
    assert "not which steps that is" in " ".join(lines[-1].split())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([], None),
        (["plan.node_memory_gb=300"], "components: one process needs 390.0 GB of a node that has 300 GB"),
        (["plan.node_memory_gb=50"], "neighbours: its processes need together 66.6 GB of a node that has 50 GB"),
        (["plan.screened_per_core_second=null"], "no pace is known of screen: only the bytes are planned"),
        (["plan.node_failures_per_hour=0"], "; no node fails"),
    ],
)
def test_what_a_plan_leaves_out_is_said(
    settings: list[str], said: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    show_plan(load("lvd142m-plan", settings=[ONCE, *settings]))
    out = capsys.readouterr().out
    assert said in out if said else "of a node that has" not in out and "no pace" not in out


def test_hours_have_as_many_digits_as_they_need() -> None:
    assert [hours_said(hours) for hours in (None, 0, 0.001, 0.18, 12.34, 2065.6)] == [
        *("–", "0.0", "< 0.01", "0.18", "12.3", "2,065.6")
    ]


def test_times_have_the_unit_that_suits_them() -> None:
    assert [span_said(hours) for hours in (0, 1.7 / 3600, 0.5, 1, 2065.6)] == [
        *("0.0 s", "1.7 s", "30.0 min", "1.0 h", "2,065.6 h")
    ]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("plan.nodes=900", r"recipe.plan: cores must be those of all nodes, at least 900 of them, was 800"),
        ("plan.nodes=0", r"recipe.plan.nodes must be greater than or equal to 1, was 0"),
        ("plan.straggler_slowdown=0.5", r"recipe.plan.straggler_slowdown must be greater than or equal to 1, was 0.5"),
        ("plan.compared_with.excludes=[craw]", r"recipe.plan.compared_with.excludes\[0\] must be .*'crawl'"),
        ("plan.gpu_per_node=8", r"recipe.plan.gpu_per_node: unknown key"),
    ],
)
def test_bad_expectations_get_one_line(setting: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load("lvd142m-plan", settings=[setting])


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


def test_an_empty_recipe_can_be_planned(capsys: pytest.CaptureFixture[str]) -> None:
    show_plan(load("lvd142m-plan", settings=["curated=[]", "plan.pool_images=0", ONCE]))
    assert "makespan" in capsys.readouterr().out
