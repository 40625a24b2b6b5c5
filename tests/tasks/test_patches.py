"""What a vision transformer sees, with weights that the test saves; models that have no patches."""

import io

import numpy as np
import pytest
from PIL import Image

from lvd.infra.committing import commit
from lvd.infra.series import Series
from lvd.infra.shards import StageDir, read_batches, read_table
from lvd.infra.writing import write_shard
from lvd.tasks import models, patches, schemas
from lvd.tasks.models import Inference, ModelSpec, timm_models

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
save_file = pytest.importorskip("safetensors.torch").save_file


def weights(architecture: str, folder) -> tuple[torch.nn.Module, str]:
    """A model with random weights, and the file that holds them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(architecture, pretrained=False).eval()
    path = str(folder / f"{architecture}.safetensors")
    save_file(model.state_dict(), path)
    return model, path


def encoded(number: int) -> bytes:
    """A bright square on dark noise."""
    pixels = np.random.default_rng(number).integers(0, 40, (200, 220, 3), dtype=np.uint8)
    pixels[60:140, 60:150] = (250, 120 + 20 * number, 40)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def dataset(tmp_path) -> StageDir:
    """Six published images in two shards; number 4 cannot be decoded."""
    target = StageDir(root=str(tmp_path / "root"), stage="curated", fingerprint="v1")
    for ref, numbers in zip(target.planned(2), ((0, 1, 2), (3, 4, 5)), strict=True):
        with write_shard(ref, schemas.CURATED, {}) as shard:
            for number in numbers:
                data = b"broken" if number == 4 else encoded(number)
                row = {"image_id": f"id-{number}", "key": f"key-{number}", "image": {"bytes": data, "path": "x"}}
                shard.keep({**dict.fromkeys(schemas.CURATED.names), **row})
    commit(target, 2, config={}, inputs={})
    return target


def written(dataset: StageDir, rows: list[int], spec: dict) -> StageDir:
    target = StageDir(root=dataset.root, stage="patches", fingerprint="p")
    inference = Inference(**spec, batch_size=4, precision="float32")
    patches.write_patches.fn(Series.of([dataset]), rows, inference, target.planned(1)[0], device="cpu")
    commit(target, 1, config={}, inputs={})
    return target


@pytest.mark.parametrize("architecture", ["test_vit", "test_vit2", "test_vit3"])
def test_patch_features_are_timm_s_without_class_and_register_tokens(architecture: str, tmp_path) -> None:
    module, path = weights(architecture, tmp_path)
    model = models.load(ModelSpec(model=architecture, path=path))
    image = Image.open(io.BytesIO(encoded(0))).convert("RGB")
    batch = np.stack([model.preprocess(image)])
    found = model.patch_features(batch)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(module), is_training=False)
    with torch.inference_mode():
        tokens = module.forward_features(transform(image)[None])
    expected = tokens[:, module.num_prefix_tokens :].numpy()
    assert found.shape[1:3] == module.patch_embed.grid_size
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-4)


def test_a_convolutional_model_has_no_patches(tmp_path) -> None:
    _, path = weights("test_convnext", tmp_path)
    model = models.load(ModelSpec(model="test_convnext", path=path))
    assert model.patch_features(np.zeros((1, *model.input_shape), dtype=np.uint8)) is None


@pytest.mark.parametrize(
    ("name", "may"),
    [
        ("vit_huge_patch14_gap_224.in22k_ijepa", True),
        ("test_vit", True),
        ("eva02_tiny_patch14_224", True),
        ("hf_hub:some/vit", True),  # nobody knows before it is loaded
        ("resnet18", False),
        ("builtin:color_texture", False),
        ("sscd_disc_mixup", False),
    ],
)
def test_which_models_may_look_at_patches(name: str, may: bool) -> None:
    assert timm_models.may_look_at_patches(ModelSpec(model=name)) == may


def test_pictures_and_colours_are_written_in_the_order_of_the_rows(dataset: StageDir, tmp_path) -> None:
    _, path = weights("test_vit", tmp_path)
    target = written(dataset, [1, 4, 5], {"model": "test_vit", "path": path})
    found = read_table(target.shards()[0]).to_pylist()
    assert [row["image_id"] for row in found] == ["id-1", "id-5"]
    (gone,) = next(read_batches(target.planned(1)[0], ["image_id", "reason"], kind="rejects")).to_pylist()
    assert gone == {"image_id": "id-4", "reason": "not_an_image"}
    for row in found:
        assert len(row["seen"]) == row["height"] * row["width"] * 3
        assert len(row["colours"]) == row["patch_rows"] * row["patch_columns"] * 3
        assert any(row["colours"])
    picture = patches.picture(found[0]["seen"], found[0]["height"], found[0]["width"])
    assert picture.size == (160, 160) and picture.getpixel((80, 80))[0] > 200
    assert patches.png_url(picture).startswith("data:image/png;base64,")


def test_of_a_model_without_patches_no_row_is_written(dataset: StageDir) -> None:
    target = written(dataset, [0, 1], {"model": "builtin:color_texture"})
    assert target.account()["rows"] == 0
