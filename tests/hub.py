"""A hub of datasets on loopback: the few requests that a push makes, answered as the real one documents them."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hub-token-of-a-test"


class Hub:
    """What the hub holds. lfs: digest → bytes; files: name → (bytes, digest, or None for a small text)."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.repos: dict[str, dict[str, Any]] = {}
        self.lfs: dict[str, bytes] = {}
        self.files: dict[str, tuple[bytes, str | None]] = {}
        self.commits: list[str] = []
        self.tokens: set[str | None] = set()
        self.refuses: int | None = None  # answers every request with this status
        self.refuses_after: int | None = None  # so many requests, with 403

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        path = path.partition("?")[0]
        if method == "PUT":
            digest = path.rsplit("/", 1)[1]
            assert sha256(body).hexdigest() == digest
            self.lfs[digest] = body
            return 200, {}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if name in self.repos:
                return 409, {"error": "You already created this dataset repo", "url": self.url(name)}
            self.repos[name] = asked
            return 200, {"url": self.url(name), "id": name, "name": name}
        if method == "GET" and (name := path.removeprefix("/api/datasets/")) in self.repos:
            is_private = self.repos[name].get("visibility") == "private"
            return 200, {"_id": "1", "id": name, "sha": self.head, "private": is_private, "siblings": []}
        if path == "/api/validate-yaml":
            return 200, {"warnings": [], "errors": []}
        if "/tree/" in path:
            return 200, [self.entry(name) for name in self.files]
        if "/preupload/" in path:
            names = [one["path"] for one in json.loads(body)["files"]]
            modes = [{"path": n, "uploadMode": "lfs" if n.endswith((".tar", ".parquet")) else "regular"} for n in names]
            return 200, {"files": [{**one, "shouldIgnore": False, "oid": None} for one in modes]}
        if path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            return 200, {"transfer": "basic", "objects": [self.action(one) for one in objects]}
        if "/commit/" in path:
            return self.commit([json.loads(line) for line in body.splitlines()])
        return 404, {"error": f"{method} {path}"}

    @property
    def head(self) -> str:
        return f"{len(self.commits):040x}"

    def url(self, name: str) -> str:
        return f"{self.endpoint}/datasets/{name}"

    def entry(self, name: str) -> dict[str, Any]:
        data, digest = self.files[name]
        lfs = {"lfs": {"oid": digest, "size": len(data), "pointerSize": 134}} if digest else {}
        return {"type": "file", "path": name, "size": len(data), "oid": sha256(data).hexdigest()[:40], **lfs}

    def action(self, one: dict[str, Any]) -> dict[str, Any]:
        upload = {"upload": {"href": f"{self.endpoint}/lfs/{one['oid']}", "header": {}}}
        return {**one, **({} if one["oid"] in self.lfs else {"actions": upload})}

    def commit(self, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        header = lines[0]["value"]
        if header["parentCommit"] != self.head:
            return 412, {"error": "A commit has happened since. Please refresh and try again."}
        self.commits.append(header["summary"])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                self.files[value["path"]] = (base64.b64decode(value["content"]), None)
            elif line["key"] == "lfsFile":
                self.files[value["path"]] = (self.lfs[value["oid"]], value["oid"])
            else:
                assert line["key"] == "deletedFile"
                del self.files[value["path"]]
        return 200, {"success": True, "commitOid": self.head, "commitUrl": f"{self.endpoint}/datasets/me/set/commit/aa"}


@contextmanager
def served() -> Iterator[Hub]:
    """A hub that answers until it is left."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.body()
            is_upload = self.command == "PUT"
            if not is_upload:
                hub.tokens.add(self.headers["Authorization"])
            is_known = is_upload or self.headers["Authorization"] == f"Bearer {TOKEN}"
            status, said = hub.answer(self.command, self.path, body) if is_known else (401, {"error": "who are you"})
            if hub.refuses_after is not None:
                hub.refuses_after -= 1
            if hub.refuses or (hub.refuses_after is not None and hub.refuses_after < 0):
                status, said = hub.refuses or 403, {"error": "not now"}
            data = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = answer

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def log_message(self, *_: Any) -> None:
            """Nothing: the test says what went wrong."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
