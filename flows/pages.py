"""What the pages of `lvd serve` say, as plain values: the same for a person's page and for a script's JSON."""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import yaml

from lvd.flows.pictures import UNSEEN, Pictures, addressed, image_at, is_shown, place_of, stored, taken_down
from lvd.flows.questions import Asked, Busy
from lvd.flows.shelf import FOLDER, Edition, NotThere, Shelf
from lvd.flows.veiling import nameless
from lvd.tasks.meanings import MEANINGS
from lvd.tasks.scanning import MATCHES, SCAN_S, Condition, Found, among, equal, every, holds, of_domain, scan
from lvd.tasks.wording import without_credentials

if TYPE_CHECKING:
    from lvd.flows.found import Finding

ROWS, IMAGES, GROUP, LISTED = 50, 48, 60, 50  # a page of the ledger, of images; of one image's duplicates; of runs
MAX_ROWS = 1000  # that a script can ask for at once
MAX_LINES = 100_000  # of the ledger, of all images that a report names
FACTS = [
    *("key", "url", "page_url", "alt", "source", "domain", "label", "license"),
    *("width", "height", "format", "num_bytes"),
]
ENDINGS = 12  # on the first page
NEIGHBOURS = 12
COMPARED_AT_ONCE = 2_000_000  # candidates; what more there are, an image is compared with if somebody asks for it
WAIT_S = 30.0  # for comparisons of others
STATES, ROLES = ("kept", "dropped", "failed"), ("pool", "curated")
VECTORS = "This root holds vectors, not images: there are no pictures to show."

Said = dict[str, Any]


class Site:
    """What all pages need: the versions of the root, the pictures, and whose turn it is to compare vectors."""

    def __init__(self, root: str) -> None:
        self.shelf, self.pictures = Shelf(root), Pictures()
        self.turn = threading.Lock()

    def edition(self, asked: Asked) -> Edition:
        return self.shelf.edition(asked.number("v"))

    def head(self, edition: Edition) -> Said:
        """What the top of every page says."""
        recipe, newest = edition.record["recipe"], self.shelf.newest()
        return {
            "title": recipe["publish"]["title"] or recipe["name"],
            "root": without_credentials(self.shelf.root),
            "version": edition.version,
            "number": edition.number,
            "is_newest": edition.number == newest,
            "newest": newest,
            "has_images": edition.has_images,
            "report": edition.record["report"],
        }


def overview(site: Site, asked: Asked) -> Said:
    """The versions, what the newest one holds, and the latest run."""
    edition, runs = site.edition(Asked({})), site.shelf.runs()
    latest: dict[int, str] = {}
    for run_id, number in runs.items():
        latest.setdefault(number, run_id)
    listed = site.shelf.numbers()[:LISTED]
    records = site.shelf.records([latest[number] for number in listed])
    versions = [version_line(latest[number], record, number) for number, record in zip(listed, records, strict=True)]
    roles, collections = edition.collections
    return {
        "head": site.head(edition),
        "states": edition.states,
        "candidates": edition.ledger.rows,
        "roles": dict(roles),
        "collections": dict(collections),
        "versions": versions,
        "num_versions": len(latest),
        "num_runs": len(runs),
        "run": run_line(next(iter(runs)), site.shelf.record(next(iter(runs)))),
        "endings": edition.endings[:ENDINGS],
        "rarer": edition.endings[ENDINGS:],
    }


def version_line(run_id: str, record: Said, number: int) -> Said:
    return {"number": number, "states": record["ledger"], **run_line(run_id, record)}


def run_line(run_id: str, record: Said) -> Said:
    """One run in a list."""
    moment = f"{run_id[:4]}-{run_id[4:6]}-{run_id[6:8]} {run_id[9:11]}:{run_id[11:13]} UTC"
    said = {name: record[name] for name in ("version", "candidates", "ledger", "seconds")}
    return {"run_id": run_id, "moment": moment, "computed": sum(record["computed"].values()), **said}


def runs(site: Site, asked: Asked) -> Said:
    """The finished runs, the latest first."""
    known, start = list(site.shelf.runs()), asked.number("after", 0)
    listed = known[start : start + LISTED]
    return {
        "head": site.head(site.edition(Asked({}))),
        "runs": [run_line(run_id, one) for run_id, one in zip(listed, site.shelf.records(listed), strict=True)],
        "total": len(known),
        "next": start + LISTED if start + LISTED < len(known) else None,
    }


def run(site: Site, asked: Asked, run_id: str) -> Said:
    """What one run was asked, did and cost, stage by stage."""
    record = site.shelf.record(run_id)
    recipe = without_credentials(yaml.safe_dump(record["recipe"], sort_keys=False, allow_unicode=True, width=110))
    stages = [{name: cost[name] for name in cost if name != "directories"} for cost in record["cost"]]
    head = site.head(site.edition(Asked({})))
    return {"head": head, "run": run_line(run_id, record), "node": record["node"], "stages": stages, "recipe": recipe}


def ledger(site: Site, asked: Asked) -> Said:
    """The rows of the ledger that are searched for, and what it took to find them."""
    edition = site.edition(asked)
    text, match = asked.text("q"), asked.one_of("match", MATCHES, "contains")
    chosen = {
        "state": asked.one_of("state", STATES),
        "reason": asked.text("reason"),
        "role": asked.one_of("role", ROLES),
        "because_of": asked.text("because_of"),
    }
    conditions: list[Condition] = [equal(name, value) for name, value in chosen.items() if value]
    conditions += [MATCHES[match](text)] if text else []
    limit = asked.number("limit", ROWS, most=MAX_ROWS)
    found = scan(edition.ledger, every(conditions), start=asked.number("after", 0), limit=limit, seconds=SCAN_S)
    reasons = {ending["reason"] for ending in edition.endings} or set(MEANINGS)
    return {
        "head": site.head(edition),
        "asked": {"q": text, "match": match, **chosen},
        "reasons": sorted(filter(None, {*reasons, chosen["reason"]})),
        "meanings": MEANINGS,
        "found": page_of(found, edition),
    }


def page_of(found: Found, edition: Edition) -> Said:
    """What was found, for whoever asked: no secrets, no number that JSON has no word for."""
    return found._asdict() | {"rows": [told(row, edition) for row in found.rows]}


def told(row: Said, edition: Edition) -> Said:
    """A row as it is shown, and whether there may be a picture; of what was taken down no name."""
    is_gone = edition.veil.record_of_row(row) is not None
    row = nameless(row) if is_gone else row
    clean = {name: without_credentials(value) if isinstance(value, str) else value for name, value in row.items()}
    for name, value in clean.items():
        if isinstance(value, float):
            clean[name] = round(value, 5) if math.isfinite(value) else None
    unseen = is_gone or row.get("reason") in UNSEEN
    came = bool(row["image_id"]) and edition.has_images and row.get("state") != "failed"  # failed: it has no pixels
    return clean | {"has_picture": came and not unseen}


def images(site: Site, asked: Asked) -> Said:
    """A page of the published images."""
    edition = site.edition(asked)
    chosen = {name: asked.text(name) for name in ("role", "collection", "domain")}
    chosen["cluster"] = asked.number("cluster")
    said = {"head": site.head(edition), "asked": chosen, "note": None if edition.has_images else VECTORS}
    if not edition.has_images:
        return said | {"roles": {}, "collections": {}, "found": None}
    roles, collections = edition.collections
    conditions: list[Condition] = [equal("role", chosen["role"])] if chosen["role"] else []
    conditions += [holds("retrieved_for", chosen["collection"])] if chosen["collection"] else []
    conditions += [of_domain(chosen["domain"])] if chosen["domain"] else []
    if chosen["cluster"] is not None:
        conditions.append(among("image_id", edition.of_cluster(chosen["cluster"])))
    limit = asked.number("limit", IMAGES, most=MAX_ROWS)
    found = scan(edition.published, every(conditions), start=asked.number("after", 0), limit=limit, seconds=SCAN_S)
    counts = {"roles": dict(roles.most_common()), "collections": dict(collections.most_common())}
    return said | counts | {"found": page_of(found, edition)}


def image(site: Site, asked: Asked, image_id: str) -> Said:
    """One image: where it came from, what became of it and because of which other, and what went because of it."""
    edition = site.edition(asked)
    rows = [told(row, edition) for row in edition.fates(image_id)]
    reference = edition.reference(image_id)
    if not rows and reference is None:
        raise NotThere(f"no image {image_id} is stored in {edition.version}: look for it in /ledger")
    published = edition.published_row(image_id)
    group = page_of(scan(edition.ledger, equal("because_of", image_id), limit=GROUP, seconds=SCAN_S), edition)
    unseen = next((UNSEEN[row["reason"]] for row in rows if row["reason"] in UNSEEN), None)
    is_gone = taken_down(edition, image_id)
    unseen = UNSEEN["forgotten"] if is_gone else unseen
    if rows and all(row["state"] == "failed" for row in rows):
        unseen = unseen or f"it cannot be decoded: {rows[0]['reason']}"
    for row in group["rows"]:
        row["has_picture"] &= unseen is None or row["image_id"] != image_id
    known, published = facts(edition, rows), told(published, edition) if published else None
    if is_gone:
        rows, known, published = list(map(nameless, rows)), nameless(known), nameless(published) if published else None
    return {
        "head": site.head(edition),
        "image_id": image_id,
        "rows": rows,
        "reference": without_credentials(reference) if reference else None,
        "published": published,
        "facts": known,
        "cell": edition.cell_of(image_id),
        "group": group,
        "unseen": unseen,
        "is_compared": edition.ledger.rows <= COMPARED_AT_ONCE,
    }


def facts(edition: Edition, rows: list[Said]) -> Said:
    """What is known of the image of the first of these rows that came; null for what is not known."""
    for row in rows:
        if place := place_of(edition, row["position"]):
            _, refs, number = place
            known = image_at(edition, refs, number, FACTS)
            return {name: without_credentials(v) if isinstance(v, str) else v for name, v in known.items()}
    return dict.fromkeys(FACTS)


def written(site: Site, number: int, name: str) -> bytes:
    """A file that was published beside a version; of its report what may still be shown. Raises NotThere."""
    edition, storage = site.shelf.edition(number), site.shelf.storage
    file = f"{FOLDER}/{edition.version}/{name}"
    if not storage.exists(file):
        raise NotThere(f"{edition.version} has no {name}: a root over vectors has its card only, at /v/N/card")
    data = storage.read_bytes(file)
    if not (edition.veil and name.endswith(".html")):
        return data

    def rows_of(image_ids: set[str], pictured: set[str]) -> list[Said]:
        rows = scan(edition.ledger, among("image_id", image_ids), limit=MAX_LINES).rows
        return [*rows, *addressed(edition, [row for row in rows if row["image_id"] in pictured])]

    return edition.veil.page(data.decode(), rows_of).encode()


def similar(site: Site, asked: Asked, image_id: str) -> Said:
    """The copies and neighbours of a stored image, by what the last run left; of the newest version only."""
    from lvd.flows.similar import like_stored

    edition = site.edition(Asked({}))
    said = image(site, Asked({}), image_id)
    try:
        data = None if said["unseen"] else stored(edition, image_id)
    except NotThere:
        data = None
    with turn(site):
        key = said["rows"][0]["key"] if said["rows"] else said["reference"]
        found = like_stored(site.shelf.root, image_id, key, data, NEIGHBOURS)
    return {"head": said["head"], "image_id": image_id, "finding": finding_said(found, edition)}


def findings(site: Site, asked: Asked, path: str, name: str) -> Said:
    """What is found of a picture in a file. name: what it was called where it came from."""
    from lvd.flows.finding import find

    edition = site.edition(Asked({}))
    with turn(site):
        (found,) = find(site.shelf.root, [path], neighbours=asked.number("neighbours", NEIGHBOURS, most=100))
    return {"head": site.head(edition), "name": name, "note": None, "finding": finding_said(found, edition)}


def asking(site: Site, asked: Asked) -> Said:
    """The page that a picture is dropped on."""
    edition = site.edition(Asked({}))
    note = None if edition.has_images else VECTORS
    return {"head": site.head(edition), "name": None, "note": note, "finding": None}


def finding_said(found: "Finding", edition: Edition) -> Said:
    """A finding for whoever asked: its names without secrets, and what pictures there are."""
    said = found.model_dump(mode="json", exclude={"path"})
    said["verdict"] = without_credentials(said["verdict"])
    said["candidates"] = [told(row, edition) for row in said["candidates"]]
    for image in (*said["copies"], *said["neighbours"], *([said["nearest"]] if said["nearest"] else ())):
        image |= {name: without_credentials(image[name]) for name in ("key", "fate")}
        image["has_picture"] = is_shown(edition, image["image_id"])
    return said


@contextmanager
def turn(site: Site) -> Iterator[None]:
    """One comparison with all vectors at a time. Raises Busy if those before it take too long."""
    if not site.turn.acquire(timeout=WAIT_S):
        raise Busy("other pictures are being compared: try again in a minute")
    try:
        yield
    finally:
        site.turn.release()
