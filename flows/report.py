"""Gathers from storage what the report and the dataset card show, and writes both beside the published dataset."""

import time
from collections import Counter
from typing import Any

import numpy as np
import pyarrow.compute as pc
import yaml

from lvd.flows import accounts, copying, mapping, patches, sheets, versions
from lvd.flows.collected import Cells, Embedded, Matches, Sources
from lvd.flows.forgetting import hidden
from lvd.flows.run import Run
from lvd.infra.shards import StageDir, read_table
from lvd.tasks import card, charts, funnel, outcomes, report, tallies
from lvd.tasks.contact_sheets import Groups, Reservoir
from lvd.tasks.ledger_sample import Sampler
from lvd.tasks.reached import Domains, Rows, overlaps
from lvd.tasks.retrieve import BALANCED


def write_report(
    run: Run,
    published: versions.Published,
    sources: Sources,
    survivors: StageDir,
    vectors: Embedded,
    cells: Cells,
    matches: Matches,
    record: dict[str, Any],
) -> None:
    """Writes report.html, README.md (the dataset card), and as tables what came of every domain's candidates
    (domains.parquet) and which pool images copy which references (decontaminated.parquet).

    Cost at 10^9 images: the small columns of all images, the ledger and the cells are read once, the bytes of the
    shards that hold one of about 550 sampled pictures, and the vectors of these and of 48 more shards for the map.
    Memory: one shard's small columns, one batch of images, one shard of vectors, 20,000 groups, 8 bytes a match and
    a published image.
    """
    survey = Survey(run, published, sources, matches)
    record["endings"] = [(*ending, count) for ending, count in sorted(survey.endings.items())]
    page = gather(run, published, sources, survivors, cells, matches, record, survey)
    page = page.model_copy(update={"pictures": sheets.pictures(run, sources, page, hidden(sources, survivors))})
    page = page.model_copy(update=from_vectors(run, published, sources, vectors, cells, survey, page))
    directory = published.dataset.directory
    notes = survivors.account()["notes"]
    run.storage.write_bytes(f"{directory}/domains.parquet", outcomes.parquet(survey.outcomes))
    run.storage.write_bytes(f"{directory}/decontaminated.parquet", copying.decontaminated(sources, survivors, notes))
    run.storage.write_bytes(f"{directory}/report.html", report.render(page).encode())
    said = facts(run, page, survey).model_copy(update={"images": accounts.image_directories(sources)})
    run.storage.write_bytes(f"{directory}/{card.FACTS_FILE}", said.model_dump_json(indent=1).encode())
    run.storage.write_bytes(f"{directory}/README.md", card.render(said).encode())


def from_vectors(
    run: Run,
    published: versions.Published,
    sources: Sources,
    vectors: Embedded,
    cells: Cells,
    survey: "Survey",
    page: report.Report,
) -> dict[str, Any]:
    """What of the page is made of vectors: where images lie, and what the model sees."""
    shown = {one.at.row for one in page.shown() if one.at.role == "pool"}
    whose = (survey.domains, survey.published, survey.selected)
    places = mapping.places(sources, vectors, cells, *whose, shown, rng(run, 3))
    return {**dict(places), "patches": patches.seen(run, published.dataset, rng(run, 4))}


class Survey:
    """One pass over the ledger and the small columns of the images that it accounts for."""

    def __init__(self, run: Run, published: versions.Published, sources: Sources, matches: Matches) -> None:
        self.included = {c.name for c in run.recipe.curated if c.include}
        ledger = published.ledger.shards()
        sampler = Sampler(rng(run, 5))
        self.endings = tallies.endings(ledger, sampler)
        self.ledger = sampler.sample()
        self.selected = mapping.selections(matches)
        self.domains = Domains(self.selected)
        self.profile = tallies.Profile()
        self.groups = Groups(tuple(sheets.GROUPS_EACH))
        self.kept: Counter[str] = Counter()  # directory of images → published
        self.domains_of: dict[str, set[str]] = {}  # directory of images → domains of what is published of it
        self.ended = Reservoir(sheets.SAMPLE_SIZE, rng(run, 1))
        rows = [np.zeros(0, dtype=np.int64)]  # of the pool, that are published
        for gathered in (*(g for g in sources.curated if g.name in self.included), sources.pool):
            images, is_pool = gathered.images(), gathered.role == "pool"
            mine, ledger = ledger[: len(images)], ledger[len(images) :]
            for ref, table in tallies.with_fates(images, mine):
                self.profile.add(table, is_pool=is_pool)
                self.kept[ref.directory] += pc.sum(pc.equal(table["state"], "kept")).as_py() or 0
                tallies.add_domains(self.domains_of.setdefault(ref.directory, set()), table)
                if is_pool:
                    rows.append(table.filter(pc.equal(table["state"], "kept"))["row"].to_numpy())
                    self.domains.add(table)
                    self.groups.add(table)
                    self.ended.offer(table["reason"].to_numpy(), table.select(["row", "score"]))
        self.published = Rows("published", np.concatenate(rows))
        self.faces_blurred = tallies.faces_blurred(published.dataset.shards())
        self.outcomes = outcomes.outcomes(accounts.candidates(sources.pool))
        self.roles, self.retrieved_for = tallies.published_counts(published.dataset.shards())
        self.licenses = tallies.licenses(published.dataset.shards())


def rng(run: Run, purpose: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([run.recipe.seed, 0x4E, purpose]))


def gather(
    run: Run,
    published: versions.Published,
    sources: Sources,
    survivors: StageDir,
    cells: Cells,
    matches: Matches,
    record: dict[str, Any],
    survey: Survey,
) -> report.Report:
    """The whole page but for its pictures."""
    account = survivors.account()
    losses = funnel.losses(survey.endings)
    sizes = read_table(cells.sizes.shards()[0], ["size"])["size"].to_numpy()
    iterations = cells.centroids.account()["shard_notes"][0]["iterations"]
    by_domain = outcomes.per_domain(survey.outcomes)
    return report.Report(
        title=run.recipe.publish.title or run.recipe.name,
        name=run.recipe.name,
        version=published.version,
        date=time.strftime("%-d %B %Y, %H:%M UTC", time.gmtime(run.started)),
        root=run.storage.root,
        run_seconds=record["seconds"],
        states=published.states,
        published=dict(survey.roles),
        funnel=funnel.funnel(survey.endings),
        losses=losses,
        duplicates=sheets.duplicates(survivors, survey.groups),
        group_sizes=report.group_sizes(survey.groups),
        components=copying.components(survivors, account["notes"]),
        searches=copying.searches(account["notes"]),
        decontamination=sheets.decontamination(sources, survey.groups),
        thresholds=thresholds(run, account["notes"]),
        collections=accounts.collections(
            sources, survey.included, survey.kept, account["notes"]["per_reference"], survey.domains_of
        ),
        retrievals=sheets.retrievals(sources, matches),
        overlaps=overlaps(survey.selected),
        cluster_figures=report.cluster_figures(sizes, iterations),
        cluster_charts=(
            charts.ranked_sizes("Images of each cluster, the largest first", sizes),
            *charts.of_a_fit(iterations),
        ),
        clusters=sheets.clusters(cells, sizes),
        sample=sheets.sample(survey.ended, "retrieved", "Retrieved", "a sample, with the similarity that chose it"),
        screened=sheets.screened(survey.ended, losses),
        not_retrieved=sheets.sample(survey.ended, "not_retrieved", "Not retrieved", "a sample"),
        lost=sheets.lost(survey.ended, losses),
        ledger=survey.ledger,
        examples=accounts.examples(run, record["directories"], rng(run, 2)),
        formats=accounts.breakdown(survey.profile, "format"),
        num_bytes=(survey.profile.bytes_fetched, survey.profile.bytes_kept),
        short_edges=accounts.short_edges(survey.profile),
        domain_shares=accounts.domain_shares(survey.profile),
        domains=accounts.domains(survey.profile, by_domain),
        num_domains=len(by_domain),
        errors=accounts.errors(survey.outcomes),
        timings=tuple(report.Timing(**cost) for cost in record["cost"]),
        versions=account["versions"],
        recipe=yaml.safe_dump(record["recipe"], sort_keys=False, allow_unicode=True, width=110),
    )


def thresholds(run: Run, notes: dict[str, Any]) -> dict[str, float]:
    """What counted as a copy: the fingerprint's limits and the descriptor's similarities."""
    fingerprint = run.recipe.fingerprint
    return {
        "hash_distance": fingerprint.max_distance,
        "thumbnail_similarity": fingerprint.min_thumbnail_similarity,
        "copy_similarity": notes["thresholds"]["min_similarity"],
        "reference_similarity": notes["thresholds"]["benchmark_min_similarity"],
    }


def facts(run: Run, page: report.Report, survey: Survey) -> card.Facts:
    """What the dataset card says: nothing of where, when or how fast."""
    recipe, rules = run.recipe, run.recipe.screen
    blurred = {"blurred": survey.faces_blurred}
    return card.Facts(
        title=page.title,
        name=recipe.name,
        license=recipe.publish.license,
        roles=dict(survey.roles),
        states=page.states,
        funnel=page.funnel,
        losses=page.losses,
        collections=page.collections,
        retrieved_for={name: survey.retrieved_for[name] for name in sorted(survey.retrieved_for)},
        licenses=card.ranked(survey.licenses),
        policies={c.name: c.retrieve.model_dump() for c in recipe.curated if c.retrieve}
        | {BALANCED: {"kind": BALANCED, "target_images": recipe.retrieve.target_images}},
        collisions=recipe.retrieve.collisions,
        weights=recipe.retrieve.weights,
        semdedup=recipe.semdedup.model_dump() if recipe.semdedup else None,
        thresholds=page.thresholds,
        searches=page.searches,
        models={"copy descriptors": recipe.copies.model, "embeddings": recipe.embed.model},
        num_clusters=recipe.cluster.num_clusters,
        seed=recipe.seed,
        nsfw=rules.nsfw.model_dump(include={"model", "max_score"}) if rules.nsfw else None,
        faces=rules.faces.model_dump(include={"model", "blur_min_score"}) | blurred if rules.faces else None,
    )
