"""What every step of the chain reads, writes, holds and computes, by the formulas of its own file in `tasks/`.

Counted are the images of the pool, and those of the curated collections where they are embedded and searched for; the
benchmarks are not. A kind of clustering other than k-means is counted as k-means with its finest level.
"""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel

from lvd.flows.composition import composition
from lvd.flows.recipe import Expectations, Recipe
from lvd.infra.writing import BATCH_BYTES
from lvd.tasks.algorithms import cells
from lvd.tasks.backlog import HELD_BYTES
from lvd.tasks.centroids import FAN_IN, rows_per_group
from lvd.tasks.cluster_shares import ROWS_PER_GROUP
from lvd.tasks.crawl import BUCKET_ROWS
from lvd.tasks.lists import rows_per_run
from lvd.tasks.nearest import MERGED_QUERIES
from lvd.tasks.neighbours import SAMPLE_PER_CELL
from lvd.tasks.own_vectors import ROWS_PER_PIECE
from lvd.tasks.retrieve import BALANCED, Cluster, Sample

VECTOR_BYTES_PER_VALUE = 2  # float16
DECISION_BYTES = 300  # per pool image, in the one process that decides
SELECTION_BYTES = 400  # per selected image, in the one process that selects
PROBED = 32  # cells that a query of a curated collection looks into: what its recall usually asks for
CANDIDATE_BYTES, SETTLING_BYTES = 20, 100  # of a candidate: written by a search, held by what settles it
CELL_BYTES, ID_BYTES, MATCH_BYTES = 60, 44, 70  # of a row: its cell, its id, its match

# Seconds of one core. The first four are measured (the docstrings of the stages, `benchmarks/RESULTS.md`), as is the
# least a decode takes; the others are assumed: one pass of array code over an image's small columns.
LINK_S, FETCH_S, HASH_S, FACES_S = 20e-6, 0.8e-3, 30e-6, 30e-3
DECODE_S = 5e-3
CHOICE_S, DECISION_S, MERGE_S, SETTLING_S, SHARE_S = 0.5e-6, 2e-6, 0.5e-6, 1e-6, 0.1e-6
SAMPLING_S, LIST_S, LEDGER_S, PUBLISH_S = 0.1e-6, 2e-6, 10e-6, 0.4e-3
NSFW_GPU_S, NSFW_FLOPS = 1e-3, 1e10  # of one image by a ViT-T of 384 px
ADDS_PER_S = 1e9  # of partial sums, one core

Place = Literal["gpu", "core", "node", "one"]  # where a shard runs: on one GPU, one core, all of a node, one process
WEB = ("urls", "warc", "wat")  # kinds of sources whose images come over the network


class Load(BaseModel, frozen=True):
    """What a step of the chain reads, writes, computes and holds, over all its rounds."""

    flow: str  # the stage that it belongs to
    stage: str  # the step
    what: str
    images: int
    shards: int  # of one round: what is computed, and computed again, as one
    rounds: int = 1  # one after the other
    read_bytes: int
    written_bytes: int
    memory_bytes: int  # of its largest process, beside models and libraries
    node_memory_bytes: int  # of as many of these as run on one node at once
    place: Place
    slots: int  # shards that run at once on the whole pool
    shard_s: float  # seconds of one shard; 0 where nothing is known of them
    bound_by: str  # what takes longest: GPU, cores, storage, network
    gpu_hours: float | None = None  # of products and models; None if it uses no GPU
    cpu_hours: float | None = None  # of one core; None where no pace is known
    hours: float | None = None  # on the whole pool, all slots busy to the end


class Machines:
    """The pool of the plan: how many shards run at once where, and how long one takes."""

    def __init__(self, expect: Expectations) -> None:
        self._expect = expect
        self.has_gpus = expect.gpus > 0
        self.flops = expect.gpu_tflops * 1e12 if self.has_gpus else expect.core_gflops * 1e9

    def compute(self, flops: float) -> dict[str, Any]:
        """So many operations on GPUs, or on cores where there are none."""
        seconds = flops / self.flops
        return {"gpu_s": seconds, "place": "gpu"} if self.has_gpus else {"core_s": seconds, "place": "core"}

    def slots(self, place: Place) -> int:
        return {"gpu": self._expect.gpus, "core": self._expect.cores}.get(place, 1)

    def load(
        self,
        flow: str,
        stage: str,
        what: str,
        *,
        images: int,
        shards: int,
        place: Place,
        read: float = 0,
        written: float = 0,
        memory: float = 0,
        gpu_s: float | None = None,
        core_s: float | None = None,
        net_s: float = 0.0,
        rounds: int = 1,
    ) -> Load:
        """A step. read, written: bytes; gpu_s, core_s: seconds of one GPU and of one core; net_s: of a node's line.

        All of these are of one round. Reading, decoding and computing overlap, so the slowest of them counts.
        """
        expect, slots, number = self._expect, self.slots(place), max(shards, 1)
        at_once = max(1, -(-min(slots, number) // expect.nodes))  # on the busiest node
        cores, gpus = expect.cores, max(expect.gpus, 1)
        mine = {"gpu": cores / gpus, "core": 1.0, "node": cores / expect.nodes, "one": 1.0}[place]
        gpus_mine = max(1.0, gpus / expect.nodes) if place == "node" else 1.0
        times = {
            "GPU": (gpu_s or 0.0) / gpus_mine,
            "cores": (core_s or 0.0) / mine,
            "storage": (read + written) / (expect.storage_gb_per_node_second * 1e9) * at_once,
            "network": net_s * at_once,
        }
        bound_by = max(times, key=times.__getitem__)
        shard_s = times[bound_by] / number
        known = gpu_s is not None or core_s is not None
        return Load(
            flow=flow,
            stage=stage,
            what=what,
            images=images,
            shards=shards,
            rounds=rounds,
            read_bytes=round(read * rounds),
            written_bytes=round(written * rounds),
            memory_bytes=round(memory),
            node_memory_bytes=round(memory * at_once),
            place=place,
            slots=slots,
            shard_s=shard_s,
            bound_by=bound_by if times[bound_by] else "",
            gpu_hours=None if gpu_s is None else gpu_s * rounds / 3600,
            cpu_hours=None if core_s is None else core_s * rounds / 3600,
            hours=times[bound_by] / min(slots, number) * rounds / 3600 if known else None,
        )


class Sizes:
    """The numbers of a recipe that the steps are reckoned with."""

    def __init__(self, recipe: Recipe) -> None:
        expect = recipe.plan
        self.recipe, self.expect, self.machines = recipe, expect, Machines(expect)
        self.pool = expect.pool_images
        self.unique = round(self.pool * expect.kept_after_fingerprint)
        self.left = round(self.unique * expect.kept_after_copies)
        self.curated = sum(collection.num_images or 0 for collection in recipe.curated)
        self.selected = sum(row.final for row in composition(recipe))
        self.image = expect.mean_image_bytes
        self.descriptor, self.vector = (
            values * VECTOR_BYTES_PER_VALUE for values in (expect.descriptor_values, expect.vector_values)
        )
        self.shards = -(-self.pool // recipe.crawl.rows_per_shard)
        self.clusters = max(1, min(recipe.cluster.num_clusters, self.left))
        self.centroids = self.clusters * expect.vector_values * 4  # bytes

    def model(self, images: int, per_gpu_second: float, per_core_second: float | None) -> dict[str, Any]:
        """A model looks at so many images."""
        if per_core_second is not None:
            return {"core_s": images / per_core_second, "place": "core"}
        decoded = self.expect.decoded_per_core_second
        return {
            "gpu_s": images / per_gpu_second,
            "core_s": images / decoded if decoded else None,
            "place": "gpu",
        }


def loads(recipe: Recipe) -> list[Load]:
    """The loads of all steps in the order of the chain, with the expectations in `recipe.plan`."""
    sizes = Sizes(recipe)
    parts = (gathering, fingerprints, copies, embedding, clustering, retrieval, publishing)
    if recipe.has_own_vectors:
        parts = (importing, clustering, retrieval, publishing)
    return [load for part in parts for load in part(sizes)]


def importing(s: Sizes) -> Iterator[Load]:
    """Vectors that are there already: see `tasks/own_vectors.py`."""
    n, d = s.pool, s.expect.vector_values
    moved = {"read": 4 * n * d, "written": VECTOR_BYTES_PER_VALUE * n * d, "memory": 6 * ROWS_PER_PIECE * d}
    shards = -(-n // ROWS_PER_PIECE)
    yield s.machines.load("embed", "imported", "as shards", images=n, shards=shards, **moved, core_s=0, place="core")


def gathering(s: Sizes) -> Iterator[Load]:
    """Crawl, download, content, screen: see `tasks/crawl.py` and its neighbours."""
    n, load, line = s.pool, s.machines.load, s.expect.downloaded_per_node_second
    every: dict[str, Any] = {"images": n, "shards": s.shards}
    moved = {"read": 400 * n, "written": 380 * n, "memory": BATCH_BYTES}
    yield load("crawl", "crawl", "links listed and judged", **every, **moved, core_s=LINK_S * n, place="core")
    held = n + 24 * min(n, BUCKET_ROWS)
    yield decision(s, "crawl", "choices", "equal URLs, one process", CHOICE_S, read=128 * n, memory=held)
    is_linked = not s.recipe.pool or any(source.kind in WEB for source in s.recipe.pool)
    yield load(
        *("download", "download", "images fetched" if is_linked else "images read"),
        **every,
        read=n * s.image,
        written=n * s.image,
        memory=HELD_BYTES,
        core_s=FETCH_S * n,
        net_s=n / line if is_linked else 0.0,
        place="core",
    )
    rules = s.recipe.screen
    if rules.nsfw or rules.faces:
        looked = s.machines.compute(NSFW_FLOPS * n if rules.nsfw else 0)
        if s.machines.has_gpus:
            looked["gpu_s"] = NSFW_GPU_S * n if rules.nsfw else 0.0
        decode = 1 / s.expect.decoded_per_core_second if s.expect.decoded_per_core_second else DECODE_S
        looked["core_s"] = looked.get("core_s", 0.0) + n * (decode + (FACES_S if rules.faces else 0.0))
        seen = " and ".join(name for name, rule in (("NSFW", rules.nsfw), ("faces", rules.faces)) if rule)
        moved = {"read": n * s.image, "written": 60 * n, "memory": BATCH_BYTES}
        yield load("content", "content", f"{seen} looked for", **every, **moved, **looked)
    pace = s.expect.screened_per_core_second
    moved = {"read": n * s.image, "written": 1100 * n, "memory": BATCH_BYTES}
    yield load("screen", "screen", "measured", **every, **moved, core_s=n / pace if pace else None, place="core")


def fingerprints(s: Sizes) -> Iterator[Load]:
    """PCA hashes and what they decide: see `tasks/fingerprint.py`."""
    n = s.pool
    moved = {"read": 1100 * n, "written": 50 * n, "memory": BATCH_BYTES}
    yield s.machines.load(
        "fingerprint", "fingerprint", "hashed", images=n, shards=s.shards, **moved, core_s=HASH_S * n, place="core"
    )
    moved = {"read": 130 * n, "written": 30 * n, "memory": DECISION_BYTES * n}
    yield decision(s, "fingerprint", "unique", "decided in one process", DECISION_S, **moved)


def decision(s: Sizes, flow: str, stage: str, what: str, core_s: float, **bytes_: float) -> Load:
    """A step of one process over the pool. core_s: of one image."""
    return s.machines.load(flow, stage, what, images=s.pool, shards=1, core_s=core_s * s.pool, place="one", **bytes_)


def copies(s: Sizes) -> Iterator[Load]:
    """Descriptors, their neighbours, what they decide: see `tasks/copies.py` and `tasks/neighbours.py`."""
    expect, n = s.expect, s.unique
    moved = {"read": n * s.image, "written": n * s.descriptor, "memory": BATCH_BYTES}
    seen = s.model(n, expect.descriptors_per_gpu_second, expect.descriptors_per_core_second)
    yield s.machines.load("copies", "copies", "descriptors", images=n, shards=s.shards, **moved, **seen)
    if s.recipe.copies.search.is_exact(n, n):
        work = s.machines.compute(n * n * expect.descriptor_values)
        read = n * s.descriptor * n // 2 // s.recipe.crawl.rows_per_shard
        moved = {"read": read, "written": 0, "memory": 2 * BATCH_BYTES}
        yield s.machines.load("copies", "neighbours", "every pair", images=n, shards=s.shards, **moved, **work)
    else:
        yield from through_cells(s, n)
    moved = {"read": 260 * n, "written": 30 * n, "memory": DECISION_BYTES * s.pool}
    yield decision(s, "copies", "components", "decided in one process", DECISION_S, **moved)


def through_cells(s: Sizes, n: int) -> Iterator[Load]:
    """The search through cells. Each group reads all descriptors and probes twice: to hold its own, and as they pass.

    Operations: 2 n c d to find the probes, 2 n p (n / c) d to score them.
    """
    search, d = s.recipe.copies.search, s.expect.descriptor_values
    number, groups = search.num_cells or cells.usual_number(n), cells.num_groups(n)
    probes = 4 + 4 * search.max_probes
    sample = min(n, SAMPLE_PER_CELL * number)
    seconds = 2 * sample * number * d * cells.ITERATIONS / (s.expect.core_gflops * 1e9)  # not on GPUs
    moved = {"read": sample * s.descriptor, "written": number * d * 4, "memory": sample * s.descriptor}
    fit = {"images": sample, "shards": 1, "core_s": seconds, "place": "node"}
    yield s.machines.load("copies", "cells", "fitted on one node's cores", **moved, **fit)
    moved = {"read": 2 * n * s.descriptor, "written": n * probes, "memory": BATCH_BYTES + number * d * 4}
    work = s.machines.compute(2 * n * number * d)
    yield s.machines.load("copies", "probes", "found, recall certified", images=n, shards=s.shards, **moved, **work)
    moved = {"read": 2 * groups * n * (s.descriptor + probes), "written": 20 * n, "memory": n * s.descriptor / groups}
    work = s.machines.compute(2 * n * search.max_probes * n / number * d)
    yield s.machines.load("copies", "neighbours", "cells scored", images=n, shards=groups, **moved, **work)


def embedding(s: Sizes) -> Iterator[Load]:
    """The pool's survivors and the curated images: see `tasks/embed.py`."""
    n, expect = s.left + s.curated, s.expect
    moved = {"read": n * s.image, "written": n * s.vector, "memory": BATCH_BYTES}
    seen = s.model(n, expect.embeddings_per_gpu_second, expect.embeddings_per_core_second)
    yield s.machines.load("embed", "embed", "embedded", images=n, shards=s.shards, **moved, **seen)


def clustering(s: Sizes) -> Iterator[Load]:
    """k-means: 2 n k d operations whenever n vectors meet k centroids of d values. See `tasks/centroids.py`.

    The sample is looked at once for every iteration and once for the sizes; reading it takes as much memory again.
    """
    config, n, k, d = s.recipe.cluster, s.left, s.clusters, s.expect.vector_values
    load, compute, groups = s.machines.load, s.machines.compute, -(-n // rows_per_group(k))
    sample = min(n, config.sample_per_cluster * k)
    moved = {"read": n * s.vector, "written": sample * (s.vector + 8), "memory": BATCH_BYTES}
    yield load(
        "cluster", "sample", "drawn by hash", images=n, shards=groups, **moved, core_s=SAMPLING_S * n, place="core"
    )
    looks = config.iterations + 1
    if config.levels:  # every step looks at the sample, then fits on what is nearest to the centroids
        each = config.resample_per_cluster or max(1, sample // (2 * k))
        looks += config.resample_steps * (1 + (config.iterations + 1) * min(1.0, each * k / sample))
    fit = compute(2 * sample * k * d * looks) | {"place": "node"}
    moved = {"read": sample * (s.vector + 8), "written": s.centroids, "memory": 2 * sample * s.vector + s.centroids}
    yield load("cluster", "fit", "on one node", images=sample, shards=1, **moved, **fit)
    if config.full_passes:
        rounds, sums = {"rounds": config.full_passes}, 8 * k * d
        moved = {"read": n * s.vector, "written": groups * sums, "memory": sums + s.centroids + BATCH_BYTES}
        work = compute(2 * n * k * d) | rounds
        yield load("cluster", "passes", "over all vectors", images=n, shards=groups, **moved, **work)
        moved = {"read": groups * sums * FAN_IN / (FAN_IN - 1), "written": groups * sums / (FAN_IN - 1)}
        added = {"images": n, "shards": -(-groups // FAN_IN), "memory": 2 * sums, "core_s": groups * k * d / ADDS_PER_S}
        yield load("cluster", "sums", f"added {FAN_IN} at a time", **moved, **added, **rounds, place="core")
    written = (CELL_BYTES + 4 * config.next_cells) * n
    moved = {"read": n * s.vector, "written": written, "memory": s.centroids + BATCH_BYTES}
    yield load("cluster", "cluster", "assigned", images=n, shards=s.shards, **moved, **compute(2 * n * k * d))
    if s.recipe.semdedup:
        yield listing(s, "cluster")
        moved = {"read": n * (s.vector + 24), "memory": 3 * n * s.vector / cells.num_groups(n)}
        work = {"images": n, "shards": cells.num_groups(n), **compute(2 * n * (n / k) * d)}
        yield load("cluster", "alike", "compared within cells", **moved, **work)


def listing(s: Sizes, flow: str) -> Load:
    """The vectors once more, in the order of their cells. See `tasks/lists.py`."""
    n, run = s.left, rows_per_run(s.expect.vector_values)
    moved = {"read": n * s.vector, "written": n * (s.vector + 24), "memory": 3 * run * s.vector}
    work = {"images": n, "shards": -(-n // run), "core_s": LIST_S * n, "place": "core"}
    return s.machines.load(flow, "lists", "cells written", **moved, **work)


def retrieval(s: Sizes) -> Iterator[Load]:
    """Lists of cells and what the queries find in them, and the shares of clusters. See `tasks/retrieve.py`."""
    n, load = s.left, s.machines.load
    config = s.recipe.retrieve
    asking = [c for c in s.recipe.curated if c.retrieve is not None and config.kind != BALANCED]
    if config.weights:
        asking = [c for c in asking if config.weights.get(c.name)]
    policies = [(c.retrieve, c.num_images or 0) for c in asking]
    if config.has_balanced or any(isinstance(policy, Cluster) for policy, _ in policies):
        moved = {"read": CELL_BYTES * n, "memory": CELL_BYTES * ROWS_PER_GROUP}
        work = {"images": n, "shards": -(-n // ROWS_PER_GROUP), "core_s": SHARE_S * n, "place": "core"}
        yield load("retrieve", "shares", "of clusters drawn", **moved, **work)
    sampled = [(images, s.recipe.retrieve.depth(p.neighbors)) for p, images in policies if isinstance(p, Sample)]
    search = s.recipe.retrieve.search
    for is_exact in (False, True):
        chosen = [(q, depth) for q, depth in sampled if search.is_exact(q, n) == is_exact]
        if chosen:
            yield from searches(s, chosen, is_exact=is_exact)


def searches(s: Sizes, asked: list[tuple[int, int]], *, is_exact: bool) -> Iterator[Load]:
    """What the collections' queries find, one collection after the other. asked: (queries, depth) of each.

    Operations for q queries: through cells 2 q k d to find the probes and 2 q p (n / k) d to score them, and those of
    the queries whose answers are certified; else 2 q n d. Every collection counts as one of their mean size; that
    queries which lack images ask again is left out. See `tasks/nearest.py`.
    """
    n, k, d, load = s.left, s.clusters, s.expect.vector_values, s.machines.load
    search, rounds, groups = s.recipe.retrieve.search, len(asked), cells.num_groups(n)
    queries, kind = sum(q for q, _ in asked), ", exact" if is_exact else ""
    number = min(PROBED, search.max_probes, k)
    flops, pool = 2 * queries * n * d, n * s.vector
    if not is_exact:
        pool = n * (s.vector + 24)
        yield listing(s, "retrieve")
        certified = sum(min(q, search.recall_queries) for q, _ in asked)
        work = s.machines.compute(2 * certified * n * d / rounds)
        moved = {"read": n * s.vector, "memory": n * s.vector / groups}
        yield load("retrieve", "recall", "certified", images=certified, shards=groups, rounds=rounds, **moved, **work)
        flops = 2 * queries * d * (k + number * n / k)
    found = sum(q * depth for q, depth in asked) / rounds
    written = CANDIDATE_BYTES * found * min(groups, groups if is_exact else number)
    moved = {"read": pool + groups * queries / rounds * s.vector, "written": written, "memory": n * s.vector / groups}
    work = s.machines.compute(flops / rounds) | {"images": queries, "shards": groups, "rounds": rounds}
    what = "all compared" if is_exact else "cells scored"
    yield load("retrieve", f"nearest{kind}", what, **moved, **work)
    moved = {
        "read": written,
        "written": CANDIDATE_BYTES * found,
        "memory": written / max(queries, 1) * MERGED_QUERIES * rounds,
    }
    work = {"images": queries, "shards": -(-queries // (MERGED_QUERIES * rounds)), "rounds": rounds}
    seconds = MERGE_S * written / CANDIDATE_BYTES
    yield load("retrieve", f"candidates{kind}", "put together", **moved, **work, core_s=seconds, place="core")
    most = SETTLING_BYTES * max(q * depth for q, depth in asked)
    moved = {
        "read": CANDIDATE_BYTES * found + ID_BYTES * n,
        "written": MATCH_BYTES * found / s.recipe.retrieve.depth(1),
        "memory": most,
    }
    work = {"images": queries, "shards": 1, "rounds": rounds, "core_s": SETTLING_S * found, "place": "one"}
    yield load("retrieve", f"settling{kind}", "in one process", **moved, **work)


def publishing(s: Sizes) -> Iterator[Load]:
    """The selection, the ledger, the dataset: see `tasks/publish.py` and `tasks/ledger.py`."""
    n, chosen, load = s.pool, s.selected, s.machines.load
    moved = {"read": 50 * n + 200 * chosen, "written": 200 * chosen, "memory": SELECTION_BYTES * chosen}
    work = {"images": chosen, "shards": 1, "core_s": DECISION_S * chosen, "place": "one"}
    yield load("publish", "selection", "in one process", **moved, **work)
    moved = {"read": 500 * n, "written": 300 * n, "memory": BATCH_BYTES}
    work = {"images": n, "shards": s.shards, "core_s": LEDGER_S * n, "place": "core"}
    yield load("publish", "ledger", "a row a candidate", **moved, **work)
    if s.recipe.has_own_vectors:
        return
    moved = {"read": chosen * s.image, "written": chosen * s.image, "memory": 2 * BATCH_BYTES}
    work = {"images": chosen, "core_s": PUBLISH_S * chosen, "place": "core"}
    shards = -(-chosen // s.recipe.publish.rows_per_shard)
    yield load("publish", "publish", "images written", shards=shards, **moved, **work)
