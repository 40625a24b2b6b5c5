"""What was lost on the way from the candidates to the published images: step by step, and reason by reason."""

from collections import Counter
from typing import Any, get_args

from pydantic import BaseModel

from lvd.tasks.containers import Reason as DecodeReason
from lvd.tasks.meanings import meaning
from lvd.tasks.takedowns import FORGOTTEN
from lvd.tasks.tallies import Ending

REFERENCE_REASONS = ("benchmark_copy", "curated_copy")


class Step(BaseModel, frozen=True):
    """One stage of the funnel: the images that are left, and what was lost since the step before."""

    label: str
    name: str = ""  # of its place in the page: funnel-NAME
    count: int
    before: int
    lost: dict[str, int] = {}  # reason → images
    gained: int = 0  # images that join here


class Loss(BaseModel, frozen=True):
    """Candidates that ended for one reason."""

    stage: str
    state: str
    reason: str
    count: int

    @property
    def meaning(self) -> str:
        return meaning(self.reason)


def funnel(counts: Counter[Ending]) -> tuple[Step, ...]:
    """From the pool's candidates to the retrieved images, then to what is published with the included curated ones."""
    left = Counter({ending[1:]: count for ending, count in counts.items() if ending[0] == "pool"})
    steps = [Step(label="candidates", name="candidates", count=left.total(), before=left.total())]

    def step(name: str, label: str, ends: Any) -> None:
        lost: Counter[str] = Counter()
        for stage, state, reason in [e for e in left if e[1] != "kept" and ends(*e)]:
            lost[reason] += left.pop((stage, state, reason))
        ordered = dict(sorted(lost.items(), key=lambda pair: (-pair[1], pair[0])))
        steps.append(Step(label=label, name=name, count=left.total(), before=steps[-1].count, lost=ordered))

    undecodable = get_args(DecodeReason)
    step("crawl", "valid, each once", lambda stage, state, reason: stage == "crawl")
    step("download", "fetched", lambda stage, state, reason: stage == "download" and reason not in undecodable)
    step(
        "decode",
        "decodable",
        lambda stage, state, reason: stage == "download" or (stage == "screen" and state == "failed"),
    )
    step("screen", "within the screening rules", lambda stage, state, reason: stage == "screen")
    step("fingerprint", "unique by fingerprint", lambda stage, state, reason: stage == "fingerprint")
    step(
        "copies",
        "after self-deduplication",
        lambda stage, state, reason: stage == "copies" and reason not in REFERENCE_REASONS,
    )
    step("decontamination", "after decontamination", lambda stage, state, reason: stage == "copies")
    if any(stage == FORGOTTEN for stage, _, _ in left):
        step("forgotten", "not taken down", lambda stage, state, reason: stage == FORGOTTEN)
    step("embed", "embedded", lambda stage, state, reason: stage == "embed")
    if any(stage == "cluster" for stage, _, _ in left):
        step("cluster", "without semantic duplicates", lambda stage, state, reason: stage == "cluster")
    chosen = "retrieved or left" if any(reason == "survivor" for _, _, reason in left) else "retrieved"
    step("retrieve", chosen, lambda stage, state, reason: True)
    curated = sum(n for (role, _, state, _), n in counts.items() if role == "curated" and state == "kept")
    retrieved = steps[-1].count
    return (
        *steps,
        Step(label="published", name="published", count=retrieved + curated, before=retrieved, gained=curated),
    )


def losses(counts: Counter[Ending]) -> tuple[Loss, ...]:
    """What ended for each reason, stage by stage, the most frequent first."""
    order = (
        "crawl",
        "download",
        "screen",
        "fingerprint",
        "copies",
        FORGOTTEN,
        "embed",
        "cluster",
        "retrieve",
        "publish",
    )
    summed: Counter[tuple[str, str, str]] = Counter()
    for (_, stage, state, reason), number in counts.items():
        if state != "kept":
            summed[stage, state, reason] += number
    found = [Loss(stage=s, state=state, reason=reason, count=n) for (s, state, reason), n in summed.items()]
    place = {stage: index for index, stage in enumerate(order)}
    return tuple(sorted(found, key=lambda loss: (place.get(loss.stage, len(order)), -loss.count, loss.reason)))
