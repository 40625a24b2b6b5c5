"""Numbers, sizes, times and keys as people read them."""

import re

from markupsafe import Markup


def share(part: float, whole: float) -> str:
    """A percentage with as many digits as it needs: 31%, 4.2%, 0.03%."""
    if not whole:
        return "–"
    percent = 100 * part / whole
    if percent == 0 or percent >= 99.95:
        return f"{percent:.0f}%"
    return f"{percent:.1f}%" if percent >= 0.1 else f"{percent:.2g}%"


def count(number: float) -> str:
    """An integer with thousands separators."""
    return f"{number:,.0f}"


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"


def size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.1f} GB"


def gpu_hours(seconds: float) -> str:
    """Hours of a GPU with as many digits as they need; a dash for none."""
    if not seconds:
        return "–"
    hours = seconds / 3600
    return f"{hours:,.1f}" if hours >= 10 else f"{hours:.2g}"


def rate(number: float) -> str:
    """A number of things a second with as many digits as it needs."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def tail(text: str, length: int = 46) -> str:
    """The end of a key, which says more than its beginning."""
    return text if len(text) <= length else "…" + text[1 - length :]


def short(key: str, length: int = 36) -> Markup:
    """A key as it stands below a picture: its last parts that fit, broken after slashes only where that is enough."""
    text = key.rpartition("://")[2]
    while len(text) > length and "/" in text.lstrip("…/"):
        text = "…/" + text.lstrip("…/").partition("/")[2]
    return Markup("<wbr>").join(re.split(r"(?<=/)", tail(text, length)))


def without_credentials(text: str) -> str:
    """The text with user names and passwords taken out of its URLs."""
    return re.sub(r"(?<=://)[^/\s@?#]+@", "", text)
