"""A server of files on loopback, in a process of its own: nginx, and where there is none, a small asyncio server."""

import asyncio
import multiprocessing
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

from measuring import expect

from lvd.tests.running import free_port

NGINX = """
daemon off; master_process off; pid nginx.pid; error_log stderr;
events {{ worker_connections 4096; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000; default_type image/jpeg;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  server {{ listen 127.0.0.1:{port}; root www; }}
}}
"""


@contextmanager
def served(base: Path, photos: list[bytes], names: list[str]) -> Iterator[tuple[str, str]]:
    """(URL, kind) of a server with photograph i % n under the i-th name, in a process of its own."""
    nginx = shutil.which("nginx")
    with served_by_nginx(nginx, base, photos, names) if nginx else served_by_asyncio(photos, names) as port:
        yield f"http://127.0.0.1:{port}", "nginx" if nginx else "a small asyncio server"


@contextmanager
def served_by_nginx(nginx: str, base: Path, photos: list[bytes], names: list[str]) -> Iterator[int]:
    """The port of an nginx of one process."""
    (base / "www").mkdir(parents=True)
    for i, name in enumerate(names):
        if i < len(photos):
            (base / "www" / name).write_bytes(photos[i])
        else:
            os.link(base / "www" / names[i % len(photos)], base / "www" / name)
    port, log = free_port(), base / "nginx.log"
    (base / "nginx.conf").write_text(NGINX.format(port=port))
    with log.open("w") as output:
        process = subprocess.Popen([nginx, "-p", str(base), "-c", "nginx.conf"], stdout=output, stderr=output)
    try:
        while not is_listening(port):
            expect(process.poll() is None, f"nginx ended with status {process.returncode}: {log.read_text()}")
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()


def is_listening(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def served_by_asyncio(photos: list[bytes], names: list[str]) -> Iterator[int]:
    """The port of a server that holds everything in memory."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=serve, args=(photos, names, sender), daemon=True)
    process.start()
    try:
        yield receiver.recv()
    finally:
        process.terminate()
        process.join()


def serve(photos: list[bytes], names: list[str], sender: Connection) -> None:
    """Sends its port, then answers GET until the process is ended."""
    bodies = {f"/{name}".encode(): photos[i % len(photos)] for i, name in enumerate(names)}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            is_last = False
            while not is_last:
                request = await reader.readuntil(b"\r\n\r\n")
                is_last = b"\r\nconnection: close" in request.lower()
                body = bodies[request.split(b" ", 2)[1]]
                head = f"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(head.encode())
                writer.write(body)
                await writer.drain()
        writer.close()

    async def forever() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
        sender.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(forever())
