"""What a run tells of itself besides its lines: artifacts, assets and events on Prefect's screen, metrics, alerts."""

import calendar
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvd.flows import metrics
from lvd.flows.alerts import DOWNLOADS, LEDGER, Alert, Told, alerts
from lvd.flows.artifacts import leave_artifacts, leave_report, link
from lvd.flows.assets import asset_key, leave_assets
from lvd.flows.figures import PUBLISHED, Account, Books
from lvd.flows.inquiry import last_run
from lvd.flows.server import dispensable
from lvd.infra.errors import InputError
from lvd.infra.lease import is_held
from lvd.infra.logs import fields
from lvd.infra.shards import StageDir
from lvd.infra.storage import Storage
from lvd.tasks import tallies

if TYPE_CHECKING:
    from lvd.flows.recipe import Recipe
    from lvd.flows.run import Run

logger = logging.getLogger("lvd")

RUNS = "runs"
BEAT_S = 60.0  # so often the metrics of a run say that it is alive
STAMP = "%Y%m%dT%H%M%SZ"  # of the beginning of a run: what its id begins with


class Observer:
    """Watches one run. What it cannot leave beside the root, or on Prefect's screen, ends no run."""

    def __init__(self, run: "Run") -> None:
        self._run, self._storage, self._recipe = run, run.storage, run.recipe
        self._books = Books(run.storage.root)
        self._stands = {"is_done": False, "is_failed": False}
        self._lock = threading.Lock()  # of the above, which the heart reads

    def __getstate__(self) -> dict[str, Any]:
        """Without the lock: Prefect sends a flow, with its run, to the nodes of a pool, where nothing is told."""
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    @cached_property
    def _totals(self) -> metrics.Totals:
        return metrics.Totals(metrics.left(self._storage, self._recipe.name))

    @cached_property
    def _before(self) -> dict[str, Any]:
        """What the last finished run of this recipe says; it holds until this one is done."""
        record = next(records(self._storage, self._recipe.name), None)
        return finished(record) if record else {}

    @cached_property
    def _file(self) -> Path | None:
        return metrics.local_file(self._recipe.metrics_file)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The metrics say inside that a run is under way and alive, and after an error that it failed."""
        self._write()
        try:
            with self._beating():
                yield
        except BaseException:
            self._stands = {"is_done": True, "is_failed": True}
            with suppress(*self._storage.errors):  # which may be what failed
                self._write()
            raise

    @contextmanager
    def _beating(self) -> Iterator[None]:
        """Writes the metrics again and again, however long a stage takes."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(BEAT_S):
                try:
                    self._write()
                except self._storage.errors as error:
                    logger.warning("the metrics of %s could not be written: %s", self._storage.root, error)

        heart = threading.Thread(target=beat, name="lvd-metrics", daemon=True)
        heart.start()
        try:
            yield
        finally:
            stop.set()
            heart.join()

    def stage_ended(self, stage: str, before: dict[str, int]) -> None:
        """After a stage, inside its flow. before: stage → how many directories the run used before it."""
        leave_artifacts(self._run, stage, before)
        made = sorted(self._enter(), key=lambda account: account.stage == PUBLISHED)
        page = self._page(made[-1].directory) if made and made[-1].stage == PUBLISHED else None
        with dispensable(f"the assets of {stage}"):
            leave_assets(self._run, made, self._books, page)
        self._write()

    def run_ended(self, record: dict[str, Any]) -> list[Alert]:
        """What is unusual, after the report, inside the run's flow. record: of `runs/…json`, which gets more of it."""
        self._enter()
        new, known = self._books.downloads(since=self._run.started), self._books.downloads()
        record["downloads"] = {"new": new.model_dump(), "all": known.model_dump()}
        if "endings" not in record:
            record["endings"] = endings(StageDir(root=record["root"], stage=record["curated"], fingerprint="ledger"))
        record["published"] = self._books[record["curated"]].rows
        bounds = self._recipe.alerts
        found = alerts(Told.of(record), told_before(self._storage, self._recipe.name, bounds.runs + 1), bounds)
        record["alerts"] = [alert.model_dump() for alert in found]
        for alert in found:
            logger.warning("%s: %s", alert.event, alert.line, extra=fields(alert=alert.event, **alert.numbers))
            with dispensable(f"the event {alert.event}"):
                emit(alert, record)
        with dispensable("the link to the report"):
            leave_report(self._page(record["curated"]))
        with self._lock:
            self._totals.add("lvd_runs_total", 1)
            self._before = finished(record)
            self._stands = {"is_done": True, "is_failed": False}
        self._write()
        return found

    def _enter(self) -> list[Account]:
        """The accounts of the directories that this run has completed since the last time."""
        names = (name for found in self._run.directories.values() for name in found)
        with self._lock:
            made = [account for account in self._books.enter(names) if account.ended_at >= self._run.started]
            for account in made:
                self._totals.count(account)
        return made

    def _write(self) -> None:
        """The metrics as they stand, to the root and, if one is named, to a file of this machine."""
        with self._lock:
            moment = metrics.Moment(
                **self._before,
                **self._stands,
                recipe=self._recipe.name,
                started=self._run.started,
                seconds=time.time() - self._run.started,
                downloads=self._books.downloads(since=self._run.started),
            )
            found = metrics.families(self._books, self._totals, moment)
            self._storage.write_bytes(metrics.name_of(self._recipe.name), metrics.text_of(found).encode())
            if self._file is not None:
                metrics.write_local(found, self._file)

    def _page(self, curated: str) -> str:
        page = "README.md" if self._recipe.has_own_vectors else "report.html"
        return link(self._storage.uri(f"{curated}/{page}"))


def emit(alert: Alert, record: dict[str, Any]) -> None:
    """Tells Prefect, whose automations can act on it. record: the run's, of `runs/…json`."""
    from prefect.events import emit_event

    name = record["recipe"]["name"]
    resource = {"prefect.resource.id": f"lvd.recipe.{name}", "prefect.resource.name": name}
    resource |= {"lvd.root": asset_key(record["root"]), "lvd.version": record["version"]}
    says = {"line": alert.line, **{key: record[key] for key in ("root", "run_id", "version")}, **alert.numbers}
    emit_event(event=alert.event, resource=resource, payload=says)


def finished(record: dict[str, Any]) -> dict[str, Any]:
    """What a `Moment` says of the last run that ended well. record: of `runs/…json`."""
    told = {alert["event"] for alert in record.get("alerts", ())}
    began = calendar.timegm(time.strptime(record["run_id"].split("-")[0], STAMP))
    return {
        "last_success": began + record["seconds"],
        "candidates": record["candidates"],
        "states": record["ledger"],
        "endings": record.get("endings", ()),
        "published": record.get("published"),
        "version": record["version"],
        "alerts": {event: event in told for event in (DOWNLOADS, LEDGER)},
    }


def endings(ledger: StageDir) -> list[tuple[Any, ...]]:
    """(role, stage, state, reason, candidates) of a ledger."""
    return [(*ending, count) for ending, count in sorted(tallies.endings(ledger.shards()).items())]


def told_before(storage: Storage, recipe: str, most: int) -> list[Told]:
    """What the last runs of that recipe on this root said of themselves, the oldest first."""
    return [Told.of(record) for record in islice(records(storage, recipe), most)][::-1]


def records(storage: Storage, recipe: str) -> Iterator[dict[str, Any]]:
    """What the finished runs of that recipe on this root say, the newest first."""
    for name in reversed([name for name in storage.names(RUNS) if name.endswith(".json")]):
        record = storage.read_json(f"{RUNS}/{name}")
        if record.get("recipe", {}).get("name") == recipe:
            yield record


def metrics_text(root: str) -> str:
    """What the run that began last has left; else what the last one that ended well says of itself.

    Raises InputError if there is none.
    """
    storage = Storage(root)
    names = [name.removesuffix(metrics.SUFFIX) for name in storage.names(metrics.FOLDER)]
    if text := max((metrics.left(storage, name) for name in names), key=metrics.began, default=""):
        return text if is_held(storage) else metrics.ended(text)
    if (record := last_run(storage)) is None:
        raise InputError(f"root must be one that a run has begun on, was {root!r}: run `lvd run RECIPE --root {root}`")
    return metrics.text_of(of_last_run(storage, record))


def of_last_run(storage: Storage, record: dict[str, Any]) -> metrics.Families:
    """The metrics of a run that ended well, from its record and its stages."""
    books, name, said = Books(storage.root), record["recipe"]["name"], finished(record)
    books.enter(name for found in record["directories"].values() for name in found)
    moment = metrics.Moment(
        **said,
        recipe=name,
        started=said["last_success"] - record["seconds"],
        seconds=record["seconds"],
        is_done=True,
        downloads=record.get("downloads", {}).get("new", {}),
    )
    return metrics.families(books, metrics.Totals(metrics.left(storage, name)), moment)


def found_complete(recipe: "Recipe") -> None:
    """Tells node_exporter, where the recipe has a file for it, that the recipe was found complete now."""
    if (file := metrics.local_file(recipe.metrics_file)) is None:
        return
    storage = Storage(recipe.root)
    record = last_run(storage)
    now = {"run_id": time.strftime(STAMP, time.gmtime()), "seconds": 0.0}
    metrics.write_local(of_last_run(storage, {**record, **now}), file)
