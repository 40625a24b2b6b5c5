"""The card of an export: the card of its version, with the head that hubs read and how this layout is opened."""

import re
from typing import Any

import pyarrow as pa
import yaml
from pydantic import BaseModel

from lvd.tasks.card import COLUMNS, size_category, table
from lvd.tasks.layouts import DATA_FILES, SPLIT, Kind
from lvd.tasks.wording import size

USES = {
    "webdataset": """```python
from datasets import load_dataset

images = load_dataset(".", split="train", streaming=True)  # this folder, or its name on the hub

import webdataset  # or so

pairs = webdataset.WebDataset("lvd-{{000000..{last:06d}}}.tar").decode("pil").to_tuple("{suffixes}", "json")
```""",
    "imagefolder": """```python
from datasets import load_dataset

images = load_dataset("imagefolder", data_dir=".", split="train")  # this folder, with the columns of metadata.parquet

from torchvision.datasets import ImageFolder  # or so: the class is the collection that the image was retrieved for

images = ImageFolder("train", is_valid_file=lambda path: not path.endswith(".parquet"))  # GIF and AVIF too
```""",
    "parquet": """```python
from datasets import load_dataset

images = load_dataset(".", split="train")  # this folder, or its name on the hub
images[0]["image"]  # a PIL image
```""",
}
_HEAD = re.compile(r"\A---\n(.*?)\n---\n+", re.DOTALL)
_USE = re.compile(r"^## Use\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)


class Made(BaseModel, frozen=True):
    """What the export came to."""

    kind: Kind
    version: str
    images: int
    shards: int
    num_bytes: int
    order: str  # of the images, in words
    suffixes: dict[str, int]  # of the images' files


def render(card: str, made: Made, columns: list[pa.Field]) -> str:
    """The card as Markdown. card: of the version; columns: those that are exported besides the image."""
    match = _HEAD.match(card)
    head: dict[str, Any] = yaml.safe_load(match[1]) if match else {"size_categories": [size_category(made.images)]}
    head.setdefault("license", "unknown")
    data_files = [{"split": SPLIT, "path": DATA_FILES[made.kind]}]
    head["configs"] = [{"config_name": "default", "data_files": data_files}]
    if made.kind == "webdataset":
        head["dataset_info"] = {"features": webdataset_features(columns, made.suffixes)}
    body = _of_the_export(card[match.end() :] if match else card, {field.name for field in columns})
    use = USES[made.kind].format(last=made.shards - 1, suffixes=";".join(made.suffixes))
    if not made.suffixes:
        use = use.replace('\nimages[0]["image"]  # a PIL image', "")
    section = f"## Use\n\n{use}\n\n"
    body, replaced = _USE.subn(lambda _: section, body, count=1)
    if not replaced:
        body = f"{body.rstrip()}\n\n{section}"
    front = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n{body.rstrip()}\n\n{_files(made)}\n"


def _of_the_export(body: str, columns: set[str]) -> str:
    """The text without what only the version's own folder has: columns that are not exported, and the ledger."""
    gone = tuple(f"| `{name}` |" for name in COLUMNS if name not in {*columns, "image"})
    lines = [line for line in body.split("\n") if not line.startswith(gone)]
    return "\n".join(lines).replace("the folder `ledger` has a row", "the folder `ledger` of the version has a row")


def _files(made: Made) -> str:
    counts = ", ".join(f"{count:,} {suffix}" for suffix, count in made.suffixes.items())
    rows = [
        ["version", made.version],
        ["layout", f"{made.kind}, {made.shards:,} shards, {size(made.num_bytes)}"],
        ["rows", f"{made.images:,}"],
        *([["formats", counts]] if counts else []),
        ["order", made.order],
        ["checksums", "`sha256sum -c SHA256SUMS`; `export.json` has counts, settings and tools"],
    ]
    return f"## Files\n\n{table(['', 'of this export'], rows)}"


def webdataset_features(columns: list[pa.Field], suffixes: dict[str, int]) -> list[dict[str, Any]]:
    """The columns that `datasets` makes of the tars, as a card states them: without it, it takes those of the first
    images for all, and images in several formats would be refused."""
    from datasets import DatasetInfo, Features, Image, Value
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCardData

    features = {suffix: Image() for suffix in suffixes}
    features["json"] = dict(Features.from_arrow_schema(pa.schema(columns)))
    features |= {"__key__": Value("string"), "__url__": Value("string")}
    data = DatasetCardData()
    DatasetInfosDict({"default": DatasetInfo(features=Features(features))}).to_dataset_card_data(data)
    return data.to_dict()["dataset_info"]["features"]
