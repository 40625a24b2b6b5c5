"""The sub-flow that asks the embedding model what it sees in a few published images, for the report."""

import numpy as np

from lvd.flows.group import Call, call
from lvd.flows.measuring import settled
from lvd.flows.run import Run, Work
from lvd.flows.stage import stage
from lvd.infra.errors import InputError, ShardError
from lvd.infra.series import Series
from lvd.infra.shards import ShardRef, StageDir, read_table
from lvd.tasks import models, report
from lvd.tasks import patches as patches_stage
from lvd.tasks.contact_sheets import webp_url
from lvd.tasks.models import engine, timm_models

IMAGES = 8


def seen(run: Run, dataset: StageDir, rng: np.random.Generator) -> report.Patches | None:
    """The pictures of a few published images and of their patches; None if the embedding model has no patches.

    A model that cannot be had any more is no reason to have no report: it says so.
    """
    config, total = run.recipe.embed, dataset.account()["rows"]
    if not total or not timm_models.may_look_at_patches(config):
        return None
    rows = sorted(rng.choice(total, min(IMAGES, total), replace=False).tolist())
    try:
        table = read_table(patches(run, dataset, rows).shards()[0])
    except (InputError, ShardError) as error:
        return report.Patches(model=config.model, missing=str(error))
    return report.Patches(model=config.model, pictures=tuple(map(_picture, table.to_pylist()))) if len(table) else None


def _picture(row: dict) -> report.PatchPicture:
    colours = patches_stage.picture(row["colours"], row["patch_rows"], row["patch_columns"])
    return report.PatchPicture(
        image_id=row["image_id"],
        key=row["key"],
        grid=f"{row['patch_rows']} × {row['patch_columns']}",
        seen=webp_url(patches_stage.picture(row["seen"], row["height"], row["width"])),
        colours=patches_stage.png_url(colours),
    )


@stage
def patches(run: Run, dataset: StageDir, rows: list[int]) -> StageDir:
    """The patch colours of these rows of a published version, computed once for it."""
    config = run.recipe.embed
    weights = models.weights_digest(config)
    inference, device = settled(run, "embed", config, weights)
    settings = engine.settings(inference)
    target = run.target("patches", patches_stage.VERSION, settings, weights, dataset.directory, rows)

    def computing(ref: ShardRef) -> Call:
        return call(patches_stage.write_patches, Series.of([dataset]), rows, inference, ref, device=device)

    inputs = {"dataset": dataset.directory}
    work = Work(target=target, count=1, call=computing, device=device, config=settings, inputs=inputs)
    run.complete("patches", [work])
    return target
