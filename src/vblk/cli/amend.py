"""`vblk amend`: change the options of an image, which no format of this version has.

Owns: QEMU's sentences for that.
"""

from dataclasses import dataclass

from vblk.cli.command import Verb, flag, option
from vblk.cli.console import Console
from vblk.cli.creation import read_options
from vblk.cli.failure import Failure
from vblk.cli.images import ImageArguments, image_graph, image_options, open_named


@dataclass(slots=True)
class Arguments(ImageArguments):
    """The words of one call."""

    options: tuple[str, ...]
    force: bool
    progress: bool
    quiet: bool
    cache: str | None


async def run(arguments: Arguments, console: Console) -> int:
    """Find out the image's format and refuse."""
    if not arguments.options:
        raise Failure("Must specify options (-o)", hint=True)
    read_options(arguments.options)
    if len(arguments.operands) != 1:
        raise Failure("Expecting one image file name")
    async with image_graph(arguments, console) as graph:
        handle = await open_named(graph, arguments.operands[0], arguments, console)
        raise Failure(f"Format driver '{handle.node.driver}' does not support option amendment")


VERB = Verb(
    "amend",
    run,
    Arguments,
    [
        option("-o", "options", metavar="OPTIONS", multiple=True, help="The options to change."),
        option("-t", "cache", metavar="CACHE", help="Cache mode."),
        flag("--force", help="Change them in any case."),
        flag("-p", "progress", help="Show how far it is."),
        flag("-q", "quiet", help="Say nothing but errors."),
        *image_options(),
    ],
    operands="FILENAME",
    help="Not in this version: no format that it has takes new options.",
)
