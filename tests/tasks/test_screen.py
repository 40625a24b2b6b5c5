"""Measures of pictures whose figures are known; every rule, at its bound and past it; one bad image, one row."""

import io

import numpy as np
import pytest
from PIL import Image

from lvd.infra.shards import StageDir, pool_rows, read_table
from lvd.tasks import screen
from lvd.tasks.decode import DecodeError, decode_rgb
from lvd.tests import copying
from lvd.tests.drawing import draw
from lvd.tests.tasks import planted

GREY = Image.new("RGB", (64, 48), (128, 128, 128))
CHECKERS = Image.fromarray((np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)).convert("RGB")
HALVES = Image.fromarray(np.repeat([[0, 255]], 64, axis=0).repeat(32, axis=1).astype(np.uint8)).convert("RGB")
RAMP = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (300, 1))).convert("RGB")
LINE = Image.fromarray(np.array([[0, 255] * 50], dtype=np.uint8)).convert("RGB")


@pytest.mark.parametrize(
    ("image", "brightness", "contrast", "sharpness", "entropy"),
    [
        (GREY, 128 / 255, 0, 0, 0),
        (Image.new("RGB", (40, 40), "white"), 1, 0, 0, 0),
        (CHECKERS, 0.5, 0.5, 16, 1),  # every second difference is 4 or -4
        (HALVES, 0.5, 0.5, 2 / 62, 1),  # the two columns at the edge have 1 and -1
        (RAMP, 0.5, np.arange(256).std() / 255, 0, 8),
        (LINE, 0.5, 0.5, 0, 1),  # too low for a second difference
        (CHECKERS.resize((2048, 2048), Image.Resampling.NEAREST), 0.5, 0.5, None, 1),  # measured at 256 px
    ],
)
def test_measures_of_known_pictures(image, brightness, contrast, sharpness, entropy) -> None:
    found = screen.measures(image)
    assert found["brightness"] == pytest.approx(brightness, abs=1e-6)
    assert found["contrast"] == pytest.approx(contrast, abs=1e-6)
    assert found["entropy"] == pytest.approx(entropy, abs=1e-6)
    if sharpness is not None:
        assert found["sharpness"] == pytest.approx(sharpness, abs=1e-6)


def test_thumbnails_are_32_by_32_means_row_by_row() -> None:
    assert screen.measures(GREY)["thumbnail"] == bytes([128]) * 1024
    rows = np.frombuffer(screen.measures(HALVES)["thumbnail"], dtype=np.uint8).reshape(32, 32)
    assert (rows[:, :16] == 0).all() and (rows[:, 16:] == 255).all()
    assert {*screen.measures(CHECKERS)["thumbnail"]} <= {127, 128}


def test_sharpness_is_of_one_size_and_falls_with_blur() -> None:
    picture = draw("bricks", np.random.default_rng(1), (512, 512))
    sharp = screen.measures(picture)["sharpness"]
    blurred = picture.resize((64, 64), Image.Resampling.BOX).resize((512, 512), Image.Resampling.BICUBIC)
    assert screen.measures(blurred)["sharpness"] < sharp / 4
    larger = picture.resize((1024, 1024), Image.Resampling.NEAREST)
    assert screen.measures(larger)["sharpness"] == pytest.approx(sharp, rel=0.01)


PICTURE = draw("bricks", np.random.default_rng(1), (1100, 700))


def jpeg(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90, **options)
    return file.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize(
    ("data", "size", "difference"),
    [
        (jpeg(PICTURE), (550, 350), 1),
        (jpeg(PICTURE.resize((333, 255))), (333, 255), 1),
        (jpeg(PICTURE.resize((1025, 513)), progressive=True), (513, 257), 1),  # odd edges, halved upwards
        (jpeg(PICTURE.convert("L")), (550, 350), 0),
        (jpeg(PICTURE, exif=turned()), (350, 550), 0),  # as decode_rgb
        (jpeg(PICTURE.convert("CMYK")), (550, 350), 0),
        (copying.png(PICTURE)[1], (1100, 700), 0),
    ],
)
def test_luminance_is_that_of_the_decoded_picture(data: bytes, size: tuple[int, int], difference: int) -> None:
    found = screen.luminance(data, 10**7)
    expected = decode_rgb(data, min_short_edge_px=screen.MEASURED_SHORT_EDGE_PX).convert("L")
    assert (found.mode, found.size) == ("L", size) == (expected.mode, expected.size)
    differences = np.abs(np.subtract(found, expected, dtype=np.int16))
    assert differences.mean() <= difference / 4 and differences.max() <= difference * 10  # most where RGB is clipped
    told, other = screen.measures(found), screen.measures(expected)
    for name in ("brightness", "contrast", "entropy"):
        assert told[name] == pytest.approx(other[name], rel=0.02)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (jpeg(PICTURE)[:9000], "truncated"),
        (b"no image", "not_an_image"),
        (jpeg(PICTURE)[:100], "truncated"),
    ],
)
def test_luminance_refuses_what_the_decoder_refuses(data: bytes, reason: str) -> None:
    for decode in (lambda: screen.luminance(data, 10**7), lambda: decode_rgb(data)):
        with pytest.raises(DecodeError) as refused:
            decode()
        assert refused.value.reason == reason
    with pytest.raises(DecodeError) as refused:
        screen.luminance(jpeg(PICTURE), 1000)
    assert refused.value.reason == "too_many_pixels"


GOOD = {
    "width": 100,
    "height": 80,
    "frames": 1,
    "format": "PNG",
    "brightness": 0.5,
    "contrast": 0.2,
    "sharpness": 0.1,
    "entropy": 5.0,
    "nsfw_score": np.nan,  # nobody looked
}
RULES = [  # rule, columns at the bound, columns past it, reason, value
    ({"min_short_edge_px": 32}, {"height": 32}, {"height": 31}, "too_small", 31),
    ({"min_short_edge_px": 32}, {"width": 32}, {"width": 31}, "too_small", 31),
    ({"max_aspect_ratio": 5}, {"width": 400}, {"width": 401}, "aspect_ratio", 401 / 80),
    ({"max_aspect_ratio": 5}, {"height": 500}, {"height": 501}, "aspect_ratio", 5.01),
    ({"formats": ("PNG", "JPEG")}, {"format": "JPEG"}, {"format": "GIF"}, "format", 0),
    ({"keep_animated": False}, {"frames": 1}, {"frames": 2}, "animated", 2),
    ({"min_contrast": 0.015}, {"contrast": 0.015}, {"contrast": 0.0149}, "near_empty", 0.0149),
    ({"min_entropy": 1.1}, {"entropy": 1.1}, {"entropy": 1.09}, "near_empty", 1.09),
    ({"min_sharpness": 0.001}, {"sharpness": 0.001}, {"sharpness": 0.0009}, "blurred", 0.0009),
    ({"min_brightness": 0.1}, {"brightness": 0.1}, {"brightness": 0.09}, "too_dark", 0.09),
    ({"nsfw": {"model": "m", "max_score": 0.7}}, {"nsfw_score": 0.7}, {"nsfw_score": 0.71}, "nsfw", 0.71),
    ({"max_brightness": 0.9}, {"brightness": 0.9}, {"brightness": 0.91}, "too_bright", 0.91),
]


def columns(*rows: dict) -> dict[str, np.ndarray]:
    """Columns as they are read from shards: int32, objects, float32."""
    kinds = {name: np.int32 for name in ("width", "height", "frames")} | {"format": object}
    return {name: np.array([{**GOOD, **row}[name] for row in rows], dtype=kinds.get(name, np.float32)) for name in GOOD}


@pytest.mark.parametrize(("rule", "kept", "dropped", "reason", "value"), RULES)
def test_a_rule_keeps_its_bound_and_drops_what_is_past_it(rule, kept, dropped, reason, value) -> None:
    reasons, values = screen.dropped_because(columns({}, kept, dropped), screen.Config(**rule))
    assert reasons.tolist() == [None, None, reason]
    assert np.isnan(values[:2]).all() and values[2] == np.float32(value)


def test_the_first_rule_that_is_broken_is_named() -> None:
    rows = columns({"width": 20, "frames": 9, "contrast": 0}, {"frames": 9, "contrast": 0}, {"contrast": 0})
    reasons, values = screen.dropped_because(rows, screen.Config(keep_animated=False))
    assert reasons.tolist() == ["too_small", "animated", "near_empty"]
    assert values.tolist() == [20, 9, 0]


@pytest.mark.parametrize(("formats", "reason"), [(None, None), ((), "format")])
def test_no_formats_named_and_no_rows(formats, reason) -> None:
    config = screen.Config(formats=formats)
    assert screen.dropped_because(columns({}), config)[0].tolist() == [reason]
    assert screen.dropped_because(columns(), config)[0].tolist() == []


def pictures() -> list[bytes]:
    picture = draw("hills", np.random.default_rng(3), (160, 120))
    jpeg = copying.jpeg(picture)[1]
    return [
        jpeg,
        jpeg[: len(jpeg) // 3],  # truncated: its header can be read
        copying.png(GREY)[1],  # near empty
        copying.gif(picture, **copying.frames(picture))[1],
        copying.jpeg(picture.convert("CMYK"))[1],
        copying.grey_16_bit(picture)[1],
        b"\xff\xd8\xff\xe0 no image at all",
        copying.png(picture.resize((31, 40)))[1],
        copying.webp(picture.resize((300, 50)))[1],
        b"",
        copying.exif_rotated(picture)[1],
    ]


LAYOUT = ((5, 0, 1), (2, 3))


@pytest.fixture
def screened(local_root: str):
    """(images, measures) of the pictures, two partitions."""
    images = planted.images(local_root, [planted.image(data) for data in pictures()], LAYOUT)
    targets = [StageDir(root=local_root, stage="screen", fingerprint=f"part{p}") for p in range(2)]
    planned = [ref for target, shards in zip(targets, LAYOUT, strict=True) for ref in target.planned(len(shards))]
    return images, [
        screen.screen_shard.fn(image, ref, 10**6).model_copy(update={"base": image.base})
        for image, ref in zip(images, planned, strict=True)
    ]


def test_an_image_that_cannot_be_decoded_costs_its_own_row(screened) -> None:
    images, measures = screened
    assert [ref.rows for ref in measures] == [4, 0, 1, 1, 2]
    assert pool_rows(measures).tolist() == [0, 2, 3, 4, 5, 7, 8, 10]
    rejects = [row for ref in measures for row in read_table(ref, kind="rejects").to_pylist()]
    assert [(row["key"], row["row"], row["state"], row["reason"]) for row in rejects] == [
        ("key-1", 1, "failed", "truncated"),
        ("key-6", 0, "failed", "truncated"),
        ("key-9", 3, "failed", "not_an_image"),
    ]
    assert rejects[0]["bytes"] == pictures()[1] and rejects[0]["error"]
    table = read_table(measures[0], ["row", "image_id", "entropy", "contrast"]).to_pylist()
    ids = read_table(images[0], ["image_id"])["image_id"].to_pylist()
    assert [row["image_id"] for row in table] == [ids[i] for i in (0, 2, 3, 4)]


def test_every_mode_of_a_picture_measures_alike(screened) -> None:
    _, measures = screened
    rows = {row["row"] + ref.base: row for ref in measures for row in read_table(ref).to_pylist()}
    for other in (3, 4, 5, 10):  # animated GIF, CMYK, 16 bits, turned by EXIF
        assert rows[other]["brightness"] == pytest.approx(rows[0]["brightness"], abs=0.02)
        assert rows[other]["contrast"] == pytest.approx(rows[0]["contrast"], abs=0.02)
        difference = np.subtract(*(np.frombuffer(rows[r]["thumbnail"], np.uint8).astype(int) for r in (0, other)))
        assert np.abs(difference).mean() < 6


def test_too_many_pixels_is_a_reject(local_root: str) -> None:
    images = planted.images(local_root, [planted.image(copying.png(GREY)[1])], ((1,),))
    ref = StageDir(root=local_root, stage="screen", fingerprint="b").planned(1)[0]
    done = screen.screen_shard.fn(images[0], ref, 64 * 48 - 1)
    assert read_table(done, ["reason"], kind="rejects")["reason"].to_pylist() == ["too_many_pixels"]


def test_decide_settles_every_image_of_both_partitions(local_root: str, screened) -> None:
    images, measures = screened
    target = StageDir(root=local_root, stage="screened", fingerprint="a")
    config = screen.Config(keep_animated=False)
    decision = screen.decide.fn(images, measures, [], target, config)
    fates = [row for ref in target.planned(len(images)) for row in read_table(ref).to_pylist()]
    assert [(row["state"], row["reason"]) for row in fates] == [
        ("kept", None),
        ("failed", "truncated"),
        ("dropped", "near_empty"),
        ("dropped", "animated"),
        ("kept", None),
        ("kept", None),
        ("failed", "truncated"),
        ("dropped", "too_small"),
        ("dropped", "aspect_ratio"),
        ("failed", "not_an_image"),
        ("kept", None),
    ]
    assert [row["score"] for row in fates] == [None, None, 0, 3, None, None, None, 31, 6, None, None]
    assert {row["stage"] for row in fates} == {None, "screen"}
    assert decision.alive == 4 and sum(decision.reasons.values()) == 7
    assert decision.reasons["truncated"] == 2
