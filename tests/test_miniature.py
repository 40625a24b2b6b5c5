"""The miniature web is the same every time and holds what it says, and its checker finds a wrong ledger."""

import gzip
import http.client
import json
import os
import re
import subprocess
import sys
import tarfile
from collections import Counter, defaultdict
from contextlib import closing
from hashlib import sha256
from html import unescape
from io import BytesIO
from itertools import islice
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from lvd.tests import copying, miniature
from lvd.tests.answers import KEPT, Answer, Miniature, image_id
from lvd.tests.drawing import CLASSES
from lvd.tests.web import MiniatureWeb


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("miniature")


@pytest.fixture(scope="module")
def web(folder):
    with MiniatureWeb(folder) as running:
        yield running


@pytest.fixture(scope="module")
def built(web, folder) -> Miniature:
    return miniature.build(folder, base_url=web.url)


def stored_bytes(built: Miniature, answer: Answer) -> bytes:
    """The bytes that were planted for an answer, read from where they lie."""
    if answer.key.startswith("00000.tar/"):
        with tarfile.open(built.folder / "tars" / "00000.tar") as tar:
            return tar.extractfile(answer.key.partition("/")[2]).read()
    path = "moved/there.jpg" if answer.transform == "redirected" else unquote(urlsplit(answer.key).path).lstrip("/")
    return (built.folder / "web" / path).read_bytes()


def upright(data: bytes) -> Image.Image:
    """The first frame as a viewer shows it."""
    with Image.open(BytesIO(data)) as image:
        if image.mode == "I;16":
            return Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        return ImageOps.exif_transpose(image).convert("RGB")


def thumbnails(images: list[Image.Image]) -> np.ndarray:
    """(n, 1024) float64, unit rows: luminance at 32 x 32, without its mean."""
    small = [image.convert("L").resize((32, 32), Image.Resampling.BOX) for image in images]
    rows = np.array([np.asarray(image, float).ravel() for image in small])
    rows -= rows.mean(axis=1, keepdims=True)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): sha256(file.read_bytes()).hexdigest() for file in files}


# ---- what is planted


def test_another_process_builds_the_same_bytes(built, tmp_path):
    code = f"from lvd.tests.miniature import build; build({str(tmp_path)!r}, base_url={built.base_url!r})"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert digests(tmp_path) == digests(built.folder)


def test_seed_changes_the_pictures_and_scale_only_adds_some(monkeypatch):
    first = [planted.stored for planted in islice(miniature.plant_alone(0, 1), 4)]
    assert first == [planted.stored for planted in islice(miniature.plant_alone(0, 8), 4)]
    other = [planted.stored for planted in islice(miniature.plant_alone(1, 1), 4)]
    assert not {image_id(data) for _, data in first} & {image_id(data) for _, data in other}
    monkeypatch.setattr(miniature, "UNRELATED_PER_CLASS", 1)
    counts = [sum(1 for _ in miniature.plant_alone(0, scale)) for scale in (1, 3)]
    assert counts[1] - counts[0] == 2 * len(CLASSES)


def test_load_returns_what_build_returned(built, tmp_path):
    assert Miniature.load(built.folder) == built
    with pytest.raises(FileNotFoundError):
        Miniature.load(tmp_path)


@pytest.mark.parametrize(
    ("kind", "at_least"),
    [
        ("unrelated", 280),
        ("exact_copy", 15),
        ("near_copy", 60),
        ("mirrored", 8),
        ("strong_crop", 8),
        ("benchmark_copy", 12),
        ("fault", 25),
        ("duplicate_url", 1),
        ("invalid_url", 1),
    ],
)
def test_enough_is_planted(built, kind, at_least):
    assert len(built.of_kind(kind)) >= at_least


def test_every_near_transform_is_planted_in_several_groups(built):
    planted = Counter(answer.transform for answer in built.of_kind("near_copy"))
    assert set(planted) == set(copying.NEAR_COPIES) and min(planted.values()) >= 3
    assert len({answer.group for answer in built.of_kind("near_copy")}) >= 12


def test_sources_hold_every_key_once_and_the_repeated_url_twice(built):
    table = pq.read_table(built.folder / "lists" / "day-1.parquet")
    crawled = gzip.decompress((built.folder / "crawl" / "day-2.warc.gz").read_bytes()).decode()
    found = [unescape(url) for url in re.findall(f'[" ]({built.base_url}/[^"\\s]+)', crawled)]
    shown = [url for url in found if not url.endswith("/index.html")]
    listed = Counter([*table["url"].to_pylist(), *shown])
    with tarfile.open(built.folder / "tars" / "00000.tar") as tar:
        members = [f"00000.tar/{name}" for name in tar.getnames() if name.endswith(".jpg")]
        about = json.load(tar.extractfile(tar.getnames()[1]))
        assert {member.mtime for member in tar.getmembers()} == {0}
    assert listed + Counter(members) == Counter(answer.key for answer in built.answers)
    assert len(members) >= 40 and table.num_rows >= 100 and len(shown) >= 100
    assert about["key"] == "000000000" and about["status"] == "success" and len(about["sha256"]) == 64
    assert table.schema.equals(miniature.LIST_SCHEMA, check_metadata=False)


def test_image_ids_are_those_of_the_bytes(built):
    arriving = [answer for answer in built.answers if answer.image_id]
    assert len(arriving) > 400
    assert all(answer.image_id == image_id(stored_bytes(built, answer)) for answer in arriving)


def test_unrelated_images_decode_and_cover_the_formats(built):
    seen, frames = set(), Counter()
    for answer in built.of_kind("unrelated"):
        with Image.open(BytesIO(stored_bytes(built, answer))) as image:
            image.load()
            assert 100 <= min(image.size) <= 640 and max(image.size) < 2 * min(image.size)
            seen.add((image.format, image.mode))
            frames[image.format] += getattr(image, "n_frames", 1) > 1
    expected = {("JPEG", mode) for mode in ("RGB", "L", "CMYK")} | {("WEBP", "RGB"), ("WEBP", "RGBA"), ("GIF", "P")}
    assert seen >= expected | {("PNG", mode) for mode in ("RGB", "P", "RGBA", "LA", "I;16", "1")}
    assert frames["GIF"] == frames["WEBP"] == 1


def test_unrelated_images_share_no_low_frequency_luminance(built):
    images = [upright(stored_bytes(built, answer)) for answer in built.of_kind("unrelated", "original")]
    vectors = thumbnails(images)
    similarity = (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]
    assert (similarity > 0.8).mean() < 0.001


def test_classes_are_told_by_colour_and_gradients(built):
    answers = [answer for answer in built.of_kind("unrelated") if not answer.transform]
    rows = []
    for answer in answers:
        image = upright(stored_bytes(built, answer)).resize((96, 96))
        hue, saturation, _ = np.moveaxis(np.asarray(image.convert("HSV"), float), 2, 0)
        colours = np.histogram2d(hue.ravel(), saturation.ravel(), (12, 3), ((0, 256), (0, 256)))[0].ravel()
        down, right = np.gradient(np.asarray(image.convert("L"), float))
        turns = np.histogram(np.arctan2(down, right) % np.pi, 8, (0, np.pi), weights=np.hypot(down, right))[0]
        rows.append(np.sqrt(np.concatenate([colours / colours.sum(), turns / turns.sum()])))
    similarity = np.array(rows) @ np.array(rows).T
    np.fill_diagonal(similarity, -1)
    labels = np.array([answer.visual_class for answer in answers])
    nearest = np.argsort(-similarity, axis=1)[:, :4]
    assert (labels[nearest] == labels[:, None]).mean() > 0.9


def test_near_copies_look_like_their_original_more_than_like_any_other(built):
    originals, copies = built.of_kind("original"), built.of_kind("near_copy")
    # A border moves too much light for plain thumbnails: those are for a real detector.
    copies = [answer for answer in copies if not answer.transform.startswith("border")]
    left, right = (
        thumbnails([upright(stored_bytes(built, answer)) for answer in some]) for some in (copies, originals)
    )
    nearest = (left @ right.T).argmax(axis=1)
    assert [originals[index].key for index in nearest] == [answer.of for answer in copies]
    assert [originals[index].group for index in nearest] == [answer.group for answer in copies]


def test_each_group_has_one_representative_by_the_policy(built):
    groups = defaultdict(list)
    for answer in built.answers:
        if answer.group:
            groups[answer.group].append(answer)
    for members in groups.values():
        (kept,) = [answer for answer in members if answer.state == KEPT]
        areas = {answer.key: np.prod(upright(stored_bytes(built, answer)).size) for answer in members}
        assert areas[kept.key] == max(areas.values())
        (original,) = [answer for answer in members if answer.kind == "original"]
        larger = [answer.transform for answer in members if areas[answer.key] > areas[original.key]]
        assert all(transform.startswith("border") for transform in larger)


def test_collections_share_no_file_with_the_pool_or_each_other(built):
    from datasets import load_from_disk

    textures = [file.read_bytes() for file in (built.folder / "curated" / "textures").rglob("*.*")]
    benchmark = [file.read_bytes() for file in (built.folder / "benchmark").iterdir()]
    rows = load_from_disk(str(built.folder / "curated" / "emblems"))
    emblems = [row["bytes"] for row in rows.data["image"].to_pylist()]
    assert min(Counter(rows["label"]).values()) >= 6 and rows[0]["image"].mode == "RGB"
    assert len(textures) == len(benchmark) == len(emblems) == 24
    files = {image_id(data) for data in textures + benchmark + emblems}
    assert len(files) == 72
    shared = files & {answer.image_id for answer in built.answers if answer.image_id}
    assert len(shared) == 1  # the exact copy of a benchmark image


def test_the_bomb_is_small_and_claims_much():
    bomb = copying.bomb_png()
    assert len(bomb) < 4096
    # Pillow itself refuses, on opening, what claims twice its limit.
    with pytest.raises(Image.DecompressionBombError, match="3600000000 pixels"):
        Image.open(BytesIO(bomb))


# ---- what a plain client sees of it


def fetch(url: str, timeout_s: float = 5.0) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body as a plain client sees them, without following redirects."""
    parts = urlsplit(url)
    with closing(http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)) as connection:
        connection.request("GET", parts.path + ("?" + parts.query if parts.query else ""))
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()


def the(built: Miniature, transform: str) -> Answer:
    return next(answer for answer in built.answers if answer.transform == transform and answer.key.startswith("http"))


def test_every_url_that_is_not_a_fault_gives_its_bytes(built, web):
    good = [answer for answer in built.answers if answer.key.startswith(web.url) and answer.image_id]
    web.reset()
    for answer in good:
        status, headers, body = fetch(answer.key)
        if answer.transform in dict(miniature.TROUBLES):
            continue
        assert (status, image_id(body)) == (200, answer.image_id), answer
        assert headers["Content-Type"].startswith("image/") and int(headers["Content-Length"]) == len(body)
    assert web.requests == len(good) and len(web.hits) == len(good)


@pytest.mark.parametrize(
    ("transform", "status", "ending"),
    [
        ("http_404", 404, b"</html>\n"),
        ("http_410", 410, b"</html>\n"),
        ("http_403", 403, b"</html>\n"),
        ("http_500", 500, b"</html>\n"),
        ("redirect_loop", 302, b""),
        ("empty_body", 200, b""),
        ("html_called_jpg", 200, b"</html>\n"),
        ("html", 200, b"<!-- -->"),
        ("decompression_bomb", 200, b"IEND\xaeB`\x82"),
        ("chunked", 200, b"\xff\xd9"),  # the end of a JPEG
        ("no_content_length", 200, b"\xff\xd9"),
        ("wrong_content_type", 200, b"\xff\xd9"),
    ],
)
def test_answers_that_are_whole(built, transform, status, ending):
    got, headers, body = fetch(the(built, transform).key)
    assert got == status and body.endswith(ending)
    assert ("Content-Length" in headers) == (transform not in ("chunked", "no_content_length"))


@pytest.mark.parametrize(
    ("transform", "error"),
    [
        ("wrong_content_length", http.client.IncompleteRead),
        ("cut_chunks", http.client.IncompleteRead),
        ("connection_reset", ConnectionResetError),
        ("never_answers", TimeoutError),
    ],
)
def test_answers_that_break(built, transform, error):
    with pytest.raises(error) as caught:
        fetch(the(built, transform).key, timeout_s=0.5)
    # A reset, not only a connection that ends: http.client makes a ConnectionResetError of both.
    assert not isinstance(caught.value, http.client.RemoteDisconnected)


@pytest.mark.parametrize("transform", ["slow_drip", "announced_200_mb", "endless_body"])
def test_bodies_that_begin_and_do_not_end(built, transform):
    parts = urlsplit(the(built, transform).key)
    with closing(http.client.HTTPConnection(parts.hostname, parts.port, timeout=5)) as connection:
        connection.request("GET", parts.path)
        with connection.getresponse() as response:
            assert (response.status, len(response.read(2))) == (200, 2)


def test_troubles_are_as_their_name_says(built, web):
    web.reset()
    assert [fetch(the(built, "http_500_then_fine").key)[0] for _ in range(4)] == [500, 500, 200, 200]
    status, headers, _ = fetch(the(built, "http_503_then_fine").key)
    assert (status, headers["Retry-After"]) == (503, "1")
    assert image_id(fetch(the(built, "http_503_then_fine").key)[2]) == the(built, "http_503_then_fine").image_id


def test_redirects_end_at_the_picture_or_never(built, web):
    answer = the(built, "redirected")
    location = fetch(answer.key)[1]["Location"]
    assert image_id(fetch(web.url + location)[2]) == answer.image_id
    path, visited = urlsplit(the(built, "redirect_loop").key).path, []
    for _ in range(5):
        visited.append(path)
        path = fetch(web.url + path)[1]["Location"]
    assert visited[1:3] == visited[3:5]


def test_truncated_files_open_but_do_not_load(built):
    truncated = [answer for answer in built.of_kind("fault") if answer.reasons == ("truncated",)]
    assert len(truncated) == 3
    for answer in truncated:
        with Image.open(BytesIO(fetch(answer.key)[2])) as image, pytest.raises((OSError, SyntaxError)):
            image.load()


def test_a_ledger_made_of_the_answers_passes_the_check(built):
    kept_of = {answer.group: answer.image_id for answer in built.answers if answer.state == KEPT and answer.group}
    rows = []
    for answer in built.answers:
        row = {"key": answer.key, "image_id": answer.image_id, "state": "kept", "stage": "", "reason": ""}
        if answer.state != KEPT:
            row |= {"state": answer.state, "stage": answer.stages[0], "reason": answer.reasons[0]}
        because_of = built.benchmark_id(answer.of) if answer.kind == "benchmark_copy" else kept_of.get(answer.group)
        rows.append(row | {"because_of": because_of})
    assert miniature.check(built, rows).passed
