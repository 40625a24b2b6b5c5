"""The miniature web of a recipe: drawn once, served on loopback while the flow runs."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lvd.infra.errors import InputError
from lvd.infra.storage import Storage


def folder_of(root: str, settings: dict[str, Any]) -> Path:
    """Where the miniature web is drawn: named by the recipe, else beside the stages, else in the temporary folder."""
    if settings.get("folder"):
        return Path(settings["folder"]).absolute()
    storage = Storage(root)
    name = f"miniature-{settings.get('seed', 0)}-{settings.get('scale', 1)}-{settings.get('port', 8765)}"
    return Path(storage.root).absolute() / name if storage.is_local else Path(tempfile.gettempdir()) / "lvd" / name


def is_drawn(recipe: Any) -> bool:
    """Whether the recipe's miniature web is there, or none is wanted."""
    return recipe.miniature is None or (folder_of(recipe.root, recipe.miniature.model_dump()) / "truth.json").exists()


@contextmanager
def served(recipe: Any) -> Iterator[None]:
    """Serves the recipe's miniature web, if it has one, drawing it first where it is not there yet."""
    if recipe.miniature is None:
        yield
        return
    from lvd.tests.miniature import build
    from lvd.tests.web import MiniatureWeb

    settings = recipe.miniature
    folder = folder_of(recipe.root, settings.model_dump())
    base_url = f"http://127.0.0.1:{settings.port}"
    if not is_drawn(recipe):
        build(folder, base_url=base_url, seed=settings.seed, scale=settings.scale)
    try:
        web = MiniatureWeb(folder, port=settings.port)
        web.__enter__()
    except OSError as error:
        raise InputError(
            f"recipe.miniature.port must be free on this machine, was {settings.port} ({error.strerror}): "
            "choose another with --set miniature.port=…"
        ) from error
    try:
        yield
    finally:
        web.__exit__(None, None, None)
