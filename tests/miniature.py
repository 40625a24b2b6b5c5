"""The miniature web: a pool, curated collections and a benchmark drawn from a seed, with faults, copies and answers.

    with MiniatureWeb(folder) as web:
        miniature = build(folder, base_url=web.url)
        ...                                             # curate it
        score = check(miniature, ledger_rows)

The same seed and base URL give the same bytes. Nothing here needs the network, a GPU or weights.
"""

import json
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from io import BytesIO
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lvd.tests import copying
from lvd.tests.answers import DEDUPLICATION, KEPT, Answer, Miniature, Score, check, image_id
from lvd.tests.drawing import CLASSES, draw
from lvd.tests.warcs import Shown, save_warc

__all__ = ["Answer", "Miniature", "Score", "build", "check"]

NAMES = tuple(CLASSES)
UNRELATED_PER_CLASS = 22
NEAR_GROUPS, COPIES_PER_GROUP = 15, 5
EXACT_GROUPS, HARD_COPIES_EACH = 8, 8
TEXTURES, TEXTURES_PER_CLASS = ("stripes", "bricks", "dots", "leaves"), 6
EMBLEMS, EMBLEMS_PER_CLASS = ("emblem", "rings", "stars"), 8
BENCHMARK, BENCHMARK_PER_CLASS = ("waves", "hills", "patchwork", "text"), 6

SITES = ("site-a/photos", "site-b/images/2026", "site-c/My Pictures", "news/media", "shop/img")
QUERIES = {"shop/img": "?w=640"}
TAR_NAME, SHARE_IN_TAR, SHARE_ON_DAY_1 = "00000.tar", 0.2, 0.6
FIRST_DAY = datetime(2026, 1, 5, tzinfo=UTC)
LIST_SCHEMA = pa.schema(
    {"url": pa.string(), "page_url": pa.string(), "alt": pa.string(), "discovered_at": pa.timestamp("us", tz="UTC")}
)

# The first words of the seeds of independent streams of pictures.
POOL, GROUPS, SPECIALS, FAULTS, COLLECTIONS, PLACES = range(6)

# What goes wrong on the way (see `web`), and the reason that the ledger is to give.
BROKEN_ANSWERS = (
    ("http_404", {"do": "status", "status": 404}, "http_404"),
    ("http_404", {"do": "status", "status": 404}, "http_404"),
    ("http_410", {"do": "status", "status": 410}, "http_410"),
    ("http_403", {"do": "status", "status": 403}, "http_403"),
    ("http_500", {"do": "status", "status": 500}, "http_500"),
    ("never_answers", {"do": "silent"}, "timeout"),
    ("slow_drip", {"do": "drip"}, "timeout"),
    ("redirect_loop", {"do": "redirect", "location": "/moved/loop-1.jpg"}, "too_many_redirects"),
    ("wrong_content_length", {"do": "cut", "missing_bytes": 5000}, "incomplete_body"),
    ("cut_chunks", {"do": "cut_chunks"}, "incomplete_body"),
    ("connection_reset", {"do": "reset"}, "connection_failed"),
    ("announced_200_mb", {"do": "huge", "num_bytes": 200_000_000}, "too_large"),
    ("endless_body", {"do": "endless", "num_bytes": 256_000_000}, "too_large"),
)
# What goes wrong but must not lose the picture.
TROUBLES = (
    ("http_500_then_fine", {"do": "flaky", "status": 500, "times": 2}),
    ("http_503_then_fine", {"do": "flaky", "status": 503, "times": 1, "retry_after": 1}),
    ("redirected", {"do": "redirect", "location": "/moved/there.jpg"}),
    ("chunked", {"do": "chunked"}),
    ("no_content_length", {"do": "unsized"}),
    ("wrong_content_type", {"do": "type", "content_type": "text/plain"}),
)
LOOP = {
    "moved/loop-1.jpg": {"do": "redirect", "location": "/moved/loop-2.jpg"},
    "moved/loop-2.jpg": {"do": "redirect", "location": "/moved/loop-1.jpg"},
}
INVALID_URLS = ("ftp://archive.example/pictures/0001.jpg", "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=")


@dataclass(frozen=True)
class Planted:
    """One candidate before it has a place: its file, what goes wrong with it, and its answer without the key."""

    stored: copying.Stored
    answer: Answer
    fault: dict = field(default_factory=dict)

    @property
    def policy(self) -> tuple[int, int, int]:
        """Greater for the one to keep of a group: larger area, larger file, lower image id."""
        data = self.stored[1]
        with Image.open(BytesIO(data)) as image:
            return image.width * image.height, len(data), -int(image_id(data), 16)


def build(folder: Path, *, base_url: str, seed: int = 0, scale: int = 1) -> Miniature:
    """Draw the miniature web into the folder and return it with its answers (about 480 candidates at scale 1).

    base_url: where `MiniatureWeb(folder)` serves it, without a slash at the end. scale multiplies the unrelated images.
    Writes `web/`, `lists/day-1.parquet`, `crawl/day-2.warc.gz`, `tars/00000.tar`, `curated/textures/<class>/`,
    `curated/emblems` (a Hugging Face dataset), `benchmark/` and `truth.json`.
    """
    folder = Path(folder)
    save_textures(folder / "curated" / "textures", seed)
    save_emblems(folder / "curated" / "emblems", seed)
    benchmark = save_benchmark(folder / "benchmark", seed)
    layout = Layout(folder, base_url, rng_of(seed, PLACES))
    for planted in plant_alone(seed, scale):
        layout.add(planted)
    for group in plant_groups(seed):
        layout.add_group(group)
    for planted in plant_benchmark_copies(seed, benchmark):
        layout.add(planted)
    for planted in plant_faults(seed):
        layout.add(planted)
    miniature = Miniature(folder, base_url, layout.finish())
    miniature.save()
    return miniature


def rng_of(seed: int, *path: int) -> np.random.Generator:
    """The generator of one picture, the same whatever else is drawn."""
    return np.random.default_rng(np.random.SeedSequence([seed, *path]))


def picture(rng: np.random.Generator, visual_class: str, short_edge_px: tuple[int, int] = (120, 640)) -> Image.Image:
    """A picture of the class with a random size (small ones are more common) and an aspect of 1 to 1.7 either way."""
    low, high = short_edge_px
    short = low * (high / low) ** (rng.random() ** 1.5)
    size = (round(short), round(short * rng.uniform(1, 1.7)))
    return draw(visual_class, rng, size if rng.random() < 0.35 else size[::-1])


def plant_alone(seed: int, scale: int) -> Iterator[Planted]:
    """The unrelated images: everyday ones, special formats, and those that come after trouble."""
    for index in range(UNRELATED_PER_CLASS * len(NAMES) * scale):
        rng, name = rng_of(seed, POOL, index), NAMES[index % len(NAMES)]
        yield Planted(copying.everyday(picture(rng, name), rng), Answer("", "unrelated", visual_class=name))
    for index, (transform, store) in enumerate(copying.SPECIAL_FORMATS.items()):
        rng, name = rng_of(seed, SPECIALS, index), NAMES[index % len(NAMES)]
        yield Planted(store(picture(rng, name, (160, 300))), Answer("", "unrelated", transform, visual_class=name))
    for index, (transform, fault) in enumerate(TROUBLES):
        rng, name = rng_of(seed, SPECIALS, 100 + index), NAMES[index % len(NAMES)]
        answer = Answer("", "unrelated", transform, visual_class=name)
        yield Planted(copying.jpeg(picture(rng, name, (160, 300))), answer, fault)


def plant_groups(seed: int) -> Iterator[list[Planted]]:
    """The original, first, and its copies, for every group."""
    near, number = list(copying.NEAR_COPIES.items()), 0
    for index in range(NEAR_GROUPS):
        chosen = [near[(index * COPIES_PER_GROUP + copy) % len(near)] for copy in range(COPIES_PER_GROUP)]
        yield plant_group(seed, number, f"near-{index:02d}", "near_copy", chosen)
        number += 1
    for index in range(EXACT_GROUPS):
        yield plant_group(seed, number, f"exact-{index:02d}", "exact_copy", [("same_bytes", None)] * 2)
        number += 1
    for kind, transform in (("mirrored", "mirror"), ("strong_crop", "crop_40_percent")):
        for index in range(HARD_COPIES_EACH):
            chosen = [(transform, copying.HARD_COPIES[transform])]
            yield plant_group(seed, number, f"{kind}-{index:02d}", kind, chosen)
            number += 1


def plant_group(seed: int, number: int, group: str, kind: str, transforms: list) -> list[Planted]:
    """An original (a JPEG of quality 92), and a copy by each (name, function); without a function: the same bytes."""
    rng, name = rng_of(seed, GROUPS, number), NAMES[number % len(NAMES)]
    exact = kind == "exact_copy"
    reasons = ("exact_duplicate",) if exact else ("near_duplicate", "copy")
    right = {"group": group, "visual_class": name, "stages": DEDUPLICATION[: 1 if exact else 2], "reasons": reasons}
    stored = copying.jpeg(picture(rng, name, (240, 480)), 92)
    image = opened(stored)
    members = [Planted(stored, Answer("", "original", **right))]
    for transform, function in transforms:
        copy = function(image, rng) if function else stored
        members.append(Planted(copy, Answer("", kind, transform, **right)))
    kept = max(members, key=lambda planted: planted.policy)
    return [
        replace(planted, answer=replace(planted.answer, state=KEPT if planted is kept else "dropped"))
        for planted in members
    ]


def plant_benchmark_copies(seed: int, benchmark: dict[str, copying.Stored]) -> Iterator[Planted]:
    """One copy of each of the first benchmark images, by the transforms in turn."""
    right = {"state": "dropped", "stages": ("copies",), "reasons": ("benchmark_copy",)}
    for index, transform in enumerate(copying.BENCHMARK_COPIES):
        name = list(benchmark)[index]
        copy = copying.NEAR_COPIES.get(transform, lambda image, rng, same=benchmark[name]: same)
        stored = copy(opened(benchmark[name]), rng_of(seed, COLLECTIONS, 1000 + index))
        visual_class = name.rpartition("-")[0]
        yield Planted(stored, Answer("", "benchmark_copy", transform, of=name, visual_class=visual_class, **right))


def plant_faults(seed: int) -> Iterator[Planted]:
    """What fails on the way, what is no image, and what the screen is to drop."""
    for index, (transform, fault, reason) in enumerate(BROKEN_ANSWERS):
        stored = copying.jpeg(picture(rng_of(seed, FAULTS, index), NAMES[index % len(NAMES)], (160, 240)))
        yield Planted(stored, failed(transform, reason), fault)
    stored = copying.jpeg(picture(rng_of(seed, FAULTS, 50), NAMES[0], (160, 240)))
    opted_out = {"state": "dropped", "stages": ("download",), "reasons": ("opted_out",)}
    fault = {"do": "headers", "headers": {"X-Robots-Tag": "noai, noimageai"}}
    yield Planted(stored, Answer("", "fault", "opted_out", **opted_out), fault)
    page = b"<!doctype html><html><head><title>Log in</title></head><body>Please log in.</body></html>\n" * 20
    yield Planted(("jpg", b""), failed("empty_body", "empty_body"))
    yield Planted(("jpg", page), failed("html_called_jpg", "not_an_image"))
    yield Planted(
        ("jpg", page + b"<!-- -->"), failed("html", "not_an_image"), {"do": "type", "content_type": "text/html"}
    )
    yield Planted(("png", copying.bomb_png()), failed("decompression_bomb", "too_many_pixels"))
    pictures = [picture(rng_of(seed, FAULTS, 100 + index), NAMES[index], (200, 320)) for index in range(5)]
    for store, image in zip((copying.jpeg, copying.jpeg, copying.png), pictures, strict=False):
        extension, data = store(image)
        answer = failed(f"truncated_{extension}", "truncated", stage="screen")
        yield Planted((extension, data[: len(data) * 6 // 10]), answer)
    grey = rng_of(seed, FAULTS, 200).integers(126, 130, (180, 240), dtype=np.uint8)
    for stored, reason in (
        (copying.gif(Image.new("L", (1, 1))), "too_small"),
        (copying.png(pictures[3].resize((16, 16))), "too_small"),
        (copying.jpeg(pictures[4].resize((60, 28))), "too_small"),
        (copying.jpeg(pictures[3].resize((600, 60))), "aspect_ratio"),
        (copying.png(pictures[4].resize((80, 720))), "aspect_ratio"),
        (copying.jpeg(Image.new("RGB", (200, 150), "white")), "near_empty"),
        (copying.png(Image.fromarray(grey)), "near_empty"),
        (copying.webp(Image.new("RGB", (160, 160), (12, 12, 14))), "near_empty"),
    ):
        right = {"state": "dropped", "stages": ("screen",), "reasons": (reason,)}
        yield Planted(stored, Answer("", "fault", reason, **right))


def failed(transform: str, reason: str, *, stage: str = "download") -> Answer:
    """The answer of a fault that ends the candidate with state failed."""
    return Answer("", "fault", transform, state="failed", stages=(stage,), reasons=(reason,))


def opened(stored: copying.Stored) -> Image.Image:
    """The decoded picture, RGB."""
    with Image.open(BytesIO(stored[1])) as image:
        return image.convert("RGB")


class Layout:
    """Where candidates go (files of the web with their URLs in lists, members of a tar) and the answers with keys."""

    def __init__(self, folder: Path, base_url: str, rng: np.random.Generator) -> None:
        self._folder, self._base_url, self._rng = folder, base_url, rng
        self._answers: list[Answer] = []
        self._faults: dict[str, dict] = dict(LOOP)
        self._days: tuple[list[dict], list[dict]] = ([], [])
        self._members: list[tuple[bytes, str]] = []
        self._numbers: dict[str, int] = defaultdict(int)

    def add(self, planted: Planted) -> str:
        """Write the candidate's file to its place and return its key."""
        extension, data = planted.stored
        answer = planted.answer
        caption = f"{answer.visual_class or 'picture'}, no. {len(self._answers) + 1}"
        plain = extension == "jpg" and not planted.fault and answer.kind != "fault"
        if self._rng.random() < SHARE_IN_TAR and plain and answer.transform not in copying.SPECIAL_FORMATS:
            key = f"{TAR_NAME}/{len(self._members):09d}.jpg"
            self._members.append((data, caption))
        else:
            key = self._serve(extension, data, planted.fault, caption)
        arrives = "download" not in answer.stages
        self._answers.append(replace(answer, key=key, image_id=image_id(data) if arrives else ""))
        return key

    def add_group(self, members: list[Planted]) -> None:
        """Add the original, then its copies with its key."""
        original = self.add(members[0])
        for copy in members[1:]:
            self.add(replace(copy, answer=replace(copy.answer, of=original)))

    def finish(self) -> tuple[Answer, ...]:
        """All answers, after adding repeated and invalid URLs and writing the lists, the tar and the faults."""
        right = {"state": "dropped", "stages": ("crawl",)}
        repeated = next(row for row in self._days[0] if row["alt"].startswith(NAMES[1]))
        self._answers.append(Answer(repeated["url"], "duplicate_url", reasons=("duplicate_url",), **right))
        for url in INVALID_URLS:
            self._answers.append(Answer(url, "invalid_url", reasons=("invalid_url",), **right))
            self._list(self._days[0], url, "an old link")
        (self._folder / "lists").mkdir(parents=True, exist_ok=True)
        first, second = ([rows[index] for index in self._rng.permutation(len(rows))] for rows in self._days)
        listed = pa.Table.from_pylist([*first, repeated], LIST_SCHEMA)
        pq.write_table(listed, self._folder / "lists" / "day-1.parquet")
        save_warc(self._folder / "crawl" / "day-2.warc.gz", pages_of(second))
        save_tar(self._folder / "tars" / TAR_NAME, self._members, self._base_url)
        (self._folder / "web" / "faults.json").write_text(json.dumps(self._faults, indent=1) + "\n")
        return tuple(self._answers)

    def _serve(self, extension: str, data: bytes, fault: dict, caption: str) -> str:
        """Write a file of the web, list its URL on one of the days, and return the URL."""
        site = SITES[int(self._rng.integers(len(SITES)))]
        self._numbers[site] += 1
        path = f"{site}/{self._numbers[site]:04d}.{extension}"
        moved = fault.get("do") == "redirect" and fault["location"] not in [f"/{name}" for name in LOOP]
        write(self._folder / "web" / (fault["location"].lstrip("/") if moved else path), data)
        if fault:
            self._faults[path] = fault
        url = f"{self._base_url}/{quote(path)}{QUERIES.get(site, '')}"
        self._list(self._days[int(self._rng.random() >= SHARE_ON_DAY_1)], url, caption)
        return url

    def _list(self, rows: list[dict], url: str, alt: str) -> None:
        """Append a row to a day's list, found at some second of that day."""
        day = 1 if rows is self._days[1] else 0
        found = FIRST_DAY + timedelta(days=day, microseconds=int(self._rng.integers(86_400_000_000)))
        page = f"{self._base_url}/{SITES[len(rows) % len(SITES)].split('/')[0]}/index.html"
        rows.append({"url": url, "page_url": page, "alt": alt, "discovered_at": found})


def pages_of(rows: list[dict]) -> Iterator[tuple[str, datetime, list[Shown]]]:
    """The pages of a day, each crawled when the first of its images was found."""
    for url, found in groupby(sorted(rows, key=lambda row: row["page_url"]), key=lambda row: row["page_url"]):
        images = list(found)
        yield url, min(row["discovered_at"] for row in images), [Shown(row["url"], row["alt"]) for row in images]


def write(file: Path, data: bytes) -> None:
    """Write a file and the folders that it needs."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)


def save_tar(file: Path, members: list[tuple[bytes, str]], base_url: str) -> None:
    """A webdataset tar of (JPEG bytes, caption) with the members, fields and numbering of img2dataset."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, (data, caption) in enumerate(members):
            key = f"{number:09d}"
            width, height = opened(("jpg", data)).size
            about = {
                "url": f"{base_url}/elsewhere/{key}.jpg", "caption": caption, "key": key, "status": "success",
                "error_message": None, "width": width, "height": height, "original_width": width,
                "original_height": height, "sha256": sha256(data).hexdigest(),
            }  # fmt: skip
            files = {"jpg": data, "json": json.dumps(about, indent=4).encode(), "txt": caption.encode()}
            for extension, content in files.items():
                header = tarfile.TarInfo(f"{key}.{extension}")
                header.size, header.mode = len(content), 0o444
                tar.addfile(header, BytesIO(content))


def save_textures(folder: Path, seed: int) -> None:
    """The curated image folder: `<class>/<number>.png` or `.jpg`."""
    for index in range(len(TEXTURES) * TEXTURES_PER_CLASS):
        name, rng = TEXTURES[index % len(TEXTURES)], rng_of(seed, COLLECTIONS, index)
        image = picture(rng, name, (140, 300))
        extension, data = copying.png(image) if index % 3 == 0 else copying.jpeg(image, 90)
        write(folder / name / f"{index // len(TEXTURES):02d}.{extension}", data)


def save_emblems(folder: Path, seed: int) -> None:
    """The curated Hugging Face dataset: columns image and label."""
    from datasets import Dataset, Features, Image, Value
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    rows = []
    for index in range(len(EMBLEMS) * EMBLEMS_PER_CLASS):
        name, rng = EMBLEMS[index % len(EMBLEMS)], rng_of(seed, COLLECTIONS, 100 + index)
        data = copying.jpeg(picture(rng, name, (140, 300)), 90)[1]
        rows.append({"image": {"bytes": data, "path": f"{name}-{index:02d}.jpg"}, "label": name})
    emblems = Dataset.from_list(rows, features=Features({"image": Image(), "label": Value("string")}))
    quiet = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        emblems.save_to_disk(folder)
    finally:
        if not quiet:
            enable_progress_bars()


def save_benchmark(folder: Path, seed: int) -> dict[str, copying.Stored]:
    """The benchmark's image folder, and its files by name."""
    files = {}
    for index in range(len(BENCHMARK) * BENCHMARK_PER_CLASS):
        name, rng = BENCHMARK[index % len(BENCHMARK)], rng_of(seed, COLLECTIONS, 200 + index)
        stored = copying.jpeg(picture(rng, name, (240, 400)), 92)
        files[f"{name}-{index:02d}.jpg"] = stored
        write(folder / f"{name}-{index:02d}.jpg", stored[1])
    return files
