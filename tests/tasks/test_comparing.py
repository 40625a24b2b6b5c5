"""Rows of versions beside each other: names and values by their hashes, fates by bytes and by name."""

import numpy as np
import pyarrow as pa
import pytest

from lvd.infra.shards import ShardRef
from lvd.infra.writing import write_shard
from lvd.tasks import schemas
from lvd.tasks.comparing import (
    ABSENT,
    REPLACED,
    Fate,
    Wanted,
    compared,
    digests,
    place,
    read_rows,
    value_hashes,
)
from lvd.tests.tasks.planted import identity


def test_names_have_digests_of_their_own() -> None:
    names = ["a", "b", "", "ä", None, "None"]
    assert len(set(digests(names).tolist())) == len(names)
    np.testing.assert_array_equal(digests(names), digests(iter(names)))
    assert len(digests([])) == 0


@pytest.mark.parametrize("there", [[], ["b"], ["a", "c", "b"]])
def test_names_are_placed_among_others(there: list[str]) -> None:
    names, wanted = np.sort(digests(there)), ["b", "x", "a"]
    found = place(names, digests(wanted))
    assert [names[n] if n >= 0 else None for n in found] == [
        digests([name])[0] if name in there else None for name in wanted
    ]


def test_values_differ_by_type_and_content() -> None:
    values = pa.table({"text": ["1", "2", "1", None, "None"], "list": [["a", "b"], ["ab"], ["a", "b"], [], None]})
    hashes = value_hashes(values)
    assert hashes.shape == (5, 2)
    assert len(set(hashes[:, 0].tolist())) == 4 and len(set(hashes[:, 1].tolist())) == 4
    np.testing.assert_array_equal(hashes[0], hashes[2])
    assert value_hashes(pa.table({"number": [1]}))[0, 0] != hashes[0, 0]
    assert value_hashes(values.select([])).shape == (5, 0) == value_hashes(values.slice(0, 5).select([])).shape
    assert value_hashes(values.slice(0, 0)).shape == (0, 2)


def test_an_image_that_stands_in_several_shards_counts_once(local_root: str) -> None:
    refs = [ShardRef(root=local_root, directory=f"published/{n}", index=0, count=1) for n in range(2)]
    for number, ref in enumerate(refs):
        with write_shard(ref, schemas.CURATED, {}) as shard:
            for image in (5, 3 + number):
                shard.keep({"image_id": identity(image), "role": "curated", "width": number})
    columns = compared(schemas.CURATED.names)
    assert {"image", "image_id"}.isdisjoint(columns) and {"role", "similarity", "cluster_id"} < {*columns}
    rows = read_rows(refs, ["width"])
    assert sorted(rows.images.tolist()) == rows.images.tolist() == sorted(digests(map(identity, (3, 4, 5))).tolist())
    first = value_hashes(pa.table({"width": pa.array([0], pa.int32())}))[0]
    np.testing.assert_array_equal(rows.values[place(rows.images, digests([identity(5)]))[0]], first)


def candidate(key: str, image: int | None, state: str, reason: str, source: str = "s") -> dict[str, str | None]:
    image_id = None if image is None else identity(image)
    own = {"key": key, "image_id": image_id, "state": state, "reason": reason, "source": source}
    return {**own, "stage": "s", "because_of": f"{key}'s cause"}


OTHER = {"image_id": identity(7), "source": None, "key": None}
IMAGE = {"image_id": identity(1), "source": "s", "key": "k"}
BYTES = [  # the candidates with its bytes, the one that tells first
    candidate("x", 1, "kept", "retrieved"),
    candidate("y", 1, "dropped", "copy"),
    candidate("z", 1, "dropped", "exact_duplicate"),
    candidate("k", 2, "kept", "retrieved"),  # its name only
]


@pytest.mark.parametrize("best", range(len(BYTES)))
@pytest.mark.parametrize("backwards", [False, True])
def test_of_several_candidates_the_one_that_got_furthest_tells(best: int, backwards: bool) -> None:
    wanted, rows = Wanted(pa.Table.from_pylist([OTHER, IMAGE]), has_causes=True), BYTES[best:]
    for row in reversed(rows) if backwards else rows:
        wanted.look(pa.Table.from_pylist([row, candidate("other", 9, "kept", "retrieved")]))
    row = BYTES[best]
    of_bytes = Fate(state=row["state"], stage="s", reason=row["reason"], because_of=f"{row['key']}'s cause")
    assert wanted.fate(1) == (Fate(state=REPLACED, because_of=row["image_id"]) if row["key"] == "k" else of_bytes)
    assert wanted.fate(0) == Fate(state=ABSENT)
    kinds = [wanted.kinds[number] for number in wanted.fates()]
    assert kinds == [wanted.fate(number).model_copy(update={"because_of": None}) for number in range(2)]


def test_a_name_is_that_of_one_source() -> None:
    wanted = Wanted(pa.Table.from_pylist([IMAGE]))
    wanted.look(pa.Table.from_pylist([candidate("k", None, "failed", "http_404", source="another")]))
    assert wanted.fate(0).state == ABSENT
    wanted.look(pa.Table.from_pylist([candidate("k", None, "failed", "http_404")]))
    assert wanted.fate(0) == Fate(state="failed", stage="s", reason="http_404"), "causes only if they were asked for"


def test_images_of_one_name_have_one_fate_each() -> None:
    """Two nights can bring other bytes under one URL: both are published, and neither hides the other."""
    wanted = Wanted(pa.Table.from_pylist([{**IMAGE, "image_id": identity(n)} for n in (1, 2, 3)]))
    wanted.look(pa.Table.from_pylist([candidate("k", 3, "dropped", "copy"), candidate("x", 2, "kept", "retrieved")]))
    assert [wanted.fate(number).state for number in range(3)] == [REPLACED, "kept", "dropped"]
