"""PCA hashes of a pool, and which of equal and of nearly equal images stays."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from lvd.infra.shards import ShardRef, StageDir, pool_rows, read_column, read_table
from lvd.tasks import fingerprint, schemas, screen
from lvd.tasks.algorithms import pca_hash
from lvd.tasks.decode import DecodeError, decode_rgb
from lvd.tasks.fates import Fates
from lvd.tests import copying
from lvd.tests.drawing import CLASSES, draw
from lvd.tests.tasks import planted

CONFIG = fingerprint.Config()
FEW = fingerprint.Config(sample_size=4)
FIT = "fingerprint/a/fit.npz"


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
        self.hash_at = self.directory("fingerprint")

    def directory(self, name: str) -> StageDir:
        return StageDir(root=self.root, stage=name, fingerprint="a")

    def fitted(self, config: fingerprint.Config = CONFIG, seed: int = 0) -> bytes:
        """The file of a new fit."""
        fingerprint.fit_hash.fn(self.measures, self.hash_at, config, seed)
        return self.hash_at.storage.read_bytes(FIT)

    def hashed(self) -> list[ShardRef]:
        planned = self.hash_at.planned(len(self.measures))
        return [fingerprint.hash_shard.fn(m, ref, self.hash_at) for m, ref in zip(self.measures, planned, strict=True)]

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
        chain.hash_at.storage.write_bytes(FIT, fit)
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
    assert read_column(hashes, "row").to_pylist() == rows == pool_rows(various.measures).tolist()
    ids = read_column(various.images, "image_id").to_pylist()
    assert read_column(hashes, "image_id").to_pylist() == [ids[row] for row in rows]
    stored = fingerprint.stored_fit(various.hash_at)
    thumbnails = fingerprint.thumbnails(various.measures, np.array([12, 0, 5]))
    codes = read_column(hashes, "pca_hash").to_pylist()
    assert [code.tobytes() for code in pca_hash.codes(stored, thumbnails)] == [codes[12], codes[0], codes[5]]


def test_the_fit_is_seeded_and_what_is_stored_is_used(various: Chain, fit: bytes) -> None:
    before = [read_table(ref) for ref in various.hashed()]
    assert various.fitted(FEW) == fit
    other = various.fitted(FEW, seed=1)
    assert other != fit
    assert [read_table(ref) for ref in various.hashed()] != before
    various.hash_at.storage.write_bytes(FIT, fit)
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
        pair = [fingerprint.thumbnails(near.measures, np.array([at])) for at in (row, other)]
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
    monkeypatch.setattr(fingerprint, "PAIR_BLOCK", 2)
    fates = pool(rows, ((2, 2), (2,))).decided()
    assert {row: cause for row, (_, cause) in ended(fates).items()} == dict.fromkeys(range(5), fates.image_id[5])


def test_as_image_hash_counts_the_bits_that_differ() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, size=(20, 8), dtype=np.uint8)
    for left, right in pairwise(codes):
        distance = int(np.unpackbits(left ^ right).sum())
        assert fingerprint.as_image_hash(left.tobytes()) - fingerprint.as_image_hash(right.tobytes()) == distance
    assert str(fingerprint.as_image_hash(bytes.fromhex("0123456789abcdef"))) == "0123456789abcdef"
