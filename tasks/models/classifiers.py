"""What share of an image a classifier of timm calls unsafe: the score by which pictures are kept out of a data set.

The preprocessing is that of the weights, and so is the meaning of the score: two classifiers do not share a threshold.
Nothing is unpickled: safetensors, or `torch.load(weights_only=True)`.
"""

import hashlib
import json
import math
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from lvd.infra.errors import InputError
from lvd.tasks.models import _LOADED, _locate
from lvd.tasks.models.timm_models import HUB_PREFIXES, _check, _check_name, _digest, _one_line, _state_dict

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

FOLDER_PREFIX = "local-dir:"
WEIGHTS = (".safetensors", ".bin", ".pth", ".tar")  # the endings that timm looks for in a folder
HUB_TIMEOUT_S = 10.0  # of the one request that finds out whether the hub answers
MOST_LISTED = 20  # labels in a message


class ClassifierSpec(BaseModel, frozen=True, extra="forbid"):
    """Which classifier, what its classes are called, and which of them count."""

    model: str  # `hf_hub:NAME`, `local-dir:FOLDER` (both name their labels), or any name of timm with a path
    path: str | None = None  # the weights of that timm name with their classifier: a local path or a URI
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")  # of the file at `path`; another content is refused
    labels: tuple[str, ...] | None = Field(None, min_length=1)  # of the classes in their order; null: the model's own
    unsafe: tuple[str, ...] = Field(
        ("NSFW",), min_length=1
    )  # labels whose probabilities are summed; upper or lower case


class Classifier:
    """A loaded classifier. Instances may be used by several threads at once.

    labels: of the classes in their order; min_short_edge_px: an image may be decoded at a reduced scale whose short
    edge is still this long.
    """

    def __init__(self, model: "torch.nn.Module", spec: ClassifierSpec, device: str, where: str) -> None:
        import timm.data
        import torch

        config = timm.data.resolve_model_data_config(model)
        self.min_short_edge_px = 2 * math.ceil(min(config["input_size"][1:]) / config["crop_pct"])  # still averages
        self._transform = timm.data.create_transform(**config, is_training=False)
        self._device = device
        self._model = model.to(device).eval()
        classes = self._logits(torch.zeros(1, *config["input_size"])).shape[1]
        self.labels = _labels(spec, _named(model.pretrained_cfg), classes, where)
        self._unsafe = _unsafe_classes(spec, self.labels, where)

    def preprocess(self, image: "Image.Image") -> "torch.Tensor":
        """(3, h, w) float32 of one RGB image, as the weights were trained with."""
        return self._transform(image)

    def scores(self, batch: Any) -> "np.ndarray":
        """(b,) float32 in [0, 1] of (b, 3, h, w) float32: the probability of all unsafe labels together.

        The probabilities of several classes sum to 1; one class alone has its own. NaN where the model gives anything
        that is not finite.
        """
        import torch

        logits = self._logits(batch)
        shares = logits.softmax(dim=1) if logits.shape[1] > 1 else logits.sigmoid()
        unsafe = shares[:, self._unsafe].sum(dim=1).clamp(max=1.0)
        return torch.where(logits.isfinite().all(dim=1), unsafe, torch.nan).cpu().numpy()

    def _logits(self, batch: Any) -> "torch.Tensor":
        """(b, classes) float32. Raises TypeError if the model gives anything else."""
        import numpy as np
        import torch

        if not isinstance(batch, torch.Tensor):
            batch = torch.from_numpy(np.require(batch, requirements="W"))  # torch warns of read-only arrays
        with torch.inference_mode():
            logits = self._model(batch.contiguous().to(self._device))
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
            raise TypeError("the model gives no row of classes for each image")
        return logits.float()


def load_classifier(spec: ClassifierSpec, *, device: str = "cpu", where: str) -> Classifier:
    """The classifier, loaded once in a process for each spec, device and state of its files.

    where: the section of the recipe that holds the spec.
    Raises InputError if it cannot be had: unknown name, a hub that does not answer, no such file, other content than
    `sha256`, weights or labels that do not fit.
    """
    _check_origin(spec, where)
    state: Any = None
    if spec.path is not None:
        filesystem, path = _locate(spec.path, f"{where}.path")
        state = filesystem.ukey(path)
    elif spec.model.startswith(FOLDER_PREFIX):
        state = tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in _files(spec))
    return _LOADED.get((spec, device, state), lambda: _build(spec, device, where))


def check_classifier(spec: ClassifierSpec, where: str) -> None:
    """Returns if the classifier can be loaded as far as names, files and labels tell; no model is built.

    Raises InputError, one line: the field, the value and the remedy.
    """
    _check_origin(spec, where)
    _check(spec, where)
    labels = spec.labels or _named(_config(spec, where))
    if labels is None and not spec.model.startswith(HUB_PREFIXES):
        raise _unnamed(spec, where)
    if labels is not None:
        _unsafe_classes(spec, labels, where)


def classifier_digest(spec: ClassifierSpec) -> str:
    """What tells these weights from others, for the fingerprint of a stage; no model is loaded.

    `sha256:…` of the file at `path` or of the files in the folder, else the name with its tag and hub id.
    Raises InputError for a name or a file that does not exist.
    """
    _check_origin(spec, f"model {spec.model}")
    if not spec.model.startswith(FOLDER_PREFIX):
        return _digest(spec)
    digest = hashlib.sha256()
    for file in _files(spec):
        with file.open("rb") as content:
            digest.update(file.name.encode() + b"\0" + hashlib.file_digest(content, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


def _check_origin(spec: ClassifierSpec, where: str) -> None:
    """Raises InputError if the spec names two places of weights, or a folder without a model."""
    if spec.path is not None and spec.model.startswith(HUB_PREFIXES):
        raise InputError(f"{where}.path: {spec.model} has its own weights, was {spec.path}: leave it out")
    if spec.model.startswith(FOLDER_PREFIX):
        names = {file.name for file in _files(spec)}
        if "config.json" not in names or len(names) < 2:
            needed = "config.json and weights, as timm's save_for_hf writes them"
            raise InputError(f"{where}.model: {spec.model} must hold {needed}, holds {sorted(names)}: correct the path")


def _files(spec: ClassifierSpec) -> list[Path]:
    """The files of a folder that make the model, by name; none if there is no folder."""
    folder = Path(spec.model.removeprefix(FOLDER_PREFIX))
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted(file for file in files if file.name == "config.json" or file.name.endswith(WEIGHTS))


def _config(spec: ClassifierSpec, where: str) -> dict[str, Any]:
    """What is said of the model here: in its folder, or by timm; nothing of one on the hub. Raises InputError."""
    if not spec.model.startswith(HUB_PREFIXES):
        import timm

        found = timm.models.get_pretrained_cfg(spec.model)
        return {} if found is None else found.to_dict()
    if not spec.model.startswith(FOLDER_PREFIX):
        return {}
    file = Path(spec.model.removeprefix(FOLDER_PREFIX)) / "config.json"
    try:
        config = json.loads(file.read_bytes())
        return config if "label_names" in config else config.get("pretrained_cfg", {})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{where}.model: cannot read {file}: {_one_line(error)}: save the model again") from error


def _named(config: dict[str, Any]) -> tuple[str, ...] | None:
    """The labels in the order of the classes; None if the configuration does not name them all."""
    names = config.get("label_names")
    if isinstance(names, dict):  # by class; JSON has made the numbers strings
        names = [names.get(str(place), names.get(place)) for place in range(len(names))]
    is_whole = isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names)
    return tuple(names) if is_whole else None


def _unnamed(spec: ClassifierSpec, where: str) -> InputError:
    """The error for a model whose classes have no names."""
    return InputError(f"{where}.labels: {spec.model} does not name its classes, was null: list them in their order")


def _labels(spec: ClassifierSpec, named: tuple[str, ...] | None, classes: int, where: str) -> tuple[str, ...]:
    """The labels, as many as the model has classes. Raises InputError if there are more, fewer or none."""
    labels = spec.labels or named
    if labels is None:
        raise _unnamed(spec, where)
    if len(labels) != classes:
        found = f"were {len(labels)} ({_listed(labels)})"
        raise InputError(f"{where}.labels must be {classes}, one for each class of the model, {found}: correct them")
    return labels


def _unsafe_classes(spec: ClassifierSpec, labels: tuple[str, ...], where: str) -> list[int]:
    """The classes that count as unsafe. Raises InputError for a label that the model does not have."""
    known = {label.casefold() for label in labels}
    unknown = [label for label in spec.unsafe if label.casefold() not in known]
    if unknown:
        has = f"the model has {_listed(labels)}"
        raise InputError(f"{where}.unsafe: no label '{unknown[0]}': {has}: name those that count as unsafe")
    wanted = {label.casefold() for label in spec.unsafe}
    return [place for place, label in enumerate(labels) if label.casefold() in wanted]


def _listed(labels: tuple[str, ...]) -> str:
    more = f" and {len(labels) - MOST_LISTED} more" if len(labels) > MOST_LISTED else ""
    return ", ".join(labels[:MOST_LISTED]) + more


def _build(spec: ClassifierSpec, device: str, where: str) -> Classifier:
    """Raises InputError, as `load_classifier` says."""
    _check_name(spec, where)
    model = _pretrained(spec, where) if spec.path is None else _from_file(spec, where)
    try:
        return Classifier(model, spec, device, where)
    except (RuntimeError, TypeError, AssertionError, ValueError) as error:
        raise InputError(f"{where}.model: {spec.model} fails on its input: {_one_line(error)}: name another") from error


def _pretrained(spec: ClassifierSpec, where: str) -> "torch.nn.Module":
    """The model as its hub or folder has it. Raises InputError if it is not there or does not fit its configuration."""
    import timm
    from safetensors import SafetensorError

    remedy = "save the model again with timm's save_for_hf"
    if not spec.model.startswith(FOLDER_PREFIX):
        remedy = "check the connection to the hub and HF_HUB_OFFLINE, or save the model and give its folder"
        _ask_hub(spec, where, remedy)
    damaged = (SafetensorError, pickle.UnpicklingError, EOFError, KeyError, AttributeError)
    try:
        return timm.create_model(spec.model, pretrained=True)
    except (OSError, RuntimeError, ValueError, TypeError, AssertionError, *damaged) as error:
        raise InputError(f"{where}.model: {spec.model} cannot be made: {_one_line(error)}: {remedy}") from error


def _ask_hub(spec: ClassifierSpec, where: str, remedy: str) -> None:
    """Returns if the hub answers, or its answer is kept here; one request, where timm would try for half a minute.

    Raises InputError if it does not answer, or does not have the model.
    """
    import huggingface_hub
    from huggingface_hub.errors import HTTPError

    prefix = next((prefix for prefix in HUB_PREFIXES if spec.model.startswith(prefix)), None)
    if prefix is None:
        return
    name, _, revision = spec.model.removeprefix(prefix).partition("@")
    try:
        found = huggingface_hub.try_to_load_from_cache(name, "config.json", revision=revision or None)
        if not isinstance(found, str):
            url = huggingface_hub.hf_hub_url(name, "config.json", revision=revision or None)
            huggingface_hub.get_hf_file_metadata(url, timeout=HUB_TIMEOUT_S)
    except (OSError, ValueError, HTTPError) as error:
        raise InputError(f"{where}.model: {spec.model} cannot be fetched: {_one_line(error)}: {remedy}") from error


def _from_file(spec: ClassifierSpec, where: str) -> "torch.nn.Module":
    """The timm model with the weights at `path`, as many classes as they have. Raises InputError if they do not fit."""
    import timm

    state = _state_dict(spec)
    config = timm.models.get_pretrained_cfg(spec.model.partition(".")[0])
    head = config.classifier if config is not None else None
    head = head if isinstance(head, str) or head is None else head[0]  # a distilled model has two of one size
    if f"{head}.weight" not in state:
        raise InputError(
            f"{where}.path: {spec.path} has no classifier ({head}.weight): save the weights with their head"
        )
    try:
        model = timm.create_model(spec.model, pretrained=False, num_classes=len(state[f"{head}.weight"]))
        model.load_state_dict(state)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        what = f"{spec.path} does not fit {spec.model}: {_one_line(error)}"
        raise InputError(f"{where}.path: {what}: name the model that it came from") from error
    return model
