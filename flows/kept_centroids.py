"""Which centroids a run assigns to: fitted on its own pool, given, or kept from an earlier run as long as they hold.

Kept ones are named by how they were fitted, a dash and a number, not by what they were fitted on, so that the next
night finds the last of them, whether those before it are still there or not. They hold while new images are about as
similar to their centroids as those of the fit were; where they have drifted away the run says so, and fits anew if the
recipe allows.
"""

import hashlib
from typing import NamedTuple

from lvd.flows.fitting import Fit, iterations_of
from lvd.flows.group import Call, call
from lvd.flows.run import Run, Work
from lvd.infra.errors import InputError
from lvd.infra.series import Series
from lvd.infra.shards import ShardRef, StageDir, fingerprint
from lvd.tasks import centroids as fit_stage
from lvd.tasks import models
from lvd.tasks.cluster import mean_similarity
from lvd.tasks.models import engine
from lvd.tasks.models.engine import read_vectors

FLOW = "cluster"


class Drift(NamedTuple):
    """How similar the newest images are to their centroids, and the images of the fit were."""

    new: float
    fitted: float

    def __str__(self) -> str:
        return (
            f"new images are {self.new:.4f} similar to their centroids in the mean, those of the fit {self.fitted:.4f}"
        )


def chosen(run: Run, pool: Series) -> StageDir:
    """The centroids that the recipe asks for."""
    config = run.recipe.cluster
    if config.fit:
        return given(run, config.fit)
    if config.refit == "always":
        return Fit(run, pool).centroids()
    if last := latest(run):
        return run.named(last.stage, last.fingerprint)
    return kept(run, numbered(run, 0), Fit(run, pool).centroids(), fitted_on=pool)


def fitted_again(run: Run, pool: Series) -> StageDir:
    """Centroids of all of the pool as it is now, which later runs keep."""
    number = number_of(latest(run)) + 1
    return kept(run, numbered(run, number), Fit(run, pool).centroids(), fitted_on=pool)


def numbered(run: Run, number: int) -> StageDir:
    """Where the root's kept centroids of that number lie, or will."""
    recipe = run.recipe
    if recipe.has_own_vectors:
        of = [source.model_dump(mode="json") for source in recipe.pool]
    else:
        of = [engine.settings(recipe.embed), models.weights_digest(recipe.embed)]
    identity = (fit_stage.VERSION, "kept", recipe.cluster.fitting(), recipe.seed, of)
    return StageDir(root=recipe.root, stage="centroids", fingerprint=f"{fingerprint('centroids', *identity)}-{number}")


def number_of(centroids: StageDir) -> int:
    return int(centroids.fingerprint.rpartition("-")[2])


def latest(run: Run) -> StageDir | None:
    """The last kept ones that are complete."""
    any_of = numbered(run, 0)
    begin = any_of.fingerprint.rpartition("-")[0] + "-"
    names = [name for name in run.storage.names(any_of.stage) if name.startswith(begin)]
    there = (any_of.model_copy(update={"fingerprint": name}) for name in names)
    return max((one for one in there if one.is_complete()), key=number_of, default=None)


def drifted(run: Run, centroids: StageDir, pool: Series, cells: Series) -> Drift | None:
    """How far the newest generation has drifted away, if that is too far and it was none of those fitted on."""
    config, newest = run.recipe.cluster, pool.by_generation()[-1]
    if config.refit == "always" or set(measures(newest)) <= set(centroids.account()["notes"]["fitted_on"]):
        return None
    new, fitted = mean_similarity(cells.by_generation()[-1].shards()), iterations_of(centroids)[-1]["objective"]
    return Drift(new, fitted) if new < fitted - config.max_drift else None


def measures(vectors: Series) -> list[str]:
    """What was measured, directory by directory, whichever of its images were left (`measured_vectors`)."""
    named = (name.rpartition("/") for name in vectors.directories)
    return [f"{stage}/{name.partition('-')[0]}" for stage, _, name in named]


def remedy(run: Run) -> str:
    """What is done about it."""
    if run.recipe.cluster.fit:
        return "give another recipe.cluster.fit, or raise max_drift"
    if run.recipe.cluster.refit == "on_drift":
        return "the centroids are fitted anew"
    return "set recipe.cluster.refit to on_drift, or raise max_drift"


def given(run: Run, uri: str) -> StageDir:
    """The centroids of a directory, e.g. of another root, as some of this one. Raises InputError if they do not fit."""
    config = run.recipe.cluster
    root, _, name = uri.rstrip("/").rpartition("/centroids/")
    source = StageDir(root=root, stage="centroids", fingerprint=name)
    if not (root and name and source.is_complete()):
        raise InputError(
            f"recipe.cluster.fit must be the URI of a complete directory of centroids, was {uri!r}: name "
            "ROOT/centroids/… of a root that was run"
        )
    (ref,) = source.shards()
    if ref.rows != config.num_clusters:
        raise InputError(
            f"recipe.cluster.fit must have as many centroids as recipe.cluster.num_clusters, {config.num_clusters}, "
            f"has {ref.rows}"
        )
    if source.storage.root == run.storage.root:
        run.named("centroids", name)  # later runs of this recipe ask for it, so `lvd gc` must find it in the record
    digest = hashlib.sha256(read_vectors(ref).tobytes()).hexdigest()
    identity = (fit_stage.VERSION, "given", config.fitting(), digest)
    target = StageDir(root=run.storage.root, stage="centroids", fingerprint=fingerprint("centroids", *identity))
    return kept(run, target, source)


def kept(run: Run, target: StageDir, found: StageDir, *, fitted_on: Series | None = None) -> StageDir:
    """Centroids under the name of the target. fitted_on: of this root, if that is known."""
    config, seed = run.recipe.cluster, run.recipe.seed
    (last,), done = found.shards(), iterations_of(found)

    def keeping(ref: ShardRef) -> Call:
        return call(fit_stage.last_centroids, last, done, ref, config, seed)

    named = run.named(target.stage, target.fingerprint)
    inputs = {"centroids": f"{found.root}/{found.directory}"}
    notes = {"fitted_on": measures(fitted_on) if fitted_on else []}
    said = {"config": config.fitting(), "inputs": inputs, "notes": notes}
    run.complete(FLOW, [Work(target=named, count=1, call=keeping, **said)])
    return named
