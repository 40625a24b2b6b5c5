"""What a site says about robots: in the headers and pages that it sends, and in its robots.txt.

Nothing is fetched here, the caller brings how. At 10^9 images: 2 us of one core per header, 8 us per URL asked about,
26 us per robots.txt of usual size; in memory at most 64 Mi characters of rules, and 100 MB of rules ready to be asked.
"""

import asyncio
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Generic, TypeVar

from protego import Protego
from yarl import URL

OPT_OUT = ("noai", "noimageai", "noindex", "noimageindex")  # what keeps an image out by default, as in img2dataset
LIMIT_BYTES = 500 << 10  # of a robots.txt that are read; RFC 9309 section 2.5
HELD_CHARS = 64 << 20  # of rules as text: what 100,000 hosts have to say to us
PARSED_CHARS = 2 << 20  # of rules that are held parsed, which takes 14 to 50 bytes a character (Protego 0.7)

Fetch = Callable[[str], Awaitable[tuple[int, bytes] | None]]

_TOKEN = r"[\w.-]+"
_COMPATIBLE = re.compile(rf"compatible;\s*({_TOKEN})")
_PRODUCT = re.compile(rf"\s*({_TOKEN}|\*(?!\S))")
_BOT = re.compile(rf"(?!\d+-)(?:{_TOKEN}|\*)")  # a date like 25-Jun-10 is no name
_SEPARATOR = re.compile(r"""[,;"']""")
_EVERYONE = ("*", "robots")
_VALUED = re.compile(r"max-.*|unavailable_after")  # max-snippet, max-image-preview, max-video-preview
_MEANS = {"none": ("none", "noindex", "nofollow")}

_AGENT = re.compile(r"user[- ]?agent\s*[:\s](.*)", re.IGNORECASE)
_RULE = re.compile(r"(?:dis+al+[oa]w|diasllow|allow|crawl[- ]delay)\b", re.IGNORECASE)  # as Protego spells them
_EVERYTHING, _NOTHING = "", "User-agent: *\nDisallow: /"


def product_token(user_agent: str) -> str:
    """The name by which a site addresses the robot with this User-Agent, in lower case; "" if it has none.

    The word after "compatible;" if there is one, as in `Mozilla/5.0 (compatible; Foobot/1.0)`, else the first word.
    """
    found = _COMPATIBLE.search(user_agent) or _PRODUCT.match(user_agent)
    return found[1].lower() if found else ""


def opted_out(values: Iterable[str], directives: Collection[str], user_agent: str) -> str | None:
    """The directive of these X-Robots-Tag values that is among `directives` and meant for everyone or for us.

    values: of every such header, or the contents of every <meta name="robots">. None if no such directive is there.
    directives: in lower case. `none` stands for noindex and nofollow too.
    A name with a colon addresses what follows it, up to the next name or the end of the value, to one robot alone:
    it counts if the name is the product token of our user agent. What cannot be read as a name addresses everyone.
    Source: Google's specification of X-Robots-Tag; the list of several names in one value is MDN's.
    """
    ours = (*_EVERYONE, product_token(user_agent))
    for value in values:
        is_meant = True
        for part in _SEPARATOR.split(value.lower()):
            *names, rest = part.split(":")
            for place, name in enumerate(names):
                name = name.strip().partition("/")[0].rstrip()
                if _VALUED.fullmatch(name):
                    rest = name
                    break
                if name in directives or not _BOT.fullmatch(name):
                    rest = " ".join([*names[place:], rest])
                    break
                is_meant = name in ours
            if is_meant:
                for word in rest.split():
                    for directive in _MEANS.get(word, (word,)):
                        if directive in directives:
                            return directive
    return None


class RobotsTxt:
    """robots.txt of every host: fetched once, its rules for us remembered. One event loop.

    Source: RFC 9309. No answer or a status of 500 and above forbids everything, 300 to 499 allows everything.
    """

    def __init__(self, user_agent: str, fetch: Fetch, *, max_hosts: int = 100_000) -> None:
        """fetch: the status and body (with no Content-Encoding left) after a URL's redirects; None if there is none.

        max_hosts: raising it fetches fewer files twice; the hosts asked about longest ago are forgotten first.
        """
        if max_hosts < 1:
            raise ValueError(f"max_hosts must be at least 1, was {max_hosts}")
        self._token, self._fetch = product_token(user_agent), fetch
        self._under_way: dict[str, asyncio.Task[str]] = {}
        self._rules: _Recent[str, str] = _Recent(max_hosts, HELD_CHARS)
        self._parsed: _Recent[str, Protego] = _Recent(max_hosts, PARSED_CHARS)

    async def allows(self, url: str) -> bool:
        """Whether we may ask for the URL. Raises ValueError for what is no http(s) URL, and what `fetch` raises."""
        target = URL(url)
        rules = await self._rules_of(target)
        return not rules or self._file(rules).can_fetch(str(target), "*")

    async def delay_s(self, url: str) -> float | None:
        """The Crawl-delay that the URL's host asks us for, finite and at least 0. Raises as `allows`."""
        rules = await self._rules_of(URL(url))
        return self._file(rules).crawl_delay("*") if rules else None

    async def _rules_of(self, target: URL) -> str:
        """The rules for us on this URL's scheme, host and port."""
        if target.scheme not in ("http", "https"):
            raise ValueError(f"scheme must be http or https, was {target.scheme!r}")
        site = str(target.origin())
        rules = self._rules.get(site)
        if rules is not None:
            return rules
        task = self._under_way.get(site)
        if task is None:
            task = self._under_way[site] = asyncio.create_task(self._load(site))
        return await asyncio.shield(task)  # of those who ask, one that is cancelled takes nothing from the others

    async def _load(self, site: str) -> str:
        try:
            answer = await self._fetch(f"{site}/robots.txt")
            rules = _NOTHING if answer is None else _rules_in(*answer, self._token)
            self._rules.put(site, rules, len(rules))
        finally:
            del self._under_way[site]
        return rules

    def _file(self, rules: str) -> Protego:
        file = self._parsed.get(rules)
        if file is None:
            file = Protego.parse(rules)
            self._parsed.put(rules, file, len(rules))
        return file


def _rules_in(status: int, body: bytes, token: str) -> str:
    """The rules for us in an answer to the request for robots.txt."""
    if 200 <= status < 300:
        lines = body[:LIMIT_BYTES].decode("utf-8-sig", errors="replace").splitlines()
        is_cut = len(body) >= LIMIT_BYTES  # here, or by who fetched it; half a rule could be a wider one
        return rules_for(lines[:-1] if is_cut else lines, token)
    return _EVERYTHING if 300 <= status < 500 else _NOTHING


def rules_for(lines: Iterable[str], token: str) -> str:
    """The groups of a robots.txt that name us, or else those for everyone, as one group for everyone.

    token: our product token, which a group names in full or not at all, in whatever case. "" if no rule is for us.
    What is left out is never parsed: a file of many groups, each for many robots, would take Protego gigabytes.
    Lines that are no rules do not end the list of robots at the head of a group. Source: RFC 9309 section 2.2.
    """
    groups: dict[str, list[str]] = {}
    names: set[str] = set()
    in_head = False
    for line in lines:
        line = line.partition("#")[0].strip()
        if agent := _AGENT.match(line):
            if not in_head:
                names, in_head = set(), True
            product = _PRODUCT.match(agent[1])
            name = product[1].lower() if product else ""
            if name and name in (token, "*"):
                names.add(name)
                groups.setdefault(name, [])
        elif _RULE.match(line):
            in_head = False
            for name in names:
                groups[name].append(line)
    rules = groups.get(token, groups.get("*", []))
    return "\n".join(["User-agent: *", *rules]) if rules else _EVERYTHING


K = TypeVar("K")
V = TypeVar("V")


class _Recent(Generic[K, V]):
    """The entries used last: at most so many, and of so much weight together."""

    def __init__(self, max_entries: int, max_weight: int) -> None:
        self._max_entries, self._max_weight, self._weight = max_entries, max_weight, 0
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def get(self, key: K) -> V | None:
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def put(self, key: K, value: V, weight: int) -> None:
        self._entries[key] = (value, weight)
        self._weight += weight
        while len(self._entries) > self._max_entries or self._weight > self._max_weight:
            self._weight -= self._entries.popitem(last=False)[1][1]
