"""`lvd …`: the command line. Exit codes: 0 done; 2 the user must act (one line); 1 a defect."""

import os
import sys
from typing import Annotated

import typer

from lvd.flows.server import ServerAway
from lvd.infra.errors import InputError, RetryableError, ShardError

app = typer.Typer(
    help="From a web crawl and a few curated image collections to a training set, the way LVD-142M was made.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
study = typer.Typer(help="Which thresholds and how many clusters, on your own images.", no_args_is_help=True)
app.add_typer(study, name="study")
Root = Annotated[
    str | None, typer.Option("--root", help="Where everything lies: a folder or a URI such as s3://bucket/lvd.")
]
Settings = Annotated[list[str] | None, typer.Option("--set", help="Overrides a field: copies.min_similarity=0.65")]


def main() -> None:
    """Runs a command and turns what goes wrong into an exit code."""
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_INTERNAL_LOGGING_LEVEL", "CRITICAL")  # of every event that is lost
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "7")  # waits 2, 4, … 128 s, each ± 20 %: at least 200 s
    os.environ.setdefault("PREFECT_CLIENT_RETRY_EXTRA_CODES", "500,504")  # 500: its database is away
    # A worker process that begins during an outage would fail at that check; `server.ask` does it, once.
    os.environ.setdefault("PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED", "false")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except ServerAway as error:
        sys.stderr.write(f"lvd: {error}\n")
        sys.stderr.flush()
        os._exit(1)  # else Prefect offers the server every event that is left, some seconds for each
    except InputError as error:
        sys.stderr.write(f"lvd: {error}\n")
        sys.exit(2)
    except (ShardError, RetryableError) as error:
        sys.stderr.write(f"lvd: {error}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("lvd: stopped; the same command goes on where it was\n")
        sys.exit(130)


@app.command()
def demo(
    root: Annotated[str, typer.Option("--root", help="A folder of its own.")] = "demo", settings: Settings = None
) -> None:
    """The miniature web, served on loopback, curated end to end, and where to look."""
    from lvd.flows.show import show_answers

    run_recipe("mini", root, settings)
    show_answers(root, settings)


@app.command()
def run(recipe: str, root: Root = None, settings: Settings = None) -> None:
    """Curates by a recipe: a YAML file, or the name of one that comes with lvd."""
    run_recipe(recipe, root, settings)


def run_recipe(recipe: str, root: str | None, settings: list[str] | None) -> None:
    """The flow, here and now; without Prefect if there is nothing left to compute."""
    from lvd.flows.recipe import load
    from lvd.flows.show import show_snapshot

    parsed = load(recipe, root=root, settings=settings or ())
    from lvd.flows.curate import check, curate, look
    from lvd.flows.preflight import check_models, check_root
    from lvd.flows.run import Run, Snapshot

    check_models(parsed)
    check_root(Run(parsed))
    snapshot = look(parsed)
    if snapshot is None:
        check(Run(parsed))
        from lvd.flows.progress import log_lines
        from lvd.flows.server import prefect_server

        log_lines()
        with prefect_server():
            snapshot = Snapshot(**curate(recipe=recipe, root=root, settings=settings))
    show_snapshot(snapshot)


@app.command()
def plan(
    recipe: str,
    root: Root = None,
    settings: Settings = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Measures image sizes and paces here first, and plans with them.")
    ] = False,
    images: Annotated[int, typer.Option("--images", min=1, help="How many images are measured, at most.")] = 1000,
    profile_out: Annotated[
        str | None, typer.Option("--profile-out", help="A file for what was measured: YAML to paste below `plan:`.")
    ] = None,
) -> None:
    """What a recipe comes to: composition, shards, bytes, GPU-hours or CPU-hours. Nothing is run."""
    from lvd.flows.recipe import load
    from lvd.flows.show import show_plan, show_profiled_plan

    parsed = load(recipe, root=root, settings=settings or ())
    if profile:
        show_profiled_plan(parsed, images, profile_out)
    elif profile_out is not None:
        raise InputError(f"--profile-out needs --profile, was {profile_out!r} without it: add --profile")
    else:
        show_plan(parsed)


@app.command()
def status(root: str) -> None:
    """What is there, what is complete, what the last run no longer uses."""
    from lvd.flows.show import show_status

    show_status(root)


@app.command()
def why(key: str, root: Annotated[str, typer.Option("--root")] = "demo") -> None:
    """The fate of a URL, a source path or an image id: where it went, its score, because of which other image."""
    from lvd.flows.show import show_why

    show_why(root, key)


@app.command()
def find(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="A picture, or a folder of pictures.")],
    root: Annotated[str, typer.Option("--root")] = "demo",
    neighbours: Annotated[int, typer.Option("--neighbours", min=0, max=1000, help="How many like it are listed.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="For machines: a list of findings.")] = False,
) -> None:
    """Whether a picture, or a copy of it, is in the pool or the published set; and what is like it."""
    from lvd.flows.show import show_findings

    show_findings(root, images, neighbours, as_json)


@app.command()
def forget(
    url: Annotated[list[str] | None, typer.Option("--url", help="Its address, or its key in the ledger.")] = None,
    domain: Annotated[list[str] | None, typer.Option("--domain", help="All that lies there and below it.")] = None,
    image_id: Annotated[list[str] | None, typer.Option("--image-id", help="As `lvd find` tells it.")] = None,
    image: Annotated[list[str] | None, typer.Option("--image", help="A file with the picture.")] = None,
    list_: Annotated[
        str | None, typer.Option("--list", help="An opt-out list: a URL, a domain or an image id a line.")
    ] = None,
    reason: Annotated[str | None, typer.Option("--reason", help="Kept in the record.")] = None,
    by: Annotated[str | None, typer.Option("--by", help="Who asked for it; kept in the record.")] = None,
    now: Annotated[
        bool, typer.Option("--now", help="Out of the published versions and the stored bytes too; alone: all records.")
    ] = False,
    root: Annotated[str, typer.Option("--root")] = "demo",
) -> None:
    """Takes images down, with all their copies: out of every later version, with a record that holds hashes only."""
    from lvd.flows import takedown
    from lvd.flows.show_takedown import show_taken

    names = {"urls": url, "domains": domain, "image_ids": image_id, "images": image}
    asked = takedown.Asked(**{kind: tuple(found or ()) for kind, found in names.items()}, list_file=list_)
    show_taken(takedown.forget(root, asked, now=now, by=by, reason=reason))


@app.command()
def models(
    filter_: Annotated[
        str, typer.Argument(metavar="FILTER", help="Lists the timm models whose name matches, e.g. 'vit_huge*'.")
    ] = "",
) -> None:
    """The models that a recipe can name."""
    from lvd.flows.show import show_models

    show_models(filter_)


@app.command()
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
    from lvd.flows.show import show_evaluation

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
    from lvd.flows.show import show_study

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
    from lvd.flows.show import show_cluster_study

    ks = studying_clusters.listed(clusters) if clusters is not None else None
    show_cluster_study(studying_clusters.cluster_study(root, clusters=ks, sample=sample, out=out, seed=seed))
