"""What is known about every image of the miniature web, and how well a ledger agrees with it."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path

KEPT = "kept_or_not_retrieved"
DEDUPLICATION = ("fingerprint", "copies")
LOSING = ("crawl", "download", "screen", *DEDUPLICATION)  # the stages that an image must survive to be retrieved
COPY_KINDS = ("exact_copy", "near_copy", "mirrored", "strong_crop")


@dataclass(frozen=True)
class Answer:
    """One planted candidate and its right end.

    key: the URL, or `00000.tar/000000012.jpg`. kind: unrelated, original, exact_copy, near_copy, mirrored, strong_crop,
    benchmark_copy, fault, duplicate_url or invalid_url. transform: how the copy was made, which format or which fault.
    of: the key of the original, or the file name of the benchmark image. group: shared by an original and its copies.
    state: `kept_or_not_retrieved`, `dropped` or `failed`. stages, reasons: the right ones; a member of a group has them
    whatever its state, for when the ledger drops it in favour of another member.
    image_id: of the stored bytes, "" where none arrive.
    Among the members of a group the state follows the policy (largest area, larger file, lowest image id); a
    mirrored or strongly cropped copy is "dropped" by that policy too, though not every detector finds it.
    """

    key: str
    kind: str
    transform: str = ""
    of: str = ""
    group: str = ""
    visual_class: str = ""
    state: str = KEPT
    stages: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    image_id: str = ""


@dataclass(frozen=True)
class Miniature:
    """A miniature web on a disk: its folder, the URL it is served at, and the answers."""

    folder: Path
    base_url: str
    answers: tuple[Answer, ...]

    @classmethod
    def load(cls, folder: Path) -> "Miniature":
        """The miniature that `build` wrote into the folder. Raises FileNotFoundError if there is none."""
        truth = json.loads((Path(folder) / "truth.json").read_text())
        answers = (
            Answer(**{**row, "stages": tuple(row["stages"]), "reasons": tuple(row["reasons"])})
            for row in truth["answers"]
        )
        return cls(Path(folder), truth["base_url"], tuple(answers))

    def save(self) -> None:
        """Write `truth.json`."""
        truth = {"base_url": self.base_url, "answers": [asdict(answer) for answer in self.answers]}
        (self.folder / "truth.json").write_text(json.dumps(truth, indent=1) + "\n")

    def of_kind(self, *kinds: str) -> list[Answer]:
        """The answers of these kinds, in order."""
        return [answer for answer in self.answers if answer.kind in kinds]

    def benchmark_id(self, name: str) -> str:
        """The image id of a file of the benchmark."""
        return image_id((self.folder / "benchmark" / name).read_bytes())


@dataclass(frozen=True)
class Score:
    """How a ledger compares with the answers; shares are in [0, 1], lists are empty when all is well.

    *_recall: share of the copies of a kind that went, because of another member of their group.
    unrelated_dropped: share of the unrelated images, and of the groups as one image each, that were lost before
    retrieval (`unrelated_lost` names them). benchmark_survivors: copies of benchmark images that got through.
    faults_wrong: (key, expected, got). wrong_because_of: (key, reason, because_of) of members and benchmark copies.
    missing: answers without a row. surplus: keys of rows without an answer. per_transform: (gone, planted).
    """

    exact_recall: float
    near_recall: float
    mirrored_recall: float
    strong_crop_recall: float
    unrelated_dropped: float
    benchmark_survivors: int
    faults_wrong: list[tuple[str, str, str]] = field(default_factory=list)
    wrong_because_of: list[tuple[str, str, str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    surplus: list[str] = field(default_factory=list)
    unrelated_lost: list[tuple[str, str]] = field(default_factory=list)
    per_transform: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """The promise: all exact and 95% of near copies, at most 1% of the rest, no benchmark copy, every fault."""
        wrong = self.faults_wrong or self.wrong_because_of or self.missing or self.surplus or self.benchmark_survivors
        return not wrong and self.exact_recall == 1 and self.near_recall >= 0.95 and self.unrelated_dropped <= 0.01


@dataclass(frozen=True)
class Fate:
    """An answer and the ledger's row for it."""

    answer: Answer
    row: Mapping

    @property
    def survived(self) -> bool:
        """True if the image was still there when retrieval began."""
        return self.row["state"] == "kept" or (self.row["state"] == "dropped" and self.row["stage"] not in LOSING)

    @property
    def end(self) -> str:
        """`state stage reason`, for people."""
        return " ".join(str(self.row[name]) for name in ("state", "stage", "reason") if self.row.get(name))


def image_id(data: bytes) -> str:
    """The first 16 bytes of the SHA-256 of the bytes, as 32 hexadecimal digits."""
    return sha256(data).hexdigest()[:32]


def check(miniature: Miniature, ledger_rows: Iterable[Mapping]) -> Score:
    """How the ledger's rows (columns key, image_id, state, stage, reason, score, because_of) compare with the answers.

    A copy went rightly when it was dropped at a right stage for a right reason, and `because_of` is the image id of
    another member of its group, of which exactly one is to survive. Where the policy keeps a copy (one with a border
    is larger than its original) that copy counts when its original went rightly. Of several survivors all but one
    count as missed. A benchmark copy must name the benchmark image.
    """
    fates, missing, surplus = matched(miniature.answers, ledger_rows)
    groups: dict[str, list[Fate]] = defaultdict(list)
    for fate in fates:
        if fate.answer.group:
            groups[fate.answer.group].append(fate)
    gone = {fate.answer.key for members in groups.values() for fate in rightly_gone(members)}
    benchmark = [fate for fate in fates if fate.answer.kind == "benchmark_copy"]
    gone |= {fate.answer.key for fate in benchmark if names(fate, {miniature.benchmark_id(fate.answer.of)})}
    planted = miniature.of_kind(*COPY_KINDS, "benchmark_copy")
    per_transform: dict[str, tuple[int, int]] = {}
    for answer in planted:
        name = f"benchmark {answer.transform}" if answer.kind == "benchmark_copy" else answer.transform
        found, total = per_transform.get(name, (0, 0))
        per_transform[name] = (found + (answer.key in gone), total + 1)
    lost = [(fate.answer.key, fate.end) for fate in fates if fate.answer.kind == "unrelated" and not fate.survived]
    lost += [(name, "all of the group") for name, members in groups.items() if not any(m.survived for m in members)]
    recalls = {kind: share(answer.key in gone for answer in planted if answer.kind == kind) for kind in COPY_KINDS}
    return Score(
        exact_recall=recalls["exact_copy"],
        near_recall=recalls["near_copy"],
        mirrored_recall=recalls["mirrored"],
        strong_crop_recall=recalls["strong_crop"],
        unrelated_dropped=len(lost) / max(1, len(miniature.of_kind("unrelated")) + len(groups)),
        benchmark_survivors=sum(fate.survived for fate in benchmark),
        faults_wrong=wrong_faults(fates),
        wrong_because_of=wrong_causes(groups.values(), benchmark, gone),
        missing=missing,
        surplus=surplus,
        unrelated_lost=lost,
        per_transform=per_transform,
    )


def matched(answers: Iterable[Answer], rows: Iterable[Mapping]) -> tuple[list[Fate], list[str], list[str]]:
    """Fates, keys of answers without a row, keys of rows without an answer.

    A repeated URL is two candidates with one key: the answer of the repeat takes the row that says so.
    """
    waiting: dict[str, list[Mapping]] = defaultdict(list)
    for row in rows:
        waiting[row["key"]].append(row)
    fates, missing = [], []
    for answer in sorted(answers, key=lambda answer: answer.kind != "duplicate_url"):
        repeat = answer.kind == "duplicate_url"
        found = sorted(waiting[answer.key], key=lambda row: (row["reason"] == "duplicate_url") != repeat)
        if found:
            waiting[answer.key].remove(found[0])
            fates.append(Fate(answer, found[0]))
        else:
            missing.append(answer.key)
    return fates, missing, [key for key, rows_left in waiting.items() for _ in rows_left]


def names(fate: Fate, causes: set[str]) -> bool:
    """True if the row is dropped for a right reason at a right stage, because of one of these image ids."""
    answer, row = fate.answer, fate.row
    right = row["state"] == "dropped" and row["stage"] in answer.stages and row["reason"] in answer.reasons
    return right and row["because_of"] in causes


def rightly_gone(members: list[Fate]) -> list[Fate]:
    """The copies among the members of one group that count as gone; see `check`."""
    survivors = [fate for fate in members if fate.survived]
    if not survivors:
        return []
    kept = min(survivors, key=lambda fate: fate.answer.state != KEPT)
    gone = [fate for fate in members if names(fate, others(fate, members))]
    if any(fate.answer.kind == "original" for fate in gone):
        gone.append(kept)
    return [fate for fate in gone if fate.answer.kind in COPY_KINDS]


def others(fate: Fate, members: list[Fate]) -> set[str]:
    """The image ids of the other members of the group, as the ledger has them."""
    return {member.row["image_id"] for member in members if member is not fate}


def wrong_faults(fates: Iterable[Fate]) -> list[tuple[str, str, str]]:
    """(key, expected, got) of faults, repeated and invalid URLs that did not end as they should."""
    wrong = []
    for fate in fates:
        answer, row = fate.answer, fate.row
        if answer.kind not in ("fault", "duplicate_url", "invalid_url"):
            continue
        if row["state"] != answer.state or row["stage"] not in answer.stages or row["reason"] not in answer.reasons:
            expected = f"{answer.state} {'|'.join(answer.stages)} {'|'.join(answer.reasons)}"
            wrong.append((answer.key, expected, fate.end))
    return wrong


def wrong_causes(groups: Iterable[list[Fate]], benchmark: Iterable[Fate], gone: set[str]) -> list[tuple[str, str, str]]:
    """(key, reason, because_of) of members and benchmark copies that were dropped because of something else."""
    wrong = [fate for members in groups for fate in members if not names(fate, others(fate, members))]
    wrong += [fate for fate in benchmark if fate.answer.key not in gone]
    dropped = [fate for fate in wrong if fate.row["state"] == "dropped" and fate.row["stage"] in DEDUPLICATION]
    return [(fate.answer.key, str(fate.row["reason"]), str(fate.row["because_of"])) for fate in dropped]


def share(found: Iterable[bool]) -> float:
    """The share of True, 1.0 of nothing."""
    found = list(found)
    return sum(found) / len(found) if found else 1.0
