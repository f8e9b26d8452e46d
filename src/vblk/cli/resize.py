"""`vblk resize`: change the size of an image.

Owns: QEMU's reading of the last word as a size, absolute or relative, and its
warnings before data is cut off.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from vblk.cli.command import HelpWanted, Verb, flag, option
from vblk.cli.console import Console
from vblk.cli.failure import SUCCESS, Failure, sentence
from vblk.cli.images import ImageArguments, image_graph, image_options, open_named
from vblk.cli.values import WordType
from vblk.errors import BlockError, OptionError
from vblk.graph.node import Preallocation
from vblk.options import parse_size
from vblk.units import OFFSET_MAX

_MODES = tuple(mode.value for mode in Preallocation)
_NO_SIZE = (
    "Parameter 'size' expects a non-negative number below 2^64\n"
    "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
    "and exabytes, respectively."
)


@dataclass(slots=True)
class Arguments(ImageArguments):
    """The words of one call; the last operand is the size."""

    preallocation: str
    shrink: bool
    quiet: bool


class ResizeVerb(Verb[Arguments]):
    """A verb whose last word is no option, whatever it looks like: `-1G` is a size."""

    def read(self, words: Sequence[str], program: str) -> Arguments:
        """Keep the last word for the size, read the others."""
        if words and words[-1] in ("-h", "--help"):
            raise HelpWanted
        if len(words) < 2:
            raise Failure("Not enough arguments", hint=True)
        arguments = super().read(words[:-1], program)
        arguments.operands = (*arguments.operands, words[-1])
        return arguments


async def run(arguments: Arguments, console: Console) -> int:
    """Open the image for writing and resize it."""
    if len(arguments.operands) != 2:
        raise Failure("Expecting image file name and size", hint=True)
    name, text = arguments.operands
    sign, amount = _parse(text)
    async with image_graph(arguments, console) as graph:
        handle = await open_named(graph, name, arguments, console, read_only=False)
        current = handle.size
        size = current + sign * amount if sign else amount
        if not 0 < size <= OFFSET_MAX:
            raise Failure("New image size must be positive")
        if size <= current and arguments.preallocation != Preallocation.OFF.value:
            raise Failure("Preallocation can only be used for growing images")
        if size < current and not arguments.shrink:
            raise Failure(
                "Use the --shrink option to perform a shrink operation.",
                "warning: Shrinking an image will delete all data beyond the shrunken image's end. "
                "Before performing such an operation, make sure there is no important data there.",
            )
        try:
            await handle.resize(size, preallocation=Preallocation(arguments.preallocation))
        except BlockError as error:
            text = sentence(error).removeprefix(f"{name}: ")
            if text == os.strerror(error.errno):
                text = f"Could not resize file: {text}"
            raise Failure(text) from error
    if not arguments.quiet:
        console.print("Image resized.")
    return SUCCESS


def _parse(text: str) -> tuple[int, int]:
    """Return the sign, 0 for an absolute size, and the amount in bytes."""
    sign = {"+": 1, "-": -1}.get(text[:1], 0)
    try:
        return sign, parse_size(text[1:] if sign else text)
    except OptionError:
        raise Failure(_NO_SIZE) from None


VERB = ResizeVerb(
    "resize",
    run,
    Arguments,
    [
        option(
            "--preallocation",
            metavar="MODE",
            default="off",
            type=WordType(_MODES, "Invalid preallocation mode '{}'"),
            help="What is done for new space: off, falloc or full.",
        ),
        flag("--shrink", help="Allow the image to become smaller: what is behind its new end is lost."),
        flag("-q", "quiet", help="Say nothing but errors."),
        *image_options(),
    ],
    operands="FILENAME [+|-]SIZE",
    help="Change the size of a raw or VHDX image. With + or - the size is relative.",
)
