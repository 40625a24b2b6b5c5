"""What the report learns of the embedding model's patches: computed once for a version, and no reason to fail."""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lvd.flows import patches
from lvd.flows.group import Call, Outcome
from lvd.flows.recipe import parse
from lvd.flows.run import Run
from lvd.infra.committing import commit
from lvd.infra.errors import InputError
from lvd.infra.shards import StageDir
from lvd.infra.writing import write_shard
from lvd.tasks import schemas
from lvd.tasks.patches import write_patches

timm = pytest.importorskip("timm")
save_file = pytest.importorskip("safetensors.torch").save_file
PUBLISHED = 12


class Plain(Run):
    """A run in this process, without Prefect; `calls` is what it computed."""

    def __init__(self, root: str, **embed: str) -> None:
        pool = [{"kind": "images", "path": "/data"}]
        super().__init__(parse({"name": "x", "root": root, "pool": pool, "curated": [], "embed": embed}), looking=True)
        self.calls = 0

    def needs(self, target: StageDir, shards: int = 1) -> bool:
        return not target.is_complete()

    def outcomes(self, stage: str, calls: Iterable[Call], number: int, device: str = "cpu") -> Iterator[Outcome]:
        for one in calls:
            self.calls += 1
            try:
                value, error = write_patches.fn(*one.arguments, **one.options), None
            except InputError as failure:
                value, error = None, failure
            yield Outcome(value=value, error=error, call=one)


@pytest.fixture
def published(local_root: str) -> StageDir:
    target = StageDir(root=local_root, stage="curated", fingerprint="v1")
    with write_shard(target.planned(1)[0], schemas.CURATED, {}) as shard:
        for number in range(PUBLISHED):
            file = io.BytesIO()
            pixels = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((240, 180)).save(file, "PNG")
            row = {"image_id": f"id-{number}", "key": f"key-{number}", "image": {"bytes": file.getvalue(), "path": "x"}}
            shard.keep({**dict.fromkeys(schemas.CURATED.names), **row})
    commit(target, 1, config={}, inputs={})
    return target


@pytest.fixture
def weights(tmp_path: Path) -> str:
    save_file(timm.create_model("test_vit", pretrained=False).state_dict(), tmp_path / "vit.safetensors")
    return str(tmp_path / "vit.safetensors")


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_few_published_images_are_shown_and_computed_once(published: StageDir, weights: str) -> None:
    run = Plain(published.root, model="test_vit", path=weights)
    found = patches.seen(run, published, rng())
    assert found.model == "test_vit" and found.missing == ""
    assert len(found.pictures) == len({one.image_id for one in found.pictures}) == patches.IMAGES
    assert all(one.seen.startswith("data:image/webp;") and one.grid == "10 × 10" for one in found.pictures)
    assert all(one.colours.startswith("data:image/png;") for one in found.pictures)
    again = Plain(published.root, model="test_vit", path=weights)
    assert patches.seen(again, published, rng()) == found
    assert (run.calls, again.calls) == (1, 0)


def test_a_model_that_cannot_be_had_is_told_of(published: StageDir) -> None:
    run = Plain(published.root, model="test_vit", path=f"{published.root}/gone.safetensors")
    found = patches.seen(run, published, rng())
    assert found.pictures == () and "no file at" in found.missing


@pytest.mark.parametrize("model", ["builtin:color_texture", "resnet18"])
def test_a_model_without_patches_is_not_even_loaded(published: StageDir, model: str) -> None:
    run = Plain(published.root, model=model)
    assert patches.seen(run, published, rng()) is None and run.calls == 0


def test_of_an_empty_version_there_is_nothing_to_show(local_root: str) -> None:
    target = StageDir(root=local_root, stage="curated", fingerprint="v1")
    with write_shard(target.planned(1)[0], schemas.CURATED, {}):
        pass
    commit(target, 1, config={}, inputs={})
    assert patches.seen(Plain(local_root, model="vit_huge_patch14_gap_224.in22k_ijepa"), target, rng()) is None
