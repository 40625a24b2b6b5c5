"""A report without the pictures and the names of images that were taken down."""

import html as markup
import json
import re
from collections.abc import Iterable
from functools import reduce

from markupsafe import escape

from lvd.tasks.wording import cut

TAKEN_DOWN = "taken down"
BOX = f'<figure class="pic"><div><span class="muted">{TAKEN_DOWN}</span></div><figcaption></figcaption></figure>'

NOTICE = (
    '<p class="muted">Images were taken down after this page was written: they are no longer in this version, nor '
    "shown here. The numbers are those of the day; README.md has those of now.</p>"
)
IN_SCRIPTS = (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"), ("'", "\\u0027"))  # as Jinja writes JSON


def without_pictures(page: str, image_ids: Iterable[str]) -> str:
    """The page with an empty box for every picture of these images, `<img … data-image-id="…">`, and for all that its
    figure says of it; a picture in a table of a script, `"id": "data:…"`, is empty."""
    for image_id in image_ids:
        while (place := page.find(f'data-image-id="{image_id}"')) >= 0:
            begin, end, box = _figure(page, place)
            page = page[:begin] + box + page[end:]
        if f'"{image_id}"' in page:
            page = re.sub(rf'("{image_id}"\s*:\s*")data:[^"]*"', r'\1"', page)
    return page


def _figure(page: str, place: int) -> tuple[int, int, str]:
    """Begin and end of the figure around a place, and what stands for it; of the tag alone if there is no figure."""
    begin, before = page.rfind("<figure", 0, place), page.rfind("</figure>", 0, place)
    end = page.find("</figure>", place)
    if begin > before and end >= 0:
        return begin, end + len("</figure>"), BOX
    begin, end = page.rfind("<", 0, place), page.find(">", place)
    return begin, end + 1, f'<span class="muted">{TAKEN_DOWN}</span>'


def without_names(page: str, names: Iterable[str]) -> str:
    """The page with another word for each of these keys and URLs, as HTML and as JSON have them, cut or not."""
    known = set(names)
    for name in sorted(known | set(map(cut, known)), key=len, reverse=True):
        spelled = [json.dumps(name, ensure_ascii=is_ascii)[1:-1] for is_ascii in (True, False)]
        spelled += [reduce(lambda text, pair: text.replace(*pair), IN_SCRIPTS, text) for text in spelled]
        for text in {name, str(escape(name)), markup.escape(name), *spelled}:
            page = page.replace(text, TAKEN_DOWN)
    return page


def with_notice(page: str) -> str:
    """The page with a line that says that it was changed, once."""
    begin = page.find("<main")
    place = page.find(">", begin) + 1
    return page if begin < 0 or NOTICE in page else page[:place] + NOTICE + page[place:]
