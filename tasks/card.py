"""The dataset card: README.md beside the published dataset.

It says nothing of where, when or how fast it was made, so that the same inputs give the same bytes.
"""

from collections import Counter
from typing import Any

import yaml
from pydantic import BaseModel

from lvd.tasks.funnel import Loss, Step, funnel, losses
from lvd.tasks.report import Collection, Search
from lvd.tasks.tallies import Ending
from lvd.tasks.wording import share

FACTS_FILE = "card.json"  # beside the card: what it says, so that it can be written again when images are taken down
COLUMNS = {
    "image_id": "the first 16 bytes of the SHA-256 of the bytes as they were stored when fetched, in hex",
    "image": "the bytes as they were stored, or with faces blurred, and the file name; decoded on access",
    "key": "the candidate's name in the ledger: its URL, or its path in the source",
    "url": "where it was downloaded from; null for local sources",
    "source": "the label of the source that it came from",
    "role": "`curated` (published as it is), `retrieved` (from the pool) or `survivor` (left in the pool)",
    "retrieved_for": "the collections that retrieved it",
    "query_id": "the curated image that it is nearest to; for cluster-based retrieval the one nearest to the centroid",
    "similarity": "cosine to that query; for cluster-based retrieval to the centroid",
    "cluster_id": "its cluster; null for sample-based retrieval",
    "label": "the class, where the source names one",
    "license": "the licence as found: what the source, or the page that shows the image, states; nobody checked it",
    "width": "pixels, upright",
    "height": "pixels, upright",
    "faces_blurred": "faces that were blurred in this copy; null if none were looked for",
}
USE = """## Use

```python
from datasets import load_from_disk

images = load_from_disk(".")  # this folder
images[0]["image"]  # a PIL image
```

The images lie in `published/` beside the folder of the versions, which share them; `data_files.json` lists the files.
So keep the root whole. From a bucket, where `load_from_disk` would copy this folder alone:

```python
import json
import fsspec
from datasets import load_dataset

root, version = "s3://bucket/root", "curated/v1"  # where this folder is
with fsspec.open(f"{root}/{version}/data_files.json") as file:
    files = [f"{root}/{name}" for name in json.load(file)]
images = load_dataset("arrow", data_files=files, split="train")  # streaming=True copies nothing
```"""
TOP_LICENSES = 20
BOUNDS = (
    "1K",
    "10K",
    "100K",
    "1M",
    "10M",
    "100M",
    "1B",
    "10B",
    "100B",
    "1T",
)  # as hubs name them, each ten times the last


class Facts(BaseModel, frozen=True):
    """What the card says."""

    title: str
    name: str
    license: str | None
    roles: dict[str, int]  # of the published images
    states: dict[str, int]  # of the candidates
    funnel: tuple[Step, ...]
    losses: tuple[Loss, ...]
    collections: tuple[Collection, ...]
    images: tuple[tuple[str, ...], ...] = ()  # the directories of each collection's images
    retrieved_for: dict[str, int]
    licenses: dict[str, int] = {}  # as found → published images, the most common ones; under "" those that state none
    policies: dict[str, dict[str, Any]]  # collection → kind of retrieval and its numbers
    collisions: str
    weights: dict[str, float] = {}  # of a mixture
    semdedup: dict[str, Any] | None = None  # min_similarity, keep; None if it was not asked for
    thresholds: dict[str, float]
    searches: tuple[Search, ...] = ()
    models: dict[str, str]
    num_clusters: int
    seed: int
    nsfw: dict[str, Any] | None = None  # model, max_score; None if nobody looked
    faces: dict[str, Any] | None = None  # model, blur_min_score, blurred; None if nobody looked

    @property
    def num_images(self) -> int:
        return sum(self.roles.values())


def recounted(
    facts: Facts,
    endings: Counter[Ending],
    kept: Counter[str],
    roles: dict[str, int],
    retrieved_for: dict[str, int],
    licenses: dict[str, int],
) -> Facts:
    """The facts of a version from which images were taken down: everything that counts what is published.

    endings: of its ledger; kept: directory of images → published images; roles, retrieved_for, licenses: of what is
    published.
    """
    states = states_of(endings)
    collections = [
        one if one.kept is None else one.model_copy(update={"kept": sum(kept[name] for name in names)})
        for one, names in zip(facts.collections, facts.images, strict=True)
    ]
    return facts.model_copy(
        update={
            "roles": roles,
            "states": {state: states[state] for state in facts.states},
            "funnel": funnel(endings),
            "losses": losses(endings),
            "collections": tuple(collections),
            "retrieved_for": {name: retrieved_for[name] for name in sorted(retrieved_for)},
            "licenses": licenses,
        }
    )


def ranked(licenses: Counter[str]) -> dict[str, int]:
    """The most common licences, the most common first; of equals the first by name."""
    return dict(sorted(licenses.items(), key=lambda pair: (-pair[1], pair[0]))[:TOP_LICENSES])


def states_of(endings: Counter[Ending]) -> Counter[str]:
    """How many candidates ended in each state."""
    states: Counter[str] = Counter()
    for (_, _, state, _), count in endings.items():
        states[state] += count
    return states


def render(facts: Facts) -> str:
    """The card as Markdown, with the front matter that dataset hubs read."""
    sections = [_front_matter(facts), _opening(facts), USE, _sources(facts), _licenses(facts), _method(facts)]
    return "\n\n".join([*sections, _columns(), _ledger(facts), _limits(facts)]) + "\n"


def _front_matter(facts: Facts) -> str:
    values = {
        "pretty_name": " ".join(facts.title.split()),
        **({"license": facts.license} if facts.license else {}),
        "task_categories": ["image-feature-extraction"],
        "size_categories": [size_category(facts.num_images)],
        "tags": ["image", "self-supervised", "curated"],
    }
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---"


def size_category(num_images: int) -> str:
    """The name that hubs give to this many examples: n<1K, 1K<n<10K, …, n>1T."""
    place = max(0, len(str(num_images)) - 3)
    if place == 0:
        return f"n<{BOUNDS[0]}"
    return f"{BOUNDS[place - 1]}<n<{BOUNDS[place]}" if place < len(BOUNDS) else f"n>{BOUNDS[-1]}"


def _opening(facts: Facts) -> str:
    roles = ", ".join(f"{n:,} {role}" for role, n in sorted(facts.roles.items())) or "none"
    terms = f"under `{plain(facts.license)}`" if facts.license else "without a stated licence"
    return f"""# {plain(facts.title)}

{facts.num_images:,} images ({roles}), chosen from {sum(facts.states.values()):,} candidates by `lvd` with the recipe
`{facts.name}`, the way LVD-142M was made (DINOv2, arXiv 2304.07193).
Published {terms}; the images keep the rights that they had."""


def _sources(facts: Facts) -> str:
    lines = []
    for c in facts.collections:
        counts = [f"{c.listed:,}", f"{c.fetched:,}", *("–" if n is None else f"{n:,}" for n in (c.kept, c.domains))]
        lines.append([c.role, c.name, c.kind, *counts])
    head = ["role", "name", "kind", "candidates", "fetched", "published", "domains"]
    made = table(head, lines, right=(3, 4, 5, 6))
    made += "\n\nDomains are those of the published images' URLs; files of a folder have none."
    retrieved = [[name, _policy(facts, name), f"{n:,}"] for name, n in facts.retrieved_for.items()]
    if not retrieved:
        return f"## Sources\n\n{made}\n\nNothing was retrieved for a curated collection."
    note = "An image that several collections retrieved counts for each of them."
    return f"## Sources\n\n{made}\n\n{table(['collection', 'retrieval', 'images'], retrieved, numbers=1)}\n\n{note}"


def _licenses(facts: Facts) -> str:
    """Licences as they were found, with what nobody stated and what is too rare to name."""
    stated = {name or "none stated": n for name, n in facts.licenses.items()}
    if rest := facts.num_images - sum(stated.values()):
        stated["others"] = rest
    lines = [[name, f"{n:,}", share(n, facts.num_images)] for name, n in stated.items()]
    found = table(["licence as found", "images", "share"], lines, numbers=2) if lines else "There are no images."
    return f"""## Licences

What a column or a sample of the source states, else the `rel="license"` of the page that shows the image, else what the
recipe says of the source. Nobody compared it with the image.

{found}"""


def _policy(facts: Facts, name: str) -> str:
    policy = facts.policies[name]
    mixed = f"; of these a share of weight {facts.weights[name]:g}" if name in facts.weights else ""
    if policy["kind"] == "balanced":
        return f"evenly over the clusters, {policy['target_images']:,} images{mixed}"
    if policy["kind"] == "sample":
        return f"{policy['neighbors']:,} nearest of every image (collisions: {facts.collisions}){mixed}"
    return (
        f"up to {policy['per_cluster']:,} of every cluster with at least {policy['min_queries']} of its images, "
        f"at most {policy['max_images']:,}{mixed}"
    )


def _method(facts: Facts) -> str:
    at = facts.thresholds
    first = facts.funnel[0].count
    steps = [[s.label, f"{s.count:,}", "" if s.gained else share(s.count, first), _lost(s)] for s in facts.funnel]
    return f"""## Method

{table(["step", "images", "of the candidates", "lost"], steps, numbers=0, right=(1, 2))}

- **Fingerprint**: exact duplicates by content; near duplicates by a 64-bit PCA hash within
  {at["hash_distance"]:g} bits, confirmed by a thumbnail correlation of at least {at["thumbnail_similarity"]:g}.
- **Self-deduplication**: descriptors of `{plain(facts.models["copy descriptors"])}`; components of the graph of nearest
  neighbours with a cosine of at least {at["copy_similarity"]:g}; one image of each is kept.{_searched(facts)}
- **Decontamination**: {_references(facts)}
- **Semantic duplicates**: {_meanings(facts)}
- **Retrieval**: embeddings of `{plain(facts.models["embeddings"])}`; {facts.num_clusters:,} clusters by spherical
  k-means; seed {facts.seed}."""


def _meanings(facts: Facts) -> str:
    if facts.semdedup is None:
        return "not looked for."
    kept = "the least" if facts.semdedup["keep"] == "far" else "the most"
    return f"""of the images of a cluster with embeddings of a cosine of at least
  {facts.semdedup["min_similarity"]:g}, {kept} typical one is kept (SemDeDup)."""


def _searched(facts: Facts) -> str:
    """What of the neighbours was found, where not all pairs were compared."""
    told = [
        f" {search.what.capitalize()}, {100 * search.recall.recall:.2f} % of the pairs are found (95 %:"
        f" {100 * search.recall.interval[0]:.2f} to {100 * search.recall.interval[1]:.2f} %, measured on"
        f" {search.recall.queries:,} images)."
        for search in facts.searches
        if search.recall
    ]
    return "".join(told)


def _references(facts: Facts) -> str:
    compared = [(c.name, c.dropped_for_it) for c in facts.collections if c.dropped_for_it is not None]
    if not compared:
        return "none; no benchmark and no curated collection was compared with the pool."
    names = ", ".join(f"{plain(name)} ({dropped:,})" for name, dropped in compared)
    return f"""components that hold an image of a reference collection, at a cosine of at least
  {facts.thresholds["reference_similarity"]:g}, are dropped whole. The collections, and the images dropped for each:
  {names}."""


def _lost(step: Step) -> str:
    if step.gained:
        return f"{step.gained:,} curated images join"
    return ", ".join(f"{n:,} {reason}" for reason, n in step.lost.items())


def _columns() -> str:
    return f"## Columns\n\n{table(['column', 'what it holds'], [[f'`{c}`', text] for c, text in COLUMNS.items()])}"


def _ledger(facts: Facts) -> str:
    total = sum(facts.states.values())
    states = [[state, f"{n:,}", share(n, total)] for state, n in facts.states.items()]
    reasons = [[x.stage, x.reason, x.state, f"{x.count:,}", share(x.count, total), x.meaning] for x in facts.losses]
    return f"""## Ledger

Every candidate of the pool and of the published collections ends in one state; the folder `ledger` has a row for each
({total:,}), with its stage, its reason, its score and the image that caused it.

{table(["state", "candidates", "share"], [*states, ["sum", f"{total:,}", share(total, total)]], numbers=2)}

{table(["stage", "reason", "state", "candidates", "share", "what it means"], reasons, numbers=0, right=(3, 4))}"""


def _limits(facts: Facts) -> str:
    benchmarks = [c.name for c in facts.collections if c.role == "benchmark"]
    cleared = f"against {', '.join(benchmarks)} only" if benchmarks else "against any benchmark"
    cleared = f"{'Decontaminated' if benchmarks else 'Not decontaminated'} {cleared}."
    return f"""## Limits

{_content(facts)}
- **Not checked for rights**: the column `license` repeats what was found beside an image, which may be wrong, or mean
  the page and not the image; `url` and `key` say where it came from, and who has rights in it must be asked there.
- **A picture of its day**: pages change and vanish, and people ask for images to go; a copy does not follow, so look
  for a newer version.
- {cleared} Mirrored and strongly cropped copies may be left.
- Included curated images are published as they came: not screened, not deduplicated beyond equal bytes, and not
  compared with the benchmarks.
- Retrieval favours what the curated collections show, and inherits their bias.
- Labels, where there are any, are those of the sources."""


def _content(facts: Facts) -> str:
    """What was done about unsafe images and faces, or that nothing was."""
    nsfw = "- **Not filtered for unsafe content**: no classifier looked; what the sources hold is here."
    if facts.nsfw:
        nsfw = f"""- **Unsafe content**: pool images with a score above {facts.nsfw["max_score"]:g} of
  `{plain(facts.nsfw["model"])}` were dropped; a classifier misses some. Included curated images were not scored."""
    faces = "- **Faces**: none were looked for; those in the sources are here."
    if facts.faces:
        faces = f"""- **Faces**: {facts.faces["blurred"]:,} that `{plain(facts.faces["model"])}` found
  with a score of at least {facts.faces["blur_min_score"]:g} are blurred; a detector misses some."""
    return f"{nsfw}\n{faces}"


def table(head: list[str], lines: list[list[str]], *, numbers: int = 0, right: tuple[int, ...] = ()) -> str:
    """A Markdown table; the last `numbers` columns, and those in `right`, stand on the right."""
    aligned = {*range(len(head) - numbers, len(head)), *right}
    rule = ["---:" if index in aligned else "---" for index in range(len(head))]
    return "\n".join(f"| {' | '.join(map(plain, line))} |" for line in (head, rule, *lines))


def plain(text: str) -> str:
    """The text on one line, with nothing in it that Markdown or HTML would act on."""
    escaped = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return escaped.replace("|", "\\|")
