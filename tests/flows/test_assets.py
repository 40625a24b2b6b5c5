"""Keys of assets: what Prefect takes, and two places never share one; what a directory was made of."""

import pytest
from prefect.assets import Asset

from lvd.flows.assets import LONGEST_KEY, RESTRICTED, asset_key, metadata, upstream
from lvd.flows.figures import Account, Books
from lvd.flows.recipe import parse
from lvd.flows.run import Run
from lvd.infra.committing import commit
from lvd.infra.writing import write_shard
from lvd.tasks import schemas

URIS = {
    "s3": "s3://bucket/lvd/crawl/0123",
    "folder": "/data/lvd/curated/v1",
    "space": "/data/my photos/a",
    "query": "https://example.org/list.csv?day=1#top",
    "percent": "s3://bucket/a%20b",
    "brackets": "s3://bucket/[2026]{x}|y\\z^`<>\"'&",
    "newline": "/data/a\nb\tc\rd\0e",
    "umlaut": "s3://bucket/Köln/日本",
    "long": "s3://bucket/" + "a" * 600,
    "hub": "user/name",
    "scheme in capitals": "S3://bucket/a",
    "scheme with a plus": "git+https://example.org/a",
    "glob": "crawl/*.parquet",
}


@pytest.mark.parametrize("case", URIS)
def test_prefect_takes_the_key_of_every_place(case: str) -> None:
    key = asset_key(URIS[case])
    assert Asset(key=key).key == key and len(key) <= LONGEST_KEY
    assert not RESTRICTED & set(key)


def test_the_rules_are_prefect_s() -> None:
    from prefect.types import names

    assert frozenset(names.RESTRICTED_ASSET_CHARACTERS) == RESTRICTED
    assert names.MAX_ASSET_KEY_LENGTH == LONGEST_KEY


def test_a_key_that_can_stay_stays_and_others_are_told_apart() -> None:
    assert asset_key("s3://bucket/lvd/crawl/0123") == "s3://bucket/lvd/crawl/0123"
    assert asset_key("/data/lvd") == "file:///data/lvd"
    odd = ["/data/a b", "/data/a_b", "/data/a?b", "/data/a\tb", "s3://" + "a" * 600 + "1", "s3://" + "a" * 600 + "2"]
    assert len({asset_key(uri) for uri in odd}) == len(odd)


def test_a_password_is_in_no_key() -> None:
    assert asset_key("https://user:word@example.org/list.csv") == "https://example.org/list.csv"


def test_what_a_directory_was_made_of(local_root: str) -> None:
    run = Run(parse({"name": "a", "root": local_root}))
    made = [run.target("crawl", "a"), run.target("download", "b"), run.target("embed", "c")]
    files = [f"photos/{number:03d}" for number in range(100)]
    inputs = [
        {"files": files, "digest": "0" * 32},
        {"manifest": made[0].directory, "of": {"deep": [made[0].directory, 5, None, "no/directory"]}},
        {"images": made[1].directory, "itself": made[2].directory},
    ]
    for target, named in zip(made, inputs, strict=True):
        (ref,) = target.planned(1)
        with write_shard(ref, schemas.SIZES, {}) as shard:
            shard.reject("k", "too_small")
        commit(target, 1, config={}, inputs=named)
    books = Books(run.storage.root)
    accounts = books.enter(target.directory for target in made)
    assert upstream(run, accounts[0], books) == files
    assert upstream(run, accounts[1], books) == [f"{run.storage.root}/{made[0].directory}"]
    assert upstream(run, accounts[2], books) == [f"{run.storage.root}/{made[1].directory}"]
    says = metadata(accounts[1], ["one"])
    assert (says["rows in"], says["rows"], says["reasons"], says["made of"]) == (1, 0, {"too_small": 1}, 1)
    assert says["written_bytes"] > 0
    assert books.enter([made[0].directory, "embed/none"]) == []  # each is read once; what is not complete waits


def test_the_account_of_a_ledger_is_of_that_stage_whatever_the_version(local_root: str) -> None:
    run = Run(parse({"name": "a", "root": local_root}))
    target = run.named("curated/v7", "ledger")
    (ref,) = target.planned(1)
    with write_shard(ref, schemas.SIZES, {}):
        pass
    commit(target, 1, config={}, inputs={}, notes={"recall": None})
    account = Account.read(local_root, target.directory)
    assert (account.stage, account.recall, account.objective) == ("ledger", 1.0, None)
