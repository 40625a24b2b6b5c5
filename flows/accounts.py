"""The tables of the report: collections, failures, sizes and domains, and what every stage cost."""

from collections import Counter
from typing import Any

import numpy as np

from lvd.flows.collected import Gathered, Part, Sources
from lvd.flows.run import Run
from lvd.infra.shards import ShardRef, StageDir
from lvd.tasks import report, tallies

REJECTING = ("crawl", "download", "screen", "descriptors", "embed")  # the stages that write rejects
DECISIONS = ("screened", "unique", "copies", "selection")  # computed as one, whatever the number of their shards
EXAMPLES_EACH, TOP_DOMAINS = 2, 20
ORDER = (
    *("crawl", "download", "screen", "screened", "fingerprint", "unique", "descriptors", "neighbours", "references"),
    *("copies", "embed", "centroids", "cluster", "candidates", "retrieve", "selection", "ledger", "curated"),
)


def collections(
    sources: Sources, included: set[str], kept: Counter[str], per_reference: dict[str, int]
) -> tuple[report.Collection, ...]:
    """The sources of the pool, the benchmarks and the curated collections.

    kept: directory of images → published images; included: the curated collections that are published.
    """
    found: list[report.Collection] = []
    for source in dict.fromkeys(part.partition.source for part in sources.pool.parts):
        parts = tuple(part for part in sources.pool.parts if part.partition.source == source)
        found.append(_collection("pool", source.source or source.path.rstrip("/").rsplit("/", 1)[-1], parts, kept))
    for gathered in sources.references:
        published = kept if gathered.name in included else None
        line = _collection(gathered.role, gathered.name, gathered.parts, published)
        found.append(line.model_copy(update={"dropped_for_it": per_reference.get(gathered.name)}))
    return tuple(found)


def _collection(role: str, name: str, parts: tuple[Part, ...], kept: Counter[str] | None) -> report.Collection:
    return report.Collection(
        role=role,
        name=name,
        kind=parts[0].partition.source.kind,
        path=parts[0].partition.source.path,
        listed=sum(part.manifest.account()["rows_in"] for part in parts),
        fetched=sum(part.images.account()["rows"] for part in parts),
        kept=None if kept is None else sum(kept[part.images.directory] for part in parts),
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


def domains(profile: tallies.Profile, listed: Counter[str]) -> tuple[report.Domain, ...]:
    """The domains that list most."""
    fetched, kept = profile.fetched["domain"], profile.kept["domain"]
    top = sorted(listed.items(), key=lambda pair: (-pair[1], pair[0]))[:TOP_DOMAINS]
    return tuple(report.Domain(name=name, listed=n, fetched=fetched[name], kept=kept[name]) for name, n in top)


def timings(run: Run, record: dict[str, Any]) -> tuple[report.Timing, ...]:
    """What every stage cost, in the order of the chain."""
    found = []
    for stage, names in record["directories"].items():
        accounts = [stage_dir(run, name).account() for name in names]
        label = "ledger" if stage.startswith("curated/") else stage
        shards, computed = sum(len(a["shard_rows"]) for a in accounts), record["computed"].get(stage, 0)
        found.append(
            report.Timing(
                stage=label,
                directories=tuple(names),
                shards=shards,
                computed=shards if computed and stage in DECISIONS else computed,
                **{key: sum(account[key] for account in accounts) for key in ("rows_in", "rows", "seconds")},
                peak_memory_mb=max((account["peak_memory_mb"] for account in accounts), default=0),
            )
        )
    place = {stage: index for index, stage in enumerate(ORDER)}
    return tuple(sorted(found, key=lambda timing: place.get(timing.stage, len(ORDER))))


def manifests(gathered: Gathered) -> list[ShardRef]:
    return [ref for part in gathered.parts for ref in part.manifest.shards()]


def stage_dir(run: Run, name: str) -> StageDir:
    stage, fingerprint = name.rsplit("/", 1)
    return StageDir(root=run.storage.root, stage=stage, fingerprint=fingerprint)
