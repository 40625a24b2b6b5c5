"""Structured lines: what they say, as fields; and what may stand in none of them."""

import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator

import pytest

from lvd.infra.errors import InputError
from lvd.infra.logs import FORMAT_VARIABLE, JsonLines, fields, last_words, log_format, log_to_stderr, of_run, redacted
from lvd.infra.shards import ShardRef
from lvd.infra.writing import log_account


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What the logger `lvd` writes as JSON inside the test."""
    logger, stream = logging.getLogger("lvd"), io.StringIO()
    handler, level = logging.StreamHandler(stream), logger.level
    handler.setFormatter(JsonLines())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(level)


def said(lines: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in lines.getvalue().splitlines()]


def test_the_line_of_a_shard_has_its_account_as_fields(lines: io.StringIO) -> None:
    ref = ShardRef(root="r", directory="curated/v1/ledger", index=3, count=8)
    account = {"rows_in": 9, "rows": 7, "reasons": {"too_small": 2}, "seconds": 1.5, "node": "n/1", "notes": {}}
    with of_run("20260101T000000Z"):
        log_account(ref, account)
    (line,) = said(lines)
    assert line["message"].startswith("curated/v1/ledger/data-00003-of-00008.arrow: ")
    assert line.pop("time").endswith("Z") and line.pop("message")
    assert line == {
        "level": "info",
        "logger": "lvd",
        "run": "20260101T000000Z",
        "stage": "curated/v1",
        "directory": "curated/v1/ledger",
        "shard": 3,
        "shards": 8,
        **{name: account[name] for name in ("rows_in", "rows", "reasons", "seconds", "node")},
    }


def test_a_line_is_one_line_whatever_it_says_and_an_error_has_its_traceback(lines: io.StringIO) -> None:
    logger = logging.getLogger("lvd")
    logger.warning("two\nlines \x1b[31m \N{SNOWMAN} %s", object, extra=fields(odd={"a": {1, 2}}))
    try:
        raise ValueError("no")
    except ValueError:
        logger.exception("failed")
    first, second = said(lines)
    assert first["level"] == "warning" and first["message"].startswith("two\nlines") and "run" not in first
    assert "ValueError: no" in second["error"] and second["level"] == "error"
    assert len(lines.getvalue().splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("s3://key:se/cret@host/a", "s3://key:se/cret@host/a"),  # a slash ends the host: this is no user
        ("postgresql+asyncpg://lvd:pass@127.0.0.1:5/x", "postgresql+asyncpg://127.0.0.1:5/x"),
        ("GET https://user@host/a?b=c", "GET https://host/a?b=c"),
        ("https://h/a?X-Amz-Signature=abc&x=1", "https://h/a?X-Amz-Signature=…&x=1"),
        ("https://h/a?x=1&access_token=abc\nnext", "https://h/a?x=1&access_token=…\nnext"),
        ("mail@example.org stays", "mail@example.org stays"),
        ("the value is sesame-open", "the value is …"),
        ('{"a": "quo\\"te-secret"}', '{"a": "…"}'),  # as JSON writes it
        ("short: abc", "short: abc"),
    ],
)
def test_no_secret_stands_in_a_line(text: str, left: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"AWS_SECRET_ACCESS_KEY": "sesame-open", "X_TOKEN": 'quo"te-secret', "Y_TOKEN": "abc"}.items():
        monkeypatch.setenv(name, value)
    assert redacted(text) == left


def test_a_secret_in_a_field_is_hidden_too(lines: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef")
    logging.getLogger("lvd").info("%s", "x", extra=fields(where="ray://0123456789abcdef@head", url="http://a:b@h/"))
    (line,) = said(lines)
    assert line["where"] == "ray://head" and line["url"] == "http://h/"


def test_the_last_words_are_of_the_format_of_the_other_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FORMAT_VARIABLE, raising=False)
    assert last_words("no") == "lvd: no\n"
    monkeypatch.setenv(FORMAT_VARIABLE, "json")
    line = json.loads(last_words("no: s3://a:b@c"))
    assert (line["level"], line["message"]) == ("error", "no: s3://c")


def test_another_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FORMAT_VARIABLE, "xml")
    with pytest.raises(InputError, match=r"must be one of text, json, was 'xml'"):
        log_format()
    monkeypatch.setenv(FORMAT_VARIABLE, "")
    assert log_format() == "text"


def test_warnings_of_python_and_defects_are_json_too(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, names = io.StringIO(), ("lvd", "py.warnings")
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # what it was comes back
    monkeypatch.setenv(FORMAT_VARIABLE, "json")
    before = {name: list(logging.getLogger(name).handlers) for name in names}
    propagated = {name: logging.getLogger(name).propagate for name in names}
    log_to_stderr()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("old", DeprecationWarning, stacklevel=1)
        sys.excepthook(ValueError, ValueError("a\nb"), None)
    finally:
        logging.captureWarnings(False)
        for name in names:
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = before[name], propagated[name]
        logging.getLogger("lvd").setLevel(logging.NOTSET)
    line, defect = said(stream)
    assert line["logger"] == "py.warnings" and "DeprecationWarning: old" in line["message"]
    assert defect["level"] == "critical" and defect["message"] == "ValueError: a\nb" and "ValueError" in defect["error"]
