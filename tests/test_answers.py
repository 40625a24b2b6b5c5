"""The checker agrees with a perfect ledger and finds what is wrong with every other."""

from itertools import pairwise

import pytest

from lvd.tests.answers import KEPT, Answer, Miniature, check, image_id

NEAR = {"stages": ("fingerprint", "copies"), "reasons": ("near_duplicate", "copy")}
EXACT = {"stages": ("fingerprint",), "reasons": ("exact_duplicate",)}


def answer(name: str, kind: str, transform: str = "", **known) -> Answer:
    """An answer whose bytes are its name, unless it has an id."""
    return Answer(f"http://web/{name}.jpg", kind, transform, **{"image_id": image_id(name.encode()), **known})


def group_of(name: str, kind: str, transforms: list[str], right: dict, kept: int = 0) -> list[Answer]:
    """An original and its copies, of which the one at position `kept` is the representative."""
    members = [("original", ""), *((kind, transform) for transform in transforms)]
    same = {"image_id": image_id(name.encode())} if kind == "exact_copy" else {}
    return [
        answer(
            f"{name}-{position}",
            member,
            transform,
            of=f"http://web/{name}-0.jpg" if position else "",
            group=name,
            state=KEPT if position == kept else "dropped",
            **right,
            **same,
        )
        for position, (member, transform) in enumerate(members)
    ]


@pytest.fixture
def known(tmp_path) -> Miniature:
    """120 unrelated images, 6 groups, 2 copies of benchmark images, 2 faults, a repeated and an invalid URL."""
    (tmp_path / "benchmark").mkdir()
    for name in ("first.jpg", "second.jpg"):
        (tmp_path / "benchmark" / name).write_bytes(name.encode())
    benchmark = {"state": "dropped", "stages": ("copies",), "reasons": ("benchmark_copy",)}
    failed = {"state": "failed", "stages": ("download",), "image_id": ""}
    crawled = {"state": "dropped", "stages": ("crawl",), "image_id": ""}
    answers = [answer(f"alone-{number}", "unrelated") for number in range(120)]
    answers += group_of("near-a", "near_copy", ["text", "webp", "grey", "text"], NEAR)
    answers += group_of("near-b", "near_copy", ["text", "border", "webp"], NEAR, kept=2)
    answers += group_of("exact-a", "exact_copy", ["same_bytes", "same_bytes"], EXACT)
    for name in ("mirrored-a", "mirrored-b"):
        answers += group_of(name, "mirrored", ["mirror"], NEAR)
    answers += group_of("crop-a", "strong_crop", ["crop"], NEAR)
    answers += [answer("copy-1", "benchmark_copy", "text", of="first.jpg", **benchmark)]
    answers += [answer("copy-2", "benchmark_copy", "exact", of="second.jpg", **benchmark)]
    answers += [answer("silent", "fault", "silent", reasons=("timeout",), **failed)]
    answers += [answer("404", "fault", "http_404", reasons=("http_404",), **failed)]
    answers += [answer("alone-0", "duplicate_url", reasons=("duplicate_url",), **crawled)]
    answers += [Answer("ftp://web/1.jpg", "invalid_url", reasons=("invalid_url",), state="dropped", stages=("crawl",))]
    return Miniature(tmp_path, "http://web", tuple(answers))


def perfect(known: Miniature) -> list[dict]:
    """The rows of a ledger that agrees with every answer; two of three survivors are not retrieved."""
    kept_of = {answer.group: answer.image_id for answer in known.answers if answer.state == KEPT}
    rows = []
    for number, right in enumerate(known.answers):
        row = {"key": right.key, "image_id": right.image_id or None, "score": None, "because_of": None}
        if right.state != KEPT:
            row |= {"state": right.state, "stage": right.stages[-1], "reason": right.reasons[-1]}
            row["because_of"] = known.benchmark_id(right.of) if right.kind == "benchmark_copy" else None
            row["because_of"] = kept_of[right.group] if right.group else row["because_of"]
        elif number % 3:
            row |= {"state": "dropped", "stage": "retrieve", "reason": "not_retrieved"}
        else:
            row |= {"state": "kept", "stage": "publish", "reason": None}
        rows.append(row)
    return rows


def row_of(rows: list[dict], name: str) -> dict:
    return next(row for row in rows if row["key"] == f"http://web/{name}.jpg")


def keep(rows: list[dict], name: str) -> None:
    row_of(rows, name).update(state="kept", stage="publish", reason=None, because_of=None)


def drop(rows: list[dict], name: str, cause: str | None, stage: str = "copies", reason: str = "copy") -> None:
    """Drop an image because of another one of the ledger."""
    because_of = row_of(rows, cause)["image_id"] if cause else None
    row_of(rows, name).update(state="dropped", stage=stage, reason=reason, because_of=because_of)


def test_a_perfect_ledger_scores_one(known):
    score = check(known, perfect(known)[::-1])
    assert score.passed
    recalls = (score.exact_recall, score.near_recall, score.mirrored_recall, score.strong_crop_recall)
    assert recalls == (1, 1, 1, 1) and score.unrelated_dropped == 0 and score.unrelated_lost == []
    assert score.per_transform == {
        "text": (3, 3), "webp": (2, 2), "grey": (1, 1), "border": (1, 1), "same_bytes": (2, 2), "mirror": (2, 2),
        "crop": (1, 1), "benchmark text": (1, 1), "benchmark exact": (1, 1),
    }  # fmt: skip


def test_mirrored_copies_that_stay_are_reported_apart(known):
    rows = perfect(known)
    keep(rows, "mirrored-a-1")
    keep(rows, "mirrored-b-1")
    score = check(known, rows)
    assert score.passed and score.mirrored_recall == 0 and score.per_transform["mirror"] == (0, 2)


def test_any_member_may_stay_and_causes_may_be_chained(known):
    rows = perfect(known)
    keep(rows, "exact-a-2")
    for name in ("exact-a-0", "exact-a-1"):
        drop(rows, name, "exact-a-2", "fingerprint", "exact_duplicate")
    for name, cause in pairwise(["near-a-4", "near-a-3", "near-a-2", "near-a-1", "near-a-0"]):
        drop(rows, name, cause, "fingerprint", "near_duplicate")
    assert check(known, rows) == check(known, perfect(known))


def test_of_two_survivors_one_counts_as_missed(known):
    rows = perfect(known)
    keep(rows, "near-b-1")  # beside the one with the border, the representative
    score = check(known, rows)
    assert score.near_recall == 6 / 7 and score.per_transform["border"] == (1, 1)
    assert score.per_transform["text"] == (2, 3)


def near_copy_of_another_group(known, rows):
    drop(rows, "near-a-1", "near-b-1")


def near_copy_of_itself(known, rows):
    drop(rows, "near-a-3", "near-a-3")


def near_copy_kept(known, rows):
    keep(rows, "near-a-1")


def exact_copy_kept(known, rows):
    keep(rows, "exact-a-1")


def exact_copy_for_another_reason(known, rows):
    row_of(rows, "exact-a-1")["reason"] = "near_duplicate"


def members_that_name_each_other(known, rows):
    drop(rows, "mirrored-a-0", "mirrored-a-1")


def one_unrelated_dropped(known, rows):
    drop(rows, "alone-7", "near-a-0")


def unrelated_failed(known, rows):
    for number in range(1, 4):
        row_of(rows, f"alone-{number}").update(state="failed", stage="download", reason="not_an_image")


def benchmark_copy_kept(known, rows):
    keep(rows, "copy-1")


def benchmark_copy_of_another(known, rows):
    row_of(rows, "copy-1")["because_of"] = known.benchmark_id("second.jpg")


def fault_for_another_reason(known, rows):
    row_of(rows, "silent")["reason"] = "connection_failed"


def repeated_url_kept(known, rows):
    for row in rows:
        if row["key"] == "http://web/alone-0.jpg":
            row.update(state="kept", stage="publish", reason=None)


def row_lost(known, rows):
    rows.pop(3)


def row_twice(known, rows):
    rows.append(dict(rows[3]))


def row_of_nothing(known, rows):
    rows.append({**rows[3], "key": "http://nobody.example/1.jpg"})


@pytest.mark.parametrize(
    ("spoil", "changed", "passes"),
    [
        (near_copy_kept, {"near_recall", "per_transform"}, False),
        (near_copy_of_another_group, {"near_recall", "per_transform", "wrong_because_of"}, False),
        (near_copy_of_itself, {"near_recall", "per_transform", "wrong_because_of"}, False),
        (exact_copy_kept, {"exact_recall", "per_transform"}, False),
        (exact_copy_for_another_reason, {"exact_recall", "per_transform", "wrong_because_of"}, False),
        # Nothing of the group is left: it is lost like an unrelated image; one of 126 is within the 1%.
        (
            members_that_name_each_other,
            {"mirrored_recall", "per_transform", "unrelated_dropped", "unrelated_lost"},
            True,
        ),
        (one_unrelated_dropped, {"unrelated_dropped", "unrelated_lost"}, True),
        (unrelated_failed, {"unrelated_dropped", "unrelated_lost"}, False),
        (benchmark_copy_kept, {"benchmark_survivors", "per_transform"}, False),
        (benchmark_copy_of_another, {"wrong_because_of", "per_transform"}, False),
        (fault_for_another_reason, {"faults_wrong"}, False),
        (repeated_url_kept, {"faults_wrong"}, False),
        (row_lost, {"missing"}, False),
        (row_twice, {"surplus"}, False),
        (row_of_nothing, {"surplus"}, False),
    ],
)
def test_a_spoiled_ledger_is_found(known, spoil, changed, passes):
    rows = perfect(known)
    spoil(known, rows)
    good, bad = check(known, perfect(known)), check(known, rows)
    assert {name for name in vars(good) if vars(good)[name] != vars(bad)[name]} == changed
    assert bad.passed == passes


def test_a_wrong_ledger_says_what_is_wrong(known):
    rows = perfect(known)
    fault_for_another_reason(known, rows)
    near_copy_of_another_group(known, rows)
    one_unrelated_dropped(known, rows)
    score = check(known, rows)
    assert score.faults_wrong == [
        ("http://web/silent.jpg", "failed download timeout", "failed download connection_failed")
    ]
    assert score.wrong_because_of == [("http://web/near-a-1.jpg", "copy", image_id(b"near-b-1"))]
    assert score.unrelated_lost == [("http://web/alone-7.jpg", "dropped copies copy")]
    assert score.unrelated_dropped == 1 / 126
