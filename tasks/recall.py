"""Recall of a search through cells, certified: seeded queries are answered exactly, half of them choose the probes."""

from typing import Literal

import numpy as np
from pydantic import BaseModel, Field

BAND = 0.05  # of similarity, by which recall is told
STEPS = sorted(n << shift for n in (2, 3) for shift in range(12))  # probes: 2, 3, 4, 6, 8, 12, 16, 24, …
RESAMPLES = 1000  # of the queries, for the interval
SEED = 0xB007


class Search(BaseModel, frozen=True, extra="forbid"):
    """How neighbours are searched for. What is found is scored exactly in every case."""

    engine: Literal["auto", "exact", "cells"] = "auto"
    exact_up_to: int = Field(200_000, ge=0)  # rows that `auto` compares exactly; the cost grows with the square
    max_probes: int = Field(64, ge=1, le=4096)  # cells that a row may probe; 4 bytes each are stored for every row
    min_recall: float = Field(0.99, ge=0, le=1)  # below it with max_probes the run fails
    recall_queries: int = Field(4000, ge=2)  # answered exactly; more make the interval narrower

    def is_exact(self, num_left: int, num_right: int) -> bool:
        return self.engine == "exact" or (self.engine == "auto" and num_left * num_right <= self.exact_up_to**2)


class Recall(BaseModel, frozen=True):
    """What part of the true pairs is found. `recall` is the lower one of both figures."""

    probes: int
    recall: float
    interval: tuple[float, float]  # 95 %, by resampling the queries
    of_pairs: float
    of_images: float  # mean over the images that have a pair
    bands: dict[str, float]  # lower end of a band of similarity → share of its pairs
    queries: int
    pairs: int


def certified(
    query: np.ndarray,
    similarity: np.ndarray,
    rank: np.ndarray,
    num_queries: int,
    search: Search,
    *,
    seed: int,
    probes: int | None = None,
) -> Recall:
    """The probes that the first half of the queries asks for, and the recall of the other half with so many.

    Where that is below `min_recall`, there are more of them; at `max_probes` it is returned as it is.
    probes: where they are chosen already, the recall with so many.

    query, similarity, rank: (m,) of every true pair: its query in [0, num_queries), in random order; its similarity;
    and with how many probes it is found, less one.
    """
    half = num_queries // 2
    tells = query >= half
    probes = probes or _chosen(query, rank, half, search)
    query, similarity, found = query[tells], similarity[tells], rank[tells] < probes
    of_pairs, of_images = shares(query, found)
    edge = np.floor(similarity / BAND + 1e-4) * BAND
    return Recall(
        probes=probes,
        recall=min(of_pairs, of_images),
        interval=interval(query, found, seed=seed),
        of_pairs=of_pairs,
        of_images=of_images,
        bands={f"{lower:.2f}": float(found[edge == lower].mean()) for lower in np.unique(edge)},
        queries=num_queries - half,
        pairs=len(query),
    )


def _chosen(query: np.ndarray, rank: np.ndarray, half: int, search: Search) -> int:
    """The probes with which the queries below `half` find enough, or more if the others then do not."""
    asks, tells = query < half, query >= half
    steps = [p for p in STEPS if p < search.max_probes] + [search.max_probes]
    enough = search.min_recall + (1 - search.min_recall) / 4  # so that the other half seldom falls below
    step = next((i for i, p in enumerate(steps) if min(shares(query[asks], rank[asks] < p)) >= enough), len(steps) - 1)
    while step < len(steps) - 1 and min(shares(query[tells], rank[tells] < steps[step])) < search.min_recall:
        step += 1
    return steps[step]


def by_query(query: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every query that has a pair: how many it has, and how many of them are found."""
    total, hits = np.bincount(query), np.bincount(query, weights=found)
    return total[total > 0], hits[total > 0]


def shares(query: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """The share of the pairs that are found, and the mean of it over the queries that have a pair; 1 without pairs."""
    if not len(query):
        return 1.0, 1.0
    total, hits = by_query(query, found)
    return float(found.mean()), float((hits / total).mean())


def interval(query: np.ndarray, found: np.ndarray, *, seed: int) -> tuple[float, float]:
    """95 % of the lower share when the queries, whose pairs are no independent draws, are drawn again and again."""
    if not len(query):
        return 0.0, 1.0
    total, hits = by_query(query, found)
    rng = np.random.default_rng(np.random.SeedSequence([seed, SEED]))
    drawn = rng.integers(0, len(total), (RESAMPLES, len(total)))
    lower = np.minimum(hits[drawn].sum(axis=1) / total[drawn].sum(axis=1), (hits / total)[drawn].mean(axis=1))
    return tuple(np.percentile(lower, (2.5, 97.5)).round(5).tolist())
