"""Adjusted descriptors: both formulas against plain NumPy, the same rows for any cut, edges of both engines by them."""

import numpy as np
import pytest

from lvd.flows.deduplication import copy_thresholds
from lvd.infra.committing import commit
from lvd.infra.errors import InputError
from lvd.infra.shards import ShardRef, StageDir, read_table
from lvd.infra.storage import Storage
from lvd.tasks import adjusting, components, copies, finding, neighbours, schemas
from lvd.tasks.adjusting import Background, ScoreNormalisation, Whitening
from lvd.tasks.models.engine import vector_column
from lvd.tests.tasks import planted
from lvd.tests.tasks.test_neighbours import by_cells, exact, in_cells

ROWS, DIM, FLOOR = 60, 6, 0.2
LAYOUTS: list[planted.Layout] = [((20, 0, 7), (3, 30)), ((60,),), ((59, 1),)]
GONE, REJECTED = (0, 27, 59), {5: "truncated", 33: "not_finite"}
RULES = ScoreNormalisation(neighbours=3, weight=0.7)


def slanted(num: int, seed: int = 7) -> np.ndarray:
    """Unit rows that lie mostly along some directions, about a mean that is far from zero."""
    rng = np.random.default_rng(seed)
    return planted.unit(rng.normal(size=(num, DIM)) * np.linspace(0.3, 2, DIM) + np.linspace(1, 0, DIM))


def plainly_whitened(sample: np.ndarray, rows: np.ndarray, dim: int) -> np.ndarray:
    sample, rows = sample.astype(np.float64), rows.astype(np.float64)
    variance, directions = np.linalg.eigh(np.cov(sample.T, bias=True))
    strongest = np.argsort(-variance)[:dim]
    values = (rows - sample.mean(axis=0)) @ directions[:, strongest] / np.sqrt(variance[strongest])
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.mark.parametrize("dim", [None, 3, 1])
def test_whitening_is_the_plain_formula(dim: int | None) -> None:
    sample, rows = slanted(300), slanted(40, seed=8)
    fit = adjusting.fit_whitening(sample, dim)
    found = adjusting.whitened(rows, fit)
    assert (found.shape, found.dtype) == ((40, dim or DIM), np.float16)
    expected = plainly_whitened(sample, rows, dim or DIM)
    np.testing.assert_allclose(np.abs((found * expected).sum(axis=1)) if dim == 1 else 1, 1, atol=1e-3)
    np.testing.assert_allclose(found.astype(np.float64) @ found.T, expected @ expected.T, atol=3e-3)
    scores = sample.astype(np.float64) @ fit.weights.T - fit.offset
    np.testing.assert_allclose(scores.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(np.cov(scores.T, bias=True), np.eye(dim or DIM).squeeze(), atol=1e-4)


def test_a_row_without_a_descriptor_stays_so() -> None:
    rows = slanted(3)
    rows[1], rows[2] = 0, np.nan
    found = adjusting.whitened(rows, adjusting.fit_whitening(slanted(100), None))
    assert not found[1].any() and np.isnan(found[2]).all()


def test_directions_that_hold_only_rounding_are_left_out() -> None:
    flat = np.concatenate([slanted(50), np.full((50, 2), 1e-7, dtype=np.float16)], axis=1)
    assert len(adjusting.fit_whitening(flat, None).offset) == DIM


@pytest.mark.parametrize(
    ("sample", "dim", "said"),
    [
        (slanted(11), None, "whitening.dim must be at most 5 with a sample of 11 images, was null (6 components)"),
        (slanted(7), 4, "whitening.dim must be at most 3 with a sample of 7 images, was 4"),
        (slanted(1).repeat(20, axis=0), None, "needs descriptors that differ, had 20"),
        (slanted(0), None, "needs descriptors that differ, had 0"),
    ],
)
def test_a_sample_that_tells_too_little_is_refused(sample: np.ndarray, dim: int | None, said: str) -> None:
    with pytest.raises(InputError) as error:
        adjusting.fit_whitening(sample, dim)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert len(adjusting.fit_whitening(slanted(12), None).offset) == DIM


@pytest.mark.parametrize("block", [4, 1024])
def test_background_images_that_are_alike_count_once(block: int, monkeypatch) -> None:
    monkeypatch.setattr(adjusting, "BLOCK", block)
    vectors = planted.random_units(np.random.default_rng(3), 50, 4)
    taken: list[int] = []
    for row in range(50):
        if all(float(vectors[row].astype(np.float64) @ vectors[t].astype(np.float64)) < 0.5 for t in taken):
            taken.append(row)
    assert adjusting.distinct(vectors).tolist() == taken and 3 < len(taken) < 40


def plain_bias(vector: np.ndarray, name: str, background: Background) -> float:
    others = [v for v, other in zip(background.vectors, background.image_id, strict=True) if other != name]
    near = sorted(planted.cosine(vector[None], np.array(others))[0], reverse=True)[: RULES.neighbours]
    return RULES.weight * max(float(np.mean(near)), 0)


def test_biases_are_those_of_brute_force() -> None:
    rows, names = slanted(30), np.array([planted.identity(n) for n in range(30)], dtype=object)
    background = Background(None, rows[::3], names[::3])
    found = adjusting.biases(rows, names, background, RULES, device="cpu")
    expected = [plain_bias(row, name, background) for row, name in zip(rows, names, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.dtype == np.float32 and (found > 0.1).any()
    nobody = np.full(30, None, dtype=object)
    assert (adjusting.biases(rows, nobody, background, RULES, device="cpu")[::3] > found[::3]).all(), "with themselves"
    far = Background(None, -rows[:1], names[:1])
    assert adjusting.biases(rows[:1], nobody[:1], far, RULES, device="cpu").tolist() == [0.0], "never below 0"
    nothing = Background(None, rows[:0], names[:0])
    assert adjusting.biases(rows[:2], names[:2], nothing, RULES, device="cpu").tolist() == [0.0, 0.0]


class Case:
    """A pool of descriptors, three references, and what they become."""

    def __init__(
        self, root: str, layout: planted.Layout, whitening: Whitening | None, rules: ScoreNormalisation | None
    ) -> None:
        self.values, self.others = slanted(ROWS), slanted(9, seed=8)
        self.descriptors = planted.vectors(root, "descriptors", self.values, layout, left_out=GONE, rejects=REJECTED)
        rows = [{"image_id": f"ref-{n}", "vector": vector} for n, vector in enumerate(self.others)]
        self.others_at = planted.stage(root, "described", schemas.vectors(DIM), rows, ((4, 0, 5),))
        target = StageDir(root=root, stage="background", fingerprint="a")
        size = None if rules is None else 20
        adjusting.fit_background.fn(self.descriptors, target.planned(1)[0], whitening, size, 0)
        commit(target, 1, config={}, inputs={})
        self.background = target.shards()[0]
        self.pool = self.adjusted(self.descriptors, rules)
        self.references = self.adjusted(self.others_at, rules)
        self.there = sorted({*range(ROWS)} - {*GONE, *REJECTED})

    def adjusted(self, shards: list[ShardRef], rules: ScoreNormalisation | None) -> list[ShardRef]:
        result = []
        for part in planted.by_partition(shards):
            target = StageDir(root=part[0].root, stage="adjusted", fingerprint=part[0].directory.replace("/", "-"))
            for ref, place in zip(part, target.planned(len(part)), strict=True):
                adjusting.adjust_shard.fn(ref, self.background, place, rules, device="cpu")
            commit(target, len(part), config={}, inputs={})
            result += target.shards(base=part[0].base)
        return result

    def similarity(self, left: list[ShardRef], right: list[ShardRef]) -> np.ndarray:
        """By the stored vectors and biases, plainly."""
        (a, bias_a), (b, bias_b) = (
            [np.concatenate(column) for column in zip(*(neighbours.read_described(ref) for ref in refs), strict=True)]
            for refs in (left, right)
        )
        both = bias_a.astype(np.float64)[:, None] + bias_b.astype(np.float64)
        return (planted.cosine(a, b) - both / 2).round(5).astype(np.float32)


@pytest.mark.parametrize("whitening", [None, Whitening(sample_size=40, dim=4)])
@pytest.mark.parametrize("rules", [None, RULES])
def test_rows_are_the_same_however_they_are_cut(tmp_path, whitening, rules) -> None:
    found = []
    for number, layout in enumerate(LAYOUTS):
        case = Case(str(tmp_path / str(number)), layout, whitening, rules)
        tables = [read_table(ref) for ref in case.pool]
        assert [len(t) for t in tables] == [ref.rows for ref in case.descriptors]
        assert case.pool[0].base == case.descriptors[0].base
        ids = [name for t in tables for name in t["image_id"].to_pylist()]
        assert ids == [planted.identity(n) for n in case.there]
        assert all(("bias" in t.column_names) == (rules is not None) for t in tables)
        vectors = np.concatenate([vector_column(t) for t in tables])
        bias = [b.tobytes() for t in tables if (b := adjusting.bias_column(t)) is not None]
        found.append((vectors.tobytes(), b"".join(bias)))
        if whitening is None:
            assert found[-1][0] == case.values[case.there].tobytes()
        else:
            assert vectors.shape[1] == 4
            assert Storage(case.background.root).exists("background/a/fit.npz")
    assert found[0] == found[1] == found[2]


def test_rejects_go_on(local_root: str) -> None:
    case = Case(local_root, LAYOUTS[0], None, RULES)
    for before, after in zip(case.descriptors, case.pool, strict=True):
        assert read_table(after, kind="rejects").equals(read_table(before, kind="rejects"))
    kept = [row["reason"] for ref in case.pool for row in read_table(ref, kind="rejects").to_pylist()]
    assert sorted(kept) == ["not_finite", "truncated"]


def test_a_background_image_leaves_itself_out(local_root: str) -> None:
    case = Case(local_root, LAYOUTS[0], None, RULES)
    background = adjusting.read_background(case.background)
    assert {*background.image_id} <= {planted.identity(n) for n in case.there} and 1 < len(background.image_id) <= 20
    for ref in case.pool:
        for row in read_table(ref).to_pylist():
            expected = plain_bias(np.array(row["vector"], dtype=np.float16), row["image_id"], background)
            assert row["bias"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("whitening", [None, Whitening(dim=5)])
def test_edges_of_both_engines_are_those_of_brute_force(local_root: str, layout, whitening) -> None:
    case = Case(local_root, layout, whitening, RULES)
    within, across = case.similarity(case.pool, case.pool), case.similarity(case.pool, case.references)
    expected = {
        (a, b): within[i, j]
        for i, a in enumerate(case.there)
        for j, b in enumerate(case.there)
        if a < b and within[i, j] >= np.float32(FLOOR)
    }
    expected_across = {
        (a, b): across[i, b] for i, a in enumerate(case.there) for b in range(9) if across[i, b] >= np.float32(FLOOR)
    }
    assert len(expected) > 5 and (whitening or len(expected) < len(exact(case.descriptors, floor=FLOOR)))
    assert exact(case.pool, floor=FLOOR) == expected
    assert exact(case.pool, case.references, floor=FLOOR) == expected_across
    pool = in_cells(case.pool, case.pool)
    of = in_cells(case.pool, case.references, pool.centroids, is_pool=False)
    assert by_cells(pool, probes=12, floor=FLOOR) == expected
    assert by_cells(pool, of, probes=12, floor=FLOOR) == expected_across
    places = np.searchsorted(case.there, np.array(list(expected)))
    found = components.cosines(case.pool, places[:, 0], case.pool, places[:, 1])
    assert found.tolist() == list(expected.values()), "the score of a copy is the similarity of its edge"


@pytest.mark.parametrize("is_pool", [True, False])
def test_recall_is_certified_by_adjusted_pairs(local_root: str, is_pool: bool) -> None:
    case = Case(local_root, LAYOUTS[0], None, RULES)
    pool = in_cells(case.pool, case.pool)
    asked = pool if is_pool else in_cells(case.pool, case.references, pool.centroids, is_pool=False)
    drawn = StageDir(root=local_root, stage="queries", fingerprint="a")
    neighbours.draw_queries.fn(asked, drawn.planned(1)[0], 100, 0)
    commit(drawn, 1, config={}, inputs={})
    (queries,) = drawn.shards()
    target = StageDir(root=local_root, stage="truth", fingerprint="a")
    options = {"min_similarity": FLOOR, "device": "cpu"}
    found = [
        row["similarity"]
        for ref in target.planned(len(case.pool))
        for row in read_table(neighbours.true_pairs_shard.fn(queries, pool, ref, **options)).to_pylist()
    ]
    all_ = case.similarity(case.pool if is_pool else case.references, case.pool)
    if is_pool:
        np.fill_diagonal(all_, -1)
    assert sorted(found) == sorted(all_[all_ >= np.float32(FLOOR)].tolist()) and found


def test_what_is_found_is_chosen_by_adjusted_similarity(local_root: str) -> None:
    case = Case(local_root, LAYOUTS[0], None, RULES)
    queries, bias = (np.concatenate(c) for c in zip(*map(neighbours.read_described, case.references), strict=True))
    expected = case.similarity(case.references, case.pool)
    for k, least in ((1, -1.0), (3, 0.1), (50, -1.0)):
        hits = finding.nearest_stored(queries, case.pool, k=k, min_similarity=least, bias=bias)
        for own, row in zip(hits, expected, strict=True):
            best = [i for i in np.argsort(-row, kind="stable") if row[i] >= np.float32(least)][:k]
            assert [hit.similarity for hit in own] == [round(float(row[i]), 5) for i in best]
            assert {hit.image_id for hit in own} == {planted.identity(case.there[i]) for i in best}


@pytest.mark.parametrize("option", ["whitening", "score_normalisation"])
def test_thresholds_are_demanded(option: str) -> None:
    own = copies.Config(model="builtin:dct")
    assert copy_thresholds(own).min_similarity > 0
    assert not {"whitening", "score_normalisation"} & {*own.model_dump(), *own.model_dump(mode="json")}
    with pytest.raises(InputError, match=r"recipe.copies.min_similarity must be given .* 'lvd study copies'$"):
        copy_thresholds(copies.Config(model="builtin:dct", **{option: {}}))
    given = {"model": "builtin:dct", option: {}, "min_similarity": 0.4}
    with pytest.raises(InputError, match=r"recipe.copies.benchmark_min_similarity must be given"):
        copy_thresholds(copies.Config(**given))
    config = copies.Config(**given, benchmark_min_similarity=0.3)
    assert copy_thresholds(config).edge_min_similarity == 0.3
    assert copies.Config(**config.model_dump()) == config
