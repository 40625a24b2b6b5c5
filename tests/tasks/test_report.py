"""The page: every section there, nothing in it that leads outside, nothing hostile that acts."""

from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest

from lvd.tasks import charts, report
from lvd.tasks.contact_sheets import At, Pairing, Sheet, Shown, Thumbnail

SECTIONS = [
    *("funnel", "reasons", "duplicates", "decontamination", "retrieval", "clusters", "left-out", "properties", "cost"),
    "recipe",
]
EVIL = "<script>alert(1)</script>\"'><img src=http://evil.example/x onerror=alert(1)>"
LINKING = {"src", "href", "srcset", "action", "data", "poster", "xlink:href", "formaction", "background", "cite"}
ENDINGS: Counter = Counter(
    {
        ("pool", "crawl", "dropped", "duplicate_url"): 1,
        ("pool", "download", "failed", "http_404"): 2,
        ("pool", "download", "failed", "not_an_image"): 3,
        ("pool", "screen", "failed", "truncated"): 4,
        ("pool", "screen", "dropped", "too_small"): 5,
        ("pool", "fingerprint", "dropped", "near_duplicate"): 6,
        ("pool", "copies", "failed", "not_finite"): 7,
        ("pool", "copies", "dropped", "copy"): 8,
        ("pool", "copies", "dropped", "benchmark_copy"): 9,
        ("pool", "embed", "failed", "not_finite"): 10,
        ("pool", "retrieve", "dropped", "not_retrieved"): 1000,
        ("pool", "publish", "kept", "retrieved"): 12,
        ("curated", "download", "failed", "http_404"): 1,
        ("curated", "publish", "kept", "curated"): 13,
    }
)


def sheet(*pairings: Pairing) -> Sheet:
    return Sheet(title=f"Sheet {EVIL}" if pairings else "Sheet", text=EVIL, pairings=pairings)


def page(**changes) -> report.Report:
    """A page on which everything is empty, but for the changes."""
    values = {
        **dict.fromkeys(("title", "name", "version", "date", "root", "recipe"), "x"),
        **dict.fromkeys(("losses", "duplicates", "decontamination", "collections", "retrievals", "cluster_charts"), ()),
        **dict.fromkeys(("examples", "formats", "short_edges", "domains", "errors", "timings"), ()),
        **dict.fromkeys(("clusters", "screened", "not_retrieved", "sample"), sheet()),
        **{name: {} for name in ("published", "cluster_figures", "versions", "overlaps")},
        "states": {"kept": 0, "dropped": 0, "failed": 0},
        "thresholds": {
            "hash_distance": 6,
            "thumbnail_similarity": 0.985,
            "copy_similarity": 0.6,
            "reference_similarity": 0.45,
        },
        "funnel": report.funnel(Counter()),
        "components": report.Components(count=0, largest=0, lowest=1.0, chained=0),
        "searches": (),
        "group_sizes": (report.GroupSizes(reason="copy", bins=(("2", 0),), share=1.0),),
        "run_seconds": 0.0,
        "num_bytes": (0, 0),
        "num_domains": 0,
    }
    return report.Report(**{**values, **changes})


def hostile_page() -> report.Report:
    at, bare = At("pool", "pool", 1), At("pool", "pool", 2)
    picture = Thumbnail(
        src="data:image/webp;base64,AA==", key=EVIL, alt=EVIL, label=EVIL, width=9, height=9, format=EVIL, num_bytes=3
    )
    shown = sheet(Pairing(head=Shown(at=at, note=EVIL), others=(Shown(at=bare), Shown(at=None)), more=7, title=EVIL))
    retrieval = report.Retrieval(
        name=EVIL,
        notes={"kind": EVIL, "queries": 1, "asked": 4, "found": 4, "images": 4, "collided": 0},
        settings={"collisions": EVIL},
        chart=charts.histogram(EVIL, np.array([1, 2]), np.array([0.0, 0.5, 1.0])),
        sheet=shown,
    )
    return page(
        **dict.fromkeys(("title", "name", "version", "date", "root", "recipe"), EVIL),
        **dict.fromkeys(("clusters", "screened", "not_retrieved", "sample"), shown),
        **dict.fromkeys(("duplicates", "decontamination"), (shown, shown)),
        states={"kept": 1, "dropped": 2, "failed": 3},
        losses=(report.Loss(stage=EVIL, state=EVIL, reason=EVIL, count=5),),
        retrievals=(retrieval,),
        cluster_figures={EVIL: EVIL},
        cluster_charts=(charts.line(EVIL, [0.1, 0.2], EVIL),),
        examples=(report.Example(reason=EVIL, key=EVIL, error=EVIL),),
        formats=(report.Breakdown(name=EVIL, before=1, after=1),),
        domains=(report.Domain(name=EVIL, listed=2, fetched=1, kept=1, lost={EVIL: 1}),),
        errors=(report.Outcome(stage=EVIL, state=EVIL, reason=EVIL, count=1, domains=1),),
        collections=(
            report.Collection(role=EVIL, name=EVIL, kind=EVIL, path=EVIL, listed=1, fetched=1, dropped_for_it=1),
        ),
        versions={EVIL: EVIL},
        pictures={at: picture, bare: picture.model_copy(update={"src": ""})},
    )


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


@pytest.mark.parametrize("made", [page(), hostile_page()], ids=["empty", "hostile"])
def test_page_is_one_file_with_every_section(made: report.Report) -> None:
    text = report.render(made)
    tags = Tags(text)
    assert tags.open == []
    assert [a["id"] for tag, a in tags.found if tag == "section" and "id" in a] == SECTIONS
    ids = {a["id"] for _, a in tags.found if "id" in a}
    for tag, attributes in tags.found:
        assert tag not in ("script", "iframe", "object", "embed", "form")
        assert not [name for name in attributes if name.startswith("on")]
        for name in LINKING & attributes.keys():
            assert attributes[name].startswith("data:") or attributes[name][1:] in ids, (tag, name, attributes[name])
    assert "url(" not in text and "@import" not in text


def test_hostile_text_is_shown_and_does_not_act() -> None:
    text = report.render(hostile_page())
    assert "<script" not in text and "<img src=http" not in text
    assert text.count("&lt;script&gt;alert(1)") > 30


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


def test_funnel_loses_every_candidate_in_one_step() -> None:
    steps = report.funnel(ENDINGS)
    pool = sum(n for (role, *_), n in ENDINGS.items() if role == "pool")
    lost = [0, 1, 2, 3 + 4, 5, 6, 7 + 8, 9, 10, 1000, 0]
    assert [sum(step.lost.values()) for step in steps] == lost
    assert [step.count for step in steps[:-1]] == (pool - np.cumsum(lost[:-1])).tolist()
    assert steps[-2].count == 12
    assert (steps[-1].count, steps[-1].gained) == (12 + 13, 13)


def test_losses_are_every_candidate_that_is_not_kept() -> None:
    found = report.losses(ENDINGS)
    assert sum(loss.count for loss in found) == sum(n for (_, _, state, _), n in ENDINGS.items() if state != "kept")
    assert [loss.stage for loss in found][:3] == ["crawl", "download", "download"]
    assert next(loss for loss in found if loss.reason == "http_404").count == 3  # of the pool and of a collection
    text = report.render(page(losses=found))
    assert ">1,000</td>" in text and "the server answered not found" in text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(1, 0, "–"), (0, 7, "0%"), (7, 7, "100%"), (9999, 10_000, "100%"), (1, 3, "33.3%"), (1, 5000, "0.02%")],
)
def test_share(part: int, whole: int, text: str) -> None:
    assert report.share(part, whole) == text


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("http://a.example/b.jpg", "a.example/|b.jpg"),
        ("https://a.example/along/way/to/another/picture/1.jpg", "…/|along/|way/|to/|another/|picture/|1.jpg"),
        ("x" * 50, "…" + "x" * 35),
        ("http://a/<b>", "a/|&lt;b&gt;"),
    ],
)
def test_short_key(key: str, text: str) -> None:
    assert report.short(key) == text.replace("|", "<wbr>")


def test_credentials_are_taken_out_of_urls() -> None:
    text = "path: s3://me:secret@host/a, https://host/b@c, a@b"
    assert report.without_credentials(text) == "path: s3://host/a, https://host/b@c, a@b"


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (90, "90.0 s"), (600, "10.0 min"), (36_000, "10.0 h")])
def test_duration(seconds: float, text: str) -> None:
    assert report.duration(seconds) == text


@pytest.mark.parametrize(("num", "text"), [(0, "0 B"), (999, "999 B"), (15_000, "15 kB"), (2.5e12, "2,500.0 GB")])
def test_size(num: float, text: str) -> None:
    assert report.size(num) == text
