"""Bytes on their way: what is in flight, and what waits for its turn to be written. Both are bounded in memory."""

import asyncio
import heapq
import tempfile
from pathlib import Path
from typing import Any

HELD_BYTES = 256 << 20  # half of it in flight, half of it waiting


class Flights:
    """Bytes of the bodies that are being received.

    Above the limit every row pauses but the first one under way, so that there is always one that goes on.
    """

    def __init__(self, max_bytes: int = HELD_BYTES // 2) -> None:
        self._max_bytes, self._total = max_bytes, 0
        self._held: dict[int, int] = {}
        self._rows: list[int] = []  # a heap of those that hold or held bytes
        self._changed = asyncio.Event()

    def hold(self, index: int, num_bytes: int) -> None:
        """Row `index` holds num_bytes from now on."""
        if index not in self._held:
            heapq.heappush(self._rows, index)
        self._total += num_bytes - self._held.get(index, 0)
        self._held[index] = num_bytes

    def is_full(self, index: int) -> bool:
        while self._rows and self._rows[0] not in self._held:
            heapq.heappop(self._rows)
        return self._total > self._max_bytes and index > (self._rows[0] if self._rows else index)

    async def room(self, index: int) -> None:
        while self.is_full(index):
            await self._changed.wait()

    def landed(self, index: int) -> None:
        """Row `index` holds nothing any more."""
        self._total -= self._held.pop(index, 0)
        self._changed.set()
        self._changed = asyncio.Event()


class Flight:
    """The flight of one row: the gate of its transfer."""

    def __init__(self, flights: Flights, index: int) -> None:
        self._flights, self._index = flights, index

    def hold(self, num_bytes: int) -> None:
        self._flights.hold(self._index, num_bytes)

    def is_full(self) -> bool:
        return self._flights.is_full(self._index)

    async def room(self) -> None:
        await self._flights.room(self._index)


class Backlog:
    """Images that came before their turn: in memory up to a limit, above it in a temporary file.

    So a slow server keeps nobody waiting, however early in the shard it stands.
    """

    def __init__(self, folder: Path, max_bytes: int = HELD_BYTES // 2) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self.in_memory = 0  # bytes
        self._file: Any = None
        self._images: dict[int, bytes | tuple[int, int]] = {}  # by row: the bytes, or offset and size in the file

    def put(self, index: int, data: bytes) -> None:
        if self.in_memory + len(data) <= self._max_bytes:
            self.in_memory += len(data)
            self._images[index] = data
            return
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - closed by `close`
        self._file.seek(0, 2)
        self._images[index] = (self._file.tell(), len(data))
        self._file.write(data)

    def take(self, index: int) -> bytes:
        found = self._images.pop(index)
        if isinstance(found, bytes):
            self.in_memory -= len(found)
            return found
        offset, size = found
        self._file.seek(offset)
        return self._file.read(size)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
