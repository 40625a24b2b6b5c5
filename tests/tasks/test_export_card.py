"""The card of an export: the version's own, with the head that hubs and `datasets` read, and how it is opened."""

import pyarrow as pa
import pytest
import yaml

from lvd.tasks import card, export_card, schemas
from lvd.tasks.layouts import Kind
from lvd.tests.tasks.test_card import FACTS, front_matter

MADE = {"version": "v3", "images": 5, "shards": 2, "num_bytes": 12_345, "order": "shuffled with seed 4"}
COLUMNS = [field for field in schemas.CURATED if field.name != "image"]


def rendered(kind: Kind, text: str | None = None, columns: list[pa.Field] = COLUMNS, **said: object) -> str:
    made = export_card.Made(**{"kind": kind, "suffixes": {"jpg": 4, "webp": 1}, **MADE, **said})
    return export_card.render(card.render(FACTS) if text is None else text, made, columns)


@pytest.mark.parametrize(
    ("kind", "files", "opened"),
    [
        ("webdataset", "*.tar", 'WebDataset("lvd-{000000..000001}.tar").decode("pil").to_tuple("jpg;webp", "json")'),
        ("imagefolder", "train/**", 'load_dataset("imagefolder", data_dir=".", split="train")'),
        ("parquet", "data/train-*.parquet", 'load_dataset(".", split="train")'),
    ],
)
def test_head_and_use_are_those_of_the_layout(kind: Kind, files: str, opened: str) -> None:
    text = rendered(kind)
    head = front_matter(text)
    assert head["configs"] == [{"config_name": "default", "data_files": [{"split": "train", "path": files}]}]
    assert head["license"] == "unknown" and head["size_categories"] == ["n<1K"] and head["pretty_name"] == "Birds"
    assert opened in text and "load_from_disk" not in text
    assert "shuffled with seed 4" in text and "| formats | 4 jpg, 1 webp |" in text
    assert text.count("## Limits") == text.count("## Sources") == text.count("# Birds") == 1


def test_a_stated_licence_stays() -> None:
    licensed = card.render(FACTS.model_copy(update={"license": "cc-by-4.0"}))
    assert front_matter(rendered("parquet", licensed))["license"] == "cc-by-4.0"


def test_tars_say_their_columns_as_datasets_reads_them() -> None:
    from datasets import Features, Image, List, Value

    features = Features._from_yaml_list(front_matter(rendered("webdataset"))["dataset_info"]["features"])
    assert list(features) == ["jpg", "webp", "json", "__key__", "__url__"]
    assert features["jpg"] == Image() and features["json"]["retrieved_for"] == List(Value("string"))
    assert features["json"]["cluster_id"] == Value("int32")


def test_columns_that_are_not_exported_are_not_described() -> None:
    text = rendered("parquet", columns=[field for field in COLUMNS if field.name in ("image_id", "key")])
    told = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| `")]
    assert told[:3] == ["`image_id`", "`image`", "`key`"] and "`similarity`" not in told


@pytest.mark.parametrize("text", ["", "# Vectors\n\n5 vectors.\n"])
def test_a_card_without_a_head_gets_one(text: str) -> None:
    found = rendered("parquet", text, suffixes={})
    assert yaml.safe_load(found.split("---\n")[1])["size_categories"] == ["n<1K"]
    assert 'load_dataset(".", split="train")' in found and "a PIL image" not in found and "formats" not in found
