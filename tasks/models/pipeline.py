"""From rows of images to rows with vectors, in the same order: read ahead, decoded in parallel, in full batches.

Shards follow one another without a gap, so that a batch may hold images of several. On a device that works by itself
two batches are under way while the next one is filled; on a processor decoding goes on while it computes.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, TypeVar

import numpy as np

from lvd.tasks.containers import DecodeError
from lvd.tasks.models import ImageModel

UNDER_WAY = 2  # batches on the device while another one is filled
MOST_ITEMS = 16  # times the batch size: rows of one block, most of which may have their vectors from before

T = TypeVar("T")


@dataclass
class Row:
    """One image. pixels: the decoded input to come, or None if the vector is known; cost: the account of its shard."""

    row: int
    image_id: str
    key: str
    cost: Counter[str]
    pixels: "Future[np.ndarray] | None" = None
    num_bytes: int = 0
    vector: np.ndarray | None = None
    error: DecodeError | None = None


@dataclass
class End:
    """A shard has no more rows, or cannot be read any further."""

    cost: Counter[str]
    error: Exception | None = None
    num_bytes: int = 0


@dataclass
class Block:
    """Rows in their order, and those among them that make one batch."""

    items: list[Row | End] = field(default_factory=list)
    fresh: list[Row] = field(default_factory=list)


class Ahead(Generic[T]):
    """Items that a thread of its own fetches ahead of need, up to a number and a sum of `num_bytes`.

    An error of the generator is raised where its item would have been. It is run and closed in that thread.
    """

    def __init__(self, items: Generator[T, None, None], *, max_items: int, max_bytes: int) -> None:
        self._items, self._max_items, self._max_bytes = items, max_items, max_bytes
        self._held: deque[T] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._is_closed = self._is_finished = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._fetch, name="lvd-ahead", daemon=True)

    def __enter__(self) -> "Ahead[T]":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()

    def _fetch(self) -> None:
        try:
            with closing(self._items) as items:
                for item in items:
                    with self._changed:
                        self._changed.wait_for(lambda: self._is_closed or not self._is_full())
                        if self._is_closed:
                            return
                        self._held.append(item)
                        self._bytes += item.num_bytes
                        self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001 - raised again where the items are taken
            self._error = error
        finally:
            with self._changed:
                self._is_finished = True
                self._changed.notify_all()

    def _is_full(self) -> bool:
        return len(self._held) >= self._max_items or (bool(self._held) and self._bytes >= self._max_bytes)

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._held or self._is_finished)
                if not self._held:
                    break
                item = self._held.popleft()
                self._bytes -= item.num_bytes
                self._changed.notify_all()
            yield item
        if self._error is not None:
            raise self._error


def blocks(items: Iterable[Row | End], batch_size: int) -> Iterator[Block]:
    """The items in blocks of one batch at most, their images decoded. A row that cannot be decoded has its error."""
    block, began = Block(), time.perf_counter()
    for item in items:
        block.items.append(item)
        if isinstance(item, Row) and item.pixels is not None:
            try:
                item.pixels.result()
                block.fresh.append(item)
            except DecodeError as error:
                item.error = error
        item.cost["waited_seconds"] += time.perf_counter() - began
        if len(block.fresh) == batch_size or len(block.items) == MOST_ITEMS * batch_size:
            yield block
            block = Block()
        began = time.perf_counter()
    yield block


def computed(filled: Iterable[Block], model: ImageModel, batch_size: int) -> Iterator[Row | End]:
    """The items of the blocks in their order, every row that could be decoded with its vector."""
    under_way: deque[tuple[Block, Callable[[], Any] | None]] = deque()
    buffers: deque[np.ndarray] = deque(maxlen=UNDER_WAY + 1)
    for block in filled:
        under_way.append((block, _started(block, model, batch_size, buffers) if block.fresh else None))
        if len(under_way) > UNDER_WAY:
            yield from _landed(*under_way.popleft(), model)
    while under_way:
        yield from _landed(*under_way.popleft(), model)


def _started(block: Block, model: ImageModel, batch_size: int, buffers: deque[np.ndarray]) -> Callable[[], Any]:
    """The batch, padded with zeros to its full size, on its way; its memory is not touched before it has landed."""
    shape = (batch_size, *block.fresh[0].pixels.result().shape)
    if len(buffers) == buffers.maxlen and buffers[0].shape == shape:
        buffers.rotate(-1)
    else:
        buffers.append(model.buffer(shape))
    buffer = buffers[-1]
    for place, row in zip(buffer, block.fresh, strict=False):
        place[...] = row.pixels.result()
        row.pixels = None
    buffer[len(block.fresh) :] = 0
    return model.start(buffer)


def _landed(block: Block, result: Callable[[], Any] | None, model: ImageModel) -> Iterator[Row | End]:
    if result is not None:
        vectors, seconds = result()
        for row, vector in zip(block.fresh, vectors, strict=False):
            row.vector = vector.astype(np.float16)
            row.cost["device_seconds"] += seconds / len(block.fresh)
            row.cost["computed"] += 1
    yield from block.items
