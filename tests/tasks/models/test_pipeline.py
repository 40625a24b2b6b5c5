"""Rows that are read ahead, and batches on a device that works by itself: in order, bounded, never overwritten."""

import threading
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import pytest

from lvd.tasks.containers import DecodeError
from lvd.tasks.models.pipeline import UNDER_WAY, Ahead, Block, End, Row, blocks, computed

PATIENCE_S = 30.0  # for what must happen
GLANCE_S = 0.05  # for what must not
BATCH_S = 0.25


# Reading ahead --------------------------------------------------------------------------------------------------------


@dataclass
class Item:
    number: int
    num_bytes: int = 0


class Source:
    """Items one by one, with a count of those that were asked for; `error` comes after the last one."""

    def __init__(self, items: Sequence[Item], error: Exception | None = None) -> None:
        self._items, self._error = items, error
        self.asked = threading.Semaphore(0)
        self.closed_in: str | None = None

    def __iter__(self) -> Generator[Item, None, None]:
        try:
            for item in self._items:
                self.asked.release()
                yield item
            if self._error is not None:
                raise self._error
        finally:
            self.closed_in = threading.current_thread().name

    def is_asked(self, times: int) -> bool:
        """Whether so many items are asked for from here on, and no more."""
        reached = all(self.asked.acquire(timeout=PATIENCE_S) for _ in range(times))
        return reached and not self.asked.acquire(timeout=GLANCE_S)


def ahead(source: Source, *, max_items: int = 1000, max_bytes: int = 1000) -> Ahead[Item]:
    return Ahead(iter(source), max_items=max_items, max_bytes=max_bytes)


def num_threads() -> int:
    return sum(thread.name == "lvd-ahead" for thread in threading.enumerate())


@pytest.mark.parametrize("max_items", [1, 3, 1000])
def test_items_come_in_their_order(max_items) -> None:
    source = Source([Item(n, n % 7) for n in range(300)])
    with ahead(source, max_items=max_items, max_bytes=20) as fed:
        assert [item.number for item in fed] == list(range(300))
    assert num_threads() == 0


def test_so_many_items_are_held_and_one_is_at_hand() -> None:
    source = Source([Item(n) for n in range(20)])
    with ahead(source, max_items=4) as fed:
        assert source.is_asked(4 + 1)
        items = iter(fed)
        next(items), next(items)
        assert source.is_asked(2)


@pytest.mark.parametrize(("num_bytes", "held"), [(10, 4), (35, 1), (34, 2), (500, 1)])
def test_so_many_bytes_are_held_however_large_one_item_is(num_bytes, held) -> None:
    source = Source([Item(n, num_bytes) for n in range(12)])
    with ahead(source, max_bytes=35) as fed:
        assert source.is_asked(held + 1)  # one is at hand
        items = iter(fed)
        next(items)
        assert source.is_asked(1)  # those that are taken count no more
        assert [item.number for item in items] == list(range(1, 12))


def test_an_error_is_raised_where_its_item_would_have_been() -> None:
    source, taken = Source([Item(0), Item(1)], error=OSError("gone")), []
    with ahead(source) as fed, pytest.raises(OSError, match="gone"):
        for item in fed:
            taken.append(item.number)
    assert (taken, source.closed_in, num_threads()) == ([0, 1], "lvd-ahead", 0)


@pytest.mark.parametrize("num_taken", [0, 1, 5])
def test_closing_early_does_not_hang_and_closes_the_source_in_its_own_thread(num_taken) -> None:
    source = Source([Item(n) for n in range(50)])
    with ahead(source, max_items=2) as fed:
        items = iter(fed)
        for _ in range(num_taken):
            next(items)
        assert source.is_asked(num_taken + 2 + 1)
    assert (source.closed_in, num_threads()) == ("lvd-ahead", 0)


def test_an_error_of_who_takes_the_items_ends_the_thread() -> None:
    source = Source([Item(n) for n in range(50)])
    with pytest.raises(KeyError), ahead(source, max_items=2) as fed:
        for _ in fed:
            raise KeyError
    assert num_threads() == 0


# Blocks ---------------------------------------------------------------------------------------------------------------


def pixels_of(number: int) -> np.ndarray:
    """What row `number` looks like."""
    return np.array([1 + number // 100, 1 + number % 100], dtype=np.uint8)


def row(number: int, cost: Counter[str], kind: str = "fresh", shape: tuple[int, ...] = (2,)) -> Row:
    """A row that is fresh, known, or cannot be decoded."""
    one = Row(number, f"id-{number}", f"key-{number}", cost)
    if kind == "known":
        one.vector = np.zeros(2, dtype=np.float16)
        return one
    one.pixels = Future()
    if kind == "fresh":
        one.pixels.set_result(np.resize(pixels_of(number), shape))
    else:
        one.pixels.set_exception(DecodeError("truncated" if kind == "truncated" else "undecodable", "no end"))
    return one


def rows_of(kinds: str) -> list[Row | End]:
    """f: fresh, k: known, t: truncated, o: odd, |: the end of a shard."""
    names = {"f": "fresh", "k": "known", "t": "truncated", "o": "odd"}
    items, cost = [], Counter()
    for number, kind in enumerate(kinds):
        items.append(End(cost) if kind == "|" else row(number, cost, names[kind]))
        cost = Counter() if kind == "|" else cost
    return items


CUTS = [  # kinds, (items, fresh) of the blocks of at most 2 images
    ("", [(0, 0)]),
    ("|||", [(3, 0)]),
    ("fff|", [(2, 2), (2, 1)]),
    ("ff|", [(2, 2), (1, 0)]),
    ("f|f|f|", [(3, 2), (3, 1)]),  # a batch of two shards
    ("tkftkof|k", [(7, 2), (2, 0)]),  # only what is computed takes a place
    ("k" * 70, [(32, 0), (32, 0), (6, 0)]),
    ("f" + "k" * 40 + "ff", [(32, 1), (11, 2), (0, 0)]),
]


@pytest.mark.parametrize(("kinds", "expected"), CUTS)
def test_blocks_are_cut_by_what_is_computed_and_by_what_is_held(kinds, expected) -> None:
    items = rows_of(kinds)
    found = list(blocks(items, 2))
    assert [(len(block.items), len(block.fresh)) for block in found] == expected
    assert [item for block in found for item in block.items] == items
    assert all(item.cost["waited_seconds"] >= 0 for item in items)


def test_a_row_that_cannot_be_decoded_has_its_error_and_the_others_go_on() -> None:
    (block,) = blocks(rows_of("ftof|"), 8)
    assert [item.error and item.error.reason for item in block.items] == [None, "truncated", "undecodable", None, None]
    assert [one.row for one in block.fresh] == [0, 3]


# Batches --------------------------------------------------------------------------------------------------------------


class Device:
    """A model that looks at its buffer only when the result is fetched, as one that works by itself may."""

    def __init__(self) -> None:
        self.under_way = self.most_under_way = self.num_buffers = 0
        self.batches: list[np.ndarray] = []
        self.shapes: list[tuple[int, ...]] = []

    def buffer(self, shape: tuple[int, ...]) -> np.ndarray:
        self.num_buffers += 1
        return np.zeros(shape, dtype=np.uint8)

    def start(self, batch: np.ndarray) -> Callable[[], tuple[np.ndarray, float]]:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        before = batch.copy()

        def fetched() -> tuple[np.ndarray, float]:
            self.under_way -= 1
            assert np.array_equal(batch, before), "the buffer was overwritten before its batch had landed"
            self.batches.append(before)
            return batch.reshape(len(batch), -1)[:, :2].astype(np.float32), BATCH_S

        return fetched


def vectors_of(items: list[Row | End]) -> dict[int, list[float]]:
    return {item.row: item.vector.tolist() for item in items if isinstance(item, Row) and item.vector is not None}


@pytest.mark.parametrize(
    "kinds", ["f" * 41 + "|", "ffkf|tff|" * 9, "f|" * 30, "k" * 80 + "f|" * 7, "f" + "k" * 90, "t|"]
)
def test_every_row_has_the_vector_of_its_own_pixels(kinds) -> None:
    device, items = Device(), rows_of(kinds)
    found = list(computed(blocks(items, 4), device, 4))
    assert found == items  # in their order
    expected = {n: pixels_of(n).tolist() for n, kind in enumerate(kinds) if kind == "f"}
    assert vectors_of(found) == expected | {n: [0, 0] for n, kind in enumerate(kinds) if kind == "k"}
    assert all(item.pixels is None for item in found if isinstance(item, Row) and item.vector is not None)
    assert device.most_under_way <= UNDER_WAY + 1
    assert device.num_buffers <= UNDER_WAY + 1
    assert device.under_way == 0
    # Every batch is padded with zeros, also in memory that held another one before.
    sizes = [int(batch.any(axis=1).sum()) for batch in device.batches]
    assert sum(sizes) == kinds.count("f") and {batch.shape for batch in device.batches} <= {(4, 2)}
    assert all(not batch[size:].any() for batch, size in zip(device.batches, sizes, strict=True))


def test_two_batches_are_under_way_while_a_third_is_filled() -> None:
    device, taken = Device(), []

    def filled() -> Generator[Block, None, None]:
        for block in blocks(rows_of("f" * 40), 4):
            taken.append((len(taken), device.under_way))
            yield block

    list(computed(filled(), device, 4))
    assert taken[:5] == [(0, 0), (1, 1), (2, 2), (3, 2), (4, 2)]
    assert device.most_under_way == UNDER_WAY + 1
    assert device.num_buffers == UNDER_WAY + 1


def test_inputs_of_their_own_shape_have_memory_of_their_own() -> None:
    cost, shapes = Counter(), [(2, 3), (2, 3), (4, 2), (2, 3), (2, 2), (2, 2), (2, 2), (2, 2), (2, 2), (4, 2), (2, 3)]
    items = [row(number, cost, shape=shape) for number, shape in enumerate(shapes)]
    device = Device()
    assert vectors_of(list(computed(blocks(items, 1), device, 1))) == {n: pixels_of(n).tolist() for n in range(11)}
    assert [batch.shape for batch in device.batches] == [(1, *shape) for shape in shapes]
    assert device.most_under_way <= UNDER_WAY + 1


def test_the_time_of_a_batch_is_that_of_its_images() -> None:
    items = rows_of("fff|f|k|")
    ends = [item for item in computed(blocks(items, 4), Device(), 4) if isinstance(item, End)]
    assert [end.cost["device_seconds"] for end in ends] == [BATCH_S * 3 / 4, BATCH_S / 4, 0]
    assert [end.cost["computed"] for end in ends] == [3, 1, 0]


def test_what_had_landed_is_given_before_a_batch_that_fails() -> None:
    class Failing(Device):
        def start(self, batch: np.ndarray) -> Callable[[], tuple[np.ndarray, float]]:
            if self.most_under_way == UNDER_WAY + 1 and len(self.batches) == 2:
                raise RuntimeError("no more")
            return super().start(batch)

    found = []
    items = computed(blocks(rows_of("f" * 40), 4), Failing(), 4)
    with pytest.raises(RuntimeError, match="no more"):
        for item in items:
            found.append(item.row)
    assert found == list(range(8))
