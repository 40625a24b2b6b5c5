"""Own vectors: what files of every kind come to, what is refused in one line, and the fate of each vector."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lvd.infra.errors import InputError
from lvd.infra.shards import ShardRef, read_table
from lvd.tasks import own_vectors, schemas, semantic
from lvd.tasks.own_vectors import Piece, Synthetic, Vectors
from lvd.tasks.publish import Matched
from lvd.tests.tasks import planted

DIM = 4
VALUES = np.random.default_rng(0).normal(size=(23, DIM)) * 3
LISTS = {
    "list": pa.list_(pa.float32()),
    "large list": pa.large_list(pa.float64()),
    "fixed": pa.list_(pa.float32(), DIM),
    "halves": pa.list_(pa.float16(), DIM),
}


@pytest.fixture(autouse=True)
def no_file_waits_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda file: None)


def imported(root: str, pieces: list[Piece]) -> list[ShardRef]:
    return planted.computed(
        root, "imported", len(pieces), lambda ref: own_vectors.import_shard.fn(pieces[ref.index], ref)
    )


def rows_of(refs: list[ShardRef], kind: str = "data") -> list[dict[str, Any]]:
    return [row for ref in refs for row in read_table(ref, kind=kind).to_pylist()]


def vectors_of(refs: list[ShardRef]) -> np.ndarray:
    return np.array([row["vector"] for row in rows_of(refs)])


def saved(folder: Path, name: str, values: np.ndarray) -> Vectors:
    np.save(folder / name, values)
    return Vectors(path=str(folder / name))


def parquet(path: Path, kind: pa.DataType, values: list[Any], *, row_group: int = 1000, **columns: Any) -> Vectors:
    """columns: more of them, before the vectors."""
    table = pa.table({**columns, "vector": pa.array(values, kind)})
    pq.write_table(table, path, row_group_size=row_group)
    return Vectors(path=str(path))


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4", ">f8"])
def test_numpy_becomes_unit_float16(tmp_path: Path, local_root: str, dtype: str) -> None:
    source = saved(tmp_path, "a.npy", VALUES.astype(dtype))
    refs = imported(local_root, own_vectors.pieces(source))
    rows = rows_of(refs)
    assert [row["row"] for row in rows] == [*range(len(VALUES))]
    assert [row["image_id"] for row in rows] == [f"{tmp_path}/a.npy/{n:010d}" for n in range(len(VALUES))]
    assert read_table(refs[0]).schema.field("vector").type == pa.list_(pa.float16(), DIM)
    np.testing.assert_allclose(vectors_of(refs), planted.unit(VALUES.astype(dtype)), atol=1e-3)


@pytest.mark.parametrize("rows_per_piece", [1, 5, 100])
@pytest.mark.parametrize("row_group", [4, 1000])
@pytest.mark.parametrize("kind", LISTS)
def test_parquet_is_cut_anywhere_and_says_the_same(
    tmp_path: Path, local_root: str, monkeypatch: pytest.MonkeyPatch, kind: str, row_group: int, rows_per_piece: int
) -> None:
    monkeypatch.setattr(own_vectors, "ROWS_PER_PIECE", rows_per_piece)
    values = [*VALUES.astype(np.float16)]
    numbers = [None, *range(101, 100 + len(VALUES))]
    parquet(tmp_path / "a.parquet", LISTS[kind], values, row_group=row_group, number=numbers)
    pieces = own_vectors.pieces(Vectors(path=str(tmp_path / "a.parquet"), id_column="number"))
    assert [piece.rows for piece in pieces[:-1]] == [rows_per_piece] * (len(pieces) - 1)
    refs = imported(local_root, pieces)
    rows = rows_of(refs)
    # a vector without a name of its own is called by its place
    names = [f"{tmp_path}/a.parquet/{0:010d}", *(str(number) for number in numbers[1:])]
    assert [(row["row"], row["image_id"]) for row in rows] == [*enumerate(names)]
    np.testing.assert_allclose(vectors_of(refs), planted.unit(VALUES), atol=2e-3)


def test_files_of_a_folder_follow_one_another(tmp_path: Path, local_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_vectors, "ROWS_PER_PIECE", 5)
    (tmp_path / "in" / "deep").mkdir(parents=True)
    saved(tmp_path, "in/b.npy", VALUES[:7])
    saved(tmp_path, "in/deep/c.npy", VALUES[7:11])
    saved(tmp_path, "in/empty.npy", VALUES[:0])
    parquet(tmp_path / "in/d.parquet", LISTS["list"], [*VALUES[11:]])
    (tmp_path / "in/readme.txt").write_text("no vectors")
    pieces = own_vectors.pieces(Vectors(path=str(tmp_path / "in")))
    more = own_vectors.pieces(saved(tmp_path, "more.npy", VALUES[:2]), start=23)
    assert [(p.file.rsplit("/", 1)[1], p.first, p.rows, p.start) for p in [*pieces, *more]] == [
        ("b.npy", 0, 5, 0),
        ("b.npy", 5, 2, 5),
        ("d.parquet", 0, 5, 7),
        ("d.parquet", 5, 5, 12),
        ("d.parquet", 10, 2, 17),
        ("c.npy", 0, 4, 19),
        ("more.npy", 0, 2, 23),
    ]
    rows = rows_of(imported(local_root, [*pieces, *more]))
    assert [row["row"] for row in rows] == [*range(25)]
    assert len({row["image_id"] for row in rows}) == 25
    expected = planted.unit(np.concatenate([VALUES[:7], VALUES[11:], VALUES[7:11], VALUES[:2]]))
    np.testing.assert_allclose([row["vector"] for row in rows], expected, atol=2e-3)
    glob = own_vectors.pieces(Vectors(path=f"{tmp_path}/in/*.npy"))
    assert [(piece.file.rsplit("/", 1)[1], piece.rows) for piece in glob] == [("b.npy", 5), ("b.npy", 2)]


def test_what_has_no_direction_is_rejected_and_nothing_else(
    tmp_path: Path, local_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_vectors, "ROWS_PER_PIECE", 6)
    values = VALUES.copy()
    values[0, 2], values[3], values[5, 0], values[6, 1], values[17:21] = np.nan, 0, np.inf, -np.inf, np.nan
    values[1] *= 1e300  # its square is more than a float64 holds, and so is it than a float32
    values[2] *= 1e-310  # subnormal, its square is nothing
    values[7] *= 1e30
    bad = [0, 3, 5, 6, *range(17, 21)]
    refs = imported(local_root, own_vectors.pieces(saved(tmp_path, "a.npy", values)))
    good = np.setdiff1d(np.arange(len(values)), bad)
    assert [row["row"] for row in rows_of(refs)] == good.tolist()
    np.testing.assert_allclose(vectors_of(refs), planted.unit(VALUES[good]), atol=1e-3)
    rejects = rows_of(refs, "rejects")
    name = f"{tmp_path}/a.npy"
    assert [(r["row"], r["key"], r["image_id"]) for r in rejects] == [(n, *[f"{name}/{n:010d}"] * 2) for n in bad]
    assert {(r["state"], r["reason"]) for r in rejects} == {("failed", "not_finite")}


@pytest.mark.parametrize("kind", LISTS)
def test_null_in_parquet_is_rejected(tmp_path: Path, local_root: str, kind: str) -> None:
    values = [None, *VALUES[1:].tolist()]
    values[4], values[9] = None, [1.0, None, 1.0, 1.0]
    values = [None if v is None else [x if x is None else np.float16(x) for x in v] for v in values]
    refs = imported(local_root, own_vectors.pieces(parquet(tmp_path / "a.parquet", LISTS[kind], values)))
    good = np.setdiff1d(np.arange(len(values)), [0, 4, 9])
    assert [row["row"] for row in rows_of(refs)] == good.tolist()
    np.testing.assert_allclose(vectors_of(refs), planted.unit(VALUES[good]), atol=2e-3)
    assert [row["row"] for row in rows_of(refs, "rejects")] == [0, 4, 9]


def truncated(path: Path) -> None:
    np.save(path, VALUES)
    path.write_bytes(path.read_bytes()[:-5])


NUMPY: dict[str, tuple[Callable[[Path], Any], str]] = {
    "by columns": (lambda path: np.save(path, np.asfortranarray(VALUES)), r"shape \(23, 4\), column by column: save"),
    "one row": (lambda path: np.save(path, VALUES[0]), r"a\.npy has float64 of shape \(4,\): save it as numpy"),
    "a cube": (lambda path: np.save(path, VALUES[:, :, None]), r"float64 of shape \(23, 4, 1\)"),
    "integers": (lambda path: np.save(path, VALUES.astype(np.int8)), r"a\.npy has int8 of shape"),
    "objects": (lambda path: np.save(path, VALUES.astype(object)), r"a\.npy has object of shape"),
    "no values": (lambda path: np.save(path, VALUES[:, :0]), r"of shape \(23, 0\)"),
    "no rows": (lambda path: np.save(path, VALUES[:0]), r"files with at least 1 vector, was '.*a\.npy': all are empty"),
    "truncated": (truncated, r"whole files, .*a\.npy has 731 of 736 bytes of values: copy it again"),
    "no head": (
        lambda path: path.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr'"),
        r"files of NumPy, .*a\.npy is none",
    ),
    "text": (lambda path: path.write_text("1 2 3"), r"files of NumPy, .*a\.npy is none: "),
    "nothing": (lambda path: path.touch(), r"files of NumPy, .*a\.npy is none: "),
}


@pytest.mark.parametrize("name", NUMPY)
def test_files_of_numpy_that_are_refused(tmp_path: Path, name: str) -> None:
    write, message = NUMPY[name]
    write(tmp_path / "a.npy")
    refused(Vectors(path=str(tmp_path / "a.npy")), f"^path must lead to .*{message}")


def refused(source: Vectors, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        own_vectors.pieces(source)
    assert "\n" not in str(caught.value)


def test_parquet_that_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    found = parquet(path, LISTS["list"], [*VALUES], words=["a"] * len(VALUES), whole=[[1]] * len(VALUES))
    known = "it has words, whole, vector"
    for change, message in (
        ({"vector_column": "vectors"}, rf"^vector_column must be a column of .*a\.parquet, was 'vectors': {known}"),
        ({"id_column": "id"}, rf"^id_column must be a column of .*a\.parquet, was 'id': {known}"),
        (
            {"vector_column": "words"},
            r"^vector_column must have lists of floating-point values, 'words' of .* has string",
        ),
        ({"vector_column": "whole"}, r"^vector_column must have lists of floating-point values, 'whole' of .*int64"),
    ):
        refused(found.model_copy(update=change), message)
    parquet(path, LISTS["list"], [None, None])
    refused(found, r"^path must lead to files with at least 1 vector")
    path.write_bytes(path.read_bytes()[:-9])
    refused(found, r"^path must lead to files of Parquet, .*a\.parquet is none")


def test_vectors_of_unlike_lengths_are_refused(
    tmp_path: Path, local_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_vectors, "ROWS_PER_PIECE", 10)
    values = VALUES.tolist()
    values[14] = values[14][:3]
    pieces = own_vectors.pieces(parquet(tmp_path / "a.parquet", LISTS["list"], values))
    with pytest.raises(
        InputError, match=r"a\.parquet: all vectors must have 4 values, as the first, row 14 has 3: mend"
    ):
        imported(local_root, pieces)
    saved(tmp_path, "b.npy", VALUES[:, :3])
    refused(Vectors(path=str(tmp_path)), r"of one length, .*a\.parquet has 4 values, .*b\.npy 3: leave one out")


@pytest.mark.parametrize("path", ["none", "none.npy", "*.npy", "a.txt"])
def test_a_path_without_vectors(tmp_path: Path, path: str) -> None:
    (tmp_path / "a.txt").write_text("no vectors")
    refused(Vectors(path=f"{tmp_path}/{path}"), r"^path must lead to files that end in \.npy or \.parquet, was .*none$")


def test_an_unknown_protocol() -> None:
    refused(Vectors(path="nowhere://a.npy"), r"^path must be readable, was 'nowhere://a\.npy': .*nowhere")


def test_files_on_s3(tmp_path: Path, s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_vectors, "ROWS_PER_PIECE", 8)
    saved(tmp_path, "a.npy", VALUES[:11])
    parquet(tmp_path / "b.parquet", LISTS["list"], [*VALUES[11:]], row_group=5)
    fs, folder = fsspec.core.url_to_fs(s3_root.replace("root", "vectors"))
    for name in ("a.npy", "b.parquet"):
        fs.put_file(str(tmp_path / name), f"{folder}/{name}")
    for path in (folder, f"{folder}/*.*"):
        pieces = own_vectors.pieces(Vectors(path=f"s3://{path}"))
        assert [piece.rows for piece in pieces] == [8, 3, 8, 4]
    rows = rows_of(imported(s3_root, pieces))
    names = [f"{folder}/a.npy/{n:010d}" for n in range(11)] + [f"{folder}/b.parquet/{n:010d}" for n in range(12)]
    assert [row["image_id"] for row in rows] == names
    np.testing.assert_allclose([row["vector"] for row in rows], planted.unit(VALUES), atol=1e-3)
    before = own_vectors.identity(pieces[0].file)
    assert own_vectors.identity(pieces[0].file) == before
    saved(tmp_path, "a.npy", VALUES[1:12])  # as long as the other
    fs.put_file(str(tmp_path / "a.npy"), f"{folder}/a.npy")
    own_vectors.pieces(Vectors(path=f"s3://{folder}"))
    assert own_vectors.identity(pieces[0].file) != before


def test_a_changed_file_is_another(tmp_path: Path) -> None:
    (piece,) = own_vectors.pieces(saved(tmp_path, "a.npy", VALUES))
    os.utime(tmp_path / "a.npy", (1, 1))
    before = own_vectors.identity(piece.file)
    assert own_vectors.identity(piece.file) == before
    os.utime(tmp_path / "a.npy", (1, 2))
    touched = own_vectors.identity(piece.file)
    np.save(tmp_path / "a.npy", VALUES[:5])
    os.utime(tmp_path / "a.npy", (1, 2))
    assert len({str(before), str(touched), str(own_vectors.identity(piece.file))}) == 3
    assert own_vectors.identity("") is None  # of what is drawn


def test_drawn_vectors_lie_about_groups(local_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_vectors, "ROWS_PER_PIECE", 150)
    one, other = (Synthetic(rows=400, dim=32, groups=3, spread=0.3, seed=4, draw=draw) for draw in (0, 1))
    pieces = [*own_vectors.pieces(one), *own_vectors.pieces(other, start=400)]
    assert [piece.rows for piece in pieces] == [150, 150, 100] * 2
    refs = imported(local_root, pieces)
    rows, similarity = rows_of(refs), planted.cosine(vectors_of(refs), vectors_of(refs))
    assert len({row["image_id"] for row in rows}) == 800 and [row["row"] for row in rows] == [*range(800)]
    group = (similarity[:, :800] > 0.5).argmax(axis=1)  # the first row of the same group
    assert len(np.unique(group)) == 3, "both draws have the same groups"
    assert (np.bincount(np.searchsorted(np.unique(group), group)) > 200).all()
    assert len(np.unique(similarity[0].round(3))) > 100, "no row stands twice"
    np.testing.assert_array_equal(own_vectors.read_piece(pieces[1])[0], own_vectors.read_piece(pieces[1])[0])


# Of 12 rows in pieces of 5: rows 3 and 4 have no direction, 1 and 8 mean the same as others.
BAD, SAME = (3, 4), {1: 0, 8: 11}
CHOSEN = {  # pool row: for which collections, nearest query, similarity
    0: (["near"], "q-0", 0.5),
    7: (["near", "shares"], "q-1", 0.75),
    11: (["shares"], None, 0.25),
}


class Fates:
    """A pool of three pieces of which some are chosen."""

    def __init__(self, root: str, folder: Path) -> None:
        values = VALUES[:12].copy()
        values[list(BAD)] = 0
        np.save(folder / "a.npy", values)
        self.pieces = own_vectors.pieces(Vectors(path=str(folder / "a.npy"), source="mine"))
        self.names = [f"{folder}/a.npy/{n:010d}" for n in range(12)]
        self.vectors = imported(root, self.pieces)
        cells = [
            {"row": n, "image_id": self.names[n], "cluster_id": 0, "similarity": 1.0}
            for n in range(12)
            if n not in (*BAD, *SAME)
        ]
        self.cells = planted.stage(root, "cells", schemas.CELLS, cells, ((8,),))
        self.matched = [self._matches(root, "near", 0.9), self._matches(root, "shares", 1.0)]
        alike = [{"row": row, "kept": kept, "similarity": 0.97} for row, kept in SAME.items()]
        alike_refs = planted.stage(root, "alike", semantic.ALIKE, dict(zip(SAME, alike, strict=True)), ((12,),))
        pool = planted.series(self.vectors)
        (self.duplicates,) = planted.computed(
            root, "gone", 1, lambda ref: semantic.name_duplicates.fn(planted.series(alike_refs), pool, ref)
        )

    def _matches(self, root: str, name: str, factor: float) -> Matched:
        """factor: of the similarity, so that one collection's match is nearer."""
        rows = [
            {"row": row, "image_id": self.names[row], "query_id": query, "similarity": factor * s, "dataset": name}
            for row, (names, query, s) in CHOSEN.items()
            if name in names
        ]
        refs = planted.stage(root, f"matches-{name}", schemas.MATCHES, rows, ((len(rows),),))
        return Matched(name=name, shards=tuple(refs))


@pytest.fixture
def fates(local_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fates:
    monkeypatch.setattr(own_vectors, "ROWS_PER_PIECE", 5)
    return Fates(local_root, tmp_path)


def chosen(root: str, fates: Fates, left: list[ShardRef] | None = None) -> ShardRef:
    return planted.computed(
        root, "chosen", 1, lambda ref: own_vectors.choose.fn(fates.matched, left, ref), called=f"{left is None}"
    )[0]


def ledger(root: str, fates: Fates, picked: ShardRef | None, *, gone: bool) -> list[dict[str, Any]]:
    """By row, without what is the same for all."""
    duplicates = fates.duplicates if gone else None

    def computing(ref: ShardRef) -> ShardRef:
        piece, vectors = fates.pieces[ref.index], fates.vectors[ref.index]
        return own_vectors.ledger_shard.fn(piece, vectors, picked, duplicates, ref)

    rows = rows_of(planted.computed(root, "ledger", 3, computing))
    assert {(row["key"] == row["image_id"], row["source"]) for row in rows} == {(True, "mine")}
    assert {row["role"] for row in rows} == {"pool" if picked else "curated"}
    return [row for name in fates.names for row in rows if row["key"] == name]


ENDING = ("state", "stage", "reason", "score", "because_of")


@pytest.mark.parametrize("gone", [True, False])
@pytest.mark.parametrize("survive", [True, False])
def test_every_vector_has_one_fate(local_root: str, fates: Fates, gone: bool, survive: bool) -> None:
    left = fates.cells if survive else None
    rows = ledger(local_root, fates, chosen(local_root, fates, left), gone=gone)
    rest = (
        ("kept", "publish", "survivor", None, None) if survive else ("dropped", "retrieve", "not_retrieved", None, None)
    )
    expected = {n: rest for n in range(12)}
    expected |= {row: ("kept", "publish", "retrieved", s, query) for row, (_, query, s) in CHOSEN.items()}
    expected[0] = ("kept", "publish", "retrieved", np.float32(0.45), "q-0")
    expected |= {row: ("failed", "embed", "not_finite", None, None) for row in BAD}
    same = ("dropped", "cluster", "semantic_duplicate", np.float32(0.97))
    nothing = ("dropped", "retrieve", "not_retrieved", None, None)  # in no cell, and said to mean the same as no other
    expected |= {row: (*same, fates.names[kept]) if gone else nothing for row, kept in SAME.items()}
    assert [tuple(row[name] for name in ENDING) for row in rows] == [expected[n] for n in range(12)]


def test_an_included_collection_is_kept_whole(local_root: str, fates: Fates) -> None:
    rows = ledger(local_root, fates, None, gone=False)
    assert [row["reason"] for row in rows] == ["not_finite" if n in BAD else "curated" for n in range(12)]
    (ref, *_) = planted.computed(
        local_root, "published", 3, lambda ref: own_vectors.publish_included.fn(fates.vectors[ref.index], ref)
    )
    published = rows_of([ref])
    assert [row["image_id"] for row in published] == [fates.names[n] for n in (0, 1, 2)]
    assert {(row["role"], len(row["retrieved_for"]), row["query_id"]) for row in published} == {("curated", 0, None)}


def test_what_is_chosen_is_published_piece_by_piece(local_root: str, fates: Fates) -> None:
    picked = chosen(local_root, fates)
    refs = planted.computed(
        local_root,
        "published",
        4,
        lambda ref: own_vectors.publish_chosen.fn(picked, ref, 3 * ref.index, 3 * ref.index + 3),
    )
    assert [[row["row"] for row in rows_of([ref])] for ref in refs] == [[0], [], [7], [11]]
    rows = {row["row"]: row for row in rows_of(refs)}
    assert {row: said["retrieved_for"] for row, said in rows.items()} == {row: said[0] for row, said in CHOSEN.items()}
    assert {row: said["query_id"] for row, said in rows.items()} == {row: said[1] for row, said in CHOSEN.items()}
    assert {said["role"] for said in rows.values()} == {"retrieved"}
    assert [rows[row]["image_id"] for row in rows] == [fates.names[row] for row in rows]
