"""What was lost where: every candidate once."""

from collections import Counter

import numpy as np

from lvd.tasks.funnel import funnel, losses

ENDINGS: Counter = Counter(
    {
        ("pool", "crawl", "dropped", "duplicate_url"): 1,
        ("pool", "download", "failed", "http_404"): 2,
        ("pool", "download", "failed", "not_an_image"): 3,
        ("pool", "screen", "failed", "truncated"): 4,
        ("pool", "screen", "dropped", "too_small"): 5,
        ("pool", "fingerprint", "dropped", "near_duplicate"): 6,
        ("pool", "copies", "failed", "not_finite"): 7,
        ("pool", "copies", "dropped", "copy"): 8,
        ("pool", "copies", "dropped", "benchmark_copy"): 9,
        ("pool", "embed", "failed", "not_finite"): 10,
        ("pool", "retrieve", "dropped", "not_retrieved"): 1000,
        ("pool", "publish", "kept", "retrieved"): 12,
        ("curated", "download", "failed", "http_404"): 1,
        ("curated", "publish", "kept", "curated"): 13,
    }
)


def test_funnel_loses_every_candidate_in_one_step() -> None:
    steps = funnel(ENDINGS)
    pool = sum(n for (role, *_), n in ENDINGS.items() if role == "pool")
    lost = [0, 1, 2, 3 + 4, 5, 6, 7 + 8, 9, 10, 1000, 0]
    assert [sum(step.lost.values()) for step in steps] == lost
    assert [step.count for step in steps[:-1]] == (pool - np.cumsum(lost[:-1])).tolist()
    assert steps[-2].count == 12
    assert (steps[-1].count, steps[-1].gained) == (12 + 13, 13)


def test_losses_are_every_candidate_that_is_not_kept() -> None:
    found = losses(ENDINGS)
    assert sum(loss.count for loss in found) == sum(n for (_, _, state, _), n in ENDINGS.items() if state != "kept")
    assert [loss.stage for loss in found][:3] == ["crawl", "download", "download"]
    assert next(loss for loss in found if loss.reason == "http_404").count == 3  # of the pool and of a collection
