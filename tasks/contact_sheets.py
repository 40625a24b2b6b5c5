"""Contact sheets: which pictures are shown beside which, and the pictures themselves, small enough for one file."""

import base64
import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image
from pydantic import BaseModel

from lvd.infra.shards import ShardRef, read_batches, read_table
from lvd.tasks.decode import DecodeError, decode_rgb

EDGE_PX = 224  # the longer edge of a picture in the report
QUALITIES = (62, 40)  # of its WebP, about 7 kB a picture; the second one where the first takes too much
MAX_PICTURE_BYTES = 10_000  # what is still larger is made smaller: 800 pictures may be in one file
Cover = Callable[[Image.Image], Image.Image]
COLUMNS = ["image_id", "image", "key", "alt", "label", "width", "height", "format", "num_bytes"]


class At(NamedTuple):
    """Where an image is: its collection, and its row there."""

    role: str
    name: str
    row: int


class Shown(BaseModel, frozen=True):
    """One picture of a sheet, with what is said of it there. `at` is None if the image was not found."""

    at: At | None
    note: str = ""


class Thumbnail(BaseModel, frozen=True):
    """An image as the report shows it; `src` is empty if it cannot be decoded."""

    src: str
    key: str
    alt: str
    label: str
    width: int
    height: int
    format: str
    num_bytes: int
    image_id: str = ""  # by which its picture is found again when it is taken down


class Pairing(BaseModel, frozen=True):
    """A picture and others beside it: the kept and the dropped, a query and what it retrieved, a cluster's images."""

    head: Shown | None
    others: tuple[Shown, ...]
    more: int = 0  # others that are not shown
    title: str = ""


class Sheet(BaseModel, frozen=True):
    """A contact sheet under a heading."""

    title: str
    text: str
    pairings: tuple[Pairing, ...]

    def shown(self) -> Iterator[Shown]:
        for pairing in self.pairings:
            yield from (pairing.head, *pairing.others) if pairing.head else pairing.others


def thumbnail(image: dict[str, Any], edge_px: int = EDGE_PX, cover: Cover | None = None) -> Thumbnail:
    """The picture of a row of schemas.IMAGES as a `data:` URL; `edge_px`: of its longer edge, it is never enlarged.

    cover: what of it may not be seen.
    """
    text = {name: image[name] or "" for name in ("key", "alt", "label", "format")}
    return Thumbnail(
        src=_data_url(image["image"]["bytes"], edge_px, cover),
        **text,
        **{name: image[name] for name in ("width", "height", "num_bytes")},
        image_id=image.get("image_id", ""),
    )


def _data_url(data: bytes, edge_px: int, cover: Cover | None) -> str:
    try:
        picture = decode_rgb(data, min_short_edge_px=None if cover else edge_px)
    except DecodeError:
        return ""
    picture = cover(picture) if cover else picture
    return webp_url(picture, edge_px)


def webp_url(picture: Image.Image, edge_px: int = EDGE_PX) -> str:
    """The picture as a `data:` URL of MAX_PICTURE_BYTES at most; `edge_px`: of its longer edge, never enlarged."""
    while True:
        picture = picture.copy()
        picture.thumbnail((edge_px, edge_px), Image.Resampling.LANCZOS)
        for quality in QUALITIES:
            file = io.BytesIO()
            picture.save(file, "WEBP", quality=quality, method=4)
            if file.tell() <= MAX_PICTURE_BYTES:
                return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
        edge_px = max(picture.size) * 3 // 4


def thumbnails(
    images: list[ShardRef], rows: Iterable[int], cover: Cover | None = None
) -> Iterator[tuple[int, Thumbnail]]:
    """(row, picture) of the images at these rows of a collection. Memory: one batch of images."""
    for row, image in images_at(images, rows, COLUMNS):
        yield row, thumbnail(image, cover=cover)


def images_at(images: list[ShardRef], rows: Iterable[int], columns: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row, columns) at these rows of a collection, ascending, each once. Memory: one batch of images."""
    wanted = np.unique(np.fromiter(rows, dtype=np.int64))
    for ref in images:
        first, stop = ref.base + ref.first_row, ref.base + ref.first_row + ref.rows
        left = wanted[np.searchsorted(wanted, first) : np.searchsorted(wanted, stop)]
        for batch in read_batches(ref, columns) if len(left) else ():
            here = left[: np.searchsorted(left, first + batch.num_rows)]
            found = batch.take(pa.array(here - first)).to_pylist() if len(here) else []
            yield from zip(here.tolist(), found, strict=True)
            left, first = left[len(here) :], first + batch.num_rows
            if not len(left):
                break


def first_rows(images: list[ShardRef], image_ids: set[str]) -> dict[str, int]:
    """image id → the first row of a collection that has it; ids that it does not have are left out."""
    found: dict[str, int] = {}
    for ref in images:
        if len(found) == len(image_ids):
            break
        missing = pa.array(sorted(image_ids - found.keys()), type=pa.string())
        column = read_table(ref, ["image_id"])["image_id"].combine_chunks()
        places = pc.indices_nonzero(pc.is_in(column, missing))
        for place, image_id in zip(places.to_pylist(), column.take(places).to_pylist(), strict=True):
            found.setdefault(image_id, ref.base + ref.first_row + place)
    return found


class Reservoir:
    """A uniform seeded sample of at most `size` rows of every name, from tables that pass by once."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self._size, self._rng = size, rng
        self._held: dict[str, list[tuple[float, dict[str, Any]]]] = {}

    def offer(self, names: np.ndarray, table: pa.Table) -> None:
        """names: (n,) object, of the table's n rows; rows whose name is None are passed over."""
        priority = self._rng.random(len(names))
        encoded = pa.array(names, pa.string()).dictionary_encode()
        codes = encoded.indices.fill_null(-1).to_numpy()
        for name, code in sorted((name, code) for code, name in enumerate(encoded.dictionary.to_pylist())):
            held = self._held.get(name, [])
            bound = held[-1][0] if len(held) == self._size else 1.0
            here = np.flatnonzero((codes == code) & (priority < bound))
            best = here[np.argsort(priority[here], kind="stable")[: self._size]]
            rows = table.take(pa.array(best)).to_pylist()
            both = [*held, *zip(priority[best].tolist(), rows, strict=True)]
            self._held[name] = sorted(both, key=lambda pair: pair[0])[: self._size]

    def names(self) -> list[str]:
        return sorted(self._held)

    def rows(self, name: str) -> list[dict[str, Any]]:
        return [row for _, row in self._held.get(name, [])]


class Groups:
    """Groups of dropped images by the image that they were dropped for, from tables that pass by once.

    At most `max_groups` groups are held: above that, half of them are forgotten, by their ids, and every group that
    comes later with such an id; `share` is the share of all groups that is held. Of a group the `members` rows of
    lowest score are held, and its size.
    """

    def __init__(self, reasons: tuple[str, ...], *, max_groups: int = 20_000, members: int = 4) -> None:
        self._reasons, self._max_groups, self._members = pa.array(reasons), max_groups, members
        self.share = 1.0
        fields = [("reason", pa.string()), ("because_of", pa.string())]
        self._pending: list[pa.Table] = []
        self._sizes = pa.schema([*fields, ("size", pa.int64()), ("lowest", pa.float32())]).empty_table()
        self._rows = pa.schema([*fields, ("score", pa.float32()), ("row", pa.int64())]).empty_table()

    def add(self, table: pa.Table) -> None:
        """table: columns reason, because_of, score, row."""
        mine = table.filter(pc.is_in(table["reason"], self._reasons)).select(self._rows.schema.names)
        self._pending.append(self._held(mine.cast(self._rows.schema)))
        if sum(map(len, self._pending)) > 2 * self._max_groups:
            self._settle()

    def _settle(self) -> None:
        """Takes what is pending into the groups, and forgets groups until they are few enough."""
        table = pa.concat_tables([self._rows.slice(0, 0), *self._pending])
        self._pending.clear()
        ones = pa.array(np.ones(len(table), dtype=np.int64))
        sizes = pa.table([table["reason"], table["because_of"], ones, table["score"]], schema=self._sizes.schema)
        summed = (
            pa.concat_tables([self._sizes, sizes])
            .group_by(["reason", "because_of"])
            .aggregate([("size", "sum"), ("lowest", "min")])
        )
        self._sizes = summed.rename_columns({"size_sum": "size", "lowest_min": "lowest"})
        self._rows = self._lowest(pa.concat_tables([self._rows, table]))
        while len(self._sizes) > self._max_groups:
            self.share /= 2
            self._sizes, self._rows = self._held(self._sizes), self._held(self._rows)

    def _held(self, table: pa.Table) -> pa.Table:
        """The rows of the groups that are not forgotten; image ids are spread evenly, so their beginning decides."""
        if self.share == 1.0:
            return table
        return table.filter(pc.less(table["because_of"], f"{int(self.share * 2**32):08x}"))

    def _lowest(self, table: pa.Table) -> pa.Table:
        """The rows of lowest score of every group, in the order of groups and scores."""
        keys = ("reason", "because_of", "score", "row")
        table = table.sort_by([(key, "ascending") for key in keys])
        names = np.char.add(*(table[key].to_numpy().astype(str) for key in keys[:2])) if len(table) else np.zeros(0)
        starts = np.flatnonzero(np.append(True, names[1:] != names[:-1])) if len(names) else np.zeros(0, np.int64)
        place = np.arange(len(table)) - np.repeat(starts, np.diff(np.append(starts, len(table))))
        return table.filter(pa.array(place < self._members))

    def sizes(self, reason: str) -> np.ndarray:
        """(g,) int64: images dropped in each held group of a reason."""
        self._settle()
        return self._sizes.filter(pc.equal(self._sizes["reason"], reason))["size"].to_numpy()

    def chosen(self, reason: str, count: int) -> list[dict[str, Any]]:
        """Groups across the range of similarity, lowest first: half are the lowest of all, half spread over the rest.

        Each with because_of, size, lowest, and rows: its lowest-scored dropped images with row and score.
        """
        self._settle()
        groups = self._sizes.filter(pc.equal(self._sizes["reason"], reason)).sort_by(
            [("lowest", "ascending"), ("because_of", "ascending")]
        )
        low = min(count // 2, len(groups))
        spread = np.linspace(low, len(groups) - 1, count - low).astype(np.int64) if len(groups) > low else []
        result = []
        for group in groups.take(pa.array(np.unique([*range(low), *spread]).astype(np.int64))).to_pylist():
            same = pc.and_(
                pc.equal(self._rows["reason"], reason), pc.equal(self._rows["because_of"], group["because_of"])
            )
            result.append({**group, "rows": self._rows.filter(same).select(["row", "score"]).to_pylist()})
        return result
