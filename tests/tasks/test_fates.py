"""Fates: what was settled stays settled, comes back as it was written, and the set of the living has a name."""

import numpy as np
import pytest

from lvd.infra.shards import StageDir
from lvd.tasks import schemas
from lvd.tasks.fates import Fates, sizes
from lvd.tests.tasks import planted

LAYOUT = planted.TWO_PARTITIONS
NUM = sum(map(sum, LAYOUT))


def fresh() -> Fates:
    return Fates(np.array([planted.identity(n) for n in range(NUM)], dtype=object))


@pytest.fixture
def images(local_root: str):
    rows = [{"image_id": planted.identity(n), "width": n + 1, "height": 100_000, "num_bytes": n} for n in range(NUM)]
    return planted.images(local_root, rows, LAYOUT)


def directory(root: str, name: str = "a") -> StageDir:
    return StageDir(root=root, stage="fates", fingerprint=name)


def test_what_is_written_is_read_back(local_root: str, images) -> None:
    fates = fresh()
    fates.end([1, 9], "failed", "screen", np.array(["truncated", "undecodable"]))
    fates.end(np.array([13]), "dropped", "copies", "copy", score=0.75, because_of=planted.identity(0))
    decision = fates.write(directory(local_root), images, {}, "copies")
    assert decision.alive == NUM - 3 and decision.reasons == {"copy": 1}  # the other two ended before
    shards = directory(local_root).planned(len(images))
    back = Fates.read(shards)
    for name in schemas.FATES.names:
        np.testing.assert_array_equal(getattr(back, name), getattr(fates, name), err_msg=name)
    assert (~back.alive).nonzero()[0].tolist() == [1, 9, 13]
    assert back.score[13] == np.float32(0.75) and np.isnan(back.score[1])


def test_an_image_ends_once() -> None:
    fates = fresh()
    fates.end([3], "dropped", "screen", "too_small", score=3)
    with pytest.raises(ValueError, match="copies: an image that had ended was ended again"):
        fates.end([2, 3], "dropped", "copies", "copy")
    assert fates.reason[3] == "too_small" and fates.alive[2]
    fates.end([], "dropped", "copies", "copy")


def test_a_mask_names_the_living_of_one_partition(local_root: str, images) -> None:
    def masks(name: str, *ended: int, reason: str = "x") -> dict[str, str]:
        fates = fresh()
        fates.end(list(ended), "dropped", "screen", reason)
        return fates.write(directory(local_root, name), images, {}, "screen").masks

    first, second = "download/part0", "download/part1"
    whole, one = masks("a"), masks("b", 2)
    assert set(whole) == {first, second}
    assert one[first] != whole[first] and one[second] == whole[second]
    assert masks("c", 2, reason="y") == one  # why does not matter
    assert masks("d", 3)[first] != one[first]
    assert masks("e", 7)[second] != whole[second]


def test_sizes_hold_more_than_32_bits(images) -> None:
    area, num_bytes = sizes(images)
    assert area.tolist() == [(n + 1) * 100_000 for n in range(NUM)]
    assert area.dtype == np.int64 and num_bytes.tolist() == list(range(NUM))


def test_areas_do_not_overflow(local_root: str) -> None:
    rows = [{"image_id": "a", "width": 100_000, "height": 100_000, "num_bytes": 1}]
    assert sizes(planted.images(local_root, rows, ((1,),), name="huge"))[0].tolist() == [10**10]


def test_no_images_at_all(local_root: str) -> None:
    images = planted.images(local_root, [], ((0, 0),), name="none")
    decision = Fates(np.array([], dtype=object)).write(directory(local_root), images, {}, "screen")
    assert (decision.alive, decision.reasons) == (0, {})
    assert len(Fates.read(directory(local_root).planned(2)).image_id) == 0
