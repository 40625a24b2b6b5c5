"""Takedowns: the dated records of what was forgotten, and which rows they mean.

A record is one call of `lvd forget`: `{root}/forgotten/{UTC time}-{digest}.json`. It keeps when, by whom and why, and
of what was asked only hashes: of URLs and domains the SHA-256 of their one spelling, of images their ids, which are the
first 16 bytes of the SHA-256 of their bytes. It has to know an image again when a crawl brings it again; it need not
be able to say what it was. Never kept: a URL, a path, a picture. Whoever has a URL can ask whether it is in a record.
Removing a record takes the takedown back, for all that was not erased by `--now`.
"""

import hashlib
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ValidationError

from lvd.infra.errors import InputError
from lvd.infra.shards import READERS, fingerprint
from lvd.infra.storage import Storage
from lvd.tasks.urls import CACHED_HOSTS, domain_of, host_of, normalized_url, punycode

FOLDER = "forgotten"
FORGOTTEN = "forgotten"  # stage and reason of the ledger, and what a key begins with that is kept as a hash
ASKED, FOUND, DOMAIN = "asked", "found", "domain"  # why a row is meant; what lies on a domain takes no copies with it
MAX_URL_LENGTH = 1 << 20
IMAGE_ID = re.compile(r"[0-9a-f]{32}")
_DOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_]([a-z0-9_-]{0,62}))+")
_ALIAS = re.compile(rf"{FORGOTTEN}:([0-9a-f]{{64}})")


class Record(BaseModel, frozen=True, extra="forbid"):
    """One call of `lvd forget`."""

    date: str  # UTC
    urls: tuple[str, ...] = ()  # SHA-256 of each in its one spelling; of a source path, as it stands
    domains: tuple[str, ...] = ()  # SHA-256
    image_ids: tuple[str, ...] = ()
    images: tuple[str, ...] = ()  # ids of picture files
    found: tuple[str, ...] = ()  # ids of what lay at the URLs, and of all copies that were found on that day
    list_file: str | None = None  # SHA-256 of the file, if these are the entries of one
    by: str | None = None
    reason: str | None = None

    @property
    def name(self) -> str:
        """Of its file."""
        when = "".join(sign for sign in self.date if sign.isalnum())
        return f"{FOLDER}/{when}-{fingerprint(self.model_dump(mode='json'))[:12]}.json"


class Takedowns:
    """What some records ask for together."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._urls: dict[str, Record] = {}
        self._domains: dict[str, Record] = {}
        self._asked: dict[str, Record] = {}
        self._found: dict[str, Record] = {}
        for record in sorted(records, key=lambda record: record.date):
            for known, digests in (
                (self._urls, record.urls),
                (self._domains, record.domains),
                (self._asked, (*record.image_ids, *record.images)),
                (self._found, record.found),
            ):
                for digest in digests:
                    known.setdefault(digest, record)
        self._ids = {kind: texts(known) for kind, known in ((FOUND, self._found), (ASKED, self._asked)) if known}

    @classmethod
    def read(cls, storage: Storage, names: Iterable[str] | None = None) -> "Takedowns":
        """Those of a root; of these records only, if they are named."""
        names = record_names(storage) if names is None else names
        with ThreadPoolExecutor(READERS) as readers:
            return cls(readers.map(lambda name: read_record(storage, name), names))

    def __bool__(self) -> bool:
        return bool(self._urls or self._domains or self._asked or self._found)

    @property
    def digest(self) -> str:
        """What is asked for, whenever and however often it was: 32 hex characters."""
        return fingerprint(*(sorted(known) for known in (self._urls, self._domains, self._asked, self._found)))

    @property
    def image_ids(self) -> set[str]:
        """Of all images that were asked for by id or found, not of what lies on a domain."""
        return {*self._asked, *self._found}

    @property
    def asks_for_urls(self) -> bool:
        """Whether something is asked for by its URL or domain."""
        return bool(self._urls or self._domains)

    def kinds(self, table: pa.Table) -> np.ndarray:
        """(n,) object: ASKED, FOUND or DOMAIN of the rows that are meant, None of the others.

        table: with `key`, and `image_id` and `url` if it has them.
        """
        found = np.full(len(table), None, dtype=object)
        names = [name for name in ("key", "url") if name in table.schema.names]
        for name in names:
            column = table[name].to_pylist()
            found[[text is not None and is_alias(text) for text in column]] = DOMAIN
            if self._domains:
                found[[self._domain_record(text) is not None for text in column]] = DOMAIN
        if "image_id" in table.schema.names:
            for kind, known in self._ids.items():
                found[is_among(table["image_id"], known)] = kind
        for name in names if self._urls else ():
            found[[url_digest(text) in self._urls if text else False for text in table[name].to_pylist()]] = ASKED
        return found

    def record_of(self, image_id: str | None, *names: str | None) -> Record | None:
        """The first record that means an image of that id, or of one of these keys and URLs."""
        if known := self._asked.get(image_id) or self._found.get(image_id):
            return known
        meant = (self._named(name) for name in names if name)
        return next((record for record in meant if record), None)

    def _named(self, name: str) -> Record | None:
        """The record that means a key or URL."""
        return (self._urls.get(url_digest(name)) if self._urls else None) or self._domain_record(name)

    def means_domain(self, host: str) -> bool:
        """Whether all that lies on a host was taken down."""
        return self._domain_record(f"https://{host}/") is not None

    def _domain_record(self, key: str | None) -> Record | None:
        if not self._domains or not key:
            return None
        return next((self._domains[one] for one in _domain_digests(host_in(key)) if one in self._domains), None)


def record_names(storage: Storage) -> list[str]:
    return [f"{FOLDER}/{name}" for name in storage.names(FOLDER) if name.endswith(".json")]


def read_record(storage: Storage, name: str) -> Record:
    """Raises InputError if the file is no record."""
    try:
        return Record.model_validate_json(storage.read_bytes(name))
    except ValidationError as error:
        raise InputError(
            f"{storage.uri(name)} must be a record that `lvd forget` wrote, was changed: put it back or remove it"
        ) from error


def write_record(storage: Storage, record: Record) -> None:
    storage.write_json(record.name, record.model_dump(mode="json"))


def texts(names: Iterable[str]) -> pa.Array:
    """Names as `is_among` takes them for many columns."""
    return pa.array(list(names), pa.string())


def is_among(column: pa.ChunkedArray, names: pa.Array | Iterable[str]) -> np.ndarray:
    """(n,) bool: the value is one of these."""
    known = names if isinstance(names, pa.Array) else texts(names)
    return pc.fill_null(pc.is_in(column, value_set=known), False).to_numpy(False)


def url_digest(key: str) -> str:
    """SHA-256 of a URL in its one spelling, or of a key that is none as it stands; 64 hex characters."""
    if alias := _ALIAS.fullmatch(key):
        return alias[1]
    with suppress(ValueError):
        key = normalized_url(key, max_length=MAX_URL_LENGTH)
    return hashlib.sha256(key.encode()).hexdigest()


def alias_of(key: str) -> str:
    """What stands in a ledger for the key of an image that was forgotten: a hash."""
    return f"{FORGOTTEN}:{url_digest(key)}"


def is_alias(key: str) -> bool:
    """Whether a key is what `alias_of` gives."""
    return key.startswith(FORGOTTEN) and _ALIAS.fullmatch(key) is not None


def domain_digest(domain: str) -> str:
    """SHA-256 of a domain in its one spelling. Raises ValueError if it is none."""
    return hashlib.sha256(domain_name(domain).encode()).hexdigest()


def domain_name(text: str) -> str:
    """A domain in its one spelling: lower case, Punycode, without `*.` and `www.`. Raises ValueError if it is none."""
    name = text.strip().lower().removeprefix("*.").rstrip(".")
    name = name if name.isascii() else punycode(name)
    if not _DOMAIN.fullmatch(name):
        raise ValueError(f"domain must be a name such as example.org, was {text!r}")
    return domain_of(name)


def host_in(key: str) -> str:
    """The host of a URL in its one spelling; empty for a key that is none."""
    try:
        return host_of(normalized_url(key, max_length=MAX_URL_LENGTH))
    except ValueError:
        return ""


@lru_cache(maxsize=CACHED_HOSTS)
def _domain_digests(host: str) -> tuple[str, ...]:
    """Those of a host and of all domains above it."""
    labels = host.split(".")
    names = (".".join(labels[place:]) for place in range(len(labels)))
    return tuple(hashlib.sha256(name.encode()).hexdigest() for name in names)
