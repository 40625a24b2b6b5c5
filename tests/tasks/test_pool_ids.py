"""The image ids of pool rows: in the order asked, wherever they lie."""

import numpy as np
import pytest

from lvd.tasks import pool_ids
from lvd.tests.tasks import planted

ROWS = 60
LEFT_OUT = (0, 7, 8, *range(30, 36), 59)
KEPT = np.setdiff1d(np.arange(ROWS), LEFT_OUT)


@pytest.mark.parametrize("layout", [((ROWS,),), ((20, 0, 10), (6,), (0, 24)), planted.cut(ROWS, 11)])
def test_every_row_has_its_own_id(local_root: str, layout: planted.Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_ids, "TAKEN_ROWS", 16)
    refs = planted.vectors(local_root, "embed", np.ones((ROWS, 2)), layout, left_out=LEFT_OUT)
    rng = np.random.default_rng(0)
    asked = (KEPT, KEPT[::-1], rng.permutation(KEPT), rng.choice(KEPT, 200), KEPT[[20]], KEPT[-3:], KEPT[:0])
    for rows in asked:
        assert pool_ids.image_ids(refs, rows).to_pylist() == [planted.identity(row) for row in rows.tolist()]
