"""Commands that bring a published version to those who train on it."""

from typing import Annotated

import typer

from lvd.flows.commands.options import OfVersion, Settings


def export(
    root: str,
    to: Annotated[str, typer.Option("--to", help="webdataset, imagefolder or parquet.")],
    out: Annotated[str, typer.Option("--out", help="A folder or a URI: empty, or with this export begun.")],
    version: OfVersion = None,
    shard_images: Annotated[int, typer.Option("--shard-images", min=1, help="Images of one shard.")] = 10_000,
    shard_bytes: Annotated[
        int | None, typer.Option("--shard-bytes", min=1, help="Of the images of one shard, on average, instead.")
    ] = None,
    shuffle: Annotated[bool, typer.Option("--shuffle/--no-shuffle", help="All images, by the seed.")] = True,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    columns: Annotated[
        str | None, typer.Option("--columns", help="Besides the image and its id: key,url,role; else all.")
    ] = None,
    settings: Settings = None,
) -> None:
    """A published version as files that trainers read: shuffled shards, with checksums and the dataset card."""
    from lvd.flows.export_asked import asked_config
    from lvd.flows.exporting import export_version
    from lvd.flows.show_exports import show_export

    config = asked_config(
        kind=to, shard_images=shard_images, shard_bytes=shard_bytes, shuffle=shuffle, seed=seed, columns=columns
    )
    show_export(export_version(root, out, config, version=version, settings=tuple(settings or ())))


def push(
    root: str,
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="name/dataset, on the hub of HF_ENDPOINT.")],
    version: OfVersion = None,
    private: Annotated[bool, typer.Option("--private", help="A new repository that only you see.")] = False,
    export_: Annotated[
        str | None,
        typer.Option("--export", help="An export that is there, or is made and stays; else a temporary one."),
    ] = None,
    settings: Settings = None,
) -> None:
    """A published version to a hub, with its card; the token is the hub's own: HF_TOKEN or its login."""
    from lvd.flows.pushing import push as pushed
    from lvd.flows.show_exports import show_push

    show_push(pushed(root, repo_id, version=version, private=private, export=export_, settings=tuple(settings or ())))


COMMANDS = (export, push)
