"""The report of a run: what it holds, and how it is rendered into one HTML file without a link to anything outside.

Everything in it that comes from the web (keys, texts, errors) is hostile input: the template escapes it.
"""

import re
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel

from lvd.tasks import page_data
from lvd.tasks.algorithms.evenness import imbalance
from lvd.tasks.charts import Chart, Paired
from lvd.tasks.cluster_map import ClusterMap
from lvd.tasks.contact_sheets import At, Groups, Sheet, Shown, Thumbnail
from lvd.tasks.dress import environment
from lvd.tasks.funnel import Loss, Step
from lvd.tasks.ledger_sample import Entry, LedgerSample
from lvd.tasks.meanings import meaning
from lvd.tasks.reached import Reached
from lvd.tasks.recall import Recall
from lvd.tasks.wording import count

SIZE_BINS = (("2", 2, 3), ("3", 3, 4), ("4 to 9", 4, 10), ("10 to 99", 10, 100), ("100 and more", 100, np.inf))


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
    ledger = ([one.image_id, one.key, *_ending(one)] for one in report.ledger.entries)
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
