"""What the last run left on a root: the ledger, hashes, descriptors, embeddings, and the models that made them."""

import numpy as np
from pydantic import BaseModel

from lvd.flows import pool
from lvd.flows.inquiry import last_run
from lvd.flows.recipe import Compute
from lvd.infra.errors import InputError
from lvd.infra.shards import ShardRef, StageDir, gather_rows
from lvd.infra.storage import Storage
from lvd.tasks import adjusting, models
from lvd.tasks.algorithms.pca_hash import PcaHash
from lvd.tasks.copies import Thresholds
from lvd.tasks.finding import Hit, Inverted, near_hashes
from lvd.tasks.hash_fit import read_fit


class Vectors(BaseModel, frozen=True):
    """The vectors that the last run used, and the model that gives more of them."""

    pool: list[ShardRef]
    references: list[ShardRef]
    spec: models.Inference


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
        pool_refs, references = split(self, stage)
        config = self.stage(stage)[0].account()["config"]
        spec = models.Inference(**{name: config[name] for name in models.Inference.model_fields})
        if (weights := models.weights_digest(spec)) != config["weights"]:
            raise InputError(
                f"model {spec.model} must be the one of the last run, {config['weights']}, was {weights}: "
                "put its weights back, or run the recipe again"
            )
        return Vectors(pool=pool_refs, references=references, spec=spec)

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


def is_reference(directory: str) -> bool:
    """Whether vectors are of a benchmark or a curated collection: `measured_vectors` takes all of their images."""
    return directory.endswith("-all")


def split(stored: Stored, stage: str) -> tuple[list[ShardRef], list[ShardRef]]:
    """The vectors of the pool, and those of the benchmarks and curated collections."""
    found: dict[bool, list[ShardRef]] = {True: [], False: []}
    for target in stored.stage(stage):
        found[is_reference(target.directory)] += target.shards()
    return found[False], found[True]
