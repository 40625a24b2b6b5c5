"""Takedowns: what `lvd forget` is asked for, what of it the last run had, and the record of it."""

import hashlib
import re
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pyarrow as pa
from pydantic import BaseModel

from lvd.flows.erasing import Erased, erase
from lvd.flows.finding import Picture, findings, picture_at
from lvd.flows.forgetting import across
from lvd.flows.inquiry import last_run
from lvd.flows.outdated_exports import outdated
from lvd.flows.stored import Stored
from lvd.flows.versions import records
from lvd.infra.errors import InputError
from lvd.infra.lease import check_free, lease
from lvd.infra.shards import StageDir, read_table
from lvd.infra.storage import Storage
from lvd.tasks import takedowns
from lvd.tasks.forgetting import copies_in, gone_with, marks
from lvd.tasks.takedowns import Record, Takedowns, is_among

COMMENT = re.compile(r"(?:^|\s)#.*")  # a URL can have a # too


class Asked(BaseModel, frozen=True):
    """What somebody wants to be forgotten."""

    urls: tuple[str, ...] = ()  # or source paths
    domains: tuple[str, ...] = ()
    image_ids: tuple[str, ...] = ()
    images: tuple[str, ...] = ()  # picture files
    list_file: str | None = None  # of URLs, domains and image ids, one a line

    def record(self, by: str | None, reason: str | None) -> Record:
        """Its hashes. Raises InputError if something of it is not what it is called."""
        urls, domains, image_ids = (list(names) for names in (self.urls, self.domains, self.image_ids))
        digest = None
        if self.list_file is not None:
            data = read_file("--list", self.list_file)
            digest = hashlib.sha256(data).hexdigest()
            for kind, entry in entries_of(data, self.list_file):
                {"url": urls, "domain": domains, "image id": image_ids}[kind].append(entry)
        for image_id in image_ids:
            if not takedowns.IMAGE_ID.fullmatch(image_id):
                raise InputError(f"--image-id must be 32 hexadecimal characters, was {image_id!r}: see `lvd find`")
        try:
            domain_digests = {takedowns.domain_digest(domain) for domain in domains}
        except ValueError as error:
            raise InputError(f"--{error}: name one, or use --url") from error
        return Record(
            date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            urls=sorted({takedowns.url_digest(url) for url in urls}),
            domains=sorted(domain_digests),
            image_ids=sorted(set(image_ids)),
            images=sorted({picture_of(path).image_id for path in self.images}),
            list_file=digest,
            by=by,
            reason=reason,
        )


class Counted(BaseModel, frozen=True):
    """How many images of a collection of the last run are meant."""

    role: str
    name: str
    images: int


class Taken(BaseModel, frozen=True):
    """What a call of `lvd forget` came to."""

    record: str | None  # its file; None if nothing new was asked for
    counts: tuple[Counted, ...] = ()  # of the last run
    contents: int = 0  # different images among them
    published: int = 0  # in the last version, before anything was erased
    version: str | None = None
    erased: Erased | None = None
    exports: tuple[str, ...] = ()  # what was made of versions that had it, and has it still


def forget(root: str, asked: Asked, *, now: bool = False, by: str | None = None, reason: str | None = None) -> Taken:
    """Writes the record of a takedown; the next version is without what it means, and without all copies of it.

    now: the published versions and the stored bytes as well, of this record and of all before it.
    Raises InputError, before anything is written, if nothing is asked for, the root cannot be asked, or a run holds it
    that `now` would have to wait for.
    """
    storage = Storage(root)
    if not storage.names(""):
        raise InputError(f"root must be one that lvd has written to, was {root!r}: name it with --root")
    last, record = last_run(storage), asked.record(by, reason)
    if last is not None and "copies" not in last["directories"]:
        raise InputError(f"root must hold a run over images, the last one of {root!r} was over vectors: name another")
    is_asked = bool(record.urls or record.domains or record.image_ids or record.images)
    if not is_asked and not now:
        raise InputError("something must be named to be forgotten, was nothing: --url, --domain, --image-id or --image")
    if now:
        check_free(storage)
    runs, taken = runs_to_ask(storage, last) if last else [], Taken(record=None)
    if is_asked:
        if last is not None:
            record = record.model_copy(update={"found": tuple(sorted(copies_of(root, asked.images)))})
            taken, found = looked_up(storage, runs, record, taken)
            ids = {*record.image_ids, *record.images}
            record = record.model_copy(update={"found": tuple(sorted({*record.found, *found} - ids))})
        takedowns.write_record(storage, record)
        taken = taken.model_copy(update={"record": storage.uri(record.name)})
    if now:
        with lease(storage):
            storage.remove_temporary()
            known = Takedowns.read(storage)
            gone = known.image_ids | gone_in(storage, runs, known)
            erased = erase(storage, known, gone, near_groups(storage, runs, gone))
            taken = taken.model_copy(update={"erased": erased})
    return taken.model_copy(update={"exports": outdated(storage)})


def runs_to_ask(storage: Storage, last: dict) -> list[dict]:
    """The record of the last run, then of those before it that had images which no later one has: only they know which
    copies these had."""
    found, seen = [last], images_of(last)
    for name in sorted(chain(*records(storage).values()), reverse=True):
        record = storage.read_json(name)
        mine = images_of(record)
        if "copies" in record["directories"] and not mine <= seen:
            needed = [record["directories"]["copies"][0], *mine]
            found += [record] if all(directory(storage, name).is_complete() for name in needed) else []
            seen |= mine
    return found


def images_of(record: dict) -> set[str]:
    """The directories of images that a run had."""
    return {name for collection in record["collections"] for name in collection["images"]}


def looked_up(storage: Storage, runs: list[dict], record: Record, taken: Taken) -> tuple[Taken, set[str]]:
    """How much of the last run a record means, and the image ids that it means by itself or by their copies."""
    last, known = runs[0], Takedowns([record])
    gone = gone_in(storage, runs, known)
    counts, contents = [], set()
    for collection in last["collections"]:
        images = 0
        for ref in (ref for name in collection["images"] for ref in directory(storage, name).shards()):
            table = read_table(ref, ["image_id", "key", "url"])
            meant = known.kinds(table).astype(bool) | is_among(table["image_id"], gone)
            contents |= set(table["image_id"].filter(pa.array(meant)).to_pylist())
            images += int(meant.sum())
        if images:
            counts.append(Counted(role=collection["role"], name=collection["name"], images=images))
    published = 0
    for ref in directory(storage, last["curated"]).shards():
        table = read_table(ref, ["image_id", "key", "url"])
        published += int((known.kinds(table).astype(bool) | is_among(table["image_id"], gone)).sum())
    found = {"counts": tuple(counts), "contents": len(contents), "published": published, "version": last["version"]}
    return taken.model_copy(update=found), gone


def gone_in(storage: Storage, runs: list[dict], known: Takedowns) -> set[str]:
    """The image ids of these runs that records mean by id or URL, and of all copies of these."""
    gone: set[str] = set()
    for run in runs:
        marked = [marks(ref, known) for name in sorted(images_of(run)) for ref in directory(storage, name).shards()]
        survivors = directory(storage, run["directories"]["copies"][0])
        gone |= gone_with(marked, survivors.shards(), across(survivors), gone).keys()
    return gone


def near_groups(storage: Storage, runs: list[dict], image_ids: set[str]) -> dict[str, str]:
    """image id → that of the image that it is a near duplicate of, as the latest run that has both says."""
    found: dict[str, str] = {}
    for run in reversed(runs):
        fates = directory(storage, run["directories"]["copies"][0]).shards()
        found |= dict(copies_in(fates, image_ids, ("near_duplicate",)))
    return found


def copies_of(root: str, images: tuple[str, ...]) -> set[str]:
    """The image ids that `lvd find` tells as copies of picture files, by the thresholds within the pool."""
    if not images:
        return set()
    stored = Stored(root)
    found = findings(stored, [picture_of(path) for path in images], 0, veil=False)
    floor = stored.thresholds.min_similarity
    copies = (copy for each in found for copy in each.copies)
    return {copy.image_id for copy in copies if copy.similarity >= floor or copy.by in ("bytes", "hash")}


def picture_of(path: str) -> Picture:
    """The picture in a file. Raises InputError if it is none."""
    read = picture_at(path)
    if not isinstance(read, Picture):
        raise InputError(f"--image must be a file with a picture, was {path!r}: {read.error}")
    return read


def read_file(option: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{option} must be a file that can be read, was {path!r}: {error.strerror}") from error


def entries_of(data: bytes, path: str) -> Iterator[tuple[str, str]]:
    """(url, domain or image id; the entry) of the lines of an opt-out list. Raises InputError with every bad line."""
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} must be text in UTF-8: {error}") from error
    found, bad = [], []
    for number, line in enumerate(lines, 1):
        entry = COMMENT.sub("", line).strip()
        if not entry:
            continue
        kind = kind_of(entry)
        (found if kind else bad).append((kind, entry) if kind else str(number))
    if bad:
        more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise InputError(
            f"{path}: a line must be a URL, a domain or an image id, was not in line {', '.join(bad[:10])}{more}: "
            "mend or remove it"
        )
    yield from found


def kind_of(entry: str) -> str | None:
    """url, domain or image id, told by its form; None if it is none of them."""
    if takedowns.IMAGE_ID.fullmatch(entry):
        return "image id"
    if "://" in entry:
        return "url" if takedowns.host_in(entry) else None
    try:
        takedowns.domain_name(entry)
    except ValueError:
        return None
    return "domain"


def directory(storage: Storage, name: str) -> StageDir:
    stage, fingerprint = name.rsplit("/", 1)
    return StageDir(root=storage.root, stage=stage, fingerprint=fingerprint)
