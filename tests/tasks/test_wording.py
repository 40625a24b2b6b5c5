"""Numbers, times, sizes and keys as people read them."""

import pytest

from lvd.tasks import wording


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(1, 0, "–"), (0, 7, "0%"), (7, 7, "100%"), (9999, 10_000, "100%"), (1, 3, "33.3%"), (1, 5000, "0.02%")],
)
def test_share(part: int, whole: int, text: str) -> None:
    assert wording.share(part, whole) == text


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
    assert wording.short(key) == text.replace("|", "<wbr>")


def test_credentials_are_taken_out_of_urls() -> None:
    text = "path: s3://me:secret@host/a, https://host/b@c, a@b"
    assert wording.without_credentials(text) == "path: s3://host/a, https://host/b@c, a@b"


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (90, "90.0 s"), (600, "10.0 min"), (36_000, "10.0 h")])
def test_duration(seconds: float, text: str) -> None:
    assert wording.duration(seconds) == text


@pytest.mark.parametrize(("num", "text"), [(0, "0 B"), (999, "999 B"), (15_000, "15 kB"), (2.5e12, "2,500.0 GB")])
def test_size(num: float, text: str) -> None:
    assert wording.size(num) == text
