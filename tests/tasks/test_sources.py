import bz2
import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter, ValidationError

from lvd.infra.errors import InputError
from lvd.tasks import schemas, source_rows, sources
from lvd.tasks.locations import Opened, read_bytes
from lvd.tasks.sources import HuggingFace, Images, Source, Urls, WebDataset

URLS = ["https://Example.org/a.jpg", "http://example.org:8080/b.jpg", "http://[::1]/ü.png"]


def table(source):
    """All rows of the only partition, as the manifest holds them."""
    (partition,) = sources.partitions(source)
    found = list(source_rows.rows(partition))
    assert source_rows.num_rows(partition) == len(found)
    assert found == list(source_rows.rows(partition))
    return pa.Table.from_pylist(found, schema=schemas.MANIFEST)


def contents(source):
    """Key and bytes of every row."""
    opened = Opened()
    rows = table(source).select(["key", "location"]).to_pylist()
    return {row["key"]: read_bytes(row["location"], opened) for row in rows}


def write_list(path, urls):
    name = path.name.removesuffix(".gz").removesuffix(".bz2")
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"link": urls, "n": range(len(urls))}), path, row_group_size=2)
        return
    if name.endswith(".csv"):
        text = "n,link\n" + "".join(f'{i},"{url}"\n' for i, url in enumerate(urls))
    elif name.endswith("jsonl"):
        text = "".join(json.dumps({"link": url}) + "\n" for url in urls)
    else:
        text = "\n".join(["", *urls, ""])
    data = text.encode()
    path.write_bytes({".gz": gzip.compress, ".bz2": bz2.compress}.get(path.suffix, bytes)(data))


@pytest.mark.parametrize(
    "name", ["l.parquet", "l.csv", "l.jsonl", "l.ndjson", "l.txt", "l.csv.gz", "l.jsonl.bz2", "l.txt.gz", "L.TXT"]
)
def test_a_url_list_of_every_format_gives_its_urls_in_order(tmp_path, name):
    write_list(tmp_path / name, URLS)
    found = table(Urls(path=str(tmp_path / name), url_column="link", source="web"))
    assert found["url"].to_pylist() == found["key"].to_pylist() == URLS
    assert found["domain"].to_pylist() == ["example.org", "example.org", "::1"]
    assert set(found["source"].to_pylist()) == {"web"}
    assert found["location"].null_count == len(URLS)


def test_the_other_columns_of_a_list_are_kept(tmp_path):
    rows = {
        "u": [" http://a.org/1 ", b"http://a.org/2", None],
        "p": ["http://a.org/", None, None],
        "t": ["é", None, ""],
        "c": [" CC BY 4.0 ", None, ""],
    }
    pq.write_table(pa.table({**rows, "u": pa.array(rows["u"], pa.binary())}), tmp_path / "l.parquet")
    source = Urls(path=str(tmp_path), url_column="u", page_url_column="p", alt_column="t", license_column="c")
    found = table(source)
    assert found["license"].to_pylist() == ["CC BY 4.0", None, None]
    of_all = table(source.model_copy(update={"license": "as the list says"}))
    assert of_all["license"].to_pylist() == ["CC BY 4.0", "as the list says", "as the list says"]
    assert found["url"].to_pylist() == ["http://a.org/1", "http://a.org/2", None]
    assert found["key"].to_pylist() == ["http://a.org/1", "http://a.org/2", ""]
    assert found["page_url"].to_pylist() == rows["p"]
    assert found["alt"].to_pylist() == rows["t"]


def test_bad_lines_of_a_list_stay_rows(tmp_path):
    lines = ['{"url": "http://a.org/1"}', '{"url": "http://a.org/2', "[1]", "{}", '{"url": "http://a.org/\\ud800"}', ""]
    (tmp_path / "l.jsonl").write_text("\n".join(lines))
    found = table(Urls(path=str(tmp_path / "l.jsonl")))
    assert found["url"].to_pylist() == ["http://a.org/1", lines[1], "[1]", None, "http://a.org/\\ud800"]
    (tmp_path / "l.csv").write_bytes(b"\xef\xbb\xbfurl,alt\nhttp://a.org/1,\xff\nhttp://a.org/2,a,too,many\n,short\n")
    found = table(Urls(path=str(tmp_path / "l.csv"), alt_column="alt"))
    assert found["url"].to_pylist() == ["http://a.org/1", "http://a.org/2", None]
    assert found["alt"].to_pylist() == ["\ufffd", "a", "short"]


BAD_SOURCES = {
    "missing path": (Urls(path="nowhere.txt"), "path must exist, was '.*nowhere.txt'"),
    "empty match": (Urls(path="no*.csv"), "path must exist, was '.*no\\*.csv'"),
    "folder without lists": (Urls(path="photos"), "no file that ends in"),
    "file of another kind": (Urls(path="photos/a.jpg"), "no file that ends in"),
    "column of a Parquet file": (Urls(path="l.parquet"), "url_column must be one of 'link', 'n', was 'url'"),
    "column of a CSV file": (
        Urls(path="l.csv", url_column="link", alt_column="x"),
        "alt_column .* 'n', 'link', was 'x'",
    ),
    "column of a JSONL file": (Urls(path="l.jsonl"), "url_column must be one of 'link', was 'url'"),
    "column of a text file": (Urls(path="l.txt", alt_column="alt"), r"alt_column must be one of \(no columns\)"),
    "not Parquet": (Urls(path="bad.parquet"), "must be readable as parquet"),
    "not gzip": (Urls(path="bad.txt.gz"), "must be readable as text"),
    "unknown protocol": (Urls(path="nonsense://x"), "path must be readable"),
    "images named one by one": (Images(path="photos/*.jpg"), "no folder with image files"),
    "no images": (Images(path="tars"), "no folder with image files"),
    "packed tar": (WebDataset(path="tars"), "must be uncompressed tars, was '.*00000.tar.gz'"),
    "no tar": (WebDataset(path="photos"), "no file that ends in .tar"),
    "no dataset": (HuggingFace(path="photos"), "no folder that `Dataset.save_to_disk` made"),
    "no dataset of the hub": (HuggingFace(path="no-one/nothing", split="train"), "path must be a dataset"),
    "column of a dataset": (
        HuggingFace(path="set", image_column="x"),
        "image_column must be one of 'image', 'n', was 'x'",
    ),
    "no image column": (HuggingFace(path="set", image_column="n"), "image_column must hold images or bytes, was 'n'"),
    "label of a dataset": (HuggingFace(path="set", label_column="l"), "label_column must be one of .*, was 'l'"),
    "split": (HuggingFace(path="sets", split="dev"), "split must be one of 'train', 'test', was 'dev'"),
    "several splits": (HuggingFace(path="sets"), "split must be one of 'train', 'test', was None"),
}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """One of everything that a path can name."""
    folder = tmp_path_factory.mktemp("shelf")
    for name in ("l.parquet", "l.csv", "l.jsonl", "l.txt"):
        write_list(folder / name, URLS)
    (folder / "bad.parquet").write_bytes(b"PAR1 but no more")
    (folder / "bad.txt.gz").write_bytes(b"http://a.org")
    (folder / "photos").mkdir()
    (folder / "photos" / "a.jpg").write_bytes(b"a")
    (folder / "tars").mkdir()
    (folder / "tars" / "00000.tar.gz").write_bytes(b"")
    features = datasets.Features({"image": datasets.Image(), "n": datasets.Value("int64")})
    rows = datasets.Dataset.from_dict({"image": [{"bytes": b"1", "path": None}], "n": [1]}, features=features)
    rows.save_to_disk(folder / "set")
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(folder / "sets")
    return folder


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_a_source_that_cannot_be_read_is_refused_with_what_there_is(shelf, monkeypatch, case):
    monkeypatch.chdir(shelf)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    source, message = BAD_SOURCES[case]
    with pytest.raises(InputError, match=message):
        for partition in sources.partitions(source):
            source_rows.check_columns(partition)


@pytest.mark.parametrize("name", ["l.txt.gz", "l.jsonl.bz2"])
def test_a_list_that_breaks_off_is_refused_and_not_taken_for_a_short_one(tmp_path, name):
    write_list(tmp_path / name, [f"http://a.org/{i}" for i in range(5000)])
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="must be readable as"):
        source_rows.num_rows(*sources.partitions(Urls(path=str(tmp_path), url_column="link")))


def test_sources_are_told_apart_by_kind_and_refuse_what_they_do_not_know():
    read = TypeAdapter(Source).validate_python
    assert isinstance(read({"kind": "images", "path": "x"}), Images)
    assert isinstance(read({"kind": "dataset", "path": "x", "split": "train"}), HuggingFace)
    for wrong in ({"kind": "zip", "path": "x"}, {"path": "x"}, {"kind": "images", "path": "x", "url_column": "u"}):
        with pytest.raises(ValidationError):
            read(wrong)


def test_a_glob_makes_one_partition_per_match_and_the_same_list_elsewhere_has_the_same_digest(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    for name, urls in {"b.csv": URLS, "a.csv": URLS[:1], "c.txt": URLS}.items():
        write_list(tmp_path / "one" / name, urls)
    found = sources.partitions(Urls(path=f"{tmp_path}/one/*.csv", url_column="link"))
    assert [[Path(file).name for file in p.files] for p in found] == [["a.csv"], ["b.csv"]]
    whole = sources.partitions(Urls(path=f"{tmp_path}/one", url_column="link"))
    assert [Path(file).name for file in whole[0].files] == ["a.csv", "b.csv", "c.txt"]

    write_list(tmp_path / "two" / "moved.csv", URLS)
    (moved,) = sources.partitions(Urls(path=f"{tmp_path}/two/moved.csv", url_column="link"))
    assert moved.digest == found[1].digest
    (other_column,) = sources.partitions(Urls(path=f"{tmp_path}/two/moved.csv", url_column="n"))
    write_list(tmp_path / "two" / "moved.csv", URLS[::-1])
    (changed,) = sources.partitions(Urls(path=f"{tmp_path}/two/moved.csv", url_column="link"))
    digests = {partition.digest for partition in [*found, *whole, other_column, changed]}
    assert len(digests) == 5


def test_a_folder_of_images_gives_its_files_in_order_with_the_folder_as_label(tmp_path):
    root = tmp_path / "photos"
    files = {"z.JPG": b"z", "cat/1.jpg": b"1", "cat/_dsc.webp": b"2", "cat/big/3.png": b"3", "dog/no_suffix": b"4"}
    ignored = {"labels.csv": b"", "cat/.hidden.jpg": b"", ".cache/x.jpg": b"", "cat/1.txt": b""}
    for name, data in {**files, **ignored}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    source = Images(path=str(root))
    assert contents(source) == {f"photos/{name}": data for name, data in files.items()}
    found = table(source)
    assert found["key"].to_pylist() == sorted(found["key"].to_pylist())
    labels = dict(zip(found["key"].to_pylist(), found["label"].to_pylist(), strict=True))
    folders = {name: name.rpartition("/")[0] or None for name in files}
    assert labels == {f"photos/{name}": folder for name, folder in folders.items()}
    by_class = sources.partitions(Images(path=f"{root}/*"))
    keys = [[row["key"] for row in source_rows.rows(p)] for p in by_class]
    assert keys == [["cat/1.jpg", "cat/_dsc.webp", "cat/big/3.png"], ["dog/no_suffix"]]


def test_one_folder_has_one_name_however_it_is_written(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"a")
    monkeypatch.chdir(tmp_path / "photos")
    paths = [str(tmp_path / "photos"), f"{tmp_path}/photos/", "../photos", ".", f"file://{tmp_path}/photos"]
    found = [sources.partitions(Images(path=path))[0] for path in paths]
    assert len({partition.digest for partition in found}) == 1
    assert {row["key"] for partition in found for row in source_rows.rows(partition)} == {"photos/a.jpg"}


def test_a_folder_that_changes_between_planning_and_reading_is_refused(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"a")
    (partition,) = sources.partitions(Images(path=str(tmp_path)))
    (tmp_path / "b.jpg").write_bytes(b"b")
    with pytest.raises(InputError, match="must not change"):
        list(source_rows.rows(partition))
    assert sources.partitions(Images(path=str(tmp_path)))[0].digest != partition.digest


def test_a_file_name_that_is_no_text_is_still_a_row(tmp_path):
    (tmp_path / os.fsdecode(b"\xff.jpg")).write_bytes(b"x")
    assert list(contents(Images(path=str(tmp_path))).values()) == [b"x"]


def write_tar(path, members, form=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


SAMPLES = {
    "000.jpg": b"zero",
    "000.json": b'{"url": "http://A.org/0.jpg", "caption": "from json", "license": "cc0"}',
    "001.json": b"not json",
    "001.png": b"one",
    "001.txt": b" a caption \n",
    "001.cls": b"7",
    "._002.jpg": b"what some systems leave behind",
    "003.txt": b"a sample without an image",
    f"deep/{'n' * 200}.left.webp": b"left",
    f"deep/{'n' * 200}.right.webp": b"right",
}
IMAGES = {name: data for name, data in SAMPLES.items() if name.endswith((".jpg", ".png", ".webp")) and name[0] != "."}


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_tar_shards_give_their_images_with_what_their_sample_says(tmp_path, form):
    write_tar(tmp_path / "00000.tar", SAMPLES, form)
    write_tar(tmp_path / "00001.tar", {"9.jpg": b"nine"}, form)
    source = WebDataset(path=str(tmp_path))
    expected = {f"00000.tar/{name}": data for name, data in IMAGES.items()} | {"00001.tar/9.jpg": b"nine"}
    assert contents(source) == expected
    rows = table(source).to_pylist()
    assert [row["key"] for row in rows] == list(expected)
    assert [(r["url"], r["domain"], r["alt"], r["label"]) for r in rows[:3]] == [
        ("http://A.org/0.jpg", "a.org", "from json", None),
        (None, None, "a caption", "7"),
        (None, None, None, None),
    ]
    assert [row["license"] for row in rows[:3]] == ["cc0", None, None]
    by_tar = sources.partitions(WebDataset(path=f"{tmp_path}/*.tar"))
    assert [next(source_rows.rows(p))["key"] for p in by_tar] == ["00000.tar/000.jpg", "00001.tar/9.jpg"]
    assert (
        next(source_rows.rows(sources.partitions(WebDataset(path=f"{tmp_path}/00001.tar"))[0]))["key"]
        == "00001.tar/9.jpg"
    )


@pytest.mark.parametrize(
    "kept_bytes",
    [
        512 * 3 + 100,  # inside a header, which tarfile takes for the end
        512 * 3,  # between two members
        512 + 300,  # inside the first image
        0,
    ],
)
def test_a_tar_that_breaks_off_keeps_its_images_and_gains_a_row_that_cannot_be_read(tmp_path, kept_bytes):
    path = tmp_path / "cut.tar"
    write_tar(path, {"0.jpg": b"a" * 600, "1.jpg": b"b" * 600})
    path.write_bytes(path.read_bytes()[:kept_bytes])
    rows = table(WebDataset(path=str(path))).to_pylist()
    assert rows[-1]["key"] == "cut.tar"
    with pytest.raises(ValueError, match=r"cut\.tar: must be a whole tar"):
        read_bytes(rows[-1]["location"], Opened())
    if kept_bytes >= 512 * 3:
        assert [row["key"] for row in rows] == ["cut.tar/0.jpg", "cut.tar"]
        assert read_bytes(rows[0]["location"], Opened()) == b"a" * 600


def test_reading_stops_one_byte_behind_the_limit(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x" * 100)
    write_tar(tmp_path / "a.tar", {"a.jpg": b"x" * 100})
    for source in (Images(path=str(tmp_path)), WebDataset(path=str(tmp_path))):
        (location,) = table(source)["location"].to_pylist()
        assert len(read_bytes(location, Opened(), max_bytes=10)) == 11
        assert len(read_bytes(location, Opened(), max_bytes=100)) == 100
    os.truncate(tmp_path / "a.tar", 550)
    with pytest.raises(ValueError, match="100 bytes must follow"):
        read_bytes(location, Opened())


def test_consecutive_rows_of_a_tar_open_it_once(tmp_path, monkeypatch):
    write_tar(tmp_path / "a.tar", {f"{i}.jpg": b"%d" % i for i in range(20)})
    locations = table(WebDataset(path=str(tmp_path)))["location"].to_pylist()
    calls, really_open = [], os.open
    monkeypatch.setattr(os, "open", lambda *args, **options: calls.append(args) or really_open(*args, **options))
    opened = Opened()
    assert [read_bytes(location, opened) for location in locations] == [b"%d" % i for i in range(20)]
    assert len(calls) == 1


def dataset(num_rows, **columns):
    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["cat", "dog"]),
        "n": datasets.Value("int64"),
    }
    rows = {
        "image": [{"bytes": b"image %d" % i, "path": f"{i}.png"} for i in range(num_rows)],
        "label": [i % 2 if i else None for i in range(num_rows)],
        "n": list(range(num_rows)),
    }
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def test_a_dataset_on_disk_gives_its_stored_bytes_and_class_names(tmp_path):
    dataset(5).save_to_disk(tmp_path / "emblems")
    source = HuggingFace(path=str(tmp_path / "emblems"), label_column="label")
    assert contents(source) == {f"emblems/{i}": b"image %d" % i for i in range(5)}
    assert table(source)["label"].to_pylist() == [None, "dog", "cat", "dog", "cat"]
    assert table(source.model_copy(update={"label_column": "n"}))["label"].to_pylist() == ["0", "1", "2", "3", "4"]
    licensed = table(source.model_copy(update={"license_column": "label", "license": "unknown"}))
    assert licensed["license"].to_pylist() == ["unknown", "dog", "cat", "dog", "cat"]


def test_a_split_of_a_dataset_is_part_of_the_key(tmp_path):
    datasets.DatasetDict({"train": dataset(3), "test": dataset(2)}).save_to_disk(tmp_path / "emblems")
    assert list(contents(HuggingFace(path=str(tmp_path / "emblems"), split="test"))) == [
        "emblems/test/0",
        "emblems/test/1",
    ]
    both = [sources.partitions(HuggingFace(path=str(tmp_path / "emblems"), split=s))[0] for s in ("train", "test")]
    assert both[0].digest != both[1].digest


def test_a_column_of_plain_bytes_is_a_column_of_images(tmp_path):
    datasets.Dataset.from_dict({"data": [b"x", b"y"]}).save_to_disk(tmp_path / "d")
    assert list(contents(HuggingFace(path=str(tmp_path / "d"), image_column="data")).values()) == [b"x", b"y"]


def test_a_dataset_of_the_hub_is_found_by_its_name(tmp_path, monkeypatch):
    pq.write_table(pa.table({"image": [b"x", b"y"]}), tmp_path / "part.parquet")

    def hub(path, split):
        assert path == "owner/emblems"
        return datasets.load_dataset(
            "parquet", data_files=str(tmp_path / "part.parquet"), split=split, cache_dir=tmp_path
        )

    real = datasets.load_dataset
    monkeypatch.setattr(
        datasets, "load_dataset", lambda path, **o: hub(path, **o) if path == "owner/emblems" else real(path, **o)
    )
    source = HuggingFace(path="owner/emblems", split="train")
    assert contents(source) == {"owner/emblems/train/0": b"x", "owner/emblems/train/1": b"y"}
    assert sources.partitions(source)[0].digest == sources.partitions(source)[0].digest


def test_a_dataset_cannot_name_a_file_of_this_machine(tmp_path, monkeypatch):
    secret = tmp_path / "outside" / "secret.png"
    secret.parent.mkdir()
    secret.write_bytes(b"secret")
    rows = pa.table({"image": pa.array([{"bytes": None, "path": str(secret)}])})
    datasets.Dataset(rows).save_to_disk(tmp_path / "d")
    (location,) = table(HuggingFace(path=str(tmp_path / "d")))["location"].to_pylist()
    with pytest.raises(ValueError, match="outside of the hub's cache"):
        read_bytes(location, Opened())
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", secret.parent)
    assert read_bytes(location, Opened()) == b"secret"


def test_sources_are_read_through_any_filesystem(tmp_path):
    fs = fsspec.filesystem("memory")
    fs.pipe({"/shelf/photos/cat/1.jpg": b"1", "/shelf/l.txt": b"http://a.org/1\n"})
    write_tar(tmp_path / "a.tar", {"0.jpg": b"zero", "0.txt": b"nought"})
    fs.pipe("/shelf/tars/a.tar", (tmp_path / "a.tar").read_bytes())
    try:
        assert contents(Images(path="memory://shelf/photos")) == {"photos/cat/1.jpg": b"1"}
        assert contents(WebDataset(path="memory://shelf/tars/*.tar")) == {"a.tar/0.jpg": b"zero"}
        assert table(Urls(path="memory://shelf/l.txt"))["url"].to_pylist() == ["http://a.org/1"]
    finally:
        fs.rm("/shelf", recursive=True)


@pytest.mark.parametrize("kind", ["wat", "images", "urls"])
def test_a_bucket_without_credentials_is_one_clear_line(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    source = TypeAdapter(sources.Source).validate_python({"kind": kind, "path": "s3://nobodys-bucket/a/wat.paths.gz"})
    with pytest.raises(InputError, match=r"path must be readable, was 's3://nobodys-bucket.*credentials"):
        sources.partitions(source)


@pytest.mark.parametrize("kind", ["folder of lists", "folder of archives", "list of archives", "folder of tars"])
def test_what_is_new_beside_known_files_is_a_partition_of_its_own(tmp_path, kind):
    folder = tmp_path / "crawl"
    folder.mkdir()

    def add(name):
        if kind == "folder of lists":
            write_list(folder / f"{name}.txt", [f"http://example.org/{name}.jpg"])
        elif kind == "folder of tars":
            with tarfile.open(folder / f"{name}.tar", "w") as tar:
                tar.addfile(tarfile.TarInfo(f"{name}.jpg"))
        else:
            (folder / f"{name}.warc").write_bytes(b"")
        if kind == "list of archives":
            named = "".join(f"{path}\n" for path in sorted(folder.glob("*.warc")))
            (tmp_path / "warc.paths").write_text(named)

    def found(known=()):
        path = str(tmp_path / "warc.paths" if kind == "list of archives" else folder)
        source = {"folder of lists": Urls, "folder of tars": WebDataset}.get(kind, sources.Warc)(path=path)
        return sources.partitions(source, known)

    add("b")
    add("d")
    (first,) = found()
    assert found([first]) == [first]
    add("a")
    add("c")
    old, new = found([first])
    assert old == first and [Path(file).stem for file in new.files] == ["a", "c"]
    assert found([first, new]) == [old, new]
    (whole,) = found()
    assert sorted(whole.files) == sorted((*old.files, *new.files))
    other = first.model_copy(update={"source": first.source.model_copy(update={"source": "another"})})
    assert found([other]) == [whole], "files of another source are none of this one's"
    lost = old.model_copy(update={"files": ("gone", *old.files)})
    assert found([lost]) == [old, new], "what a partition has left stays apart from what is new"


def test_lists_that_are_as_they_were_are_not_opened(tmp_path, monkeypatch):
    write_list(tmp_path / "a.txt", ["http://example.org/a.jpg"])
    source = Urls(path=str(tmp_path / "*.txt"))
    (first,) = sources.partitions(source)
    write_list(tmp_path / "b.txt", ["http://example.org/b.jpg"])
    opened = []
    monkeypatch.setattr(sources, "_sha256", lambda fs, path: opened.append(Path(path).name) or path)
    assert sources.partitions(source, [first])[0] == first and opened == ["b.txt"]
    write_list(tmp_path / "a.txt", ["http://example.org/another.jpg"])
    assert sources.partitions(source, [first])[0].digest != first.digest
    monkeypatch.setattr(sources, "_file", lambda info: sources.File(info["name"], 1, sources.UNKNOWN))
    (undated, _) = sources.partitions(source)
    opened.clear()
    assert undated.stamp is None and sources.partitions(source, [undated]) and "a.txt" in opened
