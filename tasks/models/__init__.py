"""Image models: a registry and one file per family.

A model turns RGB images into unit vectors. To add one, write a function with `@register` in a file of this folder and
import that file at the end of this one; `builtin.py` needs no weights, `torchscript.py` needs a file, `timm_models.py`
takes every name that is left. What is registered is light: a model is built, and torch imported, by `load` only.
"""

import difflib
import hashlib
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import fsspec
import numpy as np
from pydantic import BaseModel, Field, model_validator

from lvd.infra.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

Channels = tuple[float, float, float]
MAX_BATCH_SIZE = 4096
REDUCED_TIMES = 4
"""A JPEG may be decoded at a reduced scale that is still so many times what it is resized to. The tests hold the
vectors of photographs to a cosine of 0.995 (32 px) and 0.998 (48 px) with those of whole decoding."""


class ModelSpec(BaseModel, frozen=True, extra="forbid"):
    """Which model, and what may be said about its input; null leaves it to the model."""

    model: str  # a name that `lvd models` lists, or any name of timm
    path: str | None = None  # the weights: a state dict for a timm name, a TorchScript file; a local path or a URI
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")  # of the file at `path`; another content is refused
    input_px: int | None = Field(None, ge=8, le=4096)  # edge of the square that the model sees; its square is the cost
    # Squeeze to the square, scale and crop its middle, or scale the short edge to it and keep the rest (TorchScript,
    # in batches of one).
    resize: Literal["square", "short_edge", "keep_ratio"] | None = None
    mean: Channels | None = None  # of each channel, subtracted; pixel values are in [0, 1]
    std: Channels | None = None  # of each channel, divided by


class Inference(ModelSpec):
    """A model, and how it is run; all of it is part of the result."""

    # Every batch is padded to it. auto: 32 on a processor; on a GPU what was found to be fastest there by trial, once
    # for a root. Where memory runs out, a batch goes in halves.
    batch_size: int | Literal["auto"] = Field("auto")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = (
        "auto"  # auto: bfloat16 for timm on a GPU, else float32
    )
    compile: bool = False  # torch.compile: a minute at the start of every process, then faster on some models

    @model_validator(mode="after")
    def _usable(self) -> "Inference":
        if isinstance(self.batch_size, int) and not 1 <= self.batch_size <= MAX_BATCH_SIZE:
            raise ValueError(f"batch_size must be 'auto' or in [1, {MAX_BATCH_SIZE}], was {self.batch_size}")
        return self


@dataclass(frozen=True)
class Placement:
    """Where a loaded model is, and in what form."""

    device: str = "cpu"
    precision: str = "float32"
    compiled: bool = False


class ImageModel(Protocol):
    """A loaded model. Instances may be used by several threads at once."""

    dim: int
    input_shape: tuple[int, ...]  # of one image; with `keep_ratio` of a usual one
    min_short_edge_px: int  # the image may be decoded at a reduced scale whose short edge is still this long; 0: whole
    halved: int  # batches that memory was too small for, and that went in two halves

    def preprocess(self, image: "Image.Image") -> np.ndarray:
        """The uint8 input of one RGB image, of one shape but with `keep_ratio`."""
        ...

    def buffer(self, shape: tuple[int, ...]) -> np.ndarray:
        """Zeroed uint8 memory for one batch, from where the model takes it fastest."""
        ...

    def start(self, batch: np.ndarray) -> Callable[[], tuple[np.ndarray, float]]:
        """Begins (b, …) stacked inputs; returns what gives their rows, as `embed`, and the seconds of the device."""
        ...

    def embed(self, batch: np.ndarray) -> np.ndarray:
        """(b, dim) float32 unit rows of (b, …) stacked inputs. A row that the model cannot give is NaN."""
        ...


class CopyThresholds(BaseModel, frozen=True):
    """Cosines from which on two images count as copies of one another.

    min_similarity: self-deduplication; benchmark_min_similarity: relative deduplication, looser on purpose;
    floor: edges below it are not worth measuring.
    """

    min_similarity: float
    benchmark_min_similarity: float
    floor: float


@dataclass(frozen=True)
class Family:
    """One entry of the registry: a model, or all the models that a prefix stands for.

    build: (spec, placement) to the loaded model; check: raises InputError for a spec that cannot be built, its second
    argument is the place in the recipe; digest: what tells these weights from others; uses_gpu: whether it runs on one;
    gpu_precision: what it is computed in there if the recipe leaves it open.
    """

    name: str
    kind: str
    dim: int | None
    note: str
    build: Callable[[ModelSpec, Placement], ImageModel]
    check: Callable[[ModelSpec, str], None]
    digest: Callable[[ModelSpec], str]
    thresholds: CopyThresholds | None
    uses_gpu: bool
    gpu_precision: str


Build = Callable[[ModelSpec, Placement], ImageModel]

_FAMILIES: dict[str, Family] = {}


def register(
    name_or_prefix: str,
    *,
    kind: str,
    note: str,
    check: Callable[[ModelSpec, str], None],
    digest: Callable[[ModelSpec], str],
    dim: int | None = None,
    thresholds: CopyThresholds | None = None,
    uses_gpu: bool = True,
    gpu_precision: str = "float32",
) -> Callable[[Build], Build]:
    """A decorator that enters a function `(spec, placement) -> ImageModel` under a name or a prefix that ends in ":".

    The empty prefix takes every name that nothing else takes. Fields as in `Family`.
    """

    def enter(build: Build) -> Build:
        said = kind, dim, note, build, check, digest, thresholds, uses_gpu, gpu_precision
        _FAMILIES[name_or_prefix] = Family(name_or_prefix, *said)
        return build

    return enter


def _family(name: str) -> Family:
    """The entry of that name, else of its longest prefix."""
    if name in _FAMILIES:
        return _FAMILIES[name]
    prefixes = [key for key in _FAMILIES if (not key or key.endswith(":")) and name.startswith(key)]
    return _FAMILIES[max(prefixes, key=len)]


class _Loaded:
    """The models that this process holds. Threads that ask for the same one at once get one load."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._locks: dict[tuple[Any, ...], threading.Lock] = {}
        self._models: dict[tuple[Any, ...], ImageModel] = {}

    def get(self, key: tuple[Any, ...], build: Callable[[], ImageModel]) -> ImageModel:
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self._models:
                self._models[key] = build()
            return self._models[key]

    def keep_only(self, device: str) -> None:
        """Lets go of the models that are on other devices."""
        with self._lock:
            kept = {key: model for key, model in self._models.items() if key[1].device == device}
            has_dropped, self._models = len(kept) < len(self._models), kept
        if has_dropped:
            import torch

            torch.cuda.empty_cache()


_LOADED = _Loaded()


def load(spec: ModelSpec, placement: Placement | None = None) -> ImageModel:
    """The model, loaded once in a process for each spec, placement (the processor by default) and state of its file.

    Raises InputError if it cannot be had: unknown name, no such file, other content than `sha256`, weights that do not
    fit, a hub that cannot be reached.
    """
    state = None
    if spec.path is not None:
        filesystem, path = _locate(spec.path, f"model {spec.model}.path")
        state = filesystem.ukey(path)
    placement = placement or Placement()
    return _LOADED.get((spec, placement, state), lambda: _family(spec.model).build(spec, placement))


def keep_only(device: str) -> None:
    """Lets go of the loaded models that are on other devices: a process that is given another GPU moves there."""
    _LOADED.keep_only(device)


def device_for(spec: ModelSpec, device: str) -> str:
    """The device that the model runs on where that one is to be had."""
    return device if _family(spec.model).uses_gpu else "cpu"


def usual_precision(spec: ModelSpec, device: str) -> str:
    """What the model is computed in where the recipe leaves it open."""
    return "float32" if device == "cpu" else _family(spec.model).gpu_precision


def usable_batch_size(spec: ModelSpec, batch_size: int) -> int:
    """Images of one batch: 1 where every input has a size of its own, whatever is asked for."""
    return 1 if spec.resize == "keep_ratio" else batch_size


def weights_digest(spec: ModelSpec) -> str:
    """What tells these weights from others, for the fingerprint of a stage; no model is loaded.

    `builtin:NAME:VERSION`, `sha256:…` of the file at `path`, or the timm name with its pretrained tag and hub id.
    Raises InputError for a name or a file that does not exist.
    """
    return _family(spec.model).digest(spec)


def copy_thresholds(spec: ModelSpec) -> CopyThresholds | None:
    """The model's own thresholds for copy detection; None if it has none and the recipe must name them."""
    return _family(spec.model).thresholds


def check(spec: ModelSpec, where: str) -> None:
    """Returns if the spec can be loaded as far as names and files tell; no model is built.

    where: the section of the recipe that holds the spec, e.g. "recipe.embed".
    Raises InputError, one line: the field, the value and the remedy.
    """
    _family(spec.model).check(spec, where)


def available(name_contains: str | None = None) -> list[tuple[str, str, int | str, str]]:
    """(name, kind, dim or "", note) of the models, for `lvd models`.

    name_contains: only names that contain it, and then timm's own pretrained names are among them.
    """
    rows = [(family.name or "NAME", family.kind, family.dim or "", family.note) for family in _FAMILIES.values()]
    if name_contains is None:
        return rows
    wanted = name_contains.lower()
    timm = timm_models.pretrained_names()
    rows = [row for row in rows if wanted in row[0].lower()]
    return rows + [(name, "timm", "", hub_id) for name, hub_id in timm if wanted in name.lower()]


def unknown_model(name: str, where: str, known: Iterable[str] = ()) -> InputError:
    """The error for a name that nothing takes, with the nearest one of `known` and of the registry."""
    names = [*(key for key in _FAMILIES if key and not key.endswith(":")), *known]
    nearest = sorted((known for known in names if known.startswith(name)), key=lambda known: (len(known), known))
    nearest = nearest or difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f"did you mean '{nearest[0]}'? " if nearest else ""
    return InputError(f"{where}.model: unknown model '{name}': {hint}List them with 'lvd models'")


def check_file(spec: ModelSpec, where: str) -> None:
    """Raises InputError if there is no file at `path`, or one with another content than `sha256`."""
    filesystem, path = _locate(spec.path, f"{where}.path")
    if spec.sha256 is not None:
        with filesystem.open(path, "rb") as file:
            _same_content(spec, hashlib.file_digest(file, "sha256").hexdigest(), f"{where}.sha256")


def file_digest(spec: ModelSpec) -> str:
    """`sha256:…` of the file at `path`. Raises InputError if there is none."""
    filesystem, path = _locate(spec.path, f"model {spec.model}.path")
    with filesystem.open(path, "rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def read_file(spec: ModelSpec) -> bytes:
    """The bytes at `path`. Raises InputError if there are none, or they do not have the digest `sha256`."""
    filesystem, path = _locate(spec.path, f"model {spec.model}.path")
    data = filesystem.cat_file(path)
    if spec.sha256 is not None:
        _same_content(spec, hashlib.sha256(data).hexdigest(), f"model {spec.model}.sha256")
    return data


def _same_content(spec: ModelSpec, found: str, where: str) -> None:
    if found != spec.sha256:
        raise InputError(f"{where}: {spec.path} has {found}, not {spec.sha256}: fetch the file again or correct sha256")


def _locate(uri: str, where: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """(filesystem, path) of a file that is there. Raises InputError."""
    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
        if filesystem.isfile(path):
            return filesystem, path
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"{where}: cannot read {uri}: {error}: correct the path or the access to it") from error
    raise InputError(f"{where}: no file at {uri}: correct the path or put the weights there")


# At the end: a family file needs `register` and what stands above.
from lvd.tasks.models import builtin, timm_models, torchscript  # noqa: E402, F401
