"""`lvd …`: the command line. Exit codes: 0 done; 2 the user must act (one line); 1 a defect."""

import errno
import json
import os
import sys
from typing import Annotated

import typer

from lvd.flows.server import ServerAway
from lvd.infra.errors import InputError, RetryableError, ShardError
from lvd.infra.logs import FORMAT_VARIABLE, last_words, log_format, log_to_stderr

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
        sys.stderr.write(last_words(str(error)))
        sys.stderr.flush()
        os._exit(1)  # else Prefect offers the server every event that is left, some seconds for each
    except InputError as error:
        sys.stderr.write(last_words(str(error)))
        sys.exit(2)
    except (ShardError, RetryableError) as error:
        sys.stderr.write(last_words(str(error)))
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.stderr.write(last_words(f"the disk must have room ({error}): make some; the same command goes on"))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write(last_words("stopped; the same command goes on where it was"))
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
def run(
    recipe: str,
    root: Root = None,
    settings: Settings = None,
    log_format: Annotated[
        str | None, typer.Option("--log-format", help="Of the lines on standard error: text or json; LVD_LOG_FORMAT.")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option("--metrics", help="A .prom file for node_exporter, kept up to date; LVD_METRICS_FILE.")
    ] = None,
) -> None:
    """Curates by a recipe: a YAML file, or the name of one that comes with lvd."""
    if log_format is not None:
        os.environ[FORMAT_VARIABLE] = log_format
    run_recipe(recipe, root, [*(settings or ()), *([f"metrics_file={json.dumps(metrics)}"] if metrics else ())])


def run_recipe(recipe: str, root: str | None, settings: list[str] | None) -> None:
    """The flow, here and now; without Prefect if there is nothing left to compute."""
    from lvd.flows.recipe import load
    from lvd.flows.show import show_snapshot

    log_format()
    parsed = load(recipe, root=root, settings=settings or ())
    from lvd.flows.curate import check, curate, look
    from lvd.flows.preflight import check_models, check_root
    from lvd.flows.run import Run, Snapshot

    check_models(parsed)
    check_root(Run(parsed))
    snapshot = look(parsed)
    if snapshot is None:
        check(Run(parsed))
        from lvd.flows.server import prefect_server

        log_to_stderr()
        with prefect_server():
            snapshot = Snapshot(**curate(recipe=recipe, root=root, settings=settings))
    else:
        from lvd.flows.observing import found_complete

        found_complete(parsed)
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
def metrics(root: str) -> None:
    """The metrics of a root as Prometheus reads them: of the last run, or of the one that is under way."""
    from lvd.flows.observing import metrics_text

    sys.stdout.write(metrics_text(root))


@app.command()
def versions(root: Annotated[str, typer.Option("--root")] = "demo") -> None:
    """The published versions: when, how many images, how many shards they share."""
    from lvd.flows.show_versions import show_versions

    show_versions(root)


@app.command()
def diff(
    older: Annotated[str, typer.Argument(metavar="V1", help="v1, or 1.")],
    newer: Annotated[str, typer.Argument(metavar="V2", help="v2, 2, or latest.")],
    root: Annotated[str, typer.Option("--root")] = "demo",
    as_json: Annotated[bool, typer.Option("--json", help="For machines: every image, not only examples.")] = False,
) -> None:
    """What two versions differ in: images added, removed, changed, and why; by collection and domain."""
    from lvd.flows.show_versions import show_difference

    show_difference(root, older, newer, as_json)


@app.command()
def gc(
    root: str,
    keep: Annotated[int | None, typer.Option("--keep", help="The newest versions that stay; by default all.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Removes it; without, it is only listed.")] = False,
) -> None:
    """What no version needs: lists it, and with --delete removes it."""
    from lvd.flows.show_versions import show_leftovers

    show_leftovers(root, keep, delete)


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
def explore(
    root: str,
    version: Annotated[str | None, typer.Option("--version", help="Such as v2; else the last one.")] = None,
    sample: Annotated[
        int, typer.Option("--sample", min=2, help="Images, drawn evenly; all if there are less.")
    ] = 20_000,
    export: Annotated[
        str | None, typer.Option("--export", help="Writes the Parquet file for any explorer, and starts none.")
    ] = None,
    port: Annotated[int, typer.Option("--port", min=1024, max=65535, help="On 127.0.0.1.")] = 5055,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
) -> None:
    """A map of the published set by its vectors, in Embedding Atlas: pictures, provenance, neighbours."""
    from lvd.flows.show import show_explorer

    show_explorer(root, version=version, sample=sample, export=export, port=port, seed=seed)


@app.command()
def report(
    root: str,
    version: Annotated[str | None, typer.Option("--version", help="v1, v2, …; the newest if left out.")] = None,
    opened: Annotated[bool, typer.Option("--open", help="Shows it in the browser.")] = False,
) -> None:
    """Where the report of a version lies."""
    from lvd.flows.show_report import show_report

    show_report(root, version, opened)


@app.command()
def serve(
    root: str,
    host: Annotated[str, typer.Option("--host", help="Beyond loopback, whoever reaches it sees all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8470,
    opened: Annotated[bool, typer.Option("--open", help="Shows it in the browser.")] = False,
) -> None:
    """The report, the images and the whole ledger as pages on this machine, searched live. Ctrl-C ends it."""
    from lvd.flows.serving import serve as serve_root

    serve_root(root, host=host, port=port, opened=opened)


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


@app.command()
def export(
    root: str,
    to: Annotated[str, typer.Option("--to", help="webdataset, imagefolder or parquet.")],
    out: Annotated[str, typer.Option("--out", help="A folder or a URI: empty, or with this export begun.")],
    version: Annotated[str | None, typer.Option("--version", help="v1, v2, …; the newest if left out.")] = None,
    shard_images: Annotated[int, typer.Option("--shard-images", min=1, help="Images of one shard.")] = 10_000,
    shard_bytes: Annotated[
        int | None, typer.Option("--shard-bytes", min=1, help="Of the images of one shard, on average, instead.")
    ] = None,
    shuffle: Annotated[bool, typer.Option("--shuffle/--no-shuffle", help="All images, by the seed.")] = True,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    columns: Annotated[
        str | None, typer.Option("--columns", help="Besides the image and its id: key,url,role; else all.")
    ] = None,
    settings: Settings = None,
) -> None:
    """A published version as files that trainers read: shuffled shards, with checksums and the dataset card."""
    from lvd.flows.export_asked import asked_config
    from lvd.flows.exporting import export_version
    from lvd.flows.show_exports import show_export

    config = asked_config(
        kind=to, shard_images=shard_images, shard_bytes=shard_bytes, shuffle=shuffle, seed=seed, columns=columns
    )
    show_export(export_version(root, out, config, version=version, settings=tuple(settings or ())))


@app.command()
def push(
    root: str,
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="name/dataset, on the hub of HF_ENDPOINT.")],
    version: Annotated[str | None, typer.Option("--version", help="v1, v2, …; the newest if left out.")] = None,
    private: Annotated[bool, typer.Option("--private", help="A new repository that only you see.")] = False,
    export_: Annotated[
        str | None,
        typer.Option("--export", help="An export that is there, or is made and stays; else a temporary one."),
    ] = None,
    settings: Settings = None,
) -> None:
    """A published version to a hub, with its card; the token is the hub's own: HF_TOKEN or its login."""
    from lvd.flows.pushing import push as pushed
    from lvd.flows.show_exports import show_push

    show_push(pushed(root, repo_id, version=version, private=private, export=export_, settings=tuple(settings or ())))


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
