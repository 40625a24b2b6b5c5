"""The page of an evaluation."""

from typing import TYPE_CHECKING

from lvd.tasks.dress import dressed
from lvd.tasks.evaluation import Interval

if TYPE_CHECKING:
    from lvd.flows.evaluation_summary import Summary

MEASURES = {
    "nearest": ("cosine to the nearest selected image", "mean over the reference images"),
    "coverage": ("coverage", "reference images with a selected image nearer than their 5th nearest reference image"),
    "relevance": ("relevance", "selected images that are so near to a reference image"),
    "entropy": ("entropy over the clusters, bits", "higher: spread more evenly over all that the pool holds"),
    "clusters": ("clusters with an image", "of those that the pool fills"),
}
KINDS = {
    "held out": "Held out: each half of the reference images against what was selected for the other half",
    "given": "Given: folders that nothing was retrieved for",
    "biased": "Biased: the images that it was selected for; it wins here by construction",
}
SHARES = ("coverage", "relevance")
SPAN = 10  # percent of the drawn axis that is left free on either side


def said(interval: Interval, name: str, sign: str = "") -> str:
    """An interval in words, shares as percentages: '81.2% (79.0 to 83.3)'."""
    if name in ("nearest", "entropy", "clusters"):
        digits = {"nearest": 3, "entropy": 2, "clusters": 1}[name]
        ends = (f"{value:{'+' if sign else ''}.{digits}f}" for value in (interval.low, interval.high))
        return f"{interval.value:{sign}.{digits}f} ({' to '.join(ends)})"
    ends = (f"{100 * value:{'+' if sign else ''}.1f}" for value in (interval.low, interval.high))
    return f"{100 * interval.value:{sign}.1f}% ({' to '.join(ends)})"


def verdict(difference: Interval) -> str:
    """What the interval of a difference says."""
    if difference.low > 0:
        return "selection higher"
    return "random higher" if difference.high < 0 else "not told apart"


def bar(selection: Interval, random: Interval) -> dict[str, tuple[float, float, float]]:
    """The two intervals on one axis: (low, value, high) from 0 to 100."""
    low, high = min(selection.low, random.low), max(selection.high, random.high)
    width = (high - low) or 1.0

    def at(value: float) -> float:
        return round(SPAN + (100 - 2 * SPAN) * (value - low) / width, 2)

    return {name: (at(i.low), at(i.value), at(i.high)) for name, i in (("selection", selection), ("random", random))}


def rendered(summary: "Summary") -> str:
    """The page: one HTML file, no script, in the dress of the report."""
    kinds = [(kind, title, [one for one in summary.coverage if one.kind == kind]) for kind, title in KINDS.items()]
    return dressed(
        "evaluation.html.jinja",
        it=summary,
        said=said,
        verdict=verdict,
        bar=bar,
        measures=MEASURES,
        kinds=[(kind, title, cases) for kind, title, cases in kinds if cases],
    )
