"""What a plan has to be told, measured on this machine on a sample of the recipe's own images.

The images are listed and read by the code of a run, written as the shards of a stage in a temporary folder, and go
through the screening and both models as a run takes them. Nothing is downloaded from the URLs of a list or an archive,
and nothing is written to the root.
"""

import platform
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import count, cycle, islice
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from pydantic import BaseModel

from lvd.flows import pool
from lvd.flows.measuring import CPU_BATCH_SIZE, settled
from lvd.flows.plan import check_drawn
from lvd.flows.recipe import Compute, Expectations, Recipe
from lvd.flows.run import Run
from lvd.infra.errors import InputError
from lvd.infra.shards import ShardRef, StageDir, read_batches
from lvd.infra.writing import with_features, write_shard
from lvd.tasks import batch_size, models, schemas, screen
from lvd.tasks.fetching import fetch_apart
from lvd.tasks.models import engine
from lvd.tasks.source_rows import rows
from lvd.tasks.sources import Partition, partitions

SEEN_EACH = 20  # rows of a source that are listed for each one that is drawn of them
WARM_UP_ROWS, SHARD_ROWS = 8, 100
MEASURED_S = 30.0  # of work of each model, if the images last so long
GPU_BATCHES = 8  # a GPU is measured on so many, the images taken again and again


class ModelPace(BaseModel, frozen=True):
    """How fast a model is here. per_second: images in a second of a GPU, or of one core, decoding included."""

    stage: str
    model: str
    values: int
    precision: str
    batch_size: int
    is_on_gpu: bool
    images: int  # that it was measured on
    per_second: float
    busy: float  # share of the time in which the device computed
    waiting: float  # share of the time in which it waited for decoded images


class Profile(BaseModel, frozen=True):
    """What was measured, on how many images of which sources, and on what machine."""

    images: int
    sources: tuple[str, ...]
    notes: tuple[str, ...]
    machine: str
    has_gpu: bool
    cores: int  # of this machine
    mean_image_bytes: int
    screened_per_core_second: float
    descriptors: ModelPace
    embeddings: ModelPace

    def measured(self) -> dict[str, Any]:
        """The fields of `plan` that this machine tells."""
        found: dict[str, Any] = {
            "mean_image_bytes": self.mean_image_bytes,
            "descriptor_values": self.descriptors.values,
            "vector_values": self.embeddings.values,
            "screened_per_core_second": rounded(self.screened_per_core_second),
            "decoded_per_core_second": None,  # it is in the paces of the models
        }
        for name, model in (("descriptors", self.descriptors), ("embeddings", self.embeddings)):
            found[f"{name}_per_{'gpu' if model.is_on_gpu else 'core'}_second"] = rounded(model.per_second)
        return found

    def expectations(self, before: Expectations) -> Expectations:
        """The plan's own expectations with what was measured in their place.

        Without a GPU here the plan has none. Where it does not say how many cores there are, they are those of this
        machine, as often as it has GPUs, or nodes if these are more.
        """
        paces = dict.fromkeys(("descriptors_per_core_second", "embeddings_per_core_second"))
        gpus = (before.gpus or before.nodes) if self.has_gpu else 0
        cores = before.cores if "cores" in before.model_fields_set else self.cores * max(before.nodes, gpus)
        return Expectations(**before.model_dump() | paces | self.measured() | {"gpus": gpus, "cores": cores})

    def as_yaml(self, before: Expectations) -> str:
        """What was measured, indented to be pasted below `plan:`."""
        known = self.expectations(before)
        fields = {**self.measured(), "gpus": known.gpus, "cores": known.cores}
        head = f"# below plan: measured on {self.images} images, {self.machine}\n"
        return "".join(f"  {line}\n" for line in (head + yaml.safe_dump(fields, sort_keys=False)).splitlines())


def rounded(pace: float) -> float:
    """Four digits are more than a measured pace is good for."""
    return float(f"{pace:.4g}")


def profile(recipe: Recipe, images: int) -> Profile:
    """What a plan of this recipe has to be told, measured here on at most so many of its images.

    Raises InputError if its sources hold no image that lies anywhere, or none that can be read, or if a model of it
    cannot be loaded.
    """
    check_drawn(recipe)
    models.check(recipe.copies, "recipe.copies")
    models.check(recipe.embed, "recipe.embed")
    compute = Compute(cpu_workers=recipe.compute.cpu_workers, gpus=0 if recipe.compute.gpus == 0 else "auto")
    here = recipe.model_copy(update={"compute": compute})
    found, sources, notes = sampled(recipe, images)
    with tempfile.TemporaryDirectory(prefix="lvd-profile-") as folder:
        shards, num_bytes = as_images(found, recipe, folder)
        number = sum(ref.rows for ref in shards)
        if number < len(found):
            notes.append(f"{len(found) - number} of {len(found)} images could not be read")
        kind = pool.device(compute)
        if kind == "cpu":
            notes.append("there is no GPU to measure on: paces are those of one core, and the plan counts CPU-hours")
        return Profile(
            images=number,
            sources=tuple(sources),
            notes=tuple(notes),
            machine=machine(compute, kind),
            has_gpu=kind != "cpu",
            cores=pool.cores_per_gpu(compute) if kind != "cpu" else pool.workers(compute),
            mean_image_bytes=round(num_bytes / number),
            screened_per_core_second=screening_pace(shards, recipe.screen, folder),
            descriptors=model_pace(here, "copies", recipe.copies, shards, folder),
            embeddings=model_pace(here, "embed", recipe.embed, shards, folder),
        )


def machine(compute: Compute, kind: str) -> str:
    """What this machine is, in words."""
    cores = f"{pool.workers(compute)} cores ({platform.machine()})"
    if kind == "cpu":
        return f"{cores}, no GPU"
    import torch

    return f"{pool.gpus(compute)} x {torch.cuda.get_device_name(0)}, {cores}"


def sampled(recipe: Recipe, images: int) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """(rows of schemas.MANIFEST, the sources that they are from, what is to be said of it), at most `images` rows.

    Of the pool first, then of benchmarks and curated collections. From each source rows are drawn with the recipe's
    seed, of the first `SEEN_EACH` times as many. Raises InputError if there are none.
    """
    rng = np.random.default_rng(np.random.SeedSequence([recipe.seed, 0x9F0]))
    found: list[dict[str, Any]] = []
    sources, notes = [], []
    pool_parts, linked = parts_of([(f"recipe.pool[{i}]", source) for i, source in enumerate(recipe.pool)])
    if linked:
        what = f"{', '.join(linked)}: candidates on the web, of which nothing was downloaded"
        notes.append(what if pool_parts else f"{what}; images of benchmarks and curated collections stand in")
    others = [(f"recipe.benchmarks[{i}]", c.source) for i, c in enumerate(recipe.benchmarks)]
    others += [(f"recipe.curated[{i}]", c.source) for i, c in enumerate(recipe.curated)]
    for parts in (pool_parts, parts_of(others)[0]):
        for index, (where, partition) in enumerate(parts):
            share = -(-(images - len(found)) // (len(parts) - index))
            seen = list(islice(rows(partition), SEEN_EACH * share))
            drawn = rng.choice(len(seen), size=min(share, len(seen)), replace=False)
            found += [seen[row] for row in np.sort(drawn)]
            if len(drawn) and where not in sources:
                sources.append(where)
    if not found:
        raise InputError(
            "recipe must have a source of kind images, webdataset or dataset to be measured, had none with an image: "
            "add one to pool, benchmarks or curated, or plan without --profile"
        )
    return [found[place] for place in rng.permutation(len(found))], sources, notes


def parts_of(entries: list[tuple[str, Any]]) -> tuple[list[tuple[str, Partition]], list[str]]:
    """(field of the recipe, partition) of all that lies somewhere, and the fields of what has to be downloaded first.

    Raises InputError naming the field whose source is not there.
    """
    found, linked = [], []
    for where, source in entries:
        if source is None:
            continue
        try:
            parts = partitions(source)
        except InputError as error:
            raise InputError(f"{where}.{error}") from error
        if any(part.is_linked for part in parts):
            linked.append(where)
        else:
            found += [(where, part) for part in parts]
    return found, linked


def as_images(found: list[dict[str, Any]], recipe: Recipe, folder: str) -> tuple[list[ShardRef], int]:
    """(shards of schemas.IMAGES, bytes of their images); the first of `WARM_UP_ROWS`, the others of `SHARD_ROWS`.

    found: rows of schemas.MANIFEST. Raises InputError if none of them can be read.
    """
    (manifest,) = StageDir(root=folder, stage="crawl", fingerprint="sample").planned(1)
    with write_shard(manifest, schemas.MANIFEST, {}) as shard:
        for row in found:
            shard.keep(row)
    (fetched,) = StageDir(root=folder, stage="download", fingerprint="sample").planned(1)
    if not fetch_apart(manifest, fetched, with_features(schemas.IMAGES), recipe.download, 1):
        error = next(iter(read_batches(fetched, ["key", "error"], kind="rejects"))).to_pylist()[0]
        raise InputError(
            f"recipe's sources must hold images that can be read, was none of {len(found)}, "
            f"the first {error['key']!r}: {error['error']}: correct the paths"
        )
    target, shards, num_bytes = StageDir(root=folder, stage="download", fingerprint="pieces"), [], 0
    for ref, piece in zip(target.planned(len(found)), pieces_of(fetched), strict=False):  # fewer pieces than rows
        with write_shard(ref, schemas.IMAGES, {}) as shard:
            shard.keep_table(piece)
        shards.append(ref.model_copy(update={"rows": len(piece)}))
        num_bytes += sum(piece["num_bytes"].to_pylist())
    return shards, num_bytes


def pieces_of(ref: ShardRef) -> Iterator[pa.Table]:
    """The shard's rows, the first `WARM_UP_ROWS` apart, then `SHARD_ROWS` at a time or fewer. Memory: one batch."""
    first = WARM_UP_ROWS
    for batch in read_batches(ref):
        table, start = pa.Table.from_batches([batch.replace_schema_metadata(None)]), 0
        while start < len(table):
            yield table.slice(start, first or SHARD_ROWS)
            start, first = start + (first or SHARD_ROWS), 0


def screening_pace(shards: list[ShardRef], config: screen.Config, folder: str) -> float:
    """Images that one core screens in a second."""
    target = StageDir(root=folder, stage="screen", fingerprint="sample")
    seconds = images = 0
    for ref, out in zip(shards, target.planned(len(shards)), strict=True):
        began = time.thread_time()
        screen.screen_shard.fn(ref, out, config.max_pixels)
        if ref is not shards[0] or len(shards) == 1:
            seconds, images = seconds + time.thread_time() - began, images + ref.rows
    return images / seconds


def model_pace(recipe: Recipe, stage: str, config: models.Inference, shards: list[ShardRef], folder: str) -> ModelPace:
    """The pace of one model by the engine that a run uses, once it is loaded and warm."""
    fixed = config if config.batch_size != "auto" else config.model_copy(update={"batch_size": CPU_BATCH_SIZE})
    inference, kind = settled(Run(recipe), stage, fixed, "")
    with pool.own_device(kind) as device:
        model = models.load(engine.spec_of(inference), engine.placement(inference, device))
        if config.batch_size == "auto" and kind != "cpu":
            size, _ = batch_size.best(list(batch_size.trials(model, inference)))
            inference = inference.model_copy(update={"batch_size": size})
        size = models.usable_batch_size(inference, inference.batch_size)
        options = {"device": device, "decoders": pool.decoders(recipe.compute, stage, device)}
        numbers = count()

        def timed(images: list[ShardRef]) -> Counter[str]:
            return engine_cost(images, stage, next(numbers), inference, options, folder)

        timed(shards[:1])
        others = shards[1:] or shards
        cost = timed(others[:1])
        rounds = 1 if kind == "cpu" else max(1, -(-GPU_BATCHES * size // sum(ref.rows for ref in others)))
        number = min(rounds * len(others), int(MEASURED_S / cost["seconds"]))
        if number > 1:
            cost = timed(list(islice(cycle(others), number)))
    if not cost["computed"]:
        raise InputError(f"recipe's sources must hold images that can be decoded, were none for {inference.model}")
    return ModelPace(
        stage=stage,
        model=inference.model,
        values=model.dim,
        precision=inference.precision,
        batch_size=size,
        is_on_gpu=kind != "cpu",
        images=cost["computed"],
        per_second=cost["computed"] / (cost["cpu_seconds"] if kind == "cpu" else cost["seconds"]),
        busy=min(1.0, cost["device_seconds"] / cost["seconds"]),
        waiting=min(1.0, cost["waited_seconds"] / cost["seconds"]),
    )


def engine_cost(
    images: list[ShardRef],
    stage: str,
    number: int,
    inference: models.Inference,
    options: dict[str, Any],
    folder: str,
) -> Counter[str]:
    """What the vectors of these shards cost, as their accounts say, with seconds of the clock and of all cores."""
    target = StageDir(root=folder, stage=stage, fingerprint=str(number))
    jobs = [
        engine.Job(images=ref, fates=None, target=out)
        for ref, out in zip(images, target.planned(len(images)), strict=True)
    ]
    began, began_cpu = time.perf_counter(), time.process_time()
    outcomes = engine.vectors_of_shards(jobs, inference, **options)
    cost = Counter(seconds=time.perf_counter() - began, cpu_seconds=time.process_time() - began_cpu)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
        cost.update(target.storage.read_json(outcome.name("account", "json"))["cost"])
    return cost
