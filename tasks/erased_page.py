"""A report without the pictures and the names of images that were taken down."""

import html as markup
import json
import re
from collections.abc import Iterable

from markupsafe import escape

TAKEN_DOWN = "taken down"
BOX = f'<figure class="pic"><div><span class="muted">{TAKEN_DOWN}</span></div><figcaption></figcaption></figure>'


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
    """The page with another word for each of these keys and URLs, as HTML and as JSON have them."""
    for name in sorted(set(names), key=len, reverse=True):
        spelled = json.dumps(name)[1:-1], json.dumps(name, ensure_ascii=False)[1:-1]
        for text in {
            name,
            str(escape(name)),
            markup.escape(name),
            *spelled,
            *(s.replace("<", "\\u003c") for s in spelled),
        }:
            page = page.replace(text, TAKEN_DOWN)
    return page
