"""What is counted for the report and the card: shards pass by once, counts and small samples stay."""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lvd.infra.shards import ShardRef, read_batches, read_table
from lvd.tasks.contact_sheets import Reservoir
from lvd.tasks.ledger_sample import COLUMNS, Sampler

Ending = tuple[str, str, str, str]  # role, stage, state, reason of a candidate
MAX_DOMAINS = 100_000  # that are counted; of more, the rarest are let go
SHORT_EDGES_PX = (32, 64, 128, 224, 256, 384, 512, 768, 1024, 2048)
SIMILARITY_EDGES = np.linspace(-1, 1, 81)
FACTS = ["image_id", "width", "height", "format", "num_bytes", "domain"]


def endings(ledger: list[ShardRef], sampler: Sampler | None = None) -> Counter[Ending]:
    """How many candidates ended in each way. sampler: is shown every row."""
    counts: Counter[Ending] = Counter()
    names = ["role", "stage", "state", "reason"]
    for ref in ledger:
        table = read_table(ref, COLUMNS if sampler else names)
        if sampler:
            sampler.offer(table)
        for row in table.group_by(names).aggregate([([], "count_all")]).to_pylist():
            counts[tuple(row[name] or "" for name in names)] += row["count_all"]
    return counts


def with_fates(images: list[ShardRef], ledger: list[ShardRef]) -> Iterator[tuple[ShardRef, pa.Table]]:
    """Every shard of images as a table of facts and fates: FACTS, row, state, stage, reason, score, because_of.

    A shard of the ledger ends with the images of its shard, in their order. Raises ValueError if it does not.
    """
    for ref, ledger_ref in zip(images, ledger, strict=True):
        facts = read_table(ref, FACTS)
        fates = read_table(ledger_ref, ["image_id", "state", "stage", "reason", "score", "because_of"])
        fates = fates.slice(max(0, len(fates) - ref.rows))
        if not fates["image_id"].equals(facts["image_id"]):
            raise ValueError(f"{ledger_ref.name()} must end with the images of {ref.name()}, it has others")
        for name in ("state", "stage", "reason", "score", "because_of"):
            facts = facts.append_column(name, fates[name])
        first = ref.base + ref.first_row
        yield ref, facts.append_column("row", pa.array(np.arange(first, first + ref.rows)))


class Profile:
    """Formats, sizes and domains of images: of what came in, and of what was published."""

    def __init__(self) -> None:
        self.fetched = {name: Counter() for name in ("format", "short_edge", "domain")}
        self.kept = {name: Counter() for name in self.fetched}
        self.with_domain = {"fetched": 0, "kept": 0}  # images, also of the domains that are let go
        self.bytes_fetched = self.bytes_kept = 0

    def add(self, table: pa.Table, *, is_pool: bool) -> None:
        """table: as `with_fates` gives it. Curated images count as published only: they were no choice of the chain."""
        kept = table.filter(pc.equal(table["state"], "kept"))
        fetched = table if is_pool else table.slice(0, 0)
        for side, counters, part in (("fetched", self.fetched, fetched), ("kept", self.kept, kept)):
            self.with_domain[side] += len(part) - part["domain"].null_count
            short = pc.min_element_wise(part["width"], part["height"]).to_numpy()
            counters["short_edge"].update(np.searchsorted(SHORT_EDGES_PX, short, side="right").tolist())
            for name in ("format", "domain"):
                counters[name].update(value_counts(part[name]))
            counters["domain"] = most_common(counters["domain"])
        self.bytes_fetched += (pc.sum(table["num_bytes"]).as_py() or 0) if is_pool else 0
        self.bytes_kept += pc.sum(kept["num_bytes"]).as_py() or 0


def value_counts(column: pa.ChunkedArray) -> dict[str, int]:
    """Value → rows that have it; null is left out."""
    found = column.value_counts().to_pylist()
    return {pair["values"]: pair["counts"] for pair in found if pair["values"] is not None}


def most_common(counts: Counter[str], limit: int = MAX_DOMAINS) -> Counter[str]:
    """The counts, cut to the `limit` largest once there are twice as many."""
    return counts if len(counts) <= 2 * limit else Counter(dict(counts.most_common(limit)))


def add_domains(domains: set[str], table: pa.Table) -> None:
    """Adds the domains of the published images, up to MAX_DOMAINS. table: as `with_fates` gives it."""
    kept = pc.unique(table.filter(pc.equal(table["state"], "kept"))["domain"]).drop_null()
    domains.update(kept.slice(0, max(0, MAX_DOMAINS - len(domains))).to_pylist())


def faces_blurred(dataset: list[ShardRef]) -> int:
    """Faces that were blurred in the published images."""
    return sum(pc.sum(read_table(ref, ["faces_blurred"])["faces_blurred"]).as_py() or 0 for ref in dataset)


def short_edge_names() -> list[str]:
    """The names of the bins of `Profile`'s short edges."""
    pairs = pairwise(SHORT_EDGES_PX)
    return [
        f"below {SHORT_EDGES_PX[0]}",
        *(f"{low:,} to {high - 1:,}" for low, high in pairs),
        f"{SHORT_EDGES_PX[-1]:,} and more",
    ]


def rejected_examples(shards: list[ShardRef], size: int, rng: np.random.Generator) -> Reservoir:
    """A sample of the rejects of these shards by reason: key and error."""
    sample = Reservoir(size, rng)
    for ref in shards:
        for batch in read_batches(ref, ["key", "reason", "error"], kind="rejects"):
            table = pa.Table.from_batches([batch])
            sample.offer(table["reason"].to_numpy(), table)
    return sample


def published_counts(dataset: list[ShardRef]) -> tuple[Counter[str], Counter[str]]:
    """Published images by role, and by the collection that they were retrieved for (an image can count for several)."""
    roles, collections = Counter(), Counter()
    for ref in dataset:
        for batch in read_batches(ref, ["role", "retrieved_for"]):
            roles.update(value_counts(pa.chunked_array([batch["role"]])))
            collections.update(value_counts(pa.chunked_array([pc.list_flatten(batch["retrieved_for"])])))
    return roles, collections


def licenses(dataset: list[ShardRef]) -> Counter[str]:
    """Published images by their licence as found; under "" those that state none."""
    counts: Counter[str] = Counter()
    for ref in dataset:
        counts.update(value_counts(pc.fill_null(read_table(ref, ["license"])["license"], "")))
        counts = most_common(counts)
    return counts


def match_overview(matches: list[ShardRef], count: int) -> tuple[np.ndarray, list[str]]:
    """Similarities of a collection's matches counted between SIMILARITY_EDGES, (80,) int64, and queries worth a look.

    The queries: half at random (the lowest ids, which are hashes), half those of the lowest similarities.
    """
    counts = np.zeros(len(SIMILARITY_EDGES) - 1, dtype=np.int64)
    names = ["query_id", "similarity"]
    random_ids: set[str] = set()
    low = pa.schema([("query_id", pa.string()), ("similarity", pa.float32())]).empty_table()
    for ref in matches:
        for batch in read_batches(ref, names):
            table = pa.Table.from_batches([batch.replace_schema_metadata(None)]).select(names)
            similarity = np.clip(table["similarity"].to_numpy(), -1, 1)
            counts += np.histogram(similarity, SIMILARITY_EDGES)[0]
            table = table.filter(pc.is_valid(table["query_id"]))  # a balanced selection has no queries
            random_ids = set(sorted(random_ids | set(pc.unique(table["query_id"]).to_pylist()))[:count])
            lowest = pa.concat_tables([low, table]).group_by("query_id").aggregate([("similarity", "min")])
            lowest = lowest.rename_columns({"similarity_min": "similarity"}).select(names)
            low = lowest.sort_by([("similarity", "ascending"), ("query_id", "ascending")]).slice(0, count)
    doubtful = low["query_id"].to_pylist()[: count // 2]
    others = sorted(random_ids - set(doubtful))[: count - len(doubtful)]
    return counts, [*others, *doubtful]


def matches_of(matches: list[ShardRef], query_ids: list[str], count: int) -> dict[str, dict[str, Any]]:
    """query id → its number of matches, its cluster (for cluster-based retrieval), and its `count` first by rank."""
    names = ["query_id", "row", "rank", "similarity", "cluster_id"]
    sizes: Counter[str] = Counter()
    first: dict[str, pa.Table] = {}
    wanted = pa.array(query_ids, type=pa.string())
    for ref in matches:
        for batch in read_batches(ref, names):
            table = pa.Table.from_batches([batch.replace_schema_metadata(None)])
            table = table.filter(pc.is_in(table["query_id"], wanted))
            for query_id, size in value_counts(table["query_id"]).items():
                here = table.filter(pc.equal(table["query_id"], query_id))
                both = pa.concat_tables([first[query_id], here]) if query_id in first else here
                first[query_id] = both.sort_by([("rank", "ascending"), ("row", "ascending")]).slice(0, count)
                sizes[query_id] += size
    rows = {query_id: first[query_id].to_pylist() for query_id in query_ids if query_id in first}
    return {q: {"size": sizes[q], "cluster_id": found[0]["cluster_id"], "rows": found} for q, found in rows.items()}


def spread_clusters(sizes: np.ndarray, count: int) -> list[int]:
    """Clusters that are not empty, from the largest to the smallest, evenly spread over that order."""
    order = np.lexsort((np.arange(len(sizes)), -sizes))
    order = order[sizes[order] > 0]
    return order[np.unique(np.linspace(0, len(order) - 1, count).astype(np.int64))].tolist() if len(order) else []


def nearest_to_centroids(cells: list[ShardRef], clusters: list[int], count: int) -> dict[int, list[dict[str, Any]]]:
    """Cluster → its `count` images nearest to the centroid: row (of the pool) and similarity."""
    nearest: dict[int, pa.Table] = {}
    for ref in cells:
        table = read_table(ref, ["row", "cluster_id", "similarity"])
        for cluster in clusters:
            here = table.filter(pc.equal(table["cluster_id"], cluster))
            both = pa.concat_tables([nearest[cluster], here]) if cluster in nearest else here
            nearest[cluster] = both.sort_by([("similarity", "descending"), ("row", "ascending")]).slice(0, count)
    return {cluster: found.to_pylist() for cluster, found in nearest.items()}
