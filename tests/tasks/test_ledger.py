"""The ledger: every candidate of every source ends in one state, and nothing balances by accident."""

from typing import Any

import numpy as np
import pytest

from lvd.infra.committing import commit
from lvd.infra.shards import ShardRef, StageDir, read_table
from lvd.tasks import ledger, schemas, semantic
from lvd.tests.tasks import planted
from lvd.tests.tasks.planted import identity

# The pool: 16 candidates in two partitions, of which crawl drops two and download fails three.
MANIFEST = ((5, 0, 3), (8,))
CRAWLED = {2: "duplicate_url", 15: "bad_url"}
FETCHED = ((3, 0, 3), (5,))
UNFETCHED = {0: "http_404", 5: "timeout", 6: "empty_body"}
ENDED = {1: ("dropped", "screen", "too_small", 31.0, None), 8: ("dropped", "copies", "copy", 0.75, identity(0))}
UNEMBEDDED = {4: "not_finite", 9: "truncated"}
SELECTED = [  # the fourth and fifth part are the pool's
    {"part": 0, "row": 0, "role": "curated"},
    {"part": 0, "row": 4, "role": "curated"},
    {"part": 1, "row": 1, "role": "curated"},
    {"part": 3, "row": 0, "role": "retrieved", "query_id": identity(70), "similarity": 0.5},
    {"part": 4, "row": 0, "role": "retrieved", "query_id": identity(71), "similarity": 0.25},
    {"part": 4, "row": 1, "role": "repeated", "query_id": identity(71), "similarity": 1.0},
    {"part": 4, "row": 4, "role": "survivor"},
]
LEFT_OUT = {"score": None, "because_of": None}


def not_retrieved(row: int) -> tuple[Any, ...]:
    return row, "dropped", "retrieve", "not_retrieved", None, None


POOL = [  # pool row, state, stage, reason, score, because_of
    (0, "kept", "publish", "retrieved", 0.5, identity(70)),
    (1, *ENDED[1]),
    not_retrieved(2),
    not_retrieved(3),
    (4, "failed", "embed", "not_finite", None, None),
    not_retrieved(5),
    (6, "kept", "publish", "retrieved", 0.25, identity(71)),
    (7, "dropped", "publish", "exact_duplicate", 1.0, identity(7)),  # a curated image has its content
    (8, *ENDED[8]),
    (9, "failed", "embed", "truncated", None, None),
    (10, "kept", "publish", "survivor", None, None),
]


@pytest.fixture
def selection(local_root: str) -> list[ShardRef]:
    return planted.stage(local_root, "selection", schemas.SELECTION, SELECTED, ((2, 0, 5),))


def pool_ledger(local_root: str, selection: list[ShardRef], duplicates: ShardRef | None = None) -> list[ShardRef]:
    """The ledger of the pool's shards; the selection's rows are spread over its shards."""
    rows = {n: {"key": f"url-{n}"} for n in range(16) if n not in CRAWLED}
    manifest = planted.stage(local_root, "crawl", schemas.MANIFEST, rows, MANIFEST, rejects=CRAWLED, state="dropped")
    images = {n: {"key": f"image-{n}", "source": "web", "image_id": identity(n)} for n in range(11)}
    fetched = planted.stage(local_root, "download", schemas.IMAGES, images, FETCHED, rejects=UNFETCHED)
    names = ("state", "stage", "reason", "score", "because_of")
    fates = {n: {"image_id": identity(n), "state": "kept"} for n in range(11)}
    fates |= {n: {"image_id": identity(n)} | dict(zip(names, fate, strict=True)) for n, fate in ENDED.items()}
    fate_refs = planted.stage(local_root, "copies", schemas.FATES, fates, FETCHED)
    vectors = planted.vectors(local_root, "embed", np.ones((11, 1)), FETCHED, left_out=[*ENDED], rejects=UNEMBEDDED)
    target = StageDir(root=local_root, stage="curated/v1", fingerprint="ledger-pool")
    inputs = zip(manifest, fetched, fate_refs, vectors, (3, 3, 3, 4), target.planned(4), strict=True)
    for *refs, part, ref in inputs:
        ledger.pool_shard.fn(*refs, selection, part, ref, duplicates)
    commit(target, 4, config={}, inputs={})
    return target.shards()


@pytest.fixture
def pool(local_root: str, selection: list[ShardRef]) -> list[ShardRef]:
    return pool_ledger(local_root, selection)


@pytest.fixture
def curated(local_root: str, selection) -> list[ShardRef]:
    """The ledger of two included collections: the first holds one content four times, and lost a candidate."""
    target = StageDir(root=local_root, stage="curated/v1", fingerprint="ledger-curated")
    contents = ((80, 80, 80, 80, 81), (81, 82))
    for part, (layout, ids) in enumerate(zip(((3, 0, 2), (2,)), contents, strict=True)):
        rows = [{"key": f"file-{n}"} for n in range(len(ids))]
        manifest = planted.stage(local_root, f"crawl-{part}", schemas.MANIFEST, rows, (layout,))
        images = [{"key": f"file-{n}", "source": "birds", "image_id": identity(i)} for n, i in enumerate(ids)]
        lost = {0: "not_an_image"} if part == 0 else {}
        fetched = planted.stage(local_root, f"images-{part}", schemas.IMAGES, images, (layout,), rejects=lost)
        planned = target.planned(4)[3 * part : 3 * part + len(layout)]
        for shards in zip(manifest, fetched, planned, strict=True):
            ledger.curated_shard.fn(*shards[:2], [], selection, part, shards[2])
    commit(target, 4, config={}, inputs={})
    return target.shards()


def rows_of(refs: list[ShardRef]) -> list[dict[str, Any]]:
    return [row for ref in refs for row in read_table(ref).to_pylist()]


def test_every_pool_candidate_ends_once(pool: list[ShardRef]) -> None:
    rows = rows_of(pool)
    assert {row["role"] for row in rows} == {"pool"}
    on_the_way = [row for row in rows if row["stage"] in ("crawl", "download")]
    assert sorted((row["stage"], row["key"], row["state"], row["reason"]) for row in on_the_way) == [
        *(("crawl", f"key-{n}", "dropped", reason) for n, reason in [(15, "bad_url"), (2, "duplicate_url")]),
        *(("download", f"key-{n}", "failed", reason) for n, reason in UNFETCHED.items()),
    ]
    names = ("state", "stage", "reason", "score", "because_of")
    rest = [row for row in rows if row not in on_the_way]
    assert [(int(row["image_id"], 16), *(row[name] for name in names)) for row in rest] == POOL
    assert [row["key"] for row in rest] == [f"image-{n}" for n in range(11)]
    assert {row["source"] for row in rest} == {"web"}


def test_what_means_the_same_as_another_ends_with_its_cluster(local_root: str, selection: list[ShardRef]) -> None:
    """Rows 3 and 10, in different partitions; the second would have been published."""
    duplicates = duplicates_of(local_root, {3: (0, 0.97), 10: (2, 0.96)})
    rows = rows_of(pool_ledger(local_root, selection, duplicates))
    names = ("state", "stage", "reason", "score", "because_of")
    ended = {int(row["image_id"], 16): tuple(row[name] for name in names) for row in rows if row["image_id"]}
    same = ("dropped", "cluster", "semantic_duplicate")
    expected = {row: tuple(fate) for row, *fate in POOL}
    expected[3] = (*same, pytest.approx(0.97), identity(0))
    expected[10] = (*same, pytest.approx(0.96), identity(2))
    assert ended == expected
    assert {row["key"] for row in rows if row["reason"] == "semantic_duplicate"} == {"image-3", "image-10"}
    states = ledger.check_balance(StageDir(root=local_root, stage="curated/v1", fingerprint="ledger-pool").shards(), 16)
    assert states == {"kept": 2, "dropped": 9, "failed": 5}


def duplicates_of(root: str, fates: dict[int, tuple[int, float]]) -> ShardRef:
    """fates: pool row that goes → the one that stays, and how alike they are."""
    alike = {row: {"row": row, "kept": kept, "similarity": s} for row, (kept, s) in fates.items()}
    refs = planted.stage(root, "alike", semantic.ALIKE, alike, ((11,),))
    vectors = planted.series(planted.vectors(root, "named", np.ones((11, 1)), FETCHED))
    return planted.computed(
        root, "duplicates", 1, lambda ref: semantic.name_duplicates.fn(planted.series(refs), vectors, ref)
    )[0]


def test_curated_images_are_published_but_for_repeats(curated: list[ShardRef]) -> None:
    rows = rows_of(curated)
    assert {row["role"] for row in rows} == {"curated"}
    kept, repeat = ("kept", "publish", "curated", None), ("dropped", "publish", "exact_duplicate", 1.0)
    assert [(row["key"], row["state"], row["stage"], row["reason"], row["score"]) for row in rows] == [
        ("key-0", "failed", "download", "not_an_image", None),
        ("file-0", *kept),
        ("file-1", *repeat),
        ("file-2", *repeat),
        ("file-3", *repeat),
        ("file-4", *kept),
        ("file-0", *repeat),
        ("file-1", *kept),
    ]
    assert [row["because_of"] for row in rows if row["reason"] == "exact_duplicate"] == [
        *[identity(80)] * 3,
        identity(81),
    ]


def test_the_states_sum_to_the_candidates(pool, curated) -> None:
    everything = [*pool, *curated]
    assert ledger.check_balance(pool, 16) == {"kept": 3, "dropped": 8, "failed": 5}
    assert ledger.check_balance(everything, 24) == {"kept": 6, "dropped": 12, "failed": 6}
    for candidates in (23, 25):
        with pytest.raises(ledger.LedgerError, match=f"{candidates} candidates, but the states are .*'kept': 6"):
            ledger.check_balance(everything, candidates)
    with pytest.raises(ledger.LedgerError):
        ledger.check_balance(everything[1:], 24)  # the rows of one shard are missing


def test_the_account_counts_the_states(pool: list[ShardRef]) -> None:
    account = StageDir(root=pool[0].root, stage="curated/v1", fingerprint="ledger-pool").account()
    assert account["reasons"] == {"kept": 3, "dropped": 8, "failed": 5} and account["rows"] == 16


@pytest.mark.parametrize("state", [None, "lost"])
def test_a_row_without_a_state_of_the_three_is_a_defect(local_root: str, state: str | None) -> None:
    rows = [{"key": "a", "state": "kept"}, {"key": "b", "state": state}]
    refs = planted.stage(local_root, "ledger", schemas.LEDGER, rows, ((1, 1),))
    with pytest.raises(ledger.LedgerError, match="does not balance: 2 candidates"):
        ledger.check_balance(refs, 2)


def test_no_candidates_balance(local_root: str) -> None:
    refs = planted.stage(local_root, "ledger", schemas.LEDGER, [], ((0, 0),))
    assert ledger.check_balance(refs, 0) == {"kept": 0, "dropped": 0, "failed": 0}
    with pytest.raises(ledger.LedgerError):
        ledger.check_balance(refs, 1)
