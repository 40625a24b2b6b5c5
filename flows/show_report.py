"""`lvd report`: where the report of a version lies."""

import re
import webbrowser
from pathlib import Path

from rich.console import Console

from lvd.flows.shelf import NotThere, Shelf
from lvd.infra.errors import InputError


def report_of(root: str, version: str | None) -> str:
    """The path or URI of the report of a version, of the newest if none is named.

    Raises InputError if there is no such version.
    """
    shelf = Shelf(root)
    if version is not None and not re.fullmatch(r"v?[1-9][0-9]{0,8}", version):
        raise InputError(f"--version must be a published one such as v1, was {version!r}: `lvd status` lists them")
    try:
        edition = shelf.edition(int(version.lstrip("v")) if version else None)
    except NotThere as error:
        known = ", ".join(f"v{number}" for number in shelf.numbers())
        raise InputError(f"--version must be one of {known}, was {version!r}") from error
    return shelf.storage.uri(f"{edition.record['curated']}/{edition.record['report']}")


def show_report(root: str, version: str | None, opened: bool) -> None:
    """Says where the report lies, and shows it in the browser if asked to."""
    uri = report_of(root, version)
    Console(highlight=False, soft_wrap=True).print(uri, markup=False)
    if opened and "://" in uri:
        raise InputError(f"--open needs a report on this machine, was {uri}: `lvd serve {root} --open` shows it")
    if opened and not webbrowser.open(Path(uri).absolute().as_uri()):
        raise InputError(f"--open needs a browser that can be started here, was none: open {uri} in one")
