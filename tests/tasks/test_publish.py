"""What is published: curated images first, every content once, each with its provenance, as a dataset that opens."""

import hashlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lvd.infra.committing import commit
from lvd.infra.shards import ShardRef, StageDir, read_table
from lvd.tasks import publish, schemas
from lvd.tests import copying
from lvd.tests.tasks import planted
from lvd.tests.tasks.planted import identity

LAYOUT = planted.TWO_PARTITIONS
NUM = 14
Q1, Q2, Q3 = (identity(n) for n in (101, 102, 103))
# collection → (pool row, query, similarity, cluster); pool rows 7 to 13 are the second partition
MATCHES = {
    "birds": [(12, Q1, 0.5, None), (2, Q1, 0.9, None), (7, Q2, 0.7, None), (5, Q1, 0.4, None), (5, Q2, 0.6, None)],
    "none": [],
    "cars": [(12, Q3, 0.8, 4), (7, Q3, 0.7, 4), (0, Q3, 0.2, 1), (13, Q3, -0.1, 1)],
}
RETRIEVED = [  # (pool row, collections, its best match)
    (0, ["cars"], Q3, 0.2, 1),
    (2, ["birds"], Q1, 0.9, None),
    (5, ["birds"], Q2, 0.6, None),
    (7, ["birds", "cars"], Q2, 0.7, None),  # as similar to both: the first collection's
    (12, ["birds", "cars"], Q3, 0.8, 4),
    (13, ["cars"], Q3, -0.1, 1),
]


def png(number: int) -> bytes:
    """A small picture of its own; the odd ones are JPEG files."""
    image = Image.new("RGB", (20 + number, 16), (number * 3 % 256, number, 200))
    return copying.jpeg(image)[1] if number % 2 else copying.png(image)[1]


def matched(root: str, matches: dict, ids: list[str]) -> list[publish.Matched]:
    """ids: of every pool row."""
    result = []
    for name, found in matches.items():
        rows = [
            {"dataset": name, "row": r, "image_id": ids[r], "query_id": q, "rank": 0}
            | {"similarity": s, "cluster_id": c}
            for r, q, s, c in found
        ]
        shards = planted.stage(root, f"retrieve-{name}", schemas.MATCHES, rows, ((len(rows) // 2, -(-len(rows) // 2)),))
        result.append(publish.Matched(name=name, shards=tuple(shards)))
    return [*result, publish.Matched(name="only-included", shards=())]


class Shelf:
    """Curated images in three parts (contents 50, 51, 50, 52; none; 52, 53) and a pool of contents 0 to 13."""

    def __init__(self, root: str, pool: list[int] | None = None) -> None:
        self.root = root
        birds = [planted.image(png(n), label="bird") for n in (50, 51, 50, 52)]
        self.curated = planted.by_partition(planted.images(root, birds, ((3, 0, 1), (0,)), name="birds"))
        self.curated += [planted.images(root, [planted.image(png(n)) for n in (52, 53)], ((2,),), name="cars")]
        contents = pool or list(range(NUM))
        rows = [planted.image(png(n), url=f"http://a.example/{n}") for n in contents]
        self.pool = planted.by_partition(planted.images(root, rows, LAYOUT))
        self.ids = [row["image_id"] for row in rows]
        vectors = {
            n: {"image_id": self.ids[n], "vector": np.ones(1, np.float16)} for n in range(NUM) if n not in (3, 4)
        }
        self.vectors = planted.stage(root, "embed", schemas.vectors(1), vectors, LAYOUT)

    def selected(
        self,
        config: publish.Config | None = None,
        *,
        curated: bool = True,
        matches: dict = MATCHES,
    ) -> list[ShardRef]:
        target = StageDir(root=self.root, stage="selection", fingerprint="a")
        config = config or publish.Config()
        parts = looked(self.curated) if curated else []
        found = matched(self.root, matches, self.ids)
        count = publish.select.fn(parts, self.pool, self.vectors, found, target, config)
        commit(target, count, config={}, inputs={})
        return target.shards()

    def published(self, selection: list[ShardRef], name: str = "v1", curated: bool = True) -> StageDir:
        target = StageDir(root=self.root, stage="curated", fingerprint=name)
        parts = looked([*(self.curated if curated else []), *self.pool])
        for chosen, ref in zip(selection, target.planned(len(selection)), strict=True):
            done = publish.publish_shard.fn(chosen, dict(enumerate(parts)), ref)
            assert done.rows == sum(row["role"] != schemas.REPEATED for row in read_table(chosen).to_pylist())
        commit(target, len(selection), config={}, inputs={})
        return target


def looked(parts: list[list[ShardRef]]) -> list[publish.Looked]:
    """Partitions that no model has looked at."""
    return [publish.Looked(images=images, content=[]) for images in parts]


@pytest.fixture
def shelf(local_root: str) -> Shelf:
    return Shelf(local_root)


def rows_of(refs: list[ShardRef]) -> list[dict]:
    return [row for ref in refs for row in read_table(ref).to_pylist()]


def place(pool_row: int) -> dict[str, int]:
    """The part, after three curated ones, and the row of a pool row."""
    return {"part": 3, "row": pool_row} if pool_row < 7 else {"part": 4, "row": pool_row - 7}


NO_MATCH = {"retrieved_for": [], "query_id": None, "similarity": None, "cluster_id": None}
CURATED = [{"part": p, "row": r, "role": "curated", **NO_MATCH} for p, r in ((0, 0), (0, 1), (0, 3), (2, 1))]


def retrieved_rows(found=RETRIEVED) -> list[dict]:
    return [
        {**place(row), "role": "retrieved", "retrieved_for": names}
        | {"query_id": query, "similarity": np.float32(similarity), "cluster_id": cluster}
        for row, names, query, similarity, cluster in found
    ]


def test_curated_images_come_first_and_every_content_once(shelf: Shelf) -> None:
    selection = shelf.selected()
    assert [ref.rows for ref in selection] == [10]
    assert rows_of(selection) == CURATED + retrieved_rows()


@pytest.mark.parametrize("rows_per_shard", [1, 3, 4, 100])
def test_shards_are_filled_in_order(shelf: Shelf, rows_per_shard: int) -> None:
    selection = shelf.selected(publish.Config(rows_per_shard=rows_per_shard))
    assert rows_of(selection) == CURATED + retrieved_rows()
    assert all(1 <= ref.rows <= 2 * rows_per_shard for ref in selection)
    assert [ref.rows for ref in selection] == [1] * 10 or rows_per_shard > 1
    assert len(selection) > 1 or rows_per_shard > 10


@pytest.fixture
def broad(local_root: str) -> dict[str, list[list[ShardRef]]]:
    """A pool of two partitions with 40 images each, and another partition with 30."""
    rows = [planted.image(png(n % 200), key=str(n)) for n in range(110)]
    partitions = planted.by_partition(planted.images(local_root, rows, ((40,), (40,), (30,))))
    return {"old": partitions[:2], "new": partitions}


def digests_of(root: str, pool: list[list[ShardRef]], chosen: dict[int, float], name: str) -> list[str]:
    """What the shards of a selection say that they hold. chosen: pool row → similarity."""
    ids = [row["image_id"] for shards in pool for row in rows_of(shards)]
    found = {"birds": [(row, Q1, similarity, None) for row, similarity in chosen.items()]}
    target = StageDir(root=root, stage="selection", fingerprint=name)
    of = matched(root, found, ids)
    commit(target, publish.select.fn([], pool, [], of, target, publish.Config(rows_per_shard=8)), config={}, inputs={})
    notes = target.account()["shard_notes"]
    parts = [sorted({row["part"] for row in rows_of([ref])}) for ref in target.shards()]
    assert [one["parts"] for one in notes] == parts
    return [one["digest"] for one in notes]


def test_a_shard_says_what_is_in_it_and_another_selection_says_the_same_of_it(local_root, broad) -> None:
    every = dict.fromkeys(range(80), 0.5)
    before = digests_of(local_root, broad["old"], every, "a")
    assert len(set(before)) == len(before) >= 6
    assert digests_of(local_root, broad["old"], every, "b") == before
    one_less = {row: similarity for row, similarity in every.items() if row != 3}
    assert 1 <= len(set(before) - set(digests_of(local_root, broad["old"], one_less, "c"))) <= 3
    another_similarity = {**every, 70: 0.25}
    assert len(set(before) - set(digests_of(local_root, broad["old"], another_similarity, "d"))) == 1
    a_partition_more = dict.fromkeys(range(110), 0.5)
    assert set(before) < set(digests_of(local_root, broad["new"], a_partition_more, "e"))


def test_a_part_is_known_by_its_images_and_not_by_its_number(local_root, broad) -> None:
    alone = digests_of(local_root, broad["new"][1:2], dict.fromkeys(range(40), 0.5), "a")
    second = digests_of(local_root, broad["new"][:2], dict.fromkeys(range(40, 80), 0.5), "b")
    assert alone == second
    assert not set(alone) & set(digests_of(local_root, broad["new"][:1], dict.fromkeys(range(40), 0.5), "c"))


@pytest.mark.parametrize(("images", "there"), [("retrieved", [7]), ("survivors", [0, 1, *range(5, 12), 13])])
def test_a_pool_image_that_a_collection_holds_is_published_as_curated(local_root: str, images, there) -> None:
    shelf = Shelf(local_root, pool=[0, 1, 53, *range(3, 12), 51, 13])
    matches = {"birds": [(2, Q1, 1.0, None), (12, Q1, 1.0, None), (7, Q2, 0.7, None)]}
    selection = shelf.selected(publish.Config(images=images, rows_per_shard=3), matches=matches)
    rows = rows_of(selection)
    assert rows[:4] == CURATED
    # The ledger reads of the other two that they are repeats.
    assert [(row["part"], row["row"]) for row in rows] == sorted((row["part"], row["row"]) for row in rows)
    repeats = [{"part": row["part"], "row": row["row"]} for row in rows if row["role"] == schemas.REPEATED]
    assert repeats == [place(2), place(12)]
    published = rows_of(shelf.published(selection).shards())
    assert [row["key"] for row in published[4:]] == [f"key-{n}" for n in there]
    assert len({row["image_id"] for row in published}) == len(published) == 4 + len(there)


def test_an_image_is_looked_up_in_the_shards_that_can_hold_it(shelf: Shelf) -> None:
    parts = [*shelf.curated, *shelf.pool]
    for rows_per_shard in (1, 2, 4, 100):
        selection = shelf.selected(publish.Config(rows_per_shard=rows_per_shard))
        target = StageDir(root=shelf.root, stage="selection", fingerprint="a")
        places = [notes["places"] for notes in target.account()["shard_notes"]]
        for part, refs in enumerate(parts):
            for ref in refs:
                held = publish.holding(selection, places, part, ref)
                mine = range(ref.first_row, ref.first_row + ref.rows)
                needed = [s for s in selection if any(r["part"] == part and r["row"] in mine for r in rows_of([s]))]
                assert [shard for shard in held if shard in needed] == needed
                assert len(held) <= len(needed) + 2  # at most the two beside them
    none = shelf.selected(curated=False, matches={})
    assert publish.holding(none, [[]], 0, shelf.pool[0][0]) == []


@pytest.mark.parametrize("matches", [{}, {"birds": []}, {"birds": [], "cars": []}])
def test_nothing_retrieved(shelf: Shelf, matches: dict) -> None:
    assert rows_of(shelf.selected(matches=matches)) == CURATED


def test_nothing_at_all_is_an_empty_dataset_that_opens(shelf: Shelf) -> None:
    from datasets import load_from_disk

    selection = shelf.selected(curated=False, matches={"birds": []})
    assert [ref.rows for ref in selection] == [0]
    target = shelf.published(selection, curated=False)
    dataset = load_from_disk(f"{shelf.root}/{target.directory}")
    assert len(dataset) == 0 and dataset.column_names == schemas.CURATED.names


def test_survivors_are_all_that_was_embedded(shelf: Shelf) -> None:
    rows = rows_of(shelf.selected(publish.Config(images="survivors")))
    there = [n for n in range(NUM) if n not in (3, 4)]
    found = {(row["part"], row["row"]): row for row in retrieved_rows()}
    plain = {n: {**place(n), "role": "survivor", **NO_MATCH} for n in there}
    assert rows == CURATED + [found.get((plain[n]["part"], plain[n]["row"]), plain[n]) for n in there]
    assert len(rows_of(shelf.selected(publish.Config(images="survivors"), curated=False, matches={}))) == 12


def test_the_dataset_opens_and_every_image_decodes(shelf: Shelf) -> None:
    from datasets import load_from_disk

    selection = shelf.selected(publish.Config(rows_per_shard=4))
    dataset = load_from_disk(f"{shelf.root}/{shelf.published(selection).directory}")
    assert dataset.column_names == schemas.CURATED.names and len(dataset) == 10
    contents = [50, 51, 52, 53, *(row for row, *_ in RETRIEVED)]
    for row, content, chosen in zip(dataset, contents, rows_of(selection), strict=True):
        assert (row["width"], row["height"]) == (20 + content, 16) == row["image"].size
        np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(Image.open(BytesIO(png(content)))))
        assert {name: row[name] for name in chosen if name not in ("part", "row")} == {
            name: value for name, value in chosen.items() if name not in ("part", "row")
        }
    assert dataset["label"][:] == ["bird"] * 3 + [None] * 7
    assert dataset["url"][:] == [None] * 4 + [f"http://a.example/{row}" for row, *_ in RETRIEVED]
    assert dataset["key"][:] == ["key-0", "key-1", "key-3", "key-1", *(f"key-{row}" for row, *_ in RETRIEVED)]


def test_bytes_are_published_as_they_came(shelf: Shelf) -> None:
    target = shelf.published(shelf.selected())
    for row in rows_of(target.shards()):
        assert hashlib.sha256(row["image"]["bytes"]).hexdigest()[:32] == row["image_id"]


def test_the_same_selection_gives_the_same_bytes(tmp_path: Path) -> None:
    files = []
    for name in "ab":
        shelf = Shelf(str(tmp_path / name))
        target = shelf.published(shelf.selected(publish.Config(rows_per_shard=4)))
        files.append([(tmp_path / name / ref.name()).read_bytes() for ref in target.shards()])
    assert files[0] == files[1] and len(files[0]) > 1


def test_rows_are_found_wherever_batches_and_shards_end(local_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvd.infra.writing.BATCH_ROWS", 3)
    images = planted.images(local_root, [planted.image(png(n)) for n in range(20)], ((7, 0, 1, 12),))
    assert len([*publish.read_batches(images[3])]) == 4
    rng = np.random.default_rng(0)
    for size in (0, 1, 2, 10, 20):
        rows = np.sort(rng.choice(20, size=size, replace=False))
        assert [row["key"] for row in publish.rows_of(images, rows)] == [f"key-{n}" for n in rows]
