"""Whether a curated set is better than a random one: its features on labelled images, what its selection covers.

Everything comes from what the last run left on storage. Samples are drawn with a seed; vectors are read one shard at a
time, so that memory follows the sample and not the pool.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lvd.flows import evaluation_page
from lvd.flows.embedded_rows import Rows, Sampled
from lvd.flows.evaluation_summary import Concept, Coverage, Labelled, Summary, Told
from lvd.flows.labelled_folders import MAX_LABELLED, SIDES, FolderImages, folder_images
from lvd.flows.recipe import load
from lvd.flows.references import CUTS, Reference, Space, halves_of, kept_references, part_of
from lvd.flows.stored import Stored
from lvd.infra.errors import InputError
from lvd.infra.shards import StageDir, gather_rows, read_table
from lvd.tasks import evaluation, models
from lvd.tasks.algorithms import kmeans
from lvd.tasks.models import engine

SAMPLE, SAMPLE_OF_A_MODEL = 5000, 1000  # selected images that are looked at: stored vectors, or computed now
POOL_TIMES = 5  # so many times the selected images is the sample of the pool that random selections are drawn from
MAX_REFERENCES = 1000  # images of a collection that the selection is judged by
MAX_ASSIGNED = 100_000  # images of a collection whose clusters are counted
TEST_SHARE = 0.25
SHOWN_CONCEPTS = 16


def evaluate(
    root: str,
    *,
    labelled: tuple[str, ...] = (),
    model: str | None = None,
    weights: str | None = None,
    recipe: str | None = None,
    sample: int | None = None,
    seed: int = 0,
    out: str = "evaluation.html",
) -> Summary:
    """The evaluation of the last run of a root; writes the page `out` and a JSON file beside it.

    labelled: folders with a subfolder for each class; model, weights: other features, to compare, or those of a recipe;
    sample: selected images that are looked at, at most; raising it makes intervals narrower, 1,000 to 5,000 is usual.
    Raises InputError if nothing was published there, or a folder or a model cannot be had.
    """
    if sample is not None and sample < 2:
        raise InputError(f"sample must be at least 2 images, was {sample}: {SAMPLE} is usual")
    if not (page := Path(out)).suffix:
        raise InputError(f"out must be the name of an HTML file, was {out!r}: add .html")
    stored = Stored(root)
    spaces = [Space(f"{stored.last['recipe']['embed']['model']} (the root's own)", stored.device, None)]
    spec = other_features(model, weights, recipe)
    if spec is not None:
        spaces.append(Space(spec.model, stored.device, spec))
    summary = Evaluation(stored, spaces, sample, seed).summary(labelled, page)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.with_suffix(".json").write_text(json.dumps(summary.model_dump(mode="json"), indent=1) + "\n")
    page.write_text(evaluation_page.rendered(summary), encoding="utf-8")
    return summary


def other_features(model: str | None, weights: str | None, recipe: str | None) -> models.Inference | None:
    """The model named, or that of a recipe's section `embed`; None if none is named. Raises InputError."""
    if model is not None and recipe is not None:
        raise InputError(f"--model and --recipe both name features, were {model!r} and {recipe!r}: give one of them")
    if weights is not None and model is None:
        raise InputError(f"--weights needs --model, was {weights!r} without it: name the model that they are of")
    if model is None and recipe is None:
        return None
    if recipe is not None:
        config = load(recipe).embed
        spec = models.Inference(**{name: getattr(config, name) for name in models.Inference.model_fields})
    else:
        spec = models.Inference(model=model, path=weights)
    models.check(spec, "--model" if recipe is None else "recipe.embed")
    return settled(spec)


def settled(spec: models.Inference) -> models.Inference:
    """With a batch size and a precision."""
    batch_size = 32 if spec.batch_size == "auto" else spec.batch_size
    return spec.model_copy(
        update={
            "batch_size": batch_size,
            "precision": "float32" if spec.precision == "auto" else spec.precision,
        }
    )


class Evaluation:
    """One evaluation: the samples, and what is measured of them."""

    def __init__(self, stored: Stored, spaces: list[Space], sample: int | None, seed: int) -> None:
        self.stored, self.spaces, self.seed, self.notes = stored, spaces, seed, []
        default = SAMPLE if len(spaces) == 1 else SAMPLE_OF_A_MODEL
        self._size = default if sample is None else sample
        embedded = {d.account()["inputs"]["images"]: d for d in stored.stage("embed")}
        self._rows = {
            (c["role"], c["name"]): Rows(stored, [embedded[images] for images in c["images"] if images in embedded])
            for c in stored.last["collections"]
            if c["role"] != "benchmark"
        }
        self.pool = next(rows for (role, _), rows in self._rows.items() if role == "pool")
        self.curated = {name: rows for (role, name), rows in self._rows.items() if role == "curated" and rows.total}

    def rng(self, *number: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self.seed, 0xE7A1, *number]))

    def _stage(self, name: str) -> list[StageDir]:
        """The directories of a stage of the last run, which may have done without it."""
        return self.stored.stage(name) if name in self.stored.last["directories"] else []

    def summary(self, folders: tuple[str, ...], page: Path) -> Summary:
        given = [folder_images(folder, self.rng(1, number)) for number, folder in enumerate(folders)]
        told, references = self._told_of_collections(), self._references()
        for number, (folder, images) in enumerate(zip(folders, given, strict=True)):
            labelled, reference = self._of_folder(folder, images, self.rng(2, number))
            told.append(labelled)
            references.append(reference)
        if not told:
            self.notes.append(
                "no curated collection has labels of two classes: "
                "for k-NN and probe give a folder with a subfolder for each class with --labelled"
            )
        places, total = self.selected_positions()
        known = {image_id for reference in references for image_id in reference.image_ids}
        selected = Sampled(self.pool, places, self.pool.ids(places)).without(known)
        coverage, concepts, spread, clusters, drawn = [], [], {}, 0, 0
        if len(selected.positions) < 2 or not references:
            self.notes.append(
                "nothing can be said of coverage: no published image was retrieved, or nothing is curated"
            )
        else:
            pool = self.pool_sample(POOL_TIMES * max(len(places), 1)).without(known)
            drawn = len(pool.positions)
            coverage, concepts = self._coverage(references, selected, pool)
            spread, clusters = self._spread(selected, pool)
        return Summary(
            root=self.stored.root,
            version=self.stored.last["version"],
            seed=self.seed,
            selected=total,
            survivors=self.pool.total,
            compared=len(selected.positions),
            drawn_from=drawn,
            clusters=clusters,
            labelled=tuple(told),
            coverage=tuple(coverage),
            spread=spread,
            concepts=tuple(concepts),
            notes=tuple(self.notes),
            page=str(page),
            figures=str(page.with_suffix(".json")),
        )

    def _sampled(self, rows: Rows, size: int, rng: np.random.Generator) -> Sampled:
        positions = np.sort(rng.choice(rows.total, size=min(size, rows.total), replace=False, shuffle=False))
        return Sampled(rows, positions, rows.ids(positions))

    def pool_sample(self, size: int) -> Sampled:
        return self._sampled(self.pool, size, self.rng(3))

    def _references(self) -> list[Reference]:
        """The curated collections, each content once."""
        found, seen = [], set()
        for number, (name, rows) in enumerate(self.curated.items()):
            sampled = self._sampled(rows, MAX_REFERENCES, self.rng(4, number)).without(seen)
            seen |= {*sampled.image_ids}
            vectors = [space.of_rows(sampled) for space in self.spaces]
            labels = rows.labels(sampled.positions)
            found += kept_references(Reference(name, "biased", sampled.image_ids, labels, vectors))
        return found

    def _told_of_collections(self) -> list[Labelled]:
        """k-NN and probe of every labelled collection; two that are named train and test are one."""
        labelled: dict[str, tuple[list[str], list[str], list[np.ndarray]]] = {}
        for number, (name, rows) in enumerate(self.curated.items()):
            sampled = self._sampled(rows, MAX_LABELLED, self.rng(5, number)).without(set())
            labels = rows.labels(sampled.positions)
            has = [place for place, label in enumerate(labels) if label is not None]
            if len({labels[place] for place in has}) > 1:
                chosen = Sampled(rows, sampled.positions[has], [sampled.image_ids[place] for place in has])
                vectors = [space.of_rows(chosen) for space in self.spaces]
                labelled[name] = chosen.image_ids, [labels[place] for place in has], vectors
        return [self._told(*case) for case in self._cases(labelled)]

    def _cases(
        self, labelled: dict[str, tuple[list[str], list[str], list[np.ndarray]]]
    ) -> Iterator[tuple[str, str, np.ndarray, list[str], list[str], list[np.ndarray]]]:
        """(name, how it is split, (n,) bool of the test side, ids, labels, vectors)."""
        sides: dict[str, dict[bool, str]] = {}
        for name in labelled:
            if match := SIDES.match(name):
                sides.setdefault(match["stem"], {})[not match["side"].lower().startswith("train")] = name
        pairs = {both[False]: both[True] for both in sides.values() if len(both) == 2}
        for number, (name, (ids, labels, vectors)) in enumerate(labelled.items()):
            if name in pairs:
                other_ids, other_labels, other_vectors = labelled[pairs[name]]
                is_test = np.repeat([False, True], [len(ids), len(other_ids)])
                both = [np.concatenate(parts) for parts in zip(vectors, other_vectors, strict=True)]
                split = f"as the collections are named: {name}, {pairs[name]}"
                yield f"{name} / {pairs[name]}", split, is_test, ids + other_ids, labels + other_labels, both
            elif name not in pairs.values():
                is_test = evaluation.held_out(codes(labels), TEST_SHARE, rng=self.rng(6, number))
                yield name, f"{TEST_SHARE:.0%} of each class, drawn", is_test, ids, labels, vectors

    def _told(
        self, name: str, split: str, is_test: np.ndarray, ids: list[str], labels: list[str], vectors: list[np.ndarray]
    ) -> Labelled:
        """The figures of one labelled collection. An image of the training side with the content of a test image, and
        any that a model gives no vector for, is left out."""
        usable = np.logical_and.reduce([rows.any(axis=1) for rows in vectors])
        tested = {image_id for image_id, test in zip(ids, is_test, strict=True) if test}
        usable &= is_test | np.array([image_id not in tested for image_id in ids])
        known = np.isin(codes(labels), np.unique(codes(labels)[usable & ~is_test]))
        train, test = np.flatnonzero(usable & ~is_test), np.flatnonzero(usable & is_test & known)
        classes = codes([labels[place] for place in (*train, *test)])
        if len(np.unique(classes[: len(train)])) < 2 or not len(test):
            raise InputError(
                f"labelled images must be of two classes and on both sides of the split, {name!r} has "
                f"{len(train)} to learn from and {len(test)} to test: give more of each class"
            )
        told, hits = [], []
        for space, rows in zip(self.spaces, vectors, strict=True):
            sides = rows[train], rows[test], classes[: len(train)], classes[len(train) :]
            one, right = told_by(space.name, *sides, rng=self.rng(13))
            told.append(one)
            hits.append(right)
        differences = {}
        if len(hits) == 2:
            apart = {what: hits[1][what].astype(np.float64) - hits[0][what] for what in hits[0]}
            differences = {what: evaluation.mean_of(values[None], rng=self.rng(7)) for what, values in apart.items()}
        return Labelled(
            name=name,
            classes=len(np.unique(classes)),
            train=len(train),
            test=len(test),
            left_out=len(ids) - len(train) - len(test),
            split=split,
            most_frequent=float((classes[len(train) :] == np.bincount(classes[: len(train)]).argmax()).mean()),
            told=tuple(told),
            differences=differences,
        )

    def _of_folder(self, folder: str, images: FolderImages, rng: np.random.Generator) -> tuple[Labelled, Reference]:
        """k-NN and probe of a folder, and its images as references that nothing was retrieved for."""
        own = settled(self.stored.vectors("embed").spec) if any(s.spec is None for s in self.spaces) else None
        vectors = [space.of_files(images.paths, own) for space in self.spaces]
        is_test, split = images.is_test, "as the folders are named"
        if is_test is None:
            is_test = evaluation.held_out(codes(images.labels), TEST_SHARE, rng=rng)
            split = f"{TEST_SHARE:.0%} of each class, drawn"
        labelled = self._told(folder, split, is_test, images.image_ids, images.labels, vectors)
        reference = part_of(Reference(folder, "given", images.image_ids, images.labels, vectors), MAX_REFERENCES, rng)
        return labelled, next(kept_references(reference))

    def selected_positions(self) -> tuple[np.ndarray, int]:
        """(ascending positions in the pool of a sample of what was retrieved and published, how many there are)."""
        (selection,) = self.stored.stage("selection")
        refs, images = selection.shards(), selection.account()["inputs"]["images"]
        retrieved = [
            np.flatnonzero(pc.equal(read_table(ref, ["role"])["role"], "retrieved").to_numpy(zero_copy_only=False))
            for ref in refs
        ]
        total, first = sum(map(len, retrieved)), 0
        chosen = np.sort(self.rng(8).choice(total, size=min(self._size, total), replace=False, shuffle=False))
        wanted: dict[str, list[np.ndarray]] = {}
        for ref, rows in zip(refs, retrieved, strict=True):
            inside = chosen[np.searchsorted(chosen, first) : np.searchsorted(chosen, first + len(rows))] - first
            first += len(rows)
            if len(inside):
                table = read_table(ref, ["part", "row"]).take(pa.array(rows[inside]))
                part, row = table["part"].to_numpy(), table["row"].to_numpy()
                for one in np.unique(part):
                    wanted.setdefault(images[one], []).append(row[part == one])
        return self.pool.positions({name: np.concatenate(rows) for name, rows in wanted.items()}), total

    def _coverage(
        self, references: list[Reference], selected: Sampled, pool: Sampled
    ) -> tuple[list[Coverage], list[Concept]]:
        """Every collection and folder, in every space, and all curated collections together."""
        curated = [reference for reference in references if reference.kind == "biased"]
        together = [part_of(one, MAX_REFERENCES // len(curated), self.rng(14, n)) for n, one in enumerate(curated)]
        groups = [[reference] for reference in references] + ([together] if len(curated) > 1 else [])
        credited = self._credited(selected.image_ids) if curated else None
        found, concepts = [], []
        for number, space in enumerate(self.spaces):
            mine, others = space.of_rows(selected), space.of_rows(pool)
            usable, drawable = mine.any(axis=1), others.any(axis=1)
            candidates = np.concatenate([mine[usable], others[drawable]]).astype(np.float32)
            for place, group in enumerate(groups):
                queries = np.concatenate([one.vectors[number] for one in group]).astype(np.float32)
                member = np.repeat(np.arange(len(group)), [len(one.image_ids) for one in group])
                name = group[0].name if len(group) == 1 else "all curated collections"
                within, similarity = queries @ queries.T, queries @ candidates.T
                rng, shown = self.rng(9, place), len(mine[usable])
                arrays = within, similarity, member
                biased = evaluation.against_random(*arrays, shown, draws=CUTS, rng=rng)
                cases = [(group[0].kind, biased, min(shown, int(drawable.sum())))]
                if group[0].kind == "biased" and credited is not None:
                    halves = halves_of([image_id for one in group for image_id in one.image_ids], self.seed)
                    fair = evaluation.against_random_held_out(*arrays, halves, credited[usable], rng=rng)
                    if fair is None:
                        self.notes.append(f"{name}: too few images, or too little retrieved, to hold halves out")
                    else:
                        cases.append(("held out", fair, round(float(credited[usable].sum(axis=0).mean()))))
                for kind, measures, size in cases:
                    said = {what: evaluation.compared(one, rng=self.rng(10)) for what, one in measures.items()}
                    trials = max(len(one.random) for one in measures.values())
                    figures = {"images": len(queries), "selected": size, "trials": trials, "measures": said}
                    found.append(Coverage(references=name, features=space.name, kind=kind, **figures))
                if number == 0 and len(group) == 1 and group[0].kind == "biased":
                    concepts += concepts_of(group[0], cases[-1][1]["coverage"])
        return found, sorted(concepts, key=lambda one: (one.selection, one.collection, one.label))[:SHOWN_CONCEPTS]

    def _credited(self, image_ids: list[str]) -> np.ndarray | None:
        """(m, cuts, 2) bool: whether each selected image would have been selected for that half of the queries.

        An image that was retrieved for a query counts for the half of that query; one of a cluster, for every half that
        has enough queries in the cluster; one that no query asked for, for both. None, with a note, if that cannot be
        told.
        """
        place_of = {image_id: place for place, image_id in enumerate(image_ids)}
        wanted = pa.array(image_ids, pa.string())
        credited = np.zeros((len(image_ids), CUTS, 2), dtype=bool)
        (selection,) = self.stored.stage("selection")
        for target in map(self.stored.at, selection.account()["inputs"]["matches"]):
            config = target.account()["config"]
            columns = ["image_id", "query_id", "kind", "cluster_id"]
            enough = None
            for ref in target.shards():
                table = read_table(ref, columns)
                table = table.filter(pc.is_in(table["image_id"], value_set=wanted))
                places = np.array([place_of[one] for one in table["image_id"].to_pylist()], dtype=np.int64)
                queries, kinds = table["query_id"].to_pylist(), table["kind"].to_pylist()
                halves, cuts = halves_of([one or "" for one in queries], self.seed), np.arange(CUTS)
                for row, (place, query, kind) in enumerate(zip(places, queries, kinds, strict=True)):
                    if kind == "cluster":
                        enough = self._enough(config) if enough is None else enough
                        credited[place] |= enough.get(table["cluster_id"][row].as_py(), np.zeros((CUTS, 2), bool))
                    elif query is None:
                        credited[place] = True
                    else:
                        credited[place, cuts, halves[row]] = True
        if not credited.any():
            self.notes.append("which query an image was retrieved for is not told: no halves can be held out")
            return None
        return credited

    def _enough(self, config: dict[str, Any]) -> dict[int, np.ndarray]:
        """cluster → (cuts, 2) bool: whether that half of a collection has enough queries there for the recipe."""
        rows = self.curated[config["collection"]]
        sampled = self._sampled(rows, MAX_ASSIGNED, self.rng(11))
        centroids = engine.read_vectors(self._stage("centroids")[0].shards()[0])
        home = kmeans.assign(rows.vectors(sampled.positions), centroids, device=self.stored.device)[0][:, 0]
        halves = halves_of(sampled.image_ids, self.seed)
        needed = config["min_queries"] * len(home) / rows.total
        return {
            int(cluster): np.stack([(halves[home == cluster] == half).sum(axis=0) >= needed for half in (0, 1)], axis=1)
            for cluster in np.unique(home)
        }

    def _is_of_pool(self, cells: StageDir) -> bool:
        """Whether a directory of clusters has a row for each vector of the pool."""
        account = cells.account()
        has_rows = account["shard_rows"] == [ref.rows for ref in self.pool.refs]
        return has_rows and account["inputs"].get("vectors", self.pool.directories) == self.pool.directories

    def _spread(self, selected: Sampled, pool: Sampled) -> tuple[dict[str, evaluation.Compared], int]:
        """The entropy over the clusters of the run, if it has them for the pool row by row."""
        cells = [target.shards() for target in self._stage("cluster") if self._is_of_pool(target)]
        if not cells:
            self.notes.append("the run has no clusters of the pool row by row with its vectors: no entropy over them")
            return {}, 0
        refs = cells[0]
        mine, others = (
            gather_rows(refs, images.positions, ["cluster_id"])["cluster_id"].to_numpy() for images in (selected, pool)
        )
        number = max(self._stage("centroids")[0].account()["rows"], int(mine.max()) + 1, int(others.max()) + 1)
        return evaluation.spread(mine, others, number, draws=CUTS * 10, rng=self.rng(12)), number


def told_by(
    name: str,
    train: np.ndarray,
    test: np.ndarray,
    train_classes: np.ndarray,
    test_classes: np.ndarray,
    *,
    rng: np.random.Generator,
) -> tuple[Told, dict[str, np.ndarray]]:
    """What k-NN and probe tell, and by name the (m,) bool test images that each of them names rightly."""
    nearest = evaluation.knn_predicted(train, train_classes, test)
    found, penalty = evaluation.probe_predicted(train, train_classes, test, rng=rng)
    right = {f"{k}-NN": rows == test_classes for k, rows in nearest.items()} | {"probe": found == test_classes}
    knn = {k: evaluation.share_of(right[f"{k}-NN"]) for k in nearest}
    return Told(features=name, knn=knn, probe=evaluation.share_of(right["probe"]), penalty=penalty), right


def codes(labels: list[str]) -> np.ndarray:
    """(n,) int64 number of each label in their order."""
    return np.unique(np.array(labels, dtype=str), return_inverse=True)[1].astype(np.int64)


def concepts_of(reference: Reference, measured: evaluation.Measured) -> list[Concept]:
    """The coverage of every class of a labelled collection."""
    labels = np.array(["" if label is None else label for label in reference.labels])
    mine, others = (np.nanmean(values, axis=0) for values in (measured.selection, measured.random))
    return [
        Concept(
            collection=reference.name,
            label=label,
            images=int((labels == label).sum()),
            selection=float(np.nanmean(mine[labels == label])),
            random=float(np.nanmean(others[labels == label])),
        )
        for label in sorted({*labels.tolist()} - {""})
    ]
