"""What is said of a picture that somebody asks for."""

from typing import Any, Literal

from pydantic import BaseModel

Row = dict[str, Any]  # of the ledger


class Similar(BaseModel, frozen=True):
    """A stored image that is like the picture."""

    key: str
    image_id: str
    similarity: float
    by: Literal["bytes", "descriptor", "hash", "embedding"]
    role: str  # pool, benchmark or curated
    collection: str
    published: bool
    fate: str  # in words; empty for an image that is in no ledger

    @property
    def name(self) -> str:
        return self.key if self.role == "pool" else f"{self.role} {self.collection}: {self.key}"


class Cell(BaseModel, frozen=True):
    """The cluster that the picture falls into."""

    cluster_id: int
    similarity: float  # to its centroid


class Finding(BaseModel, frozen=True):
    """What was found of one picture."""

    path: str
    error: str | None = None  # why it is no picture; then the rest is empty
    image_id: str | None = None
    verdict: str = ""
    published: bool = False  # it, or a copy of it, is in the published set
    candidates: tuple[Row, ...] = ()  # the ledger's rows with these very bytes, each with its `cause`
    copies: tuple[Similar, ...] = ()  # above the thresholds of the last run
    nearest: Similar | None = None  # of the pool, below the threshold
    neighbours: tuple[Similar, ...] = ()  # by meaning
    cluster: Cell | None = None
