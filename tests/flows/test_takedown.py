"""A picture with nine copies, two addresses, a domain and a curated image are taken down; the crawl brings them again.

One chain: a version and an export of it, the takedowns, a further night, a version, what `--now` erases, a last night.
"""

import base64
import io
import json
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import load_from_disk
from PIL import Image

from lvd.flows import erasing, takedown
from lvd.flows.curate import look
from lvd.flows.finding import find
from lvd.flows.inquiry import directories, fates_of, last_run
from lvd.flows.recipe import load
from lvd.flows.show import show_why
from lvd.flows.takedown import Asked, Taken
from lvd.infra.committing import commit
from lvd.infra.errors import InputError
from lvd.infra.shards import StageDir, read_table
from lvd.infra.storage import Storage
from lvd.infra.writing import write_shard
from lvd.tasks import patches
from lvd.tasks.export import Config
from lvd.tasks.takedowns import alias_of
from lvd.tests.answers import image_id
from lvd.tests.copying import NEAR_COPIES, jpeg
from lvd.tests.drawing import CLASSES, draw
from lvd.tests.exports import exported_here
from lvd.tests.running import data_files, lvd
from lvd.tests.shelved import served

STAR, LINKED, ALONE, LOWER, TENTH, ELEVENTH = 0, 1, 2, 3, 10, 11  # what is taken down
NEAR = ("reencode_q40", "resize_half", "crop_2_percent", "text", "webp", "brighter", "reencode_q60")
LATER = 100  # the seeds of what comes later


def picture(number: int) -> Image.Image:
    return draw(list(CLASSES)[number % 12], np.random.default_rng([7, number]), (320, 240))


def file_of(number: int) -> bytes:
    return jpeg(picture(number), 92)[1]


def copied(number: int, name: str) -> bytes:
    return NEAR_COPIES[name](picture(number), np.random.default_rng(number))[1]


NIGHT_1 = {
    "https://one.example/star.jpg": file_of(STAR),
    "https://two.example/star.jpg": file_of(STAR),
    "https://three.example/star.jpg": file_of(STAR),
    **{f"https://two.example/{name}.jpg": copied(STAR, name) for name in NEAR},
    "https://one.example/linked.jpg": file_of(LINKED),
    "https://two.example/linked-again.jpg": file_of(LINKED),
    "https://gone.example/alone.jpg": file_of(ALONE),
    "https://img.gone.example/lower.jpg": file_of(LOWER),
    "https://two.example/lower-small.jpg": copied(LOWER, "resize_half"),
    "https://two.example/tenth.jpg": copied(TENTH, "reencode_q60"),
    "https://one.example/eleventh.jpg": copied(ELEVENTH, "reencode_q60"),
    **{f"https://one.example/{number}.jpg": file_of(number) for number in range(4, 10)},
}
NIGHT_2 = {
    "https://new.example/star-again.jpg": file_of(STAR),
    "https://new.example/star-other.jpg": copied(STAR, "resize_three_quarters"),
    "https://new.example/tenth-small.jpg": copied(TENTH, "resize_half"),
    "https://one.example/linked.jpg": file_of(LATER + 1),
    "https://www.gone.example/more.jpg": file_of(LATER + 2),
    "https://new.example/fresh.jpg": file_of(LATER + 3),
}
NIGHT_3 = {
    "https://last.example/star.jpg": file_of(STAR),
    "https://last.example/star-darker.jpg": copied(STAR, "darker"),
    "https://last.example/new.jpg": file_of(LATER + 4),
}
STARS = [
    data for url, data in (NIGHT_1 | NIGHT_2).items() if "star" in url or url.endswith(tuple(f"{n}.jpg" for n in NEAR))
]
OF_DOMAIN = [
    "https://gone.example/alone.jpg",
    "https://img.gone.example/lower.jpg",
    "https://www.gone.example/more.jpg",
]
FORGOTTEN_URLS = [
    *(url for url, data in (NIGHT_1 | NIGHT_2).items() if data in STARS),
    *("https://one.example/linked.jpg", "https://two.example/linked-again.jpg", "https://two.example/tenth.jpg"),
    *("https://one.example/eleventh.jpg", "https://new.example/tenth-small.jpg", *OF_DOMAIN),
]
FORGOTTEN = {
    *(image_id(data) for url, data in (NIGHT_1 | NIGHT_2).items() if url in FORGOTTEN_URLS),
    *(image_id(file_of(number)) for number in (TENTH, ELEVENTH)),
}
KEPT = {
    *(image_id(file_of(number)) for number in (*range(4, 10), 12, LATER + 3)),
    image_id(NIGHT_1["https://two.example/lower-small.jpg"]),
}


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for number, (url, data) in enumerate(members.items()):
            for suffix, content in (("jpg", data), ("json", json.dumps({"url": url}).encode())):
                member = tarfile.TarInfo(f"{number:03d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


class Taking:
    """The root after the second version, and what the calls of `lvd forget` said before it."""

    def __init__(self, base: Path) -> None:
        self.base, self.root = base, str(base / "root")
        self.storage = Storage(self.root)
        for folder in ("tars", "birds"):
            (base / folder).mkdir()
        write_tar(base / "tars/night-1.tar", NIGHT_1)
        for number in (TENTH, ELEVENTH, 12):
            (base / f"birds/{number}.jpg").write_bytes(file_of(number))
        tree = {
            "name": "taken",
            "pool": [{"kind": "webdataset", "path": str(base / "tars/*.tar")}],
            "curated": [
                {
                    "name": "birds",
                    "kind": "images",
                    "path": str(base / "birds"),
                    "retrieve": {"kind": "sample", "neighbors": 1},
                }
            ],
            "copies": {"model": "builtin:dct"},
            "embed": {"model": "builtin:color_texture"},
            "cluster": {"num_clusters": 2},
            "compute": {"cpu_workers": 1},
            "publish": {"images": "survivors", "rows_per_shard": 4},
        }
        (base / "recipe.yaml").write_text(yaml.safe_dump(tree))
        self.run()
        self.first = data_files(Path(self.root))
        self.page = self.storage.read_bytes("curated/v1/report.html").decode()
        self.before = {found.stage for found in directories(self.root)}
        self.export()
        self.taken = self.forget()
        self.seen = self.look()
        write_tar(base / "tars/night-2.tar", NIGHT_2)
        self.said = self.run()

    def export(self, root: str | None = None) -> bytes:
        """All bytes of an export of the first version, made there or made anew."""
        out = self.base / "export"
        exported_here(root or self.root, str(out), Config(kind="webdataset"), "v1")
        shutil.rmtree(out / ".lvd", ignore_errors=True)
        return b"".join(path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file())

    def look(self) -> tuple[str, dict[str, int]]:
        """What `lvd serve` says of the first version, and how it answers for the picture of every image."""
        rows = self.ledger("v1")
        with served(self.root) as site:
            shown = {row["image_id"]: site.ask(f"/picture/{row['image_id']}?v=1").status for row in rows}
            star = next(row["image_id"] for row in rows if row["image_id"] == image_id(file_of(STAR)))
            paths = ["/ledger?limit=1000", "/v/1/images?limit=1000", f"/image/{star}", f"/image/{star}/similar"]
            paths += [f"/image/{image_id(file_of(4))}/similar"]
            answers = [site.ask(path) for path in (*paths, *(f"/api{path}" for path in paths), "/v/1/report")]
        assert {answer.status for answer in answers} == {200}
        return "\n".join(answer.text for answer in answers), shown

    def run(self, root: str | None = None) -> str:
        root = root or self.root
        process = lvd("run", str(self.base / "recipe.yaml"), "--root", root, home=self.base / "prefect")
        assert process.returncode == 0, process.stderr[-4000:]
        return process.stdout

    def forget(self) -> list[Taken]:
        (self.base / "star.webp").write_bytes(copied(STAR, "webp") + b"\0")  # a file that no crawl has brought
        opted_out = "# asked for by mail\nhttps://ONE.example:443/eleventh.jpg\ngone.example  # and below\n\n"
        (self.base / "opt-out.txt").write_text(opted_out)
        calls = (
            Asked(images=(str(self.base / "star.webp"),)),
            Asked(urls=("https://one.example/linked.jpg",)),
            Asked(list_file=str(self.base / "opt-out.txt")),
            Asked(image_ids=(image_id(file_of(TENTH)),)),
        )
        return [takedown.forget(self.root, asked, by="a person", reason="asked for") for asked in calls]

    def ledger(self, version: str) -> list[dict]:
        target = StageDir(root=self.root, stage=f"curated/{version}", fingerprint="ledger")
        return [row for ref in target.shards() for row in read_table(ref).to_pylist()]


@pytest.fixture(scope="module")
def taking(tmp_path_factory: pytest.TempPathFactory) -> Taking:
    return Taking(tmp_path_factory.mktemp("takedown"))


def published(root: str, version: str) -> set[str]:
    return set(load_from_disk(f"{root}/curated/{version}")["image_id"])


def test_a_call_says_what_it_found(taking: Taking) -> None:
    star, linked, listed, tenth = taking.taken
    assert [(c.role, c.images) for c in star.counts] == [("pool", 10)]  # the picture and its nine copies
    assert (star.contents, star.published, star.version) == (8, 1, "v1")
    assert [(c.role, c.images) for c in linked.counts] == [("pool", 2)]
    assert [(c.role, c.images) for c in listed.counts] == [("pool", 3), ("curated", 1)]  # the domain's, and a copy
    assert [(c.role, c.images) for c in tenth.counts] == [("pool", 1), ("curated", 1)]


def test_without_a_record_there_is_no_trace_of_takedowns(taking: Taking) -> None:
    assert not taking.before & {"marked", "withheld", "remaining", "withdrawn", "forgotten"}
    assert {row["reason"] for row in taking.ledger("v1")} >= {"survivor", "curated", "curated_copy", "exact_duplicate"}


def test_the_next_version_has_none_of_them_although_the_crawl_brings_them_again(taking: Taking) -> None:
    assert published(taking.root, "v1") & FORGOTTEN
    assert published(taking.root, "v2") == KEPT
    rows = taking.ledger("v2")
    gone = {row["image_id"] for row in rows if row["reason"] == "forgotten"}
    assert gone == FORGOTTEN
    assert all((row["state"], row["stage"]) == ("dropped", "forgotten") for row in rows if row["image_id"] in FORGOTTEN)
    assert last_run(taking.storage)["ledger"]["kept"] == len(KEPT)
    assert "1 of the images taken down lie in no source" in " ".join(taking.said.split())  # the file star.webp


def test_a_copy_that_comes_later_names_the_image_that_it_went_with(taking: Taking) -> None:
    causes = {row["image_id"]: row["because_of"] for row in taking.ledger("v2") if row["reason"] == "forgotten"}
    later = image_id(NIGHT_2["https://new.example/star-other.jpg"])
    assert causes[later] in {image_id(data) for data in STARS} - {later}
    assert causes[image_id(file_of(TENTH))] is None


def test_a_copy_elsewhere_of_what_lies_on_a_domain_stays(taking: Taking) -> None:
    small = image_id(NIGHT_1["https://two.example/lower-small.jpg"])
    (row,) = [row for row in taking.ledger("v1") if row["image_id"] == small]
    assert row["state"] == "dropped"
    (row,) = [row for row in taking.ledger("v2") if row["image_id"] == small]
    assert (row["state"], row["reason"]) == ("kept", "survivor")


def test_no_page_shows_them_and_the_ledger_does_not_name_them(taking: Taking) -> None:
    page = taking.storage.read_bytes("curated/v2/report.html").decode()
    assert not [one for one in FORGOTTEN if f'data-image-id="{one}"' in page]
    assert [one for one in FORGOTTEN if f'data-image-id="{one}"' in taking.page]
    forgotten = [row["key"] for row in taking.ledger("v2") if row["reason"] == "forgotten"]
    assert len(forgotten) == len(FORGOTTEN_URLS) + 1 + 2 and all(key.startswith("forgotten:") for key in forgotten)
    assert "not taken down" in page and "taken down by request" in page


def test_records_hold_hashes_only(taking: Taking) -> None:
    names = taking.storage.names("forgotten")
    assert len(names) == 4
    texts = [taking.storage.read_bytes(f"forgotten/{name}").decode() for name in names]
    assert not [
        text for text in texts for word in ("example", "http", ".jpg", "star", str(taking.base)) if word in text
    ]
    assert all('"by": "a person"' in text and '"reason": "asked for"' in text for text in texts)


def test_why_tells_of_the_takedown(taking: Taking, capsys: pytest.CaptureFixture) -> None:
    (row,) = fates_of(taking.root, image_id(file_of(TENTH)))
    assert row["key"] == alias_of("birds/10.jpg")
    (named,) = fates_of(taking.root, "birds/10.jpg")
    assert named == row
    show_why(taking.root, "birds/10.jpg")
    said = capsys.readouterr().out
    assert "dropped at forgotten: forgotten" in said and "by a person: asked for" in said
    assert fates_of(taking.root, "https://one.example/linked.jpg") == []  # the key of a tar is another one


def test_find_does_not_name_them(taking: Taking, tmp_path: Path) -> None:
    (tmp_path / "new.png").write_bytes(copied(STAR, "png"))
    (tmp_path / "same.jpg").write_bytes(file_of(LINKED))
    (tmp_path / "other.jpg").write_bytes(file_of(4))
    new, other, same = find(taking.root, [str(tmp_path)], neighbours=50)
    assert new.verdict.startswith("a copy of an image that was taken down on 20") and not new.published
    assert same.verdict.startswith("taken down on 20") and "by a person: asked for" in same.verdict
    assert other.verdict == "published" and other.neighbours
    shown = {image.image_id for each in (new, other, same) for image in (*each.copies, *each.neighbours)}
    assert not shown & FORGOTTEN and not (new.copies or same.copies)


class Stopped(Exception):
    """As if the process had ended."""


def erased_until(root: str, files: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Erases until so many files were written; True if it came to its end."""
    left, write = [files], Storage.whole_file

    def whole_file(storage: Storage, name: str):
        if not name.startswith("leases/"):
            left[0] -= 1
        if left[0] < 0:
            raise Stopped
        return write(storage, name)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "whole_file", whole_file)
        try:
            takedown.forget(root, Asked(), now=True)
        except Stopped:
            return False
    return True


@pytest.fixture(scope="module")
def erased(taking: Taking) -> tuple[str, Taken]:
    """A copy of the root from which everything is erased, and what the call said."""
    root = str(taking.base / "erased")
    shutil.copytree(taking.root, root)
    target = StageDir(root=root, stage="patches", fingerprint="a")  # as a model that looks at patches leaves it
    with write_shard(target.planned(1)[0], patches.SCHEMA, {}) as shard:
        shard.keep({"image_id": image_id(file_of(STAR)), "key": "star", "seen": picture(STAR).tobytes()})
    commit(target, 1, config={}, inputs={})
    return root, takedown.forget(root, Asked(), now=True)


def thumbnails(root: str) -> set[bytes]:
    """The 32 × 32 pixels of what was taken down."""
    found = [StageDir(root=root, stage="screen", fingerprint=name) for name in Storage(root).names("screen")]
    rows = [row for target in found for ref in target.shards() for row in read_table(ref).to_pylist()]
    return {row["thumbnail"] for row in rows if row["image_id"] in FORGOTTEN}


def pictures_of(page: str) -> set[str]:
    """What a report has for pictures of what was taken down, as Base64."""
    found = re.findall(r'src="data:[^,"]*,([^"]+)" data-image-id="([0-9a-f]{32})"', page)
    return {data for data, one in found if one in FORGOTTEN}


def test_a_picture_with_nine_copies_is_gone_from_everything_but_a_record(
    taking: Taking, erased: tuple[str, Taken], tmp_path: Path
) -> None:
    """The dataset, its exports, the report and its thumbnails, what the model saw, what `lvd find` and `serve` say."""
    root, taken = erased
    stars = {image_id(data) for data in STARS}
    drawn, small, files = pictures_of(taking.page), thumbnails(taking.root), sorted(Path(root).rglob("*"))
    assert len(drawn) > 5 and len(small) > 10
    assert published(taking.root, "v1") & stars and not (published(root, "v1") | published(root, "v2")) & FORGOTTEN
    sought = [*small, picture(STAR).tobytes(), *STARS]
    sought += [form for data in drawn for form in (data.encode(), base64.b64decode(data))]
    before = b"".join(path.read_bytes() for path in Path(taking.root).rglob("*") if path.is_file())
    assert sum(one in before for one in sought) > len(small) + len(drawn)
    held = {path: path.read_bytes() for path in files if path.is_file()}
    assert not [path for path, data in held.items() if any(one in data for one in sought)]
    named = {
        path.relative_to(root).parts[0] for path, data in held.items() if any(one.encode() in data for one in stars)
    }
    assert "forgotten" in named and not named & {"published", "patches"}  # and rows of measures, which are keyed by it
    assert taken.exports == (f"{taking.base / 'export'} (webdataset of v1)",)
    (export,) = [one for one in (taking.base / "export").glob("*.tar")]
    assert any(one in export.read_bytes() for one in STARS)
    anew = taking.export(root)
    assert not [one for one in (*STARS, *(name.encode() for name in stars)) if one in anew]
    assert takedown.forget(root, Asked(), now=True).exports == ()
    (tmp_path / "star.jpg").write_bytes(file_of(STAR))
    (tmp_path / "copy.jpg").write_bytes(copied(STAR, "caption"))
    for found in find(root, [str(tmp_path)], neighbours=50):
        assert "taken down on 20" in found.verdict and not found.published
        assert not {image.image_id for image in (*found.copies, *found.neighbours)} & FORGOTTEN


def test_serve_shows_and_names_none_of_them_before_the_next_version(taking: Taking) -> None:
    text, shown = taking.seen
    assert {one for one, status in shown.items() if status == 404} == FORGOTTEN & shown.keys()
    rows = [row for row in taking.ledger("v1") if row["image_id"] in FORGOTTEN]
    of_domain = {image_id(NIGHT_1[url]) for url in OF_DOMAIN if url in NIGHT_1}  # which the ledger knows by their tar
    keys = {row["key"] for row in rows if row["image_id"] not in of_domain}
    assert len(keys) > 10 and not [one for one in (*keys, *pictures_of(taking.page), "gone.example") if one in text]
    assert "taken down on 20" in text and image_id(file_of(4)) in text


def test_a_version_with_them_is_not_exported(taking: Taking) -> None:
    with pytest.raises(InputError, match="must hold no image that was taken down, v1 has"):
        taking.export()


@pytest.fixture(scope="module")
def last_night(taking: Taking, erased: tuple[str, Taken]) -> str:
    """The erased root after another night."""
    root = str(taking.base / "last")
    shutil.copytree(erased[0], root)
    tar = taking.base / "tars/night-3.tar"
    write_tar(tar, NIGHT_3)
    taking.run(root)
    tar.unlink()  # the other tests know nothing of it
    return root


def test_what_was_erased_goes_on_attracting_its_copies(last_night: str) -> None:
    """By its descriptor; and nothing that is stored is measured or compared anew."""
    assert published(last_night, "v3") == KEPT | {image_id(file_of(LATER + 4))}
    (row,) = fates_of(last_night, image_id(copied(STAR, "darker")))
    assert (row["stage"], row["because_of"]) == ("forgotten", image_id(file_of(STAR)))
    storage = Storage(last_night)
    second, third = (
        next(storage.read_json(f"runs/{name}") for name in storage.names("runs") if name.endswith(f"-{version}.json"))
        for version in ("v2", "v3")
    )
    for stage in ("screen", "fingerprint", "descriptors"):
        assert {*second["directories"][stage]} < {*third["directories"][stage]}


def test_now_leaves_no_picture_and_no_address_anywhere(taking: Taking, erased: tuple[str, Taken]) -> None:
    root, taken = erased
    assert (
        taken.record is None and set(taken.erased.versions) == {"v1"} and taken.erased.images == len(FORGOTTEN_URLS) + 3
    )
    keys = [row["key"] for row in taking.ledger("v1") if row["image_id"] in FORGOTTEN]
    words = [*FORGOTTEN_URLS, *keys, "birds/10.jpg", "birds/11.jpg", "gone.example"]
    pictures = [data for url, data in (NIGHT_1 | NIGHT_2).items() if url in FORGOTTEN_URLS]
    pictures += [file_of(number) for number in (TENTH, ELEVENTH)]
    sought = [*(word.encode() for word in words), *(data[len(data) // 2 :][:200] for data in pictures)]
    assert any(
        one in taking.storage.read_bytes(ref.name())
        for one in sought
        for ref in StageDir(root=taking.root, stage="curated", fingerprint="v1").shards()
    )
    for path in Path(root).rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        assert not [one for one in sought if one in data], path


def test_what_is_left_of_the_versions_is_whole(taking: Taking, erased: tuple[str, Taken]) -> None:
    root, taken = erased
    assert published(root, "v2") == KEPT
    first = published(root, "v1")
    assert first == published(taking.root, "v1") - FORGOTTEN
    assert taken.erased.versions["v1"] == len(published(taking.root, "v1") & FORGOTTEN)
    account = StageDir(root=root, stage="curated", fingerprint="v1").account()
    assert account["rows"] == len(first) == sum(account["shard_rows"])
    ledger = StageDir(root=root, stage="curated/v1", fingerprint="ledger")
    rows = [row for ref in ledger.shards() for row in read_table(ref).to_pylist()]
    assert len(rows) == len(taking.ledger("v1")) and {r["image_id"] for r in rows if r["state"] == "kept"} == first
    storage = Storage(root)
    card = storage.read_bytes("curated/v1/README.md").decode()
    assert f"\n{len(first)} images (" in card and "| forgotten |" in card
    record = next(name for name in storage.names("runs") if name.endswith("-v1.json"))
    said = storage.read_json(f"runs/{record}")
    assert said["ledger"]["kept"] == said["published"] == len(first)
    assert sum(count for _, _, state, _, count in said["endings"] if state == "kept") == len(first)


def test_now_touches_nothing_else(taking: Taking, erased: tuple[str, Taken]) -> None:
    root, _ = erased
    before, after = data_files(Path(taking.root)), data_files(Path(root))
    assert before.keys() == after.keys()
    changed = {name.split("/")[0] for name in before if before[name] != after[name]}
    assert changed == {"curated", "published", "crawl", "download", "screen"}
    assert not [name for name in before if name.startswith("curated/v2") and before[name] != after[name]]


def test_now_that_is_interrupted_completes_when_it_is_run_again(
    taking: Taking, erased: tuple[str, Taken], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(taking.root, tmp_path / "root")
    stops = 0
    while not erased_until(str(tmp_path / "root"), 2, monkeypatch):
        stops += 1
    assert stops > 5
    assert data_files(tmp_path / "root") == data_files(Path(erased[0]))
    again = takedown.forget(str(tmp_path / "root"), Asked(), now=True).erased
    assert again == erasing.Erased()


def test_after_it_the_same_run_has_nothing_to_do(taking: Taking, erased: tuple[str, Taken]) -> None:
    root, _ = erased
    snapshot = look(load(str(taking.base / "recipe.yaml"), root=root))
    assert snapshot is not None and snapshot.version == "v2" and not sum(snapshot.computed.values())


def test_what_is_wrong_is_said_before_anything_is_written(taking: Taking, tmp_path: Path) -> None:
    before = taking.storage.names("forgotten")
    (tmp_path / "list.txt").write_text("gone.example\nno domain\nftp://x.example/a.jpg\n" + "0" * 31 + "\n")
    (tmp_path / "no.jpg").write_text("no picture")
    for asked, message in (
        (Asked(), "something must be named"),
        (Asked(image_ids=("0" * 31,)), "--image-id must be 32 hexadecimal characters"),
        (Asked(domains=("no domain",)), "--domain must be a name such as example.org, was 'no domain'"),
        (Asked(images=(str(tmp_path / "no.jpg"),)), "--image must be a file with a picture"),
        (Asked(list_file=str(tmp_path / "list.txt")), r"was not in line 2, 3, 4: mend or remove it"),
        (Asked(list_file=str(tmp_path / "none.txt")), "--list must be a file that can be read"),
    ):
        with pytest.raises(InputError, match=message):
            takedown.forget(taking.root, asked)
    assert taking.storage.names("forgotten") == before
    with pytest.raises(InputError, match="root must be one that lvd has written to"):
        takedown.forget(str(tmp_path / "none"), Asked(domains=("gone.example",)))
