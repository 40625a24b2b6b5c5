"""TorchScript files: SSCD as its authors distribute it, and any other that maps an image to a vector.

Source of the SSCD settings: Pizzi et al. 2022, and PAPER.md sections 1 and 3 (0.6 for self-deduplication, 0.45 against
benchmarks). A TorchScript file is a program: only the one that a recipe names is loaded, never one that data names.
"""

import io
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lvd.infra.errors import InputError
from lvd.tasks.models import (
    REDUCED_TIMES,
    CopyThresholds,
    ModelSpec,
    Placement,
    check_file,
    file_digest,
    read_file,
    register,
)
from lvd.tasks.models.features import Features

if TYPE_CHECKING:
    from PIL import Image

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SSCD_PX = {"square": 320, "short_edge": 320, "keep_ratio": 288}  # PAPER.md section 3
MAX_RATIO = 4  # of the long edge to the short one with `keep_ratio`; longer images are squeezed to it
SSCD = CopyThresholds(min_similarity=0.6, benchmark_min_similarity=0.45, floor=0.40)


class TorchScriptModel(Features):
    """A TorchScript module that maps (b, 3, input_px, input_px) to (b, dim).

    With `keep_ratio` (1, 3, h, w), the shorter one of which is input_px, and the longer one at most 4 times that.
    """

    def __init__(self, spec: ModelSpec, module: Any, input_px: int, placement: Placement) -> None:
        mean, std = spec.mean or IMAGENET_MEAN, spec.std or IMAGENET_STD
        super().__init__(module, placement, mean=mean, std=std, keeps_types=True)
        self.input_px = input_px
        self.min_short_edge_px = REDUCED_TIMES * input_px
        self.resize = spec.resize or "square"
        long_px = input_px if self.resize != "keep_ratio" else 2 * input_px  # a module that needs a square fails here
        self.input_shape = (3, input_px, long_px)
        self.dim = self.embed(np.zeros((1, *self.input_shape), dtype=np.uint8)).shape[1]

    def preprocess(self, image: "Image.Image") -> np.ndarray:
        """(3, h, w) uint8: resized (bilinear, antialiased)."""
        from PIL import Image

        edge = self.input_px
        width, height = image.size
        box, size = None, (edge, edge)
        if self.resize == "keep_ratio":
            scale = edge / min(width, height)
            size = tuple(min(round(side * scale), MAX_RATIO * edge) for side in (width, height))
        elif self.resize == "short_edge":
            short = min(width, height)
            left, top = (width - short) / 2, (height - short) / 2
            box = (left, top, left + short, top + short)
        pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box))
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _check(spec: ModelSpec, where: str, *, known_px: dict[str, int]) -> None:
    """Raises InputError if path or input size are not given, or there is no such file.

    known_px: the usual input size for each way to resize; empty if the model has none.
    """
    _given_px(spec, where, known_px)
    check_file(spec, where)


def _given_px(spec: ModelSpec, where: str, known_px: dict[str, int]) -> int:
    if spec.path is None:
        raise InputError(f"{where}.path: {spec.model} needs the path or URI of a TorchScript file, was null")
    if edge := spec.input_px or known_px.get(spec.resize or "square"):
        return edge
    raise InputError(f"{where}.input_px must be in [8, 4096], was null: the file does not say what it takes")


def _build(spec: ModelSpec, placement: Placement, *, known_px: dict[str, int]) -> TorchScriptModel:
    """Raises InputError if the file is no TorchScript, or maps no image of that size to one vector."""
    import torch

    where = f"model {spec.model}"
    edge = _given_px(spec, where, known_px)
    data = read_file(spec)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", DeprecationWarning)
            module = torch.jit.load(io.BytesIO(data), map_location="cpu")
    except (RuntimeError, ValueError, OSError, EOFError) as error:
        raise InputError(f"{where}: {spec.path} is no TorchScript file: {_first_line(error)}") from error
    try:
        return TorchScriptModel(spec, module, edge, placement)
    except (RuntimeError, TypeError) as error:
        remedy = "correct input_px or resize, or export a module that maps (b, 3, h, w) to (b, dim)"
        raise InputError(f"{where}: {spec.path} fails on {edge} px: {_first_line(error)}: {remedy}") from error


def _first_line(error: Exception) -> str:
    """The line of a torch error that says what went wrong; TorchScript puts it last, after its own traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in reversed(lines) if line.startswith(("RuntimeError:", "Error:"))), lines[0])[:200]


def _enter(name: str, note: str, *, known_px: dict[str, int], **known: Any) -> None:
    """One line of the registry; they differ in the input size and in what is known of them."""
    check = partial(_check, known_px=known_px)
    enter = register(name, kind="torchscript", note=note, check=check, digest=file_digest, **known)
    enter(partial(_build, known_px=known_px))


_enter("torchscript", "needs path and input_px; ImageNet mean and std if none are given", known_px={})
_enter("sscd_disc_mixup", "needs path: the authors' TorchScript file", known_px=SSCD_PX, dim=512, thresholds=SSCD)
_enter("sscd_disc_large", "needs path: the authors' TorchScript file", known_px=SSCD_PX, dim=1024, thresholds=SSCD)
