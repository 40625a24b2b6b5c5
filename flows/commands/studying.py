"""Commands that measure: whether the curated set is better, and which thresholds and clusters suit your images."""

from typing import Annotated

import typer

study = typer.Typer(help="Which thresholds and how many clusters, on your own images.", no_args_is_help=True)


def evaluate(
    root: str,
    labelled: Annotated[
        list[str] | None, typer.Option("--labelled", help="A folder with a subfolder for each class; more than one.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Other features, beside the root's own.")] = None,
    weights: Annotated[str | None, typer.Option("--weights", help="The file of that model's weights.")] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="Whose section `embed` names other features.")] = None,
    sample: Annotated[
        int | None, typer.Option("--sample", min=2, help="Selected images that are looked at; more make it surer.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    out: Annotated[str, typer.Option("--out", help="The page; its figures lie beside it as JSON.")] = "evaluation.html",
) -> None:
    """Whether the curated set is better: k-NN and probe of its features, coverage beside random selections."""
    from lvd.flows import evaluating
    from lvd.flows.show_studies import show_evaluation

    folders, features = tuple(labelled or ()), {"model": model, "weights": weights, "recipe": recipe}
    show_evaluation(evaluating.evaluate(root, labelled=folders, **features, sample=sample, seed=seed, out=out))


@study.callback()
def studies() -> None:
    """Which thresholds and how many clusters, on your own images."""


@study.command("copies")
def study_copies(
    where: Annotated[str, typer.Argument(metavar="ROOT_OR_FOLDER", help="A root that was run, or a folder of images.")],
    pairs: Annotated[str | None, typer.Option("--pairs", help="Labelled pairs: left, right, is_copy.")] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="Whose model and thresholds; else the root's.")] = None,
    sample: Annotated[int, typer.Option("--sample", min=2, help="Images that are copied; more make it surer.")] = 500,
    out: Annotated[
        str, typer.Option("--out", help="The page; its figures lie beside it as JSON.")
    ] = "copies-study.html",
    seed: Annotated[int, typer.Option("--seed")] = 0,
) -> None:
    """Precision and recall of the copy threshold, by kind of change, with a recommendation."""
    from lvd.flows import studying
    from lvd.flows.show_studies import show_study

    show_study(studying.study_copies(where, pairs=pairs, recipe=recipe, sample=sample, out=out, seed=seed))


@study.command("clusters")
def study_clusters(
    root: Annotated[str, typer.Argument(metavar="ROOT", help="A root that was run.")],
    clusters: Annotated[
        str | None, typer.Option("--clusters", help="Which are tried: 100,200,400; else up to seven, by the sample.")
    ] = None,
    sample: Annotated[
        int, typer.Option("--sample", min=4, help="Embeddings taken; more allow more clusters.")
    ] = 20_000,
    out: Annotated[
        str, typer.Option("--out", help="The page; its figures lie beside it as JSON.")
    ] = "clusters-study.html",
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
) -> None:
    """How many clusters the pool needs: what several come to on a sample, and which one to take."""
    from lvd.flows import studying_clusters
    from lvd.flows.show_studies import show_cluster_study

    ks = studying_clusters.listed(clusters) if clusters is not None else None
    show_cluster_study(studying_clusters.cluster_study(root, clusters=ks, sample=sample, out=out, seed=seed))


COMMANDS = (evaluate,)
