"""The page in headless Chromium: clicks, keys, search, the map, narrow windows, no scripts; not one console error."""

import json
from collections.abc import Iterator

import pytest

from lvd.tasks import report
from lvd.tests.browser import Browser, chromium
from lvd.tests.report_pages import full_page, hostile_page


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The address of each page."""
    folder = tmp_path_factory.mktemp("pages")
    for name, made in (("full", full_page()), ("hostile", hostile_page())):
        (folder / f"{name}.html").write_text(report.render(made), "utf-8")
    return {name: (folder / f"{name}.html").as_uri() for name in ("full", "hostile")}


@pytest.fixture
def blank(browser: Browser) -> Iterator[Browser]:
    """A window; a test that leaves a problem in its console fails."""
    browser.problems.clear()
    yield browser
    assert browser.problems == []


@pytest.fixture
def tab(blank: Browser, files: dict[str, str]) -> Browser:
    """The full page."""
    blank.open(files["full"])
    return blank


def test_a_click_on_a_step_of_the_funnel_opens_it(tab: Browser) -> None:
    is_open = "document.getElementById('funnel-copies').open"
    assert not tab.js(is_open)
    tab.click("#funnel-copies summary")
    tab.wait(is_open)
    tab.wait("location.hash === '#funnel-copies'")
    assert tab.js("document.querySelectorAll('#funnel-copies .opened img').length") == 4
    tab.js("document.querySelector('#funnel-screen summary').focus()")
    tab.press("Enter")
    tab.wait("document.getElementById('funnel-screen').open")


def test_an_address_opens_what_it_names(tab: Browser, files: dict[str, str]) -> None:
    tab.open(files["full"] + "#funnel-retrieve")
    tab.wait("document.getElementById('funnel-retrieve').open")
    tab.open(files["full"] + "#collection-old-planes")
    tab.wait("!document.getElementById('collection-old-planes').hidden")
    assert tab.js("document.getElementById('collection-birds').hidden")
    tab.js("location.hash = '#collection-birds'")
    tab.wait("!document.getElementById('collection-birds').hidden")


def test_tabs_go_by_arrow_keys(tab: Browser) -> None:
    tab.js("document.querySelector('[role=tab][aria-selected=true]').focus()")
    tab.press("ArrowRight")
    tab.wait("!document.getElementById('collection-old-planes').hidden")
    assert tab.js("document.activeElement.textContent") == "old planes"
    assert tab.js("location.hash") == "#collection-old-planes"


def test_the_search_finds_rows_and_says_how_many(tab: Browser) -> None:
    says, rows = "document.getElementById('ledger-found').textContent", "#ledger-rows tr"
    assert tab.js(says) == "300 of the 300 here match; 600 more candidates are not in this page"
    tab.click("#ledger-text")
    for character in "SITE-3":
        tab.press(character)
    tab.wait(f"{says}.startsWith('43 of the 300 here match; 600 more')")
    assert tab.js(f"document.querySelectorAll('{rows}').length") == 20
    tab.click("#ledger-more")
    assert tab.js(f"document.querySelectorAll('{rows}').length") == 43
    assert tab.js("document.getElementById('ledger-more').hidden")
    assert tab.js(f"[...document.querySelectorAll('{rows}')].every(r => r.textContent.includes('site-3.example'))")
    tab.js("document.getElementById('ledger-text').value = 'alert(1)'")
    tab.js("document.getElementById('ledger-form').dispatchEvent(new Event('input'))")
    tab.wait(f"{says} .startsWith('1 of the 300 here')")
    assert tab.js(f"document.querySelectorAll('{rows} script, {rows} img').length") == 0
    tab.js("document.getElementById('ledger-text').value = 'no such thing'")
    tab.js("document.getElementById('ledger-form').dispatchEvent(new Event('input'))")
    tab.wait(f"{says} .startsWith('0 of the 300 here')")


def test_the_search_can_be_narrowed_and_followed(tab: Browser) -> None:
    says = "document.getElementById('ledger-found').textContent"
    chosen = "(s => {{ s.value = '{}'; s.dispatchEvent(new Event('input', {{bubbles: true}})); }})({})"
    reason, state = (f"document.getElementById('ledger-{name}')" for name in ("reason", "state"))
    tab.js(chosen.format("too_small", reason))
    tab.wait(f"{says} .startsWith('100 of the 300 here')")
    assert tab.js(f"{state}.options.length") == 2
    tab.js(chosen.format("", reason))
    tab.wait(f"{says}.startsWith('300 of the 300 here')")
    tab.click("#ledger-rows .cause")
    tab.wait(f"{says} .startsWith('0 of the 300 here')")  # the cause is no candidate of this sample
    assert tab.js("document.getElementById('ledger-text').value") == "f" * 32


def test_a_gallery_opens_goes_on_and_closes_by_keys(tab: Browser) -> None:
    first = "#duplicates [data-gallery] [role=button]"
    tab.js(f"document.querySelector('{first}').focus()")
    tab.press("ArrowRight")
    tab.press("Enter")
    tab.wait("document.querySelector('dialog.viewer').open")
    caption = "document.querySelector('.viewer .caption').textContent"
    assert tab.js(caption).startswith("2 of 16 · http://site-3.example/3.jpg")
    assert tab.js("document.querySelectorAll('.viewer img').length") == 2  # beside the one that stays
    tab.press("ArrowLeft")
    tab.wait(f"{caption}.startsWith('1 of 16')")
    tab.press("ArrowLeft")
    tab.wait(f"{caption}.startsWith('16 of 16')")
    for _ in range(8):
        tab.press("Tab")
        assert tab.js("document.activeElement === document.body || !!document.activeElement.closest('dialog.viewer')")
    tab.press("Escape")
    tab.wait("!document.querySelector('dialog.viewer').open")
    assert tab.js("document.activeElement.getAttribute('role')") == "button"  # back where it was


def test_a_picture_opens_by_a_click(tab: Browser) -> None:
    tab.click("#left-out figure.pic img")
    tab.wait("document.querySelector('dialog.viewer').open")
    tab.press("Escape")
    tab.wait("!document.querySelector('dialog.viewer').open")


def test_one_kind_of_duplicates_can_be_looked_at_alone(tab: Browser) -> None:
    seen = "[...document.querySelectorAll('#duplicates .sheet')].filter(s => s.offsetParent).map(s => s.dataset.kind)"
    assert tab.js(seen) == ["exact_duplicate", "near_duplicate", "copy"]
    tab.click("#duplicates [data-choice=copy]")
    assert tab.js(seen) == ["copy"]
    tab.click("#duplicates [data-choice=all]")
    assert len(tab.js(seen)) == 3
    rules = "[...document.querySelectorAll('#left-out .group[data-kind]')].filter(s => s.offsetParent).length"
    assert tab.js(rules) == 2
    tab.click("#left-out [data-choice=animated]")
    assert tab.js(rules) == 1


def test_the_map_zooms_and_tells_of_its_points(tab: Browser) -> None:
    zoom = "Number(document.getElementById('map-view').dataset.zoom)"
    tab.wait(f"{zoom} === 1")
    tab.click(".tools [aria-label='Zoom in']")
    tab.wait(f"{zoom} === 1.5")
    tab.js("document.querySelector('#map-view canvas').focus()")
    tab.press("+")
    tab.wait(f"{zoom} === 2.25")
    tab.press("0")
    tab.wait(f"{zoom} === 1")
    tab.press("n")
    tab.wait("!document.querySelector('.card').hidden")
    assert tab.js("document.querySelector('.card').textContent").startswith("cluster ")
    assert tab.js("document.querySelectorAll('.card img').length") == 1
    tab.press("Enter")
    tab.wait("document.querySelector('dialog.viewer').open")
    tab.press("Escape")
    box = tab.js(
        "(b => [b.x + b.width / 2, b.y + b.height / 2])(document.querySelector('canvas').getBoundingClientRect())"
    )
    tab.js("document.querySelector('#map-view canvas').focus()")
    tab.call("Input.dispatchMouseEvent", type="mouseWheel", x=box[0], y=box[1], deltaX=0, deltaY=-300)
    tab.wait(f"{zoom} > 2")
    before = tab.js("document.querySelector('canvas').toDataURL().length")
    tab.js(
        "(s => { s.value = 'cluster'; s.dispatchEvent(new Event('change')); })(document.getElementById('map-colour'))"
    )
    assert tab.js("document.querySelector('canvas').toDataURL().length") != before


def test_the_bars_of_the_costs_show_what_is_chosen(tab: Browser) -> None:
    widths = "[...document.querySelectorAll('#cost-table .bar rect:not(.ground)')].map(r => +r.getAttribute('width'))"
    assert tab.js(widths) == [100, 33.33]
    tab.js("(s => { s.value = 'gpu'; s.dispatchEvent(new Event('change')); })(document.getElementById('cost-by'))")
    assert tab.js(widths) == [0, 100]


@pytest.mark.parametrize("name", ["full", "hostile"])
@pytest.mark.parametrize("scripts", [True, False])
def test_on_a_phone_nothing_is_wider_than_the_window(
    blank: Browser, files: dict[str, str], name: str, scripts: bool
) -> None:
    blank.open(files[name], width=390, height=844, scripts=scripts)
    assert blank.js("document.documentElement.scrollWidth") <= 390
    blank.js("document.querySelectorAll('details').forEach(d => d.open = true)")
    wide = (
        "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1"
        " && !e.closest('.scroll, .row, pre, nav')).map(e => e.outerHTML.slice(0, 120))"
    )
    assert blank.js(wide) == []


def test_without_scripts_everything_can_be_read(blank: Browser, files: dict[str, str]) -> None:
    blank.open(files["full"], scripts=False)
    seen = [
        name
        for name in ("collection-birds", "collection-old-planes", "map-view")
        if blank.js(f"document.getElementById({json.dumps(name)}).offsetHeight > 60")
    ]
    assert seen == ["collection-birds", "collection-old-planes", "map-view"]
    assert blank.js("document.querySelectorAll('#map-view svg path').length") == 2
    assert blank.js("document.querySelectorAll('#ledger-rows tr').length") == 20
    blank.click("#funnel-copies summary")
    blank.wait("document.getElementById('funnel-copies').open")


def test_hostile_text_does_nothing(blank: Browser, files: dict[str, str]) -> None:
    blank.open(files["hostile"])
    blank.wait("document.querySelectorAll('#ledger-rows tr').length === 1")
    assert blank.js("document.querySelectorAll('img[src^=http], main script').length") == 0


def test_every_picture_has_a_text_and_every_control_a_name(tab: Browser) -> None:
    assert tab.js("[...document.images].filter(i => !i.alt && !i.closest('.look')).length") == 0
    nameless = (
        "[...document.querySelectorAll('button, [role=button]')].filter(b => !(b.ariaLabel || b.textContent.trim()))"
    )
    assert tab.js(f"{nameless}.length") == 0
    assert tab.js("[...document.querySelectorAll('input, select')].filter(e => !e.labels.length).length") == 0


def test_dark_is_dark(tab: Browser, files: dict[str, str]) -> None:
    red = "Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])"
    assert tab.js(red) > 240
    tab.open(files["full"], dark=True)
    assert tab.js(red) < 60


def test_a_finger_shows_what_a_point_is_and_a_second_tap_opens_it(blank: Browser, files: dict[str, str]) -> None:
    blank.open(files["full"], width=390, height=844)
    blank.js("document.querySelector('canvas').scrollIntoView({block: 'center'})")
    blank.js("document.querySelector('canvas').focus()")
    blank.press("n")  # a point that has a picture: where is it?
    x, y = blank.js(
        "(() => { const box = document.querySelector('canvas').getBoundingClientRect(), d = 'data-map';"
        " const rows = JSON.parse(document.getElementById(d).textContent).slice(0, -1);"
        " const id = document.querySelector('.card small').textContent, dot = rows.find(row => row[0] === id);"
        " const scale = Math.min(box.width, box.height) / 1060;"
        " return [box.x + box.width / 2 + (dot[1] - 500) * scale,"
        " box.y + box.height / 2 + (dot[2] - 500) * scale]; })()"
    )
    for key in ("0", "Escape"):  # the whole map again, as `n` may have moved it
        blank.press(key)
    assert blank.js("document.querySelector('.card').hidden")
    blank.tap(x, y)
    blank.wait("!document.querySelector('.card').hidden")
    assert not blank.js("document.querySelector('dialog.viewer').open")
    blank.tap(x, y)
    blank.wait("document.querySelector('dialog.viewer').open")


def test_what_a_filter_leaves_can_be_reached_by_the_tab_key(tab: Browser) -> None:
    stops = (
        "[...document.querySelectorAll('#left-out [role=button][tabindex=\"0\"]')].filter(e => e.offsetParent)"
        ".map(e => e.closest('.group').dataset.kind ?? '')"
    )
    assert tab.js(stops) == ["too_small", ""]
    tab.click("#left-out [data-choice=animated]")
    assert tab.js(stops) == ["animated", ""]


def test_tabs_go_to_their_ends(tab: Browser) -> None:
    now = "document.activeElement.textContent"
    tab.js("document.querySelector('[role=tab][aria-selected=true]').focus()")
    for key, name in (("End", "old planes"), ("ArrowRight", "birds"), ("ArrowLeft", "old planes"), ("Home", "birds")):
        tab.press(key)
        assert tab.js(now) == name


def test_an_address_that_names_nothing_does_no_harm(tab: Browser, files: dict[str, str]) -> None:
    tab.open(files["full"] + "#%E0%A4%A-no")
    assert tab.js("document.querySelectorAll('#ledger-rows tr').length") == 20
