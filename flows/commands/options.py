"""Options that several commands have."""

from typing import Annotated

import typer

Root = Annotated[
    str | None, typer.Option("--root", help="Where everything lies: a folder or a URI such as s3://bucket/lvd.")
]
OnRoot = Annotated[str, typer.Option("--root", help="What `lvd run` was given.")]
OfVersion = Annotated[str | None, typer.Option("--version", help="v1, v2, …; the newest if left out.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="Overrides a field: copies.min_similarity=0.65")]
Browser = Annotated[bool, typer.Option("--open", help="Shows it in the browser.")]
