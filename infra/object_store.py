"""Files on S3 that live through a night: tried again while the server is away, whole or an error, never cut short.

Every request goes through `patiently`, the one place that tries again: s3fs and botocore are told to try once. A body
is part of its request. Every file is written with its CRC-32 and a token, so that a reader notices other bytes than
were written, and a writer whose answer was lost knows its own file.
"""

import io
import logging
import os
import uuid
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec

from lvd.infra.patience import PATIENCE, Patience, StoreRefused, StoreUnavailable, code_of, patiently, said

logger = logging.getLogger("lvd")

FIRST_BLOCK = 1 << 20  # what opening a file reads; blocks grow while they follow one another
LAST_BLOCK = 32 << 20  # more: fewer requests, more memory of every open file
GROWTH = 8
PART_BYTES = 32 << 20  # a file of more than two parts is uploaded in parts; S3 takes parts of 5 MiB to 5 GiB
MAX_PARTS = 10_000  # S3's own limit
UPLOADS = 4  # parts on their way at a time; memory: that many parts
DELETED_AT_ONCE = 1000  # S3's own limit
CRC, TOKEN = "lvd-crc32", "lvd-upload"


def errors_of(protocol: str) -> tuple[type[Exception], ...]:
    """What a filesystem of this protocol raises when it cannot be reached, read or written."""
    if protocol not in ("s3", "s3a"):
        return (OSError,)
    from botocore.exceptions import BotoCoreError

    return (OSError, BotoCoreError)


class S3Files:
    """Files by their path `bucket/key` on an S3 server, as s3fs reaches it: environment, profile or instance role.

    patience: PATIENCE if none is given.
    """

    def __init__(self, root: str, patience: Patience | None = None) -> None:
        self.patience = patience or PATIENCE
        config = {
            **fsspec.config.conf.get("s3", {}).get("config_kwargs", {}),
            "retries": {"total_max_attempts": 1},
            "connect_timeout": self.patience.connect_timeout_s,
            "read_timeout": self.patience.read_timeout_s,
        }
        self.fs, self.path = fsspec.core.url_to_fs(root, config_kwargs=config, use_listings_cache=False)
        self.fs.retries = 1

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        return errors_of("s3")

    def exists(self, path: str) -> bool:
        """Whether there is a file of that name, or a folder with something in it."""
        return self._head(path) is not None or any(True for _ in self._pages(path, MaxKeys=1))

    def names(self, path: str) -> list[str]:
        """What lies directly in a folder, sorted. Memory: the names and one page of the listing."""
        found: list[str] = []
        for start, page in self._pages(path, Delimiter="/"):
            found += (one["Key"][start:] for one in page.get("Contents", ()))
            found += (one["Prefix"][start:-1] for one in page.get("CommonPrefixes", ()))
        return sorted(filter(None, found))

    def below(self, path: str) -> Iterator[tuple[str, int]]:
        """Every file below a folder: its name below it, and its bytes. Memory: one page of the listing."""
        for start, page in self._pages(path):
            yield from ((one["Key"][start:], one["Size"]) for one in page.get("Contents", ()))

    def read(self, path: str) -> bytes:
        with self._reader(path) as reader:
            return reader.readall()

    def open(self, path: str) -> io.BufferedReader:
        """The file for reading, in blocks. Raises FileNotFoundError now, not at the first read."""
        return io.BufferedReader(self._reader(path), 64 << 10)

    def create(self, path: str, data: bytes) -> bool:
        """True if the file was made, which the server decides; its token tells an attempt whose answer was lost."""
        bucket, key, _ = self.fs.split_path(path)
        about = described(zlib.crc32(data))
        arguments = {"Bucket": bucket, "Key": key, "Body": data, "Metadata": about, "IfNoneMatch": "*"}
        try:
            self._call(path, "put_object", **arguments)
        except OSError as error:
            if code_of(error) not in ("PreconditionFailed", "412"):
                raise
            return self._is_mine(path, about)
        return True

    def put(self, local: Path, path: str) -> None:
        """The local file under that name, in one step: one PUT, or the completion of an upload in parts."""
        bucket, key, _ = self.fs.split_path(path)
        place, size, about = {"Bucket": bucket, "Key": key}, local.stat().st_size, described(crc32_of(local))
        if size <= 2 * PART_BYTES:
            self._call(path, "put_object", **place, Body=local.read_bytes(), Metadata=about)
            return
        upload = self._call(path, "create_multipart_upload", **place, Metadata=about)["UploadId"]
        try:
            parts = self._put_parts(local, size, path, {**place, "UploadId": upload})
            self._call(path, "complete_multipart_upload", **place, UploadId=upload, MultipartUpload={"Parts": parts})
        except FileNotFoundError as error:  # no such upload: it was completed, or someone ended it
            if not self._is_mine(path, about):
                raise StoreUnavailable(f"{self._uri(path)}: its upload was ended by another: run again") from error
        except BaseException:
            self._abort(path, {**place, "UploadId": upload})
            raise

    def remove(self, path: str) -> None:
        """Removes the file of that name, and everything in a folder of that name."""
        bucket, key, _ = self.fs.split_path(path)
        self._delete(path, bucket, [key])
        for _, page in self._pages(path, MaxKeys=DELETED_AT_ONCE):
            self._delete(path, bucket, [one["Key"] for one in page.get("Contents", ())])

    def remove_all(self, paths: list[str]) -> None:
        """Removes these files, as many with one request as S3 takes."""
        places = [self.fs.split_path(path)[:2] for path in paths]
        for start in range(0, len(places), DELETED_AT_ONCE):
            some = places[start : start + DELETED_AT_ONCE]
            self._delete(paths[start], some[0][0], [key for _, key in some])

    def remove_unfinished(self, path: str) -> None:
        """Ends the uploads in parts that ended processes left in a folder: they are not seen, and cost money."""
        bucket, prefix = self._folder(path)
        marks: dict[str, str] = {}
        while True:
            try:
                page = self._call(path, "list_multipart_uploads", Bucket=bucket, Prefix=prefix, **marks)
            except StoreRefused as error:
                logger.warning("unfinished uploads could not be looked for: %s", error)
                return
            for one in page.get("Uploads", ()):
                if one["Key"].startswith(prefix):
                    self._abort(path, {"Bucket": bucket, "Key": one["Key"], "UploadId": one["UploadId"]})
            if not page.get("IsTruncated"):
                return
            marks = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def span(self, path: str, start: int, length: int) -> bytes:
        return self.block(path, start, length, None)[0]

    def block(self, path: str, start: int, length: int, etag: str | None) -> tuple[bytes, dict[str, Any]]:
        """Bytes [start, start + length) of a file, fewer only at its end, and the server's answer with its `size`.

        etag: of the file they must be of. Raises FileNotFoundError if there is none, StoreUnavailable if there is
        another by now.
        """
        bucket, key, _ = self.fs.split_path(path)
        arguments = {"Bucket": bucket, "Key": key, "Range": f"bytes={start}-{start + length - 1}"}
        if etag:
            arguments["IfMatch"] = etag

        def attempt() -> tuple[bytes, dict[str, Any]]:
            found = self.fs.call_s3("get_object", **arguments)
            data = fsspec.asyn.sync(self.fs.loop, _body, found["Body"])
            first, size = _extent(found)
            if first != start or len(data) != min(length, size - start):
                raise ConnectionError(f"{len(data)} bytes from {first} of {size} came, not {length} from {start}")
            return data, {**found, "size": size}

        try:
            return patiently(self._uri(path), attempt, self.patience)
        except OSError as error:
            if code_of(error) in ("InvalidRange", "416") and (head := self._head(path)) and not head["ContentLength"]:
                return b"", {**head, "size": 0}
            if code_of(error) in ("PreconditionFailed", "412"):
                raise StoreUnavailable(f"{self._uri(path)} was replaced while it was read: run again") from error
            raise

    def _reader(self, path: str) -> "S3Reader":
        return S3Reader(self, path)

    def _call(self, path: str, method: str, **arguments: Any) -> dict[str, Any]:
        return patiently(self._uri(path), lambda: self.fs.call_s3(method, **arguments), self.patience)

    def _uri(self, path: str) -> str:
        return f"s3://{path}"

    def _folder(self, path: str) -> tuple[str, str]:
        """The bucket and what the keys in a folder start with."""
        bucket, key, _ = self.fs.split_path(path)
        return bucket, f"{key.rstrip('/')}/" if key else ""

    def _head(self, path: str) -> dict[str, Any] | None:
        bucket, key, _ = self.fs.split_path(path)
        try:
            return self._call(path, "head_object", Bucket=bucket, Key=key) if key else None
        except FileNotFoundError:
            return None

    def _is_mine(self, path: str, about: dict[str, str]) -> bool:
        return ((self._head(path) or {}).get("Metadata") or {}).get(TOKEN) == about[TOKEN]

    def _pages(self, path: str, **arguments: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        """The pages of a folder's listing that hold something, each with the length of the folder's own key."""
        bucket, prefix = self._folder(path)
        while True:
            page = self._call(path, "list_objects_v2", Bucket=bucket, Prefix=prefix, **arguments)
            if page.get("Contents") or page.get("CommonPrefixes"):
                yield len(prefix), page
            if not page.get("IsTruncated"):
                return
            arguments["ContinuationToken"] = page["NextContinuationToken"]

    def _put_parts(self, local: Path, size: int, path: str, upload: dict[str, str]) -> list[dict[str, Any]]:
        """The parts of an upload, each tried again for itself. Memory: UPLOADS parts."""
        part_bytes = max(PART_BYTES, -(-size // MAX_PARTS))
        with local.open("rb") as file, ThreadPoolExecutor(UPLOADS) as pool:

            def send(number: int) -> dict[str, Any]:
                data = os.pread(file.fileno(), part_bytes, (number - 1) * part_bytes)
                found = self._call(path, "upload_part", **upload, PartNumber=number, Body=data)
                return {"PartNumber": number, "ETag": found["ETag"]}

            waiting = [pool.submit(send, number) for number in range(1, -(-size // part_bytes) + 1)]
            try:
                return [one.result() for one in waiting]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _abort(self, path: str, upload: dict[str, str]) -> None:
        """Ends an upload if the server listens; one attempt, as what is left is removed by the next run."""
        try:
            patiently(
                self._uri(path),
                lambda: self.fs.call_s3("abort_multipart_upload", **upload),
                self.patience.model_copy(update={"total_s": 0}),
            )
        except self.errors as error:
            logger.debug("an upload could not be ended: %s", said(error))

    def _delete(self, path: str, bucket: str, keys: list[str]) -> None:
        wanted = {"Objects": [{"Key": key} for key in keys], "Quiet": True}

        def attempt() -> None:
            for error in self.fs.call_s3("delete_objects", Bucket=bucket, Delete=wanted).get("Errors", ()):
                if error.get("Code") in ("AccessDenied", "MethodNotAllowed"):
                    raise StoreRefused(f"{self._uri(path)} must be allowed to be removed, was {error['Code']}")
                raise ConnectionError(f"{error.get('Code')}: {error.get('Message')}")

        if any(keys):
            patiently(self._uri(path), attempt, self.patience)


class S3Reader(io.RawIOBase):
    """One file, read in blocks that all are of the file that was opened, and as long as the server says.

    Read from its first byte to its last, it has the CRC-32 that it was written with. Memory: one block.
    Raises StoreUnavailable if it has another, before the last block is handed out.
    """

    def __init__(self, files: S3Files, path: str) -> None:
        super().__init__()
        self._files, self._path = files, path
        self._position = self._start = self._hashed = self._crc = 0
        self._block, found = files.block(path, 0, FIRST_BLOCK, None)
        self._size, self._etag = found["size"], found.get("ETag")
        self._expected = (found.get("Metadata") or {}).get(CRC)
        self._length = FIRST_BLOCK
        self._check()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if origin + offset < 0:
            raise ValueError(f"a position must be at least 0, was {origin + offset}")
        self._position = origin + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self._rest()[: len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def readall(self) -> bytes:
        parts = []
        while rest := self._rest():
            parts.append(rest)
            self._position += len(rest)
            self._length = LAST_BLOCK
        return b"".join(parts)

    def _rest(self) -> memoryview:
        """What is at hand from the position on; empty at the end only."""
        end = self._start + len(self._block)
        if not self._start <= self._position < end and self._position < self._size:
            self._length = min(GROWTH * self._length, LAST_BLOCK) if self._position == end else FIRST_BLOCK
            self._start = self._position
            self._block, _ = self._files.block(self._path, self._start, self._length, self._etag)
            self._check()
        return memoryview(self._block)[max(self._position - self._start, 0) :]

    def _check(self) -> None:
        if self._start != self._hashed:
            return
        self._crc = zlib.crc32(self._block, self._crc)
        self._hashed += len(self._block)
        if self._hashed == self._size and self._expected not in (None, f"{self._crc:08x}"):
            raise StoreUnavailable(
                f"s3://{self._path} must have the CRC-32 {self._expected} that it was written with, "
                f"was {self._crc:08x}: run again; if it stays so, remove the file, and it is computed anew"
            )


def described(crc: int) -> dict[str, str]:
    """What is kept with a file: the CRC-32 of its bytes, and a token that no other writing has."""
    return {CRC: f"{crc:08x}", TOKEN: uuid.uuid4().hex}


def crc32_of(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


async def _body(stream: Any) -> bytes:
    async with stream:
        return await stream.read()


def _extent(found: dict[str, Any]) -> tuple[int, int]:
    """Where an answer's bytes begin, and the size of the whole file: of `bytes 0-99/100`, or of an answer without."""
    if not (text := found.get("ContentRange")):
        return 0, found["ContentLength"]
    extent, _, size = text.removeprefix("bytes ").partition("/")
    return int(extent.partition("-")[0]), int(size)
