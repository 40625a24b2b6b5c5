"""Commands that curate, and say what curating would come to."""

import json
import os
from typing import Annotated

import typer

from lvd.flows.commands.options import Root, Settings
from lvd.infra.errors import InputError
from lvd.infra.logs import FORMAT_VARIABLE, log_format, log_to_stderr


def demo(
    root: Annotated[str, typer.Option("--root", help="A folder of its own.")] = "demo", settings: Settings = None
) -> None:
    """The miniature web, served on loopback, curated end to end, and where to look."""
    from lvd.flows.show import show_answers

    run_recipe("mini", root, settings)
    show_answers(root, settings)


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


def models(
    filter_: Annotated[
        str, typer.Argument(metavar="FILTER", help="Lists the timm models whose name matches, e.g. 'vit_huge*'.")
    ] = "",
) -> None:
    """The models that a recipe can name."""
    from lvd.flows.show import show_models

    show_models(filter_)


COMMANDS = (demo, run, plan, models)
