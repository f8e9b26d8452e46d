"""`vblk compact`: make the file of an image smaller, and the disk in it stays as it is.

Owns: the report, for people and as JSON. The work is `vblk.jobs.compact`'s.
"""

from dataclasses import asdict, dataclass

from vblk.cli.command import Verb, flag, option
from vblk.cli.console import Console
from vblk.cli.failure import SUCCESS, Failure
from vblk.cli.images import ImageArguments, image_graph, image_options, open_named
from vblk.cli.progress_view import progress_option, shown_progress
from vblk.cli.values import OUTPUT_TYPE, TARGET_CACHE_TYPE
from vblk.drivers.vhdx import VhdxNode
from vblk.graph.plane import Mover
from vblk.jobs.compact import CompactJob, CompactReport
from vblk.options import format_size


@dataclass(slots=True)
class Arguments(ImageArguments):
    """The words of one call."""

    dry_run: bool
    output: str
    quiet: bool
    progress: bool
    progress_format: str | None
    target_cache: str


async def run(arguments: Arguments, console: Console) -> int:
    """Open the image without its chain, compact it or say what that would win."""
    name = arguments.one_operand()
    async with image_graph(arguments, console) as graph:
        handle = await open_named(
            graph,
            name,
            arguments,
            console,
            read_only=arguments.dry_run,
            cache=None if arguments.dry_run else arguments.target_cache,
            backing=False,
        )
        node = handle.node
        if not isinstance(node, VhdxNode):
            raise Failure(f"{name}: only VHDX images can be compacted, not {node.driver}")
        with shown_progress(
            console,
            wanted=arguments.progress,
            form=arguments.progress_format,
            quiet=arguments.quiet,
            what="compact",
        ) as progress:
            job = CompactJob(node, Mover(graph.engine), progress=progress)
            report = await (job.rehearse() if arguments.dry_run else job.run())
    if arguments.output == "json":
        import json

        console.print(json.dumps(_json_report(report, name, dry_run=arguments.dry_run), indent=4))
    elif not arguments.quiet:
        _print_report(report, console, dry_run=arguments.dry_run)
    return SUCCESS


def _print_report(report: CompactReport, console: Console, *, dry_run: bool) -> None:
    gains = report.gains
    title = "would be " if dry_run else ""
    console.print(
        f"blocks {title}given back: {gains.zero_blocks + gains.parents_blocks + gains.anchors} "
        f"({gains.zero_blocks} all zeros, {gains.anchors} unmapped, {gains.parents_blocks} of the parent's)",
        f"sector bitmaps {title}given back: {gains.bitmaps}",
        f"blocks {title}moved: {gains.moved_blocks}, sector bitmaps {gains.moved_bitmaps}, "
        f"tables {gains.moved_tables}: {format_size(gains.moved_bytes)}",
        f"file length: {_change(report.length_before, report.length_after)}",
    )
    if report.allocated_before is not None and report.allocated_after is not None:
        console.print(f"disk size: {_change(report.allocated_before, report.allocated_after)}")


def _change(before: int, after: int) -> str:
    return f"{format_size(before)} -> {format_size(after)} ({before} -> {after} bytes)"


def _json_report(report: CompactReport, name: str, *, dry_run: bool) -> dict[str, object]:
    gains = {key.replace("_", "-"): value for key, value in asdict(report.gains).items()}
    return {
        "filename": name,
        "format": "vhdx",
        "dry-run": dry_run,
        **gains,
        "length-before": report.length_before,
        "length-after": report.length_after,
        "actual-size-before": report.allocated_before,
        "actual-size-after": report.allocated_after,
    }


VERB = Verb(
    "compact",
    run,
    Arguments,
    [
        flag("-n", "--dry-run", "dry_run", help="Say what would be won, and change nothing."),
        option("--output", metavar="human|json", type=OUTPUT_TYPE, default="human", help="How to report."),
        option(
            "-t",
            "target_cache",
            metavar="CACHE",
            type=TARGET_CACHE_TYPE,
            default="writeback",
            help="Cache mode for writing: none, writeback (the default), writethrough, directsync or unsafe.",
        ),
        flag("-q", "--quiet", help="Say nothing but errors."),
        flag("-p", "progress", help="Show how far it is."),
        progress_option(),
        *image_options(),
    ],
    operands="FILENAME",
    help="Make the file of a VHDX image smaller: blocks that hold only zeros, or nothing of their own, lose "
    "their space, the others move down in the file, and its end is cut. What a guest reads stays as it is, "
    "children of the image stay valid, and a crash at any moment loses nothing. A fixed image is refused: "
    "its blocks keep their space.",
)
