"""timm models against timm's own pipeline, with weights that the test saves; checkpoints that do not fit."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from lvd.infra.errors import InputError
from lvd.tasks import models
from lvd.tasks.models import ModelSpec

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
    assert model.min_short_edge_px == 2 * 169


def test_a_tensor_and_an_array_give_the_same(tmp_path):
    saved("test_vit", tmp_path / "weights.safetensors")
    model = models.load(ModelSpec(model="test_vit", path=str(tmp_path / "weights.safetensors")))
    inputs = [model.preprocess(image) for image in pictures(2)]
    np.testing.assert_array_equal(
        model.embed(torch.stack(inputs)), model.embed(np.stack([np.asarray(i) for i in inputs]))
    )


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
    batch = np.random.default_rng(0).random((2, 3, 160, 160), dtype=np.float32)
    np.testing.assert_array_equal(one.embed(batch), other.embed(batch))


@pytest.mark.parametrize("architecture", ["test_vit", "test_convnext"])
def test_the_input_may_be_another(architecture, tmp_path):
    options = {"img_size": 96} if architecture == "test_vit" else {}
    saved(architecture, tmp_path / "weights.safetensors", **options)
    fields = {"model": architecture, "path": str(tmp_path / "weights.safetensors"), "input_px": 96}
    image = Image.new("RGB", (300, 100), "black")
    image.paste("white", (100, 0, 200, 100))
    middle = models.load(ModelSpec(**fields, resize="short_edge", mean=(0, 0, 0), std=(1, 1, 1))).preprocess(image)
    whole = models.load(ModelSpec(**fields, resize="square", mean=(0, 0, 0), std=(1, 1, 1))).preprocess(image)
    assert tuple(middle.shape) == tuple(whole.shape) == (3, 96, 96)
    assert float(middle.mean()) > 0.98
    assert abs(float(whole.mean()) - 1 / 3) < 0.02


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
    "no tensors": "is no state dict: give tensors by name",
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_checkpoint_that_does_not_fit_is_one_line(case, tmp_path, capsys):
    spec = ModelSpec(model="test_vit", path=damaged(case, tmp_path))
    with pytest.raises(InputError, match=DAMAGE[case]) as caught:
        models.load(spec)
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
