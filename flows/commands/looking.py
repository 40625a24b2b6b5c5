"""Commands that say what is on a root, and what became of an image."""

import sys
from typing import Annotated

import typer

from lvd.flows.commands.options import Browser, OfVersion, OnRoot


def status(root: str) -> None:
    """What is there, what is complete, what the last run no longer uses."""
    from lvd.flows.show import show_status

    show_status(root)


def metrics(root: str) -> None:
    """The metrics of a root as Prometheus reads them: of the last run, or of the one that is under way."""
    from lvd.flows.observing import metrics_text

    sys.stdout.write(metrics_text(root))


def why(key: str, root: OnRoot = "demo") -> None:
    """The fate of a URL, a source path or an image id: where it went, its score, because of which other image."""
    from lvd.flows.show import show_why

    show_why(root, key)


def find(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="A picture, or a folder of pictures.")],
    root: OnRoot = "demo",
    neighbours: Annotated[int, typer.Option("--neighbours", min=0, max=1000, help="How many like it are listed.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="For machines: a list of findings.")] = False,
) -> None:
    """Whether a picture, or a copy of it, is in the pool or the published set; and what is like it."""
    from lvd.flows.show import show_findings

    show_findings(root, images, neighbours, as_json)


def report(root: str, version: OfVersion = None, opened: Browser = False) -> None:
    """Where the report of a version lies."""
    from lvd.flows.show_report import show_report

    show_report(root, version, opened)


def serve(
    root: str,
    host: Annotated[str, typer.Option("--host", help="Beyond loopback, whoever reaches it sees all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8470,
    opened: Browser = False,
) -> None:
    """The report, the images and the whole ledger as pages on this machine, searched live. Ctrl-C ends it."""
    from lvd.flows.listening import serve as serve_root

    serve_root(root, host=host, port=port, opened=opened)


def explore(
    root: str,
    version: OfVersion = None,
    sample: Annotated[
        int, typer.Option("--sample", min=2, help="Images, drawn evenly; all if there are less.")
    ] = 20_000,
    export: Annotated[
        str | None, typer.Option("--export", help="Writes the Parquet file for any explorer, and starts none.")
    ] = None,
    port: Annotated[int, typer.Option("--port", min=1024, max=65535, help="On 127.0.0.1.")] = 5055,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
) -> None:
    """A map of the published set by its vectors, in Embedding Atlas: pictures, provenance, neighbours."""
    from lvd.flows.show import show_explorer

    show_explorer(root, version=version, sample=sample, export=export, port=port, seed=seed)


COMMANDS = (report, serve, why, find, explore, status, metrics)
