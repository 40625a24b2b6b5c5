"""Lists of domains, URLs and words in the layouts that blocklists have: squidGuard, hosts files, AdBlock, plain lines.

Read in blocks of some megabytes; 5 x 10^6 domains take 3 s of one core.
"""

import hashlib
import logging
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from gzip import BadGzipFile
from lzma import LZMAError
from unicodedata import normalize

import fsspec

from lvd.infra.errors import InputError
from lvd.tasks.urls import domain_of, host_of, normalized_url, path_of, punycode

logger = logging.getLogger("lvd")

BYTE_ORDER_MARK = "\ufeff"
BLOCK_BYTES = 4 << 20  # of a list that are read at once
_DOMAIN = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
_DOMAIN_LINE = re.compile(  # what nearly all lines of the lists in use are
    rb"(?m)^(?:0\.0\.0\.0 |127\.0\.0\.1 |\|\||\*\.)?(?:www\.)?([a-z0-9_-]+(?:\.[a-z0-9_-]+)+)\^?\n"
)
_DOMAIN_ENTRY = re.compile(
    r"(?:https?://)?(?P<below>(?:\|\|)?(?:\*?\.)?)(?P<name>[^\s/|^$*#@%:?=,;]+?)\.?/?(?:\^\|?)?(?:\$(?P<options>.+))?"
)
_WHOLE_DOMAIN = frozenset(["all", "doc", "document", "image", "important", "third-party", "3p"])
_ADDRESS = re.compile(r"[0-9.]+|[0-9a-f:.]*:[0-9a-f:.]*(?:%\w+)?")
_COMMENT = re.compile(r"^\s*[#!\[].*|\s#.*")
_SCHEME = re.compile(r"(?i)https?://")
WEB_HOST = re.compile(r"^(?:www|web|ftp)[0-9]*\.(?=[^.]+\.)")  # what squidGuard leaves out of the `urls` layout
_NO_WORD_AT_END = re.compile(r"[^a-z0-9]+\Z")
_NO_WORD = re.compile(r"[\W_]+")
_SPACED = bytes(code if code >= 128 or chr(code).isalnum() else 32 for code in range(256))
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
LISTS = {"blocked_domains": "domains", "blocked_urls": "urls", "unsafe_words": None, "allowed_domains": "domains"}
"""The fields that name lists, and what the files are called that are read of a folder, as in UT1's collection."""
_LAYOUTS = {
    "domains": "one a line, as example.com, *.example.com, ||example.com^ or 0.0.0.0 example.com",
    "urls": "one a line, as example.com/path",
    None: "one word or phrase a line",
}


def domain_blocks(field: str, paths: Sequence[str]) -> Iterator[Sequence[bytes]]:
    return entries_of(field, paths, _domain_entries, _DOMAIN_LINE)


def _domain_entries(line: str) -> list[str] | None:
    """The domains of a line: of a hosts file, `||example.com^`, `*.example.com` or the name alone; None if it is none
    of these."""
    first, *names = line.lower().split()
    if names:  # an address and its names, those without a dot being the machine's own: localhost, ip6-allnodes
        found = [_domain(name) for name in names if "." in name] if _ADDRESS.fullmatch(first) else [None]
        return None if None in found else found
    entry = _DOMAIN_ENTRY.fullmatch(first)
    if not entry or not _WHOLE_DOMAIN.issuperset((entry["options"] or "all").split(",")):
        return None
    name = _domain(entry["name"])
    return [name] if name and ("." in name or entry["below"]) else None


def _domain(name: str) -> str | None:
    name = name if name.isascii() else punycode(name)
    return domain_of(name) if _DOMAIN.fullmatch(name) else None


def url_entries(line: str) -> list[str] | None:
    """The prefix that a line `host/path` stands for, which may have a scheme, a port and `/*` at its end."""
    try:
        url = normalized_url(line if _SCHEME.match(line) else f"http://{line}", max_length=len(line) + 7)
    except ValueError:
        return None
    host = WEB_HOST.sub("", host_of(url))
    if "." not in host or not _DOMAIN.fullmatch(host):
        return None
    return [_NO_WORD_AT_END.sub("", f"{host}{path_of(url)}".lower())]


def phrases_of(line: str) -> list[str] | None:
    return [b" ".join(words).decode()] if (words := words_of(line)) else None


def words_of(text: str) -> list[bytes]:
    """The runs of letters and digits, in lower case."""
    text = text if text.isascii() else _NO_WORD.sub(" ", normalize("NFKC", text))
    return text.lower().encode().translate(_SPACED).split()


def entries_of(
    field: str,
    paths: Sequence[str],
    layout: Callable[[str], list[str] | None],
    common_line: re.Pattern[bytes] | None = None,
) -> Iterator[Sequence[bytes]]:
    """The entries of all lists of a field, those of some megabytes at a time.

    layout: the entries of a line, None if it knows no such line. common_line: matches lines whose one group is the
    entry, to be spared the layout. Raises InputError for a list that cannot be read or holds no entry.
    """
    for path in paths:
        num_entries = num_unknown = 0
        example = ""
        for uri in list_files(field, path):
            for block in _blocks(field, uri):
                parts = common_line.split(block) if common_line else [block]
                found = parts[1::2]
                for raw in b"".join(parts[::2]).split(b"\n"):
                    line = _COMMENT.sub("", _text(raw).lstrip(BYTE_ORDER_MARK)).strip()
                    entries = layout(line) if line else []
                    if entries is None:
                        num_unknown += 1
                        example = example or line
                    else:
                        found += [entry.encode() for entry in entries]
                num_entries += len(found)
                yield found
        if not num_entries:
            seen = f"{num_unknown} lines such as {example[:80]!r}" if num_unknown else "nothing"
            raise _error(field, path, "hold entries", f"it holds {seen}: give {_LAYOUTS[LISTS[field]]}")
        if num_unknown:
            logger.warning(
                "%s: %d lines of %s are passed by, as they have no known layout, the first is %r (%d entries are read)",
                *(field, num_unknown, path, example[:80], num_entries),
            )


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _error(field: str, path: str, must: str, remedy: str) -> InputError:
    return InputError(f"recipe.crawl.rules.{field} must {must}, was {path!r}: {remedy}")


def _unreadable(field: str, path: str, error: Exception) -> InputError:
    remedy = f"{' '.join(str(error).split())}: correct the path or the access to it"
    return _error(field, path, "name files that can be read", remedy)


def list_files(field: str, path: str) -> list[str]:
    """The URIs of the lists at a path, sorted. Raises InputError if there is none."""
    name = LISTS[field]
    try:
        fs, place = fsspec.core.url_to_fs(path)
        fs.invalidate_cache()
        is_folder = fs.info(place)["type"] == "directory"
        inside = fs.find(place) if is_folder and name else []
    except FileNotFoundError as error:
        raise _error(field, path, "name files that are there", "correct the path, or fetch the list first") from error
    except (OSError, ValueError, ImportError) as error:
        raise _unreadable(field, path, error) from error
    if path.endswith(_ARCHIVES):
        raise _error(field, path, "name lists, not archives", "unpack it and name the folder")
    if not is_folder:
        return [path]
    found = [uri for uri in inside if name and _stem(uri) == name]
    if not found:
        remedy = f"no file below it is called '{name}': name the files" if name else "it is a folder: name the files"
        raise _error(field, path, "name lists", remedy)
    return sorted(fs.unstrip_protocol(uri) for uri in found)


def _stem(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".gz")


def _blocks(field: str, uri: str) -> Iterator[bytes]:
    """Whole lines that end in a line feed, some megabytes at a time."""
    rest = b""
    for block in _raw_blocks(field, uri):
        block = (rest + block).replace(b"\r", b"\n")
        end = block.rfind(b"\n") + 1
        rest = block[end:]
        yield block[:end]
    if rest:
        yield rest + b"\n"


def _raw_blocks(field: str, uri: str) -> Iterator[bytes]:
    try:
        with fsspec.open(uri, "rb", compression="infer") as file:
            while block := file.read(BLOCK_BYTES):
                yield block
    except (OSError, EOFError, BadGzipFile, LZMAError, zlib.error) as error:
        raise _unreadable(field, uri, error) from error


def list_digest(field: str, uri: str) -> str:
    digest = hashlib.sha256()
    for block in _raw_blocks(field, uri):
        digest.update(block)
    return digest.hexdigest()
