"""`vblk measure`: how large the file of a new image would be.

Owns: QEMU's two numbers, for the formats in which this version makes images.
"""

from dataclasses import dataclass

from vblk.cli.command import Verb, option
from vblk.cli.console import Console
from vblk.cli.creation import Request, read_options, request
from vblk.cli.failure import SUCCESS, Failure
from vblk.cli.images import ImageArguments, image_graph, image_options, open_named
from vblk.cli.snapshots import check_snapshot_name, no_snapshots
from vblk.cli.values import OUTPUT_TYPE, SizeType
from vblk.creating import CREATORS
from vblk.graph.creation import Wish
from vblk.graph.handle import Handle
from vblk.graph.objects import Objects
from vblk.jobs.measure import data_in_units
from vblk.opening import FORMATS, KNOWN_ELSEWHERE, PROTOCOLS
from vblk.units import align_up


@dataclass(slots=True)
class Arguments(ImageArguments):
    """The words of one call."""

    output: str
    output_format: str
    options: tuple[str, ...]
    size: int | None
    snapshot: str | None


async def run(arguments: Arguments, console: Console) -> int:
    """Calculate and report."""
    options = read_options(arguments.options)
    if arguments.snapshot is not None:
        check_snapshot_name(arguments.snapshot)
    _check_operands(arguments)
    form = arguments.output_format
    if form not in FORMATS and form not in PROTOCOLS and form not in KNOWN_ELSEWHERE:
        raise Failure(f"Unknown file format '{form}'")
    if form in PROTOCOLS or form not in CREATORS:
        raise Failure(f"Block driver '{form}' does not support size measurement")
    try:
        wanted = request(form, options.values, None, None)
        if wanted.backing_file is not None:
            raise Failure("an image that stands on another one cannot be measured in this version of vblk")
    except Failure as failure:
        raise Failure(*failure.lines, f"Invalid options for file format '{form}'") from failure
    if arguments.size is not None:
        required, full = await _measure(wanted, arguments.size, None, arguments.check())
    else:
        async with image_graph(arguments, console) as graph:
            handle = await open_named(graph, arguments.operands[0], arguments, console)
            if arguments.snapshot is not None:
                raise no_snapshots(handle.node.driver)
            required, full = await _measure(wanted, handle.size, handle, graph.objects)
    if arguments.output == "json":
        import json

        console.print(json.dumps({"required": required, "fully-allocated": full}, indent=4))
    else:
        console.print(f"required size: {required}", f"fully allocated size: {full}")
    return SUCCESS


async def _measure(wanted: Request, size: int, source: Handle | None, objects: Objects) -> tuple[int, int]:
    """Return the length of a new image's file with the data of `source`, or none, and with all blocks."""
    image = await wanted.creator.plan(Wish("", size, wanted.options, wanted.file, objects=objects))
    unit = image.allocation_unit
    if not unit:
        return image.file_length(0), image.file_length(0)
    data = 0 if source is None else await data_in_units(source, unit)
    return image.file_length(data), image.file_length(align_up(image.size, unit))


def _check_operands(arguments: Arguments) -> None:
    named = arguments.operands
    if len(named) > 1:
        raise Failure("At most one filename argument is allowed.")
    if not named and (arguments.image_opts or arguments.format is not None or arguments.snapshot is not None):
        raise Failure("--image-opts, -f, and -l require a filename argument.")
    if not named and arguments.size is None:
        raise Failure("Either --size N or one filename must be specified.")
    if named and arguments.size is not None:
        raise Failure("--size N cannot be used together with a filename.")


VERB = Verb(
    "measure",
    run,
    Arguments,
    [
        option("--output", metavar="human|json", type=OUTPUT_TYPE, default="human", help="How to report."),
        option("-O", "output_format", metavar="FMT", default="raw", help="Its format: raw, qcow2 or vhdx."),
        option("-o", "options", metavar="OPTIONS", multiple=True, help="How it would be made."),
        option(
            "--size", metavar="SIZE", type=SizeType("image size"), help="Size of the disk, without an image."
        ),
        option(
            "-l", "snapshot", metavar="SNAPSHOT", help="Refused: no format of this version has snapshots."
        ),
        *image_options(),
    ],
    operands="[FILENAME]",
    help="Calculate how large the file of a new image is, for an image's content or for a size.",
)
