"""Looking up against a plain scan: ids that are null, that lie in many rows, that are no hash."""

import numpy as np
import pyarrow as pa
import pytest

from lvd.tasks import lookup
from lvd.tasks.lookup import Ids


def ids_of(number: int) -> list[str | None]:
    rng = np.random.default_rng(3)
    own = [rng.bytes(16).hex() for _ in range(number // 3)] + [f"name-{n}" for n in range(20)] + [None, "", "é" * 16]
    return [own[place] for place in rng.integers(0, len(own), number)]


@pytest.mark.parametrize("shard", [1, 7, 400])
def test_every_row_of_an_id_is_found_and_no_other(shard: int) -> None:
    ids = ids_of(400)
    table = pa.table({"image_id": pa.array(ids, pa.string())})
    index = Ids(len(ids), ((first, table.slice(first, shard)) for first in range(0, len(ids), shard)))
    for image_id in {one for one in ids if one is not None}:
        wanted = [place for place, one in enumerate(ids) if one == image_id]
        assert index.positions(image_id, 1000) == wanted
        assert index.positions(image_id, 2) == wanted[:2]
    assert index.positions("0" * 32, 10) == index.positions("other", 10) == []


def test_a_slice_has_the_ids_that_it_shows() -> None:
    whole = pa.array([np.random.default_rng(n).bytes(16).hex() for n in range(9)])
    assert np.array_equal(lookup.keys_of(whole)[3:7], lookup.keys_of(whole.slice(3, 4)))
    assert len(set(lookup.keys_of(whole).tolist())) == 9


def test_nothing_has_no_rows() -> None:
    assert Ids(0, []).positions("0" * 32, 5) == []
