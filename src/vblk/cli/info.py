"""`vblk info`: what an image is.

Owns: which images are told of, and in which form. The facts and QEMU's lines
come from `vblk.describing`.
"""

from dataclasses import dataclass

from vblk.cli.command import Verb, flag, option
from vblk.cli.console import Console
from vblk.cli.failure import SUCCESS
from vblk.cli.images import ImageArguments, chain_of, image_graph, image_options, open_named
from vblk.cli.values import OUTPUT_TYPE
from vblk.describing import describe_image, report_lines


@dataclass(slots=True)
class Arguments(ImageArguments):
    """The words of one call."""

    output: str
    backing_chain: bool


async def run(arguments: Arguments, console: Console) -> int:
    """Open the image, with its chain if that was asked for, and report."""
    name = arguments.one_operand()
    async with image_graph(arguments, console) as graph:
        handle = await open_named(graph, name, arguments, console, backing=arguments.backing_chain)
        nodes = chain_of(handle.node) if arguments.backing_chain else [handle.node]
        reports = [await describe_image(node) for node in nodes]
        warnings = [warning for node in nodes for warning in node.warnings]
    if arguments.output == "json":
        import json

        console.print(json.dumps(reports if arguments.backing_chain else reports[0], indent=4))
    elif console.watched:
        from vblk.cli.terminal import show_reports

        show_reports(console, reports)
    else:
        for number, report in enumerate(reports):
            if console.name == "qemu-img" and report["format"] == "vhdx":
                del report["format-specific"]  # scripts that read qemu-img's text have never seen it
            console.print(*([""] if number else []), *report_lines(report))
    for warning in warnings:
        console.warn(warning)
    return SUCCESS


VERB = Verb(
    "info",
    run,
    Arguments,
    [
        option("--output", metavar="human|json", type=OUTPUT_TYPE, default="human", help="How to report."),
        flag("--backing-chain", help="Report the image and all its parents."),
        *image_options(),
    ],
    operands="FILENAME",
    help="Tell what an image is: format, sizes, identity, log and parents.",
)
