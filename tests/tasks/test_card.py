"""The dataset card: what hubs read of it, and that nothing breaks its Markdown."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from lvd.tasks import card, schemas
from lvd.tasks.funnel import Loss, Step
from lvd.tasks.report import Collection
from lvd.tests.flows.shelf import Shelf, published

FACTS = card.Facts(
    title="Birds",
    name="birds",
    license=None,
    roles={"curated": 2, "retrieved": 3},
    states={"kept": 5, "dropped": 4, "failed": 1},
    funnel=(
        Step(label="candidates", count=8, before=8),
        Step(label="retrieved", count=3, before=8, lost={"not_retrieved": 5}),
        Step(label="published", count=5, before=3, gained=2),
    ),
    losses=(Loss(stage="retrieve", state="dropped", reason="not_retrieved", count=5),),
    collections=(
        Collection(
            role="pool", name="web | <b>", kind="urls", path="/secret/place", listed=8, fetched=8, kept=3, domains=2
        ),
        Collection(role="benchmark", name="tests", kind="images", path="/x", listed=4, fetched=4, dropped_for_it=1),
        Collection(role="curated", name="cub", kind="images", path="/x", listed=2, fetched=2, kept=2, dropped_for_it=0),
    ),
    retrieved_for={"cub": 3},
    policies={"cub": {"kind": "sample", "neighbors": 4}},
    collisions="refill",
    thresholds={
        "hash_distance": 6,
        "thumbnail_similarity": 0.985,
        "copy_similarity": 0.6,
        "reference_similarity": 0.45,
    },
    models={"copy descriptors": "sscd_disc_mixup", "embeddings": "vit_huge"},
    num_clusters=100_000,
    seed=0,
)


def front_matter(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def test_front_matter_is_what_a_hub_reads() -> None:
    assert front_matter(card.render(FACTS)) == {
        "pretty_name": "Birds",
        "task_categories": ["image-feature-extraction"],
        "size_categories": ["n<1K"],
        "tags": ["image", "self-supervised", "curated"],
    }
    licensed = FACTS.model_copy(update={"license": "cc-by-4.0", "title": 'A: "title"\n---\nof two lines'})
    found = front_matter(card.render(licensed))
    assert found["license"] == "cc-by-4.0"
    assert found["pretty_name"].startswith('A: "title"')


@pytest.mark.parametrize(
    ("images", "category"),
    [
        (0, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (142_109_386, "100M<n<1B"),
        (10**10, "10B<n<100B"),
        (10**12, "n>1T"),
    ],
)
def test_size_category(images: int, category: str) -> None:
    text = card.render(FACTS.model_copy(update={"roles": {"retrieved": images}}))
    assert front_matter(text)["size_categories"] == [category]


def test_what_it_says_of_a_bucket_opens_the_images(s3_root: str, tmp_path: Path) -> None:
    from datasets import Image

    shelf = Shelf(s3_root)
    shelf.version(1, [shelf.shard("one", published("a"), published("b")), shelf.shard("two", published("c"))])
    code = card.render(FACTS).split("```python\n")[2].split("```")[0]
    for said, meant in (("s3://bucket/root", s3_root), ('"train")', f'"train", cache_dir={str(tmp_path)!r})')):
        assert said in code
        code = code.replace(said, meant)
    names: dict[str, Any] = {}
    exec(code, names)
    images = names["images"].cast_column("image", Image(decode=False))
    assert [(row["key"], row["image"]["bytes"]) for row in images] == [("a", b"a"), ("b", b"b"), ("c", b"c")]


def test_licences_are_told_as_found_and_counted_to_the_last_image() -> None:
    found = card.ranked(Counter({"cc0": 1, "": 2, "by | <b>": 1}))
    assert list(found) == ["", "by | <b>", "cc0"]
    text = card.render(FACTS.model_copy(update={"licenses": {"": 2, "by | <b>": 1, "cc0": 1}}))
    rows = [line for line in text.split("## Licences")[1].split("## Method")[0].splitlines() if line.startswith("|")]
    assert rows[2:] == [
        "| none stated | 2 | 40.0% |",
        "| by \\| &lt;b&gt; | 1 | 20.0% |",
        "| cc0 | 1 | 20.0% |",
        "| others | 1 | 20.0% |",
    ]
    many = Counter({f"licence {number}": number for number in range(1, 40)})
    assert list(card.ranked(many).values()) == list(range(39, 39 - card.TOP_LICENSES, -1))


def test_every_column_is_described() -> None:
    assert list(card.COLUMNS) == schemas.CURATED.names


def test_rows_of_the_tables_are_whole_whatever_is_in_them() -> None:
    text = card.render(FACTS)
    assert "| pool | web \\| &lt;b&gt; | urls | 8 | 8 | 3 | 2 |" in text
    assert "| benchmark | tests | images | 4 | 4 | – | – |" in text  # nothing of it is published
    assert "| cub | 4 nearest of every image (collisions: refill) | 3 |" in text
    assert "| sum | 10 | 100% |" in text
    assert "/secret/place" not in text


def test_method_and_limits_say_what_was_done_and_what_was_not() -> None:
    text = card.render(FACTS)
    for words in (
        "at least 0.6;",
        "0.45, are",
        "tests (1), cub (0)",
        "`vit_huge`",
        "100,000 clusters",
        "Not filtered for unsafe content",
        "**Faces**: none were looked for",
        "tests only",
    ):
        assert words in text
    models = {
        "nsfw": {"model": "marqo", "max_score": 0.5},
        "faces": {"model": "centerface", "blur_min_score": 0.3, "blurred": 1234},
    }
    text = " ".join(card.render(FACTS.model_copy(update=models)).split())
    assert "a score above 0.5 of `marqo` were dropped" in text
    assert "1,234 that `centerface` found with a score of at least 0.3 are blurred" in text
    alone = FACTS.model_copy(update={"collections": FACTS.collections[:1]})
    assert "Not decontaminated against any benchmark." in card.render(alone)
    assert "none; no benchmark" in card.render(alone)


def test_the_same_facts_give_the_same_card() -> None:
    assert card.render(FACTS) == card.render(card.Facts.model_validate_json(FACTS.model_dump_json()))
