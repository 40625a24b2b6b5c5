"""What the command line shows of versions: which there are, what two differ in, what none needs."""

import sys
from collections import Counter
from datetime import datetime

from rich.markup import escape

from lvd.flows.difference import Balance, Group, difference
from lvd.flows.leftovers import NEW, Leftovers, leftovers, remove_leftovers
from lvd.flows.show import console, size, table
from lvd.flows.versions import STAMP, Version, published_versions

MOST_ROWS = 20  # of domains, and of groups of changes
MOST_DIRECTORIES = 40


def show_versions(root: str) -> None:
    """Every version, with what it has beside the one before."""
    numbers = ("images", "candidates", "shards", "shared")
    rows = table(root, "version", "published", *numbers, "", numbers=numbers)
    before: set[str] = set()
    for version in published_versions(root):
        shared = len(before & set(version.shards))
        counts = (version.images, version.candidates, len(version.shards), shared)
        mark = "latest" if version.is_latest else ""
        rows.add_row(version.name, date(version), *(f"{count:,}" for count in counts), mark)
        before = set(version.shards)
    console.print(rows)
    console.print("shared   shards of images that are those of the version before")


def date(version: Version) -> str:
    """When the last run that came to a version began, from its name: `20261122T010000Z-v1`."""
    return f"{datetime.strptime(version.run_id.split('-')[0], STAMP):%Y-%m-%d %H:%M} UTC"


def show_difference(root: str, older: str, newer: str, as_json: bool) -> None:
    """What the newer version has beside the older one: counts with examples, or as JSON every image."""
    found = difference(root, older, newer, all_images=as_json)
    if as_json:
        sys.stdout.write(found.model_dump_json(indent=1) + "\n")
        return
    came, went = (sum(group.images for group in groups) for groups in (found.added, found.removed))
    console.print(
        f"[bold]{found.older} → {found.newer}[/bold]  {found.images[0]:,} → {found.images[1]:,} images: "
        f"{came:,} added, {went:,} removed, {found.kept:,} in both, of which {found.changed:,} changed"
    )
    both, old, new = found.shards
    console.print(f"shards   {both:,} shared, {old:,} only in {found.older}, {new:,} only in {found.newer}")
    show_groups(f"removed: what {found.newer} says of them", found.removed, went)
    show_groups(f"added: what {found.older} said of them", found.added, came)
    show_groups("changed: the columns that differ", found.changes, found.changed)
    for name, balances in (
        ("role", found.roles),
        ("retrieved for", found.collections),
        ("source", found.sources),
        ("domain", found.domains),
    ):
        show_balances(name, balances)


def show_groups(title: str, groups: tuple[Group, ...], total: int) -> None:
    if not groups:
        return
    rows = table(title, "reason", "images", "share", "for example", numbers=("images", "share"))
    for group in groups[:MOST_ROWS]:
        share = f"{group.images / total:.1%}"
        rows.add_row(escape(group.why), f"{group.images:,}", share, escape("\n".join(group.examples)))
    if len(groups) > MOST_ROWS:
        rows.add_row(f"and {len(groups) - MOST_ROWS:,} more: --json", "", "", "")
    console.print(rows)


def show_balances(name: str, balances: tuple[Balance, ...]) -> None:
    if not balances:
        return
    rows = table("", name, "added", "removed", numbers=("added", "removed"))
    for balance in balances[:MOST_ROWS]:
        rows.add_row(escape(balance.name), f"{balance.added:,}", f"{balance.removed:,}")
    if len(balances) > MOST_ROWS:
        rows.add_row(f"and {len(balances) - MOST_ROWS:,} more: --json", "", "")
    console.print(rows)


def show_leftovers(root: str, keep: int | None, delete: bool) -> None:
    """What no kept version needs, and that it was removed, if it was."""
    found = remove_leftovers(root, keep) if delete else leftovers(root, keep)
    show_directories(found)
    show_sums(found)
    console.print(f"kept     {', '.join(found.kept)}: {size(found.needed_bytes)}")
    for version, place in found.held.items():
        what = f"its export to {escape(place)} is not finished: end it, or remove its record in exports/"
        console.print(f"held     {version}: {what}")
    if found.versions:
        what = "removed" if delete else "to go  "
        console.print(f"{what}  {', '.join(found.versions)}; records of runs: {len(found.records)}")
    if found.unknown:
        console.print(f"alone    {', '.join(map(escape, found.unknown))}: no stage wrote them, they stay")
    if not delete and (since := sum(one.why == NEW for one in found.directories)):
        console.print(
            f"since    {since:,} directories were {NEW}: to keep them, run what was interrupted to its end first"
        )
    what = f"{len(found.directories):,} directories, {size(found.num_bytes)}"
    if delete:
        console.print(f"[bold]removed  {what}[/bold]")
    elif found.directories or found.records:
        console.print(f"[bold]nothing was removed: --delete removes {what}[/bold]")
    else:
        console.print("nothing is left over")


def show_directories(found: Leftovers) -> None:
    """The largest directories, one by one."""
    if not found.directories:
        return
    order = sorted(found.directories, key=lambda one: (-one.num_bytes, one.directory))
    rows = table(found.root, "left over", "state", "files", "size", "why", numbers=("files", "size"))
    for one in order[:MOST_DIRECTORIES]:
        rows.add_row(one.directory, one.state, f"{one.files:,}", size(one.num_bytes), one.why)
    if len(order) > MOST_DIRECTORIES:
        rest = order[MOST_DIRECTORIES:]
        files, num_bytes = sum(one.files for one in rest), sum(one.num_bytes for one in rest)
        rows.add_row(f"and {len(rest):,} smaller ones", "", f"{files:,}", size(num_bytes), "")
    console.print(rows)


def show_sums(found: Leftovers) -> None:
    """Directories and bytes by stage, the largest first."""
    counts, sums = Counter(), Counter()
    for one in found.directories:
        counts[one.stage] += 1
        sums[one.stage] += one.num_bytes
    if not counts:
        return
    rows = table("by stage", "stage", "directories", "size", numbers=("directories", "size"))
    for stage in sorted(counts, key=lambda name: (-sums[name], name)):
        rows.add_row(stage, f"{counts[stage]:,}", size(sums[stage]))
    console.print(rows)
