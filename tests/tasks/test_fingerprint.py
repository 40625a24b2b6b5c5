"""PCA hashes of a pool, and which of equal and of nearly equal images stays."""

import io
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from lvd.infra.errors import InputError
from lvd.infra.shards import ShardRef, StageDir, pool_rows, read_column, read_table
from lvd.infra.storage import Storage
from lvd.tasks import fingerprint, hash_fit, near_duplicates, schemas, screen
from lvd.tasks.algorithms import graph, pca_hash
from lvd.tasks.decode import DecodeError, decode_rgb
from lvd.tasks.fates import Fates
from lvd.tests import copying
from lvd.tests.drawing import CLASSES, draw
from lvd.tests.tasks import planted

CONFIG = fingerprint.Config()
LIMITS = {"max_distance": CONFIG.max_distance, "min_similarity": CONFIG.min_thumbnail_similarity}
FEW = fingerprint.Config(sample_size=4)
FIT = "hash-fit/a/fit.npz"


def picture(number: int, size: tuple[int, int] = (192, 144)) -> Image.Image:
    return draw(list(CLASSES)[number % len(CLASSES)], np.random.default_rng([5, number]), size)


class Chain:
    """Images of a pool with their measures, and fates in which all but `ended` are alive."""

    def __init__(self, root: str, rows: list[dict], layout: planted.Layout, ended: tuple[int, ...] = ()) -> None:
        self.root, self.images = root, planted.images(root, rows, layout)
        measured, rejects = {}, {}
        for number, row in enumerate(rows):
            try:
                measured[number] = {"image_id": row["image_id"], **screen.measures(decode_rgb(row["image"]["bytes"]))}
            except DecodeError as error:
                rejects[number] = error.reason
        self.measures = planted.stage(root, "screen", schemas.MEASURES, measured, layout, rejects=rejects)
        fates = Fates(np.array([row["image_id"] for row in rows], dtype=object))
        fates.end([*rejects, *ended], "dropped", "screen", "planted")
        fates.write(self.directory("screened"), self.images, {}, "screen")
        self.fates = self.directory("screened").planned(len(self.images))
        self.fit_at = self.directory("hash-fit")

    def directory(self, name: str) -> StageDir:
        return StageDir(root=self.root, stage=name, fingerprint="a")

    @property
    def fit_uri(self) -> str:
        return f"{self.root}/{FIT}"

    def fitted(self, config: fingerprint.Config = CONFIG, seed: int = 0) -> bytes:
        """The file of a new fit."""
        (target,) = self.fit_at.planned(1)
        hash_fit.fit_hash.fn(self.measures, target, config.sample_size, seed)
        return self.fit_at.storage.read_bytes(FIT)

    def hashed(self) -> list[ShardRef]:
        """One directory of hashes for each partition of the measures."""
        hashed = []
        for number, shards in enumerate(planted.by_partition(self.measures)):
            planned = self.directory(f"fingerprint-{number}").planned(len(shards))
            for shard, ref in zip(shards, planned, strict=True):
                done = fingerprint.hash_shard.fn(shard, ref, self.fit_uri)
                hashed.append(done.model_copy(update={"base": shard.base}))
        return hashed

    def decided(self, config: fingerprint.Config = CONFIG) -> Fates:
        target = self.directory("unique")
        hashes = self.hashed()
        self.decision = fingerprint.decide.fn(self.images, self.measures, hashes, self.fates, target, config)
        return Fates.read(target.planned(len(self.images)))


@pytest.fixture(scope="module")
def various(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Fourteen pictures, one of which cannot be decoded."""
    rows = [planted.image(copying.png(picture(n, (64, 48)))[1]) for n in range(13)]
    rows.insert(1, planted.image(b"no image"))
    return Chain(str(tmp_path_factory.mktemp("various")), rows, planted.TWO_PARTITIONS)


@pytest.fixture(scope="module")
def fit(various: Chain) -> bytes:
    return various.fitted(FEW)


@pytest.fixture
def pool(local_root: str, fit: bytes) -> Callable[..., Chain]:
    """Makes a pool whose fit is stored already: a fit takes a second."""

    def make(rows: list[dict], layout: planted.Layout, ended: tuple[int, ...] = ()) -> Chain:
        chain = Chain(local_root, rows, layout, ended)
        chain.fit_at.storage.write_bytes(FIT, fit)
        return chain

    return make


def ended(fates: Fates) -> dict[int, tuple[str, str]]:
    """Row → reason and the image that caused it, of what fingerprint ended."""
    rows = np.flatnonzero(fates.stage == "fingerprint").tolist()
    assert all(fates.state[row] == "dropped" for row in rows)
    return {row: (fates.reason[row], fates.because_of[row]) for row in rows}


def test_hashes_follow_the_rows_of_the_pool(various: Chain, fit: bytes) -> None:
    hashes = various.hashed()
    assert [ref.rows for ref in hashes] == [2, 0, 4, 5, 2]
    rows = [0, *range(2, 14)]
    assert pool_rows(hashes).tolist() == rows == pool_rows(various.measures).tolist()
    ids = read_column(various.images, "image_id").to_pylist()
    assert read_column(hashes, "image_id").to_pylist() == [ids[row] for row in rows]
    stored = hash_fit.read_fit(various.fit_uri)
    thumbnails = near_duplicates.thumbnails(various.measures, np.array([12, 0, 5]))
    codes = read_column(hashes, "pca_hash").to_pylist()
    assert [code.tobytes() for code in pca_hash.codes(stored, thumbnails)] == [codes[12], codes[0], codes[5]]


def test_the_fit_is_seeded_and_what_is_stored_is_used(various: Chain, fit: bytes) -> None:
    before = [read_table(ref) for ref in various.hashed()]
    assert various.fitted(FEW) == fit
    other = various.fitted(FEW, seed=1)
    assert other != fit
    assert [read_table(ref) for ref in various.hashed()] != before
    various.fit_at.storage.write_bytes(FIT, fit)
    assert [read_table(ref) for ref in various.hashed()] == before


def test_shards_and_pools_without_a_measure(local_root: str) -> None:
    chain = Chain(local_root, [planted.image(b"no image %d" % n) for n in range(2)], ((2, 0), (0,)))
    chain.fitted()
    assert [ref.rows for ref in chain.hashed()] == [0, 0, 0]
    assert ended(chain.decided()) == {}
    assert chain.decision.alive == 0


def test_of_equal_bytes_the_first_living_image_stays(pool) -> None:
    contents = [0, 1, 0, 2, 1, 3, 0, 0, 2, 4, 5, 1, 6, 7]  # shards end after rows 3, 3, 7, 12, 14
    rows = [planted.image(copying.png(picture(n, (64, 48)))[1]) for n in contents]
    chain = pool(rows, planted.TWO_PARTITIONS, ended=(0, 8))
    fates = chain.decided()
    ids = [row["image_id"] for row in rows]
    assert ended(fates) == {row: ("exact_duplicate", ids[row]) for row in (4, 6, 7, 11)}
    assert fates.score[[4, 6, 7, 11]].tolist() == [1, 1, 1, 1]
    assert fates.reason[0] == fates.reason[8] == "planted"
    assert chain.decision.reasons == {"exact_duplicate": 4} and chain.decision.alive == 8


@pytest.fixture
def near(pool) -> Chain:
    """Three pictures with copies of theirs among ten others, two flat images and two gradients that are no copies."""
    rows = [copying.jpeg(picture(n), 92)[1] for n in range(10)]
    rows[2:2] = [copying.jpeg(picture(0), 60)[1], copying.png(Image.new("RGB", (96, 96), (90, 90, 90)))[1]]
    rows += [
        copying.png(Image.new("RGB", (96, 80), (91, 91, 91)))[1],
        copying.webp(copying.resized(picture(1), 1.5))[1],
        copying.jpeg(copying.resized(picture(1), 0.5))[1],
        copying.png(picture(4))[1],
    ]
    return pool([planted.image(data) for data in rows], ((4, 0, 5), (3, 4)))


def test_near_copies_go_and_flat_or_unrelated_images_do_not(near: Chain) -> None:
    fates = near.decided()
    ids = fates.image_id
    assert ended(fates) == {
        1: ("near_duplicate", ids[13]),  # the larger area
        14: ("near_duplicate", ids[13]),
        2: ("near_duplicate", ids[0]),  # the larger file
        6: ("near_duplicate", ids[15]),
    }
    for row, other in {1: 13, 14: 13, 2: 0, 6: 15}.items():
        pair = [near_duplicates.thumbnails(near.measures, np.array([at])) for at in (row, other)]
        assert fates.score[row] == pca_hash.thumbnail_similarity(*pair)[0]
    assert fates.score[[1, 14, 2, 6]].min() > 0.98
    assert near.decision.reasons == {"near_duplicate": 4} and near.decision.alive == 12


@pytest.mark.parametrize(
    ("rule", "dropped"),
    [
        ({"max_distance": 64, "min_thumbnail_similarity": 0.985}, 4),  # every pair is looked at, few are confirmed
        ({"min_thumbnail_similarity": 1.0}, 0),
        ({"max_distance": 64, "min_thumbnail_similarity": -1.0}, 15),
    ],
)
def test_a_pair_must_be_near_and_confirmed(near: Chain, rule, dropped: int) -> None:
    assert len(ended(near.decided(fingerprint.Config(**rule)))) == dropped


def test_equal_size_and_bytes_leave_the_lowest_id(pool) -> None:
    data = copying.png(picture(0))[1]
    rows = [planted.image(data, image_id=planted.identity(n), num_bytes=9) for n in (5, 3, 7)]
    fates = pool(rows, ((2,), (1,))).decided()
    assert {row: cause for row, (_, cause) in ended(fates).items()} == {0: planted.identity(3), 2: planted.identity(3)}


def test_an_ended_copy_takes_nothing_along(pool) -> None:
    rows = [planted.image(copying.jpeg(picture(0), quality)[1]) for quality in (95, 60)]
    assert ended(pool(rows, ((2,),), ended=(0,)).decided()) == {}


def test_rows_are_of_the_pool_however_many_have_ended(pool) -> None:
    data = [b"no image", *(copying.jpeg(picture(n), 92)[1] for n in range(3)), copying.jpeg(picture(1), 60)[1]]
    fates = pool([planted.image(d) for d in data], ((2, 0), (3,)), ended=(1,)).decided()
    assert ended(fates) == {4: ("near_duplicate", fates.image_id[2])}


def test_a_chain_of_near_copies_is_one_group_however_it_is_cut(pool, monkeypatch) -> None:
    shades = [picture(3).point(lambda v, n=n: min(255, v + 3 * n)) for n in range(6)]
    rows = [planted.image(copying.png(shade)[1], num_bytes=n) for n, shade in enumerate(shades)]
    for name, value in {"HELD": 4, "STEP": 1, "HELD_PAIRS": 3, "FIRST_PAIRS": 2}.items():
        monkeypatch.setattr(near_duplicates, name, value)
    fates = pool(rows, ((2, 2), (2,))).decided()
    assert {row: cause for row, (_, cause) in ended(fates).items()} == dict.fromkeys(range(5), fates.image_id[5])


def measured(root: str, pixels: np.ndarray, shards: tuple[int, ...]) -> list[ShardRef]:
    """Measures with these thumbnails and nothing else, in one partition."""
    rows = [{"image_id": planted.identity(n), "thumbnail": row.tobytes()} for n, row in enumerate(pixels)]
    return planted.stage(root, "measures", schemas.MEASURES, rows, (shards,))


def noisy(pixels: np.ndarray, count: int, scale: float, seed: int = 0) -> np.ndarray:
    """Re-encoded copies of one thumbnail."""
    noise = np.random.default_rng(seed).normal(0, scale, (count, len(pixels)))
    return np.clip(pixels + noise, 0, 255).round().astype(np.uint8)


def thumbnail(number: int) -> np.ndarray:
    return np.asarray(picture(number).convert("L").resize((32, 32), Image.Resampling.BOX)).ravel()


@pytest.fixture(scope="module")
def patterns() -> pca_hash.PcaHash:
    """A fit of no image: DCT patterns."""
    return pca_hash.fit([np.zeros((0, 1024), dtype=np.uint8)])


def drawn(fit: pca_hash.PcaHash, seed: int, *, weak: int = 0) -> np.ndarray:
    """A thumbnail of contrast 40 that shows every component clearly, but for the last `weak` ones."""
    strength = np.random.default_rng([8, seed]).choice([-160.0, 160.0], 64)
    strength[64 - weak :] = 2.0
    return np.clip(128 + strength @ fit.components, 0, 255).round().astype(np.uint8)


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many thumbnails were compared, by calls."""
    counted, real = [], pca_hash.thumbnail_similarity

    def counting(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        counted.append(len(a))
        return real(a, b)

    monkeypatch.setattr(pca_hash, "thumbnail_similarity", counting)
    return counted


@pytest.mark.parametrize("weak", [0, 14])  # all with one hash; hundreds of hashes near each other
def test_five_thousand_copies_are_one_group_without_comparing_them_all(
    local_root: str, patterns: pca_hash.PcaHash, compared: list[int], weak: int
) -> None:
    others = np.stack([drawn(patterns, number) for number in range(1, 40)])
    copies = noisy(drawn(patterns, 0, weak=weak), 5000, 2.0)
    pixels = np.concatenate([copies, others, np.full((3000, 1024), 90, dtype=np.uint8)])
    pixels = pixels[np.random.default_rng(1).permutation(len(pixels))]
    codes = pca_hash.codes(patterns, pixels)
    hashes = len(np.unique(codes, axis=0))
    assert hashes > 500 if weak else hashes == 41
    refs = measured(local_root, pixels, (4000, 0, len(pixels) - 4000))
    pairs = near_duplicates.near_pairs(refs, codes, np.arange(len(pixels)), **LIMITS)
    groups = np.bincount(graph.connected_components(pairs, len(pixels)))
    assert groups[groups > 1].tolist() == [5000]
    assert sum(compared) < 60_000  # of 12 million pairs of copies, and 4 million of flat images


def test_pictures_with_one_hash_are_told_apart_and_their_copies_found(local_root: str, compared: list[int]) -> None:
    originals = [thumbnail(number) for number in range(30)]
    pixels = np.concatenate([noisy(row, 20, 1.0, seed=n) for n, row in enumerate(originals)])
    order = np.random.default_rng(2).permutation(len(pixels))
    refs = measured(local_root, pixels[order], (100, 500))
    codes = np.tile(np.arange(8, dtype=np.uint8), (len(pixels), 1))
    positions = np.arange(len(pixels))
    labels = graph.connected_components(near_duplicates.near_pairs(refs, codes, positions, **LIMITS), len(pixels))
    truth = graph.first_seen(order // 20)
    similar = near_duplicates.similarities(np.stack(originals), np.column_stack(np.triu_indices(30, 1)))
    assert similar.max() < CONFIG.min_thumbnail_similarity  # no two of the pictures are copies of each other
    np.testing.assert_array_equal(labels, truth)
    assert sum(compared) < 30 * 600 + len(similar)


def test_pieces_of_a_large_group_share_their_representatives(local_root: str, monkeypatch) -> None:
    pixels = np.concatenate([noisy(thumbnail(n), 50, 1.0, seed=n) for n in range(3)])
    refs = measured(local_root, pixels[np.random.default_rng(3).permutation(150)], (90, 60))
    codes = np.zeros((150, 8), dtype=np.uint8)
    whole = near_duplicates.near_pairs(refs, codes, np.arange(150), **LIMITS)
    monkeypatch.setattr(near_duplicates, "HELD", 16)
    pieces = near_duplicates.near_pairs(refs, codes, np.arange(150), **LIMITS)
    found = [graph.connected_components(pairs, 150) for pairs in (whole, pieces)]
    np.testing.assert_array_equal(*found)
    assert len(np.unique(found[0])) == 3


def test_many_representatives_and_comparisons_have_an_end(local_root: str, monkeypatch, compared: list[int]) -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (300, 1024), dtype=np.uint8)  # no copies at all
    refs = measured(local_root, pixels, (300,))
    one_hash = np.zeros((300, 8), dtype=np.uint8)
    assert len(near_duplicates.near_pairs(refs, one_hash, np.arange(300), **LIMITS)) == 0
    assert sum(compared) == sum(300 - turn for turn in range(1, near_duplicates.MAX_REPRESENTATIVES + 1))
    compared.clear()
    monkeypatch.setattr(near_duplicates, "MAX_COMPARED", 20)
    monkeypatch.setattr(near_duplicates, "STEP", 50)
    near = np.zeros((300, 8), dtype=np.uint8)
    near[:, 0], near[:, 1] = np.arange(300) % 16, np.arange(300) // 16
    assert len(near_duplicates.near_pairs(refs, near, np.arange(300), **LIMITS | {"max_distance": 64})) == 0
    assert sum(compared) < 300 * 20 + 50


def test_the_same_copies_are_found_as_by_comparing_all_near_pairs(
    local_root: str, patterns: pca_hash.PcaHash, monkeypatch
) -> None:
    rng = np.random.default_rng(6)
    originals = [drawn(patterns, number) for number in range(20)]
    pixels = np.concatenate([noisy(originals[n % 20], 1, rng.uniform(0.5, 9), seed=n) for n in range(400)])
    positions = rng.permutation(400)
    codes = pca_hash.codes(patterns, pixels)[positions]
    refs = measured(local_root, pixels, (150, 250))
    pairs = np.concatenate([pairs for pairs, _ in pca_hash.pairs_within(codes, max_distance=CONFIG.max_distance)])
    near = near_duplicates.similarities(pixels[positions], pairs) >= CONFIG.min_thumbnail_similarity
    expected = graph.connected_components(pairs[near], 400)
    assert 0 < near.sum() < len(near)
    for name, value in {"HELD": 40, "STEP": 30, "HELD_PAIRS": 500, "FIRST_PAIRS": 9}.items():
        found = near_duplicates.near_pairs(refs, codes, positions, **LIMITS)
        np.testing.assert_array_equal(graph.connected_components(found, 400), expected)
        monkeypatch.setattr(near_duplicates, name, value)


def test_images_up_to_any_age_are_connected_as_if_there_were_no_younger_ones(
    local_root: str, patterns: pca_hash.PcaHash, monkeypatch
) -> None:
    originals = [drawn(patterns, number) for number in range(20)]
    pixels = np.concatenate([noisy(originals[n % 20], 1, 6 - n // 100, seed=n) for n in range(400)])
    codes, age = pca_hash.codes(patterns, pixels), np.arange(400) // 100
    refs = measured(local_root, pixels, (150, 250))
    pairs = np.concatenate([pairs for pairs, _ in pca_hash.pairs_within(codes, max_distance=CONFIG.max_distance)])
    near = pairs[near_duplicates.similarities(pixels, pairs) >= CONFIG.min_thumbnail_similarity]
    for name, value in {"HELD": 400, "STEP": 30, "HELD_PAIRS": 500, "FIRST_PAIRS": 9}.items():
        monkeypatch.setattr(near_duplicates, name, value)
        found = near_duplicates.near_pairs(refs, codes, np.arange(400), **LIMITS, age=age)
        for end in (100, 200, 300, 400):
            labels = [graph.connected_components(some[some.max(axis=1) < end], end) for some in (found, near)]
            np.testing.assert_array_equal(*labels)


def test_old_images_that_a_new_one_connects_are_compared_all_the_same() -> None:
    pairs = np.array([[0, 1], [0, 2], [1, 2], [0, 3]])
    for age, known in ((np.array([0, 0, 1, 1]), [False, True, True, False]), (None, [True, True, True, False])):
        joined = near_duplicates.Joined(4, age)
        joined.join(np.array([[0, 2]]))
        joined.join(np.array([[2, 1]]))
        assert joined.has(pairs).tolist() == known
        assert joined.among(np.array([0, 1, 2])).has(pairs[:3]).tolist() == known[:3]


@pytest.mark.parametrize("representative", ["oldest", "largest_area"])
def test_a_larger_copy_that_comes_later(pool: Callable[..., Chain], representative: str) -> None:
    pictures = [picture(number) for number in range(13)]
    pictures.append(pictures[0])
    pictures[0] = pictures[0].resize((96, 72))
    chain = pool([planted.image(copying.png(one)[1]) for one in pictures], planted.TWO_PARTITIONS)
    ids = read_column(chain.images, "image_id").to_pylist()
    goes, stays = (13, 0) if representative == "oldest" else (0, 13)
    config = fingerprint.Config(representative=representative)
    assert ended(chain.decided(config)) == {goes: ("near_duplicate", ids[stays])}


def test_the_fit_does_not_depend_on_shards_and_says_where_it_is_from(local_root: str, monkeypatch) -> None:
    monkeypatch.setattr(pca_hash, "BLOCK", 16)
    pixels = np.stack([thumbnail(number) for number in range(70)])
    fits = []
    for number, shards in enumerate(((70,), (1, 0, 30, 39))):
        refs = measured(f"{local_root}/{number}", pixels, shards)
        (target,) = StageDir(root=refs[0].root, stage="hash-fit", fingerprint="a").planned(1)
        assert hash_fit.fit_hash.fn(refs, target, 50, 0).rows == 64
        fits.append(Storage(refs[0].root).read_bytes(FIT))
    assert fits[0] == fits[1]
    sample = np.sort(np.random.default_rng(np.random.SeedSequence([0, 0x9A5])).choice(70, 50, replace=False))
    blocks = list(hash_fit.sampled(refs, sample))
    assert [len(block) for block in blocks] == [16, 16, 16, 2]
    np.testing.assert_array_equal(np.concatenate(blocks), pixels[sample])
    about = Storage(refs[0].root).read_json("hash-fit/a/fit.json")
    fit = hash_fit.read_fit(f"{refs[0].root}/{FIT}")
    assert about["sha256"] == fit.digest and about["measures"] == ["measures/part0"]
    assert (about["thumbnails"], about["of"], about["sample_size"]) == (50, 70, 50)
    assert 0.9 < about["variance_explained"] <= 1


ARRAYS = {
    "mean": np.zeros(1024, np.float32),
    "components": np.zeros((64, 1024), np.float32),
    "variance": np.zeros(64, np.float32),
}


def stored(arrays: dict[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def plain() -> bytes:
    file = io.BytesIO()
    np.save(file, ARRAYS["mean"])
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, "must be a readable fit.npz, was"),  # no such file
        (b"", "must be a readable fit.npz"),
        (b"no archive", "must be a readable fit.npz"),
        (stored(ARRAYS)[:-40], "must be a readable fit.npz"),
        (plain(), "must be a readable fit.npz"),  # one array
        (stored({"mean": ARRAYS["mean"]}), "must be a readable fit.npz"),
        (stored(ARRAYS | {"mean": np.array([{}])}), "must be a readable fit.npz"),  # pickled
        (stored(ARRAYS | {"components": np.zeros((32, 1024), np.float32)}), r"\(32, 1024\)"),
        (stored(ARRAYS | {"mean": np.zeros(1024)}), "finite float32"),
        (stored(ARRAYS | {"mean": np.full(1024, np.nan, np.float32)}), "finite float32"),
    ],
)
def test_a_fit_that_is_none_is_refused_in_one_line(local_root: str, data: bytes | None, said: str) -> None:
    if data is not None:
        Storage(local_root).write_bytes("fit.npz", data)
    with pytest.raises(InputError, match=said) as refused:
        hash_fit.read_fit(f"{local_root}/fit.npz")
    told = str(refused.value)
    assert told.startswith("recipe.fingerprint.fit must ") and "\n" not in told and told.endswith("the pool's own")


def test_a_fit_at_an_unknown_kind_of_uri_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"recipe\.fingerprint\.fit must be a path or a URI, was 'nowhere://x/fit\.npz'"
    ):
        hash_fit.read_fit("nowhere://x/fit.npz")


def test_a_fit_is_read_by_path_and_by_uri(tmp_path, monkeypatch) -> None:
    (tmp_path / "fit.npz").write_bytes(stored(ARRAYS))
    monkeypatch.chdir(tmp_path)
    for uri in ("fit.npz", "./fit.npz", str(tmp_path / "fit.npz"), f"file://{tmp_path}/fit.npz"):
        assert hash_fit.read_fit(uri).mean.shape == (1024,)


def test_as_image_hash_counts_the_bits_that_differ() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, size=(20, 8), dtype=np.uint8)
    for left, right in pairwise(codes):
        distance = int(np.unpackbits(left ^ right).sum())
        assert fingerprint.as_image_hash(left.tobytes()) - fingerprint.as_image_hash(right.tobytes()) == distance
    assert str(fingerprint.as_image_hash(bytes.fromhex("0123456789abcdef"))) == "0123456789abcdef"
