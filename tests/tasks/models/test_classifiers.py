"""Classifiers against timm used directly, with weights that the test saves; what does not fit is one line."""

import http.server
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from lvd.infra.errors import InputError
from lvd.tasks.models import classifiers
from lvd.tasks.models.classifiers import ClassifierSpec

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
safetensors = pytest.importorskip("safetensors.torch")

WHERE = "recipe.screen.unsafe"
LABELS = ["SFW", "NSFW"]
WRONG_DIGEST = "0" * 64


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    coarse = [Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)) for _ in range(count)]
    return [image.resize((260, 200), Image.Resampling.BICUBIC) for image in coarse]


def random_model(architecture: str = "test_vit", classes: int = 2, seed: int = 0, **options) -> torch.nn.Module:
    """A model with random weights whose scores lie between 0 and 1 and differ from image to image."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = timm.create_model(architecture, pretrained=False, num_classes=classes, **options).eval()
        head = model.get_classifier()
        torch.nn.init.normal_(head.weight, std=0.3)
        torch.nn.init.normal_(head.bias, std=0.1)
    return model


def in_folder(folder: Path, model: torch.nn.Module, labels: object = LABELS, **options) -> ClassifierSpec:
    """The spec of the model in that folder, as it would lie on a hub."""
    config = {"label_names": labels} if labels else {}
    timm.models.save_for_hf(model, folder, model_config=config, safe_serialization=True, **options)
    return ClassifierSpec(model=f"local-dir:{folder}")


def in_file(path: Path, weights: torch.nn.Module, /, **fields) -> ClassifierSpec:
    safetensors.save_file(weights.state_dict(), path)
    return ClassifierSpec(**({"model": "test_vit", "path": str(path), "labels": LABELS} | fields))


def shares(model: torch.nn.Module, images: list[Image.Image]) -> np.ndarray:
    """(n, classes) probabilities as timm's documentation computes them."""
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    with torch.inference_mode():
        return model(torch.stack([transform(image) for image in images])).softmax(dim=-1).numpy()


def scores(spec: ClassifierSpec, images: list[Image.Image]) -> np.ndarray:
    classifier = classifiers.load_classifier(spec, where=WHERE)
    return classifier.scores(np.stack([np.asarray(classifier.preprocess(image)) for image in images]))


# The scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["test_vit", "test_convnext", "test_efficientnet"])
def test_the_scores_are_those_of_timm(architecture, tmp_path):
    model, images = random_model(architecture), pictures(6)
    expected = shares(model, images)[:, 1]
    assert np.ptp(expected) > 1e-3  # or nothing would be compared
    for spec in (in_folder(tmp_path, model), in_file(tmp_path / "a.safetensors", model, model=architecture)):
        found = scores(spec, images)
        np.testing.assert_allclose(found, expected, atol=2e-6)
        assert (found.dtype, found.shape) == (np.float32, (6,))
        classifier = classifiers.load_classifier(spec, where=WHERE)
        assert (classifier.labels, classifier.min_short_edge_px) == (tuple(LABELS), 2 * 169)


def test_a_state_dict_saved_by_torch_is_read(tmp_path):
    model, images = random_model(), pictures(2)
    spec = in_file(tmp_path / "weights.safetensors", model)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pth")
    other = spec.model_copy(update={"path": str(tmp_path / "weights.pth")})
    np.testing.assert_array_equal(scores(spec, images), scores(other, images))


def test_the_preprocessing_is_that_of_the_weights(tmp_path):
    options = {"input_size": (3, 96, 96), "crop_pct": 1.0, "crop_mode": "squash", "mean": (0, 0, 0), "std": (1, 1, 1)}
    model, images = random_model(img_size=96), pictures(3)
    spec = in_folder(tmp_path, model, data_config=options)
    classifier = classifiers.load_classifier(spec, where=WHERE)
    image = Image.new("RGB", (300, 100), "black")
    image.paste("white", (100, 0, 200, 100))
    pixels = classifier.preprocess(image)
    assert tuple(pixels.shape) == (3, 96, 96) and classifier.min_short_edge_px == 192
    assert abs(float(pixels.mean()) - 1 / 3) < 0.02  # squeezed, not cropped
    loaded = timm.create_model(spec.model, pretrained=True).eval()
    np.testing.assert_allclose(scores(spec, images), shares(loaded, images)[:, 1], atol=2e-6)


@pytest.mark.parametrize(
    ("unsafe", "classes"),
    [(("Porn", "Hentai"), [1, 3]), (("porn",), [1]), (("drawings", "NEUTRAL", "porn", "Hentai"), [0, 1, 2, 3])],
)
def test_the_unsafe_labels_are_summed(unsafe, classes, tmp_path):
    model, images = random_model(classes=4), pictures(5)
    spec = in_folder(tmp_path, model, ["drawings", "porn", "neutral", "hentai"])
    found = scores(spec.model_copy(update={"unsafe": unsafe}), images)
    np.testing.assert_allclose(found, shares(model, images)[:, classes].sum(axis=1), atol=2e-6)
    assert (found >= 0).all() and (found <= 1).all()


@pytest.mark.parametrize("labels", [{"0": "SFW", "1": "NSFW"}, ["SFW", "nsfw"]])
def test_labels_may_be_numbered_and_in_any_case(labels, tmp_path):
    model, images = random_model(), pictures(2)
    spec = in_folder(tmp_path, model, labels)
    classifiers.check_classifier(spec, WHERE)
    np.testing.assert_allclose(scores(spec, images), shares(model, images)[:, 1], atol=2e-6)


def test_the_sum_of_all_labels_is_no_more_than_one(tmp_path):
    labels = [f"n{place}" for place in range(40)]
    spec = in_folder(tmp_path, random_model(classes=40), labels).model_copy(update={"unsafe": tuple(labels)})
    batch = np.random.default_rng(0).random((32, 3, 160, 160), dtype=np.float32)
    found = classifiers.load_classifier(spec, where=WHERE).scores(batch)
    assert found.max() <= 1 and found.min() > 1 - 1e-5


def test_one_class_alone_has_its_own_probability(tmp_path):
    model, images = random_model(classes=1), pictures(4)
    spec = in_file(tmp_path / "one.safetensors", model, labels=["nsfw"])
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    with torch.inference_mode():
        expected = model(torch.stack([transform(image) for image in images]))[:, 0].sigmoid().numpy()
    np.testing.assert_allclose(scores(spec, images), expected, atol=2e-6)


def test_a_score_depends_neither_on_its_place_nor_on_the_padding(tmp_path):
    classifier = classifiers.load_classifier(in_folder(tmp_path, random_model()), where=WHERE)
    inputs = np.stack([np.asarray(classifier.preprocess(image)) for image in pictures(6)])
    inputs.setflags(write=False)  # of which torch would warn
    first = classifier.scores(inputs)
    padded = np.concatenate([inputs[:2], np.zeros_like(inputs[:4])])
    np.testing.assert_array_equal(classifier.scores(padded)[:2], first[:2])
    np.testing.assert_array_equal(classifier.scores(inputs[::-1].copy()), first[::-1])
    np.testing.assert_array_equal(classifier.scores(torch.from_numpy(inputs.copy())), first)


@pytest.mark.parametrize("classes", [1, 2])
def test_what_is_not_finite_is_nan(classes, tmp_path):
    spec = in_file(tmp_path / "a.safetensors", random_model(classes=classes), labels=LABELS[-classes:])
    classifier = classifiers.load_classifier(spec, where=WHERE)
    batch = np.random.default_rng(0).random((3, 3, 160, 160), dtype=np.float32)
    batch[1] = np.nan
    found = classifier.scores(batch)
    assert np.isnan(found).tolist() == [False, True, False] and found.dtype == np.float32
    broken = random_model(classes=classes)
    torch.nn.init.constant_(broken.get_classifier().bias, torch.inf)  # its sigmoid would be 1
    spec = in_file(tmp_path / "b.safetensors", broken, labels=LABELS[-classes:])
    assert np.isnan(classifiers.load_classifier(spec, where=WHERE).scores(batch)).all()


# One load, and what tells weights apart -------------------------------------------------------------------------------


def test_a_classifier_is_loaded_once_until_its_files_change(tmp_path):
    specs = [in_folder(tmp_path / "folder", random_model()), in_file(tmp_path / "a.safetensors", random_model())]
    before = [classifiers.load_classifier(spec, where=WHERE) for spec in specs]
    assert [classifiers.load_classifier(spec.model_copy(), where="elsewhere") for spec in specs] == before
    digests = [classifiers.classifier_digest(spec) for spec in specs]
    other = random_model(seed=1)
    in_folder(tmp_path / "folder", other, ["NSFW", "SFW"])
    in_file(tmp_path / "a.safetensors", other)
    after = [classifiers.load_classifier(spec, where=WHERE) for spec in specs]
    assert after[0] is not before[0] and after[1] is not before[1]
    assert after[0].labels == ("NSFW", "SFW")
    assert all(old != new for old, new in zip(digests, map(classifiers.classifier_digest, specs), strict=True))


def test_the_digest_is_of_the_content_wherever_it_lies(tmp_path):
    model = random_model()
    one, other = (in_folder(tmp_path / name, model) for name in ("one", "other"))
    (tmp_path / "other" / "README.md").write_text("a card")
    assert classifiers.classifier_digest(one) == classifiers.classifier_digest(other)
    (tmp_path / "other" / "config.json").write_text((tmp_path / "one" / "config.json").read_text() + " ")
    assert classifiers.classifier_digest(one) != classifiers.classifier_digest(other)
    hub = ClassifierSpec(model="hf_hub:acme/nsfw@abc")
    assert classifiers.classifier_digest(hub) == "timm:hf_hub:acme/nsfw@abc"
    assert classifiers.classifier_digest(ClassifierSpec(model="test_vit")) == (
        "timm:test_vit.r160_in1k:timm/test_vit.r160_in1k"
    )
    with pytest.raises(InputError, match=r"no/such must hold config.json and weights"):
        classifiers.classifier_digest(ClassifierSpec(model="local-dir:no/such"))


# What cannot be -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [{}, {"model": "x", "unsafe": ()}, {"model": "x", "labels": ()}, {"model": "x", "sha256": "abc"}, {"modl": "x"}],
)
def test_a_spec_refuses_what_it_does_not_know(fields):
    with pytest.raises(ValidationError):
        ClassifierSpec(**fields)


EARLY = {  # fields over those of a file that fits, the line; known before a run
    "name": ({"model": "tset_vit"}, r"{where}.model: unknown model 'tset_vit': did you mean 'test_vit"),
    "prefix": ({"model": "hub:x", "path": None}, r"{where}.model: unknown model 'hub:x'"),
    "no weights": ({"model": "coatnet_0_224", "path": None}, r"{where}.model: timm has no weights for 'coatnet_0_224'"),
    "no file": ({"path": "no/such.safetensors"}, r"{where}.path: no file at no/such.safetensors: correct the path"),
    "digest of nothing": ({"path": None, "sha256": WRONG_DIGEST}, r"{where}.sha256 is that of the file at path"),
    "digest": ({"sha256": WRONG_DIGEST}, r"sha256: .*a.safetensors has [0-9a-f]+, not 0+: fetch the file again"),
    "two places": ({"model": "hf_hub:acme/nsfw"}, r"{where}.path: hf_hub:acme/nsfw has its own weights, was .*: leave"),
    "no folder": (
        {"model": "local-dir:no/such", "path": None},
        r"{where}.model: local-dir:no/such must hold config.json",
    ),
    "no labels": (
        {"labels": None},
        r"{where}.labels: test_vit does not name its classes, was null: list them in their",
    ),
    "unsafe": ({"unsafe": ["nsfw", "gore"]}, r"{where}.unsafe: no label 'gore': the model has SFW, NSFW: name those"),
}


@pytest.mark.parametrize("case", EARLY)
def test_what_cannot_be_is_known_before_a_run(case, tmp_path):
    fields, line = EARLY[case]
    spec = in_file(tmp_path / "a.safetensors", random_model(), **fields)
    with pytest.raises(InputError, match=line.format(where=WHERE)) as caught:
        classifiers.check_classifier(spec, WHERE)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"test_vit|no/such|acme|coatnet|hub:x|gore|tset_vit|path"):
        classifiers.load_classifier(spec, where=WHERE)


def test_the_labels_of_a_folder_are_checked_before_a_run(tmp_path):
    spec = in_folder(tmp_path, random_model(), ["safe", "unsafe"])
    with pytest.raises(InputError, match=f"{WHERE}.unsafe: no label 'NSFW': the model has safe, unsafe: name those"):
        classifiers.check_classifier(spec, WHERE)
    classifiers.check_classifier(spec.model_copy(update={"unsafe": ("Unsafe",)}), WHERE)
    many = [f"n{place}" for place in range(30)]
    with pytest.raises(InputError, match=r"the model has n0, n1, .*, n19 and 10 more: name"):
        classifiers.check_classifier(in_folder(tmp_path, random_model(classes=30), many), WHERE)
    (tmp_path / "config.json").write_text("[1, 2")
    with pytest.raises(InputError, match=f"{WHERE}.model: cannot read .*config.json: .*: save the model again"):
        classifiers.check_classifier(spec, WHERE)


def damaged(case: str, path: Path) -> ClassifierSpec:
    """The spec of a model that only its weights or its configuration show to be wrong."""
    if case == "unnamed":
        return in_folder(path, random_model(), None)
    if case in ("cut", "config", "empty config", "other weights"):
        spec = in_folder(path, random_model())
        weights, config = path / "model.safetensors", path / "config.json"
        if case == "cut":
            weights.write_bytes(weights.read_bytes()[:1000])
        elif case == "other weights":
            safetensors.save_file(random_model(classes=3).state_dict(), weights)
        else:
            config.write_text("{}" if case == "empty config" else json.dumps({"architecture": "no_such"}))
        return spec
    model = random_model(classes=3 if case == "three" else 2)
    state = model.state_dict()
    if case == "no head":
        state = {name: value for name, value in state.items() if not name.startswith("head.")}
    elif case == "missing":
        del state["blocks.0.attn.qkv.weight"]
    elif case == "other model":
        state = {**random_model("test_convnext").state_dict(), "head.weight": state["head.weight"]}
    safetensors.save_file(state, path / "a.safetensors")
    if case == "no state":
        (path / "a.safetensors").write_bytes(b"nothing")
    return ClassifierSpec(model="test_vit", path=str(path / "a.safetensors"), labels=LABELS)


DAMAGE = {
    "unnamed": r"{where}.labels: local-dir:.* does not name its classes, was null: list them in their order",
    "cut": r"{where}.model: local-dir:.* cannot be made: .*: save the model again with timm's save_for_hf",
    "other weights": r"{where}.model: local-dir:.* cannot be made: .*head.weight.*: save the model again",
    "config": r"{where}.model: local-dir:.* cannot be made: .*no_such.*: save the model again",
    "empty config": r"{where}.model: local-dir:.* cannot be made: .*: save the model again",
    "three": r"{where}.labels must be 3, one for each class of the model, were 2 \(SFW, NSFW\): correct them",
    "no head": r"{where}.path: .*a.safetensors has no classifier \(head.weight\): save the weights with their head",
    "missing": r"{where}.path: .*a.safetensors does not fit test_vit: .*blocks.0.attn.qkv.weight.*: name the model",
    "other model": r"{where}.path: .*a.safetensors does not fit test_vit: .*: name the model that it came from",
    "no state": r"model test_vit: .*a.safetensors is no state dict: .* give a .safetensors file",
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_does_not_fit_is_one_line(case, tmp_path):
    spec = damaged(case, tmp_path)
    classifiers.check_classifier(spec, WHERE)
    with pytest.raises(InputError, match=DAMAGE[case].format(where=WHERE)) as caught:
        classifiers.load_classifier(spec, where=WHERE)
    assert "\n" not in str(caught.value)


# The hub --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The requests for models that a server got which is not well, in the place of the hub."""
    from huggingface_hub import constants

    asked: list[str] = []

    class Unwell(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.extend([self.path] if "acme" in self.path else [])  # the library asks for more, for itself
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Unwell)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield asked
    server.shutdown()
    thread.join()
    server.server_close()


LINE = rf"^{WHERE}.model: hf_hub:acme/nsfw@v1 cannot be fetched: .*: check the connection to the hub and HF_HUB_OFFLINE"


def test_a_hub_that_does_not_answer_is_asked_once(hub):
    spec = ClassifierSpec(model="hf_hub:acme/nsfw@v1")
    classifiers.check_classifier(spec, WHERE)
    assert hub == []
    with pytest.raises(InputError, match=LINE) as caught:
        classifiers.load_classifier(spec, where=WHERE)
    assert "\n" not in str(caught.value)
    assert hub == ["/acme/nsfw/resolve/v1/config.json"]


def test_a_hub_that_is_not_there_and_one_that_may_not_be_asked_are_one_line(hub, monkeypatch):
    from huggingface_hub import constants

    spec = ClassifierSpec(model="hf_hub:acme/nsfw@v1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=LINE):
        classifiers.load_classifier(spec, where=WHERE)
    assert hub == []
    closed = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    closed.server_close()  # a port where nobody listens
    url = f"http://127.0.0.1:{closed.server_port}" + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
    with pytest.raises(InputError, match=LINE):
        classifiers.load_classifier(spec, where=WHERE)


def test_what_the_hub_has_given_before_needs_no_hub(hub, monkeypatch, tmp_path):
    from huggingface_hub import constants

    model, kept = random_model(), tmp_path / "cache" / "models--acme--nsfw"
    in_folder(kept / "snapshots" / ("0" * 40), model)
    (kept / "refs").mkdir()
    (kept / "refs" / "v1").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    images = pictures(2)
    found = scores(ClassifierSpec(model="hf_hub:acme/nsfw@v1"), images)
    np.testing.assert_allclose(found, shares(model, images)[:, 1], atol=2e-6)
    assert hub == []


def test_a_spec_needs_no_torch():
    code = "import sys; from lvd.tasks.models import classifiers; classifiers.ClassifierSpec(model='hf_hub:acme/nsfw')"
    code += "; assert not {'torch', 'timm', 'safetensors', 'huggingface_hub'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
