"""Clusters of a pool: cells against brute force, repeatable centroids, and a clear word when there are too many."""

from pathlib import Path

import numpy as np
import pytest

from lvd.infra.errors import InputError
from lvd.infra.shards import ShardRef, StageDir, commit, pool_rows, read_column, read_table
from lvd.tasks import cluster
from lvd.tasks.models import engine
from lvd.tests.tasks import planted

LAYOUT = ((30, 0, 25), (5, 40))
LEFT_OUT = (0, 3, 55, 56, 57, 58, 59, 99)  # a whole shard among them
KEPT = np.delete(np.arange(100), LEFT_OUT)
BLOBS = 4
CONFIG = cluster.Config(num_clusters=BLOBS, iterations=10)


def blobs() -> np.ndarray:
    """(100, 12) rows around four directions; row n is of blob n % 4."""
    rng = np.random.default_rng(0)
    return planted.unit(np.eye(12)[np.arange(100) % BLOBS] + 0.1 * rng.normal(size=(100, 12)))


def fitted(root: str, config: cluster.Config = CONFIG, seed: int = 0) -> tuple[list[ShardRef], ShardRef, StageDir]:
    """(vectors, centroids, the centroids' directory)."""
    vectors = planted.vectors(root, "embed", blobs(), LAYOUT, left_out=LEFT_OUT)
    target = StageDir(root=root, stage="centroids", fingerprint=f"{config.sample_per_cluster}-{seed}")
    return vectors, cluster.fit_centroids.fn(vectors, target.planned(1)[0], config, seed), target


def assigned(root: str, vectors: list[ShardRef], centroids: ShardRef) -> list[ShardRef]:
    planned = StageDir(root=root, stage="cluster", fingerprint="a").planned(len(vectors))
    return [cluster.assign_shard.fn(v, centroids, ref) for v, ref in zip(vectors, planned, strict=True)]


def test_planted_clusters_are_found_and_every_image_has_its_cell(local_root: str) -> None:
    vectors, centroids, target = fitted(local_root)
    table = read_table(centroids)
    assert table["cluster_id"].to_pylist() == list(range(BLOBS)) and centroids.rows == BLOBS
    middle = engine.read_vectors(centroids)
    np.testing.assert_allclose(np.linalg.norm(middle.astype(np.float64), axis=1), 1, atol=1e-6)

    cells = assigned(local_root, vectors, centroids)
    assert [ref.rows for ref in cells] == [28, 0, 25, 0, 39]
    assert read_column(cells, "row").to_pylist() == pool_rows(vectors).tolist() == KEPT.tolist()
    assert read_column(cells, "image_id").to_pylist() == [planted.identity(n) for n in KEPT]
    similarity = planted.cosine(blobs()[KEPT], middle)
    home = read_column(cells, "cluster_id").to_numpy()
    np.testing.assert_array_equal(home, similarity.argmax(axis=1))
    np.testing.assert_allclose(read_column(cells, "similarity").to_numpy(), similarity.max(axis=1), atol=1.1e-5)
    groups = [{*home[blob == KEPT % BLOBS].tolist()} for blob in range(BLOBS)]
    assert sorted(map(sorted, groups)) == [[n] for n in range(BLOBS)]

    assert table["size"].to_pylist() == np.bincount(home).tolist()  # the sample was all there is
    commit(target, 1, config={}, inputs={})
    notes = target.account()["shard_notes"][0]
    assert notes["num_effective"] == BLOBS and len(notes["objective"]) == CONFIG.iterations
    assert notes["objective"][-1] == pytest.approx(similarity.max(axis=1).mean(), abs=1e-3)


def test_a_fit_on_a_sample_counts_the_sample(local_root: str) -> None:
    config = CONFIG.model_copy(update={"sample_per_cluster": 5})
    _, centroids, _ = fitted(local_root, config)
    assert sum(read_table(centroids)["size"].to_pylist()) == 20
    _, other, _ = fitted(local_root + "2", config, seed=1)
    assert not np.array_equal(engine.read_vectors(centroids), engine.read_vectors(other))


def test_the_start_is_seeded(local_root: str) -> None:
    fits = [engine.read_vectors(fitted(f"{local_root}{seed}", seed=seed)[1]).tobytes() for seed in range(4)]
    assert len({*fits}) > 1  # the same clusters in another order


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    files = []
    for name in "ab":
        vectors, centroids, _ = fitted(str(tmp_path / name))
        refs = [centroids, *assigned(str(tmp_path / name), vectors, centroids)]
        files.append([(tmp_path / name / ref.name()).read_bytes() for ref in refs])
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("kept", "num_clusters", "message"),
    [
        (5, 6, r"recipe.cluster.num_clusters must be in \[1, 5\].*was 6: set it lower"),
        (0, 1, "must leave at least 1 image to cluster, left 0: loosen"),
    ],
)
def test_too_few_images_are_the_user_s_to_mend(local_root: str, kept: int, num_clusters: int, message: str) -> None:
    vectors = planted.vectors(local_root, "embed", blobs(), LAYOUT, left_out=range(kept, 100))
    target = StageDir(root=local_root, stage="centroids", fingerprint="a")
    with pytest.raises(InputError, match=message):
        cluster.fit_centroids.fn(vectors, target.planned(1)[0], cluster.Config(num_clusters=num_clusters), 0)
    assert target.missing(1) == target.planned(1)


def test_as_many_clusters_as_images(local_root: str) -> None:
    vectors = planted.vectors(local_root, "embed", blobs(), LAYOUT, left_out=range(5, 100))
    target = StageDir(root=local_root, stage="centroids", fingerprint="a").planned(1)[0]
    centroids = cluster.fit_centroids.fn(vectors, target, cluster.Config(num_clusters=5), 0)
    assert read_table(centroids)["size"].to_pylist() == [1] * 5
    found = np.concatenate([block for _, block in engine.vector_blocks(vectors)])
    assert planted.cosine(found, engine.read_vectors(centroids)).max(axis=1).min() > 0.999
