"""The threshold study: copies of a sample are made, or labelled pairs read, scored and shown on one page."""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import BaseModel

from lvd.flows import pool, study_page
from lvd.flows.adjusting import stored_background
from lvd.flows.deduplication import copy_thresholds
from lvd.flows.study_samples import Picture, Place, pictures_named, place_of, read_pairs, sampled
from lvd.infra.errors import InputError
from lvd.tasks import adjusting, models, study
from lvd.tasks.algorithms import pca_hash
from lvd.tasks.contact_sheets import thumbnail
from lvd.tasks.decode import DecodeError, decode_rgb
from lvd.tasks.models import engine
from lvd.tasks.transforms import GROUPS, TRANSFORMS, copy_of

COPIED_LONG_EDGE_PX = 1024  # copies are made of pictures no larger, as most copies on the web are not
SHOWN_PAIRS = 8
FIT_ROWS = 4096  # of the PCA, at a time
SHOWN_RATES = (1e-3, 1e-4, 1e-5, 0.0)
HARD = frozenset(transform.name for transform in TRANSFORMS if transform.group == "hard")
HASH = "PCA hash and thumbnail"
VERSIONS = {transform.name: transform for transform in TRANSFORMS}


class Method(BaseModel, frozen=True):
    """What one scorer came to. shares: transformation, group or kind → recall now and at the recommended threshold."""

    name: str
    threshold: float
    recommended: study.Recommendation
    recall: tuple[float, float]  # overall: now, recommended
    precision_now: float
    shares: dict[str, tuple[float, float]]
    at_rates: tuple[tuple[float, float, float], ...]  # share of false pairs, threshold, recall
    trials: dict[str, int]


class Summary(BaseModel, frozen=True):
    """The whole study as the JSON file holds it; the first method is the model of the recipe."""

    place: str
    is_planted: bool  # False: pairs that a person labelled
    seed: int
    images: int
    pool_images: int
    undecodable: int
    set_aside: int  # originals that look like another one of the sample
    with_them: study.Recommendation | None  # if those count as false pairs; None: there are none
    background: str | None  # what descriptors are adjusted by; None: they are not
    question: study.Question
    methods: tuple[Method, ...]
    page: str
    figures: str


def study_copies(
    where: str,
    *,
    pairs: str | None = None,
    recipe: str | None = None,
    sample: int = 500,
    out: str = "copies-study.html",
    seed: int = 0,
    question: study.Question | None = None,
) -> Summary:
    """The study of a root's pool or of a folder of images; writes the page `out` and a JSON file beside it.

    pairs: a CSV or Parquet file of labelled pairs instead of copies that are made; sample: of the images, more can show
    more (see lvd.tasks.study) at 0.2 CPU seconds each and, in memory, their files.
    Raises InputError if there is neither a root with a run nor a folder, or too few images.
    """
    if sample < 2:
        raise InputError(f"sample must be at least 2 images, was {sample}: 500 is usual")
    if not (page := Path(out)).suffix:
        raise InputError(f"out must be the name of an HTML file, was {out!r}: add .html")
    place = place_of(where, recipe)
    model = models.load(engine.spec_of(place.copies), models.Placement(device=pool.device(place.compute)))
    scorer = study.ModelScorer(place.copies.model, model, copy_thresholds(place.copies).min_similarity)
    question = question or study.Question()
    if pairs is None:
        study_ = Planted(place, scorer, question, sample=sample, seed=seed)
    else:
        study_ = Labelled(place, scorer, question, pairs)
    summary = study_.summary(seed, page)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.with_suffix(".json").write_text(json.dumps(summary.model_dump(mode="json"), indent=1) + "\n")
    page.write_text(study_page.rendered(summary, study_), encoding="utf-8")
    return summary


def copied_from(data: bytes) -> Image.Image:
    """The picture that copies are made of. Raises DecodeError."""
    image = decode_rgb(data)
    image.thumbnail((COPIED_LONG_EDGE_PX, COPIED_LONG_EDGE_PX), Image.Resampling.LANCZOS)
    return image


class Planted:
    """Copies made of a sample."""

    def __init__(
        self, place: Place, scorer: study.ModelScorer, question: study.Question, *, sample: int, seed: int
    ) -> None:
        self.groups = {group: [t.name for t in TRANSFORMS if t.group == group] for group in GROUPS}
        self._seed, self._place = seed, place
        drawn, self.pool_images = sampled(place, sample, seed)
        features = self._described(drawn, scorer)
        self.undecodable = sum(row is None for row in features)
        self.numbers = [number for number, row in enumerate(features) if row is not None]
        self.pictures = [drawn[number] for number in self.numbers]
        self._expect_two(len(self.pictures))
        self.question = question.model_copy(update={"pool_images": max(self.pool_images, 2)})
        whole = [np.stack([row[side] for row in features if row is not None]) for side in (0, 1)]
        self.background, scorer, whole[0] = adjusted(place, scorer, whole[0], self.pictures)
        self.scorers = [scorer, self._hash_of(whole[1])]
        aside: set[int] = set()
        self.look_alikes = study.look_alikes(scorer, whole[0][:, 0])
        for pair in [*self.look_alikes, *study.look_alikes(self.scorers[1], whole[1][:, 0])]:
            if pair.left not in aside:
                aside.add(pair.right)
        self.set_aside = len(aside)
        self._left = np.array([i for i in range(len(self.pictures)) if i not in aside])
        self._expect_two(len(self._left))
        self.scores = [self._scored(s, rows[self._left]) for s, rows in zip(self.scorers, whole, strict=True)]
        self.curves = [study.planted_curve(scores, self.question) for scores in self.scores]
        self._with_them = self._scored(scorer, whole[0]) if aside else None

    def _expect_two(self, images: int) -> None:
        if images < 2:
            found = f"{images} in {self._place.name!r}"
            raise InputError(f"the sample must hold at least 2 different images that can be decoded, had {found}")

    def _described(self, drawn: list[Picture], scorer: study.ModelScorer) -> list[tuple[np.ndarray, np.ndarray] | None]:
        """(descriptors, thumbnails) of each image and its copies, (1 + transformations, …); None: not decodable."""

        def one(number: int) -> tuple[np.ndarray, np.ndarray] | None:
            try:
                files_ = [drawn[number].data, *self._copies(drawn[number].data, number)]
                return scorer.features(files_), study.HashScorer.thumbnails(files_)
            except DecodeError:
                return None

        with ThreadPoolExecutor(pool.workers(self._place.compute)) as workers:
            return list(workers.map(one, range(len(drawn))))

    def _copies(self, data: bytes, number: int) -> list[bytes]:
        image = copied_from(data)
        return [copy_of(image, transform, seed=self._seed, number=number) for transform in TRANSFORMS]

    def _hash_of(self, thumbnails: np.ndarray) -> study.HashScorer:
        """The hash stage of the recipe, its PCA fitted on all versions of the sample: (n, versions, p) uint8."""
        config, rows = self._place.fingerprint, thumbnails.reshape(-1, thumbnails.shape[-1])
        fit = pca_hash.fit(rows[start : start + FIT_ROWS] for start in range(0, len(rows), FIT_ROWS))
        return study.HashScorer(HASH, fit, max_distance=config.max_distance, threshold=config.min_thumbnail_similarity)

    @staticmethod
    def _scored(scorer: study.Scorer, rows: np.ndarray) -> study.Scores:
        copies = {transform.name: rows[:, place] for place, transform in enumerate(TRANSFORMS, 1)}
        return study.planted_scores(scorer, rows[:, 0], copies, apart=HARD)

    def summary(self, seed: int, page: Path) -> Summary:
        with_them = None
        if self._with_them is not None:
            with_them = study.recommend(study.planted_curve(self._with_them, self.question), self.question)
        return Summary(
            place=self._place.name,
            is_planted=True,
            seed=seed,
            images=len(self._left),
            pool_images=self.pool_images,
            undecodable=self.undecodable,
            set_aside=self.set_aside,
            with_them=with_them,
            background=self.background,
            question=self.question,
            methods=tuple(
                method(scorer, curve, study.recommend(curve, self.question), self.groups)
                for scorer, curve in zip(self.scorers, self.curves, strict=True)
            ),
            page=str(page),
            figures=str(page.with_suffix(".json")),
        )

    def histograms(self) -> tuple[np.ndarray, np.ndarray]:
        """Counts by level of the model's true and false pairs."""
        return sum(study.histogram(own) for own in self.scores[0].true.values()), self.scores[0].false

    def shown(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """(heading, pairs): the worst misses, the worst false pairs, and what was set aside."""
        lowest = sorted((float(own.min()), int(own.argmin()), name) for name, own in self.scores[0].true.items())
        missed = [found for found in lowest if VERSIONS[found[2]].group != "hard"]
        yield (
            "Mild and medium copies that look least like their originals, one of each transformation",
            [self._pair(s, self._left[i], self._left[i], name) for s, i, name in missed[:SHOWN_PAIRS]],
        )
        yield (
            "Other images that look most alike",
            [
                self._pair(p.similarity, self._left[p.left], self._left[p.right], p.version)
                for p in self.scores[0].worst
            ][:SHOWN_PAIRS],
        )
        yield (
            "Pairs of originals above the threshold, set aside: are they copies?",
            [self._pair(p.similarity, p.left, p.right, p.version) for p in self.look_alikes[:SHOWN_PAIRS]],
        )

    def _pair(self, similarity: float, left: int, right: int, version: str) -> dict[str, Any]:
        files_ = [self.pictures[left].data, self.pictures[right].data]
        if version != study.ORIGINAL:
            image = copied_from(files_[1])
            files_[1] = copy_of(image, VERSIONS[version], seed=self._seed, number=self.numbers[right])
        keys = self.pictures[left].key, self.pictures[right].key
        return shown_pair(similarity, version, list(zip(keys, files_, strict=True)))


class Labelled:
    """Pairs that a person labelled."""

    groups: dict[str, list[str]]

    def __init__(self, place: Place, scorer: study.ModelScorer, question: study.Question, path: str) -> None:
        self.question, self._place = question, place
        rows = read_pairs(path)
        found = pictures_named(place, {name for row in rows for name in (row["left"], row["right"])}, path)
        features: dict[str, tuple[np.ndarray, np.ndarray]] = {}

        def one(name: str) -> None:
            try:
                data = [found[name].data]
                features[name] = scorer.features(data)[0], study.HashScorer.thumbnails(data)[0]
            except DecodeError:
                return

        with ThreadPoolExecutor(pool.workers(place.compute)) as workers:
            list(workers.map(one, found))
        self.undecodable, self.pictures, self.set_aside = len(found) - len(features), found, 0
        self.rows = [row for row in rows if row["left"] in features and row["right"] in features]
        is_copy = np.array([row["is_copy"] for row in self.rows], dtype=bool)
        if not len(is_copy) or is_copy.all() or not is_copy.any():
            raise InputError(f"{path} must hold pairs of both labels whose images can be decoded: add some")
        config, names = place.fingerprint, sorted(features)
        described = np.stack([features[name][0] for name in names])[:, None]
        self.background, scorer, described = adjusted(place, scorer, described, [found[name] for name in names])
        features |= {name: (row, features[name][1]) for name, row in zip(names, described[:, 0], strict=True)}
        fit = pca_hash.fit([np.stack([features[name][1] for name in names])])
        hashed = study.HashScorer(
            HASH, fit, max_distance=config.max_distance, threshold=config.min_thumbnail_similarity
        )
        self.scorers, kinds = [scorer, hashed], np.array([row["kind"] for row in self.rows])
        self.similarity = [
            np.array(
                [
                    s.matrix(features[row["left"]][side][None], features[row["right"]][side][None])[0, 0]
                    for row in self.rows
                ]
            )
            for side, s in enumerate(self.scorers)
        ]
        self.is_copy, self.groups = is_copy, {}
        self.curves = [study.labelled_curve(values, is_copy, kinds, question.confidence) for values in self.similarity]

    def summary(self, seed: int, page: Path) -> Summary:
        return Summary(
            place=self._place.name,
            is_planted=False,
            seed=seed,
            images=len(self.pictures) - self.undecodable,
            pool_images=0,
            undecodable=self.undecodable,
            set_aside=0,
            with_them=None,
            background=self.background,
            question=self.question,
            methods=tuple(
                method(scorer, curve, study.recommend(curve, self.question, is_pool=False), {})
                for scorer, curve in zip(self.scorers, self.curves, strict=True)
            ),
            page=str(page),
            figures=str(page.with_suffix(".json")),
        )

    def histograms(self) -> tuple[np.ndarray, np.ndarray]:
        values = self.similarity[0]
        return study.histogram(values[self.is_copy]), study.histogram(values[~self.is_copy])

    def shown(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        order = np.argsort(self.similarity[0], kind="stable")
        for heading, places in (
            ("Labelled copies that look least alike", order[self.is_copy[order]]),
            ("Labelled others that look most alike", order[~self.is_copy[order]][::-1]),
        ):
            yield heading, [self._pair(place) for place in places[:SHOWN_PAIRS].tolist()]

    def _pair(self, place: int) -> dict[str, Any]:
        row = self.rows[place]
        both = [self.pictures[row[side]] for side in ("left", "right")]
        return shown_pair(float(self.similarity[0][place]), row["kind"], [(p.key, p.data) for p in both])


def adjusted(
    place: Place, scorer: study.ModelScorer, features: np.ndarray, pictures: list[Picture]
) -> tuple[str | None, study.Scorer, np.ndarray]:
    """What the copies stage adjusts descriptors by, in words, the scorer of what comes of it, and that: (n, v, …).

    By the background that the root has for these settings, else by one of the sample's originals. Nothing is changed
    where the stage adjusts nothing. features: (n, versions, d), the originals first.
    """
    config = place.copies
    if not config.is_adjusted:
        return None, scorer, features
    ids = np.full(features.shape[:2], None, dtype=object)
    ids[:, 0] = [hashlib.sha256(picture.data).hexdigest()[:32] for picture in pictures]
    root = place.root and stored_background(place.root.root, config, place.run["recipe"]["seed"])
    if root:
        background, said = adjusting.read_background(*root.shards()), f"{root.directory}, which the root keeps"
    else:
        rows, normalised = np.nan_to_num(features[:, 0]).astype(np.float16), config.score_normalisation is not None
        background = adjusting.sampled_background(rows, ids[:, 0], config.whitening, normalised)
        said = f"the {len(rows)} originals of this sample: there is no background of a run with these settings"
    judge = study.AdjustedScorer(scorer, background, config.score_normalisation)
    flat = judge.adjusted(features.reshape(-1, features.shape[-1]), ids.ravel(), pool.device(place.compute))
    return said, judge, flat.reshape(*features.shape[:2], -1)


def method(
    scorer: study.Scorer, curve: study.Curve, recommended: study.Recommendation, groups: dict[str, list[str]]
) -> Method:
    """The figures of one scorer at its threshold and at the recommended one."""
    now, then = (study.place_of(threshold) for threshold in (scorer.threshold, recommended.threshold))
    shares = {name: (float(recall[now]), float(recall[then])) for name, recall in curve.recall_of.items()}
    for group, names in groups.items():
        shares[group] = tuple(float(np.mean([shares[name][side] for name in names])) for side in (0, 1))
    return Method(
        name=scorer.name,
        threshold=scorer.threshold,
        recommended=recommended,
        recall=(float(curve.recall[now]), float(curve.recall[then])),
        precision_now=float(curve.precision[now]),
        shares=shares,
        at_rates=tuple((rate, *study.recall_at(curve, rate)) for rate in SHOWN_RATES),
        trials=curve.trials,
    )


def shown_pair(similarity: float, version: str, both: list[tuple[str, bytes]]) -> dict[str, Any]:
    """Two pictures as the page shows them side by side."""
    empty = {"image_id": "", "alt": "", "label": "", "format": "", "width": 0, "height": 0, "num_bytes": 0}
    pictures = [thumbnail({**empty, "key": key, "image": {"bytes": data}}) for key, data in both]
    return {"similarity": similarity, "version": version, "pictures": pictures}
