"""Every page of the house can be made: its template is there, and knows its words."""

from pathlib import Path

import pytest

from lvd.tasks import dress, page_data

ROOM = Path(dress.__file__).parent
PAGES = sorted(path.name for path in ROOM.glob("*.html.jinja"))
PARTS = sorted(path.name for path in (ROOM / "report_parts").glob("*.jinja"))


@pytest.mark.parametrize("name", [*PAGES, *(f"parts/{name}" for name in PARTS)])
def test_a_template_knows_its_words(name: str) -> None:
    made = dress.environment(meaning=str)
    assert made.get_template(name)
    assert made.autoescape is True


def test_every_page_is_given_the_one_style() -> None:
    assert len(PAGES) >= 4
    template = dress.environment().from_string("<style>{{ style }}</style>")
    assert template.render() == f"<style>{page_data.text_of('style.css')}</style>"
