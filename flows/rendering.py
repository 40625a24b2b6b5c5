"""The pages of `lvd serve` as HTML, in the dress of the report. Everything from the web is escaped."""

import functools
from importlib.resources import files
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, FunctionLoader, StrictUndefined

from lvd.tasks import dress, wording

FOLDER = "serve"
FILTERS = {name: getattr(wording, name) for name in ("count", "duration", "size", "tail", "short", "gpu_hours")}


def source(name: str) -> str:
    """A file of the folder with the templates."""
    return files("lvd.flows").joinpath(FOLDER, name).read_text("utf-8")


@functools.cache
def environment() -> Environment:
    """Templates by their names in the folder."""
    loader = FunctionLoader(source)
    made = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=loader)
    made.filters |= FILTERS
    made.globals |= {"share": wording.share, "link": link}
    return made


def page(template: str, said: dict[str, Any]) -> str:
    """The page that says it."""
    return environment().get_template(f"{template}.html.jinja").render(**said)


def link(path: str, **values: Any) -> str:
    """An address of this server with parameters; those that are empty are left out."""
    given = {name: value for name, value in values.items() if value not in (None, "")}
    return f"{path}?{urlencode(given)}" if given else path


@functools.cache
def style() -> str:
    """The style sheet: the report's, and what only these pages have."""
    return dress.dressed("serve.css.jinja")
