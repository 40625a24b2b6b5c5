"""Unit rows of a torch module: where memory runs out, at every precision, compiled, and on a GPU where there is one."""

import io
import logging
import shutil
import sysconfig
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lvd.tasks import models
from lvd.tasks.models import ModelSpec, Placement

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
save_file = pytest.importorskip("safetensors.torch").save_file

from lvd.tasks.models.features import Features  # noqa: E402 - it needs torch

EDGE_PX = 64
HALF = ["bfloat16", "float16"]
ARCHITECTURES = ["test_vit", "test_convnext", "test_efficientnet"]
MIN_COSINE = 0.999  # of reduced precision to float32, and of a GPU to the processor
IDENTITY = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}  # the module sees the 8-bit values
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: the path of a GPU is not run")
has_compiler = bool(shutil.which("g++") and Path(sysconfig.get_paths()["include"], "Python.h").is_file())


def noise(count: int, *, edge: int = EDGE_PX, seed: int = 0) -> np.ndarray:
    """(count, 3, edge, edge) uint8 of coarse colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
    return coarse.repeat(edge // 8, axis=2).repeat(edge // 8, axis=3)


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.einsum("nd,nd->n", one.astype(np.float64), other.astype(np.float64))


@pytest.fixture(scope="module", params=[*ARCHITECTURES, "torchscript"])
def spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """A model with random weights that tell the pictures of `noise` apart: timm's, and one traced by TorchScript."""
    is_scripted, folder = request.param == "torchscript", tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        options = {"img_size": EDGE_PX} if request.param == "test_vit" else {}
        network = timm.create_model("test_convnext" if is_scripted else request.param, pretrained=False, **options)
    if not is_scripted:
        save_file(network.state_dict(), folder / "weights.safetensors")
        return ModelSpec(model=request.param, path=str(folder / "weights.safetensors"), input_px=EDGE_PX)
    network.reset_classifier(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
        file = io.BytesIO()
        torch.jit.save(torch.jit.trace(network.eval(), torch.zeros(2, 3, EDGE_PX, EDGE_PX)), file)
    (folder / "weights.pt").write_bytes(file.getvalue())
    return ModelSpec(model="torchscript", path=str(folder / "weights.pt"), input_px=EDGE_PX)


# Rows -----------------------------------------------------------------------------------------------------------------


class Flat(torch.nn.Module):
    """The pixels of the first channel."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels[:, 0].flatten(1)


def test_rows_have_length_1_and_one_that_is_zero_or_not_finite_is_nan() -> None:
    class Odd(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            rows = pixels[:, 0, 0].clone()
            rows[rows == 7] = torch.nan
            rows[rows == 8] = torch.inf
            return rows

    features = Features(Odd(), Placement(), **IDENTITY)
    batch = np.zeros((5, 3, 1, 2), dtype=np.uint8)
    batch[:, :, 0] = np.array([(3, 4), (7, 1), (0, 0), (8, 1), (0, 200)])[:, None]
    batch.setflags(write=False)  # of which torch would warn
    vectors = features.embed(batch)
    np.testing.assert_allclose(vectors[[0, 4]], [[0.6, 0.8], [0, 1]], atol=1e-7)
    assert np.isnan(vectors[1:4]).any(axis=1).all()
    assert (vectors.dtype, features.halved) == (np.float32, 0)


def test_pixels_are_normalised_by_channel_as_they_always_were() -> None:
    class Seen(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            self.seen = pixels
            return pixels.flatten(1)

    module, mean, std = Seen(), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    Features(module, Placement(), mean=mean, std=std).embed(batch := noise(3))
    expected = (torch.from_numpy(batch) / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(module.seen, expected, rtol=0, atol=2e-6)
    assert module.seen.is_contiguous()


@pytest.mark.parametrize("result", [(1, 2), {"features": 1}, None])
def test_a_module_that_gives_no_tensor_is_refused(result) -> None:
    class Other(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> object:
            return result

    with pytest.raises(TypeError, match="not one tensor"):
        Features(Other(), Placement(), **IDENTITY).embed(noise(2))


# Memory that runs out -------------------------------------------------------------------------------------------------


class Narrow(Flat):
    """Memory for so many images at once."""

    def __init__(self, fits: int, error: Exception | None = None) -> None:
        super().__init__()
        self.fits, self.error = fits, error or torch.OutOfMemoryError("CUDA out of memory")
        self.sizes: list[int] = []

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(pixels))
        if len(pixels) > self.fits:
            raise self.error
        return super().forward(pixels)


def test_memory_runs_out_in_torchscript_in_other_words() -> None:
    said = "The following operation failed in the TorchScript interpreter.\nRuntimeError: CUDA out of memory. Tried …"
    narrow = Narrow(4, RuntimeError(said))
    model = Features(narrow, Placement(), **IDENTITY)
    np.testing.assert_array_equal(model.embed(noise(8)), Features(Flat(), Placement(), **IDENTITY).embed(noise(8)))
    assert (narrow.sizes, model.halved) == ([8, 4, 4], 1)
    with pytest.raises(RuntimeError, match="no such operator"):
        Features(Narrow(4, RuntimeError("no such operator")), Placement(), **IDENTITY).embed(noise(8))


HALVES = [  # images, memory, sizes that are tried at first, in the second batch, how often in halves
    (8, 8, [8], [8], 0),
    (8, 7, [8, 4, 4], [4, 4], 1),
    (16, 5, [16, 8, 4, 4, 4, 4], [4, 4, 4, 4], 2),
    (7, 3, [7, 4, 2, 2, 2, 1], [2, 2, 2, 1], 2),
    (4, 1, [4, 2, 1, 1, 1, 1], [1, 1, 1, 1], 2),
]


@pytest.mark.parametrize(("count", "fits", "first", "second", "halved"), HALVES)
def test_where_memory_runs_out_a_batch_goes_in_halves_from_then_on(
    count, fits, first, second, halved, caplog: pytest.LogCaptureFixture, monkeypatch
) -> None:
    monkeypatch.setattr(logging.getLogger("lvd"), "propagate", True)
    batch, module = noise(count), Narrow(fits)
    features = Features(module, Placement(), **IDENTITY)
    with caplog.at_level(logging.WARNING, logger="lvd"):
        vectors = features.embed(batch)
        assert module.sizes == first
        module.sizes.clear()
        again = features.embed(batch)
    assert (module.sizes, features.halved) == (second, halved)
    np.testing.assert_array_equal(vectors, Features(Flat(), Placement(), **IDENTITY).embed(batch))
    np.testing.assert_array_equal(again, vectors)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * halved
    assert all("cpu: no memory for" in record.getMessage() for record in caplog.records)


def test_one_image_that_does_not_fit_is_an_error_and_a_smaller_one_is_not() -> None:
    features = Features(Narrow(0), Placement(), **IDENTITY)
    with pytest.raises(torch.OutOfMemoryError):
        features.embed(noise(4))
    with pytest.raises(torch.OutOfMemoryError):
        features.embed(noise(1))


def test_another_error_is_not_taken_for_it() -> None:
    class Broken(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("a kernel failed")

    features = Features(Broken(), Placement(), **IDENTITY)
    with pytest.raises(RuntimeError, match="a kernel failed"):
        features.embed(noise(4))
    assert features.halved == 0


# Precision ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", HALF)
def test_reduced_precision_stays_within_cosine_0_999_of_float32(spec, precision) -> None:
    batch = noise(12)
    exact, reduced = (models.load(spec, Placement(precision=name)).embed(batch) for name in ("float32", precision))
    assert reduced.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(reduced, axis=1), 1, atol=1e-6)
    assert cosines(exact, reduced).min() > MIN_COSINE
    assert not np.array_equal(exact, reduced)  # or nothing was reduced
    others = (exact @ exact.T)[~np.eye(12, dtype=bool)]
    assert others.max() < MIN_COSINE  # or the bound says nothing


@pytest.mark.parametrize("precision", ["float32", *HALF])
def test_a_row_is_the_same_bytes_whatever_it_is_computed_with(spec, precision) -> None:
    check_batches(models.load(spec, Placement(precision=precision)))


def check_batches(model: models.ImageModel, batch_size: int = 4) -> None:
    """In any order, in any company and next to padding, in batches of one size."""
    inputs, rng, first = noise(10), np.random.default_rng(0), None
    for _ in range(3):
        order, vectors = rng.permutation(10), np.zeros((10, model.dim), dtype=np.float32)
        for start in range(0, 10, batch_size):
            rows = order[start : start + batch_size]
            batch = model.buffer((batch_size, *inputs.shape[1:]))
            batch[: len(rows)] = inputs[rows]
            vectors[rows] = model.embed(batch)[: len(rows)]
        first = vectors if first is None else first
        np.testing.assert_array_equal(vectors, first)


def test_pixels_that_lie_channels_last_give_the_same_bytes(spec) -> None:
    batch, model = noise(4), models.load(spec)
    last = np.ascontiguousarray(batch.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert last.strides != batch.strides
    np.testing.assert_array_equal(model.embed(last), model.embed(batch))


def test_a_module_that_computes_channels_last_gives_almost_the_same(spec, monkeypatch) -> None:
    # The layout of a GPU, on the processor: within its last bits.
    batch, model = noise(4), models.load(spec)
    module = model._module.to(memory_format=torch.channels_last)
    try:
        with torch.inference_mode():
            values = (torch.from_numpy(batch).float() - model._mean) / model._std
            last = torch.nn.functional.normalize(module(values.to(memory_format=torch.channels_last))).numpy()
    finally:
        module.to(memory_format=torch.contiguous_format)
    np.testing.assert_allclose(last, model.embed(batch), atol=1e-5)


@pytest.mark.skipif(not has_compiler, reason="torch.compile needs g++ and the headers of Python: not run")
def test_a_compiled_module_gives_almost_the_same(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    monkeypatch.setenv("TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS", "0")  # of no use for one kernel
    module = torch.nn.Sequential(torch.nn.GELU(), torch.nn.Flatten())
    batch, mean_std = noise(4), {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
    plain = Features(module, Placement(), **mean_std).embed(batch)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)  # of torch's own use
        compiled = Features(module, Placement(compiled=True), **mean_std)
        found = compiled.embed(batch)
    np.testing.assert_allclose(found, plain, atol=1e-5)
    assert any(tmp_path.rglob("*.cpp")), "nothing was compiled"


# A GPU ----------------------------------------------------------------------------------------------------------------


@on_gpu
@pytest.mark.parametrize("precision", ["float32", *HALF])
def test_a_gpu_gives_what_the_processor_gives(spec, precision) -> None:
    batch = noise(12)
    exact = models.load(spec).embed(batch)
    on_device = models.load(spec, Placement(device="cuda:0", precision=precision))
    assert cosines(exact, on_device.embed(batch)).min() > MIN_COSINE
    check_batches(on_device)


@on_gpu
def test_batches_under_way_on_a_gpu_give_their_own_rows(spec) -> None:
    model = models.load(spec, Placement(device="cuda:0"))
    inputs = [noise(16, seed=seed) for seed in range(6)]
    alone = [model.embed(batch) for batch in inputs]
    buffers = [model.buffer(inputs[0].shape) for _ in range(3)]
    assert all(torch.from_numpy(buffer).is_pinned() and not buffer.any() for buffer in buffers)
    under_way: list[Callable[[], tuple[np.ndarray, float]]] = []
    found = []
    for number, batch in enumerate(inputs):
        buffers[number % 3][...] = batch  # the batch that was in it has landed
        under_way.append(model.start(buffers[number % 3]))
        if len(under_way) > 2:
            found.append(under_way.pop(0)())
    found += [fetch() for fetch in under_way]
    for (rows, seconds), expected in zip(found, alone, strict=True):
        np.testing.assert_array_equal(rows, expected)
        assert seconds > 0


@on_gpu
def test_where_the_memory_of_a_gpu_runs_out_a_batch_goes_in_halves() -> None:
    batch, module = noise(8), Narrow(3)
    features = Features(module, Placement(device="cuda:0"), **IDENTITY)
    np.testing.assert_allclose(features.embed(batch), Features(Flat(), Placement(), **IDENTITY).embed(batch), atol=1e-6)
    assert (features.halved, module.sizes) == (2, [8, 4, 2, 2, 2, 2])
