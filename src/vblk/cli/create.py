"""`vblk create`: make a new image.

Owns: QEMU's announcement and its words for what cannot be made.
"""

import errno
from dataclasses import dataclass

from vblk.cli.command import Verb, flag, option
from vblk.cli.console import Console
from vblk.cli.failure import SUCCESS, Failure, sentence
from vblk.cli.raw_options import options_help, raw_options, read_options
from vblk.cli.targets import (
    local_target,
    require_creatable,
    require_known_protocol,
    require_no_backing,
)
from vblk.cli.values import bounded_size, size_refusal
from vblk.errors import BlockError
from vblk.graph.registry import Graph
from vblk.jobs.target import new_raw_image
from vblk.units import OFFSET_MAX

SIZE_MAX = OFFSET_MAX - OFFSET_MAX % 512
"""The largest raw image in bytes: whole sectors below what a file offset can say."""


@dataclass(slots=True)
class Arguments:
    """The words of one call."""

    operands: tuple[str, ...]
    format: str
    options: tuple[str, ...]
    backing: str | None
    backing_format: str | None
    unsafe: bool
    quiet: bool
    objects: tuple[str, ...]


async def run(arguments: Arguments, console: Console) -> int:
    """Make the image and announce it."""
    options = read_options(arguments.options)
    if options.wants_help:
        require_creatable(arguments.format)
        console.print(*options_help(arguments.format, with_file=bool(arguments.operands)))
        return SUCCESS
    if not arguments.operands:
        raise Failure("Expecting image file name", hint=True)
    name, *rest = arguments.operands
    if len(rest) > 1:
        raise size_refusal("image size")
    size = bounded_size(rest[0], "image size") if rest else None
    if arguments.objects:
        raise Failure("--object: this version makes no images that need objects, such as secrets")
    try:
        await _create(arguments, name, size, options.values, console)
    except Failure as failure:
        raise Failure(*(f"{name}: {line}" for line in failure.lines), hint=failure.hint) from failure
    except BlockError as error:
        text = sentence(error)
        if error.errno == errno.EFBIG:
            text = f"The image size is too large for file format '{arguments.format}'"
        raise Failure(text if text.startswith(f"{name}: ") else f"{name}: {text}") from error
    return SUCCESS


async def _create(
    arguments: Arguments, name: str, size: int | None, values: dict[str, str], console: Console
) -> None:
    require_creatable(arguments.format)
    require_no_backing(arguments.format, arguments.backing, arguments.backing_format)
    options = raw_options(values)
    wanted = size if size is not None else options.size
    if wanted is None:
        raise Failure("Image creation needs a size parameter")
    require_known_protocol(name)
    if not arguments.quiet:
        console.print(options.formatting(name, arguments.format, wanted))
    creation = options.creation(wanted)
    path = local_target(name)
    if wanted > SIZE_MAX:
        raise Failure(f"The image size is too large for file format '{arguments.format}'")
    async with Graph() as graph, new_raw_image(graph, path, creation):
        pass


VERB = Verb(
    "create",
    run,
    Arguments,
    [
        option("-f", "--format", "format", metavar="FMT", default="raw", help="Format: raw, the default."),
        option(
            "-o",
            "options",
            metavar="OPTIONS",
            multiple=True,
            help="preallocation=off|falloc|full,size=...; -o help lists all.",
        ),
        option("-b", "backing", metavar="FILE", help="Refused: raw images have no backing file."),
        option("-F", "backing_format", metavar="FMT", help="Refused: raw images have no backing file."),
        flag("-u", "unsafe", help="Do not open the backing file: of no effect, as there is none."),
        flag("-q", "quiet", help="Say nothing but errors."),
        option(
            "--object", "objects", metavar="OBJECT", multiple=True, help="Refused: no object is needed here."
        ),
    ],
    operands="FILENAME [SIZE]",
    help="Make a new image that reads as zeros. A file that stands there is replaced when all went well, "
    "and not if another process uses it.",
)
