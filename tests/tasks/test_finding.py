"""Vectors and hashes on storage, and which of them are like those that are asked for."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lvd.infra.committing import commit
from lvd.infra.shards import ShardRef, StageDir, read_table
from lvd.tasks import finding, models, neighbours, schemas
from lvd.tasks.algorithms import pca_hash
from lvd.tasks.decode import DecodeError, decode_rgb
from lvd.tasks.models import engine
from lvd.tests import copying
from lvd.tests.drawing import CLASSES, draw
from lvd.tests.tasks import planted

LAYOUT = ((3, 0, 4), (5, 2))
ROWS = (0, 1, 3, 4, 6, 7, 9, 12, 13)  # of the 14 images those that have a vector
DIM = 16


def picture(number: int) -> Image.Image:
    return draw(list(CLASSES)[number % len(CLASSES)], np.random.default_rng([8, number]), (160, 120))


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    rows = np.random.default_rng(0).standard_normal((len(ROWS), DIM))
    rows[4] = rows[2]  # two that are alike
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, vectors: np.ndarray) -> list[ShardRef]:
    named = zip(ROWS, vectors, strict=True)
    rows = {row: {"image_id": planted.identity(row), "vector": vector} for row, vector in named}
    return planted.stage(str(tmp_path_factory.mktemp("vectors")), "embed", schemas.vectors(DIM), rows, LAYOUT)


def ids(hits: list[finding.Hit]) -> list[str]:
    return [hit.image_id for hit in hits]


@pytest.mark.parametrize("k", [1, 3, 100])
def test_the_nearest_are_those_of_brute_force(stored: list[ShardRef], vectors: np.ndarray, k: int) -> None:
    queries = np.concatenate([vectors[[5, 2]], -vectors[[0]]])
    similarity = (queries.astype(np.float64) @ vectors.astype(np.float64).T).round(5)
    for hits, row in zip(finding.nearest_stored(queries, stored, k=k), similarity, strict=True):
        order = np.argsort(-row, kind="stable")[:k]
        assert ids(hits) == [planted.identity(ROWS[i]) for i in order]
        assert [hit.similarity for hit in hits] == pytest.approx(row[order], abs=1e-5)
        assert [(hit.directory.endswith("part1"), hit.row) for hit in hits] == [
            (ROWS[i] >= 7, ROWS[i] - 7 * (ROWS[i] >= 7)) for i in order
        ]


@pytest.mark.parametrize("probes", [1, 2, 4])
def test_only_the_cells_that_a_query_probes_are_compared(
    stored: list[ShardRef], vectors: np.ndarray, probes: int
) -> None:
    root, queries = stored[0].root, vectors[[5, 2]]
    fitted, probed = (StageDir(root=root, stage=name, fingerprint=f"{probes}") for name in ("cells", "probes"))
    neighbours.fit_cells.fn(planted.series(stored), fitted.planned(1)[0], 4, 0)
    commit(fitted, 1, config={}, inputs={})
    (centroids,) = fitted.shards()
    for ref, target in zip(stored, probed.planned(len(stored)), strict=True):
        neighbours.probe_shard.fn(ref, centroids, target, max_probes=2, device="cpu")
    commit(probed, len(stored), config={}, inputs={})
    inverted = finding.Inverted(centroids=centroids, cells=probed.shards(), probes=probes)
    cell = np.concatenate([read_table(ref)["cell"].to_numpy() for ref in probed.shards()])
    centres = engine.read_vectors(centroids)
    near = np.argsort(-(queries.astype(np.float32) @ centres.T), axis=1)[:, :probes]
    there = np.flatnonzero(np.isin(cell, near))
    similarity = (queries.astype(np.float64) @ vectors.astype(np.float64).T).round(5)
    found = finding.nearest_stored(queries, stored, k=9, inverted=inverted)
    for hits, row in zip(found, similarity, strict=True):
        order = there[np.argsort(-row[there], kind="stable")]
        assert ids(hits) == [planted.identity(ROWS[i]) for i in order]
    assert (len(there) == len(vectors)) == (probes == 4)


def test_a_bound_leaves_out_what_is_below_it(stored: list[ShardRef], vectors: np.ndarray) -> None:
    (hits,) = finding.nearest_stored(vectors[[2]], stored, k=9, min_similarity=0.99)
    assert ids(hits) == [planted.identity(3), planted.identity(6)]


def test_a_query_of_zeros_has_no_neighbours_and_moves_no_other(stored: list[ShardRef], vectors: np.ndarray) -> None:
    queries = np.concatenate([np.zeros((1, DIM), dtype=np.float16), vectors[[7]]])
    nothing, hits = finding.nearest_stored(queries, stored, k=1)
    assert (nothing, ids(hits)) == ([], [planted.identity(12)])
    assert finding.nearest_stored(queries, [], k=1) == [[], []]
    assert finding.nearest_stored(queries[:0], stored, k=1) == []


def test_vectors_do_not_depend_on_the_batch_and_a_broken_image_has_none() -> None:
    inference = models.Inference(model="builtin:dct", precision="float32")
    images = [copying.jpeg(picture(number))[1] for number in range(5)]
    images.insert(3, images[0][:200])
    model = models.load(engine.spec_of(inference))
    one_by_one = [
        model.embed(np.stack([model.preprocess(decode_rgb(i, min_short_edge_px=model.min_short_edge_px or None))]))[0]
        for i in images[:3]
    ]
    sizes = [inference.model_copy(update={"batch_size": size}) for size in (1, 4, 32)]
    found = [finding.vectors_of(iter(images), sized, device="cpu") for sized in sizes]
    assert found[0].shape == (6, model.dim)
    assert found[0].dtype == np.float16
    assert not found[0][3].any()
    np.testing.assert_array_equal(found[0][:3], np.float16(one_by_one))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    assert finding.vectors_of([], sizes[1], device="cpu").shape == (0, model.dim)
    on_gpus = sizes[1].model_copy(update={"precision": "bfloat16"})  # a model that only a processor runs
    np.testing.assert_array_equal(finding.vectors_of(iter(images), on_gpus, device="cuda:0"), found[0])


def test_near_hashes_are_confirmed_by_the_thumbnails(tmp_path: Path) -> None:
    pictures = [copying.png(picture(number))[1] for number in range(14)]
    thumbnails = np.stack([finding.thumbnail_of(data) for data in pictures])
    others = (draw(list(CLASSES)[n % len(CLASSES)], np.random.default_rng([9, n]), (64, 48)) for n in range(150))
    fit = pca_hash.fit([np.stack([finding.thumbnail_of(copying.png(other)[1]) for other in others])])
    codes = pca_hash.codes(fit, thumbnails)
    codes[4] = codes[2]  # by chance: the thumbnails do not confirm it, and 2 itself is not stored
    named = {row: {"image_id": planted.identity(row)} for row in ROWS}
    coded = {row: {**name, "pca_hash": codes[row].tobytes()} for row, name in named.items()}
    measured = {row: {**name, "thumbnail": thumbnails[row].tobytes()} for row, name in named.items()}
    hashes = planted.stage(str(tmp_path), "hashes", schemas.HASHES, coded, LAYOUT)
    measures = planted.stage(str(tmp_path), "screen", schemas.MEASURES, measured, LAYOUT)
    again = [copying.jpeg(decode_rgb(pictures[number]), 90)[1] for number in (12, 2, 3)]
    queries = np.stack([finding.thumbnail_of(data) for data in again])
    found = finding.near_hashes(queries, hashes, measures, fit, max_distance=6, min_similarity=0.985)
    assert [ids(hits) for hits in found] == [[planted.identity(12)], [], [planted.identity(3)]]
    near = finding.near_hashes(queries, hashes, measures, fit, max_distance=6, min_similarity=-1)
    assert planted.identity(4) in ids(near[1])
    assert all(hit.similarity > 0.985 for hits in found for hit in hits)
    everything = finding.near_hashes(queries, hashes, measures, fit, max_distance=64, min_similarity=-1)
    assert [len(hits) for hits in everything] == [len(ROWS)] * 3
    assert [hit.similarity for hit in everything[0]] == sorted((h.similarity for h in everything[0]), reverse=True)


def test_a_thumbnail_is_the_one_that_screening_measures() -> None:
    with pytest.raises(DecodeError):
        finding.thumbnail_of(b"no image")
    assert finding.thumbnail_of(copying.png(picture(1))[1]).shape == (1024,)
