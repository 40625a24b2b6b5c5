"""Forgetting: copies are followed from one to the next, whatever found them; and dropped, whatever they were."""

import numpy as np
import pytest

from lvd.infra.shards import StageDir, read_table
from lvd.infra.storage import Storage
from lvd.tasks import forgetting, schemas, takedowns
from lvd.tasks.fates import Fates
from lvd.tasks.forgetting import Across, Other, closure
from lvd.tasks.takedowns import Record
from lvd.tests.tasks import planted

LAYOUT = planted.TWO_PARTITIONS
ids = [planted.identity(n) for n in range(14)]


def test_closure_follows_copies_however_many_lie_between() -> None:
    pairs = [("d", "c"), ("c", "b"), ("a", "b"), ("x", "y"), ("e", "d")]
    asked: list[set[str]] = []

    def copies(wanted: set[str]):
        asked.append(wanted)
        return [pair for pair in pairs if wanted & set(pair)]

    assert closure(["e", "z"], copies) == {"e": "e", "d": "e", "c": "e", "b": "e", "a": "e", "z": "z"}
    assert closure([], copies) == {}
    assert all("x" not in wanted for wanted in asked)


@pytest.fixture
def fates(local_root: str):
    """0 stands for 1 (bytes), 2 (hash) and 3 (descriptor), 3 for 5 (hash); 6 failed; 7 and 8 copy a reference."""
    rows = [{"image_id": ids[n], "state": "kept"} for n in range(14)]
    for row, reason, cause in (
        (1, "exact_duplicate", 0),
        (2, "near_duplicate", 0),
        (3, "copy", 0),
        (5, "near_duplicate", 3),
    ):
        rows[row] |= {"state": "dropped", "stage": "copies", "reason": reason, "because_of": ids[cause], "score": 0.9}
    rows[1]["image_id"] = ids[0]
    rows[6] |= {"state": "failed", "stage": "screen", "reason": "truncated"}
    for row in (7, 8):
        rows[row] |= {"state": "dropped", "stage": "copies", "reason": "benchmark_copy", "because_of": ids[13]}
    return planted.stage(local_root, "copies", schemas.FATES, rows, LAYOUT)


def decided(root: str, fates, others=(), across=None, **asked) -> tuple[Fates, forgetting.Withdrawal]:
    storage = Storage(root)
    takedowns.write_record(storage, Record(date="2026-01-01", **asked))
    names = tuple(takedowns.record_names(storage))
    found = [row for ref in fates for row in read_table(ref).to_pylist()]
    images = planted.images(
        root, [{"image_id": row["image_id"], "url": f"https://a{n}.org/"} for n, row in enumerate(found)], LAYOUT
    )
    marked = []
    for shards in planted.by_partition(images):
        own = planted.computed(
            root,
            "marked",
            len(shards),
            lambda ref, s=shards: forgetting.mark_shard.fn(s[ref.index], ref, names),
            called=shards[0].directory[-5:],
        )
        marked += [ref.model_copy(update={"base": image.base}) for ref, image in zip(own, shards, strict=True)]
    target = StageDir(root=root, stage="remaining", fingerprint="a")
    decision = forgetting.forget.fn(images, fates, marked, list(others), across, target)
    return Fates.read(target.planned(len(images))), decision


def gone(fates: Fates) -> list[int]:
    return np.flatnonzero(fates.stage == "forgotten").tolist()


@pytest.mark.parametrize("asked", [0, 2, 3, 5])
def test_a_group_goes_whole_whichever_of_it_is_asked_for(local_root: str, fates, asked: int) -> None:
    after, decision = decided(local_root, fates, image_ids=(ids[asked],))
    assert gone(after) == [0, 1, 2, 3, 5]
    assert {after.because_of[row] for row in gone(after)} == {None, ids[asked]}
    assert after.because_of[asked] is None and set(after.state[gone(after)]) == {"dropped"}
    assert decision.reasons == {"forgotten": 5} and decision.alive == 14 - 5 - 3


def test_what_had_failed_is_forgotten_too_and_all_else_stays_as_it_was(local_root: str, fates) -> None:
    before = Fates.read(fates)
    after, _ = decided(local_root, fates, image_ids=(ids[6],))
    assert gone(after) == [6] and after.state[6] == "dropped"
    rest = np.arange(14) != 6
    assert (after.reason[rest] == before.reason[rest]).all() and (
        after.because_of[rest] == before.because_of[rest]
    ).all()


def test_a_url_takes_its_copies_with_it_a_domain_does_not(local_root: str, fates) -> None:
    after, decision = decided(local_root, fates, domains=(takedowns.domain_digest("a3.org"),))
    assert gone(after) == [] and decision.alive == 7  # of the pool, they went before
    after, _ = decided(local_root, fates, urls=(takedowns.url_digest("https://a3.org/"),))
    assert gone(after) == [0, 1, 2, 3, 5]


def test_a_reference_goes_with_what_copies_it_enough_and_takes_it_along(local_root: str, fates) -> None:
    rows = [{"image_id": planted.identity(100 + n), "vector": np.ones(2)} for n in range(3)]
    references = planted.stage(local_root, "descriptors", schemas.vectors(2), rows, ((3,),))
    edges = [(7, 0, 0.7), (8, 0, 0.5), (9, 1, 0.8)]  # 8 is less like the reference than copies within the pool are
    found = [dict(zip(schemas.EDGES.names, edge, strict=True)) for edge in edges]
    edge_refs = planted.stage(local_root, "references", schemas.EDGES, found, ((3,),))
    across = Across(edges=edge_refs, references=references, min_similarity=0.6)
    images = planted.images(local_root, [{"image_id": row["image_id"]} for row in rows], ((3,),), name="birds")
    none = planted.stage(local_root, "none", schemas.MARKS, {}, ((3,),))
    target = StageDir(root=local_root, stage="withdrawn", fingerprint="a")
    other = Other(images=images, marked=none, target=target)
    after, decision = decided(local_root, fates, [other], across, image_ids=(ids[7],))
    assert gone(after) == [7] and decision.withdrawn == {images[0].directory: target.directory}
    (shard,) = target.planned(1)
    assert read_table(shard).to_pylist() == [{"row": 0, "image_id": rows[0]["image_id"], "because_of": ids[7]}]
