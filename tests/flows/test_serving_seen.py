"""`lvd serve` as a person sees it: in a headless Chromium; skipped where there is none."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lvd.tests.browser import Browser, chromium
from lvd.tests.running import Curated
from lvd.tests.shelved import Served, row_of, served, write_version

COMPARED_S = 240  # the first comparison of a process compiles
SETTLED = "!document.querySelector('[aria-busy]')"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture(scope="module")
def site(curated: Curated) -> Iterator[Served]:
    with served(str(curated.root)) as running:
        yield running


@pytest.fixture
def rows(curated: Curated) -> list[dict]:
    return curated.ledger()


def loaded(page: Browser) -> None:
    """Returns when every picture that is in sight has come."""
    page.wait("[...document.images].every(i => i.hidden || i.complete || i.loading === 'lazy')")


def test_a_search_is_typed_and_a_result_opened(page: Browser, site: Served, rows: list[dict]) -> None:
    row = next(row for row in rows if row["reason"] == "copy")
    page.open(site.url)
    page.press("/")
    assert page.js("document.activeElement.name") == "q"
    page.click("nav a[href='/ledger']")
    page.wait("location.pathname === '/ledger' && document.readyState === 'complete'")
    page.press("/")
    page.type(row["key"])
    page.wait(f"document.querySelectorAll('#results tbody tr').length <= 2 && {SETTLED}")
    assert row["key"] in page.js("document.querySelector('#results').innerText")
    assert "q=" in page.js("location.search")
    page.click("#results tbody a[href^='/image/']")
    page.wait("location.pathname.startsWith('/image/')")
    page.wait("document.querySelector('#similar .verdict')", COMPARED_S)
    said = page.js("document.querySelector('#similar').innerText")
    assert "dropped at copies: copy" in said
    page.wait("document.querySelector('.large img').naturalWidth > 0")
    assert page.problems == []


def test_a_picture_is_chosen_and_found(page: Browser, site: Served, rows: list[dict], curated: Curated) -> None:
    texture = next((curated.folder / "curated/textures").rglob("*.*"))
    page.open(f"{site.url}/find")
    page.choose_file("#file", texture)
    page.wait("document.querySelector('#findings .verdict')", COMPARED_S)
    assert "published" in page.js("document.querySelector('#findings .verdict').innerText")
    assert page.js("document.querySelector('img.asked').naturalWidth") > 0
    page.choose_file("#file", curated.folder / "truth.json")
    page.wait("document.querySelector('#findings .trouble')", COMPARED_S)
    assert "not_an_image" in page.js("document.querySelector('#findings .trouble').innerText")
    page.js("document.querySelector('form[data-find]').dataset.most = 10")
    page.choose_file("#file", texture)
    page.wait("document.querySelector('#findings .trouble').innerText.includes('at most 10 bytes')")
    assert page.problems == []


def test_filters_work_while_they_are_chosen(page: Browser, site: Served, rows: list[dict]) -> None:
    page.open(f"{site.url}/v/1/images")
    changed = "s.dispatchEvent(new Event('input', {bubbles: true}))"
    page.js(f"(s => {{ s.value = 'curated'; {changed}; }})(document.querySelector('[name=role]'))")
    curated = sum(row["role"] == "curated" and row["state"] == "kept" for row in rows)
    page.wait(f"document.querySelector('#results [role=status]').innerText.startsWith('{curated} of')")
    page.wait("[...document.querySelectorAll('#results img')].slice(0, 6).every(i => i.naturalWidth > 0)")
    assert page.problems == []


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("is_dark", [False, True])
def test_no_page_is_wider_than_the_window(
    page: Browser, site: Served, rows: list[dict], width: int, is_dark: bool, tmp_path: Path
) -> None:
    copy = next(row for row in rows if row["reason"] == "copy")
    (run,) = site.api("/runs")["runs"]
    paths = {
        "overview": "/",
        "ledger": "/ledger",
        "images": "/v/1/images",
        "image": f"/image/{copy['because_of']}",
        "find": "/find",
        "runs": "/runs",
        "run": f"/runs/{run['run_id']}",
        "trouble": "/image/" + "0" * 32,
    }
    for name, path in paths.items():
        page.open(site.url + path, width=width, height=1400, dark=is_dark)
        loaded(page)
        if name == "image":
            page.wait("document.querySelector('#similar .verdict')", COMPARED_S)
        page.screenshot(tmp_path / f"{name}-{width}-{'dark' if is_dark else 'light'}.png")
        assert page.overflow() <= 0, name
        if name == "ledger":  # two choices beside each other, also on a phone
            tops = page.js("[...document.querySelectorAll('form.ask label.choice')].map(one => one.offsetTop)")
            assert tops[0] == tops[1], tops
        if name != "trouble":
            assert page.problems == [], name
    page.problems.clear()  # that of a page with status 404


def test_nothing_hostile_runs(page: Browser, local_root: str) -> None:
    hostile = "http://evil.example/\"><img src=x onerror='window.evil=1'><script>window.evil=1</script>.jpg"
    rows = [row_of(hostile, number=1), row_of(f"{hostile}2", "copy", 2, because_of="0" * 32, source=hostile)]
    write_version(local_root, 1, [rows])
    with served(local_root) as site:
        for path in ("/", "/ledger", "/v/1/images", *(f"/image/{row['image_id']}" for row in rows)):
            page.open(site.url + path, width=390)
            assert page.js("window.evil") is None
            assert page.overflow() <= 0
        page.open(f"{site.url}/ledger", width=390)
        page.press("/")
        page.type(hostile)
        page.wait(f"document.querySelectorAll('#results tbody tr').length === 2 && {SETTLED}")
        assert page.js("window.evil") is None
    page.problems.clear()
