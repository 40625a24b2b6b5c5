"""The page of a study of the number of clusters."""

from typing import TYPE_CHECKING

from lvd.tasks import study_clusters
from lvd.tasks.charts import Chart
from lvd.tasks.dress import dressed

if TYPE_CHECKING:
    from lvd.flows.studying_clusters import Level, Summary

MEASURES = {
    "objective": "Objective of rows not fitted on",
    "imbalance": "Imbalance of the sizes",
    "stability": "Stability: adjusted Rand index of two seeds",
    "adjusted_information": "Adjusted mutual information with the labels",
    "purity": "Purity of the labels (rises by chance)",
    "agreement": "Agreement of both kinds of retrieval",
    "recall": "Recall of the nearest images",
    "precision": "Precision: near among reached",
    "overlap_next": "Reached images shared with the next k",
}


def line(label: str, levels: "tuple[Level, ...]", name: str) -> Chart:
    """A line over the k that have the measure, evenly spaced."""
    points = [(level.num_clusters, value) for level in levels if (value := getattr(level, name)) is not None]
    ticks = (f"{points[0][0]:,}", f"{points[-1][0]:,} clusters") if points else ()
    says = tuple(f"{k:,} clusters: {value:.4f}" for k, value in points)
    return Chart(label=label, values=tuple(value for _, value in points), says=says, ticks=ticks, is_line=True)


def rendered(summary: "Summary") -> str:
    """The page: one HTML file, no script, in the dress of the report."""
    charts = [line(label, summary.levels, name) for name, label in MEASURES.items()]
    return dressed(
        "study_clusters.html.jinja",
        it=summary,
        charts=[chart for chart in charts if len(chart.values) > 1],
        rules=study_clusters,
    )
