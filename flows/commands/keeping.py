"""Commands about versions: which there are, what changed, what none needs, what has to go."""

from typing import Annotated

import typer

from lvd.flows.commands.options import OnRoot


def versions(root: OnRoot = "demo") -> None:
    """The published versions: when, how many images, how many shards they share."""
    from lvd.flows.show_versions import show_versions

    show_versions(root)


def diff(
    older: Annotated[str, typer.Argument(metavar="V1", help="v1, or 1.")],
    newer: Annotated[str, typer.Argument(metavar="V2", help="v2, 2, or latest.")],
    root: OnRoot = "demo",
    as_json: Annotated[bool, typer.Option("--json", help="For machines: every image, not only examples.")] = False,
) -> None:
    """What two versions differ in: images added, removed, changed, and why; by collection and domain."""
    from lvd.flows.show_versions import show_difference

    show_difference(root, older, newer, as_json)


def gc(
    root: str,
    keep: Annotated[int | None, typer.Option("--keep", help="The newest versions that stay; by default all.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Removes it; without, it is only listed.")] = False,
) -> None:
    """What no version needs: lists it, and with --delete removes it."""
    from lvd.flows.show_versions import show_leftovers

    show_leftovers(root, keep, delete)


def forget(
    url: Annotated[list[str] | None, typer.Option("--url", help="Its address, or its key in the ledger.")] = None,
    domain: Annotated[list[str] | None, typer.Option("--domain", help="All that lies there and below it.")] = None,
    image_id: Annotated[list[str] | None, typer.Option("--image-id", help="As `lvd find` tells it.")] = None,
    image: Annotated[list[str] | None, typer.Option("--image", help="A file with the picture.")] = None,
    list_: Annotated[
        str | None, typer.Option("--list", help="An opt-out list: a URL, a domain or an image id a line.")
    ] = None,
    reason: Annotated[str | None, typer.Option("--reason", help="Kept in the record.")] = None,
    by: Annotated[str | None, typer.Option("--by", help="Who asked for it; kept in the record.")] = None,
    now: Annotated[
        bool, typer.Option("--now", help="Out of the published versions and the stored bytes too; alone: all records.")
    ] = False,
    root: OnRoot = "demo",
) -> None:
    """Takes images down, with all their copies: out of every later version, with a record that holds hashes only."""
    from lvd.flows import takedown
    from lvd.flows.show_takedown import show_taken

    names = {"urls": url, "domains": domain, "image_ids": image_id, "images": image}
    asked = takedown.Asked(**{kind: tuple(found or ()) for kind, found in names.items()}, list_file=list_)
    show_taken(takedown.forget(root, asked, now=now, by=by, reason=reason))


COMMANDS = (versions, diff, gc, forget)
