"""The image ids of rows of the pool, wherever they lie."""

import numpy as np
import pyarrow as pa

from lvd.infra.shards import ShardRef, read_table

TAKEN_ROWS = 1 << 20  # whose ids become one chunk, which holds 2 GB at most


def image_ids(pool: list[ShardRef], rows: np.ndarray) -> pa.ChunkedArray:
    """Image ids of pool rows, in the order asked. Memory: one shard, and the result twice. Reads 44 bytes a row of the
    pool.

    pool: a sidecar that has all of them.
    """
    order = np.argsort(rows, kind="stable")
    wanted, parts, taken = rows[order], [], 0
    for ref in pool:
        table = read_table(ref, ["row", "image_id"])
        own = table["row"].to_numpy() + ref.base
        stop = int(np.searchsorted(wanted, own[-1], side="right")) if len(own) else taken
        if stop > taken:
            ids = table["image_id"].take(pa.array(np.searchsorted(own, wanted[taken:stop])))
            parts.append(ids.cast(pa.large_string()))  # more than 2 GB together
            taken = stop
    back = np.empty(len(order), dtype=np.int64)
    back[order] = np.arange(len(order))
    chunks = [chunk.cast(pa.large_string()) for part in parts for chunk in part.chunks]  # Arrow takes from 2 GB at most
    found = pa.concat_arrays([pa.array([], pa.large_string()), *chunks])
    slices = [back[start : start + TAKEN_ROWS] for start in range(0, len(back), TAKEN_ROWS)]
    return pa.chunked_array([found.take(pa.array(some)).cast(pa.string()) for some in slices], type=pa.string())
