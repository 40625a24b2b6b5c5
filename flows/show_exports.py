"""What the command line shows of exports and of what was pushed to a hub."""

from rich.markup import escape

from lvd.flows.export_place import CARD, MANIFEST, SUMS
from lvd.flows.exporting import Summary
from lvd.flows.pushing import Pushed
from lvd.flows.show import console, size


def show_export(summary: Summary) -> None:
    """What was written, and where to look."""
    written = f"wrote {summary.computed:,} shards" if summary.computed else "nothing was written: it is there"
    console.print(f"{written} ({summary.seconds:.1f} s)")
    console.print(
        f"{summary.kind} of {summary.version}: {summary.images:,} images in {summary.shards:,} shards, "
        f"{summary.files:,} files, {size(summary.num_bytes)}"
    )
    console.print(f"export   {escape(summary.out)}\ncard     {escape(summary.out)}/{CARD}")
    console.print(f"sums     {escape(summary.out)}/{SUMS}\nfigures  {escape(summary.out)}/{MANIFEST}")


def show_push(pushed: Pushed) -> None:
    """What was sent, and where it is."""
    removed = f", {pushed.removed:,} of an earlier push removed" if pushed.removed else ""
    console.print(
        f"{pushed.version}: {pushed.images:,} images, {size(pushed.num_bytes)}; "
        f"{pushed.uploaded:,} of {pushed.files:,} files sent, the rest was there{removed}"
    )
    console.print(f"hub      {escape(pushed.url)}")
