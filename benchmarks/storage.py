"""MB/s and listings of `infra/storage.py` on S3, beside plain s3fs on the same server.

    python benchmarks/storage.py [--quick]

The server is moto in a process of its own on loopback; what it costs is in every figure, and it shares the cores. Put:
files from disk, whole. Get: the same files, compared byte for byte; small ones by `read_bytes` and `cat_file`, large
ones as shards are read, by `open` in pieces of 8 MiB. Listing: 100,000 objects in one folder, which a server of our own
makes up page by page, by `Storage.names` and by `fs.find`; the memory is what the process grew by at its peak, each
listing in a fresh process. The sides of put and get take turns; the best of three rounds each.
"""

import argparse
import json
import logging
import multiprocessing
import os
import platform
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from measuring import expect

BUCKET = "lvd-benchmark"
ROUNDS = 3
MIN_RATIO = 0.7  # every block of a large file is a request of its own, and costs moto a copy of the file
MIN_LISTING_RATIO = 0.9
LISTED, PAGE = 100_000, 1000
CONTENTS = (
    "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
    '<ETag>"d41d8cd98f00b204e9800998ecf8427e"</ETag><Size>0</Size><StorageClass>STANDARD</StorageClass></Contents>'
)
SMALL = 1 << 20
PIECE = 8 << 20


def serve_moto(told: Connection) -> None:
    """Runs moto with one bucket, and tells its URL, until it is told to end."""
    from moto.s3.models import s3_backends
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    s3_backends["123456789012"]["aws"].create_bucket(BUCKET, "us-east-1")
    host, port = server.get_host_and_port()
    told.send(f"http://{host}:{port}")
    told.recv()
    server.stop()


def serve_listing(told: Connection) -> None:
    """Answers every GET with a page of the listing: moto goes through all objects for every page, and takes minutes."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Lister)
    threading.Thread(target=server.serve_forever).start()
    told.send(f"http://127.0.0.1:{server.server_port}")
    told.recv()
    server.shutdown()
    server.server_close()


class Lister(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        asked = parse_qs(urlsplit(self.path).query)
        prefix, start = asked["prefix"][0], int(asked.get("continuation-token", ["0"])[0])
        end = min(start + PAGE, LISTED)
        more = f"<NextContinuationToken>{end}</NextContinuationToken>" if end < LISTED else ""
        found = "".join(CONTENTS.format(key=f"{prefix}{name_of(number)}") for number in range(start, end))
        truncated = "true" if more else "false"
        body = f"<ListBucketResult><IsTruncated>{truncated}</IsTruncated>{more}{found}</ListBucketResult>".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def name_of(number: int) -> str:
    return f"data-{number:06d}-of-{LISTED:06d}.arrow"


@contextmanager
def served(serve: Callable[[Connection], None]) -> Iterator[None]:
    """A server, and the environment that reaches it."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,))
    process.start()
    os.environ.update(AWS_ACCESS_KEY_ID="benchmark", AWS_SECRET_ACCESS_KEY="benchmark", AWS_DEFAULT_REGION="us-east-1")
    os.environ["AWS_ENDPOINT_URL"] = mine.recv()
    try:
        yield
    finally:
        mine.send("end")
        process.join()


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def transfers(folder: Path, num_files: int, num_bytes: int) -> dict[str, dict[str, float]]:
    """MB/s of put and get on both sides, of files of one size."""
    import pyarrow as pa
    import s3fs

    from lvd.infra.storage import Storage

    storage, plain = Storage(f"s3://{BUCKET}/root"), s3fs.S3FileSystem(skip_instance_cache=True)
    files = {f"file-{number}": random.Random(number).randbytes(num_bytes) for number in range(num_files)}
    for name, data in files.items():
        (folder / name).write_bytes(data)

    def put_ours() -> None:
        for name in files:
            with storage.whole_file(f"ours/{name}") as path:
                path.hardlink_to(folder / name)

    def put_plain() -> None:
        for name in files:
            plain.put_file(str(folder / name), f"{BUCKET}/root/plain/{name}")

    def opened(path: str) -> pa.NativeFile:
        return pa.PythonFile(plain.open(path, "rb"), mode="r")

    def read(open_: Callable[[str], pa.NativeFile], whole: Callable[[str], bytes], name: str) -> bytes:
        if num_bytes <= SMALL:
            return whole(name)
        with open_(name) as file:
            return b"".join(iter(lambda: file.read(PIECE), b""))

    sides = {
        "put": {"ours": put_ours, "peer": put_plain},
        "get": {
            "ours": lambda: [read(storage.open, storage.read_bytes, f"ours/{name}") for name in files],
            "peer": lambda: [read(opened, plain.cat_file, f"{BUCKET}/root/plain/{name}") for name in files],
        },
    }
    found: dict[str, dict[str, float]] = {}
    for what, works in sides.items():
        times: dict[str, list[float]] = {side: [] for side in works}
        for _ in range(ROUNDS):
            for side, work in works.items():
                spent, result = seconds(work)
                times[side].append(spent)
                expect(result in (None, list(files.values())), f"{side} must read what was written")
        found[what] = {side: num_files * num_bytes / 1e6 / min(spent) for side, spent in times.items()}
    return found


def list_ours() -> list[str]:
    from lvd.infra.storage import Storage

    return Storage(f"s3://{BUCKET}/root").names("many")


def list_plain() -> list[str]:
    import s3fs

    return [path.rsplit("/", 1)[-1] for path in s3fs.S3FileSystem().find(f"{BUCKET}/root/many")]


def listing(work: Callable[[], list[str]]) -> tuple[float, float, list[str]]:
    """CPU seconds, the MiB that the process grew by, and the names."""
    import s3fs

    from lvd.infra.storage import Storage

    s3fs.S3FileSystem().connect()  # clients and their modules are not counted
    Storage(f"s3://{BUCKET}/root").fs.connect()
    before, start = peak_mib(), time.process_time()
    names = work()
    return time.process_time() - start, peak_mib() - before, names


def peak_mib() -> float:
    """Of this program alone: `ru_maxrss` goes on from the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def alone(work: Callable[[], list[str]]) -> tuple[float, float, list[str]]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(listing, (work,))


def rows(sizes: dict[str, tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """The lines of the results."""
    machine = (
        f"best of {ROUNDS} rounds, moto {version('moto')} in its own process on the same cores; "
        f"Python {platform.python_version()}, s3fs {version('s3fs')}, aiobotocore {version('aiobotocore')}"
    )
    with served(serve_moto):
        for size, (num_files, num_bytes) in sizes.items():
            with tempfile.TemporaryDirectory() as folder:
                found = transfers(Path(folder), num_files, num_bytes)
            for what, rate in found.items():
                ratio = rate["ours"] / rate["peer"]
                yield {
                    "name": f"storage_{what}_{size}", "ours": round(rate["ours"], 1), "peer": round(rate["peer"], 1),
                    "unit": "MB/s", "ratio": round(ratio, 2), "target": MIN_RATIO, "met": ratio >= MIN_RATIO,
                    "quality": {"files": num_files, "bytes": num_bytes, "read_back_equal": True},
                    "counted": f"{machine}; peer: put_file, cat_file and open of s3fs, its own settings",
                }  # fmt: skip
    with served(serve_listing):
        ours, peer = alone(list_ours), alone(list_plain)
    everything = [name_of(number) for number in range(LISTED)]
    expect(ours[2] == everything == peer[2], "both must list every object")
    ratio = peer[0] / ours[0]
    yield {
        "name": "storage_list", "ours": round(ours[0], 2), "peer": round(peer[0], 2), "unit": "CPU s",
        "ratio": round(ratio, 2), "target": MIN_LISTING_RATIO, "met": ratio >= MIN_LISTING_RATIO,
        "quality": {"objects": LISTED, "names_equal": True, "grew_by_mib": [round(ours[1], 1), round(peer[1], 1)]},
        "counted": "the client's part of one listing each in a fresh process, pages of 1,000; peer: find of s3fs",
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller files")
    options = parser.parse_args()
    if options.quick:
        lines = list(rows({"small": (20, 100_000), "shard": (2, 30 << 20), "parts": (1, 120 << 20)}))
    else:
        lines = list(rows({"small": (100, 100_000), "shard": (4, 30 << 20), "parts": (1, 250 << 20)}))
    sys.stdout.writelines(json.dumps(line) + "\n" for line in lines)
    return 0 if all(line["met"] for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
