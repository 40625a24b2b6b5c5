"""The page of a study."""

from typing import TYPE_CHECKING

import numpy as np

from lvd.tasks import charts, study
from lvd.tasks.dress import dressed
from lvd.tasks.wording import share

if TYPE_CHECKING:
    from lvd.flows.studying import Labelled, Planted, Summary

SHOWN_POINTS = 5  # of the thresholds, every so many-th is drawn


def line(values: np.ndarray) -> str:
    """The points of an SVG line over the thresholds from 0 to 1, both from 0 to 100."""
    shown = slice(study.STEPS, None, SHOWN_POINTS)
    points = zip(study.THRESHOLDS[shown], values[shown], strict=True)
    return " ".join(f"{100 * x:.4g},{100 - 100 * y:.4g}" for x, y in points)


def score_chart(text: str, counts: np.ndarray) -> charts.Chart:
    """Columns of 0.05."""
    width = study.STEPS // 20
    binned = np.add.reduceat(counts, np.arange(0, len(counts) - 1, width))
    return charts.histogram(text, binned, np.linspace(-1, 1, len(binned) + 1))


def rendered(summary: "Summary", study_: "Planted | Labelled") -> str:
    """The page: one HTML file, pictures as `data:` URLs, no script, in the dress of the report."""
    curve, groups = study_.curves[0], study_.groups
    drawn = {name: np.mean([curve.recall_of[part] for part in parts], axis=0) for name, parts in groups.items()}
    true, false = study_.histograms()
    return dressed(
        "study.html.jinja",
        it=summary,
        share=share,
        groups=groups or {"all": list(curve.recall_of)},
        lines={f"recall, {name}": line(values) for name, values in (drawn or curve.recall_of).items()},
        precision=line(curve.precision_low),
        charts=[score_chart("Similarity of copies", true), score_chart("Similarity of other pairs", false)],
        sheets=[(heading, pairs) for heading, pairs in study_.shown() if pairs],
        is_planted=summary.is_planted,
    )
