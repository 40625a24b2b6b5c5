"""The fit of the centroids, step by step: a sample, a fit on it, full passes; every step is a directory on storage."""

from typing import Any

from lvd.flows import pool
from lvd.flows.group import Call, call
from lvd.flows.run import Run, Work
from lvd.infra.series import Series
from lvd.infra.shards import ShardRef, StageDir
from lvd.tasks import centroids as fit_stage
from lvd.tasks.algorithms.kmeans import has_settled

FLOW = "cluster"


class Fit:
    """The centroids of some vectors, step by step; every step is a directory, so that a fit goes on where it was."""

    def __init__(self, run: Run, vectors: Series) -> None:
        self._run, self._vectors, self._config = run, vectors, run.recipe.cluster
        self._seed, self._identity = run.recipe.seed, (run.recipe.seed, list(vectors.directories))
        self._rows = sum(ref.rows for ref in vectors.shards())

    def centroids(self) -> StageDir:
        """The centroids after all passes, or after that one which gained too little."""
        config = self._config
        found = self._fitted()
        for number in range(config.full_passes):
            done = iterations_of(found)
            if has_settled([one["objective"] for one in done if one["over"] == "pool"], config.min_gain):
                break
            found = self._passed(found, number, done)
        target = self._run.target("centroids", fit_stage.VERSION, config.fitting(), *self._identity)
        (last,), done = found.shards(), iterations_of(found)

        def keeping(ref: ShardRef) -> Call:
            return call(fit_stage.last_centroids, last, done, ref, config, self._seed)

        self._complete(target, 1, keeping, {"centroids": found.directory})
        return target

    def _fitted(self) -> StageDir:
        """The centroids of a sample."""
        run, config, seed, vectors = self._run, self._config, self._seed, self._vectors
        fit_stage.sample_size(self._rows, config)  # or there are more clusters than images
        drawn = {"size": config.sample_per_cluster * config.num_clusters}
        sampled = run.target("sampled", fit_stage.VERSION, drawn, *self._identity)

        def drawing(ref: ShardRef) -> Call:
            return call(fit_stage.sample_group, vectors, ref, config, seed)

        self._complete(sampled, self._groups, drawing, {"vectors": list(vectors.directories)})
        before = {name: value for name, value in config.fitting().items() if name != "full_passes"}
        fitted = run.target("fit", fit_stage.VERSION, before, sampled.directory, seed)
        sample, gpus = Series.of([sampled]), pool.every_gpu(run.recipe.compute)

        def fitting(ref: ShardRef) -> Call:
            options = {"devices": gpus, "device": run.device}
            return call(fit_stage.fit_centroids, sample, self._rows, ref, config, seed, **options)

        is_new = not fitted.is_complete()
        self._complete(fitted, 1, fitting, {"sample": sampled.directory}, device=run.device)
        if is_new:
            fit_stage.Checkpoint(fitted.planned(1)[0]).remove()
        return fitted

    def _passed(self, before: StageDir, number: int, done: list[dict[str, Any]]) -> StageDir:
        """The centroids after a pass over all vectors."""
        run, (centroids,) = self._run, before.shards()
        sums = run.target("sums", fit_stage.VERSION, before.directory, *self._identity)

        def adding(ref: ShardRef) -> Call:
            return call(fit_stage.sums_group, self._vectors, centroids, ref, device=run.device)

        self._complete(sums, self._groups, adding, {"centroids": before.directory}, device=run.device)
        while len(parts := sums.shards()) > fit_stage.FAN_IN:
            sums = self._added(sums, parts)
        moved = run.target("fit", fit_stage.VERSION, "pass", number, sums.directory)

        def moving(ref: ShardRef) -> Call:
            return call(fit_stage.move_centroids, parts, centroids, done, ref)

        self._complete(moved, 1, moving, {"sums": sums.directory})
        return moved

    def _added(self, sums: StageDir, parts: list[ShardRef]) -> StageDir:
        """One level of the tree: each FAN_IN sums as one."""
        target = self._run.target("sums", fit_stage.VERSION, "of", sums.directory)

        def reducing(ref: ShardRef) -> Call:
            first = ref.index * fit_stage.FAN_IN
            return call(fit_stage.reduce_sums, parts[first : first + fit_stage.FAN_IN], ref)

        self._complete(target, -(-len(parts) // fit_stage.FAN_IN), reducing, {"sums": sums.directory})
        return target

    @property
    def _groups(self) -> int:
        return fit_stage.num_groups(self._vectors, self._config.num_clusters)

    def _complete(self, target: StageDir, count: int, computing: Any, inputs: dict[str, Any], **more: Any) -> None:
        config = self._config.fitting()
        self._run.complete(
            FLOW, [Work(target=target, count=count, call=computing, config=config, inputs=inputs, **more)]
        )


def iterations_of(found: StageDir) -> list[dict[str, Any]]:
    """What the account of some centroids says of every iteration."""
    return found.account()["shard_notes"][0]["iterations"]
