"""The card of a set that was chosen by vectors alone: what was asked of every collection, and what was found."""

from typing import Any

from pydantic import BaseModel

from lvd.tasks.card import plain, table
from lvd.tasks.wording import share


class Facts(BaseModel, frozen=True):
    """What the card says."""

    title: str
    states: dict[str, int]
    images: int
    clusters: dict[str, Any]  # the notes of the centroids
    retrievals: dict[str, dict[str, Any]]  # collection → the notes of its matches
    overlaps: dict[str, dict[str, int]]  # as `reached.overlaps`


def render(facts: Facts) -> str:
    """The card as Markdown."""
    total = sum(facts.states.values())
    states = [[state, f"{n:,}", share(n, total)] for state, n in facts.states.items()]
    asked = [
        [name, said["kind"], *(f"{said.get(key, 0):,}" for key in ("queries", "asked", "found", "images")), _lost(said)]
        for name, said in facts.retrievals.items()
    ]
    passes = [
        [str(number), one["over"], f"{one['objective']:.6f}", f"{one['imbalance']:.3f}", f"{one['num_empty']:,}"]
        for number, one in enumerate(facts.clusters["iterations"], 1)
    ]
    names = list(facts.overlaps)
    shared = [[a, *(f"{facts.overlaps[a][b]:,}" for b in names)] for a in names]
    sections = [
        f"# {plain(facts.title)}\n\n{facts.images:,} vectors, chosen from {total:,} by `lvd`.",
        "## Ledger\n\n" + table(["state", "candidates", "share"], states, numbers=2),
        "## Retrieval\n\n"
        + table(["collection", "kind", "queries", "asked", "found", "different", "remarks"], asked, right=(2, 3, 4, 5)),
        *(["## Retrieved for both\n\n" + table(["", *names], shared, numbers=len(names))] if len(names) > 1 else []),
        "## Clusters\n\n"
        + table(["iteration", "over", "mean similarity", "imbalance", "empty"], passes, right=(2, 3, 4)),
    ]
    return "\n\n".join(sections) + "\n"


def _lost(said: dict[str, Any]) -> str:
    """What stood in the way of what was asked, and how sure the search is; of a mixture, only what is left of that."""
    told = (
        ("weight", "weight {:g}"),
        ("available", "{:,} to mix from"),
        ("short", "{:,} short of its weight"),
        ("clusters", "{:,} clusters"),
        ("taken_whole", "{:,} taken whole"),
        ("capped", "{:,} beyond the cap"),
        ("collided", "{:,} collided"),
        ("ended", "{:,} queries without enough"),
        ("rounds", "{:,} rounds"),
    )
    remarks = [text.format(said[key]) for key, text in told if said.get(key) is not None]
    remarks = ["1 round" if remark == "1 rounds" else remark for remark in remarks]
    if said.get("recall"):
        found, (low, high) = said["recall"]["recall"], said["recall"]["interval"]
        remarks.append(f"recall {found:.4f} ({low:.4f} to {high:.4f}) with {said['recall']['probes']} probes")
    elif said["kind"] == "sample":
        remarks.append("exact")
    return ", ".join(remarks) + _entropy(said)


def _entropy(said: dict[str, Any]) -> str:
    """How much more even a balanced selection is than the pool, the finest level first."""
    pairs = zip(said.get("entropy_before", ()), said.get("entropy_after", ()), strict=True)
    levels = ", ".join(f"{before:.2f} to {after:.2f}" for before, after in pairs)
    return f"; entropy of the clusters, in bits, from {levels}" if levels else ""
