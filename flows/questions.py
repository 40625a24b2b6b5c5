"""What a page can be asked, checked: a wrong question is answered with its range, its value and what to do."""

from collections.abc import Mapping
from typing import Any

MAX_TEXT = 2000  # of what is searched for


class Malformed(Exception):
    """A question that cannot be understood: range, value and remedy."""


class Asked:
    """The parameters of a question, checked."""

    def __init__(self, given: Mapping[str, str]) -> None:
        self._given = given

    def text(self, name: str) -> str:
        value = self._given.get(name, "").strip()
        if len(value) > MAX_TEXT:
            raise Malformed(f"{name} must have at most {MAX_TEXT} characters, had {len(value)}")
        return value

    def number(self, name: str, default: int | None = None, *, most: int = 2**62) -> int | None:
        value = self.text(name)
        if not value:
            return default
        if not (value.isascii() and value.isdigit() and len(value) < 20 and int(value) <= most):
            raise Malformed(f"{name} must be a whole number in [0, {most}], was {value[:40]!r}")
        return int(value)

    def one_of(self, name: str, known: Any, default: str = "") -> str:
        value = self.text(name) or default
        if value and value not in known:
            raise Malformed(f"{name} must be one of {', '.join(known)}, was {value[:40]!r}")
        return value


class Busy(Exception):
    """The answer would take too long now."""
