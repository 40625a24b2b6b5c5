"""Small roots with a published version, written by hand in a moment; and a server of such a root."""

import http.client
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvicorn
from PIL import Image

from lvd.flows.listening import bound
from lvd.flows.serving import application
from lvd.infra.committing import commit
from lvd.infra.shards import StageDir
from lvd.infra.storage import Storage
from lvd.infra.writing import write_shard
from lvd.tasks import schemas
from lvd.tests.answers import image_id

STAGES = {"not_retrieved": "retrieve", "copy": "copies", "benchmark_copy": "copies", "nsfw": "screen"}
RECIPE = {"name": "by-hand", "publish": {"title": "By <hand>"}, "screen": {"faces": None}, "compute": {"gpus": 0}}


def picture(number: int, size: tuple[int, int] = (60, 40)) -> bytes:
    """A PNG of one colour."""
    file = io.BytesIO()
    Image.fromarray(np.full((size[1], size[0], 3), number % 256, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def row_of(key: str, reason: str = "retrieved", number: int = 0, **more: Any) -> dict[str, Any]:
    """A candidate: what came of it (`retrieved`: published), and its picture; a reason `http_404` has none."""
    data = None if reason.startswith("http_") else more.pop("data", picture(number))
    state = "kept" if reason == "retrieved" else "failed" if data is None else "dropped"
    stage = "publish" if state == "kept" else "download" if data is None else STAGES.get(reason, reason)
    said = {"key": key, "role": "pool", "source": "crawl", "state": state, "stage": stage, "reason": reason}
    return said | {"image_id": image_id(data) if data else None, "data": data, **more}


def write_version(
    root: str,
    number: int,
    shards: list[list[dict[str, Any]]],
    *,
    has_images: bool = True,
    minute: int = 0,
    faces: dict[str, list[list[float]]] | None = None,
) -> None:
    """A version with these candidates: a shard of images and one of the ledger for each of the lists.

    faces: key → boxes, where a model looked for them; then they are blurred.
    """
    images = written(root, "download", f"of-v{number}", schemas.IMAGES, [stored(rows) for rows in shards])
    ledger = [[row for row in rows if not row["data"]] + [row for row in rows if row["data"]] for rows in shards]
    version = f"v{number}"
    written(root, f"curated/{version}", "ledger", schemas.LEDGER, ledger, inputs={"images": [images.directory]})
    kept = [row for rows in shards for row in stored(rows) if row["state"] == "kept"]
    published = [{"retrieved_for": ["birds"], **row, "role": "retrieved"} for row in kept]
    written(root, "curated", version, schemas.CURATED, [published])
    repeated = {"role": schemas.REPEATED, "retrieved_for": []}  # in the selection only
    selection = written(root, "selection", f"of-{version}", schemas.SELECTION, [[*published, repeated]])
    states = {s: sum(row["state"] == s for rows in shards for row in rows) for s in ("kept", "dropped", "failed")}
    of_images = {"download": [images.directory], "selection": [selection.directory]}
    directories = of_images if has_images else {"imported": ["imported/x"]}
    record = {
        "run_id": f"20260101T00{minute:02d}00Z-{version}",
        "version": version,
        "curated": f"curated/{version}",
        "report": "report.html" if has_images else "README.md",
        "ledger": states,
        "candidates": sum(states.values()),
        "computed": {"download": 1},
        "seconds": 1.0,
        "recipe": RECIPE,
        "directories": directories,
        "collections": [],
        "cost": [],
        "node": "here",
    }
    if faces is not None:
        record["recipe"] = RECIPE | {"screen": {"faces": {"blur_min_score": 0.3}}}
        seen, first = [], 0
        for rows in map(stored, shards):
            mine = [(n, row) for n, row in enumerate(rows, first) if row["key"] in faces]
            seen.append([{"row": n, **row, "face_boxes": faces[row["key"]]} for n, row in mine])
            first += len(rows)
        content = written(root, "content", "x", schemas.CONTENT, seen, inputs={"images": images.directory})
        directories["content"] = [content.directory]
    storage = Storage(root)
    storage.write_bytes(f"curated/{version}/report.html", b"<!DOCTYPE html><title>report</title>")
    storage.write_json(f"runs/{record['run_id']}.json", record)
    latest = {"version": version, "directory": f"curated/{version}", "run": f"runs/{record['run_id']}.json"}
    storage.write_json("curated/latest.json", latest)


def stored(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The candidates of which an image came, as they are stored."""
    facts = {"width": 60, "height": 40, "frames": 1, "format": "PNG"}
    return [
        {**facts, **row, "image": {"bytes": row["data"], "path": None}, "num_bytes": len(row["data"])}
        for row in rows
        if row["data"]
    ]


def written(
    root: str, stage: str, name: str, schema: Any, shards: list[list[dict[str, Any]]], inputs: Any = None
) -> StageDir:
    target = StageDir(root=root, stage=stage, fingerprint=name)
    for ref, rows in zip(target.planned(len(shards)), shards, strict=True):
        with write_shard(ref, schema, {}) as shard:
            for row in rows:
                shard.keep({column: row.get(column) for column in schema.names})
                if schema is schemas.LEDGER:
                    shard.reasons[row["state"]] += 1
    commit(target, len(shards), config={}, inputs=inputs or {})
    return target


@dataclass(frozen=True)
class Answer:
    """What a server answered."""

    status: int
    headers: dict[str, str]
    body: bytes = field(repr=False)

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Served:
    """A running server."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str, *, method: str = "GET", body: bytes | None = None, **headers: str) -> Answer:
        """The answer to one request; `_` in the name of a header is `-`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return Answer(answer.status, {n.lower(): v for n, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def page(self, path: str) -> str:
        answer = self.ask(path, Accept="text/html")
        assert answer.status == 200, (path, answer)
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        return answer.text

    def api(self, path: str) -> Any:
        answer = self.ask(f"/api{path}")
        assert answer.status == 200, (path, answer)
        return answer.json()


@contextmanager
def served(root: str) -> Iterator[Served]:
    """The root, served in a thread on a free port."""
    with bound("127.0.0.1", 0) as listening:
        config = uvicorn.Config(application(root), log_level="warning", ws="none", server_header=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield Served(listening.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(30)
