"""A run's figures in Prometheus' text form (0.0.4), below the root and where node_exporter looks for files.

Gauges are of what the run uses, the directories that it found among them. Counters are of the work that was done on
the root, in all runs of a recipe: they go on from the file that the run before has left.
"""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lvd.flows.figures import LEDGER, Account, Books, Downloads
from lvd.infra.errors import InputError
from lvd.infra.logs import redacted
from lvd.infra.storage import Storage

logger = logging.getLogger("lvd")

FOLDER = "metrics"
FILE_VARIABLE = "LVD_METRICS_FILE"
SUFFIX = ".prom"  # node_exporter reads no other
OWN = ("root", "recipe")  # labels of every sample
COSTS = {
    "gpu_seconds": ("lvd_stage_gpu_seconds", "Seconds in which a GPU was held"),
    "read_bytes": ("lvd_stage_read_bytes", "Bytes read"),
    "written_bytes": ("lvd_stage_written_bytes", "Bytes written"),
}
COUNTERS = {
    "lvd_runs_total": "Runs that ended well.",
    "lvd_computed_shards_total": "Shards that were computed.",
    "lvd_computed_rows_total": "Rows that went through the computed shards.",
    "lvd_computed_seconds_total": "Seconds of work in them, of all workers together.",
    "lvd_gpu_seconds_total": "Seconds in which a GPU was held for them.",
    "lvd_read_bytes_total": "Bytes read for them.",
    "lvd_written_bytes_total": "Bytes written for them.",
    "lvd_downloads_total": "Candidates asked for, by what came of it; `fetched` gave an image.",
}

IN_PROGRESS = re.compile(r"(?m)^(lvd_run_in_progress\{.*\}) 1\.0$")
NOT_FAILED = re.compile(r"(?m)^(lvd_run_failed\{.*\}) 0\.0$")

Key = tuple[str, tuple[tuple[str, str], ...]]  # of a counter: name, labels without OWN


class Moment(BaseModel, frozen=True):
    """How a run stands, beside what its stages say; and what the last run that ended well has said."""

    recipe: str
    started: float  # Unix seconds
    seconds: float  # so far
    is_done: bool = False
    is_failed: bool = False
    downloads: Downloads = Downloads()  # of this run
    last_success: float | None = None  # Unix seconds
    candidates: int | None = None
    states: dict[str, int] = {}  # of the ledger
    endings: tuple[tuple[str, str, str, str, int], ...] = ()  # role, stage, state, reason, candidates
    published: int | None = None
    version: str | None = None
    alerts: dict[str, bool] = {}  # event → whether it was told


class Totals:
    """The counters. They only grow, over all runs of a recipe on one root."""

    def __init__(self, text: str = "") -> None:
        """text: of the file that the run before has left."""
        self.values: Counter[Key] = Counter()
        for name, labels, value in samples(text):
            if name in COUNTERS:
                self.values[name, tuple(sorted((k, v) for k, v in labels.items() if k not in OWN))] = value

    def add(self, name: str, amount: float, **labels: str) -> None:
        self.values[name, tuple(sorted(labels.items()))] += amount

    def count(self, account: Account) -> None:
        """The work behind one directory."""
        stage = {"stage": account.stage}
        self.add("lvd_computed_shards_total", account.shards, **stage)
        self.add("lvd_computed_rows_total", account.rows_in, **stage)
        self.add("lvd_computed_seconds_total", account.seconds, **stage)
        for cost in COSTS:
            if cost in account.cost:
                self.add(f"lvd_{cost}_total", account.cost[cost], **stage)
        if account.stage == "download":
            for outcome, candidates in {"fetched": account.rows, **account.reasons}.items():
                self.add("lvd_downloads_total", candidates, outcome=outcome)


class Families:
    """The samples of one file, in families; what `prometheus_client` calls a collector."""

    def __init__(self, root: str, recipe: str) -> None:
        self._own = (redacted(root), recipe)
        self._found: dict[str, Any] = {}

    def gauge(self, name: str, says: str, value: float | None, **labels: str) -> None:
        """Adds a sample; none for None."""
        from prometheus_client.core import GaugeMetricFamily

        if value is not None:
            self._add(GaugeMetricFamily, name, says, value, labels)

    def counter(self, name: str, says: str, value: float, **labels: str) -> None:
        from prometheus_client.core import CounterMetricFamily

        self._add(CounterMetricFamily, name, says, value, labels)

    def _add(self, kind: Any, name: str, says: str, value: float, labels: dict[str, str]) -> None:
        if name not in self._found:
            self._found[name] = kind(name, says, labels=[*OWN, *labels])
        self._found[name].add_metric([*self._own, *labels.values()], value)

    def collect(self) -> Iterator[Any]:
        yield from self._found.values()


def families(books: Books, totals: Totals, moment: Moment) -> Families:
    """Every metric of a run as it stands."""
    found = Families(books.root, moment.recipe)
    of_stages(found, books)
    of_the_ledger(found, moment)
    of_the_run(found, books, moment)
    for (name, labels), value in sorted(totals.values.items()):
        found.counter(name, COUNTERS[name], value, **dict(labels))
    return found


def of_stages(found: Families, books: Books) -> None:
    for stage, figures in books.stages().items():
        label = {"stage": stage}
        found.gauge("lvd_stage_directories", "Directories that the run uses.", figures.directories, **label)
        found.gauge("lvd_stage_input_rows", "Rows that went in.", figures.rows_in, **label)
        found.gauge("lvd_stage_rows", "Rows that are there.", figures.rows, **label)
        found.gauge("lvd_stage_seconds", "Seconds of work, of all workers together.", figures.seconds, **label)
        peak = figures.peak_memory_mb * 2**20
        found.gauge("lvd_stage_peak_memory_bytes", "Most memory that a worker had.", peak, **label)
        for cost, (name, says) in COSTS.items():
            found.gauge(name, f"{says}.", figures.cost.get(cost), **label)
        for reason, rows in figures.reasons.items() if stage != LEDGER else ():
            found.gauge("lvd_stage_rejects", "Rows that ended here, by reason.", rows, **label, reason=reason)
    for search, recall in books.recalls().items():
        found.gauge("lvd_search_recall_ratio", "Recall of a search; 1: it was exact.", recall, search=search)
    found.gauge("lvd_cluster_objective", "Mean similarity to the nearest centroid.", books.objective())


def of_the_ledger(found: Families, moment: Moment) -> None:
    found.gauge("lvd_candidates", "Candidates of the ledger.", moment.candidates)
    for state, count in moment.states.items():
        share = count / moment.candidates if moment.candidates else 0.0
        found.gauge("lvd_ledger_share_ratio", "Share of the candidates that ended so.", share, state=state)
    names = ("role", "stage", "state", "reason")
    for *ending, count in moment.endings:
        labels = dict(zip(names, ending, strict=True))
        found.gauge("lvd_ledger_candidates", "Candidates that ended so.", count, **labels)
    found.gauge("lvd_published_images", "Images of the published version.", moment.published)
    if moment.version is not None:
        found.gauge("lvd_published_info", "The published version.", 1, version=moment.version)


def of_the_run(found: Families, books: Books, moment: Moment) -> None:
    says = "Share of the URLs that gave an image: of those asked in this run, and of all that it uses."
    for scope, downloads in {"new": moment.downloads, "all": books.downloads()}.items():
        found.gauge("lvd_download_success_ratio", says, downloads.success, scope=scope)
    found.gauge("lvd_run_in_progress", "1 while a run is under way.", not moment.is_done)
    found.gauge("lvd_run_failed", "1 if the last run ended with an error.", moment.is_failed)
    found.gauge("lvd_run_start_timestamp_seconds", "When the run began.", moment.started)
    found.gauge("lvd_run_duration_seconds", "How long it has taken so far.", moment.seconds)
    says = "When it was last alive: told every minute, so that a run that was killed does not look busy for ever."
    found.gauge("lvd_run_heartbeat_timestamp_seconds", says, moment.started + moment.seconds)
    says = "When a run last ended well."
    found.gauge("lvd_last_success_timestamp_seconds", says, moment.last_success)
    for event, told in moment.alerts.items():
        found.gauge("lvd_alert_active", "1: the last run has told of this.", told, alert=event)


def registry_of(found: Families) -> Any:
    from prometheus_client import CollectorRegistry

    registry = CollectorRegistry(auto_describe=False)
    registry.register(found)
    return registry


def text_of(found: Families) -> str:
    from prometheus_client import generate_latest

    return generate_latest(registry_of(found)).decode()


def samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """(name, labels, value) of every sample. Raises ValueError if this is not the text form."""
    from prometheus_client.parser import text_string_to_metric_families

    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, dict(sample.labels), sample.value


def name_of(recipe: str) -> str:
    return f"{FOLDER}/{recipe}{SUFFIX}"


def left(storage: Storage, recipe: str) -> str:
    """What the run before has left; nothing if there was none, or it cannot be read as metrics."""
    if not storage.exists(name_of(recipe)):
        return ""
    text = storage.read_bytes(name_of(recipe)).decode(errors="replace")
    with suppress(ValueError):
        list(samples(text))
        return text
    return ""


def local_file(said: str | None) -> Path | None:
    """Where the metrics go besides the root: the recipe's `metrics_file`, else LVD_METRICS_FILE; None: nowhere.

    Raises InputError if no file of metrics can be there.
    """
    name = said or os.environ.get(FILE_VARIABLE)
    if not name:
        return None
    path = Path(name)
    where = f"--metrics, recipe.metrics_file and {FILE_VARIABLE} must be"
    if path.suffix != SUFFIX:
        raise InputError(f"{where} a path that ends in {SUFFIX}, was {name!r}: node_exporter reads no other file")
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"{where} a file in a folder that can be written, was {name!r}: make the folder")
    return path


def write_local(found: Families, path: Path) -> None:
    """Writes the file beside its place and renames it, so that no reader sees half of it; or warns that it cannot."""
    from prometheus_client import write_to_textfile

    try:
        write_to_textfile(str(path), registry_of(found))
    except OSError as error:
        logger.warning("%s cannot be written, the run goes on: %s", path, error)


def began(text: str) -> float:
    """When the run began that has left these metrics, in Unix seconds; 0 if they do not say it."""
    return next((value for name, _, value in samples(text) if name == "lvd_run_start_timestamp_seconds"), 0.0)


def ended(text: str) -> str:
    """The metrics of a run that is known to have ended: if they say that it is under way, it was killed, and failed."""
    found = IN_PROGRESS.sub(r"\1 0.0", text)
    return text if found == text else NOT_FAILED.sub(r"\1 1.0", found)
