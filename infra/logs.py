"""Structured logs: one JSON object a line, what a line says as fields, and no secret in any of them.

`logger.info(text, extra=fields(stage="embed"))` says the same to a person, who reads the text, and to a machine.
"""

import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Literal, get_args

from lvd.infra.errors import InputError

Format = Literal["text", "json"]
FORMAT_VARIABLE = "LVD_LOG_FORMAT"
SECRET_NAME = re.compile(r"SECRET|PASSWORD|TOKEN|ACCESS_KEY|API_KEY|AUTH_STRING")
SHORTEST_SECRET = 6  # characters; what is shorter stands in a line by chance
USER = re.compile(r'(?<=://)[^/\s"@]+@')
SIGNED = re.compile(r'(?i)(?<=[?&])([^=&\s"]*(?:sig|token|key|secret|password|credential)[^=&\s"]*)=[^&\s"\\]+')
HIDDEN = "…"

_RUN: ContextVar[str | None] = ContextVar("lvd_run", default=None)


def log_format() -> Format:
    """What LVD_LOG_FORMAT asks for; text by default. Raises InputError for another word."""
    said = os.environ.get(FORMAT_VARIABLE) or "text"
    if said not in get_args(Format):
        known = ", ".join(get_args(Format))
        raise InputError(
            f"--log-format and {FORMAT_VARIABLE} must be one of {known}, was {said!r}: choose one of these"
        )
    return said


def fields(**said: Any) -> dict[str, Any]:
    """The argument `extra` of a line, for these fields of it."""
    return {"lvd": said}


@contextmanager
def of_run(run_id: str) -> Iterator[None]:
    """What is logged inside, by this thread and those that were handed its context, names this run."""
    token = _RUN.set(run_id)
    try:
        yield
    finally:
        _RUN.reset(token)


def redacted(text: str) -> str:
    """The text without the user of a URL, without signatures in its query, without what this environment keeps secret.

    A secret is found as it is, and as JSON writes it.
    """
    text = SIGNED.sub(rf"\1={HIDDEN}", USER.sub("", text))
    values = {value for name, value in os.environ.items() if SECRET_NAME.search(name) and len(value) >= SHORTEST_SECRET}
    for value in sorted(values | {json.dumps(value)[1:-1] for value in values}, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return text


class JsonLines(logging.Formatter):
    """One JSON object for each record: time (UTC), level, logger, message, run, then the fields that it was given."""

    def format(self, record: logging.LogRecord) -> str:
        said = {
            "time": _iso(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (run := _RUN.get()) is not None:
            said["run"] = run
        said |= getattr(record, "lvd", {})
        if record.exc_info:
            said["error"] = self.formatException(record.exc_info)
        return redacted(json.dumps(said, ensure_ascii=False, default=str))


def log_to_stderr() -> None:
    """Sends the lines of `lvd` to standard error: as JSON, warnings of Python among them, or as text.

    As text they are left out on a terminal, which shows bars.
    """
    logger = logging.getLogger("lvd")
    logger.setLevel(logging.INFO)
    logger.propagate = False  # Prefect's handler would print it again
    as_json = log_format() == "json"
    if not as_json and sys.stderr.isatty():
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else logging.Formatter("%(asctime)s %(message)s"))
    logger.addHandler(handler)
    if as_json:
        logging.captureWarnings(True)
        warnings = logging.getLogger("py.warnings")
        warnings.propagate = False
        warnings.addHandler(handler)
        sys.excepthook = _tell_defect


def last_words(text: str) -> str:
    """The line that a command ends with when it fails, in the format that its other lines have."""
    if os.environ.get(FORMAT_VARIABLE) != "json":
        return f"lvd: {text}\n"
    said = {"time": _iso(time.time()), "level": "error", "logger": "lvd", "message": text}
    return redacted(json.dumps(said, ensure_ascii=False)) + "\n"


def _tell_defect(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What nobody caught is a line like the others."""
    logging.getLogger("lvd").critical("%s: %s", kind.__name__, error, exc_info=(kind, error, trace))


def _iso(seconds: float) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(seconds * 1000) % 1000:03d}Z"
