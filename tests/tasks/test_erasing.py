"""Erasing: rows keep their places and lose what they said; what has nothing to lose is not written at all."""

import numpy as np
import pyarrow as pa
import pytest

from lvd.infra.shards import ShardRef, StageDir, read_table
from lvd.infra.storage import Storage
from lvd.tasks import erasing, schemas, screen
from lvd.tasks.algorithms import pca_hash
from lvd.tasks.models import Inference, engine
from lvd.tasks.takedowns import alias_of
from lvd.tests.copying import jpeg
from lvd.tests.drawing import CLASSES, draw
from lvd.tests.tasks import planted

LAYOUT = ((2, 3),)
URLS = [f"https://a.example/{number}.jpg" for number in range(5)]


@pytest.fixture
def images(root: str) -> list[ShardRef]:
    pictures = [jpeg(draw(list(CLASSES)[n], np.random.default_rng(n), (120, 90)))[1] for n in range(5)]
    rows = [
        planted.image(data, key=url, url=url, alt="a word", domain="a.example")
        for data, url in zip(pictures, URLS, strict=True)
    ]
    return planted.images(root, rows, LAYOUT)


def erase(root: str, refs: list[ShardRef], url: str) -> list[bool]:
    def change(table: pa.Table) -> pa.Table:
        return erasing.without_names(table, np.array([key == url for key in table["key"].to_pylist()]))

    return [erasing.rewritten(Storage(root), ref.name(), change)[0] for ref in refs]


def test_a_row_stays_and_nothing_of_it_but_hashes(root: str, images: list[ShardRef]) -> None:
    before = [row for ref in images for row in read_table(ref).to_pylist()]
    files = [Storage(root).read_bytes(ref.name()) for ref in images]
    assert erase(root, images, URLS[3]) == [False, True]
    after = [row for ref in images for row in read_table(ref).to_pylist()]
    assert [new for n, new in enumerate(after) if n != 3] == [old for n, old in enumerate(before) if n != 3]
    gone = {"image": {"bytes": b"", "path": None}, "key": alias_of(URLS[3]), "url": None, "alt": None, "domain": None}
    assert after[3] == {**before[3], **gone}
    first, second = (Storage(root).read_bytes(ref.name()) for ref in images)
    assert first == files[0]
    for what in (URLS[3].encode(), before[3]["image"]["bytes"]):  # also where Arrow would keep it below a null
        assert what in files[1] and what not in second
    assert before[2]["image"]["bytes"] in second
    assert erase(root, images, URLS[3]) == [False, False]


def test_what_measures_it_again_rejects_it_and_goes_on(root: str, images: list[ShardRef]) -> None:
    erase(root, images, URLS[3])

    def rejected(refs: list[ShardRef]) -> list[tuple[int, str]]:
        rows = [row for ref in refs for row in read_table(ref, kind="rejects").to_pylist()]
        return [(row["row"], row["key"]) for row in rows]

    measured = planted.computed(root, "screen", 2, lambda ref: screen.screen_shard.fn(images[ref.index], ref, 10**8))
    assert rejected(measured) == [(3, alias_of(URLS[3]))] and sum(ref.rows for ref in measured) == 4
    target = StageDir(root=root, stage="descriptors", fingerprint="a")
    jobs = [engine.Job(images=images[ref.index], fates=None, target=ref) for ref in target.planned(2)]
    inference = Inference(model="builtin:dct", batch_size=4, precision="float32")
    described = engine.vectors_of_shards(jobs, inference, device="cpu")
    assert [ref.rows for ref in described] == [2, 2] and rejected(described) == [(3, alias_of(URLS[3]))]


def test_a_thumbnail_becomes_noise_by_which_its_group_holds_together(local_root: str) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (4, 1024), np.uint8)
    pixels = [picture.tobytes() for picture in (*pictures, pictures[2])]
    measured = {"brightness": 0.5, "contrast": 0.25, "sharpness": 0.125, "entropy": 7.0}
    rows = [{"row": n, "image_id": planted.identity(n), "thumbnail": data, **measured} for n, data in enumerate(pixels)]
    (ref,) = planted.stage(local_root, "screen", schemas.MEASURES, rows, ((5,),))
    gone, groups = np.array([False, True, True, True, False]), {planted.identity(2): planted.identity(1)}

    def change(table: pa.Table) -> pa.Table:
        return erasing.without_thumbnails(table, gone, groups)

    assert erasing.rewritten(Storage(local_root), ref.name(), change) == (True, 5)
    data, after = Storage(local_root).read_bytes(ref.name()), read_table(ref).to_pylist()
    assert pixels[1] not in data and pixels[3] not in data
    assert [{**row, "thumbnail": None} for row in after] == [{**row, "thumbnail": None} for row in rows]
    made = np.stack([np.frombuffer(row["thumbnail"], np.uint8) for row in after])
    assert (made[[0, 4]] == np.stack([pictures[0], pictures[2]])).all() and not pca_hash.is_flat(made).any()
    left, right = np.triu_indices(5, 1)
    like = pca_hash.thumbnail_similarity(made[left], made[right]) > 0.5
    assert [pair for pair, near in zip(zip(left, right, strict=True), like, strict=True) if near] == [(1, 2)]
    assert erasing.rewritten(Storage(local_root), ref.name(), change) == (False, 5)


def test_rows_leave_a_published_shard_and_a_ledger_tells_why(local_root: str) -> None:
    rows = [
        {
            "key": url,
            "image_id": planted.identity(n),
            "state": "kept",
            "stage": "publish",
            "reason": "survivor",
            "score": 1.0,
        }
        for n, url in enumerate(URLS)
    ]
    rows[1] |= {"image_id": None, "state": "failed", "stage": "download", "reason": "timeout"}
    refs = planted.stage(local_root, "ledger", schemas.LEDGER, rows, ((5,),))
    storage, gone = Storage(local_root), np.array([True, True, False, False, True])
    assert erasing.rewritten(storage, refs[0].name(), lambda table: erasing.with_fates(table, gone)) == (True, 5)
    after = read_table(refs[0]).to_pylist()
    assert [row["reason"] for row in after] == ["forgotten", "timeout", "survivor", "survivor", "forgotten"]
    assert [row["state"] for row in after] == ["dropped", "failed", "kept", "kept", "dropped"]
    assert [row["key"] for row in after] == [alias_of(u) if g else u for u, g in zip(URLS, gone.tolist(), strict=True)]
    assert after[0]["score"] is None and after[2]["score"] == 1.0
    assert erasing.rewritten(storage, refs[0].name(), lambda table: erasing.with_fates(table, gone)) == (False, 5)
    assert erasing.rewritten(storage, refs[0].name(), lambda table: erasing.without_rows(table, gone)) == (True, 2)
