"""A published version as a run leaves it, without the run: images in three formats in shards of uneven length."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lvd.infra.committing import commit
from lvd.infra.shards import StageDir
from lvd.infra.storage import Storage
from lvd.infra.writing import write_shard
from lvd.tasks import schemas
from lvd.tests import copying
from lvd.tests.tasks import planted

SHARDS = (7, 0, 12, 5)
CARD = """---
pretty_name: Planted
size_categories:
- n<1K
---

# Planted

## Use

```python
from datasets import load_from_disk
```

## Sources

None.
"""


def picture(number: int) -> bytes:
    """A small picture of its own: JPEG, PNG or WebP in turn."""
    pixels = np.random.default_rng(number).integers(0, 256, (12 + number % 5, 16, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    return (copying.jpeg, copying.png, copying.webp)[number % 3](image)[1]


def row(number: int) -> dict[str, Any]:
    """What is published of picture `number`: every fourth is curated, the rest was retrieved, some for two."""
    own = planted.image(picture(number), key=f"http://a.example/ü {number}.jpg", source="web")
    is_curated = number % 4 == 0
    return {name: own.get(name) for name in schemas.CURATED.names} | {
        "url": None if is_curated else own["key"],
        "role": "curated" if is_curated else "retrieved",
        "retrieved_for": [] if is_curated else ["birds", "cars"][: 1 + number % 2],
        "query_id": None if is_curated else planted.identity(number),
        "similarity": None if is_curated else number / 64,
        "cluster_id": None if number < 10 else number,  # null in the first ones: what readers infer a type from
    }


def published(root: str, version: str = "v1", shards: tuple[int, ...] = SHARDS, first: int = 0) -> list[dict[str, Any]]:
    """The rows of a version that now is the newest of the root, its dataset committed and its card written."""
    target, rows = StageDir(root=root, stage="curated", fingerprint=version), []
    for ref, count in zip(target.planned(len(shards)), shards, strict=True):
        mine = [row(first + len(rows) + number) for number in range(count)]
        with write_shard(ref, schemas.CURATED, {}) as shard:
            for number, one in enumerate(mine):
                shard.keep(one)
                if number % 3 == 2:
                    shard.kept.flush()  # a batch ends here
        rows += mine
    commit(target, len(shards), config={}, inputs={})
    storage = Storage(root)
    storage.write_bytes(f"{target.directory}/README.md", CARD.encode())
    storage.write_json("curated/latest.json", {"version": version, "directory": target.directory, "run": "runs/a.json"})
    return rows


def files_below(folder: Path) -> dict[str, bytes]:
    """Name → bytes of every file."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
