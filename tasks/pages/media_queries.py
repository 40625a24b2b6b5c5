"""Media queries, answered for one large screen. Source: W3C Media Queries 4."""

import re
from collections.abc import Mapping

WIDTH_PX, HEIGHT_PX, DEVICE_PIXELS_PER_PX = 8000.0, 6000.0, 8.0
"""The screen for which `media` is judged: so large that every `min-width` in use is met and no `max-width` is."""

_TRUE, _FALSE, _UNKNOWN = "\ue000\ue001\ue002"  # stand for what has been in parentheses
_VALUES = {_TRUE: True, _FALSE: False, _UNKNOWN: None}
_VALUE_OF = {True: _TRUE, False: _FALSE, None: _UNKNOWN}
_ONE = rf"[{_TRUE}{_FALSE}{_UNKNOWN}]"
_INNERMOST = re.compile(r"\(([^()]*)\)")
_NOT = re.compile(rf"\s*not\s+{_ONE}\s*")
_AND = re.compile(rf"\s*{_ONE}(?:\s*and\s+{_ONE})*\s*")
_OR = re.compile(rf"\s*{_ONE}(?:\s*or\s+{_ONE})*\s*")
_OF_TYPE = re.compile(
    rf"\s*(?:(not|only)\s+)?(?!(?:not|only|and|or)\b)([a-z-]+)(?:\s+and\s+({_NOT.pattern}|{_AND.pattern}))?\s*"
)
_COMMENT = re.compile(r"/\*.*?(?:\*/|\Z)", re.DOTALL)
_FEATURE = re.compile(r"\s*([a-z-]+)\s*(?::\s*([^:<>=]+?))?\s*")
_RANGE = re.compile(r"\s*([^<>=:]+?)\s*(<=|>=|<|>|=)\s*([^<>=:]+?)\s*(?:(<=|>=|<|>)\s*([^<>=:]+?)\s*)?")
_QUANTITY = re.compile(r"([+-]?(?:\d+(?:\.\d+)?|\.\d+)(?:e[+-]?\d+)?)([a-z]*)")
_RATIO = re.compile(r"(\d+(?:\.\d+)?)\s*(?:/\s*(\d+(?:\.\d+)?))?")

_LENGTHS = {"px": 1.0, "em": 16.0, "rem": 16.0, "ex": 8.0, "ch": 8.0, "in": 96.0, "cm": 96 / 2.54, "mm": 96 / 25.4}
_LENGTHS |= {"q": 96 / 101.6, "pt": 96 / 72, "pc": 16.0, "vw": WIDTH_PX / 100, "vh": HEIGHT_PX / 100}
_RESOLUTIONS = {"dppx": 1.0, "x": 1.0, "dpi": 1 / 96, "dpcm": 2.54 / 96}
_UNITLESS = {"": 1.0}
_MEASURED = {
    **dict.fromkeys(("width", "device-width"), (WIDTH_PX, _LENGTHS)),
    **dict.fromkeys(("height", "device-height"), (HEIGHT_PX, _LENGTHS)),
    **dict.fromkeys(("aspect-ratio", "device-aspect-ratio"), (WIDTH_PX / HEIGHT_PX, None)),
    "resolution": (DEVICE_PIXELS_PER_PX, _RESOLUTIONS),
    "-webkit-device-pixel-ratio": (DEVICE_PIXELS_PER_PX, _UNITLESS),
    "color": (8.0, _UNITLESS),
    **dict.fromkeys(("color-index", "monochrome", "grid"), (0.0, _UNITLESS)),
}
"""What can be compared: the screen's value, and the units with their factors (None: a ratio)."""

_STATED = {
    "orientation": ("landscape",),
    "prefers-color-scheme": ("light",),
    "prefers-reduced-motion": ("no-preference",),
    "prefers-reduced-transparency": ("no-preference",),
    "prefers-reduced-data": ("no-preference",),
    "prefers-contrast": ("no-preference",),
    **dict.fromkeys(("hover", "any-hover"), ("hover",)),
    **dict.fromkeys(("pointer", "any-pointer"), ("fine",)),
    "scripting": ("enabled",),
    "update": ("fast",),
    "color-gamut": ("srgb",),
    **dict.fromkeys(("dynamic-range", "video-dynamic-range"), ("standard",)),
    "display-mode": ("browser",),
    "forced-colors": ("none",),
    "overflow-block": ("scroll",),
    "overflow-inline": ("scroll",),
}
"""What is one of several words: those that are true of the screen."""

_FALSE_WORDS = ("none", "no-preference")  # of which `(feature)` alone is false
_COMPARE = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "=": lambda a, b: a == b,
}


def is_met(media: str) -> bool:
    """Whether a media query list is true of the screen. Source: W3C Media Queries 4; what is unknown is not true."""
    media = _COMMENT.sub(" ", media.lower())
    if not media.strip():
        return True
    media += ")" * (media.count("(") - media.count(")"))
    while (inner := _INNERMOST.sub(lambda found: _VALUE_OF[_in_parentheses(found[1])], media)) != media:
        media = inner
    return any(_query(query) is True for query in media.split(","))


def _query(query: str) -> bool | None:
    found = _OF_TYPE.fullmatch(query)
    if found is None:
        return _condition(query)
    value = found[2] in ("all", "screen")
    if value and found[3]:
        value = _condition(found[3])
    return value if value is None or found[1] != "not" else not value


def _in_parentheses(text: str) -> bool | None:
    return _feature(text) if _VALUES.keys().isdisjoint(text) else _condition(text)


def _condition(text: str) -> bool | None:
    """None if it is unknown or no condition."""
    values = [_VALUES[char] for char in text if char in _VALUES]
    if _NOT.fullmatch(text):
        return None if values[0] is None else not values[0]
    if _AND.fullmatch(text):
        return False if False in values else None if None in values else True
    if _OR.fullmatch(text):
        return True if True in values else None if None in values else False
    return None


def _feature(text: str) -> bool | None:
    if found := _FEATURE.fullmatch(text):
        name, value = found[1], found[2]
        if value is None:
            return _is_set(name)
        if name in _STATED:
            return value in _STATED[name]
        for prefix, operator in (("min-", ">="), ("max-", "<=")):
            bare = name.replace(prefix, "", 1)
            if bare != name and name in (prefix + bare, f"-webkit-{prefix}{bare.removeprefix('-webkit-')}"):
                return _compared(bare, operator, value)
        return _compared(name, "=", value)
    if found := _RANGE.fullmatch(text):
        left, operator, middle, second, right = found.groups()
        if second:
            if operator[0] != second[0]:
                return None
            both = _compared(middle, _MIRRORED[operator], left), _compared(middle, second, right)
            return None if None in both else all(both)
        if left in _MEASURED:
            return _compared(left, operator, middle)
        return _compared(middle, _MIRRORED[operator], left)
    return None


_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "=": "="}


def _is_set(name: str) -> bool | None:
    if name in _MEASURED:
        return _MEASURED[name][0] > 0
    return _STATED[name][0] not in _FALSE_WORDS if name in _STATED else None


def _compared(name: str, operator: str, text: str) -> bool | None:
    if name not in _MEASURED:
        return None
    screen, units = _MEASURED[name]
    if units is None:
        ratio = _RATIO.fullmatch(text)
        wanted = float(ratio[1]) / (float(ratio[2] or 1) or 1e-9) if ratio else None
    else:
        quantity = _QUANTITY.fullmatch(text)
        wanted = _in_units(float(quantity[1]), quantity[2], units) if quantity else None
    return None if wanted is None else _COMPARE[operator](screen, wanted)


def _in_units(number: float, unit: str, units: Mapping[str, float]) -> float | None:
    if unit in units:
        return number * units[unit]
    return 0.0 if number == 0 and not unit and units is _LENGTHS else None
