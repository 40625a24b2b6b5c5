"""The tables of the report: collections, failures, sizes and domains, and what every stage cost."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from lvd.flows.collected import Gathered, Part, Sources
from lvd.flows.run import Run
from lvd.infra.shards import ShardRef, StageDir
from lvd.tasks import outcomes, report, tallies
from lvd.tasks.outcomes import FETCHED

REJECTING = ("crawl", "download", "screen", "content", "descriptors", "embed")  # the stages that write rejects
# computed as one, whatever the number of their shards
DECISIONS = (
    "choices",
    "screened",
    "withheld",
    "unique",
    "copies",
    "components",
    "decontaminated",
    "remaining",
    "parents",
    "taken",
    "wanting",
    "retrieve",
    "selection",
)
EXAMPLES_EACH, TOP_DOMAINS, SHARED_DOMAINS = 2, 20, 12
ORDER = (
    *(
        "links",
        "verdicts",
        "choices",
        "crawl",
        "download",
        "content",
        "screen",
        "screened",
        "marked",
        "withheld",
        "hash-fit",
        "fingerprint",
        "unique",
    ),
    *(
        "descriptors",
        "background",
        "adjusted",
        "cells",
        "probes",
        "queries",
        "truth",
        "neighbours",
        "references",
        "copies",
        "components",
    ),
    *(
        "decontaminated",
        "remaining",
        "withdrawn",
        "imported",
        "embed",
        "sampled",
        "fit",
        "sums",
        "centroids",
        "parents",
        "cluster",
        "sizes",
    ),
    *("lists", "alike", "duplicates", "quotas", "drawn", "nearest", "candidates", "taken", "wanting", "retrieve"),
    *("selection", "ledger", "curated", "patches"),
)


def collections(
    sources: Sources,
    included: set[str],
    kept: Counter[str],
    per_reference: dict[str, int],
    domains: dict[str, set[str]],
) -> tuple[report.Collection, ...]:
    """The sources of the pool, the benchmarks and the curated collections.

    kept: directory of images → published images, domains: → theirs; included: the curated collections that are
    published.
    """
    found: list[report.Collection] = []
    for parts in by_source(sources.pool):
        source = parts[0].partition.source
        found.append(
            _collection("pool", source.source or source.path.rstrip("/").rsplit("/", 1)[-1], parts, kept, domains)
        )
    for gathered in sources.references:
        published = kept if gathered.name in included else None
        line = _collection(gathered.role, gathered.name, gathered.parts, published, domains)
        found.append(line.model_copy(update={"dropped_for_it": per_reference.get(gathered.name)}))
    return tuple(found)


def by_source(pool: Gathered) -> list[tuple[Part, ...]]:
    """The partitions of every source of the pool."""
    sources = dict.fromkeys(part.partition.source for part in pool.parts)
    return [tuple(part for part in pool.parts if part.partition.source == source) for source in sources]


def image_directories(sources: Sources) -> tuple[tuple[str, ...], ...]:
    """Where the images of each of the `collections` lie."""
    each = [*by_source(sources.pool), *(gathered.parts for gathered in sources.references)]
    return tuple(tuple(dict.fromkeys(part.images.directory for part in parts)) for parts in each)


def _collection(
    role: str, name: str, parts: tuple[Part, ...], kept: Counter[str] | None, domains: dict[str, set[str]]
) -> report.Collection:
    whose = [part.images.directory for part in parts]
    return report.Collection(
        role=role,
        name=name,
        kind=parts[0].partition.source.kind,
        path=parts[0].partition.source.path,
        listed=sum(part.manifest.account()["rows_in"] for part in parts),
        fetched=sum(part.images.account()["rows"] for part in parts),
        kept=None if kept is None else sum(kept[directory] for directory in whose),
        domains=None if kept is None else len(set().union(*(domains.get(directory, ()) for directory in whose))),
    )


def examples(run: Run, directories: dict[str, list[str]], rng: np.random.Generator) -> tuple[report.Example, ...]:
    """A few rejects of every reason, with their errors."""
    shards = [
        ref for stage in REJECTING for name in directories.get(stage, []) for ref in stage_dir(run, name).shards()
    ]
    sample = tallies.rejected_examples(shards, EXAMPLES_EACH, rng)
    return tuple(report.Example(**row) for reason in sample.names() for row in sample.rows(reason))


def breakdown(profile: tallies.Profile, name: str) -> tuple[report.Breakdown, ...]:
    """The values of a property, the most frequent first."""
    before, after = profile.fetched[name], profile.kept[name]
    values = sorted(before | after, key=lambda value: (-before[value], -after[value], value))
    return tuple(report.Breakdown(name=value, before=before[value], after=after[value]) for value in values)


def short_edges(profile: tallies.Profile) -> tuple[report.Breakdown, ...]:
    before, after = profile.fetched["short_edge"], profile.kept["short_edge"]
    names = enumerate(tallies.short_edge_names())
    lines = [report.Breakdown(name=name, before=before[bin_], after=after[bin_]) for bin_, name in names]
    return tuple(line for line in lines if line.before or line.after)


def domain_shares(profile: tallies.Profile) -> tuple[report.Breakdown, ...]:
    """The domains of most fetched images, and all others together, before and after."""
    before, after = profile.fetched["domain"], profile.kept["domain"]
    top = sorted(before, key=lambda name: (-before[name], name))[:SHARED_DOMAINS]
    lines = [report.Breakdown(name=name, before=before[name], after=after[name]) for name in top]
    sides = (("fetched", before), ("kept", after))
    rest = [profile.with_domain[side] - sum(counts[name] for name in top) for side, counts in sides]
    others = [report.Breakdown(name="all others", before=rest[0], after=rest[1])] if any(rest) else []
    return tuple([*lines, *others]) if top else ()


def domains(profile: tallies.Profile, found: dict[str, Counter[str]]) -> tuple[report.Domain, ...]:
    """The domains that list most; found: domain → reason → candidates, those with most candidates first."""
    kept = profile.kept["domain"]
    return tuple(
        report.Domain(
            name=name,
            listed=reasons.total(),
            fetched=reasons[FETCHED],
            kept=kept[name],
            lost={reason: n for reason, n in reasons.most_common() if reason != FETCHED},
        )
        for name, reasons in islice(found.items(), TOP_DOMAINS)
    )


def errors(table: pa.Table) -> tuple[report.Outcome, ...]:
    """What asking for the images came to, in how many domains."""
    return tuple(
        report.Outcome(stage="download", state="", reason=reason, count=candidates, domains=domains)
        for reason, candidates, domains in outcomes.per_error(table)
    )


def timings(run: Run, record: dict[str, Any]) -> tuple[report.Timing, ...]:
    """What every stage cost, in the order of the chain."""
    found = []
    for stage, names in record["directories"].items():
        accounts = [stage_dir(run, name).account() for name in names]
        label = "ledger" if stage.startswith("curated/") else stage
        shards = sum(len(account["shard_rows"]) for account in accounts)
        decided = sum(len(account["shard_rows"]) for account in accounts if account["ended_at"] >= run.started)
        cost: Counter[str] = Counter()
        for account in accounts:
            cost.update(account.get("cost", {}))
        found.append(
            report.Timing(
                stage=label,
                directories=tuple(names),
                shards=shards,
                computed=decided if stage in DECISIONS else record["computed"].get(stage, 0),
                **{key: sum(account[key] for account in accounts) for key in ("rows_in", "rows", "seconds")},
                peak_memory_mb=max((account["peak_memory_mb"] for account in accounts), default=0),
                read_bytes=cost["read_bytes"],
                written_bytes=cost["written_bytes"],
                gpu_seconds=cost["gpu_seconds"],
            )
        )
    place = {stage: index for index, stage in enumerate(ORDER)}
    return tuple(sorted(found, key=lambda timing: place.get(timing.stage, len(ORDER))))


def candidates(gathered: Gathered) -> Iterator[tuple[ShardRef, ShardRef]]:
    """Every shard of the manifests with its shard of images."""
    for part in gathered.parts:
        yield from zip(part.manifest.shards(), part.images.shards(), strict=True)


def stage_dir(run: Run, name: str) -> StageDir:
    stage, fingerprint = name.rsplit("/", 1)
    return StageDir(root=run.storage.root, stage=stage, fingerprint=fingerprint)
