"""`lvd serve` as a process: its address, its end."""

import os
import shutil
import socket
import tempfile
import threading
import webbrowser
from typing import Any

import uvicorn
from rich.console import Console

from lvd.flows.serving import application
from lvd.flows.shelf import Shelf
from lvd.infra.errors import InputError
from lvd.infra.guard import is_loopback

MAX_CONNECTIONS = 128
GRACE_S = 3.0  # for answers that are on their way when it is to end


def serve(root: str, *, host: str, port: int, opened: bool = False) -> None:
    """Serves the root until it is interrupted. port: 0 takes a free one. opened: shows it in the browser.

    Raises InputError if nothing was published there, or the address cannot be had.
    """
    Shelf(root).edition()
    with bound(host, port) as listening, tempfile.TemporaryDirectory(prefix="lvd-") as folder:
        address = f"http://{shown_host(host)}:{listening.getsockname()[1]}/"
        console = Console(highlight=False, soft_wrap=True)
        console.print(address)
        if not is_loopback(listening.getsockname()[0]):
            console.print("whoever reaches this address sees every picture and the whole ledger: there is no password")
        config = uvicorn.Config(
            application(root, host, folder),
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            limit_concurrency=MAX_CONNECTIONS,
        )
        if opened:
            threading.Thread(target=open_browser, args=(address, console), daemon=True).start()
        try:
            Server(config, folder).run(sockets=[listening])
        except KeyboardInterrupt:
            return


class Server(uvicorn.Server):
    """Ends within GRACE_S of a signal, whatever it is about to compare: it reads only. folder: is removed."""

    def __init__(self, config: uvicorn.Config, folder: str) -> None:
        super().__init__(config)
        self._folder = folder

    def handle_exit(self, sig: int, frame: Any) -> None:
        super().handle_exit(sig, frame)
        leaving = threading.Timer(GRACE_S, self._leave)
        leaving.daemon = True
        leaving.start()

    def _leave(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        os._exit(0)  # the threads that compare cannot be stopped


def open_browser(address: str, console: Console) -> None:
    """Shows it; a browser in the terminal returns only when it is closed."""
    if not webbrowser.open(address):
        console.print("no browser could be started here: open the address in one")


def bound(host: str, port: int) -> socket.socket:
    """A listening socket. Raises InputError if the address cannot be had."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.create_server(address, family=family, backlog=MAX_CONNECTIONS)
    except (OSError, OverflowError, UnicodeError) as error:
        raise InputError(
            f"--host and --port must be an address of this machine that is free, were {host} and {port} ({error}): "
            "choose another, or --port 0 for a free one"
        ) from error
    return listening


def shown_host(host: str) -> str:
    """The host as it stands in an address; for all of a machine's addresses its name."""
    if host in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host
