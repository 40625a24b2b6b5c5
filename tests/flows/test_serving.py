"""`lvd serve` over real HTTP: every page of the miniature's root, and small roots for what is hostile or forgotten."""

import io
from collections.abc import Iterator
from urllib.parse import quote, urlencode

import pytest
from PIL import Image

from lvd.flows import pages, serving
from lvd.flows.shelf import Shelf
from lvd.infra.storage import Storage
from lvd.tasks import models
from lvd.tasks.takedowns import Record, write_record
from lvd.tests.answers import image_id
from lvd.tests.miniature import Miniature
from lvd.tests.running import Curated
from lvd.tests.shelved import Served, picture, row_of, served, write_version

HOSTILE = "http://evil.example/<script>alert('x')</script>\"onerror=\"x&amp;.jpg"


@pytest.fixture(scope="module")
def site(curated: Curated) -> Iterator[Served]:
    with served(str(curated.root)) as running:
        yield running


@pytest.fixture(scope="module")
def rows(curated: Curated) -> list[dict]:
    return curated.ledger()


def one(rows: list[dict], **wanted: str) -> dict:
    return next(row for row in rows if all(row[name] == value for name, value in wanted.items()))


def test_every_page_is_there_and_says_the_ledgers_numbers(site: Served, rows: list[dict]) -> None:
    overview = site.page("/")
    assert "The miniature set" in overview
    said = site.api("")
    assert said["candidates"] == len(rows)
    assert said["states"] == {s: sum(row["state"] == s for row in rows) for s in ("kept", "dropped", "failed")}
    kept = [row for row in rows if row["state"] == "kept"]
    assert sum(said["roles"].values()) == len(kept)
    for path in ("/ledger", "/v/1/images", "/runs", "/find", f"/image/{kept[0]['image_id']}"):
        assert "The miniature set" in site.page(path)
    (run,) = site.api("/runs")["runs"]
    assert "copies" in site.page(f"/runs/{run['run_id']}")
    assert {stage["stage"] for stage in site.api(f"/runs/{run['run_id']}")["stages"]} >= {"crawl", "copies", "ledger"}


def test_the_report_runs_apart_from_the_other_pages(site: Served, curated: Curated) -> None:
    answer = site.ask("/v/1/report")
    assert answer.body == (curated.root / "curated/v1/report.html").read_bytes()
    assert answer.headers["content-security-policy"].startswith("sandbox allow-scripts; default-src 'none'")
    assert answer.headers["cross-origin-opener-policy"] == "unsafe-none"
    assert site.ask("/").headers["cross-origin-opener-policy"] == "same-origin"
    assert site.ask("/v/1/card").text == (curated.root / "curated/v1/README.md").read_text()


def test_all_candidates_are_found_by_url_and_by_id(site: Served, rows: list[dict]) -> None:
    assert site.api("/ledger")["found"]["matched"] == len(rows)
    for row in (rows[0], rows[len(rows) // 2], rows[-1]):
        found = site.api(f"/ledger?{urlencode({'q': row['key'], 'match': 'exactly'})}")["found"]
        assert row["key"] in [one["key"] for one in found["rows"]]
    kept = one(rows, state="kept")
    for text in (kept["image_id"], kept["image_id"][:10].upper()):
        found = site.api(f"/ledger?q={text}")["found"]["rows"]
        assert {r["image_id"] for r in found} == {kept["image_id"]}
    ended = {"state": "dropped", "reason": "copy"}
    assert site.api(f"/ledger?{urlencode(ended)}")["found"]["matched"] == sum(r["reason"] == "copy" for r in rows)


def test_the_pages_of_the_ledger_join_up(site: Served, rows: list[dict]) -> None:
    keys, after = [], 0
    while after is not None:
        found = site.api(f"/ledger?limit=100&after={after}")["found"]
        keys, after = keys + [row["key"] for row in found["rows"]], found["next"]
    assert keys == [row["key"] for row in rows]


def test_duplicates_and_benchmark_copies_lead_to_their_cause(site: Served, curated: Curated, rows: list[dict]) -> None:
    planted = Miniature.load(curated.folder)
    copy = one(rows, reason="copy")
    page = site.page(f"/image/{copy['image_id']}")
    assert f'href="/image/{copy["because_of"]}"' in page
    assert copy["key"].rsplit("/", 1)[-1] in page
    stays = site.api(f"/image/{copy['because_of']}")
    assert copy["image_id"] in {row["image_id"] for row in stays["group"]["rows"]}
    benchmark = one(rows, reason="benchmark_copy")
    assert benchmark["because_of"] in {planted.benchmark_id(a.of) for a in planted.of_kind("benchmark_copy")}
    said = site.api(f"/image/{benchmark['because_of']}")
    assert (said["rows"], said["published"]) == ([], None)
    assert said["reference"].endswith("(benchmark miniature-test)")
    for row in (copy, benchmark, {"image_id": benchmark["because_of"]}):
        assert site.ask(f"/picture/{row['image_id']}").headers["content-type"] == "image/webp"


def test_a_stored_image_is_found_as_lvd_find_finds_its_file(site: Served, curated: Curated, rows: list[dict]) -> None:
    """The same verdict, copies and neighbours, by the vectors that are stored."""
    planted = Miniature.load(curated.folder)
    for reason in ("copy", "retrieved", "benchmark_copy", "exact_duplicate"):
        row = one(rows, reason=reason)
        stored = site.api(f"/image/{row['image_id']}/similar")["finding"]
        data = file_of(planted, row)
        fresh = site.ask("/api/find", method="POST", body=data).json()["finding"]
        assert stored["verdict"] == fresh["verdict"]
        for name in ("copies", "neighbours"):
            ours, theirs = ([(i["image_id"], i["by"], i["fate"]) for i in said[name]] for said in (stored, fresh))
            assert sorted(ours) == sorted(theirs)
        assert stored["cluster"] == fresh["cluster"]


def test_a_stored_vector_is_compared_without_a_model(
    site: Served, rows: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(models, "load", loaded)
    said = site.api(f"/image/{one(rows, reason='retrieved')['image_id']}/similar")["finding"]
    assert (said["verdict"], len(said["neighbours"])) == ("published", 12)


def file_of(planted: Miniature, row: dict) -> bytes:
    """The bytes of a candidate of the miniature web."""
    files = (path.read_bytes() for path in (planted.folder / "web").rglob("*") if path.is_file())
    return next(data for data in files if image_id(data) == row["image_id"])


def test_a_picture_that_is_dropped_is_found(site: Served, rows: list[dict], curated: Curated) -> None:
    row = one(rows, state="kept", role="pool")
    data = file_of(Miniature.load(curated.folder), row)
    answer = site.ask("/find?name=<b>.jpg", method="POST", body=data, Accept="text/html")
    assert answer.status == 200
    assert "published" in answer.text and "&lt;b&gt;.jpg" in answer.text and row["key"] in answer.text
    new = io.BytesIO()
    Image.effect_noise((200, 150), 90).save(new, "PNG")
    verdict = site.ask("/api/find", method="POST", body=new.getvalue()).json()["finding"]["verdict"]
    assert verdict.startswith("not in the pool")
    error = site.ask("/api/find", method="POST", body=b"no picture").json()["finding"]["error"]
    assert error.startswith("not_an_image: ")


def test_an_image_that_cannot_be_decoded_is_not_asked_for(site: Served, rows: list[dict]) -> None:
    broken = one(rows, reason="truncated")
    assert broken["image_id"]
    assert "/picture/" not in site.page("/ledger?reason=truncated")
    page = site.page(f"/image/{broken['image_id']}")
    assert "Not shown: it cannot be decoded: truncated." in page and "/picture/" not in page


def test_published_images_are_browsed_by_what_they_are(site: Served, rows: list[dict]) -> None:
    kept = [row for row in rows if row["state"] == "kept"]
    every = site.api("/v/1/images?limit=1000")
    assert [row["key"] for row in every["found"]["rows"]] == [row["key"] for row in kept]
    for role, number in every["roles"].items():
        assert site.api(f"/v/1/images?role={role}")["found"]["matched"] == number
    for name, number in every["collections"].items():
        found = site.api(f"/v/1/images?collection={name}&limit=1000")["found"]
        assert found["matched"] == number
        assert all(name in row["retrieved_for"] for row in found["rows"])
    cell = next(c for row in kept if row["role"] == "pool" and (c := site.api(f"/image/{row['image_id']}")["cell"]))
    of_cluster = site.api(f"/v/1/images?cluster={cell['cluster_id']}")["found"]["rows"]
    assert of_cluster
    for row in of_cluster[:5]:
        assert site.api(f"/image/{row['image_id']}")["cell"]["cluster_id"] == cell["cluster_id"]
    web = [row for row in every["found"]["rows"] if (row["url"] or row["key"]).startswith("http://127.0.0.1")]
    assert {row["key"].startswith("http") for row in web} == {True, False}  # those of tar shards as well
    assert site.api("/v/1/images?domain=127.0.0.1")["found"]["matched"] == len(web) > 0
    assert "after=48" in site.page("/v/1/images")


def test_pictures_are_small_and_come_again_only_if_they_changed(site: Served, rows: list[dict]) -> None:
    row = one(rows, state="kept", role="pool")
    for size, edge in (("small", 240), ("large", 960)):
        answer = site.ask(f"/picture/{row['image_id']}?size={size}")
        with Image.open(io.BytesIO(answer.body)) as image:
            assert image.format == "WEBP" and max(image.size) <= edge
        again = site.ask(f"/picture/{row['image_id']}?size={size}", If_None_Match=answer.headers["etag"])
        assert (again.status, again.body) == (304, b"")


WRONG = [
    ("/image/xyz", 404),
    ("/image/" + "0" * 32, 404),
    ("/image/" + "A" * 32, 404),
    ("/picture/" + "0" * 32, 404),
    ("/picture/..%2f..%2fcurated%2flatest.json", 404),
    ("/v/1/report/../../../runs", 404),
    ("/v/99/report", 404),
    ("/v/0/images", 404),
    ("/v/-1/images", 404),
    ("/v/" + "9" * 30 + "/images", 404),
    ("/v/" + "9" * 5000 + "/report", 404),
    ("/runs/..%2f..%2fcurated%2flatest", 404),
    ("/runs/../curated/latest.json", 404),
    ("/runs/%00", 404),
    ("/serve/base.html.jinja", 404),
    ("/nothing", 404),
    ("/ledger?state=gone", 400),
    ("/ledger?after=x", 400),
    ("/ledger?limit=100000", 400),
    ("/ledger?match=like", 400),
    ("/ledger?v=99", 404),
    ("/v/1/images?cluster=-1", 400),
    ("/picture/" + "0" * 32 + "?size=huge", 400),
    ("/ledger?q=" + "x" * 3000, 400),
]


@pytest.mark.parametrize(("path", "status"), WRONG)
def test_what_is_not_there_is_said_in_one_line(site: Served, path: str, status: int) -> None:
    answer = site.ask(path)
    assert answer.status == status
    assert answer.text.count("\n") <= 1 and "Traceback" not in answer.text
    page = site.ask(path, Accept="text/html")
    assert page.status == status
    assert page.text.startswith("<!DOCTYPE html>")


def test_other_sites_cannot_read_or_write(site: Served) -> None:
    assert site.ask("/", Host="evil.example").status == 400
    cross = {"Sec_Fetch_Site": "cross-site", "Origin": "https://evil.example"}
    assert site.ask("/api/find", method="POST", body=b"x", **cross).status == 403
    assert site.ask("/find", method="POST", body=b"x", Origin="null").status == 403
    assert site.ask("/ledger?q=x", Sec_Fetch_Site="cross-site", Sec_Fetch_Dest="image").status == 403
    assert site.ask("/ledger?q=x", Sec_Fetch_Site="cross-site", Sec_Fetch_Dest="document").status == 200
    for path in ("/", "/nothing", "/api/ledger", "/script.js"):
        headers = site.ask(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert "access-control-allow-origin" not in headers and "server" not in headers
    for method in ("PUT", "DELETE", "POST"):
        assert site.ask("/ledger", method=method).status == 405


def test_what_is_too_large_is_refused_before_it_is_read(site: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = site.ask("/api/find", method="POST", Content_Length=str(serving.MAX_UPLOAD + 1))
    assert answer.status == 413
    assert answer.json()["error"] == "a picture may have at most 33,554,432 bytes: make it smaller"
    monkeypatch.setattr(serving, "MAX_UPLOAD", 1000)

    def unsized() -> Iterator[bytes]:
        yield b"x" * 600
        yield b"x" * 600

    assert site.ask("/api/find", method="POST", body=unsized()).status == 413
    assert site.ask("/api/find", method="POST", body=b"").status == 400


def test_hostile_names_are_escaped_and_credentials_left_out(local_root: str) -> None:
    rows = [row_of(HOSTILE, number=1), row_of("http://me:secret@a.example/x.jpg", "copy", 2)]
    rows[1]["because_of"] = rows[0]["image_id"]
    rows[0]["alt"] = rows[0]["page_url"] = rows[0]["source"] = '"><script>alert(1)</script>'
    write_version(local_root, 1, [rows])
    with served(local_root) as site:
        of_images = [f"/image/{row['image_id']}" for row in rows]
        for path in ("/", "/ledger", f"/ledger?q={quote(HOSTILE)}", "/v/1/images", *of_images):
            page = site.page(path)
            assert "<script>alert" not in page and 'onerror="x' not in page, path
            assert "secret" not in page + site.ask(f"/api{path if path != '/' else ''}").text, path
        (found,) = site.api(f"/ledger?q={quote(HOSTILE)}")["found"]["rows"]
        assert found["key"] == HOSTILE
        assert "By &lt;hand&gt;" in site.page("/")
        evil = f"/ledger?q={quote('<img src=x onerror=alert(1)>')}&because_of={quote(HOSTILE)}"
        assert "<img src=x" not in site.page(evil)


def test_what_was_taken_down_or_is_unsafe_is_not_shown(local_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row_of("a.jpg", number=1), row_of("b.jpg", "forgotten", 2), row_of("c.jpg", "nsfw", 3)]
    rows.append(row_of("d.jpg", number=4))
    rows.append({**row_of("e.jpg", "exact_duplicate", 3), "because_of": rows[2]["image_id"]})  # the same bytes as c.jpg
    write_version(local_root, 1, [[row] for row in rows])
    monkeypatch.setattr(pages, "SCAN_S", 0.0)  # nor if nobody may wait for a scan
    with served(local_root) as site:
        statuses = [site.ask(f"/picture/{row['image_id']}").status for row in rows]
        assert statuses == [200, 404, 404, 200, 404]
        assert "it was taken down" in site.ask(f"/picture/{rows[1]['image_id']}").text
        for row in rows[1:3]:
            page = site.page(f"/image/{row['image_id']}")
            assert "Not shown: " in page and "/picture/" not in page
        monkeypatch.undo()
        assert site.page("/ledger").count("/picture/") == 3
        record = Record(date="2026-01-02T00:00:00Z", images=(rows[3]["image_id"],))  # no ledger knows it
        write_record(Storage(local_root), record)
        assert Shelf(local_root).edition().veil
    with served(local_root) as site:
        assert [site.ask(f"/picture/{rows[n]['image_id']}").status for n in (0, 3)] == [200, 404]
        assert site.page("/v/1/images").count("/picture/") == 1


def test_faces_are_blurred_in_what_was_not_published(local_root: str) -> None:
    """Or nothing is shown, where nobody looked for them."""
    file = io.BytesIO()
    half = Image.new("RGB", (200, 200), "white")
    half.paste("black", (0, 0, 100, 200))
    half.save(file, "PNG")
    seen = row_of("seen", "copy", data=file.getvalue())
    rows = [[row_of("first", "copy", 1)], [row_of("unseen", "copy", 2), seen]]
    boxes = {"first": [], "seen": [[0.3, 0.3, 0.7, 0.7, 0.9], [0.0, 0.0, 0.2, 0.2, 0.1]]}  # the second is too unsure
    write_version(local_root, 1, rows, faces=boxes)
    with served(local_root) as site:
        assert site.ask(f"/picture/{rows[0][0]['image_id']}").status == 200
        unseen = site.ask(f"/picture/{rows[1][0]['image_id']}")
        assert (unseen.status, "nobody looked for them" in unseen.text) == (404, True)
        with Image.open(io.BytesIO(site.ask(f"/picture/{seen['image_id']}").body)) as image:
            grey = image.convert("L")
            assert 60 < grey.getpixel((103, 100)) < 200  # at the edge inside the box; beyond it black and white
            assert (grey.getpixel((90, 10)) < 20, grey.getpixel((110, 10)) > 235) == (True, True)


def test_the_rows_of_the_ledger_lead_to_their_images(local_root: str) -> None:
    """In several shards, after rejects that have no image."""
    shards = [
        [row_of("a", number=1), row_of("lost", "http_404"), row_of("b", "copy", 2)],
        [row_of("gone", "http_404")],
        [row_of("c", "not_retrieved", 3), row_of("d", number=4)],
    ]
    write_version(local_root, 1, shards)
    with served(local_root) as site:
        for row in (row for rows in shards for row in rows if row["data"]):
            with Image.open(io.BytesIO(site.ask(f"/picture/{row['image_id']}").body)) as image:
                colour = image.convert("RGB").getpixel((5, 5))[0]
                with Image.open(io.BytesIO(row["data"])) as original:
                    assert abs(colour - original.getpixel((5, 5))[0]) < 3
        assert [row["has_picture"] for row in site.api("/ledger?q=lost")["found"]["rows"]] == [False]


def test_new_versions_appear_and_old_ones_stay(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a folder and on S3."""
    monkeypatch.setattr("lvd.flows.shelf.CHECK_S", 0.0)
    write_version(root, 1, [[row_of("a", number=1)]])
    with served(root) as site:
        assert site.api("")["head"]["version"] == "v1"
        first = site.api("/ledger")["found"]["rows"]
        write_version(root, 2, [[row_of("a", "copy", 1), row_of("b", number=2)]], minute=1)
        assert site.api("")["head"]["version"] == "v2"
        assert [v["version"] for v in site.api("")["versions"]] == ["v2", "v1"]
        assert (site.api("")["roles"], site.api("")["collections"]) == ({"retrieved": 1}, {"birds": 1})
        assert site.api("/ledger?v=1")["found"]["rows"] == first
        assert "the newest is v2" in site.page("/ledger?v=1")
        assert [row["state"] for row in site.api("/ledger")["found"]["rows"]] == ["dropped", "kept"]
        assert site.ask(f"/picture/{first[0]['image_id']}?v=1").status == 200
        assert site.ask("/v/2/report").status == 200
        assert [run["version"] for run in site.api("/runs")["runs"]] == ["v2", "v1"]


def test_a_root_over_vectors_says_so(local_root: str) -> None:
    write_version(local_root, 1, [[row_of("name-1", number=1)]], has_images=False)
    with served(local_root) as site:
        for path in ("/", "/v/1/images", "/find"):
            assert "This root holds vectors, not images" in site.page(path)
        assert site.api("/ledger?q=name")["found"]["matched"] == 1
        assert "/picture/" not in site.page("/ledger")
        assert site.ask("/api/find", method="POST", body=picture(1)).status == 409
        assert site.ask(f"/picture/{image_id(picture(1))}").status == 404
