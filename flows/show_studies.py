"""What the command line shows of studies and evaluations: figures, what they recommend, and where the page lies."""

from typing import Any

from rich.markup import escape

from lvd.flows.show import console, table


def show_study(summary: Any) -> None:
    """The recommended threshold beside the one that is used, and what either finds."""
    method = summary.methods[0]
    found = method.recommended
    doubt = "" if found.is_shown else " (this sample is too small to show it)"
    console.print(
        f"{method.name}: threshold now {method.threshold:.3f}, recommended {found.threshold:.3f}{doubt}; "
        f"precision at least {found.precision_low:.1%}, recall {found.recall:.1%}"
    )
    console.print(f"{summary.set_aside} images set aside as alike already, {summary.undecodable} undecodable")
    rows = table("recall", "copies", "now", "recommended", numbers=("now", "recommended"))
    for name, shares in method.shares.items():
        rows.add_row(name, *(f"{share:.1%}" for share in shares))
    console.print(rows)
    console.print(f"page     {summary.page}\nfigures  {summary.figures}")


def show_cluster_study(summary: Any) -> None:
    """What several numbers of clusters come to, and which one is recommended, with the reason."""
    names = {"stability": "stability", "adjusted_information": "labels"}
    names |= {name: name for name in ("recall", "precision", "agreement")}
    columns = ("clusters", "objective", "imbalance", *names.values())
    rows = table(f"{summary.sample:,} of {summary.pool_images:,} embeddings", *columns, "", numbers=columns)
    for level in summary.levels:
        values = [getattr(level, name) for name in names]
        cells = ["–" if value is None else f"{value:.3f}" for value in values]
        mark = "chosen" if level.num_clusters == summary.choice.num_clusters else ""
        rows.add_row(f"{level.num_clusters:,}", f"{level.objective:.4f}", f"{level.imbalance:.2f}", *cells, mark)
    console.print(rows)
    console.print(escape(summary.choice.why))
    if summary.recommended:
        now = f"; the recipe has {summary.clusters_now:,}" if summary.clusters_now else ""
        console.print(f"recommended for the pool: {summary.recommended:,}{now}")
    console.print(f"page     {summary.page}\nfigures  {summary.figures}")


def show_evaluation(summary: Any) -> None:
    """What the selection covers beside random ones, and how well features tell classes."""
    from lvd.flows.evaluation_page import MEASURES, said, verdict

    for note in summary.notes:
        console.print(f"note     {escape(note)}")
    columns = ("selection", "random", "difference")
    title = f"{summary.selected:,} selected images beside random selections of {summary.survivors:,}"
    rows = table(title, "reference images", "kind", "measure", *columns, "says", numbers=columns)
    spaces = {one.features for one in summary.coverage}
    named = (f"{one.references}, {one.features}" if len(spaces) > 1 else one.references for one in summary.coverage)
    cases = [(name, one.kind, one.measures) for name, one in zip(named, summary.coverage, strict=True)]
    cases += [(f"{summary.clusters:,} clusters", "draws", summary.spread)] if summary.spread else []
    for references, kind, measures in cases:
        for name, found in measures.items():
            both = (said(found.selection, name), said(found.random, name), said(found.difference, name, "+"))
            rows.add_row(escape(references), kind, MEASURES[name][0], *both, verdict(found.difference))
    if cases:
        console.print(rows)
    for one in summary.labelled:
        ks = [f"{k}-NN" for k in one.told[0].knn]
        counted = f"{one.classes:,} classes, {one.train:,} to learn from, {one.test:,} to test"
        rows = table(f"{escape(one.name)}: {counted}", "features", *ks, "probe", numbers=(*ks, "probe"))
        for told in one.told:
            rows.add_row(escape(told.features), *(said(share, "") for share in (*told.knn.values(), told.probe)))
        if one.differences:
            rows.add_row("difference", *(said(share, "", "+") for share in one.differences.values()))
        console.print(rows)
    console.print(f"page     {summary.page}\nfigures  {summary.figures}")
