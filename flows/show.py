"""What the command line shows: tables, and the paths to open next."""

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lvd.flows.miniature import folder_of
from lvd.flows.progress import pace
from lvd.flows.recipe import Recipe, load
from lvd.flows.run import Snapshot
from lvd.infra.errors import InputError
from lvd.infra.storage import Storage

STAGES = ("crawl", "download", "screen", "fingerprint", "copies", "embed", "cluster", "retrieve", "publish")
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)


def table(title: str, *columns: str, numbers: tuple[str, ...] = ()) -> Table:
    result = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False)
    for column in columns:
        result.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return result


def show_snapshot(snapshot: Snapshot) -> None:
    """The account of a run: what was computed, the ledger's states, and where to look."""
    storage = Storage(snapshot.root)
    computed = sum(snapshot.computed.values())
    if computed:
        stages = ", ".join(f"{stage} {count}" for stage, count in snapshot.computed.items() if count)
        console.print(f"computed {computed} shards in {snapshot.seconds:.1f} s ({stages})")
    else:
        console.print(f"nothing was computed: every stage was found complete ({snapshot.seconds:.1f} s)")
    for remark in snapshot.remarks:
        console.print(remark, style="bold", markup=False)
    rows = table(f"ledger of {snapshot.version}", "state", "candidates", "share", numbers=("candidates", "share"))
    for state, count in snapshot.ledger.items():
        rows.add_row(state, f"{count:,}", f"{count / max(snapshot.candidates, 1):.1%}")
    rows.add_row("candidates", f"{snapshot.candidates:,}", "balanced", style="bold")
    console.print(rows)
    console.print(f"dataset  {storage.uri(snapshot.curated)}")
    console.print(f"report   {storage.uri(snapshot.curated)}/{snapshot.report}")
    console.print(f"ledger   {storage.uri(snapshot.curated)}/ledger")
    for alert in snapshot.alerts:
        console.print(f"alert    {escape(alert.line)}", style="bold")


def show_answers(root: str, settings: list[str] | None) -> None:
    """How the ledger compares with what was planted in the miniature web."""
    from lvd.flows.inquiry import last_run
    from lvd.infra.shards import StageDir, read_table
    from lvd.tests.miniature import Miniature, check

    recipe = load("mini", root=root, settings=settings or ())
    last = last_run(Storage(recipe.root))
    ledger = StageDir(root=recipe.root, stage=last["curated"], fingerprint="ledger")
    rows = [row for ref in ledger.shards() for row in read_table(ref).to_pylist() if row["role"] == "pool"]
    score = check(Miniature.load(folder_of(recipe.root, recipe.miniature.model_dump())), rows)
    found = table("planted in the miniature web", "what", "found", numbers=("found",))
    found.add_row("exact duplicates dropped", f"{score.exact_recall:.1%}")
    found.add_row("near copies dropped", f"{score.near_recall:.1%}")
    found.add_row("mirrored copies dropped", f"{score.mirrored_recall:.1%}")
    found.add_row("strongly cropped copies dropped", f"{score.strong_crop_recall:.1%}")
    found.add_row("unrelated images dropped", f"{score.unrelated_dropped:.1%}")
    found.add_row("copies of benchmark images left", str(score.benchmark_survivors))
    found.add_row("faults with another reason than planted", str(len(score.faults_wrong)))
    console.print(found)


def show_plan(recipe: Recipe) -> None:
    """The composition, the loads of the steps, the simulated schedule, and the run that the recipe compares it with."""
    from lvd.flows.plan import planned
    from lvd.flows.plan_page import parts

    for part in parts(planned(recipe)):
        console.print(part)


def show_profiled_plan(recipe: Recipe, images: int, out: str | None) -> None:
    """What was measured on this machine, and the plan by it. out: a file that keeps it.

    Raises InputError, before anything is measured, if that file cannot be written.
    """
    from lvd.flows.profile import profile

    file = Path(out) if out is not None else None
    if file is not None and (file.is_dir() or not file.parent.is_dir()):
        raise InputError(f"--profile-out must be a file in a folder that exists, was {out!r}: name another")
    with Console(stderr=True).status("measuring images and models"):
        measured = profile(recipe, images)
    show_profile(measured)
    if file is not None:
        try:
            file.write_text(measured.as_yaml(recipe.plan), encoding="utf-8")
        except OSError as error:
            raise InputError(f"--profile-out must be a file that can be written, was {out!r}: {error}") from error
        console.print(f"kept     {escape(str(file))}")
    show_plan(recipe.model_copy(update={"plan": measured.expectations(recipe.plan)}))


def show_profile(profile: Any) -> None:
    """What was measured, on what, and how."""
    numbers = ("images", "a second", "device busy", "waiting for data", "values")
    rows = table(f"measured on {profile.images:,} images", "what", "model", "of", *numbers, numbers=numbers)
    rows.add_row("screen", "–", "one core", f"{profile.images:,}", pace(profile.screened_per_core_second), *"–––")
    for one in (profile.descriptors, profile.embeddings):
        shares = (f"{share:.0%}" for share in (one.busy, one.waiting))
        of = "one GPU" if one.is_on_gpu else "one core"
        how = f"{one.model}, {one.precision}, batches of {one.batch_size}"
        rows.add_row(one.stage, how, of, f"{one.images:,}", pace(one.per_second), *shares, str(one.values))
    console.print(rows)
    console.print(
        f"images   from {', '.join(escape(name) for name in profile.sources)}: {size(profile.mean_image_bytes)} each"
    )
    console.print(f"machine  {escape(profile.machine)}")
    for note in profile.notes:
        console.print(f"note     {escape(note)}")


def size(num_bytes: float) -> str:
    """1,234,567 bytes as '1.2 MB'."""
    units = ["B", "kB", "MB", "GB", "TB", "PB"]
    while num_bytes >= 1000 and len(units) > 1:
        num_bytes /= 1000
        units.pop(0)
    return f"{num_bytes:.1f} {units[0]}"


def show_status(root: str) -> None:
    from lvd.flows.inquiry import directories, last_run

    rows = table(
        root, "stage", "directory", "state", "used by the last run", "rows", "seconds", numbers=("rows", "seconds")
    )
    for found in directories(root):
        used = "yes" if found.used else "no: stale"
        rows.add_row(found.stage, found.name, found.state, used, f"{found.rows:,}", f"{found.seconds:.1f}")
    console.print(rows)
    last = last_run(Storage(root))
    console.print(f"last run {last['run_id']}: {last['curated']}" if last else "no run has finished yet")


def show_why(root: str, key: str) -> None:
    """One paragraph for every candidate of that key: what it passed, where it ended, because of which other image."""
    from lvd.flows.inquiry import fates_of, last_run
    from lvd.flows.show_takedown import show_record

    rows, last = fates_of(root, key), last_run(Storage(root))
    if not rows:
        show_record(root, {"key": key, "image_id": key, "stage": "", "state": ""})
    first = STAGES.index("embed") if "imported" in last["directories"] else 0  # a run over vectors begins there
    for row in rows:
        origin = f"({row['role']}, {row['source'] or 'no source'})"
        console.print(f"[bold]{escape(row['key'])}[/bold]  image {row['image_id'] or '–'}  {origin}")
        passed = STAGES[first : STAGES.index(row["stage"])] if row["stage"] in STAGES else ()
        if passed:
            console.print(f"  passed {', '.join(passed)}")
        console.print(f"  {row['state']} at {row['stage']}: {row['reason']}{score(row)}")
        show_record(root, row)
        if row["because_of"]:
            console.print(f"  because of {row['because_of']}: {escape(row['cause'] or 'no longer listed')}")


def score(row: dict[str, Any]) -> str:
    return "" if row["score"] is None or row["score"] != row["score"] else f", score {row['score']:.4f}"


def show_findings(root: str, images: list[str], neighbours: int, as_json: bool) -> None:
    """A paragraph for every picture: the verdict, the ledger's rows with its bytes, copies, neighbours, cluster.

    Raises InputError at the end if none of them could be read.
    """
    from lvd.flows.finding import find

    findings = find(root, images, neighbours=neighbours)
    if as_json:
        console.print_json(json.dumps([found.model_dump(mode="json") for found in findings], ensure_ascii=False))
    else:
        for found in findings:
            show_finding(found)
    if findings and all(found.error for found in findings):
        raise InputError(f"IMAGE must be a picture or a folder of pictures, none of the {len(findings)} could be read")


def show_finding(found: Any) -> None:
    """One picture."""
    if found.error:
        console.print(f"[bold]{escape(found.path)}[/bold]\n  no picture: {escape(found.error)}")
        return
    console.print(f"[bold]{escape(found.path)}[/bold]  image {found.image_id}\n  {escape(found.verdict)}")
    for row in found.candidates:
        because = f", because of {row['cause'] or row['because_of']}" if row["because_of"] else ""
        console.print(
            f"  bytes   {escape(row['key'])}: {row['state']} at {row['stage']}: {row['reason']}{escape(because)}"
        )
    for image in found.copies:
        console.print(f"  copy    {image.similarity:.4f}  {escape(image.name)} (by {image.by}){said(image)}")
    if found.nearest:
        console.print(f"  below   {found.nearest.similarity:.4f}  {escape(found.nearest.name)}{said(found.nearest)}")
    for image in found.neighbours:
        console.print(f"  like    {image.similarity:.4f}  {escape(image.name)}{said(image)}")
    if found.cluster:
        console.print(f"  cluster {found.cluster.cluster_id}, {found.cluster.similarity:.4f} to its centroid")


def said(image: Any) -> str:
    """What became of a stored image, if the ledger has it."""
    return f": {escape(image.fate)}" if image.fate else ""


def show_explorer(root: str, *, export: str | None, port: int, **chosen: Any) -> None:
    """The explorer until it is interrupted; or the file for one, and how it is opened."""
    from lvd.flows import exploring

    if export is None:
        exploring.explore(root, **chosen, port=port, say=console.print)
        return
    rows = exploring.export(root, Path(export), **chosen)
    console.print(f"{rows:,} images in {escape(export)}; to look at them:")
    console.print(escape(f"  uvx embedding-atlas {' '.join(exploring.arguments(export, port))}"))


def show_models(filter_: str) -> None:
    from lvd.tasks.models import available

    rows = table("models", "name", "kind", "values", "note", numbers=("values",))
    for name, kind, dim, note in available():
        rows.add_row(name, kind, str(dim), note)
    console.print(rows)
    if filter_:
        import timm

        for name in timm.list_models(filter_, pretrained=True):
            console.print(name)
