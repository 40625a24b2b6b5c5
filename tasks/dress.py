"""How pages are made from templates: the words and the style that they share."""

from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from lvd.tasks import page_data
from lvd.tasks.ledger_sample import cut
from lvd.tasks.wording import count, duration, gpu_hours, rate, share, short, size, tail, without_credentials


def environment(**more: Any) -> Environment:
    """Templates beside this module, and parts of them in the folder `report_parts`; everything is escaped.

    more: what all of them are given.
    """
    made = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(_template),
    )
    made.filters |= {"count": count, "duration": duration, "size": size, "tail": tail, "short": short, "cut": cut}
    made.filters |= {"clean": without_credentials, "gpu_hours": gpu_hours, "rate": rate}
    made.globals |= {"share": share, "style": Markup(page_data.text_of("style.css")), **more}
    return made


def dressed(name: str, **values: Any) -> str:
    """A page without a script, in the dress of the report: the template of that name, with these values."""
    return environment().get_template(name).render(values)


def _template(name: str) -> str:
    room = files("lvd.tasks")
    return (
        (room if "/" not in name else room.joinpath("report_parts"))
        .joinpath(name.rpartition("/")[2])
        .read_text("utf-8")
    )
