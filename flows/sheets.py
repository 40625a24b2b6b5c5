"""The contact sheets of the report: what was dropped beside what stays, clusters, and queries beside their matches."""

from collections import defaultdict
from typing import Any

import numpy as np

from lvd.flows.collected import Cells, Gathered, Matches, Sources
from lvd.flows.run import Run
from lvd.infra.shards import StageDir, gather_rows
from lvd.tasks import charts, funnel, report, tallies
from lvd.tasks.contact_sheets import At, Groups, Pairing, Reservoir, Sheet, Shown, Thumbnail, first_rows, thumbnails
from lvd.tasks.content import blurring
from lvd.tasks.ledger_sample import FORGOTTEN

GROUPS_EACH = {"exact_duplicate": 4, "near_duplicate": 12, "copy": 14, "benchmark_copy": 12, "curated_copy": 12}
GROUP_TITLES = {
    "exact_duplicate": "Exact duplicates",
    "near_duplicate": "Near duplicates",
    "copy": "Copies",
    "benchmark_copy": "Copies of benchmark images",
    "curated_copy": "Copies of curated images",
}
SCREENED_EACH, SAMPLE_SIZE, LOST_EACH = 6, 30, 4
UNSEEN = {"nsfw", FORGOTTEN}  # what nobody needs to see, and what nobody may
QUERIES, QUERIES_EACH, MATCHES_EACH = 32, 8, 6  # of all collections together, of one at most, of a query
CLUSTERS, CLUSTER_IMAGES = 10, 9


SETTINGS = {
    "sample": ("neighbors", "collisions", "depth_per_neighbor"),
    "cluster": ("min_queries", "per_cluster", "max_images"),
    "balanced": ("target_images",),
}


def pictures(
    run: Run, sources: Sources, page: report.Report, hidden: dict[tuple[str, str], set[int]]
) -> dict[At, Thumbnail]:
    """Every picture that the page shows; each shard that holds one is read once. Where faces are blurred in what is
    published, they are in the pictures too.

    hidden: rows of collections that were taken down, which nobody is shown."""
    faces = run.recipe.screen.faces
    cover = blurring(faces, min_score=faces.blur_min_score, device=run.device) if faces else None
    rows: dict[tuple[str, str], set[int]] = defaultdict(set)
    for shown in page.shown():
        rows[shown.at.role, shown.at.name].add(shown.at.row)
    return {
        At(g.role, g.name, row): picture
        for g in sources.all()
        for row, picture in thumbnails(g.images(), rows[g.role, g.name] - hidden.get((g.role, g.name), set()), cover)
    }


def pool_image(row: int, note: str = "") -> Shown:
    return Shown(at=At("pool", "pool", row), note=note)


def duplicates(survivors: StageDir, groups: Groups) -> tuple[Sheet, ...]:
    """Groups of duplicates within the pool: the image that stayed, and what went for it."""
    reasons = [reason for reason in GROUPS_EACH if reason not in funnel.REFERENCE_REASONS]
    chosen = {reason: groups.chosen(reason, GROUPS_EACH[reason]) for reason in reasons}
    fates = survivors.shards()
    rows = first_rows(fates, {group["because_of"] for found in chosen.values() for group in found})
    ended = gather_rows(fates, np.array([*rows.values()], dtype=np.int64), ["reason"])["reason"].to_pylist()
    heads = {
        image_id: pool_image(row, f"stays, then {reason}" if reason else "stays")
        for (image_id, row), reason in zip(rows.items(), ended, strict=True)
    }
    return tuple(_group_sheet(groups, reason, chosen[reason], heads) for reason in reasons)


def decontamination(sources: Sources, groups: Groups) -> tuple[Sheet, ...]:
    """Reference images, and the pool images that went because they copy them."""
    chosen = {reason: groups.chosen(reason, GROUPS_EACH[reason]) for reason in funnel.REFERENCE_REASONS}
    wanted = {group["because_of"] for found in chosen.values() for group in found}
    heads: dict[str, Shown] = {}
    for gathered in sources.references:
        for image_id, row in first_rows(gathered.images(), wanted - heads.keys()).items():
            heads[image_id] = Shown(at=At(gathered.role, gathered.name, row), note=gathered.name)
    return tuple(_group_sheet(groups, reason, found, heads) for reason, found in chosen.items())


def _group_sheet(groups: Groups, reason: str, chosen: list[dict[str, Any]], heads: dict[str, Shown]) -> Sheet:
    pairings = []
    for group in chosen:
        others = tuple(pool_image(row["row"], f"{row['score']:.3f}") for row in group["rows"])
        head = heads.get(group["because_of"], Shown(at=None, note="not found"))
        pairings.append(Pairing(head=head, others=others, more=group["size"] - len(others)))
    known = "" if groups.share == 1 else f" in a {groups.share:.2g} share of all"
    order = "" if reason == "exact_duplicate" else ", the least similar first"
    text = f"{len(chosen)} of {len(groups.sizes(reason)):,} groups{known}{order}" if chosen else ""
    return Sheet(title=GROUP_TITLES[reason], text=text, pairings=tuple(pairings))


def clusters(cells: Cells, sizes: np.ndarray) -> Sheet:
    """Some clusters from the largest to the smallest, by the images nearest to their centroids."""
    chosen = tallies.spread_clusters(sizes, CLUSTERS)
    nearest = tallies.nearest_to_centroids(cells.cells.shards(), chosen, CLUSTER_IMAGES)
    pairings = [
        Pairing(
            head=None,
            others=tuple(pool_image(found["row"], f"{found['similarity']:.3f}") for found in nearest[cluster]),
            more=int(sizes[cluster]) - len(nearest[cluster]),
            title=f"cluster {cluster}, {sizes[cluster]:,} images",
        )
        for cluster in chosen
    ]
    text = f"{len(chosen)} clusters, from the largest to the smallest, with the similarity to the centroid"
    return Sheet(title="Nearest to the centroid", text=text if chosen else "", pairings=tuple(pairings))


def retrievals(sources: Sources, matches: Matches) -> tuple[report.Retrieval, ...]:
    """Every selection: its counts, its similarities, and queries beside what they retrieved."""
    each = max(2, min(QUERIES_EACH, QUERIES // max(1, len(matches.by_collection))))
    gathered = {g.name: g for g in sources.curated}
    return tuple(
        _retrieval(name, gathered.get(name), target, each if index * each < QUERIES else 0)
        for index, (name, target) in enumerate(matches.by_collection.items())
    )


def _retrieval(name: str, gathered: Gathered | None, target: StageDir, num_queries: int) -> report.Retrieval:
    """One selection; the balanced one is of no collection, and has no queries."""
    refs, account = target.shards(), target.account()
    counts, query_ids = tallies.match_overview(refs, num_queries)
    found = tallies.matches_of(refs, query_ids, MATCHES_EACH)
    rows = first_rows(gathered.images(), set(found)) if gathered else {}
    notes = account["notes"]
    pairings = []
    for query_id, match in found.items():
        at = At(gathered.role, gathered.name, rows[query_id]) if query_id in rows else None
        note = "query" if match["cluster_id"] is None else f"cluster {match['cluster_id']}"
        others = tuple(pool_image(row["row"], f"{row['similarity']:.3f}") for row in match["rows"])
        pairings.append(Pairing(head=Shown(at=at, note=note), others=others, more=match["size"] - len(others)))
    if notes["kind"] == "sample":
        to, text = (
            "the query",
            f"{len(pairings)} of {notes['queries']:,}: some at random, then the least similar matches",
        )
    else:
        to, text = "the centroid", f"{len(pairings)} of {notes['clusters']:,} clusters, with the query nearest to it"
    return report.Retrieval(
        name=name,
        notes=notes,
        settings={name: account["config"][name] for name in SETTINGS[notes["kind"]]},
        chart=charts.histogram(f"Matches by similarity to {to}", counts, tallies.SIMILARITY_EDGES),
        sheet=Sheet(title=f"Queries of {name}", text=text if pairings else "", pairings=tuple(pairings)),
    )


def screened(ended: Reservoir, losses: tuple[funnel.Loss, ...]) -> Sheet:
    """A sample of what each screening rule dropped, with the value that broke the rule."""
    pairings = []
    for loss in losses:
        if loss.stage == "screen" and loss.state == "dropped" and loss.reason not in UNSEEN:
            rows = ended.rows(loss.reason)[:SCREENED_EACH]
            others = tuple(pool_image(row["row"], f"{round(row['score'], 4):g}") for row in rows)
            pairings.append(
                Pairing(head=None, others=others, more=loss.count - len(others), title=f"{loss.reason}: {loss.meaning}")
            )
    return Sheet(title="Dropped by a rule", text="a sample, with the value", pairings=tuple(pairings))


def lost(ended: Reservoir, losses: tuple[funnel.Loss, ...]) -> dict[str, tuple[Shown, ...]]:
    """A few pictures of what was dropped for each reason; of those that nobody needs to see, none."""
    reasons = {loss.reason for loss in losses if loss.state == "dropped"} - UNSEEN
    rows = {reason: ended.rows(reason)[:LOST_EACH] for reason in sorted(reasons)}
    return {
        reason: tuple(pool_image(row["row"], _score(row["score"])) for row in found)
        for reason, found in rows.items()
        if found
    }


def sample(ended: Reservoir, reason: str, title: str, text: str) -> Sheet:
    """A sample of the pool images that ended for one reason."""
    rows = ended.rows(reason)
    others = tuple(pool_image(row["row"], _score(row["score"])) for row in rows)
    return Sheet(title=title, text=text, pairings=(Pairing(head=None, others=others),) if others else ())


def _score(score: float | None) -> str:
    return "" if score is None else f"{score:.3f}"
