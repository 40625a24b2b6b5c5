"""Pictures of a dozen visual classes, drawn from a random generator: same generator state, same pixels.

A class is told by its palette, texture and kind of objects, so that colour and gradient statistics find its members.
A picture is told by its composition: every one has a random light, large light and dark regions, and objects at random
places, so that two pictures of one class share no low-frequency luminance and no copy detector takes one for the other.
"""

import colorsys
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WORDS = (
    "the pool holds many more pictures than a person could ever look at so the program keeps what is new and near to a "
    "curated collection and says of every other one why it went and because of which other picture it had to go"
)
SUPERSAMPLING = 2

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Brush:
    """A canvas with its generator; lengths are in canvas pixels, `unit` is the short edge."""

    rng: np.random.Generator
    canvas: Image.Image
    pen: ImageDraw.ImageDraw = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pen", ImageDraw.Draw(self.canvas))

    @property
    def width(self) -> int:
        return self.canvas.width

    @property
    def height(self) -> int:
        return self.canvas.height

    @property
    def unit(self) -> int:
        return min(self.canvas.size)

    def between(self, low: float, high: float) -> float:
        """A uniform value in [low, high)."""
        return float(self.rng.uniform(low, high))

    def length(self, low: float, high: float) -> float:
        """A uniform share in [low, high) of the short edge, in pixels."""
        return self.unit * self.between(low, high)

    def count(self, low: int, high: int) -> int:
        """A uniform integer in [low, high]."""
        return int(self.rng.integers(low, high + 1))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return bool(self.rng.random() < probability)

    def place(self) -> tuple[float, float]:
        """A uniform point of the canvas."""
        return self.between(0, self.width), self.between(0, self.height)

    def colour(self, hues: tuple[float, float], saturation: tuple[float, float], value: tuple[float, float]) -> Colour:
        """An RGB colour from ranges of hue (in turns, may pass 1), saturation and value."""
        red, green, blue = colorsys.hsv_to_rgb(
            self.between(*hues) % 1.0, self.between(*saturation), self.between(*value)
        )
        return round(red * 255), round(green * 255), round(blue * 255)

    def backdrop(self, colours: Callable[[], Colour], cells: int = 4) -> None:
        """Fill the canvas with a soft patchwork of colours: a coarse random grid, enlarged smoothly."""
        columns, rows = cells + self.count(-1, 1), cells + self.count(-1, 1)
        grid = np.array([[colours() for _ in range(columns)] for _ in range(rows)], np.uint8)
        self.canvas.paste(Image.fromarray(grid).resize(self.canvas.size, Image.Resampling.BICUBIC))

    def disc(self, x: float, y: float, radius: float, **style) -> None:
        """A circle around (x, y); style as for `ImageDraw.ellipse`."""
        self.pen.ellipse((x - radius, y - radius, x + radius, y + radius), **style)


def draw(visual_class: str, rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """An RGB picture of the class, `size` (width, height) pixels. Raises KeyError for a class not in `CLASSES`."""
    width, height = size
    brush = Brush(rng, Image.new("RGB", (width * SUPERSAMPLING, height * SUPERSAMPLING)))
    CLASSES[visual_class](brush)
    return lit(brush.canvas.reduce(SUPERSAMPLING), rng)


def lit(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture under a random large light (a coarse grid of 0.4 to 1.45, a half-plane of shade), with grain."""
    width, height = image.size
    grid = rng.uniform(0.4, 1.45, (int(rng.integers(3, 7)), int(rng.integers(3, 7)))).astype(np.float32)
    light = np.asarray(Image.fromarray(grid).resize(image.size, Image.Resampling.BICUBIC))
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    angle = rng.uniform(0, 2 * np.pi)
    along = (x - rng.uniform(0.2, 0.8) * width) * np.float32(np.cos(angle)) + (
        y - rng.uniform(0.2, 0.8) * height
    ) * np.float32(np.sin(angle))
    light = light * np.where(along > 0, np.float32(1.08), np.float32(rng.uniform(0.55, 0.9)))
    grain = rng.integers(-5, 6, (height, width), dtype=np.int8).astype(np.float32)
    pixels = np.asarray(image, np.float32) * light[:, :, None] + grain[:, :, None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def draw_stripes(brush: Brush) -> None:
    """Awning cloth: panels of fine upright stripes, teal on cream."""
    x = np.arange(brush.width, dtype=np.float32)
    y = np.arange(brush.height, dtype=np.float32)[:, None]
    edges = np.sort(brush.rng.uniform(0, brush.width, brush.count(2, 4)))
    lean = x + y * brush.between(-0.45, 0.45)
    panel = np.searchsorted(edges, lean + y * brush.between(-0.2, 0.2))
    kinds = range(len(edges) + 1)
    frequency = np.array([2 * np.pi / brush.length(0.05, 0.13) for _ in kinds], np.float32)
    balance = brush.rng.uniform(-1, 2, len(kinds)).astype(np.float32)
    dark = np.array([brush.colour((0.46, 0.56), (0.6, 0.9), (0.3, 0.7)) for _ in kinds], np.uint8)
    pale = np.array([brush.colour((0.1, 0.16), (0.05, 0.25), (0.75, 1.0)) for _ in kinds], np.uint8)
    share = np.clip(np.sin(lean * frequency[panel]) * 4 + balance[panel], 0, 1)
    cloth = [Image.fromarray(colours[panel]) for colours in (dark, pale)]
    brush.canvas.paste(Image.composite(cloth[1], cloth[0], Image.fromarray((share * 255).astype(np.uint8))))


def draw_dots(brush: Brush) -> None:
    """Oranges and marbles: shaded discs at random places over a warm ground."""
    brush.backdrop(lambda: brush.colour((0.08, 0.15), (0.25, 0.7), (0.5, 1.0)))
    for _ in range(brush.count(25, 60)):
        (x, y), radius = brush.place(), brush.length(0.025, 0.11)
        rind = brush.colour((0.02, 0.14), (0.75, 1.0), (0.45, 1.0))
        brush.disc(x + radius * 0.15, y + radius * 0.2, radius, fill=(90, 50, 20))
        brush.disc(x, y, radius, fill=rind)
        brush.disc(x - radius * 0.3, y - radius * 0.3, radius * 0.35, fill=tuple((c + 510) // 3 for c in rind))


def draw_rings(brush: Brush) -> None:
    """Ripples: sets of thin concentric circles around random centres, violet."""
    brush.backdrop(lambda: brush.colour((0.74, 0.84), (0.35, 0.8), (0.25, 1.0)))
    for _ in range(brush.count(4, 8)):
        (x, y), step = brush.place(), brush.length(0.025, 0.045)
        ink = brush.colour((0.75, 0.9), (0.1, 0.7), (0.2, 1.0))
        for ring in range(brush.count(4, 12), 0, -1):
            brush.disc(x, y, ring * step, outline=ink, width=max(2, round(step * 0.4)))


def draw_waves(brush: Brush) -> None:
    """A choppy sea: overlapping crests with foam, cyan and blue, perhaps with sails."""
    brush.backdrop(lambda: brush.colour((0.5, 0.6), (0.3, 0.7), (0.4, 1.0)))
    x = np.linspace(0, brush.width, 60)
    rows = brush.count(9, 14)
    for row in range(rows):
        base = brush.height * (row + brush.between(0.1, 0.9)) / rows
        phase, length = brush.between(0, 6.3), brush.length(0.15, 0.4)
        crest = base + brush.length(0.015, 0.04) * np.sin(x / length * 6.3 + phase)
        crest += brush.length(0.0, 0.08) * np.sin(x / brush.length(0.8, 2.0) * 6.3 + phase)
        line = list(zip(x.tolist(), crest.tolist(), strict=True))
        water = brush.colour((0.52, 0.62), (0.65, 1.0), (0.25, 0.95))
        brush.pen.polygon([*line, (brush.width, brush.height), (0, brush.height)], fill=water)
        brush.pen.line(line, fill=brush.colour((0.5, 0.55), (0.05, 0.25), (0.85, 1.0)), width=max(2, brush.unit // 90))
        if brush.chance(0.15):
            (left, _), tall = brush.place(), brush.length(0.12, 0.3)
            brush.pen.polygon([(left, base), (left, base - tall), (left + tall * 0.5, base)], fill=(250, 245, 235))


def draw_triangles(brush: Brush) -> None:
    """Cut paper: a jittered mesh of flat triangles, rose and crimson, in large drifts of light and dark."""
    columns, rows = brush.count(6, 10), brush.count(6, 10)
    x = np.linspace(-0.1, 1.1, columns + 1) * brush.width + brush.rng.normal(
        0, brush.width / columns / 4, (rows + 1, columns + 1)
    )
    y = np.linspace(-0.1, 1.1, rows + 1)[:, None] * brush.height + brush.rng.normal(0, brush.height / rows / 4, x.shape)
    drift = Image.fromarray(brush.rng.uniform(0.1, 1.1, (4, 4)).astype(np.float32))
    drift = np.asarray(drift.resize((columns, rows), Image.Resampling.BICUBIC))
    points = np.stack([x, y], axis=2).tolist()
    for row in range(rows):
        for column in range(columns):
            corners = [points[row + dy][column + dx] for dx, dy in ((0, 0), (1, 0), (1, 1), (0, 1))]
            for triangle in ([0, 1, 2], [0, 2, 3]) if brush.chance(0.5) else ([0, 1, 3], [1, 2, 3]):
                value = float(np.clip(drift[row, column] + brush.between(-0.25, 0.25), 0.2, 1.0))
                fill = brush.colour((0.92, 1.0), (0.35, 0.95), (value, value))
                brush.pen.polygon([tuple(corners[corner]) for corner in triangle], fill=fill)


def draw_text(brush: Brush) -> None:
    """Papers on a desk: one to three sheets with lines of text and a figure, turned and placed at random."""
    brush.backdrop(lambda: brush.colour((0.06, 0.1), (0.4, 0.7), (0.15, 0.75)), cells=5)
    for _ in range(brush.count(2, 3)):
        page = Image.new("RGB", (round(brush.length(0.55, 1.0)), round(brush.length(0.55, 1.1))))
        page.paste(brush.colour((0.1, 0.15), (0.0, 0.15), (0.88, 1.0)), (0, 0, *page.size))
        fill_page(Brush(brush.rng, page))
        angle = brush.between(-25, 25)
        mask = Image.new("L", page.size, 255).rotate(angle, expand=True, resample=Image.Resampling.BILINEAR)
        turned = page.rotate(angle, expand=True, resample=Image.Resampling.BILINEAR)
        x, y = brush.place()
        brush.canvas.paste(turned, (round(x - turned.width / 2), round(y - turned.height / 2)), mask)


def fill_page(page: Brush) -> None:
    """Lines of words with margins, a headline, and dark or coloured figures at random places."""
    size = page.length(0.05, 0.08)
    font, margin, y = ImageFont.load_default(round(size)), page.width * 0.08, size
    while y < page.height - 2 * size:
        words = page.rng.choice(WORDS.split(), 9).tolist()
        page.pen.text((margin, y), " ".join(words), font=font, fill=(45, 42, 40))
        y += size * (2.2 if page.chance(0.12) else 1.25)
    page.pen.rectangle((page.width - margin, 0, page.width, page.height), fill=page.canvas.getpixel((0, 0)))
    for _ in range(page.count(1, 2)):
        (x, y), (wide, tall) = page.place(), (page.length(0.25, 0.5), page.length(0.2, 0.4))
        page.pen.rectangle((x, y, x + wide, y + tall), fill=page.colour((0.05, 0.12), (0.2, 0.6), (0.15, 0.6)))


def draw_hills(brush: Brush) -> None:
    """A landscape: sky of any hour with clouds and a sun, ridges of hills with trees, green."""
    hour = brush.between(0.5, 1.0)
    brush.backdrop(lambda: brush.colour((0.52, 0.58), (0.15, 0.55), (hour * 0.6, hour)))
    brush.disc(*brush.place(), brush.length(0.05, 0.15), fill=brush.colour((0.1, 0.16), (0.2, 0.6), (0.9, 1.0)))
    for _ in range(brush.count(2, 6)):
        x, y = brush.place()
        cloud = brush.colour((0.55, 0.6), (0.0, 0.12), (hour * 0.8, 1.0))
        for _ in range(6):
            brush.disc(
                x + brush.length(-0.15, 0.15), y + brush.length(-0.03, 0.03), brush.length(0.04, 0.08), fill=cloud
            )
    layers = brush.count(3, 5)
    top = brush.between(0.15, 0.6)
    x = np.linspace(0, brush.width, 48)
    for layer in range(layers):
        base = brush.height * (top + (1 - top) * layer / layers)
        ridge = base + np.cumsum(brush.rng.normal(0, brush.unit * 0.018, x.size))
        ridge += brush.between(-0.35, 0.35) * (x - brush.between(0, brush.width))
        line = list(zip(x.tolist(), ridge.tolist(), strict=True))
        hill = brush.colour((0.22, 0.36), (0.4, 0.9), (0.15, 0.85))
        brush.pen.polygon([*line, (brush.width, brush.height), (0, brush.height)], fill=hill)
        for left, foot in [line[brush.count(1, 46)] for _ in range(brush.count(2, 9))]:
            tall, wood = brush.length(0.06, 0.16), tuple(c * 2 // 3 for c in hill)
            brush.pen.polygon(
                [(left - tall / 4, foot + 4), (left, foot - tall), (left + tall / 4, foot + 4)], fill=wood
            )


def draw_bricks(brush: Brush) -> None:
    """A house front: courses of red brick, windows, doors and posters at random places."""
    tall = max(10.0, brush.length(0.045, 0.08))
    wide, joint = tall * brush.between(2.0, 2.6), max(2, round(tall * 0.12))
    brush.canvas.paste(brush.colour((0.06, 0.12), (0.05, 0.2), (0.55, 0.85)), (0, 0, *brush.canvas.size))
    for row in range(int(brush.height / tall) + 1):
        for column in range(-1, int(brush.width / wide) + 1):
            x, y = column * wide + (row % 2) * wide / 2, row * tall
            clay = brush.colour((0.0, 0.05), (0.55, 0.8), (0.35, 0.75))
            brush.pen.rectangle((x + joint, y + joint, x + wide, y + tall), fill=clay)
    for _ in range(brush.count(2, 5)):
        (x, y), (across, down) = brush.place(), (brush.length(0.15, 0.35), brush.length(0.2, 0.45))
        frame = brush.colour((0.08, 0.12), (0.05, 0.3), (0.75, 1.0))
        pane = brush.colour((0.55, 0.62), (0.1, 0.4), (0.1, 0.3) if brush.chance(0.6) else (0.8, 1.0))
        rim = max(4, brush.unit // 50)
        brush.pen.rectangle((x, y, x + across, y + down), fill=pane, outline=frame, width=rim)
        brush.pen.line((x + across / 2, y, x + across / 2, y + down), fill=frame, width=rim // 2)
        brush.pen.line((x, y + down / 2, x + across, y + down / 2), fill=frame, width=rim // 2)


def draw_stars(brush: Brush) -> None:
    """Deep sky: clouds of gas in indigo, many stars, a planet or two."""
    brush.backdrop(
        lambda: brush.colour((0.62, 0.72), (0.5, 0.95), (0.03, 0.2) if brush.chance(0.6) else (0.5, 0.9)), cells=5
    )
    for _ in range(brush.count(0, 2)):
        (x, y), radius = brush.place(), brush.length(0.06, 0.18)
        brush.disc(x, y, radius, fill=brush.colour((0.58, 0.68), (0.3, 0.6), (0.6, 0.9)))
        brush.disc(x + radius * 0.35, y - radius * 0.1, radius * 0.75, fill=(24, 22, 52))
    for _ in range(brush.count(120, 260)):
        (x, y), radius = brush.place(), brush.unit * 0.002 + brush.rng.exponential(brush.unit * 0.0025)
        brush.disc(x, y, radius, fill=brush.colour((0.55, 0.7), (0.0, 0.25), (0.8, 1.0)))


def draw_leaves(brush: Brush) -> None:
    """Foliage: pointed leaves with midribs in all directions, over dark or sunlit ground."""
    brush.backdrop(lambda: brush.colour((0.2, 0.32), (0.5, 0.8), (0.08, 0.6)))
    spine = np.linspace(0, 1, 9)
    for _ in range(brush.count(18, 40)):
        (x, y), long = brush.place(), brush.length(0.12, 0.4)
        half = np.sin(np.pi * spine) * brush.between(0.14, 0.26) * long
        angle = brush.between(0, 2 * np.pi)
        along, across = np.concatenate([spine, spine[::-1]]) * long, np.concatenate([half, -half[::-1]])
        outline_x = x + along * np.cos(angle) - across * np.sin(angle)
        outline_y = y + along * np.sin(angle) + across * np.cos(angle)
        green = brush.colour((0.19, 0.36), (0.55, 0.95), (0.2, 0.9))
        brush.pen.polygon(list(zip(outline_x.tolist(), outline_y.tolist(), strict=True)), fill=green)
        tip = (x + long * np.cos(angle), y + long * np.sin(angle))
        brush.pen.line([(x, y), tip], fill=tuple(min(255, c + 60) for c in green), width=max(2, round(long * 0.025)))


def draw_emblem(brush: Brush) -> None:
    """Badges: gold discs with a drawn face and rays, on slate, at random places and sizes."""
    brush.backdrop(lambda: brush.colour((0.55, 0.62), (0.15, 0.4), (0.15, 0.8)))
    for _ in range(brush.count(2, 5)):
        (x, y), radius = brush.place(), brush.length(0.12, 0.3)
        gold = brush.colour((0.12, 0.16), (0.6, 0.95), (0.55, 1.0))
        ink = brush.colour((0.0, 0.1), (0.5, 0.9), (0.12, 0.35))
        for angle in np.linspace(0, 2 * np.pi, brush.count(9, 20), endpoint=False):
            ray = (x + 1.35 * radius * np.cos(angle), y + 1.35 * radius * np.sin(angle))
            brush.pen.line([(x, y), ray], fill=gold, width=round(radius * 0.12))
        brush.disc(x, y, radius * 1.05, fill=ink)
        brush.disc(x, y, radius * 0.95, fill=gold)
        gaze, smile = brush.between(-0.15, 0.15) * radius, brush.between(0.2, 0.5) * radius
        for side in (-0.35, 0.35):
            brush.disc(x + side * radius, y - 0.25 * radius, radius * brush.between(0.12, 0.2), fill="white")
            brush.disc(x + side * radius + gaze * 0.5, y - 0.25 * radius, radius * 0.08, fill=ink)
        mouth = (x - 0.5 * radius, y + 0.1 * radius, x + 0.5 * radius, y + 0.1 * radius + smile)
        brush.pen.chord(mouth, 0, 180, fill=ink)


def draw_patchwork(brush: Brush) -> None:
    """A quilt: rectangles of all colours, split at random, each with a small print and stitches."""
    patches = [(0.0, 0.0, float(brush.width), float(brush.height))]
    for _ in range(brush.count(14, 24)):
        areas = [(right - left) * (bottom - top) for left, top, right, bottom in patches]
        left, top, right, bottom = patches.pop(int(np.argmax(areas)))
        cut = brush.between(0.3, 0.7)
        if right - left > bottom - top:
            middle = left + (right - left) * cut
            patches += [(left, top, middle, bottom), (middle, top, right, bottom)]
        else:
            middle = top + (bottom - top) * cut
            patches += [(left, top, right, middle), (left, middle, right, bottom)]
    for left, top, right, bottom in patches:
        cloth = brush.colour((0.0, 1.0), (0.5, 0.95), (0.25, 1.0))
        print_colour = tuple((c + 2 * 255 * brush.chance(0.5)) // 3 for c in cloth)
        brush.pen.rectangle((left, top, right, bottom), fill=cloth)
        step = brush.length(0.035, 0.06)
        for row, y in enumerate(np.arange(top + step / 2, bottom - step / 2, step)):
            for x in np.arange(left + step * (0.5 + row % 2 / 2), right - step / 2, step):
                brush.disc(x, y, step * 0.18, fill=print_colour)
        brush.pen.rectangle((left, top, right, bottom), outline=(240, 235, 225), width=max(2, brush.unit // 120))


CLASSES: dict[str, Callable[[Brush], None]] = {
    "stripes": draw_stripes,
    "dots": draw_dots,
    "rings": draw_rings,
    "waves": draw_waves,
    "triangles": draw_triangles,
    "text": draw_text,
    "hills": draw_hills,
    "bricks": draw_bricks,
    "stars": draw_stars,
    "leaves": draw_leaves,
    "emblem": draw_emblem,
    "patchwork": draw_patchwork,
}
