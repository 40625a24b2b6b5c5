"""What the scripts of the report read and are: data as JSON that no text of it can leave, and the scripts themselves.

Every row that tells of one image stands on a line of its own that begins with its image id. No picture is in the data:
scripts take it from its `<img data-image-id>`, so that what is taken out of the page is gone from them too.
"""

import base64
import hashlib
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

SCRIPTS = ("page", "gallery", "tabs", "map", "search", "bars")  # in the order in which they stand


def text_of(name: str) -> str:
    """A file of the page: style, script or a part of the template."""
    return files("lvd.tasks").joinpath("report_parts", name).read_text("utf-8")


def scripts() -> Markup:
    """All scripts of the page as one."""
    return Markup("\n".join(["(() => {", '"use strict";', *(text_of(f"{name}.js") for name in SCRIPTS), "})();"]))


def digest(script: str) -> str:
    """What a content security policy names this script by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def rows(lines: Iterable[list[Any]]) -> Markup:
    """A JSON array with a line for each row, and a null at its end.

    `<`, `>`, `&` and `'` are escaped, so that no text can end the element which holds it.
    """
    return (
        Markup("[\n") + Markup("").join(htmlsafe_json_dumps(line) + Markup(",\n") for line in lines) + Markup("null]")
    )
