"""The card of what was chosen by vectors alone: every figure is there, and nothing that Markdown would act on."""

from typing import Any

import pytest

from lvd.tasks import vectors_card
from lvd.tasks.vectors_card import Facts, render

ITERATIONS = [
    {"over": "sample", "objective": 0.5, "imbalance": 1.25, "num_empty": 0},
    {"over": "pool", "objective": 0.53125, "imbalance": 1.5, "num_empty": 1200},
]
SAMPLE = {
    "kind": "sample",
    **{"queries": 1000, "asked": 4000, "found": 3990, "images": 3900, "collided": 120, "ended": 3, "rounds": 1},
    "recall": None,
}
CERTIFIED = {**SAMPLE, "rounds": 2, "recall": {"recall": 0.99512, "interval": (0.991, 0.998), "probes": 12}}
CLUSTER = {
    "kind": "cluster",
    **{"queries": 60, "asked": 220, "found": 100, "images": 100, "clusters": 11, "taken_whole": 2, "capped": 120},
}
BALANCED = {**CLUSTER, "kind": "balanced", "queries": 0, "entropy_before": [5.5, 3.25], "entropy_after": [5.75, 3.5]}
MIXED = {"weight": 0.25, "available": 1234567, "short": 5}


def facts(**changes: Any) -> Facts:
    given = {
        "title": "A | <set>",
        "states": {"kept": 528, "dropped": 2521, "failed": 1},
        "images": 528,
        "clusters": {"iterations": ITERATIONS},
        "retrievals": {"birds": SAMPLE},
        "overlaps": {"birds": {"birds": 3900}},
    }
    return Facts(**{**given, **changes})


def lines(**changes: Any) -> list[str]:
    return render(facts(**changes)).splitlines()


def test_the_card_has_every_figure() -> None:
    found = lines()
    assert found[0] == "# A \\| &lt;set&gt;"
    assert found[2] == "528 vectors, chosen from 3,050 by `lvd`."
    for line in (
        "| kept | 528 | 17.3% |",
        "| dropped | 2,521 | 82.7% |",
        "| failed | 1 | 0.033% |",
        "| birds | sample | 1,000 | 4,000 | 3,990 | 3,900 | 120 collided, 3 queries without enough, 1 round, exact |",
        "| 1 | sample | 0.500000 | 1.250 | 0 |",
        "| 2 | pool | 0.531250 | 1.500 | 1,200 |",
    ):
        assert line in found
    assert not any("both" in line for line in found), "one selection overlaps with no other"


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (
            CERTIFIED,
            "3,990 | 3,900 | 120 collided, 3 queries without enough, 2 rounds, recall 0.9951 (0.9910 to 0.9980) "
            "with 12 probes |",
        ),
        (CLUSTER, "| cluster | 60 | 220 | 100 | 100 | 11 clusters, 2 taken whole, 120 beyond the cap |"),
        (
            BALANCED,
            "| balanced | 0 | 220 | 100 | 100 | 11 clusters, 2 taken whole, 120 beyond the cap; "
            "entropy of the clusters, in bits, from 5.50 to 5.75, 3.25 to 3.50 |",
        ),
        (
            {**CLUSTER, **MIXED},
            "| 100 | 100 | weight 0.25, 1,234,567 to mix from, 5 short of its weight, 11 clusters, 2 taken whole",
        ),
        (
            {**SAMPLE, **MIXED},
            "| 3,900 | weight 0.25, 1,234,567 to mix from, 5 short of its weight, 120 collided, 3 queries",
        ),
    ],
)
def test_a_selection_in_one_line(said: dict[str, Any], line: str) -> None:
    (found,) = [one for one in lines(retrievals={"birds": said}) if one.startswith("| birds | ")]
    assert line in found


def test_what_is_in_two_selections() -> None:
    overlaps = {"birds": {"birds": 3900, "cars": 17}, "cars": {"birds": 17, "cars": 1000}}
    found = lines(overlaps=overlaps, retrievals={"birds": SAMPLE, "cars": CLUSTER})
    assert "| birds | 3,900 | 17 |" in found and "| cars | 17 | 1,000 |" in found


def test_nothing_was_there() -> None:
    assert "| kept | 0 | – |" in lines(
        states={"kept": 0, "dropped": 0, "failed": 0}, images=0, retrievals={}, overlaps={}
    )


def test_the_card_is_a_document_of_markdown() -> None:
    text = vectors_card.render(facts())
    assert text.endswith("|\n") and [line for line in text.splitlines() if line.startswith("#")] == [
        "# A \\| &lt;set&gt;",
        "## Ledger",
        "## Retrieval",
        "## Clusters",
    ]
    widths = [line.count(" | ") for line in text.split("## Retrieval")[1].splitlines() if line.startswith("|")]
    assert widths[:3] == [6, 6, 6]
