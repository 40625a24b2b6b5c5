"""Copies: edges against brute force, and both deduplications on planted directions and on random ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from lvd.infra.series import Series
from lvd.infra.shards import ShardRef, StageDir, read_table
from lvd.tasks import components, copies, neighbours, schemas
from lvd.tasks.algorithms import graph
from lvd.tasks.fates import Decision, Fates
from lvd.tests.tasks import planted
from lvd.tests.tasks.planted import identity

THRESHOLDS = copies.Thresholds(min_similarity=0.6, benchmark_min_similarity=0.45, edge_min_similarity=0.4)
NO_COPY = 89  # degrees


def directions(*groups: Sequence[float]) -> list[np.ndarray]:
    """Unit float16 rows of each group: at these angles, in degrees, in a plane of its own, unlike any other group's."""
    result = []
    for number, angles in enumerate(groups):
        rows = np.zeros((len(angles), 2 * len(groups)))
        rows[:, 2 * number], rows[:, 2 * number + 1] = np.cos(np.radians(angles)), np.sin(np.radians(angles))
        result.append(planted.unit(rows) if len(rows) else rows.astype(np.float16))
    return result


class Case:
    """A pool of vectors with fates, and reference collections: name → (role, vectors)."""

    def __init__(
        self,
        root: str,
        values: np.ndarray,
        layout: planted.Layout,
        *,
        ended: Sequence[int] = (),
        undescribed: Mapping[int, str] | None = None,
        references: Mapping[str, tuple[str, np.ndarray]] | None = None,
        sizes: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.root, num = root, len(values)
        sizes = sizes or [(10, 1)] * num  # width and bytes
        rows = [{"image_id": identity(n), "width": w, "height": 10, "num_bytes": b} for n, (w, b) in enumerate(sizes)]
        self.images = planted.images(root, rows, layout)
        state = {n: {"state": "dropped", "stage": "screen", "reason": "too_small"} for n in ended}
        rows = [{"image_id": identity(n), **state.get(n, {"state": "kept"})} for n in range(num)]
        self.fates = planted.stage(root, "unique", schemas.FATES, rows, layout)
        self.descriptors = planted.vectors(root, "descriptors", values, layout, left_out=ended, rejects=undescribed)
        self.references = [
            copies.Reference(name=name, role=role, shards=tuple(self.reference(name, vectors)))
            for name, (role, vectors) in (references or {}).items()
        ]

    def reference(self, name: str, vectors: np.ndarray) -> list[ShardRef]:
        rows = [{"image_id": f"{name}-{n}", "vector": vector} for n, vector in enumerate(vectors)]
        schema = schemas.vectors(vectors.shape[1])
        return planted.stage(self.root, f"descriptors-{name}", schema, rows, ((1, 0), (len(rows) - 1,)))

    def edges(self, references: list[ShardRef] | None = None, *, k: int = 64, floor: float = 0.4) -> list[ShardRef]:
        """Within the pool, or between the pool and the references."""
        name = "neighbours" if references is None else "references"
        target = StageDir(root=self.root, stage=name, fingerprint=f"{k}-{floor}")
        options = {"min_similarity": floor, "k": k, "device": "cpu", "is_pool": references is None}
        planned = target.planned(len(self.descriptors))
        others = Series.of([]) if references == [] else references and planted.series(references)
        asked = (planted.series(self.descriptors), others)
        return [neighbours.exact_shard.fn(*asked, ref, **options) for ref in planned]

    def decided(
        self, config: copies.Config | None = None, thresholds: copies.Thresholds = THRESHOLDS, k: int = 64
    ) -> tuple[Fates, Decision]:
        target, grouped, gone = (
            StageDir(root=self.root, stage=name, fingerprint="a") for name in ("copies", "components", "decontaminated")
        )
        shards = [ref for reference in self.references for ref in reference.shards]
        floor = thresholds.edge_min_similarity
        decision = copies.decide.fn(
            self.images,
            self.fates,
            self.descriptors,
            self.edges(k=k, floor=floor),
            self.edges(shards, k=k, floor=floor),
            self.references,
            copies.Targets(fates=target, components=grouped.planned(1)[0], decontaminated=gone.planned(1)[0]),
            config or copies.Config(),
            thresholds,
        )
        self.components, self.gone = (read_table(d.planned(1)[0]).to_pylist() for d in (grouped, gone))
        return Fates.read(target.planned(len(self.images))), decision


def ended(fates: Fates) -> dict[int, tuple[str, str]]:
    """Row → reason and cause of what was dropped at copies."""
    rows = np.flatnonzero((fates.stage == "copies") & (fates.state == "dropped")).tolist()
    return {row: (fates.reason[row], fates.because_of[row]) for row in rows}


def pairs_in(edges: list[ShardRef]) -> dict[tuple[int, int], float]:
    rows = [row for ref in edges for row in read_table(ref).to_pylist()]
    found = {(row["left"], row["right"]): row["similarity"] for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.fixture
def crowd(local_root: str) -> Case:
    """Random directions in five dimensions, so that edges abound; two partitions, one shard without a vector."""
    rng = np.random.default_rng(7)
    self = planted.random_units(rng, 60, 5)
    layout = ((20, 0, 7), (3, 30))
    references = {
        "val": ("benchmark", planted.random_units(rng, 6, 5)),
        "queries": ("curated", planted.random_units(rng, 9, 5)),
        "test": ("benchmark", planted.random_units(rng, 2, 5)),
    }
    sizes = [tuple(pair) for pair in rng.integers(1, 4, size=(60, 2)).tolist()]
    case = Case(
        local_root,
        self,
        layout,
        ended=(0, 4, 27, 28, 29, 59),
        undescribed={5: "truncated", 33: "not_finite"},
        references=references,
        sizes=sizes,
    )
    case.values = self
    return case


def joined(nodes: Sequence[int], linked: np.ndarray) -> list[set[int]]:
    """The components, by flooding."""
    left, result = set(nodes), []
    while left:
        group, new = set(), {left.pop()}
        while new:
            group |= new
            new = {b for a in new for b in left if linked[a, b]}
            left -= new
        result.append(group)
    return result


@pytest.mark.parametrize("representative", ["largest_area", "first_seen"])
@pytest.mark.parametrize(("least", "benchmark_least"), [(0.9, 0.9), (0.95, 0.8), (0.8, 0.9)])
def test_both_deduplications_equal_brute_force(crowd: Case, representative, least, benchmark_least) -> None:
    thresholds = copies.Thresholds(
        min_similarity=least, benchmark_min_similarity=benchmark_least, edge_min_similarity=min(least, benchmark_least)
    )
    fates, decision = crowd.decided(copies.Config(representative=representative), thresholds)
    pool = planted.cosine(crowd.values, crowd.values)
    there = sorted({*range(60)} - {0, 4, 27, 28, 29, 59, 5, 33})
    sizes = [
        (row["width"], row["num_bytes"])
        for ref in crowd.images
        for row in read_table(ref, ["width", "num_bytes"]).to_pylist()
    ]
    expected, survivors = {}, set(there)
    for group in joined(there, pool >= least):
        best = (
            min(group) if representative == "first_seen" else min(group, key=lambda n: (-sizes[n][0], -sizes[n][1], n))
        )
        expected |= {n: ("copy", identity(best)) for n in group - {best}}
        survivors -= group - {best}
    names = [f"{r.name}-{n}" for r in crowd.references for n in range(sum(s.rows for s in r.shards))]
    values = np.concatenate([copies.engine.vector_column(read_table(s)) for r in crowd.references for s in r.shards])
    across = planted.cosine(crowd.values, values)

    def first_named(rows: set[int]) -> int | None:
        """The reference of the best edge of these rows: benchmarks first, then by similarity."""
        edges = [(names[b].startswith("queries"), -across[a, b], b) for a in rows for b in range(17)]
        edges = [edge for edge in edges if -edge[1] >= benchmark_least]
        return min(edges)[2] if edges else None

    per_reference = dict.fromkeys(("val", "queries", "test"), 0)
    linked = np.block([[pool, across], [across.T, np.eye(17)]]) >= benchmark_least
    for component in joined([*sorted(survivors), *range(60, 77)], linked):  # references join as well
        group = {n for n in component if n < 60}
        if first_named(group) is not None:
            for n in group:
                cause = first_named({n}) if first_named({n}) is not None else first_named(group)
                name = names[cause].split("-")[0]
                expected[n] = ("curated_copy" if name == "queries" else "benchmark_copy", names[cause])
                per_reference[name] += 1
                assert fates.score[n] == np.float32(across[n, cause])
    assert ended(fates) == expected
    assert decision.per_reference == per_reference
    counts = dict(zip(*np.unique([reason for reason, _ in expected.values()], return_counts=True), strict=True))
    assert decision.reasons == {**counts, "not_finite": 1, "truncated": 1}
    assert sum(per_reference.values()) == sum(n for reason, n in counts.items() if reason != "copy") > 0
    assert decision.alive == 60 - 6 - sum(decision.reasons.values())
    groups = {}
    for n, (reason, cause) in expected.items():
        if reason == "copy":
            groups.setdefault(cause, []).append(n)
    assert {(c["representative"], c["size"], c["min_similarity"]) for c in crowd.components} == {
        (kept, len(rows) + 1, min(fates.score[rows])) for kept, rows in groups.items()
    }
    assert {row["row"]: (row["reference_id"], row["similarity"], row["collection"]) for row in crowd.gone} == {
        n: (cause, fates.score[n], cause.split("-")[0]) for n, (reason, cause) in expected.items() if reason != "copy"
    }
    assert {row["row"]: row["is_direct"] for row in crowd.gone} == {
        row["row"]: bool((across[row["row"]] >= benchmark_least).any()) for row in crowd.gone
    }


def test_images_without_a_descriptor_have_failed_here(crowd: Case) -> None:
    fates, _ = crowd.decided()
    assert [(fates.state[n], fates.stage[n], fates.reason[n]) for n in (5, 33)] == [
        ("failed", "copies", "truncated"),
        ("failed", "copies", "not_finite"),
    ]
    assert fates.reason[0] == "too_small"


# Three in a chain whose ends are unlike, spread over two partitions, with one that is like none.
CHAIN = directions((0, 45, 90), (0,))
CHAINED = np.concatenate([CHAIN[0][:1], CHAIN[1], CHAIN[0][1:]])  # rows 0, 2 and 3


@pytest.mark.parametrize(
    ("representative", "sizes", "kept"),
    [
        ("largest_area", [(10, 5), (99, 9), (20, 1), (10, 9)], 2),
        ("largest_area", [(20, 5), (99, 9), (20, 6), (20, 1)], 2),  # then the larger file
        ("largest_area", [(20, 5), (99, 9), (20, 5), (20, 5)], 0),  # then the lowest id
        ("first_seen", [(10, 5), (99, 9), (20, 6), (30, 9)], 0),
    ],
)
def test_a_chain_is_one_component(local_root: str, representative, sizes, kept: int) -> None:
    case = Case(local_root, CHAINED, ((1, 0, 1), (2,)), sizes=sizes)
    fates, decision = case.decided(copies.Config(representative=representative))
    dropped = sorted({0, 2, 3} - {kept})
    assert ended(fates) == {row: ("copy", identity(kept)) for row in dropped}
    expected = planted.cosine(CHAINED, CHAINED)
    assert fates.score[dropped].tolist() == [np.float32(expected[row, kept]) for row in dropped]
    assert (decision.alive, decision.reasons, decision.per_reference) == (2, {"copy": 2}, {})


def test_a_chain_can_be_bounded(local_root: str) -> None:
    """0, 30, 60, 90 and 120 degrees: each a copy of the next (0.87), of the one after that (0.5) no longer."""
    values = directions((0, 30, 60, 90, 120))[0]
    whole = Case(local_root + "0", values, ((2, 3),))
    assert set(ended(whole.decided(copies.Config(representative="first_seen"))[0])) == {1, 2, 3, 4}
    assert whole.components == [{"representative": identity(0), "size": 5, "min_similarity": np.float32(-0.5)}]
    near = copies.Config(representative="first_seen", min_representative_similarity=0.6)
    alike = Case(local_root + "1", values, ((2, 3),))
    assert ended(alike.decided(near)[0]) == {1: ("copy", identity(0)), 3: ("copy", identity(2))}, "4 stands for itself"
    small = Case(local_root + "2", values, ((2, 3),))
    fates, _ = small.decided(copies.Config(representative="first_seen", max_component=2))
    assert ended(fates) == {1: ("copy", identity(0)), 3: ("copy", identity(2))}
    assert [c["size"] for c in small.components] == [2, 2]


def test_an_image_that_ended_earlier_joins_nothing(local_root: str) -> None:
    fates, _ = Case(local_root, CHAINED, ((1, 0, 1), (2,)), ended=(2,)).decided()
    assert ended(fates) == {}


def test_a_similarity_at_the_threshold_counts(local_root: str) -> None:
    values = directions((0, 50))[0]
    similarity = float(planted.cosine(values, values)[0, 1])
    references = {"val": ("benchmark", values[1:])}
    case = Case(local_root, values[:1].repeat(2, axis=0), ((2,),), ended=(1,), references=references)
    pair = Case(local_root + "2", values, ((1, 1),))
    for threshold, counts in ((similarity, 1), (round(similarity + 1e-5, 5), 0), (round(similarity - 1e-5, 5), 1)):
        low = copies.Thresholds(
            min_similarity=threshold, benchmark_min_similarity=threshold, edge_min_similarity=threshold
        )
        floored = low.model_copy(update={"edge_min_similarity": 0.3})
        for thresholds in (low, floored):
            assert len(ended(pair.decided(thresholds=thresholds)[0])) == counts
            assert case.decided(thresholds=thresholds)[1].per_reference == {"val": counts}


def test_the_score_of_a_copy_is_the_similarity_of_its_edge(local_root: str) -> None:
    rng = np.random.default_rng(2)
    heads = planted.random_units(rng, 250, 512)
    values = np.concatenate([heads, planted.unit(heads + 0.02 * rng.normal(size=heads.shape))])
    case = Case(local_root, values, ((500,),))
    fates, _ = case.decided(copies.Config(representative="first_seen"))
    edges = pairs_in(case.edges())
    assert list(ended(fates)) == list(range(250, 500))
    assert {n: fates.score[n] for n in range(250, 500)} == {n: edges[n - 250, n] for n in range(250, 500)}


def test_a_component_with_a_reference_goes_whole(local_root: str) -> None:
    # 0 and 1 are 60° apart, 1 and the benchmark image as well, 0 and it 120°; 2 and 3 are alone.
    (pool, lone), reference = directions((0, 60), (0, NO_COPY)), directions((120,), ())[0]
    references = {"val": ("benchmark", reference[[0, 0]])}
    case = Case(local_root, np.concatenate([pool, lone]), ((1,), (0, 3)), references=references)
    fates, decision = case.decided()
    assert ended(fates) == {0: ("benchmark_copy", "val-0"), 1: ("benchmark_copy", "val-0")}
    expected = planted.cosine(pool, reference)[:, 0]
    assert fates.score[:2].tolist() == expected.astype(np.float32).tolist() and expected[0] < -0.49
    assert decision.per_reference == {"val": 2}


def test_copies_that_went_join_no_components(local_root: str) -> None:
    # 0 stays of 0 and 1; 1 would join 0 to 2, which copies the benchmark image; 3 went with 4, and 4 copies nothing.
    pool, other = directions((0, 45, 105), (0, 45))
    reference = np.concatenate([directions((150,), ())[0], directions((), (100,))[1]])
    case = Case(
        local_root,
        np.concatenate([pool, other]),
        ((2,), (1, 2)),
        references={"val": ("benchmark", reference)},
        sizes=[(20, 1), (10, 1), (10, 1), (20, 1), (10, 1)],
    )
    fates, _ = case.decided()
    assert ended(fates) == {
        1: ("copy", identity(0)),
        2: ("benchmark_copy", "val-0"),
        4: ("copy", identity(3)),  # its edge to val-1 takes 3 nowhere
    }


def test_a_copy_that_went_leads_to_no_other_reference(local_root: str) -> None:
    # 0 copies val-0, 1 is joined through 0; 2 copies val-1, and 3, which went with 2, is like both references.
    pool, reference = directions((60, 115, -100, -50))[0], directions((0, -60))[0]
    references = {"val": ("benchmark", reference)}
    fates, _ = Case(
        local_root, pool, ((1, 1), (2,)), references=references, sizes=[(10, 1), (10, 1), (20, 1), (10, 1)]
    ).decided()
    assert ended(fates) == {
        0: ("benchmark_copy", "val-0"),
        1: ("benchmark_copy", "val-0"),
        2: ("benchmark_copy", "val-1"),
        3: ("copy", identity(2)),
    }


def test_benchmarks_are_named_before_curated_images_and_the_most_similar_first(local_root: str) -> None:
    # Rows 0, 1, 2 by themselves; 3, 4 and 5 one component that 3 and 4 tie to references.
    groups = directions((0,), (0,), (0,), (0, 55, 110))

    def plane(number: int, *angles: float) -> np.ndarray:
        return directions(*(angles if n == number else () for n in range(4)))[number]

    references = {
        "queries": ("curated", np.concatenate([plane(0, 5), plane(1, 10), plane(3, -3)])),
        "val": ("benchmark", np.concatenate([plane(0, 60), plane(2, 40), plane(3, 95)])),
        "test": ("benchmark", np.concatenate([plane(0, -58), plane(2, 40.0)])),
    }
    case = Case(local_root, np.concatenate(groups), ((2, 0), (4,)), references=references)
    fates, decision = case.decided()
    assert ended(fates) == {
        0: ("benchmark_copy", "test-0"),  # 58° before 60°, and both before the curated 5°
        1: ("curated_copy", "queries-1"),
        2: ("benchmark_copy", "val-1"),  # of two that are as similar, the first
        3: ("curated_copy", "queries-2"),  # its own edge
        4: ("benchmark_copy", "val-2"),
        5: ("benchmark_copy", "val-2"),
    }
    assert decision.per_reference == {"queries": 2, "val": 3, "test": 1}
    assert decision.reasons == {"benchmark_copy": 4, "curated_copy": 2}


@pytest.mark.parametrize("with_references", [False, True])
def test_no_edges_at_all(local_root: str, with_references: bool) -> None:
    pool, reference = directions((0, NO_COPY), (0,))
    references = {"val": ("benchmark", reference)} if with_references else {}
    fates, decision = Case(local_root, pool, ((0, 1), (1, 0)), references=references).decided()
    assert ended(fates) == {} and fates.alive.all()
    assert decision.per_reference == dict.fromkeys(references, 0)


def test_no_images_left(local_root: str) -> None:
    pool, reference = directions((0, 1), (0,))
    case = Case(local_root, pool, ((2,), (0,)), ended=(0, 1), references={"val": ("benchmark", reference)})
    fates, decision = case.decided()
    assert (ended(fates), decision.alive, decision.per_reference) == ({}, 0, {"val": 0})


def survivors(root: str, values: np.ndarray, layout: planted.Layout, thresholds: copies.Thresholds, **said) -> set[int]:
    """The rows that are kept."""
    fates, _ = Case(root, values, layout, **said).decided(thresholds=thresholds)
    return set(np.flatnonzero(fates.alive).tolist())


@pytest.mark.parametrize("seed", range(6))
def test_one_image_of_every_component_is_kept_whatever_the_order(local_root: str, seed: int) -> None:
    """And another benchmark image keeps nothing that went without it."""
    rng = np.random.default_rng(seed)
    least, num = float(rng.uniform(0.5, 0.97)), int(rng.integers(2, 40))
    thresholds = copies.Thresholds(min_similarity=least, benchmark_min_similarity=least - 0.1, edge_min_similarity=0.3)
    values = planted.random_units(rng, num, 4)
    sizes = [(int(width), 1) for width in rng.permutation(num) + 1]
    cut = int(rng.integers(0, num))
    kept = survivors(f"{local_root}/a", values, ((cut, num - cut),), thresholds, sizes=sizes)
    linked = planted.cosine(values, values) >= least
    assert [len(kept & component) for component in joined(range(num), linked)] == [1] * len(joined(range(num), linked))
    order = rng.permutation(num)
    shuffled = survivors(f"{local_root}/b", values[order], ((num,),), thresholds, sizes=[sizes[i] for i in order])
    assert {int(order[row]) for row in shuffled} == kept
    benchmark = planted.random_units(rng, 3, 4)
    few, more = (
        survivors(
            f"{local_root}/{n}",
            values,
            ((num,),),
            thresholds,
            sizes=sizes,
            references={"val": ("benchmark", benchmark[:n])},
        )
        for n in (1, 3)
    )
    assert more <= few <= kept


OLDEST = copies.Config(representative="oldest")


def test_two_old_images_that_a_new_one_joins_both_stay(local_root: str) -> None:
    (values,) = directions([0, 80, 40])
    sizes = [(10, 1), (20, 1), (30, 1)]
    case = Case(local_root, values, ((2,), (1,)), sizes=sizes)
    assert ended(case.decided(OLDEST)[0]) == {2: ("copy", identity(1))}, "it goes with the larger of the old ones"
    assert ended(case.decided()[0]) == {row: ("copy", identity(2)) for row in (0, 1)}


@pytest.mark.parametrize(("min_similarity", "k"), [(None, 2), (0.75, 64)])
def test_what_came_later_changes_nothing_old(tmp_path: Path, min_similarity: float | None, k: int) -> None:
    config = OLDEST.model_copy(update={"min_representative_similarity": min_similarity})
    layout = ((20, 0, 7), (3, 20), (4, 6))
    rng = np.random.default_rng(11)
    values, sizes = planted.random_units(rng, 60, 5), [tuple(pair) for pair in rng.integers(1, 4, (60, 2)).tolist()]
    found = []
    for nights in (1, 2, 3):
        num = sum(sum(rows) for rows in layout[:nights])
        case = Case(str(tmp_path / str(nights)), values[:num], layout[:nights], sizes=sizes[:num])
        found.append(ended(case.decided(config, k=k)[0]))
    for nights, before in enumerate(found[:-1], 1):
        num = sum(sum(rows) for rows in layout[:nights])
        assert before == {row: end for row, end in found[-1].items() if row < num}
    assert len(found[0]) < len(found[1]) < len(found[2])


def test_spanning_edges_join_what_all_join_up_to_any_age() -> None:
    rng = np.random.default_rng(5)
    age, (left, right) = np.sort(rng.integers(0, 6, 40)), np.triu_indices(40, 1)
    pairs = np.column_stack([left, right])[rng.permutation(len(left))[:120]]
    shards = [(some, np.zeros(len(some), dtype=np.float32)) for some in np.array_split(pairs, 7)]
    spanning = components.spanning(shards, np.zeros(40, dtype=np.int64), age)
    assert len(spanning) < 40
    for end in range(6):
        labels = [graph.connected_components(some[age[some].max(axis=1) <= end], 40) for some in (spanning, pairs)]
        np.testing.assert_array_equal(*labels)
