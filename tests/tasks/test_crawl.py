import gzip
import re
from datetime import UTC, datetime

import numpy as np
import pytest
from pydantic import ValidationError

from lvd.infra.shards import StageDir, read_table
from lvd.tasks import crawl, schemas, sources
from lvd.tasks.crawl import Config
from lvd.tasks.sources import Images, Urls, Warc
from lvd.tests.tasks import planted
from lvd.tests.warcs import Shown, save_warc


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


def crawled(tmp_path, partition, **options):
    refs = planted.manifest(str(tmp_path / "root"), partition, **options)
    target = StageDir(root=str(tmp_path / "root"), stage="crawl", fingerprint=partition.digest)
    assert target.missing(len(refs)) == []
    return target, refs


def kept_and_left(refs):
    """The URLs of a manifest, and (key, reason) of what it leaves out."""
    rejects = [row for ref in refs for row in read_table(ref, kind="rejects").to_pylist()]
    return [url for ref in refs for url in read_table(ref)["url"].to_pylist()], [
        (row["key"], row["reason"]) for row in rejects
    ]


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
    for ref in (refs[0], refs[2]):  # not next to each other
        target.storage.remove(ref.name())
        target.storage.remove(ref.name("rejects"))
    crawled(tmp_path, url_list, rows_per_shard=2)
    assert {name: target.storage.read_bytes(name) for name in files} == before
    for name in files[2:4]:
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
    for wrong in ({"rows_per_shard": 0}, {"rows_per_shard": 1_000_001}, {"rules": {"max_length": 0}}, {"typo": 1}):
        with pytest.raises(ValidationError):
            Config(**wrong)


def test_equal_urls_are_found_across_lists_and_the_first_stays(tmp_path):
    for name, urls in {
        "a": ["http://a.org/1", "http://b.org/1"],
        "b": ["http://B.org/1#top", "http://a.org/2"],
    }.items():
        (tmp_path / "lists").mkdir(exist_ok=True)
        (tmp_path / "lists" / f"{name}.txt").write_text("\n".join(urls))
    (partition,) = sources.partitions(Urls(path=str(tmp_path / "lists")))
    kept, left = kept_and_left(crawled(tmp_path, partition, rows_per_shard=3)[1])
    assert kept == ["http://a.org/1", "http://b.org/1", "http://a.org/2"]
    assert left == [("http://B.org/1#top", "duplicate_url")]


@pytest.mark.parametrize("bucket_rows", [7, 1 << 27])
def test_the_choice_is_that_of_brute_force_for_any_buckets(tmp_path, monkeypatch, bucket_rows):
    monkeypatch.setattr(crawl, "BUCKET_ROWS", bucket_rows)
    rng = np.random.default_rng(0)
    (tmp_path / "lists").mkdir()
    urls, expected, seen, per_domain = [], [], set(), {}
    for number in range(3):
        found = [f"http://{'www.' * (i % 2)}s{i % 5}.org/{i}" for i in rng.integers(0, 60, size=80).tolist()] + ["x"]
        (tmp_path / "lists" / f"{number}.txt").write_text("\n".join(found))
        urls += found
    for url in urls:
        host = url.removeprefix("http://").removeprefix("www.").split("/")[0]
        if url == "x":
            expected.append("invalid_url")
        elif url in seen:
            expected.append("duplicate_url")
        else:
            seen.add(url)
            per_domain[host] = per_domain.get(host, 0) + 1
            expected.append("domain_full" if per_domain[host] > 4 else None)
    (partition,) = sources.partitions(Urls(path=str(tmp_path / "lists")))
    rules = {"max_per_domain": 4}
    kept, left = kept_and_left(crawled(tmp_path, partition, rows_per_shard=11, rules=rules)[1])
    assert kept == [url for url, reason in zip(urls, expected, strict=True) if reason is None]
    assert left == [(url, reason) for url, reason in zip(urls, expected, strict=True) if reason]


def test_the_rules_of_the_recipe_say_why(tmp_path):
    (tmp_path / "domains").write_text("ads.example\n")
    (tmp_path / "words").write_text("unsafe\n")
    urls = {
        "http://a.org/1.jpg": None,
        "http://x.ads.example/2.jpg": "blocked_domain",
        "http://a.org/unsafe/3.jpg": "unsafe_word",
        "http://a.org/4.svg": "blocked_extension",
        "http://a.org/" + "5" * 100: "invalid_url",
    }
    (tmp_path / "l.txt").write_text("\n".join(urls))
    (partition,) = sources.partitions(Urls(path=str(tmp_path / "l.txt")))
    rules = {
        "max_length": 80,
        "blocked_domains": [str(tmp_path / "domains")],
        "unsafe_words": [str(tmp_path / "words")],
    }
    kept, left = kept_and_left(crawled(tmp_path, partition, rules=rules)[1])
    assert kept == ["http://a.org/1.jpg"]
    assert left == [(url, reason) for url, reason in urls.items() if reason]


WHEN = datetime(2026, 1, 5, 12, tzinfo=UTC)


def test_the_images_of_crawled_pages_are_candidates(tmp_path):
    pages = [
        ("http://a.org/one.html", WHEN, [Shown(f"http://a.org/{i}.jpg", f"no. {i}") for i in range(5)]),
        ("http://b.org/two.html", WHEN, [Shown("http://a.org/3.jpg", "again"), Shown("http://b.org/9.jpg", "nine")]),
    ]
    for number, page in enumerate(pages):
        save_warc(tmp_path / "crawl" / f"{number}.warc.gz", [page])
    (tmp_path / "crawl" / "2.warc.gz").write_bytes(b"no archive at all")
    (partition,) = sources.partitions(Warc(path=str(tmp_path / "crawl"), source="crawl"))
    (ref,) = crawled(tmp_path, partition)[1]
    rows = read_table(ref).to_pylist()
    assert [(row["url"], row["alt"]) for row in rows] == [
        *((f"http://a.org/{i}.jpg", f"no. {i}") for i in range(5)),
        ("http://b.org/9.jpg", "nine"),
    ]
    assert {(row["page_url"], row["discovered_at"], row["source"]) for row in rows} == {
        ("http://a.org/one.html", WHEN, "crawl"),
        ("http://b.org/two.html", WHEN, "crawl"),
    }
    rejects = read_table(ref, kind="rejects").to_pylist()
    assert [(row["reason"], row["state"]) for row in rejects] == [
        ("duplicate_url", "dropped"),
        ("unreadable_archive", "failed"),
    ]
    assert "2.warc.gz" in rejects[1]["key"]


def test_a_page_can_keep_its_images_out(tmp_path):
    pages = [
        ("http://a.org/", WHEN, [Shown("http://a.org/1.jpg", "")]),
        ("http://b.org/", WHEN, [Shown("http://b.org/1.jpg", "")]),
    ]
    file = tmp_path / "crawl" / "0.warc.gz"
    save_warc(file, pages)
    text = gzip.decompress(file.read_bytes())
    head, body = b"<head><title>http://b.org/", b'<head><meta name="robots" content="noai"><title>http://b.org/'
    longer = len(body) - len(head)
    first, second = text.split(b"WARC/1.0\r\n")[1:]
    lengths = [int(n) for n in re.findall(rb"Content-Length: (\d+)", second)]
    for length in lengths:
        second = second.replace(b"Content-Length: %d\r" % length, b"Content-Length: %d\r" % (length + longer))
    file.write_bytes(
        b"".join(gzip.compress(b"WARC/1.0\r\n" + record) for record in (first, second.replace(head, body)))
    )
    (partition,) = sources.partitions(Warc(path=str(tmp_path / "crawl")))
    kept, left = kept_and_left(crawled(tmp_path, partition)[1])
    assert (kept, left) == (["http://a.org/1.jpg"], [("http://b.org/1.jpg", "page_opted_out")])
    kept, left = kept_and_left(planted.manifest(str(tmp_path / "other"), partition, opt_out=[]))
    assert len(kept) == 2 and left == []
