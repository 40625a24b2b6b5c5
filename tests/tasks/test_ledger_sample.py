"""What of the ledger can be searched in the page."""

import numpy as np
import pyarrow as pa

from lvd.tasks import ledger_sample, page_data
from lvd.tasks.ledger_sample import EACH, MAX_CHARACTERS, MAX_KEY, MAX_ROWS, Sampler, cut


def table(start: int, stop: int, *, key: str = "http://a.example/{}") -> pa.Table:
    rows = [
        {
            "key": key.format(n),
            "role": "pool",
            "image_id": None if n % 5 == 0 else f"{n:032x}",
            "state": "kept" if n % 2 else "dropped",
            "stage": "copies",
            "reason": "rare" if n % 1000 == 0 else "copy",
            "score": None if n % 3 == 0 else n / 7,
            "because_of": None,
        }
        for n in range(start, stop)
    ]
    return pa.Table.from_pylist(rows)


def sample(*tables: pa.Table) -> ledger_sample.LedgerSample:
    sampler = Sampler(np.random.default_rng(0))
    for one in tables:
        sampler.offer(one)
    return sampler.sample()


def test_a_small_ledger_is_there_whole_in_its_order() -> None:
    found = sample(table(0, 30), table(30, 70))
    assert found.is_whole and found.total == 70
    assert [one.key for one in found.entries] == [f"http://a.example/{n}" for n in range(70)]
    assert (found.entries[0].image_id, found.entries[0].score, found.entries[4].score) == ("", None, 0.5714)
    assert sample().entries == ()


def test_of_a_large_one_there_is_a_sample_with_every_reason() -> None:
    size = 12_000
    found = sample(*(table(start, start + 3000) for start in range(0, size, 3000)))
    assert not found.is_whole and found.total == size
    assert MAX_ROWS <= len(found.entries) <= MAX_ROWS + 2 * EACH
    assert sum(one.reason == "rare" for one in found.entries) == 12  # all of them, though they are few
    numbers = [int(one.key.rpartition("/")[2]) for one in found.entries]
    assert numbers == sorted(set(numbers))
    assert abs(np.mean(numbers) - size / 2) < 300
    assert found == sample(*(table(start, start + 3000) for start in range(0, size, 3000)))


def test_long_keys_are_cut_and_may_not_fill_the_page() -> None:
    found = sample(table(0, 5000, key="k" * 1000 + "{}"))
    assert all(len(one.key) == MAX_KEY and one.key.endswith("…") for one in found.entries)
    assert sum(len(one.key) for one in found.entries) <= MAX_CHARACTERS
    assert 3000 < len(found.entries) < 5000 and not found.is_whole
    assert sum(one.reason == "rare" for one in found.entries) == 5  # these come first
    hostile = sample(table(0, 5000, key="<" * 1000 + "{}"))
    assert len(page_data.rows([one.key] for one in hostile.entries)) < 1.1 * MAX_CHARACTERS


def test_of_what_was_taken_down_nothing_is_said() -> None:
    gone = table(1, 3).set_column(5, "reason", pa.array(["forgotten", "copy"]))
    first, second = sample(gone).entries
    assert (first.key, first.image_id, first.reason) == ("taken down", "", "forgotten")
    assert (second.key, second.image_id) == ("http://a.example/2", f"{2:032x}")


def test_a_score_that_is_no_number_is_none_as_json_has_no_other() -> None:
    odd = table(1, 4).set_column(6, "score", pa.array([float("nan"), float("inf"), 0.25]))
    assert [one.score for one in sample(odd).entries] == [None, None, 0.25]


def test_no_password_is_in_a_key() -> None:
    assert sample(table(1, 2, key="s3://me:secret@host/{}")).entries[0].key == "s3://host/1"


def test_a_long_key_is_cut() -> None:
    assert cut("k" * MAX_KEY) == "k" * MAX_KEY
    assert cut("k" * (MAX_KEY + 1)) == "k" * (MAX_KEY - 1) + "…"
