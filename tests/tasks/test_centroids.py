"""Centroids: the sample, a fit that goes on where it was, and passes over the pool, however the pool is cut."""

from pathlib import Path

import numpy as np
import pytest

from lvd.infra.committing import commit
from lvd.infra.errors import InputError
from lvd.infra.series import Series
from lvd.infra.shards import ShardRef, StageDir, read_table
from lvd.infra.storage import Storage
from lvd.tasks import centroids
from lvd.tasks.algorithms.row_hash import row_hash
from lvd.tasks.cluster import Config
from lvd.tasks.models.engine import read_vectors
from lvd.tests.tasks import planted

ROWS, DIM, NUM = 600, 8, 5
SHARDS = (1, 8, 37)
POOL = planted.around(np.random.default_rng(0), ROWS, DIM, NUM, spread=0.3)
CONFIG = Config(num_clusters=NUM, iterations=6, sample_per_cluster=20)


@pytest.fixture(autouse=True)
def no_file_waits_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda file: None)


def pool_of(root: str, num_shards: int, values: np.ndarray = POOL) -> Series:
    return planted.series(planted.vectors(root, "embed", values, planted.cut(len(values), num_shards)))


def sampled(root: str, vectors: Series, config: Config = CONFIG, seed: int = 0) -> list[ShardRef]:
    count = centroids.num_groups(vectors, config.num_clusters)
    return planted.computed(
        root, "sampled", count, lambda ref: centroids.sample_group.fn(vectors, ref, config, seed), called=f"s{seed}"
    )


def drawn(seed: int, size: int) -> np.ndarray:
    """The rows of the lowest hashes, in their order."""
    return np.sort(np.argsort(row_hash(np.arange(ROWS), seed, centroids.SAMPLE))[:size])


@pytest.mark.parametrize("num_shards", SHARDS)
@pytest.mark.parametrize("rows_per_group", [50, 1_000_000])
def test_the_sample_is_the_same_however_the_pool_is_cut(
    local_root: str, num_shards: int, rows_per_group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(centroids, "rows_per_group", lambda num_clusters: rows_per_group)
    vectors = pool_of(local_root, num_shards)
    is_whole = num_shards == 1 or rows_per_group > ROWS
    assert (centroids.num_groups(vectors, NUM) == 1) == is_whole
    for seed in (0, 1):
        refs = sampled(local_root, vectors, seed=seed)
        sample = centroids.read_sample(refs, 100)
        assert sample.dtype == np.float16 and sample.shape == (100, DIM)
        np.testing.assert_array_equal(sample, POOL[drawn(seed, 100)])
        assert 100 < sum(ref.rows for ref in refs) < ROWS, "a few more are drawn, and not all"
    assert not np.array_equal(drawn(0, 100), drawn(1, 100))


def test_a_sample_of_more_than_there_are_is_the_pool(local_root: str) -> None:
    vectors = pool_of(local_root, 8)
    config = CONFIG.model_copy(update={"sample_per_cluster": 1000})
    np.testing.assert_array_equal(centroids.read_sample(sampled(local_root, vectors, config), ROWS), POOL)


@pytest.mark.parametrize(
    ("total", "num_clusters", "size"), [(100, 3, 60), (60, 3, 60), (59, 3, 59), (3, 3, 3), (1, 1, 1)]
)
def test_the_size_of_the_sample(total: int, num_clusters: int, size: int) -> None:
    assert centroids.sample_size(total, Config(num_clusters=num_clusters, sample_per_cluster=20)) == size


@pytest.mark.parametrize(
    ("total", "num_clusters", "message"),
    [
        (5, 6, r"recipe.cluster.num_clusters must be in \[1, 5\].*was 6: set it lower"),
        (0, 1, "must leave at least 1 image to cluster, left 0: loosen"),
    ],
)
def test_too_few_images_are_the_user_s_to_mend(total: int, num_clusters: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        centroids.sample_size(total, Config(num_clusters=num_clusters))


def fitted(root: str, num_shards: int = 8, config: Config = CONFIG) -> ShardRef:
    vectors = pool_of(root, num_shards)
    sample = planted.series(sampled(root, vectors, config))
    target = StageDir(root=root, stage="fit", fingerprint="a").planned(1)[0]
    done = centroids.fit_centroids.fn(sample, ROWS, target, config, 0, device="cpu")
    commit(StageDir(root=root, stage="fit", fingerprint="a"), 1, config={}, inputs={})
    return done


def test_planted_clusters_are_found(local_root: str) -> None:
    ref = fitted(local_root)
    table, middle = read_table(ref), read_vectors(ref)
    assert table["cluster_id"].to_pylist() == list(range(NUM)) and ref.rows == NUM
    np.testing.assert_allclose(np.linalg.norm(middle.astype(np.float64), axis=1), 1, atol=1e-6)
    similarity = planted.cosine(POOL[drawn(0, 100)], middle)
    assert table["size"].to_pylist() == np.bincount(similarity.argmax(axis=1), minlength=NUM).tolist()
    assert similarity.max(axis=1).mean() > 0.7
    (notes,) = StageDir(root=local_root, stage="fit", fingerprint="a").account()["shard_notes"]
    objective = [one["objective"] for one in notes["iterations"]]
    assert len(objective) == CONFIG.iterations and objective == sorted(objective)
    assert {one["over"] for one in notes["iterations"]} == {"sample"}


def test_the_fit_does_not_depend_on_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = []
    for num_shards in SHARDS:
        monkeypatch.setattr(centroids, "rows_per_group", lambda k, n=num_shards: ROWS // n)
        ref = fitted(str(tmp_path / str(num_shards)), num_shards)
        files.append((tmp_path / str(num_shards) / ref.name()).read_bytes())
    assert len({*files}) == 1


RESAMPLED = Config(kind="hierarchical", levels=(NUM, 2), iterations=6, sample_per_cluster=20, resample_steps=2)


@pytest.mark.parametrize(
    ("last", "config"),
    # the sixth: interrupted between the fit and its shard, or the first resampling
    [(1, CONFIG), (3, CONFIG), (6, CONFIG), (4, RESAMPLED), (6, RESAMPLED), (7, RESAMPLED), (8, RESAMPLED)],
)
def test_an_interrupted_fit_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int, config: Config
) -> None:
    ref = fitted(str(tmp_path / "whole"), config=config)
    write, seen = centroids.Checkpoint.write, []

    def interrupted(self: centroids.Checkpoint, progress, *, steps: int = 0) -> None:
        write(self, progress, steps=steps)
        seen.append(len(progress.iterations) + steps)
        if len(seen) == last:
            raise KeyboardInterrupt

    monkeypatch.setattr(centroids.Checkpoint, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fitted(str(tmp_path / "cut"), config=config)
    storage = Storage(str(tmp_path / "cut"))
    assert not storage.exists(ref.name()) and storage.exists(ref.name("progress", "npz"))
    fitted(str(tmp_path / "cut"), config=config)
    assert seen == [*range(1, 7 + (config is RESAMPLED) * 2)], "no iteration is done twice"
    assert storage.read_bytes(ref.name()) == (tmp_path / "whole" / ref.name()).read_bytes()


def passed(root: str, vectors: Series, before: ShardRef, number: int) -> ShardRef:
    """The centroids after one pass: sums of every group, added up in a tree."""
    count = centroids.num_groups(vectors, before.rows)
    parts = planted.computed(
        root,
        "sums",
        count,
        lambda ref: centroids.sums_group.fn(vectors, before, ref, device="cpu"),
        called=f"{number}",
    )
    while len(parts) > centroids.FAN_IN:
        some = [parts[n : n + centroids.FAN_IN] for n in range(0, len(parts), centroids.FAN_IN)]
        parts = planted.computed(
            root,
            "sums",
            len(some),
            lambda ref, some=some: centroids.reduce_sums.fn(some[ref.index], ref),
            called=f"{number}-{len(some)}",
        )
    done = [{"over": "pool"}] * number
    return planted.computed(
        root, "moved", 1, lambda ref: centroids.move_centroids.fn(parts, before, done, ref), called=f"{number}"
    )[0]


START = planted.random_units(np.random.default_rng(3), NUM, DIM).astype(np.float32)


def moved(middle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(unit means of the rows by nearest centroid, how many they are)."""
    home = planted.cosine(POOL, middle).argmax(axis=1)
    sums = np.stack([POOL[home == n].astype(np.float64).sum(axis=0) for n in range(len(middle))])
    return sums / np.linalg.norm(sums, axis=1, keepdims=True), np.bincount(home, minlength=len(middle))


def test_passes_give_the_same_bytes_for_any_shards_groups_and_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = []
    for num_shards, rows_per_group, fan_in in [(1, 10**6, 8), (8, 10**6, 8), (37, 10**6, 8), (37, 1, 2), (8, 100, 3)]:
        monkeypatch.setattr(centroids, "rows_per_group", lambda k, rows=rows_per_group: rows)
        monkeypatch.setattr(centroids, "FAN_IN", fan_in)
        root = str(tmp_path / f"{num_shards}-{rows_per_group}-{fan_in}")
        vectors, ref = pool_of(root, num_shards), planted.centroids(root, START)
        for number in range(2):
            before, ref = read_vectors(ref), passed(root, vectors, ref, number)
        files.append(Storage(root).read_bytes(ref.name()))
    assert len({*files}) == 1
    expected, counts = moved(before)
    np.testing.assert_allclose(read_vectors(ref), expected, atol=1e-7)
    assert read_table(ref)["size"].to_pylist() == counts.tolist()
    (notes,) = StageDir(root=root, stage="moved", fingerprint="1").account()["shard_notes"]
    assert [one["over"] for one in notes["iterations"]] == ["pool", "pool"]
    objective = planted.cosine(POOL, before).max(axis=1).mean()
    assert notes["iterations"][1]["objective"] == pytest.approx(objective, abs=1e-5)


@pytest.mark.parametrize("num_shards", [1, 8])
def test_an_empty_cluster_starts_again_at_what_is_furthest(
    local_root: str, num_shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(centroids, "rows_per_group", lambda num_clusters: 100)
    start = START.copy()
    start[3] = start[1]  # never the nearest, as the lower number is first
    vectors, before = pool_of(local_root, num_shards), planted.centroids(local_root, start)
    ref = passed(local_root, vectors, before, 0)
    assert read_table(ref)["size"].to_pylist()[3] == 0
    (notes,) = StageDir(root=local_root, stage="moved", fingerprint="0").account()["shard_notes"]
    assert notes["iterations"][0]["num_empty"] == 1
    row = POOL[planted.cosine(POOL, start).max(axis=1).argmin()].astype(np.float64)
    np.testing.assert_allclose(read_vectors(ref)[3], row / np.linalg.norm(row), atol=1e-7)
    assert 0 not in read_table(passed(local_root, vectors, ref, 1))["size"].to_pylist()


def test_the_last_centroids_are_kept_under_the_name_of_the_fit(local_root: str) -> None:
    found, target = fitted(local_root), StageDir(root=local_root, stage="centroids", fingerprint="z")
    done = [{"over": "sample", "objective": 0.5}]
    (ref,) = planted.computed(
        local_root, "centroids", 1, lambda ref: centroids.last_centroids.fn(found, done, ref, CONFIG, 0), called="z"
    )
    assert read_table(ref).equals(read_table(found))
    assert target.account()["shard_notes"] == [{"iterations": done, "dim": DIM}]
