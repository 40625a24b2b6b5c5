"""timm models against timm's own pipeline, with weights that the test saves; checkpoints that do not fit."""

import io
import pickle
import warnings

import numpy as np
import pytest
from PIL import Image

from lvd.infra.errors import InputError
from lvd.infra.shards import StageDir
from lvd.tasks import models
from lvd.tasks.decode import decode_rgb
from lvd.tasks.models import Inference, ModelSpec, engine
from lvd.tests import copying
from lvd.tests.drawing import CLASSES, draw
from lvd.tests.tasks import planted

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
save_file = pytest.importorskip("safetensors.torch").save_file


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    coarse = [Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)) for _ in range(count)]
    return [image.resize((260, 200), Image.Resampling.BICUBIC) for image in coarse]


def saved(architecture: str, path, *, seed: int = 0, **options) -> torch.nn.Module:
    """A model with random weights, its state dict at `path`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = timm.create_model(architecture, pretrained=False, **options).eval()
    save_file(model.state_dict(), path)
    return model


def reference(model: torch.nn.Module, images: list[Image.Image]) -> np.ndarray:
    """Unit features as timm's documentation computes them."""
    model.reset_classifier(0)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    with torch.inference_mode():
        features = model(torch.stack([transform(image) for image in images]))
    return torch.nn.functional.normalize(features).numpy()


@pytest.mark.parametrize("architecture", ["test_vit", "test_convnext", "test_efficientnet"])
def test_the_vectors_are_those_of_timm(architecture, tmp_path):
    path, images = tmp_path / "weights.safetensors", pictures(4)
    expected = reference(saved(architecture, path), images)
    model = models.load(ModelSpec(model=architecture, path=str(path)))
    vectors = model.embed(np.stack([np.asarray(model.preprocess(image)) for image in images]))
    np.testing.assert_allclose(vectors, expected, atol=2e-6)
    assert (vectors.shape, vectors.dtype) == ((4, model.dim), np.float32)
    assert model.min_short_edge_px == 4 * 169


def test_a_batch_that_cannot_be_written_to_and_one_begun_ahead_give_the_same(tmp_path):
    saved("test_vit", tmp_path / "weights.safetensors")
    model = models.load(ModelSpec(model="test_vit", path=str(tmp_path / "weights.safetensors")))
    inputs = np.stack([model.preprocess(image) for image in pictures(2)])
    assert inputs.dtype == np.uint8 and inputs.shape == (2, *model.input_shape)
    buffer = model.buffer(inputs.shape)
    assert not buffer.any() and buffer.dtype == np.uint8
    buffer[...] = inputs
    rows, seconds = model.start(buffer)()
    inputs.setflags(write=False)  # of which torch would warn
    np.testing.assert_array_equal(model.embed(inputs), rows)
    assert seconds > 0


def test_a_vector_depends_neither_on_its_place_nor_on_the_other_rows(tmp_path):
    saved("test_vit", tmp_path / "weights.safetensors")
    model = models.load(ModelSpec(model="test_vit", path=str(tmp_path / "weights.safetensors")))
    inputs, rng = np.stack([np.asarray(model.preprocess(image)) for image in pictures(12)]), np.random.default_rng(0)
    first = np.concatenate([model.embed(inputs[:6]), model.embed(inputs[6:])])
    for _ in range(3):
        order = rng.permutation(12)
        vectors = np.concatenate([model.embed(inputs[order[:6]]), model.embed(inputs[order[6:]])])
        np.testing.assert_array_equal(vectors, first[order])


def test_a_state_dict_saved_by_torch_is_read(tmp_path):
    original = saved("test_vit", tmp_path / "weights.safetensors")
    torch.save({"state_dict": original.state_dict()}, tmp_path / "weights.pth")
    one, other = (
        models.load(ModelSpec(model="test_vit", path=str(tmp_path / f"weights.{end}")))
        for end in ("safetensors", "pth")
    )
    batch = np.random.default_rng(0).integers(0, 256, (2, 3, 160, 160), dtype=np.uint8)
    np.testing.assert_array_equal(one.embed(batch), other.embed(batch))


@pytest.mark.parametrize("architecture", ["test_vit", "test_convnext"])
def test_the_input_may_be_another(architecture, tmp_path):
    options = {"img_size": 96} if architecture == "test_vit" else {}
    saved(architecture, tmp_path / "weights.safetensors", **options)
    fields = {"model": architecture, "path": str(tmp_path / "weights.safetensors"), "input_px": 96}
    image = Image.new("RGB", (300, 100), "black")
    image.paste("white", (100, 0, 200, 100))
    middle = models.load(ModelSpec(**fields, resize="short_edge")).preprocess(image)
    whole = models.load(ModelSpec(**fields, resize="square")).preprocess(image)
    assert tuple(middle.shape) == tuple(whole.shape) == (3, 96, 96)
    assert float(middle.mean()) > 0.98 * 255
    assert abs(float(whole.mean()) / 255 - 1 / 3) < 0.02


def through_the_engine(spec: ModelSpec, files: list[bytes], root: str) -> np.ndarray:
    """(n, dim) unit vectors of encoded images, as a run stores them: two shards, batches of 8."""
    inference = Inference(**spec.model_dump(), batch_size=8, precision="float32")
    layout = ((len(files) // 3, len(files) - len(files) // 3),)
    images = planted.images(root, [planted.image(data) for data in files], layout)
    targets = StageDir(root=root, stage="embed", fingerprint="a").planned(2)
    jobs = [engine.Job(images=i, fates=None, target=t) for i, t in zip(images, targets, strict=True)]
    done = engine.vectors_of_shards(jobs, inference, device="cpu", decoders=2)
    return np.concatenate([engine.read_vectors(ref) for ref in done]).astype(np.float64)


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.einsum("nd,nd->n", one, other) / norms


def reduced(files: list[bytes], spec: ModelSpec) -> np.ndarray:
    """Which of the files are decoded at a reduced scale."""
    edge = models.load(spec).min_short_edge_px
    sizes = [(decode_rgb(data).size, decode_rgb(data, min_short_edge_px=edge).size) for data in files]
    return np.array([whole != scaled for whole, scaled in sizes])


@pytest.mark.parametrize("architecture", ["test_vit", "test_convnext", "test_efficientnet"])
def test_large_pictures_through_the_engine_are_within_cosine_0_999_of_timm(architecture, tmp_path):
    """The stated tolerance of reduced decoding for pictures: 0.999; measured: 0.99993 at worst."""
    network = saved(architecture, tmp_path / "weights.safetensors")
    spec = ModelSpec(model=architecture, path=str(tmp_path / "weights.safetensors"))
    names = [name for name in CLASSES for _ in range(2)][::3]
    sizes = [(2000, 1500), (1400, 2400), (1360, 1360), (300, 240)]  # the last one is decoded whole
    drawn = [draw(name, np.random.default_rng(n), sizes[n % 4]) for n, name in enumerate(names)]
    files = [copying.jpeg(image, 90)[1] for image in drawn]
    expected = reference(network, [decode_rgb(data) for data in files])
    found = cosines(through_the_engine(spec, files, str(tmp_path / "root")), expected)
    is_reduced = reduced(files, spec)
    assert is_reduced.tolist() == [n % 4 != 3 for n in range(len(files))]
    assert found.min() > 0.999 and found[~is_reduced].min() > 0.99999


@pytest.mark.parametrize("architecture", ["test_convnext", "test_efficientnet"])
def test_photographs_at_their_tightest_scale_through_the_engine_are_within_cosine_0_998_of_timm(
    architecture, tmp_path, shared
):
    """The stated tolerance of reduced decoding for photographs at 48 px: 0.998, and 0.999 for most."""
    network = saved(architecture, tmp_path / "weights.safetensors")
    network.pretrained_cfg = {**network.pretrained_cfg, "input_size": (3, 48, 48)}
    spec = ModelSpec(model=architecture, path=str(tmp_path / "weights.safetensors"), input_px=48)
    files = [path.read_bytes() for path in sorted((shared / "data" / "photos").iterdir())[::3]]
    expected = reference(network, [decode_rgb(data) for data in files])
    found = cosines(through_the_engine(spec, files, str(tmp_path / "root")), expected)
    assert reduced(files, spec).sum() >= 5
    assert found.min() > 0.998 and np.median(found) > 0.999
    others = cosines(expected, np.roll(expected, 1, axis=0))
    assert others.max() < 0.95  # or the bounds say nothing


@pytest.mark.parametrize("architecture", ["test_vit", "test_convnext"])
def test_mean_and_deviation_are_those_of_the_spec(architecture, tmp_path):
    path, images = tmp_path / "weights.safetensors", pictures(3)
    network = saved(architecture, path)
    network.pretrained_cfg = {**network.pretrained_cfg, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    spec = ModelSpec(model=architecture, path=str(path))
    other = models.load(spec.model_copy(update={"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}))
    inputs = np.stack([other.preprocess(image) for image in images])
    expected = reference(network, images)
    np.testing.assert_allclose(other.embed(inputs), expected, atol=2e-6)
    assert np.abs(models.load(spec).embed(inputs) - expected).max() > 1e-3


class Planted:
    """A pickle that would run code."""

    def __reduce__(self):
        return print, ("this must not run",)


def damaged(case: str, path) -> str:
    """The path of a checkpoint that test_vit cannot take."""
    state = timm.create_model("test_vit", pretrained=False).state_dict()
    if case == "missing":
        del state["blocks.0.attn.qkv.weight"]
    elif case == "unknown":
        state["extra.weight"] = torch.zeros(2)
    elif case == "shape":
        state["patch_embed.proj.weight"] = torch.zeros(64, 3, 8, 8)
    elif case == "other model":
        state = timm.create_model("test_convnext", pretrained=False).state_dict()
    save_file(state, path / "weights.safetensors")
    data = (path / "weights.safetensors").read_bytes()
    if case == "cut":
        (path / "weights.safetensors").write_bytes(data[:1000])
    if case == "code":
        (path / "weights.pth").write_bytes(pickle.dumps(Planted(), protocol=2))
        return str(path / "weights.pth")
    if case == "code among tensors":
        torch.save({**state, "head.bias": Planted()}, path / "weights.pth")
        return str(path / "weights.pth")
    if case == "a program":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
            torch.jit.save(torch.jit.trace(torch.nn.Flatten(), torch.zeros(1, 3, 4, 4)), path / "weights.pth")
        return str(path / "weights.pth")
    if case == "no tensors":
        file = io.BytesIO()
        torch.save({"epoch": 3}, file)
        (path / "weights.pth").write_bytes(file.getvalue())
        return str(path / "weights.pth")
    return str(path / "weights.safetensors")


DAMAGE = {
    "missing": r"does not fit: 1 tensors missing, 0 unknown, 0 of another shape \(such as blocks.0.attn.qkv.weight\)",
    "unknown": r"0 tensors missing, 1 unknown, 0 of another shape \(such as extra.weight\)",
    "shape": r"0 tensors missing, 0 unknown, 1 of another shape \(such as patch_embed.proj.weight\)",
    "other model": "tensors missing, .* name the model it came from",
    "cut": "is no state dict: .* give a .safetensors file",
    "code": "is no state dict: ",
    "code among tensors": "is no state dict: ",
    "a program": "is no state dict: .*TorchScript",  # those are loaded under the name of a TorchScript model only
    "no tensors": "is no state dict: give tensors by name",
}


@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file that looks like a TorchScript archive")
@pytest.mark.parametrize("case", DAMAGE)
def test_a_checkpoint_that_does_not_fit_is_one_line(case, tmp_path, capsys):
    spec = ModelSpec(model="test_vit", path=damaged(case, tmp_path))
    with pytest.raises(InputError, match=DAMAGE[case]) as caught:
        models.load(spec)
    assert "\n" not in str(caught.value)
    assert "must not run" not in capsys.readouterr().out


def test_a_folder_whose_weights_hold_code_is_one_line(tmp_path, capsys):
    model = timm.create_model("test_vit", pretrained=False)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=False)
    torch.save({**model.state_dict(), "head.bias": Planted()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"cannot be made: weights_only=True blocked loading this") as caught:
        models.load(ModelSpec(model=f"local-dir:{tmp_path}"))
    assert "\n" not in str(caught.value)
    assert "must not run" not in capsys.readouterr().out


def test_a_hub_out_of_reach_is_one_line(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        InputError, match=r"model test_vit: cannot be made: .* check the connection to the hub"
    ) as caught:
        models.load(ModelSpec(model="test_vit"))
    assert "\n" not in str(caught.value)


def test_the_digest_of_a_name_is_its_tag_and_hub_id():
    expected = "timm:test_vit.r160_in1k:timm/test_vit.r160_in1k"
    assert models.weights_digest(ModelSpec(model="test_vit")) == expected
    assert models.weights_digest(ModelSpec(model="test_vit.r160_in1k")) == expected
    with pytest.raises(InputError, match=r"unknown model 'test_vit.r161_in1k': did you mean 'test_vit.r160_in1k'"):
        models.weights_digest(ModelSpec(model="test_vit.r161_in1k"))
