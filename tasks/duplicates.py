"""The images that went as semantic duplicates: a sorted run, by pool row."""

import pyarrow as pa

from lvd.infra.runs import read_range
from lvd.infra.shards import ShardRef

SCHEMA = pa.schema([("row", pa.int64()), ("because_of", pa.string()), ("similarity", pa.float32())])


def duplicates_between(duplicates: ShardRef, first: int, stop: int) -> pa.Table:
    """The duplicates whose pool rows are in [first, stop)."""
    table = read_range(duplicates, first, stop)
    rows = table["row"].to_numpy()
    return table.filter(pa.array((rows >= first) & (rows < stop)))
