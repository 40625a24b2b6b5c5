"""A set of pages with awkward <img> forms, and the URL that each stands for, as data.

Every form is a page at `{FOLDER}{name}`. `urls` is what `lvd.tasks.pages.images.parsed` finds there, and what a browser
says in `currentSrc` of its images, in document order, on the screen of SCREEN; what is no http or https URL (nothing,
`data:`, `file:`) does not count. Where a browser says something else on purpose, `shown` is that and `differs` is why.
"""

import random
from typing import NamedTuple

ORIGIN = "http://pages.test"
FOLDER = f"{ORIGIN}/forms/"
SCREEN = {"width": 8000, "height": 6000, "pixels_per_px": 8}

GIF = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"

LOADERS = {
    # lazysizes: sources and img of class lazyload; data-sizes is not needed on a screen of that size
    "lazysizes": """
        for (const img of document.querySelectorAll('.lazyload')) {
            if (img.parentNode.nodeName == 'PICTURE')
                for (const source of img.parentNode.querySelectorAll('source[data-srcset]'))
                    source.setAttribute('srcset', source.dataset.srcset);
            if (img.dataset.srcset) img.setAttribute('srcset', img.dataset.srcset);
            if (img.dataset.src) img.setAttribute('src', img.dataset.src);
        }""",
    # lazysizes with its plugin rias, as Shopify's themes have it: the smallest width that fills the screen, or the last
    "rias": """
        for (const img of document.querySelectorAll('.lazyload[data-src*="{width}"]')) {
            const widths = JSON.parse(img.dataset.widths || '[2048]');
            const wanted = innerWidth * devicePixelRatio;
            const width = widths.find(width => width >= wanted) || widths[widths.length - 1];
            img.setAttribute('src', img.dataset.src.replace('{width}', width));
        }""",
    # vanilla-lazyload (verlok)
    "vanilla": """
        for (const img of document.querySelectorAll('img.lazy')) {
            if (img.parentNode.tagName == 'PICTURE')
                for (const source of [...img.parentNode.children].filter(child => child.tagName == 'SOURCE'))
                    if (source.dataset.srcset) source.setAttribute('srcset', source.dataset.srcset);
            for (const name of ['sizes', 'srcset', 'src'])
                if (img.getAttribute('data-' + name)) img.setAttribute(name, img.getAttribute('data-' + name));
        }""",
    # lozad
    "lozad": """
        for (const element of document.querySelectorAll('.lozad')) {
            if (element.nodeName == 'PICTURE') {
                const img = element.querySelector('img') || document.createElement('img');
                if (element.dataset.iesrc) img.src = element.dataset.iesrc;
                element.append(img);
            }
            if (element.dataset.src) element.src = element.dataset.src;
            if (element.dataset.srcset) element.setAttribute('srcset', element.dataset.srcset);
        }""",
    # unveil: another file on a dense screen
    "unveil": """
        for (const img of document.images) {
            const source = img.getAttribute(devicePixelRatio > 1 ? 'data-src-retina' : 'data-src');
            const url = source || img.getAttribute('data-src');
            if (url) img.setAttribute('src', url);
        }""",
    # a loader that unwraps <noscript>, as many do for the images of old themes
    "noscript": """
        for (const noscript of [...document.querySelectorAll('noscript')]) {
            const holder = document.createElement('div');
            holder.innerHTML = noscript.textContent;
            noscript.replaceWith(...holder.childNodes);
        }""",
}
"""Lazy loaders in a few lines each, run when the page is parsed. `attribute:NAME` copies that attribute to `src`, and
`attributes:NAME,NAMESET` the first to `src` and the second to `srcset`, which is all that most loaders do."""


class Form(NamedTuple):
    name: str
    html: str  # what stands in <body>, or the whole page
    urls: tuple[str, ...]  # relative to FOLDER, or absolute
    head: str = ""  # what stands in <head>
    is_whole: bool = False  # html is the whole page
    loader: str = ""  # the lazy loader that the page runs
    encoding: str = "utf-8"  # of the bytes
    charset: str | None = "utf-8"  # of the Content-Type
    shown: tuple[str, ...] | None = None  # what a browser shows instead
    differs: str = ""  # why

    @property
    def page_url(self) -> str:
        return FOLDER + self.name

    @property
    def found_urls(self) -> list[str]:
        return [_absolute(url) for url in self.urls]

    @property
    def shown_urls(self) -> list[str]:
        return self.found_urls if self.shown is None else [_absolute(url) for url in self.shown]

    def page(self, script: str = "") -> bytes:
        """The bytes of the page, with a script that runs its loader if it has one."""
        if self.is_whole:
            return self.html.encode(self.encoding)
        script = f"<script>{script}</script>" if script else ""
        head = f'<!doctype html><html><head><meta charset="utf-8"><title>{self.name}</title>{self.head}{script}</head>'
        return f"{head}<body>\n{self.html}\n</body></html>\n".encode(self.encoding)

    @property
    def script(self) -> str:
        """What makes a browser load the images as the page's loader would."""
        kind, _, names = self.loader.partition(":")
        if not kind:
            return ""
        if kind.startswith("attribute"):
            src, _, srcset = names.partition(",")
            pairs = [("srcset", srcset), ("src", src)] if srcset else [("src", src)]
            run = "".join(
                f"for (const img of document.querySelectorAll('img[{name}]'))"
                f" img.setAttribute('{to}', img.getAttribute('{name}'));"
                for to, name in pairs
                if name
            )
        else:
            run = LOADERS[kind]
        return f"addEventListener('DOMContentLoaded', () => {{{run}}})"


def _absolute(url: str) -> str:
    if url.startswith(("http://", "https://")):
        return url
    return (ORIGIN if url.startswith("/") else FOLDER) + url


SRC_FORMS = (
    Form("src-quoted", '<img src="a.jpg" alt="a">', ("a.jpg",)),
    Form("src-single-quotes", "<img src='a.jpg' alt='it is &quot;a&quot;'>", ("a.jpg",)),
    Form("src-unquoted", "<img src=a.jpg>", ("a.jpg",)),
    Form("src-unquoted-self-closing", "<img src=a.jpg/>", ("a.jpg/",)),  # the slash belongs to the value
    Form("src-self-closing", '<img src="a.jpg"/>', ("a.jpg",)),
    Form("src-upper-case", '<IMG SRC="A.JPG" ALT="A">', ("A.JPG",)),
    Form("src-mixed-case", '<iMg sRc="a.jpg">', ("a.jpg",)),
    Form("src-spaces-around-equals", '<img src = "a.jpg" >', ("a.jpg",)),
    Form("src-newlines-in-tag", '<img\n\n src\n=\n"a.jpg"\n>', ("a.jpg",)),
    Form("src-tabs-in-tag", "<img\tsrc\t=\ta.jpg\talt=x>", ("a.jpg",)),
    Form("src-slash-before", '<img/src="a.jpg"/alt="x">', ("a.jpg",)),
    Form("src-no-space-between", '<img alt="x"src="a.jpg"class="y">', ("a.jpg",)),
    Form("src-twice", '<img src="first.jpg" src="second.jpg">', ("first.jpg",)),
    Form("src-twice-in-other-case", '<img SRC="first.jpg" src="second.jpg">', ("first.jpg",)),
    Form("src-absent", '<img alt="nothing">', ()),
    Form("src-empty", '<img src="" alt="nothing">', ()),
    Form("src-without-value", "<img src alt=x>", ()),
    Form("src-blank", '<img src=" \n\t ">', ()),
    Form("src-padded", '<img src="  a.jpg \n">', ("a.jpg",)),
    Form("src-padded-with-no-break-space", '<img src="\u00a0a.jpg">', ("%C2%A0a.jpg",)),
    Form("src-control-characters-around", '<img src="\x01\x1fa.jpg\x02">', ("a.jpg",)),
    Form("src-newline-inside", '<img src="a\nb.jpg">', ("ab.jpg",)),
    Form("src-tab-inside", '<img src="a\tb.jpg">', ("ab.jpg",)),
    Form("src-carriage-return-inside", '<img src="a\r\nb.jpg">', ("ab.jpg",)),
    Form("src-form-feed-inside", '<img src="a\fb.jpg">', ("a%0Cb.jpg",)),
    Form("src-nul-inside", '<img src="a\0b.jpg">', ("a%EF%BF%BDb.jpg",)),
    Form("src-delete-inside", '<img src="a\x7fb.jpg">', ("a%7Fb.jpg",)),
    Form("src-spaces-inside", '<img src="my summer photo.jpg">', ("my%20summer%20photo.jpg",)),
    Form("src-escaped", '<img src="my%20summer%2Fphoto.jpg">', ("my%20summer%2Fphoto.jpg",)),
    Form("src-escaped-lower-case", '<img src="%e6%97%a5.jpg">', ("%e6%97%a5.jpg",)),
    Form("src-broken-escape", '<img src="100%.jpg?50%zz">', ("100%.jpg?50%zz",)),
    Form("src-unicode", '<img src="日本.jpg">', ("%E6%97%A5%E6%9C%AC.jpg",)),
    Form("src-emoji", '<img src="😀.png">', ("%F0%9F%98%80.png",)),
    Form("src-quotes-inside", "<img src='a\"b.jpg'>", ("a%22b.jpg",)),
    Form("src-apostrophe-inside", "<img src=\"it's.jpg?it's\">", ("it's.jpg?it%27s",)),
    Form("src-brackets", '<img src="a[1](2){3}.jpg">', ("a[1](2)%7B3%7D.jpg",)),
    Form("src-punctuation", '<img src="a|b^c`d~e!f$g*h+i,j;k=l@m.jpg">', ("a%7Cb%5Ec%60d~e!f$g*h+i,j;k=l@m.jpg",)),
    Form("src-punctuation-in-query", '<img src="a.jpg?a|b^c`d{e}f[g]h">', ("a.jpg?a|b^c`d{e}f[g]h",)),
    Form("src-angle-brackets", '<img src="a<b>c.jpg?d<e>f">', ("a%3Cb%3Ec.jpg?d%3Ce%3Ef",)),
    Form("src-entity-in-query", '<img src="a.jpg?w=1&amp;h=2">', ("a.jpg?w=1&h=2",)),
    Form("src-bare-ampersand", '<img src="a.jpg?w=1&h=2&copy=3&lt=4">', ("a.jpg?w=1&h=2&copy=3&lt=4",)),
    Form("src-entity-without-semicolon", '<img src="a.jpg?x&copy">', ("a.jpg?x%C2%A9",)),
    Form("src-numeric-entities", '<img src="&#97;&#x62;.jpg">', ("ab.jpg",)),
    Form("src-windows-1252-entity", '<img src="&#150;.jpg">', ("%E2%80%93.jpg",)),
    Form("src-surrogate-entity", '<img src="&#xD83D;.jpg">', ("%EF%BF%BD.jpg",)),
    Form("src-escaped-twice", '<img src="a.jpg?w=1&amp;amp;h=2">', ("a.jpg?w=1&amp;h=2",)),
    Form("src-unicode-in-query", '<img src="a.jpg?q=日本 é">', ("a.jpg?q=%E6%97%A5%E6%9C%AC%20%C3%A9",)),
    Form("src-fragment", '<img src="a.jpg#top">', ("a.jpg#top",)),
    Form("src-fragment-with-spaces", '<img src="a.jpg#a b`c<d>">', ("a.jpg#a%20b%60c%3Cd%3E",)),
    Form("src-long", f'<img src="{"x" * 4000}.jpg">', ("x" * 4000 + ".jpg",)),
    Form("src-no-extension", '<img src="image?id=5">', ("image?id=5",)),
    Form("src-broken-image", '<img src="missing/a.jpg" onerror="this.alt=1">', ("missing/a.jpg",)),
    Form("alt-holds-a-tag", '<img alt="<img src=no.jpg>" src="a.jpg">', ("a.jpg",)),
    Form("alt-unquoted-end", '<img alt=a" src="a.jpg">', ("a.jpg",)),
    Form("several", '<img src="1.jpg"><p><img src="2.jpg"><div><img src="1.jpg"></div>', ("1.jpg", "2.jpg", "1.jpg")),
    Form("native-lazy", '<img loading="lazy" src="a.jpg" width="50" height="50">', ("a.jpg",)),
    Form("native-lazy-srcset", '<img loading=lazy src=s.jpg srcset="l.jpg 900w" width=50 height=50>', ("l.jpg",)),
    Form("decoding-async", '<img decoding="async" fetchpriority="high" src="a.jpg">', ("a.jpg",)),
    Form("hidden", '<img src="a.jpg" hidden><div style="display:none"><img src="b.jpg"></div>', ("a.jpg", "b.jpg")),
    Form("one-pixel", '<img src="pixel.gif?id=1" width="1" height="1">', ("pixel.gif?id=1",)),
    Form("lowsrc", '<img lowsrc="low.jpg" src="a.jpg" longdesc="long.html">', ("a.jpg",)),
    Form("map", '<img src="a.jpg" usemap="#m" ismap><map name="m"><area href="b.jpg"></map>', ("a.jpg",)),
)

URL_FORMS = (
    Form("url-absolute", '<img src="http://cdn.test/a.jpg">', ("http://cdn.test/a.jpg",)),
    Form("url-https", '<img src="https://cdn.test/a.jpg">', ("https://cdn.test/a.jpg",)),
    Form("url-protocol-relative", '<img src="//cdn.test/a.jpg">', ("http://cdn.test/a.jpg",)),
    Form("url-root-relative", '<img src="/a.jpg">', ("/a.jpg",)),
    Form("url-parent", '<img src="../a.jpg">', ("/a.jpg",)),
    Form("url-too-many-parents", '<img src="../../../../a.jpg">', ("/a.jpg",)),
    Form("url-dots", '<img src="./x/./y/../a.jpg">', ("x/a.jpg",)),
    Form("url-dots-at-end", '<img src="x/.."><img src="x/y/."><img src="x/y/...">', ("", "x/y/", "x/y/...")),
    Form("url-escaped-dots", '<img src="x/%2e%2E/.%2e/%2e/a.jpg">', ("/a.jpg",)),
    Form("url-hidden-folder", '<img src="/.well-known/.a.jpg">', ("/.well-known/.a.jpg",)),
    Form("url-dots-in-query", '<img src="a.php?f=/../b/./c.jpg">', ("a.php?f=/../b/./c.jpg",)),
    Form("url-repeated-slashes", '<img src="/a//b///c.jpg">', ("/a//b///c.jpg",)),
    Form("url-three-slashes", '<img src="///cdn.test/a.jpg">', ("http://cdn.test/a.jpg",)),
    Form("url-scheme-and-many-slashes", '<img src="http:////cdn.test/a.jpg">', ("http://cdn.test/a.jpg",)),
    Form("url-scheme-without-slashes", '<img src="http:a.jpg">', ("a.jpg",)),
    Form("url-scheme-with-one-slash", '<img src="http:/a.jpg">', ("/a.jpg",)),
    Form("url-other-scheme-without-slashes", '<img src="https:cdn.test/a.jpg">', ("https://cdn.test/a.jpg",)),
    Form("url-scheme-upper-case", '<img src="HTTP://CDN.Test/A.jpg">', ("http://cdn.test/A.jpg",)),
    Form("url-backslashes", '<img src="x\\y\\a.jpg">', ("x/y/a.jpg",)),
    Form("url-backslashes-absolute", '<img src="http:\\\\cdn.test\\a.jpg">', ("http://cdn.test/a.jpg",)),
    Form("url-backslashes-protocol-relative", '<img src="\\\\cdn.test/a.jpg">', ("http://cdn.test/a.jpg",)),
    Form("url-backslash-in-query", '<img src="a.jpg?x\\y#z\\w">', ("a.jpg?x\\y#z\\w",)),
    Form("url-default-port", '<img src="http://cdn.test:80/a.jpg">', ("http://cdn.test/a.jpg",)),
    Form("url-port", '<img src="http://cdn.test:8080/a.jpg">', ("http://cdn.test:8080/a.jpg",)),
    Form("url-port-zeros", '<img src="http://cdn.test:0008080/a.jpg">', ("http://cdn.test:8080/a.jpg",)),
    Form("url-port-empty", '<img src="http://cdn.test:/a.jpg">', ("http://cdn.test/a.jpg",)),
    Form("url-port-of-other-scheme", '<img src="http://cdn.test:443/a.jpg">', ("http://cdn.test:443/a.jpg",)),
    Form("url-port-too-large", '<img src="http://cdn.test:99999/a.jpg">', ()),
    Form("url-port-no-number", '<img src="http://cdn.test:http/a.jpg">', ()),
    Form("url-user", '<img src="http://me:se%20cret@cdn.test/a.jpg">', ("http://me:se%20cret@cdn.test/a.jpg",)),
    Form(
        "url-user-with-at",
        '<img src="http://a@b:c:d@cdn.test/a.jpg">',
        ("http://a%40b:c%3Ad@cdn.test/a.jpg",),
        shown=("http://a@b:c:d@cdn.test/a.jpg",),
        differs="the URL standard wants them percent-encoded",
    ),
    Form("url-user-empty", '<img src="http://:@cdn.test/a.jpg">', ("http://cdn.test/a.jpg",)),
    Form("url-host-international", '<img src="http://Bücher.test/a.jpg">', ("http://xn--bcher-kva.test/a.jpg",)),
    Form("url-host-sharp-s", '<img src="http://faß.test/a.jpg">', ("http://xn--fa-hia.test/a.jpg",)),
    Form("url-host-full-width", '<img src="http://ｃｄｎ。test/a.jpg">', ("http://cdn.test/a.jpg",)),
    Form("url-host-emoji", '<img src="http://😀.test/a.jpg">', ("http://xn--e28h.test/a.jpg",)),
    Form("url-host-escaped", '<img src="http://%63dn.test/a.jpg">', ("http://cdn.test/a.jpg",)),
    Form("url-host-underscore", '<img src="http://my_cdn.test/a.jpg">', ("http://my_cdn.test/a.jpg",)),
    Form("url-host-final-dot", '<img src="http://cdn.test./a.jpg">', ("http://cdn.test./a.jpg",)),
    Form(
        "url-host-with-space",
        '<img src="http://cdn test/a.jpg">',
        (),
        shown=("http://cdn%20test/a.jpg",),
        differs="the URL standard allows no such host, and no name server knows one",
    ),
    Form("url-host-absent", '<img src="http://"><img src="https:///">', ()),
    Form("url-host-address", '<img src="http://127.0.0.1/a.jpg">', ("http://127.0.0.1/a.jpg",)),
    Form("url-host-number", '<img src="http://0x7f.1/a.jpg">', ("http://127.0.0.1/a.jpg",)),
    Form("url-host-no-address", '<img src="http://256.256.256.256/a.jpg">', ()),
    Form("url-host-ipv6", '<img src="http://[::0001]:81/a.jpg">', ("http://[::1]:81/a.jpg",)),
    Form("url-host-bad-ipv6", '<img src="http://[::g]/a.jpg">', ()),
    Form(
        "url-host-only",
        '<img src="http://cdn.test"><img src="//cdn.test?x">',
        ("http://cdn.test/", "http://cdn.test/?x"),
    ),
    Form("url-query-only", '<img src="?image=1">', ("url-query-only?image=1",)),
    Form("url-fragment-only", '<img src="#a">', ("url-fragment-only#a",)),
    Form("url-query-empty", '<img src="a.jpg?"><img src="b.jpg#">', ("a.jpg?", "b.jpg#")),
    Form("url-question-marks", '<img src="a.jpg?x?y#z?w">', ("a.jpg?x?y#z?w",)),
    Form("url-colon-in-name", '<img src="./12:30.jpg"><img src="x/12:30.jpg">', ("12:30.jpg", "x/12:30.jpg")),
    Form("url-unknown-scheme", '<img src="photo:30.jpg">', ()),
    Form("url-number-before-colon", '<img src="12:30.jpg">', ("12:30.jpg",)),  # a scheme begins with a letter
    Form("url-semicolon", '<img src="a;jsessionid=1.jpg">', ("a;jsessionid=1.jpg",)),
    Form("url-data", f'<img src="{GIF}">', ()),
    Form("url-data-upper-case", f'<img src="DATA{GIF[4:]}">', ()),
    Form("url-data-svg", "<img src=\"data:image/svg+xml;utf8,<svg xmlns='http://www.w3.org/2000/svg'/>\">", ()),
    Form("url-blob", '<img src="blob:http://pages.test/0b5e7c1e">', ()),
    Form("url-javascript", '<img src="javascript:void(0)">', ()),
    Form("url-about-blank", '<img src="about:blank">', ()),
    Form("url-file", '<img src="file:///C:/a.jpg">', ()),
    Form("url-ftp", '<img src="ftp://cdn.test/a.jpg">', ()),
    Form("url-cid", '<img src="cid:part1@mail"><img src="chrome://favicon/"><img src="C:\\a.jpg">', ()),
    Form("url-template-left-over", '<img src="{{ item.src }}">', ("%7B%7B%20item.src%20%7D%7D",)),
    Form("url-within-url", '<img src="/resize?u=http://a.test/b.jpg">', ("/resize?u=http://a.test/b.jpg",)),
    Form("url-within-path", '<img src="/w_100/https://a.test/b.jpg">', ("/w_100/https://a.test/b.jpg",)),
)

SRCSET_FORMS = (
    Form("srcset-widths", '<img src="s.jpg" srcset="s.jpg 300w, m.jpg 768w, l.jpg 2048w">', ("l.jpg",)),
    Form("srcset-widths-unordered", '<img src="s.jpg" srcset="m.jpg 768w, l.jpg 2048w, s.jpg 300w">', ("l.jpg",)),
    Form("srcset-sizes", '<img srcset="s.jpg 400w, l.jpg 1200w" sizes="(max-width: 600px) 90vw, 300px">', ("l.jpg",)),
    Form("srcset-sizes-broken", '<img srcset="s.jpg 400w, l.jpg 1200w" sizes="banana, (x) 1">', ("l.jpg",)),
    Form(
        "srcset-sizes-auto",
        '<img loading=lazy width=300 height=9 srcset="s.jpg 400w, l.jpg 1200w" sizes=auto>',
        ("l.jpg",),
    ),
    Form("srcset-densities", '<img src="a.jpg" srcset="a.jpg 1x, b.jpg 2x, c.jpg 3x">', ("c.jpg",)),
    Form("srcset-density-fractions", '<img src="a.jpg" srcset="b.jpg 1.5x, c.jpg 2.25x">', ("c.jpg",)),
    Form("srcset-density-exponent", '<img src="a.jpg" srcset="b.jpg .5e1x, c.jpg 2x">', ("b.jpg",)),
    Form("srcset-density-without-number", '<img src="a.jpg" srcset="b.jpg x, c.jpg 1.x, d.jpg +2x">', ("a.jpg",)),
    Form("srcset-density-zero", '<img srcset="a.jpg 0x">', ("a.jpg",)),
    Form("srcset-density-negative", '<img srcset="a.jpg -1x">', ()),
    Form("srcset-density-below-1", '<img src="a.jpg" srcset="b.jpg 0.5x">', ("a.jpg",)),
    Form("srcset-density-1", '<img src="a.jpg" srcset="b.jpg 1x">', ("b.jpg",)),
    Form("srcset-no-descriptor", '<img src="a.jpg" srcset="b.jpg">', ("b.jpg",)),
    Form("srcset-no-descriptor-among-densities", '<img srcset="a.jpg, b.jpg 2x">', ("b.jpg",)),
    Form("srcset-without-src", '<img srcset="a.jpg 1x, b.jpg 2x">', ("b.jpg",)),
    Form("srcset-empty", '<img src="a.jpg" srcset="">', ("a.jpg",)),
    Form("srcset-blank", '<img src="a.jpg" srcset=" , ,, ">', ("a.jpg",)),
    Form("srcset-equal-widths", '<img srcset="a.jpg 800w, b.jpg 800w">', ("a.jpg",)),
    Form("srcset-equal-densities", '<img srcset="a.jpg 2x, b.jpg 2x">', ("a.jpg",)),
    Form("srcset-newlines", '<img srcset="\n  a.jpg 100w,\n\tb.jpg 200w\n">', ("b.jpg",)),
    Form("srcset-no-space-after-comma", '<img srcset="a.jpg 100w,b.jpg 200w">', ("b.jpg",)),
    Form("srcset-comma-after-url", '<img srcset="a.jpg, b.jpg 2x,">', ("b.jpg",)),
    Form("srcset-many-commas", '<img srcset=",,a.jpg 1x,, ,b.jpg 2x,,">', ("b.jpg",)),
    Form("srcset-commas-at-end-of-url", '<img srcset="a.jpg,,, b.jpg 0.5x">', ("a.jpg",)),
    Form(
        "srcset-commas-in-url", '<img srcset="/w_100,h_50/a.jpg 100w, /w_200,h_90/a.jpg 200w">', ("/w_200,h_90/a.jpg",)
    ),
    Form("srcset-urls-glued", '<img srcset="a.jpg,b.jpg 2x">', ("a.jpg,b.jpg",)),
    Form("srcset-spaces-before-comma", '<img srcset="a.jpg 1x  ,  b.jpg 2x ,">', ("b.jpg",)),
    Form("srcset-data-candidate", f'<img srcset="{GIF} 1x, b.jpg 2x">', ("b.jpg",)),
    Form("srcset-width-zero", '<img src="a.jpg" srcset="b.jpg 0w">', ("a.jpg",)),
    Form("srcset-width-fraction", '<img src="a.jpg" srcset="b.jpg 100.5w">', ("a.jpg",)),
    Form("srcset-width-negative", '<img src="a.jpg" srcset="b.jpg -100w">', ("a.jpg",)),
    Form("srcset-width-upper-case", '<img src="a.jpg" srcset="b.jpg 100W">', ("a.jpg",)),
    Form("srcset-width-plus", '<img src="a.jpg" srcset="b.jpg +100w">', ("a.jpg",)),
    Form("srcset-width-zeros", '<img src="a.jpg" srcset="b.jpg 0100w, c.jpg 99w">', ("b.jpg",)),
    Form("srcset-width-huge", '<img src="a.jpg" srcset="b.jpg 2000000000w, c.jpg 100w">', ("b.jpg",)),
    Form("srcset-width-with-unit", '<img src="a.jpg" srcset="b.jpg 100px, c.jpg 50w">', ("c.jpg",)),
    Form("srcset-width-and-height", '<img src="a.jpg" srcset="b.jpg 100w 50h, c.jpg 60h 120w">', ("c.jpg",)),
    Form("srcset-height-only", '<img src="a.jpg" srcset="b.jpg 100h">', ("a.jpg",)),
    Form("srcset-height-zero", '<img src="a.jpg" srcset="b.jpg 100w 0h">', ("a.jpg",)),
    Form("srcset-width-and-density", '<img src="a.jpg" srcset="b.jpg 100w 2x">', ("a.jpg",)),
    Form("srcset-two-widths", '<img src="a.jpg" srcset="b.jpg 100w 200w, c.jpg 50w">', ("c.jpg",)),
    Form("srcset-two-densities", '<img src="a.jpg" srcset="b.jpg 2x 3x">', ("a.jpg",)),
    Form("srcset-parentheses", '<img src="a.jpg" srcset="b.jpg (1x, 2x) 3x, c.jpg 2x">', ("c.jpg",)),
    Form("srcset-parenthesis-open", '<img src="a.jpg" srcset="c.jpg 2x, b.jpg (3x, d.jpg 4x">', ("c.jpg",)),
    Form("srcset-unknown-descriptor", '<img src="a.jpg" srcset="b.jpg large, c.jpg 2x">', ("c.jpg",)),
    Form("srcset-spaces-in-url", '<img src="a.jpg" srcset="my photo.jpg 2x, c.jpg 1.5x">', ("c.jpg",)),
    Form("srcset-escaped-spaces", '<img src="a.jpg" srcset="my%20photo.jpg 2x">', ("my%20photo.jpg",)),
    Form("srcset-entities", '<img srcset="a.jpg?w=1&amp;q=2 1x, a.jpg?w=2&q=2 2x">', ("a.jpg?w=2&q=2",)),
    Form(
        "srcset-protocol-relative",
        '<img srcset="//cdn.test/a.jpg 1x, //cdn.test/b.jpg 2x">',
        ("http://cdn.test/b.jpg",),
    ),
    Form("srcset-backslashes", '<img srcset="x\\a.jpg 2x">', ("x/a.jpg",)),
    Form("srcset-no-break-space", '<img src="a.jpg" srcset="b.jpg\u00a02x">', ("b.jpg%C2%A02x",)),
    Form("srcset-twice", '<img srcset="a.jpg 1x" srcset="b.jpg 2x">', ("a.jpg",)),
    Form("srcset-of-one-width", '<img src="a.jpg" srcset="b.jpg 100w">', ("b.jpg",)),
    Form("srcset-upper-case", '<IMG SRC="a.jpg" SRCSET="b.jpg 2x">', ("b.jpg",)),
    Form("srcset-without-urls", '<img src="a.jpg" srcset="100w, 200w">', ("100w",)),  # two names
    Form("srcset-dots", '<img srcset="../x/./b.jpg 2x">', ("/x/b.jpg",)),
    Form(
        "srcset-wordpress",
        '<img width="1024" height="683" src="/u/p-1024x683.jpg" class="wp-image-5" '
        'srcset="/u/p-1024x683.jpg 1024w, /u/p-300x200.jpg 300w, /u/p-2048x1365.jpg 2048w" '
        'sizes="(max-width: 1024px) 100vw, 1024px">',
        ("/u/p-2048x1365.jpg",),
    ),
    Form(
        "srcset-wikipedia",
        '<img src="//up.test/thumb/A.jpg/220px-A.jpg" decoding="async" width="220" height="165" class="mw-file" '
        'srcset="//up.test/thumb/A.jpg/330px-A.jpg 1.5x, //up.test/thumb/A.jpg/440px-A.jpg 2x">',
        ("http://up.test/thumb/A.jpg/440px-A.jpg",),
    ),
    Form(
        "srcset-next-js",
        '<img alt="x" loading="lazy" width="50" height="50" decoding="async" data-nimg="1" style="color:transparent" '
        'srcSet="/_next/image?url=%2Fa.jpg&amp;w=640&amp;q=75 1x, /_next/image?url=%2Fa.jpg&amp;w=1200&amp;q=75 2x" '
        'src="/_next/image?url=%2Fa.jpg&amp;w=1200&amp;q=75"/>',
        ("/_next/image?url=%2Fa.jpg&w=1200&q=75",),
    ),
    Form(
        "srcset-cloudinary",
        '<img srcset="https://res.test/f_auto,w_400/v1/a.jpg 400w,https://res.test/f_auto,w_800/v1/a.jpg 800w">',
        ("https://res.test/f_auto,w_800/v1/a.jpg",),
    ),
    Form(
        "srcset-small-sizes",
        '<img src="s.jpg" srcset="s.jpg 400w, m.jpg 800w, l.jpg 3200w" sizes="100px">',
        ("l.jpg",),
        shown=("m.jpg",),
        differs="the browser takes what suffices for 100 px, we take the largest",
    ),
    Form(
        "srcset-density-beyond-the-screen",
        '<img src="a.jpg" srcset="b.jpg 2x, c.jpg 8x, d.jpg 16x">',
        ("d.jpg",),
        shown=("c.jpg",),
        differs="the browser takes what suffices for its 8 device pixels per px, we take the largest",
    ),
    Form(
        "srcset-widths-and-densities",
        '<img srcset="a.jpg 1000w, b.jpg 2x">',
        ("a.jpg",),
        shown=("b.jpg",),
        differs="mixed descriptors break the rules of HTML: a width says more of the file than a density",
    ),
    Form(
        "srcset-largest-is-data",
        f'<img srcset="a.jpg 1x, {GIF} 2x">',
        ("a.jpg",),
        shown=(),
        differs="what a page holds itself is no image of the web: the largest that can be fetched",
    ),
)

PICTURE_FORMS = (
    Form("picture", '<picture><source srcset="a.webp" type="image/webp"><img src="a.jpg"></picture>', ("a.webp",)),
    Form("picture-without-source", '<picture><img src="a.jpg"></picture>', ("a.jpg",)),
    Form("picture-without-img", '<picture><source srcset="a.webp"></picture>', ()),
    Form(
        "picture-first-that-fits",
        '<picture><source srcset="a.avif" type="image/avif"><source srcset="a.webp" type="image/webp">'
        '<img src="a.jpg"></picture>',
        ("a.avif",),
    ),
    Form(
        "picture-largest-candidate",
        '<picture><source srcset="s.webp 400w, l.webp 1600w" sizes="100vw"><img src="a.jpg"></picture>',
        ("l.webp",),
    ),
    Form(
        "picture-source-smaller-than-img",
        '<picture><source srcset="s.jpg 100w"><img src="a.jpg" srcset="l.jpg 3000w"></picture>',
        ("s.jpg",),
    ),
    Form(
        "picture-source-density-below-1", '<picture><source srcset="s.jpg .5x"><img src="a.jpg"></picture>', ("s.jpg",)
    ),
    Form(
        "picture-type-unknown", '<picture><source srcset="a.x" type="image/x-new"><img src=a.jpg></picture>', ("a.jpg",)
    ),
    Form(
        "picture-type-jp2", '<picture><source srcset="a.jp2" type="image/jp2"><img src="a.jpg"></picture>', ("a.jpg",)
    ),
    Form(
        "picture-type-jxr",
        '<picture><source srcset=a.jxr type=image/vnd.ms-photo><img src="a.jpg"></picture>',
        ("a.jpg",),
    ),
    Form(
        "picture-type-heic", '<picture><source srcset="a.heic" type="image/heic"><img src=a.jpg></picture>', ("a.jpg",)
    ),
    Form(
        "picture-type-tiff", '<picture><source srcset="a.tif" type="image/tiff"><img src="a.jpg"></picture>', ("a.jpg",)
    ),
    Form(
        "picture-type-video", '<picture><source srcset="a.mp4" type="video/mp4"><img src="a.jpg"></picture>', ("a.jpg",)
    ),
    Form(
        "picture-type-jpg", '<picture><source srcset="b.jpg" type="image/jpg"><img src="a.jpg"></picture>', ("b.jpg",)
    ),
    Form(
        "picture-type-png", '<picture><source srcset="b.png" type="image/png"><img src="a.jpg"></picture>', ("b.png",)
    ),
    Form(
        "picture-type-gif", '<picture><source srcset="b.gif" type="image/gif"><img src="a.jpg"></picture>', ("b.gif",)
    ),
    Form(
        "picture-type-bmp", '<picture><source srcset="b.bmp" type="image/bmp"><img src="a.jpg"></picture>', ("b.bmp",)
    ),
    Form(
        "picture-type-apng", '<picture><source srcset="b.png" type="image/apng"><img src="a.jpg"></picture>', ("b.png",)
    ),
    Form(
        "picture-type-upper-case",
        '<picture><source srcset=b.webp type="IMAGE/WebP"><img src=a.jpg></picture>',
        ("b.webp",),
    ),
    Form(
        "picture-type-with-parameters",
        '<picture><source srcset="b.webp" type="image/webp; q=1"><img src="a.jpg"></picture>',
        ("b.webp",),
    ),
    Form(
        "picture-type-padded",
        '<picture><source srcset=b.webp type=" image/webp "><img src=a.jpg></picture>',
        ("b.webp",),
    ),
    Form("picture-type-empty", '<picture><source srcset="b.jpg" type=""><img src="a.jpg"></picture>', ("b.jpg",)),
    Form(
        "picture-type-no-mime", '<picture><source srcset="b.webp" type="webp"><img src="a.jpg"></picture>', ("a.jpg",)
    ),
    Form("picture-source-src", '<picture><source src="b.jpg"><img src="a.jpg"></picture>', ("a.jpg",)),
    Form("picture-source-srcset-empty", '<picture><source srcset=""><img src="a.jpg"></picture>', ("a.jpg",)),
    Form("picture-source-srcset-broken", '<picture><source srcset="b.jpg big"><img src="a.jpg"></picture>', ("a.jpg",)),
    Form("picture-source-after-img", '<picture><img src="a.jpg"><source srcset="b.jpg"></picture>', ("a.jpg",)),
    Form("picture-source-self-closing", '<picture><source srcset="b.jpg"/><img src="a.jpg"/></picture>', ("b.jpg",)),
    Form("picture-source-closed", '<picture><source srcset="b.jpg"></source><img src="a.jpg"></picture>', ("b.jpg",)),
    Form("picture-source-in-div", '<picture><div><source srcset="b.jpg"></div><img src="a.jpg"></picture>', ("a.jpg",)),
    Form("picture-img-in-div", '<picture><source srcset="b.jpg"><div><img src="a.jpg"></div></picture>', ("a.jpg",)),
    Form(
        "picture-img-in-link", '<picture><source srcset="b.jpg"><a href="#"><img src="a.jpg"></a></picture>', ("a.jpg",)
    ),
    Form("picture-in-link", '<a href="x"><picture><source srcset="b.jpg"><img src="a.jpg"></picture></a>', ("b.jpg",)),
    Form(
        "picture-two-imgs",
        '<picture><source srcset="b.jpg"><img src="1.jpg"><img src="2.jpg"></picture>',
        ("b.jpg", "b.jpg"),
    ),
    Form(
        "picture-source-between-imgs",
        '<picture><img src="1.jpg"><source srcset="b.jpg"><img src="2.jpg"></picture>',
        ("1.jpg", "b.jpg"),
    ),
    Form(
        "picture-in-picture",
        '<picture><source srcset="b.jpg"><picture><img src="1.jpg"></picture><img src="2.jpg"></picture>',
        ("1.jpg", "b.jpg"),
    ),
    Form(
        "picture-unclosed", '<picture><source srcset="b.jpg"><img src="a.jpg"><p><img src="c.jpg">', ("b.jpg", "c.jpg")
    ),
    Form("picture-upper-case", '<PICTURE><SOURCE SRCSET="b.jpg"><IMG SRC="a.jpg"></PICTURE>', ("b.jpg",)),
    Form("picture-with-text", '<picture>x <source srcset="b.jpg"> <!-- y --> <img src="a.jpg"></picture>', ("b.jpg",)),
    Form("picture-of-video", '<video><source src="v.mp4"><source srcset="b.jpg"><img src="a.jpg"></video>', ("a.jpg",)),
    Form("picture-source-without-picture", '<div><source srcset="b.jpg"><img src="a.jpg"></div>', ("a.jpg",)),
    Form("picture-img-without-src", '<picture><source srcset="b.jpg"><img alt="x"></picture>', ("b.jpg",)),
    Form("picture-img-data", f'<picture><source srcset="b.jpg"><img src="{GIF}"></picture>', ("b.jpg",)),
    Form(
        "picture-type-svg",
        '<picture><source srcset="a.svg" type="image/svg+xml"><img src="a.png"></picture>',
        ("a.png",),
        shown=("a.svg",),
        differs="we decode no SVG: the page says itself which image stands for it",
    ),
    Form(
        "picture-type-icon",
        '<picture><source srcset="a.ico" type="image/x-icon"><img src="a.png"></picture>',
        ("a.png",),
        shown=("a.ico",),
        differs="we decode no icons",
    ),
    Form(
        "picture-source-data",
        f'<picture><source srcset="{GIF}"><img src="a.jpg"></picture>',
        ("a.jpg",),
        shown=(),
        differs="what a page holds itself is no image of the web: the next one is",
    ),
)


def _media(name: str, media: str, is_met: bool) -> Form:
    html = f'<picture><source srcset="b.jpg" media="{media}"><img src="a.jpg"></picture>'
    return Form(f"media-{name}", html, ("b.jpg" if is_met else "a.jpg",))


MEDIA_FORMS = (
    _media("min-width", "(min-width: 1024px)", True),
    _media("max-width", "(max-width: 1024px)", False),
    _media("min-width-em", "(min-width: 64em)", True),
    _media("max-width-rem", "(max-width:47.9375rem)", False),
    _media("width-exact", "(width: 8000px)", True),
    _media("both-widths", "(min-width: 600px) and (max-width: 900px)", False),
    _media("both-min", "(min-width: 600px) and (min-height: 400px)", True),
    _media("screen", "screen", True),
    _media("all", "all", True),
    _media("only-screen", "only screen and (min-width: 500px)", True),
    _media("print", "print", False),
    _media("tv", "tv and (min-width: 500px)", False),
    _media("not-print", "not print", True),
    _media("not-all", "not all", False),
    _media("not-screen-and", "not screen and (max-width: 500px)", True),
    _media("not-condition", "not (max-width: 500px)", True),
    _media("list", "print, (min-width: 10px)", True),
    _media("list-false", "print, (max-width: 10px)", False),
    _media("list-with-broken", "(nonsense, screen", False),
    _media("list-with-unknown", "(nonsense: 1), screen", True),
    _media("upper-case", "SCREEN AND (MIN-WIDTH: 500PX)", True),
    _media("spaces", "  screen   and  ( min-width :500px )  ", True),
    _media("no-space-around-and", "screen and(min-width: 500px)", False),
    _media("empty", "", True),
    _media("blank", "  ", True),
    _media("unknown", "(nonsense)", False),
    _media("not-unknown", "not (nonsense)", False),
    _media("width-without-unit", "(min-width: 500)", False),
    _media("width-without-parentheses", "min-width: 500px", False),
    _media("width-zero", "(min-width: 0)", True),
    _media("width-alone", "(width)", True),
    _media("min-width-alone", "(min-width)", False),
    _media("width-cm", "(min-width: 10.5cm) and (min-height: 4in)", True),
    _media("landscape", "(orientation: landscape)", True),
    _media("portrait", "(orientation: portrait)", False),
    _media("light", "(prefers-color-scheme: light)", True),
    _media("dark", "(prefers-color-scheme: dark)", False),
    _media("less-motion", "(prefers-reduced-motion: reduce)", False),
    _media("less-motion-alone", "(prefers-reduced-motion)", False),
    _media("any-motion", "(prefers-reduced-motion: no-preference)", True),
    _media("dense", "(min-resolution: 2dppx)", True),
    _media("dense-dpi", "(min-resolution: 192dpi)", True),
    _media("dense-webkit", "(-webkit-min-device-pixel-ratio: 1.5), (min-resolution: 144dpi)", True),
    _media("sparse", "(max-resolution: 1.5x)", False),
    _media("aspect-ratio", "(min-aspect-ratio: 4/3)", True),
    _media("aspect-ratio-max", "(max-aspect-ratio: 1/1)", False),
    _media("range", "(width >= 600px)", True),
    _media("range-mirrored", "(600px < width)", True),
    _media("range-of-two", "(600px <= width <= 1000px)", False),
    _media("range-of-two-met", "(600px <= width < 9000px)", True),
    _media("range-of-two-directions", "(600px <= width > 100px)", False),
    _media("or", "(max-width: 600px) or (orientation: landscape)", True),
    _media("or-and-mixed", "(max-width: 600px) or (color) and (color)", False),
    _media("nested", "((min-width: 600px) and (not (orientation: portrait)))", True),
    _media("type-or", "screen or (color)", False),
    _media("color", "(color)", True),
    _media("monochrome", "(monochrome)", False),
    _media("gamut", "(color-gamut: p3)", False),
    _media("forced-colors", "(forced-colors: active)", False),
    _media("scripting", "(scripting: enabled)", True),
    _media("hover", "(hover: hover) and (pointer: fine)", True),
    _media("hdr", "(dynamic-range: high)", False),
    _media("comment", "/* large */ (min-width: 500px)", True),
    Form(
        "media-calc",
        '<picture><source srcset="b.jpg" media="(min-width: calc(1px + 1em))"><img src="a.jpg"></picture>',
        ("a.jpg",),
        shown=("b.jpg",),
        differs="calc() is not computed",
    ),
    Form(
        "media-of-three",
        '<picture><source srcset="s.jpg" media="(max-width: 600px)"><source srcset="m.jpg" media="(max-width: 1200px)">'
        '<source srcset="l.jpg" media="(min-width: 1201px)"><img src="a.jpg"></picture>',
        ("l.jpg",),
    ),
    Form(
        "media-and-type",
        '<picture><source srcset="l.x" media="(min-width: 9px)" type="image/x-new">'
        '<source srcset="l.jpg" media="(min-width: 9px)" type="image/jpeg"><img src="a.jpg"></picture>',
        ("l.jpg",),
    ),
    Form(
        "media-dark-and-light",
        '<picture><source srcset="dark.png" media="(prefers-color-scheme: dark)">'
        '<source srcset="light.png" media="(prefers-color-scheme: light)"><img src="a.png"></picture>',
        ("light.png",),
    ),
    Form("media-of-img", '<img src="a.jpg" media="print">', ("a.jpg",)),
)


def _copied(name: str, attribute: str, placeholder: str = "blank.gif") -> Form:
    html = f'<img class="lazy" src="{placeholder}" {attribute}="/real/a.jpg?w=1&amp;h=2" alt="x">'
    return Form(name, html, ("/real/a.jpg?w=1&h=2",), loader=f"attribute:{attribute}")


LAZY_FORMS = (
    _copied("lazy-data-src", "data-src"),
    _copied("lazy-data-src-upper-case", "DATA-SRC"),
    _copied("lazy-data-src-over-data", "data-src", GIF),
    _copied("lazy-data-lazy-src", "data-lazy-src", GIF),
    _copied("lazy-data-original", "data-original"),
    _copied("lazy-data-lazy", "data-lazy", GIF),
    _copied("lazy-data-lazyload", "data-lazyload"),
    _copied("lazy-data-lazyload-src", "data-lazyload-src"),
    _copied("lazy-data-lazy-load", "data-lazy-load"),
    _copied("lazy-data-hi-res-src", "data-hi-res-src"),
    _copied("lazy-pagespeed", "data-pagespeed-lazy-src", "/pagespeed_static/1.gif"),
    _copied("lazy-pagespeed-old", "pagespeed_lazy_src"),
    _copied("lazy-ezoic", "data-ezsrc"),
    _copied("lazy-wp-fastest-cache", "data-wpfc-original-src"),
    _copied("lazy-salient", "data-nectar-img-src", GIF),
    _copied("lazy-optimole", "data-opt-src", GIF),
    _copied("lazy-avada", "data-orig-src", GIF),
    _copied("lazy-breeze", "data-breeze", GIF),
    _copied("lazy-themify", "data-tf-src", GIF),
    _copied("lazy-featured-image-from-url", "fifu-data-src"),
    _copied("lazy-flickity", "data-flickity-lazyload"),
    _copied("lazy-flickity-src", "data-flickity-lazyload-src"),
    _copied("lazy-splide", "data-splide-lazy"),
    _copied("lazy-cloudflare-mirage", "data-cfsrc"),
    _copied("lazy-nitropack", "nitro-lazy-src", GIF),
    _copied("lazy-frz", "data-frz-src", GIF),
    _copied("lazy-echo", "data-echo"),
    _copied("lazy-defer", "data-defer-src"),
    _copied("lazy-linkedin", "data-delayed-url"),
    _copied("lazy-zhihu", "data-actualsrc"),
    _copied("lazy-jd", "data-lazy-img"),
    _copied("lazy-taobao", "data-ks-lazyload"),
    _copied("lazy-imdb", "loadlate"),
    _copied("lazy-sina", "real_src"),
    _copied("lazy-original", "original"),
    _copied("lazy-discuz", "file", "static/image/common/none.gif"),
    _copied("lazy-src-attribute", "lazy-src"),
    _copied("lazy-data-img-src", "data-img-src"),
    _copied("lazy-data-image-src", "data-image-src"),
    Form("lazy-without-src", '<img class="lazy" data-src="a.jpg">', ("a.jpg",), loader="vanilla"),
    Form("lazy-src-empty", '<img class="lazy" src="" data-src="a.jpg">', ("a.jpg",), loader="vanilla"),
    Form("lazy-data-src-empty", '<img class="lazy" src="a.jpg" data-src="">', ("a.jpg",), loader="vanilla"),
    Form("lazy-data-src-padded", '<img class="lazy" data-src=" a b.jpg ">', ("a%20b.jpg",), loader="vanilla"),
    Form("lazy-same-twice", '<img class="lazy" src="a.jpg" data-src="a.jpg">', ("a.jpg",), loader="vanilla"),
    Form(
        "lazy-lazysizes-srcset",
        '<img class="lazyload" src="s.jpg" data-src="m.jpg" data-srcset="m.jpg 800w, l.jpg 1600w" data-sizes="auto">',
        ("l.jpg",),
        loader="lazysizes",
    ),
    Form(
        "lazy-lazysizes-transparent-srcset",
        f'<img class="lazyload" src="s.jpg" srcset="{GIF}" data-srcset="m.jpg 800w, l.jpg 1600w">',
        ("l.jpg",),
        loader="lazysizes",
    ),
    Form(
        "lazy-lazysizes-low-quality-srcset",
        '<img class="lazyload" srcset="blur.jpg 20w" data-srcset="m.jpg 800w, l.jpg 1600w">',
        ("l.jpg",),
        loader="lazysizes",
    ),
    Form(
        "lazy-lazysizes-picture",
        '<picture><source data-srcset="a.webp 1x, b.webp 2x" type="image/webp">'
        '<img class="lazyload" data-src="a.jpg"></picture>',
        ("b.webp",),
        loader="lazysizes",
    ),
    Form(
        "lazy-lazysizes-picture-with-placeholder",
        f'<picture><source srcset="{GIF}" data-srcset="b.webp" type="image/webp">'
        f'<img class="lazyload" src="{GIF}" data-src="a.jpg"></picture>',
        ("b.webp",),
        loader="lazysizes",
    ),
    Form(
        "lazy-lazysizes-picture-media",
        '<picture><source data-srcset="s.jpg" media="(max-width: 500px)"><source data-srcset="l.jpg">'
        '<img class="lazyload" data-src="a.jpg"></picture>',
        ("l.jpg",),
        loader="lazysizes",
    ),
    Form(
        "lazy-vanilla-picture",
        '<picture><source type="image/x-new" data-srcset="a.x"><img class="lazy" data-src="a.jpg"></picture>',
        ("a.jpg",),
        loader="vanilla",
    ),
    Form(
        "lazy-vanilla-srcset-and-src",
        '<img class="lazy" data-src="a.jpg" data-srcset="b.jpg 2x">',
        ("b.jpg",),
        loader="vanilla",
    ),
    Form("lazy-srcset-stays", '<img class=lazy srcset="b.jpg 2x" data-src="a.jpg">', ("b.jpg",), loader="vanilla"),
    Form(
        "lazy-srcset-blank", '<img class=lazy src=s.jpg data-src=a.jpg data-srcset=" ">', ("a.jpg",), loader="vanilla"
    ),
    Form("lazy-srcset-of-one", '<img class="lazy" data-srcset="a.jpg">', ("a.jpg",), loader="vanilla"),
    Form("lazy-lozad", '<img class="lozad" data-src="a.jpg" data-srcset="b.jpg 3x">', ("b.jpg",), loader="lozad"),
    Form(
        "lazy-lozad-picture",
        '<picture class="lozad" data-iesrc="a.jpg"><source srcset="b.jpg" media="(min-width: 1px)"><img></picture>',
        ("b.jpg",),
        loader="lozad",
    ),
    Form("lazy-unveil", '<img src="blank.gif" data-src="a.jpg">', ("a.jpg",), loader="unveil"),
    Form("lazy-unveil-retina", '<img data-src="a.jpg" data-src-retina="a@2x.jpg">', ("a@2x.jpg",), loader="unveil"),
    Form(
        "lazy-wp-rocket",
        f'<img src="{GIF}" data-lazy-src="/u/a.jpg" data-lazy-srcset="/u/a.jpg 600w, /u/b.jpg 1200w" '
        'data-lazy-sizes="100vw"><noscript><img src="/u/a.jpg" srcset="/u/a.jpg 600w, /u/b.jpg 1200w"></noscript>',
        ("/u/b.jpg", "/u/b.jpg"),
        loader="attributes:data-lazy-src,data-lazy-srcset",
        shown=("/u/b.jpg",),
        differs="with scripts <noscript> is text; a repeated URL costs nothing, its alt text may be worth something",
    ),
    Form(
        "lazy-jetpack",
        '<img src="/u/a.jpg?resize=600&amp;is-pending-load=1" srcset="data:image/gif;base64,R0lGODlhAQABAAAAACw=" '
        'data-lazy-src="/u/a.jpg?resize=600" data-lazy-srcset="/u/a.jpg?w=1200 1200w">',
        ("/u/a.jpg?w=1200",),
        loader="attributes:data-lazy-src,data-lazy-srcset",
    ),
    Form(
        "lazy-pagespeed-srcset",
        '<img src="/1.gif" data-pagespeed-lazy-src="a.jpg" data-pagespeed-lazy-srcset="a.jpg 1x, b.jpg 2x">',
        ("b.jpg",),
        loader="attributes:data-pagespeed-lazy-src,data-pagespeed-lazy-srcset",
    ),
    Form(
        "lazy-ezoic-srcset",
        f'<img class="ezlazyload" src="{GIF}" data-ezsrc="a.jpg" data-ezsrcset="a.jpg 300w,b.jpg 900w">',
        ("b.jpg",),
        loader="attributes:data-ezsrc,data-ezsrcset",
    ),
    Form(
        "lazy-nitropack-srcset",
        f'<img src="{GIF}" nitro-lazy-src="a.jpg" nitro-lazy-srcset="a.jpg 300w, b.jpg 900w">',
        ("b.jpg",),
        loader="attributes:nitro-lazy-src,nitro-lazy-srcset",
    ),
    Form(
        "lazy-flickity-srcset",
        '<img data-flickity-lazyload-src="a.jpg" data-flickity-lazyload-srcset="a.jpg 300w, b.jpg 900w">',
        ("b.jpg",),
        loader="attributes:data-flickity-lazyload-src,data-flickity-lazyload-srcset",
    ),
    Form(
        "lazy-original-set",
        '<img data-original="a.jpg" data-original-set="a.jpg 1x, b.jpg 2x">',
        ("b.jpg",),
        loader="attributes:data-original,data-original-set",
    ),
    Form(
        "lazy-shopify-widths",
        '<img class="lazyload" src="//cdn.test/a_300x300.jpg" data-src="//cdn.test/a_{width}x.jpg?v=1" '
        'data-widths="[180, 360, 540, 1080, 900]" data-aspectratio="1.5" data-sizes="auto">',
        ("http://cdn.test/a_1080x.jpg?v=1",),
        loader="rias",
        shown=("http://cdn.test/a_900x.jpg?v=1",),
        differs="the loader takes the last width, which is the largest where the page has them in order",
    ),
    Form(
        "lazy-shopify-widths-in-order",
        '<img class="lazyload" data-src="//cdn.test/a_{width}x.jpg" data-widths="[180, 360, 540, 720, 1080]">',
        ("http://cdn.test/a_1080x.jpg",),
        loader="rias",
    ),
    Form("lazy-shopify-no-widths", '<img class=lazyload data-src="a_{width}x.jpg">', ("a_2048x.jpg",), loader="rias"),
    Form(
        "lazy-breeze-srcset",
        f'<img src="{GIF}" class="br-lazy" data-breeze="a.jpg" data-brsrcset="a.jpg 300w, b.jpg 900w">',
        ("b.jpg",),
        loader="attributes:data-breeze,data-brsrcset",
    ),
    Form("lazy-switch", '<img src="a.jpg" data-lazy="true" data-lazyload="1" data-original="false">', ("a.jpg",)),
    Form("lazy-ratio", '<img src="a.jpg" data-lazy="0.75" data-retina="true" file="5">', ("a.jpg",)),
    Form("lazy-settings", """<img src="a.jpg" data-lazy='{"src": "/x.jpg"}' data-src="[1.5]">""", ("a.jpg",)),
    Form("lazy-data-src-is-data", f'<img class="lazy" src="a.jpg" data-lazy-src="{GIF}">', ("a.jpg",)),
    Form("lazy-larger-elsewhere", '<img src="a.jpg" data-large-file="b.jpg" data-zoom-image="c.jpg">', ("a.jpg",)),
    Form("lazy-share-link", '<img src="a.jpg" data-url="/page.html" data-href="/page.html" data-id="x.y">', ("a.jpg",)),
    Form("lazy-background", '<img src="a.jpg" data-bg="b.jpg" style="background:url(c.jpg)">', ("a.jpg",)),
    Form("lazy-of-other-element", '<div data-src="a.jpg"></div><img src="b.jpg">', ("b.jpg",)),
)

NOSCRIPT_FORMS = (
    Form("noscript", '<noscript><img src="a.jpg"></noscript>', ("a.jpg",), loader="noscript"),
    Form(
        "noscript-after-placeholder",
        f'<img src="{GIF}" class="lazy"><noscript><img src="a.jpg" alt="x"></noscript>',
        ("a.jpg",),
        loader="noscript",
    ),
    Form(
        "noscript-picture",
        '<noscript><picture><source srcset="b.webp"><img src="a.jpg"></picture></noscript>',
        ("b.webp",),
        loader="noscript",
    ),
    Form(
        "noscript-next-js",
        f'<span><img alt="x" src="{GIF}" data-nimg="fixed"><noscript><img alt="x" srcSet="/i?w=640 1x, /i?w=1200 2x" '
        'src="/i?w=1200" loading="lazy" width="50" height="50"></noscript></span>',
        ("/i?w=1200",),
        loader="noscript",
    ),
    Form("noscript-in-link", '<a href="x"><noscript><img src="a.jpg"></noscript></a>', ("a.jpg",), loader="noscript"),
    Form(
        "noscript-in-picture",
        '<picture><noscript><img src="a.jpg"></noscript></picture>',
        ("a.jpg",),
        loader="noscript",
    ),
    Form(
        "noscript-entities", "<noscript><img src='a.jpg?x=1&amp;y=2'></noscript>", ("a.jpg?x=1&y=2",), loader="noscript"
    ),
    Form("noscript-unclosed", "<noscript><img src='a.jpg'>", ("a.jpg",), loader="noscript"),
    Form(
        "noscript-beside-lazy",
        '<img class="lazy" data-src="a.jpg"><noscript><img src="a.jpg"></noscript>',
        ("a.jpg", "a.jpg"),
        loader="vanilla",
        shown=("a.jpg",),
        differs="with scripts <noscript> is text; a repeated URL costs nothing, its alt text may be worth something",
    ),
    Form(
        "noscript-in-head",
        '<img src="a.jpg">',
        ("pixel.gif", "a.jpg"),
        head='<noscript><img src="pixel.gif" width="1" height="1"></noscript>',
        shown=("a.jpg",),
        differs="with scripts <noscript> is text",
    ),
)

BROKEN_FORMS = (
    Form("broken-no-html", '<img src="a.jpg">', ("a.jpg",), is_whole=True),
    Form("broken-tag-cut", '<img src="a.jpg"><img src="b.jpg"', ("a.jpg",), is_whole=True),
    Form("broken-value-cut", '<img src="a.jpg"><img src="b.jp', ("a.jpg",), is_whole=True),
    Form(
        "broken-quote-unclosed",
        '<img src="a.jpg><p>text</p><img src="b.jpg">',
        ("a.jpg%3E%3Cp%3Etext%3C/p%3E%3Cimg%20src=",),
    ),
    Form("broken-quote-doubled", '<img src="a.jpg"" alt="x">', ("a.jpg",)),
    Form("broken-quotes-curly", "<img src=”a.jpg”>", ("%E2%80%9Da.jpg%E2%80%9D",)),
    Form("broken-quotes-escaped", '<img src=\\"a.jpg\\">', ("/%22a.jpg/%22",)),
    Form("broken-missing-equals", '<img src "a.jpg"><img src="b.jpg">', ("b.jpg",)),
    Form("broken-equals-twice", '<img src=="a.jpg">', ("=%22a.jpg%22",)),
    Form("broken-space-in-tag-name", '< img src="a.jpg"><img src="b.jpg">', ("b.jpg",)),
    Form("broken-end-tag", '<img src="a.jpg"></img></img src="b.jpg">', ("a.jpg",)),
    Form("broken-tag-in-tag", '<a href="x" <img src="a.jpg">text</a><img src="b.jpg">', ("b.jpg",)),
    Form("broken-nesting", '<b><p><i><img src="a.jpg"></b></p><img src="b.jpg"></i>', ("a.jpg", "b.jpg")),
    Form(
        "broken-table",
        '<table><img src="a.jpg"><tr><img src="b.jpg"><td><img src="c.jpg"></table>',
        ("a.jpg", "b.jpg", "c.jpg"),
    ),
    Form("broken-head", '<img src="b.jpg">', ("a.jpg", "b.jpg"), head='<img src="a.jpg">'),
    Form("broken-after-html", '</body></html><img src="a.jpg">', ("a.jpg",)),
    Form("broken-two-bodies", '<body><img src="a.jpg"><body><html><img src="b.jpg">', ("a.jpg", "b.jpg")),
    Form("broken-list", '<ul><li><img src="a.jpg"><li><img src="b.jpg"></ul>', ("a.jpg", "b.jpg")),
    Form(
        "broken-doctype", '<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0"><img src="a.jpg" />', ("a.jpg",), is_whole=True
    ),
    Form("broken-xml", '<?xml version="1.0"?><html xmlns="x"><img src="a.jpg"/></html>', ("a.jpg",), is_whole=True),
    Form("broken-cdata", '<![CDATA[<img src="a.jpg">]]><img src="b.jpg">', ("b.jpg",)),
    Form("broken-conditional-comment", '<!--[if IE]><img src="a.jpg"><![endif]--><img src="b.jpg">', ("b.jpg",)),
    Form("broken-downlevel-comment", '<!--[if !IE]><!--><img src="a.jpg"><!--<![endif]-->', ("a.jpg",)),
    Form("broken-comment-short", '<!--><img src="a.jpg">--><img src="b.jpg">', ("a.jpg", "b.jpg")),
    Form("broken-comment-bang", '<!-- x --!><img src="a.jpg">', ("a.jpg",)),
    Form("broken-comment-unclosed", '<img src="a.jpg"><!-- <img src="b.jpg">', ("a.jpg",)),
    Form("broken-less-than", '1 < 2 <3 <img src="a.jpg"> <>', ("a.jpg",)),
    Form("broken-attributes", '<img <p " onload="x > y" src="a.jpg" 5 {{x}}>', ("a.jpg",)),
    Form("broken-nul", '<im\0g src="a.jpg"><img\0 src="b.jpg"><img src="c.jpg">', ("c.jpg",)),
    Form("broken-button", '<button><img src="a.jpg"><button><img src="b.jpg">', ("a.jpg", "b.jpg")),
    Form("broken-form-in-form", '<form><form><img src="a.jpg"></form><img src="b.jpg"></form>', ("a.jpg", "b.jpg")),
    Form("broken-paragraphs", "<p><font color=red><p><font color=blue><p><img src=a.jpg>", ("a.jpg",)),
    Form("broken-ruby", "<ruby><rt><rt><img src=a.jpg></ruby>", ("a.jpg",)),
    Form("broken-image-tag", '<image src="a.jpg">', ("a.jpg",)),  # HTML makes an <img> of it
    Form("broken-out-of-svg", '<svg><g><img src="a.jpg"></g></svg>', ("a.jpg",)),
    Form("broken-out-of-math", '<math><img src="a.jpg"></math>', ("a.jpg",)),
)

NO_IMAGE_FORMS = (
    Form("no-svg-image", '<svg><image href="a.jpg"/><image xlink:href="b.jpg"/></svg>', ()),
    Form("no-input-image", '<input type="image" src="a.jpg">', ()),
    Form("no-template", '<template><img src="a.jpg"></template>', ()),
    Form("no-comment", '<!-- <img src="a.jpg"> -->', ()),
    Form("no-script", "<script>var x = '<img src=a.jpg>';</script>", ()),
    Form("no-script-template", '<script type="text/template"><img src="a.jpg"></script>', ()),
    Form("no-style", "<style>p { content: '<img src=a.jpg>'; background: url(b.jpg) }</style>", ()),
    Form("no-textarea", '<textarea><img src="a.jpg"></textarea>', ()),
    Form("no-title", "", (), head='<title><img src="a.jpg"></title>'),
    Form("no-xmp", '<xmp><img src="a.jpg"></xmp>', ()),
    Form("no-plaintext", '<plaintext><img src="a.jpg">', ()),
    Form("no-iframe", '<iframe><img src="a.jpg"></iframe>', ()),
    Form("no-iframe-srcdoc", "<iframe srcdoc='<img src=a.jpg>'></iframe>", ()),
    Form("no-noembed", '<noembed><img src="a.jpg"></noembed>', ()),
    Form("no-noframes", '<noframes><img src="a.jpg"></noframes>', ()),
    Form("no-object", '<object data="a.jpg" type="image/jpeg"></object><embed src="b.jpg">', ()),
    Form("no-object-fallback", '<object data="a.jpg"><img src="b.jpg"></object>', ("b.jpg",)),
    Form("no-video-poster", '<video poster="a.jpg"></video>', ()),
    Form("no-link", "", (), head='<link rel="image_src" href="a.jpg"><meta property="og:image" content="b.jpg">'),
    Form("no-preload", "", (), head='<link rel="preload" as="image" href="a.jpg">'),
    Form("no-background", '<table background="a.jpg"><tr><td style="background:url(b.jpg)"></table>', ()),
    Form("no-anchor", '<a href="a.jpg">a.jpg</a>', ()),
    Form("no-amp-img", '<amp-img src="a.jpg"></amp-img>', ()),
    Form("no-custom-element", '<img-lazy src="a.jpg"></img-lazy><imgx src="b.jpg">', ()),
    Form("no-escaped-markup", "&lt;img src=&quot;a.jpg&quot;&gt;", ()),
    Form("no-select", '<select><option><img src="a.jpg"></option></select>', ("a.jpg",)),  # since 2025
    Form("no-frameset", '<frameset><img src="a.jpg"></frameset>', (), is_whole=True),
)

BASE_FORMS = (
    Form("base", '<img src="a.jpg"><img src="/b.jpg">', ("/other/a.jpg", "/b.jpg"), head='<base href="/other/page">'),
    Form("base-other-host", '<img src="a.jpg">', ("http://cdn.test/x/a.jpg",), head='<base href="http://cdn.test/x/">'),
    Form("base-relative", '<img src="a.jpg">', ("x/a.jpg",), head='<base href="x/y">'),
    Form("base-protocol-relative", "<img src=a.jpg>", ("http://cdn.test/a.jpg",), head="<base href=//cdn.test>"),
    Form(
        "base-https", '<img src="//cdn.test/a.jpg">', ("https://cdn.test/a.jpg",), head='<base href="https://x.test/">'
    ),
    Form("base-first-counts", "<img src=a.jpg>", ("/x/a.jpg",), head='<base href="/x/"><base href="/y/">'),
    Form("base-first-with-href", "<img src=a.jpg>", ("/y/a.jpg",), head='<base target="_top"><base href="/y/">'),
    Form("base-empty", "<img src=a.jpg>", ("a.jpg",), head='<base href="">'),
    Form("base-padded", "<img src=a.jpg>", ("/x/a.jpg",), head='<base href=" /x/ ">'),
    Form("base-upper-case", "<img src=a.jpg>", ("/x/a.jpg",), head='<BASE HREF="/x/">'),
    Form(
        "base-broken",
        "<img src=a.jpg>",
        ("a.jpg",),
        head='<base href="http://[/"><base href="/y/">',
        shown=(),
        differs="HTML wants the page's URL instead",
    ),
    Form("base-data", "<img src=a.jpg>", ("a.jpg",), head='<base href="data:text/plain,x">'),
    Form("base-javascript", "<img src=a.jpg>", ("a.jpg",), head='<base href="javascript:void(0)">'),
    Form(
        "base-file",
        "<img src=a.jpg><img src=http://cdn.test/b.jpg>",
        ("http://cdn.test/b.jpg",),
        head='<base href="file:///C:/x/">',
    ),
    Form("base-mailto", "<img src=a.jpg>", (), head='<base href="mailto:me@pages.test">'),
    Form("base-in-body", '<base href="/x/"><img src="a.jpg">', ("/x/a.jpg",)),
    Form("base-in-template", '<template><base href="/x/"></template><img src="a.jpg">', ("a.jpg",)),
    Form("base-in-svg", '<svg><title><base href="/x/"></title></svg><img src="a.jpg">', ("/x/a.jpg",)),
    Form("base-srcset", '<img srcset="a.jpg 1x, b.jpg 2x">', ("/x/b.jpg",), head='<base href="/x/">'),
    Form("base-with-query", '<img src="a.jpg"><img src="?y">', ("/x/a.jpg", "/x/p?y"), head='<base href="/x/p?q#f">'),
    Form("base-lazy", '<img class="lazy" data-src="a.jpg">', ("/x/a.jpg",), head='<base href="/x/">', loader="vanilla"),
    Form("base-unicode", "<img src=a.jpg>", ("/%C3%A9/a.jpg",), head='<base href="/é/">'),
    Form(
        "base-after-img",
        '<img src="a.jpg"><base href="/x/">',
        ("/x/a.jpg",),
        shown=("a.jpg",),
        differs="the browser began to load before it saw the <base>",
    ),
)

_META = '<meta http-equiv="Content-Type" content="text/html; charset={}">'
_JAPANESE, _RUSSIAN = '<img src="日本.jpg?q=日本" alt="日本">', '<img src="фото.jpg?q=фото" alt="фото">'
_JAPANESE_PATH, _RUSSIAN_PATH = "%E6%97%A5%E6%9C%AC.jpg", "%D1%84%D0%BE%D1%82%D0%BE.jpg"

CHARSET_FORMS = (
    Form(
        "charset-of-header",
        _JAPANESE,
        (f"{_JAPANESE_PATH}?q=%93%FA%96{{",),
        is_whole=True,
        encoding="cp932",
        charset="Shift_JIS",
    ),
    Form(
        "charset-of-meta",
        f'<meta charset="shift_jis">{_JAPANESE}',
        (f"{_JAPANESE_PATH}?q=%93%FA%96{{",),
        is_whole=True,
        encoding="cp932",
        charset=None,
    ),
    Form(
        "charset-of-http-equiv",
        f"{_META.format('windows-1251')}{_RUSSIAN}",
        (f"{_RUSSIAN_PATH}?q=%F4%EE%F2%EE",),
        is_whole=True,
        encoding="cp1251",
        charset=None,
    ),
    Form(
        "charset-of-xml",
        f'<?xml version="1.0" encoding="windows-1251"?><html>{_RUSSIAN}',
        (f"{_RUSSIAN_PATH}?q=%F4%EE%F2%EE",),
        is_whole=True,
        encoding="cp1251",
        charset=None,
    ),
    Form(
        "charset-of-meta-over-xml",
        f'<?xml version="1.0" encoding="utf-8"?><meta charset="windows-1251">{_RUSSIAN}',
        (f"{_RUSSIAN_PATH}?q=%F4%EE%F2%EE",),
        is_whole=True,
        encoding="cp1251",
        charset=None,
    ),
    Form(
        "charset-of-header-over-meta",
        f"{_META.format('utf-8')}{_RUSSIAN}",
        (f"{_RUSSIAN_PATH}?q=%F4%EE%F2%EE",),
        is_whole=True,
        encoding="cp1251",
        charset="windows-1251",
    ),
    Form(
        "charset-of-mark-over-header",
        f"\ufeff{_RUSSIAN}",
        (f"{_RUSSIAN_PATH}?q={_RUSSIAN_PATH[:-4]}",),
        is_whole=True,
        charset="windows-1251",
    ),
    Form(
        "charset-utf-16-le",
        f"\ufeff{_JAPANESE}",
        (f"{_JAPANESE_PATH}?q={_JAPANESE_PATH[:-4]}",),
        is_whole=True,
        encoding="utf-16-le",
        charset=None,
    ),
    Form(
        "charset-utf-16-be",
        f"\ufeff{_JAPANESE}",
        (f"{_JAPANESE_PATH}?q={_JAPANESE_PATH[:-4]}",),
        is_whole=True,
        encoding="utf-16-be",
        charset=None,
    ),
    Form(
        "charset-utf-16-of-header",
        "<img src=é.jpg>",
        ("%C3%A9.jpg",),
        is_whole=True,
        encoding="utf-16-le",
        charset="utf-16",
    ),
    Form(
        "charset-utf-16-in-meta", "<meta charset=utf-16><img src=é.jpg>", ("%C3%A9.jpg",), is_whole=True, charset=None
    ),
    Form(
        "charset-latin-1",
        "<img src=é.jpg?é>",
        ("%C3%A9.jpg?%E9",),
        is_whole=True,
        encoding="latin-1",
        charset="iso-8859-1",
    ),
    Form(
        "charset-windows-1252",
        "<img src=€.jpg>",
        ("%E2%82%AC.jpg",),
        is_whole=True,
        encoding="cp1252",
        charset="latin1",
    ),
    Form(
        "charset-unknown",
        "<img src=é.jpg>",
        ("%C3%A9.jpg",),
        is_whole=True,
        charset="utf8mb4",
        shown=("%C3%83%C2%A9.jpg",),
        differs="what is valid UTF-8 is UTF-8, a browser guesses by its user's language",
    ),
    Form("charset-unquoted-in-header", "<img src=é.jpg>", ("%C3%A9.jpg",), is_whole=True, charset="UTF8"),
    Form(
        "charset-euc-jp",
        f"<meta charset=euc-jp>{_JAPANESE}",
        (f"{_JAPANESE_PATH}?q=%C6%FC%CB%DC",),
        is_whole=True,
        encoding="euc_jp",
        charset=None,
    ),
    Form(
        "charset-gb2312",
        "<img src=图.jpg?图>",
        ("%E5%9B%BE.jpg?%CD%BC",),
        is_whole=True,
        encoding="gbk",
        charset="gb2312",
    ),
    Form(
        "charset-big5", "<img src=圖.jpg?圖>", ("%E5%9C%96.jpg?%B9%CF",), is_whole=True, encoding="big5", charset="big5"
    ),
    Form(
        "charset-euc-kr",
        "<img src=사.jpg?사>",
        ("%EC%82%AC.jpg?%BB%E7",),
        is_whole=True,
        encoding="cp949",
        charset="euc-kr",
    ),
    Form(
        "charset-koi8-r", "<img src=ф.jpg?ф>", ("%D1%84.jpg?%C6",), is_whole=True, encoding="koi8-r", charset="koi8-r"
    ),
    Form(
        "charset-lacks-character",
        "<img src=a.jpg?&#26085;x>",
        ("a.jpg?%26%2326085%3Bx",),
        is_whole=True,
        encoding="cp1251",
        charset="windows-1251",
    ),
    Form(
        "charset-invalid-bytes",
        "<img src=\xff\xfe.jpg>",
        ("%EF%BF%BD%EF%BF%BD.jpg",),
        is_whole=True,
        encoding="latin-1",
        charset="utf-8",
    ),
)

FORMS = (
    *(*SRC_FORMS, *URL_FORMS, *SRCSET_FORMS, *PICTURE_FORMS, *MEDIA_FORMS, *LAZY_FORMS),
    *(*NOSCRIPT_FORMS, *BROKEN_FORMS, *NO_IMAGE_FORMS, *BASE_FORMS, *CHARSET_FORMS),
)


def usual_page(num_images: int = 60, num_bytes: int = 100_000, seed: int = 0) -> bytes:
    """A page as blogs and shops send it, about that large: a fourth of its images each with `srcset`, loaded lazily
    (with <noscript>, so that they count twice), in <picture>, and plain."""
    rng = random.Random(seed)
    words = ["a", "be", "cedar", "delta", "ember", "field", "harbour", "island", "jolly", "kettle", "lantern", "meadow"]

    def text(num_words: int) -> str:
        return " ".join(rng.choices(words, k=num_words))

    parts = [
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{text(5)}</title>',
        *(f'<meta property="og:{word}" content="{text(8)}">' for word in words),
        '<meta name="robots" content="max-image-preview:large">',
        *(f'<link rel="stylesheet" href="/css/{word}.css?ver=6.1" media="all">' for word in words),
        "<style>" + "".join(f".c{i}>a:hover{{color:#{i * 977:06x};margin:0 auto}}" for i in range(150)) + "</style>",
        "</head><body><script>",
        *(f'var x{i}={{"a":"{text(4)}","b":[{i}]}};if(x{i}<{i}&&x{i}>2)f(x{i});' for i in range(120)),
        "</script>",
    ]
    block_size = (num_bytes - sum(map(len, parts))) // num_images
    for i in range(num_images):
        block = f'<div class="post-{i} entry"><h2><a href="/posts/{i}/">{text(5)}</a></h2>{_usual(i, text(4))}'
        while len(block) < block_size - 150:
            block += (
                f'<p class="c{i}">{text(15)} <a href="/tags/{i}/">{text(1)}</a>, <b>{text(2)}</b> &amp; {text(3)}.</p>'
            )
            block += f"<ul><li>{text(3)}</li><li>{text(3)}</li></ul>"
        parts.append(block + "</div>\n")
    return "".join([*parts, "</body></html>"]).encode()


def _usual(i: int, alt: str) -> str:
    match i % 4:
        case 0:
            url = f"https://pages.test/uploads/2024/05/photo-{i}"
            srcset = ", ".join(f"{url}-{width}.jpg {width}w" for width in (300, 768, 1024, 1536, 2048))
            return (
                f'<img loading="lazy" width="1024" height="683" src="{url}-1024.jpg" alt="{alt}" class="wp-image-{i}" '
                f'srcset="{srcset}" sizes="(max-width: 1024px) 100vw, 1024px">'
            )
        case 1:
            url = f"/images/items/{i}/large.jpg?v={i * 31}"
            lazy = f'<img class="lazyload" src="{GIF}" data-src="{url}" alt="{alt}">'
            return f'{lazy}<noscript><img src="{url}" alt="{alt}"></noscript>'
        case 2:
            return (
                f'<picture><source type="image/avif" srcset="/m/{i}-800.avif 800w, /m/{i}-1600.avif 1600w">'
                f'<source type="image/webp" srcset="/m/{i}-800.webp 800w, /m/{i}-1600.webp 1600w">'
                f'<img src="/m/{i}-800.jpg" alt="{alt}"></picture>'
            )
    return f'<img src="../thumbs/{i}.png" alt="{alt}" width="120" height="90">'
