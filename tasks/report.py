"""The report of a run: what it holds, and how it is rendered into one HTML file without a link to anything outside.

Everything in it that comes from the web (keys, texts, errors) is hostile input: the template escapes it.
"""

import re
from collections import Counter
from http import HTTPStatus
from typing import Any, NamedTuple, get_args

import numpy as np
from pydantic import BaseModel

from lvd.tasks import page_data
from lvd.tasks.algorithms.evenness import imbalance
from lvd.tasks.charts import Chart, Paired
from lvd.tasks.cluster_map import ClusterMap
from lvd.tasks.contact_sheets import At, Groups, Sheet, Shown, Thumbnail
from lvd.tasks.containers import Reason as DecodeReason
from lvd.tasks.dress import environment
from lvd.tasks.ledger_sample import Entry, LedgerSample
from lvd.tasks.reached import Reached
from lvd.tasks.recall import Recall
from lvd.tasks.takedowns import FORGOTTEN
from lvd.tasks.tallies import Ending
from lvd.tasks.wording import count, without_credentials

REFERENCE_REASONS = ("benchmark_copy", "curated_copy")
SIZE_BINS = (("2", 2, 3), ("3", 3, 4), ("4 to 9", 4, 10), ("10 to 99", 10, 100), ("100 and more", 100, np.inf))
MEANINGS = {
    "invalid_url": "not an address that may be fetched",
    "duplicate_url": "an earlier row names the same address",
    "domain_full": "the domain has as many addresses as the recipe allows",
    "extension": "the name ends in none of the wanted extensions",
    "blocked_extension": "the name ends as no picture of ours does",
    "blocked_domain": "on a list of blocked domains",
    "blocked_url": "on a list of blocked addresses",
    "unsafe_word": "a word of the address is on a list of unsafe words",
    "domain_not_allowed": "on no list of allowed domains",
    "page_opted_out": "the page says that its images are not to be used",
    "unreadable_archive": "the archive could not be read from here on",
    "unreadable_record": "a record of the archive could not be read",
    "fetched": "an image came",
    "opted_out": "the server says that the image is not to be used",
    "robots_txt": "robots.txt disallows it",
    "blocked_address": "leads to an address that is not public",
    "no_such_host": "the name does not resolve",
    "dead_host": "the host had not answered several times before",
    "retry_later": "the host asked for a longer pause than allowed",
    "tls_failed": "no secure connection: the certificate or the handshake",
    "bad_response": "no answer that HTTP knows",
    "wrong_digest": "other bytes than the list says lie there now",
    "connection_failed": "no connection to the server",
    "timeout": "no whole answer within the time limit",
    "incomplete_body": "the answer broke off",
    "empty_body": "an answer without a byte",
    "too_large": "more bytes than allowed",
    "too_many_redirects": "redirected on and on",
    "unreadable": "the file could not be read",
    "not_an_image": "the bytes are of no image format",
    "truncated": "the file ends before the picture does",
    "undecodable": "the decoder gave up",
    "too_many_pixels": "larger than may be decoded",
    "too_small": "the short edge is below the limit; value: pixels",
    "aspect_ratio": "too long or too tall; value: long edge ÷ short edge",
    "format": "a format that the recipe leaves out",
    "too_many_frames": "more frames than may be counted",
    "nsfw": "the classifier finds it unsafe; value: probability",
    "animated": "more than one frame; value: frames",
    "near_empty": "hardly any contrast; value: contrast or entropy",
    "blurred": "sharpness below the limit",
    "too_dark": "mean luminance below the limit",
    "too_bright": "mean luminance above the limit",
    "exact_duplicate": "the same bytes as another image",
    "near_duplicate": "PCA hash and thumbnail almost those of another image",
    "copy": "descriptor joins it to another image (self-deduplication)",
    "benchmark_copy": "copies an image of a benchmark (relative deduplication)",
    "curated_copy": "copies a curated image (relative deduplication)",
    "forgotten": "taken down by request, or a copy of an image that was",
    "not_finite": "the model gave no finite vector",
    "semantic_duplicate": "means the same as another image of its cluster; value: similarity",
    "not_retrieved": "unlike the curated images: nothing is wrong with it",
}


def meaning(reason: str) -> str:
    """What a reason means; empty for one that nobody knows."""
    if reason.startswith("http_") and reason[5:].isdigit():
        known = {status.value: status.phrase for status in HTTPStatus}
        return f"the server answered {known.get(int(reason[5:]), 'so')}".lower()
    return MEANINGS.get(reason, "")


class Step(BaseModel, frozen=True):
    """One stage of the funnel: the images that are left, and what was lost since the step before."""

    label: str
    name: str = ""  # of its place in the page: funnel-NAME
    count: int
    before: int
    lost: dict[str, int] = {}  # reason → images
    gained: int = 0  # images that join here


class Loss(BaseModel, frozen=True):
    """Candidates that ended for one reason."""

    stage: str
    state: str
    reason: str
    count: int

    @property
    def meaning(self) -> str:
        return meaning(self.reason)


class Example(BaseModel, frozen=True):
    """One reject: what it was, and what went wrong."""

    reason: str
    key: str
    error: str


class Breakdown(BaseModel, frozen=True):
    """One value of a property, before and after the chain."""

    name: str
    before: int
    after: int


class Outcome(Loss):
    """What asking for images came to, and in how many domains."""

    domains: int


class Domain(BaseModel, frozen=True):
    """What one domain listed, what it delivered, and what was published of it."""

    name: str
    listed: int
    fetched: int
    kept: int
    lost: dict[str, int]  # reason → candidates, the most frequent first


class Collection(BaseModel, frozen=True):
    """One source of the pool, one benchmark or one curated collection."""

    role: str
    name: str
    kind: str
    path: str
    listed: int
    fetched: int
    kept: int | None = None  # None if it is not published
    domains: int | None = None  # of what is published of it, up to tallies.MAX_DOMAINS; None if it is not published
    dropped_for_it: int | None = None  # pool images that went because they copy an image of it; None if not compared


class Retrieval(BaseModel, frozen=True):
    """What one curated collection retrieved."""

    name: str
    notes: dict[str, Any]  # kind, queries, asked, found, images, and what else its kind has to say
    settings: dict[str, Any]
    chart: Chart
    sheet: Sheet


class PatchPicture(BaseModel, frozen=True):
    """A published image as the model was given it, and its patches in colours; both as `data:` URLs."""

    image_id: str
    key: str
    grid: str  # how many patches
    seen: str
    colours: str


class Patches(BaseModel, frozen=True):
    """What the embedding model sees."""

    model: str
    pictures: tuple[PatchPicture, ...] = ()
    missing: str = ""  # why there are none


class GroupSizes(BaseModel, frozen=True):
    """How many groups of a reason have each size, the image that stays counted too."""

    reason: str
    bins: tuple[tuple[str, int], ...]
    share: float  # of all groups that were counted


class Timing(BaseModel, frozen=True):
    """One stage's account, over its directories."""

    stage: str
    directories: tuple[str, ...]
    shards: int
    computed: int  # of the shards, in this run; the others were found on storage
    rows_in: int
    rows: int
    seconds: float  # busy, summed over the shards, whenever they were computed
    peak_memory_mb: int
    read_bytes: int = 0  # of the stages before it, as they lie in memory
    written_bytes: int = 0
    gpu_seconds: float = 0.0  # that a GPU was held


class Search(BaseModel, frozen=True):
    """How neighbours were searched for, and what of them was found."""

    what: str
    engine: str  # exact or cells
    recall: Recall | None = None  # None: exact


class Components(BaseModel, frozen=True):
    """The components of two and more images in the copy graph."""

    count: int
    largest: int  # images
    lowest: float  # similarity of any image to the one that stands for it
    chained: int  # components with an image that is less like its representative than the threshold


class Page(NamedTuple):
    """What the report says of one curated collection, or of the balanced selection."""

    name: str
    place: str  # in the page
    retrieval: Retrieval | None
    collection: Collection | None
    reached: Reached | None


class Report(BaseModel, frozen=True):
    """Everything that the page shows. Pictures lie apart, by the place of their image, so that each is there once."""

    title: str
    name: str
    version: str
    date: str
    root: str
    run_seconds: float
    states: dict[str, int]
    published: dict[str, int]  # role → images
    funnel: tuple[Step, ...]
    losses: tuple[Loss, ...]
    duplicates: tuple[Sheet, ...]
    group_sizes: tuple[GroupSizes, ...]
    components: Components
    searches: tuple[Search, ...]
    decontamination: tuple[Sheet, ...]
    thresholds: dict[str, float]
    collections: tuple[Collection, ...]
    retrievals: tuple[Retrieval, ...]
    overlaps: dict[str, dict[str, int]]  # selection → selection → images that are in both
    cluster_figures: dict[str, str]
    cluster_charts: tuple[Chart, ...]
    clusters: Sheet
    screened: Sheet
    not_retrieved: Sheet
    sample: Sheet
    examples: tuple[Example, ...]
    formats: tuple[Breakdown, ...]
    short_edges: tuple[Breakdown, ...]
    num_bytes: tuple[int, int]  # of all fetched and of all published images
    domains: tuple[Domain, ...]
    num_domains: int
    errors: tuple[Outcome, ...]
    timings: tuple[Timing, ...]
    versions: dict[str, str]
    recipe: str  # YAML
    lost: dict[str, tuple[Shown, ...]] = {}  # reason → a few of what was dropped for it
    ledger: LedgerSample = LedgerSample()
    pictures: dict[At, Thumbnail] = {}
    reached: dict[str, Reached] = {}  # selection → where its images come from
    cluster_map: ClusterMap | None = None
    domain_shares: tuple[Breakdown, ...] = ()
    shifts: tuple[Paired, ...] = ()  # distributions before and after
    patches: Patches | None = None  # None if the embedding model has none

    @property
    def candidates(self) -> int:
        return sum(self.states.values())

    def shown(self) -> list[Shown]:
        """Every place of a sheet that has a picture."""
        sheets = [
            *(self.sample, self.screened, self.not_retrieved, self.clusters, *self.duplicates, *self.decontamination),
            *(retrieval.sheet for retrieval in self.retrievals),
        ]
        both = (
            *(shown for sheet in sheets for shown in sheet.shown()),
            *(one for some in self.lost.values() for one in some),
        )
        return [shown for shown in both if shown.at]

    def curated(self, name: str) -> Collection | None:
        """The curated collection of that name."""
        return next((one for one in self.collections if (one.role, one.name) == ("curated", name)), None)

    def pages(self) -> list[Page]:
        """A page for every selection, and for every curated collection that retrieves nothing."""
        selected = {one.name: one for one in self.retrievals}
        names = [*selected, *(c.name for c in self.collections if c.role == "curated" and c.name not in selected)]
        places = {}  # place → name; names that differ in what no address can hold get a number
        for name in names:
            place = place_of(name)
            places[place if place not in places else f"{place}-{len(places)}"] = name
        return [Page(n, place, selected.get(n), self.curated(n), self.reached.get(n)) for place, n in places.items()]


def funnel(counts: Counter[Ending]) -> tuple[Step, ...]:
    """From the pool's candidates to the retrieved images, then to what is published with the included curated ones."""
    left = Counter({ending[1:]: count for ending, count in counts.items() if ending[0] == "pool"})
    steps = [Step(label="candidates", name="candidates", count=left.total(), before=left.total())]

    def step(name: str, label: str, ends: Any) -> None:
        lost: Counter[str] = Counter()
        for stage, state, reason in [e for e in left if e[1] != "kept" and ends(*e)]:
            lost[reason] += left.pop((stage, state, reason))
        ordered = dict(sorted(lost.items(), key=lambda pair: (-pair[1], pair[0])))
        steps.append(Step(label=label, name=name, count=left.total(), before=steps[-1].count, lost=ordered))

    undecodable = get_args(DecodeReason)
    step("crawl", "valid, each once", lambda stage, state, reason: stage == "crawl")
    step("download", "fetched", lambda stage, state, reason: stage == "download" and reason not in undecodable)
    step(
        "decode",
        "decodable",
        lambda stage, state, reason: stage == "download" or (stage == "screen" and state == "failed"),
    )
    step("screen", "within the screening rules", lambda stage, state, reason: stage == "screen")
    step("fingerprint", "unique by fingerprint", lambda stage, state, reason: stage == "fingerprint")
    step(
        "copies",
        "after self-deduplication",
        lambda stage, state, reason: stage == "copies" and reason not in REFERENCE_REASONS,
    )
    step("decontamination", "after decontamination", lambda stage, state, reason: stage == "copies")
    if any(stage == FORGOTTEN for stage, _, _ in left):
        step("forgotten", "not taken down", lambda stage, state, reason: stage == FORGOTTEN)
    step("embed", "embedded", lambda stage, state, reason: stage == "embed")
    if any(stage == "cluster" for stage, _, _ in left):
        step("cluster", "without semantic duplicates", lambda stage, state, reason: stage == "cluster")
    chosen = "retrieved or left" if any(reason == "survivor" for _, _, reason in left) else "retrieved"
    step("retrieve", chosen, lambda stage, state, reason: True)
    curated = sum(n for (role, _, state, _), n in counts.items() if role == "curated" and state == "kept")
    retrieved = steps[-1].count
    return (
        *steps,
        Step(label="published", name="published", count=retrieved + curated, before=retrieved, gained=curated),
    )


def losses(counts: Counter[Ending]) -> tuple[Loss, ...]:
    """What ended for each reason, stage by stage, the most frequent first."""
    order = (
        "crawl",
        "download",
        "screen",
        "fingerprint",
        "copies",
        FORGOTTEN,
        "embed",
        "cluster",
        "retrieve",
        "publish",
    )
    summed: Counter[tuple[str, str, str]] = Counter()
    for (_, stage, state, reason), number in counts.items():
        if state != "kept":
            summed[stage, state, reason] += number
    found = [Loss(stage=s, state=state, reason=reason, count=n) for (s, state, reason), n in summed.items()]
    place = {stage: index for index, stage in enumerate(order)}
    return tuple(sorted(found, key=lambda loss: (place.get(loss.stage, len(order)), -loss.count, loss.reason)))


def group_sizes(groups: Groups) -> tuple[GroupSizes, ...]:
    """How large the groups of duplicates are; a bin counts the image that stays as well."""
    result = []
    for reason in ("exact_duplicate", "near_duplicate", "copy"):
        sizes = groups.sizes(reason) + 1
        bins = [(name, int(((sizes >= low) & (sizes < stop)).sum())) for name, low, stop in SIZE_BINS]
        result.append(GroupSizes(reason=reason, bins=tuple(bins), share=groups.share))
    return tuple(result)


def cluster_figures(sizes: np.ndarray, iterations: list[dict[str, Any]]) -> dict[str, str]:
    """What is said of the clusters; nothing if no image has one.

    sizes: (k,) int64. iterations: of the fit, as the account of the centroids has them.
    """
    if not sizes.sum():
        return {}
    return {
        "clusters": count(len(sizes)),
        "of them empty": count((sizes == 0).sum()),
        "largest": count(sizes.max()),
        "median": count(np.median(sizes)),
        "smallest": count(sizes.min()),
        "imbalance (1: all alike)": f"{imbalance(sizes):.2f}",
        "mean similarity to the centroid": f"{iterations[-1]['objective']:.4f}",
        "iterations on a sample": count(sum(one["over"] == "sample" for one in iterations)),
        "passes over the pool": count(sum(one["over"] == "pool" for one in iterations)),
    }


def place_of(name: str) -> str:
    """Where a collection is in the page: what `#collection-NAME` names."""
    return "collection-" + re.sub(r"[^A-Za-z0-9._-]+", "-", name)


def render(report: Report) -> str:
    """The page: one HTML file, pictures as `data:` URLs, one script that nothing depends on."""
    script, dots = page_data.scripts(), report.cluster_map
    ledger = ([one.image_id, without_credentials(one.key), *_ending(one)] for one in report.ledger.entries)
    data = {"ledger": ledger, "map": dots.lines() if dots else (), "names": [list(dots.names)] if dots else ()}
    return (
        environment(meaning=meaning)
        .get_template("report.html.jinja")
        .render(
            report=report,
            script=script,
            script_digest=page_data.digest(script),
            data={name: page_data.rows(lines) for name, lines in data.items()},
        )
    )


def _ending(entry: Entry) -> list[Any]:
    return [entry.state, entry.stage, entry.reason, entry.score, entry.because_of, entry.role]


def dressed(name: str, **values: Any) -> str:
    """Another page in the dress of the report: one HTML file, no script.

    name: of its template beside the report's, which is given the style and these values.
    """
    return environment().get_template(name).render(values)
