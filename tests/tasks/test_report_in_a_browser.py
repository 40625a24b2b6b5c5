"""The page in headless Chromium: clicks, keys, search, the map, narrow windows, no scripts; not one console error."""

import json
from collections.abc import Iterator
from pathlib import Path

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
def tab(browser: Browser, files: dict[str, str]) -> Iterator[Browser]:
    """The full page, wide; a test that leaves a problem in the console fails."""
    browser.problems.clear()
    browser.open(files["full"])
    yield browser
    assert browser.problems == []


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
    assert tab.js(says) == "300 of 300 match; the first 100 are listed"
    tab.click("#ledger-text")
    for character in "SITE-3":
        tab.press(character)
    tab.wait(f"{says} === '43 of 300 match'")
    assert tab.js(f"document.querySelectorAll('{rows}').length") == 43
    assert tab.js(f"[...document.querySelectorAll('{rows}')].every(r => r.textContent.includes('site-3.example'))")
    tab.js("document.getElementById('ledger-text').value = 'alert(1)'")
    tab.js("document.getElementById('ledger-form').dispatchEvent(new Event('input'))")
    tab.wait(f"{says} === '1 of 300 match'")
    assert tab.js(f"document.querySelectorAll('{rows} script, {rows} img').length") == 0
    tab.js("document.getElementById('ledger-text').value = 'no such thing'")
    tab.js("document.getElementById('ledger-form').dispatchEvent(new Event('input'))")
    tab.wait(f"{says} === '0 of 300 match'")


def test_the_search_can_be_narrowed_and_followed(tab: Browser) -> None:
    says = "document.getElementById('ledger-found').textContent"
    chosen = "(s => {{ s.value = '{}'; s.dispatchEvent(new Event('input', {{bubbles: true}})); }})({})"
    reason, state = (f"document.getElementById('ledger-{name}')" for name in ("reason", "state"))
    tab.js(chosen.format("too_small", reason))
    tab.wait(f"{says} === '100 of 300 match'")
    assert tab.js(f"{state}.options.length") == 2
    tab.js(chosen.format("", reason))
    tab.wait(f"{says}.startsWith('300 of 300')")
    tab.click("#ledger-rows .cause")
    tab.wait(f"{says} === '0 of 300 match'")  # the cause is no candidate of this sample
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
    browser: Browser, files: dict[str, str], name: str, scripts: bool
) -> None:
    browser.problems.clear()
    browser.open(files[name], width=390, height=844, scripts=scripts)
    assert browser.js("document.documentElement.scrollWidth") <= 390
    browser.js("document.querySelectorAll('details').forEach(d => d.open = true)")
    wide = (
        "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1"
        " && !e.closest('.scroll, pre, nav')).map(e => e.outerHTML.slice(0, 120))"
    )
    assert browser.js(wide) == []
    assert browser.problems == []


def test_without_scripts_everything_can_be_read(browser: Browser, files: dict[str, str]) -> None:
    browser.open(files["full"], scripts=False)
    seen = [
        name
        for name in ("collection-birds", "collection-old-planes", "map-view")
        if browser.js(f"document.getElementById({json.dumps(name)}).offsetHeight > 60")
    ]
    assert seen == ["collection-birds", "collection-old-planes", "map-view"]
    assert browser.js("document.querySelectorAll('#map-view svg path').length") == 2
    assert browser.js("document.querySelectorAll('#ledger-rows tr').length") == 20
    browser.click("#funnel-copies summary")
    browser.wait("document.getElementById('funnel-copies').open")


def test_hostile_text_does_nothing(browser: Browser, files: dict[str, str]) -> None:
    browser.problems.clear()
    browser.open(files["hostile"])
    browser.wait("document.querySelectorAll('#ledger-rows tr').length === 1")
    assert browser.js("document.querySelectorAll('img[src^=http], main script').length") == 0
    assert browser.problems == []


def test_every_picture_has_a_text_and_every_control_a_name(tab: Browser) -> None:
    assert tab.js("[...document.images].filter(i => !i.alt && !i.closest('.look')).length") == 0
    nameless = (
        "[...document.querySelectorAll('button, [role=button]')].filter(b => !(b.ariaLabel || b.textContent.trim()))"
    )
    assert tab.js(f"{nameless}.length") == 0
    assert tab.js("[...document.querySelectorAll('input, select')].filter(e => !e.labels.length).length") == 0


def test_dark_is_dark(browser: Browser, files: dict[str, str], tmp_path: Path) -> None:
    browser.open(files["full"], dark=True)
    red = "Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])"
    assert browser.js(red) < 60
    browser.open(files["full"])
    assert browser.js(red) > 240
