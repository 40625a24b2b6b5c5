"""The registry: names and their errors, files and their digests, one load for many threads."""

import hashlib
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from pydantic import ValidationError

from lvd.infra.errors import InputError
from lvd.tasks import models
from lvd.tasks.models import Inference, ModelSpec, Placement

WRONG_DIGEST = "0" * 64
PLAIN = {"kind": "test", "note": "", "check": lambda spec, where: None, "digest": lambda spec: spec.model}


@pytest.fixture
def registry(monkeypatch):
    """An empty registry and cache, put back after the test."""
    monkeypatch.setattr(models, "_FAMILIES", {})
    monkeypatch.setattr(models, "_LOADED", models._Loaded())
    return models._FAMILIES


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"some weights")
    return path


@pytest.mark.parametrize(
    "fields",
    [
        {"modl": "x"},
        {"model": "x", "input_px": 7},
        {"model": "x", "resize": "crop"},
        {"model": "x", "sha256": "abc"},
        {},
    ],
)
def test_a_spec_refuses_what_it_does_not_know(fields):
    with pytest.raises(ValidationError):
        ModelSpec(**fields)


def test_the_longest_prefix_takes_a_name(registry):
    for name in ("a", "a:", "a:b:", ""):
        models.register(name, **PLAIN)(lambda spec, placement: None)
    found = {name: models._family(name).name for name in ("a", "a:x", "a:b:c", "ab", "b:a")}
    assert found == {"a": "a", "a:x": "a:", "a:b:c": "a:b:", "ab": "", "b:a": ""}


def test_many_threads_get_one_load(registry):
    loads, start = [], threading.Barrier(8)

    @models.register("slow", **PLAIN)
    def slow(spec, placement):
        loads.append((spec.input_px, placement))
        time.sleep(0.05)
        return object()

    def ask(_):
        start.wait()
        return models.load(ModelSpec(model="slow", input_px=32))

    with ThreadPoolExecutor(8) as pool:
        assert len({id(model) for model in pool.map(ask, range(8))}) == 1
    usual = Placement(device="cpu", precision="float32", compiled=False)
    assert loads == [(32, usual)]
    models.load(ModelSpec(model="slow", input_px=64))
    others = [Placement("meta"), Placement(precision="bfloat16"), Placement(compiled=True)]
    for placement in [usual, *others, *others]:
        models.load(ModelSpec(model="slow", input_px=64), placement)
    assert loads == [(32, usual), *((64, placement) for placement in (usual, *others))]


def test_a_process_that_moves_to_another_gpu_lets_go_of_the_models_on_the_first(registry):
    @models.register("placed", **PLAIN)
    def placed(spec, placement):
        return object()

    specs, devices = [ModelSpec(model="placed", input_px=px) for px in (32, 64)], ("cuda:0", "cuda:1")
    before = {(spec, device): models.load(spec, Placement(device)) for spec in specs for device in devices}
    models.keep_only("cuda:1")
    after = {(spec, device): models.load(spec, Placement(device)) for spec in specs for device in devices}
    assert {device for spec, device in before if after[spec, device] is before[spec, device]} == {"cuda:1"}
    assert len({id(model) for model in [*before.values(), *after.values()]}) == 4 + 2


@pytest.mark.parametrize("fields", [{"batch_size": 0}, {"batch_size": 4097}, {"batch_size": "8 images"}, {"pace": 1}])
def test_how_a_model_is_run_is_checked(fields):
    with pytest.raises(ValidationError):
        Inference(model="x", **fields)
    assert Inference(model="x", batch_size=4096).precision == "auto"


def test_models_that_only_a_processor_runs_stay_there():
    assert models.device_for(ModelSpec(model="builtin:dct"), "cuda:0") == "cpu"
    assert models.device_for(ModelSpec(model="test_vit"), "cuda:0") == "cuda:0"


def test_a_load_that_failed_is_tried_again(registry):
    outcomes = [InputError("not yet"), "model"]

    @models.register("flaky", **PLAIN)
    def flaky(spec, placement):
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    with pytest.raises(InputError, match="not yet"):
        models.load(ModelSpec(model="flaky"))
    assert models.load(ModelSpec(model="flaky")) == "model"


def test_a_file_that_changed_is_loaded_again(registry, weights):
    @models.register("file", **PLAIN)
    def build(spec, placement):
        return models.read_file(spec)

    spec = ModelSpec(model="file", path=str(weights))
    assert models.load(spec) == b"some weights"
    weights.write_bytes(b"other weights")
    assert models.load(spec) == b"other weights"


def test_a_file_on_another_filesystem_is_read(registry):
    import fsspec

    fsspec.filesystem("memory").pipe_file("/models/weights.pt", b"far weights")
    spec = ModelSpec(model="file", path="memory://models/weights.pt")
    assert models.read_file(spec) == b"far weights"
    assert models.file_digest(spec) == "sha256:" + hashlib.sha256(b"far weights").hexdigest()


def test_the_digest_is_that_of_the_file(weights):
    digest = hashlib.sha256(b"some weights").hexdigest()
    for model in ("torchscript", "sscd_disc_mixup", "test_vit"):
        assert models.weights_digest(ModelSpec(model=model, path=str(weights))) == f"sha256:{digest}"
    models.check(ModelSpec(model="sscd_disc_mixup", path=str(weights), sha256=digest), "recipe.copies")


ERRORS = [  # fields, the line
    (
        {"model": "vit_hug"},
        r"recipe.embed.model: unknown model 'vit_hug': did you mean 'vit_huge_patch14_224'\? List them",
    ),
    ({"model": "vit_huge_patch14_gap_224.in22k_ijep"}, "did you mean 'vit_huge_patch14_gap_224.in22k_ijepa'"),
    ({"model": "sscd_disc_mixp"}, "unknown model 'sscd_disc_mixp': did you mean 'sscd_disc_mixup'"),
    ({"model": "builtin:dtc"}, "unknown model 'builtin:dtc': did you mean 'builtin:dct'"),
    ({"model": "§"}, "unknown model '§': List them with 'lvd models'"),
    ({"model": "coatnet_0_224"}, "timm has no weights for 'coatnet_0_224': .* give path"),
    (
        {"model": "test_vit", "sha256": WRONG_DIGEST},
        "recipe.embed.sha256 is that of the file at path, and path was null",
    ),
    ({"model": "builtin:dct", "path": "x"}, "recipe.embed.path: builtin:dct takes no path, was 'x': leave it out"),
    (
        {"model": "builtin:dct", "input_px": 64},
        "recipe.embed.input_px: builtin:dct takes no input_px, was 64: leave it out",
    ),
    (
        {"model": "sscd_disc_mixup"},
        "recipe.embed.path: sscd_disc_mixup needs the path or URI of a TorchScript file, was null",
    ),
    (
        {"model": "sscd_disc_mixup", "path": "/no/such.pt"},
        "recipe.embed.path: no file at /no/such.pt: correct the path",
    ),
    (
        {"model": "sscd_disc_mixup", "path": "foo://a/b"},
        "recipe.embed.path: cannot read foo://a/b: Protocol not known: foo",
    ),
    ({"model": "test_vit", "path": "/no/such.safetensors"}, "recipe.embed.path: no file at /no/such.safetensors"),
    ({"model": "torchscript", "path": "WEIGHTS"}, r"recipe.embed.input_px must be in \[8, 4096\], was null"),
    (
        {"model": "sscd_disc_mixup", "path": "WEIGHTS", "sha256": WRONG_DIGEST},
        f"recipe.embed.sha256: .*weights.pt has [0-9a-f]+, not {WRONG_DIGEST}: fetch the file again or correct sha256",
    ),
]


@pytest.mark.parametrize(("fields", "line"), ERRORS)
def test_a_spec_that_cannot_be_loaded_is_one_line(fields, line, weights):
    fields = {name: str(weights) if value == "WEIGHTS" else value for name, value in fields.items()}
    with pytest.raises(InputError, match=line) as caught:
        models.check(ModelSpec(**fields), "recipe.embed")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError):
        models.load(ModelSpec(**fields))


def test_the_content_is_checked_again_when_it_is_loaded(weights):
    with pytest.raises(InputError, match=r"model sscd_disc_mixup.sha256: .* fetch the file again"):
        models.load(ModelSpec(model="sscd_disc_mixup", path=str(weights), sha256=WRONG_DIGEST))


def test_models_without_weights_need_neither_torch_nor_timm():
    code = """
import sys
from lvd.tasks import models
for name in ("builtin:dct", "builtin:color_texture"):
    spec = models.ModelSpec(model=name)
    models.check(spec, "recipe.embed")
    assert models.weights_digest(spec) == name + ":1"
assert len(models.available()) >= 6
try:
    models.check(models.ModelSpec(model="builtin:dtc"), "recipe.embed")
except models.InputError:
    pass
assert not {"torch", "timm", "scipy"} & set(sys.modules), "heavy imports"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_what_is_available_is_listed_by_name():
    rows = models.available()
    assert {"builtin:dct", "builtin:color_texture", "torchscript", "sscd_disc_mixup"} <= {row[0] for row in rows}
    assert ("sscd_disc_large", "torchscript", 1024) in {row[:3] for row in rows}
    found = models.available("IJEPA")
    assert "vit_huge_patch14_gap_224.in22k_ijepa" in {row[0] for row in found}
    assert all("ijepa" in row[0].lower() for row in found)


def test_thresholds_are_the_models_own():
    assert models.copy_thresholds(ModelSpec(model="sscd_disc_mixup")).model_dump() == {
        "min_similarity": 0.6,
        "benchmark_min_similarity": 0.45,
        "floor": 0.40,
    }
    own = models.copy_thresholds(ModelSpec(model="builtin:dct"))
    assert own.floor < own.benchmark_min_similarity < own.min_similarity
    assert models.copy_thresholds(ModelSpec(model="test_vit")) is None
