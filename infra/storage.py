"""A root on any fsspec filesystem, where every file appears whole or not at all."""

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa

from lvd.infra.errors import InputError
from lvd.infra.object_store import S3Files
from lvd.infra.patience import Patience

TEMPORARY = ".tmp"


class Storage:
    """Files below one root URI: a local folder, `s3://…`, or whatever fsspec knows.

    Names are relative, with forward slashes. Credentials and endpoints come from the environment, as the filesystem's
    own library reads them (for S3: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …), never from a recipe.
    patience: how long a request to S3 is tried again.
    """

    def __init__(self, root: str, patience: Patience | None = None) -> None:
        self._files: S3Files | PlainFiles
        try:
            if root.startswith(("s3://", "s3a://")):
                self._files = S3Files(root, patience)
            else:
                self._files = PlainFiles(root)
        except (ValueError, ImportError) as error:
            raise InputError(
                f"recipe.root must be a folder or a URI that fsspec knows, was {root!r}: {error}"
            ) from error
        self.fs, self.path = self._files.fs, self._files.path.rstrip("/")
        self.is_local = "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))
        self.root = self.path if self.is_local else root.rstrip("/")

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What this filesystem raises when it cannot be reached, read or written."""
        return self._files.errors

    def locate(self, name: str) -> str:
        return f"{self.path}/{name}" if name else self.path

    def uri(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    def exists(self, name: str) -> bool:
        return self._files.exists(self.locate(name))

    def names(self, folder: str) -> list[str]:
        """Names of what lies directly in a folder, sorted; empty if there is no such folder."""
        return self._files.names(self.locate(folder))

    def files(self, folder: str) -> Iterator[tuple[str, int]]:
        """Every file below a folder, in any order: its name below the root, and its bytes."""
        for name, size in self._files.below(self.locate(folder)):
            yield (f"{folder}/{name}" if folder else name), size

    def read_bytes(self, name: str) -> bytes:
        return self._files.read(self.locate(name))

    def read_span(self, name: str, start: int, length: int) -> pa.Buffer:
        """Bytes [start, start + length) of a file that has them, and no others: of a local file its own memory."""
        if self.is_local:
            with pa.memory_map(self.locate(name)) as file:
                file.seek(start)
                return file.read_buffer(length)
        return pa.py_buffer(self._files.span(self.locate(name), start, length))

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))

    def write_bytes(self, name: str, data: bytes) -> None:
        with self.whole_file(name) as path:
            path.write_bytes(data)

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())

    def create(self, name: str, data: bytes) -> bool:
        """True if the file was made, False if one of that name is already there; decided by the filesystem."""
        target = self.locate(name)
        if not self.is_local:
            return self._files.create(target, data)
        with self._temporary() as path:
            path.write_bytes(data)
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, target)  # fails if the target exists, and shows it whole
            except FileExistsError:
                return False
        return True

    def remove(self, name: str) -> None:
        self._files.remove(self.locate(name))

    def remove_files(self, names: list[str]) -> None:
        """Removes these files, in any order; those that are not there are no error."""
        self._files.remove_all([self.locate(name) for name in names])

    def remove_temporary(self) -> None:
        """Removes what an ended process left half written. Only the holder of the root's lease may call it."""
        shutil.rmtree(self.temporary_folder(), ignore_errors=True)
        self._files.remove_unfinished(self.path)

    @contextmanager
    def whole_file(self, name: str) -> Iterator[Path]:
        """A local path to write to; on leaving without an error the file moves to its name in one step.

        Local: fsync, then rename. Object store: one PUT or one completed multipart upload.
        """
        with self._temporary() as path:
            yield path
            if not self.is_local:
                self._files.put(path, self.locate(name))
                return
            with path.open("rb") as file:
                os.fsync(file.fileno())
            target = Path(self.locate(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)

    @contextmanager
    def _temporary(self) -> Iterator[Path]:
        folder = self.temporary_folder()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / uuid.uuid4().hex
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def temporary_folder(self) -> Path:
        """Where files lie that are not whole yet; it is made by the first of them."""
        if self.is_local:
            return Path(self.locate(TEMPORARY))
        return Path(tempfile.gettempdir()) / "lvd" / hashlib.sha256(self.root.encode()).hexdigest()[:16]

    def open(self, name: str) -> pa.NativeFile:
        """The file for reading: memory-mapped if it is local, else streamed."""
        if self.is_local:
            return pa.memory_map(self.locate(name))
        return pa.PythonFile(self._files.open(self.locate(name)), mode="r")


class PlainFiles:
    """Files by their path on a filesystem that fsspec knows, with one attempt each."""

    def __init__(self, root: str) -> None:
        self.fs, self.path = fsspec.core.url_to_fs(root)
        self.errors: tuple[type[Exception], ...] = (OSError,)

    def exists(self, path: str) -> bool:
        return self.fs.exists(path)

    def names(self, path: str) -> list[str]:
        self.fs.invalidate_cache(path)
        try:
            found = self.fs.ls(path, detail=False)
        except FileNotFoundError:
            return []
        return sorted(name for one in found if (name := str(one).rstrip("/").rsplit("/", 1)[-1]))

    def below(self, path: str) -> Iterator[tuple[str, int]]:
        """Every file below a folder: its name below it, and its bytes. Memory: the names in one folder."""
        for folder, _, files in self.fs.walk(path, detail=True):
            for name, about in files.items():
                yield f"{folder}/{name}"[len(path) + 1 :], about["size"] or 0

    def read(self, path: str) -> bytes:
        return self.fs.cat_file(path)

    def span(self, path: str, start: int, length: int) -> bytes:
        return self.fs.cat_file(path, start=start, end=start + length)

    def open(self, path: str) -> Any:
        return self.fs.open(path, "rb")

    def create(self, path: str, data: bytes) -> bool:
        with suppress(FileExistsError):
            self.fs.pipe_file(path, data, mode="create")
            return True
        return False

    def put(self, local: Path, path: str) -> None:
        self.fs.put_file(str(local), path)

    def remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self.fs.rm(path, recursive=True)

    def remove_all(self, paths: list[str]) -> None:
        for path in paths:
            with suppress(FileNotFoundError):
                self.fs.rm_file(path)

    def remove_unfinished(self, path: str) -> None:
        """Nothing: what is not whole lies in the temporary folder."""
