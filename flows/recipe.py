"""The recipe: one frozen tree, read from YAML. An unknown key is refused by name."""

import difflib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from lvd.flows.alerts import Bounds
from lvd.flows.miniature import folder_of
from lvd.infra.errors import InputError
from lvd.tasks import cluster as cluster_stage
from lvd.tasks import copies as copies_stage
from lvd.tasks import crawl as crawl_stage
from lvd.tasks import download as download_stage
from lvd.tasks import embed as embed_stage
from lvd.tasks import fingerprint as fingerprint_stage
from lvd.tasks import publish as publish_stage
from lvd.tasks import retrieve as retrieve_stage
from lvd.tasks import screen as screen_stage
from lvd.tasks import semantic as semantic_stage
from lvd.tasks.own_vectors import Synthetic, Vectors
from lvd.tasks.sources import HuggingFace, Images, Urls, Warc, Wat, WebDataset

Stage = Literal[
    *("crawl", "download", "content", "screen", "fingerprint", "copies", "embed", "cluster", "retrieve", "publish"),
    "order",
    "export",
]
AnySource = Annotated[
    Urls | Warc | Wat | Images | WebDataset | HuggingFace | Vectors | Synthetic, Field(discriminator="kind")
]
UNION_TAGS = (
    "source",
    "urls",
    "warc",
    "wat",
    "images",
    "webdataset",
    "dataset",
    "vectors",
    "synthetic",
    "sample",
    "cluster",
)  # pydantic names them in an error's place


class Strict(BaseModel, frozen=True, extra="forbid"):
    """A part of the recipe."""


class Collection(Strict):
    """A benchmark or a curated collection: a name, and the keys of its source beside it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._ ()-]*$")
    source: AnySource | None = None  # a collection without one can be planned, not run
    num_images: int | None = Field(None, ge=0)  # for `lvd plan` only

    @model_validator(mode="before")
    @classmethod
    def _gather_source(cls, value: Any) -> Any:
        if not isinstance(value, dict) or ("source" in value and isinstance(value["source"], dict)):
            return value
        own = {key: value[key] for key in value if key in cls.model_fields and key != "source"}
        rest = {key: value[key] for key in value if key not in own}
        return {**own, "source": rest} if "kind" in rest or "path" in rest else {**own, **rest}


class CuratedCollection(Collection):
    """A curated collection: published as it is, used as queries, or both."""

    include: bool = True
    retrieve: retrieve_stage.Policy | None = None
    eligible_clusters: int | None = Field(
        None, ge=0
    )  # for `lvd plan` only: clusters that hold at least `min_queries` of its images


class Resources(Strict):
    """What one task asks for on a cluster. null: one core; for models on GPUs one GPU and its share of the cores."""

    cpus: float | None = Field(None, gt=0)
    gpus: float | None = Field(None, gt=0)  # 0.5: two tasks share one; compute.gpus: 0 has none at all
    memory_gb: float | None = Field(None, gt=0)


class Compute(Strict):
    """Where the work runs."""

    runner: Literal["local", "ray"] = "local"
    address: str | None = None  # of the Ray cluster; null starts one on this machine
    cpu_workers: int | Literal["auto"] = Field("auto")  # tasks at once; auto: the cores of this machine
    # Of this machine; 0 computes on the CPU; auto uses all that there are. On a Ray cluster any number above 0 says
    # that there are some, also where nodes come only when they are asked for.
    gpus: int | Literal["auto"] = "auto"
    resources: dict[Stage, Resources] = {}  # for `ray`: what a task of a stage asks for

    @model_validator(mode="after")
    def _positive(self) -> "Compute":
        if isinstance(self.cpu_workers, int) and self.cpu_workers < 1:
            raise ValueError(f"cpu_workers must be 'auto' or at least 1, was {self.cpu_workers}")
        if isinstance(self.gpus, int) and self.gpus < 0:
            raise ValueError(f"gpus must be 'auto' or at least 0, was {self.gpus}")
        return self


class Miniature(Strict):
    """The miniature web is drawn and served on loopback while the flow runs; `{miniature}` in a path is its folder."""

    seed: int = 0
    scale: int = Field(1, ge=1, le=1000)
    port: int = Field(8765, ge=1024, le=65535)
    folder: str | None = None  # null: beside the stages if the root is a local folder, else in the temporary folder


class Comparison(Strict):
    """For `lvd plan` only: what somebody else's run took, to be printed beside the plan."""

    name: str
    images: int = Field(ge=1)
    hours: float = Field(gt=0)
    gpus: int = Field(ge=1)
    excludes: tuple[Stage, ...] = ()  # stages that it does not count, so that the plan is shown without them too
    note: str = ""  # printed below it


class Expectations(Strict):
    """For `lvd plan` only: what cannot be counted before it is there, and the pace of the machines.

    `lvd plan --profile` measures the bytes of an image, the values of vectors and the paces of images.
    """

    pool_images: int = Field(0, ge=0)
    mean_image_bytes: int = Field(110_000, ge=1)
    kept_after_fingerprint: float = Field(1.0, gt=0, le=1)
    kept_after_copies: float = Field(1.0, gt=0, le=1)
    vector_values: int = Field(1280, ge=1)
    descriptor_values: int = Field(512, ge=1)
    descriptors_per_gpu_second: float = Field(1000, gt=0)
    embeddings_per_gpu_second: float = Field(100, gt=0)
    # null: that model runs on GPUs; else on processors, so many images in a second of one core
    descriptors_per_core_second: float | None = Field(None, gt=0)
    embeddings_per_core_second: float | None = Field(None, gt=0)
    decoded_per_core_second: float | None = Field(None, gt=0)  # null: the paces of the models have decoding in them
    screened_per_core_second: float | None = Field(None, gt=0)  # null: its hours are not planned
    downloaded_per_node_second: float = Field(1000, gt=0)  # images: hosts and time-outs decide, more than the line
    gpu_tflops: float = Field(10.0, gt=0)  # float32 products of searches and k-means; a V100 reaches 10 of 15.7
    core_gflops: float = Field(30.0, gt=0)  # the same of one core with AVX2
    gpus: int = Field(1, ge=0)  # of all nodes; 0: there are none, and searches run on processors too
    cores: int = Field(1, ge=1)  # of all nodes
    nodes: int = Field(1, ge=1)
    node_memory_gb: float | None = Field(None, gt=0)  # null: not compared with what a step needs
    storage_gb_per_node_second: float = Field(1.0, gt=0)  # what a node reads and writes, of shards
    # the schedule is simulated so often, with seeds that follow from the recipe's
    simulations: int = Field(20, ge=1, le=1000)
    straggler_share: float = Field(0.02, ge=0, le=1)  # of the groups of shards
    straggler_slowdown: float = Field(3.0, ge=1, le=1000)  # so many times as long
    node_failures_per_hour: float = Field(0.001, ge=0)  # of one node
    failure_noticed_s: float = Field(15.0, ge=0)  # then its shards go to other nodes
    node_back_s: float = Field(600.0, ge=0)  # after it failed
    compared_with: Comparison | None = None

    @model_validator(mode="after")
    def _placed(self) -> "Expectations":
        for name in ("descriptors", "embeddings"):
            if self.gpus == 0 and getattr(self, f"{name}_per_core_second") is None:
                raise ValueError(f"{name}_per_core_second must be given where gpus is 0: measure it with --profile")
        if self.nodes > self.cores:
            raise ValueError(
                f"cores must be those of all nodes, at least {self.nodes} of them, was {self.cores}: count them all"
            )
        return self


class Recipe(Strict):
    """Everything that decides what comes out. Defaults are the paper's."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    root: str = "lvd-data"
    seed: int = Field(0, ge=0)
    miniature: Miniature | None = None
    pool: tuple[AnySource, ...] = ()
    benchmarks: tuple[Collection, ...] = ()
    curated: tuple[CuratedCollection, ...] = ()
    crawl: crawl_stage.Config = crawl_stage.Config()
    download: download_stage.Config = download_stage.Config()
    screen: screen_stage.Config = screen_stage.Config()
    fingerprint: fingerprint_stage.Config = fingerprint_stage.Config()
    copies: copies_stage.Config = copies_stage.Config()
    embed: embed_stage.Config = embed_stage.Config()
    cluster: cluster_stage.Config = cluster_stage.Config()
    semdedup: semantic_stage.Config | None = None  # of the images of a cluster that mean the same one stays; null: all
    retrieve: retrieve_stage.Config = retrieve_stage.Config()
    publish: publish_stage.Config = publish_stage.Config()
    compute: Compute = Compute()
    plan: Expectations = Expectations()
    alerts: Bounds = Bounds()
    metrics_file: str | None = None  # of this machine, for node_exporter; null: LVD_METRICS_FILE, if that names one

    @property
    def has_own_vectors(self) -> bool:
        """Whether the sources hold vectors, and no images."""
        sources = [*self.pool, *(c.source for c in self.curated)]
        return any(isinstance(source, Vectors | Synthetic) for source in sources)

    @model_validator(mode="after")
    def _one_kind(self) -> "Recipe":
        sources = [*self.pool, *(c.source for c in (*self.benchmarks, *self.curated) if c.source)]
        kinds = {isinstance(source, Vectors | Synthetic) for source in sources}
        if len(kinds) > 1:
            raise ValueError("sources must be all of vectors or all of images, were both: make two recipes")
        if self.has_own_vectors and self.benchmarks:
            raise ValueError("benchmarks must be left out where the sources are vectors: they are compared as images")
        return self

    @model_validator(mode="after")
    def _known_weights(self) -> "Recipe":
        known = [retrieve_stage.BALANCED, *(c.name for c in self.curated if c.retrieve)]
        unknown = [name for name in self.retrieve.weights if name not in known]
        if unknown:
            raise ValueError(
                f"retrieve.weights must name collections that retrieve, or balanced, was {unknown[0]!r}: "
                f"known are {', '.join(known)}"
            )
        return self

    @model_validator(mode="after")
    def _unique_names(self) -> "Recipe":
        names = ["pool", retrieve_stage.BALANCED]
        names += [collection.name for collection in (*self.benchmarks, *self.curated)]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(
                "each collection must have a name of its own, and none may be 'pool' or 'balanced': "
                f"{repeated[0]!r} stands twice"
            )
        return self


def bundled() -> dict[str, str]:
    """The recipes that come with lvd: name → text."""
    return {
        file.name.removesuffix(".yaml"): file.read_text()
        for file in files("lvd.flows.recipes").iterdir()
        if file.name.endswith(".yaml")
    }


def load(recipe: str, *, root: str | None = None, settings: list[str] | tuple[str, ...] = ()) -> Recipe:
    """The recipe of a file, or the bundled one of that name, with settings such as `copies.min_similarity=0.65`.

    Raises InputError with one line that names the field, the value and the remedy.
    """
    known = bundled()
    path = Path(recipe)
    if path.is_file():
        text = read_text(path)
    elif recipe in known:
        text = known[recipe]
    else:
        raise InputError(
            f"recipe must be a YAML file or one of {', '.join(sorted(known))}, was {recipe!r}: check the path"
        )
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{recipe} must be YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise InputError(f"{recipe} must hold one YAML mapping, was {type(tree).__name__}: start with 'name: …'")
    for setting in settings:
        apply_setting(tree, setting)
    if root is not None:
        tree["root"] = root
    if isinstance(tree.get("miniature"), dict):
        folder = folder_of(str(tree.get("root", Recipe.model_fields["root"].default)), tree["miniature"])
        tree = with_folder(tree, str(folder))
    return parse(tree)


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} must be a readable text file in UTF-8: {error}") from error


def with_folder(tree: Any, folder: str) -> Any:
    """The tree with `{miniature}` in its texts replaced by the miniature web's folder."""
    if isinstance(tree, dict):
        return {key: with_folder(value, folder) for key, value in tree.items()}
    if isinstance(tree, list):
        return [with_folder(value, folder) for value in tree]
    return tree.replace("{miniature}", folder) if isinstance(tree, str) else tree


def apply_setting(tree: dict[str, Any], setting: str) -> None:
    """Puts `a.b=value` into the tree; the value is read as YAML."""
    name, equals, value = setting.partition("=")
    if not equals or not name.strip("."):
        raise InputError(f"--set must be FIELD=VALUE, was {setting!r}: for example --set copies.min_similarity=0.65")
    *parents, last = name.split(".")
    for parent in parents:
        if tree.get(parent) is None:
            tree[parent] = {}
        tree = tree[parent]
        if not isinstance(tree, dict):
            raise InputError(f"--set {setting}: {parent} is not a mapping in the recipe: name a field below a mapping")
    try:
        tree[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"--set {setting}: the value must be YAML: {' '.join(str(error).split())}") from error


def parse(tree: dict[str, Any]) -> Recipe:
    """The checked recipe of a tree.

    Raises InputError naming the first field that is wrong, its value and the remedy.
    """
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        first, *others = error.errors()
        more = f" ({len(others)} more after it)" if others else ""
        raise InputError(sentence(first) + more) from error


def sentence(error: dict[str, Any]) -> str:
    """One line for one pydantic error: range, value, remedy."""
    location = [part for index, part in enumerate(error["loc"]) if index == 0 or part not in UNION_TAGS]
    field = "recipe" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    value, kind = error["input"], error["type"]
    if kind == "extra_forbidden":
        return f"{field}: unknown key{did_you_mean(str(location[-1]), keys_beside(location))}"
    if kind == "missing":
        return f"{field} must be given: add it to the recipe"
    if kind == "union_tag_not_found":
        return f"{field}.kind must be given: it says what the entry is"
    context = error.get("ctx", {})
    if kind == "union_tag_invalid":
        return f"{field}.kind must be one of {context['expected_tags']}, was {context['tag']!r}"
    message = error["msg"].removeprefix("Value error, ")
    for prefix in ("Input should be ", "String should "):
        if message.startswith(prefix):
            return f"{field} must be {message.removeprefix(prefix)}, was {value!r}"
    return f"{field}: {message}" if kind == "value_error" else f"{field}: {message}, was {value!r}"


def keys_beside(location: list[Any]) -> list[str]:
    """The keys that are known where an unknown one stood, as far as the tree's own models tell."""
    model: Any = Recipe
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part) if hasattr(model, "model_fields") else None
        entries = {"pool": None, "benchmarks": Collection, "curated": CuratedCollection}
        model = entries.get(part, field.annotation if field else None)
        if model is None:
            return []
    return list(getattr(model, "model_fields", {}))


def did_you_mean(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f": did you mean {close[0]!r}?"
    return f": known are {', '.join(known)}" if known else ": take it out"
