"""Settling: who takes what of all rounds, who is to ask again, and what the account says, against plain Python."""

from collections import Counter

import numpy as np
import pytest

from lvd.infra.runs import read_range
from lvd.infra.shards import ShardRef, StageDir, read_table
from lvd.tasks import schemas, settling
from lvd.tests.tasks import planted

QUERIES, ROWS = 9, 40
# One decimal, so that many are equal.
SIMILARITY = np.random.default_rng(0).integers(-9, 10, (QUERIES, ROWS)) / 10


def first(query: int, depth: int) -> list[int]:
    return sorted(range(ROWS), key=lambda row: (-SIMILARITY[query, row], row))[:depth]


def candidates(root: str, name: str, lists: dict[int, list[int]], cut: int = 4) -> tuple[ShardRef, ...]:
    """Those of each query, in two shards."""
    rows = [{"query": q, "row": r, "similarity": SIMILARITY[q, r]} for q, found in lists.items() for r in found]
    sizes = (sum(row["query"] < cut for row in rows), sum(row["query"] >= cut for row in rows))
    return tuple(planted.stage(root, name, schemas.CANDIDATES, rows, (sizes,)))


def wanting_of(root: str, name: str, queries: list[int]) -> ShardRef:
    rows = [{"query": query} for query in queries]
    return planted.stage(root, name, settling.WANTING, rows, ((len(rows),),))[0]


def settled(
    root: str, rounds: list[settling.Round], policy: str = "refill", neighbors: int = 3
) -> tuple[settling.Settled, list[dict], list[int]]:
    """(what it came to, what is taken, who is to ask again)."""
    taken, wanting = (
        StageDir(root=root, stage=name, fingerprint=policy).planned(1)[0] for name in ("taken", "wanting")
    )
    said = settling.settle.fn(rounds, QUERIES, taken, wanting, neighbors=neighbors, policy=policy)
    return said, read_table(taken).to_pylist(), read_table(wanting)["query"].to_pylist()


def greedy(lists: dict[int, list[int]], neighbors: int) -> dict[int, int]:
    """Row → the query that takes it."""
    taken: dict[int, int] = {}
    held: Counter[int] = Counter()
    for _, query, row in sorted((-SIMILARITY[q, r], q, r) for q, rows in lists.items() for r in rows):
        if row not in taken and held[query] < neighbors:
            taken[row] = query
            held[query] += 1
    return taken


@pytest.mark.parametrize("depth", [3, 4, 6, ROWS])
@pytest.mark.parametrize("has_all", [True, False])
def test_pairs_are_taken_by_descending_similarity(local_root: str, depth: int, has_all: bool) -> None:
    lists = {query: first(query, depth) for query in range(QUERIES)}
    one = settling.Round(candidates=candidates(local_root, "c", lists), depth=depth, has_all=has_all)
    said, taken, asks = settled(local_root, [one])
    expected = greedy(lists, 3)
    assert {row["row"]: row["query"] for row in taken} == expected and len(taken) == len(expected)
    assert [row["row"] for row in taken] == sorted(expected), "by row, for the next search"
    for row in taken:
        assert row["similarity"] == np.float32(SIMILARITY[row["query"], row["row"]])
        assert lists[row["query"]][row["rank"]] == row["row"]
    held = Counter(expected.values())
    lacks = [query for query in range(QUERIES) if held[query] < 3]
    # A list that is full may go on, and so may one of which some cells were not looked at.
    assert asks == lacks
    assert lacks or depth == ROWS
    wants = Counter(row for rows in lists.values() for row in rows[:3])
    assert said == settling.Settled(
        queries=QUERIES,
        asked=3 * QUERIES,
        found=len(expected),
        images=len(expected),
        collided=sum(count - 1 for count in wants.values()),
        wanting=len(lacks),
        ended=0,
    )


@pytest.mark.parametrize("policy", ["keep_once", "count"])
def test_only_refill_asks_again(local_root: str, policy: str) -> None:
    lists = {query: first(query, 3) for query in range(QUERIES)}
    one = settling.Round(candidates=candidates(local_root, "c", lists), depth=3, has_all=True)
    said, taken, asks = settled(local_root, [one], policy)
    pairs = [(row["query"], row["row"]) for row in taken]
    every = [(query, row) for query, rows in lists.items() for row in rows]
    if policy == "count":
        assert sorted(pairs) == sorted(every)
    else:
        best = {r: min((-SIMILARITY[q, r], q) for q, other in every if other == r)[1] for _, r in every}
        assert sorted(pairs) == sorted((query, row) for row, query in best.items())
    assert asks == [] and said.wanting == said.ended == 0
    assert said.images == len({row for _, row in every}) < len(every)


def test_a_query_whose_search_found_fewer_than_it_could_is_done(local_root: str) -> None:
    lists = {query: first(query, 3) for query in range(QUERIES)}
    lists[0] = []  # had nothing to find
    lists[1] = lists[1][:2]
    one = settling.Round(candidates=candidates(local_root, "c", lists), depth=3, has_all=True)
    said, _, asks = settled(local_root, [one])
    held = Counter(greedy(lists, 3).values())
    lacks = [query for query in range(QUERIES) if held[query] < 3]
    assert {0, 1} <= {*lacks} and asks == [query for query in lacks if query > 1]
    assert (said.wanting, said.ended) == (len(asks), 2)
    probed = one.model_copy(update={"has_all": False})
    assert settled(local_root, [probed])[2] == lacks, "cells that were not probed may hold more"


def test_only_those_who_asked_are_judged_by_a_further_round(local_root: str) -> None:
    lists = {query: first(query, 4) for query in range(QUERIES)}
    rounds = [settling.Round(candidates=candidates(local_root, "c", lists), depth=4, has_all=True)]
    more = {2: first(2, 9), 5: first(5, 2)}
    asked = wanting_of(local_root, "w", [2, 5, 7])
    rounds.append(settling.Round(candidates=candidates(local_root, "d", more), depth=9, has_all=True, wanting=asked))
    done = settling.exhausted(rounds, QUERIES)
    assert np.flatnonzero(done).tolist() == [5, 7], "2 found all that it asked for; the others did not ask"
    both = settling.read_lists(rounds)
    pairs = list(zip(both.query.tolist(), both.row.tolist(), strict=True))
    united = {q: sorted({*lists[q], *more.get(q, [])}, key=lambda r: (-SIMILARITY[q, r], r)) for q in range(QUERIES)}
    assert pairs == [(query, row) for query in range(QUERIES) for row in united[query]], "each pair once"
    assert both.rank.tolist() == [rank for query in range(QUERIES) for rank in range(len(united[query]))]
    _, taken, asks = settled(local_root, rounds)
    assert {row["row"]: row["query"] for row in taken} == greedy(united, 3)
    assert not {5, 7} & {*asks}


def test_what_is_taken_is_read_by_rows(local_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvd.infra.runs.BATCH_ROWS", 4)
    lists = {query: first(query, 8) for query in range(QUERIES)}
    one = settling.Round(candidates=candidates(local_root, "c", lists), depth=8, has_all=True)
    _, taken, _ = settled(local_root, [one])
    ref = StageDir(root=local_root, stage="taken", fingerprint="refill").planned(1)[0]
    found = read_range(ref, 10, 20).to_pylist()
    assert found == [row for row in taken if 10 <= row["row"] < 20] != []


def test_nothing_found_is_nothing_taken(local_root: str) -> None:
    refs = candidates(local_root, "c", {})
    said, taken, asks = settled(local_root, [settling.Round(candidates=refs, depth=3, has_all=True)])
    assert (taken, asks) == ([], [])
    assert said == settling.Settled(queries=QUERIES, asked=27, found=0, images=0, collided=0, wanting=0, ended=QUERIES)


def test_longer_lists_never_take_an_image_from_a_better_claim(local_root: str) -> None:
    """Why a search may leave out what others hold by a better claim: it would be refused for ever."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        depths = rng.integers(1, 12, QUERIES)
        claims: dict[int, tuple[float, int]] = {}
        for more in range(0, ROWS, 4):
            lists = {query: first(query, int(depths[query]) + more) for query in range(QUERIES)}
            now = {row: (-SIMILARITY[query, row], query) for row, query in greedy(lists, 3).items()}
            assert all(now[row] <= claim for row, claim in claims.items())
            claims = now
