"""The study of the number of clusters: a sample of a root's embeddings is clustered by several k, shown on one page."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel

from lvd.flows import study_clusters_page
from lvd.flows.stored import Stored, is_reference
from lvd.infra.errors import InputError
from lvd.infra.shards import ShardRef, StageDir, gather_rows
from lvd.tasks import retrieve, study_clusters
from lvd.tasks.algorithms.allocation import draw
from lvd.tasks.algorithms.evenness import imbalance
from lvd.tasks.algorithms.neighbours import nearest
from lvd.tasks.models import engine
from lvd.tasks.study_clusters import Choice, Clustering, Collection, Policy, Scaled

MAX_QUERIES = 5000  # of each collection
MIN_CLUSTERS = 2
QUANTILES = (0.05, 0.5, 0.95)


class Retrieval(BaseModel, frozen=True):
    """What one collection reaches at one k, in the mean over the seeds; images are those of the sample."""

    eligible: float  # clusters
    reached: float  # images in them
    retrieved: float  # of these, after the caps of the policy
    recall: float
    precision: float
    agreement: float


class Level(BaseModel, frozen=True):
    """One k, in the mean over the seeds. Figures of labels and retrieval: in the mean over the collections, or None."""

    num_clusters: int
    sample_rows_per_cluster: float
    pool_rows_per_cluster: float  # with as many clusters in the pool
    objective: float  # of rows not fitted on
    objective_fitted: float
    seed_spread: float  # of the objective: the greatest difference between two seeds
    imbalance: float
    sizes: tuple[float, ...]  # at QUANTILES, in rows of the sample
    empty: float  # clusters
    stability: float
    purity: float | None
    v_measure: float | None
    adjusted_information: float | None
    recall: float | None
    precision: float | None
    agreement: float | None
    overlap_seeds: float | None  # of the images reached: between two seeds
    overlap_next: float | None  # and between this k and the next; None for the last
    by_collection: dict[str, Retrieval]


class Asked(BaseModel, frozen=True):
    """A curated collection as it was asked with. images: of the whole collection, queries: those taken."""

    name: str
    images: int
    queries: int
    labels: int  # different ones; 0: it has none that can be used
    policy: Policy
    scaled: Scaled
    near: int  # images of the sample that are nearest to the queries


class Summary(BaseModel, frozen=True):
    """The whole study as the JSON file holds it."""

    place: str
    seed: int
    pool_images: int
    sample: int
    held_out: int
    clusters_now: int | None  # of the recipe
    levels: tuple[Level, ...]
    collections: tuple[Asked, ...]
    choice: Choice  # by the first rule that applies
    others: tuple[Choice, ...]  # by the others that apply
    carried: study_clusters.Carried | None  # None: the sample is the whole pool, or it cannot be halved
    same_rows_clusters: int | None  # of the whole pool, for as many rows per cluster as in the sample
    recommended: int | None  # of the whole pool; None: the sample cannot tell
    page: str
    figures: str


class Drawn(NamedTuple):
    """The sample, (s, d) float16 in random order, its first rows held out; and the collections."""

    rows: np.ndarray
    held_out: int
    collections: list[Collection]

    def halved(self) -> "Drawn":
        """Every second row of either part."""
        rows = np.concatenate([self.rows[: self.held_out : 2], self.rows[self.held_out :: 2]])
        return self._replace(rows=rows, held_out=-(-self.held_out // 2))

    @property
    def fitted(self) -> int:
        return len(self.rows) - self.held_out


def cluster_study(
    root: str,
    *,
    clusters: tuple[int, ...] | None = None,
    sample: int = 20_000,
    seed: int = 0,
    out: str = "clusters-study.html",
) -> Summary:
    """The study of a finished root's embeddings; writes the page `out` and a JSON file beside it.

    clusters: the k that are tried, else `study_clusters.ladder`. sample: rows of the pool; raising it allows more
    clusters and takes, for each of four seeds, sample × k × d × 40 operations. Memory: the sample in float16, and
    twice in float32.
    Raises InputError if there is no run, no embedding, or a k that the sample does not allow.
    """
    if not (page := Path(out)).suffix:
        raise InputError(f"out must be the name of an HTML file, was {out!r}: add .html")
    stored = Stored(root)
    directories = embedded(stored)
    refs = [ref for target in directories if not is_reference(target.directory) for ref in target.shards()]
    pool_images = sum(ref.rows for ref in refs)
    drawn = drawn_from(stored, refs, directories, sample, seed)
    ks = numbers_of(clusters, drawn, pool_images)
    recipe, device = stored.last["recipe"], stored.device
    options = {"iterations": int(recipe.get("cluster", {}).get("iterations") or 20), "seed": seed}
    study = Study(drawn, ks, pool_images, device=device, seeds=study_clusters.SEEDS, **options)
    choices = study.choices()
    carried_over = recommended = same_rows = None
    if (number := choices[0].num_clusters) is not None:
        same_rows = max(round(number * pool_images / len(drawn.rows)), 1)
        carried_over = _carried(study, choices[0], options) if len(drawn.rows) < pool_images else None
        recommended = same_rows if carried_over and carried_over.by_rows else number
    now = recipe.get("cluster", {}).get("num_clusters")
    summary = Summary(
        place=root,
        seed=seed,
        pool_images=pool_images,
        sample=len(drawn.rows),
        held_out=drawn.held_out,
        clusters_now=now if isinstance(now, int) else None,
        levels=study.levels(),
        collections=study.asked(),
        choice=choices[0],
        others=tuple(choices[1:]),
        carried=carried_over,
        same_rows_clusters=same_rows,
        recommended=recommended,
        page=str(page),
        figures=str(page.with_suffix(".json")),
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    page.with_suffix(".json").write_text(json.dumps(summary.model_dump(mode="json"), indent=1) + "\n")
    page.write_text(study_clusters_page.rendered(summary), encoding="utf-8")
    return summary


def embedded(stored: Stored) -> list[StageDir]:
    """The directories of the last run's embeddings. Raises InputError if they are not there."""
    names = list(dict.fromkeys(stored.last["directories"].get("embed", ())))
    directories = [stored.at(name) for name in names]
    missing = [target.directory for target in directories if not target.is_complete()]
    if missing or not names:
        lost = missing[0] if missing else "embed"
        raise InputError(
            f"root must hold the embeddings of its last run, {stored.root!r} has no {lost}: run the recipe again"
        )
    return directories


def drawn_from(stored: Stored, refs: list[ShardRef], directories: list[StageDir], sample: int, seed: int) -> Drawn:
    """A seeded sample of the pool's embeddings, and of those of the curated collections."""
    total = sum(ref.rows for ref in refs)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0x5C]))
    positions = draw(total, min(sample, total), rng=rng)
    if len(positions) < (least := 2 * MIN_CLUSTERS):
        raise InputError(
            f"the sample must hold at least {least} embeddings of the pool, had {len(positions)} of {total}: "
            "give a larger --sample, or a pool of more images"
        )
    rows = engine.vector_column(gather_rows(refs, positions, ["vector"]))[rng.permutation(len(positions))]
    collections = [
        one
        for number, found in enumerate(stored.last["collections"])
        if found["role"] == "curated" and (one := collection_of(stored, found, directories, [seed, 0x5C, number]))
    ]
    return Drawn(rows, max(round(len(rows) * study_clusters.HELD_OUT), 1), collections)


def collection_of(
    stored: Stored, found: dict[str, Any], directories: list[StageDir], seed: list[int]
) -> Collection | None:
    """A sample of a curated collection's images with their labels; None if it has no embeddings."""
    mine = [
        target
        for target in directories
        if is_reference(target.directory) and target.account()["inputs"]["images"] in found["images"]
    ]
    refs = [ref for target in mine for ref in target.shards()]
    total = sum(ref.rows for ref in refs)
    if not total:
        return None
    chosen = draw(total, min(total, MAX_QUERIES), rng=np.random.default_rng(np.random.SeedSequence(seed)))
    vectors = engine.vector_column(gather_rows(refs, chosen, ["vector"]))
    names, first = [], 0
    for target in mine:
        own = target.shards()
        rows_in = sum(ref.rows for ref in own)
        inside = chosen[np.searchsorted(chosen, first) : np.searchsorted(chosen, first + rows_in)] - first
        names += labels_of(stored.at(target.account()["inputs"]["images"]), own, inside)
        first += rows_in
    said = next((c.get("retrieve") for c in stored.last["recipe"]["curated"] if c["name"] == found["name"]), None)
    return Collection(found["name"], vectors, codes_of(names), total, policy_of(said, total))


def labels_of(images: StageDir, vectors: list[ShardRef], positions: np.ndarray) -> list[str | None]:
    """The labels of the images that vectors at these positions, ascending, are of."""
    if not len(positions):
        return []
    rows = gather_rows(vectors, positions, ["row"])["row"].to_numpy()
    return gather_rows(images.shards(), rows, ["label"])["label"].to_pylist()


def codes_of(names: list[str | None]) -> np.ndarray:
    """(n,) int64: equal names have equal numbers; -1 where there is none."""
    numbers = {name: number for number, name in enumerate(sorted({name for name in names if name}))}
    return np.array([numbers[name] if name else -1 for name in names], dtype=np.int64)


def policy_of(said: dict[str, Any] | None, images: int) -> Policy:
    """What a collection is to retrieve by the recipe: what either kind does not say is the paper's."""
    kind = (said or {}).get("kind")
    cluster = retrieve.Cluster(**said) if kind == "cluster" else retrieve.Cluster(kind="cluster")
    wanted = cluster.max_images
    if kind == "sample":
        wanted = retrieve.Sample(**said).neighbors * images
    rest = {name: getattr(cluster, name) for name in ("min_queries", "per_cluster", "max_images")}
    return Policy(images=wanted, **rest)


def listed(text: str) -> tuple[int, ...]:
    """The numbers of a text such as 100,200,400. Raises InputError if it is none."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"clusters must be whole numbers with commas between, was {text!r}: 100,200,400") from error


def numbers_of(clusters: tuple[int, ...] | None, drawn: Drawn, pool_images: int) -> tuple[int, ...]:
    """The k that are tried, ascending, none twice.

    Raises InputError if there are fewer than two, or one is larger than the rows that are fitted on.
    """
    ks = tuple(sorted(set(clusters))) if clusters is not None else study_clusters.ladder(drawn.fitted)
    ks = ks if clusters is not None else tuple(k for k in ks if k <= drawn.fitted)
    for k in ks:
        if not MIN_CLUSTERS <= k <= drawn.fitted:
            more = "or a larger --sample" if len(drawn.rows) < pool_images else "as that is the whole pool"
            raise InputError(
                f"clusters must be in [{MIN_CLUSTERS}, {drawn.fitted}], the rows that are fitted on of a sample of "
                f"{len(drawn.rows)}, was {k}: give fewer, {more}"
            )
    if len(ks) < 2:
        raise InputError(
            f"clusters must be at least 2 different numbers, was {', '.join(map(str, ks)) or 'none'}: add one"
        )
    return ks


class Study:
    """The fits of every k, and what they come to."""

    def __init__(
        self,
        drawn: Drawn,
        ks: tuple[int, ...],
        pool_images: int,
        *,
        device: str,
        seeds: int,
        iterations: int,
        seed: int,
    ) -> None:
        self.drawn, self.ks, self.pool_images, self._device, self._seed = drawn, ks, pool_images, device, seed
        share = len(drawn.rows) / pool_images
        self._policies = [
            study_clusters.scaled(one.policy, images=one.images, queries=len(one.vectors), share=share)
            for one in drawn.collections
        ]
        self._near = [
            nearest(one.vectors, [(0, drawn.rows)], k=min(policy.neighbors, len(drawn.rows)), device=device)[1]
            for one, policy in zip(drawn.collections, self._policies, strict=True)
        ]
        own = [int(np.random.SeedSequence([seed, 0x5C, n]).generate_state(1)[0] >> 1) for n in range(seeds)]
        self._fits = [
            [
                study_clusters.clustering(
                    drawn.rows, drawn.held_out, k, drawn.collections, iterations=iterations, seed=one
                )
                for one in own
            ]
            for k in ks
        ]

    def halved(self, ks: tuple[int, ...], iterations: int) -> "Study":
        """Half of the sample, one seed of each k."""
        own = {"device": self._device, "seeds": 1, "iterations": iterations, "seed": self._seed}
        return Study(self.drawn.halved(), ks, self.pool_images, **own)

    def scores(self, rule: study_clusters.Rule) -> np.ndarray | None:
        """(k, seeds, 1 + resamples) of the measure that a rule compares; None if the rule does not apply."""
        collections = self.drawn.collections
        if rule == "labels" and any(one.is_labelled for one in collections):
            return study_clusters.scores_by_labels(self._fits, collections, seed=self._seed)
        if rule == "retrieval" and collections:
            return study_clusters.scores_by_retrieval(self._fits, self._near, self._policies, seed=self._seed)
        return study_clusters.scores_by_objective(self._fits, seed=self._seed) if rule == "objective" else None

    def choices(self) -> list[Choice]:
        """What the rules say that apply, the one that decides first."""
        found = []
        for rule in ("labels", "retrieval"):
            if (values := self.scores(rule)) is not None:
                found.append(study_clusters.chosen_by_peak(rule, self.ks, values))
        return [*found, study_clusters.chosen_by_knee(self.ks, self.scores("objective"))]

    def asked(self) -> tuple[Asked, ...]:
        return tuple(
            Asked(
                name=one.name,
                images=one.images,
                queries=len(one.vectors),
                labels=len(np.unique(one.labels[one.labels >= 0])) if one.is_labelled else 0,
                policy=one.policy,
                scaled=policy,
                near=len(np.unique(near)),
            )
            for one, policy, near in zip(self.drawn.collections, self._policies, self._near, strict=True)
        )

    def levels(self) -> tuple[Level, ...]:
        result, masks = [], [self._masks(fits) for fits in self._fits]
        for place, fits in enumerate(self._fits):
            following = masks[place + 1] if place + 1 < len(masks) else None
            result.append(self._level(fits, masks[place], following))
        return tuple(result)

    def _masks(self, fits: list[Clustering]) -> list[list[np.ndarray]]:
        """Of each seed and collection: (s,) bool, the rows of the sample in eligible clusters."""
        pairs = list(enumerate(self._policies))
        return [[study_clusters.reached(fit, fit.homes[i], p.min_queries)[1] for i, p in pairs] for fit in fits]

    def _level(
        self, fits: list[Clustering], masks: list[list[np.ndarray]], following: list[list[np.ndarray]] | None
    ) -> Level:
        k, rows = fits[0].num_clusters, len(self.drawn.rows)
        sizes = [np.bincount(fit.cell, minlength=k) for fit in fits]
        objectives = [float(fit.held_out.mean(dtype=np.float64)) for fit in fits]
        collections = {one.name: self._retrieval(fits, number) for number, one in enumerate(self.drawn.collections)}
        found = list(collections.values())
        mean = {name: _mean([getattr(one, name) for one in found]) for name in ("recall", "precision", "agreement")}
        return Level(
            num_clusters=k,
            sample_rows_per_cluster=rows / k,
            pool_rows_per_cluster=self.pool_images / k,
            objective=float(np.mean(objectives)),
            objective_fitted=float(np.mean([fit.fitted for fit in fits])),
            seed_spread=max(objectives) - min(objectives),
            imbalance=float(np.mean([imbalance(of) for of in sizes])),
            sizes=tuple(np.mean([np.quantile(of, QUANTILES) for of in sizes], axis=0).tolist()),
            empty=float(np.mean([np.count_nonzero(of == 0) for of in sizes])),
            stability=_mean([study_clusters.adjusted_rand_index(a.cell, b.cell) for a, b in combinations(fits, 2)]),
            purity=self._labelled(fits, study_clusters.purity),
            v_measure=self._labelled(fits, study_clusters.v_measure),
            adjusted_information=self._labelled(fits, study_clusters.adjusted_information),
            **mean,
            overlap_seeds=_mean([_overlap(a, b) for a, b in combinations(masks, 2)]),
            overlap_next=_mean([_overlap(a, b) for a, b in zip(masks, following, strict=True)]) if following else None,
            by_collection=collections,
        )

    def _labelled(self, fits: list[Clustering], measure: Any) -> float | None:
        values = [
            measure(fit.homes[number][one.labels >= 0], one.labels[one.labels >= 0])
            for fit in fits
            for number, one in enumerate(self.drawn.collections)
            if one.is_labelled
        ]
        return _mean(values)

    def _retrieval(self, fits: list[Clustering], number: int) -> Retrieval:
        policy, rows = self._policies[number], len(self.drawn.rows)
        is_near, each = study_clusters.marked(self._near[number], rows), []
        for fit in fits:
            eligible, inside = study_clusters.reached(fit, fit.homes[number], policy.min_queries)
            found = study_clusters.found(is_near, inside)
            quotas = study_clusters.quotas(fit, eligible, policy)
            each.append([len(eligible), np.count_nonzero(inside), int(quotas.sum()), *found])
        return Retrieval(**dict(zip(Retrieval.model_fields, np.mean(each, axis=0).tolist(), strict=True)))


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _overlap(left: list[np.ndarray], right: list[np.ndarray]) -> float | None:
    """The share of the reached images that both reach, in the mean over the collections."""
    return _mean([study_clusters.jaccard(a, b) for a, b in zip(left, right, strict=True)])


def _carried(study: Study, choice: Choice, options: dict[str, int]) -> study_clusters.Carried | None:
    """What carries the measure of the rule over, by half of the sample; None if too few k fit into a half."""
    ks = tuple(k for k in study.ks if k <= study.drawn.halved().fitted)
    if len(ks) < 2:
        return None
    half = study.halved(ks, options["iterations"]).scores(choice.rule)
    whole = np.array([choice.scores[k] for k in ks])
    return study_clusters.carried(ks, whole, half[:, 0, 0])
