"""The records of an archive file, streamed: plain, gzip, zstd or LZ4, and what of it is broken.

FastWARC parses the records; where each begins and ends is found here. Its `ArchiveIterator` (2.0) stops for good at the
first broken gzip member, says nothing of a file that is cut, and lets a record that announces too many bytes take in
the records after it.
"""

import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Literal, NamedTuple, Protocol

MAX_PAGE_BYTES = 8 << 20  # of a page's HTML or of its JSON: no more is looked at
MAX_HEADER_BYTES = 64 << 10  # of a WARC header, and of an HTTP header
KEPT_BYTES = MAX_PAGE_BYTES + MAX_HEADER_BYTES  # of a record's block
READ_BYTES = 64 << 10  # of the file at once: zlib copies what it leaves of them
INFLATED_BYTES = 64 << 10  # of a gzip member at once: at a fault so many bytes before it are lost
STEP_BYTES = 4 << 10  # of what FastWARC decompresses: at a fault it gives nothing of what was asked for
RETRIED_BYTES = 1 << 20  # before the place where a gzip member turned out to be broken
PATTERN_BYTES = 64  # more than the patterns below need in view

_RECORD = re.compile(rb"WARC/\d[.]\d{1,2}[ \t]{0,2}\r?\n")
_RECORD_AGAIN = re.compile(_RECORD.pattern + rb"(?:WARC|Content)-[A-Za-z]", re.IGNORECASE)  # amid something else
_RECORD_END = re.compile(rb"[\r\n]{0,32}(?:WARC/|\Z)")
_HEADER_END = re.compile(rb"\n\r?\n")
_FIELD = re.compile(rb"^(WARC-Type|Content-Length)[ \t]*:[ \t]*(.*?)[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_NEWLINES = re.compile(rb"[\r\n]*")
_PADDING = re.compile(rb"[\r\n\0]*")
_GZIP = re.compile(rb"\x1f\x8b\x08")
_ZSTD = re.compile(rb"\x28\xb5\x2f\xfd|\x5d\x2a\x4d\x18")  # a frame, or the dictionary before the frames
_LZ4 = re.compile(rb"\x04\x22\x4d\x18")


class Broken(NamedTuple):
    """A place of an archive that could not be read."""

    key: str  # "{path}#{offset}" of the record: in the file, and "+{offset}" in what is compressed there
    reason: Literal["unreadable_archive", "unreadable_record"]  # nothing more can be read from here; passed over
    error: str


class Record(NamedTuple):
    key: str
    kind: str  # WARC-Type
    data: bytes  # the header, and of the block at most KEPT_BYTES
    header_size: int


def records(path: str, file: Any) -> Iterator[Record | Broken]:
    """The records of the file; of what is broken the last is `unreadable_archive` if no record comes after it."""
    runs, fault, is_empty = _runs(file), None, True
    while runs.next_run():
        for found in _run_records(path, runs):
            if fault is not None:
                yield fault
            fault, is_empty = (found if isinstance(found, Broken) else None), False
            if fault is None:
                yield found
    if is_empty:
        yield Broken(path, "unreadable_archive", "is empty")
    if fault is not None:
        yield fault._replace(reason="unreadable_archive")


def _run_records(path: str, runs: "_Runs") -> Iterator[Record | Broken]:
    data, told = _Bytes(runs.more), ""
    while True:
        data.skip_all(_NEWLINES)
        key = path + runs.place(data.position)
        head = _head(data)
        if head is None and not data.has(1):
            break
        if head is None:
            told = runs.error
            yield Broken(key, "unreadable_record", told or "has no WARC header with a Content-Length")
            data.skip(1)
            data.skip_to(_RECORD_AGAIN)
            continue
        kind, header_size, size = head
        inner = _inner_record(data, header_size, size)
        record = b"" if inner else data.peek(min(size, header_size + KEPT_BYTES))
        passed = data.skip(size if inner is None else inner)
        data.skip_all(_NEWLINES)
        if inner is not None:
            error = f"announces {size - header_size} bytes, but another record begins after {inner - header_size}"
            yield Broken(key, "unreadable_record", error)
        elif passed < size or (runs.error and not data.has(1)):
            told = runs.error
            error = f"announces {size - header_size} bytes, but {passed - header_size} come"
            yield Broken(key, "unreadable_record", told or error)
        else:
            yield Record(key, kind, record, header_size)
    if runs.error != told:
        yield Broken(path + runs.place(data.position), "unreadable_record", runs.error)


def _head(data: "_Bytes") -> tuple[str, int, int] | None:
    """(WARC-Type, bytes of the header, bytes of the record) of the record that begins here."""
    end = data.search(_HEADER_END, 0, MAX_HEADER_BYTES) if data.matches(_RECORD) else None
    if end is None:
        return None
    header_size = end[1]
    fields = {name.lower(): value for name, value in _FIELD.findall(data.peek(header_size))}
    length = fields.get(b"content-length", b"")
    if not length.isdigit():
        return None
    return fields.get(b"warc-type", b"").decode("latin-1").lower(), header_size, header_size + int(length[:18])


def _inner_record(data: "_Bytes", header_size: int, size: int) -> int | None:
    """Where in the record another one begins, if it does not end where it says. A very large one is believed."""
    kept = header_size + KEPT_BYTES
    if data.has(min(size, kept)) and (size > kept or data.matches(_RECORD_END, size)):
        return None
    inner = data.search(_RECORD_AGAIN, header_size, min(size, kept))
    return inner[0] if inner else None


class _Bytes:
    """A stream that is read forward, with a view of what comes next. Offsets count from the next byte."""

    def __init__(self, more: Callable[[], bytes], seek: Callable[[int], Any] | None = None) -> None:
        self._more = more  # the next bytes, b"" at the end
        self._seek = seek
        self._has_more = True
        self._view = b""
        self._at = 0
        self.position = 0  # of the next byte

    def has(self, num_bytes: int) -> bool:
        """True if so many bytes come; they, or all that there are, are in view then."""
        left = len(self._view) - self._at
        if left >= num_bytes or not self._has_more:
            return left >= num_bytes
        parts = [self._view[self._at :]]
        while left < num_bytes and self._has_more:
            parts.append(self._more())
            left += len(parts[-1])
            self._has_more = bool(parts[-1])
        self._view, self._at = b"".join(parts), 0
        return left >= num_bytes

    def peek(self, num_bytes: int) -> bytes:
        """So many of the next bytes, fewer at the end."""
        self.has(num_bytes)
        return self._view[self._at : self._at + num_bytes]

    def in_view(self) -> memoryview:
        """The next bytes that are in view: one at least, but at the end."""
        self.has(1)
        return memoryview(self._view)[self._at :]

    def matches(self, pattern: re.Pattern[bytes], start: int = 0) -> bool:
        """True if the pattern, of at most PATTERN_BYTES, matches there."""
        self.has(start + PATTERN_BYTES)
        return pattern.match(self._view, self._at + start) is not None

    def search(self, pattern: re.Pattern[bytes], start: int, stop: int) -> tuple[int, int] | None:
        """Start and end of the pattern's first match between two offsets."""
        self.has(stop)
        found = pattern.search(self._view, self._at + start, self._at + stop)
        return (found.start() - self._at, found.end() - self._at) if found else None

    def skip(self, num_bytes: int) -> int:
        """How many bytes were passed: fewer than asked for at the end."""
        passed = 0
        while passed < num_bytes and self.has(1):
            step = min(num_bytes - passed, len(self._view) - self._at)
            self._at += step
            passed += step
        self.position += passed
        return passed

    def back_to(self, position: int) -> None:
        """Go back, where the stream can."""
        with suppress(ValueError):  # what a web server sends as a stream cannot
            self._seek(position)
            self._view, self._at, self._has_more, self.position = b"", 0, True, position

    def skip_all(self, pattern: re.Pattern[bytes]) -> None:
        """Pass the bytes that the pattern, which repeats one of several bytes, matches."""
        while self.has(1) and (size := pattern.match(self._view, self._at).end() - self._at):
            self.skip(size)

    def skip_to(self, pattern: re.Pattern[bytes]) -> bool:
        """True if the pattern, of at most PATTERN_BYTES, comes: it is next then; else nothing is left."""
        while True:
            is_end = not self.has(READ_BYTES)
            found = pattern.search(self._view, self._at)
            left = len(self._view) - self._at
            self.skip(found.start() - self._at if found else left if is_end else left - PATTERN_BYTES)
            if found or is_end:
                return found is not None


class _Runs(Protocol):
    """A file as runs of bytes that belong together. No record reaches from one run into another."""

    error: str  # why the run ends before its time

    def next_run(self) -> bool: ...
    def more(self) -> bytes: ...
    def place(self, position: int) -> str: ...  # "#{offset}" in the file, "+{offset}" in what is compressed there


def _runs(file: Any) -> _Runs:
    """The runs of a file, whose format its first bytes tell."""
    from fastwarc.stream_io import Lz4Reader, ZstdReader

    raw = _Bytes(lambda: file.read(READ_BYTES), file.seek)
    if raw.matches(_GZIP):
        return _Members(raw)
    if raw.matches(_ZSTD):
        return _OneRun(raw, ZstdReader)
    return _OneRun(raw, Lz4Reader if raw.matches(_LZ4) else None)


class _OneRun:
    """A file without compression, or in frames that a reader of FastWARC puts together."""

    def __init__(self, raw: _Bytes, reader: Callable[[Any], Any] | None) -> None:
        self.error = ""
        self._raw = raw
        self._reader = reader(self) if reader else self
        self._is_begun = False
        self._is_reading = False

    def read(self, size: int = -1) -> bytes:
        """Bytes of the file."""
        self._is_reading = True
        data = bytes(self._raw.in_view()[: size if size >= 0 else None])
        self._is_reading = False
        self._raw.skip(len(data))
        return data

    def tell(self) -> int:
        return self._raw.position

    def next_run(self) -> bool:
        is_begun, self._is_begun = self._is_begun, True
        return not is_begun

    def more(self) -> bytes:
        try:
            return self._reader.read(READ_BYTES if self._reader is self else STEP_BYTES)
        except OSError as error:
            if self._is_reading:  # the storage's fault
                raise
            self.error = str(error)
            return b""

    def place(self, position: int) -> str:
        return f"#{position}" if self._reader is self or position == 0 else f"#0+{position}"


class _Members:
    """A gzip file. Each member that begins with a record begins a run; what follows, up to the next such member,
    belongs to it, as where a file is one member or its members are blocks of a fixed size."""

    def __init__(self, raw: _Bytes) -> None:
        self.error = ""
        self._raw = raw
        self._inflate: Any = None  # of the member that is read
        self._offset = 0  # of that member
        self._run_offset = 0
        self._ahead = b""  # the beginning of the next run
        self._ahead_error = ""  # why the next run has none

    def next_run(self) -> bool:
        is_told = bool(self.error)
        self.error, self._ahead_error = self._ahead_error, ""
        if not (self.error or self._ahead):
            if is_told and self._raw.position > self._offset:  # a broken member may have taken others for its own
                self._raw.back_to(max(self._offset + 1, self._raw.position - RETRIED_BYTES))
            self._raw.skip_all(_PADDING)
            begin = self._raw.position
            is_found = self._find_record()
            if not is_told and (self._offset if is_found else self._raw.position) > begin:
                self._run_offset, self.error = begin, "is no gzip member that begins with a WARC record"
                return True
            if not is_found:
                return False
        self._run_offset = self._offset
        return True

    def more(self) -> bytes:
        if self.error:
            return b""
        data, self._ahead = self._ahead, b""
        while not data:
            data = self._inflated()
            if data or self.error or not self._raw.matches(_GZIP):
                break
            self._begin_member()
            if self.error:
                self._ahead, self._ahead_error, self.error = b"", self.error, ""
                break
            if _RECORD.match(self._ahead):
                break
            data, self._ahead = self._ahead, b""
        return data

    def place(self, position: int) -> str:
        return f"#{self._run_offset}+{position}" if position else f"#{self._run_offset}"

    def _find_record(self) -> bool:
        """True if a member that begins with a record comes: it is begun then."""
        while self._raw.skip_to(_GZIP):
            self._begin_member()
            self.error = ""
            if _RECORD.match(self._ahead):
                return True
            self._ahead = b""
            if self._raw.position == self._offset:
                self._raw.skip(1)
        return False

    def _begin_member(self) -> None:
        self._offset = self._raw.position
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS + 16)
        self._raw.has(PATTERN_BYTES)
        self._ahead = self._inflated()
        while 0 < len(self._ahead) < PATTERN_BYTES and (more := self._inflated()):
            self._ahead += more

    def _inflated(self) -> bytes:
        """More bytes of the member, b"" at its end or at its fault."""
        data = b""
        while not (data or self._inflate.eof or self.error):
            chunk = self._raw.in_view()
            try:
                data = self._inflate.decompress(chunk, INFLATED_BYTES)
            except zlib.error as error:
                self.error = str(error)
            else:
                left = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
                self._raw.skip(len(chunk) - len(left))
                if not chunk:
                    self.error = "the file ends within a gzip member"
        return data
