import asyncio
import random
from collections import Counter

import pytest

from lvd.tasks import robots
from lvd.tasks.robots import RobotsTxt, opted_out, product_token, rules_for

AGENT = "lvd/0.1 (+image dataset curation)"
DIRECTIVES = frozenset({"noai", "noimageai", "noindex"})


@pytest.mark.parametrize(
    ("user_agent", "token"),
    [
        (AGENT, "lvd"),
        ("LVD", "lvd"),
        ("img2dataset/1.45", "img2dataset"),
        ("Foo-Bot_2.x; a", "foo-bot_2.x"),
        ("my crawler/1.0", "my"),
        ("Mozilla/5.0 (compatible; Foobot/1.0; +http://foo.org/bot)", "foobot"),
        ("Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 Firefox/72.0 (compatible; img2dataset)", "img2dataset"),
        ("Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 Firefox/72.0", "mozilla"),
        ("(no name)", ""),
        ("", ""),
    ],
)
def test_the_product_token_is_the_robots_own_name(user_agent, token):
    assert product_token(user_agent) == token


OPT_OUTS = [  # the values of the X-Robots-Tag headers of one answer, and the directive that counts
    # nothing that is meant
    ([], None),
    ([""], None),
    ([",,, ;"], None),
    (["all"], None),
    (["index, follow"], None),
    (["nofollow, noarchive, nosnippet"], None),
    (["noimageindex"], None),  # not among the directives
    (["noindexed"], None),  # a whole word or nothing
    (["x-noai"], None),
    # plain
    (["noai"], "noai"),
    (["NoAI"], "noai"),
    (["noimageai"], "noimageai"),
    (["noai, noimageai"], "noai"),
    (["noimageai, noai"], "noimageai"),
    (["nofollow,noindex"], "noindex"),
    (["  noai  "], "noai"),
    (["\tnofollow ,\tNOINDEX"], "noindex"),
    (["all, noai"], "noai"),  # the more restrictive one counts
    (["index", "noai"], "noai"),  # several headers
    (["noarchive", "nofollow", "noimageai"], "noimageai"),
    # none stands for noindex and nofollow
    (["none"], "noindex"),
    (["NONE"], "noindex"),
    (["lvd: none"], "noindex"),
    (["otherbot: none"], None),
    # directives that have values
    (["max-image-preview: none"], None),
    (["max-image-preview:none, noai"], "noai"),
    (["max-snippet: -1, max-image-preview: large, max-video-preview: -1"], None),
    (["noai, max-snippet: 5"], "noai"),  # which a split at the first colon takes for a robot called "noai, max-snippet"
    (["max-snippet: 5, noai"], "noai"),
    (["max-something-new: 5, noai"], "noai"),
    (["unavailable_after: 25 Jun 2010 15:00:00 PST"], None),
    (["unavailable_after: 25 Jun 2010 15:00:00 PST, noindex"], "noindex"),
    (["unavailable_after: Friday, 25-Jun-10 15:00:00 UTC, noindex"], "noindex"),  # a date with a comma, RFC 850
    (["unavailable_after: Fri, 25 Jun 2010 15:00:00 GMT"], None),  # RFC 822
    (["unavailable_after: 2010-06-25T15:00:00Z, noai"], "noai"),
    (["unavailable_after: 2010, 25-06-2010T15:00:00, noai"], "noai"),  # a date is no robot's name
    (["noai: true"], "noai"),  # nor is a directive
    # one robot alone
    (["googlebot: noindex"], None),
    (["googlebot: noindex, noai"], None),
    (["lvd: noindex"], "noindex"),
    (["LVD: NoIndex"], "noindex"),
    (["lvd : noai"], "noai"),
    (["lvd/0.1: noai"], "noai"),
    (["otherbot/2.0: noai"], None),
    (["lvd:noai"], "noai"),
    (["lvd-news: noai"], None),  # a whole name or none
    (["lv: noai"], None),
    (["compatible: noai"], None),  # another word of the user agent
    (["image: noai"], None),
    (["*: noai"], "noai"),
    (["robots: noai"], "noai"),
    (["googlebot: nofollow", "otherbot: noindex, nofollow"], None),  # Google's own example
    (["googlebot: nofollow", "noai"], "noai"),  # a name reaches to the end of its header
    (["noai, googlebot: noindex"], "noai"),
    (["nofollow, googlebot: noindex"], None),
    (["BadBot: noindex, nofollow, googlebot: nofollow"], None),
    (["BadBot: noindex, lvd: noai"], "noai"),
    (["lvd: nofollow, BadBot: noindex"], None),
    (["googlebot: max-snippet: 5, noai"], None),
    (["lvd: max-snippet: 5, noai"], "noai"),
    (["360Spider: noai"], None),
    # what sites get wrong
    (["noindex nofollow"], "noindex"),  # no comma
    (["nofollow; noai"], "noai"),
    (['"noai, noimageai"'], "noai"),  # quotes of a server's configuration
    (["'noai'"], "noai"),
    ([": noai"], "noai"),
    (["some robot: noai"], "noai"),  # no name: meant for everyone
    (["noai\n"], "noai"),
    (["\u00a0noai\u00a0"], "noai"),
]


@pytest.mark.parametrize(("values", "expected"), OPT_OUTS)
def test_opted_out(values, expected):
    assert opted_out(values, DIRECTIVES, AGENT) == expected
    assert opted_out(iter(values), sorted(DIRECTIVES), AGENT) == expected


@pytest.mark.parametrize(
    ("values", "directives", "expected"),
    [
        (["noai, noindex"], [], None),
        (["none"], ["noai"], None),
        (["none"], ["nofollow"], "nofollow"),
        (["none"], ["noindex", "none"], "none"),
        (["noindex, nofollow"], ["none"], None),
        (["noimageindex"], ["noimageindex"], "noimageindex"),
        (["unavailable_after: 25 Jun 2010 15:00:00 PST"], ["unavailable_after"], "unavailable_after"),  # whenever it is
        (["max-image-preview: none"], ["max-image-preview"], "max-image-preview"),
        (["otherbot: max-image-preview: none"], ["max-image-preview"], None),
    ],
)
def test_only_the_directives_asked_for_count(values, directives, expected):
    assert opted_out(values, directives, AGENT) == expected


def test_the_usual_directives_are_those_of_img2dataset():
    assert set(robots.OPT_OUT) == {"noai", "noimageai", "noindex", "noimageindex"}
    assert [opted_out([directive], robots.OPT_OUT, AGENT) for directive in robots.OPT_OUT] == [*robots.OPT_OUT]


def test_hostile_values_are_read_in_little_time():
    for value in ("a:" * 200_000, "a," * 200_000, "a/" * 200_000, " " * 400_000, "max-" * 100_000 + ":"):
        assert opted_out([value], DIRECTIVES, AGENT) is None  # in quadratic time, minutes


class Web:
    """Answers to requests for robots.txt, and how often each was asked for."""

    def __init__(self, answers):
        self.answers, self.asked = answers, Counter()
        self.is_open = asyncio.Event()
        self.is_open.set()

    async def fetch(self, url):
        self.asked[url] += 1
        await self.is_open.wait()
        answer = self.answers[url] if isinstance(self.answers, dict) else self.answers
        if isinstance(answer, Exception):
            raise answer
        return answer


def verdicts(answer, urls, user_agent=AGENT):
    """Whether each URL may be asked for, if that is the answer to the request for robots.txt."""

    async def main():
        txt = RobotsTxt(user_agent, Web(answer).fetch)
        return [await txt.allows(url) for url in urls]

    return asyncio.run(main())


def is_allowed(body, path, user_agent=AGENT):
    answer = (200, body if isinstance(body, bytes) else body.encode())
    return verdicts(answer, [f"http://a.org{path}"], user_agent)[0]


FORBIDS = b"User-agent: *\nDisallow: /"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((200, FORBIDS), False),
        ((200, b""), True),
        ((204, b""), True),
        ((203, FORBIDS), False),
        ((301, FORBIDS), True),  # more redirects than are followed: as if it were not there, RFC 9309 section 2.3.1.2
        ((400, FORBIDS), True),
        ((401, FORBIDS), True),
        ((403, FORBIDS), True),
        ((404, FORBIDS), True),
        ((410, FORBIDS), True),
        ((429, FORBIDS), True),
        ((500, b""), False),
        ((503, b""), False),
        ((999, b""), False),
        ((0, b""), False),
        (None, False),
    ],
)
def test_the_status_decides_first(answer, expected):
    assert verdicts(answer, ["http://a.org/x.jpg"]) == [expected]


RULES = [  # robots.txt, path, whether we may ask for it
    ("User-agent: *\nDisallow: /a", "/a", False),
    ("User-agent: *\nDisallow: /a", "/abc.jpg", False),
    ("User-agent: *\nDisallow: /a", "/A", True),  # paths have their case
    ("User-agent: *\nDisallow: /a/", "/a", True),
    ("User-agent: *\nDisallow:", "/a", True),
    ("User-agent: *\nDisallow: /\nAllow: /a", "/a.jpg", True),  # the longest match counts, in whatever order
    ("User-agent: *\nAllow: /a\nDisallow: /", "/b.jpg", False),
    ("User-agent: *\nAllow: /a\nDisallow: /a/b", "/a/b/c", False),
    ("User-agent: *\nDisallow: /a\nAllow: /a", "/a", True),  # of two as long, the one that allows
    ("User-agent: *\nDisallow: /*.jpg", "/a/b.jpg?c", False),
    ("User-agent: *\nDisallow: /*.jpg$", "/a/b.jpg?c", True),
    ("User-agent: *\nDisallow: /*.jpg$", "/a/b.jpg", False),
    ("User-agent: *\nDisallow: /*/b*/c$", "/a/bb/c", False),
    ("User-agent: *\nDisallow: /$", "/", False),
    ("User-agent: *\nDisallow: /$", "/a", True),
    ("User-agent: *\nDisallow: /a%3cd.html", "/a%3Cd.html", False),
    ("User-agent: *\nDisallow: /ü", "/%C3%BC.jpg", False),
    ("User-agent: *\nDisallow: /%c3%bc", "/ü.jpg", False),
    ("User-agent: *\nDisallow: /private", "/public/../private/x.jpg", False),  # what will be asked for counts
    ("User-agent: *\nDisallow: /private", "/private/../public/x.jpg", True),
    ("User-agent: *\nDisallow: /*?size=", "/a.jpg?size=9", False),
    ("user-AGENT:*\ndisallow:/a", "/a", False),
    ("User-agent: *\nDisallow: /a # why", "/a", False),
    ("# all\n\n  User-agent : *  \n\n  Disallow : /a  ", "/a", False),
    ("User-agent: *\rDisallow: /a\rDisallow: /b", "/b", False),
    ("\ufeffUser-agent: *\nDisallow: /a", "/a", False),
    ("Disallow: /", "/a", True),  # of no group
    ("<html><body>User-agent: none of these: Disallow: /</body></html>", "/a", True),
    # groups
    ("User-agent: lvd\nDisallow: /a", "/a", False),
    ("User-agent: LVD\nDisallow: /a", "/a", False),
    ("User-agent: lvd/2.0\nDisallow: /a", "/a", False),
    ("User-agent: lvd*\nDisallow: /a", "/a", False),
    ("User-agent lvd\nDisallow /a", "/a", False),  # as generous as Protego is
    ("User-agent: lv\nDisallow: /a", "/a", True),  # a name is whole; Protego alone takes this one for us
    ("User-agent: lvd-images\nDisallow: /a", "/a", True),
    ("User-agent: lvdü\nDisallow: /a", "/a", True),
    ("User-agent: image\nDisallow: /a", "/a", True),  # another word of our user agent
    ("User-agent: *lvd\nDisallow: /a", "/a", True),
    ("User-agent:\nDisallow: /a", "/a", True),
    ("User-agent: googlebot\nDisallow: /", "/a", True),
    ("User-agent: *\nDisallow: /a\nUser-agent: lvd\nDisallow: /b", "/a", True),  # our own group replaces everyone's
    ("User-agent: *\nDisallow: /\nUser-agent: lvd\nDisallow:", "/a", True),
    ("User-agent: *\nDisallow: /\nUser-agent: lvd", "/a", True),
    ("User-agent: lvd\nDisallow: /a\nUser-agent: b\nDisallow: /c\nUser-agent: lvd\nDisallow: /b", "/a", False),
    ("User-agent: lvd\nDisallow: /a\nUser-agent: b\nDisallow: /c\nUser-agent: lvd\nDisallow: /b", "/b", False),
    ("User-agent: lvd\nDisallow: /a\nUser-agent: b\nDisallow: /c\nUser-agent: lvd\nDisallow: /b", "/c", True),
    ("User-agent: a\nUser-agent: lvd\nUser-agent: b\nDisallow: /a", "/a", False),
    ("User-agent: *\nUser-agent: lvd\nDisallow: /a", "/a", False),
    ("User-agent: lvd\n\nUser-agent: b\n\nDisallow: /a", "/a", False),  # an empty line ends nothing
    ("User-agent: lvd\nSitemap: http://a.org/s\nNoise: x\n---\nUser-agent: b\nDisallow: /a", "/a", False),  # nor this
    ("User-agent: lvd\nCrawl-delay: 5\nUser-agent: b\nDisallow: /a", "/a", True),  # a delay is a rule, as in Protego
    ("User-agent: *\nContent-Signal: ai-train=no\nAllow: /\nDisallow: /a", "/a", False),
]


@pytest.mark.parametrize(("text", "path", "expected"), RULES)
def test_rules(text, path, expected):
    assert is_allowed(text, path) is expected


def test_a_robot_that_says_it_is_compatible_is_found_by_its_own_name():
    user_agent = "Mozilla/5.0 (compatible; Foobot/1.0)"
    assert not is_allowed("User-agent: Foobot\nDisallow: /", "/", user_agent)
    assert is_allowed("User-agent: Mozilla\nDisallow: /", "/", user_agent)
    assert not is_allowed(FORBIDS, "/", "(no name)")


def test_the_first_500_kib_count():
    head = b"User-agent: *\nDisallow: /a\n"
    rule = b"Disallow: /bcd\n"
    fits = head + b"#" * (robots.LIMIT_BYTES - len(head) - len(rule) - 2) + b"\n" + rule
    assert len(fits) == robots.LIMIT_BYTES - 1
    paths = ("/a", "/b", "/bcd")
    assert [is_allowed(fits, path) for path in paths] == [False, True, False]
    cut = head + b"#" * (robots.LIMIT_BYTES - len(head) - len(rule) + 3) + b"\n" + rule  # "Disallow: /" is left
    assert [is_allowed(cut, path) for path in paths] == [False, True, True]
    assert [is_allowed(cut[: robots.LIMIT_BYTES], path) for path in paths] == [False, True, True]
    assert is_allowed(b"#" * robots.LIMIT_BYTES + b"\n" + FORBIDS + b"\n\n", "/a")


def test_a_file_of_many_groups_for_many_robots_stays_small():
    names = [f"User-agent: bot{i}" for i in range(10_000)]
    rules = [f"Disallow: /{i}" for i in range(10_000)]
    assert rules_for(names + rules, "lvd") == ""
    expected = "\n".join(["User-agent: *", *rules])
    assert rules_for([*names, "User-agent: lvd", *rules, "User-agent: *", "Disallow: /"], "lvd") == expected
    assert is_allowed("\n".join(names + rules), "/1")  # parsed whole it would hold 100,000,000 rules


def test_no_bytes_and_no_url_make_parsing_fail():
    rng = random.Random(0)
    words = [*"*: \n\n\r$/%ü\0#[]?&=1a", "%2", "User-agent", "Disallow", "Allow", "Crawl-delay", "lvd", "http://", ".."]
    words += ["inf", "nan", "-1", "\ufeff", "\u2028"]
    parts = ["a", "/", "%", "%41", "ü", "?", "*", "$", "[", "]", "\ud800", "..", "//", "#", "&", ";", "@", ":", " "]

    async def main():
        outcomes = Counter()
        for number in range(3000):
            head = "User-agent: *\nDisallow: /" if number % 2 else ""
            body = bytearray((head + "".join(rng.choices(words, k=rng.randint(1, 40)))).encode())
            for _ in range(rng.randint(0, 2)):
                body[rng.randrange(len(body))] = rng.randrange(256)
            txt = RobotsTxt(AGENT, Web((200, bytes(body))).fetch)
            url = "http://a.org/" + "".join(rng.choices(parts, k=rng.randint(0, 9)))
            outcomes[await txt.allows(url)] += 1
            delay_s = await txt.delay_s(url)
            assert delay_s is None or 0 <= delay_s < float("inf")
        return outcomes

    outcomes = asyncio.run(main())
    assert set(outcomes) == {True, False} and min(outcomes.values()) > 50


@pytest.mark.parametrize("url", ["ftp://a.org/x", "x.jpg", "http:///x", "http://[bad/", "http://a.org:99999/", ""])
def test_what_is_no_url_of_the_web_is_refused(url):
    with pytest.raises(ValueError):
        verdicts((404, b""), [url])


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((200, b"User-agent: *\nCrawl-delay: 2.5"), 2.5),
        ((200, b"User-agent: *\nCrawl-delay: 9\nUser-agent: lvd\nCrawl-delay: 1"), 1),
        ((200, b"User-agent: *\nCrawl-delay: 9\nUser-agent: lvd\nDisallow: /a"), None),
        ((200, b"User-agent: googlebot\nCrawl-delay: 9"), None),
        ((200, b"User-agent: *\nCrawl-delay: soon\nDisallow: /a"), None),
        ((200, b"User-agent: *\nCrawl-delay: -1"), None),
        ((200, b"User-agent: *\nCrawl-delay: inf"), None),
        ((200, b""), None),
        ((404, b"User-agent: *\nCrawl-delay: 9"), None),
        (None, None),
    ],
)
def test_the_delay_of_our_group(answer, expected):
    async def main():
        return await RobotsTxt(AGENT, Web(answer).fetch).delay_s("http://a.org/x")

    assert asyncio.run(main()) == expected


def test_a_file_is_fetched_once_however_many_ask():
    async def main():
        web = Web((200, b"User-agent: *\nDisallow: /7"))
        txt = RobotsTxt(AGENT, web.fetch, max_hosts=1)
        web.is_open.clear()
        asking = [asyncio.create_task(txt.allows(f"http://{i % 2}.org/{i}")) for i in range(1000)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in asking)
        web.is_open.set()
        found = await asyncio.gather(*asking)
        return found, web.asked

    found, asked = asyncio.run(main())
    assert found == [not str(i).startswith("7") for i in range(1000)]
    assert asked == {"http://0.org/robots.txt": 1, "http://1.org/robots.txt": 1}  # although only one is remembered


def test_scheme_host_and_port_have_a_file_each():
    async def main():
        web = Web((404, b""))
        txt = RobotsTxt(AGENT, web.fetch)
        urls = (
            "http://a.org/x",
            "http://A.org:80/y?z",
            "http://me:pw@a.org/",
            "https://a.org:443/",
            "http://a.org:81/",
        )
        for url in (*urls, "http://[::1]:8080/x", "http://b.a.org/", "http://münchen.de/"):
            assert await txt.allows(url) and await txt.delay_s(url) is None
        return web.asked

    sites = ("http://a.org", "https://a.org", "http://a.org:81", "http://[::1]:8080", "http://b.a.org")
    expected = [*sites, "http://xn--mnchen-3ya.de"]
    assert asyncio.run(main()) == {f"{site}/robots.txt": 1 for site in expected}


def test_the_hosts_asked_about_longest_ago_are_forgotten():
    async def main():
        web = Web((404, b""))
        txt = RobotsTxt(AGENT, web.fetch, max_hosts=2)
        for host in ("a", "b", "a", "c", "a", "b", "a"):
            await txt.allows(f"http://{host}.org/")
        return [web.asked[f"http://{host}.org/robots.txt"] for host in "abc"]

    assert asyncio.run(main()) == [1, 2, 1]


def test_large_files_are_forgotten_before_their_number_counts(monkeypatch):
    monkeypatch.setattr(robots, "HELD_CHARS", 3000)
    monkeypatch.setattr(robots, "PARSED_CHARS", 10)  # parsed again each time, with the same result

    async def main():
        files = {f"http://{i}.org/robots.txt": (200, FORBIDS + b"%d" % i * 1000) for i in range(4)}
        web = Web(files)
        txt = RobotsTxt(AGENT, web.fetch)
        for i in (0, 1, 0, 1, 2, 1, 0, 3, 3, 2):
            assert not await txt.allows(f"http://{i}.org/{i}" + f"{i}" * 1000)
            assert await txt.allows(f"http://{i}.org/")
        return [web.asked[url] for url in files]

    assert asyncio.run(main()) == [2, 1, 2, 1]


def test_one_that_is_cancelled_takes_nothing_from_the_others():
    async def main():
        web = Web((404, b""))
        txt = RobotsTxt(AGENT, web.fetch)
        web.is_open.clear()
        asking = [asyncio.create_task(txt.allows("http://a.org/")) for _ in range(3)]
        await asyncio.sleep(0)
        asking[0].cancel()
        await asyncio.sleep(0)
        web.is_open.set()
        found = await asyncio.gather(*asking, return_exceptions=True)
        return found, web.asked.total()

    (cancelled, *others), num_fetches = asyncio.run(main())
    assert isinstance(cancelled, asyncio.CancelledError) and others == [True, True] and num_fetches == 1


def test_an_error_of_the_fetch_is_raised_and_not_remembered():
    async def main():
        web = Web(OSError("no"))
        txt = RobotsTxt(AGENT, web.fetch)
        found = await asyncio.gather(*(txt.allows("http://a.org/") for _ in range(5)), return_exceptions=True)
        web.answers = (404, b"")
        return found, await txt.allows("http://a.org/"), web.asked.total()

    found, later, num_fetches = asyncio.run(main())
    assert [str(error) for error in found] == ["no"] * 5
    assert later and num_fetches == 2


def test_room_for_no_host_is_refused():
    with pytest.raises(ValueError, match="max_hosts must be at least 1, was 0"):
        RobotsTxt(AGENT, Web(None).fetch, max_hosts=0)
