"""What an evaluation comes to, as its JSON file and its page have it."""

from typing import Literal

from pydantic import BaseModel

from lvd.tasks import evaluation

Kind = Literal["biased", "held out", "given"]


class Told(BaseModel, frozen=True):
    """How well features tell the classes: the share of test images that are named rightly."""

    features: str
    knn: dict[int, evaluation.Interval]
    probe: evaluation.Interval
    penalty: float


class Labelled(BaseModel, frozen=True):
    """One labelled collection or folder. differences: the second features less the first, on the same test images."""

    name: str
    classes: int
    train: int
    test: int
    left_out: int  # undecodable, or the same content as another image
    split: str
    most_frequent: float  # the share that naming the most frequent class gets
    told: tuple[Told, ...]
    differences: dict[str, evaluation.Interval]


class Coverage(BaseModel, frozen=True):
    """What the selection covers of some reference images, in one feature space."""

    references: str
    features: str
    kind: Kind
    images: int
    selected: int  # of each selection that is compared; held out: on average
    trials: int
    measures: dict[str, evaluation.Compared]


class Concept(BaseModel, frozen=True):
    """The coverage of one class of a curated collection, held out where it can be."""

    collection: str
    label: str
    images: int
    selection: float
    random: float


class Summary(BaseModel, frozen=True):
    """The whole evaluation as the JSON file holds it."""

    root: str
    version: str
    seed: int
    selected: int  # images that were retrieved and published
    survivors: int
    compared: int  # of the selected images, that were looked at
    drawn_from: int  # survivors that random selections are drawn from
    clusters: int
    labelled: tuple[Labelled, ...]
    coverage: tuple[Coverage, ...]
    spread: dict[str, evaluation.Compared]
    concepts: tuple[Concept, ...]
    notes: tuple[str, ...]
    page: str
    figures: str
