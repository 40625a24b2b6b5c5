"""Fates: what has become of every pool image so far, one row for each, in the order of the images.

A decision reads the fates before it, changes some, and writes its own; what was dropped stays as it was.
"""

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from lvd.infra.shards import ShardRef, StageDir, read_column, read_table
from lvd.infra.writing import write_shard
from lvd.tasks import schemas

KEPT = "kept"


class Decision(BaseModel, frozen=True):
    """What a decision came to."""

    alive: int  # images that are left
    reasons: dict[str, int]  # images that ended here, by reason
    masks: dict[str, str]  # a partition's images directory → what identifies the set of its images that are alive
    per_reference: dict[str, int] = {}  # reference collection → pool images that were dropped because of it


class Fates:
    """The fates of n pool images as columns. Memory: about 150 bytes an image."""

    def __init__(self, image_id: np.ndarray) -> None:
        self.image_id = image_id  # (n,) object: 32 hex characters
        num = len(image_id)
        self.state = np.full(num, KEPT, dtype=object)
        self.stage = np.full(num, None, dtype=object)
        self.reason = np.full(num, None, dtype=object)
        self.score = np.full(num, np.nan, dtype=np.float32)
        self.because_of = np.full(num, None, dtype=object)

    @classmethod
    def read(cls, refs: list[ShardRef]) -> "Fates":
        table = pa.concat_tables([read_table(ref) for ref in refs])
        fates = cls(table["image_id"].to_numpy())
        for name in ("state", "stage", "reason", "because_of"):
            setattr(fates, name, table[name].to_numpy().astype(object))
        fates.score = table["score"].to_numpy().astype(np.float32)
        return fates

    @property
    def alive(self) -> np.ndarray:
        """(n,) bool: not dropped and not failed."""
        return self.state == KEPT

    def end(
        self, rows: Any, state: str, stage: str, reason: Any, *, score: Any = np.nan, because_of: Any = None
    ) -> None:
        """These rows end here. An image whose fate is settled already is a defect of the caller."""
        if not np.all(self.alive[rows]):
            raise ValueError(f"{stage}: an image that had ended was ended again")
        self.state[rows], self.stage[rows], self.reason[rows] = state, stage, reason
        self.score[rows], self.because_of[rows] = score, because_of

    def overrule(self, rows: Any, stage: str, reason: str, *, because_of: Any = None) -> None:
        """These rows are dropped here, whatever had become of them."""
        self.state[rows], self.stage[rows], self.reason[rows] = "dropped", stage, reason
        self.score[rows], self.because_of[rows] = np.nan, because_of

    def end_rejected(self, sidecars: list[ShardRef], stage: str, *, again: bool = False) -> None:
        """The images that the sidecars of a stage rejected have failed there, with the reason of the reject.

        again: others of the stage looked at the same images before; what ended there stays as it is.
        """
        for ref in sidecars:
            rejects = read_table(ref, ["row", "reason"], kind="rejects")
            rows = rejects["row"].to_numpy() + ref.base
            new = self.alive[rows] if again else np.ones(len(rows), dtype=bool)
            if new.any():
                self.end(rows[new], "failed", stage, rejects["reason"].to_numpy()[new])

    def write(self, target: StageDir, images: list[ShardRef], config: dict[str, Any], stage: str) -> "Decision":
        """One shard of fates for every shard of images. Returns what the stage decided."""
        first, parts = 0, {}
        for ref, image_ref in zip(target.planned(len(images)), images, strict=True):
            part = slice(first, first + image_ref.rows)
            with write_shard(ref, schemas.FATES, config) as shard:
                shard.keep_table(self.table(part))
            parts.setdefault(image_ref.directory, hashlib.sha256()).update(np.packbits(self.alive[part]).tobytes())
            first = part.stop
        names, counts = np.unique(self.reason[self.stage == stage].astype(str), return_counts=True)
        return Decision(
            alive=int(self.alive.sum()),
            reasons=dict(zip(names.tolist(), counts.tolist(), strict=True)),
            masks={directory: digest.hexdigest()[:16] for directory, digest in parts.items()},
        )

    def table(self, part: slice) -> pa.Table:
        columns = [getattr(self, name)[part] for name in schemas.FATES.names]
        return pa.Table.from_arrays(
            [pa.array(c, type=f.type, from_pandas=True) for c, f in zip(columns, schemas.FATES, strict=True)],
            schema=schemas.FATES,
        )


def precedence(images: list[ShardRef], image_id: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `graph.representatives` ranks images by: area, file size, image id."""
    return *sizes(images), image_id.astype("S32")


def ages(images: list[ShardRef]) -> np.ndarray:
    """(n,) int64: the number of the partition of every image, which is the lower the earlier it came."""
    number = {name: age for age, name in enumerate(dict.fromkeys(ref.directory for ref in images))}
    age = np.array([number[ref.directory] for ref in images], dtype=np.int64)
    return np.repeat(age, [ref.rows for ref in images])


def sizes(images: list[ShardRef]) -> tuple[np.ndarray, np.ndarray]:
    """(n,) int64 decoded areas in pixels, and (n,) int64 file sizes in bytes, of all images."""
    width, height = (read_column(images, name).to_numpy().astype(np.int64) for name in ("width", "height"))
    return width * height, read_column(images, "num_bytes").to_numpy()
