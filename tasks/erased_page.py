"""A report without the pictures and the names of images that were taken down."""

import html as markup
import json
import re
from collections.abc import Iterable
from functools import reduce

from markupsafe import escape

from lvd.tasks.ledger_sample import cut
from lvd.tasks.wording import tail

TAKEN_DOWN = "taken down"
BOX = f'<figure class="pic"><div><span class="muted">{TAKEN_DOWN}</span></div><figcaption></figcaption></figure>'

NOTICE = (
    '<p class="muted">Images were taken down after this page was written: they are not shown here. The numbers are '
    "those of the day.</p>"
)
IN_SCRIPTS = (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"), ("'", "\\u0027"))  # as Jinja writes JSON
IMAGE_ID = re.compile(r'"([0-9a-f]{32})"')
PICTURE = re.compile(r' data-image-id="([0-9a-f]{32})"')
LINE = re.compile(r'^(\["[0-9a-f]{0,32}",.*\]),$', re.MULTILINE)  # of the ledger and the map, as `page_data` has them
CELL = re.compile(r'<(?:li|td class="text"|th scope="row")>([^<]+)<')
TAILS = (40, 60, 80)  # characters that tables and pictures show of the end of a long name
BEFORE, AFTER = r"(?<![\w/.%@-])", r"(?![\w/?%=~+@#\\-]|\.\w|&amp;|&\w+=)"  # what would make it a part of another name


def named_in(page: str) -> tuple[set[str], set[str]]:
    """The image ids that a page has, and its keys and domains, among other words; not the keys in figures."""
    lines = [json.loads(line) for line in LINE.findall(page)]
    keys = {line[1] for line in lines if isinstance(line[1], str)}
    return set(IMAGE_ID.findall(page)), keys | {markup.unescape(cell) for cell in CELL.findall(page)}


def pictured_in(page: str) -> set[str]:
    """The image ids of the pictures of a page."""
    return set(PICTURE.findall(page))


def without_pictures(page: str, image_ids: Iterable[str]) -> str:
    """The page with an empty box for every picture of these images, `<img … data-image-id="…">`, and for all that its
    figure says of it; a picture in a table of a script, `"id": "data:…"`, is empty."""
    there = set(IMAGE_ID.findall(page))
    for image_id in there.intersection(image_ids):
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
    """The page with another word for each of these keys, URLs and domains, as HTML and as JSON have them, and as they
    are cut short. A name within a longer one is that one's."""
    for name in sorted(set(names), key=len, reverse=True):
        for text in _spelled(name):
            if text in page:
                page = re.sub(BEFORE + re.escape(text) + AFTER, TAKEN_DOWN, page)
    return page


def _spelled(name: str) -> list[str]:
    """What a page can have for a name, the longest first."""
    found = set()
    for text in {name, cut(name), *(tail(name, length) for length in TAILS)}:
        escaped = [json.dumps(text, ensure_ascii=is_ascii)[1:-1] for is_ascii in (True, False)]
        escaped += [reduce(lambda made, pair: made.replace(*pair), IN_SCRIPTS, one) for one in escaped]
        found |= {text, str(escape(text)), markup.escape(text), *escaped}
    return sorted(found, key=len, reverse=True)


def with_notice(page: str) -> str:
    """The page with a line that says that it was changed, once."""
    begin = page.find("<main")
    place = page.find(">", begin) + 1
    return page if begin < 0 or NOTICE in page else page[:place] + NOTICE + page[place:]
