"""Where a picture is in what was curated: in the pool, as a copy, in the published set; and what is like it.

Everything comes from what the last run left on storage: the ledger, hashes, descriptors, embeddings, centroids. Each of
them is read once, for all pictures that are asked for together.
"""

import hashlib
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel

from lvd.flows import pool
from lvd.flows.inquiry import described, last_run, ledger_rows, named_references
from lvd.flows.recipe import Compute
from lvd.flows.veiling import Veil, said
from lvd.infra.errors import InputError
from lvd.infra.shards import ShardRef, StageDir, gather_rows
from lvd.infra.storage import Storage
from lvd.tasks import adjusting, models
from lvd.tasks.algorithms import kmeans
from lvd.tasks.algorithms.pca_hash import PcaHash
from lvd.tasks.copies import Thresholds
from lvd.tasks.decode import DecodeError
from lvd.tasks.finding import Hit, Inverted, near_hashes, nearest_stored, thumbnail_of, vectors_of
from lvd.tasks.hash_fit import read_fit
from lvd.tasks.models import engine
from lvd.tasks.sources import IMAGE_SUFFIXES
from lvd.tasks.takedowns import Record

MAX_COPIES = 64  # of one picture that are listed, of the pool and of the references each
OWN_AND_REPEATED = 8  # neighbours that are looked up beyond those asked for: the picture itself, images that lie twice

PLACES = {"pool": "pool", "curated": "curated collections"}  # the role in the ledger, in words

Row = dict[str, Any]  # of the ledger


class Similar(BaseModel, frozen=True):
    """A stored image that is like the picture."""

    key: str
    image_id: str
    similarity: float
    by: Literal["bytes", "descriptor", "hash", "embedding"]
    role: str  # pool, benchmark or curated
    collection: str
    published: bool
    fate: str  # in words; empty for an image that is in no ledger

    @property
    def name(self) -> str:
        return self.key if self.role == "pool" else f"{self.role} {self.collection}: {self.key}"


class Cell(BaseModel, frozen=True):
    """The cluster that the picture falls into."""

    cluster_id: int
    similarity: float  # to its centroid


class Finding(BaseModel, frozen=True):
    """What was found of one picture."""

    path: str
    error: str | None = None  # why it is no picture; then the rest is empty
    image_id: str | None = None
    verdict: str = ""
    published: bool = False  # it, or a copy of it, is in the published set
    candidates: tuple[Row, ...] = ()  # the ledger's rows with these very bytes, each with its `cause`
    copies: tuple[Similar, ...] = ()  # above the thresholds of the last run
    nearest: Similar | None = None  # of the pool, below the threshold
    neighbours: tuple[Similar, ...] = ()  # by meaning
    cluster: Cell | None = None


class Picture(BaseModel, frozen=True, arbitrary_types_allowed=True):
    """A picture that is asked for."""

    path: str
    image_id: str
    thumbnail: np.ndarray


class Vectors(BaseModel, frozen=True):
    """The vectors that the last run used, and the model that gives more of them."""

    pool: list[ShardRef]
    references: list[ShardRef]
    spec: models.Inference


class Looked(BaseModel, frozen=True):
    """What the stored vectors and hashes say of one picture."""

    pool: list[Hit]  # by descriptor, whatever the similarity
    references: list[Hit]  # by descriptor, above the threshold
    hashed: list[Hit]  # of the pool
    neighbours: list[Hit]
    cluster: Cell | None


class Stored:
    """What the last run left on a root. Raises InputError if nothing was published there."""

    def __init__(self, root: str) -> None:
        self.root, last = root, last_run(Storage(root))
        if last is None:
            raise InputError(
                f"root must hold a published version, {root!r} has none: run `lvd run RECIPE --root {root}` first"
            )
        if "copies" not in last["directories"]:
            raise InputError(
                f"root must hold a run over images, the last one of {root!r} was over vectors: name a root with images"
            )
        self.last = last
        self.ledger = StageDir(root=root, stage=last["curated"], fingerprint="ledger")
        self.thresholds = Thresholds(**self.stage("copies")[0].account()["notes"]["thresholds"])
        self.is_adjusted = "adjusted" in last["directories"]
        self.device = pool.device(Compute(gpus=0 if last["recipe"]["compute"]["gpus"] == 0 else "auto"))

    def at(self, directory: str) -> StageDir:
        stage, name = directory.rsplit("/", 1)
        return StageDir(root=self.root, stage=stage, fingerprint=name)

    def stage(self, name: str) -> list[StageDir]:
        """The directories of a stage that the last run used."""
        return [self.at(directory) for directory in self.last["directories"][name]]

    def vectors(self, stage: str) -> Vectors:
        """Descriptors or embeddings. Raises InputError if the model is no longer the one that they were made by."""
        found: dict[bool, list[ShardRef]] = {True: [], False: []}
        for target in self.stage(stage):
            found[is_reference(target.directory)] += target.shards()
        config = self.stage(stage)[0].account()["config"]
        spec = models.Inference(**{name: config[name] for name in models.Inference.model_fields})
        if (weights := models.weights_digest(spec)) != config["weights"]:
            raise InputError(
                f"model {spec.model} must be the one of the last run, {config['weights']}, was {weights}: "
                "put its weights back, or run the recipe again"
            )
        return Vectors(pool=found[False], references=found[True], spec=spec)

    def adjusted(self, vectors: np.ndarray, image_ids: list[str]) -> tuple[np.ndarray, np.ndarray | None]:
        """Descriptors as those of the last run, and their biases if it normalised scores."""
        if not self.is_adjusted:
            return vectors, None
        config = self.stage("adjusted")[0].account()["config"]
        (ref,) = self.at(config["background"]).shards()
        background = adjusting.read_background(ref)
        vectors = adjusting.whitened(vectors, background.fit)
        if (said := config["score_normalisation"]) is None:
            return vectors, None
        rules = adjusting.ScoreNormalisation(**said)
        ids = np.array(image_ids, dtype=object)
        return vectors, adjusting.biases(vectors, ids, background, rules, device=self.device)

    def inverted(self, descriptors: list[ShardRef]) -> Inverted | None:
        """The cells of the pool's descriptors, if the last run searched through cells."""
        recalls = [found for d in self.stage("neighbours") if (found := d.account()["notes"]["recall"])]
        if not recalls:
            return None
        probes = {d.account()["inputs"].get("descriptors", [""])[0]: d for d in self.stage("probes")}
        own = list(dict.fromkeys(ref.directory for ref in descriptors))
        if not set(own) <= set(probes):  # a generation that was compared exactly
            return None
        (centroids,) = self.at(probes[own[0]].account()["inputs"]["cells"]).shards()
        cells = [ref for directory in own for ref in probes[directory].shards()]
        return Inverted(centroids=centroids, cells=cells, probes=recalls[0]["probes"])

    def hashed(self, thumbnails: np.ndarray) -> list[list[Hit]]:
        """The pool's images whose hash is near that of each thumbnail, confirmed as the stage confirms a pair."""
        rules = self.stage("unique")[0].account()["config"]
        hashes = [ref for target in self.stage("fingerprint") for ref in target.shards()]
        measured = [self.at(target.account()["inputs"]["measures"]) for target in self.stage("fingerprint")]
        return near_hashes(
            thumbnails,
            hashes,
            [ref for target in measured for ref in target.shards()],
            self.fit(),
            max_distance=rules["max_distance"],
            min_similarity=rules["min_thumbnail_similarity"],
        )

    def fit(self) -> PcaHash:
        """The fit of the stored hashes. Raises InputError if it cannot be read or is another one now."""
        uri = self.last["recipe"]["fingerprint"]["fit"]
        fit = read_fit(uri or Storage(self.root).uri(f"{self.stage('hash-fit')[0].directory}/fit.npz"))
        stored = self.stage("fingerprint")[0].account()["config"]["fit"]
        if fit.digest != stored:
            raise InputError(
                f"recipe.fingerprint.fit must be the one of the last run, {stored}, was {fit.digest}: "
                "put it back, or run the recipe again"
            )
        return fit

    def reference_keys(self, hits: list[Hit]) -> dict[tuple[str, int], str]:
        """(directory, row) → key, of images of the benchmarks and curated collections."""
        keys: dict[tuple[str, int], str] = {}
        for directory in {hit.directory for hit in hits}:
            rows = np.unique([hit.row for hit in hits if hit.directory == directory])
            images = self.at(self.at(directory).account()["inputs"]["images"])
            names = gather_rows(images.shards(), rows, ["key"])["key"].to_pylist()
            keys |= {(directory, row): key for row, key in zip(rows.tolist(), names, strict=True)}
        return keys

    def owner(self, directory: str) -> tuple[str, str]:
        """The role and the name of the collections whose images these vectors are of."""
        images = self.at(directory).account()["inputs"]["images"]
        owners = [c for c in self.last["collections"] if c["role"] != "pool" and images in c["images"]]
        return owners[0]["role"], ", ".join(owner["name"] for owner in owners)


class Register:
    """Every stored image that has to do with the pictures: its rows of the ledger, its key, what it ended because of.

    The ledger is read once for all images, and once more for each step from an image to the one that it was dropped
    because of, if that one was not read already; there are at most as many as there are kinds of duplicates.
    """

    def __init__(self, stored: Stored, image_ids: set[str], references: list[Hit]) -> None:
        self.rows: dict[str, list[Row]] = {}
        self._references: dict[str, str] = {}
        self._enter(ledger_rows(stored.ledger, image_ids))
        asked: set[str] = set()
        while wanted := {row["because_of"] for row in self._all() if row["because_of"]} - asked:
            asked |= wanted
            self._references |= named_references(stored.root, stored.last["collections"], wanted)
            self._enter(ledger_rows(stored.ledger, wanted - set(self._references) - set(self.rows)))
        self._keys = stored.reference_keys(references)
        self._owners = {directory: stored.owner(directory) for directory in {hit.directory for hit in references}}

    def _all(self) -> list[Row]:
        return [row for rows in self.rows.values() for row in rows]

    def _enter(self, rows: list[Row]) -> None:
        for row in rows:
            self.rows.setdefault(row["image_id"], []).append(row)

    def best(self, image_id: str) -> Row | None:
        """Of the rows with these bytes the one that got furthest: published, else the one that others repeat."""
        rows = self.rows.get(image_id)
        return min(rows, key=lambda r: (r["state"] != "kept", r["reason"] == "exact_duplicate")) if rows else None

    def cause(self, row: Row) -> Row | None:
        """The row of the image that this one was dropped because of; None if there is none in the ledger."""
        found = None if row["because_of"] in self._references else self.best(row["because_of"])
        return None if found is row else found

    def cause_in_words(self, row: Row) -> str | None:
        """As `lvd why` has it."""
        cause = self.cause(row)
        return described(cause) if cause else self._references.get(row["because_of"])

    def fate(self, row: Row) -> str:
        """The end of an image in words, and those of the images that it was dropped because of, one after another."""
        if row["state"] == "kept":
            return "published"
        end = f"{row['state']} at {row['stage']}: {row['reason']}"
        if not row["because_of"]:
            return end
        cause = self.cause(row)
        if cause is None:
            return f"{end}, because of {self._references.get(row['because_of'], row['because_of'])}"
        return (
            f"{end}, because of {cause['key']}, which {'is' if cause['state'] == 'kept' else 'was'} {self.fate(cause)}"
        )

    def is_published(self, row: Row | None) -> bool:
        """Whether an image, or the one that it was dropped for as a duplicate, is in the published set."""
        return row is not None and (row["state"] == "kept" or self.is_published(self.cause(row)))

    def candidates(self, image_id: str) -> tuple[Row, ...]:
        return tuple({**row, "cause": self.cause_in_words(row)} for row in self.rows.get(image_id, ()))

    def similar(self, hit: Hit, by: str) -> Similar:
        """A hit by its name, with what became of it."""
        row = self.best(hit.image_id)
        role, collection = self._owners.get(hit.directory, ("pool", "pool"))
        key = self._keys.get((hit.directory, hit.row)) or row["key"]
        seen = {"published": bool(row) and row["state"] == "kept", "fate": self.fate(row) if row else ""}
        said = {"image_id": hit.image_id, "similarity": 1.0 if by == "bytes" else hit.similarity, "by": by}
        return Similar(key=key, role=role, collection=collection, **said, **seen)


def find(root: str, images: list[str], *, neighbours: int = 5) -> list[Finding]:
    """What was found of every picture: files as they are named, of a folder every image file in it, by name.

    neighbours: images that are most like it by meaning; raising it lists more, 5 to 50 is usual.
    A file that is no picture has an `error`, and the others go on.
    Raises InputError if nothing was published, or the models of the last run cannot be had.
    """
    stored = Stored(root)
    read = [picture_at(path) for path in files_of(images)]
    pictures = [picture for picture in read if isinstance(picture, Picture)]
    found = iter(findings(stored, pictures, neighbours)) if pictures else iter(())
    return [next(found) if isinstance(entry, Picture) else entry for entry in read]


def files_of(images: list[str]) -> list[str]:
    """The files, and for each folder the image files below it, sorted; a folder without any stands for itself."""
    files: list[str] = []
    for name in images:
        inside = [
            str(path)
            for path in sorted(Path(name).rglob("*"))
            if path.suffix.lower() in {*IMAGE_SUFFIXES, ""} and not path.name.startswith(".") and path.is_file()
        ]
        files += inside or [name]
    return files


def picture_at(path: str) -> Picture | Finding:
    """The picture in a file, or what is wrong with the file."""
    try:
        data = Path(path).read_bytes()
        return Picture(path=path, image_id=hashlib.sha256(data).hexdigest()[:32], thumbnail=thumbnail_of(data))
    except IsADirectoryError:
        return Finding(path=path, error="a folder without image files")
    except OSError as error:
        return Finding(path=path, error=f"cannot be read: {error.strerror or error}")
    except DecodeError as error:
        return Finding(path=path, error=f"{error.reason}: {' '.join(str(error).split())}")


def findings(stored: Stored, pictures: list[Picture], neighbours: int, *, veil: bool = True) -> list[Finding]:
    """What was found of every picture, in their order. veil: what was taken down is not named."""
    looked = look(stored, pictures, neighbours)
    hits = [hit for each in looked for hit in (*each.pool, *each.references, *each.hashed, *each.neighbours)]
    image_ids = {hit.image_id for hit in hits} | {picture.image_id for picture in pictures}
    register = Register(stored, image_ids, [hit for hit in hits if is_reference(hit.directory)])
    hides, limits = Veil(stored.root) if veil else None, stored.thresholds
    return [
        veiled(picture, each, register, limits, neighbours, hides)
        if hides
        else finding(picture, each, register, limits, neighbours)
        for picture, each in zip(pictures, looked, strict=True)
    ]


def veiled(
    picture: Picture, looked: Looked, register: Register, thresholds: Thresholds, neighbours: int, veil: Veil
) -> Finding:
    """As `finding`, without the images that were taken down; of the picture itself, or of one that it copies, is said
    when that was."""

    def record(image_id: str) -> Record | None:
        return veil.record(image_id, register.rows.get(image_id, []))

    if own := record(picture.image_id):
        return Finding(path=picture.path, image_id=picture.image_id, verdict=said(own), cluster=looked.cluster)
    copied = [hit for hit in looked.pool if hit.similarity >= thresholds.min_similarity]
    gone = [found for hit in (*looked.hashed, *copied, *looked.references) if (found := record(hit.image_id))]
    lists = {name: getattr(looked, name) for name in ("pool", "references", "hashed", "neighbours")}
    left = {name: [hit for hit in hits if record(hit.image_id) is None] for name, hits in lists.items()}
    shown = finding(picture, looked.model_copy(update=left), register, thresholds, neighbours)
    if not gone:
        return shown
    return shown.model_copy(update={"verdict": f"a copy of an image that was {said(gone[0])}", "published": False})


def look(stored: Stored, pictures: list[Picture], neighbours: int) -> list[Looked]:
    """One pass over the hashes, the descriptors and the embeddings for all pictures."""
    descriptors = stored.vectors("adjusted" if stored.is_adjusted else "descriptors")
    embeddings, image_ids = stored.vectors("embed"), [picture.image_id for picture in pictures]
    copy_queries, bias = stored.adjusted(vectors_at(pictures, descriptors, stored.device), image_ids)
    floor, device = stored.thresholds.benchmark_min_similarity, stored.device
    options = {"k": MAX_COPIES, "bias": bias, "device": device}
    in_pool = nearest_stored(copy_queries, descriptors.pool, inverted=stored.inverted(descriptors.pool), **options)
    in_references = nearest_stored(copy_queries, descriptors.references, min_similarity=floor, **options)
    queries = vectors_at(pictures, embeddings, device)
    like = nearest_stored(
        queries, [*embeddings.pool, *embeddings.references], k=neighbours + OWN_AND_REPEATED, device=device
    )
    hashed = stored.hashed(np.stack([picture.thumbnail for picture in pictures]))
    clusters = cells_of(queries, stored.stage("centroids")[0].shards()[0], device)
    parts = zip(in_pool, in_references, hashed, like, clusters, strict=True)
    return [Looked(pool=p, references=r, hashed=h, neighbours=n, cluster=c) for p, r, h, n, c in parts]


def vectors_at(pictures: list[Picture], vectors: Vectors, device: str) -> np.ndarray:
    """(n, d) float16 of the pictures; their files are read again, so that no more than one batch is in memory."""
    images = (Path(picture.path).read_bytes() for picture in pictures)
    return vectors_of(images, vectors.spec, device=device)


def cells_of(queries: np.ndarray, centroids: ShardRef, device: str) -> list[Cell | None]:
    """The cluster of each query; None for a query of zeros."""
    asked = queries.any(axis=1)
    cluster_id, similarity = kmeans.assign(queries[asked], engine.read_vectors(centroids), device=device)
    cells = iter(zip(cluster_id[:, 0].tolist(), similarity[:, 0].tolist(), strict=True))
    return [Cell(cluster_id=(c := next(cells))[0], similarity=round(c[1], 5)) if one else None for one in asked]


def finding(picture: Picture, looked: Looked, register: Register, thresholds: Thresholds, neighbours: int) -> Finding:
    """What the hits come to for one picture."""
    own = picture.image_id
    in_pool = [register.similar(hit, "descriptor") for hit in others(looked.pool, own)]
    near = [image for image in in_pool if image.similarity >= thresholds.min_similarity]
    known = {image.image_id for image in near}
    hashed = [register.similar(hit, "hash") for hit in others(looked.hashed, own) if hit.image_id not in known]
    references = [register.similar(hit, "bytes" if hit.image_id == own else "descriptor") for hit in looked.references]
    copies = tuple(sorted([*near, *hashed, *references], key=lambda image: -image.similarity))
    below = [image for image in in_pool[len(near) :] if image.image_id not in {copy.image_id for copy in copies}]
    nearest, row = (below[0] if below else None), register.best(own)
    return Finding(
        path=picture.path,
        image_id=own,
        verdict=verdict(row, register, copies, nearest, thresholds.min_similarity),
        published=register.is_published(row) or any(copy.published for copy in copies),
        candidates=register.candidates(own),
        copies=copies,
        nearest=nearest,
        neighbours=tuple(register.similar(hit, "embedding") for hit in others(looked.neighbours, own)[:neighbours]),
        cluster=looked.cluster,
    )


def others(hits: list[Hit], own: str) -> list[Hit]:
    """The hits of other contents than the picture's own, each content once, the most similar first."""
    best: dict[str, Hit] = {}
    for hit in hits:
        if hit.image_id != own:
            best.setdefault(hit.image_id, hit)
    return list(best.values())


def verdict(
    row: Row | None,
    register: Register,
    copies: tuple[Similar, ...],
    nearest: Similar | None,
    min_similarity: float,
) -> str:
    """One line: what the picture itself became, or what it is a copy of, or that it is new.

    row: of the ledger, with the very bytes of the picture.
    """
    benchmarks = [copy for copy in copies if copy.role == "benchmark"]
    first = max(copies, key=lambda c: (c.by == "bytes", c.role != "benchmark", c.published, c.similarity), default=None)
    parts = []
    if row is not None:
        first = None
        place = "" if row["state"] == "kept" else f"in the {PLACES[row['role']]}, "
        parts.append(place + register.fate(row))
    elif first:
        parts.append(copy_of(first))
    if benchmarks and first not in benchmarks and not (row and row["reason"] == "benchmark_copy"):
        parts.append(copy_of(benchmarks[0]))
    if parts:
        return "; ".join(parts)
    if nearest is None:
        return f"not in the pool: nothing there is like it, threshold {two_decimals(min_similarity)}"
    best = f"nearest {two_decimals(nearest.similarity)} ({nearest.name})"
    return f"not in the pool: {best}, threshold {two_decimals(min_similarity)}"


def copy_of(image: Similar) -> str:
    """What a copy is a copy of, and what became of that image."""
    if image.by == "bytes":
        return f"{image.name}, byte for byte"
    same = f"a copy of {image.name} ({two_decimals(image.similarity)})"
    if image.role == "benchmark" or not image.fate:
        return same
    return f"{same}, which is published" if image.published else f"{same}, which was {image.fate}"


def two_decimals(similarity: float) -> str:
    """Rounded down, so that what is below a threshold is never shown as if it reached it."""
    return f"{math.floor(round(similarity * 100, 3)) / 100:.2f}"


def is_reference(directory: str) -> bool:
    """Whether vectors are of a benchmark or a curated collection: `measured_vectors` takes all of their images."""
    return directory.endswith("-all")
