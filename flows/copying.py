"""What the report and the published list say about copies: the search, the components, what was decontaminated."""

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lvd.flows.collected import Sources
from lvd.flows.forgetting import withdrawn_ids
from lvd.flows.inquiry import keys_of
from lvd.infra.shards import ShardRef, StageDir, gather_rows, read_table
from lvd.tasks import report, schemas
from lvd.tasks.recall import Recall
from lvd.tasks.takedowns import FORGOTTEN

SEARCHES = {"neighbours": "within the pool", "references": "pool against references"}


def searches(notes: dict[str, Any]) -> tuple[report.Search, ...]:
    """How neighbours were searched for. notes: of the decision about copies."""
    return tuple(
        report.Search(what=text, engine=notes["search"][stage]["engine"], recall=recall and Recall(**recall))
        for stage, text in SEARCHES.items()
        for recall in [notes["search"][stage]["recall"]]
    )


def components(survivors: StageDir, notes: dict[str, Any]) -> report.Components:
    """What the components of the copy graph came to."""
    table = read_table(side(survivors, notes["components"]))
    lowest = table["min_similarity"].to_numpy()
    return report.Components(
        count=len(table),
        largest=pc.max(table["size"]).as_py() or 0,
        lowest=float(lowest.min()) if len(lowest) else 1.0,
        chained=int((lowest < np.float32(notes["thresholds"]["min_similarity"])).sum()),
    )


def side(survivors: StageDir, directory: str) -> ShardRef:
    """The one shard of a directory beside the fates."""
    stage, name = directory.split("/")
    return StageDir(root=survivors.root, stage=stage, fingerprint=name).shards()[0]


def decontaminated(sources: Sources, survivors: StageDir, notes: dict[str, Any]) -> bytes:
    """The list of pool images that went because of a reference, as Parquet, in the order of the pool.

    Those that were taken down are left out; a reference that was has no key.

    `key` and `url` of the pool image, `reference_key` of the image that it copies, beside schemas.DECONTAMINATED.
    """
    table = read_table(side(survivors, notes["decontaminated"]))
    ended = gather_rows(survivors.shards(), table["row"].to_numpy(), ["stage"])["stage"].to_numpy()
    table = table.filter(pa.array(ended != FORGOTTEN))
    rows = table["row"].to_numpy()
    names = gather_rows(sources.pool.images(), rows, ["key", "url"]) if len(rows) else None
    references = [ref for gathered in sources.references for ref in gathered.images()]
    keys = keys_of(references, set(table["reference_id"].to_pylist()) - withdrawn_ids(sources, survivors))
    columns = {
        "key": names["key"] if names else pa.array([], pa.string()),
        "url": names["url"] if names else pa.array([], pa.string()),
        "reference_key": pa.array([keys.get(found) for found in table["reference_id"].to_pylist()], pa.string()),
        **{name: table[name] for name in schemas.DECONTAMINATED.names if name != "row"},
    }
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()
