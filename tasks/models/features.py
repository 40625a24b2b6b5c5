"""The unit rows that a torch module gives: on any device, at a precision, without waiting for the device.

Pixels travel as 8-bit values and are normalised where the module is: a quarter of the bytes, and none of the
processor's time. What comes out of an image does not depend on the other images of its batch, as long as batches have
one size.
"""

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from lvd.tasks.models import Channels, Placement

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("lvd")


class Features:
    """A module on its device, with the normalisation of its input. May be used by several threads at once.

    halved: how often a batch did not fit into the device's memory, and went in two halves from then on.
    """

    def __init__(
        self, module: Any, placement: Placement, *, mean: Channels, std: Channels, keeps_types: bool = False
    ) -> None:
        """keeps_types: the module's own tensors stay float32 and its operations are cast (TorchScript)."""
        import torch

        self.placement, self.halved = placement, 0
        self._dtype, self._is_cast = getattr(torch, placement.precision), keeps_types
        module = module.to(placement.device).eval()
        if self.is_asynchronous:
            module = module.to(memory_format=torch.channels_last)
        self._module = module if keeps_types else module.to(self._dtype)
        if placement.compiled:
            self._module = torch.compile(self._module)
        place = {"dtype": torch.float32, "device": placement.device}
        self._mean, self._std = (255 * torch.tensor(v, **place)[:, None, None] for v in (mean, std))
        self._most: int | None = None  # rows that fit into memory at once, once that is known

    @property
    def is_asynchronous(self) -> bool:
        return self.placement.device.startswith("cuda")

    def buffer(self, shape: tuple[int, ...]) -> np.ndarray:
        """Zeroed uint8 memory for one batch, pinned where the device can then fetch it by itself."""
        import torch

        return torch.zeros(shape, dtype=torch.uint8, pin_memory=self.is_asynchronous).numpy()

    def start(self, batch: np.ndarray) -> Callable[[], tuple[np.ndarray, float]]:
        """Begins a batch of (b, 3, h, w) uint8, which must stay as it is until the result is fetched.

        Returns what gives (b, dim) float32 unit rows, NaN where a row is zero or not finite, and the seconds that the
        device was busy. Raises TypeError if the module gives anything but one tensor.
        """
        import torch

        if not self.is_asynchronous:
            began = time.perf_counter()
            rows = self._unit_rows(torch.from_numpy(np.require(batch, requirements="W"))).numpy()
            result = rows, time.perf_counter() - began
            return lambda: result
        with torch.cuda.device(self.placement.device):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            there = self._unit_rows(torch.from_numpy(batch).to(self.placement.device, non_blocking=True))
            here = torch.empty(there.shape, dtype=there.dtype, pin_memory=True)
            here.copy_(there, non_blocking=True)
            end.record()

        def fetched() -> tuple[np.ndarray, float]:
            end.synchronize()
            return here.numpy(), begin.elapsed_time(end) / 1000

        return fetched

    def embed(self, batch: np.ndarray) -> np.ndarray:
        """(b, dim) float32 unit rows of (b, 3, h, w) uint8; a row that is zero or not finite is NaN."""
        return self.start(batch)()[0]

    def _unit_rows(self, pixels: "torch.Tensor") -> "torch.Tensor":
        import torch

        with torch.inference_mode():
            features = self._fitting(pixels)
            return features / features.norm(dim=1, keepdim=True)

    def _fitting(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """The float32 features; in halves where memory runs out, and in such halves from then on."""
        import torch

        if self._most is not None and len(pixels) > self._most:
            return torch.cat([self._fitting(part) for part in pixels.split(self._most)])
        try:
            return self._features(pixels)
        except RuntimeError as error:  # TorchScript says it in words only
            if not isinstance(error, torch.OutOfMemoryError) and "out of memory" not in str(error):
                raise
            if len(pixels) == 1:
                raise
            self._most = -(-len(pixels) // 2)
        self.halved += 1
        logger.warning("%s: no memory for %d images at once: %d", self.placement.device, len(pixels), self._most)
        if self.is_asynchronous:
            torch.cuda.empty_cache()
        return self._fitting(pixels)

    def _features(self, pixels: "torch.Tensor") -> "torch.Tensor":
        import torch

        values = self._values(pixels)
        with torch.autocast(values.device.type, dtype=self._dtype, enabled=self._is_cast and self._is_reduced):
            features = self._module(values)
        if not isinstance(features, torch.Tensor):
            raise TypeError(f"the module gives {type(features).__name__}, not one tensor")
        return features.float().flatten(1)

    def _values(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """What the module takes: normalised, in its type and the layout of its device."""
        import torch

        values = (pixels.to(torch.float32) - self._mean) / self._std
        # One memory layout on the processor: torch has other kernels there, which give other last bits.
        layout = torch.channels_last if self.is_asynchronous else torch.contiguous_format
        return values.to(torch.float32 if self._is_cast else self._dtype, memory_format=layout)

    @property
    def _is_reduced(self) -> bool:
        return self.placement.precision != "float32"
