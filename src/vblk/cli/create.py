"""`vblk create`: make a new image.

Owns: QEMU's announcement and its words for what cannot be made.
"""

import errno
from dataclasses import dataclass

from vblk.cli.command import Verb, flag, option
from vblk.cli.console import Console
from vblk.cli.creation import options_help, read_options, request, require_known_protocol, target_of
from vblk.cli.failure import SUCCESS, Failure, sentence
from vblk.cli.objects import objects_of, objects_option
from vblk.cli.values import bounded_size, size_refusal
from vblk.errors import BlockError
from vblk.graph.objects import Objects
from vblk.graph.registry import Graph
from vblk.jobs.target import make_image


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
        console.print(*options_help(arguments.format, with_file=bool(arguments.operands)))
        return SUCCESS
    if not arguments.operands:
        raise Failure("Expecting image file name", hint=True)
    name, *rest = arguments.operands
    if len(rest) > 1:
        raise size_refusal("image size")
    size = bounded_size(rest[0], "image size") if rest else None
    objects = objects_of(arguments.objects)
    try:
        await _create(arguments, name, size, options.values, objects, console)
    except Failure as failure:
        raise Failure(*(f"{name}: {line}" for line in failure.lines), hint=failure.hint) from failure
    except BlockError as error:
        text = sentence(error)
        if error.errno == errno.EFBIG:
            text = f"The image size is too large for file format '{arguments.format}'"
        raise Failure(text if text.startswith(f"{name}: ") else f"{name}: {text}") from error
    return SUCCESS


async def _create(
    arguments: Arguments,
    name: str,
    size: int | None,
    values: dict[str, str],
    objects: Objects,
    console: Console,
) -> None:
    wanted = request(arguments.format, values, arguments.backing, arguments.backing_format)
    if size is not None and wanted.size is not None:
        raise Failure("The image size must be specified only once")
    size = size if size is not None else wanted.size
    require_known_protocol(name)
    async with Graph(objects=objects) as graph:
        if wanted.backing_file == name:
            raise Failure("Error: Trying to create an image with the same filename as the backing file")
        backing = await wanted.opened_backing(graph, name, chain=not arguments.unsafe)
        if size is None and backing is not None:
            size = backing.size
        if size is None:
            raise Failure("Image creation needs a size parameter")
        if not arguments.quiet:
            console.print(wanted.announced(name, size))
        image = await wanted.plan(graph, name, size, backing)
        await make_image(graph, target_of(name), image)


VERB = Verb(
    "create",
    run,
    Arguments,
    [
        option(
            "-f",
            "--format",
            "format",
            metavar="FMT",
            default="raw",
            help="Its format: raw, vhdx or luks.",
        ),
        option(
            "-o",
            "options",
            metavar="OPTIONS",
            multiple=True,
            help="How it is made: NAME=VALUE,...; -o help lists all.",
        ),
        option(
            "-b",
            "backing",
            metavar="FILE",
            help="What it stands on, from its own folder: makes a VHDX a differencing image.",
        ),
        option("-F", "backing_format", metavar="FMT", help="The format of that."),
        flag("-u", "unsafe", help="Do not look for what the backing file stands on in its turn."),
        flag("-q", "quiet", help="Say nothing but errors."),
        objects_option(),
    ],
    operands="FILENAME [SIZE]",
    help="Make a new image that reads as zeros. A file that stands there is replaced when all went well, "
    "and not if another process uses it.",
)
