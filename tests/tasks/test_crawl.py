import numpy as np
import pytest
from pydantic import ValidationError

from lvd.infra.shards import StageDir, read_table
from lvd.tasks import crawl, schemas, sources
from lvd.tasks.crawl import Config, UrlCheck, manifest_shards, normalized_url, repeated_hashes
from lvd.tasks.sources import Images, Urls

NORMALIZED = {
    "http://a.org/x": "http://a.org/x",
    " HTTP://A.Org:80/X?b=C#part ": "http://a.org/X?b=C",
    "https://a.org:443": "https://a.org/",
    "https://a.org:8443/": "https://a.org:8443/",
    "http://a.org:443/": "http://a.org:443/",  # the other scheme's port
    "http://a.org./x": "http://a.org/x",  # the root's dot
    "http://User:Pw@A.org/x": "http://User:Pw@a.org/x",
    "http://[2606:4700::1111]:80/x": "http://[2606:4700::1111]/x",
    "http://bücher.example/ä b": "http://bücher.example/ä b",
    "http://a.org/x?": "http://a.org/x",
}
INVALID = [
    None,
    "",
    "a.org/x.jpg",
    "//a.org/x.jpg",
    "ftp://a.org/x.jpg",
    "file:///etc/passwd",
    "data:image/png;base64,AAAA",
    "javascript:alert(1)",
    "http://",
    "http:///x.jpg",
    "http://a b.org/x",
    "http://a%2eorg/x",
    "http://a.org:99999/x",
    "http://a.org:port/x",
    "http://[::1/x",
    "http://a.org/\x00",
    "http://a.org/\nHost: b.org",
    "http://a.org/" + "x" * 5000,
]


@pytest.mark.parametrize("url", NORMALIZED)
def test_urls_are_compared_without_what_does_not_matter(url):
    assert normalized_url(url, max_length=4096) == NORMALIZED[url]


@pytest.mark.parametrize("url", INVALID)
def test_what_is_no_web_url_is_refused(url):
    with pytest.raises(ValueError):
        normalized_url(url, max_length=4096)


def test_repeated_urls_are_those_that_brute_force_finds():
    rng = np.random.default_rng(0)
    urls = [f"http://a.org/{i}" for i in rng.integers(0, 300, size=500)] + ["nonsense"] * 3
    num_urls, repeated = repeated_hashes(iter(urls), max_length=4096)
    assert num_urls == len(urls)
    check, seen = UrlCheck(repeated, max_length=4096), set()
    for url in urls:
        problem = check.problem(url)
        if url == "nonsense":
            assert problem[0] == "invalid_url"
        else:
            assert (problem is not None) == (url in seen)
            assert problem is None or problem[0] == "duplicate_url"
        seen.add(url)
    assert repeated_hashes([], max_length=4096) == (0, set())


def test_two_urls_with_one_hash_are_not_taken_for_repeats(monkeypatch):
    monkeypatch.setattr(crawl.xxhash, "xxh3_64_intdigest", lambda text: 7)
    urls = ["http://a.org/1", "http://a.org/2", "http://a.org/1"]
    _, repeated = repeated_hashes(urls, max_length=4096)
    check = UrlCheck(repeated, max_length=4096)
    assert [check.problem(url) is None for url in urls] == [True, True, False]


@pytest.fixture
def url_list(tmp_path):
    lines = [
        "http://a.org/1",
        "http://a.org/2",
        "ftp://a.org/3",
        "HTTP://A.org:80/1#x",
        "http://a.org/4",
        "http://a.org/2",
    ]
    (tmp_path / "l.txt").write_text("\n".join(lines))
    (partition,) = sources.partitions(Urls(path=str(tmp_path / "l.txt"), source="web"))
    return partition


def crawled(tmp_path, partition, name="f", **options):
    target = StageDir(root=str(tmp_path / "root"), stage="crawl", fingerprint=name)
    count = manifest_shards.fn(target, partition, Config(**options))
    assert target.missing(count) == []
    return target, target.planned(count)


def test_a_manifest_accounts_for_every_line(tmp_path, url_list):
    target, refs = crawled(tmp_path, url_list, rows_per_shard=2)
    assert len(refs) == 3
    kept = [read_table(ref)["url"].to_pylist() for ref in refs]
    assert kept == [["http://a.org/1", "http://a.org/2"], [], ["http://a.org/4"]]
    rejects = [row for ref in refs for row in read_table(ref, kind="rejects").to_pylist()]
    assert [(row["key"], row["state"], row["reason"], row["row"]) for row in rejects] == [
        ("ftp://a.org/3", "dropped", "invalid_url", -1),
        ("HTTP://A.org:80/1#x", "dropped", "duplicate_url", -1),
        ("http://a.org/2", "dropped", "duplicate_url", -1),
    ]
    assert "http://a.org/1" in rejects[1]["error"]
    assert read_table(refs[0]).schema.equals(schemas.MANIFEST)
    assert read_table(refs[0])["source"].to_pylist() == ["web", "web"]
    assert [target.storage.read_json(ref.name("account", "json"))["rows_in"] for ref in refs] == [2, 2, 2]


def test_only_missing_shards_are_written_and_with_the_same_bytes(tmp_path, url_list):
    target, refs = crawled(tmp_path, url_list, rows_per_shard=2)
    files = [ref.name(kind) for ref in refs for kind in ("data", "rejects")]
    before = {name: target.storage.read_bytes(name) for name in files}
    times = {name: target.storage.fs.info(target.storage.locate(name))["mtime"] for name in files}
    target.storage.remove(refs[2].name())
    target.storage.remove(refs[2].name("rejects"))
    crawled(tmp_path, url_list, rows_per_shard=2)
    assert {name: target.storage.read_bytes(name) for name in files} == before
    for name in files[:4]:
        assert target.storage.fs.info(target.storage.locate(name))["mtime"] == times[name]


@pytest.mark.parametrize(("num_images", "rows_per_shard", "shards"), [(5, 2, 3), (4, 2, 2), (1, 1_000_000, 1)])
def test_a_folder_of_images_is_cut_into_shards(tmp_path, num_images, rows_per_shard, shards):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(num_images):
        (folder / f"{i}.jpg").write_bytes(b"same")  # equal files are two candidates: content is not looked at here
    (partition,) = sources.partitions(Images(path=str(folder)))
    _, refs = crawled(tmp_path, partition, rows_per_shard=rows_per_shard)
    assert len(refs) == shards
    assert [key for ref in refs for key in read_table(ref)["key"].to_pylist()] == [
        f"photos/{i}.jpg" for i in range(num_images)
    ]


def test_an_empty_list_is_one_empty_shard(tmp_path):
    (tmp_path / "l.txt").write_text("\n\n")
    (partition,) = sources.partitions(Urls(path=str(tmp_path / "l.txt")))
    _, (ref,) = crawled(tmp_path, partition)
    assert read_table(ref).num_rows == 0


def test_a_configuration_out_of_range_is_refused():
    for wrong in ({"rows_per_shard": 0}, {"rows_per_shard": 1_000_001}, {"max_url_length": 0}, {"typo": 1}):
        with pytest.raises(ValidationError):
            Config(**wrong)
