"""Every model of timm, with the preprocessing that comes with its weights (`timm.data.resolve_model_data_config`).

Weights come from the hub by the model's name, or from a state dict at `path`. Nothing is unpickled: safetensors, or
`torch.load(weights_only=True)`.
"""

import io
import math
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np

from lvd.infra.errors import InputError
from lvd.tasks.models import (
    REDUCED_TIMES,
    ModelSpec,
    Placement,
    check_file,
    file_digest,
    read_file,
    register,
    unknown_model,
)
from lvd.tasks.models.features import Features

if TYPE_CHECKING:
    import torch
    from PIL import Image

HUB_PREFIXES = ("hf_hub:", "hf-hub:", "local-dir:")
TRANSFORMERS = {"vision_transformer", "deit", "eva", "beit"}  # timm's files with models that keep a feature per patch
NO_WEIGHTS = "name one with a pretrained tag (a filter after 'lvd models' lists them) or give path"


class TimmModel(Features):
    """A timm model without its classifier: the pooled features."""

    def __init__(self, model: "torch.nn.Module", spec: ModelSpec, placement: Placement) -> None:
        import timm.data

        config = timm.data.resolve_model_data_config(model) | _overrides(spec)
        super().__init__(model, placement, mean=config["mean"], std=config["std"])
        # timm's own transform for its prefetching loader: the pixels before normalisation, which happens on the device.
        self.transform = timm.data.create_transform(**config, is_training=False, use_prefetcher=True)
        edge = min(config["input_size"][1:])
        self.min_short_edge_px = REDUCED_TIMES * math.ceil(edge / config["crop_pct"])
        self.input_shape = tuple(config["input_size"])
        self.dim = self.embed(np.zeros((1, *self.input_shape), dtype=np.uint8)).shape[1]

    def preprocess(self, image: "Image.Image") -> np.ndarray:
        """(3, h, w) uint8, resized and cropped as the weights were trained with."""
        return self.transform(image).numpy()

    def patch_features(self, batch: np.ndarray) -> np.ndarray | None:
        """(b, h, w, c) float32: the features of every patch of (b, 3, height, width) uint8, without class and register
        tokens; None if the model does not look at patches, as convolutional ones do not."""
        import torch

        prefix, patches = (getattr(self._module, name, None) for name in ("num_prefix_tokens", "patch_embed"))
        if prefix is None or patches is None:
            return None
        with torch.inference_mode():
            values = self._values(torch.from_numpy(np.require(batch, requirements="W")).to(self.placement.device))
            tokens = self._module.forward_features(values)
        height, width = (edge // size for edge, size in zip(batch.shape[2:], patches.patch_size, strict=True))
        if tokens.ndim != 3 or tokens.shape[1] - prefix != height * width:
            return None
        return tokens[:, prefix:].float().cpu().numpy().reshape(len(batch), height, width, -1)


def may_look_at_patches(spec: ModelSpec) -> bool:
    """Whether the model can be a vision transformer of timm, as far as its name tells; nothing is loaded."""
    if ":" in spec.model:
        return spec.model.startswith(HUB_PREFIXES)
    import timm

    name = spec.model.partition(".")[0]
    return timm.is_model(name) and timm.models.is_model_in_modules(name, TRANSFORMERS)


def pretrained_names() -> list[tuple[str, str]]:
    """(name with its pretrained tag, hub id) of all timm models that have weights."""
    import timm

    return [(name, timm.models.get_pretrained_cfg(name).hf_hub_id or "") for name in timm.list_pretrained()]


def _overrides(spec: ModelSpec) -> dict[str, Any]:
    """What the spec changes in the data configuration of the weights."""
    changed: dict[str, Any] = {}
    if spec.input_px is not None:
        changed["input_size"] = (3, spec.input_px, spec.input_px)
    if spec.resize is not None:
        changed["crop_mode"] = "squash" if spec.resize == "square" else "center"
        changed |= {"crop_pct": 1.0} if spec.resize == "square" else {}
    return changed | {name: value for name in ("mean", "std") if (value := getattr(spec, name)) is not None}


def _check(spec: ModelSpec, where: str) -> None:
    """Raises InputError for a name that timm does not know, a name without weights, a file that is not there."""
    _check_name(spec, where)
    if spec.path is not None:
        check_file(spec, where)


def _check_spec(spec: ModelSpec, where: str) -> None:
    """As `_check`, for what gives vectors."""
    _check_resize(spec, where)
    _check(spec, where)


def _check_resize(spec: ModelSpec, where: str) -> None:
    if spec.resize == "keep_ratio":
        raise InputError(f"{where}.resize must be square or short_edge with a model of timm, was keep_ratio: change it")


def _check_name(spec: ModelSpec, where: str) -> None:
    if spec.path is None and spec.sha256 is not None:
        raise InputError(f"{where}.sha256 is that of the file at path, and path was null: give both or none")
    if spec.model.startswith(HUB_PREFIXES):
        return
    if ":" in spec.model:  # a prefix that nobody has; timm is not needed to know
        raise unknown_model(spec.model, where)
    import timm

    architecture, _, tag = spec.model.partition(".")
    if not timm.is_model(architecture) or (tag and spec.model not in timm.list_pretrained()):
        raise unknown_model(spec.model, where, [*timm.list_models(), *timm.list_pretrained()])
    if spec.path is None and not _has_weights(spec.model):
        raise InputError(f"{where}.model: timm has no weights for '{spec.model}': {NO_WEIGHTS}")


def _has_weights(name: str) -> bool:
    """Whether timm knows where weights of that name are."""
    import timm

    found = timm.models.get_pretrained_cfg(name)
    return found is not None and found.has_weights


def _digest(spec: ModelSpec) -> str:
    """The digest of the file, or the name with its pretrained tag and hub id, without loading weights."""
    _check_name(spec, f"model {spec.model}")
    if spec.path is not None:
        return file_digest(spec)
    if spec.model.startswith(HUB_PREFIXES):
        return f"timm:{spec.model}"
    import timm

    weights = timm.models.get_pretrained_cfg(spec.model)
    return f"timm:{weights.architecture}.{weights.tag}:{weights.hf_hub_id or weights.url or weights.file}"


@register(
    "",
    kind="timm",
    note="every name of timm: 'lvd models FILTER' lists them",
    check=_check_spec,
    digest=_digest,
    gpu_precision="bfloat16",
)
def _build(spec: ModelSpec, placement: Placement) -> TimmModel:
    """Raises InputError: unknown name, hub out of reach, a state dict that does not fit, a size that it cannot take."""
    import timm

    where, from_hub = f"model {spec.model}", spec.path is None
    _check_name(spec, where)
    _check_resize(spec, where)
    try:
        model = timm.create_model(spec.model, pretrained=from_hub, num_classes=0, **_image_size(spec))
    except (OSError, RuntimeError, ValueError, TypeError, AssertionError) as error:
        remedy = "check the connection to the hub and HF_HUB_OFFLINE, or give path" if from_hub else "correct input_px"
        raise InputError(f"{where}: cannot be made: {_one_line(error)}: {remedy}") from error
    if spec.path is not None:
        _fit(model, _state_dict(spec), spec)
    try:
        return TimmModel(model, spec, placement)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InputError(f"{where}: fails on its input: {_one_line(error)}: correct input_px") from error


def _image_size(spec: ModelSpec) -> dict[str, Any]:
    """The argument for another input size, for those models that are built for one."""
    import timm

    if spec.input_px is None or spec.model.startswith(HUB_PREFIXES):
        return {}
    found = timm.models.get_pretrained_cfg(spec.model.partition(".")[0])
    return {"img_size": spec.input_px} if found is not None and found.fixed_input_size else {}


def _state_dict(spec: ModelSpec) -> dict[str, "torch.Tensor"]:
    """The tensors by name. Raises InputError if the file holds none, or holds code."""
    import safetensors.torch
    import torch

    data = read_file(spec)
    try:
        if spec.path.endswith(".safetensors"):
            state = safetensors.torch.load(data)
        else:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
        remedy = "give a .safetensors file or a state dict saved with torch.save"
        raise InputError(f"model {spec.model}: {spec.path} is no state dict: {_one_line(error)}: {remedy}") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"model {spec.model}: {spec.path} is no state dict: give tensors by name")
    return state


def _fit(model: "torch.nn.Module", state: dict[str, "torch.Tensor"], spec: ModelSpec) -> None:
    """Loads the tensors; only those of the classifier may be left over. Raises InputError for any other difference."""
    classifier = model.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{name}." for name in ([classifier] if isinstance(classifier, str) else classifier))
    state = {name: value for name, value in state.items() if not (heads and name.startswith(heads))}
    wanted = model.state_dict()
    missing, surplus = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    shaped = [name for name in wanted.keys() & state.keys() if wanted[name].shape != state[name].shape]
    if missing or surplus or shaped:
        counts = f"{len(missing)} tensors missing, {len(surplus)} unknown, {len(shaped)} of another shape"
        counts += f" (such as {(missing or surplus or sorted(shaped))[0]})"
        raise InputError(f"model {spec.model}: {spec.path} does not fit: {counts}: name the model it came from")
    model.load_state_dict(state)


def _one_line(error: Exception) -> str:
    """The message of an error on one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__
