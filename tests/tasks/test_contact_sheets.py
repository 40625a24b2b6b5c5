"""Pictures, samples and groups against brute force."""

import base64
import hashlib
import io
from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from lvd.infra.committing import commit
from lvd.infra.shards import ShardRef, StageDir
from lvd.infra.writing import write_shard
from lvd.tasks import schemas
from lvd.tasks.contact_sheets import (
    EDGE_PX,
    MAX_PICTURE_BYTES,
    Groups,
    Reservoir,
    first_rows,
    images_at,
    thumbnails,
    webp_url,
)


def encoded(number: int, size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (number * 20, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def images(local_root: str) -> list[ShardRef]:
    """Ten images in three shards, rows 100 to 109; image 4 cannot be decoded, 7 and 9 have one id."""
    target, number = StageDir(root=local_root, stage="download", fingerprint="a"), 0
    for ref, rows in zip(target.planned(3), (4, 0, 6), strict=True):
        with write_shard(ref, schemas.IMAGES, {}) as shard:
            for _ in range(rows):
                size = (2000, 1000) if number == 2 else (30, 20)
                data = b"broken" if number == 4 else encoded(number, size)
                row = {"image_id": f"id-{min(number, 9) if number != 7 else 9}", "key": f"key-{number}"}
                facts = {"width": size[0], "height": size[1], "format": "PNG", "num_bytes": len(data)}
                shard.keep({**dict.fromkeys(schemas.IMAGES.names), **row, **facts, "image": {"bytes": data}})
                number += 1
    commit(target, 3, config={}, inputs={})
    return target.shards(base=100)


def test_thumbnails_are_those_of_the_rows(images: list[ShardRef]) -> None:
    found = dict(thumbnails(images, [109, 102, 104, 105, 102]))
    assert {row: picture.key for row, picture in found.items()} == {r: f"key-{r - 100}" for r in (102, 104, 105, 109)}
    assert found[104].src == ""
    picture = Image.open(io.BytesIO(base64.b64decode(found[102].src.partition(",")[2])))
    assert (picture.format, picture.size) == ("WEBP", (EDGE_PX, EDGE_PX // 2))
    small = Image.open(io.BytesIO(base64.b64decode(found[109].src.partition(",")[2])))
    assert small.size == (30, 20)  # never enlarged
    assert abs(small.getpixel((0, 0))[0] - 180) < 5
    assert dict(thumbnails(images, [])) == {}
    assert found[109].image_id == "id-9"
    assert [row for row, _ in images_at(images, [104, 100, 100, 99, 110], ["key"])] == [100, 104]


def test_a_picture_that_takes_too_much_is_made_smaller() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (EDGE_PX, EDGE_PX, 3), dtype=np.uint8))
    data = base64.b64decode(webp_url(noise).partition(",")[2])
    assert len(data) <= MAX_PICTURE_BYTES
    assert 60 < max(Image.open(io.BytesIO(data)).size) < EDGE_PX
    plain = base64.b64decode(webp_url(Image.new("RGB", (900, 700), "red")).partition(",")[2])
    assert max(Image.open(io.BytesIO(plain)).size) == EDGE_PX


def test_first_rows(images: list[ShardRef]) -> None:
    assert first_rows(images, {"id-9", "id-0", "id-5", "unknown"}) == {"id-0": 100, "id-5": 105, "id-9": 107}
    assert first_rows(images, set()) == {}


def test_reservoir_is_a_uniform_sample_of_every_name() -> None:
    drawn = np.zeros(100)
    for seed in range(300):
        sample = Reservoir(10, np.random.default_rng(seed))
        for start in (0, 30, 60):
            rows = np.arange(start, start + (30 if start < 60 else 40))
            names = np.where(rows % 2 == 0, "even", None)
            sample.offer(names, pa.table({"row": rows}))
        found = [row["row"] for row in sample.rows("even")]
        assert len(set(found)) == 10
        drawn[found] += 1
    assert drawn[1::2].sum() == 0
    assert np.all(np.abs(drawn[::2] - 60) < 35)  # 300 × 10 / 50, five standard deviations
    assert sample.names() == ["even"] and sample.rows("odd") == []


def dropped(num: int, groups: int, seed: int) -> list[dict]:
    rng = np.random.default_rng(seed)
    ids = [hashlib.sha256(b"%d" % group).hexdigest()[:32] for group in rng.integers(0, groups, num)]
    reasons = rng.choice(["copy", "near_duplicate", "too_small"], num)
    scores = rng.random(num).astype(np.float32).tolist()
    return [
        {"reason": str(reason), "because_of": image_id, "score": score, "row": row}
        for row, (reason, image_id, score) in enumerate(zip(reasons, ids, scores, strict=True))
    ]


def grouped(rows: list[dict]) -> dict[tuple[str, str], list[dict]]:
    expected = defaultdict(list)
    for row in rows:
        expected[row["reason"], row["because_of"]].append(row)
    return expected


@pytest.mark.parametrize("max_groups", [10_000, 40])  # 40: settled several times on the way, groups are forgotten
def test_groups_against_brute_force(max_groups: int) -> None:
    rows = dropped(600, 100, seed=1)
    groups = Groups(("copy", "near_duplicate"), max_groups=max_groups, members=3)
    for start in range(0, 600, 100):
        groups.add(pa.Table.from_pylist(rows[start : start + 100]))
    expected = grouped([row for row in rows if int(row["because_of"][:8], 16) < groups.share * 2**32])
    assert (groups.share == 1.0) == (max_groups == 10_000)
    for reason in ("copy", "near_duplicate"):
        mine = {because_of: found for (name, because_of), found in expected.items() if name == reason}
        assert sorted(groups.sizes(reason).tolist()) == sorted(map(len, mine.values()))
        chosen = groups.chosen(reason, 1000)
        assert [group["because_of"] for group in chosen] == sorted(
            mine, key=lambda name: (min(row["score"] for row in mine[name]), name)
        )
        for group in chosen:
            lowest = sorted(mine[group["because_of"]], key=lambda row: (row["score"], row["row"]))[:3]
            assert group["rows"] == [{"row": row["row"], "score": row["score"]} for row in lowest]
            assert group["size"] == len(mine[group["because_of"]])
    assert groups.sizes("too_small").size == 0 and groups.chosen("too_small", 4) == []


def test_chosen_groups_are_the_lowest_and_a_spread_of_the_rest() -> None:
    groups = Groups(("copy",))
    rows = [{"reason": "copy", "because_of": f"{i:032x}", "score": i / 100, "row": i} for i in range(100)]
    groups.add(pa.Table.from_pylist(rows))
    assert [round(group["lowest"] * 100) for group in groups.chosen("copy", 8)] == [0, 1, 2, 3, 4, 35, 67, 99]
