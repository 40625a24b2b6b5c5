"""A page from which pictures were taken: an empty box, and none of their names, however they are spelled."""

import html as markup
import json
from collections.abc import Callable

import pytest

from lvd.tasks import page_data
from lvd.tasks.erased_page import TAKEN_DOWN, named_in, pictured_in, with_notice, without_names, without_pictures
from lvd.tasks.ledger_sample import cut

FIGURE = (
    '<figure class="pic" title="{0}"><div><img src="data:x,{1}" data-image-id="{1}" alt="{0}"></div>'
    "<figcaption>{0}</figcaption></figure>"
)
A, B = "a" * 32, "b" * 32
PAGE = f"<main><h1>x</h1>{FIGURE.format('one', A)}{FIGURE.format('two', B)}{FIGURE.format('one', A)}</main>"


def test_a_figure_becomes_an_empty_box_wherever_it_stands() -> None:
    page = without_pictures(PAGE, [A, "c" * 32])
    assert A not in page and "one" not in page
    assert page.count(TAKEN_DOWN) == 2 and page.count("<figure") == page.count("</figure>") == 3
    assert FIGURE.format("two", B) in page
    assert without_pictures(page, [A]) == page


def test_a_picture_outside_a_figure_goes_alone() -> None:
    page = f'<figure>1</figure><p>text <img class="dot" data-image-id="{A}" src="data:x"> more</p><figure>2</figure>'
    assert without_pictures(page, [A]) == page.replace(
        page[page.find("<img") : page.find("> more") + 1], f'<span class="muted">{TAKEN_DOWN}</span>'
    )


def test_pictures_of_a_script_are_emptied() -> None:
    page = f'<script>const thumbs = {{"{A}": "data:image/webp;base64,AA", "{B}":"data:image/webp;base64,BB"}}</script>'
    assert without_pictures(page, [A]) == page.replace("data:image/webp;base64,AA", "")


@pytest.mark.parametrize(
    "spelled",
    [
        "https://a.example/x?a=1&amp;b=&lt;ü&#39;&#34;",  # as Jinja escapes it
        json.dumps("https://a.example/x?a=1&b=<ü'\"")[1:-1],
        'https://a.example/x?a=1\\u0026b=\\u003cü\\u0027\\"',
    ],
)
def test_names_go_in_every_spelling(spelled: str) -> None:
    page = f"<li>{spelled}</li><li>https://a.example/y</li>"
    found = without_names(page, ["https://a.example/x?a=1&b=<ü'\"", "https://a.example/x"])
    assert found == f"<li>{TAKEN_DOWN}</li><li>https://a.example/y</li>"


@pytest.mark.parametrize("name", ["birds/1.jpg", "https://a.example/1", "gone.example"])
@pytest.mark.parametrize(
    "longer", ["my{}", "x/{}", "{}/more", "{}.png", "{}?a=1", "{}&amp;b=2", "{}\\u0026b=2", "not-{}"]
)
def test_a_name_within_a_longer_one_stays(name: str, longer: str) -> None:
    page = f"<li>{longer.format(name)}</li>"
    assert without_names(page, [name]) == page
    assert without_names(f"{page}<td>{name}: 404 ({name}).", [name]) == f"{page}<td>{TAKEN_DOWN}: 404 ({TAKEN_DOWN})."


@pytest.mark.parametrize("cut", [lambda key: "…" + key[-59:], lambda key: "…" + key[-79:], lambda key: key[:299] + "…"])
def test_a_name_that_is_cut_short_goes(cut: Callable[[str], str]) -> None:
    key = "https://a.example/" + "/".join(f"part-{number}" for number in range(60))
    assert without_names(f"<td>{cut(key)}</td>", [key]) == f"<td>{TAKEN_DOWN}</td>"


def test_what_a_page_names() -> None:
    lines = "".join(str(page_data.rows([[A, "one & 'two'", "kept"], ["", "http://x/y", "failed"], [B, 1, 2, 3, []]])))
    page = f'{PAGE}<li>a &amp; b</li><td class="text">k<small>x</small></td><th scope="row">d.example</th>{lines}'
    assert named_in(page) == ({A, B}, {"one & 'two'", "http://x/y", "a & b", "k", "d.example"})
    assert pictured_in(lines) == set() and pictured_in(page) == {A, B}


def test_it_is_said_once_that_the_page_was_changed() -> None:
    page = with_notice(PAGE)
    assert page.startswith('<main><p class="muted">Images were taken down after this page was written')
    assert with_notice(page) == page and with_notice("no page") == "no page"


def test_a_name_goes_where_a_page_has_only_its_beginning() -> None:
    name = "https://a.example/" + "x&" * 200
    page = f"<td>{markup.escape(cut(name))}</td><td>https://a.example/</td>"
    assert without_names(page, [name]) == f"<td>{TAKEN_DOWN}</td><td>https://a.example/</td>"
