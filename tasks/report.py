"""The report of a run: what it holds, and how it is rendered into one HTML file without a link to anything outside.

Everything in it that comes from the web (keys, texts, errors) is hostile input: the template escapes it.
"""

import re
from collections import Counter
from http import HTTPStatus
from importlib.resources import files
from typing import Any, get_args

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from pydantic import BaseModel

from lvd.tasks.algorithms.evenness import imbalance
from lvd.tasks.charts import Chart
from lvd.tasks.contact_sheets import At, Groups, Sheet, Shown, Thumbnail
from lvd.tasks.containers import Reason as DecodeReason
from lvd.tasks.recall import Recall
from lvd.tasks.takedowns import FORGOTTEN
from lvd.tasks.tallies import Ending

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


class Step(BaseModel, frozen=True):
    """One stage of the funnel: the images that are left, and what was lost since the step before."""

    label: str
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
        if self.reason.startswith("http_") and self.reason[5:].isdigit():
            known = {status.value: status.phrase for status in HTTPStatus}
            return f"the server answered {known.get(int(self.reason[5:]), 'so')}".lower()
        return MEANINGS.get(self.reason, "")


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
    pictures: dict[At, Thumbnail] = {}

    @property
    def candidates(self) -> int:
        return sum(self.states.values())

    def shown(self) -> list[Shown]:
        """Every place of a sheet that has a picture."""
        sheets = [
            *(self.sample, self.screened, self.not_retrieved, self.clusters, *self.duplicates, *self.decontamination),
            *(retrieval.sheet for retrieval in self.retrievals),
        ]
        return [shown for sheet in sheets for shown in sheet.shown() if shown.at]


def funnel(counts: Counter[Ending]) -> tuple[Step, ...]:
    """From the pool's candidates to the retrieved images, then to what is published with the included curated ones."""
    left = Counter({ending[1:]: count for ending, count in counts.items() if ending[0] == "pool"})
    steps = [Step(label="candidates", count=left.total(), before=left.total())]

    def step(label: str, ends: Any) -> None:
        lost: Counter[str] = Counter()
        for stage, state, reason in [e for e in left if e[1] != "kept" and ends(*e)]:
            lost[reason] += left.pop((stage, state, reason))
        ordered = dict(sorted(lost.items(), key=lambda pair: (-pair[1], pair[0])))
        steps.append(Step(label=label, count=left.total(), before=steps[-1].count, lost=ordered))

    undecodable = get_args(DecodeReason)
    step("valid, each once", lambda stage, state, reason: stage == "crawl")
    step("fetched", lambda stage, state, reason: stage == "download" and reason not in undecodable)
    step("decodable", lambda stage, state, reason: stage == "download" or (stage == "screen" and state == "failed"))
    step("within the screening rules", lambda stage, state, reason: stage == "screen")
    step("unique by fingerprint", lambda stage, state, reason: stage == "fingerprint")
    step("after self-deduplication", lambda stage, state, reason: stage == "copies" and reason not in REFERENCE_REASONS)
    step("after decontamination", lambda stage, state, reason: stage == "copies")
    if any(stage == FORGOTTEN for stage, _, _ in left):
        step("not taken down", lambda stage, state, reason: stage == FORGOTTEN)
    step("embedded", lambda stage, state, reason: stage == "embed")
    if any(stage == "cluster" for stage, _, _ in left):
        step("without semantic duplicates", lambda stage, state, reason: stage == "cluster")
    chosen = "retrieved or left" if any(reason == "survivor" for _, _, reason in left) else "retrieved"
    step(chosen, lambda stage, state, reason: True)
    curated = sum(n for (role, _, state, _), n in counts.items() if role == "curated" and state == "kept")
    retrieved = steps[-1].count
    return (*steps, Step(label="published", count=retrieved + curated, before=retrieved, gained=curated))


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
    for (_, stage, state, reason), count in counts.items():
        if state != "kept":
            summed[stage, state, reason] += count
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


def render(report: Report) -> str:
    """The page: one HTML file, pictures as `data:` URLs, no script."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"count": count, "duration": duration, "size": size, "tail": tail, "short": short}
    environment.filters |= {"clean": without_credentials, "gpu_hours": gpu_hours}
    environment.globals["share"] = share
    template = environment.from_string(files("lvd.tasks").joinpath("report.html.jinja").read_text("utf-8"))
    return template.render(report=report)


def dressed(name: str, **values: Any) -> str:
    """Another page in the dress of the report: one HTML file, no script.

    name: of its template beside the report's, which is given the style and these values.
    """
    dress = files("lvd.tasks").joinpath("report.html.jinja").read_text("utf-8")
    style = dress.partition("<style>")[2].partition("</style>")[0]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"count": count, "clean": without_credentials}
    template = environment.from_string(files("lvd.tasks").joinpath(name).read_text("utf-8"))
    return template.render(style=style, **values)
