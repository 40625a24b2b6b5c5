"""Data for the scripts: it cannot leave its element, and a row is a line."""

import base64
import hashlib
import json

import pytest

from lvd.tasks import page_data

HOSTILE = ["</script><script>alert(1)</script>", "<!--", "]]>", "\u2028", "'\"&amp;\\", "\U0001f426", "\x00\x1f"]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_comes_back_and_cannot_end_its_element(text: str) -> None:
    made = page_data.rows([[text, 1], ["b", None]])
    assert not set("<>&'") & set(made)
    assert json.loads(made) == [[text, 1], ["b", None], None]


def test_no_rows_are_a_null() -> None:
    assert json.loads(page_data.rows([])) == [None]


def test_the_digest_is_what_a_policy_names_a_script_by() -> None:
    expected = base64.b64encode(hashlib.sha256(b"a()").digest()).decode()
    assert page_data.digest("a()") == f"sha256-{expected}"


def test_every_script_is_there_once() -> None:
    made = page_data.scripts()
    assert made.startswith("(() => {") and made.endswith("})();") and "</" not in made
    for name in page_data.SCRIPTS:
        assert made.count(page_data.text_of(f"{name}.js")) == 1


def test_every_row_stands_on_a_line_of_its_own() -> None:
    made = page_data.rows([["a", "x\ny"], ["b"]])
    assert made.splitlines() == ["[", '["a", "x\\ny"],', '["b"],', "null]"]
