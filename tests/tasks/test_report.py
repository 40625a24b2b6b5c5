"""The page: every section there, nothing in it that leads outside, nothing hostile that acts."""

import json
from html.parser import HTMLParser

import pytest

from lvd.tasks import page_data, report
from lvd.tasks.funnel import Loss
from lvd.tests.report_pages import EVIL, full_page, hostile_page, page

SECTIONS = [
    *("funnel", "reasons", "duplicates", "decontamination", "retrieval", "clusters", "patches", "properties"),
    *("left-out", "ledger", "cost", "recipe"),
]
LINKING = {"src", "href", "srcset", "action", "data", "poster", "xlink:href", "formaction", "background", "cite"}


class Tags(HTMLParser):
    """Every tag with its attributes, and whether what was opened was closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another tag"


@pytest.mark.parametrize("made", [page(), hostile_page(), full_page()], ids=["empty", "hostile", "full"])
def test_page_is_one_file_with_every_section(made: report.Report) -> None:
    text = report.render(made)
    tags = Tags(text)
    assert tags.open == []
    sections = [a["id"] for tag, a in tags.found if tag == "section" and "id" in a]
    expected = [name for name in SECTIONS if name != "patches" or made.patches]
    assert [name for name in sections if not name.startswith("collection-")] == expected
    listed = [a["id"] for _, a in tags.found if "id" in a]
    assert len(listed) == len(set(listed))
    for tag, attributes in tags.found:
        assert tag not in ("iframe", "object", "embed", "form", "base")
        assert not [name for name in attributes if name.startswith("on")]
        for name in LINKING & attributes.keys():
            assert attributes[name].startswith("data:") or attributes[name][1:] in listed, (tag, name, attributes[name])
    assert "url(" not in text and "@import" not in text


@pytest.mark.parametrize("made", [page(), hostile_page(), full_page()], ids=["empty", "hostile", "full"])
def test_one_script_acts_and_the_policy_names_it(made: report.Report) -> None:
    text = report.render(made)
    tags = Tags(text)
    kinds = [a.get("type") for tag, a in tags.found if tag == "script"]
    assert kinds == ["application/json"] * 3 + [None]
    script = text.rpartition("<script>")[2].partition("</script>")[0]
    policy = next(a["content"] for tag, a in tags.found if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert f"script-src '{page_data.digest(script)}';" in policy
    assert "http://" not in script and "https://" not in script and "fetch(" not in script and "innerHTML" not in script


def test_hostile_text_is_shown_and_does_not_act() -> None:
    text = report.render(hostile_page())
    assert "<script>alert" not in text and "<img src=http" not in text
    assert text.count("&lt;script&gt;alert(1)") > 40
    data = text.partition('id="data-ledger">')[2].partition("</script>")[0]
    assert json.loads(data)[0][:2] == [EVIL, EVIL] and json.loads(data)[-1] is None
    assert not set("<>&'") & set(data)


def test_every_picture_names_its_image() -> None:
    for made in (hostile_page(), full_page()):
        pictures = [a for tag, a in Tags(report.render(made)).found if tag == "img"]
        assert pictures and all(a["data-image-id"] and a["alt"] and a["src"].startswith("data:") for a in pictures)


def test_a_collection_has_a_page_of_its_own() -> None:
    text = report.render(full_page())
    assert 'id="collection-birds" data-title="birds"' in text and 'id="collection-old-planes"' in text
    assert '<a href="#patches">' not in text
    only = report.Collection(role="curated", name="mushrooms", kind="images", path="x", listed=3, fetched=2, kept=2)
    text = report.render(page(collections=(only,)))
    assert 'id="collection-mushrooms"' in text and "retrieves nothing" in text and "of 3 listed" in text


def test_a_sample_of_the_ledger_says_that_it_is_one() -> None:
    made = full_page()
    assert "A sample of 300 of 900 candidates is here" in report.render(made)
    whole = made.model_copy(update={"ledger": made.ledger.model_copy(update={"total": 300})})
    assert "All 300 candidates are here." in report.render(whole)


def test_a_model_that_could_not_be_had_is_told_of() -> None:
    text = report.render(page(patches=report.Patches(model="vit_x", missing="no file at s3://me:secret@host/a")))
    assert "The patch features of vit_x could not be had: no file at s3://host/a" in text


def test_empty_page_says_what_there_was_none_of() -> None:
    text = report.render(page())
    for words in (
        "Nothing was lost",
        "names no benchmark",
        "No curated collection retrieves",
        "no clusters",
        "are local",
    ):
        assert words in text


def test_a_loss_is_told_with_what_it_means() -> None:
    loss = Loss(stage="download", state="failed", reason="http_404", count=1000)
    text = report.render(page(losses=(loss,)))
    assert ">1,000</td>" in text and "the server answered not found" in text


def test_the_opening_says_what_was_done_and_no_more() -> None:
    selection = full_page().retrievals[0]
    balanced = selection.model_copy(update={"notes": {**selection.notes, "kind": "balanced"}})
    for made, words in (
        (full_page(), "and copies of test images taken out, the rest kept where it is like the curated images, every"),
        (page(retrievals=(balanced,)), "duplicates taken out, the rest balanced over its clusters, every"),
        (page(published={"survivor": 3}), "duplicates taken out, all others kept, every"),
        (page(), "duplicates taken out, nothing of the rest retrieved, every"),
    ):
        assert words in report.render(made)
