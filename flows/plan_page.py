"""How a plan is shown: the composition, the loads, the schedule, and somebody else's run beside it."""

from collections.abc import Iterator

from rich.markup import escape
from rich.table import Table

from lvd.flows.loads import Load
from lvd.flows.plan import Plan
from lvd.flows.recipe import Comparison, Expectations
from lvd.flows.schedule import Schedule, Spread
from lvd.flows.show import size, table


def parts(plan: Plan) -> Iterator[Table | str]:
    """All that is printed of a plan, in its order."""
    yield composition(plan)
    yield work(plan)
    yield from notes(plan)
    yield timetable(plan)
    yield from schedule_said(plan.schedule, plan.recipe.plan)
    if plan.recipe.plan.compared_with is not None:
        yield comparison(plan, plan.recipe.plan.compared_with)
        if plan.recipe.plan.compared_with.note:
            yield escape(plan.recipe.plan.compared_with.note)


def composition(plan: Plan) -> Table:
    """What every curated collection gives, as the paper's Table 15 has it."""
    numbers = ("images", "retrieved", "final")
    rows = table(
        f"composition of {plan.recipe.name}", "name", "images", "retrieval", "retrieved", "final", numbers=numbers
    )
    for line in plan.composition:
        retrieved = "–" if line.retrieved is None else f"{line.retrieved:,}"
        rows.add_row(line.name, f"{line.images:,}", line.retrieval, retrieved, f"{line.final:,}")
    rows.add_row("sum", "", "", "", f"{sum(line.final for line in plan.composition):,}", style="bold")
    return rows


def work(plan: Plan) -> Table:
    """What every step reads, writes, holds and computes; columns of hours only where there are any."""
    shown = {"gpu_hours": "GPU-hours", "cpu_hours": "CPU-hours"}
    paces = [name for name in shown if any(getattr(load, name) is not None for load in plan.loads)]
    sizes = ("read", "written", "memory", "of a node")
    numbers = ("images", "shards", *sizes, *(shown[name] for name in paces), "hours")
    title = f"load, with {machines(plan.recipe.plan, paces)}"
    rows = table(title, "stage", "step", "", *numbers, "bound by", numbers=numbers)
    for load in plan.loads:
        hours = [hours_said(getattr(load, name)) for name in (*paces, "hours")]
        bytes_ = (load.read_bytes, load.written_bytes, load.memory_bytes, load.node_memory_bytes)
        shards = f"{load.shards:,}" if load.rounds == 1 else f"{load.rounds} × {load.shards:,}"
        rows.add_row(
            load.flow, load.stage, load.what, f"{load.images:,}", shards, *map(size, bytes_), *hours, load.bound_by
        )
    sums = [sum(load.read_bytes for load in plan.loads), sum(load.written_bytes for load in plan.loads)]
    largest = [max(load.memory_bytes for load in plan.loads), max(load.node_memory_bytes for load in plan.loads)]
    hours = [hours_said(sum(getattr(load, name) or 0.0 for load in plan.loads)) for name in (*paces, "hours")]
    rows.add_row("sum", "", "", "", "", *map(size, [*sums, *largest]), *hours, "", style="bold")
    return rows


def notes(plan: Plan) -> Iterator[str]:
    """What the numbers leave out, and which steps need more memory than a node has."""
    unknown = [load.stage for load in plan.loads if load.hours is None]
    if unknown:
        yield f"no pace is known of {', '.join(unknown)}: only the bytes are planned; lvd plan --profile measures it"
    most = plan.recipe.plan.node_memory_gb
    for load in plan.loads if most is not None else ():
        if load.node_memory_bytes > most * 1e9:
            at_once = "one process needs" if load.memory_bytes > most * 1e9 else "its processes need together"
            yield f"{load.stage}: {at_once} {size(load.node_memory_bytes)} of a node that has {most:,.0f} GB"


def timetable(plan: Plan) -> Table:
    """The time of every stage as simulated, beside what it would be with all slots busy to the end."""
    schedule, expect = plan.schedule, plan.recipe.plan
    numbers = ("all slots busy", "simulated", "5 %", "95 %", "share")
    title = f"schedule on {count(expect.nodes, 'node')}, simulated {count(schedule.trials, 'time')}"
    rows = table(title, "stage", *numbers, numbers=numbers)
    for flow, hours in schedule.hours_of.items():
        share = hours.median / schedule.hours.median if schedule.hours.median else 0.0
        rows.add_row(flow, span_said(busy_hours(plan.loads, flow)), *spread_said(hours), f"{share:.1%}")
    total = busy_hours(plan.loads, *schedule.hours_of)
    rows.add_row("makespan", span_said(total), *spread_said(schedule.hours), "", style="bold")
    return rows


def busy_hours(loads: tuple[Load, ...], *flows: str) -> float:
    """Hours of these stages with all slots busy to the end; of a step of unknown pace those of its bytes."""
    chosen = [load for load in loads if load.flow in flows and load.shards]
    return sum(load.shard_s * load.shards / min(load.slots, load.shards) * load.rounds for load in chosen) / 3600


def spread_said(spread: Spread) -> tuple[str, str, str]:
    return span_said(spread.median), span_said(spread.low), span_said(spread.high)


def schedule_said(schedule: Schedule, expect: Expectations) -> Iterator[str]:
    """How busy the nodes are, and what was assumed of them."""
    yield (
        f"nodes are busy {schedule.busy:.1%} of the time ({schedule.lost:.2%} of it computed in vain); "
        f"{schedule.failures:.1f} node failures a run"
    )
    failing = "no node fails"
    if expect.node_failures_per_hour:
        failing = (
            f"a node fails every {1 / expect.node_failures_per_hour:,.4g} h, is missed after "
            f"{expect.failure_noticed_s:g} s and back after {expect.node_back_s:g} s"
        )
    slow = f"{expect.straggler_share:.1%} of the groups of shards take {expect.straggler_slowdown:g} × as long"
    yield f"assumed  {slow}; {failing}"


def comparison(plan: Plan, other: Comparison) -> Table:
    """The simulated hours beside those of somebody else's run, with and without the stages that it does not count."""
    numbers = ("images", "hours", "GPUs", "GPU-hours", "images a second and GPU")
    rows = table("beside", "run", *numbers, numbers=numbers)
    hours = {name: spread.median for name, spread in plan.schedule.hours_of.items()}
    ours = {"this plan, all stages": plan.schedule.hours.median}
    if other.excludes:
        name = f"this plan without {', '.join(other.excludes)}"
        ours[name] = plan.schedule.hours.median - sum(hours.get(flow, 0.0) for flow in other.excludes)
    rows.add_row(other.name, *beside(other.images, other.hours, other.gpus))
    for name, of in ours.items():
        rows.add_row(name, *beside(plan.recipe.plan.pool_images, of, plan.recipe.plan.gpus))
    return rows


def beside(images: int, hours: float, gpus: int) -> tuple[str, ...]:
    """One row of the comparison. GPU-hours: of GPUs that are held, busy or not."""
    pace = f"{images / (hours * 3600 * gpus):,.1f}" if hours and gpus else "–"
    return f"{images:,}", hours_said(hours), f"{gpus:,}", hours_said(hours * gpus) if gpus else "–", pace


def machines(expected: Expectations, paces: list[str]) -> str:
    """The GPUs and cores that hours are reckoned with."""
    counts = {"gpu_hours": (expected.gpus, "GPU"), "cpu_hours": (expected.cores, "core")}
    said = " and ".join(count(*counts[name]) for name in paces)
    return f"{said} on {count(expected.nodes, 'node')}" if expected.nodes > 1 else said


def count(number: int, what: str) -> str:
    """'1 GPU', '160 GPUs'."""
    return f"{number:,} {what}{'s' if number != 1 else ''}"


def hours_said(hours: float | None) -> str:
    """Hours with as many digits as they need; a dash where they are not known."""
    if hours is None:
        return "–"
    if 0 < hours < 0.01:
        return "< 0.01"
    return f"{hours:,.1f}" if hours >= 1 or hours == 0 else f"{hours:.2g}"


def span_said(hours: float) -> str:
    """A time in the unit that suits it: '19.0 h', '44.6 min', '1.2 s'."""
    seconds = hours * 3600
    return f"{hours:,.1f} h" if hours >= 1 else f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"
